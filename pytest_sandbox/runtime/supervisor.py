"""The caller's side of one helper: it owns the helper and the sandboxes made ahead. Made by :mod:`.launch`.

What it makes is a :class:`~.running.Running` each.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..errors import SandboxClosedError, SandboxError, SandboxStartError
from . import cgroups, frozen, pressure, protocol, shift, spawner, tracing
from . import syscalls as sc
from .plan import Host, Plan
from .protocol import wait_readable
from .running import GONE, Running, start_error, too_many_files

_INITIAL = "0 0 4294967295"
#: What the helper gets of the caller's environment, which nobody inside shall find in it: what Python needs to start.
_KEPT = ("LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH")


#: What looks at each sandbox before it is used (:mod:`.selftest`).
verify: list[Callable[[Running], object]] = []


def find_host() -> Host:
    """Who we are on this machine: real root that may mount, or somebody who needs a user namespace for it."""
    with open("/proc/self/uid_map") as file:
        initial = " ".join(file.read().split()) == _INITIAL
    privileged = initial and bool(sc.capget()[0] >> 21 & 1)  # CAP_SYS_ADMIN
    return Host(privileged, os.getuid(), os.getgid())


class Supervisor:
    """Owns this process's helper. Made by :func:`supervisor`, ended by :meth:`close` or with the process."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.told: set[str] = set()  # keys of plans and of frozen layers that the helper knows
        self.frozen: set[str] = set()
        self.mappable: set[str] = set()  # paths of layers whose file systems can show shifted ids
        self.ahead: dict[str, list[Running]] = {}
        self.ending: list[Running] = []
        self.made: weakref.WeakSet[Running] = weakref.WeakSet()
        self.pidfd = -1
        self.lost = False
        self.gauge = pressure.Gauge()
        self.has_made = False  # so that what the kernel refuses now it may give again
        self.tracer: socket.socket | None = None  # from the helper
        self.traced: dict[int, Plan] = {}  # by the number of the trace
        self.sock, theirs = protocol.pair()
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from pytest_sandbox.runtime.helper import main; main()"
        with theirs:
            lifeline = sc.pidfd_open(os.getpid())
            try:
                self.launcher: subprocess.Popen[bytes] | None = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-B", "-c", code, package, str(theirs.fileno()), str(lifeline),
                     f"{'root' if host.privileged else 'user'}{' nested' if host.nested else ''}",
                     os.environ.get(spawner.VARIABLE, ""),
                     *("\t".join(one) for one in ((host.ids.uids, host.ids.gids) if host.ids is not None else ()))],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                    env={name: os.environ[name] for name in _KEPT if name in os.environ},
                    pass_fds=(theirs.fileno(), lifeline), start_new_session=True)
            except OSError as error:
                self.sock.close()
                raise SandboxStartError("the helper process of the sandboxes could not start", step="helper",
                                        path=sys.executable, errno=error.errno, why=str(error)) from error
            finally:
                os.close(lifeline)
        for place in cgroups.places():
            self.tell({"place": place})

    @property
    def alive(self) -> bool:
        """Whether sandboxes can still be asked for: the helper runs, or has yet to say how its start went."""
        if self.lost:
            return False
        return self.launcher is not None or (self.pidfd >= 0 and not wait_readable(self.pidfd, 0))

    def greet(self) -> None:
        """Waits until the helper is there.

        :raises SandboxStartError: when it could not set itself up.
        """
        if self.launcher is None:
            return
        try:
            got = protocol.receive(self.sock)
        except ConnectionResetError:  # it ended and had not read all; its last words come after this error
            got = protocol.receive(self.sock)
        self.launcher.wait()
        self.launcher = None
        if got is None:
            raise SandboxStartError("the helper process of the sandboxes ended while it started", step="helper",
                                    remedy="Run `pytest-sandbox doctor` to see what this host lacks.")
        message, fds = got
        self.pidfd = fds[0]
        if "failed" in message:
            self.lost = True
            raise start_error(message["failed"])

    def make(self, plan: Plan) -> Running:
        """Asks for a sandbox; returns at once. Its :meth:`Running.wait_ready` tells how it went."""
        with self.lock:
            self.greet()
            for key in plan.frozen - self.told:
                self.freeze(key)
            try:
                ours, theirs = protocol.pair()
            except OSError as error:
                if error.errno == errno.EMFILE:
                    raise too_many_files() from error
                raise
            layout = plan.body["group"]
            group = None
            message: protocol.Message = {"make": plan.key}
            if layout is not None:
                message["group"] = cgroups.next_name()
                group = cgroups.host_control().group(layout, message["group"])
                group.tell = self.tell
            trace = self._trace(plan)
            if trace is not None:
                message["trace"] = trace.number
            try:
                with theirs:
                    if plan.key not in self.told:
                        protocol.send(self.sock, {"plan": plan.key, "body": plan.body})
                        self.told.add(plan.key)
                    protocol.send(self.sock, message, (theirs.fileno(),))
            except OSError as error:
                ours.close()
                if error.errno not in GONE:
                    raise
                self.lost = True
                raise SandboxClosedError("the helper process of the sandboxes has ended", why=error.strerror) from error
            made = Running(ours, plan, self.host, group)
            made.tell = self.tell
            if trace is not None:
                made.trace = trace
                trace.add("pytest", "ask for a sandbox", trace.asked)
            self.made.add(made)
            return made

    def shifts(self, body: dict[str, Any]) -> str:
        """Why the sandboxes of a plan cannot have shifted ids here; empty where they can.

        :raises SandboxStartError: when the helper could not start.
        """
        lowers, binds = shift.asked(body)
        with self.lock:
            wanted = [one for one in lowers if one not in self.mappable]
            if self.mappable and not wanted and not binds:
                return ""
            self.greet()
            ours, theirs = protocol.pair()
            with ours:
                with theirs:
                    self.tell({"shift": {"range": shift.the_range(), "lowers": wanted, "binds": binds}},
                              (theirs.fileno(),))
                got = protocol.receive(ours)
            if got is None:
                raise SandboxClosedError("the helper process of the sandboxes has ended")
            if not got[0]:
                self.mappable.update(wanted)
            return shift.told(got[0])

    def _trace(self, plan: Plan) -> tracing.Trace | None:
        recorder = tracing.recorder
        if recorder is None:
            return None
        if self.tracer is None:
            self.tracer, theirs = protocol.pair()
            self.tracer.setblocking(False)
            with theirs:
                self.tell({"trace": True}, (theirs.fileno(),))
        self.hear_traces()
        trace = recorder.begin()
        self.traced[trace.number] = plan
        return trace

    def hear_traces(self) -> None:
        """Takes in what the helper has said of how long its steps took."""
        recorder, got = tracing.recorder, None
        while self.tracer is not None and recorder is not None:
            try:
                got = protocol.receive(self.tracer)
            except (OSError, protocol.BadMessage):
                return
            if got is None:
                return
            number = got[0]["trace"]
            if number in self.traced:
                recorder.heard(number, got[0]["marks"], self.traced[number].body)

    def await_traces(self, seconds: float) -> None:
        """The same for the ends of all that was let go: waits for these, no longer than so many seconds."""
        recorder, until = tracing.recorder, time.monotonic() + seconds
        while recorder is not None:
            self.hear_traces()
            if all(trace.over for number in self.traced if (trace := recorder.traces[number]).let_go):
                return
            if self.tracer is None or not wait_readable(self.tracer.fileno(), until - time.monotonic()):
                return

    def freeze(self, key: str) -> None:
        """Hands a frozen layer to the helper."""
        protocol.send(self.sock, {"freeze": key}, (frozen.descriptor(key),))
        self.told.add(key)
        self.frozen.add(key)

    def recall(self) -> None:
        """Gets the frozen layers back, for another helper: a mount can be attached only once, so as copies of it."""
        with self.lock:
            for key in self.frozen:
                with suppress(OSError, protocol.BadMessage):
                    ours, theirs = protocol.pair()
                    with ours:
                        with theirs:
                            protocol.send(self.sock, {"recall": key}, (theirs.fileno(),))
                        if (got := protocol.receive(ours)) is not None and got[1]:
                            frozen.renew(key, got[1][0])
            self.frozen.clear()

    def thaw(self, key: str) -> None:
        """Tells the helper that a frozen layer is not needed any more."""
        with self.lock:
            if key in self.frozen:
                self.frozen.discard(key)
                self.told.discard(key)
                with suppress(OSError):
                    protocol.send(self.sock, {"thaw": key})

    def tell(self, message: protocol.Message, fds: tuple[int, ...] = ()) -> bool:
        """Sends the helper something that has no answer; False when it has ended."""
        with self.lock:
            try:
                protocol.send(self.sock, message, fds)
            except OSError:
                return False
            return True

    def take(self, plan: Plan) -> Running:
        """A ready sandbox: one that was made ahead, or a new one."""
        pauses = iter(pressure.PAUSES)
        while True:
            with self.lock:
                ready = self._made_ahead(plan)
                made = self.make(plan) if ready is None else None
            if ready is not None:
                break
            assert made is not None
            try:
                made.wait_ready()
            except SandboxStartError as error:
                short = self.has_made and pressure.may_pass(error.errno, error.step)
                if not short or not self.make_room(pauses):
                    raise
                continue
            ready = made
            self.has_made = True
            break
        for function in verify:
            function(ready)
        return ready

    def make_room(self, pauses: Iterator[float]) -> bool:
        """The kernel is short of something: gives back what waits ahead, and waits a moment. False at the last attempt.

        What was let go a moment ago may yet have to be taken down.
        """
        self.clear()
        pause = next(pauses, None)
        if pause is None:
            return False
        time.sleep(pause)
        return True

    def _made_ahead(self, plan: Plan) -> Running | None:
        while waiting := self.ahead.get(plan.key):
            ready = waiting.pop(0)
            with suppress(SandboxError):
                ready.wait_ready()
                if ready.alive:
                    ready.began = time.monotonic()
                    return ready
            ready.let_go()
            ready.wait_gone()
        return None

    def take_ready(self, plan: Plan) -> Running | None:
        """A sandbox that was made ahead and is ready now, if there is one."""
        with self.lock:
            waiting = self.ahead.get(plan.key)
            return self.take(plan) if waiting and waiting[0].is_ready() else None

    def when_ready(self, plan: Plan) -> int:
        """A descriptor that can be read when :meth:`take_ready` will find one; -1 if there is none to come."""
        waiting = self.ahead.get(plan.key)
        return waiting[0].control.fileno() if waiting else -1

    def prepare(self, plan: Plan, count: int = 1) -> None:
        """Makes sandboxes ahead until ``count`` wait. Those of other plans are let go: memory is not free.

        Fewer, or none, while the machine is loaded or one of its limits is near.
        """
        with self.lock:
            count = self.gauge.allowed(count, len(self.made))
            for key in [key for key in self.ahead if key != plan.key]:
                for one in self.ahead.pop(key):
                    self.end(one)
            waiting = self.ahead.setdefault(plan.key, [])
            with suppress(SandboxStartError):  # whoever takes one is told
                while len(waiting) < count:
                    waiting.append(self.make(plan))

    def drop(self, key: str) -> None:
        """Ends what was made ahead by one plan, and what is on its way out."""
        with self.lock:
            for one in [*self.ahead.pop(key, ()), *self.ending]:
                one.let_go()
                one.wait_gone()
            self.ending.clear()

    def end(self, one: Running) -> None:
        """Lets a sandbox go without waiting for its end; at most a few are on their way out at a time."""
        one.let_go()
        with self.lock:
            self.ending.append(one)
            self.ending = [each for each in self.ending if not each.gone()]
            while len(self.ending) > 4:
                self.ending.pop(0).wait_gone()

    @property
    def in_use(self) -> bool:
        """Whether one of its sandboxes is not closed yet."""
        return any(one.control.fileno() >= 0 for one in self.made)

    def clear(self) -> None:
        """Ends what was made ahead."""
        with self.lock:
            ahead = [one for waiting in self.ahead.values() for one in waiting]
            for one in ahead:
                one.let_go()
            for one in [*ahead, *self.ending]:
                one.wait_gone()
            self.ahead.clear()
            self.ending.clear()

    def close(self) -> None:
        """Ends every sandbox and the helper, and waits for it."""
        with self.lock:
            with suppress(SandboxError, protocol.BadMessage, OSError):
                self.greet()  # which brings its pidfd, by which it can be waited for
            for one in [*self.made]:
                one.let_go()
            for one in [*self.made]:
                one.reap()
            self.clear()
            self.hear_traces()
            if self.tracer is not None:
                self.tracer.close()
            self.tell({"bye": True})
            with suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)  # to close it is not enough while a fork of ours has a copy
            self.sock.close()
            if self.pidfd >= 0:
                with suppress(ChildProcessError):
                    os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED)
                os.close(self.pidfd)
                self.pidfd = -1

    def forget(self) -> None:
        """In a fork of the caller: closes our copies, so that nothing of the caller's lives on in the child."""
        self.sock.close()
        if self.tracer is not None:
            self.tracer.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = -1
