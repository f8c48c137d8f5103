"""Puts sandboxed items into pytest's runner. One for each session that has any, made when collection has finished.

It does not own ``pytest_runtest_protocol``: pytest, or a plugin that repeats tests, drives the items, and this class
changes what two functions of the runner do for those items that are sandboxed (see ``compat``).
"""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError

from . import compat, extensions, imagefixture, persist, reporting, wire
from .abroad import Abroad, is_foreign
from .copies import Copies
from .guest import Elsewhere, Guest
from .household import form_groups
from .item import RUN, ItemRun
from .options import Settings
from .outputs import Outputs
from .party import ALSO
from .spares import Spares
from .timers import faulthandler_timer
from .traces import leave_out_own_frames

if TYPE_CHECKING:
    from pytest_sandbox.spec import Mount, SandboxSpec

    from .keeping import Keeper


#: Fixtures that hold what a test prints.
HOLDING = frozenset({"capsys", "capsysbinary", "capteesys", "capfd", "capfdbinary"})


class Conductor:
    """Registered as a plugin while a session with sandboxed items runs. In a fork, ``guest`` is the item's inside."""

    def __init__(self, session: pytest.Session, settings: Settings) -> None:
        compat.check()
        self.session = session
        self.settings = settings
        self.guest: Guest | None = None
        self.uid = os.getuid()
        self.fault_descriptor: int | None = None
        self.held: compat.Held | None = None
        self.outputs: Outputs | None = None
        self.live = compat.shows_as_it_happens(session.config)
        self.faults = faulthandler_timer(session.config)
        self.spares = Spares(self)
        self.copies = Copies()
        self.keeper: Keeper | None = session.config.pluginmanager.get_plugin("sandbox-keeper")
        if self.keeper is not None:
            self.keeper.open_gate()
        self.keeps = False  # in a guest: whether the caller keeps the sandboxes of failed tests
        self._persists: tuple[Mount, ...] | None = None
        self._specs: dict[SandboxSpec, SandboxSpec] = {}
        self._warm = False
        self._late: list[tuple[pytest.Item, SandboxSpec]] = []
        self.abroad: Abroad | None = None
        self._runs: list[ItemRun] = []
        self.patch = compat.SetupPatch(session, self._setup, self._teardown_exact)
        self._runner = compat.RunnerPatch(self._call_and_report, self._shows)

    def adopt(self, node: pytest.Item, spec: SandboxSpec, error: BaseException | None = None) -> None:
        """Makes ``node`` a sandboxed item.

        :param error: what its set-up is to fail with.
        """
        run = node.stash[RUN] = ItemRun(node, spec, self)
        run.error = error
        if error is not None:
            return
        if self.abroad is not None or (is_foreign(spec) and not self.settings.visiting):
            if self.abroad is None:
                self.abroad = Abroad(self)
            if is_foreign(spec):
                self.abroad.adopt(run)
        if spec.scope != "function":
            self._runs.append(run)

    def waits_for_image(self, node: pytest.Item, spec: SandboxSpec) -> bool:
        """Whether a fixture of the project's says which image ``node`` is for; it is adopted before the first test."""
        if self.settings.visiting or not imagefixture.is_overridden(node):
            return False
        self._late.append((node, spec))
        return True

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        if self._late:
            late, self._late = self._late, []
            for node, spec in late:
                error = None
                try:
                    spec = imagefixture.spec_of(self, node, spec)
                except (*compat.TEST_OUTCOME, SandboxError) as failed:
                    error = failed  # the test's, as of any fixture
                self.adopt(node, extensions.sourced(self.session.config, extensions.changed(node, spec)), error)
            self.adopted()
        try:
            return (yield)
        finally:
            if self.abroad is not None and self.guest is None:
                self.abroad.close()  # and not later: there is still somebody to be told

    def adopted(self) -> None:
        """All items have been seen.

        :raises pytest.UsageError: for tests that are to share a sandbox and cannot.
        """
        if self.abroad is not None:
            self.abroad.adopted()
        if self._runs:
            form_groups(self._runs, {item: index for index, item in enumerate(self.session.items)})

    @staticmethod
    def run_of(node: pytest.Item | None) -> ItemRun | None:
        """The place in the runner of ``node``, if it is one and sandboxed."""
        return node.stash.get(RUN, None) if node is not None else None

    def order_of(self, run: ItemRun) -> tuple[int, int | None, int]:
        """What a process that serves several tests must know about the next: it, what follows it, failures so far."""
        assert run.group is not None
        positions = run.group.positions
        following = positions[run.nextitem] if run.nextitem is not None else None
        return positions[run.item], following, self.session.testsfailed

    def undo(self) -> None:
        """The session is over: the runner is pytest's again."""
        for run in self._runs:
            if run.group is not None:
                run.group.close()
        self.spares.retire()
        self.copies.over()
        if self.abroad is not None:
            self.abroad.close()
        self._runner.undo()
        self.patch.undo()
        if self.held is not None:
            self.held.close()
            self.held = None
        if self.fault_descriptor is not None:
            os.close(self.fault_descriptor)
            self.fault_descriptor = None

    # In place of the runner's functions.

    def _call_and_report(self, item: pytest.Item, when: str, log: bool = True, **kwds: Any) -> pytest.TestReport:
        __tracebackhide__ = True
        if when == "teardown" and self.abroad is not None and self.guest is None and (
                late := self.abroad.leave(item, kwds.get("nextitem"))):
            report = self._call_phase(item, when, False, kwds)
            for one in late:
                reporting.add(report, one, ALSO)
            if log:
                item.ihook.pytest_runtest_logreport(report=report)
            return report
        return self._call_phase(item, when, log, kwds)

    def _call_phase(self, item: pytest.Item, when: str, log: bool, kwds: dict[str, Any]) -> pytest.TestReport:
        __tracebackhide__ = True
        run = item.stash.get(RUN, None)
        if run is None:
            return self._runner.call_and_report(item, when, log, **kwds)
        return run.call_and_report(self._runner.call_and_report, when, log, kwds)

    def _shows(self, item: pytest.Item) -> bool:
        """Whether ``--setup-show`` should show the item here: not if its inside did."""
        run = item.stash.get(RUN, None)
        return run is None or self.guest is not None or run.attempt is None or not run.attempt.forked

    def _setup(self, item: pytest.Item) -> None:
        __tracebackhide__ = True
        run = item.stash.get(RUN, None)
        if run is None or self.guest is not None:
            if run is not None and (error := run.error) is not None:  # in an image: a fixture of higher scope failed
                self.patch.stack[item] = ([], (error, error.__traceback__))
                raise error
            self.patch.setup(item)
            return
        if run.attempt is None:
            pytest.fail(f"{item.nodeid} is to run in a sandbox, but a plugin sets it up without pytest's "
                        f"call_and_report, so it would run outside. Leave that plugin out, or run with --sandbox=off.",
                        pytrace=False)
        run.attempt.entry.set_up()

    def _teardown_exact(self, nextitem: pytest.Item | None) -> None:
        assert self.guest is not None, "only replaced inside"
        self.guest.teardown_exact(nextitem)

    # Hooks.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None,
    ) -> Generator[None, object, object]:
        run = item.stash.get(RUN, None)
        if self.abroad is not None and self.guest is None:
            self.abroad.near(item, nextitem)
        if run is None:
            self.spares.changed()
            return (yield)
        if self.guest is not None:
            return (yield)  # in a process that serves several tests: its loop is below us
        run.nextitem = nextitem
        self.spares.before(run)
        try:
            return (yield)
        except Elsewhere:
            return True  # never seen: the process goes on below
        finally:
            if self.guest is not None:
                self.guest.serve()  # nothing of the child gets out of here
            run.close()
            self.spares.after()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport,
                                                                                  pytest.TestReport]:
        if call.excinfo is not None:
            try:
                leave_out_own_frames(call.excinfo.value)
            except TypeError:
                pass  # of a skipped subtest, pytest-subtests gives one that is none; pytest puts its own in its place
        if self.guest is None:
            return (yield)
        self.guest.leave_out_overhead(call)
        report = yield
        self.guest.made = report
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.guest is not None:
            self.guest.logged(report)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, object, object]:
        if self.guest is None:
            self.spares.changed()
        elif fixturedef.scope != "function":
            self.guest.wants_outside(fixturedef, request)
        elif fixturedef.argname in HOLDING and self.held is not None:
            value = yield
            self.held.fixture(value)
            return value
        return (yield)

    def pytest_enter_pdb(self) -> None:
        if self.guest is not None:
            self.guest.debugger(True)

    def pytest_leave_pdb(self) -> None:
        if self.guest is not None:
            self.guest.debugger(False)

    # What an attempt needs.

    def sandbox_of(self, run: ItemRun) -> SandboxSpec:
        """The spec of ``run``'s sandbox, with what persists of every test."""
        known = self._specs.get(run.spec)
        if known is None:
            known = self._specs[run.spec] = self.with_persistence(run.spec)
        return known

    def with_persistence(self, spec: SandboxSpec) -> SandboxSpec:
        """``spec`` with what persists of every test."""
        if self._persists is None:
            self._persists = persist.mounts(self.session.config)
        return spec.merged({"persist": self._persists, "timeout": None})

    def prepare_for(self, current: ItemRun) -> None:
        """Says that the next item's sandbox is wanted soon; it is made while the ``current`` test runs."""
        run = self.run_of(current.nextitem)
        if run is not None and run.party is None and (run.group is None or run.group is not current.group):
            from pytest_sandbox.sandbox import Sandbox

            Sandbox.prepare(self.sandbox_of(run))

    @staticmethod
    def open_pipe() -> tuple[int, int]:
        """A pipe from a child to here, whose reading end does not block."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        return reading, writing

    @staticmethod
    def open_orders() -> tuple[int, int]:
        """A pipe from here to a child. Its writing end does not block: a child may never read."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(writing, False)
        return reading, writing

    def shared_objects(self, node: pytest.Item) -> dict[str, object]:
        """The objects that exist inside and outside, by the name under which they travel."""
        shared: dict[str, object] = {"config": node.config}
        for index, one in enumerate(node.listchain()):
            shared[f"node:{index}"] = one
        for name, kind in (("module", pytest.Module), ("class", pytest.Class)):
            collector = node.getparent(kind)
            if collector is not None:
                shared[name] = getattr(collector, "obj", None)
        return shared

    def warm_up(self, node: pytest.Item) -> None:
        """Does before the first fork what every child would otherwise do for itself: first imports, first calls."""
        if self._warm:
            return
        self._warm = True
        self.held = compat.Held(node.config)
        self.outputs = Outputs(node.config, self)
        compat.temporary_base(node.config)
        call = pytest.CallInfo.from_call(lambda: None, when="setup")
        report = pytest.TestReport.from_item_and_call(node, call)
        data = reporting.report_to_data(report, node.config, lambda value: None)
        for message in wire.Decoder().feed(wire.encode(["report", "setup", data, {}, True])):
            reporting.report_from_data(message[2], node, lambda name: None)
        import linecache
        import traceback

        linecache.getline(__file__, 1)
        traceback.format_list([])
        if faulthandler.is_enabled() and hasattr(os, "memfd_create"):
            self.fault_descriptor = os.memfd_create("faulthandler", os.MFD_CLOEXEC)

    def take_fault_dump(self, run: ItemRun) -> str:
        """What faulthandler wrote in a child that died."""
        descriptor = self.fault_descriptor if run.party is None else run.party.hosting.dump
        if descriptor is None or descriptor < 0 or not os.fstat(descriptor).st_size:
            return ""
        text = os.pread(descriptor, 200_000, 0).decode(errors="replace")
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return text

