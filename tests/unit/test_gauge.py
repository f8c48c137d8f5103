"""What is made ahead, by how the machine is: on plain directories of files as the kernel has them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_sandbox.runtime.hierarchies import Hierarchies
from pytest_sandbox.runtime.pressure import Gauge, may_pass

CORES = os.cpu_count() or 1


class Machine:
    """A /proc and cgroups of files."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.group = folder / "proc", folder / "cgroup" / "above" / "own"
        self.group.mkdir(parents=True)
        self.write("meminfo", "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable: 4000000 kB\n")
        self.write("loadavg", "0.1 0.1 0.1 1/100 42\n")
        self.write("sys/kernel/pid_max", "4000\n")
        self.write("sys/kernel/threads-max", "5000\n")
        self.write("sys/fs/mount-max", "1000\n")
        self.write("self/mountinfo", "a mount\n" * 50)
        self.write("slabinfo", "other 9 9\nnet_namespace 20 28 4288 7\n")
        for place in (self.group, self.group.parent):
            (place / "cgroup.procs").write_text("")
        self.time = 0.0

    def write(self, name: str, text: str) -> None:
        path = self.proc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def gauge(self, version: int = 2) -> Gauge:
        own = str(self.group)
        found = Hierarchies({}, own) if version == 2 else Hierarchies({"pids": own, "memory": own}, None)
        return Gauge(str(self.proc), found, lambda: self.time)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_with_room_all_that_is_wanted_is_made(machine: Machine) -> None:
    gauge = machine.gauge()
    assert gauge.allowed(2, 1) == 2
    assert gauge.why is None


@pytest.mark.parametrize(("name", "text", "why"), [
    ("meminfo", "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable: 399000 kB\n", "memory"),
    ("meminfo", "MemTotal: 500000 kB\nMemFree: 100 kB\nMemAvailable: 65000 kB\n", "memory"),
    ("loadavg", "0.1 0.1 0.1 1/3601 42\n", "tasks"),
    ("self/mountinfo", "a mount\n" * 901, "mounts"),
    ("slabinfo", "net_namespace 300 300 4288 7\n", "network namespaces"),
])
def test_nothing_is_made_ahead_near_a_limit_of_the_machine(machine: Machine, name: str, text: str, why: str) -> None:
    machine.write(name, text)
    gauge = machine.gauge()
    assert gauge.allowed(2, 1) == 0
    assert gauge.why is not None
    assert why in gauge.why


def test_networks_of_sandboxes_that_are_alive_are_no_backlog(machine: Machine) -> None:
    machine.write("slabinfo", "net_namespace 700 700 4288 7\n")
    assert machine.gauge().allowed(2, 500) == 2


def test_on_a_loaded_machine_one_is_made_ahead(machine: Machine) -> None:
    machine.write("loadavg", f"99 99 99 {4 * CORES}/100 42\n")
    assert machine.gauge().allowed(2, 1) == 2  # the load average is of the past, and what runs now is not too much
    machine.write("loadavg", f"0.1 0.1 0.1 {4 * CORES + 1}/100 42\n")
    gauge = machine.gauge()
    assert gauge.allowed(2, 1) == 1
    assert gauge.allowed(0, 1) == 0
    assert gauge.why == "the machine is loaded"


@pytest.mark.parametrize("above", [False, True], ids=["own", "above"])
@pytest.mark.parametrize(("version", "current", "most", "stat"), [
    (2, "pids.current", "pids.max", ""), (1, "pids.current", "pids.max", ""),
    (2, "memory.current", "memory.max", "inactive_file"),
    (1, "memory.usage_in_bytes", "memory.limit_in_bytes", "total_inactive_file")])
def test_limits_of_cgroups(machine: Machine, version: int, current: str, most: str, stat: str, above: bool) -> None:
    group = machine.group.parent if above else machine.group
    (group / most).write_text("max\n" if version == 2 else "9223372036854771712\n")
    (group / current).write_text("950\n")
    assert machine.gauge(version).allowed(2, 1) == 2  # no limit
    (group / most).write_text("1000\n")
    gauge = machine.gauge(version)
    assert gauge.allowed(2, 1) == 0
    assert gauge.why == "a limit of this process's cgroup is near"
    (group / current).write_text("800\n")
    machine.time = 1.0
    assert gauge.allowed(2, 1) == 2
    if stat:  # cache of files counts, and is dropped before anything fails
        (group / current).write_text("950\n")
        (group / "memory.stat").write_text(f"anon 3\n{stat} 200\n")
        machine.time = 2.0
        assert gauge.allowed(2, 1) == 2


def test_it_does_not_look_each_time(machine: Machine) -> None:
    gauge = machine.gauge()
    assert gauge.allowed(2, 1) == 2
    machine.write("loadavg", "0.1 0.1 0.1 1/3601 42\n")
    machine.time = 0.05
    assert gauge.allowed(2, 1) == 2
    machine.time = 0.11
    assert gauge.allowed(2, 1) == 0
    machine.write("loadavg", "0.1 0.1 0.1 1/100 42\n")
    machine.time = 0.3
    assert gauge.allowed(2, 1) == 2


def test_a_machine_that_tells_nothing_stops_nothing(tmp_path: Path) -> None:
    assert Gauge(str(tmp_path / "none"), Hierarchies({}, None)).allowed(2, 1) == 2


def test_this_machine_can_be_looked_at() -> None:
    gauge = Gauge()
    assert 0 <= gauge.allowed(2, 0) <= 2


@pytest.mark.parametrize(("number", "step", "passes"), [
    (errno.EAGAIN, "clone3", True), (errno.ENOSPC, "init", True), (errno.ENOSPC, "cgroup", True),
    (errno.ENOSPC, "overlay", False),  # the writable layer is full, and stays so
    (errno.EPERM, "init", False), (None, "init", False)])
def test_what_may_pass(number: int | None, step: str, passes: bool) -> None:
    assert may_pass(number, step) is passes
