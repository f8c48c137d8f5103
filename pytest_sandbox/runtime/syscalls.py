"""System calls that Python does not offer: one function a call, named after it; a failure is an OSError with the path.

Used by everything in ``runtime`` and by nothing above it. The helper process imports this before it forks, so the
module stays small and imports nothing heavier than ctypes.
"""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL keeps the interpreter lock: a clone must not let it go
_libc.syscall.restype = ctypes.c_long
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

# sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

# sys/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

# linux/mount.h, fcntl.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSPICK_CLOEXEC = 1
FSPICK_EMPTY_PATH = 8
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_RECONFIGURE = 7
MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
MOUNT_ATTR_IDMAP = 0x00100000

# linux/openat2.h
RESOLVE_NO_XDEV = 1
RESOLVE_NO_MAGICLINKS = 2
RESOLVE_NO_SYMLINKS = 4
RESOLVE_BENEATH = 8
RESOLVE_IN_ROOT = 16

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_GET_DUMPABLE = 3
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# The numbers of calls that glibc does not wrap everywhere. Calls of Linux 5.0 and later have one number on every
# architecture (asm-generic/unistd.h); pivot_root and capset are older and are reached through glibc instead.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_PIDFD_SEND_SIGNAL = 424
_SYS_FSCONFIG = 431
_SYS_FSPICK = 433
_SYS_PIDFD_OPEN = 434
_SYS_CLONE3 = 435
_SYS_OPENAT2 = 437
_SYS_PROCESS_MADVISE = 440
_SYS_MOUNT_SETATTR = 442


def _check(result: int, path: str | bytes | None = None, path2: str | bytes | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path, None, path2)
    return result


def unshare(flags: int) -> None:
    """unshare(2): leaves the namespaces that ``flags`` name for new ones."""
    _check(_libc.unshare(flags))


def setns(fd: int, flags: int) -> None:
    """setns(2): joins the namespace that ``fd`` is, or those named by ``flags`` of the process that a pidfd is."""
    _check(_libc.setns(fd, flags))


class _CloneArgs(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls", "set_tid",
        "set_tid_size", "cgroup")]


def clone3(flags: int, exit_signal: int = 17, into: int = -1) -> int:
    """clone3(2) without a new stack: a fork into new namespaces. Returns 0 in the child.

    Only for a process with one thread: the C library does not hear of it, and its ``fork`` handlers do not run.
    With ``CLONE_PARENT`` the kernel demands ``exit_signal=0``. ``into`` is a directory of cgroup v2 to be born in.
    """
    args = _CloneArgs(flags=flags, exit_signal=exit_signal)
    if into >= 0:
        args.flags, args.cgroup = flags | CLONE_INTO_CGROUP, into
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = _libc.syscall(_SYS_CLONE3, ctypes.byref(args), ctypes.sizeof(args))
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    code = ctypes.get_errno()
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code))
    return pid


def mount(source: str, target: str, fstype: str | None, flags: int = 0, data: str | None = None) -> None:
    """mount(2)."""
    _check(_libc.mount(os.fsencode(source), os.fsencode(target), None if fstype is None else fstype.encode(),
                       ctypes.c_ulong(flags), None if data is None else os.fsencode(data)), source, target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), target)


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _check(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), new_root, put_old)


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2): a descriptor of the mount at ``path``, or with ``OPEN_TREE_CLONE`` of a detached copy of it."""
    return _check(_libc.syscall(_SYS_OPEN_TREE, dirfd, os.fsencode(path), flags), path)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """move_mount(2)."""
    _check(_libc.syscall(_SYS_MOVE_MOUNT, from_fd, os.fsencode(from_path), to_fd, os.fsencode(to_path), flags), to_path)


def fspick(dirfd: int, path: str, flags: int) -> int:
    """fspick(2): a descriptor by which the file system mounted at ``path`` is configured anew (Linux 5.2)."""
    return _check(_libc.syscall(_SYS_FSPICK, dirfd, os.fsencode(path), flags), path)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """fsconfig(2): gives one parameter (``FSCONFIG_SET_STRING``) or lets all take effect."""
    _check(_libc.syscall(_SYS_FSCONFIG, fd, command, None if key is None else key.encode(),
                         None if value is None else value.encode(), 0))


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in (
        "attr_set", "attr_clr", "propagation", "userns_fd")]


def mount_setattr(dirfd: int, path: str, flags: int, attr_set: int, userns: int = 0) -> None:
    """mount_setattr(2): sets attributes of a mount, with ``AT_RECURSIVE`` of all below it (Linux 5.12).

    ``userns``: for ``MOUNT_ATTR_IDMAP``, a descriptor of the user namespace whose map it takes on.
    """
    attr = _MountAttr(attr_set=attr_set, userns_fd=userns)
    _check(_libc.syscall(_SYS_MOUNT_SETATTR, dirfd, os.fsencode(path), flags, ctypes.byref(attr),
                         ctypes.sizeof(attr)), path)


_ATTEMPTS = 1000


class _OpenHow(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("flags", "mode", "resolve")]


def openat2(dirfd: int, path: str | bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): opens ``path`` below ``dirfd`` under the ``RESOLVE_*`` rules (Linux 5.6).

    Tries again where the kernel could not be sure of a ``..`` (EAGAIN): something on the machine was renamed or mounted
    meanwhile. A file that somebody has a lease on says the same for ever, so not without end.
    """
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=resolve)
    name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")  # as Python's own calls; C would stop reading there
    for _ in range(_ATTEMPTS):
        fd: int = _libc.syscall(_SYS_OPENAT2, dirfd, name, ctypes.byref(how), ctypes.sizeof(how))
        if fd >= 0 or ctypes.get_errno() != errno.EAGAIN:
            break
    return _check(fd, path)


def punch_hole(fd: int, begin: int, length: int) -> None:
    """Lets go of the disk space of a part of a file, whose size stays (FALLOC_FL_PUNCH_HOLE)."""
    _check(_libc.fallocate(fd, 0x01 | 0x02, ctypes.c_longlong(begin), ctypes.c_longlong(length)))


def pidfd_open(pid: int) -> int:
    """pidfd_open(2), close-on-exec."""
    return _check(_libc.syscall(_SYS_PIDFD_OPEN, pid, 0))


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """pidfd_send_signal(2)."""
    _check(_libc.syscall(_SYS_PIDFD_SEND_SIGNAL, pidfd, signal, None, 0))


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    return _check(_libc.prctl(option, arg2, arg3, arg4, arg5))


def death_signal() -> int:
    """The signal that the calling process gets at its parent's end; 0 for none."""
    number = ctypes.c_int()
    _check(_libc.prctl(PR_GET_PDEATHSIG, ctypes.addressof(number), 0, 0, 0))
    return number.value


def drop_from_bounding_set(capabilities: list[int]) -> None:
    """prctl(PR_CAPBSET_DROP) for each."""
    call = _libc.prctl
    for number in capabilities:
        if call(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            _check(-1)


#: Ranges of this process's memory, as :func:`ranges` makes them of addresses and lengths.
Ranges = ctypes.Array[ctypes.c_size_t]
#: How many of them a call takes (limits.h, IOV_MAX).
MOST_RANGES = 1024
_MADV_POPULATE_WRITE = 23


def ranges(pairs: list[tuple[int, int]]) -> Ranges:
    """Addresses and lengths as the kernel takes them."""
    return (ctypes.c_size_t * (2 * len(pairs)))(*(number for pair in pairs for number in pair))


def populate(memory: Ranges) -> bool:
    """process_madvise(MADV_POPULATE_WRITE) of the caller itself (Linux 6.13): makes all these pages writable at once.

    Returns whether it went well. What is not memory any more ends it.
    """
    pidfd = _libc.syscall(_SYS_PIDFD_OPEN, os.getpid(), 0)
    if pidfd < 0:
        return False
    done: int = _libc.syscall(_SYS_PROCESS_MADVISE, pidfd, memory, ctypes.c_size_t(len(memory) // 2),
                              _MADV_POPULATE_WRITE, 0)
    os.close(pidfd)
    return done >= 0


def a_page() -> Ranges:
    """A page of the caller's, to try :func:`populate` and :func:`pin` with."""
    return ranges([(ctypes.addressof(_page) & -4096, 4096)])


_page = ctypes.create_string_buffer(1)


_SYS_IO_URING_SETUP, _SYS_IO_URING_REGISTER = 425, 427  # on every architecture
_IORING_REGISTER_BUFFERS = 0
_IORING_REGISTER_RING_FDS = 20


def pin(memory: Ranges) -> bool:
    """Pins these pages (io_uring_register(IORING_REGISTER_BUFFERS)) for as long as the calling thread lives.

    A fork does not share pinned pages until somebody writes to them: it copies them there and then, at half the price.
    The ring that holds them has no descriptor, and a fork does not get it: nobody can read or write through it.

    Returns whether it went well. It does not where io_uring is switched off, what is not memory any more is among
    them, or they are more than RLIMIT_MEMLOCK has left.
    """
    parameters = (ctypes.c_uint32 * 30)()
    ring: int = _libc.syscall(_SYS_IO_URING_SETUP, 1, ctypes.byref(parameters))
    if ring < 0:
        return False
    try:
        if _libc.syscall(_SYS_IO_URING_REGISTER, ring, _IORING_REGISTER_BUFFERS, memory, len(memory) // 2) < 0:
            return False
        # The thread holds the ring by this, and not by a descriptor.
        held = (ctypes.c_uint32 * 4)(0xFFFFFFFF, 0, ring, 0)
        return bool(_libc.syscall(_SYS_IO_URING_REGISTER, ring, _IORING_REGISTER_RING_FDS, held, 1) == 1)
    finally:
        os.close(ring)


class _FilterProgram(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


_SYS_SECCOMP = {"x86_64": 317, "i686": 354, "armv7l": 383, "ppc64le": 358, "s390x": 348}
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_FILTER_FLAG_SPEC_ALLOW = 4


def seccomp(program: bytes) -> None:
    """seccomp(SECCOMP_SET_MODE_FILTER): the calling thread's system calls go through ``program`` from now on.

    Without the slowness that older kernels couple with it (mitigations of speculative execution).
    """
    loaded = _FilterProgram(len(program) // 8, program)
    number = _SYS_SECCOMP.get(os.uname().machine, 277)
    _check(_libc.syscall(number, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_SPEC_ALLOW, ctypes.byref(loaded)))


_libseccomp: ctypes.CDLL | None = None


def has_libseccomp() -> bool:
    """Whether libseccomp is installed."""
    global _libseccomp
    if _libseccomp is None:
        try:
            _libseccomp = ctypes.CDLL("libseccomp.so.2")
        except OSError:
            return False
    return True


def syscall_number(arch: int, name: str) -> int:
    """seccomp_syscall_resolve_name_arch(3); negative where there is no such call, or no libseccomp."""
    if not has_libseccomp() or _libseccomp is None:
        return -1
    return int(_libseccomp.seccomp_syscall_resolve_name_arch(ctypes.c_uint32(arch), name.encode()))


_SYS_KEYCTL = {"x86_64": 250, "aarch64": 219, "riscv64": 219, "ppc64le": 271, "s390x": 280, "i686": 288, "armv7l": 311}


def new_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL): leaves the session keyring for a new, empty one.

    Does nothing on a machine whose number of the call is not known, or whose kernel has no keyrings.
    """
    number = _SYS_KEYCTL.get(os.uname().machine)
    if number is not None and _libc.syscall(number, 1, None) < 0 and ctypes.get_errno() not in (1, 38):
        _check(-1)


class _CapHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


_CAPABILITY_VERSION_3 = 0x20080522


def capget() -> tuple[int, int, int]:
    """capget(2) of the calling thread: effective, permitted, inheritable as bit sets."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    _check(_libc.capget(ctypes.byref(header), ctypes.byref(data)))
    return data[0] | data[3] << 32, data[1] | data[4] << 32, data[2] | data[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread."""
    header = _CapHeader(_CAPABILITY_VERSION_3, 0)
    low = 0xFFFFFFFF
    data = (ctypes.c_uint32 * 6)(effective & low, permitted & low, inheritable & low,
                                 effective >> 32, permitted >> 32, inheritable >> 32)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)))


def act_as(uid: int, gid: int) -> None:
    """setfsuid(2) and setfsgid(2) of the calling thread, with the capabilities over files that uid 0 has by itself."""
    for call, wanted in ((_libc.setfsgid, gid), (_libc.setfsuid, uid)):
        call(ctypes.c_uint32(wanted))
        if call(ctypes.c_uint32(0xFFFFFFFF)) & 0xFFFFFFFF != wanted:  # it tells of a failure in no other way
            raise PermissionError(1, "cannot act on files as another user")
    _, permitted, inheritable = capget()
    capset(permitted, permitted, inheritable)
