"""What one sandboxed test costs: a suite of tests that do nothing, plain, sandboxed, and under pytest-forked."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

from measure import Series, Table, in_turns

SUITE = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_nothing(number):
    pass
"""

# Looks at the clock whenever a test is over, in the process that reports: whatever happens between two tests counts.
CLOCK = """
import json, os, time

marks = []

def pytest_runtest_logfinish():
    marks.append(time.perf_counter())

def pytest_sessionfinish():
    with open(os.environ["BENCHMARK_MARKS"], "w") as file:
        json.dump(marks, file)
"""

VARIANTS = {
    "plain": ["-p", "no:sandbox", "-p", "no:pytest_forked"],
    "pytest-forked --forked": ["-p", "no:sandbox", "--forked"],
    "--sandbox=all": ["-p", "no:pytest_forked", "--sandbox=all"],
}


def run(folder: Path, count: int, rounds: int) -> Table:
    (folder / "test_nothing.py").write_text(SUITE.format(count=count))
    (folder / "conftest.py").write_text(CLOCK)
    marks = folder / "marks.json"

    def one(options: list[str]) -> list[float]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options], cwd=folder,
            env={**os.environ, "BENCHMARK_MARKS": str(marks)}, capture_output=True, text=True)
        if f"{count} passed" not in done.stdout:
            raise SystemExit(f"pytest {' '.join(options)} did not pass:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        times = json.loads(marks.read_text())
        return [(after - before) * 1000 for before, after in itertools.pairwise(times)]

    series = in_turns({name: lambda options=options: one(options) for name, options in VARIANTS.items()}, rounds)
    table = Table(f"One test that does nothing ({count} tests, {rounds} runs each)", series, "pytest-forked --forked")
    ours, peer, plain = table.of("--sandbox=all"), table.of("pytest-forked --forked"), table.of("plain")
    table.notes.append(
        f"Added to a plain test, by the mean: --sandbox=all {added(ours, plain):.2f} ms, "
        f"pytest-forked {added(peer, plain):.2f} ms, ratio {added(ours, plain) / added(peer, plain):.2f}.")
    return table


def added(one: Series, plain: Series) -> float:
    return one.mean - plain.mean
