"""``network="outbound"`` and ``Outbound``: a sandbox that reaches out and cannot be reached. Used by ``sandbox``.

Inside, every TCP connection to somewhere else is redirected to a listening socket. A process of the helper's holds
that, asks the kernel where the connection was meant to go, and connects there from the host's network. Datagrams leave
by a line that ends in a packet socket of the same process, which sends them on. It passes questions for names on to the
host's name server, too. So nothing changes on the host, no address of the host's is the sandbox's, and it is the same
for root and for others. What may not be reached is refused by the packet filter of the sandbox's own network, which
remembers it.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .errors import NetworkError, SandboxClosedError, SandboxUnavailable, SandboxUsageError
from .runtime import nftables, protocol, uplink
from .runtime.hostnames import write_names
from .runtime.netns import in_namespace
from .runtime.reach import INSIDE, OWN, OWN6, REFUSED, RESOLVER
from .spec import AnyNetwork, Endpoint

if TYPE_CHECKING:
    from .runtime.running import Running

__all__ = ["OWN", "OWN6", "RESOLVER", "Outbound", "name_server", "refused"]

_ALLOWED = re.compile(
    r"(?:(?P<host>[A-Za-z0-9][A-Za-z0-9._-]*)|\[(?P<address6>[0-9A-Fa-f:.]+)\])"
    r":(?P<port>[0-9]{1,5})(?:/(?P<only>tcp|udp))?")
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp"}
_TCP, _UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


class Outbound(AnyNetwork):
    """The way out, for ``Sandbox(network=Outbound(...))``. Holds nothing; any number of sandboxes can use one.

    :param allow: what may be reached, as ``"host:port"``, by TCP and UDP, or ``"host:port/tcp"``, ``"host:port/udp"``
        by one of them; an IPv6 address in brackets. Names are looked up when a sandbox starts, and are the only ones
        that it knows. Without a list, everything but link-local addresses, and every name.
    :raises SandboxUsageError: for an entry that is none.
    """

    outbound = True

    def __init__(self, allow: Iterable[str] | None = None) -> None:
        self.allow: tuple[str, ...] | None = None
        if allow is not None:
            self.allow = tuple(allow) if isinstance(allow, Iterable) and not isinstance(allow, str) else (allow,)
            for one in self.allow:
                _entry(one)

    def __repr__(self) -> str:
        return "Outbound()" if self.allow is None else f"Outbound({list(self.allow)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outbound) and self.allow == other.allow

    def __hash__(self) -> int:
        return hash(self.allow)

    def attach(self, sandbox: Any, running: Running, endpoint: Endpoint, position: int) -> None:
        """Opens the way out of a sandbox that has just started; it closes with the sandbox. Called by ``Sandbox``.

        :raises NetworkError: when an allowed name is not known.
        :raises SandboxUnavailable: when the kernel cannot redirect.
        """
        networks6 = uplink.host_ipv6()
        names = [] if self.allow is None else self._resolve(bool(networks6))
        allowed = None if self.allow is None else [(address, number, port) for _, address, number, port in names]
        stream, datagram = [socket.AF_INET, socket.SOCK_STREAM, 0], [socket.AF_INET, socket.SOCK_DGRAM, 0]
        kinds = [list(uplink.NETLINK_ROUTE), list(nftables.NETLINK_NETFILTER), list(uplink.PACKET),
                 stream, datagram, stream]
        if networks6:
            kinds.append([socket.AF_INET6, socket.SOCK_STREAM, 0])
        made: list[socket.socket] = []
        try:
            made += [socket.socket(fileno=fd) for fd in in_namespace(running.tell, {"sockets": kinds}, running.pidfd)]
            routes, filters, packets, dns_stream, dns_datagram, *listeners = made
            _let_out(filters, nftables.IPV4, listeners[0], "127.0.0.1", allowed)
            uplink.open_line(routes)
            if networks6:
                self._open_ipv6(routes, filters, listeners, allowed, networks6)
            uplink.listen(packets)
            for one in (dns_stream, dns_datagram):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                one.bind((RESOLVER, 53))
            dns_stream.listen(16)
            ours, theirs = protocol.pair()
            with theirs:
                running.relays.append(ours)
                told = running.tell(
                    {"outbound": {"names": None if self.allow is not None else name_server(), "allowed": allowed}},
                    (theirs.fileno(), running.pidfd, dns_stream.fileno(), dns_datagram.fileno(), packets.fileno(),
                     *(one.fileno() for one in listeners)))
            if not told:
                raise SandboxClosedError("the helper process of the sandboxes has ended")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT):
                raise SandboxUnavailable(
                    'network="outbound" cannot be had on this host', feature="nftables", errno=error.errno,
                    why=f"its kernel cannot redirect connections, or has no veth ({error.strerror or error})",
                    remedy="Load nf_tables, nft_redir and veth as root (modprobe), or use a kernel that has them.",
                ) from error
            raise NetworkError('network="outbound" cannot be had', network="outbound", errno=error.errno,
                               why=error.strerror or str(error)) from error
        finally:
            for one in made:
                one.close()
        if names:
            write_names(running, "outbound", sorted({f"{address}\t{name}" for name, address, _, _ in names
                                                     if name != address}))

    def _resolve(self, ipv6: bool) -> list[tuple[str, str, int, int]]:
        """Name, address, protocol and port of all that is allowed."""
        found = []
        for one in self.allow or ():
            host, port, protocols = _entry(one)
            try:
                answers = socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM)
                usable = [answer for answer in answers if answer[0] == socket.AF_INET or ipv6]
                if not usable:
                    raise OSError(errno.EAFNOSUPPORT, "it has an IPv6 address only, and this host no IPv6")
            except OSError as error:
                why = error.strerror or str(error)
                raise NetworkError(f"{one} cannot be allowed", network="outbound", errno=None,
                                   why=f"this host does not know the name ({why})"
                                   if isinstance(error, socket.gaierror) else why,
                                   remedy="Correct the name, or give its address.") from error
            found += [(host, str(answer[4][0]), number, port) for answer in usable for number in protocols]
        return found

    @staticmethod
    def _open_ipv6(routes: socket.socket, filters: socket.socket, listeners: list[socket.socket],
                   allowed: list[tuple[str, int, int]] | None, networks: list[str]) -> None:
        """IPv6, too, unless this kernel cannot redirect it: then it is as on a host that has none."""
        try:
            _let_out(filters, nftables.IPV6, listeners[1], "::1", allowed)
            uplink.open_ipv6(routes, networks)
        except OSError:
            listeners.pop()


def _let_out(filters: socket.socket, family: nftables.Family, listener: socket.socket, loopback: str,
             allowed: list[tuple[str, int, int]] | None) -> None:
    listener.bind((loopback, 0))
    listener.listen(128)
    ours = None if allowed is None else [one for one in allowed if (":" in one[0]) == (family is nftables.IPV6)]
    number = socket.AddressFamily(family.number)
    nftables.commit(filters, family, nftables.outbound_rules(
        family, INSIDE[number], REFUSED[number], ours, uplink.INDEX, listener.getsockname()[1]))


def _entry(text: object) -> tuple[str, int, tuple[int, ...]]:
    """Host, port and protocols of an entry of the allow list."""
    match = _ALLOWED.fullmatch(text) if isinstance(text, str) else None
    if match is not None and 0 < int(match["port"]) < 65536 and (match["host"] or _is_ipv6(match["address6"])):
        protocols = {"tcp": (_TCP,), "udp": (_UDP,)}.get(match["only"], (_TCP, _UDP))
        return match["host"] or match["address6"], int(match["port"]), protocols
    raise SandboxUsageError(
        f"allow={text!r} cannot be used", option="allow", value=text,
        allowed='"host:port", such as "api.example.org:443", "192.0.2.7:5432", "[2001:db8::7]:443", or '
                '"ntp.example:123/udp"')


def _is_ipv6(text: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, text)
    except OSError:
        return False
    return True


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
    found = set()
    with socket.socket(fileno=fd) as sock:
        for family in (nftables.IPV4, nftables.IPV6):
            try:
                tried = nftables.tried(sock, family)
            except OSError as error:
                if error.errno != errno.ENOENT:  # no IPv6 there
                    raise
                continue
            for address, number, port in tried:
                host = f"[{address}]" if family is nftables.IPV6 else address
                found.add(f"{_PROTOCOLS.get(number, number)} {host}" + (f":{port}" if number in (_TCP, _UDP) else ""))
    return sorted(found)
