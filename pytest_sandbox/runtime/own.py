"""The layers that we make ourselves, between a host's tree and the writable layer: the steps of a plan's template.

Carried out by the helper, once for each root filesystem, on its own tmpfs; :mod:`.shadow` has the largest of them. What
they hold: whiteouts for what is hidden, directories that cannot be overlaid themselves, and directories that must
belong to the caller.
"""

from __future__ import annotations

import os
import stat

from . import syscalls as sc

#: How deep, and how far, :func:`own_ways` looks for directories that the caller may write to.
DEPTH = 4
SCANNED = 20_000


def own_nothing(layers: str) -> None:
    """Removes what there is of the layers of one root filesystem. Not a step of a plan: the helper clears up so."""
    for name in os.listdir(layers) if os.path.isdir(layers) else ():
        try:
            sc.umount2(f"{layers}/{name}", sc.MNT_DETACH)  # what own_shadow shows of the host's files
        except OSError as error:
            if error.errno != 22:  # EINVAL: nothing is mounted there
                raise
    for folder, directories, files in os.walk(layers, topdown=False):
        for name in files:
            os.unlink(f"{folder}/{name}")
        for name in directories:
            if os.path.islink(f"{folder}/{name}"):
                os.unlink(f"{folder}/{name}")
            else:
                os.rmdir(f"{folder}/{name}")


def own_layer(layer: str, like: str) -> None:
    """An empty directory at ``layer`` with the mode, owner and times of ``like``."""
    parent = os.path.dirname(layer)
    os.makedirs(parent, exist_ok=True)
    os.mkdir(layer)
    copy_stat(layer, os.stat(like), True)


def own_hide(layer: str, tree: str, path: str) -> None:
    """A whiteout for ``path`` in ``layer``."""
    own_parents(layer, tree, path)
    os.mknod(f"{layer}/{path}", stat.S_IFCHR, 0)


def own_parents(layer: str, tree: str, path: str) -> None:
    """The directories that lead to ``path`` in ``layer``, which look like those of the host's ``tree``."""
    parts = path.split("/")
    for number in range(1, len(parts)):
        below = "/".join(parts[:number])
        made = f"{layer}/{below}"
        if not os.path.lexists(made):
            os.mkdir(made)
            copy_stat(made, os.lstat(f"{tree}/{below}"), False)


def own_link(layer: str, path: str, text: str) -> None:
    """A symbolic link in ``layer``."""
    os.symlink(text, f"{layer}/{path}")


def own_file(layer: str, path: str, source: str) -> None:
    """A copy of a host's file in ``layer``; one that cannot be read is left out, as it is for the caller.

    So is one that has gone since the plan was made: others work on this machine, too.
    """
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK)
    except (PermissionError, FileNotFoundError):
        return
    with open(fd, "rb") as origin:
        made = f"{layer}/{path}"
        with open(made, "wb") as copy:
            while chunk := origin.read(1 << 20):
                copy.write(chunk)
        copy_stat(made, os.fstat(fd), False)


def own_dir(layer: str, path: str, like: str, may_write: bool) -> None:
    """A directory in ``layer`` that looks like the host's ``like``; none if that has gone since the plan was made."""
    try:
        look = os.stat(like)
    except FileNotFoundError:
        return
    os.mkdir(f"{layer}/{path}")
    copy_stat(f"{layer}/{path}", look, may_write)


def copy_stat(path: str, like: os.stat_result, may_write: bool) -> None:
    """Gives ``path`` the look of ``like`` as far as ids are mapped.

    Where the owner cannot be kept our own id stands in its place. Unless ``may_write``, the owner's bits then become
    those that the caller has outside, so that nobody can do more inside than outside by that.
    """
    mode = stat.S_IMODE(like.st_mode)
    try:
        os.chown(path, like.st_uid, like.st_gid)
    except OSError:
        if not may_write and like.st_uid != os.getuid():
            mode = reduced(mode, like.st_gid in os.getgroups())
    os.chmod(path, mode)
    os.utime(path, ns=(like.st_atime_ns, like.st_mtime_ns))


def reduced(mode: int, in_group: bool) -> int:
    """The mode of somebody else's directory with, for its owner, what the caller may do with it outside."""
    return mode & 0o7077 | (mode & 7 | (mode >> 3 & 7 if in_group else 0)) << 6


def escape(path: str) -> str:
    """A path as an overlay's options take it."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def own_names(folder: str, lowers: list[str]) -> None:
    """Symbolic links named 0, 1, 2, ... to the layers of a stack."""
    os.makedirs(folder, exist_ok=True)
    for number, lower in enumerate(lowers):
        os.symlink(lower, f"{folder}/{number}")


def own_ways(layer: str, tree: str, known: list[str], scan: bool) -> None:
    """Repeats in ``layer`` the directories of others that lead to places in ``tree`` that the caller may write to.

    Before overlayfs copies a file up it copies its parents, owner and group included, and those of others are not
    mapped: writing would fail with EOVERFLOW. Repeated here, with no more permissions than the caller has outside, they
    are there already.

    :param known: paths relative to the tree that need not be searched.
    :param scan: whether to search the tree for others.
    """
    for path in known:
        _repeat(layer, tree, path)
    us, groups, left = os.getuid(), set(os.getgroups()), SCANNED
    pending = [("", 0)] if scan else []
    while pending and left > 0:
        below, depth = pending.pop()
        try:
            entries = list(os.scandir(f"{tree}/{below}"))
        except OSError:
            continue
        left -= len(entries)
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            try:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                look = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if look.st_uid == us or look.st_mode & 0o002 or (look.st_mode & 0o020 and look.st_gid in groups):
                _repeat(layer, tree, path)
            if depth + 1 < DEPTH and look.st_uid != us:
                pending.append((path, depth + 1))


def _repeat(layer: str, tree: str, path: str) -> None:
    looks = []
    below = ""
    for part in path.split("/"):
        below = f"{below}/{part}"
        try:
            look = os.lstat(tree + below)
        except OSError:
            break
        if not stat.S_ISDIR(look.st_mode):
            break
        looks.append((below, look))
    while looks and looks[-1][1].st_uid == os.getuid() and looks[-1][1].st_gid == os.getgid():
        looks.pop()
    for below, look in looks:
        if not os.path.lexists(layer + below):
            os.mkdir(layer + below)
            copy_stat(layer + below, look, False)
