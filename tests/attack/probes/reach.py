"""What the host offers to its own: sockets, shared memory, queues, semaphores, and its namespaces themselves."""

from __future__ import annotations

import os
import socket

from core import Absent, Context, Shut, call, probe

PROMISE = "network"


def _namespace(kind: str, weaker: str) -> None:
    @probe("namespaces", weaker, "shut: its own", proof="outside", name=f"namespace_{kind}")
    def attack(context: Context) -> object:
        if os.readlink(f"/proc/self/ns/{kind}") == context["namespaces"][kind]:
            return "the host's"
        raise Shut("its own")

    attack.__doc__ = f"Compares its {kind} namespace with the runner's."


for _kind, _weaker in (
    ("mnt", "the host's mounts would be changed"), ("pid", "the host's processes would be killed"),
    ("net", "the host's network would be used"), ("ipc", "shared memory would be read"),
    ("uts", "the host's name would be changed"), ("user", "capabilities would hold on the host"),
    ("cgroup", "the host's cgroups would be seen"),
):
    _namespace(_kind, _weaker)


def _connect(family: int, address: object, kind: int = socket.SOCK_STREAM) -> object:
    with socket.socket(family, kind) as sock:
        sock.settimeout(2)
        sock.connect(address)  # type: ignore[arg-type]
        return "connected"


@probe(PROMISE, "the caller's display and buses would be used (CVE-2020-15257)", "ECONNREFUSED", proof="outside")
def abstract_socket(context: Context) -> object:
    """Connects to an abstract socket of the host."""
    return _connect(socket.AF_UNIX, "\0" + context["abstract"])


@probe(PROMISE, "the caller's display and buses would be used", "ECONNREFUSED", proof="outside")
def abstract_datagram(context: Context) -> object:
    """Connects a datagram socket to an abstract one of the host."""
    return _connect(socket.AF_UNIX, "\0" + context["abstract_datagram"], socket.SOCK_DGRAM)


@probe(PROMISE, "a daemon such as Docker's would be told to start something", "ECONNREFUSED", "ENOENT",
       proof="outside")
def socket_file(context: Context) -> object:
    """Connects to a socket file of the host."""
    return _connect(socket.AF_UNIX, f"{context['folder']}/socket")


@probe(PROMISE, "servers on the host's loopback would be used", "ECONNREFUSED", proof="outside")
def loopback(context: Context) -> object:
    """Connects to a server on the host's loopback."""
    return _connect(socket.AF_INET, ("127.0.0.1", context["port"]))


@probe(PROMISE, "servers of the host would be used", "ENETUNREACH", proof="outside")
def address_of_the_host(context: Context) -> object:
    """Connects to an address of the host's that is not its loopback."""
    if context["address"] is None:
        raise Absent("this machine has no other address")
    return _connect(socket.AF_INET, (context["address"], context["open_port"]))


@probe(PROMISE, "the machine's network would be used", "shut: the loopback", proof="outside")
def interfaces(context: Context) -> object:
    """Looks for an interface beyond the loopback; those that every namespace gets by itself are down."""
    import fcntl
    import struct
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            flags = struct.unpack("16xh14x", fcntl.ioctl(sock, 0x8913, struct.pack("32s", name.encode())))[0]
            if name != "lo" and flags & 1:
                found.append(name)
    if found:
        return found
    if context["world"] == "outside":
        raise Absent("this machine has no other interface")
    raise Shut("the loopback")


@probe(PROMISE, "packets of the host would be read", "shut: nothing of it", "EPERM", proof="outside", root=True)
def packets_of_the_host(context: Context) -> object:
    """Opens a packet socket and waits for the packet that the test sends to itself."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        sock.settimeout(0.3)
        if context["world"] == "outside":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"x", ("127.0.0.1", 9))
        try:
            return f"{len(sock.recv(2048))} bytes"
        except TimeoutError:
            raise Shut("nothing of it") from None


# Interprocess communication.

PROMISE_IPC = "ipc"


@probe(PROMISE_IPC, "memory of the host's programs would be written", "ENOENT", proof="outside")
def shared_memory_of_system_v(context: Context) -> object:
    """Looks for the test's shared memory segment by its key."""
    return call("shmget", context["key"], 0, 0)


@probe(PROMISE_IPC, "programs of the host would wait for ever", "ENOENT", proof="outside")
def semaphores_of_system_v(context: Context) -> object:
    """Looks for the test's semaphores by their key."""
    return call("semget", context["key"], 0, 0)


@probe(PROMISE_IPC, "messages would be read or forged", "ENOENT", proof="outside")
def messages_of_system_v(context: Context) -> object:
    """Looks for the test's message queue by its key."""
    return call("msgget", context["key"], 0)


@probe(PROMISE_IPC, "messages would be read or forged", "ENOENT", proof="outside")
def message_queue(context: Context) -> object:
    """Opens the test's POSIX message queue by its name."""
    fd = call("mq_open", context["queue"][1:].encode(), os.O_RDONLY, 0, None)
    os.close(fd)
    return "a queue"


@probe(PROMISE_IPC, "memory of the host's programs would be written", "ENOENT", proof="outside")
def shared_memory_of_posix(context: Context) -> object:
    """Opens the test's file in /dev/shm."""
    os.close(os.open(f"/dev/shm/{context['queue'][1:]}", os.O_RDONLY))
    return "a file"


@probe(PROMISE_IPC, "a program of the host would be fed", "ENXIO", "ENOENT", proof="outside")
def fifo(context: Context) -> object:
    """Opens a FIFO of the host that somebody reads from."""
    os.close(os.open(f"{context['folder']}/fifo", os.O_WRONLY | os.O_NONBLOCK))
    return "a reader"


@probe(PROMISE_IPC, "a program of the host's would wait for ever", "shut: not locked", "ENOENT", proof="outside")
def file_lock(context: Context) -> object:
    """Looks whether a lock that the test holds on a file holds here, too."""
    import fcntl
    fd = os.open(f"{context['folder']}/locked", os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return "the same lock"
    raise Shut("not locked")
