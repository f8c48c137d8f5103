"""Time limits: the clock of one, what it measures before it strikes, and how it ends what runs inside.

``Watch`` is for whoever waits anyway (the plugin, while a test runs inside); ``Deadline`` is a thread that waits for a
``Sandbox`` that is driven from outside. Both stand still while somebody sits at a debugger's prompt.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from .errors import SandboxError, TimeLimitExceeded
from .runtime.tasks import Proc
from .stacks import in_words
from .verdicts import WINDOW, Sample, Verdict, judge, sample

if TYPE_CHECKING:
    from .runtime.running import Running
    from .sandbox import Sandbox
    from .stacks import ProcessStack

#: Seconds between SIGTERM, with which a time limit asks everything inside to end, and SIGKILL.
GRACE = 2.0


class Watch:
    """The clock of one time limit: made when the time begins, of no use after it has struck."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.window = min(WINDOW, seconds / 2)
        self._end: float = time.monotonic() + seconds
        self._left: float | None = None  # while it stands still
        self._before: Sample | None = None

    def next(self) -> float | None:
        """In how many seconds :meth:`tick` wants to be called; None while it stands still."""
        if self._left is not None:
            return None
        wanted = self._end if self._before is not None else self._end - self.window
        return max(0.0, wanted - time.monotonic())

    def debugging(self, prompt: bool) -> None:
        """Says whether somebody sits at a debugger's prompt: then it stands still."""
        now = time.monotonic()
        if prompt and self._left is None:
            self._left, self._before = max(0.001, self._end - now), None  # nobody can be blamed for that time
        elif not prompt and self._left is not None:
            self._end, self._left = now + self._left, None

    def tick(self, root: int) -> tuple[Verdict | None, list[ProcessStack]] | None:
        """Measures, when it is time to; the finding when the time is up, else None.

        :param root: a descriptor of the sandbox's root directory.
        """
        if self._left is not None:
            return None
        now = time.monotonic()
        try:
            with Proc(root) as proc:
                if now >= self._end:
                    return judge(proc, self._before) if self._before is not None else (None, [])
                if now >= self._end - self.window and self._before is None:
                    self._before = sample(proc)
        except OSError:  # the sandbox is ending
            return (None, []) if now >= self._end else None
        return None


def exceeded(who: str, seconds: float, found: tuple[Verdict | None, list[ProcessStack]], phase: str | None = None,
             shown: str | None = None) -> TimeLimitExceeded:
    """The error for a limit that has struck.

    :param who: what took too long.
    :param phase: of the test, if it is one that runs inside.
    :param shown: the stacks in words, where not all of them are to be shown.
    """
    verdict, stacks = found
    why = None
    if verdict is not None:
        why = f"in its {phase} it was {verdict}" if phase else f"it was {verdict}"
    return TimeLimitExceeded(
        f"{who} took longer than its timeout of {seconds:g} s", why=why, limit=seconds, elapsed=seconds,
        verdict=verdict.kind if verdict is not None else None,
        stacks=shown if shown is not None else in_words(stacks))


def end(running: Running, grace: float = GRACE) -> None:
    """Ends everything in a sandbox but its init: SIGTERM to all, and after ``grace`` seconds SIGKILL to who is left."""
    if running.group is not None and running.group.frozen:
        with suppress(OSError):  # nobody in there could act on a signal
            running.group.kill(running.init_pid())
            running.group.thaw()
    with suppress(SandboxError, OSError):
        running.request({"kill": int(signal.SIGTERM)})
        _wait_for_the_end(running, grace)
    with suppress(SandboxError, OSError):
        running.request({"kill": int(signal.SIGKILL)})
        with nullcontext() if running.group is None else running.group.unthrottled():
            for child in list(running.children):
                child.kill()
            _wait_for_the_end(running, 5)  # not for ever: what hangs in the kernel dies when it comes out


def _wait_for_the_end(running: Running, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    pause = 0.002
    with Proc(running.root) as proc:
        while proc.living() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 2, 0.05)


_live: weakref.WeakSet[Deadline] = weakref.WeakSet()


def debugging(prompt: bool) -> None:
    """Somebody has come to a debugger's prompt in this process, or left it: every deadline stands still meanwhile."""
    for one in list(_live):
        one.debugging(prompt)


class Deadline(threading.Thread):
    """Ends a sandbox's processes when its time is up. From the sandbox's start until :meth:`cancel`.

    ``error`` is then what happened; it is for every later use of the sandbox to raise.
    """

    def __init__(self, sandbox: Sandbox, seconds: float) -> None:
        super().__init__(name="pytest-sandbox deadline", daemon=True)
        self.error: TimeLimitExceeded | None = None
        self.told = False
        self._sandbox = weakref.ref(sandbox)
        self._watch = Watch(seconds)
        self._changed = threading.Condition()
        self._cancelled = False
        self._pid = os.getpid()
        _live.add(self)
        self.start()

    def run(self) -> None:
        """The thread's body."""
        with self._changed:
            while not self._cancelled:
                if self._changed.wait(self._watch.next()):
                    continue
                sandbox = self._sandbox()
                running = sandbox._running if sandbox is not None else None
                del sandbox  # a sandbox that nobody holds any more may go
                found = self._watch.tick(running.root if running is not None else -1)
                if found is None:
                    continue
                self.error = exceeded("what ran in a sandbox", self._watch.seconds, found)
                break
            else:
                return
        if running is not None:
            end(running)

    def debugging(self, prompt: bool) -> None:
        """As :meth:`Watch.debugging`."""
        if self._pid == os.getpid():
            with self._changed:
                self._watch.debugging(prompt)
                self._changed.notify()

    def raise_if_over(self) -> None:
        """Raises what happened, if the time is up."""
        __tracebackhide__ = True
        if self.error is not None and self._pid == os.getpid():
            self.told = True
            raise self.error.with_traceback(None)

    def cancel(self) -> None:
        """The sandbox is closed: the thread ends."""
        if self._pid == os.getpid():
            with self._changed:
                self._cancelled = True
                self._changed.notify()
            self.join()
