"""Programs for the tests of networks: a server that answers, and looks from the host at who can reach whom."""

from __future__ import annotations

import socket
import sys

from pytest_sandbox import Sandbox, SandboxConnectionError, SandboxTimeout

_SERVER = """
import selectors, socket
found = selectors.DefaultSelector()
for family, any in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        sock = socket.socket(family, kind)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((any, 7))
        if kind == socket.SOCK_STREAM:
            sock.listen(100)
        found.register(sock, selectors.EVENT_READ)
while True:
    for key, _ in found.select():
        sock = key.fileobj
        if sock.type == socket.SOCK_DGRAM:
            data, peer = sock.recvfrom(1 << 16)
            sock.sendto(data.upper(), peer)
        elif key.data == "peer":
            data = sock.recv(1 << 16)
            if data:
                sock.sendall(data.upper())
            else:
                found.unregister(sock)
                sock.close()
        else:
            found.register(sock.accept()[0], selectors.EVENT_READ, "peer")
"""


def background(sandbox: Sandbox, *words: str) -> None:
    """Starts a command that runs for as long as the sandbox."""
    sandbox.run(["sh", "-c", '"$@" > /dev/null 2>&1 &', "sh", *words], check=True)


def serve(*sandboxes: Sandbox) -> None:
    """Starts a server in each: on port 7 it answers in capitals, by TCP and UDP, by IPv4 and IPv6."""
    for sandbox in sandboxes:
        background(sandbox, sys.executable, "-c", _SERVER)
    for sandbox in sandboxes:
        sandbox.wait_for_port(7, 30, host="::1")
        sandbox.wait_for_port(7, 30)


def hears(source: Sandbox, host: str, kind: socket.SocketKind = socket.SOCK_DGRAM, timeout: float = 20) -> bool:
    """Whether a packet that ``source`` sends to ``host`` is answered."""
    try:
        with source.connect(7, host, type=kind, timeout=timeout) as sock:
            sock.settimeout(timeout)
            sock.send(b"anybody?")
            return sock.recv(99) == b"ANYBODY?"
    except (SandboxTimeout, SandboxConnectionError, OSError):
        return False


def silent(source: Sandbox, host: str, kind: socket.SocketKind = socket.SOCK_DGRAM) -> bool:
    """Whether nobody answers what ``source`` sends to ``host``."""
    return not hears(source, host, kind, 0.3)
