"""Cgroups that killed runs have left, wherever on this machine they were. Used by ``pytest-sandbox doctor --clean``.

The next run sweeps the ones beside its own (:mod:`.hierarchies`); a run that was in another cgroup, such as another
login's, leaves its directories where nobody comes by. They are told apart by kernel-held locks: a run locks its
directories for as long as it lives. Those of other users are left alone, by root, too.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

from .hierarchies import PREFIX, clear, pids_of, unescape


def mount_points(mounts: str = "/proc/self/mountinfo") -> list[str]:
    """Where cgroup hierarchies are mounted."""
    with open(mounts) as file:
        lines = [line.split(" - ") for line in file]
    return [unescape(left.split()[4]) for left, right in lines if right.split()[0] in ("cgroup", "cgroup2")]


def dead_cgroups(points: list[str] | None = None, remove: bool = False) -> Iterator[tuple[str, int]]:
    """The directories of this user's runs that have ended, and how many processes are still in each.

    :param points: where to look; by default in every hierarchy.
    :param remove: they go as they are told of. What runs in them belongs to nobody, and is killed.
    """
    seen = set()
    for point in mount_points() if points is None else points:
        for folder, names, _ in os.walk(point):
            for name in [one for one in names if one.startswith(PREFIX)]:
                names.remove(name)
                path = f"{folder}/{name}"
                try:
                    held = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except OSError:
                    continue  # gone meanwhile, or not ours
                try:
                    look = os.fstat(held)
                    if look.st_uid != os.geteuid() or (look.st_dev, look.st_ino) in seen:
                        continue
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    seen.add((look.st_dev, look.st_ino))
                    count = sum(len(pids_of(below)) for below, _, _ in os.walk(path))
                    if remove:
                        clear(path)
                    yield path, count
                except OSError:
                    continue  # its run lives
                finally:
                    os.close(held)
