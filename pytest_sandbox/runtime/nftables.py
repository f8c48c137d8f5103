"""The few nftables messages that an outbound sandbox takes, in its own network namespace. Used by ``outbound``.

Encoded here, byte by byte (linux/netfilter/nf_tables.h): pyroute2 has no encoder for half of them, and would cost its
import to whoever wants no topology. There is one table, ``pytest-sandbox``, which goes with the namespace.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator

NETLINK_NETFILTER = (16, socket.SOCK_RAW, 12)  # AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER
_TABLE = b"pytest-sandbox\0"
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWELEMENT, _GETELEMENT = 0, 3, 6, 9, 12, 13
_ACK, _CREATE, _APPEND, _DUMP = 4, 0x400, 0x800, 0x300
_ACCEPT, _DROP = 1, 0
_META_OUTPUT_INTERFACE, _META_PROTOCOL = 5, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _NOT_EQUAL = 0, 1
_FIRST = 8  # NFT_REG32_00; the following hold four bytes each
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


def _to(network: str) -> tuple[bytes, ...]:
    """Matches what goes to an IPv4 network."""
    inside = ipaddress.IPv4Network(network)
    return (_load(_NETWORK_HEADER, 16, 4, _FIRST), _masked(inside.netmask.packed, _FIRST),
            _compare(_EQUAL, inside.network_address.packed, _FIRST))


def _tcp(register: int = _FIRST) -> tuple[bytes, ...]:
    return _meta(_META_PROTOCOL, register), _compare(_EQUAL, bytes([socket.IPPROTO_TCP]), register)


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


def _key(address: str, port: int) -> bytes:
    return ipaddress.IPv4Address(address).packed + struct.pack("!H", port) + b"\0\0"


def outbound_rules(own: Iterable[str], refused: Iterable[str], allowed: Iterable[tuple[str, int]] | None,
                   port: int) -> list[tuple[int, bytes]]:
    """The whole table: TCP to what may be reached is redirected to ``port``, all else is refused and remembered.

    :param own: networks that stay inside; ``refused``: networks that nobody reaches.
    :param allowed: addresses and ports; None for all.
    """
    items = [(_NEWTABLE, _attribute(1, _TABLE)), _set(b"tried", 1, 0x20, 12, MOST_TRIED)]  # 0x20: from rules
    if allowed is not None:
        elements = sorted(set(allowed))
        items.append(_set(b"allowed", 2, 0, 8, len(elements) + 1))
        if elements:
            items.append((_NEWELEMENT, b"".join((
                _attribute(1, _TABLE), _name(2, b"allowed"),
                _nest(3, *(_nest(1, _nest(1, _attribute(1, _key(*one)))) for one in elements))))))
    destination = (_load(_NETWORK_HEADER, 16, 4, _FIRST), _load(_TRANSPORT_HEADER, 2, 2, _FIRST + 1))
    remember = (_load(_NETWORK_HEADER, 16, 4, _FIRST), _meta(_META_PROTOCOL, _FIRST + 1),
                _load(_TRANSPORT_HEADER, 2, 2, _FIRST + 2), _remember(b"tried", _FIRST))
    # Before the redirection (-100), behind which every packet goes to the loopback.
    items.append(_chain(b"allow", b"filter", -150))
    items.append(_rule(b"allow", _meta(_META_OUTPUT_INTERFACE, _FIRST),
                       _compare(_NOT_EQUAL, struct.pack("=I", 1), _FIRST), _verdict(_ACCEPT)))
    for network in own:
        items.append(_rule(b"allow", *_to(network), _verdict(_ACCEPT)))
    if allowed is not None:
        items.append(_rule(b"allow", *_tcp(), *destination, _in_set(b"allowed", _FIRST), _verdict(_ACCEPT)))
    else:
        for network in refused:
            items.append(_rule(b"allow", *_to(network), *_tcp(), *remember, _reset()))
        items.append(_rule(b"allow", *_tcp(), _verdict(_ACCEPT)))
    items.append(_rule(b"allow", *_tcp(), *remember, _reset()))
    items.append(_rule(b"allow", *remember, _verdict(_DROP)))
    items.append(_chain(b"redirect", b"nat", -100))
    items.append(_rule(b"redirect", _meta(_META_OUTPUT_INTERFACE, _FIRST),
                       _compare(_NOT_EQUAL, struct.pack("=I", 1), _FIRST), _verdict(_ACCEPT)))
    for network in own:
        items.append(_rule(b"redirect", *_to(network), _verdict(_ACCEPT)))
    items.append(_rule(b"redirect", *_tcp(), *_redirect(port)))
    return items


def commit(sock: socket.socket, items: list[tuple[int, bytes]]) -> None:
    """Carries out all of it or nothing.

    :raises OSError: as the kernel says.
    """
    begin = struct.pack("=BBH", 0, 0, socket.htons(10))
    packet = struct.pack("=IHHII", 20, 16, 1, 0, 0) + begin
    for number, (kind, body) in enumerate(items, 1):
        flags = 1 | _ACK | _CREATE | (_APPEND if kind == _NEWRULE else 0)
        packet += _message(kind, flags, number, body)
    sock.send(packet + struct.pack("=IHHII", 20, 17, 1, 0, 0) + begin)
    left = len(items)
    while left:
        for kind, number, body in _split(sock.recv(1 << 16)):
            if kind == 2:
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    raise OSError(code, f"{os.strerror(code)} (nftables message {number})")
                left -= 1


def tried(sock: socket.socket) -> list[tuple[str, int, int]]:
    """What was refused: address, protocol and port of each, in no order."""
    sock.send(_message(_GETELEMENT, 1 | _DUMP, 9999, _attribute(1, _TABLE) + _name(2, b"tried")))
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
                if len(key) == 12:
                    found.append((str(ipaddress.IPv4Address(key[:4])), key[4], struct.unpack_from("!H", key, 8)[0]))


def _message(kind: int, flags: int, number: int, body: bytes) -> bytes:
    data = struct.pack("=BBH", socket.AF_INET, 0, 0) + body
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
