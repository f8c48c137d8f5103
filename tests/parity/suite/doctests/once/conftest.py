import orderlog
import pytest


@pytest.fixture(scope="package")
def doctest_namespace():
    print("namespace set up")
    yield {"answer": 42}
    orderlog.log("namespace torn down")
