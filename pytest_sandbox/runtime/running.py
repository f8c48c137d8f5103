"""One sandbox as its caller holds it: :class:`Running`, and :class:`ForkedChild`, a fork of the caller inside it.

Made by :mod:`.launch`. Everything here works with a sandbox that may end at any moment, whoever ends it.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import struct
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

from ..errors import SandboxClosedError, SandboxError, SandboxProtocolError, SandboxStartError
from . import protocol
from . import syscalls as sc
from .cgroup import Group
from .init import become, limit_tasks
from .plan import Host, Plan, describe, tmpfs_limits

#: Held while descriptors are open that a fork of the caller must not inherit, and while the caller forks.
forking = threading.RLock()
#: Called in a fork of the caller when it has entered a sandbox.
when_inside: list[Callable[[], None]] = []
#: Called in a fork of the caller when it is in the sandbox's cgroup, and nowhere else yet.
when_joined: list[Callable[[], None]] = []
#: Descriptors of directories, and their paths.
Folders = list[tuple[int, str]]

#: What the kernel says when the other end of a socket has gone.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


def wait_readable(fd: int, timeout: float | None = None) -> bool:
    """Waits until ``fd`` can be read or its other end is gone; False after ``timeout`` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, timeout) * 1000))


def start_error(failed: dict[str, Any]) -> SandboxStartError:
    """The error for a step that failed, in words a user can act on."""
    step, number, path = failed.get("step") or ["init"], failed.get("errno") or 0, failed.get("path")
    words = describe(step)
    why = failed.get("error") or (os.strerror(number) if number else "unknown")
    if path:
        why = f"{why} ({path})"
    remedy = "Run `pytest-sandbox doctor` to see what this host lacks."
    if step[0] == "bind" and number != errno.EPERM:
        remedy = ("A file can be mounted on a file and a directory on a directory only, and nothing within /proc or "
                  "/sys: correct the sandbox's mounts option.")
    elif number == errno.ENOSPC:
        remedy = "The writable layer is too small for the sandbox's own start: raise its disk option."
    return SandboxStartError(f"a sandbox could not start: it failed to {words}", step=str(step[0]), path=path,
                             errno=number or None, why=why, remedy=remedy)


class Running:
    """A sandbox that has been asked for: from :meth:`Supervisor.make` until :meth:`let_go`.

    Holds, once ready: ``pidfd`` of its init, ``root``, a descriptor of its root directory, and ``scratch``, one of its
    writable layer. All are closed by :meth:`wait_gone`.
    """

    def __init__(self, control: socket.socket, plan: Plan, host: Host, group: Group | None = None) -> None:
        self.control, self.plan, self.host, self.group = control, plan, host, group
        self.tell: Callable[[protocol.Message, tuple[int, ...]], bool] = lambda message, fds: False  # to the helper
        self.began = time.monotonic()
        self.spent = [0.0, 0.0, 0, 0]  # by forks that have ended: user and system seconds, blocks read and written
        self.owner = os.getpid()
        self.pidfd = self.root = self.scratch = -1
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
        try:
            got = protocol.receive(self.control)
        except (OSError, protocol.BadMessage) as error:
            self._failed()
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
        fork = self._fork_as_root if self.host.privileged else self._fork_twice
        if folders is None:
            folders = open_folders()
        if sys.version_info < (3, 12):
            return fork(ids, folders)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses but one
            return fork(ids, folders)

    def _fork_as_root(self, ids: tuple[int, int], folders: Folders) -> ForkedChild | None:
        # Root may point its children to come at the sandbox's pid namespace, which saves a second fork.
        pid = -1
        with forking:
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            try:
                sc.setns(self.pidfd, sc.CLONE_NEWPID)
                try:
                    pid = os.fork()
                finally:
                    if pid:  # not in the child, whose own children belong inside
                        sc.setns(own, sc.CLONE_NEWPID)
            except OSError as error:
                self._still_there(error)
                raise
            finally:
                os.close(own)
        if pid:
            return ForkedChild(pid, self)
        self._join(sc.CLONE_NEWUSER | self._namespaces(), ids, folders)
        return None

    def _fork_twice(self, ids: tuple[int, int], folders: Folders) -> ForkedChild | None:
        # Others may enter a pid namespace only from within the user namespace that owns it, and only by a fork.
        with forking:
            self._still_there(None)
            reading, writing = os.pipe2(os.O_CLOEXEC)
            try:
                pid = os.fork()
            except OSError:
                os.close(reading)
                os.close(writing)
                raise
            if pid:
                os.close(writing)
                return ForkedChild(pid, self, reading)
        try:
            os.close(reading)
            # A Ctrl-C is for the caller and for the child inside, where one that comes early waits for it.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
            sc.setns(self.pidfd, sc.CLONE_NEWUSER | sc.CLONE_NEWPID | self._namespaces())
            inner = os.fork()
            if inner:
                os.closerange(0, writing)  # copies that would keep open what the caller and the child have closed
                os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
                _, status = os.waitpid(inner, 0)
                os.write(writing, struct.pack("i", status))
                os._exit(0)
        except BaseException as error:  # noqa: BLE001 - nothing of the caller's stack may run in this process
            give_up(error)
        os.close(writing)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._join(0, ids, folders)
        return None

    def _still_there(self, error: OSError | None) -> None:
        # What cannot be entered any more, or not be forked into, takes a moment to be gone.
        ending = error is not None and error.errno in (errno.ESRCH, errno.ENOMEM)
        if wait_readable(self.pidfd, 1 if ending else 0) if self.pidfd >= 0 else True:
            self.raise_ended(error)

    def _namespaces(self) -> int:
        made: int = self.plan.body["namespaces"]
        return made & (sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP | sc.CLONE_NEWNET)

    def _join(self, namespaces: int, ids: tuple[int, int], folders: Folders) -> None:
        """In the child: enters what it is not in yet, takes on its identity and gives up everything else."""
        global _inside
        try:
            if self.group is not None:
                self.group.join()
            for fd in self.joins:
                os.write(fd, b"0")
            for function in when_joined:
                function()
            if namespaces:
                sc.setns(self.pidfd, namespaces)
            _inside = True
            # A session of its own: no terminal of the caller's to type into, no process group to send signals to.
            os.setsid()
            sc.new_session_keyring()
            leave_all()
            sc.drop_from_bounding_set(self.plan.body["drop"])
            if (most := self.plan.body["nproc"]) is not None:
                limit_tasks(most + 1)  # there is a process of ours more, which waits outside for this one
            if ids != (os.getuid(), os.getgid()):
                become(*ids)
            keep = self.plan.kept if ids[0] == 0 else 0
            sc.capset(keep, keep, 0)
            sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
            if self.plan.body["seccomp"]:
                sc.seccomp(bytes.fromhex(self.plan.body["seccomp"]))
            _reopen(folders)
        except BaseException as error:  # noqa: BLE001 - half inside, nothing of the caller's may go on
            give_up(error)

    def forget(self) -> None:
        """Closes our descriptors. In a fork of the caller: its copies of them, which changes nothing for the caller."""
        self.control.close()
        for relay in self.relays:
            relay.close()
        self.relays.clear()
        for fd in (self.pidfd, self.root, self.scratch, *self.joins):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.root = self.scratch = -1
        self.joins = []
        if self.group is not None:
            self.group.close()

    def let_go(self) -> None:
        """Ends the sandbox: init ends when its socket's other end closes, and all inside with it. Does not wait."""
        if self.owner != os.getpid():
            self.forget()  # a fork of the owner: not ours to end
            return
        for function in self.when_leaving:
            function()
        self.when_leaving.clear()
        if self.pidfd < 0 and self.control.fileno() >= 0:
            with suppress(SandboxError):
                self.wait_ready()  # which brings its pidfd, by which we shall know that it has gone
        if self.group is not None:
            self.group.let_go()
        # First our hold on its file systems, so that unmounting them is init's work and not the caller's.
        for fd in (self.root, self.scratch):
            if fd >= 0:
                os.close(fd)
        self.root = self.scratch = -1
        with suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # to close it is not enough while a fork of ours has a copy
        self.control.close()
        for relay in self.relays:
            with suppress(OSError):
                relay.shutdown(socket.SHUT_WR)

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


def open_folders() -> Folders:
    """The descriptors of directories that this process has, with their paths: through them lies the host's tree."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISDIR(os.fstat(int(name)).st_mode):
                found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # the listing's own descriptor
    return found


def _reopen(folders: Folders) -> None:
    """In the child: lets these descriptors mean the same paths of the sandbox. What is not there is closed."""
    for fd, path in folders:
        try:
            inheritable = os.get_inheritable(fd)
        except OSError:
            continue  # one of ours, closed meanwhile
        try:
            inside = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            os.close(fd)
            continue
        os.dup2(inside, fd, inheritable)
        os.close(inside)


everyone: weakref.WeakSet[Running] = weakref.WeakSet()
_inside = False


def leave_all() -> None:
    """In a fork of the caller: closes its copies of all that the caller's sandboxes are worked by."""
    for running in everyone:
        running.forget()
    everyone.clear()
    for function in when_inside:
        function()


def go_to(where: str, env: Iterable[tuple[str, str | None]]) -> None:
    """In a fork of the caller, inside: its working directory, and the changes to its environment."""
    try:
        os.chdir(where)
    except OSError as error:
        give_up(error)
    for name, value in env:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def inside() -> bool:
    """Whether this process was forked into a sandbox, or runs where one has left its mark."""
    return _inside or os.path.exists("/run/pytest-sandbox")


def give_up(error: BaseException) -> NoReturn:
    """Ends a fork that could not get to where it belongs."""
    with suppress(OSError):
        os.write(2, f"pytest-sandbox: a process could not enter its sandbox: {error!r}\n".encode())
    os._exit(126)


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
