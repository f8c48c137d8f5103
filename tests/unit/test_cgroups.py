"""Resource control's logic, on plain files: where the hierarchies are, what a limit is in the kernel's words."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pytest_sandbox.errors import SandboxUnavailable, SandboxUsageError
from pytest_sandbox.runtime.blockio import bfq_weight, disks, weights
from pytest_sandbox.runtime.cgroup_make import Groups, Made
from pytest_sandbox.runtime.cgroup_v1 import ControlV1
from pytest_sandbox.runtime.cgroups import Control, quota
from pytest_sandbox.runtime.hierarchies import Hierarchies, Missing, find_hierarchies
from pytest_sandbox.spec import make_spec
from pytest_sandbox.usage import size

HYBRID = """\
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 30 0:30 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
HYBRID_OWN = """\
5:cpu,cpuacct:/user.slice
4:memory:/user.slice/user-1000.slice
1:name=systemd:/user.slice/session-1.scope
0::/user.slice/session-1.scope
"""


def found(tmp_path: Path, mounts: str, own: str) -> Hierarchies:
    (tmp_path / "mountinfo").write_text(mounts)
    (tmp_path / "cgroup").write_text(own)
    return find_hierarchies(str(tmp_path / "mountinfo"), str(tmp_path / "cgroup"))


def test_a_hybrid_host(tmp_path: Path) -> None:
    assert found(tmp_path, HYBRID, HYBRID_OWN) == Hierarchies(
        {"cpu": "/sys/fs/cgroup/cpu,cpuacct/user.slice", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
         "memory": "/sys/fs/cgroup/memory/user.slice/user-1000.slice",
         "name=systemd": "/sys/fs/cgroup/systemd/user.slice/session-1.scope"},
        "/sys/fs/cgroup/unified/user.slice/session-1.scope")


def test_controllers_that_are_mounted_together_have_one_directory(tmp_path: Path) -> None:
    """As systemd mounts them: to make a directory for each would fail at the second."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "memory").mkdir()
    base = {"cpu": str(tmp_path / "cpu"), "cpuacct": str(tmp_path / "cpu"), "memory": str(tmp_path / "memory")}
    control = ControlV1(Hierarchies(base, None))
    try:
        assert control.place("cpu", True) == control.place("cpuacct", True)
        names = ("cpu", "cpuacct", "memory", "freezer")
        assert [control.key(name) for name in names] == ["cpu", "cpu", "memory", "freezer"]
        layout = control.layout(make_spec({"cpus": 0.5}))
        assert layout is not None
        assert [key for key, _ in layout["places"]] == ["cpu", "memory"]
        assert {key for key, _, _ in layout["files"]} == {"cpu"}
    finally:
        control.close()


@pytest.mark.parametrize(("mount", "own", "unified"), [
    ("/ /sys/fs/cgroup", "/a.slice/b.scope", "/sys/fs/cgroup/a.slice/b.scope"),
    ("/ /sys/fs/cgroup", "/", "/sys/fs/cgroup"),
    ("/docker/1 /sys/fs/cgroup", "/docker/1", "/sys/fs/cgroup"),
    ("/docker/1 /sys/fs/cgroup", "/docker/1/in", "/sys/fs/cgroup/in"),
    ("/docker/1 /sys/fs/cgroup", "/docker/2", None),  # another's part of the hierarchy
    (r"/ /mnt/with\040space", "/x", "/mnt/with space/x"),
])
def test_cgroup_v2(tmp_path: Path, mount: str, own: str, unified: str | None) -> None:
    lines = f"31 30 0:27 {mount} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    assert found(tmp_path, lines, f"0::{own}\n") == Hierarchies({}, unified)


def test_a_host_without_cgroups(tmp_path: Path) -> None:
    nothing = found(tmp_path, "30 25 0:26 / / rw - ext4 /dev/vda rw\n", "0::/\n")
    assert nothing == Hierarchies({}, None)
    control = Control(nothing)
    assert control.layout(make_spec({})) is None  # the default limit of processes is nobody's wish
    for option, value in (("memory", "64M"), ("cpus", 1), ("cpu_weight", 1), ("io_weight", 1), ("io", "1M")):
        with pytest.raises(SandboxUnavailable, match=f"option {option}") as caught:
            control.layout(make_spec({option: value}))
        assert caught.value.remedy
    assert not any(ability.ok for ability in control.abilities().values())
    with pytest.raises(SandboxUsageError, match="swap cannot be used without memory"):
        control.layout(make_spec({"swap": "1G"}))


@pytest.mark.parametrize(("cpus", "expected"), [
    (None, (-1, 100_000)), (0.5, (50_000, 100_000)), (2.0, (200_000, 100_000)), (0.05, (5_000, 100_000)),
    (0.01, (10_000, 1_000_000)),
])
def test_quotas(cpus: float | None, expected: tuple[int, int]) -> None:
    assert quota(cpus) == expected


@pytest.mark.parametrize(("weight", "expected"), [(1, 1), (100, 100), (5050, 550), (10_000, 1000)])
def test_weights_of_block_devices(weight: int, expected: int) -> None:
    assert bfq_weight(weight) == expected


def test_weights_go_to_whoever_weighs(tmp_path: Path) -> None:
    def weigh() -> list[tuple[str, str]]:
        return weights(str(tmp_path), "io.bfq.weight", "io.weight", 1000, str(tmp_path))

    with pytest.raises(Missing, match="no weights for block I/O"):
        weigh()
    for name in ("io.bfq.weight", "io.weight"):
        (tmp_path / name).touch()
    with pytest.raises(Missing, match="no block device here is scheduled by weight"):
        weigh()
    for name, scheduler, sectors in (("sda", "none [bfq]", "0"), ("sdb", "[none] bfq", "9")):
        (tmp_path / "block" / name / "queue").mkdir(parents=True)
        (tmp_path / "block" / name / "queue" / "scheduler").write_text(scheduler)
        (tmp_path / "block" / name / "size").write_text(sectors)
        (tmp_path / "block" / name / "dev").write_text("8:0\n" if name == "sda" else "8:16\n")
    with pytest.raises(Missing, match="no block device here"):
        weigh()  # the one that BFQ schedules holds nothing
    (tmp_path / "block" / "sdb" / "queue" / "scheduler").write_text("none [bfq]")
    assert weigh() == [("io.bfq.weight", "181")]
    (tmp_path / "fs" / "cgroup").mkdir(parents=True)
    (tmp_path / "fs" / "cgroup" / "io.cost.qos").write_text("8:0 enable=1 ctrl=auto\n")
    assert weigh() == [("io.bfq.weight", "181"), ("io.weight", "default 1000")]
    assert disks(str(tmp_path / "block")) == ("8:16",)


@pytest.mark.parametrize(("number", "words"), [
    (0, "0 bytes"), (1023, "1023 bytes"), (64 << 20, "64 MiB"), (3 << 29, "1.5 GiB"), (1 << 40, "1024 GiB"),
])
def test_sizes_in_words(number: int, words: str) -> None:
    assert size(number) == words


def test_a_cgroup_that_vanishes_under_the_helper_is_no_news() -> None:
    """The kernel tells by the same eventfd that memory ran out and that the cgroup was removed."""
    groups, made = Groups(), Made()
    made.event, made.pid = os.eventfd(0), 0
    made.counter = os.open("/", os.O_RDONLY)  # cannot be read, as a file of a cgroup that is gone
    groups.suspects[made.event] = made, time.monotonic() + 1000
    groups.judge()
    assert groups.suspects == {}
    made.unwatch()
