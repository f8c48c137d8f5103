"""The lifetime of a sandbox: asked for ahead, started, entered by forks, reset, ended. The base of ``Sandbox``."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from .errors import SandboxClosedError, SandboxError, SandboxStartError, SandboxUsageError
from .planning import is_host, plan_for
from .runtime import launch, pressure
from .runtime import syscalls as sc
from .runtime.children import ForkedChild
from .runtime.entering import go_to
from .runtime.running import Running
from .runtime.tracing import now
from .spec import Endpoint, SandboxSpec, parse_options

if TYPE_CHECKING:
    from .deadline import Deadline
    from .images import Image
    from .runtime.tracing import Trace
    from .runtime.zygote import Inside, RemoteChild, Zygote
    from .sandbox import Sandbox

_Self = TypeVar("_Self", bound="Lifetime")


def _take(spec: SandboxSpec, attempts: int = 3) -> Running:
    """A ready sandbox by the plan of ``spec``; by another plan where the host's mounts have changed meanwhile."""
    plan = plan_for(spec)
    try:
        return launch.take(plan)
    except SandboxStartError as error:
        if attempts > 1 and plan_for(spec).key != plan.key:
            return _take(spec, attempts - 1)
        if launch.supervisor().has_made and pressure.may_pass(error.errno, error.step):
            raise  # this host can, and is short of something now
        from .runtime.probe import explain
        raise explain(error) from error


class Lifetime:
    """What a sandbox is from its making to its end. Only as :class:`Sandbox`."""

    def __init__(self, spec: SandboxSpec | None = None, **options: Any) -> None:
        self.spec = (spec or SandboxSpec()).merged(parse_options(options))
        self._running: Running | None = None
        self._closed = False
        self._onward: Image | None = None  # what a commit goes on with, until the next reset
        self._ahead: str | None = None  # the plan by which another one was made ahead
        self._deadline: Deadline | None = None
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not started" if self._running is None else "running"
        return f"<Sandbox image={self.spec.image!r} user={self.spec.user or 'me'!r} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} cannot be pickled: it belongs to the process that made it. "
                        "Pickle its spec, and make another with Sandbox(spec).")

    # Ahead of its use.

    @classmethod
    def prepare(cls, spec: SandboxSpec, count: int = 1) -> None:
        """Says that sandboxes of this spec are wanted soon: as many are made in the background.

        Never raises, never waits.
        """
        with suppress(Exception):  # a real start will raise it where somebody can act on it
            plan = plan_for(spec)  # which may bring another supervisor
            launch.supervisor().prepare(plan, count)

    @staticmethod
    def when_ready(spec: SandboxSpec) -> int:
        """A descriptor that can be read when :meth:`ready` will find one; -1 if there is none to come."""
        plan = plan_for(spec)
        return launch.supervisor().when_ready(plan)

    @classmethod
    def ready(cls: type[_Self], spec: SandboxSpec) -> _Self | None:
        """A started sandbox, if one that :meth:`prepare` asked for is ready now."""
        with suppress(SandboxError):
            plan = plan_for(spec)
            running = launch.supervisor().take_ready(plan)
            if running is not None:
                sandbox = cls(spec)
                sandbox._running = running
                return sandbox
        return None

    def adopt(self, running: Running) -> None:
        """Takes a sandbox over that was made for it by another supervisor than this process's, and joins its networks.

        :raises SandboxError: when it cannot; nothing is left of it.
        """
        if self.spec.network not in ("none", "host"):
            self._connect(running)
        self._running = running

    # The lifetime.

    def start(self: _Self) -> _Self:
        """Starts it; does nothing when it runs.

        :raises SandboxUnavailable: when this host cannot give what the spec asks for.
        :raises SandboxStartError: when a step of the start-up failed. Nothing is left of it.
        """
        self._ready()
        return self

    def _ready(self) -> Running:
        with self._lock:
            if self._closed:
                raise SandboxClosedError("this sandbox is closed", remedy="Make a new Sandbox; to start afresh, use "
                                                                          "reset() instead of close().")
            if self._running is None:
                began = now()
                running = _take(self._spec_now())
                if running.trace is not None:
                    running.trace.add("pytest", "have it", began)
                if self.spec.network not in ("none", "host"):
                    self._connect(running)
                self._running = running
                if self.spec.timeout is not None and self._deadline is None:
                    from .deadline import Deadline
                    self._deadline = Deadline(cast("Sandbox", self), self.spec.timeout)
            return self._running

    def _connect(self, running: Running) -> None:
        """Joins its networks."""
        try:
            endpoints = self.spec.network
            if endpoints == "outbound":
                from .outbound import Outbound
                endpoints = [Endpoint(Outbound())]
            for position, endpoint in enumerate(endpoints):
                endpoint.network.attach(cast("Sandbox", self), running, endpoint, position)
        except BaseException:
            running.let_go()
            running.wait_gone()
            raise

    def _in_time(self) -> Running:
        """As :meth:`_ready`, for what runs something inside.

        :raises TimeLimitExceeded: when its ``timeout`` has passed.
        """
        __tracebackhide__ = True
        running = self._ready()
        if self._deadline is not None:
            self._deadline.raise_if_over()
        return running

    @property
    def runs(self) -> bool:
        """Whether it has been started and not been closed."""
        return self._running is not None and not self._closed

    @property
    def trace(self) -> Trace | None:
        """Where its time goes, if somebody wants to know (:mod:`.runtime.tracing`)."""
        return self._running.trace if self._running is not None else None

    def _spec_now(self) -> SandboxSpec:
        return self.spec if self._onward is None else replace(self.spec, image=self._onward)

    def _part(self) -> Running | None:
        deadline = self._deadline
        if self._closed and deadline is not None:
            deadline.cancel()
        with self._lock:
            running, self._running = self._running, None
            return running

    def close(self) -> None:
        """Ends everything inside and forgets the writable layer. Does nothing when it is closed already."""
        self._closed = True
        self._onward = None
        if self._ahead is not None:
            launch.drop(self._ahead)
            self._ahead = None
        running = self._part()
        if running is not None:
            running.let_go()
            running.wait_gone()

    def discard(self) -> None:
        """As :meth:`close`, without waiting for the end, unless what runs inside could still be met outside."""
        if self._can_be_met_outside():
            self.close()
        self._closed = True
        running = self._part()
        if running is not None:
            launch.supervisor().end(running)

    def _can_be_met_outside(self) -> bool:
        return self.spec.network == "host" or any(not one.read_only for one in self.spec.mounts)

    def reset(self) -> None:
        """Throws the writable layer and all processes away and starts afresh, also when the old ones have ended.

        :raises SandboxClosedError: after :meth:`close`.
        """
        running = None if self._closed else self._part()
        self._onward = None
        if running is not None:
            if self._can_be_met_outside():
                running.let_go()
                running.wait_gone()
            else:
                launch.supervisor().end(running)
        plan = self._ready().plan
        if running is not None:  # who resets once will do so again: the next one is made beside what comes now
            self._ahead = plan.key
            with suppress(SandboxError):
                launch.supervisor().prepare(plan)

    @property
    def is_overdue(self) -> bool:
        """Whether its ``timeout`` had passed, and no call has told so yet."""
        return self._deadline is not None and not self._deadline.told and self._deadline.error is not None

    def raise_untold(self) -> None:
        """Raises the limit that ended it, unless a call has done so already.

        :raises TimeLimitExceeded: when its ``timeout`` had passed.
        """
        if self._deadline is not None and not self._deadline.told:
            self._deadline.raise_if_over()

    def __enter__(self: _Self) -> _Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # Forks of the caller's.

    @property
    def ids(self) -> tuple[int, int]:
        """The uid and gid that processes have inside."""
        return self._ready().plan.ids

    @staticmethod
    def check_fork(spec: SandboxSpec) -> None:
        """Whether this process could go on in such a sandbox.

        :raises SandboxUsageError: when its image is another system than the host.
        """
        if not is_host(spec.image):
            raise SandboxUsageError(
                f"a test's body cannot run in image {spec.image!r} yet", option="image", value=spec.image,
                why="its process is a fork of pytest, whose interpreter and libraries are the host's",
                remedy='Use image="host", or request the sandbox fixture and run commands in the image with it.')

    def fork(self) -> ForkedChild | None:
        """Forks the calling process into the sandbox.

        Returns None in the child, which sees the sandbox's root and namespaces and stands in the spec's working
        directory, else in the caller's; in the parent a :class:`ForkedChild`.

        :raises FileNotFoundError: when there is no such directory inside.
        :raises SandboxClosedError: when the sandbox has ended.
        """
        self.check_fork(self.spec)
        running = self._in_time()
        where = self._directory(running)
        child = self._fork(running)
        if child is None:
            self._closed, self._running = True, None  # it belongs to the parent
            go_to(where, self.spec.env)
        return child

    def _fork(self, running: Running) -> ForkedChild | None:
        """Forks into it; where there is no room for another process, once more when what waits ahead is given back."""
        for pause in pressure.PAUSES:
            try:
                return running.fork(self.ids)
            except OSError as error:
                if error.errno != errno.EAGAIN:
                    raise
                launch.supervisor().make_room(iter((pause,)))
        return running.fork(self.ids)

    def _directory(self, running: Running) -> str:
        """Where a fork goes on. It must exist.

        :raises FileNotFoundError: when it does not.
        """
        where = self.spec.workdir or os.getcwd()
        if running.alive:  # else the fork will say what is wrong
            os.close(sc.openat2(running.root, where, os.O_PATH | os.O_DIRECTORY, resolve=sc.RESOLVE_IN_ROOT))
        return where

    @staticmethod
    def takes_one_fork() -> bool:
        """Whether :meth:`fork` is one fork of this process; where the caller is not root it is a fork of a fork."""
        return launch.supervisor().host.privileged

    @staticmethod
    def zygote(ready: Callable[[], Inside], specs: Iterable[SandboxSpec]) -> Zygote:
        """Forks a process that stays as this one is now, and forks the children of :meth:`fork_by`.

        :param ready: called once in that process; returns what the children do inside, which must not return.
        :param specs: of the sandboxes that the children will go into.
        """
        from .runtime.zygote import Zygote
        plans = {plan.key: plan for plan in map(plan_for, specs)}
        return Zygote(ready, plans, launch.supervisor().host)

    def fork_by(self, zygote: Zygote, descriptors: tuple[int, int]) -> RemoteChild | None:
        """As :meth:`fork`, of the ``zygote``'s memory, and without waiting; None if that does not know this sandbox."""
        running = self._ready()
        if running.plan.key not in zygote.plans:
            return None
        where = self._directory(running)
        return zygote.fork(running, running.plan.ids, where, list(self.spec.env), descriptors)
