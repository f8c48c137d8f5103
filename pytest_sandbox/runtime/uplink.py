"""The line by which packets leave an outbound sandbox: a veth in its own network, both ends. Used by ``outbound``.

The near end has the sandbox's addresses and its default routes. At the far end nobody listens but a packet socket, that
of the relay. Encoded here (linux/rtnetlink.h): pyroute2 is not worth its import for ten messages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable

from .datagrams import FAR_MAC, NEAR_MAC
from .reach import OWN, OWN6, RESOLVER

NETLINK_ROUTE = (16, socket.SOCK_RAW, 0)  # AF_NETLINK, SOCK_RAW, NETLINK_ROUTE
PACKET = (socket.AF_PACKET, socket.SOCK_RAW, 0)
NEAR, FAR = "out0", "out0-far"
#: The number of the near end. High, as in ``netdev``: members of networks count from 100.
INDEX = 2000
_LOOPBACK = 1
#: So large that the kernel never cuts a datagram.
_MTU = 65535
_NEWLINK, _NEWADDR, _NEWROUTE = 16, 20, 24
_MAKE = 0x600  # NLM_F_CREATE, NLM_F_EXCL
_UP_NOARP = 0x81
_PACKET_IGNORE_OUTGOING = 23


def open_line(routes: socket.socket) -> None:
    """Makes it, with IPv4.

    :param routes: a rtnetlink socket of the sandbox's network.
    :raises OSError: as the kernel says.
    """
    peer = struct.pack("=BxHiII", 0, 0, INDEX + 1, 0, 0) + _link(FAR, FAR_MAC)
    veth = _attribute(1, b"veth\0") + _attribute(2, _attribute(1, peer))
    # One segment at most (IFLA_GSO_MAX_SEGS): what a program hands over as one piece comes out as its datagrams.
    _ask(routes, _NEWLINK, struct.pack("=BxHiII", 0, 0, INDEX, 0, 0) + _link(NEAR, NEAR_MAC)
         + _attribute(40, struct.pack("=I", 1)) + _attribute(18, veth))
    # No IPv6 addresses but ours (IFLA_AF_SPEC, IFLA_INET6_ADDR_GEN_MODE): else the kernel looks for routers.
    quiet = _attribute(26, _attribute(socket.AF_INET6, _attribute(8, b"\1")))
    for index in (INDEX, INDEX + 1):
        with contextlib.suppress(OSError):  # a kernel without IPv6
            _ask(routes, _NEWLINK, struct.pack("=BxHiII", 0, 0, index, 0, 0) + quiet, 0)
        _ask(routes, _NEWLINK, struct.pack("=BxHiII", 0, 0, index, _UP_NOARP, _UP_NOARP), 0)
    _address(routes, INDEX, OWN)
    _address(routes, _LOOPBACK, RESOLVER)
    _route(routes, "0.0.0.0/0", OWN)


def open_ipv6(routes: socket.socket, networks: Iterable[str]) -> None:
    """Adds IPv6, for what the host has routes to.

    :raises OSError: as the kernel says; also when it has IPv6 switched off.
    """
    _address(routes, INDEX, OWN6)
    for network in networks:
        _route(routes, network, OWN6)


def listen(packets: socket.socket) -> None:
    """Binds a packet socket of the sandbox's network to the far end."""
    with contextlib.suppress(OSError):  # before Linux 4.20; then who reads leaves out what is outgoing
        packets.setsockopt(263, _PACKET_IGNORE_OUTGOING, 1)
    packets.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    packets.bind((FAR, 3))  # ETH_P_ALL


def host_ipv6(table: str = "/proc/net/ipv6_route") -> list[str]:
    """The networks to which this host has IPv6 routes; all of it where one is a default."""
    found = []
    try:
        with open(table) as file:
            for line in file:
                network, length, *_, flags, interface = line.split()
                # RTF_UP, RTF_REJECT, RTF_LOCAL, RTF_ANYCAST
                if interface != "lo" and int(flags, 16) & 0x80300201 == 1 and not network.startswith(("fe8", "ff")):
                    address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(network))
                    found.append(f"{address}/{int(length, 16)}")
    except OSError:
        pass  # no IPv6 at all
    return ["::/0"] if "::/0" in found else sorted(set(found))


def _link(name: str, mac: bytes) -> bytes:
    return _attribute(3, name.encode() + b"\0") + _attribute(1, mac) + _attribute(4, struct.pack("=I", _MTU))


def _address(routes: socket.socket, index: int, address: str) -> None:
    family, raw = _raw(address)
    no_detection = 2 if family == socket.AF_INET6 else 0  # IFA_F_NODAD: there is nobody to have it, too
    _ask(routes, _NEWADDR, struct.pack("=BBBBI", family, len(raw) * 8, no_detection, 0, index)
         + _attribute(2, raw) + _attribute(1, raw))


def _route(routes: socket.socket, network: str, source: str) -> None:
    first, _, length = network.partition("/")
    family, raw = _raw(first)
    scope = 253 if family == socket.AF_INET else 0  # RT_SCOPE_LINK: behind no router
    _ask(routes, _NEWROUTE, struct.pack("=BBBBBBBBI", family, int(length), 0, 0, 254, 4, scope, 1, 0)
         + (_attribute(1, raw) if int(length) else b"") + _attribute(4, struct.pack("=I", INDEX))
         + _attribute(7, _raw(source)[1]))


def _raw(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _ask(sock: socket.socket, kind: int, body: bytes, flags: int = _MAKE) -> None:
    """One rtnetlink request; what is there already is none."""
    sock.send(struct.pack("=IHHII", len(body) + 16, kind, 1 | 4 | flags, 1, 0) + body)
    code = -struct.unpack_from("=i", sock.recv(1 << 16), 16)[0]
    if code and code != errno.EEXIST:
        raise OSError(code, f"{os.strerror(code)} (rtnetlink message {kind})")
