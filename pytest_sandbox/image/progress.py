"""Telling how a pull goes: one line that changes on a terminal, few lines that do not in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TextIO

from .source import Progress

_REDRAW = 0.1  # seconds
_STILL_THERE = 15.0  # seconds between lines of a log, so that no watcher takes a pull for dead


def show_bytes(count: float) -> str:
    """A size for people, in powers of 1024 as everywhere here."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class LogProgress(Progress):
    """Lines for logs: a layer's beginning and end, and a sign of life in between. ``write`` gets whole lines."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._mutex = threading.Lock()
        self._running: dict[str, tuple[int, int | None]] = {}
        self._told = time.monotonic()

    def start(self, what: str, total: int | None) -> None:
        with self._mutex:
            self._running[what] = 0, total
            if total is not None:
                self._write(f"pulling {what}, {show_bytes(total)}")

    def advance(self, what: str, count: int) -> None:
        with self._mutex:
            done, total = self._running.get(what, (0, None))
            self._running[what] = done + count, total
            if time.monotonic() - self._told > _STILL_THERE:
                self._told = time.monotonic()
                self._write(f"still pulling: {self._sum()}")

    def _sum(self) -> str:
        done = sum(done for done, total in self._running.values() if total is not None)
        total = sum(total for _, total in self._running.values() if total is not None)
        return f"{show_bytes(done)} of {show_bytes(total)}"

    def done(self, what: str) -> None:
        with self._mutex:
            _, total = self._running.get(what, (0, None))
            if total is None:
                self._write(f"{what.removesuffix(' unpacking')} is there")

    def waiting(self, what: str, why: str) -> None:
        self._write(f"waiting for {what}: {why}")

    def note(self, text: str) -> None:
        self._write(f"note: {text}")


class TerminalProgress(LogProgress):
    """One line on a terminal, redrawn in place and wiped away at the end."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(lambda line: None)
        self._stream = stream
        self._drawn = 0.0
        self._waits = ""

    def _draw(self) -> None:
        if time.monotonic() - self._drawn < _REDRAW:
            return
        self._drawn = time.monotonic()
        unpacking = sum(1 for what in self._running if what.endswith(" unpacking"))
        text = f"pulling {self._sum()}" + (f", unpacking {unpacking}" if unpacking else "") + self._waits
        self._stream.write(f"\r\x1b[K{text[:78]}")
        self._stream.flush()

    def start(self, what: str, total: int | None) -> None:
        super().start(what, total)
        self._draw()

    def advance(self, what: str, count: int) -> None:
        super().advance(what, count)
        self._draw()

    def done(self, what: str) -> None:
        with self._mutex:
            if what.endswith(" unpacking"):
                self._running.pop(what, None)
        self._draw()

    def waiting(self, what: str, why: str) -> None:
        self._waits = f"; {what}: {why}"
        self._draw()

    def note(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}\n")

    def finish(self) -> None:
        self._stream.write("\r\x1b[K")
        self._stream.flush()


def progress_for(stream: TextIO) -> Progress:
    """What suits a stream."""
    if stream.isatty():
        return TerminalProgress(stream)
    return LogProgress(lambda line: stream.write(f"{line}\n"))
