import pytest


@pytest.fixture(scope="package")
def place(place):
    yield [*place, "inner"]
