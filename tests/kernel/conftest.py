"""Kernel tests need namespaces, and each of them ends with a leak check."""

from __future__ import annotations

import pytest

from pytest_sandbox import Sandbox


@pytest.fixture(scope="session", autouse=True)
def what_stays_is_there() -> None:
    """The first sandbox of a process starts the helper, which stays for the next ones: it is no leak of a test."""
    with Sandbox() as sandbox:
        sandbox.run(["true"], check=True)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(what_stays_is_there: None, leak_check: None) -> None:
    """Autouse, so that it is set up before a test's own fixtures and looks again after the last of them."""
