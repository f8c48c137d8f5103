"""The merged view of unpacked layers, for a layer that cannot be unpacked without knowing what lies below it."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from .resolve import entry_path, open_directory

_OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")
_MOST_LINKS = 40  # as the kernel's own limit, path_resolution(7)
_WHITEOUT = ("trusted.overlay.whiteout", "user.overlay.whiteout")


@dataclass(frozen=True, slots=True)
class Found:
    """What a merged name is: its attributes, and where it lies. ``layer_fd`` belongs to the view."""

    layer_fd: int
    path: bytes
    status: os.stat_result
    link: bytes


class LowerView:
    """Looks names up as overlayfs would show them. Holds one descriptor for each layer until closed.

    :param layers: directories, lowest first.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._fds = [os.open(one, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for one in reversed(layers)]

    def __enter__(self) -> LowerView:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def lookup(self, parts: Sequence[bytes]) -> Found | None:
        """The entry at ``parts``, no link followed; None where there is none, or no directory above it."""
        live = list(self._fds)  # the layers whose directory shows through so far, uppermost first
        path = b""
        for last, name in ((at == len(parts) - 1, one) for at, one in enumerate(parts)):
            found: list[tuple[int, os.stat_result]] = []
            for fd in live:
                status = _status(fd, path, name)
                if status is None:
                    continue
                if is_whiteout(fd, _join(path, name), status):
                    break
                if not stat.S_ISDIR(status.st_mode):
                    if not found:
                        found.append((fd, status))
                    break
                found.append((fd, status))
                if _has(fd, _join(path, name), _OPAQUE):
                    break
            path = _join(path, name)
            if not found:
                return None
            if last:
                fd, status = found[0]
                return Found(fd, path, status, _readlink(fd, path) if stat.S_ISLNK(status.st_mode) else b"")
            live = [fd for fd, status in found if stat.S_ISDIR(status.st_mode)]
        return None

    def follow(self, parts: Sequence[bytes]) -> Found | None:
        """As :meth:`lookup`, with every link followed inside the merged root; None also where links go in circles."""
        todo, here, links = list(reversed(parts)), list[bytes](), 0
        found = None
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                here = here[:-1]
                found = self.lookup(here) if here else None
                continue
            found = self.lookup([*here, name])
            if found is None:
                return None
            if stat.S_ISLNK(found.status.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    return None
                if found.link.startswith(b"/"):
                    here = []
                todo += reversed(found.link.split(b"/"))
                found = None
                continue
            here.append(name)
        return found


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _status(layer_fd: int, path: bytes, name: bytes) -> os.stat_result | None:
    try:
        parent = open_directory(layer_fd, path)
    except OSError:
        return None
    try:
        return os.lstat(name, dir_fd=parent)
    except OSError:
        return None
    finally:
        os.close(parent)


def _readlink(layer_fd: int, path: bytes) -> bytes:
    return os.readlink(path, dir_fd=layer_fd)


def _has(layer_fd: int, path: bytes, names: Sequence[str]) -> bool:
    for name in names:
        try:
            if os.getxattr(entry_path(layer_fd, path), name, follow_symlinks=False) == b"y" or "whiteout" in name:
                return True
        except OSError:
            continue
    return False


def is_whiteout(layer_fd: int, path: bytes, status: os.stat_result) -> bool:
    """Whether an entry is overlayfs' mark for a deleted name: device 0/0, or an empty file with an attribute."""
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and _has(layer_fd, path, _WHITEOUT)
