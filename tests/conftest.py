"""For all tests: pytest's own plugin-testing fixture, and the leak check."""

from __future__ import annotations

from collections.abc import Iterator

import leaks
import pytest


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Fails the test if it left a process, mount, namespace, cgroup, file or descriptor behind."""
    yield from leaks.watch(pytest.fail)
