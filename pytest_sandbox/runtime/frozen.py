"""Writable layers that were frozen: kept in memory by a descriptor of their file system, mounted again as lower ones.

Used by :mod:`.supervisor`, which hands them to the helper, and by ``sandbox``, which makes and releases them. One of
these layers is named ``@KEY/PATH``: the directory ``PATH`` of the file system that is held under ``KEY``.
"""

from __future__ import annotations

import os

from ..errors import SandboxClosedError

_held: dict[str, int] = {}


def hold(fd: int) -> str:
    """Takes over a descriptor of a detached file system; returns the key that it is held under."""
    key = os.urandom(8).hex()
    _held[key] = fd
    return key


def release(key: str) -> None:
    """Lets go of it. Sandboxes that have it mounted keep it for as long as they live."""
    fd = _held.pop(key, -1)
    if fd >= 0:
        os.close(fd)


def descriptor(key: str) -> int:
    """:raises SandboxClosedError: when it was let go of."""
    fd = _held.get(key, -1)
    if fd < 0:
        raise SandboxClosedError("a committed image is closed", remedy="Keep it open for as long as it is used, or "
                                                                       "commit with a name.")
    return fd


def renew(key: str, fd: int) -> None:
    """Takes over another descriptor of the same file system: one that can be attached once more."""
    old = _held.get(key, -1)
    if old < 0:
        os.close(fd)
        return
    _held[key] = fd
    os.close(old)


def key_of(layer: str) -> str | None:
    """The key of a frozen layer; None for a directory of the host."""
    return layer[1:].partition("/")[0] if layer.startswith("@") else None


def path_here(layer: str) -> str:
    """Where this process finds a layer."""
    key = key_of(layer)
    return layer if key is None else f"/proc/self/fd/{descriptor(key)}/{layer.partition('/')[2]}"


def path_in_helper(layer: str) -> str:
    """Where the helper finds it."""
    return f"/frozen/{layer[1:]}" if layer.startswith("@") else f"/host{layer}".rstrip("/")
