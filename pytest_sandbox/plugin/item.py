"""The place of a sandboxed item in pytest's runner: it stands in for the item, outside and, after the fork, inside.

Each time the item is run (plugins may repeat it) an :class:`~.attempt.Attempt` starts the sandbox, forks, listens until
the child has ended, and then hands out the child's reports phase by phase.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from . import reporting
from .attempt import Attempt
from .entering import Over
from .entering_abroad import EntryAbroad

if TYPE_CHECKING:
    from pytest_sandbox.spec import SandboxSpec

    from .conductor import Conductor
    from .household import Group
    from .party import Party

RUN: pytest.StashKey[ItemRun] = pytest.StashKey()


class ItemRun:
    """A sandboxed item's place in the runner. Made when collection has finished, kept in the item's stash."""

    def __init__(self, item: pytest.Item, spec: SandboxSpec, conductor: Conductor) -> None:
        self.item = item
        self.spec = spec
        self.conductor = conductor
        self.group: Group | None = None
        self.party: Party | None = None  # where the body runs in the Python of another image
        self.nextitem: pytest.Item | None = None
        self.attempt: Attempt | None = None
        self.error: BaseException | None = None  # that its set-up fails with
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
            if (delivered := attempt.delivery.of_phase(when, log, kwds.get("nextitem"))) is not None:
                return delivered
            self._catch_up(original)
        shared = None
        if when == "teardown" and conductor.guest is None and self.group is not None:
            shared = attempt.delivery.leave_group(kwds.get("nextitem"))
        try:
            if conductor.guest is not None:
                conductor.guest.hears_interrupts()
            if when != "call" and isinstance(attempt.entry, EntryAbroad) and conductor.guest is None:
                report = attempt.entry.call_and_report(when, log, kwds.get("nextitem"))
            else:
                report = original(self.item, when, log and shared is None, **kwds)
            if conductor.guest is not None:
                conductor.guest.reported(when, report, kwds.get("nextitem"))
        except Over:
            return attempt.delivery.of_setup(when, log)
        except (pytest.exit.Exception, KeyboardInterrupt) as error:
            if conductor.guest is not None:
                conductor.guest.left_by(error)
            raise
        except BaseException:
            if conductor.guest is not None:
                conductor.guest.broke()
            raise
        if attempt.forked and conductor.guest is None:
            return attempt.delivery.of_setup(when, log)  # a hook around the set-up did not let ``Over`` pass
        if shared is not None:
            report = reporting.both(report, shared)
            if log:
                self.item.ihook.pytest_runtest_logreport(report=report)
        if when == "teardown" and conductor.guest is None:
            self.end_attempt()
        return report

    def _catch_up(self, original: Callable[..., pytest.TestReport]) -> None:
        """In the child of an attempt that began when the set-up had been reported: goes through it again."""
        if self.conductor.guest is None:
            pytest.fail("the test started over and cannot have its sandbox again", pytrace=False)
        self.call_and_report(original, "setup", True, {})

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
