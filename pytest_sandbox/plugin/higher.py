"""Fixtures of higher scope: set up outside before a test's fork, torn down outside after its end. ``attempt``'s."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from . import compat, neighbours, reporting

if TYPE_CHECKING:
    from .item import ItemRun


def set_up(run: ItemRun) -> None:
    """Sets up the fixtures that outlive the sandbox. The tests of a group must find all of theirs at the fork."""
    __tracebackhide__ = True
    item, stack, group = run.item, run.conductor.patch.stack, run.group
    above = "function" if group is None else run.spec.scope
    stack[item] = ([], None)  # pytest 9.2 asks whether the requesting node is being set up
    try:
        for name in compat.higher_fixtures(item, above):
            compat.set_up_fixture(item, name)
    except compat.TEST_OUTCOME as error:
        stack[item] = (stack[item][0], (error, error.__traceback__))
        raise
    del stack[item]
    if group is not None:
        for other in group.runs:
            if group.positions[other.item] > group.positions[item]:
                _set_up_ahead(other, above)


def _set_up_ahead(run: ItemRun, above: str) -> None:
    item, stack = run.item, run.conductor.patch.stack
    try:
        for name in compat.higher_fixtures(item, above):
            stack[item] = ([], None)
            compat.set_up_fixture(item, name)
    except compat.TEST_OUTCOME:
        pass  # pytest keeps it, and raises it again in the test that it belongs to
    finally:
        stack.pop(item, None)


def tear_down(run: ItemRun, report: pytest.TestReport | None, nextitem: pytest.Item | None, hooks_ran: bool,
              suspended: bool) -> tuple[pytest.TestReport, pytest.CallInfo[None] | None]:
    """Tears down what ``nextitem`` does not need, and adds that to the ``report`` of the item's teardown.

    The second value is a failure that is to be shown once its report is logged.

    :param hooks_ran: whether the child got through the hooks of the teardown; else they run out here.
    :param suspended: a plugin in there wants another attempt, and everything kept for it.
    """
    item, patch = run.item, run.conductor.patch
    if hooks_ran:
        neighbours.before_teardown(item, patch.stack, suspended)
        if suspended or not patch.must_pop(nextitem):
            assert report is not None, "the last phase is over when it was reported"
            return report, None
    os.environ["PYTEST_CURRENT_TEST"] = f"{item.nodeid} (teardown)".replace("\0", "(null)")

    def call_hooks() -> None:
        __tracebackhide__ = True
        if not hooks_ran and run.party is None:  # else those of the set-up did not run here either
            patch.stack[item] = ([], None)  # as after a set-up: plugins look for it there
            item.ihook.pytest_runtest_teardown(item=item, nextitem=nextitem)
            return
        with compat.capturing(item, "teardown"):
            patch.teardown_exact(nextitem)

    run.conductor.spares.changed()
    call = pytest.CallInfo.from_call(call_hooks, when="teardown", reraise=reraised(item.config))
    if report is None or call.excinfo is not None:
        outer: pytest.TestReport = item.ihook.pytest_runtest_makereport(item=item, call=call)
        if report is not None:
            outer.duration += report.duration
            outer.start = report.start
            if report.failed and report.longrepr is not None:
                outer.sections.append(("Sandboxed teardown", report.longreprtext))
        return outer, call
    report.duration += call.duration
    report.stop = call.stop
    report.sections = reporting.merged(report.sections, compat.sections_of(item))
    return report, None


def reraised(config: pytest.Config) -> tuple[type[BaseException], ...]:
    """What leaves a phase instead of becoming its outcome, as pytest has it."""
    return (pytest.exit.Exception,) if config.getoption("usepdb", False) else (pytest.exit.Exception, KeyboardInterrupt)
