"""How the images of a run come in, told where its user looks. Given to ``planning`` by ``options``.

Nothing is said about what takes a moment. On a terminal, one line shows how it goes, and stays as the result; in a
log, a line after some seconds, then twice a minute, and one at the end; with ``-q`` only on a terminal, with ``-qq``
nowhere. pytest-xdist's workers have no terminal: the one that is first to wait for an image tells it on standard error,
which they share with the controller.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import threading
from typing import TYPE_CHECKING, Any

from pytest_sandbox.image.progress import Announcer

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.image.locks import FileLock

#: Seconds until there is something to say, and between what is said then: on a terminal, and in a log.
LIVE = (1.0, 0.2)
LOG = (5.0, 30.0)


def announcer(config: pytest.Config) -> Announcer | None:
    """What suits this run; None where nothing is to be told."""
    quiet = -config.get_verbosity()
    if hasattr(config, "workerinput"):
        return WorkerAnnouncer(config) if quiet < 1 else None
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return None
    live = bool(reporter.isatty)
    return TerminalAnnouncer(config, reporter, live) if quiet < (2 if live else 1) else None


class _Announcer(Announcer):
    """Only for pytest's own thread: while that waits for an image, capturing can be lifted for a line."""

    def __init__(self, config: pytest.Config, pace: tuple[float, float]) -> None:
        super().__init__(*pace)
        self._config = config

    def begin(self, reference: str, doing: str = "pulling") -> None:
        if threading.current_thread() is threading.main_thread() and self._may_tell():
            super().begin(reference, doing)

    def finish(self, *, failed: bool = False) -> None:
        if self._doing and threading.current_thread() is threading.main_thread():
            super().finish(failed=failed)

    def _may_tell(self) -> bool:
        return True

    def uncaptured(self) -> contextlib.AbstractContextManager[None]:
        manager: Any = self._config.pluginmanager.get_plugin("capturemanager")
        return manager.global_and_fixture_disabled() if manager is not None else contextlib.nullcontext()


class TerminalAnnouncer(_Announcer):
    """On pytest's terminal, or in the log that it writes instead."""

    def __init__(self, config: pytest.Config, reporter: Any, live: bool) -> None:
        super().__init__(config, LIVE if live else LOG)
        self._reporter, self._live = reporter, live
        self._open = False

    def show(self, text: str) -> None:
        with self.uncaptured():
            first, self._open = not self._open, True
            if first:
                self._reporter.ensure_newline()
            if self._live:
                width = shutil.get_terminal_size().columns - 1
                self._reporter.rewrite(f"sandbox: {text}"[:max(20, width)], erase=True)
            else:
                self._reporter.write(f"{'' if first else chr(10)}sandbox: {text}", flush=True)

    def conclude(self, text: str) -> None:
        self.show(text)
        self._open = False
        if self._config.get_verbosity() < 0:  # otherwise pytest begins a line before it writes
            with self.uncaptured():
                self._reporter.write("\n")


class WorkerAnnouncer(_Announcer):
    """Of one of pytest-xdist's workers. One worker tells about an image, however many wait for it."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__(config, LOG)
        self._worker = config.workerinput["workerid"]  # type: ignore[attr-defined]
        self._run_id = config.workerinput["testrunuid"]  # type: ignore[attr-defined]
        self._held: FileLock | None = None

    def _may_tell(self) -> bool:
        if self._doing:
            return True
        from pytest_sandbox import planning
        from pytest_sandbox.image.locks import lock

        name = hashlib.sha256(str(self._run_id).encode()).hexdigest()[:32]
        path = planning.store().layout.staging(f"tells-{name}.lock")
        self._held = lock(path, exclusive=True, create=True, wait=False)
        return self._held is not None

    def finish(self, *, failed: bool = False) -> None:
        super().finish(failed=failed)
        if not self._doing and self._held is not None:
            self._held.remove()
            self._held = None

    def show(self, text: str) -> None:
        with self.uncaptured():
            print(f"[{self._worker}] sandbox: {text}", file=sys.stderr, flush=True)

    conclude = show
