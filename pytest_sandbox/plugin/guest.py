"""The inside of one sandboxed item: runs in the forked child, from the fork in the item's set-up to ``os._exit``.

Time in here is mostly page faults: each page of memory that is touched first costs a copy (about 3 us in a virtual
machine), reference counts included. So what can be found out before the fork is (``Before``), and what is imported is
imported at the top.

pytest's own code goes on running here, with every hook, wrapper and plugin of the process that forked. What differs:
reports travel to the parent instead of to the terminal and its kin, only the item itself is torn down, and nothing
returns from the end of the teardown.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_sandbox.errors import SandboxProtocolError

from . import compat, reporting, wire

if TYPE_CHECKING:
    from .conductor import Conductor

#: The longest output of one kind that travels, in characters; what is longer loses its middle.
SECTION_LIMIT = 8 << 20


class Before:
    """How things stand before a fork, to tell afterwards what the inside changed. Made in the parent."""

    __slots__ = ("attributes", "junit", "listeners", "report_hook", "stack", "suite")

    def __init__(self, conductor: Conductor, item: pytest.Item) -> None:
        config = item.config
        self.stack = {node: len(finalizers) for node, (finalizers, _) in conductor.patch.stack.items()}
        self.attributes = dict(item.__dict__)
        self.junit = compat.junit(config)
        self.suite = len(self.junit.suite_properties()) if self.junit is not None else 0
        self.report_hook = config.hook.pytest_runtest_logreport
        self.listeners = compat.of_plugins(self.report_hook, (
            item.session, config.pluginmanager.get_plugin("logging-plugin"), conductor))


class Guest:
    """Made by the fork, in the child; ends with the process. Holds the writing end of the pipe to the parent."""

    def __init__(self, conductor: Conductor, item: pytest.Item, before: Before, descriptor: int) -> None:
        self.pid = os.getpid()
        self.conductor = conductor
        self.item = item
        self.overhead = 0.0
        self.made: pytest.TestReport | None = None  # the report that pytest made last
        self._before = before
        self._descriptor = descriptor
        self._phase = "setup"
        self._shipped: pytest.TestReport | None = None
        self._names: dict[int, str] = {}
        self._reports: dict[int, str] = {}
        self._sent: dict[str, Any] = {}
        catcher = warnings.catch_warnings(record=True)  # never left: the parent replays what is recorded
        recorded = catcher.__enter__()
        assert recorded is not None
        self._warnings: list[warnings.WarningMessage] = recorded
        compat.replace_implementations(before.report_hook, before.listeners)
        if conductor.fault_descriptor is not None:
            faulthandler.enable(conductor.fault_descriptor)

    def leave_out_overhead(self, call: pytest.CallInfo[None]) -> None:
        """The time of the set-up without that of making the sandbox and forking into it."""
        if call.when == "setup":
            call.duration -= self.overhead
            call.stop -= self.overhead
            self.overhead = 0.0

    def logged(self, report: pytest.TestReport) -> None:
        """Someone logged a report: pytest the phase's own, which it made last, or a test that of a subtest."""
        self._check_process()
        main = report is self.made
        self._bound(report)
        changes = self._changes()
        if main:
            self._shipped = report
            self._reports[id(report)] = self._phase
        try:
            data = reporting.report_to_data(report, self.item.config, self._name_of)
            message = wire.encode(["report", self._phase, data, changes, main])
        except (TypeError, wire.NotData, RecursionError, SandboxProtocolError) as error:
            report = self._unsendable(report, error)
            data = reporting.report_to_data(report, self.item.config, self._name_of)
            message = wire.encode(["report", self._phase, data, {}, main])
        self._send(message)

    def reported(self, when: str, report: pytest.TestReport) -> None:
        """One phase is over, with ``report``. Does not return from the last one."""
        self._check_process()
        if self._shipped is not report:  # whoever runs the phases logs the reports later
            self.made = report
            self.logged(report)
        elif getattr(report, "_pdbshown", False):
            self._send(wire.encode(["shown", when]))
        if when == "teardown":
            self.finish()
        goes_on = when == "setup" and report.passed and not self.item.config.getoption("setuponly", False)
        self._phase = "call" if goes_on else "teardown"

    def left_by(self, error: BaseException) -> NoReturn:
        """``pytest.exit`` or an interrupt ends the run: the parent raises it again. Function-scoped teardown first."""
        self._check_process()
        exits = isinstance(error, pytest.exit.Exception)
        message = ["exit", self._phase, "Exit" if exits else "KeyboardInterrupt",
                   str(getattr(error, "msg", "") or ""), getattr(error, "returncode", None)]
        try:
            self.teardown_exact(None)
        except BaseException:  # noqa: BLE001 - the run is over; what ends it must still be told
            pass
        self._send(wire.encode(message))
        self.finish()

    def broke(self) -> NoReturn:
        """pytest or a plugin failed, not the test: the parent's run ends with this traceback, as it would have here."""
        self._check_process()
        self._send(wire.encode(["broken", self._phase, traceback.format_exc()[-100_000:]]))
        self.finish()

    def finish(self) -> NoReturn:
        """The last thing that happens in here."""
        self._check_process()
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                stream.flush()  # type: ignore[union-attr]
            except (AttributeError, OSError, ValueError):
                pass
        self._send(b"\0\0\0\x08[\"done\"]")
        os._exit(0)

    def teardown_exact(self, nextitem: pytest.Item | None) -> None:
        """In place of pytest's: ends the item, and what it requested of higher scope for itself alone.

        A fixture of higher scope that the item asked for by name (``getfixturevalue``) was set up in here, so its
        finalizers are the ones that were not there at the fork.
        """
        patch = self.conductor.patch
        exceptions: list[BaseException] = []
        try:
            patch.teardown_exact(self.item.parent)
        except compat.TEST_OUTCOME as error:
            exceptions.append(error)
        for node, (finalizers, _) in reversed(list(patch.stack.items())):
            known = self._before.stack.get(node, 0)
            while len(finalizers) > known:
                try:
                    finalizers.pop()()
                except compat.TEST_OUTCOME as error:
                    exceptions.append(error)
        if len(exceptions) == 1:
            raise exceptions[0]
        if exceptions:
            raise compat.exception_group("errors during test teardown", exceptions[::-1])

    # What travels besides reports.

    def _changes(self) -> dict[str, Any]:
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
        if self._phase == "teardown" and any(node not in self.conductor.patch.stack for node in before.stack):
            changes["suspended"] = True  # a plugin took the higher scopes off the stack: it wants another attempt
        return changes

    def _new_attributes(self) -> dict[str, Any]:
        """Plain data that plugins left on the item since the fork (report-making hooks do), unless sent already."""
        found = {}
        before = self._before.attributes
        for name, value in self.item.__dict__.items():
            if (name in before and before[name] is value) or not reporting.may_travel(self.item, name):
                continue
            try:
                packed = wire.pack(value, self._name_of, opaque=False)
            except wire.NotData:
                continue
            if name not in self._sent or self._sent[name] != packed:
                self._sent[name] = packed
                found[name] = packed
        return found

    def _name_of(self, value: object) -> str | None:
        if not self._names:
            self._names = {id(one): name for name, one in self.conductor.shared_objects(self.item).items()}
        name = self._names.get(id(value))
        if name is None and (phase := self._reports.get(id(value))) is not None:
            name = f"report:{phase}"
        return name

    def _bound(self, report: pytest.TestReport) -> None:
        for index, (name, text) in enumerate(report.sections):
            if len(text) > SECTION_LIMIT:
                half = SECTION_LIMIT // 2
                left_out = f"\n[... {len(text) - 2 * half:,} characters of output left out ...]\n"
                report.sections[index] = (name, text[:half] + left_out + text[-half:])

    def _unsendable(self, report: pytest.TestReport, error: Exception) -> pytest.TestReport:
        """A report that cannot travel as it is becomes one that says why, with what still can."""
        text = f"{report.longreprtext[:100_000]}\n\n" if report.longrepr is not None else ""
        sections = [(name, content[:100_000]) for name, content in report.sections[-20:]]
        return pytest.TestReport(
            self.item.nodeid, self.item.location, dict.fromkeys(self.item.keywords, 1), "failed",
            f"{text}The report of this test could not leave its sandbox: {error}", report.when, sections,
            report.duration, report.start, report.stop)

    def _send(self, message: bytes) -> None:
        try:
            wire.write_all(self._descriptor, message)
        except OSError:  # the parent is gone: there is nobody to report to
            os._exit(1)

    def _check_process(self) -> None:
        """A test that forked and came back here in the child too must not report twice."""
        if os.getpid() != self.pid:
            os._exit(1)
