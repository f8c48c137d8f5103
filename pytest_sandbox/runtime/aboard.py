"""A guest's own side: the loop of a process of an image's Python that forks children into sandboxes.

Runs in the image (see :mod:`.boarding`), with nothing but the image's Python and our own pure modules. What it may and
may not do is settled before its program starts. :mod:`.guests` is the caller's side.
"""

from __future__ import annotations

import os
import select
import socket
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn

from . import entering, protocol
from . import syscalls as sc
from .children import ForkedChild
from .prefault import Pages
from .zygote import Inside, _Zygote


class Sandbox:
    """A sandbox as one of our children sees it that goes there: made for one fork."""

    def __init__(self, plan: dict[str, Any], spaces: list[tuple[int, int]], joins: list[int]) -> None:
        self.plan = SimpleNamespace(body=plan, kept=plan["kept"])
        self.group = None
        self.spaces, self.joins = spaces, joins
        self.children: list[ForkedChild] = []
        self.spent = [0.0, 0.0, 0, 0]

    def enter(self, flags: int) -> None:
        """Joins those of its namespaces that ``flags`` name."""
        for flag, fd in self.spaces:
            if flags & flag:
                sc.setns(fd, flag)

    def namespaces(self) -> int:
        """Those that a fork joins, beside the user and pid namespaces."""
        every = 0
        for flag, _ in self.spaces:
            every |= flag
        return every & ~(sc.CLONE_NEWUSER | sc.CLONE_NEWPID)

    def check_there(self, error: OSError | None) -> None:
        """Whoever asked will find out."""

    def forget(self) -> None:
        """Closes our descriptors of it."""
        protocol.close([*self.joins, *(fd for _, fd in self.spaces)])
        self.joins, self.spaces = [], []


class Aboard(_Zygote):
    """Serves the caller until that closes its end.

    :param answer: called for what is not ours: with the message, returns the answer. What it raises ends the process.
    :param prepare: called before each fork with its order; returns what is to be said of it.
    """

    def __init__(self, sock: socket.socket, answer: Callable[[protocol.Message], protocol.Message],
                 prepare: Callable[[protocol.Message], protocol.Message]) -> None:
        self.sock = sock
        self.lifeline = os.open("/", os.O_PATH | os.O_CLOEXEC)  # our helper has it: that we end with the caller is its
        self.plans: dict[str, Any] = {}
        self.inside: Inside | None = None
        self.children = {}
        self.handlers: dict[int, Any] = {}
        self.folders: entering.Folders = []
        self.examined = {}
        self.leaving = False
        self.poll = select.poll()
        self.poll.register(sock, select.POLLIN)
        self._spaces: list[tuple[int, int]] = []
        self._answer, self._prepare = answer, prepare

    def serve_aboard(self, inside: Inside) -> NoReturn:
        """The loop; ``inside`` runs in each child."""
        self.inside = inside
        self.learn(Pages())
        self.loop()

    def obey(self) -> bool:
        """Deals with one message; False at the end."""
        got = self.hear()
        if got is None:
            return False
        message, fds = got
        if "plan" in message:
            self.plans[message["plan"]] = message
        elif "enter" in message:
            self._spaces = list(zip(message["enter"], fds, strict=True))
        elif "fork" in message:
            status, reports, orders, *joins = fds
            into = Sandbox(self.plans[message["fork"]], self._spaces, joins)
            self._spaces = []
            said = self._prepare(message)
            self.folders = entering.open_folders()
            self.fork(message, into, status, [reports, orders], said)
        else:
            protocol.close(fds)
            protocol.send(self.sock, self._answer(message))
        return True

    def enter(self, into: Any, order: protocol.Message) -> ForkedChild | None:
        """Forks into a sandbox. Returns None in the child."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses but one
            pid = entering.fork_once(into, tuple(order["ids"]), self.folders)
        if pid:
            return ForkedChild(pid, into)
        into.forget()
        return None
