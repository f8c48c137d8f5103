"""Children that are forked ahead see what a fork at their test would see; and where that is not certain, none are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("all_plugins")

#: Counts how many tests ran in a child that was forked ahead, and prints that at the end.
COUNTER = """
    import pytest
    from pytest_sandbox.plugin.spares import Spares
    taken = []
    def pytest_configure(config):
        take = Spares.take
        def counted(self, *args):
            fork = take(self, *args)
            taken.append(fork is not None)
            return fork
        Spares.take = counted
    def pytest_terminal_summary(terminalreporter):
        terminalreporter.write_line(f"AHEAD {sum(taken)} of {len(taken)}")
"""


def run(pytester: pytest.Pytester, suite: str, *args: str) -> pytest.RunResult:
    pytester.makepyfile(counter=COUNTER, test_suite=suite)
    return pytester.runpytest_subprocess("-p", "counter", "-p", "no:cacheprovider", "--sandbox=all", *args)


def ahead(result: pytest.RunResult) -> int:
    return int(next(line for line in result.outlines if line.startswith("AHEAD ")).split()[1])


MANY = """
    import pytest
    STATE = []
    @pytest.mark.parametrize("number", range(12))
    def test_many(number, tmp_path):
        assert STATE == []
        STATE.append(number)
        (tmp_path / "file").write_text("x")
        print("OUTPUT", number)
        assert number != 7
"""


def test_tests_that_find_the_same_process_are_forked_ahead(pytester: pytest.Pytester) -> None:
    result = run(pytester, MANY)
    result.assert_outcomes(passed=11, failed=1)
    assert ahead(result) >= 9
    assert result.outlines.count("OUTPUT 7") == 1
    result.stdout.fnmatch_lines(["*Captured stdout call*", "OUTPUT 7"])


def test_they_wait_behind_what_runs_and_run_as_others_do(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
        import os, pytest
        @pytest.mark.parametrize("number", range(8))
        def test_policy(number):
            assert os.sched_getscheduler(0) == os.SCHED_OTHER
    """)
    result.assert_outcomes(passed=8)
    assert ahead(result) >= 5


def test_with_workers(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    run(pytester, MANY, "-n", "2").assert_outcomes(passed=11, failed=1)


@pytest.mark.parametrize("hook", [
    "pytest_runtest_setup(item)", "pytest_runtest_logreport(report)", "pytest_runtest_logstart(nodeid, location)"])
def test_a_hook_of_somebody_else_around_tests_is_seen_by_each(pytester: pytest.Pytester, hook: str) -> None:
    pytester.makeconftest(f"""
        import os
        SEEN = []
        def {hook}:
            SEEN.append(1)
    """)
    result = run(pytester, """
        import pytest, conftest
        @pytest.mark.parametrize("number", range(8))
        def test_many(number):
            assert len(conftest.SEEN) >= number
    """)
    result.assert_outcomes(passed=8)
    assert ahead(result) == 0


def test_what_runs_outside_in_between_is_seen(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
        import pytest
        STATE = []

        @pytest.fixture(scope="module", params=["a", "b"])
        def shared(request):
            STATE.append(request.param)
            yield STATE
            STATE.append("down")

        @pytest.mark.parametrize("number", range(6))
        def test_many(number, shared):
            assert STATE == (["a"] if len(STATE) == 1 else ["a", "down", "b"])

        @pytest.fixture(scope="class")
        def of_class():
            STATE.append("class")

        @pytest.mark.usefixtures("of_class")
        class TestClass:
            @pytest.mark.parametrize("number", range(6))
            def test_many(self, number):
                assert STATE == ["a", "down", "b", "class"]
    """)
    result.assert_outcomes(passed=18)
    assert ahead(result) >= 6


def test_what_a_test_outside_of_a_sandbox_changed_is_seen(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(counter=COUNTER, test_suite="""
        import pytest
        STATE = []
        pytestmark = pytest.mark.sandbox

        @pytest.mark.parametrize("number", range(5))
        def test_before(number):
            assert STATE == []

        def test_outside(sandbox):
            STATE.append("outside")

        @pytest.mark.parametrize("number", range(5))
        def test_after(number):
            assert STATE == ["outside"]
    """)
    result = pytester.runpytest_subprocess("-p", "counter", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=11)
    assert ahead(result) >= 4


def test_a_thread_or_a_condition_in_words_goes_without(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
        import threading, time
        import pytest
        NUMBERS = []

        def count():
            while True:
                NUMBERS.append(1)
                time.sleep(0.001)

        @pytest.fixture(scope="module", autouse=True)
        def counting():
            threading.Thread(target=count, daemon=True).start()

        @pytest.mark.parametrize("number", range(6))
        def test_many(number, request):
            assert len(NUMBERS) > number
    """)
    result.assert_outcomes(passed=6)
    assert ahead(result) == 0
    result = run(pytester, """
        import pytest
        @pytest.mark.skipif("__import__('pytest_sandbox').inside()")
        @pytest.mark.parametrize("number", range(6))
        def test_many(number):
            pass
    """)
    result.assert_outcomes(passed=6)
    assert ahead(result) == 0


def test_the_count_of_failures_and_crashes_in_between(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
        import os, signal
        import pytest
        @pytest.mark.parametrize("number", range(10))
        def test_many(number, request):
            assert request.session.testsfailed == (number > 2) + (number > 4) + (number > 6)
            if number == 2:
                os._exit(3)
            if number == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            assert number != 6
    """)
    result.assert_outcomes(passed=7, failed=3)
    assert ahead(result) >= 3  # after a crash the teardown's hooks ran outside: a new zygote
    result.stdout.fnmatch_lines(["*exited with status 3*", "*killed by SIGKILL*"])


def test_its_own_death_is_made_up_for(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(killer="""
        import os, signal
        from pytest_sandbox.plugin.spares import Spares
        ahead, killed = Spares.ahead, []
        def kill_it(self, run):
            ahead(self, run)
            if self._zygote is not None and not killed:
                killed.append(self._zygote.pid)
                os.kill(self._zygote.pid, signal.SIGKILL)
        Spares.ahead = kill_it
    """)
    result = run(pytester, MANY, "-p", "killer")
    result.assert_outcomes(passed=11, failed=1)
    assert ahead(result) < 11


def test_the_child_cannot_reach_the_zygote(pytester: pytest.Pytester) -> None:
    """A descriptor of its socket inside would let a test give orders to a process outside."""
    result = run(pytester, """
        import os, socket, stat
        import pytest
        @pytest.mark.parametrize("number", range(8))
        def test_many(number):
            for name in os.listdir("/proc/self/fd"):
                path = f"/proc/self/fd/{name}"
                if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
                    one = socket.socket(fileno=os.dup(int(name)))
                    assert one.family != socket.AF_UNIX or one.type != socket.SOCK_SEQPACKET
    """)
    result.assert_outcomes(passed=8)
    assert ahead(result) >= 5


def test_what_each_tried_to_reach_is_told(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
        import socket
        import pytest
        @pytest.mark.parametrize("number", range(6))
        def test_many(number):
            socket.create_connection((f"198.51.100.{number}", 7), timeout=5)
    """)
    result.assert_outcomes(failed=6)
    assert ahead(result) >= 3
    for number in range(6):
        assert f"tried to connect to 198.51.100.{number}:7" in result.outlines


def test_what_persists_and_the_working_directory(pytester: pytest.Pytester, tmp_path: Path) -> None:
    result = run(pytester, f"""
        import os
        import pytest
        @pytest.mark.sandbox(workdir="/usr", env={{"ONE": "1", "HOME": None}}, mounts=["{tmp_path}:/mnt"])
        @pytest.mark.parametrize("number", range(6))
        def test_many(number):
            assert os.getcwd() == "/usr" and os.environ["ONE"] == "1" and "HOME" not in os.environ
            open(f"/mnt/{{number}}", "w").close()
            assert sorted(os.listdir("/mnt")) == [str(one) for one in range(number + 1)]
    """)
    result.assert_outcomes(passed=6)
    assert ahead(result) >= 3
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("ahead", [True, False])
def test_the_fork_copies_the_pages_that_tests_write_to(pytester: pytest.Pytester, ahead: bool) -> None:
    from pytest_sandbox.runtime import syscalls as sc

    if not sc.pin(sc.a_page()):
        pytest.skip("this kernel has no io_uring, or it is switched off")
    if not ahead:
        if os.geteuid() != 0:
            pytest.skip("pytest forks root's tests once; others' are forks of forks, whose pages are shared")
        pytester.makeconftest("def pytest_runtest_logfinish(): pass")  # of somebody else: none is forked ahead
    pytester.makepyfile(test_suite="""
        import pytest, resource
        @pytest.mark.parametrize("number", range(24))
        def test_many(number):
            pass
        def teardown_function():
            print("OWN", resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox=all", "-rP")
    result.assert_outcomes(passed=24)
    own = [int(line.split()[1]) for line in result.outlines if line.startswith("OWN ")]
    assert len(own) == 24
    assert max(own[-5:]) * 2 < min(own[:2]), own


LAZY_PARENT = """
    import ctypes, os, subprocess, sys

    libc = ctypes.CDLL(None, use_errno=True)
    PR_SET_CHILD_SUBREAPER = 36
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0  # orphans come to us, who wait for none of them
    run = subprocess.run([sys.executable, "-m", "pytest", *sys.argv[1:]])
    orphans = []
    try:
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            orphans.append(pid)
            if not pid:
                break
    except ChildProcessError:
        pass
    print(f"ORPHANS {len(orphans)}")
    sys.exit(run.returncode)
"""


def test_a_run_ends_also_where_nobody_waits_for_orphans(pytester: pytest.Pytester) -> None:
    """As in a container whose first process is ``sleep``: the end of a sandbox waits for all that were in it."""
    pytester.makepyfile(test_suite="""
        import pytest

        class TestOne:
            @pytest.mark.parametrize("number", range(8))
            def test_one(self, number):
                pass

        @pytest.fixture(scope="class")
        def changes_the_process():
            pass

        @pytest.mark.usefixtures("changes_the_process")
        class TestTwo:
            @pytest.mark.parametrize("number", range(8))
            def test_two(self, number):
                pass
    """)
    parent = pytester.makepyfile(parent=LAZY_PARENT)
    for _ in range(3):
        result = pytester.run(sys.executable, parent, "-p", "no:cacheprovider", "--sandbox=all", timeout=30)
        result.assert_outcomes(passed=16)
        result.stdout.fnmatch_lines(["ORPHANS 0"])


def test_one_that_is_not_needed_ends_without_a_word(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(busy="""
        import time
        from pytest_sandbox.runtime import entering

        def come_first(*args, original=entering.come_first):
            time.sleep(0.1)  # the machine's: meanwhile the sandbox ends
            original(*args)
        entering.come_first = come_first
    """)
    result = run(pytester, "import pytest\n" + "".join(f"""
@pytest.fixture(scope="session")
def session_{number}():
    pass

def test_before_{number}():
    pass

def test_with_{number}(session_{number}):
    pass
""" for number in range(4)), "-p", "busy")
    result.assert_outcomes(passed=8)
    assert "pytest-sandbox:" not in result.stdout.str() + result.stderr.str()
