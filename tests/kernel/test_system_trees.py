"""/proc, /sys, /dev and /run: the sandbox's own, and what of the machine's they do not show."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest
from support import IS_ROOT, init_pid

from pytest_sandbox import Sandbox
from pytest_sandbox.runtime import shift


def _numbers() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdecimal())


def test_proc_shows_the_sandbox_s_processes_and_no_others() -> None:
    with Sandbox() as sandbox:
        seen = sandbox.call(_numbers)
        assert seen[0] == 1
        assert len(seen) == 2  # init and the one that looks
        assert os.getpid() not in seen or os.getpid() < 10
        assert init_pid(sandbox) in _numbers()
        assert sandbox.run(["cat", "/proc/1/comm"]).stdout == Path(f"/proc/{init_pid(sandbox)}/comm").read_text()


def _readable(paths: list[str]) -> dict[str, int]:
    """How many bytes, or entries, each shows."""
    found = {}
    for path in paths:
        try:
            if os.path.isdir(path):
                found[path] = len(os.listdir(path))
            else:
                with open(path, "rb", buffering=0) as file:
                    found[path] = len(file.read(16) or b"")
        except FileNotFoundError:
            continue
        except OSError:
            found[path] = 0
    return found


MASKED = [f"/proc/{name}" for name in ("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug",
                                       "scsi", "timer_list", "timer_stats")]


@pytest.mark.parametrize("user", ["me", "root"])
def test_what_of_proc_reaches_the_whole_machine_is_empty(user: str) -> None:
    there = [path for path in MASKED if os.path.lexists(path)]
    assert there, "none of the masked paths is on this kernel: the test cannot tell anything"
    with Sandbox(user=user) as sandbox:
        assert sandbox.call(_readable, there) == dict.fromkeys(there, 0)
    if IS_ROOT:
        assert any(_readable(there).values())


def _write_one_back() -> dict[str, str]:
    """Writes what is there already, so that nothing happens where it is allowed."""
    found = {}
    for path in ("/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness", "/proc/sysrq-trigger"):
        if not os.path.exists(path):
            continue
        try:
            fd = os.open(path, os.O_WRONLY)
        except OSError as error:
            found[path] = os.strerror(error.errno or 0)
        else:
            os.close(fd)
            found[path] = "opened"
    return found


@pytest.mark.parametrize("user", ["me", "root"])
def test_what_of_proc_sets_up_the_machine_is_read_only(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shift.VARIABLE, "host")  # as root of a shifted range it would not get that far
    with Sandbox(user=user) as sandbox:
        found = sandbox.call(_write_one_back)
    assert found
    # To whom root's files are not mapped, those of the machine are closed already.
    refusals = {"Read-only file system"} if IS_ROOT else {"Read-only file system", "Permission denied"}
    assert set(found.values()) <= refusals
    assert "Read-only file system" in found.values() or not IS_ROOT


def test_sys_is_read_only() -> None:
    with Sandbox(user="root") as sandbox:
        options = sandbox.run(["findmnt", "-rno", "VFS-OPTIONS", "/sys"]).stdout.strip().splitlines()
        assert "ro" in options[-1].split(",")
        assert "Read-only" in sandbox.run(["sh", "-c", "echo 1 >/sys/class/net/lo/mtu"]).stderr
        assert sandbox.call(_readable, ["/sys/firmware", "/sys/devices/virtual/powercap"]) in (
            {"/sys/firmware": 0}, {"/sys/firmware": 0, "/sys/devices/virtual/powercap": 0},
            {"/sys/devices/virtual/powercap": 0}, {})


def _devices() -> dict[str, list[int]]:
    found = {}
    for folder, _, files in os.walk("/dev"):
        for name in files:
            look = os.lstat(f"{folder}/{name}")
            if stat.S_ISCHR(look.st_mode) or stat.S_ISBLK(look.st_mode):
                found[f"{folder}/{name}"] = [os.major(look.st_rdev), os.minor(look.st_rdev)]
    return found


def test_dev_holds_the_harmless_nodes_only() -> None:
    with Sandbox(user="root") as sandbox:
        found = sandbox.call(_devices)
        assert found == {"/dev/null": [1, 3], "/dev/zero": [1, 5], "/dev/full": [1, 7], "/dev/random": [1, 8],
                         "/dev/urandom": [1, 9], "/dev/tty": [5, 0], "/dev/pts/ptmx": [5, 2]}
        assert sandbox.run(["sh", "-c", "echo x >/dev/null; head -c 4 /dev/zero | wc -c; echo x >/dev/full"]) \
            .stdout == "4\n"
        assert sandbox.run(["sh", "-c", "echo /dev/fd/0 /dev/stdin; cat /dev/stdin"], input="in").stdout \
            == "/dev/fd/0 /dev/stdin\nin"


def test_a_device_made_inside_opens_nothing() -> None:
    with Sandbox(user="root", capabilities=["MKNOD", "DAC_OVERRIDE"]) as sandbox:
        made = sandbox.run(["sh", "-c", "mknod /tmp/disk b 254 0 && cat /tmp/disk"])
    assert made.returncode != 0
    assert "ermi" in made.stderr  # "Operation not permitted", or made but "Permission denied" by nodev


def _terminal() -> list[str]:
    primary, secondary = os.openpty()
    os.write(primary, b"typed\n")
    return [os.ttyname(secondary), os.read(secondary, 16).decode()]


@pytest.mark.parametrize("user", ["me", "root"])
def test_terminals_are_the_sandbox_s_own(user: str) -> None:
    before = sorted(os.listdir("/dev/pts"))
    with Sandbox(user=user) as sandbox:
        assert sandbox.call(_terminal) == ["/dev/pts/0", "typed\n"]
        assert sorted(os.listdir("/dev/pts")) == before


def test_shared_memory_is_the_sandbox_s_own() -> None:
    name = f"pytest-sandbox-test-{os.getpid()}"
    program = f"touch /dev/shm/{name} && stat -f -c %T /dev/shm && stat -c %a /dev/shm && ls /dev/shm"
    with Sandbox() as sandbox:
        assert sandbox.run(["sh", "-c", program]).stdout.split() == ["tmpfs", "1777", name]
    assert not os.path.exists(f"/dev/shm/{name}")


def _queue(name: str) -> bool:
    with open(f"/dev/mqueue/{name}", "w"):
        return os.path.exists(f"/dev/mqueue/{name}")


def test_message_queues_are_the_sandbox_s_own() -> None:
    with open("/proc/filesystems") as file:
        if "mqueue" not in file.read().split():
            pytest.skip("this kernel has no POSIX message queues: /proc/filesystems does not list mqueue")
    with Sandbox() as sandbox, Sandbox() as other:
        assert sandbox.run(["stat", "-f", "-c", "%T", "/dev/mqueue"]).stdout == "mqueue\n"
        assert sandbox.call(_queue, "mine")
        assert other.run(["ls", "/dev/mqueue"]).stdout == ""


def _system_v() -> int:
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.shmget(0x5EED, 4096, 0o1666))  # IPC_CREAT


def test_system_v_memory_goes_with_the_sandbox() -> None:
    before = Path("/proc/sysvipc/shm").read_text()
    with Sandbox() as sandbox:
        assert sandbox.call(_system_v) >= 0
        assert "24301" in sandbox.run(["cat", "/proc/sysvipc/shm"]).stdout  # 0x5EED
        assert Path("/proc/sysvipc/shm").read_text() == before


def test_run_is_fresh() -> None:
    with Sandbox() as sandbox:
        assert set(sandbox.run(["ls", "/run"]).stdout.split()) == {"lock", "user", "pytest-sandbox"}
        uid = os.getuid()
        assert sandbox.run(["stat", "-c", "%a %u", f"/run/user/{uid}"]).stdout.split() == ["700", str(uid)]
        assert sandbox.run(["touch", f"/run/user/{uid}/mine", "/run/lock/mine"]).returncode == 0
        if os.path.islink("/var/run"):
            assert sandbox.path("/var/run/lock/mine").exists()
    assert not os.path.exists("/run/lock/mine")
    with Sandbox() as sandbox:
        assert not sandbox.path("/run/lock/mine").exists()


def test_sockets_of_the_host_are_out_of_reach() -> None:
    import socket
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as server:
        path = f"{folder}/daemon.sock"
        server.bind(path)
        server.listen()
        _connect(path)
        with Sandbox() as sandbox:
            assert sandbox.path(path).lstat().st_mode & stat.S_IFSOCK
            with pytest.raises(Exception, match="ConnectionRefusedError"):
                sandbox.call(_connect, path)


def _connect(path: str) -> None:
    import socket
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
