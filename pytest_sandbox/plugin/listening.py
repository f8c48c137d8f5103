"""What a sandboxed test's process says while it runs, and what is said and done to it meanwhile. Used by ``attempt``
and its rooms, outside. ``inbox`` reads and checks the messages themselves.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from math import inf
from time import time
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxProtocolError

from . import aftermath, compat
from .inbox import ENDS_THE_RUN
from .options import PytestSandboxWarning
from .outgoing import SECTION_LIMIT

if TYPE_CHECKING:
    from .attempt import Attempt
    from .household import Fork


class Listener:
    """``residue`` is what a child that crashed had printed and not reported. ``due`` is the phase that the runner waits
    for, and ``owes_answer`` says that the child waits until its report has been logged.
    """

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.run = attempt.run
        self.item = attempt.item
        self.conductor = attempt.conductor
        self.keeper = attempt.keeper
        self.residue: dict[str, str] = {}
        self.owes_answer = False
        self.due = "setup"
        self._interrupted = False
        self._passed_on = inf  # when an interrupt was passed on, as time.time()

    def listen(self) -> None:
        """Waits for the child's end. Whatever goes wrong meanwhile becomes the ending of the phase it was in.

        Where reports are shown as they come, waits for that of the set-up only.
        """
        group = self.run.group
        if group is not None and group.lost is not None:
            lost, group.lost = group.lost, None
            self.item.warn(PytestSandboxWarning(
                f"this test started in a new sandbox: the process that the tests of {group.node.name} share "
                f"died {lost}"))
        self.hear("setup" if self.conductor.live else None)

    def hear(self, until: str | None) -> None:
        """Reads what the child says, until its end or the report of phase ``until``."""
        attempt = self.attempt
        inbox, fork, clock = attempt.inbox, attempt.fork, attempt.limits.clock if attempt.limits is not None else None
        assert fork is not None
        while True:
            try:
                attempt.signals.let_through()
                inbox.read(fork.child, fork.reading, until, self._answering(), clock,
                           self.conductor.abroad if self.run.party is not None else self.conductor.spares,
                           attempt.signals.suspension, self.conductor.outputs)
            except KeyboardInterrupt as error:
                if inbox.debugging:
                    _pass_on_interrupt(fork)
                    continue  # it is the debugger's to handle
                if not self._interrupted:
                    self._interrupted = True
                    _pass_on_interrupt(fork)
                    self._passed_on = time()
                    continue
                self._give_up(error)
            except BaseException as error:  # noqa: BLE001 - garbage, a timeout's exception: told in time
                self._give_up(error)
            break
        if (trace := fork.sandbox.trace) is not None:
            trace.heard(inbox.entered)
        if inbox.done and inbox.ending is None:
            if self._interrupted and not self._was_caught():
                if inbox.wanted is not None:
                    raise KeyboardInterrupt
                inbox.ending = KeyboardInterrupt()  # the test was over: its reports first
            if self.run.party is None:
                self.conductor.copies.look(fork.child.pid)
            return  # it has nothing more to say, and ends while its reports are dealt with
        if inbox.ending is None and until is not None and inbox.phases[until].report is not None:
            return
        self._ended(fork)

    def _was_caught(self) -> bool:
        """Whether the interrupt came to the test while a phase of it ran, which went on to its end all the same."""
        reports = [phase.report for phase in self.attempt.inbox.phases.values()]
        return any(report is not None and getattr(report, "stop", -inf) > self._passed_on for report in reports)

    def leave_early(self, fork: Fork) -> None:
        """Something ended the run between two phases, an interrupt at a report for one: the test is torn down first."""
        self.attempt.fork = fork
        self._interrupted = True
        _pass_on_interrupt(fork)
        try:
            self.hear(None)
        except BaseException:  # noqa: BLE001 - another interrupt, at the latest, ends it
            pass
        self.attempt.fork = None

    def lose_group(self) -> None:
        """The process is gone that the tests of the item's group share."""
        if (group := self.run.group) is not None:
            group.lost = f"in {self.item.name}"
            group.close()

    def _ended(self, fork: Fork) -> None:
        """The child has not said goodbye."""
        inbox, timers, limits = self.attempt.inbox, self.attempt.timers, self.attempt.limits
        code = fork.child.wait()
        if inbox.ending is None:
            inbox.ending = (timers.ended_it() if timers is not None and code == 1 else None) or (
                limits.ended_it() if limits is not None else None) or aftermath.crashed(inbox, code)
        if not inbox.done:
            self.residue = (compat.captured_so_far(self.item.config, SECTION_LIMIT) if self.run.party is None
                            else self.run.party.residue())
            if self.conductor.held is not None:
                self.residue = self.conductor.held.added_to(self.residue)
        if self.keeper is not None and not isinstance(inbox.ending, ENDS_THE_RUN):
            self.keeper.take(self.item, fork.sandbox, inbox.now)
        self.lose_group()

    def _give_up(self, error: BaseException) -> None:
        attempt = self.attempt
        assert attempt.fork is not None
        attempt.fork.child.kill()
        attempt.inbox.ending = error
        if isinstance(error, SandboxProtocolError):
            for phase in attempt.inbox.phases.values():
                phase.extras.clear()  # who lies once is not believed

    def _answering(self) -> Callable[[str, bool], None] | None:
        """What to do with each report as it comes, if anything."""
        if self.conductor.live:
            return self._answer
        return self._keep if self.keeper is not None else None

    def _keep(self, when: str, main: bool) -> None:
        """Keeps the sandbox of a test whose phase has failed; its process waits for that."""
        attempt = self.attempt
        report = attempt.inbox.phases[when].report if main else None
        if report is None or attempt.fork is None or self.keeper is None:
            return
        clock = attempt.limits.clock if attempt.limits is not None else None
        if clock is not None:
            clock.patience(True)
        if self.run.party is None:
            self.keeper.heard(self.item, attempt.fork.sandbox, report)
        elif report.failed and when != "teardown":
            self.keeper.take(self.item, attempt.fork.sandbox, when)
            attempt.fork.command("go")

    def _answer(self, when: str, main: bool) -> None:
        """Deals with a report as it comes; the child goes on when it is told so."""
        fork, inbox = self.attempt.fork, self.attempt.inbox
        assert fork is not None
        report = inbox.phases[when].report
        if main and when == self.due and when != "teardown":
            self.owes_answer = True  # the runner will log it first
            return
        if report is not None and self.due == "call" and when == "setup" and not report.passed:
            self._give_up(pytest.fail.Exception(
                "the test asked for a fixture by name that is set up outside of its sandbox, so it started over; and "
                f"the second time, its set-up did not pass:\n\n{report.longreprtext}", pytrace=False))
            return
        if not main and when != "setup":  # a set-up is heard in the middle of its hook: no place for reports
            self.attempt.delivery.log_extras(inbox.phases[when])
        if not fork.command("go", *compat.place_in_line(self.item.config)) and fork.child.is_alive():
            raise SandboxProtocolError("the sandboxed test does not read what it is answered")


def _pass_on_interrupt(fork: Fork) -> None:
    """The child has a session of its own: a terminal, too, interrupts pytest alone."""
    fork.child.send_signal(signal.SIGINT)
