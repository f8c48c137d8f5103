"""What the store's file system lets this user keep of a layer. Probed by doing it, where it is to be done."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..errors import StoreError
from .resolve import entry_path

#: Set-up of overlayfs marks: root's and everybody's.
TRUSTED, USER = "trusted.overlay.", "user.overlay."


@dataclass(frozen=True, slots=True)
class Abilities:
    """How layers are laid down here.

    :param owners: whether files get the owners that the layer states; else all belong to the caller.
    :param devices: whether device nodes can be made.
    :param whiteouts: ``device`` (character device 0/0) or ``xattr`` (an empty file with an attribute, Linux 6.7).
    :param overlay_xattrs: prefixes under which overlayfs attributes are set. Root sets both, since only the mount's
        options decide which of the two the kernel reads.
    """

    owners: bool
    devices: bool
    whiteouts: str
    overlay_xattrs: tuple[str, ...]


def probe_abilities(directory: str, store: str) -> Abilities:
    """Tries each ability in ``directory``, which is empty, and removed by the caller with what was made in it.

    :param store: what to name in errors.
    :raises StoreError: when the file system cannot hold layers at all.
    """
    try:
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _probe(root, store)
        finally:
            os.close(root)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(
            f"the image store {store!r} cannot be used", path=directory, errno=error.errno, why=error.strerror,
            remedy="Set PYTEST_SANDBOX_CACHE to a directory on another disk.") from None


def _probe(root: int, store: str) -> Abilities:
    os.close(os.open(b"file", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=root))
    file = entry_path(root, b"file")
    marks = tuple(prefix for prefix in (TRUSTED, USER) if _try(partial(os.setxattr, file, prefix + "probe", b"y")))
    if not marks:
        raise StoreError(
            f"the image store {store!r} cannot be used", path=store, errno=errno.EOPNOTSUPP,
            why="its file system keeps no extended attributes in user.*, which overlayfs needs",
            remedy="Set PYTEST_SANDBOX_CACHE to a directory on ext4, xfs or btrfs, or on tmpfs from Linux 6.6 on.")
    return Abilities(
        owners=os.geteuid() == 0 and _try(lambda: os.chown(b"file", 54321, 54321, dir_fd=root)),
        devices=_try(lambda: os.mknod(b"null", stat.S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=root)),
        whiteouts="device" if _try(lambda: os.mknod(b"white", stat.S_IFCHR, 0, dir_fd=root)) else "xattr",
        overlay_xattrs=marks)


def _try(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True
