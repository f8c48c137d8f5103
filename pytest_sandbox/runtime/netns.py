"""What the helper does in network namespaces, for the caller: makes one, makes sockets in one, relays into one.

The helper may enter every network namespace of its sandboxes; the caller, unprivileged, may not. A socket belongs to
the namespace that it was made in for as long as it lives, whoever holds it, so a descriptor is all the caller needs.
Nothing of this runs code of a sandbox, or where such code could reach it.
"""

from __future__ import annotations

import array
import errno
import os
import select
import socket

from . import protocol
from . import syscalls as sc

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def in_namespace(tell: Callable[[protocol.Message, tuple[int, ...]], bool], what: dict[str, Any],
                 namespace: int | None) -> list[int]:
    """The caller's side: has a helper do something in a network namespace; returns the descriptors that it made there.

    :param tell: sends that helper a request.
    :param what: see :func:`serve`.
    :param namespace: a network namespace or a pidfd; None for a new namespace.
    :raises SandboxClosedError: when the helper, or whoever the pidfd names, is gone.
    :raises OSError: as the kernel says, with the path.
    """
    from ..errors import SandboxClosedError
    ours, theirs = protocol.pair()
    with ours:
        with theirs:
            tell({"net": what}, (theirs.fileno(),) if namespace is None else (theirs.fileno(), namespace))
        got = protocol.receive(ours)  # nothing, when it could not be told
    if got is None:
        raise SandboxClosedError("the helper process of the sandboxes has ended")
    message, made = got
    if "errno" in message:
        if message["errno"] == errno.ESRCH:
            raise SandboxClosedError("the sandbox has ended")
        raise OSError(message["errno"], os.strerror(message["errno"]), message.get("path"))
    return made


def serve(what: dict[str, Any], channel: socket.socket, namespace: int | None) -> None:
    """Does what a ``net`` request asks for and answers it on ``channel``. Runs in a fork of the helper; never returns.

    In a fork, since an unprivileged helper could not come back into the network that it has left.

    :param what: ``{"namespace": bool, "sockets": [[family, type, protocol], ...], "sysctl": {name: text}}``.
    :param namespace: a network namespace, or a pidfd of a process in it; None for a new one.
    """
    made: list[int] = []
    try:
        if namespace is None:
            sc.unshare(sc.CLONE_NEWNET)
        else:
            sc.setns(namespace, sc.CLONE_NEWNET)
        if what.get("namespace"):
            made.append(os.open("/host/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        for kind in what.get("sockets", ()):
            made.append(socket.socket(*kind).detach())
        for name, text in what.get("sysctl", {}).items():
            with open(f"/host/proc/sys/{name}", "w") as file:
                file.write(text)
        protocol.send(channel, {"net": len(made)}, tuple(made))
    except OSError as error:
        try:
            protocol.send(channel, {"errno": error.errno, "path": error.filename})
        except OSError:
            pass  # whoever asked has gone
    finally:
        os._exit(0)


def relay(where: list[Any], fds: list[int]) -> None:
    """Accepts connections and connects each to ``where`` in a sandbox's network. Runs in a fork of the helper.

    Ends when the sandbox's init does, or when the other end of the lifeline closes; never returns.

    :param where: host and port.
    :param fds: the lifeline, the listening socket, and a pidfd of the sandbox's init.
    """
    try:
        kept = [2, *sorted(fds)]
        for one, following in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(one + 1, following)
        lifeline, listener, sandbox = fds
        sc.setns(sandbox, sc.CLONE_NEWNET)
        _Relay(lifeline, socket.socket(fileno=listener), sandbox, where).serve()
    except OSError:
        pass  # the sandbox has gone
    finally:
        os._exit(0)


class _Relay:
    """Copies bytes between pairs of sockets, each way for as long as its source sends."""

    CHUNK = 128 << 10
    MOST = 400  # connections at a time; further ones wait in the listener's queue

    def __init__(self, lifeline: int, listener: socket.socket, sandbox: int, where: list[Any]) -> None:
        self.ends = (lifeline, sandbox)
        self.listener, self.where = listener, where
        self.sockets: dict[int, socket.socket] = {}
        self.other: dict[int, int] = {}
        self.buffers: dict[int, bytes] = {}  # by the socket that they wait to be sent to
        self.done: set[int] = set()  # sources that have sent all, and whose targets have been told
        self.connecting: set[int] = set()
        self.poll = select.poll()
        for fd in (*self.ends, listener.fileno()):
            self.poll.register(fd, select.POLLIN)
        listener.setblocking(False)

    def serve(self) -> None:
        while True:
            for fd, event in self.poll.poll():
                if fd in self.ends:
                    return
                if fd == self.listener.fileno():
                    self.accept()
                elif fd in self.sockets:
                    try:
                        self.move(fd, event)
                    except BlockingIOError:
                        pass
                    except OSError:
                        self.drop(fd)

    def accept(self) -> None:
        try:
            near, _ = self.listener.accept()
        except OSError:
            return  # it has gone already
        far = socket.socket(socket.AF_INET6 if ":" in self.where[0] else socket.AF_INET)
        for one, other in ((near, far), (far, near)):
            one.setblocking(False)
            self.sockets[one.fileno()] = one
            self.buffers[one.fileno()] = b""
            self.other[one.fileno()] = other.fileno()
        self.connecting.add(far.fileno())
        if len(self.sockets) >= 2 * self.MOST:
            self.poll.unregister(self.listener)
        try:
            far.connect((self.where[0], self.where[1]))
        except BlockingIOError:
            pass
        except OSError:
            self.drop(far.fileno())
            return
        self.poll.register(far, select.POLLOUT)

    def move(self, fd: int, event: int) -> None:
        sock, other = self.sockets[fd], self.other[fd]
        if fd in self.connecting:
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                raise OSError(number, os.strerror(number))
            self.connecting.discard(fd)
        elif event & select.POLLOUT:
            self.flush(fd)
        elif fd not in self.done and not self.buffers[other]:
            data = sock.recv(self.CHUNK)
            if data:
                self.buffers[other] = data
                self.flush(other)
            else:
                self.done.add(fd)
                self.sockets[other].shutdown(socket.SHUT_WR)
                if other in self.done:
                    self.drop(fd)
                    return
        else:
            raise OSError(104, "its peer has gone")
        self.watch(fd)
        self.watch(other)

    def flush(self, fd: int) -> None:
        try:
            sent = self.sockets[fd].send(self.buffers[fd], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        self.buffers[fd] = self.buffers[fd][sent:]

    def watch(self, fd: int) -> None:
        """Waits for what can be done next with a connected socket."""
        other = self.other[fd]
        wanted = select.POLLOUT if self.buffers[fd] else 0
        if fd not in self.done and not self.buffers[other] and other not in self.connecting:
            wanted |= select.POLLIN
        if wanted:
            self.poll.register(fd, wanted)
        else:
            self.ignore(fd)

    def ignore(self, fd: int) -> None:
        try:
            self.poll.unregister(fd)
        except KeyError:
            pass

    def drop(self, fd: int) -> None:
        """Ends a pair. Unless both have said that they have sent all, both see a reset and not an end."""
        pair = (fd, self.other[fd])
        whole = self.done.issuperset(pair)
        for one in pair:
            self.ignore(one)
            sock = self.sockets.pop(one)
            if not whole:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, array.array("i", [1, 0]))
            sock.close()
            del self.buffers[one], self.other[one]
            self.done.discard(one)
            self.connecting.discard(one)
        self.poll.register(self.listener, select.POLLIN)
