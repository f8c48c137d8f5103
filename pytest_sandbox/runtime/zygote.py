"""A fork of the caller that stays as it was, and forks the children of later sandboxes while the caller is busy.

To fork is dear for a process with a large heap: the page tables are copied, and from then on the first write to each
page copies the page, on both sides. The zygote takes both off the caller: it is forked once, in a state that several
children share, and forks each of them into its sandbox before it is needed. The child waits there for its order.

What the caller's memory held when the zygote was made is what its children see. Whoever makes one ends it
(:meth:`Zygote.close`) before the difference could be noticed.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import warnings
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from ..errors import SandboxClosedError
from . import entering, protocol
from . import syscalls as sc
from .children import ForkedChild
from .commands import stand_back, step_forward
from .plan import Host, Plan
from .prefault import Meeting, Pages
from .protocol import wait_readable
from .running import Running
from .tracing import now

#: How a child's end is told: its return code, user and system seconds, blocks read and written.
END = struct.Struct("=iddqq")
#: Runs in a child, inside, with the two descriptors that :meth:`Zygote.fork` was given for it. Never returns.
Inside = Callable[[int, int], NoReturn]


class Zygote:
    """The caller's side: from the fork to :meth:`close`. Its process ends with the caller, too.

    :param ready: called once in the zygote; returns what each child does in its sandbox.
    :param plans: of the sandboxes that there will be, by key.
    """

    def __init__(self, ready: Callable[[], Inside], plans: Mapping[str, Plan], host: Host) -> None:
        self.plans = dict(plans)
        self.traced: list[int] = []  # of the last answer: when it was asked for, began and was forked
        self.sock, theirs = protocol.pair()
        lifeline = sc.pidfd_open(os.getpid())
        self.owner = os.getpid()
        with entering.forking, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if not pid:
            self.sock.close()
            _Zygote(theirs, lifeline, self.plans, host).serve(ready)
        theirs.close()
        os.close(lifeline)
        self.pid = pid
        _everyone.add(self)

    def fork(self, into: Running, ids: tuple[int, int], where: str, env: list[tuple[str, str | None]],
             descriptors: tuple[int, int]) -> RemoteChild:
        """Asks for a child in a sandbox that is ready; returns at once.

        :param where: its working directory. ``env``: what changes in its environment.
        :param descriptors: for ``inside``; copied.
        :raises SandboxClosedError: when the zygote has ended.
        """
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            order: protocol.Message = {"fork": into.plan.key, "ids": ids, "where": where, "env": env}
            if into.trace is not None:
                order["trace"] = now()
            protocol.send(self.sock, order,
                          (into.pidfd, writing, *descriptors, *(into.group.join_fds if into.group is not None else ())))
        except OSError as error:
            os.close(reading)
            raise SandboxClosedError("the zygote has ended", why=error.strerror) from error
        finally:
            os.close(writing)
        return RemoteChild(self, into, reading)

    def answer(self) -> tuple[int, int] | None:
        """The process id, and a pidfd, of the child that was asked for and not answered yet; None if there is none."""
        try:
            got = protocol.receive(self.sock)
        except (OSError, protocol.BadMessage):
            return None
        if got is None or len(got[1]) != 1:
            return None
        self.traced = got[0].get("trace", [])
        return got[0]["pid"], got[1][0]

    def close(self) -> None:
        """Ends it. Its children go on, and it stays until the last of them has ended, to tell how.

        A process that nobody has waited for keeps its sandbox from ending. Once its parent is gone that is up to the
        machine's first process, and not every container's does it.
        """
        if self.owner != os.getpid() or self.sock.fileno() < 0:
            return
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)  # to close it is not enough while a fork of ours has a copy
        self.sock.close()
        _leaving.add(self.pid)
        _part(os.WNOHANG)

    def forget(self) -> None:
        """In a fork of the caller: closes our copy, by which what runs inside could give orders out here."""
        self.sock.close()


class RemoteChild(ForkedChild):
    """A child that the zygote was asked for: it may have yet to be forked. The zygote waits for it in our place."""

    def __init__(self, zygote: Zygote, into: Running, status: int) -> None:
        self._zygote: Zygote | None = zygote
        self._attach(into, status)

    def is_there(self) -> bool:
        """Waits until it has been forked; False where that failed."""
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            answer = zygote.answer()
            if answer is not None:
                self.pid, self._pidfd = answer
                if self._running.trace is not None and len(zygote.traced) == 3:
                    asked, began, ended = zygote.traced
                    self._running.trace.add("fork", "wait for the zygote", asked, began)
                    self._running.trace.add("fork", "by the zygote, into the sandbox's namespaces", began, ended)
        return self._pidfd >= 0

    def is_alive(self) -> bool:
        """Waits until it has been forked; False where that failed, or it has ended."""
        return self.is_there() and super().is_alive()

    def fileno(self) -> int:
        self.is_there()
        return super().fileno()

    def ended(self) -> bool:
        if self._returncode is None and wait_readable(self._status, 0):
            self.wait()
        return self._returncode is not None

    def _end(self) -> int:
        self.is_there()
        told = os.read(self._status, END.size)
        os.close(self._status)
        if len(told) != END.size:
            return -signal.SIGKILL  # the zygote is gone
        code: int
        code, *used = END.unpack(told)
        self._spent(*used)
        return code


class _Zygote:
    """The zygote's own side. Outside of every sandbox, so nothing from inside is read here."""

    def __init__(self, sock: socket.socket, lifeline: int, plans: dict[str, Plan], host: Host) -> None:
        self.sock, self.lifeline, self.plans, self.host = sock, lifeline, plans, host
        self.inside: Inside | None = None
        self.children: dict[int, tuple[ForkedChild, int, Running]] = {}  # by pidfd: and where to tell its end
        self.handlers: dict[int, Any] = {}
        self.folders: entering.Folders = []
        self.near = host.privileged  # whether one fork goes into a sandbox
        self.pages: Pages | None = None  # until the first order
        self.leaving = False
        self.examined: dict[int, tuple[Meeting, ForkedChild]] = {}  # children that say when they have done
        self.poll = select.poll()
        for fd in (sock.fileno(), lifeline):
            self.poll.register(fd, select.POLLIN)

    def serve(self, ready: Callable[[], Inside]) -> NoReturn:
        """Until the caller closes its end, or ends."""
        try:
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler) and not isinstance(handler, signal.Handlers):
                    self.handlers[number] = handler
                    signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
            entering.leave_all()
            self.folders = entering.open_folders()
            self.inside = ready()
            stand_back()
            self.loop()
        except BaseException:  # noqa: BLE001 - nothing of the caller's stack may run in this process
            os._exit(1)

    def loop(self) -> NoReturn:
        """Obeys and reaps until there is nobody to obey, and then reaps."""
        while True:
            for fd, _ in self.poll.poll():
                if fd in self.children:
                    self.reap(fd)
                elif fd in self.examined:
                    self.examine(fd)
                elif not self.leaving and (fd == self.lifeline or not self.obey()):
                    self.leave()
            if self.leaving and not self.children:
                os._exit(0)

    def leave(self) -> None:
        """Nobody gives orders any more: lets go of all but the children that have yet to end."""
        self.leaving = True
        for fd in (self.sock.fileno(), self.lifeline):
            self.poll.unregister(fd)
        for meeting, _ in self.examined.values():
            self.poll.unregister(meeting)
            meeting.over()
        self.examined.clear()
        if self.children:
            below = 0
            for fd in sorted([*self.children, *(status for _, status, _ in self.children.values())]):
                os.closerange(below, fd)
                below = fd + 1
            os.closerange(below, os.sysconf("SC_OPEN_MAX"))

    def reap(self, fd: int) -> None:
        self.poll.unregister(fd)
        child, status, into = self.children.pop(fd)
        code = child.wait()
        with suppress(OSError):
            os.write(status, END.pack(code, *into.spent))
        os.close(status)

    def examine(self, fd: int) -> None:
        """A child has done its work, and waits for us to look at it; or it has ended without a word."""
        self.poll.unregister(fd)
        meeting, child = self.examined.pop(fd)
        if meeting.has_come() and self.pages is not None:
            self.pages.look(child.pid)
        meeting.over()

    def obey(self) -> bool:
        got = self.hear()
        if got is None:
            return False
        order, (pidfd, status, reports, orders, *joins) = got
        if self.pages is None:
            self.near = self.near or entering.come_near(pidfd)
            # By two forks they would be copied for the first, and shared by it and the second.
            self.learn(Pages(pins=self.near))
        into = Running.borrowed(pidfd, self.plans[order["fork"]], self.host, joins)
        into.takes_one_fork = self.near
        self.fork(order, into, status, [reports, orders], {})
        return True

    def learn(self, pages: Pages) -> None:
        """From the first children; later ones get copies of these pages."""
        self.pages = pages
        entering.when_joined.append(pages.copy)

    def enter(self, into: Any, order: protocol.Message) -> ForkedChild | None:
        """Forks into a sandbox. Returns None in the child."""
        child: ForkedChild | None = into.fork(tuple(order["ids"]), self.folders)
        return child

    def fork(self, order: protocol.Message, into: Any, status: int, descriptors: list[int],
             said: protocol.Message) -> None:
        """Forks a child into a sandbox and says so, with ``said``."""
        meeting = Meeting() if self.pages is not None and self.pages.learns else None
        began = now() if "trace" in order else 0
        try:
            child = self.enter(into, order)
        except (OSError, SandboxClosedError):
            self.say({"pid": 0})
            os.close(status)
            if meeting is not None:
                meeting.over()
        else:
            if child is None:
                os.close(status)
                if meeting is not None:
                    meeting.inside()
                    entering.when_done.append(meeting.come)
                self.go_inside(order, descriptors)
            if meeting is not None:
                meeting.forked()
                self.examined[meeting.fileno()] = meeting, child
                self.poll.register(meeting, select.POLLIN)
            self.children[child.fileno()] = child, status, into
            self.poll.register(child.fileno(), select.POLLIN)
            if began:
                said = {**said, "trace": [order["trace"], began, now()]}
            self.say({**said, "pid": child.pid}, (child.fileno(),))
        into.forget()
        protocol.close(descriptors)

    def hear(self) -> tuple[protocol.Message, list[int]] | None:
        """The next order, with its descriptors; None when there will be no other."""
        try:
            return protocol.receive(self.sock)
        except OSError:
            return None  # closed before the last answer was read

    def say(self, message: protocol.Message, descriptors: tuple[int, ...] = ()) -> None:
        """Answers; that nobody listens any more will be seen by the next look for orders."""
        with suppress(OSError):
            protocol.send(self.sock, message, descriptors)

    def go_inside(self, order: protocol.Message, descriptors: list[int]) -> NoReturn:
        """In a child, inside its sandbox."""
        try:
            self.sock.close()
            os.close(self.lifeline)
            for child, status, _ in self.children.values():
                child.forget()
                os.close(status)
            for meeting, _ in self.examined.values():
                meeting.over()
            for number, handler in self.handlers.items():
                signal.signal(number, handler)
            entering.go_to(order["where"], order["env"])
            step_forward()
            assert self.inside is not None
            self.inside(descriptors[0], descriptors[1])
        except BaseException as error:  # noqa: BLE001 - nothing of the caller's stack may run in this process
            entering.give_up(error)


_everyone: weakref.WeakSet[Zygote] = weakref.WeakSet()
_leaving: set[int] = set()  # process ids of zygotes that have been told to end


def _entered() -> None:
    for one in _everyone:
        one.forget()
    _leaving.clear()


def _part(options: int = 0) -> None:
    """Waits for zygotes that have been told to end; with ``WNOHANG``, for those that have."""
    for pid in [*_leaving]:
        try:
            gone, _ = os.waitpid(pid, options)
        except ChildProcessError:
            gone = pid  # somebody has waited for any child of this process
        if gone:
            _leaving.discard(pid)


entering.when_inside.append(_entered)
entering.when_over.append(_part)
