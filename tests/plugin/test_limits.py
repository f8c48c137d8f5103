"""A test that meets a limit fails with that limit's own error, or is told of it; and what tests used is in reports."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from pytest_sandbox import Sandbox, SandboxError

HOG = "x = []\\nwhile True: x.append(bytearray(1 << 20))"


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)


def needs(**limit: object) -> pytest.MarkDecorator:
    """Skips where this host cannot give a limit: tried by starting a sandbox with it."""
    try:
        with Sandbox(**limit):
            why = None
    except SandboxError as error:
        why = str(error)
    return pytest.mark.skipif(why is not None, reason=f"no sandbox with {limit}: {why}")


needs_memory = needs(memory="64M")
needs_pids = needs(pids=20)


@needs_memory
def test_a_hog_fails_alone(pytester: pytest.Pytester, leak_check: None) -> None:
    pytester.makepyfile(f"""
        import subprocess, sys, pytest
        pytestmark = pytest.mark.sandbox(memory="64M")

        @pytest.mark.parametrize("number", range(10))
        def test_hog(number):
            print("here it begins")
            x = []
            while True:
                x.append(bytearray(1 << 20))

        def test_deep():
            subprocess.run(["sh", "-c", "sh -c '{sys.executable} -c \\"{HOG}\\"; true'; true"])
            print("it never comes here")

        def test_sibling():
            bytearray(16 << 20)

        @pytest.mark.xfail(raises=MemoryError)
        def test_expected():
            x = []
            while True:
                x.append(bytearray(1 << 20))

        def test_outside():
            pass
    """)
    result = run(pytester)
    result.assert_outcomes(failed=11, passed=2, xfailed=1)
    text = result.stdout.str()
    told = "E   MemoryLimitExceeded: the sandbox reached its memory limit of 64 MiB: the kernel killed "
    assert text.count(told) == 11
    assert "the peak was 6" in text
    assert "here it begins" in text
    assert "it never comes here" not in text
    assert "pytest_sandbox/plugin" not in text


@needs_memory
@pytest.mark.parametrize("teardown", [False, True])
def test_a_test_that_is_over_before_its_sandbox_ends_fails_too(pytester: pytest.Pytester, teardown: bool) -> None:
    """On cgroup v1 it is the helper that ends the sandbox. Here that is stopped, and so comes too late."""
    pytester.makeconftest("""
        import signal
        from pytest_sandbox.runtime import launch, syscalls

        def pytest_sandbox_started(sandbox):
            syscalls.pidfd_send_signal(launch.supervisor().pidfd, signal.SIGSTOP)

        def pytest_runtest_logreport(report):
            syscalls.pidfd_send_signal(launch.supervisor().pidfd, signal.SIGCONT)
    """)
    pytester.makepyfile(f"""
        import subprocess, sys, pytest

        def hog():
            subprocess.run([sys.executable, "-c", "x = []\\nwhile True: x.append(bytearray(1 << 20))"])

        @pytest.fixture
        def late():
            yield
            if {teardown}:
                hog()

        @pytest.mark.sandbox(memory="64M")
        def test_it(late):
            if not {teardown}:
                hog()

        def test_next():
            pass
    """)
    result = run(pytester)
    outcomes = result.parseoutcomes()
    # In the teardown it is one more outcome, unless it is found out so late that nobody knows in which phase it was.
    late = teardown and "errors" in outcomes
    told = tuple(outcomes.get(one, 0) for one in ("failed", "errors", "passed"))
    assert told == ((0, 1, 2) if late else (1, 0, 1))
    result.stdout.fnmatch_lines(["E   MemoryLimitExceeded: the sandbox reached its memory limit of 64 MiB: *"])


@needs_memory
def test_out_of_memory_in_every_phase(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        def hog():
            x = []
            while True:
                x.append(bytearray(1 << 20))
        @pytest.fixture
        def up():
            hog()
        @pytest.fixture
        def down():
            yield
            hog()
        @pytest.mark.sandbox(memory="64M")
        def test_up(up): pass
        @pytest.mark.sandbox(memory="64M")
        def test_down(down): pass
    """)
    result = run(pytester)
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["*ERROR at setup of test_up*", "*MemoryLimitExceeded*",
                                 "*ERROR at teardown of test_down*", "*MemoryLimitExceeded*"])


@needs_pids
def test_no_more_processes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import os, threading, time, pytest
        pytestmark = pytest.mark.sandbox(pids=20)

        def many():
            for _ in range(40):
                if os.fork() == 0:
                    time.sleep(1000)

        def test_fails():
            many()

        def test_threads():
            for _ in range(40):
                threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()

        def test_survives():
            with pytest.raises(BlockingIOError):
                many()

        def test_few():
            if os.fork() == 0:
                os._exit(0)
            os.wait()
    """)
    result = run(pytester)
    text = result.stdout.str()
    result.assert_outcomes(failed=2, passed=2, warnings=text.count("this test passed, but"))
    if "PidsLimitExceeded" not in text:
        pytest.skip("RLIMIT_NPROC stands in for the limit here, and does not count what it refuses")
    assert text.count("\nPidsLimitExceeded: the sandbox reached its limit of 20 processes and threads: ") == 2
    assert "in many" in text or "> " in text  # the traceback stays
    assert re.search(r"FAILED .*::test_fails - PidsLimitExceeded: ", text)
    assert text.count("PytestSandboxWarning: this test passed, but the sandbox reached its limit of 20 pro") == 1


def test_a_full_disk(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import os, subprocess, pytest
        pytestmark = pytest.mark.sandbox(disk="2M", user="root")

        def fill():
            with open("/opt/big", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 18))

        def test_fails():
            fill()

        def test_inodes():
            os.mkdir("/opt/many")
            for number in range(10_000_000):
                os.close(os.open(f"/opt/many/{number}", os.O_CREAT))

        def test_command():
            subprocess.run(["dd", "if=/dev/zero", "of=/opt/big", "bs=1M", "count=10"], check=True)

        def test_survives():
            with pytest.raises(OSError):
                fill()

        def test_cleans_up():
            try:
                fill()
            finally:
                os.unlink("/opt/big")

        def test_little():
            with open("/opt/little", "w") as file:
                file.write("x")
    """)
    result = run(pytester)
    result.assert_outcomes(failed=4, passed=2, warnings=1)
    text = result.stdout.str()
    assert text.count("\nDiskLimitExceeded: the sandbox's writable layer of 2 MiB is full: ") == 3
    assert "is full: it can hold no more files" in text
    assert re.search(r"FAILED .*::test_fails - DiskLimitExceeded: ", text)
    assert text.count("If that was in the sandbox's writable layer: ") == 1  # test_cleans_up
    shown = [line for line in result.outlines if not line.startswith("FAILED")]  # which CI does not cut off
    assert sum("raise the sandbox's disk option" in line for line in shown) == 5
    assert text.count("this test passed, but the sandbox's writable layer of 2 MiB is full") == 1


def test_where_warnings_are_errors_a_survived_limit_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(disk="2M", user="root")
        def test_survives():
            with pytest.raises(OSError), open("/opt/big", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 18))
        def test_after(): pass
    """)
    result = run(pytester, "-Werror")
    result.assert_outcomes(passed=2, errors=1)
    assert "PytestSandboxWarning: this test passed, but" in result.stdout.str()


def test_no_limit_is_no_word(pytester: pytest.Pytester) -> None:
    """What a failure says about blocked files of the test's own is not ours to explain."""
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox
        def test_fails():
            assert "BlockingIOError [Errno 11]" == "something else"
    """)
    result = run(pytester)
    result.assert_outcomes(failed=1)
    for word in ("LimitExceeded", "limit reached", "hint"):
        assert word not in result.stdout.str()


# Usage.


def properties(pytester: pytest.Pytester) -> dict[str, dict[str, str]]:
    tree = ElementTree.parse(pytester.path / "report.xml")
    return {case.get("name") or "": {one.get("name") or "": one.get("value") or "" for one in case.iter("property")}
            for case in tree.iter("testcase")}


SUITE = """
    import time, pytest
    @pytest.mark.sandbox
    def test_busy(record_property):
        record_property("mine", 1)
        end = time.process_time() + 0.3
        while time.process_time() < end: pass
    @pytest.mark.sandbox(timeout=100)
    def test_limited(): pass
    @pytest.mark.sandbox
    def test_driven(sandbox):
        sandbox.run(["true"], check=True)
    def test_outside(): pass
"""


def test_the_report_tells_what_was_used_where_a_limit_was_set(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = run(pytester, "--junitxml=report.xml")
    result.assert_outcomes(passed=4)
    found = properties(pytester)
    assert found["test_busy"] == {"mine": "1"}
    assert found["test_driven"] == found["test_outside"] == {}
    limited = found["test_limited"]
    assert float(limited["sandbox_wall_seconds"]) > 0
    assert float(limited["sandbox_cpu_seconds"]) >= 0
    assert "heaviest" not in result.stdout.str()


@pytest.mark.usefixtures("all_plugins")
@pytest.mark.parametrize("distributed", [False, True])
def test_the_summary_shows_the_heaviest(pytester: pytest.Pytester, distributed: bool) -> None:
    if distributed:
        pytest.importorskip("xdist")
    pytester.makepyfile(SUITE)
    result = run(pytester, "--sandbox-usage=2", "--junitxml=report.xml", *(["-n2"] if distributed else []))
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*heaviest 2 sandboxed tests*", "*cpu*wall*memory*disk*pids*test",
                                 "*s *::test_busy", "*::test_*"])
    found = properties(pytester)
    assert 0.28 < float(found["test_busy"]["sandbox_cpu_seconds"]) < 3
    assert found["test_busy"]["mine"] == "1"
    assert set(found["test_driven"]) >= {"sandbox_cpu_seconds", "sandbox_disk", "sandbox_wall_seconds"}
    assert found["test_outside"] == {}


def test_a_number_or_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass")
    result = run(pytester, "--sandbox-usage", "test_a_number_or_nothing.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--sandbox-usage: a number of tests, not *: write --sandbox-usage=10*"])
    result = run(pytester, "--sandbox-usage")
    result.assert_outcomes(passed=1)
    assert "heaviest" not in result.stdout.str()


@needs_memory
def test_a_driven_sandbox_that_meets_a_limit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"""
        import pytest
        HOG = [{sys.executable!r}, "-c", "{HOG}"]
        @pytest.mark.sandbox(memory="64M")
        def test_checked(sandbox):
            sandbox.run(HOG, check=True)
        @pytest.mark.sandbox(memory="64M")
        def test_result(sandbox):
            assert sandbox.run(HOG).oom_killed
        @pytest.mark.sandbox(disk="2M")
        def test_disk(sandbox):
            assert sandbox.run(["dd", "if=/dev/zero", "of=/tmp/big", "bs=1M", "count=10"]).returncode
    """)
    result = run(pytester)
    result.assert_outcomes(failed=1, passed=2, warnings=1)
    text = result.stdout.str()
    assert "MemoryLimitExceeded: the sandbox reached its memory limit of 64 MiB: " in text
    assert "in this test the sandbox's writable layer of 2 MiB is full" in text
    assert "def run(self" not in text  # a traceback through this plugin tells nobody anything
