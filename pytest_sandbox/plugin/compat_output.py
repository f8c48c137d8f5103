"""The part of ``compat`` that is about output: capturing, logging, the terminal, and pytest's folders."""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
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
            texts[stream] = _bounded_snap(one, limit, one.snap)
    return texts


class Printed:
    """What is captured, or written to the log file, and not reported yet, at one moment. Made before a fork.

    A fork writes to the same files. What it keeps in memory (``--capture=sys``) is its own.
    """

    def __init__(self, config: pytest.Config) -> None:
        capture: Any = config.pluginmanager.get_plugin("capturemanager")
        multi = getattr(capture, "_global_capturing", None)
        self._files: list[tuple[str, Any, bytes]] = []
        for name, one in (("stdout", multi.out), ("stderr", multi.err)) if multi is not None else ():
            file = getattr(one, "tmpfile", None)
            if file is not None:
                self._files.append((name, file, _content(file)))
        logs: Any = config.pluginmanager.get_plugin("logging-plugin")
        self._log: Any = getattr(getattr(logs, "log_file_handler", None), "stream", None)
        self._log_size = self._size_of_log()

    def since(self) -> dict[str, bytes]:
        """What has been added, by stream."""
        return {name: _content(file)[len(content):] for name, file, content in self._files}

    def restore(self) -> None:
        """Makes the files hold again what they held."""
        for _, file, content in self._files:
            file.flush()
            try:
                descriptor = file.fileno()
            except (OSError, ValueError):
                file.seek(0)
                file.truncate()
                io.TextIOWrapper.write(file, content.decode("utf-8", "replace"))  # not that of a tee
                continue
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, content)
        if self._log_size >= 0 and self._size_of_log() > self._log_size:
            os.ftruncate(self._log.fileno(), self._log_size)
            os.lseek(self._log.fileno(), self._log_size, os.SEEK_SET)

    def _size_of_log(self) -> int:
        try:
            self._log.flush()
            facts = os.fstat(self._log.fileno())
        except (AttributeError, OSError, ValueError):
            return -1
        return facts.st_size if stat.S_ISREG(facts.st_mode) else -1


def _content(file: Any) -> bytes:
    try:
        return os.pread(file.fileno(), 1 << 24, 0)
    except (AttributeError, OSError, ValueError):
        return str(file.getvalue()).encode("utf-8", "replace") if hasattr(file, "getvalue") else b""


@contextmanager
def recording(config: pytest.Config, shown: bool) -> Iterator[dict[str, list[tuple[int, str]]]]:
    """Keeps what is printed meanwhile, by stream: the text, and how much the capture file held before it.

    Those files get what is written without ``sys.stdout`` and ``sys.stderr``.

    :param shown: where the terminal shows what is printed, it shows this, too.
    """
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    multi = getattr(capture, "_global_capturing", None)
    suspended = multi is not None and not multi.is_started()
    method = config.getoption("capture", "fd")
    if suspended:
        capture.resume_global_capture()
    try:
        recorders = []
        for name in ("stdout", "stderr"):
            one = getattr(multi, name[3:], None)
            file = getattr(one, "tmpfile", None) if method == "fd" else None
            stream = getattr(sys, name)
            target = getattr(stream, "_other", stream) if shown and method in ("no", "tee-sys") else None
            recorders.append(_Recorder(name, stream, file, target))
        yield {one.name: one.parts for one in recorders}
    finally:
        for one in recorders:
            one.end()
        if suspended:
            capture.suspend_global_capture(in_=False)


class _Recorder:
    """In place of ``sys.stdout`` or ``sys.stderr``. Whoever keeps it for later has the stream that it replaces."""

    def __init__(self, name: str, stream: Any, file: Any, target: Any) -> None:
        self.name = name
        self.parts: list[tuple[int, str]] = []
        self._stream, self._file, self._target = stream, file, target
        self._begin = self._size()
        self._active = True
        setattr(sys, name, self)

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size if self._file is not None else 0

    def write(self, text: str) -> int:
        if not self._active:
            return int(self._stream.write(text))
        self.parts.append((self._size() - self._begin, text))
        if self._target is not None:
            self._target.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def end(self) -> None:
        self._active = False
        if getattr(sys, self.name) is self:
            setattr(sys, self.name, self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_held(config: pytest.Config) -> bool:
    """Whether ``capsys`` or its kin hold what is printed now."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    return getattr(capture, "_capture_fixture", None) is not None


class Muted:
    """The terminal shows nothing of what this process prints, until :meth:`end`. It is captured as ever."""

    def __init__(self, config: pytest.Config) -> None:
        capture: Any = config.pluginmanager.get_plugin("capturemanager")
        multi = getattr(capture, "_global_capturing", None)
        self._flush()
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._kept = []
        for descriptor, one in ((1, getattr(multi, "out", None)), (2, getattr(multi, "err", None))):
            target = getattr(one, "targetfd_save", descriptor)  # under fd capture the terminal is put aside
            self._kept.append((os.dup(target), target))
            os.dup2(nowhere, target, inheritable=target == descriptor)
        os.close(nowhere)

    def end(self) -> None:
        """It shows it again."""
        self._flush()
        for kept, target in self._kept:
            os.dup2(kept, target, inheritable=target <= 2)
            os.close(kept)
        self._kept = []

    @staticmethod
    def _flush() -> None:
        for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
            try:
                stream.flush()  # type: ignore[union-attr]
            except (AttributeError, OSError, ValueError):
                pass


def bound_output(config: pytest.Config, limit: int) -> None:
    """From now on, in this process, what pytest reads of a capture file has about ``limit`` bytes at most.

    Of a test that prints a gigabyte pytest would hold it all in memory, several times over.
    """
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    multi = getattr(capture, "_global_capturing", None)
    for one in (multi.out, multi.err) if multi is not None else ():
        if hasattr(one, "targetfd"):
            one.snap = partial(_bounded_snap, one, limit, one.snap)


def _bounded_snap(one: Any, limit: int, snap: Callable[[], Any]) -> str:
    """``one.snap()``, but of a capture file that is larger than ``limit`` only the beginning and the end."""
    file = getattr(one, "tmpfile", None)
    try:
        descriptor = file.fileno()  # type: ignore[union-attr]
        size = os.fstat(descriptor).st_size
    except (AttributeError, OSError, ValueError):
        return str(snap())  # sys capture keeps it in memory
    if size <= limit:
        return str(snap())
    half = limit // 2
    head = os.pread(descriptor, half, 0).decode("utf-8", "replace")
    tail = os.pread(descriptor, half, size - half).decode("utf-8", "replace")
    file.seek(0)  # type: ignore[union-attr]
    file.truncate()  # type: ignore[union-attr]
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
