"""A layer directory's record: every file's attributes and content digest, as an ``mtree(5)`` file. For the store.

Written once, right after unpacking; ``verify`` walks again and compares. The format is the one of BSD's ``mtree`` and
of ``bsdtar --format=mtree``, one full path a line, so that other tools can read it.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from .inside import Applied
from .owners import AS_BELOW

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/._-+,:@~%^!()[]{}<>|;$&'`")
# Set by the host for its own purposes, not by a layer.
_NOT_OURS = ("security.selinux", "security.ima", "security.evm", "system.posix_acl_default", "system.posix_acl_access")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK = 1 << 16

_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
          stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}


@dataclass(frozen=True, slots=True)
class Measured:
    """A walk's sums. ``bytes`` is disk space, a file with several names counted once."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TreeDifference:
    """One thing that is not as recorded. ``kind`` is ``changed``, ``missing`` or ``extra``; ``path`` is printable."""

    path: str
    kind: str
    what: str = ""


def finish_tree(root: str, applied: Applied, *, owners: bool) -> tuple[bytes, Measured]:
    """Gives directories their final mode, owner and time, and records the tree.

    Bottom up, since a directory without write or search permission cannot be walked by its owner afterwards.
    """
    lines = ["#mtree\n"]
    entries = size = 0
    seen: set[int] = set()
    for path, fd, name, status in _walk(root):
        kind = status.st_mode & 0o170000
        extra = ""
        if kind == stat.S_IFDIR:
            mode, uid, gid, mtime = applied.late.get(status.st_ino, (0o755, 0, 0, 0))
            if owners:
                os.fchown(fd, uid, gid)
            elif status.st_ino in applied.implicit:
                applied.owned.append((os.fsdecode(path[2:]), *AS_BELOW))
            elif (uid, gid) != (0, 0):
                applied.owned.append((os.fsdecode(path[2:]), uid, gid))
            os.fchmod(fd, mode)
            os.utime(fd, ns=(mtime, mtime))
            status = os.fstat(fd)  # what came of it: times have bounds, and set-gid is not everybody's
        elif kind == stat.S_IFREG:
            digest = applied.hashes.get(status.st_ino)
            extra = f" size={status.st_size} " + (f"sha256digest={digest.hex()}" if digest else
                                                  f"sha256extents={_digest_of_data(fd, name).hex()}")
        elif kind == stat.S_IFLNK:
            extra = f" link={_vis(os.readlink(name, dir_fd=fd))}"
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            extra = f" device=linux,{os.major(status.st_rdev)},{os.minor(status.st_rdev)}"
        if not owners and kind != stat.S_IFDIR:
            if status.st_ino in applied.others:
                applied.owned.append((os.fsdecode(path[2:]), *applied.others[status.st_ino]))
            elif applied.copied and name in applied.copied.get(os.fstat(fd).st_ino, ()):
                applied.owned.append((os.fsdecode(path[2:]), *AS_BELOW))
        entries += 1
        if status.st_ino not in seen:
            size += status.st_blocks * 512
            if status.st_nlink > 1:
                seen.add(status.st_ino)
        mode, mtime = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        lines.append(f"{_vis(path)} type={_KINDS[kind]} mode={mode:04o} uid={status.st_uid} gid={status.st_gid} "
                     f"time={mtime // 1_000_000_000}.{mtime % 1_000_000_000:09d}{extra}{_xattrs(fd, name)}\n")
    return "".join(lines).encode(), Measured(entries, size)


def compare_tree(root: str, record: bytes) -> list[TreeDifference]:
    """What differs between a recorded layer and its directory, in the order of the record.

    File content that the caller may not read (another owner's, or no read permission) is compared by size and time.
    """
    recorded: dict[str, str] = {}
    for line in record.decode().splitlines():
        if line and not line.startswith("#"):
            path, _, facts = line.partition(" ")
            recorded[path] = facts
    differences: list[TreeDifference] = []
    closed: list[bytes] = []
    for raw, fd, name, status in _walk(root, closed):
        path = _vis(raw)
        if path not in recorded:
            differences.append(TreeDifference(path, "extra"))
            continue
        facts = recorded.pop(path)
        old, new = _facts(facts), _present(fd, name, status, facts)
        changed = [key for key in (*old, *(key for key in new if key not in old)) if old.get(key) != new.get(key)]
        if changed:
            shown = ", ".join(f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}" for key in changed[:4])
            differences.append(TreeDifference(path, "changed", shown))
    hidden = tuple(f"{_vis(path)}/" for path in closed)  # not for this user to see, so not missing either
    differences.extend(TreeDifference(path, "missing") for path in recorded if not path.startswith(hidden))
    return differences


def _facts(text: str) -> dict[str, str]:
    return {key: value for key, _, value in (fact.partition("=") for fact in text.split(" ") if fact)}


def _present(fd: int, name: bytes, status: os.stat_result, recorded: str) -> dict[str, str]:
    kind = status.st_mode & 0o170000
    mtime = status.st_mtime_ns
    facts = {"type": _KINDS[kind], "mode": f"{stat.S_IMODE(status.st_mode):04o}", "uid": str(status.st_uid),
             "gid": str(status.st_gid), "time": f"{mtime // 1_000_000_000}.{mtime % 1_000_000_000:09d}"}
    if kind == stat.S_IFREG:
        facts["size"] = str(status.st_size)
        for key, measure in (("sha256digest", _digest), ("sha256extents", _digest_of_data)):
            if f"{key}=" in recorded:
                try:
                    facts[key] = measure(fd, name).hex()
                except PermissionError:
                    facts[key] = _facts(recorded)[key]
    elif kind == stat.S_IFLNK:
        facts["link"] = _vis(os.readlink(name, dir_fd=fd))
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        facts["device"] = f"linux,{os.major(status.st_rdev)},{os.minor(status.st_rdev)}"
    facts.update(_facts(_xattrs(fd, name)))
    return facts


def _digest(fd: int, name: bytes) -> bytes:
    """Of a regular file's content."""
    digest = hashlib.sha256()
    file = os.open(name, _READ, dir_fd=fd)
    try:
        while data := os.read(file, 1 << 20):
            digest.update(data)
    finally:
        os.close(file)
    return digest.digest()


def _digest_of_data(fd: int, name: bytes) -> bytes:
    """Of a sparse file's blocks that are not zero, with their numbers: a hole of a terabyte costs nothing, and where
    the file system keeps holes does not matter."""
    digest = hashlib.sha256()
    file = os.open(name, _READ, dir_fd=fd)
    try:
        at = 0
        while True:
            try:
                at = max(at, os.lseek(file, at, os.SEEK_DATA) // _BLOCK * _BLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data behind this
                    raise
                return digest.digest()
            block = os.pread(file, _BLOCK, at)
            if block.strip(b"\0"):
                digest.update(at.to_bytes(8, "big") + block)
            at += _BLOCK
    finally:
        os.close(file)


def _xattrs(fd: int, name: bytes) -> str:
    # a directory's own "." would need the permission to search it
    where = b"/proc/self/fd/%d/%s" % (fd, name) if name != b"." else b"/proc/self/fd/%d" % fd
    parts = []
    for one in sorted(os.listxattr(where, follow_symlinks=name == b".")):
        if one not in _NOT_OURS:
            try:
                value = base64.b64encode(os.getxattr(where, one, follow_symlinks=name == b".")).decode()
            except PermissionError:  # user.* of what its mode lets nobody read
                value = "unreadable"
            parts.append(f" xattr.{_vis(os.fsencode(one))}={value}")
    return "".join(parts)


def _walk(root: str, closed: list[bytes] | None = None) -> Iterator[tuple[bytes, int, bytes, os.stat_result]]:
    """Everything below ``root`` and itself, children before parents: path, descriptor, name from there, attributes.

    For a directory the descriptor is its own and the name ``.``, for all else it is the parent's. One descriptor at a
    time: a layer may be deeper than we may have files open.

    :param closed: takes the directories that the caller may not enter, which are then like files; None lets it fail.
    """
    fd = os.open(root, _DIR)
    path: list[bytes] = [b"."]
    pending: list[list[bytes]] = []
    try:
        while True:
            if len(pending) < len(path):
                below: list[bytes] = []
                here = b"/".join(path)
                with os.scandir(fd) as listing:
                    names = sorted((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in listing)
                for name, is_dir in names:
                    if is_dir:
                        below.append(name)
                    else:
                        yield here + b"/" + name, fd, name, os.lstat(name, dir_fd=fd)
                pending.append(below[::-1])
            if pending[-1]:
                name = pending[-1].pop()
                try:
                    inner = os.open(name, _DIR, dir_fd=fd)
                    if closed is not None:
                        _try_to_search(inner)
                except PermissionError:
                    if closed is None:
                        raise
                    closed.append(b"/".join([*path, name]))
                    yield closed[-1], fd, name, os.lstat(name, dir_fd=fd)
                    continue
                os.close(fd)
                fd = inner
                path.append(name)
                continue
            up = os.open(b"..", _DIR, dir_fd=fd) if len(path) > 1 else -1  # before its mode may forbid it
            yield b"/".join(path), fd, b".", os.fstat(fd)
            os.close(fd)
            fd = up
            path.pop()
            pending.pop()
            if not path:
                return
    finally:
        if fd >= 0:
            os.close(fd)


def _try_to_search(fd: int) -> None:
    """Closes the directory, and raises, where names in it may be listed and not used."""
    try:
        os.stat(b".", dir_fd=fd)
    except PermissionError:
        os.close(fd)
        raise


def _vis(name: bytes) -> str:
    """A name as ``mtree(5)`` writes it: bytes that are not plain become ``\\ooo``."""
    if _PLAIN.issuperset(name):
        return name.decode()
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in name)
