"""The outside of one sandboxed item: what happens in the pytest process while, and after, the item runs in its fork.

``ItemRun`` stands in for the item in pytest's runner; each time the item is run (plugins may repeat it) an ``Attempt``
starts the sandbox, forks, listens until the child has ended, and then hands out the child's reports phase by phase.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxCrashed, SandboxError, SandboxProtocolError, SandboxUnavailable

from . import benchmarks, compat, cover, extensions, limits, neighbours, reporting, traffic
from .fixtures import make_sandbox
from .guest import SECTION_LIMIT, Before, Guest
from .household import Fork, Group
from .inbox import BrokenInside, Inbox, Phase
from .options import PytestSandboxWarning
from .timers import Timers

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.spec import SandboxSpec

    from .conductor import Conductor
    from .reporting import Changes

RUN: pytest.StashKey[ItemRun] = pytest.StashKey()

#: What ends the whole run, and not one test.
ENDS_THE_RUN = (KeyboardInterrupt, pytest.exit.Exception, BrokenInside)
#: How often a test may ask for another fixture to be set up outside before it has to make do inside.
MOST_ATTEMPTS = 20


class Over(pytest.exit.Exception):  # type: ignore[name-defined,misc]
    """Unwinds pytest's set-up in the parent when the child has ended. Never leaves ``ItemRun.call_and_report``.

    Of the kind that pytest lets pass through a phase unreported.
    """


class ItemRun:
    """A sandboxed item's place in the runner. Made when collection has finished, kept in the item's stash."""

    def __init__(self, item: pytest.Item, spec: SandboxSpec, conductor: Conductor) -> None:
        self.item = item
        self.spec = spec
        self.conductor = conductor
        self.group: Group | None = None
        self.nextitem: pytest.Item | None = None
        self.attempt: Attempt | None = None
        self.warnings: list[Any] = []

    def call_and_report(self, original: Callable[..., pytest.TestReport], when: Any, log: bool,
                        kwds: dict[str, Any]) -> pytest.TestReport:
        """In place of pytest's function of this name, around it. The child, too, comes back here from the fork."""
        __tracebackhide__ = True
        conductor = self.conductor
        if when == "setup":
            if conductor.guest is None:
                self.attempt = Attempt(self)
            elif conductor.guest.waits:
                self.attempt = Attempt(self)
                conductor.guest.start(self.item)
        attempt = self.attempt
        assert attempt is not None, "setup comes first"
        if attempt.forked and conductor.guest is None:
            return attempt.deliver(when, log, kwds.get("nextitem"))
        shared = None
        if when == "teardown" and conductor.guest is None and self.group is not None:
            shared = attempt.leave_group(kwds.get("nextitem"))
        try:
            report = original(self.item, when, log and shared is None, **kwds)
            if conductor.guest is not None:
                conductor.guest.reported(when, report, kwds.get("nextitem"))
        except Over:
            return attempt.deliver(when, log, None)
        except (pytest.exit.Exception, KeyboardInterrupt) as error:
            if conductor.guest is not None:
                conductor.guest.left_by(error)
            raise
        except BaseException:
            if conductor.guest is not None:
                conductor.guest.broke()
            raise
        if attempt.forked and conductor.guest is None:
            return attempt.deliver(when, log, None)  # a hook around the set-up did not let ``Over`` pass
        if shared is not None:
            report = _both(report, shared)
            if log:
                self.item.ihook.pytest_runtest_logreport(report=report)
        if when == "teardown" and conductor.guest is None:
            self.end_attempt()
        return report

    def end_attempt(self) -> None:
        """The attempt's teardown was reported, or something left it early."""
        attempt, self.attempt = self.attempt, None
        if attempt is not None:
            attempt.close()

    def close(self) -> None:
        """The item's protocol is over, however it ended."""
        self.end_attempt()
        replay, self.warnings = self.warnings, []
        for message in replay:
            self.item.ihook.pytest_warning_recorded.call_historic(kwargs={
                "warning_message": message, "nodeid": self.item.nodeid, "when": "runtest", "location": None})


class Attempt:
    """One run of a sandboxed item. Holds the sandbox and the child from the fork until the teardown is reported."""

    def __init__(self, run: ItemRun) -> None:
        self.run = run
        self.item = run.item
        self.conductor = run.conductor
        self.forked = False
        self.inbox = Inbox(run.item, run.conductor.shared_objects)
        self._fork: Fork | None = None
        self._residue: dict[str, str] = {}  # what a crashed child had printed and not reported
        self._suspended = False
        self._owes_answer = False
        self._interrupted = False
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
        item, conductor, group = self.item, self.conductor, self.run.group
        assert item.parent is not None
        conductor.patch.setup(item.parent)
        if group is not None and group.fork is not None:
            if group.fork.command("run", *conductor.order_of(self.run)):
                self._fork = group.fork
                self.forked = True
                self._limits = limits.Limits(item, self._fork.sandbox, self.run.spec)
                self._listen()
                raise Over
            group.lost = group.lost or "while it waited for its next test"
            group.close()
        self._set_up_higher()
        may_start_over = self._may_start_over()
        before = Before(conductor, item, may_start_over) if may_start_over else None
        if (spare := conductor.spares.take(self.run, may_start_over)) is not None:
            self._fork = spare
            self.forked = True
            self._limits = limits.Limits(item, spare.sandbox, self.run.spec)
            extensions.started(item.config, spare.sandbox)
            conductor.spares.ahead(self.run)
            self._listen()
            if self.inbox.wanted is None:
                raise Over
            assert before is not None
            self._start_over(before)
        for attempts in range(MOST_ATTEMPTS, -1, -1):
            before = self._enter(attempts > 0)
            if before is None:
                return
            self._listen()
            if self.inbox.wanted is None:
                break
            self._start_over(before)
        raise Over

    def _start_over(self, before: Before) -> None:
        """The child asked for a fixture of higher scope by name: sets it up here, and forgets that attempt."""
        fork, wanted, stack = self._fork, self.inbox.wanted, self.conductor.patch.stack
        assert fork is not None
        assert wanted is not None
        fork.child.wait()
        fork.close()
        self._fork, self.forked = None, False
        compat.restore_printed(before.printed or [])
        self.inbox = Inbox(self.item, self.conductor.shared_objects)
        stack[self.item] = ([], None)
        try:
            compat.set_up_fixture(self.item, wanted)
        except compat.TEST_OUTCOME:
            pass  # pytest keeps it, and raises it again where the test asks for it
        finally:
            del stack[self.item]

    def _may_start_over(self) -> bool:
        """Whether an attempt of this test can be thrown away without anybody noticing."""
        spec = self.run.spec
        return (self.run.group is None and not self.conductor.live and spec.network == "none"
                and all(mount.read_only for mount in spec.mounts) and compat.may_request_by_name(self.item))

    def _set_up_higher(self) -> None:
        """Sets up the fixtures that outlive the sandbox. The tests of a group must find all of theirs at the fork."""
        __tracebackhide__ = True
        item, stack, group = self.item, self.conductor.patch.stack, self.run.group
        above = "function" if group is None else self.run.spec.scope
        stack[item] = ([], None)  # pytest 9.2 asks whether the requesting node is being set up
        try:
            for name in compat.higher_fixtures(item, above):
                compat.set_up_fixture(item, name)
        except compat.TEST_OUTCOME as error:
            stack[item] = (stack[item][0], (error, error.__traceback__))
            raise
        del stack[item]
        if group is not None:
            for run in group.runs:
                if group.positions[run.item] > group.positions[item]:
                    self._set_up_ahead(run.item, above)

    def _set_up_ahead(self, item: pytest.Item, above: str) -> None:
        stack = self.conductor.patch.stack
        try:
            for name in compat.higher_fixtures(item, above):
                stack[item] = ([], None)
                compat.set_up_fixture(item, name)
        except compat.TEST_OUTCOME:
            pass  # pytest keeps it, and raises it again in the test that it belongs to
        finally:
            stack.pop(item, None)

    def _enter(self, again: bool) -> Before | None:
        """Starts the sandbox and forks. None in the child, or where there is none: then the item is set up.

        :param again: the child may ask for another attempt.
        """
        __tracebackhide__ = True
        item, conductor, group = self.item, self.conductor, self.run.group
        patch = conductor.patch
        began = time.perf_counter()
        try:
            sandbox = self._start()
        except compat.TEST_OUTCOME as error:
            patch.stack[item] = ([], (error, error.__traceback__))
            raise
        if sandbox is None:
            patch.setup(item)
            return None
        extensions.started(item.config, sandbox)
        reading, writing = conductor.open_pipe()
        orders, commands = os.pipe2(os.O_CLOEXEC) if conductor.live or group is not None else (-1, -1)
        before = Before(conductor, item, again and self._may_start_over())
        timers = self._timers = Timers(item, conductor.faults)
        try:
            child = self._fork_into(sandbox)
        except (SandboxError, OSError) as error:
            for descriptor in (reading, writing, orders, commands):
                if descriptor >= 0:
                    os.close(descriptor)
            sandbox.discard()
            raise _failure(error) from None
        if child is None:
            if commands >= 0:
                os.close(commands)
            if self.run.spec.network == "none":
                traffic.watch()
            guest = conductor.guest = Guest(conductor, item, before, (writing, orders), group)
            guest.overhead = time.perf_counter() - began
            timers.go_on_inside()
            patch.setup(item)
            return None
        os.close(writing)
        if orders >= 0:
            os.close(orders)
        timers.stand_still()
        conductor.spares.ahead(self.run)
        self.forked = True
        self._fork = Fork(sandbox, child, reading, commands)
        self._limits = limits.Limits(item, sandbox, self.run.spec)
        if group is not None:
            group.fork = self._fork
        return before

    def _start(self) -> Sandbox | None:
        """The started sandbox; None to go on without.  Errors become the outcome of the test's set-up."""
        __tracebackhide__ = True
        try:
            sandbox = make_sandbox(self.conductor.sandbox_of(self.run))
            sandbox.check_fork(self.run.spec)
            sandbox.start()
        except SandboxUnavailable as error:
            unavailable = self.conductor.settings.unavailable
            if unavailable == "skip":
                raise compat.skip_at_item(f"{type(error).__name__}: {error}") from None
            if unavailable == "run":
                self.item.warn(PytestSandboxWarning(f"this test ran without its sandbox: {error}"))
                return None
            raise _failure(error) from None
        except SandboxError as error:
            raise _failure(error) from None
        return sandbox

    def _fork_into(self, sandbox: Sandbox) -> Any:
        conductor = self.conductor
        conductor.warm_up(self.item)
        conductor.prepare_for(self.run)
        streams = [sys.stdout, sys.stderr]
        if self.item.config.getoption("capture", "fd") != "fd":
            # The terminal's: what is printed goes through it, or stays in its buffer (--capture=tee-sys, sys). Under fd
            # its descriptor is pytest's file at this moment.
            streams += [sys.__stdout__, sys.__stderr__]
        for stream in streams:
            try:
                stream.flush()  # the child has a copy of every buffer
            except (AttributeError, OSError, ValueError):
                pass
        return sandbox.fork()

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
                inbox.read(fork.child, fork.reading, until, self._answering(),
                           self._limits.clock if self._limits is not None else None, self.conductor.spares)
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
            return  # it has nothing more to say, and ends while its reports are dealt with
        if inbox.ending is None and until is not None and inbox.phases[until].report is not None:
            return
        code = fork.child.wait()
        if inbox.ending is None:
            timers = self._timers
            inbox.ending = (timers.ended_it() if timers is not None and code == 1 else None) or (
                self._limits.ended_it() if self._limits is not None else None) or self._crashed(code)
        if not inbox.done:
            self._residue = compat.captured_so_far(self.item.config, SECTION_LIMIT)
        if self.conductor.keeper is not None and not isinstance(inbox.ending, ENDS_THE_RUN):
            self.conductor.keeper.take(self.item, fork.sandbox, inbox.now)
        self._lose_group()

    def _lose_group(self) -> None:
        if (group := self.run.group) is not None:
            group.lost = f"in {self.item.name}"
            group.close()

    def _give_up(self, error: BaseException) -> None:
        assert self._fork is not None
        self._fork.child.kill()
        self.inbox.ending = error

    @staticmethod
    def _pass_on_interrupt(fork: Fork) -> None:
        """The child has a session of its own: a terminal, too, interrupts pytest alone."""
        fork.child.send_signal(signal.SIGINT)

    def _answering(self) -> Callable[[str, bool], None] | None:
        """What to do with each report as it comes, if anything."""
        if self.conductor.live:
            return self._answer
        return self._keep if self.conductor.keeper is not None else None

    def _keep(self, when: str, main: bool) -> None:
        """Keeps the sandbox of a test whose phase has failed; its process waits for that."""
        report = self.inbox.phases[when].report if main else None
        if report is None or self._fork is None or self.conductor.keeper is None:
            return
        clock = self._limits.clock if self._limits is not None else None
        if clock is not None:
            clock.patience(True)
        self.conductor.keeper.heard(self.item, self._fork.sandbox, report)

    def _answer(self, when: str, main: bool) -> None:
        """Deals with a report as it comes; the child goes on when it is told so."""
        assert self._fork is not None
        if main and when != "teardown":
            self._owes_answer = True  # the runner will log it first
            return
        if not main and when != "setup":  # a set-up is heard in the middle of its hook: no place for reports
            self._log_extras(self.inbox.phases[when])
        self._fork.command("go")

    def _log_extras(self, phase: Phase) -> None:
        """What a phase brought beside its own report."""
        changes, phase.changes = phase.changes, []
        extras, phase.extras = phase.extras, []
        for change in changes:
            self._apply(change)
        for extra in extras:
            self.item.ihook.pytest_runtest_logreport(report=extra)

    def _crashed(self, code: int) -> SandboxCrashed:
        if code < 0:
            try:
                why = f"it was killed by {signal.Signals(-code).name}"
            except ValueError:
                why = f"it was killed by signal {-code}"
        else:
            why = f"it exited with status {code} before the test had ended"
            if code == 0:
                why += ", or it closed the descriptor by which its reports leave the sandbox"
        phase = self.inbox.now
        return SandboxCrashed(
            f"the process of {self.item.nodeid} died during its {phase}", why=why, phase=phase,
            signal=-code if code < 0 else None, exitcode=code if code >= 0 else None)

    # Reports: called from ItemRun.call_and_report, outside of every hook.

    def deliver(self, when: Any, log: bool, nextitem: pytest.Item | None) -> pytest.TestReport:
        """The report of phase ``when``, after all that was logged within that phase; logged if ``log`` says so.

        Raises what the child's phase ended with, if that ends the run.
        """
        __tracebackhide__ = True
        item = self.item
        inbox = self.inbox
        if self._owes_answer and (when not in inbox.phases or inbox.phases[when].report is None):
            self._owes_answer = False
            assert self._fork is not None
            self._fork.command("go")
            self._hear(None if when == "teardown" else when)
        phase = inbox.phases.get(when)
        report = None
        if phase is not None:
            self._log_extras(phase)
            report = phase.report
        if when == "setup":
            neighbours.after_setup(item)
        if when != "setup" and report is not None and inbox.ending is None and self._limits is not None and (
                self._limits.out_of_memory()):
            # The kernel killed something inside, and the test was over before its sandbox was. Which phase it was
            # nobody knows; mostly it was the test itself.
            assert self._fork is not None
            self._fork.child.kill()
            self._fork.child.wait()
            self._owes_answer = False
            inbox.ending, inbox.now = self._limits.ended_it() or self._crashed(-signal.SIGKILL), when
            self._lose_group()
            report = None
        if report is None and inbox.ending is not None and when == inbox.now:
            report = self._report_ending(when)
        if report is not None:
            compat.attach_sections(item, report.sections)
            item.user_properties[:] = report.user_properties
            if report.failed and self._fork is not None:
                traffic.add_refused(report, self._fork.sandbox)
            self._failed |= report.failed
            if self.conductor.keeper is not None and self.conductor.live and report.failed and self._fork is not None:
                self.conductor.keeper.take(item, self._fork.sandbox, when)
            if self._decisive is None or (self._decisive.passed and extensions.decides(report)):
                self._decisive = report
            if self._limits is not None:
                self._limits.tell(report)
        if when == "teardown":
            if self._timers is not None:
                self._timers.go_on()
            self._add_coverage()
            if self._limits is not None:
                fork = self._fork if not self.inbox.waits else None
                self._limits.finish(report, self._failed, fork.child if fork is not None else None)
            if self._fork is not None:
                extensions.finished(item, self._fork.sandbox, self._decisive)
                if self.conductor.keeper is not None:
                    self.conductor.keeper.over(item, self._fork.sandbox, self._failed)
            report = self._tear_down_higher(report, nextitem)
            self.run.end_attempt()
        assert report is not None, "only a teardown can have none: the runner asks for the phases that were"
        if log:
            item.ihook.pytest_runtest_logreport(report=report)
        if when == "teardown" and isinstance(inbox.ending, ENDS_THE_RUN):
            raise inbox.ending  # what left it after its last report
        return report

    def _add_coverage(self) -> None:
        sent, self.inbox.coverage = self.inbox.coverage, None
        if sent is None:
            return
        try:
            if isinstance(sent, str):
                raise SandboxProtocolError("what was measured in there could not leave the sandbox", why=sent)
            cover.add(sent)
        except SandboxProtocolError as error:
            self.item.warn(PytestSandboxWarning(f"the coverage of this test is lost: {error}"))

    def _apply(self, changes: Changes) -> None:
        """What the inside changed besides its reports, where outside readers look for it."""
        item = self.item
        for name, value in changes.attributes.items():
            setattr(item, name, value)
        self.run.warnings += changes.warnings
        if changes.failed_subtests:
            compat.set_failed_subtests(item, changes.failed_subtests)
        if changes.benchmarks:
            benchmarks.add(item, changes.benchmarks)
        self._suspended = changes.suspended
        if changes.should_stop and not item.session.shouldstop:
            item.session.shouldstop = changes.should_stop
        if changes.suite_properties or changes.xml_attributes:
            junit = compat.junit(item.config)
            if junit is not None:
                junit.suite_properties().extend(changes.suite_properties)
                junit.attributes(item.nodeid).update(changes.xml_attributes)

    def _report_ending(self, when: Any) -> pytest.TestReport:
        """The report of a phase that its process did not finish: through the hooks, as for a test that failed here."""
        __tracebackhide__ = True
        error = self.inbox.ending
        item = self.item
        if error is None or isinstance(error, ENDS_THE_RUN):
            raise error or BrokenInside("no ending")
        if isinstance(error, SandboxCrashed):
            error.output = "".join(self._residue.values())[-4000:]

        def fail() -> None:
            raise error

        for stream, text in self._residue.items():
            item.add_report_section(when, stream, text)
        call = pytest.CallInfo.from_call(fail, when=when)
        call.duration = time.perf_counter() - self.inbox.phases[when].began
        call.start = call.stop - call.duration
        report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
        if isinstance(error, SandboxError) and report.longrepr is not None and not isinstance(report.longrepr, str):
            report.longrepr = reporting.crash_longrepr(item, error, report)
        if dump := self.conductor.take_fault_dump():
            report.sections.append(("faulthandler dump", dump))
        return report

    def _tear_down_higher(self, report: pytest.TestReport | None, nextitem: pytest.Item | None) -> pytest.TestReport:
        """Tears down what ``nextitem`` does not need, and adds that to the report of the item's teardown.

        A child that died did not get through the hooks of the teardown: then they run out here.
        """
        item, patch = self.item, self.conductor.patch
        hooks_ran = self.inbox.now == "over"
        if hooks_ran and self.inbox.waits and report is not None and (shared := self.leave_group(nextitem)) is not None:
            report = _both(report, shared)
            compat.attach_sections(item, report.sections)
        if hooks_ran:
            neighbours.before_teardown(item, patch.stack, self._suspended)
            if self._suspended or not patch.must_pop(nextitem):
                assert report is not None, "the last phase is over when it was reported"
                return report
        os.environ["PYTEST_CURRENT_TEST"] = f"{item.nodeid} (teardown)".replace("\0", "(null)")

        def tear_down() -> None:
            __tracebackhide__ = True
            if not hooks_ran:
                patch.stack[item] = ([], None)  # as after a set-up: plugins look for it there
                item.ihook.pytest_runtest_teardown(item=item, nextitem=nextitem)
                return
            with compat.capturing(item, "teardown"):
                patch.teardown_exact(nextitem)

        self.conductor.spares.changed()
        call = pytest.CallInfo.from_call(tear_down, when="teardown", reraise=reraised(item.config))
        if report is None or call.excinfo is not None:
            outer: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
            if report is not None:
                outer.duration += report.duration
                outer.start = report.start
                if report.failed and report.longrepr is not None:
                    outer.sections.append(("Sandboxed teardown", report.longreprtext))
            if compat.check_interactive_exception(call, outer):
                item.ihook.pytest_exception_interact(node=item, call=call, report=outer)
            return outer
        report.duration += call.duration
        report.stop = call.stop
        report.sections = _merged(report.sections, compat.sections_of(item))
        return report

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
        positions = group.positions
        if not group.fork.command("leave", positions[self.item], None if nextitem is None else positions[nextitem]):
            group.close()
            return None
        self._hear(None)
        self._add_coverage()
        phase = self.inbox.phases["teardown"]
        self._log_extras(phase)
        report = phase.report or self._report_ending("teardown")
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
        if fork is not None and not (self.inbox.waits and group is not None and group.fork is fork):
            fork.close()
            if group is not None and group.fork is fork:
                group.fork = None
        if self.forked:
            os.environ.pop("PYTEST_CURRENT_TEST", None)
        if self.conductor.keeper is not None:
            self.conductor.keeper.clear_gate()


def _failure(error: SandboxError | OSError) -> BaseException:
    """Fails the test with the error's own words; a traceback through this plugin would tell nobody anything."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return pytest.fail.Exception(
            f"{type(error).__name__}: {error}: the sandbox has no such directory to start the test in. Correct its "
            f"workdir option, or make the directory with the image or a mount.", pytrace=False)
    return pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False)


def _both(report: pytest.TestReport, shared: pytest.TestReport) -> pytest.TestReport:
    """One report of two that tell of the same teardown: the test's own, and that of what it shared with others."""
    told, other = (report, shared) if report.failed else (shared, report)
    told.duration += other.duration
    told.start = min(report.start, shared.start)
    told.stop = max(report.stop, shared.stop)
    told.sections = _merged(other.sections, told.sections)
    return told


def _merged(reported: list[tuple[str, str]], attached: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A report's sections, those that are attached to its item brought up to date."""
    names = {name for name, _ in attached}
    return [*attached, *[(name, text) for name, text in reported if name not in names]]


def reraised(config: pytest.Config) -> tuple[type[BaseException], ...]:
    """What leaves a phase instead of becoming its outcome, as pytest has it."""
    return (pytest.exit.Exception,) if config.getoption("usepdb", False) else (pytest.exit.Exception, KeyboardInterrupt)
