"""What it costs to have the plugin installed and not use it: two environments that differ in nothing else."""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from claims import Claim
from measure import Table, in_turns, timed

CHECKOUT = Path(__file__).resolve().parents[2]

SUITE = """
import pytest

@pytest.mark.parametrize("number", range(100))
def test_nothing(number):
    pass
"""


def environment(folder: Path, *more: str) -> str:
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = str(folder / "bin" / "python")
    subprocess.run([*uv, "pip", "install", "-q", "--compile-bytecode", "--python", python,
                    f"pytest=={version('pytest')}", f"pluggy=={version('pluggy')}", *more], check=True)
    return python


def run(folder: Path, rounds: int) -> list[Table]:
    pythons = {"without the plugin": environment(folder / "without"),
               "with the plugin": environment(folder / "with", str(CHECKOUT))}
    suite = folder / "suite"
    suite.mkdir()
    (suite / "test_nothing.py").write_text(SUITE)
    tables = []
    for title, arguments in (("pytest --version", ["--version"]),
                             ("A suite of 100 tests, none of them sandboxed", ["-q", "-p", "no:cacheprovider"])):
        worked: dict[str, list[float]] = {}

        def one(python: str, arguments: list[str] = arguments, worked: dict[str, list[float]] = worked) -> float:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            took = timed(lambda: subprocess.run([python, "-m", "pytest", *arguments], cwd=suite, check=True,
                                                capture_output=True))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            worked.setdefault(python, []).append(
                (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
            return took
        table = Table(title, in_turns({name: lambda python=python, one=one: one(python)
                                       for name, python in pythons.items()}, rounds), "without the plugin")
        difference = table.of("with the plugin").median - table.of("without the plugin").median
        table.notes.append(f"The plugin adds {difference:.1f} ms.")
        # Of a single process, processor time is what an idle machine would need, and a busy one changes it little.
        added = [ours - plain for ours, plain in zip(worked[pythons["with the plugin"]],
                                                     worked[pythons["without the plugin"]], strict=True)]
        table.claims.append(Claim(f"plugin installed, nothing marked: {title}", "plugin absent (processor time)", 10,
                                  added, unit="ms"))
        tables.append(table)
    return tables
