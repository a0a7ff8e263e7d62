"""Locks a process down for good: Linux namespaces, a file tree of its own, a filter, and limits.

Needs no root where the kernel lets users make user namespaces, and refuses to go on where any part
of it fails: code that could not be locked down is never run. What is contained and what is not
stands in SECURITY.md.
"""

import ctypes
import errno
import os
import platform
import resource
import select
import signal
import struct
import sysconfig
from collections.abc import Callable
from typing import NoReturn

MIB = 1024 * 1024
NOBODY = 65534

_LIBC = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_SYS_MOUNT_SETATTR = 442
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_CAPABILITIES_V3 = 0x20080522

_NEW_ROOT = "/proc"
"""A folder that is on every machine, and under which nothing lies that is shown again."""
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_PRIVATE_MIB = 16
_OPEN_FILES = 32

_FORBIDDEN = {
    # name: number on x86_64, on aarch64; None: not there
    "socket": (41, 198),
    "socketpair": (53, 199),
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
}
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of the table above, and how the kernel names the machine to a filter."""
_X32 = 0x40000000


class NotLockable(RuntimeError):
    """This machine does not let the process lock itself down; the message says where it failed."""


def run_locked(payload: Callable[[], None], *, memory_mib: int, cpu_s: int) -> NoReturn:
    """Run `payload` in a child that is locked down, and end with it.

    The caller waits outside of the child's world, and between them stands the first process of
    that world, which runs none of the payload's code: when it is killed, the kernel kills all.
    The payload may neither start processes or threads nor open sockets; `memory_mib` bounds its
    address space, `cpu_s` its processor time.

    Raises:
        NotLockable: before anything of the payload has run.
    """
    if platform.machine() not in _MACHINES:
        raise NotLockable(f"no filter of system calls is known for {platform.machine()}")
    is_root = os.geteuid() == 0
    spaces = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWPID | _CLONE_NEWNET
    user, group = os.geteuid(), os.getegid()
    _call("unshare", spaces if is_root else spaces | _CLONE_NEWUSER)
    if not is_root:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {user} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {group} 1")
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    first = os.fork()
    if first:
        _end_as(first)
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _enter_new_root()
    ready, told = os.pipe()
    locked = os.fork()
    if locked:
        os.close(told)
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
        os.close(ready)  # the payload begins when nothing can be done to this process any more
        _end_as(locked)
    os.close(ready)
    _await_close(told)
    _drop_rights(is_root)
    _limit(memory_mib, cpu_s)
    _filter_calls()
    try:
        payload()
    finally:
        os._exit(0)


def _end_as(child: int) -> NoReturn:
    _, status = os.waitpid(child, 0)
    os._exit(0 if status == 0 else 1)


def _await_close(told: int) -> None:
    """Wait until the other end of a pipe is closed: writing to it then fails."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)

    poll = select.poll()
    poll.register(told, 0)  # only that the reader has gone
    poll.poll()
    os.close(told)


def _enter_new_root() -> None:
    """Leave the machine's files: what stays is Python's and the system's libraries, read-only, and
    an empty folder in memory."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("none", _NEW_ROOT, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,nr_inodes=512,mode=755")
    for place in dict.fromkeys((*_LIBRARIES, sysconfig.get_path("stdlib"))):
        _show(place)
    os.mkdir(f"{_NEW_ROOT}/tmp")
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    options = f"size={_PRIVATE_MIB}m,nr_inodes=1024,mode=777"
    _mount("none", f"{_NEW_ROOT}/tmp", "tmpfs", flags, options)
    os.chdir(_NEW_ROOT)
    _call("pivot_root", b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")
    _make_read_only("/", recursive=False)
    os.chdir("/tmp")


def _show(place: str) -> None:
    target = f"{_NEW_ROOT}{place}"
    if os.path.islink(place):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.symlink(os.readlink(place), target)
    elif os.path.isdir(place) and not os.path.exists(target):
        os.makedirs(target)
        _mount(place, target, None, _MS_BIND | _MS_REC)
        _make_read_only(target, recursive=True)


def _make_read_only(place: str, *, recursive: bool) -> None:
    flags = _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV
    attributes = struct.pack("QQQQ", flags, 0, 0, 0)
    how = _AT_RECURSIVE if recursive else 0
    where = ctypes.c_char_p(place.encode())
    _call(
        "syscall",
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_long(_AT_FDCWD),
        where,
        ctypes.c_long(how),
        ctypes.c_char_p(attributes),
        ctypes.c_long(len(attributes)),
    )


def _drop_rights(is_root: bool) -> None:
    if is_root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITIES_V3, 0))
    _call("capset", header, ctypes.create_string_buffer(24))
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _limit(memory_mib: int, cpu_s: int) -> None:
    for what, most in (
        (resource.RLIMIT_AS, memory_mib * MIB),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_FSIZE, _PRIVATE_MIB * MIB),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def _filter_calls() -> None:
    """Refuse the system calls that would reach around the limits, or the kernel's less safe parts.

    A classic BPF program over (number, machine): another machine's calls end the process.
    """
    column, machine = _MACHINES[platform.machine()]
    numbers = [row[column] for row in _FORBIDDEN.values()]
    wanted = [number for number in numbers if number is not None]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | errno.EPERM, 0x7FFF0000
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, machine),
        (answer, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, len(wanted) + 1, 0, _X32),
        *((equal, len(wanted) - at, 0, number) for at, number in enumerate(wanted)),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in program))
    address = ctypes.addressof(code)
    head = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), address))
    _call("prctl", _PR_SET_SECCOMP, 2, ctypes.c_void_p(ctypes.addressof(head)), 0, 0)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    _call(
        "mount",
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )


def _call(name: str, *arguments: object) -> None:
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    if getattr(_LIBC, name)(*given) != 0:
        raise NotLockable(f"{name}: {os.strerror(ctypes.get_errno())}")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise NotLockable(f"{path}: {error.strerror}") from error
