"""This process's supervisor, made when the first sandbox is wanted, and what all of its sandboxes have in common."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ..errors import SandboxClosedError
from . import cgroups, entering, frozen
from .hierarchies import announce
from .plan import Plan
from .running import Running
from .subids import Ids
from .supervisor import Supervisor, find_host

_supervisor: Supervisor | None = None
_builder: Supervisor | None = None
_ids: Ids | None = None
_retired: list[Supervisor] = []
_thawing: list[str] = []
_lock = threading.Lock()


def supervisor() -> Supervisor:
    """This process's supervisor; the first call, and the first after the helper's end, starts a helper."""
    global _supervisor
    with _lock:
        _thaw_all()
        if _supervisor is not None and _supervisor.pid == os.getpid():
            if _supervisor.alive:
                return _supervisor
            _supervisor.close()
        elif _supervisor is None:
            atexit.register(shutdown)
        _supervisor = Supervisor(find_host())
        return _supervisor


@contextmanager
def with_ids(ids: Ids) -> Iterator[None]:
    """While a build runs: sandboxes with ``owners`` are made by a helper of its own, which has subordinate ids."""
    global _builder, _ids
    _ids = ids
    try:
        yield
    finally:
        _ids = None
        if _builder is not None:
            _builder.close()
            _builder = None


def builder() -> Supervisor:
    """The supervisor of :func:`with_ids`.

    :raises SandboxClosedError: when there is none.
    """
    global _builder
    with _lock:
        if _ids is None:
            raise SandboxClosedError("there is no build in this process whose step this sandbox could be")
        if _builder is None or _builder.pid != os.getpid() or not _builder.alive:
            _builder = Supervisor(replace(find_host(), ids=_ids))
        return _builder


def renew() -> None:
    """From now on sandboxes are made by a new helper; the old one goes when the last that it has made is closed."""
    global _supervisor, _builder
    with _lock:
        if _builder is not None and _builder.pid == os.getpid():
            _retired.append(_builder)
            _builder = None
        if _supervisor is not None and _supervisor.pid == os.getpid():
            _supervisor.clear()
            _supervisor.recall()
            _retired.append(_supervisor)
            _supervisor = Supervisor(_supervisor.host)
        for one in [one for one in _retired if one.pid == os.getpid() and not one.in_use]:
            _retired.remove(one)
            one.close()


def drop(key: str) -> None:
    """Ends what was made ahead by one plan. Does nothing in a fork of the process that made it."""
    if _supervisor is not None and _supervisor.pid == os.getpid():
        _supervisor.drop(key)


def thaw(key: str) -> None:
    """Lets a frozen layer go, here and in every helper. Called by finalizers, which may run anywhere: never waits."""
    _thawing.append(key)
    if _lock.acquire(blocking=False):
        try:
            _thaw_all()
        finally:
            _lock.release()


def _thaw_all() -> None:
    while _thawing:
        key = _thawing.pop()
        for one in (*_retired, _builder, _supervisor):
            if one is not None and one.pid == os.getpid():
                one.thaw(key)
        frozen.release(key)


def finish_traces() -> None:
    """Ends what was made ahead, and takes in what there is to say of the sandboxes that were let go."""
    with _lock:
        for one in (*_retired, _builder, _supervisor):
            if one is not None and one.pid == os.getpid() and one.tracer is not None:
                one.clear()
                one.await_traces(2)


def take(plan: Plan) -> Running:
    """A ready sandbox of this process's supervisor; of a new one where the old one's helper turns out to be gone."""
    if plan.body.get("wide"):
        return builder().take(plan)
    try:
        return supervisor().take(plan)
    except SandboxClosedError:
        return supervisor().take(plan)


def shutdown() -> None:
    """Ends the helper and every sandbox of this process. Does nothing when there is none."""
    global _supervisor, _builder
    with _lock:
        for one in (*_retired, _builder, _supervisor):
            if one is not None and one.pid == os.getpid():
                one.close()
        _retired.clear()
        _supervisor = _builder = None
        for function in entering.when_over:
            function()
    cgroups.shutdown()


def _in_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it, and does not exist here


def _entered() -> None:
    for one in (*_retired, _builder, _supervisor):
        if one is not None:
            one.forget()


def _announce(place: str) -> None:
    for one in (_builder, _supervisor):
        if one is not None and one.pid == os.getpid():
            one.tell({"place": place})


os.register_at_fork(after_in_child=_in_fork)
announce.append(_announce)
entering.when_inside.append(_entered)
