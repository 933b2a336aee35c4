"""A train.py that tries to get out: rows C6 (network) and C7 (kernel, files, users), one function an attempt.

It runs in a container as T, on the standard library alone, and prints one JSON line for each attempt.
An attempt is denied if it raises OSError, and tells what it gained if it returns. The test fills in
`ALLOWED`, the names of the system calls that the seccomp profile allows.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import platform
import re
import resource
import signal
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

ALLOWED: list[str] = []

LIBC = ctypes.CDLL(None, use_errno=True)
HEADER = Path(f"/usr/include/{platform.machine()}-linux-gnu/asm/unistd_64.h")
NAMESPACES = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "mnt": 0x00020000,
    "net": 0x40000000,
    "pid": 0x20000000,
    "user": 0x10000000,
    "uts": 0x04000000,
}
SOCKETS = {  # family, type, protocol
    "raw ICMP": (2, 3, 1),
    "ping": (2, 2, 1),
    "raw IPv6": (10, 3, 58),
    "AF_PACKET": (17, 3, 0x0300),
    "AF_PACKET datagram": (17, 2, 0x0300),
    "AF_ALG": (38, 5, 0),
    "AF_VSOCK": (40, 1, 0),
    "AF_XDP": (44, 3, 0),
    "AF_CAN": (29, 3, 1),
    "AF_BLUETOOTH": (31, 3, 1),
    "AF_TIPC": (30, 1, 0),
    "AF_RDS": (21, 5, 0),
    "AF_KEY": (15, 3, 2),
    "AF_QIPCRTR": (42, 2, 0),
    "AF_SMC": (43, 1, 0),
    "AF_APPLETALK": (5, 2, 0),
    "SCTP": (2, 1, 132),
    "MPTCP": (2, 1, 262),
    "UDP-Lite": (2, 2, 136),
    "netfilter": (16, 3, 12),
    "generic netlink": (16, 3, 16),
    "kernel events": (16, 3, 15),
    "audit": (16, 3, 9),
}
ADDRESSES = {  # port and address; the last two are services that engines and clouds offer
    "public IPv4": (socket.AF_INET, "1.1.1.1", 443),
    "public IPv6": (socket.AF_INET6, "2606:4700:4700::1111", 443),
    "private network": (socket.AF_INET, "10.0.0.1", 80),
    "engine on the bridge": (socket.AF_INET, "172.17.0.1", 2375),
    "cloud metadata": (socket.AF_INET, "169.254.169.254", 80),
    "cloud metadata IPv6": (socket.AF_INET6, "fd00:ec2::254", 80),
}
SECRETIVE = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/acpi",
    "/sys/firmware",
    "/sys/kernel/debug",
    "/sys/kernel/security",
    "/sys/fs/bpf",
)
KERNEL_KNOBS = (
    "/proc/sysrq-trigger",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/irq/default_smp_affinity",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/release_agent",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cgroup.procs",
)
SCRATCH = {"/dev/mqueue", "/dev/shm", "/tmp", "/work"}
"""Folders that a run may write to; all are its own and end with it."""
NODES = {"full", "null", "ptmx", "random", "tty", "urandom", "zero"}
NODE_LINKS = {"core", "fd", "stderr", "stdin", "stdout"}
NODE_FOLDERS = {"mqueue", "pts", "shm"}

Attempt = Callable[[], object]
ATTEMPTS: dict[str, tuple[str, Attempt]] = {}


def attempt(row: str, name: str) -> Callable[[Attempt], Attempt]:
    def register(function: Attempt) -> Attempt:
        ATTEMPTS[name] = (row, function)
        return function

    return register


def each(row: str, what: str, names: dict[str, Attempt]) -> None:
    for name, function in names.items():
        ATTEMPTS[f"{what} {name}"] = (row, function)


def call(name: str, *arguments: object) -> int:
    """A system call by name. Raises OSError if it fails."""
    return checked(LIBC.syscall(numbers()[name], *arguments))


def checked(result: int) -> int:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def numbers() -> dict[str, int]:
    found = re.findall(r"^#define __NR_(\w+) (\d+)$", HEADER.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: int(number) for name, number in found}


def refuse(gained: object) -> object:
    """For attempts that fail by finding nothing."""
    if not gained:
        raise FileNotFoundError(errno.ENOENT, "nothing there")
    return gained


# C6: the network


def connect(kind: socket.SocketKind, family: int, address: str, port: int) -> str:
    with socket.socket(family, kind) as mine:
        mine.settimeout(5)
        mine.connect((address, port))
        mine.send(b"x")
        return f"sent to {address}"


def open_socket(family: int, kind: int, protocol: int) -> str:
    socket.socket(family, kind, protocol).close()
    return "a socket"


def to(kind: socket.SocketKind, target: tuple[int, str, int]) -> Attempt:
    return lambda: connect(kind, *target)


each("C6", "TCP to", {name: to(socket.SOCK_STREAM, target) for name, target in ADDRESSES.items()})
each("C6", "UDP to", {name: to(socket.SOCK_DGRAM, target) for name, target in ADDRESSES.items()})
each("C6", "socket", {name: partial(open_socket, *of) for name, of in SOCKETS.items()})


@attempt("C6", "UDP broadcast")
def _() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return mine.sendto(b"x", ("255.255.255.255", 9))


@attempt("C6", "DNS")
def _() -> object:
    try:
        return socket.getaddrinfo("example.com", 80)
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, str(error)) from error


@attempt("C6", "an interface but the loopback")
def _() -> object:
    return refuse([name for _, name in socket.if_nameindex() if name != "lo"])


@attempt("C6", "abstract AF_UNIX names of the host")
def _() -> object:
    lines = Path("/proc/net/unix").read_text(encoding="utf-8").splitlines()[1:]
    return refuse([line for line in lines if "@" in line or "/" in line])


@attempt("C6", "the engine's socket")
def _() -> object:
    places = ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")
    return refuse([place for place in places if os.path.exists(place)])


# C7: files


@attempt("C7", "write outside the scratch")
def _() -> object:
    """Really creates a file in every folder that can be reached."""
    gained = set()
    for folder, folders, _ in os.walk("/"):
        folders[:] = [name for name in folders if (folder, name) not in {("/", "proc"), ("/", "sys")}]
        with contextlib.suppress(OSError):
            os.close(os.open(f"{folder}/written", os.O_CREAT | os.O_WRONLY, 0o600))
            os.unlink(f"{folder}/written")
            gained.add(folder)
    return refuse([f for f in gained if not any(f == s or f.startswith(f"{s}/") for s in SCRATCH)])


@attempt("C7", "write to what is mounted read-only")
def _() -> object:
    files = [Path("/work/prepare.py"), Path("/glovebox/train.py"), *Path("/data").rglob("*")]
    assert files[0].exists() and files[1].exists()
    return refuse([str(path) for path in files if path.is_file() and writable(path)])


def writable(path: Path) -> bool:
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_WRONLY))
        return True
    with contextlib.suppress(OSError):
        path.chmod(0o777)
        return True
    return False


@attempt("C7", "replace a mounted file")
def _() -> object:
    Path("/work/mine").write_text("x", encoding="utf-8")
    os.rename("/work/mine", "/work/prepare.py")
    return "replaced"


def turn(knob: str) -> int:
    return os.write(os.open(knob, os.O_WRONLY), b"h")


each(
    "C7",
    "write to",
    {place: partial(turn, place) for place in KERNEL_KNOBS},
)


def readable(place: str) -> object:
    if os.path.isdir(place):
        return refuse(os.listdir(place))
    with open(place, "rb") as file:
        return refuse(file.read(1))


each("C7", "read", {place: partial(readable, place) for place in SECRETIVE})


@attempt("C7", "a device but the harmless ones")
def _() -> object:
    return refuse([name for name in os.listdir("/dev") if name not in NODES | NODE_LINKS | NODE_FOLDERS])


def node(folder: str, kind: int, major: int, minor: int) -> str:
    os.mknod(f"{folder}/node", kind | 0o666, os.makedev(major, minor))
    return "a device node"


each(
    "C7",
    "mknod",
    {
        f"{what} in {folder}": partial(node, folder, *of)
        for folder in ("/tmp", "/work", "/dev/shm")
        for what, of in {"/dev/mem": (stat.S_IFCHR, 1, 1), "a disk": (stat.S_IFBLK, 8, 0)}.items()
    },
)


# C7: mounts, modules and the rest of the kernel


def mount(source: bytes, target: bytes, kind: bytes, flags: int) -> int:
    return checked(LIBC.mount(source, target, kind, flags, None))


MS_REMOUNT, MS_BIND, MNT_DETACH = 0x20, 0x1000, 2
EVENT = struct.pack("II", 1, 128) + bytes(120)  # a software event of this process
each(
    "C7",
    "mount:",
    {
        "make the root writable": lambda: mount(b"none", b"/", b"", MS_REMOUNT),
        "make prepare.py writable": lambda: mount(b"none", b"/work/prepare.py", b"", MS_REMOUNT | MS_BIND),
        "bind": lambda: mount(b"/tmp", b"/data", b"", MS_BIND),
        "tmpfs": lambda: mount(b"none", b"/tmp", b"tmpfs", 0),
        "proc": lambda: mount(b"none", b"/tmp", b"proc", 0),
        "take prepare.py away": lambda: checked(LIBC.umount2(b"/work/prepare.py", MNT_DETACH)),
        "chroot": lambda: os.chroot("/tmp"),
        "pivot_root": lambda: call("pivot_root", b"/tmp", b"/tmp"),
        "fsopen": lambda: call("fsopen", b"tmpfs", 0),
        "open_tree": lambda: call("open_tree", -100, b"/", 1),
        "mount_setattr": lambda: call("mount_setattr", -100, b"/", 0, bytes(32), 32),
    },
)
each(
    "C7",
    "kernel:",
    {
        "init_module": lambda: call("init_module", b"x", 1, b""),
        "finit_module": lambda: call("finit_module", 0, b"", 0),
        "delete_module": lambda: call("delete_module", b"loop", 0),
        "kexec_load": lambda: call("kexec_load", 0, 0, None, 0),
        "io_uring": lambda: call("io_uring_setup", 8, bytes(120)),
        "userfaultfd": lambda: call("userfaultfd", 1),
        "bpf": lambda: call("bpf", 0, bytes(128), 128),
        "perf_event_open": lambda: call("perf_event_open", EVENT, 0, -1, -1, 0),
        "add_key": lambda: call("add_key", b"user", b"name", b"secret", 6, -2),
        "request_key": lambda: call("request_key", b"user", b"name", None, 0),
        "keyctl": lambda: call("keyctl", 0, -2, 1),
        "fanotify": lambda: call("fanotify_init", 0x200, 0),
        "file handles": lambda: call("name_to_handle_at", -100, b"/tmp", bytes(136), bytes(4), 0),
        "System V shared memory": lambda: call("shmget", 0, 4096, 0o1600),
        "message queues": lambda: call("mq_open", b"queue", os.O_CREAT | os.O_RDWR, 0o600, None),
        "splice": lambda: call("vmsplice", os.pipe()[1], None, 0, 0),
        "NUMA policy": lambda: call("set_mempolicy", 0, None, 0),
        "kernel log": lambda: call("syslog", 2, bytes(16), 16),
        "reboot": lambda: call("reboot", 0xFEE1DEAD, 672274793, 0, None),
        "set the clock": lambda: call("clock_settime", 0, struct.pack("qq", 1, 0)),
        "host name": lambda: call("sethostname", b"x", 1),
        "no address randomisation": lambda: call("personality", 0x0040000),
        "a filter of its own": lambda: call("seccomp", 1, 8, None),
    },
)


def shared_page(advice: int) -> str:
    """Advise on a page of a file that other containers have mounted, too."""
    with open("/work/prepare.py", "rb") as file:
        page = mmap.mmap(file.fileno(), 4096, prot=mmap.PROT_READ)
    return not_permitted(lambda: page.madvise(advice))


def not_permitted(body: Callable[[], object]) -> str:
    """What fails for another reason was not denied."""
    try:
        body()
    except PermissionError:
        raise
    except OSError as error:
        return f"it went through to {errno.errorcode.get(error.errno or 0)}"
    return "it went through"


def prepare_py() -> int:
    return os.open("/work/prepare.py", os.O_RDONLY)


DONTNEED, NOWAIT = 4, 8
each(
    "C7",
    "page cache:",
    {
        "drop what others read": lambda: call("fadvise64", prepare_py(), 0, 0, DONTNEED),
        "drop it, in 64 bits": lambda: call(
            "fadvise64", prepare_py(), 0, 0, ctypes.c_ulong(1 << 32 | DONTNEED)
        ),
        "ask what others read": lambda: not_permitted(
            lambda: os.preadv(prepare_py(), [bytearray(1)], 0, NOWAIT)
        ),
        "page out, or collapse, what others map": lambda: (shared_page(21), shared_page(25)),
    },
)


def denial(number: int) -> int:
    ctypes.set_errno(0)
    return ctypes.get_errno() if LIBC.syscall(number, 0, 0, 0, 0, 0, 0) == -1 else 0


def in_a_child(body: Callable[[], object]) -> object:
    """For what may end the process: a child killed by SIGSYS was denied."""
    child = os.fork()
    if child == 0:
        try:
            body()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        raise OSError(errno.EPERM, signal.Signals(os.WTERMSIG(status)).name)
    if os.WEXITSTATUS(status):
        raise OSError(os.WEXITSTATUS(status), os.strerror(os.WEXITSTATUS(status)))
    return "it went through"


def machine_code(code: bytes) -> int:
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    result: int = ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


GETPID_32 = bytes.fromhex("53b814000000cd805bc3")  # push rbx; mov eax, 20; int 0x80; pop rbx; ret
X32_GETPID = 0x40000000 | 39
if platform.machine() == "x86_64":
    each(
        "C7",
        "kernel:",
        {
            "32-bit system calls": lambda: in_a_child(lambda: machine_code(GETPID_32)),
            "x32 system calls": lambda: in_a_child(lambda: checked(LIBC.syscall(X32_GETPID))),
        },
    )


# C7: namespaces, other processes, other users


def unshare(flag: int) -> object:
    return in_a_child(lambda: checked(LIBC.unshare(flag)))


def clone(flag: int) -> str:
    return new_process("clone", flag | signal.SIGCHLD, 0, 0, 0, 0)


def clone3() -> str:
    return new_process("clone3", struct.pack("11Q", NAMESPACES["user"], *[0] * 10), 88)


def new_process(how: str, *arguments: object) -> str:
    if call(how, *arguments) == 0:
        os._exit(0)
    return "a child"


each(
    "C7",
    "a new namespace:",
    {name: partial(unshare, flag) for name, flag in NAMESPACES.items()},
)
each(
    "C7",
    "clone into a new namespace:",
    {name: partial(clone, flag) for name, flag in NAMESPACES.items()},
)
each(
    "C7",
    "process:",
    {
        "clone3": clone3,
        "setns": lambda: checked(LIBC.setns(os.open("/proc/self/ns/net", os.O_RDONLY), 0)),
        "memory of PID 1": lambda: os.open("/proc/1/mem", os.O_RDWR),
        "environment of PID 1": lambda: refuse(Path("/proc/1/environ").read_bytes()),
        "root of PID 1": lambda: os.listdir("/proc/1/root"),
        "kill PID 1": lambda: refuse(kill_pid_1()),
        "real-time scheduling": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
        "a higher priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
        "be spared by the OOM killer": lambda: Path("/proc/self/oom_score_adj").write_text(
            "-1000", encoding="utf-8"
        ),
        "larger files": lambda: raise_limit(resource.RLIMIT_FSIZE),
        "core dumps": lambda: raise_limit(resource.RLIMIT_CORE),
        "a controlling terminal": lambda: os.open("/dev/tty", os.O_RDWR),
        "type into a terminal": lambda: fcntl.ioctl(0, 0x5412, b"x"),  # TIOCSTI
    },
)


def kill_pid_1() -> bool:
    """PID 1 ignores what it does not handle; it is enough that it lives on."""
    os.kill(1, signal.SIGKILL)
    return not os.path.exists("/proc/1")


def raise_limit(which: int) -> str:
    _, hard = resource.getrlimit(which)
    try:
        resource.setrlimit(which, (hard + 1, hard + 1))
    except ValueError as error:  # what Python makes of EPERM here
        raise OSError(errno.EPERM, str(error)) from error
    return "raised"


PTRACE_ATTACH, PTRACE_TRACEME, PTRACE_SEIZE = 16, 0, 0x4206


@contextlib.contextmanager
def child() -> Iterator[int]:
    """A child of the same user, which the kernel alone would let us trace."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def on_child(action: Callable[[int], object]) -> object:
    with child() as pid:
        return action(pid)


def read_memory(pid: int) -> int:
    buffer = ctypes.create_string_buffer(8)
    vector = struct.pack("QQ", ctypes.addressof(buffer), 8)
    return call("process_vm_readv", pid, vector, 1, vector, 1, 0)


each(
    "C7",
    "trace:",
    {
        "be traced": lambda: in_a_child(lambda: call("ptrace", PTRACE_TRACEME, 0, 0, 0)),
        "attach to a child": lambda: on_child(lambda pid: call("ptrace", PTRACE_ATTACH, pid, 0, 0)),
        "seize PID 1": lambda: call("ptrace", PTRACE_SEIZE, 1, 0, 0),
        "memory of a child": lambda: on_child(read_memory),
        "files of a child": lambda: on_child(lambda pid: call("pidfd_getfd", os.pidfd_open(pid), 0, 0)),
        "compare with a child": lambda: on_child(lambda pid: call("kcmp", os.getpid(), pid, 2, 0, 0)),
    },
)
each(
    "C7",
    "user:",
    {
        "setuid": lambda: os.setuid(0),
        "setgid": lambda: os.setgid(0),
        "setgroups": lambda: os.setgroups([0]),
        "capset": lambda: call("capset", struct.pack("II", 0x20080522, 0), struct.pack("6I", *[1] * 6)),
        "setuid programs": lambda: refuse(privileged_programs()),
        "capabilities": lambda: refuse(capabilities()),
        "new privileges": lambda: refuse(status("NoNewPrivs") != "1"),
        "no filter": lambda: refuse(status("Seccomp") != "2"),
        "the judge's files": lambda: refuse(list(Path("/judge").iterdir())),
    },
)


def status(field: str) -> str:
    found = re.search(
        rf"^{field}:\s+(\w+)$", Path("/proc/self/status").read_text(encoding="utf-8"), re.MULTILINE
    )
    return found[1] if found else "?"


def capabilities() -> list[str]:
    return [name for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status(name), 16)]


def privileged_programs() -> list[str]:
    gained = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if (folder, name) not in {("/", "proc"), ("/", "sys")}]
        for name in files:
            with contextlib.suppress(OSError):
                path = f"{folder}/{name}"
                mode = os.lstat(path).st_mode
                if mode & (stat.S_ISUID | stat.S_ISGID) or os.getxattr(path, "security.capability"):
                    gained.append(path)
    return gained


@attempt("C7", "any system call that is not on the list")
def _() -> object:
    """Calls all of them, with zeros: without the filter, most would complain about their arguments.

    The last attempt, for without the filter some of these calls are not survived.
    """
    others = {name: number for name, number in numbers().items() if name not in ALLOWED}
    assert len(others) > 100
    gained = [name for name, number in others.items() if denial(number) not in (errno.EPERM, errno.ENOSYS)]
    newer = range(max(numbers().values()) + 1, 512)
    known_later = {452, 453, 454, 455, 456, 462}  # on the list: fchmodat2, map_shadow_stack, futex_*, mseal
    return refuse(gained + [n for n in newer if n not in known_later and denial(n) not in (1, 38)])


def main() -> None:
    for name, (row, function) in ATTEMPTS.items():
        try:
            denied, how = False, repr(function())
        except OSError as error:
            denied, how = True, errno.errorcode.get(error.errno or 0, str(error))
        print(json.dumps({"row": row, "attempt": name, "denied": denied, "how": how[:200]}), flush=True)


if __name__ == "__main__":
    main()
