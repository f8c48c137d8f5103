"""Processes of the helper's that pass bytes on between a sandbox's network and the host's: into it, and out of it.

Each is a fork of the helper and never returns. None is where code of a sandbox could reach it.
"""

from __future__ import annotations

import array
import os
import select
import socket
import struct

from . import syscalls as sc
from .datagrams import Datagrams
from .reach import Reach

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any


def relay(where: list[Any], fds: list[int]) -> None:
    """Accepts connections and connects each to ``where`` in a sandbox's network. Runs in a fork of the helper.

    Ends when the sandbox's init does, or when the other end of the lifeline closes; never returns.

    :param where: host and port.
    :param fds: the lifeline, the listening socket, and a pidfd of the sandbox's init.
    """
    try:
        _close_others(fds)
        lifeline, listener, sandbox = fds
        sc.setns(sandbox, sc.CLONE_NEWNET)
        _Relay((lifeline, sandbox), {socket.socket(fileno=listener): where}).serve()
    except OSError:
        pass  # the sandbox has gone
    finally:
        os._exit(0)


def outbound(what: dict[str, Any], fds: list[int]) -> None:
    """Passes on what a sandbox's packet filter lets out: connects where it was meant to go, from the host's network.

    :param what: ``{"names": [ADDRESS, PORT] or null, "allowed": [[ADDRESS, PROTOCOL, PORT], ...] or null}``: the name
        server that answers for the sandbox's own, and what may be reached; null: no name is known, all may be reached.
    :param fds: the lifeline, a pidfd of the sandbox's init, the name server's two sockets (TCP, UDP), the packet socket
        at the end of its line, and the sockets that connections are redirected to.
    """
    try:
        _close_others(fds)
        lifeline, sandbox, dns_stream, dns_datagram, packets, *redirected = fds
        names = what["names"]
        listeners = {socket.socket(fileno=dns_stream): names or ["", 0],
                     **{socket.socket(fileno=fd): None for fd in redirected}}
        relay = _Relay((lifeline, sandbox), listeners, socket.socket(fileno=dns_datagram), names)
        relay.reach = Reach(what["allowed"])
        relay.datagrams = Datagrams(socket.socket(fileno=packets), relay.reach, relay.poll)
        relay.serve()
    except OSError:
        pass  # the sandbox has gone
    finally:
        os._exit(0)


def _close_others(fds: list[int]) -> None:
    kept = [2, *sorted(fds)]
    for one, following in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(one + 1, following)


class _Relay:
    """Copies bytes between pairs of sockets, each way for as long as its source sends."""

    CHUNK = 128 << 10
    #: Connections at a time, two descriptors each; further ones wait in the listener's queue.
    MOST = max(1, min(400, (os.sysconf("SC_OPEN_MAX") - 64) // 4))

    def __init__(self, ends: tuple[int, int], listeners: dict[socket.socket, list[Any] | None],
                 names: socket.socket | None = None, upstream: list[Any] | None = None) -> None:
        """``listeners``: each with where its connections lead, None for where they were meant to go."""
        self.ends = ends
        self.listeners = {listener.fileno(): (listener, where) for listener, where in listeners.items()}
        self.names, self.upstream = names, upstream
        self.reach: Reach | None = None
        self.datagrams: Datagrams | None = None
        self.questions: dict[int, tuple[socket.socket, Any]] = {}  # to the name server, with who has asked
        self.sockets: dict[int, socket.socket] = {}
        self.other: dict[int, int] = {}
        self.buffers: dict[int, bytes] = {}  # by the socket that they wait to be sent to
        self.done: set[int] = set()  # sources that have sent all, and whose targets have been told
        self.connecting: set[int] = set()
        self.poll = select.poll()
        for fd in (*self.ends, *self.listeners):
            self.poll.register(fd, select.POLLIN)
        for listener in listeners:
            listener.setblocking(False)
        if names is not None:
            names.setblocking(False)
            self.poll.register(names, select.POLLIN)

    def serve(self) -> None:
        while True:
            for fd, event in self.poll.poll():
                if fd in self.ends:
                    return
                if fd in self.listeners:
                    self.accept(*self.listeners[fd])
                elif self.names is not None and fd == self.names.fileno():
                    self.ask(self.names)
                elif fd in self.questions:
                    self.answer(fd)
                elif self.datagrams is not None and self.datagrams.handle(fd):
                    pass
                elif fd in self.sockets:
                    try:
                        self.move(fd, event)
                    except BlockingIOError:
                        pass
                    except OSError:
                        self.drop(fd)

    def accept(self, listener: socket.socket, where: list[Any] | None) -> None:
        try:
            near, _ = listener.accept()
        except OSError:
            return  # it has gone already
        try:
            if where is None:
                where = _original(near)
                if self.reach is not None and not self.reach.allows(where[0], socket.IPPROTO_TCP, where[1]):
                    raise OSError(1, "nobody has redirected it")
        except OSError:
            near.close()
            return
        try:
            far = socket.socket(socket.AF_INET6 if ":" in where[0] else socket.AF_INET)
        except OSError:
            near.close()  # no descriptor is left
            return
        for one, other in ((near, far), (far, near)):
            one.setblocking(False)
            self.sockets[one.fileno()] = one
            self.buffers[one.fileno()] = b""
            self.other[one.fileno()] = other.fileno()
        self.connecting.add(far.fileno())
        if len(self.sockets) >= 2 * self.MOST:
            for fd in self.listeners:
                self.ignore(fd)
        try:
            far.connect((where[0], where[1]))
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
        for listener in self.listeners:
            self.poll.register(listener, select.POLLIN)

    # Names, by UDP: each question has a socket of its own, so that its answer finds back.

    def ask(self, names: socket.socket) -> None:
        try:
            question, peer = names.recvfrom(1 << 16)
            if self.upstream is None:
                if len(question) >= 12:
                    names.sendto(question[:2] + bytes((question[2] | 0x80, 3)) + question[4:], peer)  # 3: no such name
                return
            while len(self.questions) >= self.MOST:
                self.forget(next(iter(self.questions)))
            sock = socket.socket(socket.AF_INET6 if ":" in self.upstream[0] else socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            self.questions[sock.fileno()] = sock, peer
            self.poll.register(sock, select.POLLIN)
            sock.connect((self.upstream[0], self.upstream[1]))
            sock.send(question)
        except OSError:
            pass  # who asked will ask again

    def answer(self, fd: int) -> None:
        sock, peer = self.questions[fd]
        try:
            answer = sock.recv(1 << 16)
            if self.names is not None:
                self.names.sendto(answer, peer)
        except OSError:
            pass  # nobody answers there
        self.forget(fd)

    def forget(self, fd: int) -> None:
        self.ignore(fd)
        self.questions.pop(fd)[0].close()


def _original(sock: socket.socket) -> list[Any]:
    """Where a redirected connection was meant to go (SO_ORIGINAL_DST, linux/netfilter_ipv4.h; the same for IPv6)."""
    if sock.family == socket.AF_INET6:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, 80, 28)
        return [socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack_from("!H", raw, 2)[0]]
    raw = sock.getsockopt(socket.SOL_IP, 80, 16)
    return [socket.inet_ntoa(raw[4:8]), struct.unpack_from("!H", raw, 2)[0]]
