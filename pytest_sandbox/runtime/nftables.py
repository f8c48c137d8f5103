"""The few nftables messages that an outbound sandbox takes, in its own network namespace. Used by ``outbound``.

Encoded here, byte by byte (linux/netfilter/nf_tables.h): pyroute2 has no encoder for half of them, and would cost its
import to whoever wants no topology. There is one table a family, ``pytest-sandbox``; they go with the namespace.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NETLINK_NETFILTER = (16, socket.SOCK_RAW, 12)  # AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER
_TABLE = b"pytest-sandbox\0"
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWELEMENT, _GETELEMENT = 0, 3, 6, 9, 12, 13
_ACK, _CREATE, _APPEND, _DUMP = 4, 0x400, 0x800, 0x300
_ACCEPT, _DROP = 1, 0
_META_OUTPUT_INTERFACE, _META_PROTOCOL = 5, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _NOT_EQUAL = 0, 1
_FIRST = 8  # NFT_REG32_00; the following hold four bytes each


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6: where in a packet's header the destination is, and how the kernel speaks of groups."""

    number: socket.AddressFamily
    offset: int
    size: int
    groups: str
    grouping: int


IPV4 = Family(socket.AF_INET, 16, 4, "224.0.0.0/4", socket.IPPROTO_IGMP)
IPV6 = Family(socket.AF_INET6, 24, 16, "ff00::/8", socket.IPPROTO_ICMPV6)

#: How many different addresses are remembered.
MOST_TRIED = 512


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _nest(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(parts))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _name(kind: int, text: bytes) -> bytes:
    return _attribute(kind, text + b"\0")


def _expression(name: bytes, *parts: bytes) -> bytes:
    return _nest(1, _name(1, name), _nest(2, *parts))


def _meta(key: int, register: int) -> bytes:
    return _expression(b"meta", _number(1, register), _number(2, key))


def _load(header: int, offset: int, length: int, register: int) -> bytes:
    return _expression(b"payload", _number(1, register), _number(2, header), _number(3, offset), _number(4, length))


def _compare(how: int, data: bytes, register: int) -> bytes:
    return _expression(b"cmp", _number(1, register), _number(2, how), _nest(3, _attribute(1, data)))


def _masked(mask: bytes, register: int) -> bytes:
    return _expression(b"bitwise", _number(1, register), _number(2, register), _number(3, len(mask)),
                       _nest(4, _attribute(1, mask)), _nest(5, _attribute(1, bytes(len(mask)))))


def _verdict(code: int) -> bytes:
    return _expression(b"immediate", _number(1, 0), _nest(2, _nest(2, _number(1, code))))


def _in_set(name: bytes, register: int) -> bytes:
    return _expression(b"lookup", _name(1, name), _number(2, register))


def _remember(name: bytes, register: int) -> bytes:
    return _expression(b"dynset", _name(1, name), _number(2, 9), _number(3, 0), _number(4, register))


def _reset() -> bytes:
    return _expression(b"reject", _number(1, 1), _attribute(2, b"\0"))  # NFT_REJECT_TCP_RST


def _redirect(port: int) -> tuple[bytes, bytes]:
    load = _expression(b"immediate", _number(1, _FIRST), _nest(2, _attribute(1, struct.pack("!H", port))))
    return load, _expression(b"redir", _number(1, _FIRST))


def _to(family: Family, network: str) -> tuple[bytes, ...]:
    """Matches what goes to a network."""
    first, _, length = network.partition("/")
    bits = family.size * 8
    mask = ((1 << bits) - (1 << bits - int(length))).to_bytes(family.size, "big")
    return (_load(_NETWORK_HEADER, family.offset, family.size, _FIRST), _masked(mask, _FIRST),
            _compare(_EQUAL, socket.inet_pton(family.number, first), _FIRST))


def _out_of(index: int, how: int) -> tuple[bytes, ...]:
    return _meta(_META_OUTPUT_INTERFACE, _FIRST), _compare(how, struct.pack("=I", index), _FIRST)


def _is(protocol: int) -> tuple[bytes, ...]:
    return _meta(_META_PROTOCOL, _FIRST), _compare(_EQUAL, bytes([protocol]), _FIRST)


def _set(name: bytes, number: int, flags: int, key: int, size: int) -> tuple[int, bytes]:
    return _NEWSET, b"".join((_attribute(1, _TABLE), _name(2, name), _number(3, flags), _number(4, 0), _number(5, key),
                              _nest(9, _number(1, size)), _number(10, number)))


def _chain(name: bytes, kind: bytes, priority: int) -> tuple[int, bytes]:
    output = 3  # NF_INET_LOCAL_OUT
    return _NEWCHAIN, b"".join((_attribute(1, _TABLE), _name(3, name),
                                _nest(4, _number(1, output), _number(2, priority)), _number(5, _ACCEPT),
                                _name(7, kind)))


def _rule(chain: bytes, *expressions: bytes) -> tuple[int, bytes]:
    return _NEWRULE, b"".join((_attribute(1, _TABLE), _name(2, chain), _nest(4, *expressions)))


def _key(address: bytes, protocol: int, port: int) -> bytes:
    return address + bytes((protocol, 0, 0, 0)) + struct.pack("!H", port) + b"\0\0"


def outbound_rules(family: Family, own: Iterable[str], refused: Iterable[str],
                   allowed: Iterable[tuple[str, int, int]] | None, interface: int,
                   port: int) -> list[tuple[int, bytes]]:
    """The whole table of a family: what may be reached is let out, TCP to ``port``; all else is refused and remembered.

    :param own: networks that stay inside; ``refused``: networks that nobody reaches.
    :param allowed: address, protocol and port of each; None for all of TCP and UDP.
    :param interface: the number of the one that leads out.
    """
    items = [(_NEWTABLE, _attribute(1, _TABLE)), _set(b"tried", 1, 0x20, family.size + 8, MOST_TRIED)]  # from rules
    if allowed is not None:
        elements = sorted({_key(socket.inet_pton(family.number, address), *rest) for address, *rest in allowed})
        items.append(_set(b"allowed", 2, 0, family.size + 8, len(elements) + 1))
        if elements:
            items.append((_NEWELEMENT, b"".join((
                _attribute(1, _TABLE), _name(2, b"allowed"),
                _nest(3, *(_nest(1, _nest(1, _attribute(1, one))) for one in elements))))))
    # Address, protocol and port, in registers of four bytes each.
    behind = _FIRST + family.size // 4
    where = (_load(_NETWORK_HEADER, family.offset, family.size, _FIRST), _meta(_META_PROTOCOL, behind),
             _load(_TRANSPORT_HEADER, 2, 2, behind + 1))
    remember = (*where, _remember(b"tried", _FIRST))
    tcp, udp = _is(socket.IPPROTO_TCP), _is(socket.IPPROTO_UDP)
    # Before the redirection (-100), behind which every packet goes to the loopback.
    items.append(_chain(b"allow", b"filter", -150))
    items.append(_rule(b"allow", *_out_of(interface, _NOT_EQUAL), _verdict(_ACCEPT)))
    for network in own:
        items.append(_rule(b"allow", *_to(family, network), _verdict(_ACCEPT)))
    # The kernel tells its neighbours of groups by itself: nobody has tried anything.
    items.append(_rule(b"allow", *_to(family, family.groups), *_is(family.grouping), _verdict(_DROP)))
    if allowed is not None:
        items.append(_rule(b"allow", *where, _in_set(b"allowed", _FIRST), _verdict(_ACCEPT)))
    else:
        for network in refused:
            items.append(_rule(b"allow", *_to(family, network), *tcp, *remember, _reset()))
            items.append(_rule(b"allow", *_to(family, network), *remember, _verdict(_DROP)))
        items += [_rule(b"allow", *tcp, _verdict(_ACCEPT)), _rule(b"allow", *udp, _verdict(_ACCEPT))]
    items.append(_rule(b"allow", *tcp, *remember, _reset()))
    items.append(_rule(b"allow", *remember, _verdict(_DROP)))
    items.append(_chain(b"redirect", b"nat", -100))
    items.append(_rule(b"redirect", *_out_of(interface, _NOT_EQUAL), _verdict(_ACCEPT)))
    for network in own:
        items.append(_rule(b"redirect", *_to(family, network), _verdict(_ACCEPT)))
    items.append(_rule(b"redirect", *tcp, *_redirect(port)))
    return items


def commit(sock: socket.socket, family: Family, items: list[tuple[int, bytes]]) -> None:
    """Carries out all of it or nothing.

    :raises OSError: as the kernel says.
    """
    begin = struct.pack("=BBH", 0, 0, socket.htons(10))
    packet = struct.pack("=IHHII", 20, 16, 1, 0, 0) + begin
    for number, (kind, body) in enumerate(items, 1):
        flags = 1 | _ACK | _CREATE | (_APPEND if kind == _NEWRULE else 0)
        packet += _message(family, kind, flags, number, body)
    sock.send(packet + struct.pack("=IHHII", 20, 17, 1, 0, 0) + begin)
    left = len(items)
    while left:
        for kind, number, body in _split(sock.recv(1 << 16)):
            if kind == 2:
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    raise OSError(code, f"{os.strerror(code)} (nftables message {number})")
                left -= 1


def tried(sock: socket.socket, family: Family) -> list[tuple[str, int, int]]:
    """What was refused: address, protocol and port of each, in no order."""
    sock.send(_message(family, _GETELEMENT, 1 | _DUMP, 9999, _attribute(1, _TABLE) + _name(2, b"tried")))
    found: list[tuple[str, int, int]] = []
    while True:
        for kind, _, body in _split(sock.recv(1 << 18)):
            if kind == 3:
                return found
            if kind == 2:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, os.strerror(code))
            for element in _inner(dict(_attributes(body[4:])).get(3, b"")):
                key = dict(_attributes(dict(_attributes(element)).get(1, b""))).get(1, b"")
                if len(key) == family.size + 8:
                    found.append((socket.inet_ntop(family.number, key[:family.size]), key[family.size],
                                  struct.unpack_from("!H", key, family.size + 4)[0]))


def _message(family: Family, kind: int, flags: int, number: int, body: bytes) -> bytes:
    data = struct.pack("=BBH", family.number, 0, 0) + body
    return struct.pack("=IHHII", len(data) + 16, 10 << 8 | kind, flags, number, 0) + data


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, _, number, _ = struct.unpack_from("=IHHII", data)
        yield kind, number, data[16:length]
        data = data[length + 3 & ~3:]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[length + 3 & ~3:]


def _inner(data: bytes) -> Iterator[bytes]:
    return (body for _, body in _attributes(data))
