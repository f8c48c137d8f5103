"""Ctrl-C while a sandboxed test runs: pytest alone hears of it, and the test is told."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def interrupted(pytester: pytest.Pytester, ready: Path, *args: str) -> tuple[int, str]:
    """Interrupts a run once it has made the file ``ready``. Returns its exit status and what it printed."""
    ready.unlink(missing_ok=True)
    with pytester.popen([sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", "-rA",
                         f"-osandbox_persist={ready.parent}", *args],
                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 60
        while not ready.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)  # until the test is there
        process.send_signal(signal.SIGINT)
        out = process.communicate(timeout=60)[0].decode()
    return process.returncode, out


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    (tmp_path / "shown").mkdir()
    return tmp_path / "shown" / "ready"


@pytest.mark.parametrize("live", [(), ("-s",)], ids=["", "-s"])
@pytest.mark.parametrize("where", ["call", "setup", "teardown"])
def test_a_test_that_catches_an_interrupt_goes_on(pytester: pytest.Pytester, ready: Path, where: str,
                                                  live: tuple[str, ...]) -> None:
    pytester.makepyfile(f"""
        import pathlib, time
        import pytest

        def wait():
            try:
                pathlib.Path({str(ready)!r}).write_text("")
                time.sleep(30)
            except KeyboardInterrupt:
                print("it was caught")

        @pytest.fixture
        def around():
            if {where!r} == "setup":
                wait()
            yield
            if {where!r} == "teardown":
                wait()

        def test_one(around):
            if {where!r} == "call":
                wait()

        def test_two():
            pass
    """)
    seen = [interrupted(pytester, ready, *live, one) for one in ("--sandbox=all", "--sandbox=off")]
    for status, out in seen:
        assert status == 0, out
        assert out.count("it was caught") == 1
        assert "2 passed" in out


@pytest.mark.parametrize("live", [(), ("-s",)], ids=["", "-s"])
def test_one_that_does_not_ends_the_run(pytester: pytest.Pytester, ready: Path, live: tuple[str, ...]) -> None:
    pytester.makepyfile(f"""
        import pathlib, time
        def test_one():
            pathlib.Path({str(ready)!r}).write_text("")
            time.sleep(30)
        def test_two():
            pass
    """)
    for one in ("--sandbox=all", "--sandbox=off"):
        status, out = interrupted(pytester, ready, *live, one)
        assert status == pytest.ExitCode.INTERRUPTED, out
        assert "KeyboardInterrupt" in out
        assert "no tests ran" in out


def test_an_interrupt_that_finds_the_test_over_ends_the_run(pytester: pytest.Pytester, ready: Path) -> None:
    """Nobody in there has caught it."""
    pytester.makeconftest(f"""
        import os, signal
        from pytest_sandbox.plugin import inbox

        read = inbox.Inbox.read

        def read_and_interrupt(self, *args, **kwargs):
            result = read(self, *args, **kwargs)
            if self.done and not os.path.exists({str(ready)!r}):
                open({str(ready)!r}, "w").close()
                raise KeyboardInterrupt
            return result

        inbox.Inbox.read = read_and_interrupt
    """)
    pytester.makepyfile("""
        def test_one():
            pass
        def test_two():
            pass
    """)
    result = pytester.runpytest_subprocess("--sandbox=all", "-p", "no:randomly")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*1 passed*"])
