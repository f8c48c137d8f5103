"""SIGINT waits while a message is sent or taken in, and while a test's process comes to be. Used by ``guest`` inside,
by ``inbox`` and ``attempt`` outside.

To block the signal is not enough: the kernel then gives it to another thread of the process (pytest-rerunfailures has
one), and Python runs the handler in the main thread all the same. So the handler itself waits.
"""

from __future__ import annotations

from collections.abc import Callable
from signal import SIG_IGN, SIGINT, getsignal, signal  # a test may replace the module's
from threading import get_ident, main_thread
from types import FrameType, TracebackType
from typing import Any


class Gate:
    """In place of the handler of SIGINT while it is entered. Does nothing outside of the main thread, or for a handler
    that is not Python's to call.

    :param closed: begin with the gate closed.
    """

    __slots__ = ("_came", "_closed", "_handler")

    def __init__(self, closed: bool = False) -> None:
        self._closed = closed
        self._came: list[FrameType | None] = []
        self._handler: Callable[[int, FrameType | None], Any] | None = None

    def __enter__(self) -> Gate:
        if get_ident() == main_thread().ident:
            found = getsignal(SIGINT)
            if callable(found):
                self._handler = found
                signal(SIGINT, self._handle)
        return self

    def enter(self) -> Gate:
        """As the beginning of a ``with``, for one that :meth:`leave` ends in another function."""
        return self.__enter__()

    def leave(self) -> None:
        """As its end."""
        self.__exit__(None, None, None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if self._handler is not None and getsignal(SIGINT) == self._handle:
            signal(SIGINT, self._handler)
        self.open()

    def close(self) -> None:
        """From now on an interrupt waits."""
        self._closed = True

    def open(self) -> None:
        """Lets the one through that waited, and every later one."""
        self._closed = False
        if self._came and self._handler is not None:
            frame = self._came.pop()
            self._came.clear()
            self._handler(SIGINT, frame)

    def forget(self) -> None:
        """The one that waited was not for us."""
        self._came.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._closed:
            self._came.append(frame)
        elif self._handler is not None:
            self._handler(number, frame)


def ignore() -> None:
    """Nothing in this process handles an interrupt any more: it is about to end."""
    if get_ident() == main_thread().ident:
        signal(SIGINT, SIG_IGN)
