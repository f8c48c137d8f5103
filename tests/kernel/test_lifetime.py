"""Who ends with whom: whatever is killed, at whatever moment, nothing is left and the next sandbox works.

Each case runs in a process of its own, found again by pidfds that were opened while it lived.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from support import PACKAGE, namespaces, prints

from pytest_sandbox import Sandbox, SandboxClosedError
from pytest_sandbox.runtime import launch

HERE = str(Path(__file__).parent)

#: A process with a sandbox in which daemons, a command and a fork of the caller run. It prints their numbers here.
BUSY = """
import json, os, signal, subprocess, sys
from pytest_sandbox import Sandbox, SandboxClosedError
from pytest_sandbox.runtime import launch
from pytest_sandbox.runtime.protocol import wait_readable
from support import init_pid
sandbox = Sandbox().start()
daemon = "import os, signal\\nfor _ in range(2):\\n    if os.fork(): os._exit(0)\\n    os.setsid()\\nsignal.pause()"
with open(os.devnull) as null:
    sandbox.popen([sys.executable, "-c", daemon], stdout=null, stderr=null).wait()
command = sandbox.popen(["sleep", "1000"])
child = sandbox.fork()
if child is None:
    signal.pause()
    os._exit(0)
Sandbox.prepare(sandbox.spec)
with open(f"/proc/self/fdinfo/{launch.supervisor().pidfd}") as file:
    helper = int(next(line.split()[1] for line in file if line.startswith("Pid:")))
print(json.dumps({"helper": helper, "init": init_pid(sandbox), "fork": child.pid}), flush=True)
"""


def _start(program: str) -> tuple[subprocess.Popen[str], dict[str, int]]:
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", textwrap.dedent(BUSY) + textwrap.dedent(program)], stdout=subprocess.PIPE,
        stdin=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": f"{PACKAGE}:{HERE}"})
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def _wait_for_all(pidfds: list[int]) -> None:
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(10_000), "a process outlived its sandbox"
        os.close(pidfd)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_its_caller(number: signal.Signals) -> None:
    process, pids = _start("sys.stdin.read()")
    with process:
        pidfds = [os.pidfd_open(pid) for pid in pids.values()]
        before = namespaces()
        process.send_signal(number)
        assert process.wait(10) == -number
        _wait_for_all(pidfds)
    assert namespaces() == before


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(0)", "os.abort()", "os.execvp('true', ['true'])",
                                    "raise KeyboardInterrupt", "sandbox.close(); sys.exit(0)"])
def test_nothing_outlives_a_caller_that_ends(ending: str) -> None:
    process, pids = _start("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
                           "sys.stderr = open(os.devnull, 'w'); sys.stdin.readline()\n" + ending)
    pidfds = [os.pidfd_open(pid) for pid in pids.values()]
    process.communicate("go\n", timeout=20)
    _wait_for_all(pidfds)


AT_RANDOM = """
import sys
from pytest_sandbox import Sandbox
print(flush=True)
while True:
    with Sandbox(hostname="a") as one, Sandbox(hostname="b") as other:
        Sandbox.prepare(one.spec)
        one.popen(["sleep", "1000"])
        other.call(int)
"""


def test_the_caller_is_killed_at_random_moments() -> None:
    """The leak check looks for what is left, by ancestry and by the environment of whatever was started."""
    seed = random.randrange(1 << 30)
    moments = random.Random(seed)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-B", "-W", "ignore", "-c", AT_RANDOM], stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": PACKAGE})
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            moment = moments.uniform(0, 0.12)
            assert process.poll() is None, f"it ended by itself (seed {seed})"
            time.sleep(moment)  # not a wait for anything: the moment itself is what is random
            process.kill()


def test_the_helper_is_killed() -> None:
    lines = prints(BUSY + """
other = Sandbox(hostname="other").start()
pidfd = launch.supervisor().pidfd
os.kill(helper, signal.SIGKILL)
print(child.wait(), command._channel.fileno() >= 0)
assert wait_readable(pidfd, 10)
for attempt in (lambda: command.wait(), lambda: sandbox.run(["true"]), lambda: sandbox.call(int), sandbox.processes,
                sandbox.kill, lambda: other.popen(["true"])):
    try:
        attempt()
        print("nothing")
    except Exception as error:
        print(type(error).__name__, str(error).split(":")[0])
again = Sandbox()
print(again.run(["echo", "works"]).stdout.strip(), again.call(int))
for attempt in (sandbox.path("/etc/passwd").read_text, sandbox.changes, lambda: sandbox.copy_out("/etc", "/no")):
    try:
        attempt()
        print("nothing")
    except SandboxClosedError as error:
        print(error)
sandbox.reset()
print(sandbox.run(["echo", "reset"]).stdout.strip())
sandbox.close(); other.close(); again.close()
""")[1:]
    assert lines[0] == "-9 True"
    assert all(line in ("SandboxClosedError the sandbox has ended",
                        "SandboxClosedError the sandbox ended while a command ran in it") for line in lines[1:7]), lines
    assert lines[7:] == ["works 0", *["the sandbox has ended"] * 3, "reset"]


def test_init_is_killed_and_the_helper_goes_on() -> None:
    sandbox, other = Sandbox().start(), Sandbox().start()
    try:
        helper = launch.supervisor().pidfd
        command = sandbox.popen(["sleep", "1000"])
        signal.pidfd_send_signal(sandbox._ready().pidfd, signal.SIGKILL)
        with pytest.raises(SandboxClosedError, match="ended while a command ran"):
            command.wait()
        for attempt in (lambda: sandbox.run(["true"]), lambda: sandbox.call(int), sandbox.processes, sandbox.kill):
            with pytest.raises(SandboxClosedError):
                attempt()
        with command:
            pass
        assert other.run(["echo", "alive"]).stdout == "alive\n"
        assert launch.supervisor().pidfd == helper
        sandbox.reset()
        assert sandbox.run(["echo", "alive"]).stdout == "alive\n"
    finally:
        sandbox.close()
        other.close()


def test_a_fork_of_the_caller_does_not_keep_a_sandbox_alive() -> None:
    """Such as a worker of multiprocessing: it has copies of all our descriptors."""
    reading, writing = os.pipe()
    sandbox = Sandbox().start()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        sandbox.close()
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)


def test_a_fork_of_the_caller_cannot_close_it() -> None:
    with Sandbox() as sandbox:
        pid = os.fork()
        if pid == 0:
            sandbox.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert sandbox.run(["echo", "alive"]).stdout == "alive\n"


def test_shutdown_ends_what_is_still_open_also_with_forks_around() -> None:
    assert prints("""
import os, signal, threading
from pytest_sandbox import Sandbox, SandboxClosedError
from pytest_sandbox.sandbox import shutdown
sandboxes = [Sandbox().start() for _ in range(3)]
child = sandboxes[0].fork()
if child is None:
    signal.pause()
if (other := os.fork()) == 0:
    signal.pause()
try:
    shutdown()
    shutdown()
    print(child.wait() in (-9, 126))  # 126: it was still on its way in
    for one in sandboxes:
        try:
            one.run(["true"])
        except SandboxClosedError as error:
            print(error)
        one.close()
    with Sandbox() as again:
        print(again.run(["echo", "works"]).stdout.strip())
finally:
    os.kill(other, signal.SIGKILL)
    os.waitpid(other, 0)
""") == ["True", *["the sandbox has ended"] * 3, "works"]


def test_close_waits_for_a_fork_that_nobody_waited_for() -> None:
    sandbox = Sandbox().start()
    child = sandbox.fork()
    if child is None:
        signal.pause()
    sandbox.close()
    assert child.wait() in (-signal.SIGKILL, 126)  # 126: it was still on its way in


def test_a_fork_holds_nothing_of_other_sandboxes() -> None:
    with Sandbox(hostname="one") as one, Sandbox(hostname="other") as other:
        theirs = [one._ready().control.fileno(), other._ready().control.fileno(), other._ready().root]
        names = [os.readlink(f"/proc/self/fd/{fd}") for fd in theirs]
        assert one.call(lambda: [name for name in names if name.startswith("socket") and name in [
            os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(
                f"/proc/self/fd/{fd}")]]) == []
        with pytest.raises(Exception, match="SandboxClosedError"):
            one.call(lambda: other.run(["true"]))


def test_many_threads_start_and_end_sandboxes() -> None:
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(3):
                with Sandbox() as sandbox:
                    assert sandbox.run(["echo", "alive"]).stdout == "alive\n"
        except BaseException as error:  # noqa: BLE001 - it is the main thread's to report
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []


def test_one_sandbox_started_by_many_threads_is_one() -> None:
    sandbox = Sandbox()
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(sandbox.run(["readlink", "/proc/self/ns/pid"]).stdout))
               for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    sandbox.close()
    assert len(found) == 6
    assert len(set(found)) == 1


def test_two_first_threads_share_one_helper() -> None:
    assert prints("""
import os, threading
from pytest_sandbox.runtime import launch
found = []
threads = [threading.Thread(target=lambda: found.append(launch.supervisor())) for _ in range(8)]
for one in threads: one.start()
for one in threads: one.join()
print(len(set(map(id, found))))
""") == ["1"]


def test_close_and_reset() -> None:
    sandbox = Sandbox().start()
    sandbox.path("/tmp/pytest-sandbox-mark").write_text("")
    process = sandbox.popen(["sleep", "1000"])
    first = sandbox.run(["readlink", "/proc/self/ns/pid"]).stdout
    sandbox.reset()
    with process, pytest.raises(SandboxClosedError):
        process.wait()
    assert not sandbox.path("/tmp/pytest-sandbox-mark").exists()
    assert sandbox.processes() == []
    assert sandbox.run(["readlink", "/proc/self/ns/pid"]).stdout != first
    path = sandbox.path("/etc/passwd")
    for _ in range(3):
        sandbox.close()
    for attempt in (sandbox.start, sandbox.reset, sandbox.kill, sandbox.processes, sandbox.changes, path.read_text,
                    lambda: sandbox.run(["true"]), lambda: sandbox.call(int), lambda: sandbox.copy_in("/etc", "/"),
                    sandbox.fork, sandbox.__enter__):
        with pytest.raises(SandboxClosedError, match=r"this sandbox is closed\. Make a new Sandbox"):
            attempt()
    assert "closed" in repr(sandbox)


def test_a_sandbox_that_is_never_started_needs_no_end() -> None:
    sandbox = Sandbox()
    assert "not started" in repr(sandbox)
    sandbox.close()
    with pytest.raises(SandboxClosedError):
        sandbox.start()


def test_prepare_and_discard_leave_nothing() -> None:
    assert prints("""
from pytest_sandbox import Sandbox
from pytest_sandbox.sandbox import shutdown
one = Sandbox()
for _ in range(6):
    Sandbox.prepare(one.spec)
    taken = Sandbox(one.spec).start()
    print(taken.run(["echo", "works"]).stdout.strip())
    taken.discard()
Sandbox.prepare(Sandbox(hostname="x").spec)
Sandbox.prepare(one.spec)
shutdown()
import os
print(os.path.exists(f"/proc/self/task/{os.getpid()}/children") and open(
    f"/proc/self/task/{os.getpid()}/children").read().strip() or "no child")
print(sum(os.readlink(f"/proc/self/fd/{fd}").startswith(("socket", "anon_inode:[pidfd]"))
          for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")))
""") == [*["works"] * 6, "no child", "0"]
