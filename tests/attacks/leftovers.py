"""C8 and C9: leaving something for the next experiment, and leading the controller to files of the host."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from tests.attacks.ground import Assault, Ending, Gained, Ground, engine_folder

GONE, DENIED, NEVER_OPENED = "gone", "denied", "never opened"
_FRESH = "containers, volumes and namespaces of their own, removed after every experiment"
_APART = "the workspace is a volume that only containers mount; of a run the controller reads its output"

_WAYS = {
    "files in every folder that can be written": "",
    "a changed train.py and prepare.py": "",
    "compiled code in caches": "",
    "a process that has left its session": "",
    "a socket with an abstract name": "",
    "a listening port": "",
    "POSIX shared memory": "",
    "a POSIX message queue": "",
    "System V shared memory": DENIED,
    "a System V semaphore": DENIED,
    "a key in the kernel's keyring": DENIED,
    "an environment for PID 1 and the shell": "",
}

_PLACES = (
    "('/work', '/tmp', '/dev/shm', '/dev/mqueue', '/var/tmp', '/run', '/opt', '/glovebox', '/data', '/')"
)

_LEAVE = f"""
import ctypes, os, platform, re, socket, time
libc = ctypes.CDLL(None, use_errno=True)
text = open(f"/usr/include/{{platform.machine()}}-linux-gnu/asm/unistd_64.h").read()
number = dict(re.findall(r"^#define __NR_(\\w+) (\\d+)$", text, re.M))

def call(name, *arguments):
    if libc.syscall(int(number[name]), *arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

def leave(way, *actions):
    done = 0
    for action in actions:
        try: action(); done += 1
        except OSError: pass
    print("left" if done else "denied", way, flush=True)

def write(path, text="left by the run before"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file: file.write(text)

held = []
def listen(family, address):
    held.append(socket.socket(family)); held[-1].bind(address); held[-1].listen()

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv("/bin/sleep", ["left-by-the-run-before", "3600"])
        os._exit(0)

leave("files in every folder that can be written", *[lambda p=p: write(p + "/left") for p in {_PLACES}])
leave("a changed train.py and prepare.py",
      lambda: write("/work/train.py", "print('left')"), lambda: write("/work/prepare.py", "print('left')"))
leave("compiled code in caches",
      *[lambda p=p: write(p) for p in
        ("/tmp/inductor/left.py", "/tmp/triton/left", "/work/__pycache__/left.pyc")])
leave("a process that has left its session", daemon)
leave("a socket with an abstract name", lambda: listen(socket.AF_UNIX, "\\0left"))
leave("a listening port", lambda: listen(socket.AF_INET, ("127.0.0.1", 4242)))
leave("POSIX shared memory", lambda: write("/dev/shm/sem.left"))
leave("a POSIX message queue",
      lambda: os.close(os.open("/dev/mqueue/left-queue", os.O_CREAT | os.O_RDWR, 0o600)))
leave("System V shared memory", lambda: call("shmget", 4242, 4096, 0o1666))
leave("a System V semaphore", lambda: call("semget", 4242, 1, 0o1666))
leave("a key in the kernel's keyring", lambda: call("add_key", b"user", b"left", b"left", 4, -4))
leave("an environment for PID 1 and the shell", lambda: write("/tmp/.profile"), lambda: write("/work/.pth"))
"""

_FIND = f"""
import glob, os, socket
def look(way, found):
    print("found" if found else "clean", way, flush=True)

def connects(family, address):
    with socket.socket(family) as mine:
        try: mine.connect(address); return True
        except OSError: return False

def named(name):
    return [path for place in {_PLACES} for path in glob.glob(place + "/" + name)]

def commands():
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try: yield open(path).read()
        except OSError: pass

look("files in every folder that can be written", named("left"))
look("a changed train.py and prepare.py",
     any(open(path).read().startswith("print('left") for path in ("/work/prepare.py", "/work/train.py")))
look("compiled code in caches",
     glob.glob("/tmp/*") + glob.glob("/work/__pycache__/left*"))
look("a process that has left its session", any("left-by" in command for command in commands()))
look("a socket with an abstract name", connects(socket.AF_UNIX, "\\0left"))
look("a listening port", connects(socket.AF_INET, ("127.0.0.1", 4242)))
look("POSIX shared memory", os.listdir("/dev/shm"))
look("a POSIX message queue", os.listdir("/dev/mqueue"))
look("System V shared memory", "4242" in open("/proc/sysvipc/shm").read())
look("a System V semaphore", "4242" in open("/proc/sysvipc/sem").read())
look("a key in the kernel's keyring", os.path.exists("/proc/keys") and open("/proc/keys").read(1))
look("an environment for PID 1 and the shell", named(".profile") + named(".pth"))
"""


def _left_and_found(ground: Ground) -> Mapping[str, tuple[str, str]]:
    """By way: whether it could be left, and whether the next run found it."""
    left = _words(ground.run(_LEAVE, 20.0).log)
    found = _words(ground.run(_FIND, 20.0).log)
    if left.keys() != _WAYS.keys() or found.keys() != _WAYS.keys():
        raise RuntimeError(f"not everything was tried: {left} {found}")
    return {way: (left[way], found[way]) for way in _WAYS}


def _words(log: str) -> dict[str, str]:
    lines = [line.split(" ", 1) for line in log.splitlines()]
    return {line[1]: line[0] for line in lines if len(line) == 2}


def _leaves(way: str, expected: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        left, found = ground.once("leftovers", lambda: _left_and_found(ground))[way]
        if found == "found":
            raise Gained(f"the next run finds {way}")
        return Ending(DENIED if left == "denied" else GONE)

    return Assault("C8", f"leaves {way}", expected or GONE, _FRESH, attack)


_NAMES = (
    *("run.log", "train.py", "change.diff", "experiment.json", "audit.jsonl", "results.tsv"),
    *("checkpoint.safetensors", "checkpoint.json", "manifest.json", "stdout", "output", "core"),
)
_KINDS = {
    "links to files of the host": ("os.symlink('@TARGET@', path)",),
    "named pipes that nobody writes to": ("os.mkfifo(path, 0o666)",),
    "sockets, devices, folders and second names": (
        "held.append(socket.socket(socket.AF_UNIX)); held[-1].bind(path)",
        "os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))",
        "os.mkdir(path)",
        "os.link('/work/train.py', path)",
    ),
}
_PLACE = """
import os, socket, stat
model, held, made, makes = 0, [], 0, @MAKES@
for number, name in enumerate(@NAMES@):
    path = "/work/" + name
    if name != "train.py" and os.path.lexists(path):
        os.unlink(path)
    try:
        exec(makes[number % len(makes)])
        made += 1
    except OSError: pass
print("made", made, flush=True)
raise SystemExit(0 if made > 5 else 3)
"""


def _places(kind: str, makes: tuple[str, ...]) -> Assault:
    """The real controller under strace: no file it opens is one that the run made or leads to."""

    def attack(ground: Ground) -> Ending:
        if shutil.which("strace") is None:
            return Ending("not looked", "strace is not installed")
        with tempfile.TemporaryDirectory(dir=ground.bench.home) as folder:
            target = Path(folder) / "precious"
            target.write_text("of the host")
            program = _PLACE.replace("@NAMES@", repr(_NAMES)).replace("@MAKES@", repr(makes))
            opened = _opened(ground, program.replace("@TARGET@", str(target)), Path(folder) / "trace")
        forbidden = (str(target), f"{engine_folder()}/volumes", f"{engine_folder()}/overlay2")
        if seen := [path for path in opened if path.startswith(forbidden)]:
            raise Gained(f"the controller opened {seen[:3]}")
        return Ending(NEVER_OPENED, f"{len(opened)} other files were")

    return Assault("C9", f"leaves {kind}", NEVER_OPENED, _APART, attack)


def _opened(ground: Ground, program: str, trace: Path) -> list[str]:
    """Every path that the controller and its children opened while it tried `program`."""
    calls = "trace=open,openat,openat2,creat"
    prefix = ["strace", "-f", "--seccomp-bpf", "-qq", "-e", calls, "-o", str(trace)]
    process = ground.try_command(program, 20.0, prefix)
    began = time.monotonic()
    try:
        said, error = process.communicate(timeout=150)
    finally:
        process.kill()
        ground.sweep()
    if process.returncode != 0 or '"verdict": "crash"' not in said or '"cause": "exit"' in said:
        raise RuntimeError(f"the try ended with {process.returncode}: {said[-300:]} {error[-300:]}")
    opened = re.findall(r'open\w*\([^"]*"([^"]*)"', trace.read_text(encoding="utf-8", errors="replace"))
    if not any(path.endswith("run.log") for path in opened):
        raise RuntimeError(f"the trace of {time.monotonic() - began:.0f} s does not even show run.log")
    return opened


CASES = (
    *(_leaves(way, expected) for way, expected in _WAYS.items()),
    *(_places(kind, makes) for kind, makes in _KINDS.items()),
)
