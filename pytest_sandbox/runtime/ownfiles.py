"""The layer above an image's: what must fit this sandbox and not the machine that the image was made on.

A step of a plan's template, carried out by the helper once for each image and identity. The image's layers are looked
at as the kernel merges them, and every name is resolved inside that view: a link in an image leads nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat

from . import syscalls as sc
from .own import copy_stat, escape, own_file

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

_INSIDE = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
_VIEW = "/own/view"
_LONGEST = 1 << 20  # bytes of a passwd that is looked at


def own_files(layer: str, lowers: list[str], short: str | None, options: str, given: dict[str, Any]) -> None:
    """Makes ``layer`` from ``given``.

    ``files`` are small files of /etc, by name; ``user`` is a line for its passwd if that does not know the uid;
    ``workdir`` is made when the image has none; ``places`` must be directories, whatever the image has there.
    """
    os.makedirs(layer)
    with shown(lowers, short, options) as view:
        _Layer(layer, view).make(given)


class shown:  # used as a function; contextlib is more than the heap of the helper should hold
    """``with`` it: a descriptor of the merged layers' root, while they are mounted."""

    def __init__(self, lowers: list[str], short: str | None, options: str) -> None:
        self._mounted = _show(lowers, short, options)
        self._view = -1
        try:
            self._view = sc.openat2(sc.AT_FDCWD, _VIEW if self._mounted else lowers[0], os.O_PATH | os.O_DIRECTORY)
        except OSError:
            self.__exit__()
            raise

    def __enter__(self) -> int:
        return self._view

    def __exit__(self, *_: object) -> None:
        if self._view >= 0:
            os.close(self._view)
        if self._mounted:
            sc.umount2(_VIEW, sc.MNT_DETACH)


def _show(lowers: list[str], short: str | None, options: str) -> bool:
    """Mounts the merged layers, read-only; False where there is but one, which needs no merging."""
    if len(lowers) == 1:
        return False
    os.makedirs(_VIEW, exist_ok=True)
    if short is None:
        stack = ":".join(escape(one) for one in reversed(lowers))
    else:
        stack = ":".join(str(one) for one in reversed(range(len(lowers))))
        os.chdir(short)
    try:
        sc.mount("overlay", _VIEW, "overlay", sc.MS_RDONLY | sc.MS_NODEV | sc.MS_NOEXEC,
                 ",".join(one for one in (f"lowerdir={stack}", options) if one))
    finally:
        os.chdir("/")
    return True


def copy_layer(layer: str, upper: str) -> None:
    """Copies the small layer that :func:`own_files` made into an empty directory."""
    for folder, directories, files in os.walk(layer):
        below = folder[len(layer):]
        for name in directories:
            os.mkdir(f"{upper}{below}/{name}")
            copy_stat(f"{upper}{below}/{name}", os.lstat(f"{folder}/{name}"), True)
        for name in files:
            own_file(upper, f"{below}/{name}", f"{folder}/{name}")


class _Layer:
    """One layer while it is made; ``view`` is a descriptor of the merged image's root."""

    def __init__(self, layer: str, view: int) -> None:
        self.layer, self.view = layer, view

    def make(self, given: dict[str, Any]) -> None:
        for place in given["places"]:
            self._place(place)
        if given["workdir"]:
            self._directory(given["workdir"])
        if (etc := self._directory("etc")) is None:
            return  # a link that leads nowhere, or no directory: a file that is made there would change the image
        for name, text in given["files"].items():
            self._write(f"{etc}/{name}", text.encode(errors="surrogateescape"), None)
        self._passwd(etc, given["user"].encode(errors="surrogateescape"))

    def _place(self, name: str) -> None:
        """A directory to mount on. A link is covered by one, except that /run may lead to another directory."""
        follow = 0 if name == "run" else os.O_NOFOLLOW
        try:
            os.close(sc.openat2(self.view, name, os.O_PATH | os.O_DIRECTORY | follow, resolve=_INSIDE))
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
        else:
            return
        os.mkdir(f"{self.layer}/{name}", 0o755)

    def _directory(self, path: str) -> str | None:
        """Repeats a directory of the image with all that leads to it, or makes it; returns where, seen from the root.

        None when something else is in its way.
        """
        so_far = ""
        for name in (one for one in path.split("/") if one):
            try:
                fd = sc.openat2(self.view, f"{so_far}/{name}", os.O_PATH | os.O_DIRECTORY, resolve=_INSIDE)
            except FileNotFoundError:
                try:
                    os.close(sc.openat2(self.view, f"{so_far}/{name}", os.O_PATH | os.O_NOFOLLOW, resolve=_INSIDE))
                except FileNotFoundError:
                    so_far = f"{so_far}/{name}"
                    if not os.path.isdir(self.layer + so_far):
                        os.mkdir(self.layer + so_far, 0o755)
                    continue
                return None
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                return None
            try:
                so_far = self._where(fd)
            finally:
                os.close(fd)
            self._repeat(so_far)
        return so_far

    def _where(self, fd: int) -> str:
        """A descriptor's path, seen from the view's root."""
        root, path = (os.readlink(f"/host/proc/self/fd/{one}") for one in (self.view, fd))
        return path[len(root):] if path != root else ""

    def _repeat(self, path: str) -> None:
        below = ""
        for name in path.split("/")[1:]:
            below = f"{below}/{name}"
            if not os.path.isdir(self.layer + below):
                os.mkdir(self.layer + below)
                copy_stat(self.layer + below, self._stat(below), True)

    def _stat(self, path: str) -> os.stat_result:
        fd = sc.openat2(self.view, path, os.O_PATH | os.O_NOFOLLOW, resolve=_INSIDE)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def _passwd(self, etc: str, user: bytes) -> None:
        known, look = b"", None
        try:
            fd = sc.openat2(self.view, f"{etc}/passwd", os.O_RDONLY | os.O_NONBLOCK, resolve=_INSIDE)
        except FileNotFoundError:
            pass
        except OSError:
            return  # not for us to read: then it is not for us to write either
        else:
            look = os.fstat(fd)
            if not stat.S_ISREG(look.st_mode):
                os.close(fd)
                return
            with open(fd, "rb") as file:
                known = file.read(_LONGEST + 1)
            if len(known) > _LONGEST:
                return
        uid = user.split(b":")[2]
        if any(line.split(b":")[2:3] == [uid] for line in known.splitlines()):
            return
        self._write(f"{etc}/passwd", (known.rstrip(b"\n") + b"\n" if known else b"") + user, look)

    def _write(self, path: str, data: bytes, look: os.stat_result | None) -> None:
        fd = os.open(self.layer + path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        if look is not None:
            copy_stat(self.layer + path, look, True)
