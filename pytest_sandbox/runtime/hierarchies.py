"""Where the cgroup hierarchies are, and this run's directories in them. Used by :mod:`.cgroups`.

A run's directories are locked (flock) for as long as the process that made them lives, so the next run knows which ones
nobody owns any more, and removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from . import cgroup_make

#: The names of runs' directories begin so; the process's number follows.
PREFIX = "pytest-sandbox-run-"

#: Called before a directory of this run is made: whoever outlives this process removes it.
announce: list[Callable[[str], object]] = []


class Missing(Exception):
    """A controller cannot be used here. ``args``: why, and the remedy."""


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """What is mounted, and where this process is in it: the directory of its own cgroup by controller.

    ``unified`` is that of cgroup v2, ``None`` where that is not mounted.
    """

    v1: dict[str, str]
    unified: str | None


def find_hierarchies(mounts: str = "/proc/self/mountinfo", own: str = "/proc/self/cgroup") -> Hierarchies:
    """Reads the two files of proc(5)."""
    paths = {}
    with open(own) as file:
        for line in file:
            _, names, path = line.rstrip("\n").split(":", 2)
            for name in names.split(","):
                paths[name] = path
    v1: dict[str, str] = {}
    unified = None
    with open(mounts) as file:
        for line in file:
            words = line.split()
            root, point = unescape(words[3]), unescape(words[4])
            tail = words[words.index("-") + 1:]
            if tail[0] == "cgroup2" and "" in paths and unified is None:
                unified = _below(point, root, paths[""])
            elif tail[0] == "cgroup":
                for name in tail[2].split(","):
                    if name in paths and name not in v1 and (directory := _below(point, root, paths[name])):
                        v1[name] = directory
    return Hierarchies(v1, unified)


def unescape(text: str) -> str:
    return text.encode().decode("unicode_escape") if "\\" in text else text


def _below(point: str, root: str, path: str) -> str | None:
    """Where cgroup ``path`` is, in a mount of the cgroup ``root`` at ``point``."""
    relative = os.path.relpath(path, root)
    if relative.startswith("../"):
        return None  # another part of the hierarchy is mounted here
    return os.path.normpath(os.path.join(point, relative))


class Run:
    """This process's directory in each hierarchy: made when first wanted, removed by :meth:`close`."""

    def __init__(self) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        self.places: dict[str, str] = {}
        self._locks: list[int] = []

    def place(self, key: str, base: str) -> str:
        """The directory of this run below ``base``; dead runs' ones there are swept away first.

        :raises OSError: when it cannot be made.
        """
        if key not in self.places:
            path = f"{base}/{self.name}"
            for tell in announce:
                tell(path)
            while True:
                os.mkdir(path)
                lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(lock, fcntl.LOCK_EX)
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_ino == os.fstat(lock).st_ino:
                        break
                os.close(lock)  # a sweeper came between the two calls and took it for a dead one
            self._locks.append(lock)
            self.places[key] = path
            sweep(base)
        return self.places[key]

    def forget(self) -> None:
        """In a fork: closes our copies of the locks."""
        for lock in self._locks:
            os.close(lock)
        self._locks.clear()
        self.places.clear()

    def close(self) -> None:
        """Removes the directories, whatever is left in them."""
        for path in self.places.values():
            clear(path)
        self.forget()


def sweep(base: str) -> list[str]:
    """Removes what dead runs have left below ``base``; returns their directories."""
    swept = []
    for name in os.listdir(base):
        if name.startswith(PREFIX):
            try:
                lock = os.open(f"{base}/{name}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                clear(f"{base}/{name}")
                swept.append(f"{base}/{name}")
            except OSError:
                pass  # alive, or not ours to remove
            finally:
                os.close(lock)
    return swept


def clear(path: str) -> None:
    """Removes a run's directory. What still runs in there belongs to nobody, and is killed."""
    for folder, _, _ in os.walk(path):
        for pid in pids_of(folder):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        cgroup_make.thaw([folder])
    cgroup_make.remove([path])


def pids_of(folder: str) -> list[int]:
    """The processes in a cgroup; none where there is no such directory any more."""
    try:
        with open(f"{folder}/cgroup.procs") as file:
            return [int(line) for line in file]
    except OSError:
        return []
