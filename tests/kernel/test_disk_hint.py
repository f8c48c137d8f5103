"""Writing to a full sandbox from outside says which option is about that."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_sandbox import DiskLimitExceeded, Sandbox

WRITES: dict[str, Callable[[Sandbox, Path], object]] = {
    "text": lambda sandbox, big: sandbox.path("/opt/big").write_text("x" * (4 << 20)),
    "bytes": lambda sandbox, big: sandbox.path("/opt/big").write_bytes(bytes(4 << 20)),
    "file": lambda sandbox, big: sandbox.copy_in(big, "/opt/big"),
    "tree": lambda sandbox, big: sandbox.copy_in(big.parent, "/opt/tree"),
}


@pytest.mark.parametrize("how", WRITES)
def test_no_space_names_the_option(how: str, tmp_path: Path) -> None:
    big = tmp_path / "folder" / "big"
    big.parent.mkdir()
    big.write_bytes(b"x" * (4 << 20))
    with Sandbox(disk="1M", user="root") as sandbox:
        with pytest.raises(DiskLimitExceeded) as caught:
            WRITES[how](sandbox, big)
        error = caught.value
        assert isinstance(error, OSError)
        assert (error.errno, error.limit, error.option) == (errno.ENOSPC, 1 << 20, "disk")
        text = str(error)
        assert text.startswith("the sandbox's writable layer of 1 MiB is full: /opt/")
        assert "raise the sandbox's disk option" in text
        assert str(pickle.loads(pickle.dumps(error))) == text
        sandbox.update(disk="16M")
        WRITES[how](sandbox, big)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with Sandbox(disk="1M") as sandbox:
        with pytest.raises(FileNotFoundError):
            sandbox.path("/nowhere/file").write_text("x")
        with pytest.raises(IsADirectoryError):
            sandbox.path("/etc").write_text("x")
