"""Limits that a test meets and survives: processes and threads, bytes and files of the writable layer."""

from __future__ import annotations

import os
import signal
import sys
import textwrap

import pytest
from support import IS_ROOT, abort_unless_apart, needs

from pytest_sandbox import Sandbox, SandboxError

#: Forks until it cannot, prints how far it came, and leaves all of them sleeping.
BOMB = textwrap.dedent("""
    import os, signal
    count = 0
    try:
        while count < 100000:
            if os.fork() == 0:
                os.closerange(0, 100)
                signal.pause()
            count += 1
    except BlockingIOError:
        pass
    print(count)
""")

#: Each process forks as fast as it can, for ever.
STORM = "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"

THREADS = textwrap.dedent("""
    import threading
    go, count = threading.Event(), 0
    try:
        while count < 100000:
            threading.Thread(target=go.wait, daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    print(count)
    go.set()
""")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("code", [BOMB, THREADS], ids=["processes", "threads"])
def test_exactly_so_many_tasks(code: str) -> None:
    with Sandbox(pids=32) as sandbox:
        done = sandbox.run(python(code), check=True)
        assert int(done.stdout) == 31  # and the process that counts
        sandbox.kill()
        assert sandbox.run(python(code), check=True).stdout == "31\n"


def test_a_forked_caller_counts_in_the_same_way() -> None:
    with Sandbox(pids=32) as sandbox:
        abort_unless_apart(sandbox)
        assert sandbox.call(_fork_all) == 31


def _fork_all() -> int:
    count = 0
    try:
        while count < 100_000:
            if os.fork() == 0:
                os.closerange(0, os.sysconf("SC_OPEN_MAX"))
                signal.pause()
            count += 1
    except BlockingIOError:
        pass
    return count


def test_a_fork_bomb_can_be_met_and_survived() -> None:
    with Sandbox(pids=32) as sandbox, Sandbox(pids=32) as bystander:
        abort_unless_apart(sandbox)
        bomb = sandbox.popen(python(STORM), stdout=-3, stderr=-3)
        assert bystander.run(["echo", "undisturbed"], check=True).stdout == "undisturbed\n"
        assert not bystander.limit_events().pids_refused
        assert len(sandbox.processes()) <= 32
        sandbox.kill()
        assert bomb.wait(30) == -signal.SIGKILL
        assert sandbox.processes() == []
        assert sandbox.run(["echo", "alive"], check=True).stdout == "alive\n"


@needs("pids")
def test_refused_forks_are_counted() -> None:
    with Sandbox(pids=32) as sandbox:
        assert sandbox.limit_events().pids_refused == 0
        sandbox.run(python(BOMB), check=True)
        assert sandbox.limit_events().pids_refused == 1
        assert sandbox.usage().pids_peak == 32
        assert sandbox.usage().pids == 31


def test_there_is_a_limit_by_default() -> None:
    """Where this host can enforce it, that is. Told by the kernel's own tables: to reach it would be slow."""
    with Sandbox() as sandbox:
        if sandbox._ready().group is not None:
            path = sandbox._ready().group.paths  # type: ignore[union-attr]
            with open(f"{path.get('pids', path.get('unified'))}/pids.max") as file:
                assert file.read() == "4097\n"  # the sandbox's init is one of them
        elif not IS_ROOT:
            limit = sandbox.run(python("import resource; print(resource.getrlimit(resource.RLIMIT_NPROC)[0])")).stdout
            assert 0 < int(limit) <= 4097


def fill(size: int) -> list[str]:
    return ["sh", "-c", f"head -c {size} /dev/zero >/var/tmp/large; stat -c %s /var/tmp/large"]


def test_a_full_disk() -> None:
    with Sandbox(disk="8M") as sandbox, Sandbox(disk="8M") as bystander:
        done = sandbox.run(fill(20 << 20))
        assert "No space left on device" in done.stderr
        assert 7 << 20 <= int(done.stdout) <= 8 << 20
        assert sandbox.limit_events().disk_full == "blocks"
        assert sandbox.usage().disk == 8 << 20
        assert bystander.limit_events().disk_full is None
        assert sandbox.run(["rm", "/var/tmp/large"]).returncode == 0
        assert sandbox.limit_events().disk_full is None
        assert bystander.run(fill(1 << 20), check=True).stdout == f"{1 << 20}\n"
    assert not os.path.exists("/var/tmp/large")


def test_too_many_files() -> None:
    with Sandbox(disk="8M") as sandbox:
        done = sandbox.run(["sh", "-c", "mkdir /var/tmp/many; cd /var/tmp/many; i=0; "
                            "while true >$i; do i=$((i+1)); done 2>/dev/null; ls -U | wc -l"])
        made = int(done.stdout)
        assert 1500 < made < 2048  # a file for each 4 KiB, some of them the sandbox's own
        assert sandbox.limit_events().disk_full == "inodes"
        assert sandbox.usage().disk < 8 << 20  # type: ignore[operator]


def test_the_disk_grows_and_shrinks() -> None:
    with Sandbox(disk="8M") as sandbox:
        sandbox.update(disk="32M")
        assert sandbox.spec.disk == 32 << 20
        assert sandbox.run(fill(20 << 20), check=True).stdout == f"{20 << 20}\n"
        with pytest.raises(SandboxError, match="disk=4194304 could not be set: the writable layer holds more"):
            sandbox.update(disk="4M")
        assert sandbox.spec.disk == 32 << 20
        sandbox.run(["rm", "/var/tmp/large"], check=True)
        sandbox.update(disk="4M")
        assert sandbox.run(fill(20 << 20)).stdout == f"{4 << 20}\n"


def test_shared_memory_is_limited_as_the_disk_is() -> None:
    with Sandbox(disk="8M") as sandbox:
        done = sandbox.run(["sh", "-c", "head -c 20M /dev/zero >/dev/shm/large; stat -c %s /dev/shm/large"])
        assert int(done.stdout) <= 8 << 20
