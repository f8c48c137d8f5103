"""The doctests below do not name ``doctest_namespace``: pytest asks for it, after their own fixtures."""

import pytest


@pytest.fixture(autouse=True)
def own(log):
    log("own set up")
    yield
    log("own torn down")
