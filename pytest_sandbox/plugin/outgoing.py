"""What leaves a sandboxed test's process besides its reports: what the test has changed out of sight. ``guest``'s."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from . import benchmarks, compat, cover, databases, reporting, wire

if TYPE_CHECKING:
    from .conductor import Conductor

#: The longest output of one kind that travels, in characters; what is longer loses its middle.
SECTION_LIMIT = 8 << 20


class Before:
    """How things stand before a fork, to tell afterwards what the inside changed. Made in the parent."""

    __slots__ = ("attributes", "coverage", "data_files", "databases", "junit", "listeners", "printed", "report_hook",
                 "stack", "suite")

    def __init__(self, conductor: Conductor, item: pytest.Item, may_start_over: bool = False) -> None:
        config = item.config
        self.printed = compat.Printed(config) if may_start_over else None
        # pytest-rerunfailures takes the higher scopes off the stack between two attempts; they are there all the same.
        self.stack = {node: len(finalizers) for node, (finalizers, _) in compat.finalizers_aside().items()}
        self.stack |= {node: len(finalizers) for node, (finalizers, _) in conductor.patch.stack.items()}
        self.attributes = dict(item.__dict__)
        self.junit = compat.junit(config)
        self.suite = len(self.junit.suite_properties()) if self.junit is not None else 0
        self.coverage = compat.coverage_collector()
        self.databases = databases.files()
        self.data_files = cover.before_fork(self.coverage) if self.coverage is not None else set()
        self.report_hook = config.hook.pytest_runtest_logreport
        self.listeners = compat.of_plugins(self.report_hook, (
            item.session, config.pluginmanager.get_plugin("logging-plugin"), conductor))


class Outgoing:
    """Of one test, in its child; from its begin to the last report."""

    def __init__(self, conductor: Conductor, item: pytest.Item, before: Before) -> None:
        self.conductor, self.item, self._before = conductor, item, before
        compat.enter_test_line(item.config)
        self._line = compat.current_line(item.config)
        self._in_line = compat.in_test_line(item.config)
        self._names: dict[int, str] = {}
        self._reports: dict[int, str] = {}
        self._sent: dict[str, Any] = {}
        # The parent replays what is recorded, if there is pytest's plugin that tells of it.
        self._catcher = warnings.catch_warnings(record=item.config.pluginmanager.has_plugin("warnings"))
        recorded = self._catcher.__enter__()
        self._warnings: list[warnings.WarningMessage] = [] if recorded is None else recorded

    def sends(self, report: pytest.TestReport, phase: str) -> None:
        """The phase's own report is about to travel; from now on it goes by a name."""
        self._reports[id(report)] = phase

    def shown(self, line: str, in_line: bool) -> None:
        """The report was dealt with, and shown: the terminal is there now."""
        compat.set_current_line(self.item.config, line)
        if in_line:
            compat.enter_test_line(self.item.config)
        else:
            compat.leave_test_line(self.item.config)
        self._line, self._in_line = line, compat.in_test_line(self.item.config)

    def over(self) -> None:
        """The process goes on to another test."""
        self._catcher.__exit__(None, None, None)

    def changes(self, phase: str, is_shared: Callable[[pytest.Item | pytest.Collector], bool]) -> dict[str, Any]:
        """What else has happened since the last report, as data.

        :param is_shared: whether what is set up for a node belongs to other tests, too.
        """
        changes: dict[str, Any] = {}
        if self._warnings:
            changes["warnings"] = [reporting.warning_to_data(one) for one in self._warnings]
            self._warnings.clear()
        if attributes := self._new_attributes():
            changes["attributes"] = attributes
        if failed := compat.failed_subtests(self.item):
            changes["failed_subtests"] = failed
        before = self._before
        if before.junit is not None:
            properties = before.junit.suite_properties()[before.suite:]
            before.suite += len(properties)
            if properties:
                changes["suite_properties"] = [[str(name), str(value)] for name, value in properties]
            if attrs := before.junit.attributes(self.item.nodeid):
                changes["xml_attributes"] = {str(name): str(value) for name, value in attrs.items()}
        if phase == "teardown" and any(node not in self.conductor.patch.stack and not is_shared(node)
                                        for node in before.stack):
            changes["suspended"] = True  # a plugin took the higher scopes off the stack: it wants another attempt
        if phase != "setup" and (measured := benchmarks.take(self.item, self.name_of)):
            changes["benchmarks"] = measured
        left = self._in_line and not compat.in_test_line(self.item.config)
        if (line := compat.current_line(self.item.config)) != self._line:
            changes["line"] = self._line = line
        if left:
            changes["left_line"], self._in_line = True, False
        if stop := self.item.session.shouldstop:
            changes["should_stop"] = str(stop)
        return changes

    def _new_attributes(self) -> dict[str, Any]:
        """Plain data that plugins left on the item since the fork (report-making hooks do), unless sent already."""
        found = {}
        before = self._before.attributes
        for name, value in self.item.__dict__.items():
            if (name in before and before[name] is value) or not reporting.may_travel(self.item, name):
                continue
            try:
                packed = wire.pack(value, self.name_of, opaque=False)
            except wire.NotData:
                continue
            if name not in self._sent or self._sent[name] != packed:
                self._sent[name] = packed
                found[name] = packed
        return found

    def name_of(self, value: object) -> str | None:
        """The name of an object that both sides have."""
        if not self._names:
            self._names = {id(one): name for name, one in self.conductor.shared_objects(self.item).items()}
        name = self._names.get(id(value))
        if name is None and (sent := self._reports.get(id(value))) is not None:
            name = f"report:{sent}"
        return name

    @staticmethod
    def bound(report: pytest.TestReport) -> None:
        """Takes the middle out of output that is too long to travel."""
        for index, (name, text) in enumerate(report.sections):
            if len(text) > SECTION_LIMIT:
                half = SECTION_LIMIT // 2
                left_out = f"\n[... {len(text) - 2 * half:,} characters of output left out ...]\n"
                report.sections[index] = (name, text[:half] + left_out + text[-half:])

    def unsendable(self, report: pytest.TestReport, error: Exception) -> pytest.TestReport:
        """A report that cannot travel as it is becomes one that says why, with what still can."""
        text = f"{report.longreprtext[:100_000]}\n\n" if report.longrepr is not None else ""
        sections = [(name, content[:100_000]) for name, content in report.sections[-20:]]
        return pytest.TestReport(
            self.item.nodeid, self.item.location, dict.fromkeys(self.item.keywords, 1), "failed",
            f"{text}The report of this test could not leave its sandbox: {error}", report.when, sections,
            report.duration, report.start, report.stop)
