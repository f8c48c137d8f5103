"""``containerfile:`` references: built when they are first used, then taken from the layer store."""

from __future__ import annotations

import os

from ..errors import ImageNotFound
from ..image.locks import lock
from ..image.store import ImageStore, StoredImage
from .builder import Builder, Options
from .context import Context
from .text import Containerfile, parse

PREFIX = "containerfile:"
NAMES = ("Containerfile", "Dockerfile")


def locate(path: str) -> tuple[str, str]:
    """The file and the context that ``DIR_OR_FILE`` means.

    :raises ImageNotFound: when there is none.
    """
    if os.path.isdir(path):
        for name in NAMES:
            if os.path.isfile(f"{path}/{name}"):
                return f"{path}/{name}", path
        raise ImageNotFound(f"{path!r} cannot be built", reference=path,
                            why=f"there is no {' or '.join(NAMES)} in it", remedy="Name the file itself.")
    if not os.path.isfile(path):
        raise ImageNotFound(f"{path!r} cannot be built", reference=path, why="there is no such file or directory",
                            remedy="Check the path; relative ones start at the current directory.")
    return path, os.path.dirname(path) or "."


def read(path: str) -> Containerfile:
    """:raises ImageBuildError: when it cannot be read as one."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return parse(file.read(), path)


def build(store: ImageStore, path: str, context: str, options: Options) -> tuple[StoredImage, Builder]:
    """Builds a file. Two builds of one store take turns, so that the second finds what the first has made.

    :raises ImageBuildError: naming file and line.
    """
    parsed = read(path)
    held = lock(f"{store.layout.root}/builds/.lock", exclusive=True, create=True)
    assert held is not None
    try:
        builder = Builder(store, parsed, Context(context, _own_ignore(path)), options)
        return builder.build(), builder
    finally:
        held.release()


def _own_ignore(path: str) -> str | None:
    """A file's own rules, ``NAME.dockerignore``, come before those of its context."""
    try:
        with open(f"{path}.dockerignore", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except FileNotFoundError:
        return None
