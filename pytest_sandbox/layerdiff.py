"""Reads an overlay's upper directory: what it adds to, changes in and takes from the layers below. For ``sandbox``.

The upper directory's content was made inside, so it is walked by descriptors and never followed. How overlayfs writes
things down: kernel documentation, filesystems/overlayfs.rst, "whiteouts and opaque directories" and "redirect_dir".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple

from .errors import SandboxProtocolError
from .image.resolve import opened
from .rootfs import Tree
from .runtime import frozen
from .runtime import syscalls as sc
from .runtime.own import reduced

if TYPE_CHECKING:
    from .image.lower import LowerView
    from .runtime.plan import Plan

Kind = Literal["added", "modified", "deleted", "metadata"]
Found = Iterator[tuple[str, Kind]]


class Change(NamedTuple):
    """One path that the writable layer changes; ``kind`` is added, modified, deleted, or metadata."""

    path: str
    kind: Kind


def changes(plan: Plan, scratch: int, root: int, privileged: bool) -> list[Change]:
    """See ``Sandbox.changes``. Reads the overlays' upper directories, through a descriptor of the writable layer."""
    found: list[Change] = []
    for number, tree in enumerate(plan.root.trees):
        upper = os.open(f"{number}/upper", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=scratch)
        try:
            with LayerDiff(tree, privileged, root, plan.ids[0] != 0) as diff:
                found += [Change(path, kind) for path, kind in diff.walk(upper)]
        except (RecursionError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in (errno.EMFILE, errno.ENAMETOOLONG):
                raise
            raise SandboxProtocolError(
                "the sandbox's changes cannot be listed", why=f"its directories are nested too deeply ({error})",
                remedy="Remove the deepest ones inside first.") from None
        finally:
            os.close(upper)
    ignored = plan.made
    return sorted(change for change in found if change.path not in ignored)


class LayerDiff:
    """Compares one tree's upper directory with its lower layers; lives for one walk.

    :param privileged: whether owners below are mapped, so that they can be compared.
    :param root: a descriptor of the sandbox's root, to list what a renamed directory brought along.
    :param reduced: whether directories of others were repeated with the permissions that the caller has outside.
    """

    def __init__(self, tree: Tree, privileged: bool, root: int, reduced: bool) -> None:
        self.tree = tree
        self.privileged = privileged
        self.reduced = reduced and not privileged
        self.root = root
        self.space = "trusted" if privileged else "user"
        layers = [*tree.lowers, *map(frozen.path_here, tree.frozen)]
        self.view: LowerView | None = None
        if len(layers) > 1:
            from .image.lower import LowerView
            self.view = LowerView(layers)
        self.only = layers[0] if layers else ""

    def __enter__(self) -> LayerDiff:
        return self

    def __exit__(self, *_: object) -> None:
        if self.view is not None:
            self.view.close()

    def walk(self, upper: int) -> Found:
        """Every change below, parents first."""
        yield from self._directory(upper, "", fresh=False)

    def _directory(self, fd: int, below: str, fresh: bool) -> Found:
        """``fresh``: nothing of the lower layers shows here."""
        for name, entry in _entries(fd):
            yield from self._entry(entry, f"{below}/{name}" if below else name, fresh)

    def _entry(self, fd: int, path: str, fresh: bool) -> Found:
        look = os.fstat(fd)
        lower = None if fresh else self._lower(path)
        full = self.tree.target.rstrip("/") + "/" + path
        if stat.S_ISCHR(look.st_mode) and look.st_rdev == 0:
            if lower is not None:
                yield full, "deleted"
            return
        if not stat.S_ISDIR(look.st_mode):
            kind = self._file_kind(fd, look, path, lower)
            if kind:
                yield full, kind
            return
        was_dir = lower is not None and stat.S_ISDIR(lower.st_mode)
        if not was_dir:
            yield full, "modified" if lower is not None else "added"
        elif self._metadata(look, lower):
            yield full, "metadata"
        with opened(fd, look, os.O_RDONLY | os.O_DIRECTORY, 0o500) as listing:
            if self._has(fd, "redirect"):
                yield from self._renamed(full)
                return
            opaque = fresh or not was_dir or self._has(fd, "opaque")
            if opaque and was_dir:
                kept = set(os.listdir(listing))
                for name in sorted(set(self._lower_names(path)) - kept):
                    yield f"{full}/{name}", "deleted"
                yield from self._replaced(listing, path)
            else:
                yield from self._directory(listing, path, fresh=opaque)

    def _replaced(self, listing: int, path: str) -> Found:
        """The content of a directory that was removed and made again: what had been there before is modified."""
        for name, entry in _entries(listing):
            yield from self._entry(entry, f"{path}/{name}", fresh=self._lower(f"{path}/{name}") is None)

    def _renamed(self, full: str) -> Found:
        """A directory moved here with all that it holds, of which the upper layer keeps no list."""
        try:
            fd = sc.openat2(self.root, full, os.O_RDONLY | os.O_DIRECTORY, resolve=sc.RESOLVE_IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return  # it went meanwhile
        try:
            for name, entry in _entries(fd):
                yield f"{full}/{name}", "added"
                if stat.S_ISDIR(os.fstat(entry).st_mode):
                    yield from self._renamed(f"{full}/{name}")
        finally:
            os.close(fd)

    def _lower_path(self, path: str) -> str | None:
        """Where the lower layers hold ``path``, as they are merged; None where it is hidden or absent."""
        if self.view is not None:
            if (found := self.view.lookup(os.fsencode(path).split(b"/"))) is None:
                return None
            there = f"/proc/self/fd/{found.layer_fd}/{os.fsdecode(found.path)}"
            at_the_bottom = found.layer_fd == self.view.lowest
        else:
            there, at_the_bottom = f"{self.only}/{path}", True
            if not os.path.lexists(there):
                return None
        if at_the_bottom and any(path == one or path.startswith(one + "/") for one in self.tree.hidden):
            return None
        return there

    def _lower(self, path: str) -> os.stat_result | None:
        there = self._lower_path(path)
        try:
            return os.lstat(there) if there is not None else None
        except OSError:
            return None

    def _lower_names(self, path: str) -> list[str]:
        if self.view is not None:
            return [os.fsdecode(name) for name in self.view.names(os.fsencode(path).split(b"/"))]
        there = self._lower_path(path)
        try:
            return os.listdir(there) if there is not None else []
        except OSError:
            return []

    def _has(self, fd: int, what: str) -> bool:
        try:
            return bool(os.getxattr(f"/proc/self/fd/{fd}", f"{self.space}.overlay.{what}"))
        except OSError:
            return False

    def _file_kind(self, fd: int, look: os.stat_result, path: str, lower: os.stat_result | None) -> Kind | None:
        if lower is None:
            return "added"
        if stat.S_IFMT(look.st_mode) != stat.S_IFMT(lower.st_mode):
            return "modified"
        there = self._lower_path(path)
        if there is None:
            return "added"
        if stat.S_ISLNK(look.st_mode):
            same = os.readlink("", dir_fd=fd) == os.readlink(there)
        elif stat.S_ISREG(look.st_mode):
            same = look.st_size == lower.st_size and _same_content(fd, there)
        else:
            same = look.st_rdev == lower.st_rdev
        if not same:
            return "modified"
        return "metadata" if self._metadata(look, lower) or look.st_mtime_ns != lower.st_mtime_ns else None

    def _metadata(self, look: os.stat_result, lower: os.stat_result | None) -> bool:
        if lower is None:
            return False
        mode = stat.S_IMODE(lower.st_mode)
        if self.reduced and stat.S_ISDIR(lower.st_mode) and lower.st_uid != os.getuid():
            mode = reduced(mode, lower.st_gid in os.getgroups())
        if stat.S_IMODE(look.st_mode) != mode:
            return True
        return self.privileged and (look.st_uid, look.st_gid) != (lower.st_uid, lower.st_gid)


def _entries(fd: int) -> Iterator[tuple[str, int]]:
    """The directory's entries, sorted, each with an O_PATH descriptor that lasts until the next."""
    for name in sorted(os.listdir(fd)):
        try:
            entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        except FileNotFoundError:
            continue  # what runs inside has removed it meanwhile
        try:
            yield name, entry
        finally:
            os.close(entry)


def _same_content(fd: int, path: str) -> bool:
    try:
        with open(f"/proc/self/fd/{fd}", "rb") as one, open(path, "rb") as other:
            while True:
                chunk = one.read(1 << 18)
                if chunk != other.read(1 << 18):
                    return False
                if not chunk:
                    return True
    except OSError:
        return False
