"""Every private name of pytest and pluggy that this plugin touches, and nowhere else. Checked before the first use.

=====================================================  ======  =====================================================
name                                                   needed  for
=====================================================  ======  =====================================================
``_pytest.runner.call_and_report``                     yes     replaced: a sandboxed item's phases are reported by us
``_pytest.runner.check_interactive_exception``         yes     called as ``call_and_report`` calls it
``_pytest.runner.show_test_item``                      yes     replaced under ``--setup-show``: the inside has shown it
``Session._setupstate``; ``setup``,                    yes     the fork happens in its ``setup``; what a sandboxed
``teardown_exact``, ``stack``                                  item does not end is torn down outside
``Item._request``, ``_get_active_fixturedef``          yes     fixtures of higher scope are set up outside
``Item._fixtureinfo``: ``names_closure``,              yes     which those are, in pytest's own order
``name2fixturedefs``, ``initialnames``
``CallSpec2._arg2scope``                               yes     the scope of a parametrised fixture
``Item._report_sections``                              yes     the output that the inside reported, attached outside
``CaptureManager.item_capture``,                       yes     capturing the teardown of higher scopes; what a crashed
``read_global_capture``, ``_global_capturing``                 test had printed
``LoggingPlugin._runtest_for``, ``log_cli_handler``,   no      logging in the teardown of higher scopes
``caplog_records_key``
``HookCaller._hookimpls`` (pluggy)                     yes     inside, reports go to us alone
``skip.Exception(_use_item_location=)``                yes     a skip is shown at the test's own line
``_pytest._io.TerminalWriter``                         yes     representations of other kinds keep their colours
``_pytest.subtests.failed_subtests_key``               no      the count of failed subtests is kept outside
``_pytest.faulthandler.fault_handler_stderr_fd_key``   no      ``faulthandler_timeout`` inside
``_pytest.junitxml.xml_key``, ``LogXML``               no      attributes and properties for the JUnit report
``Config._tmp_path_factory``                           no      its base directory is made before the first fork
``Cache._cachedir``,                                   no      what tests keep in pytest's cache stays there
``_ensure_cache_dir_and_supporting_files``
=====================================================  ======  =====================================================
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

#: What ends a set-up or teardown as a test's outcome (``_pytest.runner.TEST_OUTCOME``).
TEST_OUTCOME = (Exception, pytest.fail.Exception, pytest.skip.Exception)


def check() -> None:
    """Makes sure that this pytest has what we build on.

    :raises pytest.UsageError: naming pytest's version and what is missing.
    """
    missing = [name for name, present in _needed() if not present]
    if missing:
        raise pytest.UsageError(
            f"pytest-sandbox cannot run sandboxed tests with pytest {pytest.__version__}: "
            f"{', '.join(missing)} is not there. Update pytest-sandbox, or run with --sandbox=off.")


def _needed() -> Iterator[tuple[str, bool]]:
    import inspect

    import pluggy
    from _pytest import _io, capture, fixtures, runner

    def takes(function: object, *names: str) -> bool:
        return callable(function) and set(names) <= set(inspect.signature(function).parameters)

    yield "_pytest.runner.call_and_report(item, when, log)", takes(
        getattr(runner, "call_and_report", None), "item", "when", "log")
    yield "_pytest.runner.check_interactive_exception", takes(
        getattr(runner, "check_interactive_exception", None), "call", "report")
    yield "_pytest.runner.show_test_item", hasattr(runner, "show_test_item")
    state = getattr(runner, "SetupState", None)
    yield "SetupState.setup(item)", takes(getattr(state, "setup", None), "item")
    yield "SetupState.teardown_exact(nextitem)", takes(getattr(state, "teardown_exact", None), "nextitem")
    yield "SetupState.stack", state is not None and isinstance(getattr(state(), "stack", None), dict)
    yield "FixtureRequest._get_active_fixturedef", hasattr(fixtures.FixtureRequest, "_get_active_fixturedef")
    info = getattr(fixtures, "FuncFixtureInfo", None)
    for name in ("names_closure", "name2fixturedefs", "initialnames"):
        yield f"FuncFixtureInfo.{name}", name in getattr(info, "__annotations__", {})
    for name in ("item_capture", "read_global_capture"):
        yield f"CaptureManager.{name}", hasattr(capture.CaptureManager, name)
    yield "pluggy.HookCaller._hookimpls", hasattr(pluggy.HookCaller, "_hookimpls")
    yield "skip.Exception(_use_item_location)", takes(pytest.skip.Exception, "_use_item_location")
    yield "_pytest._io.TerminalWriter", hasattr(_io, "TerminalWriter")


def exception_group(text: str, exceptions: list[BaseException]) -> BaseException:
    """A ``BaseExceptionGroup``; on Python 3.10 the one that pytest itself uses."""
    import builtins

    group: Any = getattr(builtins, "BaseExceptionGroup", None)
    if group is None:
        group = importlib.import_module("exceptiongroup").BaseExceptionGroup
    made: BaseException = group(text, exceptions)
    return made


# The runner.


class RunnerPatch:
    """Replaces ``call_and_report`` and ``show_test_item`` while a session with sandboxed tests runs.

    ``runtestprotocol`` looks both up when it calls them, so whoever drives it (pytest, pytest-rerunfailures) gets ours.
    Sessions nest (pytester runs one within a test): each puts back what it found.
    """

    def __init__(self, call_and_report: Callable[..., pytest.TestReport],
                 shows: Callable[[pytest.Item], bool]) -> None:
        from _pytest import runner as module

        runner: Any = module
        self._runner = runner
        self._found = (runner.call_and_report, runner.show_test_item)
        self.call_and_report: Callable[..., pytest.TestReport] = runner.call_and_report
        show = runner.show_test_item

        def show_test_item(item: pytest.Item, **kwargs: Any) -> None:
            if shows(item):
                show(item, **kwargs)

        runner.call_and_report = call_and_report
        runner.show_test_item = show_test_item

    def undo(self) -> None:
        """Puts pytest's own functions back."""
        self._runner.call_and_report, self._runner.show_test_item = self._found


def check_interactive_exception(call: pytest.CallInfo[Any], report: pytest.TestReport) -> bool:
    """Whether ``--pdb`` should show this failure."""
    from _pytest import runner

    return runner.check_interactive_exception(call, report)


class SetupPatch:
    """Replaces ``setup`` of one session's SetupState, inside ``teardown_exact`` too, and keeps the originals."""

    def __init__(self, session: pytest.Session, setup: Callable[[pytest.Item], None],
                 teardown_exact: Callable[[pytest.Item | None], None]) -> None:
        state: Any = session._setupstate
        self._state = state
        self.setup: Callable[[pytest.Item | pytest.Collector], None] = state.setup
        self.teardown_exact: Callable[[pytest.Item | pytest.Collector | None], None] = state.teardown_exact
        state.setup = setup
        self._inner_teardown = teardown_exact

    def enter(self) -> None:
        """This process is an inside now, until it ends."""
        self._state.teardown_exact = self._inner_teardown

    def undo(self) -> None:
        """Puts pytest's own method back, outside."""
        del self._state.setup

    @property
    def stack(self) -> dict[Any, tuple[list[Callable[[], object]], Any]]:
        """What is set up now, outermost first: node -> (finalizers, how its set-up failed)."""
        stack: dict[Any, tuple[list[Callable[[], object]], Any]] = self._state.stack
        return stack

    def must_pop(self, nextitem: pytest.Item | None) -> bool:
        """Whether something that is set up is not needed by ``nextitem``."""
        needed = nextitem.listchain() if nextitem is not None else []
        stack = self._state.stack
        return list(stack) != needed[:len(stack)]


# Items and fixtures.


def requested_names(item: pytest.Item) -> tuple[str, ...]:
    """The fixtures that ``item`` itself requests: parameters, ``usefixtures``, autouse."""
    info = getattr(item, "_fixtureinfo", None)
    return tuple(info.initialnames) if info is not None else ()


#: The scopes of fixtures, and of sandboxes, from the shortest life to the longest.
SCOPES = ("function", "class", "module", "package", "session")


def higher_fixtures(item: pytest.Item, above: str = "function") -> list[str]:
    """The fixtures of ``item`` whose scope is higher than ``above``, in the order in which pytest sets them up."""
    info = getattr(item, "_fixtureinfo", None)
    if info is None or not getattr(item, "_request", None):
        return []
    arg2scope = getattr(getattr(item, "callspec", None), "_arg2scope", {})
    names = []
    in_class: bool | None = None
    for name in info.names_closure:
        if name in arg2scope:
            scope = arg2scope[name].value
        else:
            defs = info.name2fixturedefs.get(name)
            if not defs:
                continue
            scope = defs[-1].scope
        if scope == "function" or (above != "function" and SCOPES.index(scope) <= SCOPES.index(above)):
            continue
        if scope == "class":
            if in_class is None:
                in_class = item.getparent(pytest.Class) is not None
            if not in_class:
                continue  # pytest lets such a fixture live as long as the item
        names.append(name)
    doctests = sys.modules.get("_pytest.doctest")
    if doctests is not None and isinstance(item, doctests.DoctestItem):
        names.append("doctest_namespace")  # of the session; a doctest's set-up asks for it by name
    return names


def higher_parameters(item: pytest.Item, above: str) -> dict[str, int]:
    """The parametrised fixtures of ``item`` whose scope is higher than ``above``, and which parameter each has."""
    callspec: Any = getattr(item, "callspec", None)
    if callspec is None:
        return {}
    return {name: callspec.indices.get(name, 0) for name, scope in callspec._arg2scope.items()
            if SCOPES.index(scope.value) > SCOPES.index(above)}


def set_up_fixture(item: pytest.Item, name: str) -> None:
    """Sets a fixture up as the item's own set-up would; its value is cached by pytest."""
    __tracebackhide__ = True
    item._request._get_active_fixturedef(name)  # type: ignore[attr-defined]


def may_request_by_name(item: pytest.Item) -> bool:
    """Whether ``item`` or a fixture of its has ``request``, and so ``getfixturevalue``."""
    info = getattr(item, "_fixtureinfo", None)
    return info is not None and "request" in info.names_closure


def attach_sections(item: pytest.Item, sections: list[tuple[str, str]]) -> None:
    """Attaches to ``item`` the output that a report shows, as if it had been captured out here.

    Some of it was: what fixtures of higher scope printed is captured on both sides of the fork.
    """
    attached = []
    for name, text in sections:
        words = name.split(" ")
        if len(words) == 3 and words[0] == "Captured" and words[2] in ("setup", "call", "teardown"):
            attached.append((words[2], words[1], text))
    item._report_sections[:] = attached


def sections_of(item: pytest.Item) -> list[tuple[str, str]]:
    """What is attached to ``item``, as a report shows it."""
    return [(f"Captured {key} {when}", text) for when, key, text in item._report_sections]


def has_text_condition(item: pytest.Item) -> bool:
    """Whether ``item`` is skipped, or expected to fail, by a condition that is evaluated when the test is set up."""
    return any(isinstance(condition, str) for name in ("skipif", "xfail") for mark in item.iter_markers(name)
               for condition in (*mark.args, mark.kwargs.get("condition")))


def skip_at_item(reason: str) -> BaseException:
    """The exception that skips a test and is shown at the test's own line."""
    return pytest.skip.Exception(reason, _use_item_location=True)


# Output.


@contextmanager
def capturing(item: pytest.Item, when: str) -> Iterator[None]:
    """Captures output and log records as the hook of phase ``when`` does, and attaches them to ``item``."""
    plugins = item.config.pluginmanager
    capture: Any = plugins.get_plugin("capturemanager")
    logs: Any = plugins.get_plugin("logging-plugin")
    outer: AbstractContextManager[None] = nullcontext()
    if logs is not None and hasattr(logs, "_runtest_for"):
        live = getattr(logs, "log_cli_handler", None)
        if live is not None:
            live.set_when(when)
        if _records_key is not None and _records_key not in item.stash:
            item.stash[_records_key] = {}  # pytest has ended the item already
        outer = logs._runtest_for(item, when)
    inner: AbstractContextManager[None] = capture.item_capture(when, item) if capture is not None else nullcontext()
    before = len(item._report_sections)
    with outer, inner:
        yield
    _join_sections(item._report_sections, before)


def _join_sections(sections: list[tuple[str, str, str]], before: int) -> None:
    """Puts output that was captured in two parts of one phase under one heading, where it is in one process."""
    for when, key, text in sections[before:]:
        for index in range(before - 1, -1, -1):
            known_when, known_key, known = sections[index]
            if known_when != when:
                break  # of another phase, or of an attempt before this one
            if known_key == key:
                sections[index] = (when, key, f"{known}\n{text}" if key == "log" else known + text)
                sections.remove((when, key, text))
                break


def captured_so_far(config: pytest.Config, limit: int) -> dict[str, str]:
    """Takes what was printed and not reported yet: stream -> text, at most about ``limit`` characters each."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    multi = getattr(capture, "_global_capturing", None)
    if multi is None:
        return {}
    texts = {}
    for stream, one in (("stdout", multi.out), ("stderr", multi.err)):
        if one is not None:
            texts[stream] = _bounded_snap(one, limit)
    return texts


def printed_so_far(config: pytest.Config) -> list[tuple[Any, bytes]]:
    """What is captured and not reported yet, by capture file. Of a fork, too: both write to the same files."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    multi = getattr(capture, "_global_capturing", None)
    found = []
    for one in (multi.out, multi.err) if multi is not None else ():
        file = getattr(one, "tmpfile", None)
        try:
            found.append((file, os.pread(file.fileno(), 1 << 24, 0)))  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            continue  # sys capture keeps it in memory, of which a fork has a copy of its own
    return found


def restore_printed(printed: list[tuple[Any, bytes]]) -> None:
    """Makes the capture files hold again what :func:`printed_so_far` found."""
    for file, content in printed:
        file.flush()
        os.ftruncate(file.fileno(), 0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        os.write(file.fileno(), content)


def _bounded_snap(one: Any, limit: int) -> str:
    """``one.snap()``, but of a capture file that is larger than ``limit`` only the beginning and the end."""
    file = getattr(one, "tmpfile", None)
    try:
        size = os.fstat(file.fileno()).st_size  # type: ignore[union-attr]
    except (AttributeError, OSError, ValueError):
        return str(one.snap())  # sys capture keeps it in memory
    if size <= limit:
        return str(one.snap())
    descriptor = file.fileno()  # type: ignore[union-attr]
    half = limit // 2
    head = os.pread(descriptor, half, 0).decode("utf-8", "replace")
    tail = os.pread(descriptor, half, size - half).decode("utf-8", "replace")
    os.ftruncate(descriptor, 0)
    one.snap()
    return f"{head}\n[... {size - 2 * half:,} bytes of output left out ...]\n{tail}"


def shows_as_it_happens(config: pytest.Config) -> bool:
    """Whether what a test prints, logs or asks is seen at once, so that its reports must be seen in between."""
    if hasattr(config, "workerinput"):
        return False  # of pytest-xdist: nobody watches
    option = config.option
    if getattr(option, "capture", "no") in ("no", "tee-sys") or getattr(option, "log_cli_level", None) is not None:
        return True
    flags = ("setupshow", "setuponly", "setupplan", "usepdb", "trace")
    return any(getattr(option, flag, False) for flag in flags) or (
        config.pluginmanager.has_plugin("logging-plugin") and bool(config.getini("log_cli")))


def terminal_writer(config: pytest.Config, file: Any) -> Any:
    """A writer that writes to ``file`` as wide as the terminal is."""
    from _pytest._io import TerminalWriter

    writer = TerminalWriter(file)
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        writer.fullwidth = reporter._tw.fullwidth
        writer.code_highlight = reporter._tw.code_highlight
    return writer


def current_line(config: pytest.Config) -> str:
    """What pytest's terminal writer believes to have written into its current line, by which it pads the rest."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    return str(getattr(reporter._tw, "_current_line", "")) if reporter is not None else ""


def set_current_line(config: pytest.Config, line: str) -> None:
    """Makes it believe what the writer inside believes, which has written too."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and hasattr(reporter._tw, "_current_line"):
        reporter._tw._current_line = line


def temporary_base(config: pytest.Config) -> Path | None:
    """The base directory of ``tmp_path``, made now: made in a fork, each test would make, and rotate, its own."""
    factory = getattr(config, "_tmp_path_factory", None)
    return Path(factory.getbasetemp()) if factory is not None else None


def cache_directory(config: pytest.Config) -> Path | None:
    """The directory of ``config.cache``, made now as pytest makes it at the end of each run."""
    cache: Any = getattr(config, "cache", None)
    if cache is None or not hasattr(cache, "_ensure_cache_dir_and_supporting_files"):
        return None
    try:
        cache._ensure_cache_dir_and_supporting_files()
    except OSError:
        return None  # a read-only tree: pytest itself only warns
    return Path(cache._cachedir)


# Hooks.


def of_plugins(hook: Any, plugins: tuple[object, ...]) -> list[Any]:
    """The implementations of ``hook`` that ``plugins`` have."""
    return [one for one in hook._hookimpls if one.plugin in plugins]


def replace_implementations(hook: Any, implementations: list[Any]) -> None:
    """Makes ``implementations`` all that ``hook`` calls in this process."""
    hook._hookimpls = implementations


def modules_of(hooks: Any, names: tuple[str, ...]) -> set[str]:
    """The modules that implement hooks of these names."""
    return {one.function.__module__ for name in names for one in getattr(hooks, name).get_hookimpls()}


def silence_progress(config: pytest.Config) -> None:
    """In a child that runs several tests: their beginning and end are shown by the parent."""
    logs = config.pluginmanager.get_plugin("logging-plugin")
    for hook in (config.hook.pytest_runtest_logstart, config.hook.pytest_runtest_logfinish):
        replace_implementations(hook, of_plugins(hook, (logs,)))


# Other builtin plugins.


def failed_subtests(item: pytest.Item) -> int:
    """How many of ``item``'s subtests have failed."""
    if _subtests_key is None:
        return 0
    counts = item.config.stash.get(_subtests_key, None)
    return int(counts.get(getattr(item, "id", item.nodeid), 0)) if counts is not None else 0


def set_failed_subtests(item: pytest.Item, count: int) -> None:
    """Sets that count; pytest reads it when it reports the item's call."""
    counts = item.config.stash.get(_subtests_key, None) if _subtests_key is not None else None
    if counts is not None:
        counts[getattr(item, "id", item.nodeid)] = count


def faulthandler_descriptor(config: pytest.Config) -> int | None:
    """Where pytest has faulthandler write to."""
    return config.stash.get(_fault_key, None) if _fault_key is not None else None


def ini(config: pytest.Config, name: str) -> object:
    """An ini option that not all versions have; None where it is unknown."""
    try:
        return config.getini(name)
    except ValueError:
        return None


def junit(config: pytest.Config) -> JUnit | None:
    """The JUnit report of this run, if one is being written."""
    log = config.stash.get(_junit_key, None) if _junit_key is not None else None
    return JUnit(log) if log is not None else None


def _optional(module: str, name: str) -> Any:
    """A name that only some versions have. Looked up once: an import that fails is searched for each time."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


_records_key: Any = _optional("_pytest.logging", "caplog_records_key")
_subtests_key: Any = _optional("_pytest.subtests", "failed_subtests_key")
_fault_key: Any = _optional("_pytest.faulthandler", "fault_handler_stderr_fd_key")
_junit_key: Any = _optional("_pytest.junitxml", "xml_key")


class JUnit:
    """The parts of pytest's ``LogXML`` that tests write to directly."""

    def __init__(self, log: Any) -> None:
        self._log = log

    def suite_properties(self) -> list[tuple[str, str]]:
        """What ``record_testsuite_property`` recorded so far."""
        properties: list[tuple[str, str]] = self._log.global_properties
        return properties

    def attributes(self, nodeid: str) -> dict[str, Any]:
        """What ``record_xml_attribute`` recorded for one test."""
        attributes: dict[str, Any] = self._log.node_reporter(nodeid).attrs
        return attributes


