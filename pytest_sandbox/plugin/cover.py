"""Coverage of what runs inside, added to that of the pytest process. Acts only while coverage.py measures in here.

The child keeps what it measures in memory, instead of in a database file of its own, and sends it as data. With it
goes what subprocesses left in files beside the data file (``patch = subprocess``), which exist in the sandbox only. The
parent adds it through coverage's own :class:`CoverageData`. Nothing of coverage's serialised form travels: that is SQL,
and whoever runs the SQL of a stranger writes the stranger's files.

The private names of coverage.py that this rests on are listed in ``compat_plugins``.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from typing import Any

from pytest_sandbox.errors import SandboxProtocolError

from . import compat

#: context -> file -> lines, or arcs as pairs of lines.
Measured = dict[str, dict[str, list[Any]]]


class Recorder:
    """In place of ``CoverageData`` in the child: takes what the collector has measured. Made by :func:`begin`."""

    def __init__(self, data: Any, files: set[str]) -> None:
        self._data = data
        self._known = files
        self._current_context: str | None = compat.coverage_context(data)
        self._seen: dict[str, dict[str, set[Any]]] = {}
        self._tracers: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def set_context(self, context: str | None) -> str | None:
        """As ``CoverageData.set_context``."""
        before, self._current_context = self._current_context, context
        return before

    def add_lines(self, lines: dict[str, Iterable[int]]) -> None:
        """As ``CoverageData.add_lines``."""
        seen = self._seen.setdefault(self._current_context or "", {})
        for name, numbers in lines.items():
            seen.setdefault(name, set()).update(numbers)

    def add_arcs(self, arcs: dict[str, Iterable[tuple[int, int]]]) -> None:
        """As ``CoverageData.add_arcs``."""
        self.add_lines(arcs)  # type: ignore[arg-type] # the same, with pairs

    def add_file_tracers(self, tracers: dict[str, str]) -> None:
        """As ``CoverageData.add_file_tracers``."""
        self._tracers.update(tracers)

    def take(self) -> dict[str, Any]:
        """All that was recorded, and what subprocesses wrote, as JSON holds it; it begins anew."""
        for path in sorted(data_files(self._data) - self._known):
            self._known.add(path)
            self._read(path)
        seen: Measured = {context: {name: sorted(found) for name, found in files.items()}
                          for context, files in self._seen.items()}
        taken = {"seen": seen, "tracers": dict(self._tracers), "context": self._current_context}
        self._seen.clear()
        return taken

    def _read(self, path: str) -> None:
        from coverage import CoverageData
        from coverage.exceptions import CoverageException

        data = CoverageData(basename=path)
        try:
            data.read()
            arcs = data.has_arcs()
            for context in data.measured_contexts():
                data.set_query_context(context)
                seen = self._seen.setdefault(context, {})
                for name in data.measured_files():
                    found = data.arcs(name) if arcs else data.lines(name)
                    seen.setdefault(name, set()).update(found or ())
        except CoverageException:
            pass  # of a process that was killed while it wrote; outside, too, nobody could read it
        finally:
            data.close()


def data_files(data: Any) -> set[str]:
    """The data files that processes have written beside the one of ``data``."""
    return set(glob.glob(f"{glob.escape(data.base_filename())}.*"))


def before_fork(collector: Any) -> set[str]:
    """Puts away what was measured so far, so that no child repeats it. Returns the data files that there are."""
    collector.flush_data()
    return data_files(collector.covdata)


def begin(collector: Any, files: set[str]) -> Recorder:
    """In the child: measures into a recorder from now on."""
    recorder = collector.covdata = Recorder(collector.covdata, files)
    return recorder


def take(recorder: Recorder) -> dict[str, Any]:
    """In the child: what was measured since the last time."""
    collector = compat.coverage_collector()
    if collector is not None:
        collector.flush_data()
    return recorder.take()


def add(sent: Any) -> None:
    """In the parent: adds what a child measured.

    :raises SandboxProtocolError: when it is not what :meth:`Recorder.take` made.
    """
    collector = compat.coverage_collector()
    if collector is None:
        return
    data = collector.covdata
    try:
        arcs: Measured = {}
        room = _MOST_LINES
        for context, files in sent["seen"].items():
            measured = {_text(name): [_place(one, collector.branch) for one in found]
                        for name, found in files.items()}
            arcs[_text(context)] = measured
            # coverage.py keeps a bit for each line up to the last one.
            room -= sum(max((one if type(one) is int else max(one) for one in found), default=0)
                        for found in measured.values())
            if room < 0:
                raise ValueError("files of too many lines")
        tracers = {str(name): str(tracer) for name, tracer in sent["tracers"].items()}
        context = sent["context"]
        if context is not None and not isinstance(context, str):
            raise TypeError("a context that is no text")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(error) from None
    collector.flush_data()
    before = compat.coverage_context(data)
    try:
        for name, files in arcs.items():
            data.set_context(name or None)
            if collector.branch:
                data.add_arcs(files)
            else:
                data.add_lines(files)
        known = data.measured_files()
        data.add_file_tracers({name: tracer for name, tracer in tracers.items() if name in known})
        before = context
    except Exception as error:  # noqa: BLE001 - coverage's own, of data that contradicts what it has
        raise _unreadable(error) from None
    finally:
        data.set_context(before)


#: Of all files together, in the greatest numbers of lines: what none has, but a message may say.
_MOST_LINES = 1 << 29


def _unreadable(error: Exception) -> SandboxProtocolError:
    return SandboxProtocolError("the sandboxed test sent coverage data that cannot be read",
                                why=f"{type(error).__name__}: {error}"[:200])


def _text(name: Any) -> str:
    if not isinstance(name, str) or "\0" in name:
        raise ValueError(f"not a name: {name!r:.50}")
    name.encode()
    return name


def _place(one: Any, branch: bool) -> Any:
    numbers = tuple(one) if branch else (one,)
    if len(numbers) != (2 if branch else 1) or not all(
            type(number) is int and abs(number) < 1 << 24 for number in numbers):
        raise ValueError(f"not a place in a file: {one!r:.50}")
    return numbers if branch else one
