"""What pytest says about assertions that fail."""

import dataclasses

import pytest


@dataclasses.dataclass
class Point:
    x: int
    y: int
    label: str = "p"


def test_compared_by_a_hook(money):
    assert money(1) == money(2)


def test_dataclass():
    assert Point(1, 2) == Point(1, 3, "q")


def test_dict():
    assert {"a": 1, "b": [1, 2]} == {"a": 1, "b": [1, 3], "c": None}


def test_set():
    assert {1, 2, 3} == {2, 3, 4}


def test_long_text():
    assert "\n".join(f"line {n}" for n in range(30)) == "\n".join(f"line {n}" for n in range(30) if n != 17)


def test_long_list():
    assert list(range(200)) == [*range(150), 0, *range(151, 200)]


def test_not_in():
    assert "needle" not in "a haystack with a needle in it"


def test_call_is_shown():
    def answer():
        return 41

    assert answer() == 42


def test_approx():
    assert 0.1 + 0.2 == pytest.approx(0.4)


def test_bytes():
    assert b"\x00\x01" == b"\x00\x02"


def test_bool():
    value = []
    assert value, f"empty: {value!r}"


def test_did_not_raise():
    with pytest.raises(ValueError, match="x"):
        pass


def test_raised_something_else():
    with pytest.raises(ValueError, match="wanted"):
        raise ValueError("found")


def test_did_not_warn():
    with pytest.warns(UserWarning):
        pass


def test_local_variables():
    text, number, items = "a" * 100, 17, {"key": [1, 2, 3]}
    assert not (text and number and items)


def test_hidden_frames():
    def helper():
        __tracebackhide__ = True
        pytest.fail("from a helper that hides")

    helper()


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no repr")


def test_broken_repr():
    value = Unprintable()
    assert value is None


def test_several_errors():
    group = pytest.importorskip("builtins")
    if not hasattr(group, "ExceptionGroup"):
        pytest.skip("no exception groups on this Python")
    raise group.ExceptionGroup("two", [ValueError("one"), TypeError("other")])


def test_unicode():
    assert "grün ✓ 漢字" == "grün ✗ 漢字"


def test_surrogates():
    assert "\udcff" == "x"


def test_passing_assertions_are_told():
    left = 3
    assert left == 3
    assert left < 4
