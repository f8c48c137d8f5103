"""System calls that reach the whole machine, or have most often been the way into the kernel."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import socket
import struct

from core import Absent, Context, call, probe, reached

PROMISE = "system calls"


@probe(PROMISE, "another kernel would be started in place of this one", "EPERM", proof="naive", root=True)
def kexec_load(context: Context) -> object:
    """Loads a kernel, with flags that no kernel knows."""
    return reached(lambda: call("kexec_load", 0, 1, None, 0xFFFF), "EINVAL", "EBUSY")


@probe(PROMISE, "another kernel would be started in place of this one", "EPERM", proof="naive", root=True)
def kexec_file_load(context: Context) -> object:
    """Loads a kernel from a file, with flags that no kernel knows."""
    return reached(lambda: call("kexec_file_load", -1, -1, 0, None, 0xFFFF), "EINVAL", "EBADF")


@probe(PROMISE, "code would be loaded into the kernel", "EPERM", proof="naive", root=True)
def init_module(context: Context) -> object:
    """Loads an empty module."""
    return reached(lambda: call("init_module", b"", 0, b""), "ENOEXEC", "EINVAL")


@probe(PROMISE, "code would be loaded into the kernel", "EPERM", proof="naive", root=True)
def finit_module(context: Context) -> object:
    """Loads a module from no file."""
    return reached(lambda: call("finit_module", -1, b"", 0), "EBADF", "ENOEXEC")


@probe(PROMISE, "a module that the host needs would be unloaded", "EPERM", proof="naive", root=True)
def delete_module(context: Context) -> object:
    """Unloads a module that does not exist."""
    return reached(lambda: call("delete_module", b"no_such_module_here", 0), "ENOENT")


@probe(PROMISE, "the machine would go down", "EPERM", proof="naive")
def reboot(context: Context) -> object:
    """Asks for a reboot with the wrong magic numbers."""
    return reached(lambda: call("reboot", 1, 2, 3, None), "EINVAL")


@probe(PROMISE, "the host's kernel log would be read", "EPERM", proof="naive", root=True)
def syslog(context: Context) -> object:
    """Asks for the size of the kernel's log."""
    return call("syslog", 10, None, 0)


@probe(PROMISE, "a hole of the BPF verifier would be in reach", "EPERM", proof="unfiltered")
def bpf(context: Context) -> object:
    """Calls bpf(2) with a command that no kernel knows."""
    return reached(lambda: call("bpf", 9999, None, 0), "EINVAL", "EFAULT")


@probe(PROMISE, "maps and programs of the kernel's would be made", "EPERM", proof="naive", root=True)
def bpf_map(context: Context) -> object:
    """Makes a BPF array of one element."""
    attributes = ctypes.create_string_buffer(struct.pack("IIII", 2, 4, 4, 1), 72)
    fd = call("bpf", 0, attributes, 72)
    os.close(fd)
    return "a BPF map"


@probe(PROMISE, "the host's programs would be profiled; a hole of perf would be in reach", "EPERM",
       proof="unfiltered")
def perf_event_open(context: Context) -> object:
    """Opens an event of a size that no kernel takes."""
    attributes = ctypes.create_string_buffer(struct.pack("II", 1, 1 << 20), 4096)
    return reached(lambda: call("perf_event_open", attributes, 0, -1, -1, 0), "E2BIG", "EINVAL")


@probe(PROMISE, "page faults would be held up, which makes races in the kernel winnable", "EPERM",
       proof="unfiltered")
def userfaultfd(context: Context) -> object:
    """Asks for page faults of user mode."""
    os.close(call("userfaultfd", 1))
    return "a userfaultfd"


@probe(PROMISE, "a hole of io_uring would be in reach, and the filter be passed by", "EPERM", proof="unfiltered")
def io_uring(context: Context) -> object:
    """Makes a ring."""
    os.close(call("io_uring_setup", 1, ctypes.create_string_buffer(120)))
    return "a ring"


@probe(PROMISE, "keys of the caller would be read", "EPERM", proof="unfiltered")
def keyring_of_the_session(context: Context) -> object:
    """Asks for the session's keyring."""
    return call("keyctl", 0, -3, 0)


@probe(PROMISE, "a reference to a keyring would be lost (CVE-2016-0728)", "EPERM", proof="unfiltered")
def keyring_joined_again(context: Context) -> object:
    """Joins a session keyring by its name, twice."""
    call("keyctl", 1, b"attack")
    return call("keyctl", 1, b"attack")


@probe(PROMISE, "a key would outlive the sandbox in the user's keyring", "EPERM", proof="unfiltered")
def key_left_behind(context: Context) -> object:
    """Adds a key to the process' own keyring."""
    return call("add_key", b"user", b"sandbox_attack", b"x", 1, -2)


@probe(PROMISE, "a program of the host's would be started for a key", "EPERM", proof="unfiltered")
def key_requested(context: Context) -> object:
    """Asks for a key that does not exist, without a call-out."""
    return reached(lambda: call("request_key", b"user", b"sandbox_no_such_key", None, 0), "ENOKEY")


@probe(PROMISE, "any file of the disk would be opened by its number ('shocker')", "EPERM", proof="naive", root=True)
def file_by_handle(context: Context) -> object:
    """Opens the root directory by its handle."""
    for start in ("/", "/dev/shm", "/tmp"):
        handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
        place = ctypes.create_string_buffer(4)
        try:
            call("name_to_handle_at", -100, start.encode(), handle, place, 0)
        except OSError:
            continue  # a file system without handles
        fd = os.open(start, os.O_RDONLY)
        os.close(call("open_by_handle_at", fd, handle, os.O_RDONLY))
        return f"{start} by its handle"
    handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 136)
    call("open_by_handle_at", os.open("/", os.O_RDONLY), handle, os.O_RDONLY)
    return "the call"


@probe(PROMISE, "memory would be swapped to a file of the attacker's", "EPERM", proof="naive", root=True)
def swapon(context: Context) -> object:
    """Turns on swap to what does not exist."""
    return reached(lambda: call("swapon", b"/no/such/file", 0), "ENOENT")


@probe(PROMISE, "the host's swap would be turned off", "EPERM", proof="naive", root=True)
def swapoff(context: Context) -> object:
    """Turns off swap to what does not exist."""
    return reached(lambda: call("swapoff", b"/no/such/file"), "ENOENT")


@probe(PROMISE, "what every process of the host does would be recorded", "EPERM", proof="naive", root=True)
def acct(context: Context) -> object:
    """Turns on accounting to what does not exist."""
    return reached(lambda: call("acct", b"/no/such/file"), "ENOENT")


@probe(PROMISE, "the host's quotas would be changed", "EPERM", proof="unfiltered")
def quotactl(context: Context) -> object:
    """Asks for the quota of a device that does not exist."""
    return reached(lambda: call("quotactl", 0x80000700, b"/no/such/device", 0, None), "ENOENT", "ENOTBLK", "EINVAL",
                   "ENODEV")


@probe(PROMISE, "the host's clock would be set", "EPERM", proof="naive", root=True)
def settimeofday(context: Context) -> object:
    """Sets neither time nor time zone."""
    return call("settimeofday", None, None)


@probe(PROMISE, "the host's clock would be set", "EPERM", proof="unfiltered")
def clock_settime(context: Context) -> object:
    """Sets a clock that cannot be set."""
    return reached(lambda: call("clock_settime", 1, ctypes.create_string_buffer(16)), "EINVAL")


@probe(PROMISE, "the host's clock would be slowed down", "EPERM", proof="naive", root=True)
def adjtimex(context: Context) -> object:
    """Sets the length of a tick to an impossible value."""
    return reached(lambda: call("adjtimex", ctypes.create_string_buffer(struct.pack("I", 0x4000), 256)), "EINVAL")


@probe(PROMISE, "ports of the machine's devices would be written to", "EPERM", proof="naive", root=True)
def iopl(context: Context) -> object:
    """Asks for all ports, for a process that does nothing with them."""
    return call("iopl", 3)


@probe(PROMISE, "ports of the machine's devices would be written to", "EPERM", proof="naive", root=True)
def ioperm(context: Context) -> object:
    """Asks for the port that nothing listens on."""
    return call("ioperm", 0x80, 1, 1)


@probe(PROMISE, "the terminal of a user would be hung up", "EPERM", proof="naive", root=True)
def vhangup(context: Context) -> object:
    """Hangs up the terminal of a session that has none."""
    os.setsid()
    return call("vhangup")


@probe(PROMISE, "a call that nobody has looked at for years would be in reach", "EPERM", proof="unfiltered")
def sysfs(context: Context) -> object:
    """Counts the kernel's kinds of file systems by the obsolete sysfs(2)."""
    return call("sysfs", 3)


@probe(PROMISE, "the filter would be passed by with the numbers of another ABI", "shut: no such call",
       proof="outside")
def x32_numbers(context: Context) -> object:
    """Calls keyctl(2) by its x32 number; outside by its plain one, to see that the call is there."""
    from core import COLUMN, NUMBERS, Shut, libc
    if COLUMN != 0:
        raise Absent("only x86_64 has two tables of numbers")
    number = NUMBERS["keyctl"][0] or 0
    if context["world"] != "outside":
        number |= 0x40000000
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), 0, -3, 0) == -1:
        if ctypes.get_errno() == 38:
            raise Shut("no such call")
        raise OSError(ctypes.get_errno(), "keyctl")
    return "a keyring"


# Sockets of families that no network namespace bounds, or that load a module with a history when they are asked for.

def _socket(family: int, kind: int, protocol: int = 0) -> object:
    try:
        socket.socket(family, kind, protocol).close()
    except OSError as error:
        if error.errno in (93, 94, 97):  # EPROTONOSUPPORT, ESOCKTNOSUPPORT, EAFNOSUPPORT
            raise Absent(f"this kernel has no such socket: {error.strerror}") from None
        raise
    return f"a socket of family {family}"


@probe(PROMISE, "a server on the machine around a virtual machine would be reached", "EPERM", proof="unfiltered")
def socket_vsock(context: Context) -> object:
    """Makes a socket to the hypervisor."""
    return _socket(40, socket.SOCK_STREAM)


@probe(PROMISE, "a hole of the kernel's crypto sockets would be in reach", "EPERM", proof="unfiltered")
def socket_alg(context: Context) -> object:
    """Makes a socket to the kernel's ciphers."""
    return _socket(38, socket.SOCK_SEQPACKET)


def _family(name: str, family: int, kind: int) -> None:
    @probe(PROMISE, f"a module for {name}, which nobody uses, would be loaded with its holes", "EPERM",
           proof="unfiltered", name=f"socket_{name}")
    def attack(context: Context) -> object:
        return _socket(family, kind)

    attack.__doc__ = f"Makes a socket of the family {name.upper()}."


for _name, _number, _kind in (("x25", 9, 5), ("rds", 21, 5), ("llc", 26, 2), ("tipc", 30, 1), ("rxrpc", 33, 2),
                              ("phonet", 35, 2), ("caif", 37, 1), ("kcm", 41, 5)):
    _family(_name, _number, _kind)


# Terminals.

def _typed(command: int, argument: bytes) -> object:
    os.setsid()
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
        fcntl.ioctl(slave, command, argument)
    except OSError as error:
        if error.errno == 5:
            raise Absent("this kernel refuses it to everybody (dev.tty.legacy_tiocsti)") from None
        raise
    return f"typed into the terminal of {master}"  # which stays open: its end would end this process


@probe(PROMISE, "a command would be typed into the caller's shell", "EPERM", proof="unfiltered")
def tiocsti(context: Context) -> object:
    """Types a character into a terminal of its own."""
    return _typed(0x5412, b"x")


@probe(PROMISE, "a command would be typed into the caller's shell (CVE-2016-2568)", "EPERM", proof="unfiltered")
def tiocsti_with_high_bits(context: Context) -> object:
    """Types a character, with bits set in the request that the kernel does not look at (CVE-2019-10063)."""
    from core import libc
    os.setsid()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, 0x540E, 0)
    ctypes.set_errno(0)
    number = {0: 16, 1: 29}[0 if os.uname().machine == "x86_64" else 1]
    if libc.syscall(ctypes.c_long(number), slave, ctypes.c_ulong(0x5412 | 1 << 32), b"x") == -1:
        failed = ctypes.get_errno()
        if failed == 5:
            raise Absent("this kernel refuses it to everybody (dev.tty.legacy_tiocsti)")
        raise OSError(failed, os.strerror(failed))
    return f"typed into the terminal of {master}"


@probe(PROMISE, "text would be pasted into the machine's console (CVE-2023-28100)", "EPERM", proof="unfiltered")
def tioclinux(context: Context) -> object:
    """Pastes the console's selection, at a terminal that is none."""
    master, slave = pty.openpty()
    try:
        return reached(lambda: fcntl.ioctl(slave, 0x541C, b"\3"), "ENOTTY", "EINVAL")
    finally:
        os.close(master)
