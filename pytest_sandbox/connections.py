"""Ways into a sandbox's network: ``Sandbox.connect``, ``open_connection``, ``forward`` and ``wait_for_port``.

The helper makes sockets in the sandbox's network namespace and hands them over unconnected; this process connects
them. So nothing of the sandbox takes part but the server that is meant, and nothing opens on the host.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import sys
import time
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

from .errors import (
    SandboxClosedError,
    SandboxConnectionError,
    SandboxConnectionRefused,
    SandboxTimeout,
    SandboxUsageError,
)
from .runtime import protocol
from .runtime import syscalls as sc
from .runtime.entering import forking
from .runtime.netns import in_namespace

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

    from .sandbox import Sandbox

#: How much is read of a table that the sandbox can make longer.
_MOST = 4 << 20
_TABLES = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}


def make_socket(sandbox: Sandbox, family: int, kind: int) -> socket.socket:
    """An unconnected socket of the sandbox's network."""
    running = sandbox._ready()
    if running.pidfd < 0:
        raise SandboxClosedError("the sandbox has ended")
    if not running.plan.body["namespaces"] & sc.CLONE_NEWNET:
        return socket.socket(family, kind)
    (fd,) = in_namespace(running.tell, {"sockets": [[int(family), int(kind), 0]]}, running.pidfd)
    return socket.socket(fileno=fd)


def resolve(sandbox: Sandbox, host: str) -> list[str]:
    """The addresses of a name, as the sandbox's own ``/etc/hosts`` has them; an address is its own."""
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        pass
    found = []
    for line in _read(sandbox, "/etc/hosts").splitlines():
        words = line.partition("#")[0].split()
        if host.lower() in (word.lower() for word in words[1:]):
            try:
                found.append(str(ipaddress.ip_address(words[0])))
            except ValueError:
                continue
    if not found:
        raise SandboxConnectionError(f"the sandbox does not know the host {host!r}", address=host,
                                     why="its /etc/hosts has no such name",
                                     remedy="Give an address, or the hostname of another member of its network.")
    return found


def _read(sandbox: Sandbox, path: str) -> str:
    try:
        with sandbox.path(path).open("rb") as file:
            return cast(bytes, file.read(_MOST)).decode(errors="replace")
    except OSError:
        return ""


def _port(port: object) -> int:
    if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536:
        return port
    raise SandboxUsageError(f"port={port!r} cannot be used", option="port", value=port, allowed="1 to 65535")


def connect(sandbox: Sandbox, port: int | str | os.PathLike[str], host: str, kind: socket.SocketKind,
            timeout: float | None) -> socket.socket:
    """See ``Sandbox.connect``."""
    if isinstance(port, (str, os.PathLike)):
        path = os.fspath(port)
        with _unix(sandbox, path, kind) as (sock, address):
            sock.settimeout(timeout)
            _connect(sandbox, sock, address, path, timeout)
            return _plain(sock)
    number = _port(port)
    failure: SandboxConnectionError | None = None
    for address in resolve(sandbox, host):
        sock = make_socket(sandbox, socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        try:
            sock.settimeout(timeout)
            _connect(sandbox, sock, (address, number), _text(address, number), timeout)
            return _plain(sock)
        except SandboxConnectionError as error:
            sock.close()
            failure = failure or error
        except BaseException:
            sock.close()
            raise
    assert failure is not None
    raise failure


def _plain(sock: socket.socket) -> socket.socket:
    sock.settimeout(None)
    return sock


def _text(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _connect(sandbox: Sandbox, sock: socket.socket, address: Any, text: str, timeout: float | None) -> None:
    try:
        sock.connect(address)
    except OSError as error:
        raise _explain(sandbox, sock, error, text, timeout) from error


def _explain(sandbox: Sandbox, sock: socket.socket, error: OSError, text: str, timeout: float | None) -> Exception:
    what = f"no connection to {text} in the sandbox"
    if isinstance(error, TimeoutError) and error.errno is None:
        return SandboxTimeout(what, seconds=timeout or 0.0, why=f"no answer in {timeout} s",
                              remedy="Check that the server accepts connections and that no fault cuts it off.")
    if sandbox._ready().pidfd < 0 or not sandbox._ready().alive:
        return SandboxClosedError("the sandbox has ended")
    if error.errno == errno.ECONNREFUSED:
        why = "nobody listens there"
        if sock.family != socket.AF_UNIX:
            others = sorted({_text(*one) for one in listening(sandbox, socket.SOCK_STREAM)})
            why += f" ({', '.join(others[:10])} {'does' if len(others) == 1 else 'do'})" if others else ""
        return SandboxConnectionRefused(what, address=text, errno=error.errno, why=why,
                                        remedy="Start the server first; wait_for_port() waits until it listens.")
    return SandboxConnectionError(what, address=text, errno=error.errno, why=error.strerror or str(error))


@contextmanager
def _unix(sandbox: Sandbox, path: str, kind: socket.SocketKind) -> Iterator[tuple[socket.socket, str]]:
    """A new socket, and the name by which this process reaches the server's at ``path`` of the sandbox's own tree."""
    try:
        place = sandbox.path(path)._open(os.O_PATH)
    except OSError as error:
        raise SandboxConnectionError(f"no connection to {path} in the sandbox", address=path, errno=error.errno,
                                     why=error.strerror,
                                     remedy="Start the server first; wait_for_file() waits until it is there."
                                     ) from error
    try:
        if not stat.S_ISSOCK(os.fstat(place).st_mode):
            raise SandboxConnectionError(f"no connection to {path} in the sandbox", address=path,
                                         errno=errno.ECONNREFUSED, why="it is not a socket")
        sock = socket.socket(socket.AF_UNIX, kind)
        try:
            yield sock, f"/proc/self/fd/{place}"
        except BaseException:
            sock.close()
            raise
    finally:
        os.close(place)


async def open_connection(sandbox: Sandbox, port: int | str | os.PathLike[str], host: str, timeout: float | None,
                          ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """See ``Sandbox.open_connection``."""
    import asyncio
    loop = asyncio.get_running_loop()
    if isinstance(port, (str, os.PathLike)):
        path = os.fspath(port)
        with _unix(sandbox, path, socket.SOCK_STREAM) as (sock, name):
            await _connect_async(loop, sandbox, sock, name, path, timeout)
            return await asyncio.open_unix_connection(sock=sock)
    number = _port(port)
    failure: SandboxConnectionError | None = None
    for address in resolve(sandbox, host):
        sock = make_socket(sandbox, socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        try:
            await _connect_async(loop, sandbox, sock, (address, number), _text(address, number), timeout)
            return await asyncio.open_connection(sock=sock)
        except SandboxConnectionError as error:
            sock.close()
            failure = failure or error
        except BaseException:
            sock.close()
            raise
    assert failure is not None
    raise failure


async def _connect_async(loop: asyncio.AbstractEventLoop, sandbox: Sandbox, sock: socket.socket, address: Any,
                         text: str, timeout: float | None) -> None:
    import asyncio
    sock.setblocking(False)
    try:
        await asyncio.wait_for(loop.sock_connect(sock, address), timeout)
    except asyncio.TimeoutError as error:
        raise _explain(sandbox, sock, TimeoutError(), text, timeout) from error
    except OSError as error:
        raise _explain(sandbox, sock, error, text, timeout) from error


def forward(sandbox: Sandbox, port: int, host: str) -> tuple[str, int]:
    """See ``Sandbox.forward``."""
    number = _port(port)
    running = sandbox._ready()
    if not running.plan.body["namespaces"] & sc.CLONE_NEWNET:
        return "127.0.0.1", number  # the network is the host's own
    address = resolve(sandbox, host)[0]
    with forking, socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        ours, theirs = protocol.pair()
        with theirs:
            told = running.tell({"relay": [address, number]}, (theirs.fileno(), listener.fileno(), running.pidfd))
        if not told:
            ours.close()
            raise SandboxClosedError("the helper process of the sandboxes has ended")
        running.relays.append(ours)
        return "127.0.0.1", int(listener.getsockname()[1])


def listening(sandbox: Sandbox, kind: socket.SocketKind) -> list[tuple[str, int]]:
    """The addresses that something inside listens on, read from the kernel's own tables; no server notices."""
    found = []
    for suffix in ("", "6"):
        for line in _read(sandbox, f"/proc/1/net/{_TABLES[kind]}{suffix}").splitlines()[1:]:
            words = line.split()
            try:
                local, remote, state = words[1], words[2], words[3]
                if kind == socket.SOCK_STREAM and state != "0A":  # TCP_LISTEN
                    continue
                if kind == socket.SOCK_DGRAM and int(remote.split(":")[1], 16):
                    continue
                address, _, port = local.partition(":")
                found.append((_address(address), int(port, 16)))
            except (IndexError, ValueError):
                continue  # not the kernel's words: somebody inside has put something else there
    return found


def without_route(sandbox: Sandbox) -> int:
    """See ``Sandbox.without_route``."""
    times = 0
    lines = _read(sandbox, "/proc/1/net/snmp").splitlines()
    for names, values in pairwise(lines):
        if names.startswith("Ip: Forwarding"):
            times += _whole(dict(zip(names.split(), values.split(), strict=False)).get("OutNoRoutes"))
    for line in _read(sandbox, "/proc/1/net/snmp6").splitlines():
        name, _, value = line.partition(" ")
        if name.strip() == "Ip6OutNoRoutes":
            times += _whole(value.strip())
    return times


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0


def _address(text: str) -> str:
    """An address of /proc/net/tcp: words of 32 bits in the machine's own order."""
    raw = b"".join(int(text[at:at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8))
    return str(ipaddress.ip_address(raw))


def wait_for_port(sandbox: Sandbox, port: int, timeout: float, host: str, kind: socket.SocketKind) -> None:
    """See ``Sandbox.wait_for_port``."""
    number = _port(port)
    if kind not in _TABLES:
        raise SandboxUsageError(f"type={kind!r} cannot be waited for", option="type", value=kind,
                                allowed="SOCK_STREAM, SOCK_DGRAM")
    deadline = time.monotonic() + timeout
    pause = 0.001
    addresses = resolve(sandbox, host)
    answering = {"0.0.0.0", "::", *addresses, *(f"::ffff:{one}" for one in addresses)}
    while True:
        there = listening(sandbox, kind)
        if any(one in answering and number == at for one, at in there):
            return
        if time.monotonic() > deadline:
            others = sorted({_text(*one) for one in there})
            raise SandboxTimeout(
                f"nobody listened on port {number} of {host} in the sandbox in {timeout} s", seconds=timeout,
                why=f"there is only {', '.join(others[:10])}" if others else "nothing listens there at all",
                remedy="Look at the server's output: it may have failed, or use another port or address.")
        if not sandbox._ready().alive:
            raise SandboxClosedError("the sandbox has ended")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
