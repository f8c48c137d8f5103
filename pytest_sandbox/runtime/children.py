"""A fork of the caller inside a sandbox, seen from outside. Made by :mod:`.running`."""

from __future__ import annotations

import os
import signal
import struct
import threading
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from ..errors import SandboxClosedError
from . import syscalls as sc
from .protocol import wait_readable

if TYPE_CHECKING:
    from .running import Running


class ForkedChild:
    """A fork of the caller inside a sandbox; from :meth:`Running.fork` until it is waited for."""

    def __init__(self, pid: int, running: Running, status: int = -1) -> None:
        self._attach(running, status)
        self.pid = pid
        try:
            self._pidfd = sc.pidfd_open(pid)
        except OSError:
            os.kill(pid, signal.SIGKILL)
            self.wait()
            raise

    def _attach(self, running: Running, status: int) -> None:
        self.pid = 0
        self._running = running
        self._status = status
        self._lock = threading.Lock()
        self._returncode: int | None = None
        self._pidfd = -1
        running.children.append(self)

    def fileno(self) -> int:
        """A descriptor that can be read once the child has ended."""
        return self._pidfd

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._pidfd >= 0 and not wait_readable(self._pidfd, 0)

    def ended(self) -> bool:
        """Whether it has ended; if so it is reaped."""
        if self._returncode is None and self._pidfd >= 0 and wait_readable(self._pidfd, 0):
            self.wait()
        return self._returncode is not None

    def wait(self) -> int:
        """Waits for the end; returns the exit status, or the negative number of the signal."""
        with self._lock:
            if self._returncode is None:
                self._returncode = self._end()
                self.forget()
                with suppress(ValueError):
                    self._running.children.remove(self)
            return self._returncode

    def _end(self) -> int:
        _, status, used = os.wait4(self.pid, 0)
        self._spent(used.ru_utime, used.ru_stime, used.ru_inblock, used.ru_oublock)
        if self._status >= 0:
            inner = os.read(self._status, 4)
            os.close(self._status)
            if len(inner) == 4:
                status = struct.unpack("i", inner)[0]
        return os.waitstatus_to_exitcode(status)

    def _spent(self, *used: float) -> None:
        for number, one in enumerate(used):
            self._running.spent[number] += one

    def forget(self) -> None:
        """Closes our descriptor of it."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def send_signal(self, number: int) -> None:
        """Sends a signal to it, and to everything else inside but init."""
        with suppress(SandboxClosedError):
            while not self._running.ask({"list": True})["processes"]:
                if self._pidfd < 0 or wait_readable(self._pidfd, 0.01):
                    return
                # It is on its way in: nobody there would get it.
            self._running.request({"kill": int(number)})

    def kill(self) -> None:
        """Kills it, and everything else inside but init; it has ended when this returns."""
        group = self._running.group
        with suppress(SandboxClosedError), nullcontext() if group is None else group.unthrottled():
            while self._pidfd >= 0:
                self._running.request({"kill": int(signal.SIGKILL)})
                if wait_readable(self._pidfd, 0.01):  # else it may have been on its way in, and was not seen
                    break
