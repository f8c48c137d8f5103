"""Block I/O: a bandwidth that holds, that ends with its sandbox, and weights as the kernel is told of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support import cgroups_of, needs, until

from pytest_sandbox import Sandbox, SandboxClosedError, SandboxUsageError, TimeLimitExceeded
from pytest_sandbox.runtime import blockio
from pytest_sandbox.runtime.cgroup_make import unthrottle
from pytest_sandbox.runtime.cgroups import host_control
from pytest_sandbox.runtime.hierarchies import Missing

SIZE = 1 << 20
#: Reads or writes the file past the page cache, which no limit is about.
COPY = """
import mmap, os, sys
fd = os.open("/data/file", os.O_DIRECT | (os.O_WRONLY if sys.argv[1] == "write" else os.O_RDONLY))
buffer = mmap.mmap(-1, int(sys.argv[2]))
print("begins", flush=True)
print(os.pwritev(fd, [buffer], 0) if sys.argv[1] == "write" else os.preadv(fd, [buffer], 0), flush=True)
"""


@pytest.fixture
def data() -> Iterator[str]:
    """A directory with a file on a disk, as a mount."""
    place = Path(os.environ.get("SANDBOX_TEST_DISK", "/var/tmp"), f"pytest_sandbox-io-{os.getpid()}")
    place.mkdir()
    file = place / "file"
    try:
        file.write_bytes(os.urandom(SIZE))
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
        try:
            os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
        except OSError as error:
            pytest.skip(f"{place} is on no disk that can be read past the page cache: {error.strerror}")
        if os.stat(file).st_dev >> 8 == 0:
            pytest.skip(f"{place} is on no block device that can be told")
        os.chmod(place, 0o777)
        os.chmod(file, 0o666)
        yield f"{place}:/data"
    finally:
        file.unlink()
        place.rmdir()


def copy(sandbox: Sandbox, way: str, size: int = SIZE) -> subprocess.Popen[str]:
    """Starts to read or to write so many bytes."""
    process = sandbox.popen([sys.executable, "-c", COPY, way, str(size)], stdin=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process  # type: ignore[return-value]


def hangs(sandbox: Sandbox) -> bool:
    """Whether something inside waits for a disk."""
    return any(thread.task.state == "D" for one in sandbox.stacks() for thread in one.threads)


@needs("io")
@pytest.mark.parametrize("way", ["read", "write"])
def test_who_is_over_its_bandwidth_waits_until_that_is_lifted(data: str, way: str) -> None:
    with Sandbox(io={way: 4096}, mounts=[data]) as sandbox:
        with copy(sandbox, way) as process:  # at that rate: four minutes
            until(lambda: hangs(sandbox), f"its {way} waits")
            assert process.poll() is None
            sandbox.update(io=None)
            assert process.stdout is not None
            assert process.stdout.readline() == f"{SIZE}\n"
        used = sandbox.usage()
        moved = used.io_read if way == "read" else used.io_written
        assert moved is not None
        assert moved >= SIZE


@needs("io")
def test_the_other_way_has_no_limit(data: str) -> None:
    with Sandbox(io={"write": 4096}, mounts=[data]) as sandbox, copy(sandbox, "read") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{SIZE}\n"


@needs("io")
def test_a_limit_that_comes_later_holds(data: str) -> None:
    # On cgroup v1 a sandbox is in the controller if it was started with a limit of it.
    with Sandbox(io="1T", mounts=[data]) as sandbox:
        with copy(sandbox, "read") as process:
            assert process.wait(60) == 0
        sandbox.update(io=4096)
        with copy(sandbox, "read") as process:
            until(lambda: hangs(sandbox), "its read waits")
            process.kill()


@needs("io")
@pytest.mark.parametrize("end", ["close", "kill", "timeout"])
def test_the_end_does_not_wait_for_the_disk(data: str, end: str) -> None:
    """Who waits for bandwidth cannot be killed: at four KiB a second this would take as many minutes."""
    with Sandbox(io=4096, mounts=[data], **({"timeout": 1} if end == "timeout" else {})) as sandbox:
        process = copy(sandbox, "read")
        assert process.stdout is not None
        process.stdout.close()
        until(lambda: hangs(sandbox), "its read waits")
        if end == "kill":
            sandbox.kill()
            process.wait(30)
            assert any("4096" in Path(path, name).read_text() for path in cgroups_of(sandbox)
                       for name in (*blockio.V1, *blockio.V2) if Path(path, name).exists())
        elif end == "timeout":
            until(lambda: process.poll() is not None, "it is killed", 30)
            with pytest.raises(TimeLimitExceeded) as caught:
                sandbox.run(["true"])
            assert caught.value.verdict == "blocked"
            assert "waits for an uninterruptible wait in the kernel" in caught.value.stacks
    if end == "close":
        with suppress(SandboxClosedError):  # unless it came to its own end when the limit was lifted
            process.wait(30)


@needs("io_weight")
def test_the_kernel_is_told_of_weights() -> None:
    with Sandbox(io_weight=1000) as sandbox:
        def told() -> set[str]:
            return {Path(path, name).read_text().split()[-1] for path in cgroups_of(sandbox)
                    for name in ("io.weight", "io.bfq.weight", "blkio.bfq.weight") if Path(path, name).exists()}

        assert told() & {"1000", "181"}  # as blk-iocost has it, and BFQ, whose weights end at 1000
        sandbox.update(io_weight=None)
        assert not told() & {"1000", "181"}


def test_a_bandwidth_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(Missing, match="does not limit block I/O"):
        blockio.throttles(str(tmp_path), blockio.V2, (("read", 1),))
    for one in ("0", "10X", {}, {"reads": 1}, {"read": 0}, "read=1 read=2", "read=", [1], None, True, {"read": None}):
        with pytest.raises(SandboxUsageError, match=r"io=.*Allowed: bytes a second.*write=5M"):
            Sandbox(io=one)
    with pytest.raises(SandboxUsageError, match="did you mean 'read'"):
        Sandbox(io={"reed": "1M"})


def test_what_is_lifted_can_be_set_again(tmp_path: Path) -> None:
    (tmp_path / "io.max").write_text("8:0 rbps=1 wbps=max riops=max wiops=max\n")
    assert unthrottle([str(tmp_path)]) == [(f"{tmp_path}/io.max", "8:0 rbps=1 wbps=max riops=max wiops=max")]
    assert (tmp_path / "io.max").read_text().startswith("8:0 rbps=max wbps=max")


def test_the_doctor_says_how() -> None:
    abilities = host_control().abilities()
    assert abilities["io"].how
    assert abilities["io"].ok or abilities["io"].remedy
    assert abilities["io_weight"].ok or abilities["io_weight"].remedy
