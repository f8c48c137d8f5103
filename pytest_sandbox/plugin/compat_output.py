"""The part of ``compat`` that is about what tests say: logging, the terminal, capturing a phase, pytest's folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from .compat_plugins import optional

_records_key: Any = optional("_pytest.logging", "caplog_records_key")

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
    try:
        with outer, inner:
            yield
    finally:
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


def is_skipped_by_mark(item: pytest.Item) -> bool:
    """Whether a marker keeps ``item`` from being set up. One that cannot be evaluated is for the set-up to tell of."""
    skips, fails = (optional("_pytest.skipping", f"evaluate_{kind}_marks") for kind in ("skip", "xfail"))
    if skips is None or fails is None:
        return False
    try:
        if skips(item) is not None:
            return True
        expected = fails(item)
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a condition of anybody's
        return True
    return expected is not None and not expected.run and not item.config.option.runxfail


class _Warned:
    """In place of the hooks that are told of warnings."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.pytest_warning_recorded = self

    def call_historic(self, kwargs: dict[str, Any]) -> None:
        self.messages.append(kwargs["warning_message"])


@contextmanager
def catching_warnings(item: pytest.Item) -> Iterator[list[Any]]:
    """Filters warnings as within ``item``'s protocol. The list has them at the end."""
    warned = _Warned()
    catch = optional("_pytest.warnings", "catch_warnings_for_item")
    if catch is None or not item.config.pluginmanager.has_plugin("warnings"):
        yield warned.messages
        return
    with catch(config=item.config, ihook=warned, when="runtest", item=item):
        yield warned.messages


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


def may_debug(config: pytest.Config) -> bool:
    """Whether somebody may sit at a debugger's prompt: it was asked for, or there is a terminal to type into."""
    option = config.option
    if getattr(option, "usepdb", False) or getattr(option, "trace", False):
        return True
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


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


def in_test_line(config: pytest.Config) -> bool:
    """Whether pytest's reporter goes on in the line of a test, or of its file; not when something else was written."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    return bool(getattr(reporter, "currentfspath", None))


def place_in_line(config: pytest.Config) -> tuple[str, bool]:
    """Where the terminal is, for whoever writes next."""
    return current_line(config), in_test_line(config)


def enter_test_line(config: pytest.Config) -> None:
    """Inside: the test's line was begun outside, perhaps after the fork."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not reporter.currentfspath and (reporter.showlongtestinfo or reporter.showfspath):
        reporter.currentfspath = -2  # as pytest marks a line that it has begun without a path


def leave_test_line(config: pytest.Config) -> None:
    """Something else was written inside: the result is to have a line of its own."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.currentfspath = None


def temporary_base(config: pytest.Config) -> Path | None:
    """The base directory of ``tmp_path``, made now: made in a fork, each test would make, and rotate, its own."""
    factory = getattr(config, "_tmp_path_factory", None)
    return Path(factory.getbasetemp()) if factory is not None else None


def leave_temporary_base(config: pytest.Config) -> None:
    """Inside, as another user than pytest's: ``tmp_path`` is below a folder of its own if it may not enter pytest's.

    That one is gone with the sandbox.
    """
    factory: Any = getattr(config, "_tmp_path_factory", None)
    base = getattr(factory, "_basetemp", None)
    if base is not None and not os.access(base, os.W_OK | os.X_OK):
        import tempfile

        factory._basetemp = Path(os.path.realpath(tempfile.mkdtemp(prefix="pytest-")))


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


def use_temporary_base(config: pytest.Config, path: str) -> None:
    """Lets ``tmp_path`` be below a directory that another process has made for it."""
    factory: Any = getattr(config, "_tmp_path_factory", None)
    if factory is not None:
        factory._basetemp = Path(path)


def keep_temporary_base(config: pytest.Config) -> None:
    """The end of this session leaves the directory of ``tmp_path`` alone: it may be another's, whose tests failed."""
    factory: Any = getattr(config, "_tmp_path_factory", None)
    if factory is not None:
        factory._retention_policy = "all"


def was_shown(report: pytest.TestReport) -> bool:
    """Whether ``--pdb`` has shown the failure, so that the summary need not."""
    return bool(getattr(report, "_pdbshown", False))


def mark_shown(report: pytest.TestReport) -> None:
    """Says so."""
    report._pdbshown = True  # type: ignore[attr-defined]


# What a guest does in place of ``pytest.main``.


def configure(config: pytest.Config) -> None:
    """As pytest does before a session begins."""
    config._do_configure()


def unconfigure(config: pytest.Config) -> None:
    """As pytest does at its end."""
    config._ensure_unconfigure()


def use_terminal_writer(config: pytest.Config, writer: Any) -> None:
    """Has pytest's terminal reporter write by ``writer``, if there is one."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter._tw = writer


def write_to(writer: Any, file: Any) -> None:
    """From now on, a terminal writer writes to ``file``."""
    writer._file = file


@contextmanager
def logging_as_in_tests(config: pytest.Config) -> Iterator[None]:
    """The live log and the log file have what is logged meanwhile, as within pytest's own loop over the tests."""
    logs: Any = config.pluginmanager.get_plugin("logging-plugin")
    catch = optional("_pytest.logging", "catching_logs")
    with ExitStack() as stack:
        if logs is not None and catch is not None:
            for kind in ("cli", "file"):
                handler, level = getattr(logs, f"log_{kind}_handler"), getattr(logs, f"log_{kind}_level")
                stack.enter_context(catch(handler, level=level))
        yield


def begin_live_log(config: pytest.Config) -> None:
    """A test begins, in a guest: what is set up for it outside of its own process comes first in its live log."""
    live = _live_log(config)
    if live is not None:
        forked_live_log(config)
        live.reset()
        live.set_when("start")


def continue_live_log(config: pytest.Config) -> None:
    """It is about to be forked: in there its live log goes on after what is there, with no second heading."""
    live = _live_log(config)
    if live is None or not getattr(live, "_first_record_emitted", False):
        return

    def reset() -> None:
        del live.reset

    def set_when(when: str | None) -> None:
        shown = live._section_name_shown
        type(live).set_when(live, when)
        live._section_name_shown = shown
        if when == "setup":
            del live.set_when

    live.reset, live.set_when = reset, set_when


def forked_live_log(config: pytest.Config) -> None:
    """It was forked: out here the next heading is shown as ever."""
    live = _live_log(config)
    for name in ("reset", "set_when"):
        getattr(live, "__dict__", {}).pop(name, None)


def _live_log(config: pytest.Config) -> Any:
    return getattr(config.pluginmanager.get_plugin("logging-plugin"), "log_cli_handler", None)


def begin_anew(item: pytest.Item) -> None:
    """What ``item`` had of an earlier run is forgotten: its fixtures, and the output that was attached to it."""
    forget_output(item)
    if hasattr(item, "_initrequest"):
        item._initrequest()


def forget_output(item: pytest.Item) -> None:
    """Forgets the output that is attached to ``item``."""
    item._report_sections.clear()
