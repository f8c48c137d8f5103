"""A committed state of the host, brought from the layer store into memory: a step of a plan's template.

The store lies within the host's tree, and the kernel refuses an overlay in which one layer contains another. Copied
once for each helper, with all that overlayfs has written down in it.
"""

from __future__ import annotations

import os
import stat


def own_state(layer: str, source: str) -> None:
    """Copies the layer at ``source`` to ``layer``."""
    os.makedirs(os.path.dirname(layer), exist_ok=True)
    os.mkdir(layer)
    _fill(source, layer, {})


def _fill(source: str, target: str, names: dict[int, str]) -> None:
    with os.scandir(source) as listing:
        entries = list(listing)
    for entry in entries:
        look, there = entry.stat(follow_symlinks=False), f"{target}/{entry.name}"
        if stat.S_ISDIR(look.st_mode):
            os.mkdir(there, 0o700)
            _fill(entry.path, there, names)
        elif look.st_nlink > 1 and look.st_ino in names:
            os.link(names[look.st_ino], there, follow_symlinks=False)
            continue
        elif stat.S_ISLNK(look.st_mode):
            os.symlink(os.readlink(entry.path), there)
        elif stat.S_ISREG(look.st_mode):
            _copy(entry.path, there, look.st_size)
        else:
            os.mknod(there, look.st_mode, look.st_rdev)
        names.setdefault(look.st_ino, there)
        _look_like(entry.path, there, look)
    _look_like(source, target, os.lstat(source))


def _copy(source: str, target: str, size: int) -> None:
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            done = 0
            while done < size and (moved := os.sendfile(writing, reading, done, min(size - done, 1 << 30))):
                done += moved
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _look_like(source: str, target: str, look: os.stat_result) -> None:
    os.chown(target, look.st_uid, look.st_gid, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        try:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
        except OSError:
            pass  # of a kind that a tmpfs does not have, or that is not ours to give (security.selinux)
    if not stat.S_ISLNK(look.st_mode):
        os.chmod(target, stat.S_IMODE(look.st_mode))
    os.utime(target, ns=(look.st_atime_ns, look.st_mtime_ns), follow_symlinks=False)
