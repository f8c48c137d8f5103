"""pytest-rerunfailures. Attempts are counted by fixtures of the module: what a test itself remembers is gone."""

import pytest

pytest.importorskip("pytest_rerunfailures")


@pytest.fixture(scope="module")
def wide(log_line):
    log_line("wide set up")
    yield
    log_line("wide torn down")


@pytest.fixture(scope="session")
def log_line():
    import orderlog

    return orderlog.log


def attempt(request):
    return getattr(request.node, "execution_count", 1)


@pytest.mark.flaky(reruns=2)
def test_passes_at_last(request, wide):
    print(f"attempt {attempt(request)}")
    assert attempt(request) == 3


@pytest.mark.flaky(reruns=1)
def test_never_passes(wide):
    raise AssertionError


@pytest.fixture
def flaky_fixture(request):
    if attempt(request) < 2:
        raise OSError("first attempt")


@pytest.mark.flaky(reruns=2)
def test_fixture_passes_at_last(flaky_fixture):
    pass


@pytest.mark.flaky(reruns=2, only_rerun=["ValueError"])
def test_not_rerun():
    raise KeyError("another")


@pytest.mark.flaky(reruns=1, condition=False)
def test_condition():
    raise AssertionError


@pytest.mark.flaky(reruns=1)
def test_passes_at_once(wide):
    pass


@pytest.mark.flaky(reruns=1)
@pytest.mark.xfail(reason="known")
def test_xfail():
    raise AssertionError


@pytest.fixture(params=[1, 2])
def number(request):
    return request.param


@pytest.mark.flaky(reruns=1)
def test_parametrised(number):
    assert number == 1
