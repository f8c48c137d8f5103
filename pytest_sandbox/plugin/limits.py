"""Limits of a sandboxed test: those that it met, and what is told of them. Used by ``item`` and ``fixtures``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.limits import DISK_REMEDY, disk_error, pids_error
from pytest_sandbox.usage import LimitEvents, Usage

from . import consumption
from .options import PytestSandboxWarning

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.errors import DiskLimitExceeded, MemoryLimitExceeded, PidsLimitExceeded
    from pytest_sandbox.sandbox import ForkedChild, Sandbox
    from pytest_sandbox.spec import SandboxSpec

    from .clock import Clock

class Limits:
    """What one attempt of a test has to do with limits. Made when it is in its sandbox, used until that is closed.

    ``clock`` is its timeout, if it has one.
    """

    __slots__ = ("_before", "_began", "_item", "_sandbox", "_spec", "_used", "clock")

    def __init__(self, item: pytest.Item, sandbox: Sandbox, spec: SandboxSpec) -> None:
        self._item, self._sandbox, self._spec = item, sandbox, spec
        self._began = time.monotonic()
        self.clock: Clock | None = None
        if spec.timeout is not None:
            from .clock import Clock

            self.clock = Clock(item, sandbox, spec.timeout)
        # Of a sandbox that tests share, only what happens from now on is this test's.
        shared = spec.scope != "function"
        self._before = sandbox.limit_events() if shared else LimitEvents()
        self._used = sandbox.usage() if shared and self._tells() else Usage()

    def _tells(self) -> bool:
        """Whether the report shall have what was used."""
        return bool(self._spec.given & consumption.LIMITS) or consumption.wanted(self._item.config)

    def out_of_memory(self) -> bool:
        """Whether the kernel has killed something inside for the limit on memory: then the sandbox ends soon."""
        if self._spec.memory is None:
            return False
        try:
            return bool(self._sandbox.limit_events().oom_kills)
        except SandboxError:
            return False

    def ended_it(self) -> MemoryLimitExceeded | None:
        """The limit that has ended the sandbox, if one did."""
        try:
            return self._sandbox.limit_error()
        except SandboxError:
            return None

    def tell(self, report: pytest.TestReport) -> None:
        """Says in the report of a failed phase which limits were met, and what to do about a full disk."""
        if not report.failed:
            return
        met = self._met()
        text = report.longreprtext
        for error, sign in met:
            said = f"{type(error).__name__}: {error}"
            if type(error).__name__ in text:
                continue  # it is the failure
            add_to_failure(report, "limit reached", said, in_front=any(one in text for one in sign))
        if not met and any(one in text for one in DISK_SIGNS):
            add_to_failure(report, "hint", f"If that was in the sandbox's writable layer: {DISK_REMEDY}")

    def finish(self, report: pytest.TestReport | None, failed: bool, child: ForkedChild | None) -> None:
        """The last phase is over: tells of limits that a test met and survived, and what it used.

        :param child: its process, unless that stays for the next test.
        """
        if self._spec.given & consumption.LIMITS and not failed:
            for error, _ in self._met():
                warn(self._item, report, f"this test passed, but {error}")
        if self._tells():
            wall = time.monotonic() - self._began
            properties = [consumption.options_of(self._spec)] if consumption.recorded(self._item.config) else []
            try:
                if child is not None and not self._sandbox.counts_as_it_goes:
                    child.wait()  # it has said goodbye, and is counted when it has gone
                usage = consumption.since(self._used, self._sandbox.usage())
                if child is None and not self._sandbox.counts_as_it_goes:
                    usage = replace(usage, cpu_seconds=None, user_seconds=None, system_seconds=None)
            except SandboxError:
                usage = Usage()  # it has ended
            properties += consumption.properties(replace(usage, wall_seconds=wall))
            self._item.user_properties.extend(properties)
            if report is not None and report.user_properties is not self._item.user_properties:
                report.user_properties.extend(properties)

    def _met(self) -> list[tuple[PidsLimitExceeded | DiskLimitExceeded, tuple[str, ...]]]:
        """The limits that were met and did not end the sandbox, each with how that looks in a failure's text."""
        return met_limits(self._sandbox, self._spec, self._before)


def after_driving(item: pytest.Item, sandbox: Sandbox) -> None:
    """A test that drove a sandbox is over: tells of limits that it met and survived, and what the sandbox used."""
    given = sandbox.spec.given & consumption.LIMITS
    if given:
        for error, _ in met_limits(sandbox, sandbox.spec, LimitEvents()):
            item.warn(PytestSandboxWarning(f"in this test {error}"))
    if given or consumption.wanted(item.config):
        if consumption.recorded(item.config):
            item.user_properties.append(consumption.options_of(sandbox.spec))
        try:
            item.user_properties.extend(consumption.properties(sandbox.usage()))
        except SandboxError:
            pass  # the test has closed it


#: How a limit looks in the text of a failure that it caused.
DISK_SIGNS = ("No space left on device", "[Errno 28]", "ENOSPC", "Disk quota exceeded")
PIDS_SIGNS = ("Resource temporarily unavailable", "[Errno 11]", "can't start new thread", "Cannot fork",
              "BlockingIOError")


def met_limits(sandbox: Sandbox, spec: SandboxSpec,
               before: LimitEvents) -> list[tuple[PidsLimitExceeded | DiskLimitExceeded, tuple[str, ...]]]:
    """The limits that a sandbox has met since ``before``, and that did not end it."""
    try:
        met = sandbox.limit_events()
    except SandboxError:
        return []  # the test has closed it
    found: list[tuple[PidsLimitExceeded | DiskLimitExceeded, tuple[str, ...]]] = []
    refused = (met.pids_refused or 0) - (before.pids_refused or 0)
    if refused > 0:
        found.append((pids_error(spec, replace(met, pids_refused=refused), sandbox.usage().pids_peak), PIDS_SIGNS))
    if met.disk_full is not None and before.disk_full is None:
        found.append((disk_error(spec, met, sandbox.usage().disk), DISK_SIGNS))
    return found


def add_to_failure(report: pytest.TestReport, title: str, text: str, in_front: bool = False) -> None:
    """Adds a section to the representation of a failure.

    :param in_front: it is the reason: then it is also what the summary says.
    """
    failure: Any = report.longrepr
    crash = getattr(failure, "reprcrash", None)
    if in_front and crash is not None:
        crash.message = f"{text}\n{crash.message}"
    if hasattr(failure, "addsection"):
        failure.addsection(title, text)
    else:
        report.sections.append((title, text))


def warn(item: pytest.Item, report: pytest.TestReport | None, text: str) -> None:
    """Warns; where warnings are errors, the test fails with it."""
    try:
        item.warn(PytestSandboxWarning(text))
    except PytestSandboxWarning as error:
        if report is None:
            raise
        report.outcome = "failed"
        report.longrepr = f"{type(error).__name__}: {error}"
