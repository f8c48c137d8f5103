"""Writing below directories that belong to others, as somebody who may do so outside."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_sandbox import Sandbox


@pytest.fixture
def below_root() -> Iterator[Path]:
    """A directory of ours in one that belongs to root, two levels below the root of its file system."""
    path = Path(tempfile.mkdtemp(prefix="ways-", dir="/var/tmp"))
    (path / "file").write_text("host\n")
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("user", ["me", "root"])
def test_a_file_below_others_directories_can_be_changed(below_root: Path, user: str) -> None:
    with Sandbox(user=user) as sandbox:
        done = sandbox.run(["sh", "-c", f"echo sandbox >>{below_root}/file && mkdir {below_root}/new"])
        assert (done.returncode, done.stderr) == (0, "")
        assert {change.path: change.kind for change in sandbox.changes()} == {
            f"{below_root}/file": "modified", f"{below_root}/new": "added"}
    assert (below_root / "file").read_text() == "host\n"
    assert not (below_root / "new").exists()


def test_that_gives_no_more_rights_than_outside() -> None:
    with Sandbox(user="me") as sandbox:
        for place in ("/", "/etc", "/usr", "/var", "/var/lib", "/home"):
            outside = os.access(place, os.W_OK)
            inside = sandbox.run(["test", "-w", place]).returncode == 0
            assert inside == outside, place
