"""The caller's side of a guest: a process of an image's own Python that forks itself into sandboxes of that image.

:mod:`.boarding` says what a guest is and how it starts, :mod:`.aboard` is the guest's side. To whoever runs tests it is
a zygote that booted by itself (:mod:`.zygote`): the same orders, the same children. It is not trusted: what it says is
read with bounds in size and in time, and what it can reach are its own sandboxes.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from typing import Any

from ..errors import SandboxGuestError
from . import cgroups, entering, protocol
from .guestchild import GuestChild, namespaces_of
from .guestplans import nested
from .plan import Host, Plan, tmpfs_limits
from .protocol import wait_readable
from .running import GONE, Running, start_error
from .supervisor import Supervisor

#: How much of what a guest printed is shown when it has ended.
SHOWN = 4000


class Guest:
    """One guest: from its start to :meth:`close`. It ends with the caller, however that ends.

    :param image: what to call it in errors.
    """

    def __init__(self, image: str, host: Host) -> None:
        self.image = image
        self.supervisor = Supervisor(nested(host))
        self.sock: socket.socket | None = None
        self.log = self.status = self.layer = -1  # layer: where its files lie, below those of its tests
        self.owner = os.getpid()
        self.ended: SandboxGuestError | None = None
        self._told: set[str] = set()
        self._boarded = False
        _everyone.append(self)

    def start(self, plan: Plan, disk: int | None, python: list[str], argv: list[str], env: dict[str, str],
              cwd: str) -> None:
        """Asks for it; returns at once.

        :param plan: of the sandbox that it is at home in.
        :param python: the programs to look for, in their order, by the ``PATH`` of ``env``.
        :raises SandboxStartError: when the helper cannot start.
        """
        supervisor = self.supervisor
        supervisor.greet()
        ours, theirs = protocol.pair()
        self.status, status = os.pipe2(os.O_CLOEXEC)
        body = dict(plan.body)
        body["mounts"] = [[*step, "hidepid=4"] if step[0] == "proc" else step for step in body["mounts"]]
        umask = os.umask(0o077)
        os.umask(umask)
        what = {"body": body, "layer": f"mode=0711,{tmpfs_limits(disk)}", "python": python, "argv": argv, "env": env,
                "cwd": cwd, "umask": umask}
        message: protocol.Message = {"guest": what}
        if body["group"] is not None:
            message["group"] = cgroups.next_name()
            self.group = cgroups.host_control().group(body["group"], message["group"])
            self.group.tell = supervisor.tell
        else:
            self.group = None
        with theirs:
            try:
                supervisor.tell(message, (theirs.fileno(), status))
            finally:
                os.close(status)
        self.sock = ours

    # What it says.

    def receive(self, until: float | None = None, doing: str = "started") -> tuple[protocol.Message, list[int]]:
        """Its next message.

        :param until: by :func:`time.monotonic`, when to give up; then it is killed.
        :param doing: what it is at, for the error.
        :raises SandboxGuestError: when it has ended, or is too slow, or talks nonsense.
        """
        while True:
            if self.ended is None and not self._wait(until):
                raise self._end(f"it was not done after {until and self._patience:g} s", doing,
                                "Raise sandbox_guest_timeout, or see where it stands in what it printed.")
            got = self._hear(doing)
            if got is not None:
                return got

    def heard(self, doing: str = "started") -> tuple[protocol.Message, list[int]] | None:
        """Its next message if that is there already; as :meth:`receive`, but never waits."""
        while self.sock is not None and wait_readable(self.sock.fileno(), 0):
            got = self._hear(doing)
            if got is not None:
                return got
        return None

    def _hear(self, doing: str) -> tuple[protocol.Message, list[int]] | None:
        """A message that is there; None if it is not for whoever uses this."""
        if self.ended is not None:
            raise self.ended
        assert self.sock is not None
        try:
            got = protocol.receive(self.sock)
        except ConnectionResetError:  # it had not read all; its last words come after this error
            return None
        except protocol.BadMessage as error:
            raise self._end(f"it sent what is not a message ({error})", doing) from None
        if got is None:
            raise self._end(self._how(), doing)
        message, fds = got
        if "failed" in message:
            protocol.close(fds)
            raise self._unstarted(message["failed"])
        if "boarded" not in message or self._boarded:
            return message, fds
        self._boarded = True
        self.log, self.layer = fds
        return None

    _patience = 0.0

    def ask(self, message: protocol.Message, fds: tuple[int, ...] = (), seconds: float | None = None,
            doing: str = "was asked") -> protocol.Message:
        """Sends it a message and returns its answer.

        :raises SandboxGuestError: as :meth:`receive`.
        """
        self.send(message, fds, doing)
        answer, got = self.receive(self.by(seconds), doing)
        protocol.close(got)
        return answer

    def by(self, seconds: float | None) -> float | None:
        """The moment ``seconds`` from now, for :meth:`receive`."""
        self._patience = seconds or 0.0
        return None if seconds is None else time.monotonic() + seconds

    def send(self, message: protocol.Message, fds: tuple[int, ...] = (), doing: str = "was asked") -> None:
        """Sends it a message.

        :raises SandboxGuestError: when it has ended.
        """
        if self.ended is not None:
            raise self.ended
        assert self.sock is not None
        try:
            protocol.send(self.sock, message, fds)
        except OSError as error:
            if error.errno not in GONE:
                raise self._end(f"it cannot be sent what it needs: {error.strerror}", doing) from None
            while True:  # its last words
                protocol.close(self.receive(None, doing)[1])

    def _wait(self, until: float | None) -> bool:
        import select
        assert self.sock is not None
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(self.status, select.POLLIN)  # a fork of the guest's may hold its end of the socket open
        return bool(poll.poll(None if until is None else max(0.0, until - time.monotonic()) * 1000)) or until is None

    def alive(self) -> bool:
        """Whether it has not ended, as far as we know."""
        return self.ended is None and self.sock is not None and not wait_readable(self.status, 0)

    def _how(self) -> str:
        told = b""
        if wait_readable(self.status, 1):
            with suppress(OSError):
                told = os.read(self.status, 20)
        try:
            code = os.waitstatus_to_exitcode(int(told))
        except ValueError:
            return "it has ended"
        if code >= 0:
            return f"it exited with status {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        killed = self.group is not None and bool(self.group.oom_kills())
        return f"it was killed by {name}" + (", for it had no more memory" if killed else "")

    def printed(self) -> str:
        """The end of what it printed, and nobody captured."""
        if self.log < 0:
            return ""
        size = os.fstat(self.log).st_size
        return os.pread(self.log, SHOWN, max(0, size - SHOWN)).decode(errors="replace")

    def _end(self, why: str, doing: str, remedy: str | None = None) -> SandboxGuestError:
        output = self.printed()
        self.ended = SandboxGuestError(f"the guest of image {self.image!r} failed when it {doing}", image=self.image,
                                       why=why, output=output, remedy=remedy)
        self._stop()
        return self.ended

    def _unstarted(self, failed: dict[str, Any]) -> SandboxGuestError:
        step = failed.get("step") or [""]
        if step[0] == "python":
            self.ended = SandboxGuestError(
                f"a test's body cannot run in image {self.image!r}", image=self.image,
                why=f"it has no {failed.get('path')}: the body runs in the image's own Python",
                remedy="Name its interpreter with python=..., or keep the body on the host: request the sandbox "
                       "fixture and run commands in the image with it.")
        else:
            error = start_error(failed)
            self.ended = SandboxGuestError(f"the guest of image {self.image!r} could not start", image=self.image,
                                           why=str(error))
        self._stop()
        return self.ended

    # Its children.

    def take(self, plan: Plan) -> Running:
        """A sandbox for one of its children, ready.

        :raises SandboxStartError: when it cannot be made.
        """
        running = self.supervisor.take(plan)
        running.beneath = self.layer
        return running

    def fork(self, into: Running, where: str, env: list[tuple[str, str | None]], descriptors: tuple[int, int],
             more: dict[str, Any], seconds: float | None) -> GuestChild:
        """Asks for a child in a sandbox that is ready; returns at once. ``more`` goes along with the order.

        :raises SandboxGuestError: when it has ended.
        :raises SandboxClosedError: when the sandbox has.
        """
        plan = into.plan
        spaces = namespaces_of(into)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            if plan.key not in self._told:
                self._told.add(plan.key)
                names = ("base", "drop", "nproc", "oom", "seccomp", "namespaces")
                self.send({"plan": plan.key, "kept": plan.kept, **{name: plan.body[name] for name in names}})
            self.send({"enter": [flag for flag, _ in spaces]}, tuple(fd for _, fd in spaces))
            self.send({"fork": plan.key, "ids": plan.ids, "where": where, "env": env, **more},
                      (writing, *descriptors, *(into.group.join_fds if into.group is not None else ())))
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
            for _, fd in spaces:
                os.close(fd)
        return GuestChild(self, into, reading, seconds)

    # Its end.

    def _stop(self) -> None:
        """Ends the process, and all that its helper has made."""
        if self.owner != os.getpid():
            return
        if self in _everyone:
            _everyone.remove(self)
        if self.sock is not None:
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
            self.sock.close()
        self.supervisor.close()
        if self.group is not None:
            self.group.let_go()
            self.group.remove()
            self.group.close()
            self.group = None
        for fd in (self.log, self.status, self.layer):
            if fd >= 0:
                os.close(fd)
        self.log = self.status = self.layer = -1

    group: Any = None

    def close(self) -> None:
        """Ends it, with everything in it and below it. Does nothing when it has ended."""
        if self.ended is None:
            self.ended = SandboxGuestError(f"the guest of image {self.image!r} was closed", image=self.image)
            self._stop()

    def forget(self) -> None:
        """In a fork of the caller: closes our copies."""
        if self.sock is not None:
            self.sock.close()
        self.supervisor.forget()
        for fd in (self.log, self.status, self.layer):
            if fd >= 0:
                os.close(fd)
        self.log = self.status = self.layer = -1


_everyone: list[Guest] = []


def _entered() -> None:
    for one in _everyone:
        one.forget()
    _everyone.clear()


entering.when_inside.append(_entered)
