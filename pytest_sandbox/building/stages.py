"""Carries a build's stages out: those that do not depend on one another at the same time. For ``builder``.

One thread a stage, of which one at a time has its *turn*: the store, the context and the records are for one thread at
a time. What takes long, a ``RUN`` or a download, is done aside, and another stage goes on meanwhile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from ..errors import SandboxError
from .text import Containerfile, Stage

if TYPE_CHECKING:
    from ..sandbox import Sandbox
    from .builder import Builder, State


class Stopped(Exception):
    """Another stage has failed: this one ends, too."""


class Stages:
    """The stages of one build, each made at most once."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._turn = threading.Lock()
        self._slots = threading.BoundedSemaphore(max(2, os.cpu_count() or 1))
        self._jobs: dict[int, Future[State]] = {}
        self._made: dict[int, State] = {}  # without threads
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[Sandbox] = set()
        self._failed = False

    def make(self, target: Stage) -> State:
        """The state of a stage, after all that it needs.

        :raises ImageBuildError: of the stage that failed first.
        """
        needed = needs(self._builder.file, target)
        if len(needed) == 1:  # in this thread
            with self._turn:
                return self._builder.make(target)
        with ThreadPoolExecutor(len(self._builder.file.stages), "sandbox-build") as self._pool:
            try:
                with self._turn:
                    for stage in sorted(needed, key=lambda one: one.number):
                        self._start(stage)
                jobs = [self._jobs[one.number] for one in sorted(needed, key=lambda one: one.number)]
                for job in jobs:
                    with suppress(Exception):
                        job.result()
                for job in jobs:
                    if (error := job.exception()) is not None and not isinstance(error, Stopped):
                        raise error
                return self._jobs[target.number].result()
            except BaseException:
                self.stop()
                raise

    def of(self, stage: Stage) -> State:
        """The state of another stage, which is made if it has to be. Called by a stage, in its turn."""
        if self._pool is None:
            if stage.number not in self._made:
                self._made[stage.number] = self._builder.make(stage)
            return self._made[stage.number]
        job = self._start(stage)
        if not job.done():
            with self.aside(), suppress(Exception):
                job.result()
        if isinstance(job.exception(), Exception):
            raise Stopped
        return job.result()

    def _start(self, stage: Stage) -> Future[State]:
        if stage.number not in self._jobs:
            assert self._pool is not None
            self._jobs[stage.number] = self._pool.submit(self._run, stage)
        return self._jobs[stage.number]

    def _run(self, stage: Stage) -> State:
        with self._turn:
            try:
                return self._builder.make(stage)
            except BaseException:
                self.stop()
                raise

    def check(self) -> None:
        """Between two steps.

        :raises Stopped: when another stage has failed.
        """
        if self._failed:
            raise Stopped

    def stop(self) -> None:
        """A stage has failed, or the user gave up: what runs is killed, and nothing more begins."""
        self._failed = True
        for one in list(self._running):
            with suppress(SandboxError, OSError):
                one.kill()

    @contextmanager
    def aside(self, sandbox: Sandbox | None = None) -> Iterator[None]:
        """While a stage waits, or does what disturbs no other. ``sandbox``: that runs meanwhile."""
        if sandbox is not None:
            self._running.add(sandbox)
        self._turn.release()
        try:
            if sandbox is None:
                yield
            else:
                with self._slots:
                    self.check()
                    yield
        finally:
            self._turn.acquire()
            if sandbox is not None:
                self._running.discard(sandbox)


def needs(file: Containerfile, target: Stage) -> set[Stage]:
    """A stage and those that it takes from, as far as that can be told before variables have values."""
    found: set[Stage] = set()
    todo = [target]
    while todo:
        stage = todo.pop()
        if stage in found:
            continue
        found.add(stage)
        names = [stage.base.words[0]]
        for step in stage.steps:
            for flag in step.flags:
                if flag.startswith("--from="):
                    names.append(flag[len("--from="):])
                elif flag.startswith("--mount="):
                    names += [part[len("from="):] for part in flag[len("--mount="):].split(",")
                              if part.startswith("from=")]
        todo += [one for one in map(file.find, names) if one is not None and one.number < stage.number]
    return found
