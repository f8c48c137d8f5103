"""Ctrl-Z: a test stops when pytest does, and goes on when it does. Used outside: ``attempt`` has it, ``inbox`` asks.

A test's process has a session of its own, so that the terminal stops pytest alone. It would go on without it, and at a
debugger's prompt it would read what is typed for the shell.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import ForkedChild


class Suspension:
    """From now on SIGTSTP makes ``fileno`` readable; then :meth:`stop` is due. Until :meth:`end`.

    Does nothing outside of the main thread, or where somebody else handles the signal.
    """

    def __init__(self) -> None:
        self._reading = self._writing = -1
        if (threading.current_thread() is threading.main_thread()
                and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL):
            self._reading, self._writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            signal.signal(signal.SIGTSTP, self._handle)

    def end(self, inside: bool = False) -> None:
        """The signal does again what it did.

        :param inside: in the child, whom one that came before does not concern.
        """
        if self._reading < 0:
            return
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        try:
            came = not inside and os.read(self._reading, 1)
        except BlockingIOError:
            came = False
        os.close(self._reading)
        os.close(self._writing)
        self._reading = self._writing = -1
        if came:
            os.kill(os.getpid(), signal.SIGTSTP)

    def fileno(self) -> int:
        """A descriptor that can be read when the signal has come; -1 if it is not ours to handle."""
        return self._reading

    def _handle(self, number: int, frame: FrameType | None) -> None:
        with suppress(OSError):  # in a fork that has closed it, or when it has ended
            os.write(self._writing, b"z")

    def stop(self, child: ForkedChild) -> None:
        """Stops the test, and pytest; returns when somebody has continued pytest, and the test with it."""
        os.read(self._reading, 100)
        child.send_signal(signal.SIGSTOP)
        modes = _modes()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._handle)
        if modes is not None and os.tcgetpgrp(0) == os.getpgrp():  # the prompt's, which the shell has changed
            termios.tcsetattr(0, termios.TCSANOW, modes)
        child.send_signal(signal.SIGCONT)


def _modes() -> list[Any] | None:
    """How the terminal is set, if pytest has one."""
    try:
        return termios.tcgetattr(0) if sys.__stdin__ is not None and os.isatty(0) else None
    except (OSError, termios.error):
        return None
