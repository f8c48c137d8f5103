"""Tells plugins and conftest files outside of each report that was made inside. Used by ``delivering``.

``pytest_runtest_makereport`` is called where the test runs: there the exception and the fixtures are. What an
implementation keeps for later tests would be gone with the sandbox: which step of an incremental class failed, which
test another depends on, the file that failures are listed in. So it is called out here once more, with a copy of the
report. What it changes in that copy, prints, or raises was seen inside, and is forgotten here.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import copy
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pluggy
import pytest

from . import compat
from .spares import KNOWN

if TYPE_CHECKING:
    from pluggy import HookImpl


class FailedInside(Exception):
    """In place of an exception that was raised inside, and is not one of Python's own."""


def retell(item: pytest.Item, report: pytest.TestReport) -> None:
    """Calls the implementations of ``item``'s files and of plugins that we do not know, each by itself."""
    listeners = [one for one in item.ihook.pytest_runtest_makereport.get_hookimpls()
                 if not f"{one.function.__module__}.".startswith(KNOWN)]
    if not listeners:
        return
    told = copy.copy(report)
    told.sections, told.user_properties = list(report.sections), list(report.user_properties)
    told.keywords = dict(report.keywords)
    arguments = {"item": item, "call": _call(told)}
    muted = compat.Muted(item.config)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            begun = [turn for one in reversed(listeners) if (turn := _begin(one, arguments, told)) is not None]
            for turn in reversed(begun):
                with _forgiven():
                    next(turn, None)
    finally:
        muted.end()


@contextlib.contextmanager
def _forgiven() -> Iterator[None]:
    try:
        yield
    except (*compat.TEST_OUTCOME, pytest.exit.Exception):
        pass  # it needs what is inside only, a fixture for one: there it was called as well


def _begin(listener: HookImpl, arguments: dict[str, Any], report: pytest.TestReport) -> Iterator[None] | None:
    """The first half of a wrapper, and what will do the second; all of another implementation."""
    turn = _turn(listener, [arguments[name] for name in listener.argnames], report)
    with _forgiven():
        next(turn)
        return turn
    return None


def _turn(listener: HookImpl, arguments: list[Any], report: pytest.TestReport) -> Iterator[None]:
    made: Any = listener.function(*arguments)
    if not (listener.wrapper or listener.hookwrapper):
        return
    next(made)
    yield
    with contextlib.suppress(StopIteration):
        made.send(report if listener.wrapper else pluggy.Result.from_call(lambda: report))


def _call(report: pytest.TestReport) -> pytest.CallInfo[None]:
    """What ``report`` was made from, as far as can be told from it."""
    error = _error(report)

    def end() -> None:
        if error is not None:
            raise error

    call = pytest.CallInfo.from_call(end, when=report.when or "call")
    call.start, call.stop, call.duration = report.start, report.stop, report.duration
    return call


def _error(report: pytest.TestReport) -> BaseException | None:
    text = report.longreprtext
    if report.outcome == "passed":
        return None
    if report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else text
        return pytest.skip.Exception(str(reason).removeprefix("Skipped: "))
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(crash.message) if crash is not None else text
    name, _, rest = text.partition(": ")
    kind = AssertionError if name.startswith("assert ") else getattr(builtins, name.strip(), None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(Exception):
            if kind is KeyError:
                rest = ast.literal_eval(rest)  # its text is the key's own representation
            return kind(text if name.startswith("assert ") else rest)
    return FailedInside(text)
