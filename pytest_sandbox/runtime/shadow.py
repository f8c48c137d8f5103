"""The layer that makes an unprivileged caller the owner of the host's tree, inside a sandbox with ``user="root"``.

The host's root is not mapped in an unprivileged user namespace, so an overlay of the host's tree could be read but
hardly changed. This layer goes between the host's tree and the writable one and repeats the host's directories, owned
by the caller: so anything can be made, replaced and deleted. The small files of some trees are copied too, so that
they can be edited in place. (Entries without content, which overlayfs would fill from a data-only layer, were tried
and left: design decision 0004.)

It is made in memory once per helper, from the tree as it is then, and goes with it: there is nothing to refresh and
nothing to clean.
"""

from __future__ import annotations

import os
import stat
from collections import deque

#: Files up to this size are copied, and of one tree no more than this in all.
COPY_FILE = 256 << 10
COPY_ALL = 48 << 20


def own_shadow(layer: str, tree: str, files: list[str]) -> None:
    """Repeats the host's ``tree`` in ``layer``, which exists.

    :param files: the directories, relative to the tree, below which files can be edited in place; ``""`` is all of it.
    """
    us, left = (os.getuid(), os.getgid()), COPY_ALL  # another group is not mapped, and not writable, either
    pending = deque([("", "" in files)])  # breadth first, so that what is copied is what lies near the top
    while pending:
        below, editable = pending.popleft()
        made = f"{layer}/{below}" if below else layer
        try:
            entries = list(os.scandir(f"{tree}/{below}"))
        except PermissionError:
            os.setxattr(made, "user.overlay.opaque", b"y")  # what cannot be listed is an empty directory of our own
            continue
        except OSError:
            continue
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            try:
                is_dir = entry.is_dir(follow_symlinks=False)
                if not is_dir and not (editable and entry.is_file(follow_symlinks=False)):
                    continue
                look = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if (look.st_uid, look.st_gid) == us:
                continue
            there = f"{layer}/{path}"
            if os.path.lexists(there):  # hidden, or a parent of something hidden
                if is_dir and stat.S_ISDIR(os.lstat(there).st_mode):
                    pending.append((path, editable or path in files))
                continue
            if is_dir:
                os.mkdir(there)
                os.chmod(there, stat.S_IMODE(look.st_mode))
                os.utime(there, ns=(look.st_atime_ns, look.st_mtime_ns))
                pending.append((path, editable or path in files))
            elif look.st_size <= min(COPY_FILE, left):
                left -= look.st_size
                _copy(there, f"{tree}/{path}", look)


def _copy(there: str, source: str, look: os.stat_result) -> None:
    try:
        origin = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fd = os.open(there, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            while chunk := os.read(origin, 1 << 20):
                os.write(fd, chunk)
            os.fchmod(fd, stat.S_IMODE(look.st_mode))
            os.utime(fd, ns=(look.st_atime_ns, look.st_mtime_ns))
        finally:
            os.close(fd)
    finally:
        os.close(origin)
