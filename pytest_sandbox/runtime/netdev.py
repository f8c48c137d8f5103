"""Network devices over rtnetlink: the messages, as pyroute2 encodes them, and :class:`Netlink`, which sends a batch.

Used by ``network``. pyroute2 is imported when the first message is made and not before: it costs a quarter of a second.
Only its encoders and decoders are used. Its own sockets live on an event loop and take 4 ms to open and 11 ms a
command; here a batch is one system call, and one more for the answers.
"""

from __future__ import annotations

import os
import socket
import struct
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .entering import when_inside

NETLINK_ROUTE = (16, socket.SOCK_RAW, 0)  # AF_NETLINK, SOCK_RAW, NETLINK_ROUTE: what a helper's request calls it
_SOL_NETLINK, _NETLINK_CAP_ACK, _NETLINK_EXT_ACK = 270, 10, 11

# linux/rtnetlink.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_NEWADDR, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 17, 18, 20, 24, 25
_RTM_NEWQDISC, _RTM_DELQDISC, _RTM_GETQDISC, _RTM_NEWTFILTER, _RTM_DELTFILTER = 36, 37, 38, 44, 45
# linux/netlink.h
_REQUEST, _ACK, _REPLACE, _EXCL, _CREATE, _DUMP = 1, 4, 0x100, 0x200, 0x400, 0x300
_IFF_UP = 1
# linux/pkt_sched.h
_TC_H_ROOT, _TC_H_CLSACT, _CLSACT_EGRESS, _CLSACT_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFFFFF3, 0xFFFF0000
_TBF, _NETEM = 0x10000, 0x20000  # handles; one cannot be of another kind than it was
#: The bridge's number in its segment. High, since some kernels put tunnels of their own into every namespace.
BRIDGE = 1000


@dataclass(frozen=True, slots=True)
class Message:
    """One request: what it is for, in words, and its bytes but for the sequence number."""

    words: str
    body: bytes


class NetlinkError(OSError):
    """The kernel refused a message: ``words`` is what it was for, ``detail`` what the kernel says beyond the errno."""

    def __init__(self, number: int, words: str, detail: str) -> None:
        super().__init__(number, f"{words}: {detail or os.strerror(number)}")
        self.words, self.detail = words, detail


_sockets: weakref.WeakSet[Netlink] = weakref.WeakSet()


class Netlink:
    """A rtnetlink socket of some namespace, around a descriptor that the helper has made there; closed by its owner.

    ``namespace`` is a descriptor of that namespace itself, which this holds too.
    """

    def __init__(self, namespace: int, fd: int) -> None:
        self.namespace = namespace
        self.sock = socket.socket(fileno=fd)
        for option in (_NETLINK_CAP_ACK, _NETLINK_EXT_ACK):
            self.sock.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 0
        _sockets.add(self)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the socket and of the namespace."""
        self.sock.close()
        if self.namespace >= 0:
            os.close(self.namespace)
            self.namespace = -1

    def send(self, messages: Iterable[Message], ignore: tuple[int, ...] = ()) -> None:
        """Carries out a batch, in order, in one system call, and waits for all answers.

        The kernel goes on behind a message that it refuses.

        :param ignore: errnos that are no failure.
        :raises NetlinkError: for the first message that was refused.
        """
        batch = list(messages)
        for begin in range(0, len(batch), 64):  # what fits into the socket's buffers, with the answers
            self._send(batch[begin:begin + 64], ignore)

    def _send(self, batch: list[Message], ignore: tuple[int, ...]) -> None:
        first = self._sequence + 1
        packet = b""
        for message in batch:
            self._sequence += 1
            packet += message.body[:8] + struct.pack("=I", self._sequence) + message.body[12:]
        # To an address: the kernel then asks for the sender's rights only, and not for those of who opened the socket
        # (netlink_ns_capable). A helper has rights over its own sandboxes, this process over those of all its helpers.
        self.sock.sendto(packet, (0, 0))
        refused: NetlinkError | None = None
        left = len(batch)
        while left:
            for kind, sequence, body in _split(self.sock.recv(1 << 16)):
                if kind != 2 or sequence < first:  # NLMSG_ERROR, which is also what an acknowledgement is
                    continue
                left -= 1
                number = -struct.unpack_from("=i", body)[0]
                if number and number not in ignore and refused is None:
                    refused = NetlinkError(number, batch[sequence - first].words, _detail(body))
        if refused is not None:
            raise refused

    def dump(self, message: Message) -> list[bytes]:
        """The kernel's answers to a request for a list."""
        self._sequence += 1
        self.sock.sendto(message.body[:8] + struct.pack("=I", self._sequence) + message.body[12:], (0, 0))
        found: list[bytes] = []
        while True:
            data = self.sock.recv(1 << 18)
            for kind, sequence, body in _split(data):
                if sequence != self._sequence:
                    continue
                if kind == 3:  # NLMSG_DONE
                    return found
                if kind == 2:
                    raise NetlinkError(-struct.unpack_from("=i", body)[0], message.words, _detail(body))
                found.append(struct.pack("=IHHII", len(body) + 16, kind, 0, sequence, 0) + body)


def _split(data: bytes) -> Iterable[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        yield kind, sequence, data[16:length]
        data = data[length + 3 & ~3:]


def _detail(body: bytes) -> str:
    """The kernel's own words in an answer (NLMSGERR_ATTR_MSG), if it has any."""
    rest = body[20:]  # behind the errno and the header of what was asked
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        if kind & 0x3FFF == 1:
            return rest[4:length].rstrip(b"\0").decode(errors="replace")
        if length < 4:
            break
        rest = rest[length + 3 & ~3:]
    return ""


def _encode(message: Any, words: str, kind: int, flags: int, fields: dict[str, Any], attrs: list[Any]) -> Message:
    message["header"]["type"], message["header"]["flags"] = kind, _REQUEST | _ACK | flags
    message["header"]["sequence_number"] = 0
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message.encode()
    return Message(words, bytes(message.data))


def _link(words: str, kind: int, flags: int, fields: dict[str, Any], attrs: list[Any]) -> Message:
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    return _encode(ifinfmsg(), words, kind, flags, fields, attrs)


def add_bridge() -> Message:
    """A bridge, up, that floods multicast as a plain switch does and neither learns nor speaks a spanning tree."""
    return _link("make the bridge", _RTM_NEWLINK, _CREATE | _EXCL,
                 {"index": BRIDGE, "flags": _IFF_UP, "change": _IFF_UP},
                 [("IFLA_IFNAME", "segment"), ("IFLA_LINKINFO", {"attrs": [
                     ("IFLA_INFO_KIND", "bridge"),
                     ("IFLA_INFO_DATA", {"attrs": [("IFLA_BR_MCAST_SNOOPING", 0)]})]})])


def add_port(number: int, mac: str, name: str, index: int, namespace: int, mtu: int) -> Message:
    """A cable from the bridge to a member. The bridge's end is up; the other cannot be before both are there.

    :param number: of the port in the segment.
    :param name: of the member's end, which has ``index`` and ``mac`` in ``namespace``.
    """
    return _link(f"connect {name} to the segment", _RTM_NEWLINK, _CREATE | _EXCL,
                 {"index": number, "flags": _IFF_UP, "change": _IFF_UP},
                 [("IFLA_IFNAME", f"port{number}"), ("IFLA_MASTER", BRIDGE), ("IFLA_MTU", mtu),
                  ("IFLA_LINKINFO", {"attrs": [
                      ("IFLA_INFO_KIND", "veth"),
                      ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", {
                          "index": index,
                          "attrs": [("IFLA_IFNAME", name), ("IFLA_ADDRESS", mac), ("IFLA_MTU", mtu),
                                    ("IFLA_NET_NS_FD", namespace)]})]})]})])


def remove_link(number: int) -> Message:
    """Removes a device, and with a cable its other end."""
    return _link(f"remove port {number}", _RTM_DELLINK, 0, {"index": number}, [])


def set_link(number: int, up: bool) -> Message:
    """Takes a device up or down; the other end of a cable sees its carrier go and come."""
    return _link(f"take port {number} {'up' if up else 'down'}", _RTM_NEWLINK, 0,
                 {"index": number, "flags": _IFF_UP if up else 0, "change": _IFF_UP}, [])


def add_address(index: int, address: str, prefix: int) -> Message:
    """An address, usable at once: nobody else can have it, so IPv6 need not ask around (IFA_F_NODAD)."""
    from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
    six = ":" in address
    return _encode(ifaddrmsg(), f"give it the address {address}", _RTM_NEWADDR, _CREATE | _EXCL,
                   {"family": socket.AF_INET6 if six else socket.AF_INET, "prefixlen": prefix, "index": index,
                    "flags": 2 if six else 0},
                   [("IFA_LOCAL", address), ("IFA_ADDRESS", address)])


def default_route(index: int, gateway: str, remove: bool = False) -> Message:
    """A default route through ``gateway``, or its removal."""
    from pyroute2.netlink.rtnl.rtmsg import rtmsg
    return _encode(rtmsg(), f"{'remove' if remove else 'make'} the default route by {gateway}",
                   _RTM_DELROUTE if remove else _RTM_NEWROUTE, 0 if remove else _CREATE | _REPLACE,
                   {"family": socket.AF_INET6 if ":" in gateway else socket.AF_INET, "table": 254, "proto": 4,
                    "scope": 0, "type": 1},
                   [("RTA_GATEWAY", gateway), ("RTA_OIF", index)])


# What happens to packets on their way.

def _tc(words: str, kind: int, flags: int, fields: dict[str, Any], attrs: list[Any]) -> Message:
    from pyroute2.netlink.rtnl.tcmsg import tcmsg
    return _encode(tcmsg(), words, kind, flags, fields, attrs)


def watch_port(number: int) -> Message:
    """The place at a port where :func:`filter_port` can look at what leaves for the member (qdisc clsact)."""
    return _tc(f"filter port {number}", _RTM_NEWQDISC, _CREATE | _REPLACE,
               {"index": number, "handle": _CLSACT_HANDLE, "parent": _TC_H_CLSACT}, [("TCA_KIND", "clsact")])


def filter_port(number: int, losses: dict[str, float]) -> Message:
    """Drops what leaves for the member and comes from one of these MAC addresses, at random with a given share.

    All but the questions and answers of address resolution.

    Takes the place of what the port had before, at once. By a classic BPF program (cls_bpf), which needs neither the
    rights nor the kernel options of the newer kind.
    """
    program = _drop(losses)
    options = b"".join((
        _attribute(4, struct.pack("=H", len(program) // 8)),  # TCA_BPF_OPS_LEN
        _attribute(5, program),  # TCA_BPF_OPS
        _attribute(8, struct.pack("=I", 1)),  # TCA_BPF_FLAGS: TCA_BPF_FLAG_ACT_DIRECT
    ))
    head = _tc(f"filter port {number}", _RTM_NEWTFILTER, _CREATE,
               {"index": number, "handle": 1, "parent": _CLSACT_EGRESS, "info": 1 << 16 | socket.htons(3)},
               [("TCA_KIND", "bpf")]).body
    body = head + _attribute(2, options)  # TCA_OPTIONS of this kind, which pyroute2 does not know
    return Message(f"filter port {number}", struct.pack("=I", len(body)) + body[4:])


def unfilter_port(number: int) -> Message:
    """Lets everything through again; what has been dropped stays counted."""
    return _tc(f"unfilter port {number}", _RTM_DELTFILTER, 0,
               {"index": number, "handle": 1, "parent": _CLSACT_EGRESS, "info": 1 << 16 | socket.htons(3)},
               [("TCA_KIND", "bpf")])


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", len(data) + 4, kind) + data + bytes(-len(data) % 4)


def _drop(losses: dict[str, float]) -> bytes:
    """A classic BPF program (linux/filter.h): returns TC_ACT_SHOT (2) for a frame to drop, else TC_ACT_UNSPEC (-1)."""
    def op(code: int, true: int = 0, false: int = 0, value: int = 0) -> bytes:
        return struct.pack("=HBBI", code, true, false, value)

    ld_word, ld_half, ld_byte, jump_equal, jump_greater_equal, ret = 0x20, 0x28, 0x30, 0x15, 0x35, 0x06
    # Who has which address may always be asked and said: a neighbour that could not be found would stay unknown for up
    # to a second after the fault.
    program = op(ld_half, value=12)
    program += op(jump_equal, 6, 0, 0x0806)  # ARP
    program += op(jump_equal, 0, 6, 0x86DD)  # IPv6
    program += op(ld_byte, value=20)
    program += op(jump_equal, 0, 4, 58)  # ICMPv6
    program += op(ld_byte, value=54)
    program += op(jump_equal, 1, 0, 135)  # neighbour solicitation
    program += op(jump_equal, 0, 1, 136)  # neighbour advertisement
    program += op(ret, value=0xFFFFFFFF)
    for mac, share in losses.items():
        raw = bytes.fromhex(mac.replace(":", ""))
        whole = share >= 1
        program += op(ld_word, value=8)  # the last four bytes of the source, which begins at byte 6
        program += op(jump_equal, 0, 3 if whole else 5, int.from_bytes(raw[2:], "big"))
        program += op(ld_half, value=6)
        program += op(jump_equal, 0, 1 if whole else 3, int.from_bytes(raw[:2], "big"))
        if not whole:
            program += op(ld_word, value=0xFFFFF000 + 56)  # SKF_AD_OFF + SKF_AD_RANDOM
            program += op(jump_greater_equal, 1, 0, min(round(share * (1 << 32)), 0xFFFFFFFF))
        program += op(ret, value=2)
    return program + op(ret, value=0xFFFFFFFF)


def shape_rate(index: int, bits: int, words: str) -> Message:
    """Lets no more than ``bits`` a second out (qdisc tbf), with 50 ms of queue."""
    from pyroute2.netlink.rtnl.tcmsg import sched_tbf
    rate = max(bits // 8, 1)
    burst = max(rate // 250, 3200)
    options = sched_tbf.get_parameters({"rate": rate, "burst": burst, "limit": max(rate // 20, 2 * 1600) + burst})
    return _tc(words, _RTM_NEWQDISC, _CREATE | _REPLACE, {"index": index, "handle": _TBF, "parent": _TC_H_ROOT},
               [("TCA_KIND", "tbf"), ("TCA_OPTIONS", options)])


def shape_netem(index: int, what: dict[str, Any], words: str) -> Message:
    """Delays, loses, doubles or reorders what goes out (qdisc netem); ``what`` as pyroute2 names it."""
    from pyroute2.netlink.rtnl.tcmsg import sched_netem
    return _tc(words, _RTM_NEWQDISC, _CREATE | _REPLACE, {"index": index, "handle": _NETEM, "parent": _TC_H_ROOT},
               [("TCA_KIND", "netem"), ("TCA_OPTIONS", sched_netem.get_parameters(what))])


def unshape(index: int) -> Message:
    """Takes the shaping away."""
    return _tc("end the shaping", _RTM_DELQDISC, 0, {"index": index, "parent": _TC_H_ROOT}, [])


def counters(netlink: Netlink) -> dict[int, dict[str, int]]:
    """By the number of each device: ``packets`` and ``bytes`` received (``rx_``) and sent (``tx_``), as it counts."""
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    found = {}
    for data in netlink.dump(_link("count packets", _RTM_GETLINK, _DUMP, {}, [])):
        message = ifinfmsg(data)
        message.decode()
        found[message["index"]] = dict(message.get_attr("IFLA_STATS64"))
    return found


def drops(netlink: Netlink) -> dict[int, int]:
    """How many packets each port's filter has dropped."""
    from pyroute2.netlink.rtnl.tcmsg import tcmsg
    found = {}
    for data in netlink.dump(_tc("count packets", _RTM_GETQDISC, _DUMP, {}, [])):
        message = tcmsg(data)
        message.decode()
        if message.get_attr("TCA_KIND") == "clsact":
            found[message["index"]] = message.get_attr("TCA_STATS2").get_attr("TCA_STATS_QUEUE")["drops"]
    return found


def forget_all() -> None:
    """In a fork of the caller that goes inside: closes every namespace and socket of the topologies outside."""
    for one in list(_sockets):
        one.close()


when_inside.append(forget_all)
