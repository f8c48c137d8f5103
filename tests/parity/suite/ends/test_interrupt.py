import pytest


@pytest.fixture(scope="module")
def wide():
    import orderlog

    yield
    orderlog.log("wide over")


def test_before(wide):
    pass


def test_interrupted(wide):
    raise KeyboardInterrupt


def test_after(wide):
    raise AssertionError("not reached")
