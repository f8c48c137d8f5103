"""Fixtures of higher scope that a test asks for by name (``getfixturevalue``) are set up once, outside."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Both


def test_they_are_set_up_once_outside(pytester: pytest.Pytester, fixture_log: Callable[[], list[str]],
                                      leak_check: None) -> None:
    pytester.makepyfile("""
        import os, pytest
        PARENT = os.getpid()

        def made(scope, *needs):
            @pytest.fixture(scope=scope)
            def fixture(log, request):
                place = "out" if os.getpid() == PARENT else "in"
                for name in needs:
                    request.getfixturevalue(name)
                log(f"{scope} up {place}")
                yield scope
                log(f"{scope} down {place}")
            return fixture

        session, module, klass = made("session"), made("module", "session"), made("class")
        function = made("function", "module")

        def test_one(request, log):
            assert request.getfixturevalue("module") == "module"
            log("one")
        def test_two(request, log):
            assert request.getfixturevalue("session") == "session"
            assert request.getfixturevalue("klass") == "class"
            log("two")
        def test_three(function, log):
            log("three")
    """)
    pytester.runpytest_subprocess("--sandbox=all").assert_outcomes(passed=3)
    assert fixture_log() == [
        "session up out", "module up out", "one",
        "class up in", "two", "class down in",
        "function up in", "three", "function down in", "module down out", "session down out",
    ]


@pytest.mark.parametrize("args", [("-rA",), ("-v", "--capture=sys", "-rA")], ids=" ".join)
def test_the_terminal_shows_what_the_plain_run_shows(pytester: pytest.Pytester, both: Callable[..., Both],
                                                     args: tuple[str, ...]) -> None:
    pytester.makepyfile("""
        import logging, pytest

        @pytest.fixture(scope="session")
        def session():
            yield 1
            print("session down")
        @pytest.fixture(scope="module")
        def skips():
            pytest.skip("not here")
        @pytest.fixture(scope="module", autouse=True)
        def first():
            print("first up")

        def test_one(request, tmp_path):
            print("before")
            assert request.getfixturevalue("session") == 1
            print("after", tmp_path.name)
            logging.warning("log")
        def test_two(request):
            request.getfixturevalue("session")
        def test_skips(request):
            request.getfixturevalue("skips")
        def test_unknown(request):
            request.getfixturevalue("unknown")
    """)
    both(*args).assert_equal()


def test_one_that_fails_is_tried_once(pytester: pytest.Pytester, boxed: Callable[..., pytest.RunResult],
                                      fixture_log: Callable[[], list[str]]) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.fixture(scope="module")
        def broken(log):
            log("trying")
            raise KeyError("module")
        def test_one(request): request.getfixturevalue("broken")
        def test_two(request): request.getfixturevalue("broken")
    """)
    result = boxed()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["E * KeyError: 'module'"])
    assert fixture_log() == ["trying"]


@pytest.mark.parametrize("args", [("-s",), ("-o", "sandbox_network=host"), ("-o", "sandbox_scope=class")], ids=" ".join)
def test_where_an_attempt_would_be_noticed_they_are_set_up_inside(
        pytester: pytest.Pytester, boxed: Callable[..., pytest.RunResult], fixture_log: Callable[[], list[str]],
        args: tuple[str, ...]) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.fixture(scope="module")
        def module(log):
            log("up")
            yield
            log("down")
        class TestClass:
            def test_one(self, request, log):
                log("one")
                request.getfixturevalue("module")
    """)
    boxed(*args).assert_outcomes(passed=1)
    assert fixture_log() == ["one", "up", "down"]
