"""A test that takes longer than its timeout: one failure of the right phase that says what it was doing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("all_plugins")

Run = Callable[..., pytest.RunResult]


def marked(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)


@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_it_is_a_failure_of_its_phase_and_the_run_goes_on(pytester: pytest.Pytester, phase: str,
                                                          leak_check: None) -> None:
    pytester.makepyfile(f"""
        import os, time, pytest

        def step(when):
            print("python", when)
            os.write(1, b"raw " + when.encode() + b"\\n")
            if when == {phase!r}:
                sleeps_too_long()

        def sleeps_too_long():
            time.sleep(1000)

        @pytest.fixture(scope="module")
        def module():
            yield
            print("module down")

        @pytest.fixture
        def function(module):
            step("setup")
            yield
            step("teardown")

        @pytest.mark.sandbox(timeout=2)
        def test_slow(function):
            step("call")

        def test_after(module):
            pass
    """)
    result = marked(pytester, "-rA")
    result.assert_outcomes(**{"setup": {"errors": 1, "passed": 1}, "call": {"failed": 1, "passed": 1},
                              "teardown": {"errors": 1, "passed": 2}}[phase])
    text = result.stdout.str()
    assert "::test_slow took longer than its timeout of 2 s: " in text
    assert f": in its {phase} it was waiting: it used " in text
    assert f"python {phase}\nraw {phase}\n" in text
    assert text.count("module down") == 1
    stood = text.split("where it stood", 1)[1]
    assert "process 2: " in stood
    assert "calls of pytest and its plugins" in stood
    assert 'in sleeps_too_long\n' in stood
    assert "/_pytest/" not in stood


VERDICTS = {
    "spinning": "while True: pass",
    "waiting": "time.sleep(1000)",
    "blocked": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "flood": "while True: print('x' * 1000)",
}


@pytest.mark.parametrize("name", VERDICTS)
def test_the_verdict(pytester: pytest.Pytester, name: str) -> None:
    kind = "spinning" if name == "flood" else name
    pytester.makepyfile(f"""
        import threading, time, pytest
        @pytest.mark.sandbox(timeout=2, disk="64M")
        def test_slow():
            {VERDICTS[name]}
    """)
    result = marked(pytester, "--tb=short")
    result.assert_outcomes(failed=1)
    assert f": in its call it was {kind}: " in result.stdout.str()


def test_a_child_process_in_python_is_shown_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import subprocess, sys, pytest
        CODE = "import threading\\ndef holds_on():\\n  threading.Event().wait()\\nholds_on()"
        @pytest.mark.sandbox(timeout=3)
        def test_slow():
            subprocess.run([sys.executable, "-c", CODE])
    """)
    result = marked(pytester)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert "in its call it was blocked: " in text
    assert "waits for a child process" in text
    assert "in holds_on\n" in text


def test_an_exception_can_be_expected_by_its_type(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import time, pytest
        from pytest_sandbox.errors import TimeLimitExceeded
        @pytest.mark.xfail(raises=TimeLimitExceeded)
        @pytest.mark.sandbox(timeout=0.3)
        def test_slow():
            time.sleep(1000)
    """)
    marked(pytester).assert_outcomes(xfailed=1)


def test_nothing_survives_that_ignores_signals_and_forked_twice(pytester: pytest.Pytester, leak_check: None) -> None:
    pytester.makepyfile("""
        import os, signal, pytest
        @pytest.mark.sandbox(timeout=1)
        def test_slow():
            for number in range(1, 32):
                if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_IGN)
            for _ in range(20):
                if os.fork() == 0:
                    os.setsid()
                    if os.fork():
                        os._exit(0)
                    while True:
                        signal.pause()
                os.wait()
            while True:
                signal.pause()
        def test_after(): pass
    """)
    result = marked(pytester)
    result.assert_outcomes(failed=1, passed=1)
    assert "TimeLimitExceeded" in result.stdout.str()


def test_sigterm_comes_first(pytester: pytest.Pytester, tmp_path: Any) -> None:
    said = tmp_path / "said"
    pytester.makepyfile(f"""
        import signal, subprocess, pytest
        @pytest.mark.sandbox(timeout=1, mounts=["{tmp_path}:{tmp_path}"])
        def test_slow():
            subprocess.run(["sh", "-c", "trap 'echo cleaned > {said}; exit' TERM; while :; do sleep 0.05; done"])
    """)
    marked(pytester).assert_outcomes(failed=1)
    assert said.read_text() == "cleaned\n"


def test_what_the_test_says_after_its_time_does_not_count(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import signal, time, pytest
        def leave(*_):
            pytest.skip("changed my mind")
        @pytest.mark.sandbox(timeout=0.5)
        def test_slow():
            signal.signal(signal.SIGTERM, leave)
            time.sleep(1000)
    """)
    result = marked(pytester)
    result.assert_outcomes(failed=1)
    assert "TimeLimitExceeded: " in result.stdout.str()


def test_the_nearest_timeout_counts_and_the_ini_file_has_the_default(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsandbox_timeout = 0.5\n")
    pytester.makepyfile("""
        import time, pytest
        pytestmark = pytest.mark.sandbox
        def test_default():
            time.sleep(1000)
        @pytest.mark.sandbox(timeout=0.4)
        class TestClass:
            def test_class(self):
                time.sleep(1000)
            @pytest.mark.sandbox(timeout=1000)
            def test_own(self):
                time.sleep(0.6)
    """)
    result = marked(pytester)
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(["*::test_default took longer than its timeout of 0.5 s: *",
                                 "*::test_class took longer than its timeout of 0.4 s: *"])


def test_a_fixture_of_higher_scope_has_its_own_time(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import time, pytest
        @pytest.fixture(scope="module")
        def slow():
            time.sleep(1)
        @pytest.mark.sandbox(timeout=0.8)
        def test_quick(slow): pass
    """)
    marked(pytester).assert_outcomes(passed=1)


def test_tests_that_share_a_sandbox_have_a_time_each(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import time, pytest
        @pytest.mark.sandbox(scope="class", timeout=1000)
        class TestShared:
            def test_one(self):
                time.sleep(0.6)
            @pytest.mark.sandbox(timeout=0.5)
            def test_slow(self):
                time.sleep(1000)
            def test_after(self): pass
    """)
    result = marked(pytester)
    result.assert_outcomes(passed=2, failed=1, warnings=1)
    result.stdout.fnmatch_lines(["*started in a new sandbox*died in test_slow*"])


def test_under_xdist(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile("""
        import time, pytest
        @pytest.mark.parametrize("number", range(6))
        @pytest.mark.sandbox(timeout=0.7)
        def test_some(number):
            if number % 2:
                time.sleep(1000)
    """)
    result = marked(pytester, "-n2")
    result.assert_outcomes(passed=3, failed=3)
    assert result.stdout.str().count("in test_some") == 3


def test_the_junit_report_has_the_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import time, pytest
        @pytest.mark.sandbox(timeout=0.3)
        def test_slow():
            time.sleep(1000)
    """)
    marked(pytester, "--junitxml=report.xml").assert_outcomes(failed=1)
    report = (pytester.path / "report.xml").read_text()
    assert "timeout of 0.3 s: in its call it was waiting" in report
    assert "in test_slow" in report


def test_a_wrong_time_is_an_error_at_collection(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(timeout="1 minute")
        def test_one(): pass
    """)
    result = marked(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_one: sandbox option timeout='1 minute' cannot be used*Allowed: a number of *"])


# Driven sandboxes.


def test_a_test_that_drives_a_sandbox_fails_where_it_stands(pytester: pytest.Pytester, leak_check: None) -> None:
    pytester.makepyfile("""
        import pytest
        from pytest_sandbox.errors import TimeLimitExceeded
        @pytest.mark.sandbox(timeout=0.5)
        def test_slow(sandbox):
            sandbox.run(["sleep", "1000"])
        @pytest.mark.sandbox(timeout=0.5)
        def test_live(sandbox):
            with sandbox.popen(["sleep", "1000"]) as process:
                assert process.wait() < 0
            with pytest.raises(TimeLimitExceeded):
                sandbox.run(["true"])
        @pytest.mark.sandbox(timeout=0.5)
        def test_untold(sandbox):
            with sandbox.popen(["sleep", "1000"]) as process:
                assert process.wait() < 0
        def test_after(sandbox):
            sandbox.run(["true"], check=True)
    """)
    result = marked(pytester)
    result.assert_outcomes(failed=1, passed=3, errors=1)
    text = result.stdout.str()
    assert "ERROR at teardown of test_untold" in text
    assert text.count("what ran in a sandbox took longer than its timeout of 0.5 s: it was waiting") >= 2


# Debuggers.


def pdb(pytester: pytest.Pytester, args: list[str], pause: float) -> str:
    """A run whose user looks at the first prompt for ``pause`` seconds, and then lets it go on."""
    import time

    pexpect: Any = pytest.importorskip("pexpect")
    child = pexpect.spawn(sys.executable, ["-m", "pytest", "-p", "no:cacheprovider", *args], cwd=str(pytester.path),
                          timeout=30, encoding="utf-8", dimensions=(50, 200))
    child.expect_exact("(Pdb) ")
    shown = child.before
    time.sleep(pause)
    child.sendline("p 40 + 2")
    child.expect_exact("42")
    child.expect_exact("(Pdb) ")
    child.sendline("c")
    child.expect(pexpect.EOF)
    shown += child.before
    child.close()
    return str(shown)


@pytest.mark.parametrize(("body", "args", "outcome"), [
    ("breakpoint()", [], "1 passed"),
    ("assert 0", ["--pdb"], "1 failed"),
    ("breakpoint()\n            time.sleep(1000)", [], "took longer than its timeout of 1 s"),
])
def test_the_clock_stands_still_at_a_debuggers_prompt(pytester: pytest.Pytester, body: str, args: list[str],
                                                      outcome: str) -> None:
    pytester.makepyfile(f"""
        import time, pytest
        @pytest.mark.sandbox(timeout=1)
        def test_one():
            {body}
    """)
    shown = pdb(pytester, args, 1.5)
    assert outcome in shown
    assert ("TimeLimitExceeded" in shown) == (outcome.startswith("took"))


def test_the_clock_of_a_driven_sandbox_stands_still_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(timeout=1)
        def test_one(sandbox):
            breakpoint()
            sandbox.run(["true"], check=True)
    """)
    assert "1 passed" in pdb(pytester, [], 1.5)


def test_pdb_and_a_timeout(pytester: pytest.Pytester) -> None:
    """There is nothing left to debug: the failure is told, and the run goes on."""
    pytester.makepyfile("""
        import time, pytest
        @pytest.mark.sandbox(timeout=0.5)
        def test_slow():
            time.sleep(1000)
        def test_after(): pass
    """)
    result = marked(pytester, "--pdb")
    result.assert_outcomes(failed=1, passed=1)
