"""``network="outbound"`` and ``Outbound``: a sandbox that reaches out and cannot be reached. Used by ``sandbox``.

Inside, every TCP connection to somewhere else is redirected to a listening socket. A process of the helper's holds
that, asks the kernel where the connection was meant to go, and connects there from the host's network. It passes
questions for names on to the host's name server, too. So nothing changes on the host, no address of the host's is the
sandbox's, and it is the same for root and for others. What may not be reached is refused by the packet filter of the
sandbox's own network, which remembers it.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .errors import NetworkError, SandboxClosedError, SandboxUnavailable, SandboxUsageError
from .runtime import nftables, protocol
from .runtime.hostnames import write_names
from .runtime.netns import in_namespace
from .runtime.plan import OUTBOUND_RESOLVER as RESOLVER
from .spec import AnyNetwork, Endpoint

if TYPE_CHECKING:
    from .runtime.running import Running

#: The sandbox's own address; like the name server's it is the one that slirp4netns and QEMU use.
OWN = "10.0.2.100"
_INSIDE = ("127.0.0.0/8", f"{OWN}/32", f"{RESOLVER}/32")
#: Where a cloud's metadata, with its credentials, is served.
_REFUSED = ("169.254.0.0/16",)
_ALLOWED = re.compile(r"(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<port>[0-9]{1,5})")
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}


class Outbound(AnyNetwork):
    """The way out, for ``Sandbox(network=Outbound(...))``. Holds nothing; any number of sandboxes can use one.

    :param allow: what may be reached, as ``"host:port"``; names are looked up when a sandbox starts, and are the only
        ones that it knows. Without a list, all of IPv4 but link-local addresses, by TCP, and every name.
    :raises SandboxUsageError: for an entry that is none.
    """

    outbound = True

    def __init__(self, allow: Iterable[str] | None = None) -> None:
        self.allow: tuple[tuple[str, int], ...] | None = None
        if allow is not None:
            self.allow = tuple(_entry(one) for one in ((allow,) if isinstance(allow, str) else allow))

    def __repr__(self) -> str:
        return "Outbound()" if self.allow is None else f"Outbound({[f'{host}:{port}' for host, port in self.allow]})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outbound) and self.allow == other.allow

    def __hash__(self) -> int:
        return hash(self.allow)

    def attach(self, sandbox: Any, running: Running, endpoint: Endpoint, position: int) -> None:
        """Opens the way out of a sandbox that has just started; it closes with the sandbox. Called by ``Sandbox``.

        :raises NetworkError: when an allowed name is not known.
        :raises SandboxUnavailable: when the kernel cannot redirect.
        """
        names = [] if self.allow is None else self._resolve()
        stream, datagram = [socket.AF_INET, socket.SOCK_STREAM, 0], [socket.AF_INET, socket.SOCK_DGRAM, 0]
        route, nft = [16, socket.SOCK_RAW, 0], list(nftables.NETLINK_NETFILTER)
        made: list[socket.socket] = []
        try:
            made += [socket.socket(fileno=fd) for fd in in_namespace(
                running.tell, {"sockets": [stream, stream, datagram, route, nft]}, running.pidfd)]
            listener, dns_stream, dns_datagram, routes, filters = made
            self._open(routes, filters, listener, [(address, port) for _, address, port in names])
            for one in (dns_stream, dns_datagram):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((RESOLVER, 53))
            dns_stream.listen(16)
            ours, theirs = protocol.pair()
            with theirs:
                upstream = None if self.allow is not None else name_server()
                running.relays.append(ours)
                told = running.tell({"outbound": upstream}, (
                    theirs.fileno(), listener.fileno(), dns_stream.fileno(), dns_datagram.fileno(), running.pidfd))
            if not told:
                raise SandboxClosedError("the helper process of the sandboxes has ended")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
                raise SandboxUnavailable(
                    'network="outbound" cannot be had on this host', feature="nftables", errno=error.errno,
                    why=f"its kernel cannot redirect connections ({error.strerror or error})",
                    remedy="Load nf_tables and nft_redir as root (modprobe), or use a kernel that has them.") from error
            raise NetworkError('network="outbound" cannot be had', network="outbound", errno=error.errno,
                               why=error.strerror or str(error)) from error
        finally:
            for one in made:
                one.close()
        if names:
            write_names(running, "outbound", sorted({f"{address}\t{name}" for name, address, _ in names
                                                     if name != address}))

    def _resolve(self) -> list[tuple[str, str, int]]:
        found = []
        for host, port in self.allow or ():
            try:
                answers = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
            except OSError as error:
                raise NetworkError(f"{host}:{port} cannot be allowed", network="outbound", errno=None,
                                   why=f"this host does not know the name ({error.strerror or error})",
                                   remedy="Correct the name, or give its address.") from error
            found += [(host, str(answer[4][0]), port) for answer in answers]
        return found

    def _open(self, routes: socket.socket, filters: socket.socket, listener: socket.socket,
              allowed: list[tuple[str, int]]) -> None:
        loopback = 1
        for address in (OWN, RESOLVER):
            raw = ipaddress.IPv4Address(address).packed
            _ask(routes, 20, struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, loopback)
                 + _attribute(2, raw) + _attribute(1, raw))
        # Everywhere is by the loopback, from where the filter sends it on. RTA_OIF, RTA_PREFSRC.
        _ask(routes, 24, struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 253, 1, 0)
             + _attribute(4, struct.pack("=I", loopback)) + _attribute(7, ipaddress.IPv4Address(OWN).packed))
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        nftables.commit(filters, nftables.outbound_rules(
            _INSIDE, _REFUSED, None if self.allow is None else allowed, listener.getsockname()[1]))


def _entry(text: object) -> tuple[str, int]:
    match = _ALLOWED.fullmatch(text) if isinstance(text, str) else None
    if match is None or not 0 < int(match["port"]) < 65536:
        raise SandboxUsageError(f"allow={text!r} cannot be used", option="allow", value=text,
                                allowed='"host:port", such as "api.example.org:443" or "192.0.2.7:5432"')
    return match["host"], int(match["port"])


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data


def _ask(sock: socket.socket, kind: int, body: bytes) -> None:
    """One rtnetlink request, such that it makes what is not there yet. pyroute2 is not worth its import for three."""
    sock.send(struct.pack("=IHHII", len(body) + 16, kind, 1 | 4 | 0x600, 1, 0) + body)
    code = -struct.unpack_from("=i", sock.recv(1 << 16), 16)[0]
    if code and code != errno.EEXIST:
        raise OSError(code, "the loopback's address or route")


def name_server() -> list[Any] | None:
    """The host's first name server, as address and port."""
    try:
        with open("/etc/resolv.conf") as file:
            for line in file:
                words = line.split()
                if words[:1] == ["nameserver"] and len(words) > 1:
                    return [words[1].partition("%")[0], 53]
    except OSError:
        pass
    return None


def refused(running: Running) -> list[str]:
    """What a sandbox with an outbound network has tried to reach in vain, as ``"tcp 198.51.100.7:443"``."""
    (fd,) = in_namespace(running.tell, {"sockets": [list(nftables.NETLINK_NETFILTER)]}, running.pidfd)
    with socket.socket(fileno=fd) as sock:
        return sorted(f"{_PROTOCOLS.get(number, number)} {address}" + (f":{port}" if number in (6, 17) else "")
                      for address, number, port in nftables.tried(sock))
