"""When a guest ends that nobody needs: ``tox run -e guests``. Seen from its fixtures, and from the host's processes."""

from __future__ import annotations

from pathlib import Path

import pytest

LOOKING = Path(__file__).with_name("looking.py").read_text()
SUITE = r"""
import os, pytest, time
from pathlib import Path
from images import FIRST, SECOND
from looking import guests
MADE = []

@pytest.fixture(scope="session")
def lives(tmp_path_factory):
    MADE.append(1)
    log = tmp_path_factory.getbasetemp() / "log"  # which persists
    with log.open("a") as file: file.write("begins\n")
    yield
    with log.open("a") as file: file.write("ends\n")

first = pytest.mark.sandbox(image=FIRST)

@first
def test_one(lives): assert MADE == [1]
@pytest.mark.parametrize("number", range(3))
def test_between(number): time.sleep(0.02)  # more than the idle time below
def test_seen_from_the_host(tmp_path_factory):
    assert len(guests()) == LEFT
    log = tmp_path_factory.getbasetemp() / "log"
    assert log.read_text() == ("begins\n" if LEFT else "begins\nends\n")
@pytest.mark.parametrize("number", range(AFTER))
def test_after(number): pass
@first
def test_two(lives, tmp_path_factory):
    assert MADE == [1]
    log = (tmp_path_factory.getbasetemp() / "log").read_text()
    assert log == ("begins\n" if LEFT else "begins\nends\nbegins\n")
"""


@pytest.mark.parametrize(("ini", "after", "left"), [
    ("sandbox_guest_idle = 0.01", 60, 0),
    ("sandbox_guest_memory = 4000T", 1, 0),
    ("", 1, 1),
], ids=["idle", "memory", "neither"])
def test_a_guest_ends_that_nobody_needs(suite: pytest.Pytester, ini: str, after: int, left: int) -> None:
    suite.makeini(f"[pytest]\n{ini}\n")
    suite.makepyfile(SUITE.replace("AFTER", str(after)).replace("LEFT", str(left)), looking=LOOKING)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly")
    result.assert_outcomes(passed=after + 6)


def test_values_that_cannot_be_used(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_one(): pass
    """)
    for option, value in (("sandbox_guest_idle", "never"), ("sandbox_guest_memory", "much")):
        suite.makeini(f"[pytest]\n{option} = {value}\n")
        result = suite.runpytest_subprocess("-p", "no:cacheprovider")
        result.stderr.fnmatch_lines([f"*{option}*'{value}'*"])
