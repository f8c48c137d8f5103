"""The timeout of a sandboxed test. Imported for tests that have one; ``inbox`` asks it how long to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_sandbox.deadline import Watch, end, exceeded
from pytest_sandbox.stacks import in_words

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.stacks import Frame

#: What a test's stack begins with, and what says nothing about the test.
_OURS = ("/_pytest/", "/pluggy/", "/pytest_sandbox/", "/xdist/", "/execnet/", "/pytest/")


class Clock:
    """The timeout of one attempt of a test: from the moment that it is in its sandbox to the end of its teardown."""

    __slots__ = ("_item", "_sandbox", "_watch")

    def __init__(self, item: pytest.Item, sandbox: Sandbox, seconds: float) -> None:
        self._item = item
        self._sandbox = sandbox
        self._watch = Watch(seconds)

    def patience(self, debugging: bool) -> float | None:
        """How long to wait for the test, in milliseconds, before :meth:`tick`; None: as long as it takes.

        :param debugging: somebody sits at a debugger's prompt: the clock stands still.
        """
        self._watch.debugging(debugging)
        seconds = self._watch.next()
        return None if seconds is None else seconds * 1000 + 1

    def tick(self, phase: str) -> None:
        """To be called when the test has been silent for that long.

        :raises TimeLimitExceeded: when the time is up; then nothing but init runs inside any more.
        """
        running = self._sandbox._ready()
        found = self._watch.tick(running.root)
        if found is None:
            return
        shown = in_words(found[1], of_the_test)
        error = exceeded(self._item.nodeid, self._watch.seconds, found, phase if phase != "over" else "teardown", shown)
        end(running)
        raise error


def of_the_test(frames: tuple[Frame, ...]) -> tuple[Frame, ...]:
    """The frames from the test's own first one; all but the last few if there is none."""
    for number in range(len(frames) - 1, -1, -1):
        if any(part in frames[number].filename for part in _OURS):
            return frames[number + 1:] or frames[-5:]
    return frames
