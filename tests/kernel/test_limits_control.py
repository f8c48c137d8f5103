"""Limits that change while a sandbox runs, freezing and killing: all of it reaches every descendant."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import cgroups_of, needs, prints, until

from pytest_sandbox import (
    MemoryLimitExceeded,
    Sandbox,
    SandboxClosedError,
    SandboxError,
    SandboxUnavailable,
    SandboxUsageError,
)
from pytest_sandbox.runtime import hierarchies
from pytest_sandbox.runtime.cgroups import host_control

QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

#: Leaves so many daemons behind: in sessions of their own, with no parent left, deaf to every signal.
DAEMONS = textwrap.dedent("""
    import os, signal, sys
    os.closerange(3, 100)
    for _ in range(int(sys.argv[1])):
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            for number in range(1, 32):
                if number not in (signal.SIGKILL, signal.SIGSTOP):
                    signal.signal(number, signal.SIG_IGN)
            os.closerange(0, 3)
            while True:
                signal.pause()
        os.wait()
""")


def allocate(size: int) -> list[str]:
    return [sys.executable, "-c", f"kept = bytearray(b'x' * {size}); print(len(kept))"]


@needs("memory")
def test_memory_grows_and_shrinks() -> None:
    with Sandbox(memory="64M") as sandbox:
        sandbox.update(memory="256M")
        assert sandbox.spec.memory == 256 << 20
        assert sandbox.run(allocate(70 << 20), check=True).stdout == f"{70 << 20}\n"
        sandbox.update(memory="48M")
        assert sandbox.run(allocate(70 << 20)).oom_killed
        error = sandbox.limit_error()
        assert error is not None
        assert error.limit == 48 << 20


@needs("memory")
def test_memory_does_not_shrink_below_what_is_in_use() -> None:
    with Sandbox(memory="256M") as sandbox:
        code = "kept = bytearray(b'x' * (100 << 20)); print('ready', flush=True); input()"
        with sandbox.popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(SandboxError, match=r"the limit memory=\d+ could not be set: it uses more than that"):
                sandbox.update(memory="50M")
            assert process.poll() is None
            assert sandbox.spec.memory == 256 << 20
            process.kill()


@needs("memory")
def test_a_limit_that_comes_later_holds_as_one_from_the_start() -> None:
    with Sandbox() as sandbox:
        sandbox.update(memory="64M")
        with pytest.raises(MemoryLimitExceeded):
            sandbox.run(allocate(1 << 30), check=True)
        assert not sandbox._ready().alive


@needs("pids")
def test_pids_shrink_and_grow() -> None:
    count = ["sh", "-c", "i=0; while [ $i -lt 30 ]; do sleep 1000 >/dev/null 2>&1 & i=$((i+1)); done; echo all"]
    with Sandbox(pids=64) as sandbox:
        assert sandbox.run(count).stdout == "all\n"
        sandbox.kill()
        sandbox.update(pids=8)
        assert "all" not in sandbox.run(count).stdout
        sandbox.kill()
        sandbox.update(pids=64)
        assert sandbox.run(count).stdout == "all\n"


@needs("cpus")
def test_the_kernel_is_told_of_cpu_limits() -> None:
    with Sandbox(cpus=0.5, cpu_weight=300) as sandbox:
        def told() -> tuple[str, ...]:
            found = []
            for path in cgroups_of(sandbox):
                for name in ("cpu.cfs_quota_us", "cpu.shares", "cpu.max", "cpu.weight"):
                    if Path(path, name).exists():
                        found.append(Path(path, name).read_text().split()[0])
            return tuple(found)

        assert told() in (("50000", "3072"), ("50000", "300"))
        sandbox.update(cpus=2, cpu_weight=100)
        assert told() in (("200000", "1024"), ("200000", "100"))
        sandbox.update(cpus=None)
        assert told()[0] in ("-1", "max")


def test_what_is_no_limit_cannot_be_updated() -> None:
    with Sandbox() as sandbox:
        with pytest.raises(SandboxUsageError, match="'hostname' cannot be changed while a sandbox runs"):
            sandbox.update(hostname="other")
        with pytest.raises(SandboxUsageError, match=r"did you mean 'memory'\? Allowed: "):
            sandbox.update(memroy="1G")
        with pytest.raises(SandboxUsageError, match="memory='much' cannot be used"):
            sandbox.update(memory="much")


@needs("cpus")
def test_a_controller_that_the_sandbox_is_not_in_is_named() -> None:
    if host_control().version != 1:
        pytest.skip("on cgroup v2 a sandbox is in every controller")
    if host_control().key("cpu") == host_control().key("cpuacct"):
        pytest.skip("here a sandbox is in the controller cpu because it is in cpuacct: they are mounted together")
    with Sandbox() as sandbox:
        with pytest.raises(SandboxUnavailable, match="cannot get the limit cpus") as caught:
            sandbox.update(cpus=0.5)
        assert caught.value.feature == "cpu-limit"
        sandbox.update(cpus=None, io=None)  # which it has not


@needs("freeze")
def test_freezing_stops_the_cpu_time_exactly() -> None:
    with Sandbox() as sandbox:
        spinners = [sandbox.popen(["sh", "-c", "while :; do :; done"], **QUIET) for _ in range(3)]  # type: ignore[arg-type]
        sandbox.run(["sh", "-c", "setsid sh -c 'while :; do :; done' >/dev/null 2>&1 &"])
        until(lambda: (sandbox.usage().cpu_seconds or 0) > 0.2, "they have used CPU time")
        sandbox.freeze()
        before = sandbox.usage().cpu_seconds
        time.sleep(0.3)
        assert sandbox.usage().cpu_seconds == before
        sandbox.thaw()
        until(lambda: (sandbox.usage().cpu_seconds or 0) > (before or 0) + 0.2, "they go on")
        sandbox.thaw()  # a second time changes nothing
        sandbox.freeze()
        sandbox.kill()  # also what is frozen
        assert [one.wait(30) for one in spinners] == [-signal.SIGKILL] * 3
        assert sandbox.processes() == []
        assert sandbox.run(["echo", "alive"], check=True).stdout == "alive\n"


@needs("freeze")
def test_a_frozen_forking_crowd_stands_still() -> None:
    with Sandbox(pids=60) as sandbox:
        storm = "import os\nwhile True:\n try:\n  if os.fork() and os.getpid() % 3: os._exit(0)\n except OSError: 0\n"
        process = sandbox.popen([sys.executable, "-c", storm], **QUIET)  # type: ignore[arg-type]
        until(lambda: (sandbox.usage().pids or 0) > 20, "there are many")
        sandbox.freeze()
        group = sandbox._ready().group
        assert group is not None
        before = sorted(group.pids()), sandbox.usage().cpu_seconds
        time.sleep(0.1)
        assert (sorted(group.pids()), sandbox.usage().cpu_seconds) == before
        sandbox.kill()
        process.wait(30)


@needs("freeze")
def test_a_frozen_sandbox_can_be_closed() -> None:
    sandbox = Sandbox().start()
    process = sandbox.popen(["sleep", "1000"], **QUIET)  # type: ignore[arg-type]
    sandbox.freeze()
    paths = cgroups_of(sandbox)
    sandbox.close()
    with pytest.raises(SandboxClosedError):
        process.wait(30)
    until(lambda: not any(os.path.exists(one) for one in paths), "its cgroups are gone")


@needs("freeze")
@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_frozen_sandbox_does_not_outlive_its_caller(end: str) -> None:
    """The leak check looks for its processes and cgroups."""
    code = f"""
import os
from pytest_sandbox import Sandbox
sandbox = Sandbox().start()
sandbox.popen(["sleep", "1000"])
sandbox.freeze()
print(sandbox._ready().group.name, flush=True)
{end}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout, done.stderr


def test_a_thousand_daemons_end_at_once() -> None:
    with Sandbox() as sandbox:
        sandbox.run([sys.executable, "-c", DAEMONS, "1000"], check=True)
        assert len(sandbox.processes()) == 1000
        sandbox.kill()
        assert sandbox.processes() == []
        group = sandbox._ready().group
        if group is not None:
            assert len(group.pids()) == 1  # its init
            assert sandbox.usage().pids == 0


def test_no_freezing_without_a_cgroup() -> None:
    with Sandbox() as sandbox:
        if sandbox._ready().group is not None:
            pytest.skip("this host gives each sandbox a cgroup")
        with pytest.raises(SandboxUnavailable, match="cannot freeze a sandbox") as caught:
            sandbox.freeze()
        assert caught.value.feature == "freeze"
        sandbox.thaw()


@pytest.mark.parametrize("option", ["memory", "cpus", "cpu_weight", "io_weight", "io"])
def test_a_limit_that_cannot_be_enforced_is_refused(option: str) -> None:
    ability = host_control().abilities()[option]
    if ability.ok:
        pytest.skip(f"this host can: {ability.how}")
    with pytest.raises(SandboxUnavailable, match=f"option {option}") as caught:
        Sandbox(**{option: 64 << 20 if option == "memory" else 1}).start()
    assert caught.value.why
    assert caught.value.remedy


@needs("pids")
def test_what_a_killed_run_leaves_is_swept_by_the_next() -> None:
    """The helper removes what its caller made. Here it is killed first, so that only the next run can."""
    code = """
import os, signal
from pytest_sandbox import Sandbox
from pytest_sandbox.runtime import launch
from pytest_sandbox.runtime.cgroups import host_control
sandbox = Sandbox().start()
pidfd = launch.supervisor().pidfd
with open(f"/proc/self/fdinfo/{pidfd}") as file:
    helper = int(next(line.split()[1] for line in file if line.startswith("Pid:")))
print(*host_control().run.places.values(), flush=True)
os.kill(helper, signal.SIGKILL)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    left = done.stdout.split()
    assert left, done.stderr
    assert any(os.path.exists(one) for one in left)
    alive = list(host_control().run.places.values())
    for base in {os.path.dirname(one) for one in left}:
        until(lambda base=base: hierarchies.sweep(base) or not any(  # type: ignore[misc]
            os.path.exists(one) for one in left if os.path.dirname(one) == base), "the dead run is swept")
    assert not any(os.path.exists(one) for one in left)
    assert all(os.path.exists(one) for one in alive)  # a run that lives is left alone


def test_many_callers_at_once_do_not_sweep_each_other() -> None:
    code = """
from pytest_sandbox import Sandbox
for _ in range(3):
    with Sandbox() as sandbox:
        print(sandbox.run(["echo", "alive"]).stdout.strip())
"""
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}) for _ in range(4)]
    for one in running:
        out, err = one.communicate(timeout=120)
        assert out.split() == ["alive"] * 3, err


def test_a_fork_of_the_caller_has_sandboxes_of_its_own() -> None:
    assert prints("""
import os
from pytest_sandbox import Sandbox
from pytest_sandbox.runtime.cgroups import host_control
with Sandbox() as sandbox:
    child = os.fork()
    if child == 0:
        with Sandbox() as other:
            print(other.run(["echo", "inner"]).stdout.strip(), flush=True)
        from pytest_sandbox.sandbox import shutdown
        shutdown()
        os._exit(0)
    os.waitpid(child, 0)
    print(sandbox.run(["echo", "outer"]).stdout.strip())
""") == ["inner", "outer"]
