"""What the plugin adds to the memory of the pytest process at its highest, with every test in a sandbox."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from claims import Claim
from measure import Series, Table
from noop import SUITE

CONFTEST = """
import os

def pytest_unconfigure():
    line = next(one for one in open("/proc/self/status") if one.startswith("VmHWM"))
    open(os.environ["PEAK"], "w").write(line.split()[1])
"""


def run(folder: Path, count: int, rounds: int) -> list[Table]:
    folder.mkdir()
    (folder / "test_nothing.py").write_text(SUITE.format(count=count))
    (folder / "conftest.py").write_text(CONFTEST)
    found: dict[str, list[float]] = {"plain": [], "--sandbox=all": []}
    for _ in range(rounds):
        for name, options in (("plain", ["-p", "no:sandbox"]), ("--sandbox=all", ["--sandbox=all"])):
            subprocess.run(["env", f"PEAK={folder}/peak", sys.executable, "-m", "pytest", "-q", "-p",
                            "no:cacheprovider", *options], cwd=folder, check=True, capture_output=True)
            found[name].append(int((folder / "peak").read_text()) / 1024)
    table = Table(f"The pytest process at its highest, {count} tests",
                  [Series(name, samples) for name, samples in found.items()], "plain",
                  unit="MiB")
    added = [ours - plain for ours, plain in zip(found["--sandbox=all"], found["plain"], strict=True)]
    table.claims.append(Claim("peak extra memory in the pytest process", "plain pytest", 20, added, unit="MiB"))
    return [table]
