"""Thousands of random sandboxes, one in fifty killed at a random moment and level: nothing is left, all outcomes right.

Not part of the default suite: ``tox -e soak``, or ``python -m pytest -s tests/soak/test_sandboxes.py``. SOAK_SANDBOXES
says how many (20000), SOAK_SEED repeats a run, SOAK_BEFORE is a command that runs before each thousand.

Two workers make sandboxes by themselves (``sandboxes.py``), then pytest with two workers of its own runs marked tests
and tests with fixtures; half of those runs are killed as a whole. This process takes in every orphan
(PR_SET_CHILD_SUBREAPER), so that whatever outlives its caller is seen, and counted, here.
"""

from __future__ import annotations

import collections
import ctypes
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import leaks
import pytest

from pytest_sandbox import Sandbox
from pytest_sandbox.cli import main as cli
from pytest_sandbox.sandbox import shutdown

WANTED = int(os.environ.get("SOAK_SANDBOXES", "20000"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.randrange(1 << 30)
BEFORE = os.environ.get("SOAK_BEFORE", "")
SLICE = 1000
#: Of these, so many by pytest.
TESTS = 120
HERE = Path(__file__).parent
PACKAGE = str(HERE.parent.parent)

SUITE = """
import os, random, signal, subprocess
import pytest
from pathlib import Path

def pytest_generate_tests(metafunc):
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range({count}))

@pytest.mark.sandbox
def test_marked(number, tmp_path):
    Path("/var/tmp/soak").write_text(str(number))
    assert subprocess.run(["cat", "/var/tmp/soak"], capture_output=True, text=True).stdout == str(number)
    if number % 50 == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % 50 == 8:
        os.fork()

@pytest.mark.sandbox(pids=100, disk="32M")
def test_limited(number):
    if number % 10 == 3:
        pytest.skip("so be it")
    assert number % 10 != 4

def test_driven(number, sandbox):
    assert sandbox.run(["echo", str(number)]).stdout == f"{{number}}\\n"

@pytest.fixture(scope="module")
def shared():
    yield 3

@pytest.mark.sandbox(scope="module")
def test_together(number, shared):
    assert shared == 3
"""
CONFTEST = """
import os
counter = os.open(os.environ["SOAK_COUNTER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
def pytest_sandbox_started(sandbox):
    os.write(counter, b"x")
"""


class Run:
    """What has been counted so far."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.made = 0
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self.pids: set[int] = set()
        self.grown = 0
        self.most_descriptors = 0
        self.environment = {**os.environ, "PYTHONPATH": PACKAGE, "PYTHONDONTWRITEBYTECODE": "1",
                            "PYTEST_SANDBOX_CACHE": str(place / "cache"), "TMPDIR": str(place / "tmp"),
                            "SOAK_COUNTER": str(place / "counter")}

    def workers(self, chance: random.Random, count: int) -> None:
        """Two at once; one of them is killed, and begun again, now and then."""
        left = {"helper,init": count // 2, "helper,init,worker,worker": count - count // 2}
        running: dict[str, subprocess.Popen[str]] = {}
        while any(many > 0 for many in left.values()):
            for levels, many in left.items():
                if many > 0 and levels not in running:
                    running[levels] = subprocess.Popen(
                        [sys.executable, HERE / "sandboxes.py", str(chance.randrange(1 << 30)), str(many), levels],
                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment)
                    self.pids.add(running[levels].pid)
            for levels in list(running):
                # One after the other: the other one's pipe holds what it says meanwhile.
                said = running[levels].communicate()[0]
                left[levels] -= self.take(levels, said, running.pop(levels).returncode)

    def take(self, levels: str, said: str, code: int) -> int:
        """Counts what a worker has said; returns how many sandboxes that was."""
        numbers = set()
        killed = False
        for line in said.splitlines():
            word, _, rest = line.partition(" ")
            if word == "process":
                before, after, size, later = map(int, rest.split())
                self.most_descriptors = max(self.most_descriptors, after - before)
                self.grown = max(self.grown, later - size)
            elif word.isdecimal() and rest.startswith(("ok", "killed", "wrong")):
                if int(word) not in numbers:
                    self.counts[rest if not rest.startswith("wrong") else "wrong"] += 1
                numbers.add(int(word))
                killed = rest == "killed worker"
                if rest.startswith("wrong"):
                    self.wrong.append(rest)
            elif line.startswith("pytest-sandbox: a process could not enter its sandbox: "):
                self.counts["fork of the caller told that the sandbox was gone"] += 1
            else:
                self.wrong.append(line)
        if code != (-signal.SIGKILL if killed else 0) and not (killed and code == 0):
            self.wrong.append(f"a worker ended with {code} (killed: {killed})")
        self.made += len(numbers)
        return max(1, len(numbers)) if code else 1 << 30

    def pytest(self, chance: random.Random, kill: bool) -> None:
        """One run of pytest with two workers."""
        count = TESTS // 4
        suite = self.place / "suite"
        suite.mkdir(exist_ok=True)
        (suite / "test_soak.py").write_text(SUITE.format(count=count))
        (suite / "conftest.py").write_text(CONFTEST)
        (suite / "pytest.ini").write_text("[pytest]\n")
        counter = self.place / "counter"
        counter.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-n2", "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=line",
             f"--basetemp={self.place}/tmp/base", str(suite)], cwd=suite, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.pids.add(process.pid)
        if kill:
            deadline = time.monotonic() + 60
            while not counter.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 2.5))
            process.kill()
        said = process.communicate()[0]
        self.made += len(counter.read_bytes()) if counter.exists() else 0
        self.counts["killed pytest" if kill else "pytest"] += 1
        died = len([number for number in range(count) if number % 50 == 7])
        failed = died + len([number for number in range(count) if number % 10 == 4])
        skipped = len([number for number in range(count) if number % 10 == 3])
        wanted = f"{failed} failed, {4 * count - failed - skipped} passed, {skipped} skipped"
        if not kill and (wanted not in said or "INTERNALERROR" in said):
            self.wrong.append(f"pytest: not {wanted!r} but {said[-1500:]}")
        if kill and process.returncode not in (-signal.SIGKILL, 1):
            self.wrong.append(f"pytest: {process.returncode} {said[-500:]}")


def alone(seconds: float) -> list[str]:
    """Waits until this process has no child left, and names those that stay."""
    deadline = time.monotonic() + seconds
    while True:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return []
            if not pid:
                break
        if time.monotonic() > deadline:
            return [str(one) for one in leaks._our_processes()]
        time.sleep(0.02)


def new_mounts(before: dict[object, str], place: Path) -> list[str]:
    """Others may mount what they like meanwhile."""
    return [what for key, what in leaks._mounts() if key not in before and any(
        mark in what for mark in ("sandbox", "soak", str(place)))]


def files(place: Path) -> list[str]:
    return sorted(str(one.relative_to(place)) for one in (place / "tmp").rglob("*")
                  if "base" not in one.parts and not any(part.startswith("soak-") for part in one.parts))


def directories_of(pids: set[int]) -> list[str]:
    return [one for one in leaks._cgroups() if (found := re.search(r"run-(\d+)-", one)) and int(found[1]) in pids]


def devices() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def lsns() -> collections.Counter[str]:
    """Namespaces that any process is in, of all that run on this machine."""
    found = set()
    for pid in os.listdir("/proc"):
        if pid.isdecimal():
            for kind in ("mnt", "net", "pid", "user", "ipc", "uts", "cgroup"):
                try:
                    found.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
                except OSError:
                    continue
    return collections.Counter(one.partition(":")[0] for one in found)


@pytest.mark.timeout(0)
def test_random_sandboxes(tmp_path: Path) -> None:
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    (tmp_path / "tmp").mkdir()
    chance, run = random.Random(SEED), Run(tmp_path)
    print(f"\nSOAK_SEED={SEED} SOAK_SANDBOXES={WANTED}")
    shutdown()
    assert alone(10) == []
    mounts, look, namespaces, links = dict(leaks._mounts()), set(leaks._files()), lsns(), devices()
    descriptors = len(os.listdir("/proc/self/fd"))
    began, number = time.monotonic(), 0
    while run.made < WANTED:
        if BEFORE:
            subprocess.run(BEFORE, shell=True, check=True)
        number += 1
        run.workers(chance, min(SLICE - TESTS, WANTED - run.made))
        run.pytest(chance, kill=number % 2 == 1)
        left = alone(20)
        print(f"{time.monotonic() - began:7.0f} s {run.made:6d} sandboxes, {dict(sorted(run.counts.items()))}, "
              f"wrong: {len(run.wrong)}, processes left: {len(left)}", flush=True)
        assert left == []
        assert new_mounts(mounts, tmp_path) == []
    with Sandbox() as sandbox:  # sweeps what dead runs have left
        assert sandbox.run(["true"]).returncode == 0
    shutdown()
    assert alone(10) == []
    dead = directories_of(run.pids)
    assert cli(["doctor", "--clean"]) == 0
    cleaned = directories_of(run.pids)
    killed = sum(many for kind, many in run.counts.items() if kind.startswith("killed"))
    print(f"{run.made} sandboxes, {killed} killed: {dict(sorted(run.counts.items()))}; left: processes 0, mounts 0, "
          f"cgroups {len(dead)} (after doctor --clean {len(cleaned)}), files {len(files(tmp_path))}, devices "
          f"{len(devices() - links)}, descriptors of a worker {run.most_descriptors:+d}, its memory "
          f"{run.grown / (1 << 20):+.1f} MiB; namespaces of the whole machine {sum(namespaces.values())} before, "
          f"{sum(lsns().values())} after")
    assert run.wrong == [], "\n".join(run.wrong)
    assert dead == cleaned == []
    assert set(leaks._files()) - look == set()
    assert files(tmp_path) == []
    assert [one for one in devices() - links if one.startswith(("veth", "sandbox", "ps"))] == []
    assert run.most_descriptors <= 4
    assert run.grown < 48 << 20
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2
