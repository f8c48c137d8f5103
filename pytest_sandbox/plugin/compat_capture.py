"""The part of ``compat`` that is about capture files: the output of processes that died or start over."""

from __future__ import annotations

import io
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import fstat, ftruncate, pread, pwrite  # by name: a test may have replaced the module's
from typing import Any

import pytest


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


def capture_files(config: pytest.Config) -> list[int]:
    """The descriptors of the files that hold what is captured; none where it is in memory, or shown."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    multi = getattr(capture, "_global_capturing", None)
    found = []
    for one in (getattr(multi, "out", None), getattr(multi, "err", None)):
        try:
            found.append(one.tmpfile.fileno())  # type: ignore[union-attr]
        except (AttributeError, OSError, ValueError):
            pass
    return found


@contextmanager
def apart(config: pytest.Config) -> Iterator[None]:
    """What is captured meanwhile is in files of its own: forks that run beside this process write to the usual ones."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    multi = getattr(capture, "_global_capturing", None)
    moved: list[tuple[int, int]] = []
    try:
        for one in (getattr(multi, "out", None), getattr(multi, "err", None)):
            target = getattr(one, "targetfd", None)
            if one is None or target is None:
                continue  # it is captured in memory, or not at all
            held = one.tmpfile.fileno()
            usual, places = os.fstat(held), [held]
            if os.path.samestat(os.fstat(target), usual):
                places.append(target)
            with tempfile.TemporaryFile(buffering=0) as file:
                for place in places:
                    moved.append((os.dup(place), place))
                    os.dup2(file.fileno(), place, inheritable=place == target)
        yield
    finally:
        for kept, place in moved:
            os.dup2(kept, place, inheritable=place <= 2)
            os.close(kept)


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


class Diverted:
    """This process's standard streams are other files where they are not captured, until :meth:`end`.

    :param into: which file, by the stream's number.
    """

    def __init__(self, config: pytest.Config, into: Mapping[int, int]) -> None:
        capture: Any = config.pluginmanager.get_plugin("capturemanager")
        multi = getattr(capture, "_global_capturing", None)
        flush_streams()
        self._kept = []
        for descriptor, file in into.items():
            one = getattr(multi, ("in_", "out", "err")[descriptor], None)
            aside = getattr(one, "targetfd_save", None)  # under fd capture, the terminal
            targets = {descriptor} if aside is None or getattr(one, "_state", None) == "suspended" else set()
            if aside is not None:
                targets.add(aside)
            for target in targets:
                self._kept.append((os.dup(target), target))
                os.dup2(file, target, inheritable=target == descriptor)

    def end(self) -> None:
        """They are again what they were."""
        flush_streams()
        for kept, target in self._kept:
            os.dup2(kept, target, inheritable=target <= 2)
            os.close(kept)
        self._kept = []


class Muted(Diverted):
    """The terminal shows nothing of what this process prints, until :meth:`end`. It is captured as ever."""

    def __init__(self, config: pytest.Config) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        try:
            super().__init__(config, {1: nowhere, 2: nowhere})
        finally:
            os.close(nowhere)


def flush_streams() -> None:
    """Writes out what the standard streams hold: else a fork would write it, too."""
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
        size = fstat(descriptor).st_size
    except (AttributeError, OSError, ValueError):
        return str(snap())  # sys capture keeps it in memory
    if size <= limit:
        return str(snap())
    half = limit // 2
    head = pread(descriptor, half, 0).decode("utf-8", "replace")
    tail = pread(descriptor, half, size - half).decode("utf-8", "replace")
    file.seek(0)  # type: ignore[union-attr]
    file.truncate()  # type: ignore[union-attr]
    return f"{head}\n[... {size - 2 * half:,} bytes of output left out ...]\n{tail}"


class Held:
    """What a test's process keeps in its memory, or in files of its own, where pytest can read it when it has died.

    That is what ``capsys``, ``capfd`` and their kin hold, and what ``--capture=sys`` captures. Made in the parent; its
    children have it too.
    """

    def __init__(self, config: pytest.Config) -> None:
        self.descriptors = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdout", "stderr")]
        self._is_sys = config.getoption("capture", "fd") == "sys"

    def begin(self, config: pytest.Config) -> None:
        """In the child, whose test begins."""
        for descriptor in self.descriptors:
            os.ftruncate(descriptor, 0)
        if self._is_sys:
            capture: Any = config.pluginmanager.get_plugin("capturemanager")
            self._hold(getattr(capture, "_global_capturing", None))

    def fixture(self, value: Any) -> None:
        """In the child: one of those fixtures is set up. It starts anew in each phase."""
        start = getattr(value, "_start", None)
        if self._is_sys or start is None:  # under sys there would be two that print at a time
            return

        def start_and_hold() -> None:
            before = value._capture
            start()
            if value._capture is not before:
                self._hold(value._capture)

        value._start = start_and_hold
        self._hold(value._capture)

    def _hold(self, multi: Any) -> None:
        for name, descriptor in zip(("stdout", "stderr"), self.descriptors, strict=True):
            one: Any = getattr(multi, name[3:], None)
            file: Any = getattr(one, "tmpfile", None)
            if hasattr(one, "targetfd"):
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.dup2(descriptor, file.fileno(), inheritable=False)
                os.dup2(descriptor, one.targetfd)
            elif hasattr(file, "getvalue") and not hasattr(file, "_other"):  # a tee's is captured as well
                text = file.getvalue()
                # The same object, anew: a handler made at import, or a test's own name for the stream, has it, too.
                io.TextIOWrapper.__init__(file, _Mirror(descriptor), "UTF-8", newline="", write_through=True)
                file.write(text)

    def added_to(self, captured: dict[str, str]) -> dict[str, str]:
        """In the parent: what is left of a child that died, and what pytest itself has ``captured`` of it."""
        found = {}
        for name, descriptor in zip(("stdout", "stderr"), self.descriptors, strict=True):
            size = os.fstat(descriptor).st_size
            half = HELD_LIMIT // 2
            data = os.pread(descriptor, half, 0) if size > HELD_LIMIT else os.pread(descriptor, HELD_LIMIT, 0)
            if size > HELD_LIMIT:
                data += f"\n[... {size - 2 * half:,} bytes of output left out ...]\n".encode()
                data += os.pread(descriptor, half, size - half)
            os.ftruncate(descriptor, 0)
            text, before = data.decode("utf-8", "replace"), captured.get(name, "")
            found[name] = (text or before) if self._is_sys else before + text
        return found

    def close(self) -> None:
        """The session is over."""
        for descriptor in self.descriptors:
            os.close(descriptor)


#: The most that is shown of one stream, in bytes.
HELD_LIMIT = 8 << 20


class _Mirror(io.BytesIO):
    """Writes into a file, too."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def write(self, data: Any) -> int:
        pwrite(self._descriptor, data, self.tell())
        return super().write(data)

    def truncate(self, size: int | None = None) -> int:
        ftruncate(self._descriptor, self.tell() if size is None else size)
        return super().truncate(size)


def true_streams(config: pytest.Config) -> tuple[int, int, int]:
    """The descriptors of what the process's standard streams are without capturing, which takes their places."""
    capture: Any = config.pluginmanager.get_plugin("capturemanager")
    multi = getattr(capture, "_global_capturing", None)
    found = []
    for number, name in enumerate(("in_", "out", "err")):
        one = getattr(multi, name, None)
        taken = getattr(one, "_state", None) == "started"
        found.append(getattr(one, "targetfd_save", number) if taken else number)
    return found[0], found[1], found[2]


def log_file(config: pytest.Config) -> int:
    """The descriptor of ``--log-file``, or of what pytest has in its place; -1 where it has none."""
    logs: Any = config.pluginmanager.get_plugin("logging-plugin")
    try:
        return int(logs.log_file_handler.stream.fileno())
    except (AttributeError, OSError, ValueError):
        return -1


def use_log_file(config: pytest.Config, descriptor: int) -> None:
    """Has pytest write its log file there. ``descriptor`` is its own from now on."""
    logs: Any = config.pluginmanager.get_plugin("logging-plugin")
    handler: Any = getattr(logs, "log_file_handler", None)
    if handler is None:
        os.close(descriptor)
        return
    before = handler.setStream(os.fdopen(descriptor, "w", encoding="UTF-8"))
    if before is not None:
        before.close()
