"""Time limits and interrupts reach a sandboxed test as they reach a plain one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from .conftest import Both

pytestmark = pytest.mark.usefixtures("all_plugins")

Run = Callable[..., pytest.RunResult]

SLOW = """
    import threading, pytest
    @pytest.fixture
    def function():
        yield
        print("function down")
    @pytest.fixture(scope="module")
    def module():
        yield
        print("module down")
    def test_slow(function, module):
        print("waiting")
        threading.Event().wait()
    def test_after(module):
        pass
"""


@pytest.mark.parametrize("args", [("--timeout=0.7",), ("-o", "timeout=0.7", "-o", "timeout_func_only=true")],
                         ids=" ".join)
def test_pytest_timeout_by_signal(pytester: pytest.Pytester, both: Callable[..., Both], args: tuple[str, ...]) -> None:
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(SLOW)
    # A thread of pytest-rerunfailures would show in the plain run's dump of all threads.
    result = both(*args, "-rA", "--tb=short", "-p", "no:rerunfailures")
    result.assert_equal()
    result.boxed.assert_outcomes(passed=1, failed=1)


def test_pytest_timeout_by_thread_ends_one_test(pytester: pytest.Pytester, boxed: Run) -> None:
    """Plainly it ends the whole run."""
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(SLOW)
    result = boxed("--timeout=0.7", "--timeout-method=thread", "-rA")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*Timeout (>0.7s) from pytest-timeout.*", "module down"])
    assert "in test_slow" in result.stdout.str() + result.stderr.str()


def test_faulthandler_timeout_shows_where_the_test_stands(pytester: pytest.Pytester, boxed: Run) -> None:
    pytester.makepyfile("""
        import threading
        def test_slow(): threading.Event().wait(1.5)
    """)
    result = boxed("-o", "faulthandler_timeout=0.3")
    result.assert_outcomes(passed=1)
    dumps = result.stderr.str().split("Timeout (0:00:00.3")[1:]
    assert len([one for one in dumps if "in test_slow" in one]) == 1  # a slow start of a sandbox shows too


def start(pytester: pytest.Pytester, body: str) -> tuple[subprocess.Popen[str], int]:
    """A run whose test has said that it began; the descriptor shows its end, when the last copy is closed."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    pytester.makepyfile(f"""
        import os, threading, pytest
        @pytest.fixture
        def function():
            yield
            os.write({writing}, b"down")
        def test_slow(function):
            os.write({writing}, b"up")
            {body.replace("WRITING", str(writing))}
        def test_never(): pass
    """)
    run = subprocess.Popen([sys.executable, "-m", "pytest", "--sandbox=all", "-p", "no:cacheprovider"],
                           cwd=pytester.path, stdout=subprocess.PIPE, text=True, pass_fds=[writing],
                           start_new_session=True)
    os.close(writing)
    assert os.read(reading, 2) == b"up"
    return run, reading


def the_end(reading: int) -> str:
    """What came until nobody is left that could write."""
    text = b""
    while select.select([reading], [], [], 20)[0]:
        data = os.read(reading, 1000)
        if not data:
            os.close(reading)
            return text.decode()
        text += data
    raise AssertionError("something lives on")


@pytest.mark.parametrize("whom", ["the group, as a terminal does", "pytest alone"])
def test_an_interrupt_ends_the_test_and_the_run(pytester: pytest.Pytester, whom: str) -> None:
    run, reading = start(pytester, "threading.Event().wait()")
    os.kill(run.pid if whom == "pytest alone" else -run.pid, signal.SIGINT)
    out, _ = run.communicate(timeout=20)
    assert "!!! KeyboardInterrupt !!!" in out
    assert "no tests ran in" in out
    assert run.returncode == pytest.ExitCode.INTERRUPTED
    assert the_end(reading) == "down"


@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
@pytest.mark.parametrize("side", ["to", "from"])
def test_an_interrupt_waits_for_a_report_to_travel(pytester: pytest.Pytester, boxed: Run, side: str,
                                                   phase: str) -> None:
    """A thread takes the signal when the main thread has it blocked, as one of another plugin's may."""
    pytester.makeconftest(f"""
        import os, signal, threading, pytest
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        pytests = os.getpid()
        tests = []
        @pytest.fixture(autouse=True)
        def begun():
            tests.append(os.getpid())
        @pytest.hookimpl(tryfirst=True)
        def pytest_report_to_serializable(report):
            if {side!r} == "to" and os.getpid() in tests and report.when == {phase!r}:
                os.kill(os.getpid(), signal.SIGINT)
        @pytest.hookimpl(tryfirst=True)
        def pytest_report_from_serializable(data):
            if {side!r} == "from" and data["when"] == {phase!r} and data["duration"] > 1:
                os.kill(os.getpid(), signal.SIGINT)
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport():
            report = yield
            if os.getpid() in tests:
                report.duration = 1.5
            return report
    """)
    waits = side == "from" and phase == "setup"  # else the child may be done with its test before it hears of it
    pytester.makepyfile(f"""
        import threading, pytest
        @pytest.fixture
        def function():
            yield
            print("function down")
        def test_one(function):
            {"threading.Event().wait()" if waits else "pass"}
        def test_two(): pass
    """)
    result = boxed("-rA")
    assert "!!! KeyboardInterrupt !!!" in result.stdout.str()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    if phase == "setup" and side == "to":
        result.stdout.fnmatch_lines(["*no tests ran in*"])
    if phase == "teardown":
        result.stdout.fnmatch_lines(["*Captured stdout teardown*", "function down", "*1 passed in*"])


def test_a_second_interrupt_ends_it_at_once(pytester: pytest.Pytester) -> None:
    run, reading = start(pytester, """
            import signal
            def stubborn(*_): os.write(WRITING, b"!")
            signal.signal(signal.SIGINT, stubborn)
            os.write(WRITING, b"?")
            while True:
                threading.Event().wait()
    """.strip())
    assert os.read(reading, 1) == b"?"
    os.kill(run.pid, signal.SIGINT)
    assert os.read(reading, 1) == b"!"  # passed on, and ignored
    os.kill(run.pid, signal.SIGINT)
    out, _ = run.communicate(timeout=20)
    assert "!!! KeyboardInterrupt !!!" in out
    assert the_end(reading) == ""


def test_sigterm_leaves_nothing_behind(pytester: pytest.Pytester, leak_check: None) -> None:
    run, reading = start(pytester, "threading.Event().wait()")
    run.terminate()
    run.communicate(timeout=20)
    assert run.returncode == -signal.SIGTERM
    assert the_end(reading) == ""
