"""Packets as the relay reads and writes them: whatever root inside sends, and what it may reach."""

from __future__ import annotations

import select
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_sandbox.runtime import datagrams
from pytest_sandbox.runtime.reach import Reach


def sum_of(data: bytes) -> int:
    """As RFC 1071 has it."""
    total = 0
    for one in struct.unpack(f"!{len(data) // 2}H", data[:len(data) & ~1]):
        total += one
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(max_size=100))
def test_the_checksum(data: bytes) -> None:
    assert datagrams._checksum(data) == sum_of(data)


@given(st.sampled_from([4, 16]), st.binary(min_size=36, max_size=36), st.binary(max_size=300))
def test_an_answer_reads_as_what_it_answers(size: int, key: bytes, data: bytes) -> None:
    key = key[:2 * size] + key[-4:]
    there = key[size:2 * size] + key[:size] + key[-2:] + key[-4:-2]
    frame = datagrams._answer(key, data)
    found = datagrams._parse(frame)
    assert found is not None
    assert found[:2] == (there, data)
    packet = frame[14:]
    if size == 4:
        assert sum_of(packet[:20]) == 0
        pseudo, body = packet[12:20] + struct.pack("!HH", 17, len(data) + 8), packet[20:]
    else:
        pseudo, body = packet[8:40] + struct.pack("!II", len(data) + 8, 17), packet[40:]
    assert sum_of(pseudo + body) == 0


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x00\x4f"]))
def test_nonsense_reaches_nobody(data: bytes, kind: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        relay = datagrams.Datagrams(theirs, Reach([]), select.poll())
        relay.outgoing(bytes(12) + kind + data)
        assert relay.by_key == {}


@pytest.mark.parametrize(("address", "told"), [
    ("198.51.100.7", True), ("127.0.0.1", False), ("127.9.9.9", False), ("0.0.0.0", False), ("0.1.2.3", False),
    ("169.254.169.254", False), ("224.0.0.1", False), ("255.255.255.255", False), ("10.0.2.3", False),
    ("10.0.2.4", True), ("2001:db8::1", True), ("::1", False), ("::", False), ("::127.0.0.1", False),
    ("::ffff:127.0.0.1", False),
    ("::ffff:198.51.100.7", False), ("fe80::1", False), ("ff02::1", False), ("fd00:ec2::254", False), ("fd00::1", True),
])
def test_what_is_never_reached_by_itself(address: str, told: bool) -> None:
    assert Reach(None).allows(address, 6, 80) == told


def test_what_is_allowed_and_nothing_else() -> None:
    named = ("198.51.100.7", "169.254.169.254", "127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0")
    reach = Reach([(one, 6, 80) for one in named])
    assert reach.allows("198.51.100.7", 6, 80)
    assert reach.allows("169.254.169.254", 6, 80)  # named by somebody
    assert not reach.allows("198.51.100.7", 17, 80)
    assert not reach.allows("198.51.100.7", 6, 81)
    assert not reach.allows("198.51.100.8", 6, 80)
    for here in ("127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0"):
        assert not reach.allows(here, 6, 80)
