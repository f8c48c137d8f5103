"""Block I/O in the kernel's words, for both versions of cgroups: which disks there are, who weighs, who throttles.

Kernel documentation: Documentation/admin-guide/cgroup-v2.rst (IO) and cgroup-v1/blkio-controller.rst.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from . import cgroup_make
from .hierarchies import Missing

Bandwidth = tuple[tuple[str, int], ...]

#: The kernel's files for a bandwidth: of cgroup v2, and of v1 for reads and writes.
V2 = ("io.max",)
V1 = ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")


def disks(folder: str = "/sys/block") -> tuple[str, ...]:
    """Every block device of this host that has something in it, as ``"8:0"``; the kernel limits no partitions."""
    found = []
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        try:
            with open(f"{folder}/{name}/size") as size, open(f"{folder}/{name}/dev") as number:
                if int(size.read()):
                    found.append(number.read().strip())
        except OSError:
            continue  # it has just gone, or it is one of the paths to a disk that has several
    return tuple(found)


def throttles(place: str, names: tuple[str, ...], value: Bandwidth | None) -> list[tuple[str, str]]:
    """The files and texts that limit each disk to ``value``; tried in ``place``, without a limit.

    :raises Missing: when the kernel limits no bandwidth, or there is nothing to limit.
    """
    if not all(os.path.exists(f"{place}/{name}") for name in names):
        raise Missing("the kernel does not limit block I/O",
                      "Use a kernel that does (CONFIG_BLK_DEV_THROTTLING), or leave out the io option.")
    found = disks()
    if not found:
        raise Missing("no block device is visible here", "Leave out the io option: nothing inside can reach a disk.")
    try:
        for name, text in _lines(names, None, found):
            cgroup_make.write(f"{place}/{name}", text)
    except OSError as error:
        raise Missing(f"the kernel limits no block I/O of this host's disks: {error.strerror} ({error.filename})",
                      "Leave out the io option.") from None
    return _lines(names, value, found)


def _lines(names: tuple[str, ...], value: Bandwidth | None, found: Iterable[str]) -> list[tuple[str, str]]:
    limits = dict(value or ())
    if names == V2:
        words = " ".join(f"{word}={limits.get(way, 'max')}" for way, word in (("read", "rbps"), ("write", "wbps")))
        return [(names[0], f"{disk} {words}") for disk in found]
    # Nothing is no limit.
    return [(name, f"{disk} {limits.get(way, 0)}") for way, name in zip(("read", "write"), names, strict=True)
            for disk in found]


def bfq_weight(weight: int) -> int:
    """What the scheduler BFQ, whose weights end at 1000, gets for a weight of 1 to 10000; as systemd has it."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def weights(place: str, bfq: str, cost: str | None, value: int, system: str = "/sys") -> list[tuple[str, str]]:
    """The files and texts of a weight, for whoever weighs the disks of this host: BFQ, blk-iocost, or both.

    :param bfq: the file of BFQ's; ``cost``: that of blk-iocost, which cgroup v1 has not.
    :raises Missing: when the kernel would take a weight and act on no device by it.
    """
    there = [name for name in (bfq, cost) if name is not None and os.path.exists(f"{place}/{name}")]
    found = []
    if bfq in there and _scheduled(system):
        found.append((bfq, str(bfq_weight(value))))
    if cost in there and cost is not None and _costed(system):
        found.append((cost, f"default {value}"))
    if found:
        return found
    if not there:
        raise Missing("the kernel has no weights for block I/O", "Load BFQ as root (`modprobe bfq`) and let it "
                      "schedule: `echo bfq | sudo tee /sys/block/DEVICE/queue/scheduler`.")
    raise Missing("no block device here is scheduled by weight",
                  "Choose a scheduler that is: `echo bfq | sudo tee /sys/block/DEVICE/queue/scheduler`.")


def _scheduled(system: str) -> bool:
    folder = f"{system}/block"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        try:
            with open(f"{folder}/{name}/queue/scheduler") as file, open(f"{folder}/{name}/size") as size:
                if "[bfq]" in file.read() and int(size.read()):
                    return True
        except OSError:
            continue
    return False


def _costed(system: str) -> bool:
    try:
        with open(f"{system}/fs/cgroup/io.cost.qos") as file:
            return "enable=1" in file.read()
    except OSError:
        return False
