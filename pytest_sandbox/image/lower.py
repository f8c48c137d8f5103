"""The merged view of unpacked layers, for a layer that cannot be unpacked without knowing what lies below it."""

from __future__ import annotations

import errno
import functools
import os
import resource
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from .resolve import entry_path, open_directory

_MOST_LINKS = 40  # as the kernel's own limit, path_resolution(7)


@functools.cache
def marks(name: str) -> str:
    """The attribute under which overlayfs, mounted by us, keeps ``name``: ``trusted.*`` by real root, else ``user.*``.

    Only that one counts: attributes of the other kind are copied with a file like any other.
    """
    with open("/proc/self/uid_map") as file:
        initial = " ".join(file.read().split()) == "0 0 4294967295"
    with open("/proc/self/status") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return f"{'trusted' if initial and effective >> 21 & 1 else 'user'}.overlay.{name}"  # 21: CAP_SYS_ADMIN



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
        self._limit = _make_room(2 * len(layers) + 100)
        self._fds = [os.open(one, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for one in reversed(layers)]

    def __enter__(self) -> LowerView:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def lowest(self) -> int:
        """The descriptor of the lowest layer."""
        return self._fds[-1]

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        if self._limit is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._limit)
            self._limit = None

    def lookup(self, parts: Sequence[bytes]) -> Found | None:
        """The entry at ``parts``, no link followed; None where there is none, or no directory above it."""
        found = self._merged(parts)
        if not found:
            return None
        fd, path, status = found[0]
        return Found(fd, path, status, _readlink(fd, path) if stat.S_ISLNK(status.st_mode) else b"")

    def places(self, parts: Sequence[bytes]) -> list[int]:
        """Which layers have a part in the entry at ``parts``, uppermost first; 0 is the uppermost of all."""
        return [self._fds.index(fd) for fd, _, _ in self._merged(parts)]

    def names(self, parts: Sequence[bytes]) -> set[bytes]:
        """What a directory holds, seen from above; nothing if it is none."""
        shown: set[bytes] = set()
        gone: set[bytes] = set()
        for fd, path, status in self._merged(parts) if parts else [(fd, b"", os.fstat(fd)) for fd in self._fds]:
            if not stat.S_ISDIR(status.st_mode):
                break
            try:
                folder = open_directory(fd, path)
            except OSError:
                continue
            try:
                for name in map(os.fsencode, _listed(folder)):
                    if name in shown or name in gone:
                        continue
                    (gone if is_whiteout(folder, name, os.lstat(name, dir_fd=folder)) else shown).add(name)
            finally:
                os.close(folder)
        return shown

    def _merged(self, parts: Sequence[bytes]) -> list[tuple[int, bytes, os.stat_result]]:
        """The layers' entries that make up the one at ``parts``, uppermost first: one file, or directories.

        Each layer has its own path: a renamed directory leads to another name in the layers below its own.
        """
        live = [(fd, b"") for fd in self._fds]
        found: list[tuple[int, bytes, os.stat_result]] = []
        for name in parts:
            found = []
            elsewhere: bytes | None = None
            for fd, path in live:
                where = _join(path, name) if elsewhere is None else elsewhere
                status = _status(fd, *_split(where))
                if status is None:
                    continue
                if is_whiteout(fd, where, status):
                    break
                if not stat.S_ISDIR(status.st_mode):
                    if not found:
                        found.append((fd, where, status))
                    break
                found.append((fd, where, status))
                if _has(fd, where, "opaque"):
                    break
                redirect = _redirect(fd, where)
                if redirect.startswith(b"/"):
                    elsewhere = redirect.strip(b"/")
                elif redirect:
                    elsewhere = _join(_split(where)[0], redirect)
            if not found:
                return []
            # What a directory is merged with below it is settled by now, wherever a redirect has led.
            live = [(fd, where) for fd, where, status in found if stat.S_ISDIR(status.st_mode)]
        return found

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


def _make_room(count: int) -> tuple[int, int] | None:
    """Lets this process open ``count`` files more than it may need otherwise; returns the limits to go back to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 1024
    if count < 300 or soft == resource.RLIM_INFINITY or soft >= wanted:
        return None
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    return soft, hard


def _split(path: bytes) -> tuple[bytes, bytes]:
    parent, _, name = path.rpartition(b"/")
    return parent, name


def _listed(folder: int) -> list[str]:
    again = os.open(f"/proc/self/fd/{folder}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return os.listdir(again)
    except OSError:
        return []
    finally:
        os.close(again)


def _redirect(layer_fd: int, path: bytes) -> bytes:
    """Where overlayfs looks for a renamed directory in the layers below (redirect_dir); empty if it was not renamed."""
    try:
        return os.getxattr(entry_path(layer_fd, path), marks("redirect"), follow_symlinks=False)
    except OSError:
        return b""


def _status(layer_fd: int, path: bytes, name: bytes) -> os.stat_result | None:
    try:
        parent = open_directory(layer_fd, path)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return None
    try:
        return os.lstat(name, dir_fd=parent)
    except OSError:
        return None
    finally:
        os.close(parent)


def _readlink(layer_fd: int, path: bytes) -> bytes:
    return os.readlink(path, dir_fd=layer_fd)


def _has(layer_fd: int, path: bytes, name: str) -> bool:
    try:
        return os.getxattr(entry_path(layer_fd, path), marks(name), follow_symlinks=False) == b"y" or name == "whiteout"
    except OSError:
        return False


def is_whiteout(layer_fd: int, path: bytes, status: os.stat_result) -> bool:
    """Whether an entry is overlayfs' mark for a deleted name: device 0/0, or an empty file with an attribute."""
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
        return True
    return stat.S_ISREG(status.st_mode) and status.st_size == 0 and _has(layer_fd, path, "whiteout")
