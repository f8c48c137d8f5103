"""``image=[...]``: one test for each image. Imported when a marker has a list; called while tests are collected."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from .options import IMAGE_PARAMETER


def parametrize(metafunc: pytest.Metafunc, images: Sequence[Any]) -> None:
    """Makes a test of each image. A list that is of no use is left for whoever reads the marker to refuse."""
    if not images or any(isinstance(one, (list, tuple)) or one is None for one in images):
        return
    if IMAGE_PARAMETER not in metafunc.fixturenames:
        metafunc.fixturenames.append(IMAGE_PARAMETER)
    metafunc.parametrize(IMAGE_PARAMETER, images, ids=short_ids(images))


def short_ids(images: Sequence[Any]) -> list[str]:
    """What each image is called in the ids of tests: the last part of its name; by its number where that is not unique.

    They do not depend on where a directory lies, so they are the same on each machine.
    """
    names = [_short(one) if isinstance(one, str) else "image" for one in images]
    return [name if names.count(name) == 1 else f"{name}{number}" for number, name in enumerate(names)]


def _short(reference: str) -> str:
    kind, colon, rest = reference.strip().partition(":")
    if colon and kind in ("rootfs", "containerfile", "oci", "oci-archive", "docker-archive", "host"):
        reference = rest
    name, _, digest = reference.rstrip("/").rpartition("/")[2].partition("@")
    if digest:
        name = f"{name}@{digest.rpartition(':')[2][:12]}"
    return re.sub(r"[^A-Za-z0-9._:@+-]+", "_", name).replace("::", ":") or "image"
