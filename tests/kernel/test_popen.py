"""``Sandbox.popen``, ``processes`` and ``kill``: commands while they run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import abort_unless_apart, until

from pytest_sandbox import Sandbox, SandboxClosedError
from pytest_sandbox.process import Process
from pytest_sandbox.runtime import protocol


@pytest.fixture
def started() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def test_a_conversation(started: Sandbox) -> None:
    with started.popen(["cat"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.poll() is None
        for line in ("one\n", "zwölf\n"):
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
        process.stdin.close()
        assert process.wait(10) == 0
        assert process.poll() == process.wait() == process.returncode == 0


def test_signals_reach_the_command(started: Sandbox) -> None:
    with started.popen(["sh", "-c", "trap 'exit 5' USR1; echo; while :; do read x; done"],
                       stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(10) == 5
        process.send_signal(signal.SIGKILL)  # too late, and no error
    with started.popen(["sleep", "1000"]) as process:
        process.terminate()
        assert process.wait(10) == -signal.SIGTERM
    with started.popen(["sh", "-c", "sleep 1000 & exec sleep 1000"]) as process:
        process.kill()
        assert process.wait(10) == -signal.SIGKILL
    until(lambda: started.processes() == [], "the group is gone")


def test_stop_and_continue(started: Sandbox) -> None:
    with started.popen(["cat"], stdin=subprocess.PIPE) as process:
        process.send_signal(signal.SIGSTOP)
        until(lambda: started.processes()[0]["state"] == "T", "it has stopped")
        process.send_signal(signal.SIGCONT)
        until(lambda: started.processes()[0]["state"] == "S", "it goes on")
        assert process.communicate("text")[0] == "text"


def test_kill_works_while_another_thread_waits(started: Sandbox) -> None:
    with started.popen(["sleep", "1000"]) as process:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(process.wait(30))) for _ in range(3)]
        for one in threads:
            one.start()
        process.kill()
        for one in threads:
            one.join(20)
        assert found == [-signal.SIGKILL] * 3


def test_streams_go_where_they_are_told(started: Sandbox, tmp_path: Path) -> None:
    speak = ["sh", "-c", "cat; echo out; echo err >&2"]
    with open(tmp_path / "out", "w+") as out, open(tmp_path / "in", "w+") as given:
        given.write("in\n")
        given.seek(0)
        with started.popen(speak, stdin=given, stdout=out.fileno(), stderr=subprocess.STDOUT) as process:
            assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
            assert process.wait(10) == 0
        assert (tmp_path / "out").read_text() == "in\nout\nerr\n"
    with started.popen(speak, stderr=subprocess.STDOUT) as process:
        assert process.communicate()[:2] == ("out\nerr\n", None)
    with started.popen(speak, stdout=subprocess.DEVNULL) as process:
        assert process.communicate()[:2] == (None, "err\n")


def test_none_is_the_caller_s_own_stream(started: Sandbox, capfd: pytest.CaptureFixture[str]) -> None:
    with started.popen(["sh", "-c", "echo out; echo err >&2"], stdout=None, stderr=None) as process:
        assert process.wait(10) == 0
    assert capfd.readouterr() == ("out\n", "err\n")


def test_what_is_no_stream(started: Sandbox) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        started.popen(["true"], stdout=9999)
    with pytest.raises(AttributeError):
        started.popen(["true"], stdout="file")  # type: ignore[arg-type]
    assert started.run(["echo", "alive"]).stdout == "alive\n"


def test_a_process_that_nobody_waits_for_runs_on(started: Sandbox) -> None:
    process = started.popen(["sh", "-c", "read x; exit 0"], stdin=subprocess.PIPE)
    streams = process.stdin, process.stdout, process.stderr
    process._channel.close()  # as when the object is dropped
    until(lambda: len(started.processes()) == 1, "it is there")
    assert started.run(["echo", "alive"]).stdout == "alive\n"
    for stream in streams:
        assert stream is not None
        stream.close()
    until(lambda: started.processes() == [], "it has ended and is reaped")


def test_init_survives_a_caller_that_hangs_up_early(started: Sandbox) -> None:
    """An answer that was never read makes the kernel report a broken connection rather than an end."""
    from pytest_sandbox.runtime import protocol
    from pytest_sandbox.runtime.protocol import wait_readable
    null = os.open(os.devnull, os.O_RDWR)
    for _ in range(20):
        ours, theirs = protocol.pair()
        with ours, theirs:
            what = {"argv": ["sleep", "0.01"], "env": dict(os.environ), "cwd": "/", "ids": None}
            started._ready().request({"spawn": what}, (null, null, null, theirs.fileno()))
            theirs.close()
            assert wait_readable(ours.fileno(), 10)  # the answer is there, unread
    os.close(null)
    assert started.run(["echo", "alive"]).stdout == "alive\n"


def test_processes_tells_what_runs(started: Sandbox) -> None:
    assert started.processes() == []
    with started.popen(["sh", "-c", 'exec sh -c "cat; :" "od)d (name"'], stdin=subprocess.PIPE) as process:
        until(lambda: ["cat"] in [one["args"] for one in started.processes()], "the shell has started its command")
        shell, cat = sorted(started.processes(), key=lambda one: one["pid"])
        assert (shell["pid"], shell["ppid"], shell["name"]) == (process.pid, 1, "sh")
        assert shell["args"] == ["sh", "-c", "cat; :", "od)d (name"]
        assert (cat["ppid"], cat["name"], cat["args"]) == (shell["pid"], "cat", ["cat"])
    assert started.processes() == []


DAEMON = """
import os, signal, sys, time
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
for _ in range(2):
    if os.fork():
        os._exit(0)
    os.setsid()
os.close(0); os.close(1); os.close(2)
while True:
    signal.pause()
"""


def test_kill_ends_what_hides(started: Sandbox) -> None:
    abort_unless_apart(started)
    started.path("/tmp/kept").write_text("kept")
    started.run([sys.executable, "-c", DAEMON], check=True)
    process = started.popen(["sleep", "1000"])
    assert {one["ppid"] for one in started.processes()} == {1}
    started.kill()
    assert started.processes() == []
    with process:
        assert process.wait(0) == -signal.SIGKILL
    assert started.path("/tmp/kept").read_text() == "kept"
    assert started.run(["cat", "/tmp/kept"]).stdout == "kept"


def test_kill_ends_a_fork_bomb(started: Sandbox) -> None:
    abort_unless_apart(started)
    bomb = "import os\nfor _ in range(6): os.fork()\nprint(flush=True)\nimport signal\nsignal.pause()"
    with started.popen([sys.executable, "-c", bomb]) as process:
        until(lambda: len(started.processes()) == 64, "all are there")
        started.kill()
        assert started.processes() == []
        assert process.wait(0) == -signal.SIGKILL


def test_kill_ends_forks_of_the_caller_too(started: Sandbox) -> None:
    child = started.fork()
    if child is None:
        try:
            signal.pause()
        finally:
            os._exit(0)
    started.kill()
    assert child.wait() == -signal.SIGKILL
    assert started.processes() == []


def test_a_failed_assertion_ends_what_it_leaves(started: Sandbox) -> None:
    process = started.popen(["sleep", "1000"])
    with pytest.raises(AssertionError), process:
        raise AssertionError("as in a test")
    assert process.returncode == -signal.SIGKILL


def test_close_takes_everything_along() -> None:
    sandbox = Sandbox().start()
    sandbox.run([sys.executable, "-c", DAEMON], check=True)
    process = sandbox.popen(["sleep", "1000"])
    sandbox.close()
    with pytest.raises(SandboxClosedError, match=r"ended while a command ran in it: it was \['sleep', '1000'\]"):
        process.wait()
    with pytest.raises(SandboxClosedError):
        process.poll()
    process.kill()
    with process:
        pass


def test_a_signal_that_comes_too_late_hides_no_end() -> None:
    """Init closes its end with the signal unread, and the kernel tells of that before it gives what init had said."""
    ours, theirs = protocol.pair()
    process = object.__new__(Process)
    process._channel = ours
    protocol.send(theirs, {"status": 0})
    protocol.send(ours, {"signal": 9, "group": True})
    theirs.close()
    with ours:
        assert process._receive() == {"status": 0}
