"""Coverage of what runs in guests. ``briefing`` and ``hosting`` use it out here, ``visiting`` in the image.

A guest measures as the caller does: with the image's coverage.py, else the caller's without its compiled part. What it
has measured comes back as data (``cover``), by the image's paths; those of packages are mapped to the caller's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pytest_sandbox.errors import SandboxProtocolError

from . import compat, cover

#: Options of coverage.py that a guest has from the caller.
_OPTIONS = ("source", "source_pkgs", "include", "omit", "branch", "concurrency")
#: What coverage.py need not say in a guest: nobody would see it.
_SILENT = ["no-ctracer", "module-not-measured", "module-not-imported", "no-data-collected", "already-imported"]


def order() -> dict[str, Any] | None:
    """How the caller measures, as data; None where it does not."""
    if compat.coverage_collector() is None:
        return None
    from coverage import Coverage

    current = Coverage.current()
    if current is None:
        return None
    found: dict[str, Any] = {}
    for name in _OPTIONS:
        value = current.get_option(f"run:{name}")
        found[name] = list(value) if isinstance(value, (list, tuple)) else value
    return found


class Measuring:
    """In a guest, from before its first import of the project's until it ends."""

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        cover.begin(collector, cover.before_fork(collector))

    def take(self) -> dict[str, Any]:
        """What was measured since the last time, in this process."""
        return cover.take(self._collector.covdata)  # of which there is another one since it forks


def begin(wanted: dict[str, Any] | None, place: str) -> Measuring | str | None:
    """Starts to measure, if the caller does. Returns why it cannot, where that is so.

    :param place: where the caller's own lies.
    """
    if wanted is None:
        return None
    sys.path.append(place)
    try:
        from coverage import Coverage
    except ImportError as error:
        return str(error)
    measuring = Coverage(data_file=None, config_file=False, messages=False, branch=bool(wanted["branch"]))
    for name in _OPTIONS:
        if wanted[name] is not None and name != "branch":
            measuring.set_option(f"run:{name}", wanted[name])
    measuring.set_option("run:disable_warnings", _SILENT)
    measuring.start()
    collector = compat.coverage_collector()
    if collector is None:
        return "it does not measure"
    return Measuring(collector)


def mapper(visible: Sequence[str], told: object) -> Callable[[str], str | None]:
    """The caller's path of a file in an image, None for one that the caller has not.

    :param visible: directories that are the same in both.
    :param told: the guest's ``sys.path``.
    """
    theirs = sorted((one for one in told if isinstance(one, str) and one.startswith("/")), key=len, reverse=True) \
        if isinstance(told, list) else []
    ours = [one for one in map(os.path.realpath, sys.path) if os.path.isdir(one)]

    def here(name: str) -> str | None:
        if any(name.startswith(f"{one}/") for one in visible):
            return name
        for one in theirs:
            if name.startswith(f"{one}/"):
                below = name[len(one) + 1:]
                return next((path for place in ours if os.path.isfile(path := os.path.join(place, below))), None)
        return None

    return here


def add(sent: Any, here: Callable[[str], str | None]) -> None:
    """In the caller: adds what was measured in an image, by the caller's own paths.

    :raises SandboxProtocolError: when it is not what :meth:`Measuring.take` made.
    """
    try:
        seen: cover.Measured = {}
        for context, files in sent["seen"].items():
            mapped = seen.setdefault(context, {})
            for name, found in files.items():
                if (path := here(name)) is not None:
                    mapped.setdefault(path, []).extend(found)
        tracers = {path: tracer for name, tracer in sent["tracers"].items() if (path := here(name)) is not None}
        plain = {"seen": seen, "tracers": tracers, "context": sent["context"]}
    except (AttributeError, KeyError, TypeError) as error:
        raise SandboxProtocolError("the sandboxed test sent coverage data that cannot be read",
                                   why=f"{type(error).__name__}: {error}"[:200]) from None
    cover.add(plain)
