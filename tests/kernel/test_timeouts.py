"""The timeout of a sandbox: the verdict on what it did, and that nothing outlives it."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from support import init_pid, prints, until

from pytest_sandbox import Sandbox, SandboxUsageError
from pytest_sandbox.deadline import end
from pytest_sandbox.errors import TimeLimitExceeded
from pytest_sandbox.runtime.tasks import Proc
from pytest_sandbox.stacks import in_words
from pytest_sandbox.verdicts import judge, sample

LOCKED = """
import threading
lock = threading.Lock()
lock.acquire()
thread = threading.Thread(target=lock.acquire)
thread.start()
thread.join()
"""
#: The parent of a vfork waits uninterruptibly until its child calls execve or ends.
VFORK = """
import ctypes, signal
libc = ctypes.PyDLL(None)
if libc.syscall(58) == 0:  # of x86_64
    libc.pause()
"""

#: Command, verdict, and a part of the reason.
DOINGS = {
    "sleeper": (["sleep", "1000"], "waiting", "waits for time to pass"),
    "python-sleeper": ([sys.executable, "-c", "import time; time.sleep(1000)"], "waiting", "waits for time to pass"),
    "timed-lock": ([sys.executable, "-c", "import threading; threading.Event().wait(1000)"], "waiting",
                   "waits for a lock, for a limited time"),
    "spinner": ([sys.executable, "-c", "while True: pass"], "spinning", "runs"),
    "spinning-child": (["sh", "-c", "(while :; do :; done) & wait"], "spinning", "runs"),
    "many-short-children": (["sh", "-c", "while :; do /bin/true; done"], "spinning", "runs"),
    "output-flood": (["sh", "-c", "yes > /dev/null"], "spinning", "runs"),
    "lock": ([sys.executable, "-c", LOCKED], "blocked", "waits for a lock"),
    "pipe": (["sh", "-c", "mkfifo /tmp/f; cat < /tmp/f"], "blocked", "waits for the other end of a FIFO"),
    "stopped": (["sh", "-c", "kill -STOP $$"], "blocked", "waits for SIGCONT: it is stopped"),
    "server": ([sys.executable, "-c", "import socket; socket.create_server(('127.0.0.1', 80)).accept()"], "blocked",
               "waits for a connection"),
}


@pytest.mark.parametrize("name", DOINGS)
def test_the_verdict(name: str) -> None:
    command, kind, reason = DOINGS[name]
    with Sandbox(user="root") as sandbox, Proc(sandbox._root_fd) as proc:
        process = sandbox.popen(command)
        try:
            until(lambda: reason in "".join(map(str, sandbox.stacks())) and (
                kind == "spinning" or all(task.state != "R" for view in proc.processes() for task in view.tasks)),
                "it has come so far")
            before = sample(proc)
            time.sleep(0.3)
            verdict, stacks = judge(proc, before)
        finally:
            process.kill()
            sandbox.kill()
            with process:
                pass
        assert verdict.kind == kind
        assert "s of CPU in the last" in verdict.reason
        assert kind == "spinning" or reason in verdict.reason
        assert stacks[0].pid == 2


@pytest.mark.parametrize("kind", ["spinning", "waiting"])
def test_the_error(kind: str) -> None:
    command = ["sleep", "1000"] if kind == "waiting" else ["sh", "-c", "while :; do :; done"]
    with Sandbox(timeout=2) as sandbox:
        with pytest.raises(TimeLimitExceeded) as caught:
            sandbox.run(command)
        error = caught.value
        assert (error.verdict, error.limit, error.option) == (kind, 2.0, "timeout")
        told = f"what ran in a sandbox took longer than its timeout of 2 s: it was {kind}: it used "
        assert str(error).startswith(told)
        assert "process 2: " in error.stacks
        assert str(error).endswith(error.stacks)
        assert isinstance(error, TimeoutError)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="vfork(2) is a system call of its own on few machines")
def test_an_uninterruptible_wait_is_blocked() -> None:
    with Sandbox() as sandbox, Proc(sandbox._root_fd) as proc:
        process = sandbox.popen([sys.executable, "-c", VFORK])
        until(lambda: sorted((task.state, task.syscall) for view in proc.processes() for task in view.tasks) == [
            ("D", "vfork"), ("S", "pause")], "it waits in vfork")
        verdict, stacks = judge(proc, sample(proc))
        assert verdict.kind == "blocked"
        assert "waits for a child to start" in "\n".join(map(str, stacks))
        sandbox.kill()
        with process:
            pass


def test_a_clean_up_on_sigterm_is_waited_for(tmp_path: object) -> None:
    script = "trap 'echo cleaned > /tmp/said; exit' TERM; echo up; while :; do sleep 0.05; done"
    with Sandbox(timeout=0.5) as sandbox:
        with pytest.raises(TimeLimitExceeded):
            sandbox.run(["sh", "-c", script])
        assert sandbox.path("/tmp/said").read_text() == "cleaned\n"  # what it left can be looked at


def test_nothing_survives_that_ignores_signals_and_forked_twice() -> None:
    code = """
import os, signal
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
for _ in range(30):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        while True:
            signal.pause()
    os.wait()
print("all are there", flush=True)
while True:
    signal.pause()
"""
    with Sandbox() as sandbox:
        init = init_pid(sandbox)
        with sandbox.popen([sys.executable, "-c", code]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "all are there\n"
            assert "and 21 more processes" in in_words(sandbox.stacks())
            end(sandbox._ready(), grace=0.1)
        assert process.returncode == -signal.SIGKILL
        assert sandbox.processes() == []
        os.kill(init, 0)  # the sandbox itself is there until it is closed
        assert sandbox.run(["echo", "hi"]).stdout == "hi\n"


def test_every_later_use_says_so_and_files_stay() -> None:
    with Sandbox(timeout=0.2) as sandbox:
        sandbox.path("/tmp/note").write_text("hello")
        until(lambda: sandbox._deadline is not None and sandbox._deadline.error, "the time is up")
        for use in (lambda: sandbox.run(["true"]), lambda: sandbox.popen(["true"]), lambda: sandbox.call(os.getpid)):
            with pytest.raises(TimeLimitExceeded, match=r"timeout of 0\.2 s"):
                use()
        assert sandbox.path("/tmp/note").read_text() == "hello"


def test_a_call_that_takes_too_long() -> None:
    with Sandbox(timeout=0.5) as sandbox:
        with pytest.raises(TimeLimitExceeded) as caught:
            sandbox.call(time.sleep, 1000)
        assert caught.value.__context__ is None


def test_a_frozen_sandbox_has_a_time_too() -> None:
    ended, = prints("""
        from pytest_sandbox import Sandbox, SandboxUnavailable, TimeLimitExceeded
        with Sandbox(timeout=0.7) as sandbox:
            process = sandbox.popen(["sleep", "1000"])
            try:
                sandbox.freeze()
            except SandboxUnavailable as error:
                print(error)
                process.kill()
            with process:
                process.wait()
            try:
                sandbox.raise_untold()
            except TimeLimitExceeded as error:
                print(process.returncode < 0)
    """)
    if ended != "True":
        pytest.skip(ended)


def test_a_limit_that_was_not_reached_changes_nothing() -> None:
    with Sandbox(timeout=1000) as sandbox:
        assert sandbox.run(["echo", "hi"]).stdout == "hi\n"
        sandbox.reset()
        assert sandbox.run(["echo", "hi"]).stdout == "hi\n"
        sandbox.raise_untold()
    assert sandbox._deadline is not None
    assert not sandbox._deadline.is_alive()


def test_a_commands_own_timeout_is_another() -> None:
    with Sandbox(timeout=1000) as sandbox:
        assert sandbox.run(["sleep", "1000"], timeout=0.2).timed_out
        assert sandbox.run(["true"]).returncode == 0


@pytest.mark.parametrize("value", [0, -1, "soon", True, float("inf"), None])
def test_what_is_no_time_is_refused(value: object) -> None:
    with pytest.raises(SandboxUsageError, match=r"timeout=.*a number of seconds, more than 0"):
        Sandbox(timeout=value)


def test_a_command_that_ended_by_signal_before_the_limit_is_a_result() -> None:
    with Sandbox(timeout=1000) as sandbox:
        assert sandbox.run(["sh", "-c", "kill -TERM $$"]).signal == signal.SIGTERM
