"""What one sandboxed test costs: a suite of tests that do nothing, plain, sandboxed, and under pytest-forked."""

from __future__ import annotations

import importlib.util
import itertools
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from claims import Claim
from measure import Series, Table, in_turns

from pytest_sandbox.runtime.cgroups import host_control

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

# The least that a fork for each test can be: it ships one report and ends; no test runs in it, nothing is isolated.
BARE = """
import json, os
import pytest

def pytest_runtest_protocol(item):
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        call = pytest.CallInfo.from_call(lambda: None, when="call")
        report = pytest.TestReport.from_item_and_call(item, call)
        os.write(writing, json.dumps(item.config.hook.pytest_report_to_serializable(
            config=item.config, report=report)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        data = json.loads(file.read())
    os.waitpid(pid, 0)
    item.ihook.pytest_runtest_logreport(
        report=item.config.hook.pytest_report_from_serializable(config=item.config, data=data))
    return True
"""

ALONE = ["-p", "no:forked", "-p", "no:isolate", "-p", "no:xdist", "-p", "no:xdist.looponfail"]
VARIANTS = {
    "plain": [*ALONE, "-p", "no:sandbox"],
    "bare os.fork, one report": [*ALONE, "-p", "no:sandbox", "-p", "bare_fork"],
    "pytest-forked --forked": [*ALONE[2:], "-p", "no:sandbox", "--forked"],
    "pytest-isolate --isolate": [*ALONE[:2], *ALONE[4:], "-p", "no:sandbox", "--isolate"],
    "--sandbox=all": [*ALONE, "--sandbox=all"],
    "--sandbox=all, with limits": [*ALONE, "--sandbox=all", "-o", "sandbox_memory=512M", "-o", "sandbox_cpus=2",
                                   "-o", "sandbox_pids=256"],
}


def run(folder: Path, count: int, rounds: int) -> list[Table]:
    return [measured(folder, count, rounds, hook) for hook in (False, True)]


def variants(hook: bool) -> dict[str, list[str]]:
    """Those whose plugin is installed, and whose limits this host can set."""
    found = dict(VARIANTS)
    if hook:
        for name in ("bare os.fork, one report", "pytest-isolate --isolate", "--sandbox=all, with limits"):
            del found[name]
    elif importlib.util.find_spec("pytest_isolate") is None:
        del found["pytest-isolate --isolate"]
    if not all(host_control().abilities()[name].ok for name in ("memory", "cpus", "pids")):
        found.pop("--sandbox=all, with limits", None)
    return found


def measured(folder: Path, count: int, rounds: int, hook: bool) -> Table:
    (folder / "test_nothing.py").write_text(SUITE.format(count=count))
    (folder / "conftest.py").write_text(HOOK if hook else "")
    (folder / "bare_fork.py").write_text(BARE)
    spent: dict[str, list[float]] = {}
    series = in_turns({name: lambda name=name, options=options: one(folder, count, options, spent.setdefault(name, []))
                       for name, options in variants(hook).items()}, rounds)
    table = Table(f"One test that does nothing{', with a hook of the suite around each' * hook} "
                  f"({count} tests, {rounds} runs each)", series, "pytest-forked --forked")
    ours, peer, plain = table.of("--sandbox=all"), table.of("pytest-forked --forked"), table.of("plain")
    table.notes.append(
        f"Added to a plain test, by the mean: --sandbox=all {added(ours, plain):.2f} ms, "
        f"pytest-forked {added(peer, plain):.2f} ms, ratio {added(ours, plain) / added(peer, plain):.2f}.")
    table.notes.append("Processor time a test, all processes of the run together, its start included: " + ", ".join(
        f"{name} {statistics.median(taken) / count:.1f} ms" for name, taken in spent.items()) + ".")
    if not hook:
        bare = table.of("bare os.fork, one report")
        whole = table.of("--sandbox=all, with limits") if "--sandbox=all, with limits" in spent else ours
        table.claims += [Claim("no-op test, all namespaces, limits, hardening", "pytest-forked --forked", 0.5,
                               whole.samples, peer.samples),
                         Claim("the same", "bare os.fork, one report shipped", 1.5, whole.samples, bare.samples)]
        if "pytest-isolate --isolate" in spent:
            isolate = table.of("pytest-isolate --isolate")
            table.claims.append(Claim("the same", "pytest-isolate (no goal)", 1.0, whole.samples, isolate.samples))
    return table


def one(folder: Path, count: int, options: list[str], spent: list[float]) -> list[float]:
    """The milliseconds between the outcomes of two tests, as they are printed."""
    times, said = [], []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen([sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *options], cwd=folder,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if " PASSED " in line:
                times.append(time.perf_counter())
    if len(times) != count or process.returncode:
        raise SystemExit(f"pytest {' '.join(options)} did not pass:\n{''.join(said)[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000)
    # The last line ends with the run: the time up to it is not the last test's.
    return [(end - begin) * 1000 for begin, end in itertools.pairwise(times[:-1])]


def added(one: Series, plain: Series) -> float:
    return one.mean - plain.mean
