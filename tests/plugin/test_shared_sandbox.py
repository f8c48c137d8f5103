"""``scope="class"`` and ``scope="module"``: the tests of the scope share one sandbox and one process, in order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Both

Run = Callable[..., pytest.RunResult]

FIXTURES = """
    import os
    from pathlib import Path
    import pytest
    PARENT = os.getpid()
    STATE = []
    FILE = Path("/tmp/pytest-sandbox-shared")

    def made(scope):
        @pytest.fixture(scope=scope)
        def fixture(log):
            place = "out" if os.getpid() == PARENT else "in"
            log(f"{scope} up {place}")
            yield
            log(f"{scope} down {place}")
        return fixture

    session, module, klass, function = map(made, ("session", "module", "class", "function"))
"""


def test_a_class_shares_a_sandbox_and_a_process(pytester: pytest.Pytester, fixture_log: Callable[[], list[str]],
                                                leak_check: None) -> None:
    pytester.makepyfile(FIXTURES + """
    @pytest.mark.sandbox(scope="class")
    class TestShared:
        def test_one(self, module, klass, function, log):
            log("one")
            STATE.append(os.getpid())
            FILE.write_text("x")
        def test_two(self, module, klass, function, session, log):
            log("two")
            assert [os.getpid()] == STATE
            assert FILE.read_text() == "x"
        def test_three(self):
            assert FILE.exists()

    @pytest.mark.sandbox
    def test_alone():
        assert not STATE
        assert not FILE.exists()
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=4)
    assert fixture_log() == [
        "module up out", "session up out",  # all that the class needs from outside, before its first test
        "class up in", "function up in", "one", "function down in", "function up in", "two", "function down in",
        "class down in", "module down out", "session down out",
    ]


def test_a_module_shares_a_sandbox_with_its_classes(pytester: pytest.Pytester, fixture_log: Callable[[], list[str]],
                                                    leak_check: None) -> None:
    pytester.makepyfile(FIXTURES + """
    pytestmark = pytest.mark.sandbox(scope="module")

    def test_one(module): STATE.append(1)
    class TestClass:
        @classmethod
        def setup_class(cls): STATE.append(2)
        def test_two(self, klass, session): STATE.append(3)
        def test_three(self, klass): assert STATE == [1, 2, 3]
    def test_outside(sandbox): assert not STATE
    def test_four(module, log):
        assert STATE == [1, 2, 3]
        log("four")
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=5)
    assert fixture_log() == ["session up out", "module up in", "class up in", "class down in", "four", "module down in",
                             "session down out"]


def test_a_crash_ends_the_process_and_the_next_test_says_so(pytester: pytest.Pytester, boxed: Run,
                                                            leak_check: None) -> None:
    pytester.makepyfile("""
        import os, pytest
        STATE = []
        @pytest.fixture(scope="class")
        def klass():
            STATE.append("class")
            yield
            print("class down")
        @pytest.mark.sandbox(scope="class")
        class TestShared:
            def test_one(self, klass): STATE.append(1)
            def test_dies(self, klass):
                print("last words")
                os._exit(3)
            def test_three(self, klass):
                assert STATE == ["class"]
            def test_four(self, klass):
                assert STATE == ["class"]
                assert 0
    """)
    result = boxed("-rA")
    result.assert_outcomes(passed=2, failed=2, warnings=1)
    result.stdout.fnmatch_lines([
        "E   SandboxCrashed: *::test_dies died during its call: it exited with status 3 before the test had ended",
        "last words",
        "class down",
        "*PytestSandboxWarning: this test started in a new sandbox: the process that the tests of TestShared share "
        "died in test_dies",
    ])


@pytest.mark.parametrize("scope", ["class", "module"])
@pytest.mark.parametrize("args", [("-rA",), ("-x",), ("--maxfail=2", "-v", "-s"), ("--setup-show",)], ids=" ".join)
def test_the_terminal_shows_what_the_plain_run_shows(pytester: pytest.Pytester, both: Callable[..., Both], scope: str,
                                                     args: tuple[str, ...]) -> None:
    pytester.makeini(f"[pytest]\nsandbox_scope = {scope}\n")
    pytester.makepyfile("""
        import logging, unittest, warnings, pytest

        @pytest.fixture(scope="module", autouse=True)
        def module():
            print("module up")
            yield
            print("module down")
        @pytest.fixture(scope="class")
        def broken():
            raise KeyError("class")

        class TestClass:
            def setup_class(cls): print("setup_class")
            def teardown_class(cls):
                print("teardown_class")
                raise RuntimeError("teardown_class")
            def test_prints(self, module):
                print("hello")
                logging.warning("log")
                warnings.warn("warning")
            def test_fails(self): assert 0
            def test_broken(self, broken): pass
            def test_broken_again(self, broken): pass
            @pytest.mark.xfail
            def test_expected(self): assert 0
            @pytest.mark.skip
            def test_skipped(self): pass

        class TestUnittest(unittest.TestCase):
            @classmethod
            def setUpClass(cls): cls.value = []
            def test_one(self): self.value.append(1)
            def test_two(self):
                self.assertEqual(self.value, [1])

        def test_last(module): pass
    """)
    both(*args).assert_equal()


def test_one_test_of_a_scope_cannot_ask_for_another_sandbox(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(scope="class")
        class TestShared:
            def test_one(self): pass
            @pytest.mark.sandbox(hostname="other")
            def test_two(self): pass
            @pytest.mark.sandbox(hostname="other", scope="function")
            def test_three(self): pass
    """)
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*::TestShared::test_two: the tests of a sandbox of scope='class' share it, and this "
                                 "one asks for another than test_one: hostname='other' instead of 'sandbox'. *"])


def test_a_shared_process_and_an_early_end(pytester: pytest.Pytester, leak_check: None) -> None:
    """What outside alone decides (``session.shouldstop``) ends what the tests share too, and its failure is told."""
    pytester.makeconftest("""
        def pytest_runtest_logreport(report):
            if report.when == "call":
                SESSION.shouldstop = "enough"
        def pytest_sessionstart(session):
            global SESSION
            SESSION = session
    """)
    pytester.makepyfile("""
        import pytest
        @pytest.fixture(scope="class")
        def klass():
            yield
            print("class down")
            raise RuntimeError("shared")
        @pytest.mark.sandbox(scope="class")
        class TestShared:
            def test_one(self, klass): pass
            def test_two(self, klass): pass
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E   *RuntimeError: shared", "class down", "*! Interrupted: enough !*"])
