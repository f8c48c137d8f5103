"""pytest within a test."""

import pytest

SUITE = """
import pytest

@pytest.fixture(scope="module")
def shared():
    print("shared")
    yield 1

def test_passes(shared): pass
def test_fails(shared): assert shared == 2
def test_skips(): pytest.skip("no")
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """The inner runs load no plugins, so that they say the same in every environment."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


def test_in_process(pytester):
    pytester.makepyfile(SUITE)
    pytester.runpytest_inprocess().assert_outcomes(passed=1, failed=1, skipped=1)


def test_in_subprocess(pytester):
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*test_fails*"])


def test_inline(pytester):
    pytester.makepyfile(SUITE)
    recorded = pytester.inline_run()
    recorded.assertoutcome(passed=1, failed=1, skipped=1)


def test_collects(pytester):
    items = pytester.getitems(SUITE)
    assert [one.name for one in items] == ["test_passes", "test_fails", "test_skips"]


def test_files(pytester):
    pytester.maketxtfile(hello="world")
    assert pytester.path.joinpath("hello.txt").read_text() == "world"


def test_shows_what_the_inner_run_printed(pytester):
    pytester.makepyfile("def test_inner(): print('inner output'); assert 0")
    assert pytester.runpytest_inprocess("-q", "--tb=line").ret == 0
