"""``Network``: a layer-2 segment between sandboxes, in a network namespace of its own. Used by tests and fixtures.

The segment is a bridge; each member has a cable (veth) to it. Both ends' namespaces belong to user namespaces that the
caller owns, which gives the caller every right over them (user_namespaces(7)), root or not, but not the right to enter
them: so the helper makes a netlink socket in each, and the rest is done here. Nothing of it is on the host's side. The
segment's namespace lives by a descriptor of this process, so it goes when this process does, however that ends.
"""

from __future__ import annotations

import errno
import ipaddress
import re
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from .errors import NetworkError, SandboxClosedError, SandboxUsageError
from .faults import Faults, Faulty
from .runtime import launch, netdev
from .runtime.hostnames import write_names
from .runtime.netns import in_namespace
from .spec import Endpoint

if TYPE_CHECKING:
    from .runtime.running import Running

_open: weakref.WeakSet[Network] = weakref.WeakSet()
_numbers = threading.Lock()
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_FIRST_PORT, _FIRST_INDEX = netdev.BRIDGE + 1, 100
_FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


@dataclass(eq=False)
class Member:
    """A sandbox in a network; from its start to its end. ``names`` begins with the one that stands for it."""

    sandbox: Any
    running: Running
    names: tuple[str, ...]
    number: int  # of its port in the segment
    index: int  # of its interface in its own namespace
    mac: str
    address: str
    address6: str
    router: bool
    netlink: netdev.Netlink = field(repr=False)

    @property
    def name(self) -> str:
        return self.names[0]


@dataclass(frozen=True)
class Traffic:
    """What a member has sent and received on a network, and how much on its way to it a fault has dropped."""

    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    dropped_packets: int


class Network(Faulty):
    """One layer-2 segment: sandboxes join it with ``network=`` and find each other by ``hostname``.

    Made in the kernel when the first sandbox joins, or when it is entered; it ends with :meth:`close`, or with this
    process. Several networks may have the same range: they do not know of each other.

    :param subnet: the IPv4 range that members get addresses of; else one of 10.89.0.0/16 that no other network has.
    :param subnet6: the IPv6 range; else one of fd00:89::/32.
    :param ipv6: whether members have IPv6 addresses, too. Without, names stand for IPv4 addresses only.
    :param mtu: the largest packet, in bytes.
    :raises SandboxUsageError: for a range that is none.
    """

    def __init__(self, subnet: str | None = None, subnet6: str | None = None, *, ipv6: bool = True,
                 mtu: int = 1500) -> None:
        self._number: int
        with _numbers:
            taken = {one._number for one in _open}
            self._number = next(number for number in range(len(taken) + 1) if number not in taken)
            _open.add(self)
        part = self._number % 256
        self.subnet = _range("subnet", subnet or f"10.89.{part}.0/24", ipaddress.IPv4Network, 30)
        self.subnet6 = _range("subnet6", subnet6 or f"fd00:89:{part:x}::/64", ipaddress.IPv6Network, 126)
        if not isinstance(mtu, int) or not 1280 <= mtu <= 65535:
            raise SandboxUsageError(f"mtu={mtu!r} cannot be used", option="mtu", value=mtu,
                                    allowed="1280 (the least for IPv6) to 65535 bytes")
        self.mtu = mtu
        self.ipv6 = ipv6
        self._lock = threading.RLock()
        self._netlink: netdev.Netlink | None = None
        self._closed = False
        self._members: list[Member] = []
        self._given: weakref.WeakKeyDictionary[Any, tuple[str, str]] = weakref.WeakKeyDictionary()
        self._ports = _FIRST_PORT
        self._faults = Faults(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._members)} members"
        return f"<Network {self.subnet} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled: it belongs to the process that made it")

    def __enter__(self) -> Network:
        self._segment()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it: members lose its interface and its names. Does nothing when it is closed already."""
        with self._lock:
            self._closed = True
            _open.discard(self)
            for member in list(self._members):
                self._forget(member)
            if self._netlink is not None:
                self._netlink.close()
                self._netlink = None

    def _segment(self) -> netdev.Netlink:
        with self._lock:
            if self._closed:
                raise SandboxClosedError(f"the network {self.subnet} is closed", remedy="Make a new Network.")
            if self._netlink is None:
                try:
                    supervisor = launch.supervisor()
                    supervisor.greet()
                    made = netdev.Netlink(*in_namespace(
                        supervisor.tell, {"namespace": True, "sockets": [netdev.NETLINK_ROUTE]}, None))
                    made.send([netdev.add_bridge()])
                except OSError as error:
                    raise self._error("the network cannot be made", error) from error
                self._netlink = made
            return self._netlink

    def _error(self, what: str, error: OSError) -> NetworkError:
        return NetworkError(what, network=str(self.subnet), errno=error.errno,
                            why=str(error).partition("] ")[2] or str(error),
                            remedy="Run `pytest-sandbox doctor` to see what this host lacks.")

    # Members.

    def endpoint(self, *, address: str | None = None, address6: str | None = None, aliases: Iterable[str] = (),
                 router: bool = False) -> Endpoint:
        """How a sandbox joins, where it matters: ``Sandbox(network=net.endpoint(aliases=["db"]))``.

        :param address: of the network's range, instead of the next that is free. ``address6``: the same for IPv6.
        :param aliases: further names by which the other members find it.
        :param router: it passes on what is not for itself, between all its networks, and is the others' way out.
        :raises SandboxUsageError: for what is no address of the range, and no name.
        """
        for option, value, inside in (("address", address, self.subnet), ("address6", address6, self.subnet6)):
            if value is not None and not _usable(value, inside):
                raise SandboxUsageError(f"{option}={value!r} cannot be used", option=option, value=value,
                                        allowed=f"an address of {inside}")
        names = (aliases,) if isinstance(aliases, str) else tuple(aliases)
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                raise SandboxUsageError(f"aliases={name!r} cannot be used", option="aliases", value=name,
                                        allowed="host names of letters, digits, '-', '_' and '.'")
        return Endpoint(self, address, address6, names, router)

    @property
    def members(self) -> dict[str, Any]:
        """The sandboxes that are connected now, by name."""
        return {member.name: member.sandbox for member in self._members}

    def address(self, member: Any) -> str:
        """The IPv4 address of a member, which is a sandbox or a name."""
        return self.member(member).address

    def address6(self, member: Any) -> str:
        """The IPv6 address of a member; empty when the network has none."""
        return self.member(member).address6

    def member(self, who: Any) -> Member:
        """The member that ``who`` is or names.

        :raises SandboxUsageError: when there is none.
        """
        for member in self._members:
            if member.sandbox is who or (isinstance(who, str) and who in member.names):
                return member
        raise SandboxUsageError(f"{who!r} is not in the network {self.subnet}", option="member", value=who,
                                allowed=", ".join(self.members) or "nobody is in it")

    def attach(self, sandbox: Any, running: Running, endpoint: Endpoint, position: int) -> None:
        """Connects a sandbox that has just started; it leaves by itself when it ends. Called by ``Sandbox``.

        :raises NetworkError: when no address is left, or one or a name is taken.
        """
        with self._lock:
            segment = self._segment()
            names = self._names(sandbox, endpoint)
            address, address6 = self._addresses(sandbox, names[0], endpoint)
            raw = ipaddress.IPv4Address(address).packed
            what: dict[str, Any] = {"namespace": True, "sockets": [netdev.NETLINK_ROUTE]}
            if endpoint.router:
                what["sysctl"] = _FORWARDING
            try:
                own = netdev.Netlink(*in_namespace(running.tell, what, running.pidfd))
            except OSError as error:
                raise self._error(f"{names[0]} cannot join the network {self.subnet}", error) from error
            member = Member(sandbox, running, names, self._ports, _FIRST_INDEX + position,
                            f"02:89:{raw.hex(':')}", address, address6, endpoint.router, own)
            self._ports += 1
            try:
                segment.send([netdev.add_port(member.number, member.mac, f"eth{position}", member.index, own.namespace,
                                              self.mtu)])
                routes = [route for other in self._members if other.router for route in _routes(member, other)]
                own.send([netdev.set_link(member.index, True),
                          netdev.add_address(member.index, address, self.subnet.prefixlen),
                          *([netdev.add_address(member.index, address6, self.subnet6.prefixlen)] if address6 else []),
                          *routes])
                if endpoint.router:
                    for other in self._members:
                        other.netlink.send(_routes(other, member))
            except OSError as error:
                own.close()
                if ":" in str(error) and self.ipv6 and error.errno in (errno.EOPNOTSUPP, errno.EACCES):
                    raise NetworkError(f"{names[0]} cannot join the network {self.subnet}", network=str(self.subnet),
                                       errno=error.errno, why=f"this host has no IPv6 ({error.strerror})",
                                       remedy="Use Network(ipv6=False).") from error
                raise self._error(f"{names[0]} cannot join the network {self.subnet}", error) from error
            self._members.append(member)
            self._given[sandbox] = address, address6
            running.when_leaving.append(lambda: self._left(member))
            self._faults.apply()
            self._tell_names()

    def _names(self, sandbox: Any, endpoint: Endpoint) -> tuple[str, ...]:
        taken = {name for member in self._members for name in member.names}
        name = sandbox.spec.hostname
        if name == "sandbox":  # nobody has chosen it
            number = 2
            while name in taken:
                name = f"sandbox-{number}"
                number += 1
        for one in (name, *endpoint.aliases):
            if one in taken:
                raise NetworkError(f"{one} cannot join the network {self.subnet}", network=str(self.subnet),
                                   why=f"another member is called {one!r}",
                                   remedy="Give each sandbox a hostname of its own, and each alias to one of them.")
        return tuple(dict.fromkeys((name, *endpoint.aliases)))

    def _addresses(self, sandbox: Any, name: str, endpoint: Endpoint) -> tuple[str, str]:
        """What was asked for, what it had before a reset, or the next that is free."""
        before = self._given.get(sandbox, (None, None))
        found = []
        for asked, had, inside, used in (
                (endpoint.address, before[0], self.subnet, {one.address for one in self._members}),
                (endpoint.address6, before[1], self.subnet6, {one.address6 for one in self._members})):
            if asked is not None:
                asked = str(ipaddress.ip_address(asked))
                if asked in used:
                    raise NetworkError(f"{name} cannot join the network {self.subnet}", network=str(self.subnet),
                                       why=f"another member has the address {asked}",
                                       remedy="Choose another, or none: the next that is free is given.")
                found.append(asked)
            elif had is not None and had not in used:
                found.append(had)
            else:
                kept = used.union(one for pair in self._given.values() for one in pair)
                found.append(self._next(name, inside, kept) or self._next(name, inside, used)
                             or self._exhausted(name, inside))
        return found[0], found[1] if self.ipv6 else ""

    def _next(self, name: str, inside: Any, used: set[str]) -> str | None:
        last = inside.num_addresses - (1 if inside.version == 4 else 0)  # IPv4's last one is the broadcast's
        for number in range(1, min(last, len(used) + 2)):
            if (address := str(inside[number])) not in used:
                return address
        return None

    def _exhausted(self, name: str, inside: Any) -> NoReturn:
        raise NetworkError(f"{name} cannot join the network {self.subnet}", network=str(self.subnet),
                           why=f"all {len(self._members)} addresses of {inside} are taken",
                           remedy='Choose a larger range, such as Network(subnet="10.1.0.0/16").')

    def _left(self, member: Member) -> None:
        """A member ends. Its namespace goes in a moment; until then nothing there may answer for an address of ours."""
        with self._lock:
            if member not in self._members:
                return
            try:
                if self._netlink is not None:
                    self._netlink.send([netdev.set_link(member.number, False)])
            except OSError:
                pass  # it is gone already
            self._forget(member)
            self._faults.apply()
            self._tell_names()

    def _forget(self, member: Member) -> None:
        self._members.remove(member)
        self._faults.member_left(member)
        if member.router:
            for other in self._members:
                try:
                    other.netlink.send(_routes(other, member, remove=True))
                except OSError:
                    continue  # the sandbox is on its way out, or the route is already
        if self._closed:
            write_names(member.running, self._mark, [])
        member.netlink.close()

    @property
    def _mark(self) -> str:
        return f"network {self._number}"

    def _tell_names(self) -> None:
        lines = [f"{address}\t{' '.join(member.names)}" for member in self._members
                 for address in (member.address, member.address6) if address]
        for member in self._members:
            write_names(member.running, self._mark, lines)

    # What happens on the way.

    def stats(self) -> dict[str, Traffic]:
        """What each member has sent and received since it joined, by name."""
        with self._lock:
            segment = self._segment()
            try:
                counted, dropped = netdev.counters(segment), self._faults.dropped(segment)
            except OSError as error:
                raise self._error("the packets cannot be counted", error) from error
            return {member.name: Traffic(one["rx_packets"], one["rx_bytes"], one["tx_packets"], one["tx_bytes"],
                                         dropped.get(member.number, 0))
                    for member in self._members if (one := counted.get(member.number)) is not None}


def _range(option: str, text: object, kind: type[Any], longest: int) -> Any:
    try:
        found = kind(text)
        if found.prefixlen <= longest:
            return found
        why = "it has room for nobody"
    except (ValueError, TypeError) as error:
        why = str(error)
    example = "10.1.0.0/16" if kind is ipaddress.IPv4Network else "fd01::/64"
    raise SandboxUsageError(f"{option}={text!r} cannot be used", option=option, value=text, why=why,
                            allowed=f"a range such as {example}")


def _usable(text: object, inside: Any) -> bool:
    try:
        address = ipaddress.ip_address(str(text))
    except ValueError:
        return False
    return address in inside and address != inside[0] and (inside.version == 6 or address != inside[-1])


def _routes(member: Member, router: Member, remove: bool = False) -> list[netdev.Message]:
    return [netdev.default_route(member.index, gateway, remove) for gateway in (router.address, router.address6)
            if gateway]
