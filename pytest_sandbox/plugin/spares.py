"""The next test's child, forked ahead of its test. One :class:`Spares` a session; used by ``conductor`` and ``item``.

A fork of pytest costs both sides: page tables are copied, and whoever writes to a page first copies it. So tests that
would find the same memory share a zygote (see ``runtime.zygote``), which forks each one's child into its sandbox while
the test before it runs. The child stands at the beginning of the test's protocol, and goes through all of it when it
is told to; the parent goes through it too, as far as the set-up, as for tests that share a sandbox.

What the child sees must be what a fork at the test itself would see. So there is a zygote only while nothing changes
the pytest process between one test and the next: no fixture of higher scope, no test outside of a sandbox, and no hook
that we do not know around each test. Where there is none the test is forked in its set-up, as ever.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from . import compat, neighbours, traffic
from .guest import Guest
from .household import Fork
from .outgoing import Before

if TYPE_CHECKING:
    from pytest_sandbox.runtime.zygote import Inside
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.spec import SandboxSpec

    from .conductor import Conductor
    from .item import ItemRun

#: Hooks that run in the pytest process around each test. Those of others may keep there what later tests look at.
AROUND = ("pytest_runtest_protocol", "pytest_runtest_logstart", "pytest_runtest_setup", "pytest_runtest_makereport",
          "pytest_runtest_logreport", "pytest_runtest_logfinish", "pytest_warning_recorded", "pytest_sandbox_started",
          "pytest_sandbox_finished")
#: Modules whose implementations of these keep nothing that a test could see, unless :func:`neighbours.watch` says so.
KNOWN = ("_pytest.", "pytest_sandbox.", "xdist.", "pytest_forked.", "pytest_reportlog.", "pytest_html.",
         "pytest_randomly.", "_hypothesis_pytestplugin.", "pytest_rerunfailures.", "pytest_timeout.",
         "pytest_benchmark.")
#: How many tests must be to come that can use a zygote, so that it is worth its own fork.
WORTH = 3
#: How many sandboxes wait beyond that of the next test, where tests of the same spec follow.
AHEAD = 2


class Spares:
    """Holds the zygote while there is one, and the child that waits for its test."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self._zygote: Any = None
        self._state: object = None  # of this process when the zygote was made
        self._left: object = None  # and at the end of the test before
        self._spare: tuple[Fork, SandboxSpec] | None = None
        self._wanted: ItemRun | None = None
        self._positions: dict[pytest.Item, int] = {}
        self._changes = 0
        self._failed = False

    def changed(self) -> None:
        """Something has changed this process that a later test may see."""
        self._changes += 1

    def before(self, run: ItemRun) -> None:
        """The protocol of ``run`` begins, and nothing of it has run. The child that a zygote forks begins here, too."""
        if run.party is not None:
            return  # nothing of it runs here
        state = self._now()
        if self._zygote is not None and state != self._state:
            self.retire()
        if self._zygote is None and state == self._left and not self._failed and self._is_worth_it(run):
            self._state = state
            self._begin(run)

    def after(self) -> None:
        """A sandboxed test's protocol is over."""
        self._left = self._now()

    def take(self, run: ItemRun, may_start_over: bool, hold: Callable[[], None]) -> Fork | None:
        """The child that waits for ``run``, told to begin, if there is one and it is as good as a fork made now.

        :param hold: called before it is told.
        """
        if self._wanted is run and self._spare is None:
            self._wait()
        spare, self._spare = self._spare, None
        if spare is None:
            return None
        fork, spec = spare
        position, following = self._position(run.item), run.nextitem
        hold()
        if (self._conductor.sandbox_of(run) is spec and self._now() == self._state and self._may_use(run)
                and fork.child.is_alive() and fork.command(
                    "run", position, self._position(following) if following is not None else None,
                    run.item.session.testsfailed, may_start_over)):
            return fork
        fork.close()
        return None

    def ahead(self, run: ItemRun) -> None:
        """``run``'s test has begun: has the child of the next one forked, as soon as there is a sandbox for it."""
        following = self._conductor.run_of(run.nextitem)
        self._wanted = None
        if (self._zygote is None or self._spare is not None or following is None
                or self._now() != self._state or not self._may_use(following)):
            return
        self._wanted = following
        self.go_on()

    @property
    def pending(self) -> int:
        """A descriptor that can be read when :meth:`go_on` has something to do; -1 when it has not."""
        if self._wanted is None:
            return -1
        from pytest_sandbox.sandbox import Sandbox

        return Sandbox.when_ready(self._conductor.sandbox_of(self._wanted))

    def go_on(self) -> None:
        """Has the wanted child forked if its sandbox is ready, and asks for the sandbox of the one after it."""
        from pytest_sandbox.sandbox import Sandbox

        wanted = self._wanted
        if wanted is None:
            return
        spec = self._conductor.sandbox_of(wanted)
        sandbox = Sandbox.ready(spec)
        if sandbox is not None:
            self._wanted = None
            self._ask(sandbox, spec)
        Sandbox.prepare(spec, self._soon(wanted, spec))

    def _soon(self, run: ItemRun, spec: SandboxSpec) -> int:
        """How many sandboxes to make ahead: for the tests after ``run`` that take the same, if there are any."""
        items, position = self._conductor.session.items, self._position(run.item) + 1
        count = 0
        for item in items[position:position + AHEAD]:
            following = self._conductor.run_of(item)
            if following is None or self._conductor.sandbox_of(following) is not spec:
                break
            count += 1
        return max(count, self._wanted is run)

    def _wait(self) -> None:
        """The wanted child's test begins: waits for its sandbox."""
        from pytest_sandbox.errors import SandboxError
        from pytest_sandbox.sandbox import Sandbox

        assert self._wanted is not None
        spec = self._conductor.sandbox_of(self._wanted)
        self._wanted = None
        try:
            self._ask(Sandbox(spec).start(), spec)
        except SandboxError:
            pass  # a fork in the set-up will say what is wrong

    def retire(self) -> None:
        """Ends the zygote, and the child that waits."""
        self._wanted = None
        spare, self._spare = self._spare, None
        if spare is not None:
            spare[0].close()
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            zygote.close()

    def _now(self) -> object:
        stack = self._conductor.patch.stack
        return self._changes, [(node, len(finalizers)) for node, (finalizers, _) in stack.items()]

    def _position(self, item: pytest.Item) -> int:
        if not self._positions:
            self._positions = {one: index for index, one in enumerate(self._conductor.session.items)}
        return self._positions[item]

    def _is_worth_it(self, run: ItemRun) -> bool:
        """Whether enough tests follow that will find this process as it is now."""
        position = self._position(run.item)
        items = self._conductor.session.items[position + 1:position + 1 + WORTH]
        spec = self._conductor.sandbox_of(run)
        for item in items:
            following = self._conductor.run_of(item)
            if (following is None or item.parent is not run.item.parent or not self._may_use(following)
                    or self._conductor.sandbox_of(following) is not spec):
                return False
        return len(items) == WORTH and self._are_hooks_known(run.item) and self._is_alone(run.item.config)

    @staticmethod
    def _is_alone(config: pytest.Config) -> bool:
        """Whether no thread but pytest's own changes this process's memory between the tests."""
        return len(os.listdir("/proc/self/task")) <= 1 + neighbours.threads(config)

    @staticmethod
    def _are_hooks_known(item: pytest.Item) -> bool:
        return all(f"{module}.".startswith(KNOWN) for module in compat.modules_of(item.config.hook, AROUND))

    def _may_use(self, run: ItemRun) -> bool:
        """Whether a child that begins at the protocol's beginning does what one would that begins in the set-up."""
        conductor = self._conductor
        return (run.group is None and run.party is None and not conductor.live and conductor.faults is None
                and compat.coverage_collector() is None and signal.getitimer(signal.ITIMER_REAL)[0] == 0
                and not compat.has_text_condition(run.item) and not neighbours.watch(run.item))

    def _begin(self, run: ItemRun) -> None:
        from pytest_sandbox.errors import SandboxError
        from pytest_sandbox.sandbox import Sandbox

        conductor = self._conductor
        conductor.warm_up(run.item)

        def ready() -> Inside:
            if conductor.sandbox_of(run).network == "none":
                traffic.watch()
            guest = conductor.guest = Guest(conductor, run.item, Before(conductor, run.item), (-1, -1), None, True)

            def inside(writing: int, orders: int) -> NoReturn:
                guest.connect(writing, orders)
                guest.serve()

            return inside

        try:
            self._zygote = Sandbox.zygote(ready, [conductor.sandbox_of(run)])
        except (OSError, SandboxError):
            self._failed = True  # a fork in the set-up will say what is wrong

    def _ask(self, sandbox: Sandbox, spec: SandboxSpec) -> None:
        from pytest_sandbox.errors import SandboxError

        conductor = self._conductor
        reading, writing = conductor.open_pipe()
        orders, commands = os.pipe2(os.O_CLOEXEC)
        try:
            child = sandbox.fork_by(self._zygote, (writing, orders))
        except (SandboxError, OSError):
            child = None
            self._failed = True  # a fork in the set-up will say what is wrong
        finally:
            os.close(writing)
            os.close(orders)
        if child is None:
            os.close(reading)
            os.close(commands)
            sandbox.discard()
            self.retire()
            return
        self._spare = Fork(sandbox, child, reading, commands), spec
