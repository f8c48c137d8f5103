"""A long run: test number 10,000 beside test number 100, in time, memory, descriptors, mounts and cgroups."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from claims import Claim
from measure import Series, Table
from noop import SUITE
from processes import below, cgroups, memory

#: The times of how many tests are compared.
AROUND = 100


def look(pid: int) -> dict[str, Any]:
    """What the run holds now."""
    helpers = [one for one in below(pid) if "pytest_sandbox.runtime.helper" in _command(one)]
    return {"pytest": memory(pid)["Rss"],  # what is private changes with each fork
            "helper": sum(memory(one)["Uss"] for one in helpers),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
            "helper's descriptors": sum(len(os.listdir(f"/proc/{one}/fd")) for one in helpers),
            "mounts": len(Path(f"/proc/{pid}/mountinfo").read_text().splitlines()),
            "helper's mounts": sum(len(Path(f"/proc/{one}/mountinfo").read_text().splitlines()) for one in helpers),
            "cgroups": cgroups(), "processes": len(below(pid))}


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def run(folder: Path, count: int) -> list[Table]:
    folder.mkdir()
    (folder / "test_nothing.py").write_text(SUITE.format(count=count))
    early = min(100, count // 4)
    late = count - 20
    times, looks = one(folder, count, ["--sandbox=all"], (early, late))
    _, plain = one(folder, count, ["-p", "no:sandbox"], (early, late))
    first, last = times[early - 50:early + AROUND - 50], times[late - 1 - AROUND:late - 1]  # looking takes time, too
    series = [Series(f"tests {early - 50} to {early + AROUND - 50}", first), Series(f"{AROUND} near the end", last)]
    table = Table(f"One more test that does nothing, of {count}", series, series[0].name)
    table.claims.append(Claim(f"test {count:,}", f"test {early}", 1.0, last, first))
    table.notes.append(f"What the run held at test {early} and at test {late}:")
    for name, before in looks[0].items():
        unit = " KiB" if name in ("pytest", "helper") else ""
        table.notes.append(f"- {name}: {before}{unit}, then {looks[1][name]}{unit}")
    ours, theirs = looks[1]["pytest"] - looks[0]["pytest"], plain[1]["pytest"] - plain[0]["pytest"]
    table.notes.append(f"pytest keeps every report: without the plugin it grew by {theirs} KiB, with sandboxes by "
                       f"{ours} KiB.")
    table.claims.append(Claim(f"growth of memory, test {early} to {count:,}, beyond pytest's own reports", "", 1.0,
                              [(ours - theirs + looks[1]["helper"] - looks[0]["helper"]) / 1024], unit="MiB"))
    for name in ("descriptors", "helper's descriptors", "mounts", "helper's mounts", "cgroups"):
        table.claims.append(Claim(f"growth of {name}, test {early} to {count:,}", "", 4,
                                  [float(looks[1][name] - looks[0][name])], unit=""))
    return [table]


def one(folder: Path, count: int, options: list[str],
        moments: tuple[int, int]) -> tuple[list[float], list[dict[str, Any]]]:
    """Milliseconds between outcomes, and two looks at the run."""
    times, looks = [], []
    with subprocess.Popen([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options], cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if " PASSED " in line:
                times.append(time.perf_counter())
                if len(times) in moments:
                    looks.append(look(process.pid))
    if len(times) != count or process.returncode:
        raise SystemExit(f"pytest {' '.join(options)} did not pass")
    return [(after - before) * 1000 for before, after in itertools.pairwise(times)], looks
