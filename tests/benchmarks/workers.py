"""Two workers beside one, and how much of the machine each keeps busy: what one worker leaves idle bounds the gain."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from claims import Claim
from measure import Series, Table
from noop import SUITE
from processes import busy

VARIANTS = {"one worker": ["--sandbox=all", "-n", "1"], "-n 2": ["--sandbox=all", "-n", "2"],
            "plain, one worker": ["-p", "no:sandbox", "-n", "1"], "plain, -n 2": ["-p", "no:sandbox", "-n", "2"],
            "--forked, one worker": ["-p", "no:sandbox", "--forked", "-n", "1"],
            "--forked, -n 2": ["-p", "no:sandbox", "--forked", "-n", "2"]}


def run(folder: Path, count: int, rounds: int) -> list[Table]:
    folder.mkdir()
    (folder / "test_nothing.py").write_text(SUITE.format(count=count))
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
    for number in range(rounds):
        names = [*VARIANTS][number % 2::] + [*VARIANTS][:number % 2]
        for name in names:
            samples[name].append(one(folder, count, VARIANTS[name]))
    series = [Series(name, [took for took, _, _ in samples[name]]) for name in VARIANTS]
    table = Table(f"A test that does nothing, with pytest-xdist: {count} tests, time of the suite by their number",
                  series, "one worker")
    rate = {name: [1 / took for took, _, _ in samples[name]] for name in VARIANTS}
    table.claims.append(Claim("-n 2 on 2 cores, throughput", "one worker", 1.8, rate["-n 2"], rate["one worker"],
                              least=True))
    table.notes.append(f"Cores that this machine has: {os.cpu_count()}. Processor time a test, and cores kept busy "
                       "meanwhile (of the run's own processes; of the whole machine):")
    for name in VARIANTS:
        took, own, all_of_it = (sum(one[place] for one in samples[name]) / rounds for place in range(3))
        table.notes.append(f"- {name}: {own:.1f} ms; {own / took:.2f} cores; {all_of_it / took:.2f} cores")
    return [table]


def one(folder: Path, count: int, options: list[str]) -> tuple[float, float, float]:
    """Milliseconds a test: from the first outcome to the last, of CPU time, and of all that the machine did."""
    moments: list[tuple[float, float]] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options], cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if " PASSED " in line:
                moments.append((time.perf_counter(), busy()))
    if len(moments) != count or process.returncode:
        raise SystemExit(f"pytest {' '.join(options)} did not pass:\n{''.join(said)[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    own = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    idle = _startup(folder, options)
    (first, worked), (last, worked_last) = moments[0], moments[-1]
    return ((last - first) * 1000 / (count - 1), (own - idle) * 1000 / count,
            (worked_last - worked) * 1000 / (count - 1))


_started: dict[str, float] = {}


def _startup(folder: Path, options: list[str]) -> float:
    """CPU seconds of the same run with a single test."""
    key = " ".join(options)
    if key not in _started:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options,
                        "test_nothing.py::test_nothing[0]"], cwd=folder, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        _started[key] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return _started[key]
