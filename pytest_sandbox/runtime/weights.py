"""Numbers that the two versions of cgroups share: CPU quotas, and weights of block I/O."""

from __future__ import annotations

import glob
import os

from .hierarchies import Missing


def quota(cpus: float | None) -> tuple[int, int]:
    """The quota and the period, in microseconds, of ``cpus``; -1 for no limit. The kernel takes no quota below 1 ms."""
    if cpus is None:
        return -1, 100_000
    period = 100_000 if cpus >= 0.05 else 1_000_000
    return max(1000, round(cpus * period)), period


def bfq_weight(weight: int) -> int:
    """What the scheduler BFQ, whose weights end at 1000, gets for a weight of 1 to 10000; as systemd has it."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def weighed_by(place: str, names: tuple[str, ...]) -> str:
    """The first of these files that there is.

    :raises Missing: when the kernel would take a weight and act on no device by it.
    """
    found = next((name for name in names if os.path.exists(f"{place}/{name}")), None)
    if found is None:
        raise Missing("the kernel has no weights for block I/O", "Use a kernel with BFQ or blk-iocost.")
    if not _scheduled():
        raise Missing("no block device here is scheduled by weight",
                      "Choose a scheduler that is: `echo bfq | sudo tee /sys/block/DEVICE/queue/scheduler`.")
    return found


def _scheduled() -> bool:
    for path in glob.glob("/sys/block/*/queue/scheduler"):
        try:
            with open(path) as file:
                if "[bfq]" in file.read():
                    return True
        except OSError:
            continue
    try:
        with open("/sys/fs/cgroup/io.cost.qos") as file:
            return "enable=1" in file.read()
    except OSError:
        return False
