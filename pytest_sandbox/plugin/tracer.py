"""``--sandbox-trace``: where the time of each sandbox goes. Registered at ``pytest_configure`` if it is asked for.

The sandboxes' own steps come from :mod:`pytest_sandbox.runtime.tracing`; the phases of the tests from their reports,
which carry when they began and ended by the wall clock. Workers of pytest-xdist hand theirs to the controller.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import pytest

from pytest_sandbox.runtime import tracing

#: The key in a worker's output.
_OUTPUT = "sandbox_trace"


class Tracer:
    """One for a run, in every process of it.

    :param path: the file for a viewer, or None for the summary alone.
    """

    def __init__(self, config: pytest.Config, path: str | None) -> None:
        self.config = config
        self.path = path
        self.is_worker = hasattr(config, "workerinput")
        self.collected: list[dict[str, Any]] = []  # of workers
        self._before = tracing.recorder  # of a run that this one is within
        self.recorder = tracing.enable()
        self._wall = time.time_ns() - tracing.now()  # what the wall clock is ahead
        self._ended: dict[str, tuple[str, int]] = {}  # the phase that a test had last, and when it ended

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase is over: its place in the trace of the sandbox that its test has now."""
        if hasattr(report, "node"):
            return  # another process's, which traces it itself
        trace = self.recorder.last.get(report.nodeid)
        if trace is None or not hasattr(report, "start"):
            return
        began, ended = (int(when * 1e9) - self._wall for when in (report.start, report.stop))
        phase = {"setup": "set-up", "call": "body", "teardown": "teardown"}.get(str(report.when))
        if phase is None:
            return  # of a subtest
        before = self._ended.get(report.nodeid)
        if trace.told and report.when == "setup" and began > trace.running:
            trace.add("fork", "from its order to the set-up", trace.running, began)
        elif trace.told and before is not None and began > before[1]:
            trace.add("report", f"of the {before[0]}, sent", before[1], began)
        trace.add("test", phase, began, ended)
        self._ended[report.nodeid] = phase, ended
        if report.when == "teardown":
            del self._ended[report.nodeid]
            if trace.told > ended:
                trace.add("report", "of the teardown, sent and read", ended, trace.told)

    def _own(self) -> list[dict[str, Any]]:
        launch = sys.modules.get("pytest_sandbox.runtime.launch")
        if launch is not None:
            launch.finish_traces()
        worker = os.environ.get("PYTEST_XDIST_WORKER") if self.is_worker else None
        return tracing.traced(self.recorder, worker)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        if self.is_worker:
            self.config.workeroutput[_OUTPUT] = json.dumps(self._own())  # type: ignore[attr-defined]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker has ended, in the controller."""
        self.collected += json.loads(getattr(node, "workeroutput", {}).get(_OUTPUT, "[]"))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from pytest_sandbox.report import trace

        sandboxes = [*self.collected, *self._own()]
        tests = len({one["label"] for one in sandboxes} - {None})
        terminalreporter.write_sep("=", f"sandbox trace: {len(sandboxes)} sandboxes, {tests} tests")
        for line in trace.table(sandboxes):
            terminalreporter.write_line(line)
        if self.path is None:
            return
        try:
            trace.write(sandboxes, self.path)
        except OSError as error:
            terminalreporter.write_line(f"the sandbox trace could not be written: {error}", red=True)
            return
        terminalreporter.write_line(f"sandbox trace: {self.path}")

    def pytest_unconfigure(self) -> None:
        tracing.recorder = self._before


def register(config: pytest.Config, given: str | bool) -> None:
    """At the beginning of a run that is to be traced. ``given``: the option's value, true for no file."""
    path = os.path.join(config.invocation_params.dir, given) if isinstance(given, str) else None
    config.pluginmanager.register(Tracer(config, path), "sandbox-tracer")
