"""Fixtures of higher scope that a test asks for by name (``request.getfixturevalue``). Used by ``attempt``, ``guest``.

Such a fixture outlives the test, so that it has to be set up outside, and the test starts over (see
``Guest.wants_outside``). What the fixture printed, logged and raised belongs where the test asks for it: outside it is
put aside (:func:`set_up`), and inside it comes back when the test asks again (:class:`Replay`). Until then, where the
terminal shows what is printed as it happens, the second attempt says nothing: that was seen already.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

from . import compat

if TYPE_CHECKING:
    from .compat import Printed


@dataclass(frozen=True)
class Wanted:
    """What a child asks for: the ``place``-th of the fixtures called ``name``, which override each other.

    ``level`` is that of the root logger, in there; ``held`` says that ``capsys`` holds what is printed.
    """

    name: str
    place: int
    level: int
    held: bool


@dataclass(frozen=True)
class Made:
    """A fixture that was set up outside. ``error`` and ``trace`` are how that failed, from pytest's call on.

    ``printed`` is what went through ``sys.stdout`` and ``sys.stderr``, each with how much of ``written``, which did
    not, was there before.
    """

    fixturedef: Any
    printed: dict[str, list[tuple[int, str]]]
    written: dict[str, bytes]
    records: list[logging.LogRecord]
    error: BaseException | None
    trace: TracebackType | None


class _Aside(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(0)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def set_up(item: pytest.Item, wanted: Wanted, printed: Printed, stack: dict[Any, Any]) -> Made | None:
    """Sets the fixture up; None if there is none of that description, which a child of ours does not ask for.

    :param printed: how things stood at the fork; what the child printed since then is forgotten.
    """
    fixturedef = compat.fixture_at(item, wanted.name, wanted.place)
    if fixturedef is None:
        return None
    printed.restore()
    aside, root = _Aside(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = [aside]
    root.setLevel(wanted.level)
    stack[item] = ([], None)  # it asks, so it is being set up
    error = None
    try:
        with compat.recording(item.config, not wanted.held) as text:
            compat.set_up_exactly(item, wanted.name, wanted.place)
    except compat.TEST_OUTCOME as failed:
        error = failed  # pytest keeps it, too, for the next one that asks
    finally:
        del stack[item]
        root.handlers[:] = [*handlers, *(one for one in root.handlers if one is not aside)]
        if root.level == wanted.level:
            root.setLevel(level)
    written = printed.since()
    printed.restore()
    return Made(fixturedef, text, written, aside.records, error, _from_execute(error, fixturedef))


def _from_execute(error: BaseException | None, fixturedef: Any) -> TracebackType | None:
    """The part of the traceback that there would be if the test had set the fixture up itself."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "execute" and frame.f_locals.get("self") is fixturedef:
            return trace
        trace = trace.tb_next
    return None


class Replay:
    """In the child of another attempt, until the test has asked again for the last of what was ``made``.

    :param phase: in which it asked.
    """

    def __init__(self, config: pytest.Config, made: Sequence[Made], phase: str, live: bool) -> None:
        self.phase = phase
        self._muted = compat.Muted(config) if live else None
        for number, one in enumerate(made, 1):
            self._arm(one, number == len(made))

    def _arm(self, made: Made, last: bool) -> None:
        fixturedef = made.fixturedef
        original: Callable[[Any], Any] = fixturedef.execute

        def execute(request: Any) -> Any:
            __tracebackhide__ = True
            del fixturedef.execute
            for descriptor, name in ((1, "stdout"), (2, "stderr")):
                written, done = made.written.get(name, b""), 0
                for place, text in made.printed[name]:
                    if place > done:
                        os.write(descriptor, written[done:place])
                        done = place
                    getattr(sys, name).write(text)
                if written[done:]:
                    os.write(descriptor, written[done:])
            if last:
                self.end()
            for record in made.records:
                logging.getLogger().callHandlers(record)
            if made.error is not None:
                raise made.error.with_traceback(made.trace)
            return original(request)

        fixturedef.execute = execute

    def end(self) -> None:
        """The terminal shows again what is printed."""
        muted, self._muted = self._muted, None
        if muted is not None:
            muted.end()
