"""hypothesis: the examples that it finds, and how it tells of them."""

import pytest

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
always = hypothesis.settings(derandomize=True, deadline=None, max_examples=25)


@always
@hypothesis.given(st.integers())
def test_holds(number):
    assert number + 0 == number


@always
@hypothesis.given(st.lists(st.integers()))
def test_does_not_hold(numbers):
    assert sum(numbers) < 100


@always
@hypothesis.given(number=st.integers(min_value=0))
@hypothesis.example(number=7)
def test_example_fails(number):
    assert number != 7


@always
@hypothesis.given(st.text(alphabet="0123456789", max_size=5))
@pytest.mark.parametrize("prefix", ["a", "b"])
def test_parametrised(prefix, text):
    hypothesis.note(f"prefix {prefix}")
    assert (prefix + text).startswith("a")


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.seed(1)
@hypothesis.given(st.integers(min_value=0, max_value=10_000))
def test_remembered(number):
    """Not derandomised, so that the failing example goes to the database."""
    hypothesis.target(number)
    assert number < 5


class TestInClass:
    @always
    @hypothesis.given(data=st.data())
    def test_data(self, data):
        assert data.draw(st.booleans()) in (True, False)
