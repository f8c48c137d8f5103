"""Whom the files of an ordinary user's layers belong to in the image: on disk all of them are that user's.

Each layer has a list, ``owners.json.gz``, of what is not root's, written when it was unpacked. Used by builds, whose
steps get these owners back where the user has subordinate ids, and by :mod:`.diff`: what a sandbox with a single id has
changed keeps its owner.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence

from .layout import Layout
from .lower import LowerView

OWNERS = "owners.json.gz"
#: Of a directory that a layer has only since something lies in it, and of a file that it has for a link's sake.
AS_BELOW = (-1, -1)
_ROOT = (0, 0)


def pack(owned: Sequence[tuple[str, int, int]]) -> bytes:
    """A layer's list as a file."""
    return gzip.compress(json.dumps(owned).encode("utf-8", "surrogateescape"), 1, mtime=0)


def is_listed(layout: Layout, key: str) -> bool:
    """Whether a layer's owners are known: not those of layers that an older version unpacked."""
    return (layout.read_record(f"{layout.layer(key)}/meta.json") or {}).get("owners") == "listed"


def owners_of(layout: Layout, keys: Sequence[str]) -> list[tuple[str, int, int]]:
    """What in a stack of layers is not root's: name, uid and gid, sorted by name.

    :param keys: of the layers, lowest first.
    """
    with Declared([f"{layout.layer(key)}/fs" for key in keys]) as declared:
        found = [(name, declared.of(name)) for name in declared.names()]
    return [(name, *ids) for name, ids in found if ids not in (None, _ROOT)]


class Declared:
    """Whom files of an image belong to, by name. Holds descriptors until :meth:`close`.

    :param folders: the ``fs`` directories of its layers, lowest first.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._lists = [_read(f"{os.path.dirname(one)}/{OWNERS}") for one in reversed(folders)]  # uppermost first
        self._view = LowerView(folders)

    @classmethod
    def of_layers(cls, layers: Sequence[str]) -> Declared | None:
        """For what of some layers, lowest first, is in the store; None where the lowest is not, or has no owners."""
        stored = []
        for one in layers:
            if not (one.endswith("/fs") and _is_listed(f"{os.path.dirname(one)}/meta.json")):
                break
            stored.append(one)
        return cls(stored) if stored else None

    def __enter__(self) -> Declared:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._view.close()

    def names(self) -> list[str]:
        """All that some layer says of somebody but root."""
        return sorted({name for one in self._lists for name, ids in one.items() if ids != AS_BELOW})

    def of(self, name: str) -> tuple[int, int] | None:
        """The owner of what shows at a name; None where nothing is."""
        places = self._view.places(os.fsencode(name).split(b"/"))
        for at in places:
            ids = self._lists[at].get(name, _ROOT)
            if ids != AS_BELOW:
                return ids
        return _ROOT if places else None


def _is_listed(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(json.load(file).get("owners") == "listed")
    except (OSError, ValueError):
        return False


def _read(path: str) -> dict[str, tuple[int, int]]:
    try:
        with gzip.open(path) as file:
            return {name: (uid, gid) for name, uid, gid in json.load(file) if name}
    except FileNotFoundError:
        return {}
