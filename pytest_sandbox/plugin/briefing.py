"""What a guest is told of the caller's session, so that it collects the same. ``hosting`` sends it to ``visiting``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import pytest

from . import compat, lacking, measuring, wire

#: What of the caller's environment a guest gets: what tells test runs apart.
_PASSED = frozenset({"PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID", "CI",
                     "BUILD_NUMBER", "PYTEST_VERSION", "PYTHONHASHSEED", "TERM", "COLUMNS", "LINES"})


def visible(config: pytest.Config, items: list[pytest.Item]) -> tuple[str, ...]:
    """The directories that the tests' own files are in: the project's, and those of tests outside of it."""
    places = {str(config.rootpath)}
    places |= {str(item.path.parent) for item in items if getattr(item, "path", None) is not None}
    if config.inipath is not None:
        places.add(str(config.inipath.parent))
    found: list[str] = []
    for one in sorted(os.path.realpath(place) for place in places):
        if not any(one == known or one.startswith(f"{known}/") for known in found):
            found.append(one)
    return tuple(found)


def directory(config: pytest.Config, seen: Sequence[str]) -> str:
    """Where a guest and its tests start: where the caller is, if that is visible in the image."""
    where = os.path.realpath(os.getcwd())
    if any(where == one or where.startswith(f"{one}/") for one in seen):
        return where
    return str(config.rootpath)


def brief(config: pytest.Config, items: Sequence[pytest.Item], seen: Sequence[str], *, image: str, live: bool,
          keeps: bool, persists: bool) -> dict[str, Any]:
    """The session as data: the tests that are wanted, the options, where things are.

    :param seen: the directories of the host that are visible in the image.
    :param image: what to call it in errors.
    :param live: whether a test waits for an answer to each of its reports.
    :param keeps: whether a test that has failed waits until its sandbox was looked at.
    :param persists: whether what is written below the temporary directory reaches the host.
    """
    options = {}
    for name, value in vars(config.option).items():
        if name == "file_or_dir" or name.startswith("_"):
            continue  # the parser's own
        try:
            options[name] = wire.pack(value, lambda one: None, opaque=False)
        except wire.NotData:
            continue
    writer = config.get_terminal_writer()
    prefixes = tuple({f"{os.path.realpath(one)}/" for one in (sys.prefix, sys.base_prefix, sys.exec_prefix)})
    path = [one for one in map(os.path.realpath, filter(None, sys.path))
            if any(f"{one}/".startswith(f"{place}/") for place in seen) and not f"{one}/".startswith(prefixes)]
    base = compat.temporary_base(config)
    environ = {name: value for name, value in os.environ.items() if name in _PASSED}
    return {
        "args": sorted({str(item.path) for item in items}),
        "wanted": [item.nodeid for item in items],
        "options": options, "plugins": [str(one) for one in config.option.plugins or ()],
        "ini": str(config.inipath) if config.inipath is not None else None, "rootdir": str(config.rootpath),
        "cwd": directory(config, seen), "path": path, "environ": environ, "live": live, "keeps": keeps,
        "basetemp": os.path.realpath(base) if base is not None and persists else None,
        "markup": bool(writer.hasmarkup), "width": writer.fullwidth, "coverage": measuring.order(),
        "image": image, "fixtures": lacking.owners(config),
    }
