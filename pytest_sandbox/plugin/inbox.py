"""What a sandboxed item's process says, read and checked. One inbox for each attempt; ``item`` uses it outside."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxProtocolError

from . import compat, reporting, wire
from .asked import Wanted
from .interrupts import Gate

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import ForkedChild

    from .abroad import Abroad
    from .clock import Clock
    from .outputs import Outputs
    from .spares import Spares
    from .suspending import Suspension


#: Milliseconds between two looks at what a silent test has printed.
LOOK = 250


class BrokenInside(RuntimeError):
    """pytest or a plugin failed inside a sandbox. Ends the run, as the same failure outside would."""


#: What ends the whole run, and not one test.
ENDS_THE_RUN = (KeyboardInterrupt, pytest.exit.Exception, BrokenInside)


class Phase:
    """What the child sent about one phase of the item."""

    __slots__ = ("began", "changes", "extras", "report")

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.changes: list[reporting.Changes] = []
        self.extras: list[pytest.TestReport] = []
        self.report: pytest.TestReport | None = None


class Inbox:
    """Follows the child through its phases.

    ``now`` is the phase that the child is in (``over`` after the last), ``done`` whether it said goodbye, ``waits``
    whether it stays for the next test instead, ``ending`` what it ended with if that was not a report: an exception to
    raise or to report in phase ``now``, or to raise after the last. ``wanted`` is the fixture that it asks to have
    set up outside, ``debugging`` says that someone sits at a debugger's prompt in there, ``coverage`` is what was
    measured. ``may_start_over`` says whether there can be another attempt, so that the child may ask for one.
    """

    def __init__(self, item: pytest.Item, shared: Callable[[pytest.Item], dict[str, object]],
                 first: str = "setup") -> None:
        self.may_start_over = False
        self.item = item
        self.phases = {first: Phase()}
        self.now = first
        self.done = False
        self.waits = False
        self.debugging = False
        self.wanted: Wanted | None = None
        self.coverage: Any = None
        self.entered: tuple[int, int] | None = None  # when its process entered the sandbox, where that is traced
        self.ending: BaseException | None = None
        self._shared = shared
        self._decoder = wire.Decoder()

    def read(self, child: ForkedChild, descriptor: int, until: str | None = None,
             answer: Callable[[str, bool], None] | None = None, clock: Clock | None = None,
             spares: Spares | Abroad | None = None, suspension: Suspension | None = None,
             outputs: Outputs | None = None) -> None:
        """Reads messages from ``descriptor`` until the child has said goodbye or ended.

        The child's end is learnt from its pidfd: a process that it left behind may hold the pipe open for ever.

        :param until: a phase; its own report, too, ends the reading.
        :param answer: called for each report, as it comes, with its phase and whether it is the phase's own.
        :param clock: the test's timeout.
        :param spares: go on meanwhile.
        :param suspension: stops the child with pytest.
        :param outputs: the files that the child's output goes to.
        :raises SandboxProtocolError: for anything that is not a message that fits here.
        :raises TimeLimitExceeded: when the time is up.
        """
        decoder = self._decoder
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(child.fileno(), select.POLLIN)
        pending = spares.pending if spares is not None else -1
        if pending >= 0:
            poll.register(pending, select.POLLIN)
        ended = False
        stopping = suspension.fileno() if suspension is not None else -1
        if stopping >= 0:
            poll.register(stopping, select.POLLIN)
        with Gate() as gate:
            while not self.done:
                if until is not None and until in self.phases and self.phases[until].report is not None:
                    return
                if not ended:
                    patience = clock.patience(self.debugging) if clock is not None else None
                    waiting = patience
                    if outputs is not None:
                        outputs.look()
                        waiting = LOOK if patience is None else min(patience, LOOK)
                    events = poll.poll(waiting)
                    if not events and waiting != patience:
                        continue
                    if clock is not None and (not events or (patience is not None and patience <= 1)):
                        clock.tick(self.now)  # also while it sends without end
                        if not events:
                            continue
                    if suspension is not None and any(ready == stopping for ready, _ in events):
                        suspension.stop(child)
                        continue
                    if spares is not None and any(ready == pending for ready, _ in events):
                        poll.unregister(pending)
                        pending = -1
                        spares.go_on()
                        continue
                    ended = all(ready != descriptor for ready, _ in events)
                gate.close()  # an interrupt waits until what was read is taken in: half of it would be lost
                try:
                    data = os.read(descriptor, 1 << 18)
                except BlockingIOError:
                    data = b""
                for message in decoder.feed(data) if data else ():
                    self.receive(message)
                    if answer is not None and message[0] == "report":
                        answer(message[1], message[4] is True)
                gate.open()
                if not data:
                    if not ended:  # closed in there; the child goes on without a voice
                        poll.unregister(descriptor)
                        if stopping >= 0:
                            poll.unregister(stopping)
                        while not poll.poll(clock.patience(False) if clock is not None else None):
                            assert clock is not None
                            clock.tick(self.now)
                    return

    def receive(self, message: list[Any]) -> None:
        """Takes in one message.

        :raises SandboxProtocolError: when it does not fit.
        """
        try:
            self._receive(message)
        except (SandboxProtocolError, *ENDS_THE_RUN):
            raise
        except Exception as error:  # noqa: BLE001 - whatever its reader stumbles over, it is the message that is wrong
            raise SandboxProtocolError(f"the sandboxed test sent a {message[0]!r} message that cannot be read",
                                       why=f"{type(error).__name__}: {error}"[:500]) from None

    def _receive(self, message: list[Any]) -> None:
        kind = message[0]
        if self.done or (self.ending is not None and kind not in ("done", "coverage")):
            raise SandboxProtocolError("the sandboxed test sent messages after its last one")
        if kind == "done" or kind == "waits":
            if self.now != "over" and self.ending is None:
                raise SandboxProtocolError(f"the sandboxed test said that it was done during its {self.now}")
            self.done = True
            self.waits = kind == "waits"
            return
        if kind == "debugger":  # of a phase that was reported already, if it is a post-mortem
            # A clock that stands still for nobody would be a way around every timeout.
            self.debugging = message[2] is True and compat.may_debug(self.item.config)
            compat.set_current_line(self.item.config, str(message[3])[:1000])
            return
        if kind == "coverage":
            self.coverage = message[2]
            return
        if kind == "entered":
            self.entered = _time(message[2]), _time(message[3])
            return
        if kind == "shown":
            if message[1] in self.phases and (report := self.phases[message[1]].report) is not None:
                compat.mark_shown(report)
            return
        if message[1] != self.now:
            raise SandboxProtocolError(f"the sandboxed test reported its {message[1]} during its {self.now}")
        if kind == "report":
            self._report(*message[2:])
        elif kind == "fixture":
            if not self.may_start_over:
                raise SandboxProtocolError("the sandboxed test asked for a fixture that it cannot have")
            self.wanted = Wanted(str(message[2]), _number(message[3]), _number(message[4]),
                                 message[5] is True)
            self.done = True
        elif kind == "exit":
            _, _, name, text, returncode, place = message
            if name == "Exit":
                self.ending = pytest.exit.Exception(str(text), returncode if isinstance(returncode, int) else None)
            else:
                self.ending = KeyboardInterrupt()
            reporting.set_place(self.ending, place)
        else:
            self.ending = BrokenInside(f"pytest failed inside a sandbox, in {self.item.nodeid}:\n{message[2]}")

    def _report(self, data: Any, changes: Any, main: Any) -> None:
        phase = self.phases[self.now]
        report = reporting.report_from_data(data, self.item, self._named)
        if changes:
            phase.changes.append(reporting.changes_from_data(changes, self.item, self._named))
        if main is not True:
            phase.extras.append(report)
            return
        if report.when != self.now:
            raise SandboxProtocolError(f"the sandboxed test sent a report of its {report.when} as its {self.now}'s")
        phase.report = report
        if self.now == "teardown":
            self.now = "over"
        else:
            calls = self.now == "setup" and report.passed and not self.item.config.getoption("setuponly", False)
            self.now = "call" if calls else "teardown"
            self.phases[self.now] = Phase()

    def _named(self, name: str) -> object:
        if name.startswith("report:"):
            phase = self.phases.get(name[7:])
            return phase.report if phase is not None else None
        return self._shared(self.item).get(name)


def _time(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise SandboxProtocolError(f"the sandboxed test said {str(value)[:100]!r} for a time")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise SandboxProtocolError(f"the sandboxed test asked for a fixture with {str(value)[:100]!r} for a number")
    return value
