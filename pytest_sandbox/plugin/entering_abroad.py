"""How a test whose body runs in the Python of another image gets there: that image's guest forks a child for it. Used
by ``attempt`` and ``item``, outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError, SandboxUnavailable

from . import compat, extensions, higher, passing
from .entering import Entry, Over, failure
from .timers import Timers

if TYPE_CHECKING:
    from .attempt import Attempt
    from .party import Party


class EntryAbroad(Entry):
    """The hooks of the set-up run in there, and not here, where the answers would be of another system."""

    def __init__(self, attempt: Attempt, party: Party) -> None:
        super().__init__(attempt)
        self._party = party

    def call_and_report(self, when: str, log: bool, nextitem: pytest.Item | None) -> pytest.TestReport:
        """In place of the runner's function of this name, for the set-up and the teardown.

        Raises ``Over`` when there is a child. So the reports that this returns are of a child that cannot be had.
        """
        __tracebackhide__ = True
        item = self.run.item
        failed: pytest.CallInfo[None] | None = None
        report: pytest.TestReport
        if when == "setup":
            call = pytest.CallInfo.from_call(self.set_up, when="setup", reraise=(
                Over, *higher.reraised(item.config)))
            report = item.ihook.pytest_runtest_makereport(item=item, call=call)
        else:
            report, failed = self.attempt.delivery.end(None, nextitem)
        if log:
            item.ihook.pytest_runtest_logreport(report=report)
        if failed is not None and compat.check_interactive_exception(failed, report):
            item.ihook.pytest_exception_interact(node=item, call=failed, report=report)
        return report

    def set_up(self) -> None:
        """Has the guest of the item's image fork a child, and hears it. Raises ``Over``."""
        __tracebackhide__ = True
        self.attempt.delivery.before = compat.sections_of(self.run.item)
        if self._join_group():
            raise Over
        self.enter()
        while True:
            self.attempt.listener.listen()
            if self.attempt.inbox.wanted is None:
                raise Over
            self.set_up_wanted()
            self.enter("setup")

    def set_up_wanted(self) -> None:
        self._party.set_up_wanted(self.run.item, self._forget())

    def _order(self) -> tuple[Any, ...]:
        return self._party.order(self.run, False)

    def enter(self, replay: str | None = None) -> bool:
        """What waits in the sandbox begins."""
        __tracebackhide__ = True
        party, run, conductor = self._party, self.run, self.conductor
        try:
            fork = party.fork(run, replay, passing.values(run))
        except SandboxUnavailable as error:
            if conductor.settings.unavailable == "skip":
                raise compat.skip_at_item(f"{type(error).__name__}: {error}") from None
            raise failure(error) from None
        except (SandboxError, OSError) as error:
            raise failure(error) from None
        extensions.started(run.item.config, fork.sandbox)
        timers = self.attempt.timers = Timers(run.item, None) if party.times(run.item) else None
        self.attempt.signals.hold()
        may = self.attempt.inbox.may_start_over = self._may_start_over()
        fork.command(*party.order(run, may))  # one that has ended meanwhile will be heard of
        if timers is not None:
            timers.stand_still()  # its own goes on in there
        self._go_on_with(fork)
        if run.group is not None:
            run.group.fork = fork
        if conductor.abroad is not None:
            conductor.abroad.ahead(run)
        return True
