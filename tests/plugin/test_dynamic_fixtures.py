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


@pytest.mark.parametrize("args", [("-s",), ("--setup-show",), ("--log-cli-level=INFO",), ("--pdb",)], ids=" ".join)
def test_they_are_where_the_terminal_shows_what_happens(
        pytester: pytest.Pytester, boxed: Callable[..., pytest.RunResult], fixture_log: Callable[[], list[str]],
        args: tuple[str, ...]) -> None:
    pytester.makepyfile("""
        import os, pytest
        PARENT = os.getpid()

        @pytest.fixture(scope="session")
        def session(log):
            log(f"session up {os.getpid() == PARENT}")
            yield
            log("session down")
        @pytest.fixture(scope="module")
        def module(log, request):
            log(f"module up {os.getpid() == PARENT}")
            yield
            log("module down")
        @pytest.fixture
        def function(request):
            request.getfixturevalue("session")

        def test_one(request, log):
            request.getfixturevalue("session")
            request.getfixturevalue("module")
            log("one")
        def test_two(request, function, log):
            request.getfixturevalue("module")
            log("two")
    """)
    boxed(*args).assert_outcomes(passed=2)
    assert fixture_log() == ["session up True", "module up True", "one", "two", "module down", "session down"]


def test_of_those_that_override_each_other_one(pytester: pytest.Pytester, fixture_log: Callable[[], list[str]],
                                               boxed: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        import os, pytest
        PARENT = os.getpid()

        @pytest.fixture(scope="session")
        def resource(log):
            log(f"session up {os.getpid() == PARENT}")
            yield ["session"]
            log("session down")
        class TestClass:
            @pytest.fixture
            def resource(self, resource, log):
                log(f"function up {os.getpid() == PARENT}")
                yield [*resource, "function"]
                log("function down")
            @pytest.mark.parametrize("number", range(2))
            def test_one(self, resource, request, number):
                assert resource == ["session", "function"]
    """)
    boxed().assert_outcomes(passed=2)
    assert fixture_log() == [
        "session up True", "function up False", "function down", "function up False", "function down", "session down"]


@pytest.mark.parametrize(("scope", "wanted"), [
    ("function", ["up in", "down in", "up in", "down in"]),
    ("module", ["up out", "down out"]),
])
def test_the_namespace_of_doctests_is_set_up_where_its_scope_says(
        pytester: pytest.Pytester, fixture_log: Callable[[], list[str]], boxed: Callable[..., pytest.RunResult],
        scope: str, wanted: list[str]) -> None:
    pytester.makepyfile(f"""
        import os, pytest
        PARENT = os.getpid()

        @pytest.fixture(scope={scope!r})
        def doctest_namespace(log):
            log("up " + ("out" if os.getpid() == PARENT else "in"))
            yield {{"answer": 42}}
            log("down " + ("out" if os.getpid() == PARENT else "in"))

        def one():
            '''
            >>> answer
            42
            '''
        def two():
            '''
            >>> answer
            42
            '''
    """)
    boxed("--doctest-modules").assert_outcomes(passed=2)
    assert fixture_log() == wanted


@pytest.mark.parametrize("args", [
    ("-rA",), ("--capture=sys", "-rA"), ("--capture=tee-sys", "-rA"), ("-s",), ("--log-cli-level=INFO", "-rA"),
    ("--log-file=run.log", "--log-file-level=INFO", "-rA"), ("--tb=short", "-v"),
], ids=" ".join)
def test_what_they_say_is_where_the_test_asks(pytester: pytest.Pytester, both: Callable[..., Both],
                                              args: tuple[str, ...],
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # else a pipe shows what was written raw before what was printed
    pytester.makepyfile("""
        import logging, os, pytest, sys

        @pytest.fixture(scope="session")
        def session():
            print("session out")
            sys.stdout.flush()
            os.write(1, b"session raw\\n")
            print("session err", file=sys.stderr)
            logging.warning("session log")
            yield 1
            print("session down")
        @pytest.fixture(scope="module")
        def broken():
            print("breaking")
            logging.warning("broken log")
            raise OSError("broken")
        @pytest.fixture(scope="module")
        def skips():
            print("skipping")
            pytest.skip("not here")
        @pytest.fixture(scope="module")
        def other():
            print("other")
            logging.warning("other log")

        def test_one(request):
            print("before")
            logging.warning("mine")
            request.getfixturevalue("session")
            print("after")
            assert 0
        def test_breaks(request):
            print("before")
            request.getfixturevalue("broken")
        def test_breaks_again(request):
            request.getfixturevalue("broken")
        def test_skips(request):
            print("before")
            request.getfixturevalue("skips")
        def test_holds(request, capsys, caplog):
            print("before")
            logging.warning("mine")
            request.getfixturevalue("other")
            assert capsys.readouterr().out == "before\\nother\\n"
            assert [one.getMessage() for one in caplog.records] == ["mine", "other log"]
        def test_after(request):
            request.getfixturevalue("session")
    """)
    found = both(*args)
    found.assert_equal()
    if args[0].startswith("--log-file"):
        assert (pytester.path / "run.log").read_text().count("session log") == 1


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


@pytest.mark.parametrize("args", [("-o", "sandbox_network=host"), ("-o", "sandbox_scope=class")], ids=" ".join)
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
