"""A child of a guest's, in its sandbox, as the caller sees it. Made by :mod:`.guests`."""

from __future__ import annotations

import math
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from ..errors import SandboxClosedError
from . import protocol
from . import syscalls as sc
from .protocol import wait_readable
from .running import Running
from .zygote import END, RemoteChild

if TYPE_CHECKING:
    from .guests import Guest

#: The namespaces that a guest's child enters, in the order in which it may: name in /proc, and flag.
ENTERED = (("user", sc.CLONE_NEWUSER), ("pid", sc.CLONE_NEWPID), ("net", sc.CLONE_NEWNET), ("ipc", sc.CLONE_NEWIPC),
           ("uts", sc.CLONE_NEWUTS), ("cgroup", sc.CLONE_NEWCGROUP), ("mnt", sc.CLONE_NEWNS))
#: How long a child's end may take to be told once it is known.
_PATIENCE = 10.0


def namespaces_of(running: Running) -> list[tuple[int, int]]:
    """The namespaces of a sandbox, as descriptors: to enter by a pidfd takes what no guest may have."""
    pid = running.init_pid()
    flags = running.namespaces() | sc.CLONE_NEWUSER | sc.CLONE_NEWPID
    made: list[tuple[int, int]] = []
    try:
        for name, flag in ENTERED:
            if flags & flag:
                made.append((flag, os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)))
        if not running.alive:  # then that number may be another's by now
            raise SandboxClosedError("the sandbox has ended")
    except FileNotFoundError:
        for _, fd in made:
            os.close(fd)
        raise SandboxClosedError("the sandbox has ended") from None
    except BaseException:
        for _, fd in made:
            os.close(fd)
        raise
    return made


class GuestChild(RemoteChild):
    """A child of a guest's. Who says so is the guest: what hangs on its word has a bound."""

    def __init__(self, guest: Guest, into: Running, status: int, seconds: float | None) -> None:
        self._guest: Guest | None = guest
        self._of = guest
        self._until = guest.by(seconds)
        self._zygote = None
        self.said: protocol.Message = {}  # about what was set up for it
        self._attach(into, status)

    def is_there(self) -> bool:
        """Waits until it has been forked; False where that failed.

        :raises SandboxGuestError: when the guest has ended, or takes too long.
        """
        guest, self._guest = self._guest, None
        if guest is not None:
            message, fds = guest.receive(self._until, "prepared a test")
            if len(fds) == 1 and isinstance(message.get("pid"), int):
                self.pid, self._pidfd = message["pid"], fds[0]
                self.said = message
            else:
                protocol.close(fds)
        return self._pidfd >= 0

    def _end(self) -> int:
        self.is_there()
        patience = _PATIENCE if self._of.ended is None else 0.1
        told = os.read(self._status, END.size) if wait_readable(self._status, patience) else b""
        os.close(self._status)
        if len(told) != END.size:
            return -signal.SIGKILL
        code, *used = END.unpack(told)
        if all(math.isfinite(one) and 0 <= one < 1e12 for one in used):
            self._spent(*used)
        return int(code) if -64 <= code <= 255 else 255

    def kill(self) -> None:
        """Kills it, and everything else inside but init."""
        group = self._running.group
        with suppress(SandboxClosedError):
            for _ in range(500):
                if self._pidfd < 0:
                    break
                self._running.request({"kill": int(signal.SIGKILL)})
                if group is not None and group.frozen:
                    group.thaw()
                if wait_readable(self._pidfd, 0.01):
                    break
