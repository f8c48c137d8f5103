"""What ``Sandbox`` says and does about its limits: usage, events, and changes while it runs. Used by ``sandbox``."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import (
    DiskLimitExceeded,
    MemoryLimitExceeded,
    PidsLimitExceeded,
    SandboxClosedError,
    SandboxUsageError,
)
from .runtime.protocol import wait_readable
from .runtime.running import Running
from .runtime.syscalls import pidfd_send_signal
from .spec import LIMITS, SandboxSpec, closest, parse_options
from .usage import LimitEvents, Usage, size

if TYPE_CHECKING:
    from .runtime.cgroup import Mark

_BLOCK = 512  # ru_inblock and ru_oublock count blocks of so many bytes


def usage(running: Running) -> Usage:
    """What the sandbox has used since it was started; of one that has ended, what is still known."""
    wall = time.monotonic() - running.began
    if running.group is not None:
        return _completed(running, running.group.total(), wall)
    try:
        answer = running.ask({"usage": True})
    except SandboxClosedError:
        answer = {}
    used = [a + b for a, b in zip(answer.get("used", (0, 0, 0, 0)), running.spent, strict=True)]
    counted = _counted(used) if answer else Usage()
    return _completed(running, counted, wall, answer.get("pids"))


def _counted(used: list[float]) -> Usage:
    return Usage(cpu_seconds=used[0] + used[1], user_seconds=used[0], system_seconds=used[1],
                 io_read=int(used[2]) * _BLOCK, io_written=int(used[3]) * _BLOCK)


def _completed(running: Running, counted: Usage, wall: float, pids: int | None = None) -> Usage:
    disk = None
    if running.scratch >= 0:
        layer = os.fstatvfs(running.scratch)
        disk = (layer.f_blocks - layer.f_bfree) * layer.f_frsize
    return Usage(counted.cpu_seconds, counted.user_seconds, counted.system_seconds, counted.memory_peak, counted.memory,
                 counted.pids_peak, counted.pids if pids is None else pids, counted.io_read, counted.io_written, disk,
                 wall)


class Watch:
    """One command: from just before it starts until :meth:`end`, or until the ``with`` block is left without that."""

    def __init__(self, running: Running) -> None:
        self.running = running
        self.began = time.monotonic()
        self.mark: Mark | None = running.group.mark() if running.group is not None else None

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        if self.mark is not None:
            self.end()

    def end(self, used: list[float] | None = None) -> Usage:
        """What the command used.

        :param used: what its init counted, for hosts without cgroups.
        """
        wall = time.monotonic() - self.began
        mark, self.mark = self.mark, None
        if mark is not None and self.running.group is not None:
            return _completed(self.running, self.running.group.since(mark), wall)
        return _completed(self.running, _counted(used) if used else Usage(), wall)


def events(running: Running) -> LimitEvents:
    """Which limits the sandbox has met so far."""
    met = running.group.events() if running.group is not None else LimitEvents()
    full = None
    if running.scratch >= 0:
        layer = os.fstatvfs(running.scratch)
        full = "blocks" if layer.f_bfree == 0 else "inodes" if layer.f_ffree == 0 else None
    return LimitEvents(met.oom_kills, met.victims, met.pids_refused, full)


def exceeded(running: Running) -> MemoryLimitExceeded | None:
    """Why the sandbox has ended, if that was its memory limit; then it has ended when this returns."""
    error = running.group.exceeded() if running.group is not None else None
    if error is not None and running.pidfd >= 0:
        with suppress(OSError):
            pidfd_send_signal(running.pidfd, signal.SIGKILL)  # as the helper is about to
        wait_readable(running.pidfd, 5)
    return error


def update(running: Running, spec: SandboxSpec, options: dict[str, Any]) -> SandboxSpec:
    """Changes limits of a running sandbox; returns its spec from now on.

    :raises SandboxUsageError: for an option that is no limit.
    """
    for option in options:
        if option not in LIMITS:
            raise SandboxUsageError(f"{option!r} cannot be changed while a sandbox runs", option=option,
                                    value=options[option], allowed=", ".join(LIMITS), why=closest(option, LIMITS))
    removed = {option: None for option, value in options.items() if value is None and option not in ("pids", "disk")}
    changed = spec.merged({**parse_options({option: value for option, value in options.items()
                                            if option not in removed}), **removed})
    limits = set(options) - {"disk"}
    if limits:
        if running.group is None:
            from .runtime.cgroup import FEATURES, unavailable
            option = sorted(limits)[0]
            raise unavailable(option, f"this sandbox has no cgroup, which changing {FEATURES[option][1]} needs",
                              "Run `pytest-sandbox doctor` to see how this host can give it one.")
        running.group.update(changed, limits)
    if "disk" in options:
        running.resize(changed.disk)
    return changed


def pids_error(spec: SandboxSpec, met: LimitEvents, peak: int | None = None) -> PidsLimitExceeded:
    """The words for a sandbox that has met its limit of processes."""
    times = f"{met.pids_refused} times" if met.pids_refused != 1 else "once"
    return PidsLimitExceeded(
        f"the sandbox reached its limit of {spec.pids} processes and threads", limit=spec.pids, peak=peak,
        refused=met.pids_refused, why=f"the kernel refused another one {times}",
        remedy="Start fewer at once, or raise its pids option.")


def disk_error(spec: SandboxSpec, met: LimitEvents, used: int | None = None,
               path: str | None = None) -> DiskLimitExceeded:
    """The words for a sandbox whose writable layer is full; ``path`` is what could not be written."""
    of = f" of {size(spec.disk)}" if spec.disk is not None else ""
    why = "it can hold no more files" if met.disk_full == "inodes" else "it has no room left"
    if path is not None:
        why = f"{path} cannot be written, since {why}"
    return DiskLimitExceeded(f"the sandbox's writable layer{of} is full", limit=spec.disk, used=used,
                             full=met.disk_full or "blocks", why=why, remedy=DISK_REMEDY)


#: What to do when there is no space left inside.
DISK_REMEDY = "Write less, raise the sandbox's disk option, or give large files a place on the host with mounts."
