"""The tests of one image, and what their guest does for them: children, fixtures of higher scope. Used by ``attempt``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError, SandboxGuestError

from . import compat, passing, reporting
from .hosting import Hosting
from .household import Fork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_sandbox.runtime.guestchild import GuestChild
    from pytest_sandbox.runtime.plan import Plan
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.spec import SandboxSpec

    from .abroad import Abroad
    from .asked import Wanted
    from .item import ItemRun

#: How many sandboxes wait for the tests after the one at hand.
AHEAD = 2
#: The heading of a second failure in one teardown.
ALSO = "Teardown of fixtures in the image"


class Party:
    """Made when collection has finished, for the tests of one image and one interpreter in it."""

    def __init__(self, abroad: Abroad, spec: SandboxSpec) -> None:
        self.abroad = abroad
        self.conductor = abroad.conductor
        self.runs: list[ItemRun] = []
        self.hosting = Hosting(abroad, spec, self.runs)
        self.image = self.hosting.name
        self._plans: dict[SandboxSpec, Plan] = {}
        self._waiting: tuple[Fork, ItemRun] | None = None
        self._last: ItemRun | None = None
        self._late: pytest.TestReport | None = None
        self.warned: list[Any] = []  # of fixtures that ended after their test, and not told yet
        self._used = time.monotonic()

    def idle(self) -> float:
        """For how long no test has needed the guest, in seconds."""
        return time.monotonic() - max(self._used, self.hosting.began)

    def may_rest(self) -> bool:
        """Whether no process of the guest's waits for the next test of a group."""
        return not any(run.group is not None and run.group.fork is not None for run in self.runs)

    def rest(self) -> pytest.TestReport | None:
        """Ends the guest for now, as after its last test. The next test that needs a guest gets a new one.

        Returns what there is to report of its fixtures' end, as of its last test.
        """
        report = self._tear_down(self._last, None)
        self._end()
        return report

    def explain(self, report: pytest.TestReport) -> None:
        """Adds to a failed ``report`` whose fixtures they were, where it will be told of another test."""
        if report.failed:
            report.sections.append(("Sandbox", f"These fixtures were set up in image {self.image!r}, for tests that "
                                               "ran before."))

    def _end(self) -> None:
        """Ends the guest, if there is one."""
        guest, well = self.hosting.guest, self.hosting.there
        self._settle()
        self._drop_waiting()
        if guest is not None and well:
            try:
                answer = guest.ask({"finish": True}, (), self.hosting.patience(), "finished its session")
                self.hosting.measured(answer.get("coverage"))
            except SandboxError as error:
                self.abroad.tell_once(str(error))
        self._forget()
        if well:
            self.hosting.rested()

    def sandbox(self, run: ItemRun) -> Sandbox:
        """A started sandbox for ``run``.

        :raises SandboxError: when it cannot be had.
        """
        from pytest_sandbox.sandbox import Sandbox

        guest = self.hosting.ready()
        self._position(run.item)  # before anything is made for it
        spec = self._spec_of(run)
        sandbox = Sandbox(spec)
        sandbox.adopt(guest.take(self._plan(spec)))
        return sandbox

    def _spec_of(self, run: ItemRun) -> SandboxSpec:
        from pytest_sandbox import grafts
        from pytest_sandbox.spec import Mount

        spec = self.conductor.sandbox_of(run)
        if self.hosting.image is not None:
            spec = spec.merged({"image": self.hosting.image})
        return spec.merged({"mounts": (*spec.mounts, Mount(grafts.graft_made(), grafts.TARGET, True))})

    def _plan(self, spec: SandboxSpec) -> Plan:
        known = self._plans.get(spec)
        if known is None:
            from pytest_sandbox.planning import plan_abroad
            from pytest_sandbox.runtime.guestplans import upon

            known = self._plans[spec] = upon(plan_abroad(spec, self.abroad.visible()))
        return known

    def set_up_wanted(self, item: pytest.Item, wanted: Wanted) -> None:
        """A test has asked for a fixture of higher scope by name: has the guest set it up."""
        guest = self.hosting.guest
        assert guest is not None
        self._settle()
        self._drop_waiting()  # it has not what will be there now
        self._hear(guest.ask({"wanted": [wanted.name, wanted.place, wanted.level, wanted.held],
                              "item": self._position(item), **self._place()}, (), self.hosting.patience(),
                             "set up a fixture"), item)

    # The child of the next test is forked ahead, where nothing is set up for it that the test at hand could see.

    def wait_for_next(self, run: ItemRun, following: ItemRun) -> bool:
        """``run``'s test has begun: asks for the sandbox of the ``following`` one, which is of this party.

        Returns whether its child may be forked before ``run``'s test has ended.
        """
        guest = self.hosting.guest
        if guest is None or self._waiting is not None or not self.hosting.there:
            return False
        if run.group is not None or following.group is not None or (
                following.spec.network not in ("none", "host") or passing.names(following.item)):
            return False
        before = run if run.party is self else self._last
        try:
            guest.supervisor.prepare(self._plan(self._spec_of(following)), AHEAD)
        except (SandboxError, OSError):
            return False  # a start in its own time will say what is wrong
        return before is not None and following.item.nodeid in self._positions() and _nothing_new(before, following)

    def pending(self, run: ItemRun) -> int:
        """A descriptor that can be read when :meth:`fork_ahead` need not wait; -1 if there is none."""
        guest = self.hosting.guest
        return -1 if guest is None else guest.supervisor.when_ready(self._plan(self._spec_of(run)))

    def fork_ahead(self, run: ItemRun) -> None:
        """Has ``run``'s child forked, into a sandbox that is ready. Never raises, never waits."""
        if self.hosting.guest is None or self._waiting is not None:
            return
        from pytest_sandbox.sandbox import Sandbox

        try:
            spec = self._spec_of(run)
            plan = self._plan(spec)
            running = self.hosting.guest.supervisor.take_ready(plan)
            if running is not None:
                running.beneath = self.hosting.guest.layer
                sandbox = Sandbox(spec)
                sandbox.adopt(running)
                self._waiting = self._fork_into(sandbox, run, None, {}), run
                self.hosting.guest.supervisor.prepare(plan, AHEAD)
        except (SandboxError, OSError):
            pass  # a fork in its own time will say what is wrong

    def _settle(self) -> None:
        """Hears what the guest answers about the child that waits, before it is asked something else."""
        if self._waiting is not None:
            try:
                there = self._waiting[0].child.is_there()  # type: ignore[attr-defined]
            except SandboxError:
                there = False
            if not there:
                self._drop_waiting()

    def _drop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting[0].close()

    def fork(self, run: ItemRun, replay: str | None, shared: dict[str, Any]) -> Fork:
        """The child that waits to run ``run``'s test, in its sandbox.

        :param replay: the phase in which the attempt before asked for what has been made since.
        :param shared: values of fixtures that are made out here.
        :raises SandboxError: when there is none to be had.
        """
        self._settle()
        self._last = run
        self._used = time.monotonic()
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            if waiting[1] is run and replay is None and waiting[0].child.is_alive():
                return waiting[0]
            waiting[0].close()
        fork = self._fork_into(self.sandbox(run), run, replay, shared)
        child: GuestChild = fork.child  # type: ignore[assignment]
        try:
            there = child.is_there()
        except BaseException:
            fork.close()
            self._lost_in(run)
            raise
        if not there:
            fork.close()
            raise SandboxGuestError(f"the guest of image {self.image!r} could not enter the test's sandbox",
                                    image=self.image)
        self._hear(child.said, run.item)
        if (late := child.said.get("late")) is not None:
            self._late = reporting.report_from_data(late, run.item, lambda name: None)  # told with the test's own end
            self.explain(self._late)
        return fork

    def _lost_in(self, run: ItemRun) -> None:
        if self.hosting.guest is not None and not self.hosting.guest.alive():
            self._forget()

    def _fork_into(self, sandbox: Sandbox, run: ItemRun, replay: str | None, shared: dict[str, Any]) -> Fork:
        conductor, guest = self.conductor, self.hosting.ready()
        reading, writing = conductor.open_pipe()
        orders, commands = conductor.open_orders()
        try:
            child = guest.fork(sandbox._ready(), sandbox.spec.workdir or self.hosting.directory(),
                               list(sandbox.spec.env), (writing, orders),
                               {"item": self._position(run.item), "replay": replay, "shared": shared,
                                "attempt": compat.attempts(run.item), **self._place()},
                               self.hosting.patience())
        except BaseException:
            os.close(reading)
            os.close(commands)
            sandbox.discard()
            raise
        finally:
            os.close(writing)
            os.close(orders)
        return Fork(sandbox, child, reading, commands)

    def times(self, item: pytest.Item) -> bool:
        """Whether pytest-timeout is in there, too, and will end ``item``'s test."""
        collected = self.hosting.collected
        return (compat.timeout_settings(item) is not None and collected is not None
                and "pytest-timeout" not in collected.lacking)

    def order(self, run: ItemRun, may_start_over: bool) -> tuple[Any, ...]:
        """What the child is told so that it begins."""
        following = self.following(run.item, run.nextitem)
        if run.group is not None and not run.group.keeps(run.nextitem):
            following = None
        return ("run", self._position(run.item),
                self._positions().get(following.nodeid) if following is not None else None,
                run.item.session.testsfailed, may_start_over,
                {"attempt": compat.attempts(run.item), **self._place()})

    def leaving(self, run: ItemRun, nextitem: pytest.Item | None) -> tuple[int, int | None]:
        """What the process of a group is told so that it tears down what ``nextitem`` does not need."""
        assert run.group is not None
        following = self.following(run.item, nextitem) if run.group.keeps(nextitem) else None
        return self._position(run.item), None if following is None else self._position(following)

    def following(self, item: pytest.Item, nextitem: pytest.Item | None) -> pytest.Item | None:
        """The test after ``item`` that this guest runs, as far as anybody knows; None if there is none."""
        if nextitem is None:
            return None
        run = self.conductor.run_of(nextitem)
        if run is not None and run.party is self:
            return nextitem
        position = self.abroad.position(nextitem)
        return next((one.item for one in self.runs if self.abroad.position(one.item) > position), None)

    def left(self, item: pytest.Item, nextitem: pytest.Item | None) -> pytest.TestReport | None:
        """``item`` is over: has the guest tear down what it set up and no later test needs.

        Returns what there is to report of that, as of ``item``'s teardown.
        """
        following = self.following(item, nextitem)
        self._used = time.monotonic()
        late, self._late = self._late, None
        report = None
        if following is not None and following is not nextitem and self.abroad.is_short() and self.may_rest():
            following = None
        if self.hosting.collected is not None and (following is None or following.parent is not item.parent):
            report = self._tear_down(self.conductor.run_of(item), following)
        if following is None:
            self._end()
        if late is not None and report is not None:
            reporting.add(late, report, ALSO)
        return late or report

    def _tear_down(self, run: ItemRun | None, following: pytest.Item | None) -> pytest.TestReport | None:
        """Has the guest tear down what the ``following`` test does not need. The report is of ``run``'s item."""
        guest = self.hosting.guest
        place = self._positions().get(run.item.nodeid) if run is not None else None
        if guest is None or run is None or place is None:
            return None
        self._settle()
        self._drop_waiting()
        try:
            after = self._positions().get(following.nodeid) if following is not None else None
            answer = guest.ask({"leave": place, "next": after, **self._place()}, (), self.hosting.patience(),
                               "tore down fixtures")
            self.hosting.forward()
            self._hear(answer, run.item)
            data = answer.get("left")
            return None if data is None else reporting.report_from_data(data, run.item, lambda name: None)
        except SandboxError as error:
            self._forget()
            return failed(run.item, "teardown", error)

    def _place(self) -> dict[str, str]:
        """Where the terminal stands, for whoever writes next into its line; nothing where only we write."""
        return {"line": compat.current_line(self.abroad.config)} if self.conductor.live else {}

    def _hear(self, answer: Mapping[str, Any], item: pytest.Item) -> None:
        """Takes out of what the guest said what its fixtures have left: warnings, and what is for the JUnit report."""
        junit, added = compat.junit(item.config), answer.get("properties")
        if junit is not None and isinstance(added, list):
            junit.suite_properties().extend((str(name), str(value)) for name, value in added)
        if self.conductor.live and isinstance(line := answer.get("line"), str):
            compat.set_current_line(item.config, line[:1000])
        sent = answer.get("warnings")
        for one in sent if isinstance(sent, list) else ():
            self.warned.append(reporting.warning_from_data(one, self.abroad.is_worker))
        run = self.conductor.run_of(item)
        if run is not None and run.attempt is not None:  # else they are told with the test at hand
            run.warnings += self.warned
            self.warned.clear()

    def residue(self) -> dict[str, str]:
        """What a test that died had printed and not reported."""
        if self.hosting.guest is None:
            return {}
        self._settle()
        try:
            found = self.hosting.guest.ask({"residue": True}, (), 10.0, "was asked what a test had printed").get(
                "residue")
        except SandboxError:
            return {}
        if not isinstance(found, dict):
            return {}
        return {str(name): str(text) for name, text in found.items() if name in ("stdout", "stderr")}

    def _forget(self) -> None:
        self._drop_waiting()
        self.hosting.forget()

    def _positions(self) -> dict[str, int]:
        collected = self.hosting.collected
        return {} if collected is None else collected.positions

    def _position(self, item: pytest.Item) -> int:
        collected = self.hosting.collected
        assert collected is not None
        return collected.position(item)


def _nothing_new(before: ItemRun, following: ItemRun) -> bool:
    """Whether all fixtures of higher scope that a test wants are there since the one ``before`` it, which stays."""
    one, other = before.item, following.item
    return one.parent is other.parent and set(compat.higher_fixtures(other)) <= set(compat.higher_fixtures(one)) and (
        compat.higher_parameters(one, "function") == compat.higher_parameters(other, "function"))


def failed(item: pytest.Item, when: Any, error: BaseException) -> pytest.TestReport:
    """The report of a phase that failed with an error of ours."""
    def fail() -> None:
        raise pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False)

    call = pytest.CallInfo.from_call(fail, when=when)
    return pytest.TestReport.from_item_and_call(item, call)
