"""The memory limit: what reaches it ends with its sandbox, wherever inside it is, and nothing else is touched."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import cgroups_of, init_pid, needs, prints, until

from pytest_sandbox import MemoryLimitExceeded, Sandbox, SandboxCallError, SandboxClosedError, SandboxUsageError

pytestmark = needs("memory")

#: A loop that takes a GiB, a MiB at a time.
HOG = textwrap.dedent("""
    kept = []
    for number in range(1024):
        kept.append(bytearray(b"x" * (1 << 20)))
    print("it got a GiB")
""")
#: A process that starts itself so many times, the last one a hog, and waits for what it has started.
DEEP = textwrap.dedent("""
    import subprocess, sys, time
    code, levels = sys.argv[1], int(sys.argv[2])
    if levels:
        subprocess.run([sys.executable, "-c", code, code, str(levels - 1)])
        time.sleep(1000)  # whoever would go on without the hog is ended, too
""") + HOG


def deep(levels: int) -> list[str]:
    return [sys.executable, "-c", DEEP, DEEP, str(levels)]


def allocate(size: int) -> list[str]:
    return [sys.executable, "-c", f"kept = bytearray(b'x' * {size}); print(len(kept))"]


def test_a_hog_ends_with_its_sandbox_and_the_result_says_so() -> None:
    with Sandbox(memory="64M") as bystander, Sandbox(memory="64M") as sandbox:
        waiting = bystander.popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        done = sandbox.run([sys.executable, "-c", HOG])
        assert done.oom_killed
        assert (done.returncode, done.signal) == (-signal.SIGKILL, signal.SIGKILL)
        assert "GiB" not in done.stdout
        assert done.usage.memory_peak is not None
        assert 60 << 20 <= done.usage.memory_peak <= 64 << 20
        assert not sandbox._ready().alive
        # Nobody else was touched: not the sandbox beside it, and not this process.
        assert waiting.poll() is None
        waiting.kill()
        waiting.wait()
        assert bystander.run(["true"], check=True).oom_killed is False
        assert bystander.limit_events().oom_kills == 0


def test_what_fits_is_not_disturbed() -> None:
    with Sandbox(memory="64M") as sandbox:
        done = sandbox.run(allocate(20 << 20), check=True)
        assert (done.stdout, done.oom_killed) == (f"{20 << 20}\n", False)
        assert sandbox.limit_error() is None
        assert sandbox.run(["true"]).returncode == 0


@pytest.mark.parametrize("levels", [1, 3])
def test_a_hog_below_other_processes_ends_them_all(levels: int) -> None:
    with Sandbox(memory="64M") as sandbox:
        done = sandbox.run(deep(levels), timeout=500)
        assert done.oom_killed
        assert not done.timed_out
        assert sandbox.limit_events().oom_kills


def test_a_daemon_ends_the_sandbox_too() -> None:
    with Sandbox(memory="64M") as sandbox:
        waiting = sandbox.popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        sandbox.run(["sh", "-c", f"setsid {sys.executable} -c '{HOG}' >/dev/null 2>&1 &"], check=False)
        assert waiting.wait(60) == -signal.SIGKILL
        error = sandbox.limit_error()
        assert error is not None
        with pytest.raises(SandboxClosedError, match="memory limit of 64 MiB") as caught:
            sandbox.run(["true"])
        assert isinstance(caught.value.__cause__, MemoryLimitExceeded)


def log_can_be_read() -> bool:
    """Whether the kernel's log is open to us: its mode alone does not say so (kernel.dmesg_restrict)."""
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def error_of_a_hog() -> MemoryLimitExceeded:
    with Sandbox(memory="64M") as sandbox, pytest.raises(MemoryLimitExceeded) as caught:
        sandbox.run([sys.executable, "-c", HOG], check=True)
    return caught.value


def test_the_error_has_the_facts() -> None:
    error = error_of_a_hog()
    if error.victim is None and log_can_be_read():
        time.sleep(5)  # the kernel's log has ten such ends in five seconds, and is silent about the others
        error = error_of_a_hog()
    assert isinstance(error, MemoryError)
    assert (error.option, error.limit) == ("memory", 64 << 20)
    assert error.kills  # one, or on cgroup v2 all that were in the group
    assert error.peak is not None
    assert 60 << 20 <= error.peak <= 64 << 20
    assert "memory limit of 64 MiB" in str(error)
    if log_can_be_read():
        assert error.victim is not None
        assert error.victim in str(error)
        assert error.victim.startswith("python")
    assert vars(pickle.loads(pickle.dumps(error))) == vars(error)


def test_reset_starts_afresh() -> None:
    with Sandbox(memory="64M") as sandbox:
        assert sandbox.run([sys.executable, "-c", HOG]).oom_killed
        sandbox.reset()
        assert sandbox.limit_error() is None
        assert sandbox.run(["echo", "alive"], check=True).stdout == "alive\n"
        assert sandbox.limit_events().oom_kills == 0


def test_a_forked_caller_is_limited_as_a_command_is() -> None:
    with Sandbox(memory="64M") as sandbox:
        with pytest.raises((SandboxCallError, SandboxClosedError, MemoryLimitExceeded)):
            sandbox.call(lambda: len([bytearray(b"x" * (1 << 20)) for _ in range(1024)]))
        assert isinstance(sandbox.limit_error(), MemoryLimitExceeded)


def test_files_of_the_writable_layer_are_memory(tmp_path: Path) -> None:
    """By itself the layer is half of the limit, so that a full disk is ENOSPC and no kill."""
    with Sandbox(memory="64M") as sandbox:
        done = sandbox.run(["head", "-c", "100M", "/dev/zero"], text=False, output_limit=1)
        full = sandbox.run(["sh", "-c", "head -c 100M /dev/zero >/var/tmp/large"])
        assert not full.oom_killed
        assert "No space left on device" in full.stderr
        assert sandbox.limit_events().disk_full == "blocks"
        assert done.truncated
    with Sandbox(memory="64M", disk="1G") as sandbox:
        assert sandbox.run(["sh", "-c", "head -c 100M /dev/zero >/var/tmp/large"]).oom_killed


def test_ten_in_a_row_leave_no_cgroup() -> None:
    seen = set()
    for _ in range(10):
        with Sandbox(memory="64M") as sandbox:
            seen |= set(cgroups_of(sandbox))
            assert all(os.path.isdir(one) for one in seen & set(cgroups_of(sandbox)))
            assert sandbox.run([sys.executable, "-c", HOG]).oom_killed
    assert len(seen) >= 10
    until(lambda: not any(os.path.exists(one) for one in seen), "every cgroup is gone")


def test_swap_without_memory_is_refused() -> None:
    with pytest.raises(SandboxUsageError, match="swap cannot be used without memory"):
        Sandbox(swap="64M").start()


def test_the_limit_cannot_be_seen_or_lifted_from_inside() -> None:
    """Whoever mounts the cgroup file system inside sees a cgroup namespace whose root is below the limit."""
    attempt = textwrap.dedent("""
        set -u
        mkdir -p /tmp/c && cd /tmp
        for kind in memory pids; do
            mount -t cgroup -o $kind none /tmp/c 2>/dev/null || continue
            for file in memory.limit_in_bytes pids.max; do
                [ -e c/$file ] && cat c/$file && echo 3000000000 >c/$file
            done
            echo mounted
            umount c
        done
        if mount -t cgroup2 none c 2>/dev/null; then
            for file in memory.max pids.max; do [ -e c/$file ] && cat c/$file && echo max >c/$file; done
            echo mounted
        fi
        true
    """)
    with Sandbox(memory="64M", pids=100, user="root",
                 capabilities=["SYS_ADMIN", "DAC_OVERRIDE", "CHOWN", "SETUID", "SETGID"]) as sandbox:
        before = [_limits(path) for path in cgroups_of(sandbox)]
        done = sandbox.run(["sh", "-c", attempt])
        assert "mounted" in done.stdout
        assert str(64 << 20) not in done.stdout
        assert "101" not in done.stdout
        assert [_limits(path) for path in cgroups_of(sandbox)] == before
        assert sandbox.run([sys.executable, "-c", HOG]).oom_killed


def _limits(path: str) -> dict[str, str]:
    return {name: Path(path, name).read_text() for name in ("memory.limit_in_bytes", "pids.max", "memory.max")
            if Path(path, name).exists()}


def test_a_kill_by_somebody_else_is_not_taken_for_the_limits() -> None:
    with Sandbox(memory="64M") as sandbox:
        process = sandbox.popen(["sleep", "1000"])
        os.kill(init_pid(sandbox), signal.SIGKILL)
        with process, pytest.raises(SandboxClosedError) as caught:
            process.wait(10)
        assert not isinstance(caught.value.__cause__, MemoryLimitExceeded)
        assert sandbox.limit_error() is None


def test_a_program_sees_it_without_pytest() -> None:
    assert prints(f"""
import sys
from pytest_sandbox import Sandbox
with Sandbox(memory="64M") as sandbox:
    print(sandbox.run([sys.executable, "-c", {HOG!r}]).oom_killed)
""") == ["True"]
