"""One sandbox as its caller holds it: :class:`Running`.

Made by :mod:`.supervisor`. Everything here works with a sandbox that may end at any moment, whoever ends it.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from ..errors import SandboxClosedError, SandboxError, SandboxProtocolError, SandboxStartError
from . import protocol
from . import syscalls as sc
from .cgroup import Group
from .children import ForkedChild
from .entering import Folders, everyone, fork_once, fork_twice, open_folders
from .plan import Host, Plan, describe, tmpfs_limits
from .protocol import wait_readable
from .tracing import Trace, now

#: What the kernel says when the other end of a socket has gone.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


def start_error(failed: dict[str, Any]) -> SandboxStartError:
    """The error for a step that failed, in words a user can act on."""
    step, number, path = failed.get("step") or ["init"], failed.get("errno") or 0, failed.get("path")
    words = describe(step)
    why = failed.get("error") or (os.strerror(number) if number else "unknown")
    if path:
        why = f"{why} ({path})"
    remedy = "Run `pytest-sandbox doctor` to see what this host lacks."
    if step[0] in ("bind", "overlay") and number in (errno.EACCES, errno.EOVERFLOW):
        remedy = ("If that is in a directory of somebody else's, an ordinary user cannot make a place for it there. Of "
                  "an image that is a directory (rootfs:DIR), make a tarball and use that (rootfs:FILE.tar), or make "
                  "its files yours.")
    elif step[0] == "bind" and number != errno.EPERM:
        remedy = ("A file can be mounted on a file and a directory on a directory only, and nothing within /proc or "
                  "/sys: correct the sandbox's mounts option.")
    elif number == errno.ENOSPC and str(step[0]).startswith("own_"):
        remedy = ("What is made once for each kind of sandbox lies in memory, and half of the host's is full of it: "
                  "close sandboxes that differ in image, user or hide.")
    elif number == errno.ENOSPC and step[0] in ("init", "clone3"):
        remedy = ("There are as many namespaces as this user may have: close sandboxes that are done with, or "
                  "raise the limits in /proc/sys/user.")
    elif number == errno.ENOSPC:
        remedy = "The writable layer is too small for the sandbox's own start: raise its disk option."
    return SandboxStartError(f"a sandbox could not start: it failed to {words}", step=str(step[0]), path=path,
                             errno=number or None, why=why, remedy=remedy)


def _is_full() -> bool:
    """Whether this process has no room for the descriptors of another sandbox."""
    try:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd")) < 16
    except OSError:
        return True


def too_many_files() -> SandboxStartError:
    """What is said where this process cannot open another descriptor."""
    return SandboxStartError(
        "a sandbox could not start: this process has as many open files as it may", step="init", errno=errno.EMFILE,
        why=os.strerror(errno.EMFILE),
        remedy="Close sandboxes that are done with, or raise the limit (`ulimit -n`): each takes eight descriptors.")


class Running:
    """A sandbox that has been asked for: from :meth:`Supervisor.make` until :meth:`let_go`.

    Holds, once ready: ``pidfd`` of its init, ``root``, a descriptor of its root directory, and ``scratch``, one of its
    writable layer. All are closed by :meth:`wait_gone`.
    """

    def __init__(self, control: socket.socket, plan: Plan, host: Host, group: Group | None = None) -> None:
        self.control, self.plan, self.host, self.group = control, plan, host, group
        self.takes_one_fork = host.privileged  # to go into; else two
        self.tell: Callable[[protocol.Message, tuple[int, ...]], bool] = lambda message, fds: False  # to the helper
        self.trace: Trace | None = None
        self.began = time.monotonic()
        self.spent = [0.0, 0.0, 0, 0]  # by forks that have ended: user and system seconds, blocks read and written
        self.owner = os.getpid()
        self.pidfd = self.root = self.scratch = -1
        self.beneath = -1  # another writable layer that its own stands on, somebody else's to close
        self.joins: list[int] = []
        self.lock = threading.Lock()
        self.children: list[ForkedChild] = []
        self.relays: list[socket.socket] = []  # each readable once its relay has ended
        self.when_leaving: list[Callable[[], None]] = []  # called when it is let go
        everyone.add(self)

    @classmethod
    def borrowed(cls, pidfd: int, plan: Plan, host: Host, joins: list[int]) -> Running:
        """One that another process has asked for, to fork into it.

        Takes over ``pidfd`` of its init, and ``joins``, the files by which a process joins its cgroup.
        """
        control = socket.socket(socket.AF_UNIX)
        control.close()
        made = cls(control, plan, host)
        made.pidfd = pidfd
        made.joins = joins
        return made

    def is_ready(self) -> bool:
        """Whether :meth:`wait_ready` need not wait."""
        return self.pidfd >= 0 or wait_readable(self.control.fileno(), 0)

    def wait_ready(self) -> None:
        """Waits until it is set up.

        :raises SandboxStartError: when a step failed; nothing of it is left.
        """
        if self.pidfd >= 0:
            return
        began = now() if self.trace is not None else 0
        try:
            got = protocol.receive(self.control)
        except (OSError, protocol.BadMessage) as error:
            self._failed()
            if _is_full():
                raise too_many_files() from error
            raise SandboxProtocolError("a sandbox's first message cannot be read", why=str(error)) from error
        if got is None:
            self._failed()
            raise SandboxStartError("a sandbox ended while it started", step="init",
                                    remedy="Run `pytest-sandbox doctor` to see what this host lacks.")
        message, fds = got
        joins = 0 if self.group is None else len(self.group.paths)
        if "failed" in message or len(fds) != 3 + joins:
            protocol.close(fds)
            self._failed()
            failed = message.get("failed", {})
            if "part" in failed:  # a compiled init does not know its steps' words
                failed["step"] = self.plan.body[failed["part"]][failed["number"]]
            raise start_error(failed)
        self.pidfd, self.root, self.scratch = fds[:3]
        if self.trace is not None:
            self.trace.add("pytest", "wait for it", began)
            self.trace.add_marks("init", message.get("trace", []), self.plan.body)
        if self.group is not None:
            self.group.join_fds = fds[3:]

    def _failed(self) -> None:
        self.control.close()
        if self.group is not None:
            self.group.let_go()
            self.group.close()

    @property
    def alive(self) -> bool:
        """Whether its init runs."""
        return self.pidfd >= 0 and not wait_readable(self.pidfd, 0)

    def resize(self, disk: int | None) -> None:
        """Gives the writable layer another size.

        :raises SandboxClosedError: when the sandbox is gone.
        :raises SandboxError: when it holds more than that.
        """
        ours, theirs = protocol.pair()
        with ours, theirs:
            options = dict(option.split("=") for option in tmpfs_limits(disk).split(","))
            sent = self.scratch >= 0 and self.tell({"resize": options}, (self.scratch, theirs.fileno()))
            theirs.close()
            got = protocol.receive(ours) if sent else None
        if got is None:
            raise SandboxClosedError("the sandbox has ended")
        protocol.close(got[1])
        if number := got[0]["errno"]:
            raise SandboxError(f"the limit disk={disk} could not be set", why="the writable layer holds more than that"
                               if number in (errno.EINVAL, errno.ENOSPC) else os.strerror(number))

    def init_pid(self) -> int:
        """The host's number of its init; -1 when that has been reaped."""
        with open(f"/proc/self/fdinfo/{self.pidfd}") as file:
            return int(next(line.split()[1] for line in file if line.startswith("Pid:")))

    def request(self, message: protocol.Message, fds: tuple[int, ...] = ()) -> None:
        """Sends init a request.

        :raises SandboxClosedError: when it is gone.
        :raises OSError: when the request itself cannot be sent: it is too large, or a descriptor is not one.
        """
        try:
            with self.lock:
                protocol.send(self.control, message, fds)
        except OSError as error:
            if self.control.fileno() < 0:  # let go by us
                raise SandboxClosedError("the sandbox has ended") from None
            if error.errno in GONE:
                self.raise_ended(error)
            raise

    def ask(self, message: protocol.Message) -> protocol.Message:
        """Sends init a request and waits for its answer.

        :raises SandboxClosedError: when it is gone.
        """
        ours, theirs = protocol.pair()
        with ours, theirs:
            self.request(message, (theirs.fileno(),))
            theirs.close()
            try:
                got = protocol.receive(ours)
            except protocol.BadMessage as error:
                raise SandboxProtocolError("the sandbox's init sent what is not a message", why=str(error)) from error
        if got is None:
            self.raise_ended(None)
        protocol.close(got[1])
        return got[0]

    def raise_ended(self, error: OSError | None) -> NoReturn:
        """It has ended, which ``error`` tells.

        :raises SandboxClosedError: with the limit that ended it, if that is known, as its cause.
        """
        limit = self.group.exceeded() if self.group is not None else None
        if limit is not None:
            raise SandboxClosedError("the sandbox has ended", why=str(limit)) from limit
        raise SandboxClosedError("the sandbox has ended", why=error.strerror if error else None) from error

    def fork(self, ids: tuple[int, int], folders: Folders | None = None) -> ForkedChild | None:
        """Forks the calling process into the sandbox. Returns None in the child.

        The child has the caller's memory and descriptors, the sandbox's namespaces and root, and the given identity.
        One that cannot get there ends with status 126 and a line on its standard error.

        :param folders: what :func:`open_folders` finds, where that is known.
        :raises SandboxClosedError: when the sandbox is gone.
        """
        if folders is None:
            folders = open_folders()
        if sys.version_info < (3, 12):
            return self._fork(ids, folders)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses but one
            return self._fork(ids, folders)

    def _fork(self, ids: tuple[int, int], folders: Folders) -> ForkedChild | None:
        began = now() if self.trace is not None else 0
        pid, status = (fork_once(self, ids, folders), -1) if self.takes_one_fork else fork_twice(self, ids, folders)
        if self.trace is not None and pid:
            self.trace.add("fork", "by pytest, into the sandbox's namespaces", began)
        return ForkedChild(pid, self, status) if pid else None

    def check_there(self, error: OSError | None) -> None:
        """Raises what tells that it has ended, if so; ``error`` is what entering it gave, if that failed.

        :raises SandboxClosedError: when the sandbox is gone.
        """
        # What cannot be entered any more, or not be forked into, takes a moment to be gone.
        ending = error is not None and error.errno in (errno.ESRCH, errno.ENOMEM)
        if wait_readable(self.pidfd, 1 if ending else 0) if self.pidfd >= 0 else True:
            self.raise_ended(error)

    def enter(self, namespaces: int) -> None:
        """The calling process joins these of its namespaces."""
        sc.setns(self.pidfd, namespaces)

    def namespaces(self) -> int:
        """Those that a fork inside joins, beside the user and pid namespaces."""
        made: int = self.plan.body["namespaces"]
        return made & (sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP | sc.CLONE_NEWNET)

    def forget(self) -> None:
        """Closes our descriptors. In a fork of the caller: its copies of them, which changes nothing for the caller."""
        self.control.close()
        for relay in self.relays:
            relay.close()
        self.relays.clear()
        descriptors = (self.pidfd, self.root, self.scratch, *self.joins)
        self.pidfd = self.root = self.scratch = -1  # first: an interrupt must not have one closed twice
        self.joins = []
        for fd in descriptors:
            if fd >= 0:
                os.close(fd)
        if self.group is not None:
            self.group.close()

    def let_go(self) -> None:
        """Ends the sandbox: init ends when its socket's other end closes, and all inside with it. Does not wait."""
        if self.owner != os.getpid():
            self.forget()  # a fork of the owner: not ours to end
            return
        if self.trace is not None and not self.trace.let_go:
            self.trace.let_go = now()
        for function in self.when_leaving:
            function()
        self.when_leaving.clear()
        if self.pidfd < 0 and self.control.fileno() >= 0:
            with suppress(SandboxError):
                self.wait_ready()  # which brings its pidfd, by which we shall know that it has gone
        if self.group is not None:
            self.group.let_go()
        # First our hold on its file systems, so that unmounting them is init's work and not the caller's.
        descriptors = self.root, self.scratch
        self.root = self.scratch = -1  # first: an interrupt must not have one closed twice
        for fd in descriptors:
            if fd >= 0:
                os.close(fd)
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # to close it is not enough while a fork of ours has a copy
        self.control.close()
        for relay in self.relays:
            with suppress(OSError):
                relay.shutdown(socket.SHUT_WR)
        if self.trace is not None and self.trace.let_go:
            self.trace.add("pytest", "let go of it", self.trace.let_go)

    def gone(self) -> bool:
        """After :meth:`let_go`: as :meth:`wait_gone` if that need not wait, else False."""
        if self.owner == os.getpid():
            if not all(child.ended() for child in list(self.children)):
                return False
            if self.pidfd >= 0 and self.alive:
                return False
            if not all(wait_readable(relay.fileno(), 0) for relay in self.relays):
                return False
        self.forget()
        return True

    def wait_gone(self) -> None:
        """After :meth:`let_go`: waits until nothing runs inside any more, and lets go of the writable layer."""
        if self.owner == os.getpid():
            self.reap()
            if self.pidfd >= 0:
                wait_readable(self.pidfd)
            for relay in self.relays:
                wait_readable(relay.fileno())
            if self.group is not None:
                self.group.remove()
        self.forget()

    def reap(self) -> None:
        """Waits for those forks inside that nobody has waited for: the kernel keeps the sandbox until they are."""
        for child in list(self.children):
            child.wait()
