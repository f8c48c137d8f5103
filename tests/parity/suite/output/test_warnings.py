"""Warnings, with their location; exceptions that nobody could catch."""

import gc
import threading
import warnings

import pytest


class OwnWarning(UserWarning):
    pass


def helper():
    warnings.warn("from a helper", DeprecationWarning, stacklevel=2)


def test_warns():
    warnings.warn("plain", stacklevel=1)


def test_warns_own():
    warnings.warn("of an own kind", OwnWarning, stacklevel=1)


def test_warns_instance():
    warnings.warn(OwnWarning("an", "instance"), stacklevel=1)


def test_warns_from_helper():
    helper()


def test_warns_twice():
    for _ in range(2):
        warnings.warn("twice", stacklevel=1)


@pytest.mark.parametrize("number", range(3))
def test_warns_in_each(number):
    warnings.warn("the same in each", stacklevel=1)


def test_warns_elsewhere():
    warnings.warn_explicit("elsewhere", UserWarning, "no/such/file.py", 17)


def test_warns_and_fails():
    warnings.warn("before the failure", stacklevel=1)
    raise AssertionError


@pytest.fixture
def warns():
    warnings.warn("in set-up", stacklevel=1)
    yield
    warnings.warn("in teardown", stacklevel=1)


def test_warns_in_all_phases(warns):
    warnings.warn("in call", stacklevel=1)


@pytest.fixture(scope="module")
def warns_for_module():
    warnings.warn("module set up", stacklevel=1)
    yield
    warnings.warn("module torn down", stacklevel=1)


def test_module_warns(warns_for_module):
    pass


def test_item_warns(request):
    request.node.warn(pytest.PytestWarning("by the item"))


def test_recwarn(recwarn):
    warnings.warn("recorded", stacklevel=1)
    assert len(recwarn) == 1


def test_warns_context():
    with pytest.warns(OwnWarning, match="expected"):
        warnings.warn("expected", OwnWarning, stacklevel=1)


def test_deprecated_call():
    with pytest.deprecated_call():
        helper()


@pytest.mark.filterwarnings("error")
def test_warning_is_an_error():
    warnings.warn("an error here", stacklevel=1)


@pytest.mark.filterwarnings("ignore")
def test_warning_is_ignored():
    warnings.warn("ignored", stacklevel=1)


class Breaks:
    def __del__(self):
        raise OSError("in __del__")


def test_unraisable():
    Breaks()
    gc.collect()


def test_thread_breaks():
    def work():
        raise ValueError("in a thread")

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    thread.join()


def test_unclosed_file(tmp_path):
    open(tmp_path / "file", "w")  # noqa: SIM115 - left open on purpose
    gc.collect()


async def test_never_awaited():
    pass
