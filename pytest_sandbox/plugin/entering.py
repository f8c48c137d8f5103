"""How a test gets into its sandbox: what outlives the sandbox is set up, it is started, and pytest forks into it. Used
by ``attempt``, outside.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError, SandboxUnavailable

from . import asked, compat, extensions, higher, limits, traffic
from .fixtures import make_sandbox
from .guest import Guest
from .household import Fork
from .inbox import Inbox
from .options import PytestSandboxWarning
from .outgoing import Before
from .timers import Timers

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import Sandbox

    from .attempt import Attempt
    from .item import ItemRun

#: How often a test may ask for another fixture to be set up outside before it has to make do inside.
MOST_ATTEMPTS = 20


class Over(pytest.exit.Exception):  # type: ignore[name-defined,misc]
    """Unwinds pytest's set-up in the parent when the child has ended. Never leaves ``ItemRun.call_and_report``.

    Of the kind that pytest lets pass through a phase unreported.
    """


class Entry:
    """An attempt's way into its sandbox; more than one where the test asks for fixtures by name, and starts over."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.run = attempt.run
        self.conductor = attempt.conductor
        self._before: Before | None = None
        self._made: list[asked.Made] = []
        self._times = 0

    def set_up(self) -> None:
        """Sets up outside what outlives the sandbox, and forks. Returns in the child; raises ``Over`` in the parent.

        Called from the patched SetupState.setup, in the middle of pytest_runtest_setup. Where the sandbox cannot be
        had and the user said ``run``, sets the item up here and returns, with no child.
        """
        __tracebackhide__ = True
        item, conductor = self.run.item, self.conductor
        if self.run.error is not None:
            raise self.run.error
        assert item.parent is not None
        conductor.patch.setup(item.parent)
        if self._join_group():
            raise Over
        higher.set_up(self.run)
        entered = self._take_spare() or self.enter()
        while entered:
            self.attempt.listener.listen()
            if self.attempt.inbox.wanted is None:
                raise Over
            self.set_up_wanted()
            entered = self.enter("setup")
        if conductor.guest is not None:
            conductor.guest.hears_interrupts()
        conductor.patch.setup(item)

    def set_up_wanted(self) -> None:
        """The child asked for a fixture of higher scope by name: sets it up here, and forgets that attempt."""
        wanted, before = self._forget(), self._before
        assert before is not None
        assert before.printed is not None
        made = asked.set_up(self.run.item, wanted, before.printed, self.conductor.patch.stack)
        if made is not None:
            self._made.append(made)

    def enter(self, replay: str | None = None) -> bool:
        """Starts the sandbox and forks. False in the child, or where there is none: then the item is set up.

        :param replay: the phase in which the attempt before asked for what has been made since.
        """
        __tracebackhide__ = True
        item, conductor, group, signals = self.run.item, self.conductor, self.run.group, self.attempt.signals
        began = time.perf_counter()
        try:
            sandbox = start(self.run)
        except compat.TEST_OUTCOME as error:
            conductor.patch.stack[item] = ([], (error, error.__traceback__))
            raise
        if sandbox is None:
            return False
        extensions.started(item.config, sandbox)
        reading, writing = conductor.open_pipe()
        orders, commands = conductor.open_orders() if conductor.live or group is not None else (-1, -1)
        before = self._before = Before(conductor, item, self._may_start_over())
        self.attempt.inbox.may_start_over = before.printed is not None
        timers = self.attempt.timers = Timers(item, conductor.faults)
        signals.hold()
        conductor.copies.before_fork(group is None and sandbox.takes_one_fork())
        try:
            child = fork_into(sandbox, self.run)
        except (SandboxError, OSError) as error:
            for descriptor in (reading, writing, orders, commands):
                if descriptor >= 0:
                    os.close(descriptor)
            sandbox.discard()
            signals.let_through()
            raise failure(error) from None
        if child is None:
            if commands >= 0:
                os.close(commands)
            conductor.copies.inside()
            if self.run.spec.network == "none":
                traffic.watch()
            guest = conductor.guest = Guest(conductor, item, before, (writing, orders), group)
            guest.overhead = time.perf_counter() - began
            if replay is not None:
                guest.replay = asked.Replay(item.config, self._made, replay, conductor.live)
            timers.go_on_inside()
            guest.gate = signals.inside()
            return False
        os.close(writing)
        if orders >= 0:
            os.close(orders)
        conductor.copies.outside()
        timers.stand_still()
        conductor.spares.ahead(self.run)
        fork = Fork(sandbox, child, reading, commands)
        self._go_on_with(fork)
        if group is not None:
            group.fork = fork
        return True

    def _join_group(self) -> bool:
        """Has the process that the item's group shares run it, if there is one."""
        group, signals = self.run.group, self.attempt.signals
        if group is None or group.fork is None:
            return False
        signals.hold()
        if not group.fork.command(*self._order()):
            group.lost = group.lost or "while it waited for its next test"
            group.close()
            signals.let_through()
            return False
        self._go_on_with(group.fork)
        self.attempt.listener.listen()
        return True

    def _order(self) -> tuple[Any, ...]:
        """What the process of a group is told so that it runs this test."""
        return ("run", *self.conductor.order_of(self.run))

    def _take_spare(self) -> bool:
        """Has a child that waits for it run the item, if there is one."""
        conductor, signals = self.conductor, self.attempt.signals
        may_start_over = self._may_start_over()
        before = Before(conductor, self.run.item, may_start_over) if may_start_over else None
        spare = conductor.spares.take(self.run, may_start_over, signals.hold)
        if spare is None:
            signals.let_through()
            return False
        self._before = before
        self.attempt.inbox.may_start_over = before is not None
        self._go_on_with(spare)
        extensions.started(self.run.item.config, spare.sandbox)
        conductor.spares.ahead(self.run)
        return True

    def _go_on_with(self, fork: Fork) -> None:
        self.attempt.fork = fork
        self.attempt.forked = True
        if (trace := fork.sandbox.trace) is not None:
            trace.used_by(self.run.item.nodeid)
        self.attempt.limits = limits.Limits(self.run.item, fork.sandbox, self.run.spec)

    def _may_start_over(self) -> bool:
        """Whether an attempt of this test can be thrown away without anybody noticing."""
        spec = self.run.spec
        return (self.run.group is None and self._times < MOST_ATTEMPTS and spec.network == "none"
                and all(mount.read_only for mount in spec.mounts) and compat.may_request_by_name(self.run.item))

    def _forget(self) -> asked.Wanted:
        """Ends the child that asked for something, as if it had not been, and says what it asked for."""
        attempt = self.attempt
        fork, wanted = attempt.fork, attempt.inbox.wanted
        assert fork is not None
        assert wanted is not None
        fork.child.wait()
        fork.close()
        attempt.fork, attempt.forked = None, False
        if attempt.timers is not None:
            attempt.timers.go_on()
        attempt.inbox = Inbox(self.run.item, self.conductor.shared_objects)
        self._times += 1
        return wanted


def start(run: ItemRun) -> Sandbox | None:
    """The started sandbox; None to go on without.  Errors become the outcome of the test's set-up."""
    __tracebackhide__ = True
    try:
        sandbox = make_sandbox(run.conductor.sandbox_of(run))
        sandbox.check_fork(run.spec)
        sandbox.start()
    except SandboxUnavailable as error:
        unavailable = run.conductor.settings.unavailable
        if unavailable == "skip":
            raise compat.skip_at_item(f"{type(error).__name__}: {error}") from None
        if unavailable == "run":
            run.item.warn(PytestSandboxWarning(f"this test ran without its sandbox: {error}"))
            return None
        raise failure(error) from None
    except SandboxError as error:
        raise failure(error) from None
    return sandbox


def fork_into(sandbox: Sandbox, run: ItemRun) -> Any:
    """The child; None in it."""
    run.conductor.warm_up(run.item)
    run.conductor.prepare_for(run)
    streams = [sys.stdout, sys.stderr]
    if run.item.config.getoption("capture", "fd") != "fd":
        # The terminal's: what is printed goes through it, or stays in its buffer (--capture=tee-sys, sys). Under fd
        # its descriptor is pytest's file at this moment.
        streams += [sys.__stdout__, sys.__stderr__]
    for stream in streams:
        try:
            stream.flush()  # the child has a copy of every buffer
        except (AttributeError, OSError, ValueError):
            pass
    return sandbox.fork()


def failure(error: SandboxError | OSError) -> BaseException:
    """Fails the test with the error's own words; a traceback through this plugin would tell nobody anything."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return pytest.fail.Exception(
            f"{type(error).__name__}: {error}: the sandbox has no such directory to start the test in. Correct its "
            f"workdir option, or make the directory with the image or a mount.", pytrace=False)
    return pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False)
