import pytest


@pytest.fixture(autouse=True)
def provided(doctest_namespace):
    doctest_namespace["provided"] = "by a fixture"
