"""The comparison itself: it must see what differs and accept only what an explanation covers."""

from __future__ import annotations

from pathlib import Path

import pytest
from compare import ABSENT, Difference, Explanation, Outcome, counted, differences, outcomes

SUITE = """
import pytest

def test_pass(): pass
def test_fail(): assert False
def test_skip(): pytest.skip("at 0x7f00 in /tmp/pytest-of-me/pytest-12/x of no use")
@pytest.mark.xfail(reason="known")
def test_xfail(): assert False
@pytest.mark.xfail(strict=True)
def test_xpass_strict(): pass
@pytest.fixture
def broken(): raise OSError
def test_setup_error(broken): pass
@pytest.fixture
def breaks_later():
    yield
    raise OSError
def test_teardown_error(breaks_later): pass
def test_both(breaks_later): assert False
"""


def test_outcomes_are_read_from_what_pytest_writes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite=SUITE)
    pytester.runpytest_subprocess("--junitxml=report.xml", "-p", "no:cacheprovider")
    found = {name.removeprefix("test_suite::"): str(one) for name, one in outcomes(Path("report.xml")).items()}
    assert found.pop("test_skip").endswith("at 0x... in /tmp/pytest-of-me/pytest-.../x of no use)")
    assert found == {
        "test_pass": "passed",
        "test_fail": "failed",
        "test_xfail": "xfailed (known)",
        "test_xpass_strict": "failed",
        "test_setup_error": "error in setup",
        "test_teardown_error": "error in teardown",
        "test_both": "failed",
        "test_both #2": "error in teardown",
    }


def test_a_difference_is_another_kind_another_reason_or_a_missing_test() -> None:
    plain = {"same": Outcome("passed"), "a": Outcome("passed"), "b": Outcome("skipped", "x"), "gone": Outcome("failed")}
    sandboxed = {
        "same": Outcome("passed"), "a": Outcome("failed"), "b": Outcome("skipped", "y"), "new": Outcome("passed"),
    }
    assert differences(plain, sandboxed) == [
        Difference("a", Outcome("passed"), Outcome("failed")),
        Difference("b", Outcome("skipped", "x"), Outcome("skipped", "y")),
        Difference("gone", Outcome("failed"), Outcome(ABSENT)),
        Difference("new", Outcome(ABSENT), Outcome("passed")),
    ]
    assert differences(plain, plain) == []


@pytest.mark.parametrize(("entry", "covers"), [
    (Explanation("p", "why"), True),
    (Explanation("other", "why"), False),
    (Explanation("p", "why", test="m::test_*"), True),
    (Explanation("p", "why", test="m::test_a[1]"), True),
    (Explanation("p", "why", test="n::*"), False),
    (Explanation("p", "why", user="root"), True),
    (Explanation("p", "why", user="unprivileged"), False),
    (Explanation("p", "why", plain="passed", sandboxed="failed"), True),
    (Explanation("p", "why", sandboxed="skipped"), False),
])
def test_an_explanation_covers_only_what_it_names(entry: Explanation, covers: bool) -> None:
    difference = Difference("m::test_a[1]", Outcome("passed"), Outcome("failed"))
    assert entry.covers("p", "root", difference) is covers


def test_counted() -> None:
    assert counted([Outcome("passed"), Outcome("skipped", "x"), Outcome("passed")]) == "2 passed, 1 skipped"
