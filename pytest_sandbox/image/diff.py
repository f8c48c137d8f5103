"""A writable layer as a layer archive: what overlayfs wrote down, in the form of OCI's image-spec (layer.md).

Used by :mod:`.commit`. The upper directory's content was made inside a sandbox: it is walked by descriptors and nothing
is followed. The same content gives the same bytes: names are sorted, and nothing of today gets in.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Sequence
from typing import BinaryIO

from .lower import LowerView, is_whiteout, marks
from .owners import Declared
from .resolve import entry_path, opened

_OVERLAY = ("trusted.overlay.", "user.overlay.")
_SKIPPED_XATTRS = ("security.selinux", "security.ima", "security.evm", "system.")


class DiffWriter:
    """Writes one layer archive; use :meth:`write` once.

    :param out: where the archive goes.
    :param layers: the layers below and the upper directory itself, lowest first, for what renamed directories hold.
    :param skip: paths, without a leading slash, that are not part of the layer.
    :param owner: what the caller's own uid and gid are inside; None where ids are the same on both sides. Whom new
        files belong to; what the image has keeps its owner.
    :param root: mode, owner and group of the root directory below; what differs from them is written down. None for
        a tree of the host, whose root is written down wherever anything is.
    :param latest: the latest modification time that is kept, in seconds since 1970 (``SOURCE_DATE_EPOCH``).
    :param below: the directory that all names are below, such as ``"srv/data/"``.
    """

    def __init__(self, out: BinaryIO | tarfile.TarFile, layers: Sequence[str], *, skip: frozenset[str] = frozenset(),
                 owner: tuple[int, int] | None = None, latest: int | None = None,
                 root: tuple[int, int, int] | None = None, below: str = "") -> None:
        self._root = root
        self._tar = out if isinstance(out, tarfile.TarFile) else open_archive(out)
        self._ours = self._tar is not out
        self._prefix = below
        self._layers, self._skip, self._owner, self._latest = layers, skip, owner, latest
        self._names: dict[tuple[int, int], str] = {}
        self._declared: Declared | None = None
        self.entries = 0

    def write(self) -> None:
        """Writes everything, and the archive's end unless the archive is the caller's."""
        upper = os.open(self._layers[-1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            status = os.fstat(upper)
            look = self._look(status)
            if self._root is not None and look != self._root:
                self._add_root(look)
            if self._owner is not None:
                self._declared = Declared.of_layers(self._layers[:-1])
            with LowerView(self._layers) as self._view, LowerView(self._layers[:-1]) as self._below:
                self._folder(upper, "")
            if self._root is None and self.entries:  # of a host's tree: a layer without it would say 0755
                self._add_root(look, int(status.st_mtime))
        finally:
            os.close(upper)
            if self._declared is not None:
                self._declared.close()
        if self._ours:
            self._tar.close()

    def _add_root(self, look: tuple[int, int, int], mtime: int = 0) -> None:
        info = tarfile.TarInfo(self._prefix or "./")
        info.type, info.mtime = tarfile.DIRTYPE, mtime
        info.mode, info.uid, info.gid = look
        self._tar.addfile(info)
        self.entries += 1

    def _look(self, look: os.stat_result, name: str | None = None) -> tuple[int, int, int]:
        """Mode, owner and group as they are inside; those that the image names for what it has there already.

        A single id cannot give anything away: whatever was there still belongs to whom it did.
        """
        uid, gid = look.st_uid, look.st_gid
        before = self._declared.of(name) if self._declared is not None and name is not None else None
        if before is not None:
            uid, gid = before
        elif self._owner is not None:
            uid = self._owner[0] if uid == os.getuid() else uid
            gid = self._owner[1] if gid == os.getgid() else gid
        return stat.S_IMODE(look.st_mode), uid, gid

    def _folder(self, fd: int, below: str) -> None:
        for name in sorted(os.listdir(fd)):
            path = f"{below}/{name}" if below else name
            try:
                entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            except FileNotFoundError:
                continue  # what runs inside has removed it meanwhile
            try:
                self._entry(fd, name, entry, path)
            finally:
                os.close(entry)

    def _entry(self, parent: int, name: str, fd: int, path: str) -> None:
        look = os.fstat(fd)
        if is_whiteout(parent, os.fsencode(name), look):
            if path not in self._skip:
                self._mark(path, f".wh.{name}", look)
            return
        if not stat.S_ISDIR(look.st_mode):
            if path not in self._skip:
                self._add(fd, path, look)
            return
        if path not in self._skip:
            self._add(fd, path, look)
        where = entry_path(parent, os.fsencode(name))
        if _has(where, "redirect"):
            self._mark(f"{path}/x", ".wh..wh..opq", look)
            self._merged(path)
            return
        # Real root's overlays mark every new directory so, others none: what hides nothing is not written down.
        if _has(where, "opaque") and self._below.lookup(os.fsencode(path).split(b"/")) is not None:
            self._mark(f"{path}/x", ".wh..wh..opq", look)
        with opened(fd, look, os.O_RDONLY | os.O_DIRECTORY, 0o500) as inner:
            self._folder(inner, path)

    def _merged(self, path: str) -> None:
        """What a renamed directory shows, of which the layer itself has but a part."""
        parts = os.fsencode(path).split(b"/")
        for name in sorted(self._view.names(parts)):
            found = self._view.lookup([*parts, name])
            if found is None:
                continue
            fd = os.open(entry_path(found.layer_fd, found.path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                self._add(fd, f"{path}/{os.fsdecode(name)}", found.status)
            finally:
                os.close(fd)
            if stat.S_ISDIR(found.status.st_mode):
                self._merged(f"{path}/{os.fsdecode(name)}")

    def _mark(self, path: str, name: str, look: os.stat_result) -> None:
        folder = path.rpartition("/")[0]
        info = tarfile.TarInfo(self._prefix + (f"{folder}/{name}" if folder else name))
        info.mode, info.mtime = 0o600, 0
        self._tar.addfile(info)
        self.entries += 1

    def _add(self, fd: int, path: str, look: os.stat_result) -> None:
        if stat.S_ISSOCK(look.st_mode):
            return  # a socket is nothing without the process that listens
        name, path = path, self._prefix + path
        info = tarfile.TarInfo(path)
        info.mode, info.uid, info.gid = self._look(look, name)
        seconds, rest = divmod(look.st_mtime_ns, 1_000_000_000)
        if self._latest is not None and seconds >= self._latest:
            seconds, rest = self._latest, 0
        info.mtime = seconds
        more = _xattrs(fd)
        if rest:
            more["mtime"] = f"{seconds}.{rest:09d}"
        info.pax_headers = more
        self.entries += 1
        if stat.S_ISDIR(look.st_mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(look.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink("", dir_fd=fd)
        elif stat.S_ISFIFO(look.st_mode):
            info.type = tarfile.FIFOTYPE
        elif stat.S_ISCHR(look.st_mode) or stat.S_ISBLK(look.st_mode):
            info.type = tarfile.CHRTYPE if stat.S_ISCHR(look.st_mode) else tarfile.BLKTYPE
            info.devmajor, info.devminor = os.major(look.st_rdev), os.minor(look.st_rdev)
        elif (first := self._names.get((look.st_dev, look.st_ino))) is not None:
            info.type, info.linkname = tarfile.LNKTYPE, first
            info.pax_headers = {}
        else:
            if look.st_nlink > 1:
                self._names[look.st_dev, look.st_ino] = path
            info.size = look.st_size
            with opened(fd, look, os.O_RDONLY, 0o400) as plain, open(plain, "rb", closefd=False) as file:
                self._tar.addfile(info, _Exactly(file))  # type: ignore[arg-type]
            return
        self._tar.addfile(info)


class _Exactly:
    """A file that goes on with zeros where it has become shorter: its size is written down already."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int) -> bytes:
        return self._file.read(count).ljust(count, b"\0")


def open_archive(out: BinaryIO) -> tarfile.TarFile:
    """A layer archive to be written."""
    return tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape")


def _has(where: bytes, name: str) -> bool:
    try:
        os.getxattr(where, marks(name), follow_symlinks=False)
    except OSError:
        return False
    return True


def _xattrs(fd: int) -> dict[str, str]:
    where = f"/proc/self/fd/{fd}"
    found = {}
    try:
        names = os.listxattr(where)  # of a link's descriptor: of the link
    except OSError:
        return {}
    for name in sorted(names):
        prefix = next((one for one in _OVERLAY if name.startswith(one)), None)
        kept = name
        if prefix is not None:
            if not name.startswith(f"{prefix}overlay."):
                continue  # overlayfs' own
            kept = prefix + name[len(f"{prefix}overlay."):]  # one that it had to escape
        if not kept.startswith(_SKIPPED_XATTRS):
            try:
                found[f"SCHILY.xattr.{kept}"] = os.getxattr(where, name).decode("utf-8", "surrogateescape")
            except OSError:
                continue
    return found
