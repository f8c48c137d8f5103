"""How the reports of a sandboxed test reach pytest, phase by phase, and what is done outside after its teardown. Used
by ``item``, outside of every hook.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from . import aftermath, compat, extensions, higher, neighbours, reporting, retelling, traffic
from .inbox import ENDS_THE_RUN, Inbox, Phase
from .party import ALSO

if TYPE_CHECKING:
    from .attempt import Attempt


class Delivery:
    """An attempt's reports. ``decisive`` is the one that tells how the test did, so far."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.run = attempt.run
        self.item = attempt.item
        self.conductor = attempt.conductor
        self.keeper = attempt.keeper
        self._suspended = False
        self._decisive: pytest.TestReport | None = None
        self._failed = False
        self.before: list[tuple[str, str]] = []  # what an attempt before this one has printed, abroad

    def of_setup(self, when: Any, log: bool) -> pytest.TestReport:
        """The report of a set-up that has just been heard."""
        __tracebackhide__ = True
        report = self.of_phase(when, log, None)
        assert report is not None, "what starts over during the set-up does so within it"
        return report

    def of_phase(self, when: Any, log: bool, nextitem: pytest.Item | None) -> pytest.TestReport | None:
        """The report of phase ``when``, after all that was logged within that phase; logged if ``log`` says so.

        None in a child that has just been forked: of an attempt that starts over when its set-up has been reported.
        Raises what the child's phase ended with, if that ends the run.
        """
        __tracebackhide__ = True
        item = self.item
        if not self._heard(when):
            return None
        report, inbox = self._found(when), self.attempt.inbox
        failure = None
        if when == "teardown":
            report, failure = self.end(report, nextitem)
        assert report is not None, "only a teardown can have none: the runner asks for the phases that were"
        if log:
            item.ihook.pytest_runtest_logreport(report=report)
        if failure is not None and compat.check_interactive_exception(failure, report):
            item.ihook.pytest_exception_interact(node=item, call=failure, report=report)
        if when == "teardown" and isinstance(inbox.ending, ENDS_THE_RUN):
            raise inbox.ending  # what left it after its last report
        return report

    def _heard(self, when: Any) -> bool:
        """Where the child waits until its last report is logged: lets it go on, and hears it.

        False in the child of an attempt that starts over.
        """
        __tracebackhide__ = True
        attempt, listener = self.attempt, self.attempt.listener
        if not listener.owes_answer or (when in attempt.inbox.phases
                                        and attempt.inbox.phases[when].report is not None):
            return True
        listener.owes_answer = False
        listener.due = when
        assert attempt.fork is not None
        attempt.fork.command("go", *compat.place_in_line(self.item.config))
        until = None if when == "teardown" else when
        listener.hear(until)
        while attempt.inbox.wanted is not None:
            try:
                attempt.entry.set_up_wanted()
                entered = attempt.entry.enter(when)
            except compat.TEST_OUTCOME as error:  # what there was before cannot be had again
                attempt.inbox.ending = error
                break
            if not entered:
                return False
            listener.hear(until)
        if attempt.inbox.ending is not None and attempt.inbox.now != "over":
            attempt.inbox.now = when
            attempt.inbox.phases.setdefault(when, Phase())
        return True

    def _found(self, when: Any) -> pytest.TestReport | None:
        """The report of phase ``when``, its own or that of its ending, with what belongs to it from out here."""
        __tracebackhide__ = True
        attempt, item = self.attempt, self.item
        inbox = attempt.inbox
        phase = inbox.phases.get(when)
        report = None
        if phase is not None:
            self.log_extras(phase)
            report = phase.report
        if self.run.party is not None:
            self.run.party.hosting.forward()
        if self.run.party is not None and report is not None:
            reporting.join_sections(report)
            report.sections[:0] = self.before
            neighbours.reported(item, report)
        if when == "setup":
            neighbours.after_setup(item)
        elif report is not None and inbox.ending is None and self._is_out_of_memory(when):
            report = None
        if report is not None:
            retelling.retell(item, report)
        elif inbox.ending is not None and when == inbox.now:
            report = aftermath.report_of_ending(self.run, inbox, when, attempt.listener.residue)
        if report is not None:
            compat.attach_sections(item, report.sections)
            item.user_properties[:] = report.user_properties
            if report.failed and attempt.fork is not None:
                traffic.add_refused(report, attempt.fork.sandbox)
            self._failed |= report.failed
            if self.keeper is not None and self.conductor.live and report.failed and attempt.fork is not None:
                self.keeper.take(item, attempt.fork.sandbox, when)
            if self._decisive is None or (self._decisive.passed and extensions.decides(report)):
                self._decisive = report
            if attempt.limits is not None:
                attempt.limits.tell(report)
        return report

    def log_extras(self, phase: Phase) -> None:
        """What a phase brought beside its own report."""
        changes, phase.changes = phase.changes, []
        extras, phase.extras = phase.extras, []
        for change in changes:
            aftermath.apply(change, self.run)
            self._suspended = change.suspended
        for extra in extras:
            self.item.ihook.pytest_runtest_logreport(report=extra)

    def _is_out_of_memory(self, when: str) -> bool:
        """Whether the kernel killed something inside, and the test was over before its sandbox was.

        Which phase it was nobody knows; mostly it was the test itself.
        """
        attempt = self.attempt
        if attempt.limits is None or not attempt.limits.out_of_memory():
            return False
        assert attempt.fork is not None
        attempt.fork.child.kill()
        attempt.fork.child.wait()
        attempt.listener.owes_answer = False
        attempt.inbox.ending = attempt.limits.ended_it() or aftermath.crashed(attempt.inbox, -signal.SIGKILL)
        attempt.inbox.now = when
        attempt.listener.lose_group()
        return True

    def end(self, report: pytest.TestReport | None,
            nextitem: pytest.Item | None) -> tuple[pytest.TestReport, pytest.CallInfo[None] | None]:
        """The item's teardown is over: what is due after it, out here."""
        attempt, run = self.attempt, self.run
        fork, inbox = attempt.fork, attempt.inbox
        if attempt.timers is not None:
            attempt.timers.go_on()
        aftermath.add_coverage(inbox, run.party)
        if attempt.limits is not None:
            attempt.limits.finish(report, self._failed, fork.child if fork is not None and not inbox.waits else None)
        if fork is not None:
            extensions.finished(self.item, fork.sandbox, self._decisive)
            if self.keeper is not None:
                self.keeper.over(self.item, fork.sandbox, self._failed)
        hooks_ran = inbox.now == "over"
        if hooks_ran and inbox.waits and report is not None and (shared := self.leave_group(nextitem)) is not None:
            report = reporting.both(report, shared)
            compat.attach_sections(self.item, report.sections)
        found = higher.tear_down(run, report, nextitem, hooks_ran, self._suspended)
        if run.party is not None and not self._suspended:
            left = run.party.left(self.item, nextitem)
            if left is not None:
                had = len(self.before) if found[0].sections[:len(self.before)] == self.before else 0
                found[0].sections = found[0].sections[had:]
                reporting.add(found[0], left, ALSO)
                found[0].sections[:0] = self.before[:had]
                compat.attach_sections(self.item, found[0].sections)
        run.end_attempt()
        return found

    def leave_group(self, nextitem: pytest.Item | None) -> pytest.TestReport | None:
        """Has the group's process tear down what ``nextitem`` does not need, where it could not know that itself.

        Returns the report of that, as one of this item's teardown; None when there was nothing to do.
        """
        attempt, group = self.attempt, self.run.group
        if group is None or group.fork is None or (
                group.keeps(nextitem) and (attempt.forked or not self.conductor.patch.must_pop(nextitem))):
            return None
        attempt.fork = group.fork
        inbox = attempt.inbox = Inbox(self.item, self.conductor.shared_objects, "teardown")
        positions = group.positions
        left = ((positions[self.item], None if nextitem is None else positions[nextitem]) if self.run.party is None
                else self.run.party.leaving(self.run, nextitem))
        if not group.fork.command("leave", *left):
            group.close()
            return None
        attempt.listener.hear(None)
        aftermath.add_coverage(inbox, self.run.party)
        phase = inbox.phases["teardown"]
        self.log_extras(phase)
        report = phase.report or aftermath.report_of_ending(self.run, inbox, "teardown", attempt.listener.residue)
        inbox.now = "over"
        if not inbox.waits:
            group.close()
        return report
