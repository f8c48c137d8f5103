"""What a test's process leaves in pytest besides reports, and the report of one that did not finish. Used by
``attempt``, outside.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxCrashed, SandboxError, SandboxProtocolError

from . import benchmarks, compat, cover, reporting
from .inbox import ENDS_THE_RUN, BrokenInside, Inbox
from .options import PytestSandboxWarning

if TYPE_CHECKING:
    from .item import ItemRun
    from .party import Party
    from .reporting import Changes


def apply(changes: Changes, run: ItemRun) -> None:
    """What the inside changed, where outside readers look for it."""
    item = run.item
    for name, value in changes.attributes.items():
        setattr(item, name, value)
    run.warnings += changes.warnings
    if changes.failed_subtests:
        compat.set_failed_subtests(item, changes.failed_subtests)
    if changes.benchmarks:
        benchmarks.add(item, changes.benchmarks)
    if changes.line is not None:
        compat.set_current_line(item.config, changes.line)
    if changes.left_line:
        compat.leave_test_line(item.config)
    if changes.should_stop and not item.session.shouldstop:
        item.session.shouldstop = changes.should_stop
    if changes.suite_properties or changes.xml_attributes:
        junit = compat.junit(item.config)
        if junit is not None:
            junit.suite_properties().extend(changes.suite_properties)
            junit.attributes(item.nodeid).update(changes.xml_attributes)


def add_coverage(inbox: Inbox, party: Party | None = None) -> None:
    """Adds what was measured inside to what is measured out here, once."""
    sent, inbox.coverage = inbox.coverage, None
    if sent is None:
        return
    try:
        if isinstance(sent, str):
            raise SandboxProtocolError("what was measured in there could not leave the sandbox", why=sent)
        if party is not None:
            party.hosting.measured(sent)
        else:
            cover.add(sent)
    except SandboxProtocolError as error:
        inbox.item.warn(PytestSandboxWarning(f"the coverage of this test is lost: {error}"))


def crashed(inbox: Inbox, code: int) -> SandboxCrashed:
    """The child has ended with ``code`` (negative: a signal) and without a goodbye."""
    if code < 0:
        try:
            why = f"it was killed by {signal.Signals(-code).name}"
        except ValueError:
            why = f"it was killed by signal {-code}"
    else:
        why = f"it exited with status {code} before the test had ended"
        if code == 0:
            why += ", or it closed the descriptor by which its reports leave the sandbox"
    return SandboxCrashed(
        f"the process of {inbox.item.nodeid} died during its {inbox.now}", why=why, phase=inbox.now,
        signal=-code if code < 0 else None, exitcode=code if code >= 0 else None)


def report_of_ending(run: ItemRun, inbox: Inbox, when: Any, residue: dict[str, str]) -> pytest.TestReport:
    """The report of a phase that its process did not finish: through the hooks, as for a test that failed here.

    :param residue: what it had printed, by stream.
    """
    __tracebackhide__ = True
    error, item = inbox.ending, run.item
    if error is None or isinstance(error, ENDS_THE_RUN):
        raise error or BrokenInside("no ending")
    if isinstance(error, SandboxCrashed):
        error.output = "".join(residue.values())[-4000:]

    def fail() -> None:
        raise error

    for stream, text in residue.items():
        item.add_report_section(when, stream, text)
    call = pytest.CallInfo.from_call(fail, when=when)
    call.duration = time.perf_counter() - inbox.phases[when].began
    call.start = call.stop - call.duration
    report: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
    if isinstance(error, SandboxError) and report.longrepr is not None and not isinstance(report.longrepr, str):
        report.longrepr = reporting.crash_longrepr(item, error, report)
    if dump := run.conductor.take_fault_dump(run):
        report.sections.append(("faulthandler dump", dump))
    return report
