"""How much may be made ahead now: less while the machine is loaded, nothing while one of its limits is near.

What is not made ahead is made when its test wants it: that takes longer, and does not fail. Where the kernel refuses a
sandbox for want of something all the same, :mod:`.supervisor` gives back what waits ahead, and asks again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator

from .hierarchies import Hierarchies, find_hierarchies

#: A limit is near when so much of it is taken.
NEAR = 0.9
#: Memory is short when less than this is available: a share of all, and bytes.
MEMORY_SHARE, MEMORY_LEAST = 0.05, 64 << 20
#: The machine is loaded when more tasks than this want each processor.
LOADED = 4
#: Network namespaces beyond those in use that the kernel may have yet to take down.
BACKLOG = 256
#: How long an answer holds, in seconds; of what changes slowly.
FRESH, SLOW = 0.1, 5.0
#: What the kernel says when there is too much of something, and there may be less in a moment.
SHORT = (errno.EAGAIN, errno.ENOMEM, errno.ENOSPC, errno.ENFILE, errno.EUSERS)
#: Steps that want something of the kernel's; other steps find the writable layer full, and that stays so.
STEPS = ("init", "clone3", "cgroup")
#: How long to wait before each further attempt, in seconds.
PAUSES = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0, 1.0)

Limit = tuple[Callable[[], int], int]


def may_pass(number: int | None, step: str | None) -> bool:
    """Whether what failed with this errno, at this step, may succeed when there is more room."""
    return number in SHORT and (number != errno.ENOSPC or step in STEPS)


class Gauge:
    """Looks at the machine, no more often than need be. One for each supervisor.

    :param proc: where proc(5) is mounted. ``found``: the caller's own cgroups.
    """

    def __init__(self, proc: str = "/proc", found: Hierarchies | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._proc, self._clock = proc, clock
        self._found = found if found is not None else find_hierarchies()
        self._limits: list[Limit] | None = None
        self._until = self._slow_until = 0.0
        self._most: int | None = None
        self._slow: str | None = None
        #: Why less is made ahead than could be; None where nothing stands against it.
        self.why: str | None = None

    def allowed(self, wanted: int, alive: int) -> int:
        """How many of ``wanted`` sandboxes to make ahead, while ``alive`` are there."""
        now = self._clock()
        if now >= self._until:
            self._until = now + FRESH
            self.why = self._near(now, alive)
            self._most = 0 if self.why is not None else None
            if self._most is None and self._runnable() > LOADED * (os.cpu_count() or 1):
                self.why, self._most = "the machine is loaded", 1
        return wanted if self._most is None else min(wanted, self._most)

    def _near(self, now: float, alive: int) -> str | None:
        """The limit that is near, in words."""
        if self._limits is None:
            self._limits = [*self._cgroup_limits()]
        memory = self._meminfo()
        if memory is not None and memory[0] < max(MEMORY_LEAST, memory[1] * MEMORY_SHARE):
            return "the machine's memory is almost used up"
        tasks = self._word("loadavg", 3).partition("/")[2]
        if tasks.isdecimal() and int(tasks) > NEAR * min(
                self._number("sys/kernel/pid_max"), self._number("sys/kernel/threads-max")):
            return "the machine has almost as many tasks as it can"
        if any(current() > NEAR * most for current, most in self._limits):
            return "a limit of this process's cgroup is near"
        if now >= self._slow_until:
            self._slow_until = now + SLOW
            self._slow = self._slowly(alive)
        return self._slow

    def _slowly(self, alive: int) -> str | None:
        try:
            with open(f"{self._proc}/self/mountinfo", "rb") as file:
                mounts = sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 16), b""))
        except OSError:
            mounts = 0
        if mounts > NEAR * self._number("sys/fs/mount-max"):
            return "this mount namespace has almost as many mounts as it can"
        try:  # root's to read
            with open(f"{self._proc}/slabinfo") as file:
                networks = next((int(line.split()[1]) for line in file if line.startswith("net_namespace ")), 0)
        except (OSError, ValueError):
            networks = 0
        if networks > alive + BACKLOG:
            return "the kernel has yet to take down many network namespaces"
        return None

    def _cgroup_limits(self) -> Iterator[Limit]:
        """What counts, and up to where, in the caller's cgroups and those above them."""
        for folder, files in (
                (self._found.unified, (("pids.current", "pids.max", ""),
                                       ("memory.current", "memory.max", "memory.stat"))),
                (self._found.v1.get("pids"), (("pids.current", "pids.max", ""),)),
                (self._found.v1.get("memory"), (("memory.usage_in_bytes", "memory.limit_in_bytes", "memory.stat"),))):
            while folder and os.path.exists(f"{folder}/cgroup.procs"):
                for current, most, stat in files:
                    number = _read_number(f"{folder}/{most}")
                    if number is not None and number < 1 << 60:
                        yield _counter(f"{folder}/{current}", f"{folder}/{stat}" if stat else ""), number
                folder = os.path.dirname(folder)

    def _runnable(self) -> int:
        text = self._word("loadavg", 3).partition("/")[0]
        return int(text) if text.isdecimal() else 0

    def _meminfo(self) -> tuple[int, int] | None:
        """Bytes available, and of all."""
        try:
            with open(f"{self._proc}/meminfo") as file:
                found = {line.partition(":")[0]: int(line.split()[1]) << 10 for line in file.readlines()[:3]}
            return found["MemAvailable"], found["MemTotal"]
        except (OSError, KeyError, ValueError, IndexError):
            return None

    def _word(self, name: str, place: int) -> str:
        try:
            with open(f"{self._proc}/{name}") as file:
                return file.read().split()[place]
        except (OSError, IndexError):
            return ""

    def _number(self, name: str) -> int:
        return _read_number(f"{self._proc}/{name}") or 1 << 62


def _read_number(path: str) -> int | None:
    try:
        with open(path) as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _counter(path: str, stat: str) -> Callable[[], int]:
    """What is taken; of memory without what the kernel would drop first."""
    def current() -> int:
        taken = _read_number(path) or 0
        if stat:
            try:
                with open(stat) as file:
                    taken -= next((int(line.split()[1]) for line in file
                                   if line.startswith(("total_inactive_file ", "inactive_file "))), 0)
            except (OSError, ValueError):
                pass
        return taken

    return current
