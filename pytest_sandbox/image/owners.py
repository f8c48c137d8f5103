"""Whom the files of an ordinary user's layers belong to in the image: on disk all of them are that user's.

Each layer has a list, ``owners.json.gz``, of what is not root's, written when it was unpacked. Used by builds, whose
steps get these owners back where the user has subordinate ids.
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
    lists = [_read(f"{layout.layer(key)}/{OWNERS}") for key in reversed(keys)]  # uppermost first
    found = []
    with LowerView([f"{layout.layer(key)}/fs" for key in keys]) as view:
        for name in sorted({name for one in lists for name, ids in one.items() if ids != AS_BELOW}):
            for at in view.places(os.fsencode(name).split(b"/")):
                ids = lists[at].get(name, (0, 0))
                if ids != AS_BELOW:
                    if ids != (0, 0):
                        found.append((name, *ids))
                    break
    return found


def _read(path: str) -> dict[str, tuple[int, int]]:
    try:
        with gzip.open(path) as file:
            return {name: (uid, gid) for name, uid, gid in json.load(file) if name}
    except FileNotFoundError:
        return {}
