"""UDP from a sandbox's network to the host's and back: what ``relay`` does with packets. Runs in a fork of the helper.

A veth leads out of the sandbox's network and ends in it; a packet socket at its far end is in our hands. What arrives
there is read as UDP, and sent on by a socket of the host's network, one for each pair of addresses and ports, so that
nobody but who was asked can answer. Everything else that arrives is dropped.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from .reach import Reach

#: The Ethernet addresses of the two ends of the veth.
NEAR_MAC, FAR_MAC = bytes.fromhex("0289ff000001"), bytes.fromhex("0289ff000002")
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_OUTGOING = 4  # PACKET_OUTGOING: what was sent at this end, by us or by whoever has a packet socket inside


class Datagrams:
    """The conversations of one sandbox. ``poll`` is who waits for :meth:`handle` to be called."""

    MOST = max(1, min(256, (os.sysconf("SC_OPEN_MAX") - 64) // 4))
    #: Seconds without a packet after which a conversation gives way to a new one.
    IDLE = 120.0

    def __init__(self, packets: socket.socket, reach: Reach, poll: select.poll) -> None:
        self.packets, self.reach, self.poll = packets, reach, poll
        packets.setblocking(False)
        poll.register(packets, select.POLLIN)
        self.by_key: dict[bytes, socket.socket] = {}  # the least recently used first
        self.by_fd: dict[int, tuple[bytes, socket.socket, bytes]] = {}  # with what a refusal has to quote
        self.used: dict[bytes, float] = {}

    def handle(self, fd: int) -> bool:
        """Does what there is to do for a descriptor; False when it is none of ours."""
        if fd == self.packets.fileno():
            for _ in range(64):  # and then the others
                try:
                    frame, where = self.packets.recvfrom(1 << 17)
                except OSError:
                    break
                if where[2] != _OUTGOING:
                    self.outgoing(frame)
            return True
        if fd not in self.by_fd:
            return False
        key, sock, quoted = self.by_fd[fd]
        for _ in range(64):
            try:
                data = sock.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:  # ECONNREFUSED: nobody listens there
                self.send(_unreachable(key, quoted))
                self.forget(key)
                break
            self.touch(key)
            self.send(_answer(key, data))
        return True

    def send(self, frame: bytes) -> None:
        try:
            self.packets.send(frame)
        except OSError:
            pass  # a datagram may be lost

    def outgoing(self, frame: bytes) -> None:
        """A frame from inside. Nothing in it is trusted: root in there can send what it likes."""
        found = _parse(frame)
        if found is None:
            return
        key, data, quoted = found
        sock = self.by_key.get(key)
        if sock is None:
            address, port = _destination(key)
            if not self.reach.allows(address, socket.IPPROTO_UDP, port):
                return
            if len(self.by_key) >= self.MOST:
                self.forget(next(iter(self.by_key)))
            try:
                sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            except OSError:
                return  # no descriptor is left
            try:
                sock.setblocking(False)
                sock.connect((address, port))
            except OSError:
                sock.close()
                self.send(_unreachable(key, quoted))
                return
            self.by_key[key] = sock
            self.by_fd[sock.fileno()] = key, sock, quoted
            self.poll.register(sock, select.POLLIN)
        self.touch(key)
        try:
            sock.send(data)
        except BlockingIOError:
            pass
        except OSError:  # of the datagram before
            self.send(_unreachable(key, quoted))
            self.forget(key)

    def touch(self, key: bytes) -> None:
        """Marks a conversation as the most recently used, and ends those that have fallen silent."""
        now = time.monotonic()
        self.by_key[key] = self.by_key.pop(key)
        self.used[key] = now
        while now - self.used[oldest := next(iter(self.by_key))] > self.IDLE:
            self.forget(oldest)

    def forget(self, key: bytes) -> None:
        sock = self.by_key.pop(key)
        self.used.pop(key, None)
        del self.by_fd[sock.fileno()]
        self.poll.unregister(sock)
        sock.close()


# A conversation's key: source address, destination address, source port, destination port, as they are in the packet.

def _parse(frame: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Key and payload of a UDP packet, and what an error message about it quotes; None for all else."""
    kind, packet = frame[12:14], frame[14:]
    if kind == _IPV4 and len(packet) >= 28 and packet[0] >> 4 == 4:
        begin, addresses = (packet[0] & 15) * 4, packet[12:20]
        if packet[9] != socket.IPPROTO_UDP or begin < 20 or struct.unpack_from("!H", packet, 6)[0] & 0x3FFF:
            return None  # a part of a packet: the kernel makes none, with this line's size
    elif kind == _IPV6 and len(packet) >= 48 and packet[0] >> 4 == 6:
        begin, addresses = 40, packet[8:40]
        if packet[6] != socket.IPPROTO_UDP:
            return None
    else:
        return None
    if len(packet) < begin + 8:
        return None
    length = struct.unpack_from("!H", packet, begin + 4)[0]
    if length < 8 or len(packet) < begin + length:
        return None
    return addresses + packet[begin:begin + 4], packet[begin + 8:begin + length], packet[:begin + 8]


def _destination(key: bytes) -> tuple[str, int]:
    half = (len(key) - 4) // 2
    family = socket.AF_INET if half == 4 else socket.AF_INET6
    return socket.inet_ntop(family, key[half:2 * half]), struct.unpack_from("!H", key, len(key) - 2)[0]


def _answer(key: bytes, data: bytes) -> bytes:
    """A frame with a datagram of who was spoken to."""
    half = (len(key) - 4) // 2
    source, target = key[half:2 * half], key[:half]
    udp = key[-2:] + key[-4:-2] + struct.pack("!HH", len(data) + 8, 0) + data
    return _packet(source, target, socket.IPPROTO_UDP, udp, 6)


def _unreachable(key: bytes, quoted: bytes) -> bytes:
    """A frame that says that nobody listens there."""
    half = (len(key) - 4) // 2
    source, target = key[half:2 * half], key[:half]
    if half == 4:
        return _packet(source, target, socket.IPPROTO_ICMP, b"\3\3\0\0\0\0\0\0" + quoted, 2)
    return _packet(source, target, socket.IPPROTO_ICMPV6, b"\1\4\0\0\0\0\0\0" + quoted, 2)


def _packet(source: bytes, target: bytes, protocol: int, body: bytes, check: int) -> bytes:
    """A frame to the sandbox. ``check``: where in ``body`` its checksum belongs."""
    pseudo = b"" if protocol == socket.IPPROTO_ICMP else source + target + struct.pack("!II", len(body), protocol)
    total = _checksum(pseudo + body) or 0xFFFF
    body = body[:check] + struct.pack("!H", total) + body[check + 2:]
    if len(source) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, len(body) + 20, 0, 0, 64, protocol, 0) + source + target
        head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
        return NEAR_MAC + FAR_MAC + _IPV4 + head + body
    head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64) + source + target
    return NEAR_MAC + FAR_MAC + _IPV6 + head + body


def _checksum(data: bytes) -> int:
    """The Internet's (RFC 1071): the complement of a sum of 16-bit numbers, which is the whole as one, modulo 65535."""
    if len(data) % 2:
        data += b"\0"
    rest = int.from_bytes(data, "big") % 0xFFFF
    return ~rest & 0xFFFF if rest or not any(data) else 0
