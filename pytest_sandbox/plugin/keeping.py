"""``--sandbox-keep``: the sandboxes of failed tests, kept for afterwards. Registered where somebody asks for it.

The writable layer is taken when the first phase of a test has failed, before its fixtures are torn down: a test's own
process waits meanwhile. What there is to tell, a report of the test's teardown takes along, also from xdist's workers.
Nothing here changes a test's outcome: what goes wrong is told in the summary.
"""

from __future__ import annotations

import os
import select
import weakref
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError

from .assertions import CHANGES, changes_section
from .options import KEEP, Settings, chosen

if TYPE_CHECKING:
    from pytest_sandbox.image.locks import FileLock
    from pytest_sandbox.keeping.record import Record
    from pytest_sandbox.keeping.shelf import Bounds, Draft, Shelf
    from pytest_sandbox.sandbox import Sandbox

NAME = "sandbox-keeper"
_TEXT = 1 << 20  # characters of output, and of a failure's text, that are kept
_SEVERAL = 8  # sandboxes of one test


@dataclass
class _Taken:
    """What was taken of one test so far. ``drafts`` are not on the shelf yet."""

    drafts: list[tuple[Draft, Record]] = field(default_factory=list)
    reports: list[pytest.TestReport] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    changes: str = ""

    @property
    def anything(self) -> bool:
        return bool(self.drafts or self.refused)


class Keeper:
    """One for a process that runs tests, or shows their results. In a fork of it, it does nothing but :meth:`wait`."""

    def __init__(self, config: pytest.Config, mode: str, bounds: Bounds) -> None:
        self.config, self.mode, self.bounds = config, mode, bounds
        worker = getattr(config, "workerinput", None)
        self.run: str = worker["testrunuid"] if worker is not None else os.urandom(16).hex()
        self._pid = os.getpid()
        self._shelf: Shelf | None = None
        self._alive: FileLock | None = None
        self._taken: dict[str, _Taken] = {}
        self._started: list[weakref.ref[Sandbox]] = []
        self._gate: tuple[int, int] | None = None
        self._told: list[dict[str, str]] = []

    # A test's own process waits until its sandbox was looked at.

    def open_gate(self) -> None:
        """Before the first fork."""
        if self._gate is None:
            self._gate = os.pipe2(os.O_CLOEXEC)

    def wait(self, report: pytest.TestReport) -> None:
        """In a fork, when ``report`` was sent: until the parent has taken what it wants to keep."""
        if self._gate is not None and report.failed and report.when != "teardown":
            try:
                os.read(self._gate[0], 1)
            except OSError:
                pass  # the test has closed it

    def _let_go_on(self) -> None:
        if self._gate is not None:
            os.write(self._gate[1], b"g")

    def clear_gate(self) -> None:
        """In the parent, when a test is over: what a process did not read that died meanwhile is not the next one's."""
        if self._gate is not None and select.select([self._gate[0]], [], [], 0)[0]:
            os.read(self._gate[0], 4096)

    # Marked tests: called by ``item``.

    def heard(self, item: pytest.Item, sandbox: Sandbox, report: pytest.TestReport) -> None:
        """A phase's own report has come from a test's process, which waits if it failed."""
        if not report.failed or report.when == "teardown":
            return
        try:
            self.take(item, sandbox, report.when or "call")
        finally:
            self._let_go_on()

    def over(self, item: pytest.Item, sandbox: Sandbox, failed: bool) -> None:
        """The last phase is over; the sandbox is there."""
        if failed or self.mode == "all":
            self.take(item, sandbox, "teardown")

    # Tests that drive sandboxes: by hooks, and by the fixture before it closes its sandbox.

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        if self._is_ours():
            self._started.clear()
        return (yield)

    def pytest_sandbox_started(self, sandbox: Sandbox) -> None:
        if self._is_ours():
            self._started.append(weakref.ref(sandbox))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if report.failed and self._is_ours() and not _is_marked(item):
            self._take_all(item, report.when or "call")
        return report

    def before_close(self, item: pytest.Item, sandbox: Sandbox) -> None:
        """The fixture is about to close its sandbox."""
        if self._is_ours() and (self.mode == "all" or sandbox.is_overdue):
            self._take_all(item, "teardown")

    def _take_all(self, item: pytest.Item, phase: str) -> None:
        taken = self._taken.setdefault(item.nodeid, _Taken())
        if taken.anything:
            return
        started = [one for one in (ref() for ref in self._started) if one is not None]
        running = [one for one in started if one.runs]
        for one in running[:_SEVERAL]:
            self._keep(item, one, phase, taken)
        if len(running) > _SEVERAL:
            taken.refused.append(f"{len(running) - _SEVERAL} more of its {len(running)} sandboxes")
        if started and not running:
            taken.refused.append("its sandbox was closed before the test had failed")

    # Both.

    def _is_ours(self) -> bool:
        return os.getpid() == self._pid

    def take(self, item: pytest.Item, sandbox: Sandbox, phase: str) -> None:
        """Keeps a sandbox as it is, unless that was done for this test already. Never raises."""
        taken = self._taken.setdefault(item.nodeid, _Taken())
        if not taken.anything:
            self._keep(item, sandbox, phase, taken)

    def _keep(self, item: pytest.Item, sandbox: Sandbox, phase: str, taken: _Taken) -> None:
        from pytest_sandbox.keeping.writing import TooLarge, write_layers

        draft = None
        taken.changes = taken.changes or changes_section(sandbox)
        try:
            shelf = self._on_shelf()
            if shelf.of_run(self.run) >= self.bounds.tests:
                taken.refused.append(f"{self.bounds.tests} tests of this run are kept already (sandbox_keep_count)")
                return
            draft = shelf.begin()
            record = self._describe(item, sandbox, phase)
            from dataclasses import replace

            try:
                layers = write_layers(sandbox, draft.path, self.bounds.bytes)
                record = replace(record, layers=layers)
            except TooLarge as error:
                for name in os.listdir(draft.path):
                    os.unlink(f"{draft.path}/{name}")
                record = replace(record, left_out=str(error))
            taken.drafts.append((draft, record))
            draft = None
        except (SandboxError, OSError, ValueError) as error:
            taken.refused.append(_reason(error))
        finally:
            if draft is not None:
                draft.drop()

    def _on_shelf(self) -> Shelf:
        if self._shelf is None:
            from pytest_sandbox.keeping.shelf import Shelf

            shelf = Shelf()
            self._alive = shelf.run(self.run)
            self._shelf = shelf
        return self._shelf

    def _describe(self, item: pytest.Item, sandbox: Sandbox, phase: str) -> Record:
        import platform
        import sys
        import time

        from pytest_sandbox.grafts import TARGET
        from pytest_sandbox.keeping.record import Record, options_of, sum_of
        from pytest_sandbox.keeping.writing import start_of

        from . import settings_of

        mounts = tuple(one for one in sandbox.spec.mounts if one.target != TARGET)
        options, networks = options_of(sandbox.spec.merged({"mounts": mounts}))
        for name in ("timeout", "scope"):
            options.pop(name, None)
        config = item.config
        source = item.nodeid.partition("::")[0]
        return Record(
            id="00000000", nodeid=item.nodeid, phase=phase, outcome="failed", verdict="", created=int(time.time()),
            run=self.run, mode=settings_of(config).mode, rootdir=str(config.rootpath), directory=os.getcwd(),
            config_file=str(config.inipath or ""), python=sys.executable, host=platform.node(), source=source,
            source_sum=sum_of(os.path.join(config.rootpath, source)), start=start_of(sandbox), options=options,
            networks=networks)

    # What becomes of it.

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not self._is_ours():
            return
        taken = self._taken.get(report.nodeid)
        if self.mode == "all" and taken is None and not hasattr(report, "worker_id"):
            taken = self._taken[report.nodeid] = _Taken()
        if taken is not None:
            if report.failed and taken.changes and all(name != CHANGES for name, _ in report.sections):
                report.sections.append((CHANGES, taken.changes))
            taken.reports.append(report)
            if report.when == "teardown":
                del self._taken[report.nodeid]
                report.sandbox_kept = list(self._publish(report.nodeid, taken))  # type: ignore[attr-defined]
        for one in getattr(report, "sandbox_kept", ()):
            self._told.append({str(name): str(text) for name, text in one.items()})

    def _publish(self, nodeid: str, taken: _Taken) -> Generator[dict[str, str], None, None]:
        from dataclasses import replace

        failed = [one for one in taken.reports if one.failed]
        text = "\n\n".join(_shown(one) for one in taken.reports)[:2 * _TEXT]
        for draft, record in taken.drafts:
            done = replace(record, outcome="failed" if failed else "passed",
                           verdict=_verdict(failed[0]) if failed else "")
            try:
                kept = draft.publish(done, f"{nodeid}\n\n{text}", self.bounds)
            except (SandboxError, OSError) as error:
                taken.refused.append(_reason(error))
            else:
                which = f"{nodeid} [{record.options.get('hostname', 'sandbox')}]" if len(taken.drafts) > 1 else nodeid
                yield {"id": kept.id, "nodeid": which, "left_out": done.left_out}
        for why in taken.refused:
            yield {"id": "", "nodeid": nodeid, "left_out": why}

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        told = self._told
        if not told:
            return
        terminalreporter.write_sep("=", "kept sandboxes")
        for one in told:
            if not one["id"]:
                terminalreporter.write_line(f"not kept: {one['nodeid']}: {one['left_out']}")
            elif one["left_out"]:
                terminalreporter.write_line(f"pytest-sandbox kept {one['id']}    {one['nodeid']} (output only: "
                                            f"{one['left_out']})")
            else:
                terminalreporter.write_line(f"pytest-sandbox shell {one['id']}    {one['nodeid']}")
        if any(one["id"] for one in told):
            terminalreporter.write_line("(replay ID runs the test again, export ID takes it elsewhere)")

    @pytest.hookimpl(trylast=True)  # when no fork of this process holds its lock any more
    def pytest_unconfigure(self) -> None:
        if not self._is_ours():
            return
        for taken in self._taken.values():
            for draft, _ in taken.drafts:
                draft.drop()
        self._taken.clear()
        if self._shelf is not None and self._alive is not None:
            self._shelf.end_run(self._alive)
            self._shelf = self._alive = None
        if self._gate is not None:
            for fd in self._gate:
                os.close(fd)
            self._gate = None


def _is_marked(item: pytest.Item) -> bool:
    """Whether the test's body runs inside: then ``item`` tells of it."""
    from .item import RUN

    return RUN in item.stash


def _verdict(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = str(getattr(crash, "message", "") or report.longreprtext)
    return text.strip().replace("\0", "")[:2000]


def _shown(report: pytest.TestReport) -> str:
    parts = [f"{report.when}: {report.outcome}"]
    if report.longrepr is not None:
        parts.append(report.longreprtext[-_TEXT:])
    parts += [f"--- {title} ---\n{content[-_TEXT:]}" for title, content in report.sections]
    return "\n".join(parts)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and not isinstance(error, SandboxError):
        from pytest_sandbox.image.layout import default_root, store_error

        return str(store_error(error, str(default_root())))
    return str(error) or type(error).__name__


def register(config: pytest.Config, settings: Settings) -> None:
    """At the start of a run that may keep.

    :raises pytest.UsageError: for bounds that cannot be used.
    """
    mode = chosen(config, "sandbox_keep", "sandbox_keep", KEEP)
    if mode == "none" or settings.mode == "off":
        return
    from pytest_sandbox.errors import SandboxUsageError
    from pytest_sandbox.keeping.shelf import Bounds
    from pytest_sandbox.spec import parse_size

    bounds = Bounds()
    if count := config.getini("sandbox_keep_count"):
        if not str(count).isdecimal() or int(count) < 1:
            raise pytest.UsageError(f"ini option sandbox_keep_count={count!r} cannot be used: a number of tests, "
                                    "1 or more")
        bounds = Bounds(int(count), bounds.bytes)
    if size := config.getini("sandbox_keep_size"):
        try:
            bounds = Bounds(bounds.tests, parse_size("sandbox_keep_size", size))
        except SandboxUsageError as error:
            raise pytest.UsageError(f"ini option: {error}") from None
    config.pluginmanager.register(Keeper(config, mode, bounds), NAME)


def keeper_of(config: pytest.Config) -> Keeper | None:
    """This process's keeper, if the run keeps."""
    found: Any = config.pluginmanager.get_plugin(NAME)
    return found if isinstance(found, Keeper) else None
