"""For all tests: pytest's own plugin-testing fixture, and the leak check."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import leaks
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: what tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Fails the test if it left a process, mount, namespace, cgroup, file or descriptor behind."""
    yield from leaks.watch(pytest.fail)
