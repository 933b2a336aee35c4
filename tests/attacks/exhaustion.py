"""C3 and C4: using up processes, memory, files and disk."""

from __future__ import annotations

import textwrap

from tests.attacks.ground import Assault, Ending, Ground

CONTAINED, OOM, CAPPED = "contained", "crash oom", "capped"
_THEN = "limits of the container's cgroup; what it held is free when its last process is dead"
_CAPS = "every place a run can write to is a tmpfs with a size, or has a limit of the kernel"

_BOMBS = {
    "forks from every process at once": (
        """
        import os
        print('armed', flush=True)
        while True:
            try: os.fork()
            except OSError: pass
        """,
        CONTAINED,
    ),
    "starts threads without end": (
        """
        import threading, time
        print('armed', flush=True)
        while True:
            try: threading.Thread(target=time.sleep, args=(3600,)).start()
            except (RuntimeError, MemoryError): time.sleep(0.01)
        """,
        CONTAINED,
    ),
    "opens files, pipes, timers and watches without end": (
        """
        import ctypes, os, select, socket, time
        libc = ctypes.CDLL(None)
        for _ in range(100):
            if os.fork() == 0: break
        kinds = (lambda: os.eventfd(0), os.pipe, select.epoll, socket.socketpair, libc.inotify_init,
                 lambda: os.memfd_create("x"), lambda: libc.timerfd_create(1, 0), lambda: open("/dev/null"))
        held, number = [], 0
        print('armed', flush=True)
        while True:
            try: held.append(kinds[number % len(kinds)]())
            except OSError: time.sleep(0.001)
            number += 1
        """,
        CONTAINED,
    ),
    "takes memory in large blocks": (
        """
        print('armed', flush=True)
        blocks = []
        while True: blocks.append(bytearray(b'x') * (1 << 24))
        """,
        OOM,
    ),
    "takes memory that no process owns (memfd)": (
        """
        import os
        print('armed', flush=True)
        for _ in range(20):
            file = os.memfd_create("x")
            for _ in range(20): os.write(file, bytes(1 << 20))
        """,
        OOM,
    ),
    "fills what is charged as memory, then takes memory": (
        """
        print('armed', flush=True)
        for place, size in (("/dev/shm", 7), ("/tmp", 16), ("/work", 14)):
            open(f"{place}/fill", "wb").write(bytes(size << 20))
        blocks = []
        while True:
            blocks.append(bytearray(b'x') * (1 << 20))
            print(len(blocks), flush=True)
        """,
        OOM,
    ),
    "reads everything, so that the page cache fills": (
        """
        import os
        print('armed', flush=True)
        while True:
            for folder, _, names in os.walk("/opt"):
                for name in names:
                    try:
                        with open(os.path.join(folder, name), "rb") as file:
                            while file.read(1 << 20): pass
                    except OSError: pass
        """,
        CONTAINED,
    ),
    "fills pipes and sockets with what nobody reads": (
        """
        import fcntl, os, socket, time
        held = []
        print('armed', flush=True)
        for _ in range(60):
            if os.fork() == 0: break
        while True:
            try:
                read, write = os.pipe()
                os.set_blocking(write, False)
                try: fcntl.fcntl(write, 1031, 1 << 20)
                except OSError: pass
                one, other = socket.socketpair()
                one.setblocking(False)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
                held += [read, write, one, other]
                for send in (lambda: os.write(write, bytes(1 << 16)), lambda: one.send(bytes(1 << 16))):
                    try:
                        while True: send()
                    except BlockingIOError: pass
            except (OSError, MemoryError): time.sleep(0.01)
        """,
        CONTAINED,
    ),
    "locks memory and asks to be spared": (
        """
        import ctypes, os
        libc = ctypes.CDLL(None)
        libc.mlockall(7)
        try: open("/proc/self/oom_score_adj", "w").write("-1000")
        except OSError: pass
        print('armed', flush=True)
        blocks = []
        while True: blocks.append(bytearray(b'x') * (1 << 22))
        """,
        OOM,
    ),
}

# Each prints `capped` once the kernel has said no, and how far it came.
_FILL = """
import errno, os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def fill(make, most):
    for count in range(most):
        try: make(count)
        except OSError as error:
            print("capped", errno.errorcode[error.errno], "after", count, flush=True)
            return
    print("not capped after", most, flush=True)
def write(path, size=1 << 20):
    with open(path, "wb") as file: file.write(bytes(size))
"""

_FILLINGS = {
    "the workspace": "fill(lambda n: write(f'/work/{n}'), 1000)",
    "the workspace's inodes": "fill(lambda n: write(f'/work/{n}', 0), 100_000)",
    "/tmp": "fill(lambda n: write(f'/tmp/{n}'), 1000)",
    "/dev/shm": "fill(lambda n: write(f'/dev/shm/{n}'), 1000)",
    "/tmp, with files that have no name any more": """
        held = []
        def make(n):
            held.append(open(f'/tmp/{n}', 'wb+'))
            os.unlink(f'/tmp/{n}')
            held[-1].write(bytes(1 << 20))
            held[-1].flush()
        fill(make, 1000)
    """,
    "one file larger than a file may be": """
        file = open('/tmp/large', 'wb')
        fill(lambda n: os.write(file.fileno(), bytes(1 << 20)) or 1, 1000)
    """,
    "a sparse file of a terabyte": "fill(lambda n: os.truncate(os.open('/tmp/s', 66, 0o600), 1 << 40), 10)",
    "blocks without writing them (fallocate)": """
        files = [os.open(f'/tmp/{n}', os.O_CREAT | os.O_RDWR) for n in range(100)]
        fill(lambda n: os.posix_fallocate(files[n], 0, 1 << 20), 100)
    """,
    "the workspace, with long names and links": """
        def make(n):
            os.symlink('x' * 4000, f'/work/{n:0255}')
        fill(make, 100_000)
    """,
    "the workspace, with folders in folders": """
        os.chdir('/work')
        def make(n):
            os.mkdir('d' * 255)
            os.chdir('d' * 255)
        fill(make, 100_000)
    """,
    "message queues that are files": """
        fill(lambda n: os.close(os.open(f'/dev/mqueue/{n}', os.O_CREAT | os.O_RDWR, 0o600)), 100_000)
    """,
    "a core file": """
        import time
        if os.fork() == 0:
            os.chdir('/work')
            os.abort()
        os.wait()
        time.sleep(0.1)
        cores = [name for name in os.listdir('/work') + os.listdir('/tmp') if 'core' in name]
        print('not capped' if cores else 'capped', cores, resource.getrlimit(resource.RLIMIT_CORE))
    """,
}

#: Nothing limits the number of files in /tmp but the memory that they take.
_FILES = """
    print('armed', flush=True)
    count = 0
    while True:
        os.close(os.open(f'/tmp/{count}', os.O_CREAT | os.O_WRONLY))
        count += 1
"""


def _bomb(name: str, program: str, expected: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        # What runs out of memory ends by itself, on a busy machine late.
        run = (
            ground.run(program, 30.0, then_honest=True)
            if expected == OOM
            else ground.armed(program, then_honest=True)
        )
        if "armed" not in run.log:
            return Ending("not armed", run.log[-300:])
        outcome = run.outcome
        if outcome.cause is not None:
            ended = f"crash {outcome.cause}"
        else:
            ended = "killed" if outcome.killed_at_limit else f"status {outcome.exit_code}"
        got = CONTAINED if expected == CONTAINED and ended in ("killed", OOM) else ended
        return Ending(got, f"{ended}; slot usable after {run.next_seconds:.1f} s")

    return Assault("C3", name, expected, _THEN, attack)


def _filling(name: str, program: str) -> Assault:
    def attack(ground: Ground) -> Ending:
        run = ground.run(_FILL + textwrap.dedent(program), 20.0, then_honest=True)
        last = run.log.splitlines()[-1:] or ["nothing"]
        got = CAPPED if run.log.startswith("capped") else f"status {run.outcome.exit_code}"
        return Ending(got, last[0][:200])

    return Assault("C4", f"fills {name}", CAPPED, _CAPS, attack)


CASES = (
    *(_bomb(name, textwrap.dedent(program), expected) for name, (program, expected) in _BOMBS.items()),
    _bomb("makes files in /tmp without end", _FILL + textwrap.dedent(_FILES), CONTAINED),
    *(_filling(name, program) for name, program in _FILLINGS.items()),
)
