"""The closed set of messages between the caller, the helper and a sandbox's init, and how they travel.

Every message is one JSON object on a ``SOCK_SEQPACKET`` socket, with descriptors beside it where they are needed. One
that is too large for a packet travels in a memfd, which then is the last descriptor.

helper -> caller        ``{"hello": true}`` + [pidfd], or ``{"failed": ...}`` as below + [pidfd]
caller -> helper        ``{"plan": KEY, "body": {...}}``    a plan, told once
                        ``{"freeze": KEY}`` + [tree]        mount this frozen layer; ``{"thaw": KEY}``: no longer
                        ``{"recall": KEY}`` + [channel]     answered by a copy of it, ``{"tree": KEY}`` + [tree]
                        ``{"make": KEY}`` + [control]       make a sandbox by it; init answers on ``control``
                        ``{"net": {...}}`` + [channel, namespace?]  see :func:`.netns.serve`; answered on the channel
                            by ``{"net": COUNT}`` + descriptors, or ``{"errno": N, "path": P}``
                        ``{"trace": true}`` + [channel]     tell there how long steps take, of sandboxes that are made
                            with ``"trace": NUMBER``: ``{"trace": NUMBER, "marks": [...]}``, see :mod:`.tracing`
                        ``{"relay": [HOST, PORT]}`` + [lifeline, listener, pidfd]  see :func:`.relay.relay`
                        ``{"outbound": {...}}`` + [lifeline, pidfd, dns_tcp, dns_udp, packets, *listeners]
init -> caller          ``{"ready": true}`` + [pidfd, root, scratch]; and ``"trace": [...]`` where it is traced
                        ``{"failed": {"step", "errno", "path"}}``
caller -> init          ``{"spawn": {...}}`` + [stdin, stdout, stderr, channel]
                        ``{"kill": SIGNAL}``                every process but init
                        ``{"list": true}`` + [channel]      answered by ``{"processes": [...]}``
                        ``{"ping": true}`` + [channel]      answered by ``{"pong": true}``, when all killed are gone
                        ``{"usage": true}`` + [channel]     answered by ``{"used": [...], "pids": N}``
init -> channel         ``{"pid": N}`` or ``{"errno": N, "path": P}``, then ``{"status": WAITSTATUS, "used": [...]}``,
                        user and system seconds, blocks read and written
caller -> channel       ``{"signal": N, "group": bool}``

When the caller's end of ``control`` closes, or the caller ends, init ends, and with it everything inside.
"""

from __future__ import annotations

import array
import errno
import json
import os
import select
import socket

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

#: The largest message that travels in a packet of its own.
INLINE = 64 << 10
#: The largest message at all.
LARGEST = 16 << 20
_MAX_FDS = 16


class BadMessage(Exception):
    """What arrived is not a message."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends that keep message boundaries; both close on exec."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Sends one message. The descriptors are copied; the caller keeps its own.

    :raises OSError: E2BIG when it is larger than a receiver takes, or what sendmsg(2) says.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > LARGEST:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    if len(body) > INLINE:
        memfd = os.memfd_create("message", os.MFD_CLOEXEC)
        try:
            with open(memfd, "wb", closefd=False) as file:
                file.write(body)
            send(sock, {"memfd": len(body)}, (*fds, memfd))
        finally:
            os.close(memfd)
        return
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([body], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors (close-on-exec, the receiver's to close), or None at the end.

    :raises BadMessage: when it is cut, not JSON, or not an object; its descriptors are closed.
    """
    body, ancillary, flags, _ = sock.recvmsg(INLINE + 1, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            got = array.array("i")
            got.frombytes(data[:len(data) - len(data) % 4])
            fds.extend(got)
    if not body:
        close(fds)
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BadMessage("a message was cut")
        message = _decode(body)
        if "memfd" in message:
            if not fds:
                raise BadMessage("a large message without its content")
            memfd = fds.pop()
            with open(memfd, "rb") as file:
                file.seek(0)
                message = _decode(file.read(LARGEST))
    except BadMessage:
        close(fds)
        raise
    return message, fds


def _decode(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise BadMessage("not an object")
    return message


def close(fds: list[int]) -> None:
    """Closes the descriptors of a message."""
    for fd in fds:
        os.close(fd)


def wait_readable(fd: int, timeout: float | None = None) -> bool:
    """Waits until ``fd`` can be read or its other end is gone; False after ``timeout`` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, timeout) * 1000))
