"""The guest's process: a pytest session in an image's own Python, forked for each test. ``abroad`` is its other side.

It collects the files that the caller's session names, once, sets up fixtures of higher scope before the first test that
wants them and tears them down after the last, and forks. In the fork pytest goes through the test's whole protocol, as
in a child of a zygote (``spares``), and says what ``guest`` has it say, to the caller's process and not to this one.

What goes wrong in here ends this process, or is told; no answer is given that was not asked for.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pytest_sandbox.runtime import protocol
from pytest_sandbox.runtime.aboard import Aboard

from . import asked, compat, higher, lacking, measuring, passing, reporting, traffic, wire
from .guest import Guest
from .outgoing import Before
from .traces import leave_out_own_frames

if TYPE_CHECKING:
    from pytest_sandbox.runtime.zygote import Inside

    from .conductor import Conductor
    from .item import ItemRun

#: What a session in here must not do though the caller's does: choose among the tests, stop early, distribute them.
_PLAIN: dict[str, Any] = {
    "keyword": "", "markexpr": "", "deselect": None, "lf": False, "failedfirst": False, "newfirst": False,
    "stepwise": False, "stepwise_skip": False, "stepwise_reset": False, "cacheclear": False, "maxfail": 0,
    "collectonly": False, "numprocesses": None, "dist": "no", "tx": [], "basetemp": None, "strict_config": False,
    "continue_on_collection_errors": True, "keepduplicates": False, "ignore": None, "ignore_glob": None,
    "sandbox_keep": "none", "sandbox_report": None, "sandbox_usage": None, "sandbox_trace": None,
    "sandbox_selftest": False, "sandbox_replay": None, "xmlpath": None, "log_file": None, "htmlpath": None,
    "report_log": None, "pastebin": None, "cov_source": [], "no_cov": True,
    "splits": None, "group": None, "store_durations": False,
    "version": 0, "help": False, "showfixtures": False, "show_fixtures_per_test": False, "markers": False,
}
#: Options that a plugin, pytest-django, reads out of the arguments before pytest has taken them in.
_EARLY = ("ds", "dc")
#: The longest text of one problem that is told.
_LONGEST = 20_000
#: How many warnings of one set-up or teardown are told.
_MOST_WARNINGS = 1000


def visit(sock: socket.socket) -> NoReturn:
    """The guest's whole life."""
    os.set_inheritable(sock.fileno(), False)
    visitor: Visitor | None = None
    try:
        protocol.send(sock, {"hello": list(sys.version_info[:3])})
        got = protocol.receive(sock)
        if got is None:
            os._exit(0)
        order = got[0]["session"]
        if order["written"]:
            shutil.rmtree(order["written"], ignore_errors=True)
        visitor = Visitor(order, got[1])
        dump = visitor.conductor.fault_descriptor if visitor.conductor is not None else None
        protocol.send(sock, {"collected": visitor.told}, () if dump is None else (dump,))
        with compat.logging_as_in_tests(visitor.config):
            Aboard(sock, visitor.answer, visitor.prepare).serve_aboard(visitor.inside())
    except BaseException:  # noqa: BLE001 - whatever it is, the caller shall hear of it
        text = traceback.format_exc()[-_LONGEST:]
        try:
            protocol.send(sock, {"broken": text})
        except OSError:
            pass  # it is gone
    os._exit(1)


class _Collected:
    """Leaves the tests that are ``wanted``, in their order. Remembers what else there is, and what there is not."""

    def __init__(self, wanted: list[str]) -> None:
        self.problems: dict[str, str] = {}
        self.ids: list[str] = []
        self._wanted = wanted

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known: dict[str, pytest.Item] = {}
        for item in items:
            known.setdefault(item.nodeid, item)
        self.ids = sorted(known)
        items[:] = [known[one] for one in self._wanted if one in known]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.problems[report.nodeid] = report.longreprtext[-_LONGEST:]
        elif report.skipped:
            self.problems[report.nodeid] = f"skipped: {report.longreprtext[-_LONGEST:]}"


class Visitor:
    """The session; from its making until the process ends. ``told`` is what the caller is to know of it.

    :param order: what ``briefing`` says of the caller's session.
    :param fds: what the tests' standard input, output and error are without capturing, and their log file.
    """

    def __init__(self, order: dict[str, Any], fds: list[int]) -> None:
        os.environ.update(order["environ"])
        sys.path[1:1] = [one for one in order["path"] if one not in sys.path]
        self._nowhere = open(os.devnull, "w")  # noqa: SIM115 - as long as we live
        self._writer: Any = None
        self.measuring = measuring.begin(order["coverage"], _graft("measuring"))
        self.lacking: list[str] = []
        config = self.config = self._configure(order)
        collected = _Collected(order["wanted"])
        config.pluginmanager.register(collected, "sandbox-visitor")
        config.pluginmanager.register(lacking.Lacking(order["fixtures"], order["image"]), "sandbox-lacking")
        session = self.session = pytest.Session.from_config(config)
        compat.configure(config)
        self._silence(order)
        config.hook.pytest_sessionstart(session=session)
        try:
            config.hook.pytest_collection(session=session)
        except pytest.UsageError as error:
            collected.problems[""] = str(error)[-_LONGEST:]
        except pytest.exit.Exception as error:
            collected.problems[""] = f"pytest.exit: {error.msg}"[-_LONGEST:]
        self.conductor: Conductor | None = config.pluginmanager.get_plugin("sandbox-conductor")
        for item in session.items:
            passing.prune(item)
        positions = {item.nodeid: position for position, item in enumerate(session.items)}
        self.told = {
            "positions": positions,
            "ids": collected.ids[:10_000] if any(one not in positions for one in order["wanted"]) else [],
            "problems": collected.problems, "lacking": self.lacking, "path": sys.path,
            "coverage": self._measured(),
            "plugins": sorted({f"{dist.project_name}" for _, dist in config.pluginmanager.list_plugin_distinfo()}),
        }
        if self.conductor is not None:
            self.conductor.live, self.conductor.keeps = order["live"], order["keeps"]
            if session.items:
                self.conductor.warm_up(session.items[0])
            if order["basetemp"]:
                compat.use_temporary_base(config, order["basetemp"])
        self._appear(order, fds)
        self.order: dict[str, Any] = {}
        self.properties = 0  # how many of the JUnit report's are told
        self.made: dict[int, list[asked.Made]] = {}  # what the test at hand has asked for by name
        self.printed: dict[int, compat.Printed] = {}  # how things stood at its fork

    def _configure(self, order: dict[str, Any]) -> pytest.Config:
        args = ["-c", order["ini"]] if order["ini"] else []
        args += ["--rootdir", order["rootdir"], "-p", "no:sandbox", "-p", "pytest_sandbox.plugin"]
        for one in order["plugins"]:
            if not one.startswith("no:") and importlib.util.find_spec(one.partition(".")[0]) is None:
                self.lacking.append(one)
                continue
            args += ["-p", one]
        options = {name: wire.unpack(value, lambda name: None) for name, value in order["options"].items()}
        # A worker of pytest-xdist's has no such report.
        reported = bool(options.get("xmlpath")) and "PYTEST_XDIST_WORKER" not in order["environ"]
        options |= {name: value for name, value in _PLAIN.items() if name in options}
        if reported:
            options["xmlpath"] = os.devnull  # what tests put into the caller's JUnit report, they find
        for name in _EARLY:
            if options.get(name):
                args.append(f"--{name}={options[name]}")
        options["plugins"] = []
        options["override_ini"] = [*(options.get("override_ini") or ()), "sandbox_keep=none", "sandbox_report="]
        for name in ("pytest_sandbox", __package__):
            # Or pytest warns that they can be rewritten no more, which is an error where the ini file says so.
            sys.modules[name].__doc__ = f"PYTEST_DONT_REWRITE {sys.modules[name].__doc__}"
        os.chdir(order["cwd"])
        sys.argv[1:] = []
        return pytest.Config.fromdictargs(options, [*args, *order["args"]])

    def _silence(self, order: dict[str, Any]) -> None:
        """The terminal is the caller's: what would be written there by us is not."""
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            writer = self._writer = compat.terminal_writer(self.config, self._nowhere)
            writer.hasmarkup, writer.fullwidth = order["markup"], order["width"]
            compat.use_terminal_writer(self.config, writer)

    def _appear(self, order: dict[str, Any], fds: list[int]) -> None:
        """The tests are next: what they show is shown, and what they log is logged, as where the caller forks them.

        Until now it went to a file, for the caller to tell if we fail; the caller has shown what collecting prints.
        """
        *streams, log = fds
        self._shown = compat.Diverted(self.config, dict(enumerate(streams)))
        for stream, descriptor in ((sys.__stdout__, streams[1]), (sys.__stderr__, streams[2])):
            if stream is not None and os.isatty(descriptor):
                stream.reconfigure(line_buffering=True)
        for one in streams:
            os.close(one)
        compat.use_log_file(self.config, log)
        if self._writer is not None:
            compat.write_to(self._writer, sys.__stdout__)
        self.config.option.maxfail = order["options"].get("maxfail", 0)

    def _disappear(self) -> None:
        """The tests are over."""
        if self._writer is not None:
            compat.write_to(self._writer, self._nowhere)
        self._shown.end()

    def _measured(self) -> dict[str, Any] | str | None:
        return self.measuring.take() if isinstance(self.measuring, measuring.Measuring) else self.measuring

    # Between tests.

    def run_of(self, position: int) -> ItemRun:
        assert self.conductor is not None
        run = self.conductor.run_of(self.session.items[position])
        assert run is not None, "the caller sandboxes it, and the same marker is read here"
        return run

    def prepare(self, order: protocol.Message) -> protocol.Message:
        """Sets up what outlives the test that is to be forked; what fails there is raised again in the fork."""
        conductor = self.conductor
        assert conductor is not None
        self.order = order
        run = self.run_of(order["item"])
        item, stack = run.item, conductor.patch.stack
        passing.arrive(item, order["shared"])
        if order["replay"] is None:
            self.made[order["item"]] = []
            compat.begin_anew(item)
            if (order["attempt"] or 1) > 1:
                compat.forget_failures(item)
        run.error = None
        self._go_on_at(order)
        compat.begin_live_log(self.config)
        with compat.apart(self.config), compat.catching_warnings(item) as warned:  # the test before may still run
            # There is something where nobody could know that this test would come next.
            late = self.tear_down(item, item)
            guest, conductor.guest = conductor.guest, None
            try:
                with compat.capturing(item, "setup"):
                    compat.seed(item, "setup")
                    if not compat.is_skipped_by_mark(item):
                        self.set_up(run)
            except compat.TEST_OUTCOME:
                pass  # pytest keeps it
            finally:
                stack.pop(item, None)
                conductor.guest = guest
        self.printed[order["item"]] = compat.Printed(self.config)
        compat.continue_live_log(self.config)
        compat.flush_streams()
        return {"late": late, **self.told_of(warned)}

    def set_up(self, run: ItemRun) -> None:
        """Sets up what outlives ``run``'s test."""
        assert self.conductor is not None
        assert run.item.parent is not None
        self.conductor.patch.setup(run.item.parent)
        try:
            higher.set_up(run)
        except compat.TEST_OUTCOME as error:
            run.error = error

    def answer(self, message: protocol.Message) -> protocol.Message:
        """What else the caller asks for."""
        self._go_on_at(message)
        compat.forked_live_log(self.config)
        try:
            return self._answer(message)
        finally:
            compat.flush_streams()

    def _go_on_at(self, message: protocol.Message) -> None:
        if "line" in message:
            compat.set_current_line(self.config, message["line"])

    def _answer(self, message: protocol.Message) -> protocol.Message:
        conductor = self.conductor
        assert conductor is not None
        if "leave" in message:
            items = self.session.items
            self.made.pop(message["leave"], None)
            self.printed.pop(message["leave"], None)
            following = message["next"]
            item = items[message["leave"]]
            with compat.catching_warnings(item) as warned:
                left = self.tear_down(item, items[following] if following is not None else None)
            return {"left": left, **self.told_of(warned)}
        if "wanted" in message:
            with compat.catching_warnings(self.session.items[message["item"]]) as warned:
                self.set_up_wanted(message["item"], asked.Wanted(*message["wanted"]))
            return {"made": True, **self.told_of(warned)}
        if "residue" in message:
            return {"residue": compat.captured_so_far(self.config, 1 << 20)}
        if "finish" in message:
            self._disappear()
            compat.keep_temporary_base(self.config)
            self.config.hook.pytest_sessionfinish(session=self.session, exitstatus=0)
            compat.unconfigure(self.config)
            return {"finished": True, "coverage": self._measured()}
        raise ValueError(f"an unknown message: {sorted(message)}")

    def told_of(self, warned: list[Any]) -> protocol.Message:
        """What else fixtures of higher scope have left: warnings, and what they put into the JUnit report."""
        junit = compat.junit(self.config)
        added = [] if junit is None else junit.suite_properties()[self.properties:]
        self.properties += len(added)
        return {"warnings": [reporting.warning_to_data(one) for one in warned[:_MOST_WARNINGS]],
                "properties": [[str(name), str(value)] for name, value in added],
                "line": compat.current_line(self.config)}

    def set_up_wanted(self, position: int, wanted: asked.Wanted) -> None:
        """A test has asked for a fixture of higher scope by name: sets it up for its next attempt, and for others."""
        conductor = self.conductor
        assert conductor is not None
        guest, conductor.guest = conductor.guest, None
        try:
            made = asked.set_up(self.session.items[position], wanted, self.printed[position], conductor.patch.stack)
        finally:
            conductor.guest = guest
        if made is not None:
            self.made[position].append(made)

    def tear_down(self, item: pytest.Item, following: pytest.Item | None) -> dict[str, Any] | None:
        """Tears down what ``following`` does not need. Returns what there is to report of that, as of ``item``."""
        conductor = self.conductor
        assert conductor is not None
        patch = conductor.patch
        if not patch.must_pop(following):
            return None
        os.environ["PYTEST_CURRENT_TEST"] = f"{item.nodeid} (teardown)".replace("\0", "(null)")
        guest, conductor.guest = conductor.guest, None
        compat.forget_output(item)

        def tear_down() -> None:
            __tracebackhide__ = True
            with compat.capturing(item, "teardown"):
                compat.seed(item, "teardown")
                patch.teardown_exact(following)

        try:
            call = pytest.CallInfo.from_call(tear_down, when="teardown")
            if call.excinfo is not None:
                leave_out_own_frames(call.excinfo.value)
            report = pytest.TestReport.from_item_and_call(item, call)
        finally:
            conductor.guest = guest
            compat.forget_output(item)
        if report.passed and not report.sections:
            return None
        return reporting.report_to_data(report, self.config, lambda value: None)

    # In a fork.

    def inside(self) -> Inside:
        """What each child does in its sandbox."""
        conductor = self.conductor
        if conductor is None or not self.session.items:
            return _nothing
        item = self.session.items[0]
        guest = conductor.guest = Guest(conductor, item, Before(conductor, item), (-1, -1), None, True)

        def inside(writing: int, orders: int) -> NoReturn:
            assert conductor is not None
            run = self.run_of(self.order["item"])
            guest.group = run.group
            if run.spec.network == "none":
                traffic.watch()
            guest.connect(writing, orders)
            if self.order["replay"] is not None:
                guest.replay = asked.Replay(self.config, self.made[self.order["item"]], self.order["replay"],
                                            conductor.live)
            guest.serve()

        return inside


def _graft(name: str) -> str:
    """A directory of what was grafted."""
    import pytest_sandbox

    return os.path.join(os.path.dirname(os.path.dirname(str(pytest_sandbox.__file__))), name)


def _nothing(writing: int, orders: int) -> NoReturn:
    os._exit(1)
