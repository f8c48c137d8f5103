import os

import pytest

pytest.importorskip("pytest_mock")


def test_patches(mocker):
    mocker.patch("os.getcwd", return_value="/elsewhere")
    assert os.getcwd() == "/elsewhere"


def test_patch_is_undone():
    assert os.getcwd() != "/elsewhere"


def test_call_is_compared(mocker):
    stub = mocker.stub("name")
    stub(1, key="value")
    stub.assert_called_once_with(2, key="value")


@pytest.fixture(scope="module")
def patched(module_mocker):
    return module_mocker.patch("os.getlogin", return_value="nobody")


def test_module_wide(patched):
    assert os.getlogin() == "nobody"


def test_module_wide_again(patched):
    assert os.getlogin() == "nobody"
    assert patched.call_count >= 1
