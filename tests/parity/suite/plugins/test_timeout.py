import time

import pytest

pytest.importorskip("pytest_timeout")


@pytest.mark.timeout(30)
def test_in_time():
    pass


@pytest.mark.timeout(0.4)
def test_too_slow():
    print("before it hangs")
    time.sleep(20)


@pytest.fixture
def slow():
    time.sleep(20)


@pytest.mark.timeout(0.4)
def test_slow_fixture(slow):
    pass


@pytest.mark.timeout(0.4, func_only=True)
def test_only_the_function():
    while True:
        pass


def test_after_all():
    pass
