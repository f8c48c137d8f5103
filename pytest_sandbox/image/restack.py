"""A layer archive whose names start at the root of a host, as one archive for each of the host's trees; and back.

Used where what lies on one host's file systems is laid down on another's, or seen by another user, for whom the host
is made of other trees. The archive may have come from elsewhere: every name is resolved within its root.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Sequence
from typing import BinaryIO

from ..errors import ImageCorrupt
from .archive import FileStream
from .compression import Limits
from .tar import Entry, TarReader, show

_KINDS = {"0": tarfile.REGTYPE, "1": tarfile.LNKTYPE, "2": tarfile.SYMTYPE, "3": tarfile.CHRTYPE, "4": tarfile.BLKTYPE,
          "5": tarfile.DIRTYPE, "6": tarfile.FIFOTYPE}

#: What a directory looks like that an archive does not describe, by its path; None where there is none.
Look = Callable[[str], "os.stat_result | None"]


class Restacker:
    """Reads one archive, which lies in a file that can be sought in; :meth:`write` as often as there are trees.

    :param trees: the directories that file systems lie on, ``/`` among them.
    """

    def __init__(self, file: BinaryIO, trees: Sequence[str], reference: str, look: Look) -> None:
        self._file, self._reference, self._look = file, reference, look
        self._trees = sorted({tree.strip("/") for tree in trees} | {""}, key=len, reverse=True)
        self._where: dict[str, tuple[str, int, int]] = {}  # of regular files: the tree, and where the content lies
        self.found: list[str] = []  # the trees that something is for, as they were given
        seen = set()
        self._all = self._entries()
        for _, name, tree, at in self._all:
            seen.add(tree)
            if at is not None:
                self._where[name] = tree, *at
        self.found = [tree for tree in trees if tree.strip("/") in seen]

    def write(self, tree: str, out: tarfile.TarFile) -> int:
        """Writes what belongs to ``tree``, named relative to it; returns how many entries."""
        wanted, made, count = tree.strip("/"), {""}, 0
        for entry, name, there, at in self._all:
            if there != wanted:
                continue
            short = name[len(wanted):].lstrip("/")
            self._parents(out, wanted, short, made)
            self._add(out, entry, name, short, wanted, at)
            count += 1
            if entry.kind == "5":
                made.add(short)
        return count

    def _entries(self) -> list[tuple[Entry, str, str, tuple[int, int] | None]]:
        self._file.seek(0)
        stream = FileStream(self._file)
        found = []
        for entry in TarReader(stream, limits=Limits(), reference=self._reference):
            if entry.pieces is not None:
                raise ImageCorrupt("a kept layer cannot be used", reference=self._reference,
                                   why=f"{show(entry.name)} is a sparse file, which kept layers do not have")
            name = os.path.normpath("/" + os.fsdecode(entry.name)).strip("/")
            tree = self._tree(name)
            at = (stream.at, entry.stored) if entry.kind == "0" else None
            if not (name == tree and entry.kind != "5"):
                found.append((entry, name, tree, at))
            stream.skip(entry.stored)
        return found

    def _tree(self, name: str) -> str:
        """The tree that a name lies in. A mark that removes a whole tree belongs to none above it."""
        folder, _, leaf = name.rpartition("/")
        if leaf.startswith(".wh.") and leaf != ".wh..wh..opq":
            real = f"{folder}/{leaf[4:]}".lstrip("/")
            if real in self._trees:
                return name  # which is no tree: left out
        return next(tree for tree in self._trees if not tree or name == tree or name.startswith(f"{tree}/"))

    def _parents(self, out: tarfile.TarFile, tree: str, short: str, made: set[str]) -> None:
        parts = short.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            path = "/".join(parts[:count])
            if path in made:
                continue
            made.add(path)
            look = self._look(f"/{tree}/{path}" if tree else f"/{path}")
            info = tarfile.TarInfo(path)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 0
            if look is not None and stat.S_ISDIR(look.st_mode):
                info.mode, info.uid, info.gid = stat.S_IMODE(look.st_mode), look.st_uid, look.st_gid
                info.mtime = int(look.st_mtime)
            out.addfile(info)

    def _add(self, out: tarfile.TarFile, entry: Entry, name: str, short: str, tree: str,
             at: tuple[int, int] | None) -> None:
        info = tarfile.TarInfo(short or "./")
        info.type, info.mode, info.uid, info.gid = _KINDS[entry.kind], entry.mode, entry.uid, entry.gid
        info.devmajor, info.devminor = entry.major, entry.minor
        seconds, rest = divmod(entry.mtime, 1_000_000_000)
        info.mtime = seconds
        headers = {f"SCHILY.xattr.{os.fsdecode(key)}": value.decode("utf-8", "surrogateescape")
                   for key, value in entry.xattrs}
        if rest:
            headers["mtime"] = f"{seconds}.{rest:09d}"
        info.pax_headers = headers
        if entry.kind == "2":
            info.linkname = os.fsdecode(entry.link)
        elif entry.kind == "1":
            target = os.path.normpath("/" + os.fsdecode(entry.link)).strip("/")
            there = self._where.get(target)
            if there is None or there[0] == tree:
                info.linkname = target[len(tree):].lstrip("/") if self._tree(target) == tree else target
                info.pax_headers = {}
            else:  # in another file system here: a copy
                info.type, at = tarfile.REGTYPE, there[1:]
        if at is not None:
            start, info.size = at
            self._file.seek(start)
        keep = self._file.tell()
        out.addfile(info, self._file if at is not None else None)
        self._file.seek(keep)


def below(file: BinaryIO, tree: str, out: tarfile.TarFile, reference: str) -> None:
    """The way back: an archive of one tree, its names from then on starting at the root."""
    prefix = tree.strip("/")
    stream = FileStream(file)
    for entry in TarReader(stream, limits=Limits(), reference=reference):
        short = os.path.normpath("/" + os.fsdecode(entry.name)).strip("/")
        name = "/".join(part for part in (prefix, short) if part)
        info = tarfile.TarInfo(name or "./")
        info.type, info.mode, info.uid, info.gid = _KINDS[entry.kind], entry.mode, entry.uid, entry.gid
        info.devmajor, info.devminor = entry.major, entry.minor
        info.mtime = entry.mtime // 1_000_000_000
        info.pax_headers = {f"SCHILY.xattr.{os.fsdecode(key)}": value.decode("utf-8", "surrogateescape")
                            for key, value in entry.xattrs}
        if entry.kind == "2":
            info.linkname = os.fsdecode(entry.link)
        elif entry.kind == "1":
            target = os.path.normpath("/" + os.fsdecode(entry.link)).strip("/")
            info.linkname, info.pax_headers = "/".join(part for part in (prefix, target) if part), {}
        info.size = entry.stored if entry.kind == "0" else 0
        at = stream.at
        out.addfile(info, file if info.size else None)
        file.seek(at)
        stream.skip(entry.stored)
