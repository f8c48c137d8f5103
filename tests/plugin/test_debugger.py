"""The debugger works inside, on the terminal, and reports appear in the order of a plain run."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import Any

import pytest

pexpect: Any = pytest.importorskip("pexpect")

SUITE = """
    import pytest
    @pytest.fixture
    def function():
        yield
        print("function down")
    def test_fails(function):
        local = 41
        print("hello")
        assert local == 0
    def test_stops(function):
        local = 7
        breakpoint()
        assert local == 8
    def test_after(): pass
    def test_pytest_s_own(function):
        local = 7
        pytest.set_trace()
        assert local == 7
"""


def session(pytester: pytest.Pytester, mode: str, args: list[str], typed: list[str]) -> list[str]:
    """What the terminal showed of a run with somebody at it, who types a line at each prompt."""
    from .conftest import normal

    child = pexpect.spawn(sys.executable, ["-m", "pytest", "-p", "no:cacheprovider", f"--sandbox={mode}", *args],
                          cwd=str(pytester.path), timeout=15, encoding="utf-8", dimensions=(50, 100))
    shown = ""
    for line in typed:
        child.expect_exact("(Pdb) ")
        shown += child.before + child.after
        if line == "\x03":
            child.send(line)
        else:
            child.sendline(line)
    child.expect(pexpect.EOF)
    shown += child.before
    child.close()
    return [normal(line.rstrip()) for line in shown.splitlines() if not line.startswith(("sandbox: ", "rootdir:"))]


@pytest.mark.parametrize(("args", "typed"), [
    (["--pdb"], ["p local + 1000", "c", "p local + 1000", "c", "c", "c"]),
    (["--pdb", "-k", "fails"], ["\x03", "p local", "q"]),
    (["-k", "stops"], ["local = 8", "c"]),
    (["-k", "s_own"], ["up", "p session", "down", "p local", "c"]),
    (["--trace", "-k", "after"], ["c"]),
    (["-s", "-v", "-k", "fails"], []),
], ids=["pdb", "ctrl-c", "breakpoint", "set_trace", "trace", "live"])
def test_the_terminal_is_that_of_the_plain_run(pytester: pytest.Pytester, args: list[str],
                                               typed: list[str]) -> None:
    pytester.makepyfile(SUITE)
    assert session(pytester, "all", args, typed) == session(pytester, "off", args, typed)


@pytest.mark.parametrize("mode", ["all", "off"])
def test_ctrl_z_is_for_the_test_too(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """Nobody but the shell reads what is typed meanwhile; what was there before goes on."""
    pytester.makepyfile(SUITE)
    monkeypatch.setenv("PS1", "shell> ")
    monkeypatch.setenv("TERM", "dumb")
    shell = pexpect.spawn("/bin/sh", ["-i"], cwd=str(pytester.path), timeout=30, encoding="utf-8")
    shell.expect_exact("shell> ")
    shell.sendline(f"{sys.executable} -m pytest -p no:cacheprovider --sandbox={mode} -k stops")
    shell.expect_exact("(Pdb) ")
    shell.sendline("p local + 1000")
    shell.expect_exact("1007")
    shell.expect_exact("(Pdb) ")
    shell.send("\x1a")
    shell.expect_exact("shell> ")
    for number in range(5):
        shell.sendline(f"echo $(({number} + 100))")
        shell.expect_exact(f"{number + 100}\r\n")
    shell.sendline("fg")
    shell.sendline("local = 8")
    shell.sendline("p local + 1000")
    shell.expect_exact("1008")
    shell.sendline("c")
    shell.expect_exact("1 passed")
    shell.sendline("exit")
    shell.expect(pexpect.EOF)
    shell.close()


@pytest.mark.parametrize("args", [("-s",), ("-q",)], ids=" ".join)
def test_a_stopped_test_stands_still(pytester: pytest.Pytester, args: tuple[str, ...]) -> None:
    pytester.makepyfile("""
        import os, pathlib, time
        def test_counts():
            for number in range(50):
                os.write(WRITING, b"+")
                time.sleep(0.02)
    """.replace("WRITING", "int(os.environ['WRITING'])"))
    reading, writing = os.pipe()
    run = subprocess.Popen([sys.executable, "-m", "pytest", "--sandbox=all", "-p", "no:cacheprovider", *args],
                           cwd=pytester.path, stdout=subprocess.PIPE, text=True, pass_fds=[writing],
                           env={**os.environ, "WRITING": str(writing)}, preexec_fn=os.setpgrp)
    os.close(writing)
    assert os.read(reading, 1) == b"+"
    run.send_signal(signal.SIGTSTP)
    _, status = os.waitpid(run.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    counted = 0
    while select.select([reading], [], [], 0.5)[0]:
        counted += len(os.read(reading, 1000))
    assert counted < 49
    run.send_signal(signal.SIGCONT)
    out, _ = run.communicate(timeout=30)
    assert "1 passed" in out
    while data := os.read(reading, 1000):
        counted += len(data)
    assert counted == 49
    os.close(reading)
