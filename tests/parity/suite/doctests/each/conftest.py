import pytest


@pytest.fixture
def doctest_namespace(log):
    log("namespace set up")
    yield {"numbers": []}
    log("namespace torn down")
