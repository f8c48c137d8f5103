"""A layer that gives files back the owners that their image names. A step of a plan's template; see design 0043.

An ordinary user's layer store holds files of that user alone. Where a sandbox has subordinate ids, what belongs to
others is repeated here, in the helper's memory, between the image and the writable layer.
"""

from __future__ import annotations

import json
import os
import stat

from . import syscalls as sc
from .ownfiles import shown

_WAY = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_SYMLINKS


def own_owners(layer: str, lowers: list[str], short: str | None, options: str, path: str) -> None:
    """Makes ``layer`` from what ``path`` lists: names, uids and gids, as :mod:`pytest_sandbox.image.owners` writes."""
    with open(path, errors="surrogateescape") as file:
        owners = {name: (uid, gid) for name, uid, gid in json.load(file)}
    os.makedirs(layer)
    with shown(lowers, short, options) as view:
        _Layer(layer, view, owners).make()


class _Layer:
    def __init__(self, layer: str, view: int, owners: dict[str, tuple[int, int]]) -> None:
        self.layer, self.view, self.owners = layer, view, owners
        self.folders: dict[str, os.stat_result] = {}
        self.links: dict[tuple[int, int], str] = {}

    def make(self) -> None:
        for name in sorted(self.owners):
            parent, _, leaf = name.rpartition("/")
            here = self._open(parent)
            try:
                look = os.lstat(leaf, dir_fd=here)
                self._parents(parent)
                if stat.S_ISDIR(look.st_mode):
                    self._folder(name, look)
                else:
                    self._other(here, leaf, name, look)
            finally:
                os.close(here)
        for name in sorted(self.folders, reverse=True):  # their times last: what is made in them changes these
            look = self.folders[name]
            os.utime(f"{self.layer}/{name}", ns=(look.st_atime_ns, look.st_mtime_ns))

    def _open(self, folder: str) -> int:
        return sc.openat2(self.view, folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, resolve=_WAY)

    def _parents(self, folder: str) -> None:
        if not folder or folder in self.folders:
            return
        parent, _, leaf = folder.rpartition("/")
        self._parents(parent)
        here = self._open(parent)
        try:
            self._folder(folder, os.lstat(leaf, dir_fd=here))
        finally:
            os.close(here)

    def _folder(self, name: str, look: os.stat_result) -> None:
        if name in self.folders:
            return
        os.mkdir(f"{self.layer}/{name}")
        self.folders[name] = look
        there = self._open(name)
        try:
            _copy_xattrs(f"/proc/self/fd/{there}", f"{self.layer}/{name}")
        finally:
            os.close(there)
        self._own(name, look)

    def _own(self, name: str, look: os.stat_result) -> None:
        path = f"{self.layer}/{name}"
        os.chown(path, *self.owners.get(name, (0, 0)), follow_symlinks=False)
        if not stat.S_ISLNK(look.st_mode):
            os.chmod(path, stat.S_IMODE(look.st_mode))  # after the owner: chown takes set-id bits away

    def _other(self, here: int, leaf: str, name: str, look: os.stat_result) -> None:
        path = f"{self.layer}/{name}"
        key = (look.st_dev, look.st_ino)
        if look.st_nlink > 1 and key in self.links:
            os.link(self.links[key], path, follow_symlinks=False)
            return
        if stat.S_ISLNK(look.st_mode):
            os.symlink(os.readlink(leaf, dir_fd=here), path)
        elif stat.S_ISREG(look.st_mode):
            _copy(here, leaf, path)
        elif stat.S_ISFIFO(look.st_mode):
            os.mkfifo(path)
        else:
            return  # devices are not unpacked by ordinary users, and sockets are nothing
        if look.st_nlink > 1:
            self.links[key] = path
        self._own(name, look)
        os.utime(path, ns=(look.st_atime_ns, look.st_mtime_ns), follow_symlinks=False)


def _copy(here: int, leaf: str, path: str) -> None:
    old = os.open(leaf, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    try:
        new = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            while data := os.read(old, 1 << 20):
                while data:
                    data = data[os.write(new, data):]
            _copy_xattrs(old, new)
        finally:
            os.close(new)
    finally:
        os.close(old)


def _copy_xattrs(old: int | str, new: int | str) -> None:
    for name in os.listxattr(old):
        if name.startswith("user.") and not name.startswith("user.overlay."):
            os.setxattr(new, name, os.getxattr(old, name))
