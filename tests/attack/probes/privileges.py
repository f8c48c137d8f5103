"""More rights than a sandbox's user has: capabilities, set-user-id programs, priorities, other people's ids."""

from __future__ import annotations

import ctypes
import os
import resource
import struct

from core import NEWNET, NEWNS, NEWUSER, Absent, Context, Shut, call, in_child, libc, probe, reached, unshare

PROMISE = "privileges"
SYS_ADMIN = 21


def _status(name: str) -> str:
    with open("/proc/self/status") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith(f"{name}:"))


def _has(which: str, number: int) -> bool:
    return bool(int(_status(which), 16) >> number & 1)


def _prctl(*args: int) -> int:
    ctypes.set_errno(0)
    got = int(libc.prctl(*(ctypes.c_ulong(one) for one in args)))
    if got == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "prctl")
    return got


@probe(PROMISE, "set-user-id programs would give their owner's rights", "shut: set", proof="outside")
def no_new_privileges(context: Context) -> object:
    """Asks whether no_new_privs is set."""
    if _prctl(39, 0, 0, 0, 0):
        raise Shut("set")
    return "not set"


@probe(PROMISE, "sudo would make the test root of the host", "shut: its own user", "shut: not executable", "EACCES",
       proof="outside", root=True)
def set_user_id_program(context: Context) -> object:
    """Runs a program that is somebody else's and set-user-id, as nobody, or as who it is."""
    path = context["setuid"]

    def body() -> object:
        if os.geteuid() == 0:
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            except OSError:
                pass  # ids that are not mapped: it stays who it is
        before = os.geteuid()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(writing, 1)
            try:
                os.execv(path, [path, "-u"])
            except OSError:
                os._exit(99)
        os.close(writing)
        text = os.read(reading, 100).decode().strip()
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 99 or not text:
            raise Shut("not executable")
        if int(text) == before:
            raise Shut("its own user")
        return f"user {text}"

    return in_child(body)


def _capability(name: str, number: int, weaker: str) -> None:
    @probe(PROMISE, weaker, "shut: without", proof="capable", name=f"has_{name.lower()}")
    def attack(context: Context) -> object:
        if _has("CapEff", number) or _has("CapPrm", number) or _has("CapBnd", number):
            return name
        raise Shut("without")

    attack.__doc__ = f"Looks for CAP_{name} among the effective, permitted and bounding capabilities."


for _name, _number, _weaker in (
    ("DAC_READ_SEARCH", 2, "files would be opened by handle"), ("NET_ADMIN", 12, "the network would be changed"),
    ("SYS_MODULE", 16, "modules would be loaded"), ("SYS_RAWIO", 17, "ports would be opened"),
    ("SYS_PTRACE", 19, "init would be traced"), ("SYS_ADMIN", 21, "mounts would be made"),
    ("SYS_BOOT", 22, "the machine would go down"), ("SYS_NICE", 23, "others would be slowed down"),
    ("SYS_RESOURCE", 24, "limits would be lifted"), ("SYS_TIME", 25, "the clock would be set"),
    ("MKNOD", 27, "devices would be made"), ("AUDIT_WRITE", 29, "the audit log would be forged"),
    ("MAC_ADMIN", 33, "security modules would be set"), ("SYSLOG", 34, "the kernel's log would be read"),
    ("PERFMON", 38, "the machine would be profiled"), ("BPF", 39, "programs would be loaded into the kernel"),
    ("CHECKPOINT_RESTORE", 40, "process numbers would be chosen"),
):
    _capability(_name, _number, _weaker)


@probe(PROMISE, "a capability would be had again", "EPERM", proof="capable")
def capability_taken_back(context: Context) -> object:
    """Sets CAP_SYS_ADMIN among its permitted and effective capabilities."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    bit = 1 << SYS_ADMIN
    call("capset", header, ctypes.create_string_buffer(struct.pack("6I", bit, bit, 0, 0, 0, 0), 24))
    return "CAP_SYS_ADMIN"


@probe(PROMISE, "a capability would be kept across exec", "EPERM", proof="capable")
def ambient_capability(context: Context) -> object:
    """Raises CAP_SYS_ADMIN among the ambient capabilities."""
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(24)
    call("capget", header, data)
    words = list(struct.unpack("6I", data.raw))
    words[2] |= words[1] & 1 << SYS_ADMIN
    call("capset", header, ctypes.create_string_buffer(struct.pack("6I", *words), 24))
    return _prctl(47, 2, SYS_ADMIN, 0, 0)


@probe(PROMISE, "a file would give its capabilities to whoever runs it", "EPERM", proof="naive", root=True)
def file_capability_of_the_machine(context: Context) -> object:
    """Gives a file of its own a capability that holds in the whole machine: version 2, without a root's id."""
    path = "/tmp/attack-capable"
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o700))
    os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << SYS_ADMIN, 0, 0, 0))
    if context["world"] == "naive":
        return "a capability of the machine"
    raise OSError(1, "of its own namespace only")  # the kernel makes it version 3: user_namespaces(7)


@probe(PROMISE, "the network of the sandbox would be changed", "EPERM", proof="capable")
def network_configuration(context: Context) -> object:
    """Takes the loopback down."""
    import fcntl
    import socket
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0))
        return "down"


@probe(PROMISE, "its name would be another", "EPERM", proof="capable")
def host_name(context: Context) -> object:
    """Gives the sandbox the host name that it has."""
    import socket
    return socket.sethostname(socket.gethostname())


def _without_user(name: str, flag: int) -> None:
    @probe(PROMISE, "namespaces would be made without giving anything up", "EPERM", proof="capable", name=name)
    def attack(context: Context) -> object:
        return unshare(flag)

    attack.__doc__ = f"Makes a namespace ({flag:#x}) without a user namespace."


_without_user("network_namespace", NEWNET)
_without_user("mount_namespace", NEWNS)


@probe(PROMISE, "root of the host would be root in the namespace", "EPERM", proof="naive", root=True)
def ids_of_the_sandbox_again(context: Context) -> object:
    """Opens its own uid_map for writing, and writes nothing; in the naive world that of a new namespace."""
    if context["world"] == "naive":
        unshare(NEWUSER)
    with open("/proc/self/uid_map", "w") as file:
        file.write("0 0 1")
    return "mapped"


# The scheduler and limits: those of the machine.

def _needs_resource(context: Context) -> None:
    if context["world"] == "naive" and not _has("CapEff", 24):
        raise Absent("root of this machine has no CAP_SYS_RESOURCE")


@probe(PROMISE, "every other program would be slowed down", "EACCES", "EPERM", proof="naive", root=True)
def higher_priority(context: Context) -> object:
    """Asks for the highest priority."""
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return "-20"


@probe(PROMISE, "every other program would stand still", "EPERM", proof="naive", root=True)
def real_time(context: Context) -> object:
    """Asks for the lowest real-time priority."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return "SCHED_FIFO"


@probe(PROMISE, "every other program would wait for the disk", "EPERM", proof="naive", root=True)
def real_time_disk(context: Context) -> object:
    """Asks for real-time I/O."""
    return call("ioprio_set", 1, 0, 1 << 13 | 7)


@probe(PROMISE, "the host's processes would be killed in its place", "EACCES", "EPERM", proof="naive", root=True)
def never_out_of_memory(context: Context) -> object:
    """Asks never to be killed when memory runs out."""
    _needs_resource(context)
    with open("/proc/self/oom_score_adj") as file:
        before = int(file.read())
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(max(min(before, 0) - 1, -1000)))  # below what it began with: sandboxes begin with more
    return "less likely"


@probe(PROMISE, "limits of the caller's would not hold", "EPERM", proof="naive", root=True)
def higher_limit(context: Context) -> object:
    """Raises a hard limit that it has lowered."""
    _needs_resource(context)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    except ValueError as error:
        raise OSError(1, str(error)) from None
    return "128"


@probe(PROMISE, "every file access of the machine would be held up", "EPERM", proof="naive", root=True)
def fanotify(context: Context) -> object:
    """Asks to decide about accesses to files."""
    return reached(lambda: call("fanotify_init", 4, 0), "EINVAL")


@probe(PROMISE, "the filter would be taken off", "EINVAL", "EACCES", "EPERM", proof="unfiltered")
def filter_taken_off(context: Context) -> object:
    """Sets no filter and asks whether one is there."""
    if _status("Seccomp") == "0":
        return "no filter"
    return _prctl(22, 0, 0, 0, 0)


@probe(PROMISE, "a tracer would suspend the filter", "EPERM", proof="naive", root=True)
def filter_suspended(context: Context) -> object:
    """Traces a child and asks for PTRACE_O_SUSPEND_SECCOMP."""
    pid = os.fork()
    if pid == 0:
        import signal
        signal.pause()
    try:
        call("ptrace", 0x4206, pid, 0, 1 << 21)
        return "suspended"
    except OSError as error:
        if error.errno == 22:
            raise Absent("this kernel cannot suspend filters") from None
        raise
    finally:
        os.kill(pid, 9)
