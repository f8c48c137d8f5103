"""What pytest-benchmark measured inside, brought to its table, its files and its comparisons outside.

Called by ``guest`` (:func:`take`), ``reporting`` (:func:`from_data`) and ``item`` (:func:`add`). A profile that
``--benchmark-cprofile`` made stays inside; ``--benchmark-cprofile-dump`` writes it to a file there.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from . import compat, wire


def take(item: pytest.Item, name_of: Callable[[object], str | None]) -> list[dict[str, Any]]:
    """Inside: what ``item`` measured and has not sent yet, as JSON holds it."""
    taken = []
    for one in compat.benchmarks(item.config) or ():
        if one.fullname != item.nodeid or getattr(one.fixture, "has_travelled", False):
            continue
        one.fixture.has_travelled = True
        options = {name: _name(value) if callable(value) else value for name, value in one.options.items()}
        taken.append({
            "name": one.name, "group": one.group, "extra_info": wire.pack(one.extra_info, name_of),
            "has_error": bool(one.has_error), "iterations": one.iterations, "options": wire.pack(options, name_of),
            "data": [float(figure) for figure in one.stats.data]})
    return taken


def _name(function: Any) -> str:
    """As pytest-benchmark writes a function's name into its files."""
    return str(getattr(getattr(function, "func", function), "__name__", function))


def from_data(data: Any, item: pytest.Item, named: Callable[[str], object]) -> list[Any]:
    """Outside: the entries that :func:`take` took, as pytest-benchmark has them.

    :raises TypeError: and its kin, for anything else.
    """
    if not data or compat.benchmarks(item.config) is None:
        return []
    found = []
    callspec: Any = getattr(item, "callspec", None)
    for one in data:
        figures = [float(figure) for figure in one["data"]]
        if not all(0 <= figure < 1e12 for figure in figures):
            raise ValueError("a measured time that is none")
        iterations = int(one["iterations"])
        extra = wire.unpack(one["extra_info"], named)
        options = wire.unpack(one["options"], named)
        if not figures or iterations < 1 or not isinstance(extra, dict) or not isinstance(options, dict):
            continue
        facts = SimpleNamespace(
            name=str(one["name"]), fullname=item.nodeid, group=None if one["group"] is None else str(one["group"]),
            param=callspec.id if callspec is not None else None, extra_info=extra,
            params=callspec.params if callspec is not None else None, cprofile_stats=None,
            has_error=one["has_error"] is True, has_travelled=True)
        found.append(compat.benchmark(facts, iterations, options, figures))
    return found


def add(item: pytest.Item, entries: list[Any]) -> None:
    """Outside: these belong to the run."""
    known = compat.benchmarks(item.config)
    if known is not None:
        known += entries
