"""The caller's side of the helper and of the sandboxes that it makes.

One :class:`Supervisor` a process, made when the first sandbox is wanted; it owns the helper and the sandboxes made
ahead. One :class:`Running` a sandbox; it holds the descriptors through which the caller reaches it.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from typing import Any

from ..errors import SandboxClosedError, SandboxError, SandboxProtocolError, SandboxStartError
from . import protocol
from . import syscalls as sc
from .init import become
from .plan import Host, Plan, describe

_INITIAL = "0 0 4294967295"


def find_host() -> Host:
    """Who we are on this machine: real root that may mount, or somebody who needs a user namespace for it."""
    with open("/proc/self/uid_map") as file:
        initial = " ".join(file.read().split()) == _INITIAL
    privileged = initial and bool(sc.capget()[0] >> 21 & 1)  # CAP_SYS_ADMIN
    return Host(privileged, os.getuid(), os.getgid())


def wait_readable(fd: int, timeout: float | None = None) -> bool:
    """Waits until ``fd`` can be read or its other end is gone; False after ``timeout`` seconds."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if timeout is None else max(0, timeout) * 1000))


class Supervisor:
    """Owns this process's helper. Made by :func:`supervisor`, ended by :meth:`close` or with the process."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.told: set[str] = set()
        self.ahead: dict[str, Running] = {}
        self.ending: list[Running] = []
        self.sock, theirs = protocol.pair()
        lifeline = sc.pidfd_open(os.getpid())
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pytest_sandbox.runtime.helper import main; main()"
        with theirs:
            try:
                launcher = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", "-c", code, package, str(theirs.fileno()), str(lifeline),
                     str(int(host.privileged))],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                    pass_fds=(theirs.fileno(), lifeline), start_new_session=True)
            finally:
                os.close(lifeline)
        self.launcher: subprocess.Popen[bytes] | None = launcher
        self.pidfd = -1

    def greet(self) -> None:
        """Waits until the helper is there.

        :raises SandboxStartError: when it could not set itself up.
        """
        if self.launcher is None:
            return
        got = protocol.receive(self.sock)
        self.launcher.wait()
        self.launcher = None
        if got is None:
            raise SandboxStartError("the helper process of the sandboxes ended while it started", step="helper",
                                    remedy="Run `pytest-sandbox doctor` to see what this host lacks.")
        message, fds = got
        if "failed" in message:
            raise start_error(message["failed"])
        self.pidfd = fds[0]

    def make(self, plan: Plan) -> Running:
        """Asks for a sandbox; returns at once. Its :meth:`Running.wait_ready` tells how it went."""
        with self.lock:
            self.greet()
            ours, theirs = protocol.pair()
            try:
                with theirs:
                    if plan.key not in self.told:
                        protocol.send(self.sock, {"plan": plan.key, "body": plan.body})
                        self.told.add(plan.key)
                    protocol.send(self.sock, {"make": plan.key}, (theirs.fileno(),))
            except OSError as error:
                ours.close()
                raise SandboxClosedError("the helper process of the sandboxes has ended", why=error.strerror) from error
            return Running(ours, plan, self.host)

    def take(self, plan: Plan) -> Running:
        """A ready sandbox: one that was made ahead, or a new one."""
        with self.lock:
            running = self.ahead.pop(plan.key, None) or self.make(plan)
        running.wait_ready()
        return running

    def prepare(self, plan: Plan) -> None:
        """Makes a sandbox ahead, unless one waits already. Those of other plans are let go: memory is not free."""
        with self.lock:
            for key in [key for key in self.ahead if key != plan.key]:
                self.end(self.ahead.pop(key))
            if plan.key not in self.ahead:
                self.ahead[plan.key] = self.make(plan)

    def end(self, running: Running) -> None:
        """Lets a sandbox go without waiting for its end; at most a few are on their way out at a time."""
        running.let_go()
        self.ending.append(running)
        self.ending = [one for one in self.ending if not one.gone()]
        while len(self.ending) > 4:
            self.ending.pop(0).wait_gone()

    def close(self) -> None:
        """Ends every sandbox and the helper, and waits for it."""
        with self.lock:
            for running in self.ahead.values():
                running.let_go()
            for running in [*self.ahead.values(), *self.ending]:
                running.wait_gone()
            self.ahead.clear()
            self.ending.clear()
            self.sock.close()
            if self.launcher is not None:
                self.launcher.wait()
            if self.pidfd >= 0:
                with suppress(ChildProcessError):
                    os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
                os.close(self.pidfd)
                self.pidfd = -1

    def forget(self) -> None:
        """After a fork: closes our copies, so that nothing of the caller's lives on in the child."""
        self.sock.close()
        for running in [*self.ahead.values(), *self.ending]:
            running.forget()
        if self.pidfd >= 0:
            os.close(self.pidfd)


_supervisor: Supervisor | None = None


def supervisor() -> Supervisor:
    """This process's supervisor; the first call starts the helper, without waiting for it."""
    global _supervisor
    if _supervisor is None or _supervisor.pid != os.getpid():
        _supervisor = Supervisor(find_host())
        atexit.register(shutdown)
    return _supervisor


def shutdown() -> None:
    """Ends the helper and every sandbox of this process. Does nothing when there is none."""
    global _supervisor
    if _supervisor is not None and _supervisor.pid == os.getpid():
        _supervisor.close()
    _supervisor = None


def start_error(failed: dict[str, Any]) -> SandboxStartError:
    """The error for a step that failed, in words a user can act on."""
    step, errno, path = failed.get("step") or ["init"], failed.get("errno") or 0, failed.get("path")
    words = describe(step)
    why = failed.get("error") or (os.strerror(errno) if errno else "unknown")
    if path:
        why = f"{why} ({path})"
    return SandboxStartError(f"a sandbox could not start: it failed to {words}", step=str(step[0]), path=path,
                             errno=errno or None, why=why,
                             remedy="Run `pytest-sandbox doctor` to see what this host lacks.")


class Running:
    """A sandbox that has been asked for: from :meth:`Supervisor.make` until :meth:`let_go`.

    Holds, once ready: ``pidfd`` of its init, ``root``, a descriptor of its root directory, and ``scratch``, one of its
    writable layer. All are closed by :meth:`wait_gone`.
    """

    def __init__(self, control: socket.socket, plan: Plan, host: Host) -> None:
        self.control, self.plan, self.host = control, plan, host
        self.pidfd = self.root = self.scratch = -1
        self.lock = threading.Lock()
        self.children: list[ForkedChild] = []

    def wait_ready(self) -> None:
        """Waits until it is set up.

        :raises SandboxStartError: when a step failed; nothing of it is left.
        """
        if self.pidfd >= 0:
            return
        try:
            got = protocol.receive(self.control)
        except (OSError, protocol.BadMessage) as error:
            self.let_go()
            raise SandboxProtocolError("a sandbox's first message cannot be read", why=str(error)) from error
        if got is None:
            self.let_go()
            raise SandboxStartError("a sandbox ended while it started", step="init",
                                    remedy="Run `pytest-sandbox doctor` to see what this host lacks.")
        message, fds = got
        if "failed" in message or len(fds) != 3:
            self.let_go()
            raise start_error(message.get("failed", {}))
        self.pidfd, self.root, self.scratch = fds

    @property
    def alive(self) -> bool:
        """Whether its init runs."""
        return self.pidfd >= 0 and not wait_readable(self.pidfd, 0)

    def request(self, message: protocol.Message, fds: tuple[int, ...] = ()) -> None:
        """Sends init a request.

        :raises SandboxClosedError: when it is gone.
        """
        try:
            with self.lock:
                protocol.send(self.control, message, fds)
        except OSError as error:
            raise SandboxClosedError("the sandbox has ended", why=error.strerror) from error

    def answer(self) -> protocol.Message:
        """Init's answer to a ``ping``.

        :raises SandboxClosedError: when it is gone.
        """
        with self.lock:
            try:
                got = protocol.receive(self.control)
            except (OSError, protocol.BadMessage) as error:
                raise SandboxProtocolError("the sandbox's init sent what is not a message", why=str(error)) from error
        if got is None:
            raise SandboxClosedError("the sandbox has ended")
        return got[0]

    def fork(self, ids: tuple[int, int]) -> ForkedChild | None:
        """Forks the calling process into the sandbox. Returns None in the child.

        The child has the caller's memory and descriptors, the sandbox's namespaces and root, and the given identity.
        """
        if sys.version_info < (3, 12):
            return self._fork(ids)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses but one
            return self._fork(ids)

    def _fork(self, ids: tuple[int, int]) -> ForkedChild | None:
        child = self._fork_as_root(ids) if self.host.privileged else self._fork_twice(ids)
        if child is not None:
            self.children.append(child)
        return child

    def _fork_as_root(self, ids: tuple[int, int]) -> ForkedChild | None:
        # Root may point its children to come at the sandbox's pid namespace, which saves a second fork.
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        pid = -1
        sc.setns(self.pidfd, sc.CLONE_NEWPID)
        try:
            pid = os.fork()
        finally:
            if pid:  # not in the child, whose own children belong inside
                sc.setns(own, sc.CLONE_NEWPID)
            os.close(own)
        if pid:
            return ForkedChild(pid, self)
        self._join(sc.CLONE_NEWUSER | self._namespaces(), ids)
        return None

    def _fork_twice(self, ids: tuple[int, int]) -> ForkedChild | None:
        # Others may enter a pid namespace only from within the user namespace that owns it, and only by a fork.
        reading, writing = os.pipe2(os.O_CLOEXEC)
        interrupt = signal.getsignal(signal.SIGINT)
        pid = os.fork()
        if pid:
            os.close(writing)
            return ForkedChild(pid, self, reading)
        try:
            os.close(reading)
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the caller and for the child inside
            sc.setns(self.pidfd, sc.CLONE_NEWUSER | sc.CLONE_NEWPID | self._namespaces())
            inner = os.fork()
            if inner:
                self.control.close()  # or we would keep the sandbox alive when the caller is killed
                _, status = os.waitpid(inner, 0)
                os.write(writing, struct.pack("i", status))
                os._exit(0)
        except BaseException:  # noqa: BLE001 - nothing of the caller's stack may run in this process
            os._exit(126)
        os.close(writing)
        signal.signal(signal.SIGINT, interrupt)
        self._join(0, ids)
        return None

    def _namespaces(self) -> int:
        made: int = self.plan.body["namespaces"]
        return made & (sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP | sc.CLONE_NEWNET)

    def _join(self, namespaces: int, ids: tuple[int, int]) -> None:
        """In the child: enters what it is not in yet, takes on its identity and gives up everything else."""
        global _inside
        if namespaces:
            sc.setns(self.pidfd, namespaces)
        _inside = True
        self.forget()
        if _supervisor is not None:
            _supervisor.forget()
        for number in self.plan.body["drop"]:
            sc.prctl(sc.PR_CAPBSET_DROP, number)
        if ids != (os.getuid(), os.getgid()):
            become(*ids)
        keep = self.plan.kept if ids[0] == 0 else 0
        sc.capset(keep, keep, 0)
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)

    def forget(self) -> None:
        """After a fork, in the child: closes its copies of our descriptors."""
        self.control.close()
        for fd in (self.pidfd, self.root, self.scratch):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.root = self.scratch = -1

    def let_go(self) -> None:
        """Ends the sandbox: init ends when our end of its socket closes, and all inside with it. Does not wait."""
        if self.pidfd < 0 and self.control.fileno() >= 0:
            with suppress(SandboxError, OSError):
                got = protocol.receive(self.control)  # its pidfd, by which we shall know that it has gone
                if got is not None and len(got[1]) == 3:
                    self.pidfd, self.root, self.scratch = got[1]
        self.control.close()

    def gone(self) -> bool:
        """As :meth:`wait_gone`, if that need not wait; False if it would have to."""
        if not all(child.ended() for child in self.children) or self.pidfd < 0 or not wait_readable(self.pidfd, 0):
            return False
        self.forget()
        return True

    def wait_gone(self) -> None:
        """Waits until nothing runs inside any more, and lets go of the writable layer."""
        for child in self.children:
            child.wait()  # init cannot end before all inside are reaped, and these are ours to reap
        if self.pidfd >= 0:
            wait_readable(self.pidfd)
        self.forget()


_inside = False


def inside() -> bool:
    """Whether this process was forked into a sandbox, or runs where one has left its mark."""
    return _inside or os.path.exists("/run/pytest-sandbox")


class ForkedChild:
    """A fork of the caller inside a sandbox; from :meth:`Running.fork` until it is waited for."""

    def __init__(self, pid: int, running: Running, status: int = -1) -> None:
        self.pid = pid
        self._running = running
        self._status = status
        self._pidfd = sc.pidfd_open(pid)
        self._returncode: int | None = None

    def fileno(self) -> int:
        """A descriptor that can be read once the child has ended."""
        return self._pidfd

    def ended(self) -> bool:
        """Whether it has ended; if so it is reaped."""
        if self._returncode is None and wait_readable(self._pidfd, 0):
            self.wait()
        return self._returncode is not None

    def wait(self) -> int:
        """Waits for the end; returns the exit status, or the negative number of the signal."""
        if self._returncode is None:
            _, status = os.waitpid(self.pid, 0)
            if self._status >= 0:
                inner = os.read(self._status, 4)
                os.close(self._status)
                if len(inner) == 4:
                    status = struct.unpack("i", inner)[0]
            os.close(self._pidfd)
            self._returncode = os.waitstatus_to_exitcode(status)
        return self._returncode

    def kill(self) -> None:
        """Kills it, and everything else inside but init."""
        with suppress(SandboxClosedError):
            self._running.request({"kill": int(signal.SIGKILL)})
