import pytest


@pytest.fixture
def exits():
    yield
    pytest.exit("from teardown", returncode=3)


def test_exits(exits):
    print("passes")


def test_after():
    raise AssertionError("not reached")
