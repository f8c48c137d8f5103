"""Every private name of pytest and pluggy that this plugin touches, and nowhere else. Checked before the first use.

The parts that are about output and about single plugins, other people's too, are in ``compat_output``,
``compat_capture`` and ``compat_plugins``; everybody uses them by way of this module.

=====================================================  ======  =====================================================
name                                                   needed  for
=====================================================  ======  =====================================================
``_pytest.runner.call_and_report``                     yes     replaced: a sandboxed item's phases are reported by us
``_pytest.runner.check_interactive_exception``         yes     called as ``call_and_report`` calls it
``_pytest.runner.show_test_item``                      yes     replaced under ``--setup-show``: the inside has shown it
``Session._setupstate``; ``setup``,                    yes     the fork happens in its ``setup``; what a sandboxed
``teardown_exact``, ``stack``                                  item does not end is torn down outside
``Item._request``, ``_get_active_fixturedef``,         yes     fixtures of higher scope are set up outside
``_arg2fixturedefs``, ``_fixture_defs``
``Session._fixturemanager``, ``getfixturedefs``        yes     which of those that override each other is wanted
``Item._fixtureinfo``: ``names_closure``,              yes     which those are, in pytest's own order
``name2fixturedefs``, ``initialnames``
``CallSpec2._arg2scope``                               yes     the scope of a parametrised fixture
``Item._report_sections``                              yes     the output that the inside reported, attached outside
``CaptureManager.item_capture``,                       yes     capturing the teardown of higher scopes; what a crashed
``read_global_capture``, ``_global_capturing``,                test had printed; muting an attempt that is repeated
``resume_global_capture``, ``_capture_fixture``;
``suspend_global_capture``, ``MultiCapture.is_started``;
``CaptureFixture._start``, ``_capture``;
``FDCapture.targetfd_save``, ``_state``                        what a guest has for its terminal
``LoggingPlugin._runtest_for``, ``log_cli_handler``,   no      logging in the teardown of higher scopes; what an
``log_file_handler``, ``caplog_records_key``                   attempt that is repeated had logged
``HookCaller._hookimpls`` (pluggy)                     yes     inside, reports go to us alone
``skip.Exception(_use_item_location=)``                yes     a skip is shown at the test's own line
``_pytest._io.TerminalWriter``                         yes     representations of other kinds keep their colours
``_pytest.subtests.failed_subtests_key``               no      the count of failed subtests is kept outside
``_pytest.faulthandler.fault_handler_stderr_fd_key``   no      ``faulthandler_timeout`` inside
``_pytest.warnings.catch_warnings_for_item``           no      warnings of what a guest sets up and tears down
``_pytest.skipping.evaluate_skip_marks``,               no      whether a guest need not set up anything for a test
``evaluate_xfail_marks``
``_pytest.fixtures.FixtureFunctionDefinition``         no      whose fixture it is that an image has not
``_pytest.junitxml.xml_key``, ``LogXML``               no      attributes and properties for the JUnit report
``Config._tmp_path_factory``, ``_basetemp``             no      its base directory is made before the first fork; other
                                                               users than pytest's have one of their own
``TestReport._pdbshown``                               no      a failure that ``--pdb`` has shown is not shown again
``Config._do_configure``, ``_ensure_unconfigure``;     yes     a guest is a pytest without ``pytest.main``
``TerminalReporter._tw``; ``Item._initrequest``
``Cache._cachedir``,                                   no      what tests keep in pytest's cache stays there
``_ensure_cache_dir_and_supporting_files``
=====================================================  ======  =====================================================
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from .compat_capture import Diverted as Diverted
from .compat_capture import Held as Held
from .compat_capture import Muted as Muted
from .compat_capture import Printed as Printed
from .compat_capture import apart as apart
from .compat_capture import bound_output as bound_output
from .compat_capture import capture_files as capture_files
from .compat_capture import captured_so_far as captured_so_far
from .compat_capture import flush_streams as flush_streams
from .compat_capture import is_held as is_held
from .compat_capture import log_file as log_file
from .compat_capture import recording as recording
from .compat_capture import true_streams as true_streams
from .compat_capture import use_log_file as use_log_file
from .compat_output import begin_anew as begin_anew
from .compat_output import begin_live_log as begin_live_log
from .compat_output import cache_directory as cache_directory
from .compat_output import capturing as capturing
from .compat_output import catching_warnings as catching_warnings
from .compat_output import configure as configure
from .compat_output import continue_live_log as continue_live_log
from .compat_output import current_line as current_line
from .compat_output import enter_test_line as enter_test_line
from .compat_output import forget_output as forget_output
from .compat_output import forked_live_log as forked_live_log
from .compat_output import in_test_line as in_test_line
from .compat_output import is_skipped_by_mark as is_skipped_by_mark
from .compat_output import keep_temporary_base as keep_temporary_base
from .compat_output import leave_temporary_base as leave_temporary_base
from .compat_output import leave_test_line as leave_test_line
from .compat_output import logging_as_in_tests as logging_as_in_tests
from .compat_output import mark_shown as mark_shown
from .compat_output import may_debug as may_debug
from .compat_output import place_in_line as place_in_line
from .compat_output import set_current_line as set_current_line
from .compat_output import shows_as_it_happens as shows_as_it_happens
from .compat_output import temporary_base as temporary_base
from .compat_output import terminal_writer as terminal_writer
from .compat_output import unconfigure as unconfigure
from .compat_output import use_temporary_base as use_temporary_base
from .compat_output import use_terminal_writer as use_terminal_writer
from .compat_output import was_shown as was_shown
from .compat_output import write_to as write_to
from .compat_plugins import attempts as attempts
from .compat_plugins import benchmark as benchmark
from .compat_plugins import benchmarks as benchmarks
from .compat_plugins import coverage_collector as coverage_collector
from .compat_plugins import coverage_context as coverage_context
from .compat_plugins import failed_subtests as failed_subtests
from .compat_plugins import faulthandler_descriptor as faulthandler_descriptor
from .compat_plugins import finalizers_aside as finalizers_aside
from .compat_plugins import fixtures_of_plugin as fixtures_of_plugin
from .compat_plugins import forget_failures as forget_failures
from .compat_plugins import ini as ini
from .compat_plugins import is_timed as is_timed
from .compat_plugins import junit as junit
from .compat_plugins import needed_of_others
from .compat_plugins import note_for_reruns as note_for_reruns
from .compat_plugins import seed as seed
from .compat_plugins import set_attempts as set_attempts
from .compat_plugins import set_failed_subtests as set_failed_subtests
from .compat_plugins import timeout_settings as timeout_settings

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
    for plugin, name, present in needed_of_others():
        if not present:
            raise pytest.UsageError(
                f"pytest-sandbox cannot run sandboxed tests beside {plugin} {_version(plugin)}: {name} is not there. "
                f"Update pytest-sandbox, or leave that plugin out, or run with --sandbox=off.")


def _version(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return "of unknown version"


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
    yield "FixtureManager.getfixturedefs(argname, node)", takes(
        getattr(fixtures.FixtureManager, "getfixturedefs", None), "argname", "node")
    for name in ("_arg2fixturedefs", "_fixture_defs"):
        yield f"FixtureRequest.{name}", name in fixtures.FixtureRequest.__init__.__code__.co_names
    info = getattr(fixtures, "FuncFixtureInfo", None)
    for name in ("names_closure", "name2fixturedefs", "initialnames"):
        yield f"FuncFixtureInfo.{name}", name in getattr(info, "__annotations__", {})
    for name in ("item_capture", "read_global_capture", "resume_global_capture", "suspend_global_capture"):
        yield f"CaptureManager.{name}", hasattr(capture.CaptureManager, name)
    for name in ("_do_configure", "_ensure_unconfigure"):
        yield f"Config.{name}", hasattr(pytest.Config, name)
    yield "MultiCapture.is_started", hasattr(capture.MultiCapture, "is_started")
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
    needed, known = info.names_closure, info.name2fixturedefs
    doctests = sys.modules.get("_pytest.doctest")
    if doctests is not None and isinstance(item, doctests.DoctestItem) and "doctest_namespace" not in known:
        asked = "doctest_namespace"  # by a doctest's set-up, by name
        needed, known = [*needed, asked], {**known, asked: _fixtures_of_name(item, asked)}
    names = []
    in_class: bool | None = None
    for name in needed:
        if name in arg2scope:
            scope = arg2scope[name].value
        else:
            defs = known.get(name)
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


def fixtures_of(item: Any) -> dict[str, Sequence[Any]]:
    """The fixtures that ``item`` needs, in pytest's order: those of each name, the one that it gets last."""
    info = getattr(item, "_fixtureinfo", None)
    return {} if info is None else {name: info.name2fixturedefs.get(name) or () for name in info.names_closure}


def keep_fixtures(item: Any, needed: set[str]) -> None:
    """Takes from ``item`` all other fixtures than these."""
    names = item._fixtureinfo.names_closure
    names[:] = [one for one in names if one in needed]


def nearest_fixture(item: Any, name: str) -> Any:
    """The fixture of that name that ``item`` gets, or None."""
    found = item.session._fixturemanager.getfixturedefs(name, item)
    return found[-1] if found else None


def requested_by(request: Any) -> str | None:
    """The fixture that requests the one that is being set up with ``request``; None if the test does so itself."""
    parent = getattr(request, "_parent_request", None)
    return getattr(getattr(parent, "_fixturedef", None), "argname", None)


def fixture_value(item: Any, name: str) -> tuple[str, object]:
    """The scope and the value of a fixture of the item's, which is set up if need be."""
    __tracebackhide__ = True
    fixturedef = item._request._get_active_fixturedef(name)
    return fixturedef.scope, fixturedef.cached_result[0]


def replace_fixture(fixturedef: Any, value: object) -> None:
    """From now on a fixture is that value, wherever it is set up, and needs no other fixture."""
    def made() -> object:
        return value

    made._pytest_sandbox_shared = True  # type: ignore[attr-defined] # as what it stands for
    fixturedef.func, fixturedef.argnames = made, ()


def fixture_place(fixturedef: Any, request: Any) -> int | None:
    """Which of the fixtures of its name ``fixturedef`` is, for the item of ``request``; None where it is not one."""
    found = _fixtures_of_name(request._pyfuncitem, fixturedef.argname)
    return next((place for place, one in enumerate(found) if one is fixturedef), None)


def fixture_at(item: pytest.Item, name: str, place: int) -> Any:
    """The fixture that :func:`fixture_place` told the place of, or None."""
    found = _fixtures_of_name(item, name)
    return found[place] if 0 <= place < len(found) else None


def _fixtures_of_name(item: Any, name: str) -> Sequence[Any]:
    found = item._request._arg2fixturedefs.get(name)
    if found is None:
        found = item.session._fixturemanager.getfixturedefs(name, item)
    return found or ()


def set_up_exactly(item: Any, name: str, place: int) -> None:
    """Sets up the fixture at ``place``, though others override it, and leaves no trace of that in the request."""
    __tracebackhide__ = True
    request = item._request
    by_name, active = request._arg2fixturedefs, request._fixture_defs
    known, was_active = by_name.get(name), active.pop(name, None)
    by_name[name] = _fixtures_of_name(item, name)[:place + 1]
    try:
        request._get_active_fixturedef(name)
    finally:
        if known is None:
            del by_name[name]
        else:
            by_name[name] = known
        active.pop(name, None)
        if was_active is not None:
            active[name] = was_active


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
