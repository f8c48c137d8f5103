"""Every outcome that a test function can have, in every phase."""

import pytest


def test_passes():
    pass


def test_fails():
    assert [1, 2, 3] == [1, 2, 4], "the last one differs"


def test_fails_by_hand():
    pytest.fail("failed by hand")


def test_fails_without_traceback():
    pytest.fail("no traceback", pytrace=False)


def test_raises():
    raise ValueError("a value\nof two lines")


def test_raises_with_cause():
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("caused") from error


def test_raises_during_handling():
    try:
        {}["missing"]
    except KeyError:
        int("not a number")


def test_raises_exit_of_the_interpreter():
    raise SystemExit(3)


def test_raises_an_exception_with_notes():
    error = OSError(2, "No such thing")
    error.__notes__ = ["a note", "and another"]
    raise error


def test_skips():
    pytest.skip("from within")


@pytest.mark.skip(reason="by mark")
def test_skipped_by_mark():
    raise AssertionError


@pytest.mark.skipif("1 < 2", reason="by condition")
def test_skipped_by_condition():
    raise AssertionError


def test_imports_or_skips():
    pytest.importorskip("there_is_no_such_module")


@pytest.mark.xfail(reason="known to fail")
def test_xfails():
    raise AssertionError


@pytest.mark.xfail(reason="passes after all")
def test_xpasses():
    pass


@pytest.mark.xfail(strict=True, reason="passes, which is wrong")
def test_xpasses_strictly():
    pass


@pytest.mark.xfail(run=False, reason="not run")
def test_xfail_is_not_run():
    raise SystemExit("ran")


@pytest.mark.xfail(raises=ValueError)
def test_xfail_raises_what_it_should():
    raise ValueError


@pytest.mark.xfail(raises=ValueError)
def test_xfail_raises_something_else():
    raise KeyError("not a ValueError")


@pytest.mark.xfail("True")
def test_xfail_by_condition():
    raise AssertionError


def test_xfails_by_hand():
    pytest.xfail("given up")


def test_adds_a_mark_while_running(request):
    request.applymarker(pytest.mark.xfail(reason="found out late"))
    raise AssertionError


@pytest.fixture
def broken():
    raise OSError("set-up is broken")


@pytest.fixture
def breaks_later():
    yield 1
    raise OSError("teardown is broken")


@pytest.fixture
def skips():
    pytest.skip("by a fixture")


@pytest.fixture
def xfails():
    pytest.xfail("by a fixture")


def test_error_in_setup(broken):
    pass


def test_error_in_teardown(breaks_later):
    pass


def test_failure_and_error_in_teardown(breaks_later):
    assert breaks_later == 2


def test_skipped_by_fixture(skips):
    pass


def test_xfailed_by_fixture(xfails):
    pass


@pytest.mark.xfail(reason="set-up fails")
def test_xfail_in_setup(broken):
    pass


@pytest.mark.xfail(reason="teardown fails")
def test_xfail_in_teardown(breaks_later):
    raise AssertionError


def test_missing_fixture(no_such_fixture):
    pass


@pytest.mark.slow
def test_marked_slow():
    pass


def test_returns_something():
    return 42
