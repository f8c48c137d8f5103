import pytest


def test_before():
    pass


def test_exits(in_all, narrow):
    pytest.exit("that is enough", returncode=7)


def test_after():
    raise AssertionError("not reached")


@pytest.fixture(scope="module")
def in_all(log_all):
    yield
    log_all("module over")


@pytest.fixture(scope="session")
def log_all():
    import orderlog

    return orderlog.log


@pytest.fixture
def narrow(log_all):
    yield
    log_all("narrow over")
