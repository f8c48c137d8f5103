"""One sandbox's cgroup as the caller holds it. Made by :mod:`.cgroups`; each version's files are in its module."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..errors import MemoryLimitExceeded, SandboxError, SandboxUnavailable
from ..spec import SandboxSpec
from ..usage import LimitEvents, Usage, Victim, size
from . import blockio, cgroup_make
from .hierarchies import Missing, pids_of

if TYPE_CHECKING:
    from .cgroups import Control, Layout

#: What each limit is called in ``doctor`` and in ``SandboxUnavailable.feature``, and what it does.
FEATURES = {
    "memory": ("memory-limit", "limit memory"),
    "swap": ("swap-limit", "limit swap"),
    "cpus": ("cpu-limit", "limit CPU time"),
    "cpu_weight": ("cpu-weight", "weigh CPU time"),
    "io_weight": ("io-weight", "weigh block I/O"),
    "io": ("io-limit", "limit block I/O"),
    "pids": ("pids-limit", "limit processes"),
    "freeze": ("freeze", "freeze a sandbox"),
    "accounting": ("accounting", "count all that a sandbox uses"),
}


def unavailable(option: str, why: str, remedy: str) -> SandboxUnavailable:
    """The error for a limit that this host cannot enforce."""
    feature, words = FEATURES[option]
    return SandboxUnavailable(f"this host cannot {words} (option {option})", feature=feature, why=why, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment: what had been used by then."""

    usage: Usage
    reset: bool  # the memory peak counts from here
    peak: int = -1  # a file with the peak from here on


class Group:
    """One sandbox's cgroup, in the caller: from the sandbox's making until it is dropped.

    :param paths: its directories, by controller.
    """

    def __init__(self, control: Control, layout: Layout, name: str) -> None:
        self.control, self.layout, self.name = control, layout, name
        self.paths = {key: f"{place}/{name}" for key, place in layout["places"]}
        self.inner = {key: path if key in layout["flat"] else f"{path}/{cgroup_make.INNER}"
                      for key, path in self.paths.items()}
        self.join_fds: list[int] = []
        self.tell: Callable[[dict[str, Any]], bool] = lambda message: False  # to the helper
        self.frozen = False
        self.memory: int | None = layout["memory"]
        self.throttled = any(file in (*blockio.V1, *blockio.V2) for _, file, _ in layout["files"])
        self.counts_io = self.throttled
        self._fds: dict[str, int] = {}
        self._peak = 0  # the highest memory peak that has been reset
        self._marks = 0
        self._lock = threading.Lock()

    def join(self) -> None:
        """Moves the calling process, which has a single thread, into the group."""
        for fd in self.join_fds:
            os.write(fd, b"0")

    def read(self, path: str) -> str | None:
        """A file's text, by a descriptor that is kept; None where there is none."""
        with self._lock:
            fd = self._fds.get(path)
            try:
                if fd is None:
                    fd = self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                return os.pread(fd, 65536, 0).decode()
            except OSError:
                return None

    def number(self, key: str, file: str) -> int | None:
        """A file's number; None where there is none."""
        if key not in self.paths:
            return None
        text = self.read(f"{self.paths[key]}/{file}")
        return int(text) if text is not None and text.strip().isdecimal() else None

    def field(self, path: str, name: str) -> int | None:
        """A number from a file of names and numbers; None where there is none."""
        text = self.read(path)
        for line in (text or "").splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
        return None

    def write(self, path: str, text: str) -> None:
        """Writes a file.

        :raises OSError: with the path.
        """
        cgroup_make.write(path, text)

    def pids(self) -> list[int]:
        """The host's numbers of the processes in it."""
        for path in self.inner.values():
            return pids_of(path)
        return []

    # What the two versions say.

    def usage(self) -> Usage:
        """What all its processes have used so far; without ``disk`` and ``wall_seconds``."""
        raise NotImplementedError

    def oom_kills(self) -> int | None:
        """Processes that the kernel has killed for want of memory."""
        raise NotImplementedError

    def pids_refused(self) -> int | None:
        """Forks that failed because of the ``pids`` limit."""
        raise NotImplementedError

    def reset_peak(self) -> bool:
        """Lets the memory peak count from now, where the kernel can."""
        return False

    def own_peak(self) -> int:
        """A descriptor of the memory peak from now on, beside which others count theirs; -1 where there is no such."""
        return -1

    def freeze(self) -> None:
        """Stops every process; they use no CPU time when this returns."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Lets them go on."""
        raise NotImplementedError

    # What follows.

    def events(self) -> LimitEvents:
        """Which limits were met."""
        kills = self.oom_kills()
        # On cgroup v2 the inner directory has no memory controller: the log names the one above it.
        paths = [one[key] for one in (self.paths, self.inner) for key in ("memory", "unified") if key in one]
        return LimitEvents(kills, oom_victims(paths) if kills else (), self.pids_refused())

    def total(self) -> Usage:
        """:meth:`usage`, whatever was reset meanwhile."""
        usage = self.usage()
        return _with_peak(usage, max(usage.memory_peak, self._peak)) if usage.memory_peak is not None else usage

    def mark(self) -> Mark:
        """Before a command: what has been used so far."""
        usage = self.usage()
        with self._lock:
            alone = self._marks == 0
            self._marks += 1
            if alone and usage.memory_peak is not None:
                self._peak = max(self._peak, usage.memory_peak)
        peak = self.own_peak()
        return Mark(usage, peak < 0 and alone and self.reset_peak(), peak)

    def since(self, mark: Mark) -> Usage:
        """What has been used since ``mark``. A peak that nothing tells apart from an earlier one is None."""
        usage, before = self.usage(), mark.usage
        with self._lock:
            self._marks -= 1
        peak = usage.memory_peak
        if mark.peak >= 0:
            peak = int(os.pread(mark.peak, 64, 0))
            os.close(mark.peak)
        elif not mark.reset and peak is not None and (before.memory_peak is None or peak <= before.memory_peak):
            peak = None
        tasks = usage.pids_peak
        if tasks is not None and (before.pids_peak is None or tasks <= before.pids_peak):
            tasks = None
        return Usage(
            cpu_seconds=_less(usage.cpu_seconds, before.cpu_seconds),
            user_seconds=_less(usage.user_seconds, before.user_seconds),
            system_seconds=_less(usage.system_seconds, before.system_seconds),
            memory_peak=peak, memory=usage.memory, pids_peak=tasks, pids=usage.pids,
            io_read=_less(usage.io_read, before.io_read), io_written=_less(usage.io_written, before.io_written))

    def update(self, spec: SandboxSpec, changed: set[str]) -> None:
        """Sets the limits ``changed`` to what ``spec`` says.

        :raises SandboxUnavailable: for a limit that this sandbox's cgroup cannot get.
        :raises SandboxError: when the kernel refuses a value, as too small for what is in use.
        """
        if "swap" in changed and spec.memory is not None:
            changed = changed - {"swap"} | {"memory"}
        for option in sorted(changed):
            try:
                files = self.control.files(option, getattr(spec, option), spec)
            except Missing as missing:
                if getattr(spec, option) is None:
                    continue  # nor has it that limit now
                raise unavailable(option, *missing.args) from None
            if any(self.control.key(controller) not in self.paths for controller, _, _ in files):
                if getattr(spec, option) is None:
                    continue
                raise SandboxUnavailable(
                    f"a running sandbox cannot get the limit {option}", feature=FEATURES[option][0],
                    why="it was started without it, and is not in that controller's cgroup",
                    remedy=f"Start it with {option} set, to a high value if need be.")
            try:
                for controller, file, text in self.ordered(files):
                    self.write(f"{self.paths[self.control.key(controller)]}/{file}", text)
            except OSError as error:
                why: str | None = error.strerror
                if error.errno == errno.EBUSY:
                    why = f"it uses more than that ({self.usage().memory} bytes of memory)"
                what = f"the limit {option}={getattr(spec, option)} could not be set"
                raise SandboxError(what, why=why) from error
            self.throttled |= option == "io"
            if option == "memory":
                self.memory = spec.memory
                self.tell({"watch": self.name})

    def exceeded(self) -> MemoryLimitExceeded | None:
        """Why the sandbox has ended, if that was its memory limit."""
        if self.memory is None or not self.oom_kills():
            return None
        met, peak = self.events(), self.total().memory_peak
        victim = met.victims[0] if met.victims else None
        who = f"{victim.name} (pid {victim.pid})" if victim is not None else "a process"
        more = f" and {met.oom_kills - 1} more" if met.oom_kills and met.oom_kills > 1 else ""
        told = f"; the peak was {size(peak)}" if peak is not None else ""
        return MemoryLimitExceeded(
            f"the sandbox reached its memory limit of {size(self.memory)}", limit=self.memory, peak=peak,
            kills=met.oom_kills, victim=victim.name if victim else None, victim_pid=victim.pid if victim else None,
            why=f"the kernel killed {who}{more} in it, and with that the sandbox ended{told}",
            remedy="Use less, or raise its memory option. Files of the writable layer count as memory.")

    def ordered(self, files: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
        """The order in which limits that depend on one another can be changed."""
        return files

    def kill(self, spare: int) -> None:
        """Kills every process but ``spare``, also frozen ones."""
        for _ in range(1000):
            left = [pid for pid in self.pids() if pid != spare]
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self.frozen:
                return  # they can make no new ones, and die when they are thawed
            if not left:
                return
            time.sleep(0.001)

    @contextlib.contextmanager
    def unthrottled(self) -> Iterator[None]:
        """For as long as it takes, block I/O has no limit: whoever waits for that dies only when it is lifted."""
        lifted = cgroup_make.unthrottle(list(self.paths.values())) if self.throttled else ()
        try:
            yield
        finally:
            for path, text in lifted:
                with contextlib.suppress(OSError):
                    self.write(path, text)

    def let_go(self) -> None:
        """The sandbox ends; the helper removes the directories when it has ended."""
        if self.frozen:
            with contextlib.suppress(OSError):
                self.thaw()
        if self.throttled:
            cgroup_make.unthrottle(list(self.paths.values()))
        self.tell({"drop": self.name})

    def close(self) -> None:
        """Closes our descriptors."""
        with self._lock:
            for fd in (*self._fds.values(), *self.join_fds):
                os.close(fd)
            self._fds.clear()
            self.join_fds.clear()

    def remove(self) -> None:
        """Removes the directories: the sandbox has ended."""
        cgroup_make.remove(list(self.paths.values()))


def _less(after: Any, before: Any) -> Any:
    return None if after is None or before is None else max(after - before, 0)


def _with_peak(usage: Usage, peak: int) -> Usage:
    return replace(usage, memory_peak=peak)


def oom_victims(paths: list[str]) -> tuple[Victim, ...]:
    """Whom the kernel killed in these cgroups, as its log has it; nobody where that cannot be read."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ()
    found = []
    names = ["/".join(path.split("/")[-3:]) for path in paths]  # of the run, of the sandbox, and the inner one
    try:
        while True:
            try:
                record = os.read(fd, 8192).decode(errors="replace")
            except BrokenPipeError:
                continue  # overwritten meanwhile: the next one follows
            except OSError:
                break
            if "oom-kill:" in record and any(f"{name},task=" in record for name in names):
                facts = dict(part.split("=", 1) for part in record.split("\n")[0].split(",") if "=" in part)
                with contextlib.suppress(KeyError, ValueError):
                    found.append(Victim(int(facts["pid"]), facts["task"]))
    finally:
        os.close(fd)
    return tuple(found)
