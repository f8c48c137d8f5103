"""pytest's own subtests, or the plugin's where pytest has none."""

import importlib.util

import pytest

if not hasattr(pytest, "Subtests") and importlib.util.find_spec("pytest_subtests") is None:
    pytest.skip("no subtests here", allow_module_level=True)


def test_all_pass(subtests):
    for number in range(3):
        with subtests.test("numbers", number=number):
            assert number < 3


def test_some_fail(subtests):
    for number in range(4):
        with subtests.test(number=number, text="a b"):
            print(f"number {number}")
            assert number % 2 == 0


def test_some_skip(subtests):
    for number in range(3):
        with subtests.test(f"message {number}"):
            if number == 1:
                pytest.skip("no ones")


def test_some_xfail(subtests):
    with subtests.test("x"):
        pytest.xfail("known")


def test_fails_itself_too(subtests):
    with subtests.test("within"):
        raise ValueError("within")
    raise AssertionError("and outside")


@pytest.mark.parametrize("case", ["a", "b"])
def test_parametrised(subtests, case):
    with subtests.test(case=case):
        assert case == "a"


class TestInClass:
    def test_in_class(self, subtests):
        with subtests.test("in class"):
            pass
