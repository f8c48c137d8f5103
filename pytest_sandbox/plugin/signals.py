"""Ctrl-C and Ctrl-Z while a test has a process of its own. Used by ``attempt`` and its rooms, outside."""

from __future__ import annotations

from .interrupts import Gate
from .suspending import Suspension


class Signals:
    """Of one attempt: from the moment that there is a child, an interrupt is to end its test, and waits until that can
    be told it. Does nothing until the first :meth:`hold`.
    """

    __slots__ = ("_gate", "suspension")

    def __init__(self) -> None:
        self._gate: Gate | None = None
        self.suspension: Suspension | None = None

    def hold(self) -> None:
        """From now on an interrupt waits."""
        if self._gate is None:
            self._gate = Gate(closed=True).enter()
        if self.suspension is None:
            self.suspension = Suspension()

    def let_through(self) -> None:
        """The one that waited comes, and every later one."""
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave()

    def inside(self) -> Gate | None:
        """In the child, whose gate it is now."""
        gate, self._gate = self._gate, None
        if self.suspension is not None:
            self.suspension.end(inside=True)
        return gate

    def end(self) -> None:
        """The child is gone, or nobody's here."""
        if self.suspension is not None:
            self.suspension.end()
        self.let_through()
