"""Where everything inside stands, read from outside: Python frames, and the kernel's view."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import until

from pytest_sandbox import Process, Sandbox
from pytest_sandbox.runtime.pystack import NotPython, Unreadable, python_threads
from pytest_sandbox.stacks import ProcessStack

WORKER = """
import threading

class Worker:
    def wait_for_it(self, lock):
        lock.acquire()

def other(lock):
    lock.acquire()

lock = threading.Lock()
lock.acquire()
threading.Thread(target=other, args=(lock,), daemon=True).start()
def generator():
    yield Worker().wait_for_it(
        lock)
for _ in generator():
    pass
"""


@contextmanager
def started(sandbox: Sandbox, args: list[str], **options: Any) -> Iterator[Process]:
    """A command that is killed at the end."""
    process = sandbox.popen(args, **options)
    try:
        yield process
    finally:
        process.kill()
        with process:
            pass


def settled(sandbox: Sandbox, count: int = 1, threads: int = 1) -> list[ProcessStack]:
    """The stacks once so many processes wait, each with so many threads."""
    found: list[ProcessStack] = []

    def waits() -> bool:
        found[:] = sandbox.stacks()
        return len(found) == count and all(
            len(one.threads) == threads and all(thread.task.state == "S" for thread in one.threads) for one in found)

    until(waits, "everything inside waits")
    return found


def lines(stack: ProcessStack, thread: int = 0) -> list[tuple[str, int | None]]:
    return [(frame.function.split(".")[-1], frame.line) for frame in stack.threads[thread].python]


@pytest.mark.parametrize("python", sorted({
    sys.executable, *[path for name in ("3.10", "3.11", "3.12", "3.13", "3.14")
                      if (path := shutil.which(f"python{name}")) and "shims" not in path]}))
def test_the_stacks_of_a_command_in_python(python: str) -> None:
    with Sandbox() as sandbox:
        done = sandbox.run([python, "-c", "import sys; print(sys.version_info[:2])"])
        if done.returncode:
            pytest.skip(f"{python} does not run: {done.stderr}")
        with started(sandbox, [python, "-c", WORKER]):
            stack, = settled(sandbox, threads=2)
        assert stack.why is None
        assert lines(stack) == [("<module>", 17), ("generator", 15), ("wait_for_it", 6)]
        assert {frame.filename for frame in stack.threads[0].python} == {"<string>"}
        assert lines(stack, 1)[-1] == ("other", 9)
        assert lines(stack, 1)[0][0] == "_bootstrap"
        assert [thread.task.syscall for thread in stack.threads] == ["futex"] * 2
        assert [thread.task.waits_for for thread in stack.threads] == ["a lock"] * 2


def test_a_thread_that_runs_can_be_read() -> None:
    code = "def spin(n):\n  while n:\n    n = n + 1\ndef calls():\n  spin(1)\ncalls()"
    with Sandbox() as sandbox, started(sandbox, [sys.executable, "-c", code]):
        until(lambda: any(frame.function == "spin" for one in sandbox.stacks() for frame in one.threads[0].python),
              "it spins")
        for _ in range(50):
            stack, = sandbox.stacks()
            assert stack.why is None
            assert [frame.function for frame in stack.threads[0].python] == ["<module>", "calls", "spin"]


def test_a_function_that_was_called_inside() -> None:
    def in_the_fork() -> None:
        os.read(os.pipe()[0], 1)

    with Sandbox() as sandbox:
        child = sandbox.fork()
        if child is None:
            try:
                in_the_fork()
            finally:
                os._exit(0)
        stack, = settled(sandbox)
        function, line = lines(stack)[-1]
        assert function == "in_the_fork"
        assert line == in_the_fork.__code__.co_firstlineno + 1
        assert stack.threads[0].task.waits_for == "data from a pipe"
        child.kill()
        child.wait()


def test_a_command_that_masks_and_ignores_every_signal() -> None:
    code = """
import signal
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
signal.pthread_sigmask(signal.SIG_SETMASK, range(1, 65))
def deaf():
    signal.pause()
deaf()
"""
    with Sandbox() as sandbox, started(sandbox, [sys.executable, "-c", code]):
        until(lambda: "in deaf" in "".join(map(str, sandbox.stacks())), "it has come to deaf()")
        assert sandbox.stacks()[0].threads[0].task.waits_for == "a signal"


def test_other_programs_are_seen_as_the_kernel_sees_them() -> None:
    with Sandbox() as sandbox, started(sandbox, ["sh", "-c", "sleep 1000; true"]):
        shell, sleep = settled(sandbox, 2)
        assert shell.threads[0].task.waits_for == "a child process"
        assert (sleep.name, sleep.args) == ("sleep", ("sleep", "1000"))
        assert sleep.ppid == shell.pid
        task = sleep.threads[0].task
        assert (task.syscall, task.waits_for, task.timed) == ("clock_nanosleep", "time to pass", True)
        assert bool(task.kernel) == (os.getuid() == 0)  # the kernel shows its stacks to root alone
        text = str(sleep)
        assert text.startswith(f"process {sleep.pid}: sleep 1000\n  thread {sleep.pid} (sleep) waits for time to pass")


def test_stacks_disturb_nobody() -> None:
    code = """
import sys, time
try:
    time.sleep(0.3)
except BaseException as error:
    print(repr(error))
print("woke up", file=sys.stderr)
"""
    with Sandbox() as sandbox, sandbox.popen([sys.executable, "-c", code]) as process:
        for _ in range(100):
            sandbox.stacks()
        out, err, _ = process.communicate()
        assert (out, err, process.returncode) == ("", "woke up\n", 0)


def test_what_is_not_python_is_told_apart() -> None:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with Sandbox() as sandbox, started(sandbox, ["cat"], stdin=subprocess.PIPE) as process:
            inner = os.open("proc", os.O_RDONLY | os.O_DIRECTORY, dir_fd=sandbox._root_fd)
            until(lambda: sandbox.stacks()[0].name == "cat", "cat runs")
            with pytest.raises(NotPython):
                python_threads(inner, process.pid)
            os.close(inner)
        with pytest.raises(Unreadable, match="memory"):
            python_threads(proc, 1 << 30)
    finally:
        os.close(proc)


@pytest.mark.parametrize("lie", ["pointers", "cookie"])
def test_a_process_that_lies_is_one_line(lie: str) -> None:
    """Another one writes over its interpreter: the reader says so, and neither loops nor grows."""
    code = f"""
import ctypes, os, signal
libc = ctypes.PyDLL(None)
address = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    os.write(writing, b"1")
    libc.pause()
os.read(reading, 1)
while open(f"/proc/{{child}}/stat").read().split()[2] != "S":
    pass
table = (ctypes.c_uint64 * 250)(*[address] * 250)
if {lie == "cookie"}:
    table[0], table[1], table[2] = int.from_bytes(b"xdebugpy", "little"), 0x030D00F0, 0
memory = os.open(f"/proc/{{child}}/mem", os.O_WRONLY)
os.pwrite(memory, table, address)
print("ready", flush=True)
signal.pause()
"""
    with Sandbox() as sandbox, started(sandbox, [sys.executable, "-c", code]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        parent, child = sandbox.stacks()
        assert parent.why is None
        assert child.why is not None
        assert "its Python stack cannot be read: " in str(child)
        assert len(str(child)) < 1000


def test_a_proc_of_the_sandboxs_own_making_is_no_trap() -> None:
    """Who has the capability can mount something else there: a FIFO must not hold the reader."""
    script = ("mount -t tmpfs none /proc && mkdir -p /proc/2/task/2 /proc/2/fd && cd /proc/2 && "
              "mkfifo maps mem cmdline task/2/stat task/2/syscall && echo '2 (x) S 1 2' > stat && echo done")
    with Sandbox(user="root", capabilities=["SYS_ADMIN"]) as sandbox:
        if sandbox.run(["sh", "-c", script]).stdout != "done\n":
            pytest.skip("nothing can be mounted over /proc in there")
        stack, = sandbox.stacks()
        assert stack.threads == ()
        assert stack.why is not None or stack.name == "x"


def test_a_crowd_is_bounded() -> None:
    with Sandbox() as sandbox, started(sandbox, ["sh", "-c", "for i in $(seq 300); do sleep 1000 & done; wait"]):
        until(lambda: len(sandbox.processes()) == 301, "all run", 60)
        found = sandbox.stacks()
        assert len(found) == 301
        assert sum(one.why is not None for one in found) == 101
