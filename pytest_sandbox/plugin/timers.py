"""Timers of the pytest process that are meant for the test: none of them survives a fork. Used around it by ``item``.

=============================  =================================================================================
``ITIMER_REAL``                pytest-timeout's method ``signal``, and whoever else set an alarm in the set-up: the
                               rest of the time runs on in the child, and stands still out here
a thread of pytest-timeout's   its method ``thread``: cancelled out here, started anew in the child
``faulthandler_timeout``       pytest's own: as that thread
=============================  =================================================================================

Each acts only where it is in use. A test that a timer inside ends is one failure of that test.
"""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from typing import Any

import pytest

from . import compat


class Timers:
    """What was running when the sandbox was entered. Made just before the fork, and kept on both sides of it."""

    __slots__ = ("_alarm", "_began", "_faults", "_item", "_thread")

    def __init__(self, item: pytest.Item, faults: tuple[float, int, bool] | None) -> None:
        self._item = item
        self._began = time.monotonic()
        self._alarm = signal.getitimer(signal.ITIMER_REAL)
        self._thread = _thread_of_pytest_timeout(item)
        self._faults = faults
        if faults is not None:
            faulthandler.cancel_dump_traceback_later()  # now: a fork would wait for ever for the thread that it lacks

    def go_on_inside(self) -> None:
        """In the child."""
        left, interval = self._alarm
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - self._began)), interval)
        if self._thread is not None:
            hook = self._item.config.hook
            hook.pytest_timeout_set_timer(item=self._item, settings=self._thread)
        if self._faults is not None:
            seconds, descriptor, ends = self._faults
            faulthandler.dump_traceback_later(seconds, file=descriptor, exit=ends)

    def stand_still(self) -> None:
        """In the parent, while the child runs."""
        if self._alarm[0]:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self._thread is not None:
            self._item.config.hook.pytest_timeout_cancel_timer(item=self._item)

    def go_on(self) -> None:
        """In the parent, when the child is done: what is left of the alarm is for the teardown of higher scopes.

        If nothing is left it went off in the child.
        """
        left = self._alarm[0] - (time.monotonic() - self._began)
        if self._alarm[0] and left > 0:
            signal.setitimer(signal.ITIMER_REAL, left, self._alarm[1])

    def ended_it(self) -> BaseException | None:
        """The failure of a child that pytest-timeout's thread ended, which it does with a bare exit status of 1."""
        if self._thread is None or time.monotonic() - self._began < self._thread.timeout:
            return None
        return pytest.fail.Exception(f"Timeout (>{self._thread.timeout}s) from pytest-timeout.", pytrace=False)


def _thread_of_pytest_timeout(item: pytest.Item) -> Any:
    """The settings of pytest-timeout's timer, if it is one for the whole test that a thread keeps."""
    settings = compat.timeout_settings(item)
    if settings is None or not settings.timeout or settings.func_only:
        return None
    in_thread = settings.method == "thread" or threading.current_thread() is not threading.main_thread()
    return settings if in_thread else None


def faulthandler_timer(config: pytest.Config) -> tuple[float, int, bool] | None:
    """Seconds, descriptor and whether to exit, of the ini option ``faulthandler_timeout``."""
    descriptor = compat.faulthandler_descriptor(config)
    seconds = float(config.getini("faulthandler_timeout") or 0) if descriptor is not None else 0
    if descriptor is None or seconds <= 0:
        return None
    return seconds, descriptor, compat.ini(config, "faulthandler_exit_on_timeout") is True
