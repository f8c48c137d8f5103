"""Telling how a pull goes: one line that changes on a terminal, few lines that do not in a log.

``pull`` tells at once, by :class:`LogProgress` or :class:`TerminalProgress`. Whoever brings images in on the way to
something else (pytest, ``run``, ``build``) uses an :class:`Announcer`, which has nothing to say about what is quick.
"""

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
        self._waits_for: dict[str, str] = {}

    def start(self, what: str, total: int | None) -> None:
        with self._mutex:
            self._waits_for.pop(what.removesuffix(" unpacking"), None)
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
        with self._mutex:
            if self._waits_for.get(what) != why:
                self._waits_for[what] = why
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

    def finish(self, *, failed: bool = False) -> None:
        self._running.clear()
        self._waits = ""
        self._stream.write("\r\x1b[K")
        self._stream.flush()


class Announcer(Progress):
    """Tells about what takes longer, from a thread of its own, so that there is a sign of life also while nothing
    moves. The thread lives from ``begin`` to ``finish``.

    :param first: seconds after which there is something to say.
    :param again: seconds between what is said then.
    """

    def __init__(self, first: float, again: float) -> None:
        self._first, self._again = first, again
        self._mutex = threading.Lock()
        self._doing: list[tuple[str, str]] = []
        self._thread: threading.Thread | None = None
        self._over = threading.Event()
        self._began = 0.0
        self._reset()

    def show(self, text: str) -> None:
        """How it goes. Called from the announcer's thread, while the one that called ``begin`` waits."""
        raise NotImplementedError

    def conclude(self, text: str) -> None:
        """How it ended; called where :meth:`show` was, from the thread that called ``begin``."""
        raise NotImplementedError

    def _reset(self) -> None:
        self._sizes: dict[str, tuple[int, int]] = {}
        self._unpacking: set[str] = set()
        self._unpacked = 0
        self._waits = self._step = ""
        self._shown = False

    def begin(self, reference: str, doing: str = "pulling") -> None:
        self._doing.append((doing, reference))
        if self._thread is None:
            self._reset()
            self._began = time.monotonic()
            self._over.clear()
            self._thread = threading.Thread(target=self._run, name="sandbox-progress", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        pause = self._first
        while not self._over.wait(pause):
            self._shown = True
            self.show(self.text())
            pause = self._again

    def step(self, text: str) -> None:
        self._step = text

    def start(self, what: str, total: int | None) -> None:
        with self._mutex:
            self._waits = ""
            if total is None:
                self._unpacking.add(what)
            else:
                self._sizes[what] = 0, total

    def advance(self, what: str, count: int) -> None:
        with self._mutex:
            done, total = self._sizes.get(what, (0, 0))
            self._sizes[what] = done + count, total

    def done(self, what: str) -> None:
        with self._mutex:
            if what in self._unpacking:
                self._unpacking.remove(what)
                self._unpacked += 1

    def waiting(self, what: str, why: str) -> None:
        self._waits = f"; waiting for {what}: {why}"

    def finish(self, *, failed: bool = False) -> None:
        doing, reference = self._doing.pop()
        if self._doing or self._thread is None:
            return
        self._over.set()
        self._thread.join()
        self._thread = None
        if self._shown:
            done = {"pulling": "pulled", "unpacking": "unpacked", "building": "built"}[doing]
            size = sum(total for _, total in self._sizes.values())
            self.conclude(f"{'failed: ' if failed else ''}{doing if failed else done} {reference}"
                          f"{f', {show_bytes(size)},' if size and not failed else ''} "
                          f"{'after' if failed else 'in'} {time.monotonic() - self._began:.0f} s")

    def text(self) -> str:
        """One line: what is being done, how far it is, what it waits for."""
        with self._mutex:
            doing, reference = self._doing[-1] if self._doing else ("pulling", "")
            done, total = (sum(one[at] for one in self._sizes.values()) for at in (0, 1))
            text = f"{doing} {reference}"
            if doing == "building":
                return f"{text}: {self._step}" if self._step else text
            if total:
                text += f": {show_bytes(done)} of {show_bytes(total)}"
            if self._unpacking:
                text += f", unpacking {len(self._unpacking)} layer{'s' * (len(self._unpacking) > 1)}"
            if self._unpacked:
                text += f", {self._unpacked} there"
            return text + self._waits


class StreamAnnouncer(Announcer):
    """For commands, on their standard error: one line that changes on a terminal, few lines in a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live = stream, stream.isatty()
        super().__init__(*((1, 0.2) if self._live else (5, 30)))

    def show(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text[:78]}" if self._live else f"{text}\n")
        self._stream.flush()

    def conclude(self, text: str) -> None:
        self._stream.write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")
        self._stream.flush()


def progress_for(stream: TextIO) -> Progress:
    """What suits a stream."""
    if stream.isatty():
        return TerminalProgress(stream)
    return LogProgress(lambda line: stream.write(f"{line}\n"))
