"""The leak check itself: a check that never accuses proves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import leaks
import pytest

TESTS = Path(leaks.__file__).parent


@pytest.fixture
def lifeline() -> Iterator[tuple[int, int]]:
    """A pipe: processes of a test read from it and end when the writing end closes, at the latest after the test."""
    read, write = os.pipe()
    os.set_inheritable(read, True)
    yield read, write
    for one in (read, write):
        try:
            os.close(one)
        except OSError:
            pass


def the_only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def test_a_test_that_leaves_nothing_is_not_accused() -> None:
    before = leaks.look()
    subprocess.run(["true"], check=True)
    with tempfile.NamedTemporaryFile(prefix="pytest-sandbox-"):
        pass
    assert leaks.leaks_since(before) == []


def test_a_running_child(lifeline: tuple[int, int]) -> None:
    before = leaks.look()
    with subprocess.Popen(["cat"], stdin=lifeline[0], stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdout is not None
        os.write(lifeline[1], b"x")
        assert child.stdout.read(1) == b"x"  # it is cat by now, and called so
        before.descriptors |= dict(leaks._descriptors())
        assert f"processes: {child.pid} (cat" in the_only(leaks.leaks_since(before, patience=0))
        child.kill()
    assert leaks.leaks_since(before) == []


def test_a_process_that_is_ending_gets_a_moment() -> None:
    before = leaks.look()
    # An orphan is nobody's to wait for, so only the check itself can notice its end.
    program = "import os, time\nif os.fork() == 0: os.close(1); time.sleep(1)"
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    assert "processes: " in the_only(leaks.leaks_since(before, patience=0))
    assert leaks.leaks_since(before, patience=60) == []


def test_a_child_that_nobody_reaped() -> None:
    before = leaks.look()
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert f"processes: {child.pid} (true, state Z" in the_only(leaks.leaks_since(before))
    child.wait()
    assert leaks.leaks_since(before) == []


def orphan_that_reads(read: int, write: int, ready: int, clean: bool) -> None:
    """Forks twice; the grandchild belongs to pid 1 (or a subreaper), has no environment of ours if ``clean``."""
    child = os.fork()
    if child == 0:
        if os.fork() == 0:
            os.close(write)
            os.setsid()
            if clean:
                for name in list(os.environ):
                    del os.environ[name]
            os.write(ready, b"x")
            os.read(read, 1)
        os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_an_orphan_that_was_forked_is_known_by_its_stack(lifeline: tuple[int, int]) -> None:
    before = leaks.look()
    told, tell = os.pipe()
    orphan_that_reads(*lifeline, ready=tell, clean=True)
    os.close(tell)
    assert os.read(told, 1) == b"x"
    os.close(told)
    assert "processes: " in the_only(leaks.leaks_since(before, patience=0))
    os.close(lifeline[1])
    assert [one for one in leaks.leaks_since(before) if "process" in one] == []


def test_an_orphan_that_was_executed_is_known_by_its_environment(lifeline: tuple[int, int]) -> None:
    before = leaks.look()
    program = "import os\nif os.fork() == 0: os.setsid(); os.execlp('cat', 'cat')"
    told, tell = os.pipe()
    subprocess.run([sys.executable, "-c", program], stdin=lifeline[0], stdout=tell, check=True)
    os.close(tell)
    os.write(lifeline[1], b"x")
    assert os.read(told, 1) == b"x"  # while it is being executed it has no environment that could be read
    os.close(told)
    assert "cat" in the_only(leaks.leaks_since(before, patience=0))


def test_a_file_of_ours_and_not_of_others() -> None:
    before = leaks.look()
    with tempfile.TemporaryDirectory(prefix="pytest-sandbox-test-") as ours, tempfile.TemporaryDirectory(prefix="x-"):
        assert the_only(leaks.leaks_since(before)) == f"files: {ours}"


def test_a_descriptor() -> None:
    before = leaks.look()
    descriptor = os.open("/dev/null", os.O_RDONLY)
    assert f"descriptors: descriptor {descriptor} -> /dev/null" in the_only(leaks.leaks_since(before))
    os.close(descriptor)
    assert leaks.leaks_since(before) == []


def test_a_descriptor_that_means_something_else_now() -> None:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    before = leaks.look()
    other = os.open("/dev/zero", os.O_RDONLY)
    os.dup2(other, descriptor)
    os.close(other)
    assert "-> /dev/zero (was" in the_only(leaks.leaks_since(before))
    os.close(descriptor)


def test_a_thread() -> None:
    before = leaks.look()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left-behind")
    thread.start()
    assert the_only(leaks.leaks_since(before)) == "threads: thread left-behind"
    stop.set()
    thread.join()


def test_a_changed_directory_and_mask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = leaks.look()
    monkeypatch.chdir(tmp_path)
    assert f"state: {tmp_path} (was " in the_only(leaks.leaks_since(before))
    monkeypatch.undo()
    old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    assert "state: SigBlk" in the_only(leaks.leaks_since(before))
    signal.pthread_sigmask(signal.SIG_SETMASK, old)
    assert leaks.leaks_since(before) == []


IN_NAMESPACES = f"""
import subprocess, sys
sys.path.insert(0, {str(TESTS)!r})
import leaks
before = leaks.look()
subprocess.run(["mount", "-t", "tmpfs", "left-behind", "/mnt"], check=True)
for line in leaks.leaks_since(before):
    print(line)
"""


def test_a_mount() -> None:
    """In a mount namespace of its own, so that a failure cannot leave what it looks for."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("probe: this host gives no user and mount namespace")
    done = subprocess.run([*unshare, sys.executable, "-c", IN_NAMESPACES], capture_output=True, text=True, check=True)
    assert the_only(done.stdout.splitlines()).startswith("mounts: /mnt (tmpfs left-behind")
