"""What a sandbox's relay may reach for it: the same rules as its packet filter's, for what could come around that.

Root inside may send packets that the filter never sees (with a packet socket), so the relay takes nobody's word.
"""

from __future__ import annotations

import socket

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The sandbox's own addresses, and that of its name server. 10.0.2.x as slirp4netns and QEMU have it.
OWN, RESOLVER, OWN6 = "10.0.2.100", "10.0.2.3", "fdb5:1d40:a2c5::100"
#: What stays inside.
INSIDE = {socket.AF_INET: ("127.0.0.0/8", f"{OWN}/32", f"{RESOLVER}/32"), socket.AF_INET6: ("::1/128", f"{OWN6}/128")}
#: What nobody reaches without having named it: link-local addresses, among them a cloud's metadata with its
#: credentials, groups, and what means this host.
REFUSED = {socket.AF_INET: ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"),
           socket.AF_INET6: ("::/96", "::ffff:0:0/96", "fd00:ec2::/32", "fe80::/10", "ff00::/8")}
#: What means the host itself to whoever asks from there.
_HERE = {socket.AF_INET: ("0.0.0.0/8",), socket.AF_INET6: ("::/96", "::ffff:0:0/96")}


class Reach:
    """What may be reached.

    :param allowed: address, protocol and port of each; None for all that is not refused.
    """

    def __init__(self, allowed: Iterable[tuple[str, int, int]] | None) -> None:
        self.allowed = None if allowed is None else {(_raw(address), number, port) for address, number, port in allowed}

    def allows(self, address: str, protocol: int, port: int) -> bool:
        """Whether a connection, or a datagram, may go there."""
        raw = _raw(address)
        family = socket.AF_INET if len(raw) == 4 else socket.AF_INET6
        if _within(raw, INSIDE[family]) or _within(raw, _HERE[family]):
            return False
        if self.allowed is not None:
            return (raw, protocol, port) in self.allowed
        return not _within(raw, REFUSED[family])


def _raw(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _within(raw: bytes, networks: Iterable[str]) -> bool:
    number = int.from_bytes(raw, "big")
    for network in networks:
        first, _, length = network.partition("/")
        shift = len(raw) * 8 - int(length)
        if number >> shift == int.from_bytes(_raw(first), "big") >> shift:
            return True
    return False
