"""Faults on purpose: what is wrong with a network now, and how that becomes filters and queues in the kernel.

Used by ``network``. A fault is a rule over sandboxes, not over devices: it holds for those that join later, and for one
that is reset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import NetworkError, SandboxUnavailable, SandboxUsageError
from .runtime import netdev
from .spec import AnyNetwork

if TYPE_CHECKING:
    from .network import Member, Network

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_NETEM = ("delay", "jitter", "duplicate", "reorder")


@dataclass(frozen=True)
class Shape:
    """What happens to what a member sends: seconds, shares of all packets, bits a second (of what it receives, too)."""

    delay: float = 0.0
    jitter: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    rate: int = 0

    @property
    def needs_netem(self) -> bool:
        return any(getattr(self, name) for name in _NETEM)

    def netem(self) -> dict[str, Any]:
        """The same as pyroute2 names it: microseconds, per cent, bytes a second."""
        found: dict[str, Any] = {"delay": round(self.delay * 1e6), "jitter": round(self.jitter * 1e6), "limit": 10000}
        if self.duplicate:
            found["duplicate"] = self.duplicate * 100
        if self.reorder:
            found["prob_reorder"] = self.reorder * 100
        if self.rate:
            found["rate"] = f"{self.rate}bit"
        return found


class Fault:
    """One thing that is wrong with a network, from the call that made it to :meth:`heal` or the end of its ``with``."""

    def __init__(self, faults: Faults, words: str, *, loss: Callable[[Any, Any], float] | None = None,
                 down: Any = None, shaped: Any = None, shape: Shape | None = None) -> None:
        self._faults, self.words = faults, words
        self.loss, self.down, self.shaped, self.shape = loss, down, shaped, shape

    def __repr__(self) -> str:
        return f"<Fault {self.words}{'' if self in self._faults.active else ' (healed)'}>"

    def __enter__(self) -> Fault:
        return self

    def __exit__(self, *_: object) -> None:
        self.heal()

    def heal(self) -> None:
        """Ends this fault; the others stay. Does nothing when it has ended."""
        self._faults.end([self])


class Faults:
    """All that is wrong with one network, and what of it the kernel knows. Guarded by the network's lock."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.active: list[Fault] = []
        self._filtered: dict[int, dict[str, float]] = {}  # by port: what its filter drops, by source
        self._watched: set[int] = set()  # ports that have had a filter
        self._downed: set[int] = set()
        self._shaped: dict[int, Shape] = {}

    def begin(self, fault: Fault) -> Fault:
        """Lets it take effect.

        :raises SandboxUnavailable: when the kernel lacks what it takes. Nothing has changed then.
        """
        with self.network._lock:
            self.network._segment()
            self.active.append(fault)
            try:
                self.apply()
            except BaseException:
                self.active.remove(fault)
                with suppress(NetworkError, SandboxUnavailable):
                    self.apply()
                raise
            return fault

    def end(self, faults: list[Fault]) -> None:
        """Undoes them."""
        with self.network._lock:
            self.active = [one for one in self.active if one not in faults]
            if not self.network._closed:
                self.apply()

    def apply(self) -> None:
        """Brings the kernel to what the active faults say, for the members that there are now."""
        members, segment = self.network._members, self.network._segment()
        batch: list[netdev.Message] = []
        filtered, downed = dict(self._filtered), set(self._downed)
        for member in members:
            losses = self._losses(member, members)
            if losses != self._filtered.get(member.number, {}):
                if not losses:
                    batch.append(netdev.unfilter_port(member.number))
                else:
                    if member.number not in self._watched:
                        batch.append(netdev.watch_port(member.number))
                    batch.append(netdev.filter_port(member.number, losses))
                filtered[member.number] = losses
            down = any(fault.down is member.sandbox for fault in self.active)
            if down != (member.number in self._downed):
                batch.append(netdev.set_link(member.number, not down))
                downed.symmetric_difference_update({member.number})
        try:
            if batch:
                segment.send(batch)
        except OSError as error:
            raise self._refused(error, "faults", "packet filters (cls_bpf)", "sch_ingress cls_bpf") from error
        self._watched.update(number for number in filtered if filtered[number])
        self._filtered, self._downed = filtered, downed
        for member in members:
            shapes = [fault.shape for fault in self.active if fault.shape and fault.shaped is member.sandbox]
            self._shape(segment, member, shapes[-1] if shapes else Shape())

    def _losses(self, target: Member, members: list[Member]) -> dict[str, float]:
        found = {}
        for source in members:
            passed = 1.0
            for fault in self.active:
                if fault.loss is not None and source is not target:
                    passed *= 1.0 - fault.loss(source.sandbox, target.sandbox)
            if passed < 1.0:
                found[source.mac] = 1.0 - passed
        return found

    def _shape(self, segment: netdev.Netlink, member: Member, shape: Shape) -> None:
        before = self._shaped.get(member.number, Shape())
        if shape == before:
            return
        try:
            for netlink, index, netem in ((member.netlink, member.index, shape.needs_netem),
                                          (segment, member.number, False)):
                words = f"shape {member.name}"
                if netem:
                    netlink.send([netdev.shape_netem(index, shape.netem(), words)])
                elif shape.rate:
                    netlink.send([netdev.shape_rate(index, shape.rate, words)])
                elif before.rate or before.needs_netem:
                    netlink.send([netdev.unshape(index)], ignore=(2, 22))  # there is none on this side
        except OSError as error:
            kind = "netem" if shape.needs_netem else "tbf"
            raise self._refused(error, kind if kind == "netem" else "rate", kind, f"sch_{kind}") from error
        self._shaped[member.number] = shape

    def _refused(self, error: OSError, feature: str, kind: str, modules: str) -> Exception:
        if error.errno in (2, 95):  # ENOENT, EOPNOTSUPP: the kernel does not know the kind
            return SandboxUnavailable(
                f"this kernel cannot do that to the network {self.network.subnet}", feature=feature, errno=error.errno,
                why=f"it has no {kind} ({error.strerror})",
                remedy=f"Load it as root (modprobe -a {modules}), or use a kernel that has it."
                       + (" Loss and rate work without it." if feature == "netem" else ""))
        return self.network._error(f"the network {self.network.subnet} cannot be changed", error)

    def member_left(self, member: Member) -> None:
        """Forgets what the kernel knew of a port that is gone."""
        self._filtered.pop(member.number, None)
        self._shaped.pop(member.number, None)
        self._downed.discard(member.number)
        self._watched.discard(member.number)

    def dropped(self, segment: netdev.Netlink) -> dict[int, int]:
        """How many packets on their way to each port were dropped on purpose."""
        return netdev.drops(segment) if self._watched else {}


class Faulty(AnyNetwork):
    """The part of ``Network`` that breaks it. Each method takes effect before it returns, and returns a :class:`Fault`.

    A fault ends by its own ``heal()``, at the end of a ``with`` block, by :meth:`heal`, and with the network.
    """

    _faults: Faults

    def member(self, who: Any) -> Member:
        """The member that ``who``, a sandbox or a name, is."""
        raise NotImplementedError

    def partition(self, *groups: Iterable[Any]) -> Fault:
        """Cuts every way between members of different groups, at once and both ways. Those in no group reach all.

        :param groups: of sandboxes or names. A single group is cut from all others, also from those that join later.
        """
        sides: dict[Any, int] = {}
        for number, group in enumerate(groups):
            for who in (group if isinstance(group, (list, tuple, set, frozenset)) else [group]):
                if sides.setdefault(self.member(who).sandbox, number) != number:
                    raise SandboxUsageError(f"{who!r} is in two groups of a partition", option="groups", value=who,
                                            allowed="each member in one group")
        if not sides:
            raise SandboxUsageError("a partition without a member", option="groups", value=groups,
                                    allowed="lists of sandboxes or names")
        other = -1 if len(groups) == 1 else None

        def loss(source: Any, target: Any) -> float:
            one, two = sides.get(source, other), sides.get(target, other)
            return float(one is not None and two is not None and one != two)

        return self._faults.begin(Fault(self._faults, "partition", loss=loss))

    def isolate(self, member: Any) -> Fault:
        """Cuts a member from all others, also from those that join later."""
        alone = self.member(member).sandbox
        return self._faults.begin(Fault(self._faults, "isolation",
                                        loss=lambda source, target: float(alone is source or alone is target)))

    def drop(self, source: Any, target: Any = None, loss: float | str = 1.0) -> Fault:
        """Loses what ``source`` sends to ``target``, or to everybody; what comes back is not touched.

        :param loss: the share that is lost, at random.
        """
        part = share("loss", loss)
        sender = self.member(source).sandbox
        receiver = None if target is None else self.member(target).sandbox
        return self._faults.begin(Fault(
            self._faults, "loss",
            loss=lambda one, two: part if one is sender and receiver in (None, two) else 0.0))

    def down(self, member: Any) -> Fault:
        """Pulls a member's cable: its interface has no carrier any more."""
        return self._faults.begin(Fault(self._faults, "link down", down=self.member(member).sandbox))

    def up(self, member: Any) -> None:
        """Puts the cable back that :meth:`down` has pulled."""
        sandbox = self.member(member).sandbox
        self._faults.end([one for one in self._faults.active if one.down is sandbox])

    def shape(self, member: Any, *, delay: float | str = 0, jitter: float | str = 0, loss: float | str = 0,
              duplicate: float | str = 0, reorder: float | str = 0, rate: int | str | None = None) -> Fault:
        """Makes a member's line worse. A round trip has the delay once, for it is in what the member sends.

        :param delay: seconds, or text such as ``"50ms"``; ``jitter``: by how much it varies.
        :param loss: the share of packets lost; ``duplicate``: that come twice; ``reorder``: that overtake others.
        :param rate: the most bits a second, each way; or text such as ``"1mbit"``.
        :raises SandboxUnavailable: when the kernel has no netem, which all but ``loss`` and ``rate`` take.
        """
        shape = Shape(seconds("delay", delay), seconds("jitter", jitter), share("duplicate", duplicate),
                      share("reorder", reorder), 0 if rate is None else bits("rate", rate))
        if (shape.jitter or shape.reorder) and not shape.delay:
            raise SandboxUsageError("jitter and reorder need a delay", option="delay", value=delay,
                                    allowed='a duration such as "50ms"')
        part = share("loss", loss)
        sender = self.member(member).sandbox
        return self._faults.begin(Fault(
            self._faults, "shape", shaped=sender, shape=shape if shape != Shape() else None,
            loss=(lambda one, two: part if one is sender else 0.0) if part else None))

    def heal(self) -> None:
        """Ends every fault of this network."""
        self._faults.end(list(self._faults.active))


def seconds(option: str, value: object) -> float:
    """A duration as people write it: ``"50ms"``, or seconds as a number.

    :raises SandboxUsageError: when it is none, or negative.
    """
    return _number(option, value, _UNITS, 'seconds as a number, or text such as "50ms", "1.5s" or "200us"')


def bits(option: str, value: object) -> int:
    """A rate: ``"1mbit"``, or bits a second as a number."""
    found = round(_number(option, value, _RATES, 'bits a second as a number, or text such as "512kbit" or "1mbit"'))
    if not 8000 <= found < 1 << 35:
        raise SandboxUsageError(f"{option}={value!r} cannot be used", option=option, value=value,
                                allowed='"8kbit" to "34gbit"')
    return found


def share(option: str, value: object) -> float:
    """A share of all packets, from 0 to 1, or ``"1%"``."""
    found = _number(option, value, {"%": 0.01}, 'a share from 0 to 1, or text such as "1%"')
    if found > 1:
        raise SandboxUsageError(f"{option}={value!r} cannot be used", option=option, value=value,
                                allowed='a share from 0 to 1, or text such as "1%"')
    return found


def _number(option: str, value: object, units: dict[str, Any], allowed: str) -> float:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z%]+)", value.strip().lower())) \
            and match[2] in units:
        return float(match[1]) * float(units[match[2]])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e12:
        return float(value)
    raise SandboxUsageError(f"{option}={value!r} cannot be used", option=option, value=value, allowed=allowed)
