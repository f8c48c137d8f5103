"""A test's own teardown and its module's break at once."""

import pytest


@pytest.fixture(scope="module")
def of_module():
    yield
    raise OSError("the module's teardown")


@pytest.fixture
def of_function():
    yield
    raise ValueError("the function's teardown")


def test_both_break(of_module, of_function):
    pass
