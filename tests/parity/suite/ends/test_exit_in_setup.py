import pytest


@pytest.fixture
def exits():
    pytest.exit("from set-up")


def test_before():
    print("before")


def test_exits(exits):
    pass


def test_after():
    raise AssertionError("not reached")
