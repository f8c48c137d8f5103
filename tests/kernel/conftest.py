"""Kernel tests need namespaces, and each of them ends with a leak check."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def nothing_is_left_behind(leak_check: None) -> None:
    """Autouse, so that it is set up before a test's own fixtures and looks again after the last of them."""
