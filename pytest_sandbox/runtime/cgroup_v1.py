"""cgroup v1 and hybrid hosts: each controller in the hierarchy where it is mounted. Used by :mod:`.cgroups`.

Kernel documentation: Documentation/admin-guide/cgroup-v1. A process enters by writing ``0`` to ``tasks``: that moves
one thread, its own, and needs none of the locks that moving another process waits for.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import SandboxUnavailable
from ..spec import SandboxSpec
from ..usage import Usage
from .blockio import V1, throttles, weights
from .cgroup import Group, unavailable
from .cgroups import Control, quota
from .hierarchies import Missing, pids_of

if TYPE_CHECKING:
    from .cgroups import Layout

#: The controllers that are used; of those that are mounted together the first stands for all.
_ORDER = ("memory", "pids", "blkio", "cpu", "cpuacct", "freezer")
_AS_ROOT = "Run as root, or on a host with cgroup v2 and systemd, which delegates to users."


class ControlV1(Control):
    """Resource control on cgroup v1."""

    version = 1
    others: ClassVar[dict[str, str]] = {"freeze": "freezer", "accounting": "cpuacct"}
    flat = ("blkio",)
    only: ClassVar[dict[str, str]] = {"io": "; of writes, those that a program waits for",
                                      "io_weight": "; of writes, those that a program waits for"}

    def place(self, controller: str, asked: bool) -> str:
        base = self.found.v1.get(controller)
        if base is None:
            raise Missing(f"the cgroup controller {controller} is not mounted", f"Mount it: `sudo mount -t cgroup "
                          f"-o {controller} none /sys/fs/cgroup/{controller}`.")
        try:
            return self.run.place(self.key(controller), base)
        except OSError as error:
            raise Missing(f"no cgroup can be made in {base}: {error.strerror}", _AS_ROOT) from None

    def key(self, controller: str) -> str:
        # systemd mounts cpu and cpuacct together: what is two hierarchies elsewhere is one there.
        base = self.found.v1.get(controller)
        return next((name for name in _ORDER if base is not None and self.found.v1.get(name) == base), controller)

    def accounting(self) -> tuple[str, ...]:
        return ("memory", "cpuacct")

    def files(self, option: str, value: Any, spec: SandboxSpec) -> list[tuple[str, str, str]]:
        if option in ("memory", "swap"):
            if value is None:
                return [("memory", "memory.limit_in_bytes", "-1")]
            return _memory(self.place("memory", True), spec)
        if option == "pids":
            return [("pids", "pids.max", str(value + 1))]  # the sandbox's init is one of them
        if option == "cpus":
            limit, period = quota(value)
            return [("cpu", "cpu.cfs_period_us", str(period)), ("cpu", "cpu.cfs_quota_us", str(limit))]
        if option == "cpu_weight":
            return [("cpu", "cpu.shares", str(max(2, round((value or 100) * 1024 / 100))))]
        place = self.place("blkio", True)
        found = (throttles(place, V1, value) if option == "io"
                 else weights(place, "blkio.bfq.weight", None, value or 100))
        return [("blkio", name, text) for name, text in found]

    def group(self, layout: Layout, name: str) -> GroupV1:
        return GroupV1(self, layout, name)


def _memory(place: str, spec: SandboxSpec) -> list[tuple[str, str, str]]:
    memory, swap = spec.memory or 0, spec.swap or 0
    files = [("memory", "memory.limit_in_bytes", str(memory))]
    if os.path.exists(f"{place}/memory.memsw.limit_in_bytes"):
        return [*files, ("memory", "memory.memsw.limit_in_bytes", str(memory + swap))]
    if swap:
        raise Missing("the kernel does not account for swap", "Boot with the parameter swapaccount=1, or leave out "
                      "the swap option.")
    return [*files, ("memory", "memory.swappiness", "0")]  # which keeps all of it out of swap


class GroupV1(Group):
    """One sandbox's directories in the hierarchies of cgroup v1."""

    def _at(self, controller: str, inner: bool = False) -> str | None:
        """The directory with a controller's files."""
        return (self.inner if inner else self.paths).get(self.control.key(controller))

    def _number(self, controller: str, file: str) -> int | None:
        return self.number(self.control.key(controller), file)

    def usage(self) -> Usage:
        total, user, system = self._cpu()
        tasks, tasks_peak = self._number("pids", "pids.current"), self._number("pids", "pids.peak")
        read, written = self._io()
        return Usage(total, user, system, self._number("memory", "memory.max_usage_in_bytes"),
                     self._number("memory", "memory.usage_in_bytes"),
                     None if tasks_peak is None else tasks_peak - 1, None if tasks is None else max(tasks - 1, 0),
                     read, written)

    def _cpu(self) -> tuple[float | None, float | None, float | None]:
        total = self._number("cpuacct", "cpuacct.usage")
        if total is None:
            return None, None, None
        user, system = self._number("cpuacct", "cpuacct.usage_user"), self._number("cpuacct", "cpuacct.usage_sys")
        if user is None or system is None:
            return total / 1e9, None, None
        # The sum is exact, its parts are sampled at clock ticks: scaled to it, as the kernel does for times(2).
        share = user / (user + system) if user + system else 1.0
        return total / 1e9, total * share / 1e9, total * (1 - share) / 1e9

    def _io(self) -> tuple[int | None, int | None]:
        # Since Linux 6.10 only what is throttled is counted.
        if (path := self._at("blkio")) is None or not self.counts_io:
            return None, None
        text = self.read(f"{path}/blkio.throttle.io_service_bytes_recursive")
        if text is None:
            return None, None
        sums = {"Read": 0, "Write": 0}
        for line in text.splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in sums:
                sums[words[1]] += int(words[2])
        return sums["Read"], sums["Write"]

    def oom_kills(self) -> int | None:
        path = self._at("memory", inner=True)
        return None if path is None else self.field(f"{path}/memory.oom_control", "oom_kill")

    def pids_refused(self) -> int | None:
        paths = self._at("pids"), self._at("pids", inner=True)
        if None in paths:
            return None
        # Counted where the fork was tried, until Linux 6.11 began to count where the limit is.
        counts = [self.field(f"{path}/pids.events", "max") for path in paths]
        known = [count for count in counts if count is not None]
        return max(known) if known else None

    def reset_peak(self) -> bool:
        if (path := self._at("memory")) is None:
            return False
        try:
            self.write(f"{path}/memory.max_usage_in_bytes", "0")
        except OSError:
            return False
        return True

    def ordered(self, files: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        # Memory alone must never be more than memory and swap together, not even between two writes.
        names = [file for _, file, _ in files]
        if "memory.memsw.limit_in_bytes" in names:
            limit = self._number("memory", "memory.limit_in_bytes") or 0
            if int(files[names.index("memory.limit_in_bytes")][2]) > limit:
                return files[::-1]
        elif names == ["memory.limit_in_bytes"] and self._number("memory", "memory.memsw.limit_in_bytes") is not None:
            return [("memory", "memory.memsw.limit_in_bytes", "-1"), *files]
        return files

    # Freezing: the processes enter a group of the freezer's when they are first frozen, which costs others nothing.

    def freeze(self) -> None:
        try:
            place = self.control.place("freezer", True)
        except Missing as missing:
            raise unavailable("freeze", *missing.args) from None
        path = f"{place}/{self.name}"
        if "freezer" not in self.paths:
            os.makedirs(path, exist_ok=True)
            self.paths["freezer"] = self.inner["freezer"] = path
            self.tell({"froze": self.name, "path": path})
        self.frozen = True
        self.write(f"{path}/freezer.state", "FROZEN")
        deadline = time.monotonic() + 10
        while True:
            outside = set(self._everyone()) - set(pids_of(path))
            for pid in outside:
                try:
                    self.write(f"{path}/cgroup.procs", str(pid))
                except ProcessLookupError:
                    pass  # it ended meanwhile
            if not outside and (self.read(f"{path}/freezer.state") or "").strip() == "FROZEN":
                return
            if time.monotonic() > deadline:
                self.thaw()
                raise SandboxUnavailable("the sandbox could not be frozen", feature="freeze",
                                         why="a process in it is in an uninterruptible wait")
            self.write(f"{path}/freezer.state", "FROZEN")
            time.sleep(0.0005)

    def _everyone(self) -> list[int]:
        return next((pids_of(path) for key, path in self.inner.items() if key != "freezer"), [])

    def thaw(self) -> None:
        if "freezer" in self.paths:
            self.write(f"{self.paths['freezer']}/freezer.state", "THAWED")
        self.frozen = False

    def pids(self) -> list[int]:
        return self._everyone()

