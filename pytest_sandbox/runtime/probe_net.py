"""What networks this host can have, found out by doing it, each in a network namespace that is gone at once.

Run by ``pytest-sandbox doctor``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from . import netdev, nftables, uplink
from . import syscalls as sc
from .probe import Finding, _Failed, _in_child, _try, _user_namespace

_PORT = netdev.BRIDGE + 1


def _segment() -> netdev.Netlink:
    _user_namespace(sc.CLONE_NEWNET)
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    netlink = netdev.Netlink(own, socket.socket(*netdev.NETLINK_ROUTE).detach())
    _send(netlink, netdev.add_bridge(), netdev.add_port(_PORT, "02:89:00:00:00:01", "eth0", 100, own, 1500),
          netdev.set_link(100, True), netdev.add_address(100, "10.89.0.1", 24))
    return netlink


def _send(netlink: netdev.Netlink, *messages: netdev.Message) -> None:
    for message in messages:
        try:
            netlink.send([message])
        except netdev.NetlinkError as error:
            raise _Failed(message.words, error.errno or 0) from error


def _network() -> None:
    _segment()


def _ipv6() -> None:
    _send(_segment(), netdev.add_address(100, "fd00:89::1", 64))


def _faults() -> None:
    _send(_segment(), netdev.watch_port(_PORT), netdev.filter_port(_PORT, {"02:89:00:00:00:01": 0.5}))


def _rate() -> None:
    _send(_segment(), netdev.shape_rate(_PORT, 1_000_000, "limit a rate (tbf)"))


def _netem() -> None:
    _send(_segment(), netdev.shape_netem(_PORT, {"delay": 1000}, "delay packets (netem)"))


def _outbound() -> None:
    _user_namespace(sc.CLONE_NEWNET)
    with socket.socket(*nftables.NETLINK_NETFILTER) as sock:
        _try("redirect connections (nftables)", nftables.commit, sock, nftables.IPV4,
             nftables.outbound_rules(nftables.IPV4, ("127.0.0.0/8",), (), [("192.0.2.1", 6, 80)], uplink.INDEX, 4000))
    with socket.socket(*uplink.NETLINK_ROUTE) as routes, socket.socket(*uplink.PACKET) as packets:
        _try("make a line for datagrams (veth)", uplink.open_line, routes)
        _try("read packets", uplink.listen, packets)


_PROBES: tuple[tuple[str, str, Callable[[], None], str, str], ...] = (
    ("network", "connect sandboxes", _network, "Network is refused", "bridge veth"),
    ("ipv6", "give them IPv6 addresses", _ipv6, "Network(ipv6=False) only", "ipv6"),
    ("faults", "lose packets on purpose", _faults, "partition, isolate, drop and loss are refused",
     "sch_ingress cls_bpf"),
    ("rate", "limit a line's rate", _rate, "shape(rate=...) is refused", "sch_tbf"),
    ("netem", "delay, double and reorder packets", _netem,
     "shape() with delay, jitter, duplicate or reorder is refused", "sch_netem"),
    ("nftables", "redirect connections, pass on datagrams", _outbound, 'network="outbound" is refused',
     "nf_tables nft_redir nft_reject_inet veth"),
)


def findings() -> list[Finding]:
    """Every probe's outcome. None of it is needed by the default sandbox."""
    netdev.add_bridge()  # which imports pyroute2 once, and not in each of the children
    found = []
    for name, what, body, follows, modules in _PROBES:
        failed = _in_child(body)
        if failed is None:
            found.append(Finding(name, what, True, False, "yes"))
            continue
        step, errno = failed
        found.append(Finding(name, what, False, False, f"{step}: {os.strerror(errno)}" if errno else step, follows,
                             f"Load what it takes as root (`modprobe -a {modules}`), or use a kernel that has it."))
    return found
