"""What outlives a sandboxed test though it is written inside: the paths of the ini option ``sandbox_persist``.

Asked once a session, before the first sandbox. They become mounts of the same path inside and outside.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pytest_sandbox.spec import Mount

from . import compat

#: What ``sandbox_persist`` holds unless it is set. The first two stand for directories that pytest chooses.
DEFAULT = ("tmp_path", "cache_dir", ".hypothesis")


def mounts(config: pytest.Config) -> tuple[Mount, ...]:
    """The mounts of what persists, missing directories of pytest's own made.

    :raises pytest.UsageError: for a path that does not exist.
    """
    found = []
    given = [str(one) for one in config.getini("sandbox_persist")]
    for one in given or DEFAULT:
        if one == "none":
            continue
        path = _WORDS[one](config) if one in _WORDS else Path(config.rootpath, one)
        if path is None:
            continue
        if one not in _WORDS and not path.exists():
            raise pytest.UsageError(f"ini option sandbox_persist: {path} does not exist")
        real = os.path.realpath(path)
        found.append(Mount(real, real))
    return tuple(found)


def _hypothesis(config: pytest.Config) -> Path | None:
    """Hypothesis's database of examples, beside its other files; made only when a test uses hypothesis."""
    path = Path(config.rootpath, ".hypothesis")
    if "hypothesis.core" not in sys.modules:
        return path if path.is_dir() else None
    try:
        path.mkdir(exist_ok=True)
    except OSError:
        return None  # a project that may not be written: hypothesis, too, keeps its examples in memory then
    return path


_WORDS = {"tmp_path": compat.temporary_base, "cache_dir": compat.cache_directory, ".hypothesis": _hypothesis}
