"""Bringing a lower layer's file into the one that is being unpacked: overlayfs' "copy up". For :mod:`.unpack`."""

from __future__ import annotations

import errno
import hashlib
import os
import stat

from .inside import Applied, copy_xattrs
from .layout import write_all
from .lower import Found
from .resolve import openat2, opened

_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_up(found: Found, parent: int, name: bytes, applied: Applied, *, owners: bool) -> os.stat_result:
    """Makes at ``name``, where nothing is, what ``found`` is: no directory. What was made.

    :param owners: whether it gets its owner.
    """
    status = found.status
    times = (status.st_mtime_ns, status.st_mtime_ns)
    if stat.S_ISREG(status.st_mode):
        return _copy_file(found, parent, name, applied, owners=owners)
    if stat.S_ISLNK(status.st_mode):
        os.symlink(found.link, name, dir_fd=parent)
    else:
        os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=parent)
    if owners:
        os.chown(name, status.st_uid, status.st_gid, dir_fd=parent, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=parent)
    os.utime(name, ns=times, dir_fd=parent, follow_symlinks=False)
    made = os.lstat(name, dir_fd=parent)
    applied.begin(made.st_ino)
    return made


def _copy_file(found: Found, parent: int, name: bytes, applied: Applied, *, owners: bool) -> os.stat_result:
    status = found.status
    new = os.open(name, _NEW, 0o600, dir_fd=parent)
    try:
        place = openat2(found.layer_fd, found.path, os.O_PATH | os.O_NOFOLLOW)
        try:
            with opened(place, status, os.O_RDONLY, stat.S_IRUSR) as old:
                digest = _copy_pieces(old, new) if status.st_blocks * 512 < status.st_size else _copy(old, new, None)
                os.ftruncate(new, status.st_size)
                number = os.fstat(new).st_ino
                applied.begin(number)
                applied.hashes[number] = digest
                if owners:
                    os.fchown(new, status.st_uid, status.st_gid)
                copy_xattrs(found, new)
        finally:
            os.close(place)
        os.fchmod(new, stat.S_IMODE(status.st_mode))
        os.utime(new, ns=(status.st_mtime_ns, status.st_mtime_ns))
        return os.fstat(new)
    finally:
        os.close(new)


def _copy_pieces(old: int, new: int) -> bytes:
    """Copies what is not a hole: a hole of a terabyte costs nothing."""
    at = 0
    while True:
        try:
            at = os.lseek(old, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data behind this
                raise
            return b""
        end = os.lseek(old, at, os.SEEK_HOLE)
        os.lseek(old, at, os.SEEK_SET)
        os.lseek(new, at, os.SEEK_SET)
        _copy(old, new, end - at)
        at = end


def _copy(old: int, new: int, count: int | None) -> bytes:
    """Copies so many bytes, or all; their digest."""
    digest = hashlib.sha256()
    while data := os.read(old, 1 << 20 if count is None else min(count, 1 << 20)):
        digest.update(data)
        write_all(new, data)
        if count is not None:
            count -= len(data)
    return digest.digest()
