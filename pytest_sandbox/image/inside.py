"""A layer's own root while it is being unpacked: names are opened in it and cannot leave it. For :mod:`.unpack`."""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from dataclasses import dataclass, field

from .abilities import Abilities
from .lower import Found, LowerView, is_whiteout
from .resolve import entry_path, open_directory
from .tar import TarReader, show

WHITEOUT_PREFIX = b".wh."
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel
_OPEN_PARENTS = 32


class NothingThere(Exception):
    """A whiteout's directory is in no layer: there is nothing to remove, and nothing to make."""


class NeedsLower(Exception):
    """This layer is bound, and was tried without the layers below it."""


@dataclass(slots=True)
class Applied:
    """What an unpacking leaves besides files. ``late`` and ``hashes`` go by inode number, for :mod:`.tree` to finish.

    Numbers are used again after a removal: whatever is made anew is told to :meth:`begin`, which forgets the old facts.

    :param late: mode, owner and time (ns) of directories, set when nothing is put into them any more.
    :param implicit: directories that were made only since something lies in them.
    :param copied: what was brought up from lower layers: names, by the inode number of their directory.
    :param hashes: SHA-256 of regular files' content; empty for sparse ones.
    :param others: uid and gid of what belongs to others, by inode number, where owners cannot be kept.
    :param owned: the same by name, as :mod:`.owners` has it: written by :mod:`.tree`.
    :param opaque_root: the layer hides all that is below it.
    :param notes: what could not be kept, in words, bounded.
    """

    late: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    hashes: dict[int, bytes] = field(default_factory=dict)
    implicit: set[int] = field(default_factory=set)
    copied: dict[int, set[bytes]] = field(default_factory=dict)
    others: dict[int, tuple[int, int]] = field(default_factory=dict)
    owned: list[tuple[str, int, int]] = field(default_factory=list)
    bound: bool = False
    opaque_root: bool = False
    root_given: bool = False
    entries: int = 0
    notes: list[str] = field(default_factory=list)

    def begin(self, number: int) -> None:
        """Something new has this inode number, which something that was removed may have had before."""
        self.late.pop(number, None)
        self.hashes.pop(number, None)
        self.implicit.discard(number)
        self.copied.pop(number, None)
        self.others.pop(number, None)


class LayerRoot:
    """The directory that a layer goes to. Holds its descriptor ``fd`` and those of some recently used directories.

    :param lower: the layers below; None when they are not there yet.
    :param applied: takes down what is made here.
    """

    def __init__(self, root: str, reader: TarReader, abilities: Abilities, lower: LowerView | None,
                 applied: Applied) -> None:
        self._reader, self._abilities, self._lower, self._applied = reader, abilities, lower, applied
        self.fd = os.open(root, _DIR)
        self._parents: OrderedDict[bytes, int] = OrderedDict()
        # A lower layer's link was followed: the layer may yet put something of its own in the place of that link, and
        # then a remembered name would lead to where it led before.
        self._led_below = False

    def close(self) -> None:
        self.forget_parents()
        os.close(self.fd)

    def parts(self, name: bytes) -> list[bytes]:
        """A name's parts as Go's ``filepath.Clean`` leaves them; ``..`` at the root is the root (umoci, containerd)."""
        if b"\0" in name:
            raise self._reader.reject("name", "its name holds a NUL")
        if not name:
            raise self._reader.reject("name", "it has no name")
        parts: list[bytes] = []
        for part in name.split(b"/"):
            if part == b"..":
                if parts:
                    parts.pop()
            elif part and part != b".":
                if len(part) > 255:
                    raise self._reader.reject("name", f"a part of its name has {len(part)} bytes")
                parts.append(part)
        for part in parts[:-1]:
            if part.startswith(WHITEOUT_PREFIX):
                raise self._reader.reject("whiteout", "a whiteout cannot be a directory")
        return parts

    def parent(self, parts: list[bytes], *, to_remove: bool = False) -> int:
        """A descriptor of a directory inside the root, which stays the cache's.

        :param to_remove: only to remove something in it.
        :raises NothingThere: when it would be made for that alone.
        """
        path = b"/".join(parts)
        if self._led_below:
            self.forget_parents()
        fd = self._parents.get(path)
        if fd is not None:
            self._parents.move_to_end(path)
            return fd
        try:
            fd = open_directory(self.fd, path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                raise
            fd = self._make_parents(parts, to_remove)
        if len(self._parents) >= _OPEN_PARENTS:
            os.close(self._parents.popitem(last=False)[1])
        self._parents[path] = fd
        return fd

    def forget_parents(self) -> None:
        """After something was replaced: a remembered name may lead elsewhere now."""
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()

    def _make_parents(self, parts: list[bytes], to_remove: bool) -> int:
        """Walks ``parts`` from the root, following links inside it; makes what is missing like the lower layers'."""
        todo, links = list(reversed(parts)), 0
        done: list[bytes] = []
        while todo:
            name = todo.pop()
            if name in (b"", b".", b".."):
                if name == b".." and done:
                    done.pop()
                continue
            here = open_directory(self.fd, b"/".join(done))
            try:
                target = self._step(here, name, done, to_remove)
            finally:
                os.close(here)
            if target is None:
                done.append(name)
                continue
            links += 1
            if links > _MOST_LINKS:
                raise self._reader.reject("link", "its name leads through too many links")
            if target.startswith(b"/"):
                done = []
            todo.extend(reversed(target.split(b"/")))
        return open_directory(self.fd, b"/".join(done))

    def _step(self, here: int, name: bytes, above: list[bytes], to_remove: bool) -> bytes | None:
        """Makes sure that ``name`` is a directory; or, if it is a link, its target."""
        try:
            status = os.lstat(name, dir_fd=here)
        except FileNotFoundError:
            return self._implicit(here, name, above, to_remove)
        if stat.S_ISDIR(status.st_mode):
            return None
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=here)
        if to_remove:
            raise NothingThere
        if is_whiteout(here, name, status):
            os.unlink(name, dir_fd=here)
            self._make_directory(here, name, None)
            mark_opaque(self._abilities, entry_path(here, name))
            return None
        raise self._reader.reject("name", f"{show(name)!r} in its name is not a directory")

    def _implicit(self, here: int, name: bytes, above: list[bytes], to_remove: bool) -> bytes | None:
        """A directory that the layer uses without having it."""
        found = self.below([*above, name])
        if found is not None and stat.S_ISLNK(found.status.st_mode):
            self._led_below = True
            return found.link
        if to_remove and (found is None or not stat.S_ISDIR(found.status.st_mode)):
            raise NothingThere
        if found is not None and not stat.S_ISDIR(found.status.st_mode):
            raise self._reader.reject("name", f"{show(name)!r} in its name is not a directory in the layers below")
        self._make_directory(here, name, found)
        return None

    def below(self, parts: list[bytes]) -> Found | None:
        """What the lower layers have at ``parts``, as far as this layer lets it show through."""
        self._applied.bound = True
        if self._lower is None:
            raise NeedsLower
        if self._applied.opaque_root:
            return None
        for depth in range(1, len(parts)):
            where = entry_path(self.fd, b"/".join(parts[:depth]))
            if any(is_opaque(where, prefix) for prefix in self._abilities.overlay_xattrs):
                return None
        return self._lower.lookup(parts)

    def _make_directory(self, here: int, name: bytes, like: Found | None) -> None:
        os.mkdir(name, 0o700, dir_fd=here)
        fd = os.open(name, _DIR, dir_fd=here)
        try:
            number = os.fstat(fd).st_ino
            self._applied.begin(number)
            self._applied.implicit.add(number)
            if like is None:
                self._applied.late[number] = (0o755, 0, 0, 0)
            else:
                status = like.status
                self._applied.late[number] = (
                    stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
                copy_xattrs(like, fd)
        finally:
            os.close(fd)


def mark_opaque(abilities: Abilities, where: bytes | int) -> None:
    """Makes a directory hide what the lower layers have of it."""
    for prefix in abilities.overlay_xattrs:
        os.setxattr(where, prefix + "opaque", b"y")


def is_opaque(where: bytes, prefix: str) -> bool:
    try:
        return os.getxattr(where, prefix + "opaque") == b"y"
    except OSError:
        return False


def copy_xattrs(found: Found, fd: int) -> None:
    old = entry_path(found.layer_fd, found.path)
    for name in os.listxattr(old, follow_symlinks=False):
        mark = name.partition("overlay.")[2] if name.startswith(("trusted.overlay.", "user.overlay.")) else "overlay."
        if not mark.startswith("overlay."):
            continue  # it marks the layer that it comes from
        try:
            os.setxattr(fd, name, os.getxattr(old, name, follow_symlinks=False))
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP):
                raise


def is_from_below(applied: Applied, parent: int, name: bytes, status: os.stat_result) -> bool:
    """Whether what stands at a name is no entry of this layer, but only copies, and ways to whiteouts."""
    if not stat.S_ISDIR(status.st_mode):
        return name in applied.copied.get(os.fstat(parent).st_ino, ())
    todo = [os.open(name, _DIR, dir_fd=parent)]
    try:
        while todo:
            fd = todo.pop()
            try:
                here = os.fstat(fd).st_ino
                if here not in applied.implicit:
                    return False
                for one in map(os.fsencode, os.listdir(fd)):
                    found = os.lstat(one, dir_fd=fd)
                    if stat.S_ISDIR(found.st_mode):
                        todo.append(os.open(one, _DIR, dir_fd=fd))
                    elif not is_whiteout(fd, one, found) and one not in applied.copied.get(here, ()):
                        return False
            finally:
                os.close(fd)
        return True
    finally:
        for fd in todo:
            os.close(fd)
