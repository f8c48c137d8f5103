import pytest


@pytest.fixture
def doctest_namespace(log):
    log("about to break")
    raise OSError("no namespace")
