"""Layers that ``COPY``, ``ADD`` and ``WORKDIR`` make: archives written from files, without a sandbox.

Where a destination leads is looked up in the merged image, links included. Same input, same bytes.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO, cast

from ..image.commit import Written, write_archive
from ..image.lower import LowerView
from ..image.store import ImageStore
from .context import Missing, Source


class LayerMaker:
    """Writes one layer for an image.

    :param below: the layers of the image, lowest first.
    :param latest: the latest modification time that is kept.
    """

    def __init__(self, store: ImageStore, below: Sequence[str], latest: int | None) -> None:
        self._store, self._below, self._latest = store, below, latest

    def is_directory(self, path: str) -> bool:
        """Whether the image has a directory there; its root is one."""
        parts = _parts(path)
        if not parts:
            return True
        with LowerView(self._below) as view:
            found = view.follow(parts)
        return found is not None and stat.S_ISDIR(found.status.st_mode)

    def exists(self, path: str) -> bool:
        with LowerView(self._below) as view:
            return not _parts(path) or view.follow(_parts(path)) is not None

    def directory(self, path: str, owner: tuple[int, int]) -> Written:
        """A layer with a directory, and with those above it that the image lacks."""
        def fill(tar: tarfile.TarFile) -> int:
            self._parents(tar, f"{path.strip('/')}/x", owner)
            return 1
        return self._write(fill)

    def files(self, copies: Iterable[tuple[str, Iterable[Source]]], owner: tuple[int, int],
              mode: int | None) -> Written:
        """A layer with sources, each put at a destination."""
        def fill(tar: tarfile.TarFile) -> int:
            count = 0
            for destination, sources in copies:
                target = destination.strip("/")
                self._parents(tar, target, (0, 0))
                for one in sources:
                    name = "/".join(part for part in (target, one.name) if part)
                    if name and not (one.name == "" and _is_directory(one) and self.is_directory(name)):
                        self._add(tar, name, one, owner, mode)
                        count += 1
            return count
        return self._write(fill)

    def archive(self, path: str, destination: str) -> Written:
        """A layer with what a tar archive holds, below a destination."""
        def fill(tar: tarfile.TarFile) -> int:
            target, count = destination.strip("/"), 0
            self._parents(tar, f"{target}/x" if target else "x", (0, 0))
            with tarfile.open(path) as source:
                for member in source:
                    clean = os.path.normpath("/" + member.name).lstrip("/")
                    if not clean or os.path.basename(clean).startswith(".wh."):
                        continue
                    member.name = f"{target}/{clean}" if target else clean
                    if member.islnk():
                        linked = os.path.normpath("/" + member.linkname).lstrip("/")
                        member.linkname = f"{target}/{linked}" if target else linked
                    member.pax_headers = {key: value for key, value in member.pax_headers.items()
                                          if key.startswith("SCHILY.xattr.")}
                    member.uname = member.gname = ""
                    member.mtime = self._time(int(member.mtime))
                    tar.addfile(member, source.extractfile(member) if member.isreg() else None)
                    count += 1
            return count
        return self._write(fill)

    def _write(self, fill: Any) -> Written:
        def write(out: BinaryIO) -> int:
            with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8",
                              errors="surrogateescape") as tar:
                return int(fill(tar))
        return write_archive(self._store, write)

    def _time(self, seconds: int) -> int:
        return seconds if self._latest is None else min(seconds, self._latest)

    def _parents(self, tar: tarfile.TarFile, target: str, owner: tuple[int, int]) -> None:
        parts = target.split("/")
        for count in range(1, len(parts)):
            path = "/".join(parts[:count])
            if not self.exists(path) and path not in tar.getnames():
                info = tarfile.TarInfo(path)
                info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o755, *owner
                info.mtime = self._latest or 0
                tar.addfile(info)

    def _add(self, tar: tarfile.TarFile, name: str, one: Source, owner: tuple[int, int], mode: int | None) -> None:
        info = tarfile.TarInfo(name)
        info.uid, info.gid = owner
        if one.data is not None:
            info.mode, info.size, info.mtime = (mode if mode is not None else 0o644), len(one.data), self._latest or 0
            tar.addfile(info, io.BytesIO(one.data))
            return
        look = one.status
        assert look is not None
        info.mode = stat.S_IMODE(look.st_mode) if mode is None else mode
        info.mtime = self._time(int(look.st_mtime))
        if stat.S_ISDIR(look.st_mode):
            info.type = tarfile.DIRTYPE
        elif stat.S_ISLNK(look.st_mode):
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, one.text, 0o777
        elif stat.S_ISREG(look.st_mode):
            info.size = look.st_size
            with open(one.path, "rb") as file:
                tar.addfile(info, file)
            return
        elif stat.S_ISFIFO(look.st_mode):
            info.type = tarfile.FIFOTYPE
        else:
            return  # devices and sockets are no files to be copied
        tar.addfile(info)


def _parts(path: str) -> list[bytes]:
    return [os.fsencode(part) for part in path.split("/") if part]


def _is_directory(one: Source) -> bool:
    return one.status is not None and stat.S_ISDIR(one.status.st_mode)


class StageFiles:
    """Another stage's or image's merged files, as a source of ``COPY --from``.

    :param owner: whether files keep the owners that they have (else they are root's).
    """

    def __init__(self, layers: Sequence[str]) -> None:
        self._view = LowerView(layers)

    def __enter__(self) -> StageFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._view.close()

    def tree(self, path: str) -> list[Source]:
        """A file or a directory and all below it.

        :raises Missing: when there is none.
        """
        parts = _parts(os.path.normpath("/" + path))
        if not parts:
            return self._below([], "")
        found = self._view.follow(parts)
        if found is None:
            raise Missing(f"there is no {path!r} in it", "Check the path in the stage or image that --from names.")
        real = found.path.split(b"/")
        if stat.S_ISDIR(found.status.st_mode):
            return [self._source("", found), *self._below(real, "")]
        return [self._source("", found)]

    def _below(self, parts: list[bytes], relative: str) -> list[Source]:
        made = []
        for name in sorted(self._view.names(parts)):
            found = self._view.lookup([*parts, name])
            if found is None:
                continue
            inner = f"{relative}/{os.fsdecode(name)}" if relative else os.fsdecode(name)
            made.append(self._source(inner, found))
            if stat.S_ISDIR(found.status.st_mode):
                made += self._below([*parts, name], inner)
        return made

    def _source(self, name: str, found: Any) -> Source:
        path = f"/proc/self/fd/{found.layer_fd}/{os.fsdecode(found.path)}"
        return Source(name, path, cast(os.stat_result, found.status), os.fsdecode(found.link))
