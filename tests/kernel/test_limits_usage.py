"""What was used, against what somebody else counts: nothing is missed, however early it ended or far it ran."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from dataclasses import fields

from support import needs

from pytest_sandbox import Sandbox, Usage

#: Burns so many seconds of CPU time, as its own clock of that has it.
BURN = textwrap.dedent("""
    import sys, time
    until = float(sys.argv[1])
    while time.process_time() < until:
        pass
""")

#: Runs a command and prints the kernel's account of it and of itself: all CPU time, and that in user mode.
COUNTED = textwrap.dedent("""
    import resource, subprocess, sys
    subprocess.run(sys.argv[1:], check=True)
    used = [resource.getrusage(one) for one in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(sum(one.ru_utime + one.ru_stime for one in used), sum(one.ru_utime for one in used))
""")

#: Burns in children that end at once: waited for, in grandchildren that nobody waits for, in an ignored SIGCHLD's.
BURN_IN_OTHERS = textwrap.dedent("""
    import os, signal, sys, time
    def burn():
        while time.process_time() < float(sys.argv[2]):
            pass
    if os.fork() == 0:
        burn()
        os._exit(0)
    os.wait()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            burn()
            os._exit(0)
        os._exit(0)
    os.wait()
    if sys.argv[1] == "ignored":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        if os.fork() == 0:
            burn()
            os._exit(0)
    time.sleep(1)
""")


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def near(measured: float | None, counted: float, share: float) -> bool:
    return measured is not None and abs(measured - counted) <= share * counted


def test_cpu_time_is_what_the_kernel_counts_for_those_that_wait() -> None:
    with Sandbox() as sandbox:
        idle, done = (sandbox.run(python(COUNTED, *python(BURN, seconds)), check=True) for seconds in ("0", "1.0"))
        counted, user = (float(one) for one in done.stdout.split())
        around = (idle.usage.cpu_seconds or 0) - float(idle.stdout.split()[0])  # init's work, and the last one's end
        assert near((done.usage.cpu_seconds or 0) - around, counted, 0.05), (done.usage, counted)
        assert done.usage.user_seconds is not None
        assert done.usage.system_seconds is not None
        assert near(done.usage.user_seconds + done.usage.system_seconds, done.usage.cpu_seconds or 0, 0.01)
        assert abs(done.usage.user_seconds - user) < 0.25 * counted  # sampled at clock ticks on cgroup v1
        before = sandbox.usage()
        assert (before.cpu_seconds or 0) >= counted
        sandbox.run(python(BURN, "0.3"), check=True)
        assert (sandbox.usage().cpu_seconds or 0) - (before.cpu_seconds or 0) >= 0.3


def test_descendants_that_ended_early_are_counted() -> None:
    with Sandbox() as sandbox:
        idle, busy = (sandbox.run(python(BURN_IN_OTHERS, "waited", burnt), check=True) and sandbox.usage().cpu_seconds
                      for burnt in ("0", "0.3"))
        assert idle is not None
        assert busy is not None
        assert 0.55 <= busy - idle <= 0.75 + idle


@needs("accounting")
def test_even_those_that_nobody_is_told_of() -> None:
    with Sandbox() as sandbox:
        done = sandbox.run(python(BURN_IN_OTHERS, "ignored", "0.2"), check=True)
        assert (done.usage.cpu_seconds or 0) >= 0.6


def test_a_fork_of_the_caller_is_counted() -> None:
    def burn() -> None:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass

    with Sandbox() as sandbox:
        sandbox.call(burn)
        assert (sandbox.usage().cpu_seconds or 0) >= 0.3


@needs("memory")
def test_the_memory_peak_is_a_counted_allocation() -> None:
    code = "import sys\nkept = b'x' * (int(sys.argv[1]) << 20)\n"
    with Sandbox() as sandbox:
        sandbox.run(python(code, "1"), check=True)  # what all of them share is in memory now
        small, large, again = (sandbox.run(python(code, size), check=True).usage.memory_peak for size in
                               ("20", "120", "20"))
        assert small is not None
        assert large is not None
        assert again is not None
        assert abs((large - small) - (100 << 20)) <= 2 << 20
        assert abs(again - small) <= 2 << 20  # the peak is that of each command
        total = sandbox.usage().memory_peak
        assert total is not None
        assert abs(total - large) <= 2 << 20  # and the sandbox's is the highest of them


@needs("memory")
def test_the_writable_layer_is_memory_and_disk() -> None:
    with Sandbox() as sandbox:
        before = sandbox.usage()
        sandbox.run(["sh", "-c", "head -c 50M /dev/zero >/var/tmp/large"], check=True)
        after = sandbox.usage()
        assert (after.disk or 0) - (before.disk or 0) == 50 << 20
        assert abs((after.memory or 0) - (before.memory or 0) - (50 << 20)) <= 2 << 20


@needs("accounting")
def test_two_commands_at_once_do_not_hide_each_others_peaks() -> None:
    with Sandbox() as sandbox, sandbox.popen(["sleep", "1000"], stdout=-3, stderr=-3) as other:
        done = sandbox.run(["sh", "-c", "sleep 0.1 & sleep 0.1 & wait"], check=True)
        assert done.usage.pids_peak == 4
        assert sandbox.run(["true"]).usage.pids_peak is None  # an earlier one was higher: not known
        assert sandbox.usage().pids_peak == 4
        assert sandbox.usage().pids == 1
        other.kill()


def test_the_clock_and_what_is_not_known() -> None:
    with Sandbox() as sandbox:
        done = sandbox.run(["sleep", "0.3"], check=True)
        assert done.usage.wall_seconds is not None
        assert 0.3 <= done.usage.wall_seconds <= (sandbox.usage().wall_seconds or 0)
        for one in fields(Usage):
            value = getattr(sandbox.usage(), one.name)
            assert value is None or value >= 0
        if sandbox._ready().group is None:
            assert sandbox.usage().memory is None
            assert sandbox.usage().memory_peak is None
            assert sandbox.usage().pids_peak is None


def test_usage_survives_the_end() -> None:
    """A sandbox that has ended by itself, or by a limit, still tells what it used."""
    with Sandbox() as sandbox:
        sandbox.run(python(BURN, "0.2"), check=True)
        if sandbox._ready().group is not None:
            os.kill(_init(sandbox), 9)
            assert (sandbox.usage().cpu_seconds or 0) >= 0.2


def _init(sandbox: Sandbox) -> int:
    return sandbox._ready().init_pid()
