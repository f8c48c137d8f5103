"""What tests have used: as properties of their reports, and the heaviest of them in the terminal summary.

The properties travel wherever reports do: JUnit files, report logs, pytest-xdist's controller.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_sandbox.spec import SandboxSpec
    from pytest_sandbox.usage import Usage

#: The options that make a report tell what was used.
LIMITS = frozenset({"memory", "swap", "cpus", "cpu_weight", "io_weight", "io", "pids", "disk", "timeout"})
PREFIX = "sandbox_"
#: The property that says what options the sandbox had, as JSON.
OPTIONS = "sandbox_options"


def wanted(config: pytest.Config) -> bool:
    """Whether the command line or the ini file asks for it."""
    return config.getoption("sandbox_usage", None) is not None or recorded(config)


def recorded(config: pytest.Config) -> bool:
    """Whether a report of all sandboxes is asked for."""
    return bool(config.getoption("sandbox_report", None) or config.getini("sandbox_report"))


def properties(usage: Usage) -> list[tuple[str, object]]:
    """The figures that are known, by the names under which reports have them."""
    found: list[tuple[str, object]] = []
    for name in type(usage).__dataclass_fields__:
        value = getattr(usage, name)
        if value is not None and name not in ("memory", "pids"):  # of the moment: of no use when it is over
            found.append((PREFIX + name, round(value, 6) if isinstance(value, float) else value))
    return found


def options_of(spec: SandboxSpec) -> tuple[str, object]:
    """The property of the options that were given."""
    given = {name: getattr(spec, name) for name in sorted(spec.given - {"persist"})}
    return OPTIONS, json.dumps(given, default=str)


def since(before: Usage, now: Usage) -> Usage:
    """What was used since ``before``; the peaks are those of the sandbox so far."""
    counted = {name: max(0, getattr(now, name) - (getattr(before, name) or 0))
               for name in ("cpu_seconds", "user_seconds", "system_seconds", "io_read", "io_written")
               if getattr(now, name) is not None}
    return replace(now, **counted)


class UsageSummary:
    """Collects the figures from the reports of a run, and shows the heaviest. ``--sandbox-usage`` registers it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "teardown":
            return
        found = {name[len(PREFIX):]: value for name, value in report.user_properties
                 if isinstance(name, str) and name.startswith(PREFIX) and isinstance(value, (int, float))}
        if "cpu_seconds" in found or "wall_seconds" in found:
            self.tests[report.nodeid] = found

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        shown = sorted(self.tests.items(), key=lambda one: (-_number(one[1], "cpu_seconds"),
                                                           -_number(one[1], "memory_peak"), one[0]))
        if not shown:
            return
        if self.most:
            shown = shown[:self.most]
            title = f"heaviest {len(shown)} sandboxed tests"
        else:
            title = "sandboxed tests by CPU time"
        terminalreporter.write_sep("=", title)
        terminalreporter.write_line(f"{'cpu':>9} {'wall':>9} {'memory':>10} {'disk':>10} {'pids':>5}  test")
        for nodeid, figures in shown:
            terminalreporter.write_line(" ".join(_cells(figures)) + f"  {nodeid}")


def _number(figures: dict[str, Any], name: str) -> float:
    return float(figures.get(name, 0))


def _cells(figures: dict[str, Any]) -> Iterable[str]:
    from pytest_sandbox.usage import size

    for name, width in (("cpu_seconds", 9), ("wall_seconds", 9), ("memory_peak", 10), ("disk", 10), ("pids_peak", 5)):
        value = figures.get(name)
        if value is None:
            text = "-"
        elif name.endswith("seconds"):
            text = f"{value:.2f}s"
        else:
            text = str(value) if name == "pids_peak" else size(int(value))
        yield f"{text:>{width}}"
