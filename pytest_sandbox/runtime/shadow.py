"""The layers that make an unprivileged caller the owner of the host's tree, inside a sandbox with ``user="root"``.

The host's root is not mapped in an unprivileged user namespace, so an overlay of the host's tree could be read but
hardly changed. One layer above the host's repeats its directories, owned by the caller: so anything can be made,
replaced and deleted. Another, in between, holds the files of some trees, so that they can be edited in place too: an
overlay of its own, whose files are owner, mode and size only and whose content is the host's (data-only lower layers,
with ``userxattr`` since Linux 6.16), or, where the kernel or an overlay below does not allow that, copies of the small
ones. Design decision 0004 says why it takes two.

They are made in memory once per helper, from the tree as it is then, and go with it: there is nothing to refresh and
nothing to clean.
"""

from __future__ import annotations

import os
import stat
from collections import deque

from . import syscalls as sc

#: Where content cannot come from the host: files up to this size are copied, and of one tree no more than this in all.
COPY_FILE = 256 << 10
COPY_ALL = 48 << 20
#: Where it can: no more entries than this in all of one tree.
STAND_INS = 200_000


def own_shadow(layer: str, tree: str, files: list[str]) -> None:
    """Repeats the directories of the host's ``tree`` in ``layer``, which exists, and files in ``layer.data``.

    :param files: the directories, relative to the tree, below which files can be edited in place; ``""`` is all of it.
    """
    us = os.getuid(), os.getgid()  # another group is not mapped, and not writable, either
    data = f"{layer}.data"
    os.mkdir(data)
    fill = bool(files) and _fills(layer, tree)
    entries_of = f"{layer}.files" if fill else data
    if fill:
        os.mkdir(entries_of)
    left = STAND_INS if fill else COPY_ALL
    pending = deque([("", "" in files)])  # breadth first, so that what is covered is what lies near the top
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
            elif is_dir:
                os.mkdir(there)
                os.chmod(there, stat.S_IMODE(look.st_mode))
                os.utime(there, ns=(look.st_atime_ns, look.st_mtime_ns))
                shared = look.st_mode & 0o1002 == 0o1002  # such as /var/tmp: what others put there is theirs
                pending.append((path, (editable or path in files) and not shared))
            elif fill:
                if left > 0 and os.access(f"{tree}/{path}", os.R_OK):
                    left -= 1
                    _parents(entries_of, tree, below)
                    _stand_in(entries_of, path, look)
            elif look.st_size <= min(COPY_FILE, left):
                left -= look.st_size
                _parents(data, tree, below)
                _copy(f"{data}/{path}", f"{tree}/{path}", look)
    if fill:
        sc.mount("overlay", data, "overlay", sc.MS_RDONLY | sc.MS_NODEV,
                 f"lowerdir={_escape(entries_of)}::{_escape(tree)},userxattr")


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def _fills(layer: str, tree: str) -> bool:
    """Whether the kernel fills files from a data-only layer here, and takes an overlay of ``tree`` as a layer again."""
    names = {name: f"{layer}.{name}" for name in ("stand", "content", "filled", "stacked")}
    for path in names.values():
        os.makedirs(path, exist_ok=True)
    with open(f"{names['content']}/file", "w") as file:
        file.write("content")
    if not os.path.exists(f"{names['stand']}/file"):
        _stand_in(names["stand"], "file", os.stat(f"{names['content']}/file"))
    try:
        _mount_over(names["filled"], f"{names['stand']}::{names['content']}")
        try:
            with open(f"{names['filled']}/file") as file:
                if file.read() != "content":
                    return False
        finally:
            sc.umount2(names["filled"], sc.MNT_DETACH)
        _mount_over(names["filled"], f"{names['stand']}::{_escape(tree)}")
        try:
            _mount_over(names["stacked"], f"{names['filled']}:{_escape(tree)}")
            sc.umount2(names["stacked"], sc.MNT_DETACH)
        finally:
            sc.umount2(names["filled"], sc.MNT_DETACH)
    except OSError:
        return False
    return True


def _mount_over(target: str, lowers: str) -> None:
    sc.mount("overlay", target, "overlay", sc.MS_RDONLY | sc.MS_NODEV, f"lowerdir={lowers},userxattr")


def _parents(layer: str, tree: str, below: str) -> None:
    """Repeats the directories that lead to a file."""
    if below and not os.path.isdir(f"{layer}/{below}"):
        _parents(layer, tree, below.rpartition("/")[0])
        os.mkdir(f"{layer}/{below}")
        os.chmod(f"{layer}/{below}", stat.S_IMODE(os.stat(f"{tree}/{below}").st_mode))


def _stand_in(layer: str, path: str, look: os.stat_result) -> None:
    """A file without content: overlayfs takes that from the same path of the data layer."""
    fd = os.open(f"{layer}/{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        os.truncate(fd, look.st_size)
        os.setxattr(fd, "user.overlay.metacopy", b"")
        os.setxattr(fd, "user.overlay.redirect", os.fsencode(f"/{path}"))
        os.fchmod(fd, stat.S_IMODE(look.st_mode))
        os.utime(fd, ns=(look.st_atime_ns, look.st_mtime_ns))
    finally:
        os.close(fd)


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
