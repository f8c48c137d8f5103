"""A build's context: the files that ``COPY`` may take, without what ``.dockerignore`` names. No link leads out."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ImageBuildError
from .patterns import Pattern, compiled


class Missing(FileNotFoundError):
    """What a ``COPY`` names is not there; ``remedy`` says what to do."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a source: ``name`` is where it goes, relative to the destination ("" for the destination itself).

    ``path`` is where it can be read; ``text`` is a link's target, ``data`` the content of a heredoc.
    """

    name: str
    path: str
    status: os.stat_result | None
    text: str = ""
    data: bytes | None = None


class Context:
    """A directory. Links in it are never followed: not on the way to a source, and not below one."""

    def __init__(self, root: str, ignore: str | None = None) -> None:
        self.root = os.path.realpath(root)
        self._rules = list(_rules(ignore if ignore is not None else _read_ignore(self.root)))

    def ignored(self, name: str) -> bool:
        """Whether ``.dockerignore`` leaves a name out; the last rule that fits decides."""
        out = False
        for pattern, keeps in self._rules:
            parts = name.split("/")
            if any(pattern.fullmatch("/".join(parts[:count])) for count in range(1, len(parts) + 1)):
                out = not keeps
        return out

    def find(self, pattern: str) -> list[tuple[str, str]]:
        """What a source of ``COPY`` names: names relative to the context, and where they lie.

        :raises Missing: when it is nothing, or lies outside.
        """
        clean = os.path.normpath("/" + pattern).lstrip("/")  # "../x" is "x": the context is the root
        if not clean:
            return [("", self.root)]
        if not re.search(r"[*?\[]", clean):
            return [(clean, self._inside(clean))] if not self._hidden(clean) else self._missing(pattern)
        try:
            match = compiled(clean)
        except ValueError as error:
            raise FileNotFoundError(str(error)) from None
        found = [name for name in self._names("", clean.count("/")) if match.fullmatch(name) and not self._hidden(name)]
        return [(name, self._inside(name)) for name in sorted(found)] or self._missing(pattern)

    def _hidden(self, name: str) -> bool:
        """A directory that is ignored but has something in it that is not still counts."""
        if not self.ignored(name):
            return False
        keeps = any(keep for _, keep in self._rules)
        return not (keeps and os.path.isdir(f"{self.root}/{name}"))

    def _missing(self, pattern: str) -> list[tuple[str, str]]:
        remedy = f"Files are taken from {self.root} alone: check the name, or build with another directory."
        clean = os.path.normpath("/" + pattern).lstrip("/")
        if os.path.lexists(f"{self.root}/{clean}") and self.ignored(clean):
            remedy = "It is there, but .dockerignore leaves it out: change that, or add a line with ! and the name."
        raise Missing(f"the context has no {pattern!r}", remedy)

    def _inside(self, name: str) -> str:
        """Where a name lies, no link on the way followed."""
        path = self.root
        parts = name.split("/")
        for number, part in enumerate(parts):
            path = f"{path}/{part}"
            try:
                status = os.lstat(path)
            except OSError:
                self._missing(name)
            if number + 1 < len(parts) and not stat.S_ISDIR(status.st_mode):
                above = "/".join(parts[:number + 1])
                raise Missing(f"{above!r} is not a directory, and links are not followed",
                              "Name the file where it really is, below the context.")
        return path

    def _names(self, below: str, depth: int) -> Iterator[str]:
        try:
            entries = sorted(os.scandir(f"{self.root}/{below}" if below else self.root), key=lambda one: one.name)
        except OSError:
            return
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            yield name
            if depth and entry.is_dir(follow_symlinks=False):
                yield from self._names(name, depth - 1)

    def tree(self, name: str, path: str) -> Iterator[Source]:
        """A source and all below it, parents first, names relative to it."""
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            yield _source("", path, status)
            return
        yield Source("", path, status)
        yield from self._below(name, path, "")

    def _below(self, name: str, path: str, relative: str) -> Iterator[Source]:
        for one in sorted(os.listdir(path)):
            there, full = f"{path}/{one}", f"{name}/{one}" if name else one
            inner = f"{relative}/{one}" if relative else one
            status = os.lstat(there)
            if stat.S_ISDIR(status.st_mode):
                if not self._hidden(full):
                    children = list(self._below(full, there, inner))
                    if children or not self.ignored(full):
                        yield Source(inner, there, status)
                    yield from children
            elif not self.ignored(full):
                yield _source(inner, there, status)


def _source(name: str, path: str, status: os.stat_result) -> Source:
    return Source(name, path, status, os.readlink(path) if stat.S_ISLNK(status.st_mode) else "")


def _read_ignore(root: str) -> str:
    for name in (".containerignore", ".dockerignore"):
        try:
            with open(f"{root}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except FileNotFoundError:
            continue
    return ""


def _rules(text: str) -> Iterator[tuple[Pattern, bool]]:
    for number, line in enumerate(text.splitlines(), 1):
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        keeps = rule.startswith("!")
        clean = os.path.normpath("/" + rule.lstrip("!").strip()).lstrip("/")
        if clean:
            try:
                yield compiled(clean), keeps
            except ValueError as error:
                raise ImageBuildError("the context's .dockerignore cannot be used", reference=".dockerignore",
                                      file=".dockerignore", line=number, why=str(error)) from None


def checksum(sources: list[Source]) -> str:
    """What of sources counts for the cache: names, kinds, modes, owners' bits and contents; never their times."""
    total = hashlib.sha256()
    for one in sources:
        mode = one.status.st_mode if one.status is not None else stat.S_IFREG | 0o644
        total.update(f"{one.name}\0{mode:o}\0{one.text}\0".encode("utf-8", "surrogateescape"))
        if one.data is not None:
            total.update(hashlib.sha256(one.data).digest())
        elif stat.S_ISREG(mode):
            digest = hashlib.sha256()
            with open(one.path, "rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
            total.update(digest.digest())
    return total.hexdigest()
