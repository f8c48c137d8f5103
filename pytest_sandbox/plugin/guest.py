"""The inside of one sandboxed item: runs in the forked child, from the fork in the item's set-up to ``os._exit``.

Time in here is mostly page faults: each page of memory that is touched first costs a copy (about 3 us in a virtual
machine), reference counts included. So what can be found out before the fork is (``Before``), and what is imported is
imported at the top.

pytest's own code goes on running here, with every hook, wrapper and plugin of the process that forked. What differs:
reports travel to the parent instead of to the terminal and its kin, only the item itself is torn down, and nothing
returns from the end of the teardown.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
from gc import collect
from json import loads
from os import _exit, getpid, getuid  # by name what runs when a test may have replaced the modules' own
from traceback import format_exc
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_sandbox.errors import SandboxProtocolError
from pytest_sandbox.runtime import entering

from . import compat, cover, databases, interrupts, reporting, traffic, wire
from .interrupts import Gate
from .outgoing import SECTION_LIMIT, Before, Outgoing

if TYPE_CHECKING:
    from .asked import Replay
    from .conductor import Conductor
    from .household import Group



class Elsewhere(BaseException):
    """Leaves the protocol of a test whose next attempt pytest, outside, does not make."""


class Guest:
    """Made by the fork, in the child; ends with the process. Holds the pipes to and from the parent.

    ``ahead``: in a zygote, whose children :meth:`connect` and :meth:`serve`.
    """

    def __init__(self, conductor: Conductor, item: pytest.Item, before: Before, pipes: tuple[int, int],
                 group: Group | None, ahead: bool = False) -> None:
        self.conductor = conductor
        self.group = group
        self.overhead = 0.0
        self.made: pytest.TestReport | None = None  # the report that pytest made last
        self.waits = False  # for the group's next test
        self.replay: Replay | None = None  # what the attempt before asked for
        self._may_start_over = before.printed is not None
        self._order: list[Any] = []
        self.gate: Gate | None = None  # closed until the test begins
        self._databases = before.databases
        self.connect(*pipes)
        compat.replace_implementations(before.report_hook, before.listeners)
        self._recorder = None
        if before.coverage is not None:
            self._recorder = cover.begin(before.coverage, before.data_files)
        conductor.patch.enter()
        compat.bound_output(item.config, SECTION_LIMIT - 1000)  # and with room for the mark
        if group is not None or ahead:
            compat.silence_progress(item.config)
        if conductor.fault_descriptor is not None:
            faulthandler.enable(conductor.fault_descriptor)
        if not gc.get_freeze_count():
            # All objects that there are become old, without a look at them: a collection of what a test leaves then
            # looks at the test's own, and copies no page of others.
            gc.freeze()
            gc.unfreeze()
        if ahead:  # of any test
            self.item = item
            self.waits = True
        else:
            self._begin(item, before)

    def connect(self, reports: int, orders: int) -> None:
        """In the process that will run tests: the pipes to and from the parent."""
        self.pid = getpid()
        self._descriptor = reports
        self._orders = os.fdopen(orders, "rb") if orders >= 0 else None

    def _begin(self, item: pytest.Item, before: Before) -> None:
        self.item = item
        if getuid() != self.conductor.uid:
            compat.leave_temporary_base(item.config)
        if self.conductor.held is not None:
            self.conductor.held.begin(item.config)
        traffic.begin()
        databases.move_inside(self._databases)
        self._databases = {}
        self.waits = False
        self._before = before
        self._outgoing = Outgoing(self.conductor, item, before)
        self._phase = self._due = "setup"  # where the test is, and what has yet to be reported
        self._left = False
        self._shipped: pytest.TestReport | None = None
        if entering.entered is not None:
            self._send(wire.encode(["entered", "setup", *entering.entered]))
            entering.entered = None

    # A process that serves several tests.

    def serve(self) -> NoReturn:
        """The protocol of the first test is over: runs one after the other what the parent asks for."""
        try:
            self._serve()
        finally:
            _exit(1)  # whatever it is: nothing of the child gets out of here

    def _serve(self) -> NoReturn:
        items = self.item.session.items
        while True:
            self._check_process()
            if not self.waits:
                self.broke()  # the protocol ended without a report of a teardown
            order = self._order or self._next_order()
            item = items[order[1]]
            nextitem = items[order[2]] if order[2] is not None else None
            self._order = order
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)
            except Elsewhere:
                pass
            except BaseException:  # noqa: BLE001 - as if it had reached pytest's own loop
                self.broke()

    def start(self, item: pytest.Item) -> None:
        """Another set-up begins: of the next test, or of another attempt of the same."""
        order = self._order or self._next_order()
        if item.session.items[order[1]] is not item:
            self._order = order
            raise Elsewhere
        self._order = []
        item.session.testsfailed = order[3]
        self._may_start_over = len(order) > 4 and order[4] is True
        if len(order) > 5:  # abroad
            if "line" in order[5]:
                compat.set_current_line(item.config, order[5]["line"])
            if order[5]["attempt"] is not None:
                compat.set_attempts(item, order[5]["attempt"])
        self._begin(item, Before(self.conductor, item))

    def _next_order(self) -> list[Any]:
        while True:
            gate = Gate(closed=True).enter()
            order = self._receive()
            if order[0] == "run":
                self.gate = gate  # an interrupt waits until the test has begun
                return order
            gate.forget()  # the parent's: no test runs here
            gate.leave()
            items = self.item.session.items
            self._leave(items[order[1]], items[order[2]] if order[2] is not None else None)

    def hears_interrupts(self) -> None:
        """Raises one that waited for the test to begin."""
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.leave()

    def _leave(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """A test is over that did not run in here, or was not known to be the last: tears down what no other needs."""
        self._begin(item, Before(self.conductor, item))
        self._phase = self._due = "teardown"

        def tear_down() -> None:
            __tracebackhide__ = True
            with compat.capturing(item, "teardown"):
                self.teardown_exact(nextitem)

        call = pytest.CallInfo.from_call(tear_down, when="teardown")
        # Not by the hook: plugins that make reports expect to have seen the item's set-up in the same process.
        self.reported("teardown", pytest.TestReport.from_item_and_call(item, call), nextitem)

    def _receive(self) -> list[Any]:
        """What the parent says next."""
        line = self._orders.readline() if self._orders is not None else b""
        if not line:
            _exit(1)  # it is gone
        order: list[Any] = loads(line)
        return order

    def leave_out_overhead(self, call: pytest.CallInfo[None]) -> None:
        """The time of the set-up without that of making the sandbox and forking into it."""
        if call.when == "setup":
            call.duration -= self.overhead
            call.stop -= self.overhead
            self.overhead = 0.0

    def logged(self, report: pytest.TestReport) -> None:
        """Someone logged a report: pytest the phase's own, which it made last, or a test that of a subtest."""
        self._check_process()
        if self._left or self.waits:
            return  # a teardown after the run was left, or whoever runs the phases logs what was sent
        if report is not self.made and self.conductor.live:
            self._may_start_over = False  # it is shown, and would be shown again
        with Gate(closed=True):  # an interrupt that comes meanwhile finds it sent
            self._ship(report)
        if self.conductor.live:
            _, line, in_line = self._receive()
            self._outgoing.shown(line, in_line)
        elif report is self.made:
            if self.conductor.keeper is not None:
                self.conductor.keeper.wait(report)
            elif self.conductor.keeps and report.failed and report.when != "teardown":
                self._receive()

    def _ship(self, report: pytest.TestReport) -> None:
        main, outgoing = report is self.made, self._outgoing
        if main:
            traffic.add_tried(report)
        outgoing.bound(report)
        changes = outgoing.changes(self._phase, self._is_shared)
        if main:
            self._shipped = report
            outgoing.sends(report, self._phase)
        try:
            data = reporting.report_to_data(report, self.item.config, outgoing.name_of)
            message = wire.encode(["report", self._phase, data, changes, main])
        except (TypeError, wire.NotData, RecursionError, SandboxProtocolError) as error:
            report = outgoing.unsendable(report, error)
            data = reporting.report_to_data(report, self.item.config, outgoing.name_of)
            message = wire.encode(["report", self._phase, data, {}, main])
        if self.conductor.live:
            self._flush()  # the parent shows the result next
        self._send(message)
        if main:
            goes_on = self._due == "setup" and report.passed and not self.item.config.getoption("setuponly", False)
            self._due = "call" if goes_on else "over" if self._due == "teardown" else "teardown"

    def reported(self, when: str, report: pytest.TestReport, nextitem: pytest.Item | None) -> None:
        """One phase is over, with ``report``. Returns from the last one only if the process serves another test."""
        self._check_process()
        if self.replay is not None and self.replay.phase == when:
            self.replay.end()
        if self._shipped is not report:  # whoever runs the phases logs the reports later
            self.made = report
            self.logged(report)
        elif compat.was_shown(report):
            self._send(wire.encode(["shown", when]))
        if when == "teardown":
            self._finish_test(nextitem)
            return
        self._phase = self._due

    def wants_outside(self, fixturedef: Any, request: Any) -> None:
        """A fixture of higher scope is about to be set up in here: the test asked for it by name.

        It would be another one for each test. So the parent is asked to set it up and to run the test again from the
        start, of which nothing can be noticed; where it could, the fixture is set up in here, for this test.
        """
        if not self._may_start_over or getpid() != self.pid:
            return
        if fixturedef.scope == "class" and request.node.getparent(pytest.Class) is None:
            return  # it lives as long as the test
        place = compat.fixture_place(fixturedef, request)
        if place is None or (self._phase == "teardown" and self.conductor.live):
            return
        path = (getattr(self.item, "funcargs", None) or {}).get("tmp_path")
        if path is not None:
            import shutil

            shutil.rmtree(path, ignore_errors=True)  # the next attempt makes one of the same name
        interrupts.ignore()
        self._flush()
        self._send(wire.encode(["fixture", self._phase, fixturedef.argname, place, logging.getLogger().level,
                                compat.is_held(self.item.config)]))
        _exit(0)

    def debugger(self, entered: bool) -> None:
        """Someone came to a debugger's prompt, or left it: meanwhile an interrupt is the debugger's."""
        if getpid() == self.pid and not self._left:
            self._may_start_over = False  # nobody types it all again
            if self.replay is not None:
                self.replay.end()
            self._send(wire.encode(["debugger", self._phase, entered, compat.current_line(self.item.config)]))

    def left_by(self, error: BaseException) -> NoReturn:
        """``pytest.exit`` or an interrupt ends the run: the parent raises it again. Function-scoped teardown first."""
        self._check_process()
        exits = isinstance(error, pytest.exit.Exception)
        message = ["exit", self._due, "Exit" if exits else "KeyboardInterrupt",
                   str(getattr(error, "msg", "") or ""), getattr(error, "returncode", None), reporting.place_of(error)]
        try:
            with Gate(closed=True):
                if self._shipped is not None and compat.was_shown(self._shipped):
                    self._send(wire.encode(["shown", self._phase]))
                self._send(wire.encode(message))
                self._left = True
            self.teardown_exact(None)
        except BaseException:  # noqa: BLE001 - the run is over whatever this says
            pass
        self.finish()

    def broke(self) -> NoReturn:
        """pytest or a plugin failed, not the test: the parent's run ends with this traceback, as it would have here."""
        self._check_process()
        try:
            interrupts.ignore()
            if not self._left:
                self._send(wire.encode(["broken", self._due, _traceback()[-100_000:]]))
        finally:
            self.finish()

    def _finish_test(self, nextitem: pytest.Item | None) -> None:
        group = self.group
        if group is None or not group.keeps(nextitem):
            self.finish()
        self._flush()
        with Gate(closed=True):
            self._send_coverage()
            self.waits = True
            self._outgoing.over()
            self._send(wire.encode(["waits"]))

    def finish(self) -> NoReturn:
        """The last thing that happens in here."""
        self._check_process()
        try:
            interrupts.ignore()  # the parent, too, knows of one that comes now
            self._flush()
            self._send_coverage()
            for function in entering.when_done:
                function()
            self._send(b"\0\0\0\x08[\"done\"]")
            for function in entering.when_told:
                function()
            _exit(0)
        finally:
            _exit(1)

    def _send_coverage(self) -> None:
        if self._recorder is not None:
            try:
                self._send(wire.encode(["coverage", "teardown", cover.take(self._recorder)]))
            except SandboxProtocolError as error:
                self._send(wire.encode(["coverage", "teardown", str(error)]))
            except Exception as error:  # noqa: BLE001 - coverage's own, where the test has replaced what it works with
                self._send(wire.encode(["coverage", "teardown", f"{type(error).__name__}: {error}"[:1000]]))

    def _flush(self) -> None:
        compat.flush_streams()

    def teardown_exact(self, nextitem: pytest.Item | None) -> None:
        """In place of pytest's: ends the item, and what it requested of higher scope for itself alone.

        A fixture of higher scope that the item asked for by name (``getfixturevalue``) was set up in here, so its
        finalizers are the ones that were not there at the fork. The last test of a group also ends what they shared.
        """
        __tracebackhide__ = True
        patch, group = self.conductor.patch, self.group
        exceptions: list[BaseException] = []
        needed: pytest.Item | pytest.Collector | None = self.item.parent
        if group is not None:
            needed = nextitem if group.keeps(nextitem) else group.node.parent
        try:
            patch.teardown_exact(needed)
        except compat.TEST_OUTCOME as error:
            exceptions.append(error)
        for node, (finalizers, _) in reversed(list(patch.stack.items())):
            if self._is_shared(node):
                continue  # its later tests have it too
            known = self._before.stack.get(node, 0)
            while len(finalizers) > known:
                try:
                    finalizers.pop()()
                except compat.TEST_OUTCOME as error:
                    exceptions.append(error)
        self._collect_garbage()
        if len(exceptions) == 1:
            raise exceptions[0]
        if exceptions:
            raise compat.exception_group("errors during test teardown", exceptions[::-1])

    def _collect_garbage(self) -> None:
        """What the test left in cycles: nothing collects it later, and ``__del__`` may have something to say.

        Only what is younger than the fork: a full collection would touch, and so copy, all of pytest's memory.
        """
        if self.item.config.pluginmanager.has_plugin("unraisableexception"):
            collect(1)

    def _is_shared(self, node: pytest.Item | pytest.Collector) -> bool:
        """Whether what is set up for ``node`` in here belongs to all tests of the group."""
        return self.group is not None and self.group.node in node.listchain()

    def _send(self, message: bytes) -> None:
        try:
            wire.write_all(self._descriptor, message)
        except OSError:  # the parent is gone: there is nobody to report to
            _exit(1)

    def _check_process(self) -> None:
        """A test that forked and came back here in the child too must not report twice."""
        if getpid() != self.pid:
            _exit(1)


def _traceback() -> str:
    """Of the exception that is handled now."""
    try:
        return format_exc()
    except Exception as error:  # noqa: BLE001 - the test may have replaced what reads files
        return f"{type(error.__context__).__name__}, whose traceback cannot be shown: {type(error).__name__}\n"
