"""What one sandboxed test costs: a suite of tests that do nothing, plain, sandboxed, and under pytest-forked."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

from measure import Series, Table, in_turns

SUITE = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_nothing(number):
    pass
"""

# A hook of the suite's own around each test: what the pytest process remembers might be looked at by the next test, so
# each is forked from it when its turn comes, and none ahead.
HOOK = """
def pytest_runtest_logfinish():
    pass
"""

VARIANTS = {
    "plain": ["-p", "no:sandbox", "-p", "no:pytest_forked"],
    "pytest-forked --forked": ["-p", "no:sandbox", "--forked"],
    "--sandbox=all": ["-p", "no:pytest_forked", "--sandbox=all"],
}


def run(folder: Path, count: int, rounds: int) -> list[Table]:
    return [measured(folder, count, rounds, hook) for hook in (False, True)]


def measured(folder: Path, count: int, rounds: int, hook: bool) -> Table:
    (folder / "test_nothing.py").write_text(SUITE.format(count=count))
    (folder / "conftest.py").write_text(HOOK if hook else "")
    series = in_turns({name: lambda options=options: one(folder, count, options)
                       for name, options in VARIANTS.items()}, rounds)
    table = Table(f"One test that does nothing{', with a hook of the suite around each' * hook} "
                  f"({count} tests, {rounds} runs each)", series, "pytest-forked --forked")
    ours, peer, plain = table.of("--sandbox=all"), table.of("pytest-forked --forked"), table.of("plain")
    table.notes.append(
        f"Added to a plain test, by the mean: --sandbox=all {added(ours, plain):.2f} ms, "
        f"pytest-forked {added(peer, plain):.2f} ms, ratio {added(ours, plain) / added(peer, plain):.2f}.")
    return table


def one(folder: Path, count: int, options: list[str]) -> list[float]:
    """The milliseconds between the outcomes of two tests, as they are printed."""
    times, said = [], []
    with subprocess.Popen([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options], cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if " PASSED " in line:
                times.append(time.perf_counter())
    if len(times) != count or process.returncode:
        raise SystemExit(f"pytest {' '.join(options)} did not pass:\n{''.join(said)[-2000:]}")
    return [(after - before) * 1000 for before, after in itertools.pairwise(times)]


def added(one: Series, plain: Series) -> float:
    return one.mean - plain.mean
