"""One run of a sandboxed item, outside: what happens in the pytest process while, and after, it runs in its fork."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError, SandboxProtocolError, SandboxUnavailable

from . import aftermath, asked, compat, entering, extensions, higher, limits, neighbours, passing, reporting, traffic
from .guest import Guest
from .household import Fork
from .inbox import ENDS_THE_RUN, Inbox, Phase
from .interrupts import Gate
from .options import PytestSandboxWarning
from .outgoing import SECTION_LIMIT, Before
from .suspending import Suspension
from .timers import Timers

if TYPE_CHECKING:
    from .item import ItemRun

#: How often a test may ask for another fixture to be set up outside before it has to make do inside.
MOST_ATTEMPTS = 20


class Over(pytest.exit.Exception):  # type: ignore[name-defined,misc]
    """Unwinds pytest's set-up in the parent when the child has ended. Never leaves ``ItemRun.call_and_report``.

    Of the kind that pytest lets pass through a phase unreported.
    """


class Attempt:
    """Made when the item's set-up begins. Holds the sandbox and the child from the fork until the teardown is
    reported.
    """

    def __init__(self, run: ItemRun) -> None:
        self.run = run
        self.item = run.item
        self.conductor = run.conductor
        self.keeper = run.conductor.keeper
        self.forked = False
        self.inbox = Inbox(run.item, run.conductor.shared_objects)
        self._fork: Fork | None = None
        self._before: Before | None = None
        self._made: list[asked.Made] = []
        self._attempts = 0
        self._residue: dict[str, str] = {}  # what a crashed child had printed and not reported
        self._suspended = False
        self._owes_answer = False
        self._due = "setup"  # what the runner waits for
        self._interrupted = False
        self._gate: Gate | None = None
        self._suspension: Suspension | None = None
        self._timers: Timers | None = None
        self._limits: limits.Limits | None = None
        self._decisive: pytest.TestReport | None = None
        self._failed = False

    # Set-up: called from the patched SetupState.setup, in the middle of pytest_runtest_setup.

    def set_up(self) -> None:
        """Sets up outside what outlives the sandbox, and forks. Returns in the child; raises ``Over`` in the parent.

        Where the sandbox cannot be had and the user said ``run``, sets the item up here and returns, with no child.
        """
        __tracebackhide__ = True
        item, conductor = self.item, self.conductor
        if self.run.error is not None:
            raise self.run.error
        assert item.parent is not None
        conductor.patch.setup(item.parent)
        if self._join_group():
            raise Over
        higher.set_up(self.run)
        entered = self._take_spare() or self._enter()
        while entered:
            self._listen()
            if self.inbox.wanted is None:
                raise Over
            self._set_up_wanted()
            entered = self._enter("setup")
        if conductor.guest is not None:
            conductor.guest.hears_interrupts()
        conductor.patch.setup(item)

    def call_abroad(self, log: bool) -> pytest.TestReport:
        """In place of ``call_and_report`` of the set-up of a test whose body runs in another image's Python.

        Raises ``Over`` when there is a child. The hooks of the set-up run in there, and not here, where the answers
        would be of another system. So the report that this returns is of a child that cannot be had.
        """
        __tracebackhide__ = True
        item = self.item
        call = pytest.CallInfo.from_call(self.set_up_abroad, when="setup", reraise=(
            Over, *higher.reraised(item.config)))
        report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
        if log:
            item.ihook.pytest_runtest_logreport(report=report)
        return report

    def end_abroad(self, log: bool, nextitem: pytest.Item | None) -> pytest.TestReport:
        """The teardown of such a test that never had a child."""
        report, failure = self._end(None, nextitem)
        if log:
            self.item.ihook.pytest_runtest_logreport(report=report)
        if failure is not None and compat.check_interactive_exception(failure, report):
            self.item.ihook.pytest_exception_interact(node=self.item, call=failure, report=report)
        return report

    def set_up_abroad(self) -> None:
        """Has the guest of the item's image fork a child, and hears it. Raises ``Over``."""
        __tracebackhide__ = True
        if self._join_group():
            raise Over
        self._enter_abroad(None)
        while True:
            self._listen()
            if self.inbox.wanted is None:
                raise Over
            self._set_up_wanted()
            self._enter_abroad("setup")

    def _enter_abroad(self, replay: str | None) -> None:
        """As :meth:`_enter`, by a guest: what waits in the sandbox begins."""
        __tracebackhide__ = True
        party, item = self.run.party, self.item
        assert party is not None
        try:
            fork = party.fork(self.run, replay, passing.values(self.run))
        except SandboxUnavailable as error:
            if self.conductor.settings.unavailable == "skip":
                raise compat.skip_at_item(f"{type(error).__name__}: {error}") from None
            raise entering.failure(error) from None
        except (SandboxError, OSError) as error:
            raise entering.failure(error) from None
        extensions.started(item.config, fork.sandbox)
        self._hold_interrupts()
        may = self.inbox.may_start_over = self._may_start_over()
        fork.command(*party.order(self.run, may))  # one that has ended meanwhile will be heard of
        self._go_on_with(fork)
        if self.run.group is not None:
            self.run.group.fork = fork
        if self.conductor.abroad is not None:
            self.conductor.abroad.ahead(self.run)

    def _join_group(self) -> bool:
        """Has the process that the item's group shares run it, if there is one."""
        group = self.run.group
        if group is None or group.fork is None:
            return False
        self._hold_interrupts()
        party = self.run.party
        order = ("run", *self.conductor.order_of(self.run)) if party is None else party.order(self.run, False)
        if not group.fork.command(*order):
            group.lost = group.lost or "while it waited for its next test"
            group.close()
            self._let_interrupts_through()
            return False
        self._go_on_with(group.fork)
        self._listen()
        return True

    def _take_spare(self) -> bool:
        """Has a child that waits for it run the item, if there is one."""
        conductor = self.conductor
        may_start_over = self._may_start_over()
        before = Before(conductor, self.item, may_start_over) if may_start_over else None
        spare = conductor.spares.take(self.run, may_start_over, self._hold_interrupts)
        if spare is None:
            self._let_interrupts_through()
            return False
        self._before = before
        self.inbox.may_start_over = before is not None
        self._go_on_with(spare)
        extensions.started(self.item.config, spare.sandbox)
        conductor.spares.ahead(self.run)
        return True

    def _go_on_with(self, fork: Fork) -> None:
        self._fork = fork
        self.forked = True
        self._limits = limits.Limits(self.item, fork.sandbox, self.run.spec)

    def _may_start_over(self) -> bool:
        """Whether an attempt of this test can be thrown away without anybody noticing."""
        spec = self.run.spec
        return (self.run.group is None and self._attempts < MOST_ATTEMPTS and spec.network == "none"
                and all(mount.read_only for mount in spec.mounts) and compat.may_request_by_name(self.item))

    def _set_up_wanted(self) -> None:
        """The child asked for a fixture of higher scope by name: sets it up here, and forgets that attempt."""
        fork, wanted, before, party = self._fork, self.inbox.wanted, self._before, self.run.party
        assert fork is not None
        assert wanted is not None
        fork.child.wait()
        fork.close()
        self._fork, self.forked = None, False
        if self._timers is not None:
            self._timers.go_on()
        self.inbox = Inbox(self.item, self.conductor.shared_objects)
        self._attempts += 1
        if party is not None:
            party.set_up_wanted(self.item, wanted)
            return
        assert before is not None
        assert before.printed is not None
        made = asked.set_up(self.item, wanted, before.printed, self.conductor.patch.stack)
        if made is not None:
            self._made.append(made)

    def _enter(self, replay: str | None = None) -> bool:
        """Starts the sandbox and forks. False in the child, or where there is none: then the item is set up.

        :param replay: the phase in which the attempt before asked for what has been made since.
        """
        __tracebackhide__ = True
        if self.run.party is not None:
            self._enter_abroad(replay)
            return True
        item, conductor, group = self.item, self.conductor, self.run.group
        began = time.perf_counter()
        try:
            sandbox = entering.start(self.run)
        except compat.TEST_OUTCOME as error:
            conductor.patch.stack[item] = ([], (error, error.__traceback__))
            raise
        if sandbox is None:
            return False
        extensions.started(item.config, sandbox)
        reading, writing = conductor.open_pipe()
        orders, commands = conductor.open_orders() if conductor.live or group is not None else (-1, -1)
        before = self._before = Before(conductor, item, self._may_start_over())
        self.inbox.may_start_over = before.printed is not None
        timers = self._timers = Timers(item, conductor.faults)
        self._hold_interrupts()
        conductor.copies.before_fork(group is None and sandbox.takes_one_fork())
        try:
            child = entering.fork_into(sandbox, self.run)
        except (SandboxError, OSError) as error:
            for descriptor in (reading, writing, orders, commands):
                if descriptor >= 0:
                    os.close(descriptor)
            sandbox.discard()
            self._let_interrupts_through()
            raise entering.failure(error) from None
        if child is None:
            if commands >= 0:
                os.close(commands)
            conductor.copies.inside()
            if self.run.spec.network == "none":
                traffic.watch()
            guest = conductor.guest = Guest(conductor, item, before, (writing, orders), group)
            guest.overhead = time.perf_counter() - began
            if replay is not None:
                guest.replay = asked.Replay(item.config, self._made, replay, conductor.live)
            timers.go_on_inside()
            guest.gate, self._gate = self._gate, None
            if self._suspension is not None:
                self._suspension.end(inside=True)
            return False
        os.close(writing)
        if orders >= 0:
            os.close(orders)
        conductor.copies.outside()
        timers.stand_still()
        conductor.spares.ahead(self.run)
        self._go_on_with(Fork(sandbox, child, reading, commands))
        if group is not None:
            group.fork = self._fork
        return True

    # From the moment that there is a child, an interrupt is to end its test, and waits until that can be told it.

    def _hold_interrupts(self) -> None:
        if self._gate is None:
            self._gate = Gate(closed=True).enter()
        if self._suspension is None:
            self._suspension = Suspension()

    def _let_interrupts_through(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave()

    # What the child says.

    def _listen(self) -> None:
        """Waits for the child's end. Whatever goes wrong meanwhile becomes the ending of the phase it was in.

        Where reports are shown as they come, waits for that of the set-up only.
        """
        group = self.run.group
        if group is not None and group.lost is not None:
            lost, group.lost = group.lost, None
            self.item.warn(PytestSandboxWarning(
                f"this test started in a new sandbox: the process that the tests of {group.node.name} share "
                f"died {lost}"))
        self._hear("setup" if self.conductor.live else None)

    def _hear(self, until: str | None) -> None:
        """Reads what the child says, until its end or the report of phase ``until``."""
        inbox, fork = self.inbox, self._fork
        assert fork is not None
        while True:
            try:
                self._let_interrupts_through()
                inbox.read(fork.child, fork.reading, until, self._answering(),
                           self._limits.clock if self._limits is not None else None,
                           self.conductor.abroad if self.run.party is not None else self.conductor.spares,
                           self._suspension, self.conductor.outputs)
            except KeyboardInterrupt as error:
                if inbox.debugging:
                    self._pass_on_interrupt(fork)
                    continue  # it is the debugger's to handle
                if not self._interrupted:
                    self._interrupted = True
                    self._pass_on_interrupt(fork)
                    continue
                self._give_up(error)
            except BaseException as error:  # noqa: BLE001 - garbage, a timeout's exception: told in time
                self._give_up(error)
            break
        if inbox.done and inbox.ending is None:
            if self._interrupted:
                if inbox.wanted is not None:
                    raise KeyboardInterrupt
                inbox.ending = KeyboardInterrupt()  # the test was over, or did not care: its reports first
            if self.run.party is None:
                self.conductor.copies.look(fork.child.pid)
            return  # it has nothing more to say, and ends while its reports are dealt with
        if inbox.ending is None and until is not None and inbox.phases[until].report is not None:
            return
        code = fork.child.wait()
        if inbox.ending is None:
            timers = self._timers
            inbox.ending = (timers.ended_it() if timers is not None and code == 1 else None) or (
                self._limits.ended_it() if self._limits is not None else None) or aftermath.crashed(inbox, code)
        if not inbox.done:
            self._residue = (compat.captured_so_far(self.item.config, SECTION_LIMIT) if self.run.party is None
                             else self.run.party.residue())
            if self.conductor.held is not None:
                self._residue = self.conductor.held.added_to(self._residue)
        if self.keeper is not None and not isinstance(inbox.ending, ENDS_THE_RUN):
            self.keeper.take(self.item, fork.sandbox, inbox.now)
        self._lose_group()

    def _lose_group(self) -> None:
        if (group := self.run.group) is not None:
            group.lost = f"in {self.item.name}"
            group.close()

    def _give_up(self, error: BaseException) -> None:
        assert self._fork is not None
        self._fork.child.kill()
        self.inbox.ending = error
        if isinstance(error, SandboxProtocolError):
            for phase in self.inbox.phases.values():
                phase.extras.clear()  # who lies once is not believed

    @staticmethod
    def _pass_on_interrupt(fork: Fork) -> None:
        """The child has a session of its own: a terminal, too, interrupts pytest alone."""
        fork.child.send_signal(signal.SIGINT)

    def _answering(self) -> Callable[[str, bool], None] | None:
        """What to do with each report as it comes, if anything."""
        if self.conductor.live:
            return self._answer
        return self._keep if self.keeper is not None else None

    def _keep(self, when: str, main: bool) -> None:
        """Keeps the sandbox of a test whose phase has failed; its process waits for that."""
        report = self.inbox.phases[when].report if main else None
        if report is None or self._fork is None or self.keeper is None:
            return
        clock = self._limits.clock if self._limits is not None else None
        if clock is not None:
            clock.patience(True)
        if self.run.party is None:
            self.keeper.heard(self.item, self._fork.sandbox, report)
        elif report.failed and when != "teardown":
            self.keeper.take(self.item, self._fork.sandbox, when)
            self._fork.command("go")

    def _answer(self, when: str, main: bool) -> None:
        """Deals with a report as it comes; the child goes on when it is told so."""
        assert self._fork is not None
        report = self.inbox.phases[when].report
        if main and when == self._due and when != "teardown":
            self._owes_answer = True  # the runner will log it first
            return
        if report is not None and self._due == "call" and when == "setup" and not report.passed:
            self._give_up(pytest.fail.Exception(
                "the test asked for a fixture by name that is set up outside of its sandbox, so it started over; and "
                f"the second time, its set-up did not pass:\n\n{report.longreprtext}", pytrace=False))
            return
        if not main and when != "setup":  # a set-up is heard in the middle of its hook: no place for reports
            self._log_extras(self.inbox.phases[when])
        if not self._fork.command("go") and self._fork.child.is_alive():
            raise SandboxProtocolError("the sandboxed test does not read what it is answered")

    def _log_extras(self, phase: Phase) -> None:
        """What a phase brought beside its own report."""
        changes, phase.changes = phase.changes, []
        extras, phase.extras = phase.extras, []
        for change in changes:
            aftermath.apply(change, self.run)
            self._suspended = change.suspended
        for extra in extras:
            self.item.ihook.pytest_runtest_logreport(report=extra)

    # Reports: called from ItemRun.call_and_report, outside of every hook.

    def delivered(self, when: Any, log: bool) -> pytest.TestReport:
        """The report of a set-up that has just been heard."""
        __tracebackhide__ = True
        report = self.deliver(when, log, None)
        assert report is not None, "what starts over during the set-up does so within it"
        return report

    def deliver(self, when: Any, log: bool, nextitem: pytest.Item | None) -> pytest.TestReport | None:
        """The report of phase ``when``, after all that was logged within that phase; logged if ``log`` says so.

        None in a child that has just been forked: of an attempt that starts over when its set-up has been reported.
        Raises what the child's phase ended with, if that ends the run.
        """
        __tracebackhide__ = True
        item = self.item
        if self._owes_answer and (when not in self.inbox.phases or self.inbox.phases[when].report is None):
            self._owes_answer = False
            self._due = when
            assert self._fork is not None
            self._fork.command("go")
            until = None if when == "teardown" else when
            self._hear(until)
            while self.inbox.wanted is not None:
                try:
                    self._set_up_wanted()
                    entered = self._enter(when)
                except compat.TEST_OUTCOME as error:  # what there was before cannot be had again
                    self.inbox.ending = error
                    break
                if not entered:
                    return None
                self._hear(until)
            if self.inbox.ending is not None and self.inbox.now != "over":
                self.inbox.now = when
                self.inbox.phases.setdefault(when, Phase())
        inbox = self.inbox
        phase = inbox.phases.get(when)
        report = None
        abroad = self.run.party is not None
        if phase is not None:
            self._log_extras(phase)
            report = phase.report
        if abroad and report is not None:
            reporting.join_sections(report)
            neighbours.reported(item, report)
        if when == "setup":
            neighbours.after_setup(item)
        elif report is not None and inbox.ending is None and self._is_out_of_memory(when):
            report = None
        if report is None and inbox.ending is not None and when == inbox.now:
            report = aftermath.report_of_ending(self.run, inbox, when, self._residue)
        if report is not None:
            compat.attach_sections(item, report.sections)
            item.user_properties[:] = report.user_properties
            if report.failed and self._fork is not None:
                traffic.add_refused(report, self._fork.sandbox)
            self._failed |= report.failed
            if self.keeper is not None and self.conductor.live and report.failed and self._fork is not None:
                self.keeper.take(item, self._fork.sandbox, when)
            if self._decisive is None or (self._decisive.passed and extensions.decides(report)):
                self._decisive = report
            if self._limits is not None:
                self._limits.tell(report)
        failure = None
        if when == "teardown":
            report, failure = self._end(report, nextitem)
        assert report is not None, "only a teardown can have none: the runner asks for the phases that were"
        if log:
            item.ihook.pytest_runtest_logreport(report=report)
        if failure is not None and compat.check_interactive_exception(failure, report):
            item.ihook.pytest_exception_interact(node=item, call=failure, report=report)
        if when == "teardown" and isinstance(inbox.ending, ENDS_THE_RUN):
            raise inbox.ending  # what left it after its last report
        return report

    def _is_out_of_memory(self, when: str) -> bool:
        """Whether the kernel killed something inside, and the test was over before its sandbox was.

        Which phase it was nobody knows; mostly it was the test itself.
        """
        if self._limits is None or not self._limits.out_of_memory():
            return False
        assert self._fork is not None
        self._fork.child.kill()
        self._fork.child.wait()
        self._owes_answer = False
        self.inbox.ending = self._limits.ended_it() or aftermath.crashed(self.inbox, -signal.SIGKILL)
        self.inbox.now = when
        self._lose_group()
        return True

    def _end(self, report: pytest.TestReport | None,
             nextitem: pytest.Item | None) -> tuple[pytest.TestReport, pytest.CallInfo[None] | None]:
        """The item's teardown is over: what is due after it, out here."""
        if self._timers is not None:
            self._timers.go_on()
        aftermath.add_coverage(self.inbox, self.run.party)
        if self._limits is not None:
            fork = self._fork if not self.inbox.waits else None
            self._limits.finish(report, self._failed, fork.child if fork is not None else None)
        if self._fork is not None:
            extensions.finished(self.item, self._fork.sandbox, self._decisive)
            if self.keeper is not None:
                self.keeper.over(self.item, self._fork.sandbox, self._failed)
        hooks_ran = self.inbox.now == "over"
        if hooks_ran and self.inbox.waits and report is not None and (shared := self.leave_group(nextitem)) is not None:
            report = reporting.both(report, shared)
            compat.attach_sections(self.item, report.sections)
        found = higher.tear_down(self.run, report, nextitem, hooks_ran, self._suspended)
        if self.run.party is not None and not self._suspended:
            left = self.run.party.left(self.item, nextitem)
            if left is not None:
                found = reporting.both(found[0], left), found[1]
                compat.attach_sections(self.item, found[0].sections)
        self.run.end_attempt()
        return found

    def leave_group(self, nextitem: pytest.Item | None) -> pytest.TestReport | None:
        """Has the group's process tear down what ``nextitem`` does not need, where it could not know that itself.

        Returns the report of that, as one of this item's teardown; None when there was nothing to do.
        """
        group = self.run.group
        if group is None or group.fork is None or (
                group.keeps(nextitem) and (self.forked or not self.conductor.patch.must_pop(nextitem))):
            return None
        self._fork = group.fork
        self.inbox = Inbox(self.item, self.conductor.shared_objects, "teardown")
        positions, party = group.positions, self.run.party
        left = ((positions[self.item], None if nextitem is None else positions[nextitem]) if party is None
                else party.leaving(self.run, nextitem))
        if not group.fork.command("leave", *left):
            group.close()
            return None
        self._hear(None)
        aftermath.add_coverage(self.inbox, party)
        phase = self.inbox.phases["teardown"]
        self._log_extras(phase)
        report = phase.report or aftermath.report_of_ending(self.run, self.inbox, "teardown", self._residue)
        self.inbox.now = "over"
        if not self.inbox.waits:
            group.close()
        return report

    def close(self) -> None:
        """The attempt is over. Its processes are gone, at the latest, when the next sandbox starts.

        A group's go on, unless the attempt was left before it had ended.
        """
        fork, self._fork = self._fork, None
        group = self.run.group
        if fork is not None and self.conductor.live and not (self.inbox.done or self.inbox.ending):
            self._leave_early(fork)
        self._hold_interrupts()  # half closed it would be closed again
        if fork is not None and not (self.inbox.waits and group is not None and group.fork is fork):
            fork.close()
            if group is not None and group.fork is fork:
                group.fork = None
        if self.forked:
            os.environ.pop("PYTEST_CURRENT_TEST", None)
        if self.keeper is not None:
            self.keeper.clear_gate()
        if self._suspension is not None:
            self._suspension.end()
        self._let_interrupts_through()

    def _leave_early(self, fork: Fork) -> None:
        """Something ended the run between two phases, an interrupt at a report for one: the test is torn down first."""
        self._fork = fork
        self._interrupted = True
        self._pass_on_interrupt(fork)
        try:
            self._hear(None)
        except BaseException:  # noqa: BLE001 - another interrupt, at the latest, ends it
            pass
        self._fork = None
