"""What a sandbox has used and which of its limits it met, as frozen data. No I/O; made by ``runtime``, read by all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """What a sandbox, or one command in it, has used. A figure that this host cannot give is ``None``.

    Times are seconds, sizes bytes. All descendants count, also those that ended early or left their session; the
    sandbox's own first process is left out of ``pids`` and ``pids_peak``.

    :param cpu_seconds: CPU time; ``user_seconds`` and ``system_seconds`` are its two parts.
    :param memory_peak: the most memory at once, the writable layer included.
    :param memory: the memory in use.
    :param pids_peak: the most tasks at once, threads counted.
    :param pids: the tasks that exist.
    :param io_read: bytes read from block devices. ``io_written``: bytes written to them.
    :param disk: bytes that the writable layer holds.
    :param wall_seconds: the time since it was started, or the time that a command took.
    """

    cpu_seconds: float | None = None
    user_seconds: float | None = None
    system_seconds: float | None = None
    memory_peak: int | None = None
    memory: int | None = None
    pids_peak: int | None = None
    pids: int | None = None
    io_read: int | None = None
    io_written: int | None = None
    disk: int | None = None
    wall_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that the kernel killed for want of memory. ``pid`` is the host's number of it."""

    pid: int
    name: str


@dataclass(frozen=True, slots=True)
class LimitEvents:
    """Which limits a sandbox has met since it started. A count that this host does not keep is ``None``.

    :param oom_kills: processes that the kernel killed because the memory limit was reached.
    :param victims: those of them whose name the kernel's log tells, where that may be read.
    :param pids_refused: forks and threads that the ``pids`` limit refused.
    :param disk_full: ``"blocks"`` or ``"inodes"`` when none is left of the writable layer, else ``None``.
    """

    oom_kills: int | None = None
    victims: tuple[Victim, ...] = ()
    pids_refused: int | None = None
    disk_full: str | None = None


def size(number: int) -> str:
    """Bytes as people write them."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.4g} {unit}"
    return f"{number} bytes"
