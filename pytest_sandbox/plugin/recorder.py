"""Collects what reports tell of a run's sandboxes, and has it written. ``--sandbox-report`` registers it."""

from __future__ import annotations

import datetime
import json
import os
import platform
from typing import TYPE_CHECKING, Any

import pytest

from . import consumption

if TYPE_CHECKING:
    from pytest_sandbox.report import Record

_LONGEST = 20_000


class Recorder:
    """One for a run, in the process that shows the results."""

    def __init__(self, config: pytest.Config, path: str) -> None:
        self.config = config
        self.path = path
        self.started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.tests: dict[str, Record] = {}
        self.sandboxed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from pytest_sandbox.report import Record

        known = self.tests.get(report.nodeid)
        if known is None or report.when == "setup":  # of another attempt
            known = self.tests[report.nodeid] = Record(report.nodeid)
        known.duration += report.duration
        known.worker = getattr(report, "worker_id", None)
        if report.failed:
            known.outcome = "failed"
            known.failure = f"{known.failure}\n\n{report.longreprtext}" if known.failure else report.longreprtext
            known.failure = known.failure[-_LONGEST:]
        elif report.skipped and known.outcome == "passed":
            known.outcome = "skipped"
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == consumption.OPTIONS and isinstance(value, str):
                known.options = _read(value)
                self.sandboxed.add(report.nodeid)
            elif isinstance(name, str) and name.startswith(consumption.PREFIX) and isinstance(value, (int, float)):
                known.usage[name[len(consumption.PREFIX):]] = value
                self.sandboxed.add(report.nodeid)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        from pytest_sandbox.report import Run, write

        tests = [one for nodeid, one in self.tests.items() if nodeid in self.sandboxed]
        host = {"host": platform.node(), "Linux": platform.release(), "Python": platform.python_version(),
                "pytest": pytest.__version__}
        try:
            write(Run(self.started, host, tests), self.path)
        except OSError as error:
            terminalreporter.write_line(f"the sandbox report could not be written: {error}", red=True)
            return
        terminalreporter.write_sep("-", f"sandbox report: {self.path}")


def _read(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def path_of(config: pytest.Config) -> str | None:
    """Where the report goes, if one is asked for.

    :raises pytest.UsageError: for a name that says no form.
    """
    from pytest_sandbox.report.write import FORMS

    given = config.getoption("sandbox_report") or config.getini("sandbox_report")
    if not given:
        return None
    if not given.endswith(FORMS):
        raise pytest.UsageError(
            f"--sandbox-report={given}: its name says the form. Let it end in {' or '.join(FORMS)}.")
    base = config.invocation_params.dir if config.getoption("sandbox_report") else config.rootpath
    return os.path.join(base, given)
