"""What fixtures of higher scope say, and fail with, when they are torn down in an image: ``tox run -e guests``."""

from __future__ import annotations

import importlib.util

import pytest

CONFTEST = """
    import logging, sys
    import pytest
    @pytest.fixture(scope="session")
    def session():
        yield
        print("session ends")
        print("session complains", file=sys.stderr)
        logging.getLogger("session").warning("session logs")
    @pytest.fixture(scope="module")
    def module(session):
        yield
        print("module ends")
        raise ValueError("the module's end")
    @pytest.fixture
    def function():
        yield
        print("function ends")
    @pytest.fixture
    def fails():
        yield
        raise LookupError("the function's end")
"""
SAID = ("function ends", "module ends", "session ends", "session complains", "session logs", "ValueError: the module's",
        "Captured stdout teardown", "Captured stderr teardown", "Captured log teardown", "ERROR at teardown of ")


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


def said(result: pytest.RunResult) -> dict[str, int]:
    return {one: result.stdout.str().count(one) for one in SAID}


def test_a_teardown_is_told_as_a_plain_run_tells_it(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST)
    suite.makepyfile(test_a="""
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        def test_one(session, module, function): pass
        def test_two(session, module, function, record_property): record_property("kept", "by the report")
    """, test_b="""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_last(session, function): pass
    """)
    inside, plain = run(suite, "-rA", "--junitxml=inside.xml"), run(suite, "-rA", "--sandbox=off")
    for one in (inside, plain):
        one.assert_outcomes(passed=3, errors=1)
        one.stdout.fnmatch_lines(["*ERROR at teardown of test_two*", "*ValueError: the module's end"])
    assert said(inside) == said(plain)
    assert '<property name="kept"' in (suite.path / "inside.xml").read_text()


def test_two_failures_of_one_teardown_are_both_told(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST)
    suite.makepyfile("""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_one(module, fails, function): pass
    """)
    assert "pytest_sandbox/plugin" not in run(suite, "--tb=native").stdout.str()
    result = run(suite)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines_random(["*ERROR at teardown of test_one*", "*LookupError: the function's end",
                                        "*ValueError: the module's end*", "function ends", "module ends",
                                        "session ends"])


@pytest.mark.parametrize(("ini", "after", "teller"), [
    ("sandbox_guest_memory = 4000T", 0, "test_one"),
    ("sandbox_guest_idle = 0.01", 60, "test_between?0?"),
], ids=["memory", "idle"])
def test_a_guest_that_rests_tells_it_of_the_test_at_hand(suite: pytest.Pytester, ini: str, after: int,
                                                         teller: str) -> None:
    suite.makeini(f"[pytest]\n{ini}\n")
    suite.makeconftest(CONFTEST)
    suite.makepyfile(f"""
        import time
        import pytest
        from images import FIRST
        first = pytest.mark.sandbox(image=FIRST)
        @first
        def test_one(module): pass
        @pytest.mark.parametrize("number", range(2 + {after}))
        def test_between(number): time.sleep(0.02 if number < 2 else 0)
        @first
        def test_two(module): pass
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=4 + after, errors=2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*ERROR at teardown of {teller}*", "*ValueError: the module's end",
                                 "*ERROR at teardown of test_two*", "*ValueError: the module's end"])
    assert {said(result)[one] for one in SAID[2:5]} == {2}
    assert ("set up in image" in result.stdout.str()) == (teller != "test_one")


def test_a_run_that_is_left_early_tells_it_too(suite: pytest.Pytester) -> None:
    """As in a plain run, where nothing but the end of capturing shows what is printed by then."""
    suite.makeconftest(CONFTEST)
    suite.makepyfile("""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_one(module): pass
        def test_exits(): pytest.exit("enough")
        @pytest.mark.sandbox(image=FIRST)
        def test_two(module): pass
    """)
    result = run(suite)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert result.stdout.str().count("module ends\nsession ends\n") == 1
    assert "session complains" in result.stderr.str()
    result.stdout.fnmatch_lines(["*PytestSandboxWarning: a fixture in image *first* failed at its end:",
                                 "*ValueError: the module's end"])


def test_the_first_failure_stops_the_run_and_all_guests(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST)
    suite.makepyfile("""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_one(module): pass
        def test_fails(): assert 0
        @pytest.mark.sandbox(image=FIRST)
        def test_two(module): pass
    """)
    inside, plain = run(suite, "-x"), run(suite, "-x", "--sandbox=off")
    for one in (inside, plain):
        one.assert_outcomes(passed=1, failed=1, errors=1)
        one.stdout.fnmatch_lines(["*ERROR at teardown of test_fails*", "*ValueError: the module's end"])
    assert said(inside) == said(plain)


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_a_worker_tells_it_of_its_last_test(suite: pytest.Pytester) -> None:
    suite.makeconftest(CONFTEST)
    suite.makepyfile("""
        import pytest
        from images import FIRST, SECOND
        @pytest.mark.sandbox(image=FIRST)
        def test_one(module): pass
        @pytest.mark.sandbox(image=SECOND)
        def test_two(session): pass
        def test_last(): pass
    """)
    result = run(suite, "-n", "1", "-rA")
    result.assert_outcomes(passed=3, errors=1)
    assert {said(result)[one] for one in SAID[2:5]} == {2}  # once an image
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_*", "*ValueError: the module's end"])
