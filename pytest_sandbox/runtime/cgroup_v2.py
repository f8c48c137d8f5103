"""cgroup v2 hosts: one directory a sandbox, in a subtree that this process may divide. Used by :mod:`.cgroups`.

Kernel documentation: Documentation/admin-guide/cgroup-v2.rst. A cgroup whose controllers are given on to its children
holds no processes itself ("no internal processes"), so whoever runs in the subtree's root moves to a leaf of it first.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import SandboxUnavailable
from ..spec import SandboxSpec
from ..usage import Usage
from .blockio import V2, throttles, weights
from .cgroup import Group
from .cgroups import Control, quota
from .hierarchies import Missing, find_hierarchies

if TYPE_CHECKING:
    from .cgroups import Layout
    from .hierarchies import Hierarchies

#: Where the processes go that were in the root of the subtree.
LEAF = "pytest-sandbox.host"
#: What sandboxes' cgroups get, in as far as it is there.
_WANTED = ("memory", "pids", "cpu", "io")
#: The controllers by their names in cgroup v1.
_NAMES = {"blkio": "io", "cpuacct": "cpu"}


class ControlV2(Control):
    """Resource control on cgroup v2."""

    version = 2
    others: ClassVar[dict[str, str]] = {"freeze": "unified", "accounting": "unified"}

    def __init__(self, found: Hierarchies) -> None:
        super().__init__(found)
        self._base: str | None = None
        self._why: tuple[str, str] | None = None
        self._asked = False

    def place(self, controller: str, asked: bool) -> str:
        name = _NAMES.get(controller, controller)
        base = self._subtree(asked)
        try:
            if "unified" not in self.run.places:
                place = self.run.place("unified", base)
                _enable(place, _controllers(place))
        except OSError as error:
            raise Missing(f"no cgroup can be made in {base}: {error.strerror}", "Run as root, or let systemd delegate "
                          "a cgroup: see `pytest-sandbox doctor`.") from None
        place = self.run.places["unified"]
        if controller != "unified" and name not in _controllers(place, "cgroup.subtree_control"):
            raise Missing(f"the cgroup controller {name} is not given to {base}", _delegate(name))
        return place

    def _subtree(self, asked: bool) -> str:
        """The directory below which we may make groups.

        :raises Missing: when there is none, or none without asking for it.
        """
        if self._base is None and (self._why is None or (asked and not self._asked)):
            from .delegation import NotDelegated, find
            self._asked = asked
            try:
                self._base = find(self.found.unified or "", asked)
            except NotDelegated as error:
                self._why = error.why, error.remedy
            now = find_hierarchies()
            if now.unified != self.found.unified:
                self.found = now
                self.moved += 1
        if self._base is None:
            assert self._why is not None
            raise Missing(*self._why)
        return self._base

    def key(self, controller: str) -> str:
        return "unified"

    def accounting(self) -> tuple[str, ...]:
        return ("unified",)

    def files(self, option: str, value: Any, spec: SandboxSpec) -> list[tuple[str, str, str]]:
        if option in ("memory", "swap"):
            files = [("memory", "memory.max", "max" if spec.memory is None else str(spec.memory))]
            place = self.place("memory", True)
            if os.path.exists(f"{place}/memory.swap.max"):
                swap = "max" if spec.memory is None and spec.swap is None else str(spec.swap or 0)
                files.append(("memory", "memory.swap.max", swap))
            elif _host_has_swap():
                raise Missing("the kernel does not account for swap", "Boot with the parameter swapaccount=1.")
            return [*files, ("memory", "memory.oom.group", "1")]
        if option == "pids":
            return [("pids", "pids.max", str(value + 1))]  # the sandbox's init is one of them
        if option == "cpus":
            limit, period = quota(value)
            return [("cpu", "cpu.max", f"{'max' if limit < 0 else limit} {period}")]
        if option == "cpu_weight":
            return [("cpu", "cpu.weight", str(value or 100))]
        place = self.place("blkio", True)
        found = (throttles(place, V2, value) if option == "io"
                 else weights(place, "io.bfq.weight", "io.weight", value or 100))
        return [("blkio", name, text) for name, text in found]

    def group(self, layout: Layout, name: str) -> GroupV2:
        return GroupV2(self, layout, name)


def _controllers(path: str, file: str = "cgroup.controllers") -> list[str]:
    try:
        with open(f"{path}/{file}") as opened:
            return opened.read().split()
    except OSError:
        return []


def _enable(path: str, names: list[str]) -> None:
    """Gives controllers on to what is below ``path``; those that cannot be given are left out."""
    for name in _WANTED:
        if name in names:
            with contextlib.suppress(OSError), open(f"{path}/cgroup.subtree_control", "w") as file:
                file.write(f"+{name}")


def _host_has_swap() -> bool:
    with open("/proc/swaps") as file:
        return len(file.readlines()) > 1


def _delegate(name: str) -> str:
    if os.geteuid() == 0:
        return f"Enable it above: `echo +{name} | sudo tee /sys/fs/cgroup/cgroup.subtree_control`."
    return ("Let systemd give it to users: a file /etc/systemd/system/user@.service.d/delegate.conf with the lines "
            "`[Service]` and `Delegate=cpu cpuset io memory pids`, then `sudo systemctl daemon-reload` "
            "and a new login.")


class GroupV2(Group):
    """One sandbox's directory in cgroup v2."""

    @property
    def path(self) -> str:
        """The directory that holds the limits."""
        return self.paths["unified"]

    def usage(self) -> Usage:
        stat = f"{self.path}/cpu.stat"
        total, user = self.field(stat, "usage_usec"), self.field(stat, "user_usec")
        system = self.field(stat, "system_usec")
        tasks, tasks_peak = self.number("unified", "pids.current"), self.number("unified", "pids.peak")
        read, written = self._io()
        return Usage(_seconds(total), _seconds(user), _seconds(system), self.number("unified", "memory.peak"),
                     self.number("unified", "memory.current"), None if tasks_peak is None else max(tasks_peak - 1, 0),
                     None if tasks is None else max(tasks - 1, 0), read, written)

    def _io(self) -> tuple[int | None, int | None]:
        text = self.read(f"{self.path}/io.stat")
        if text is None:
            return None, None
        sums = {"rbytes": 0, "wbytes": 0}
        for word in text.split():
            name, _, value = word.partition("=")
            if name in sums:
                sums[name] += int(value)
        return sums["rbytes"], sums["wbytes"]

    def oom_kills(self) -> int | None:
        return self.field(f"{self.path}/memory.events", "oom_kill")

    def pids_refused(self) -> int | None:
        # Counted where the fork was tried, until Linux 6.11 began to count where the limit is.
        counts = [self.field(f"{path}/pids.events", "max") for path in (self.path, self.inner["unified"])]
        known = [count for count in counts if count is not None]
        return max(known) if known else None

    def own_peak(self) -> int:
        try:
            fd = os.open(f"{self.path}/memory.peak", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return -1  # before Linux 6.12
        try:
            os.write(fd, b"reset")
        except OSError:
            os.close(fd)
            return -1
        return fd

    def freeze(self) -> None:
        self.frozen = True
        self.write(f"{self.path}/cgroup.freeze", "1")
        if not self._until("frozen", 1, 10):
            self.thaw()
            raise SandboxUnavailable("the sandbox could not be frozen", feature="freeze",
                                     why="a process in it is in an uninterruptible wait")

    def _until(self, field: str, value: int, seconds: float) -> bool:
        """Waits until a field of cgroup.events has this value; the kernel tells of changes by a priority event."""
        deadline = time.monotonic() + seconds
        with open(f"{self.path}/cgroup.events") as file:
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            while True:
                file.seek(0)
                if f"{field} {value}" in file.read().splitlines():
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)

    def thaw(self) -> None:
        self.write(f"{self.path}/cgroup.freeze", "0")
        self.frozen = False

    def ordered(self, files: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        # cgroup v1 refuses a memory limit below what is in use. Here the kernel would kill: so we refuse.
        for _, file, text in files:
            if file == "memory.max" and text != "max":
                kept = sum(self.field(f"{self.path}/memory.stat", name) or 0
                           for name in ("anon", "shmem", "kernel_stack", "pagetables"))
                if kept > int(text):
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), f"{self.path}/memory.max")
        return files


def _seconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1e6
