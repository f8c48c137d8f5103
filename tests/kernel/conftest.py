"""Kernel tests need namespaces, and each of them ends with a leak check."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_sandbox import Sandbox
from pytest_sandbox.sandbox import shutdown


@pytest.fixture(scope="session", autouse=True)
def helper() -> Iterator[None]:
    """The helper outlives each test, as it should: it is there before the first look."""
    with Sandbox():
        pass
    yield
    shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(helper: None, leak_check: None) -> None:
    """Autouse, so that it is set up before a test's own fixtures and looks again after the last of them."""
