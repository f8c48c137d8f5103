"""Parametrised and generated tests."""

import pytest


@pytest.mark.parametrize("number", range(12))
def test_numbers(number):
    assert number % 5 != 4


@pytest.mark.parametrize("left", ["a", "b"])
@pytest.mark.parametrize("right", [1, 2, 3])
def test_products(left, right):
    assert left * right


@pytest.mark.parametrize(("value", "expected"), [
    pytest.param(1, 1, id="one"),
    pytest.param(2, 3, id="two", marks=pytest.mark.xfail(reason="it is two")),
    pytest.param(3, 3, marks=pytest.mark.skip(reason="not three")),
    pytest.param("ä/ö", "ä/ö", id="umlaut"),
    pytest.param("\0", "\0"),
    pytest.param("a::b[c]", "a::b[c]"),
    pytest.param(object, object, id="with space"),
])
def test_params(value, expected):
    assert value == expected


@pytest.fixture(params=["x", "y"])
def letter(request):
    return request.param


@pytest.fixture(params=[1, pytest.param(2, marks=pytest.mark.skip(reason="no twos"))], ids=["one", "two"])
def digit(request):
    return request.param


def test_parametrised_fixtures(letter, digit):
    assert f"{letter}{digit}" != "y1"


@pytest.mark.parametrize("letter", ["p", "q"], indirect=True)
def test_indirect(letter):
    assert letter in "pq"


def pytest_generate_tests(metafunc):
    if "generated" in metafunc.fixturenames:
        metafunc.parametrize("generated", [f"g{n}" for n in range(5)], scope="module")


def test_generated(generated):
    assert generated != "g3"


def test_generated_again(generated):
    assert generated


@pytest.mark.parametrize("empty", [])
def test_no_parameters(empty):
    pass


@pytest.mark.parametrize("letter", "ab", indirect=True)
@pytest.mark.usefixtures("digit")
class TestClass:
    def test_in_class(self, letter):
        assert letter
