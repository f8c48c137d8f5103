"""Images whose own files stand where mounts are made: links out of the image, files for directories, and the reverse.

A weaker sandbox follows them, and so mounts over, writes to or makes files of the host: CVE-2021-30465, CVE-2025-31133
(``/dev/null`` exchanged, so that a mask shows another file), CVE-2025-52565 (``/dev/pts``, ``/dev/console``) and
CVE-2025-52881 (``/proc`` that is none, so that what is written to it lands elsewhere).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stage import PYTHON
from worlds import foreign

from pytest_sandbox import Sandbox, SandboxError

#: Where a sandbox mounts something, or writes a file of its own; relative to the image.
PLACES = ("proc", "sys", "dev", "dev/null", "dev/pts", "dev/shm", "dev/console", "dev/mqueue", "run", "run/lock",
          "etc/hosts", "etc/resolv.conf", "etc/hostname", "etc/machine-id", "etc/passwd", "given")
#: How a place leads out of the image: by a link with the canary's own path, and by one that climbs.
WAYS = ("absolute", "climbing")

LOOK = """
import os, sys
assert os.path.exists("/proc/self/status"), "proc"
assert os.stat("/dev/null").st_rdev == os.makedev(1, 3), "null"
for name in ("/proc/kcore", "/proc/keys", "/proc/timer_list"):
    if os.path.exists(name):
        look = os.stat(name)
        assert look.st_rdev == os.makedev(1, 3), name
        assert not open(name, "rb").read(1), name
try:
    os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY)
except OSError:
    print("kept")
"""


def canary(tmp_path: Path) -> Path:
    folder = tmp_path / "canary"
    folder.mkdir()
    (folder / "file").write_text("original")
    (folder / "lock").mkdir()
    return folder


def seen(folder: Path) -> list[object]:
    return [(str(path), path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_text() if path.is_file() else "")
            for path in sorted([folder, *folder.rglob("*")])]


def plant(tree: Path, place: str, target: Path, way: str) -> None:
    path = tree / place
    path.parent.mkdir(parents=True, exist_ok=True)
    where = str(target / "file") if place.startswith("etc/") or place in ("dev/null", "dev/console") else str(target)
    path.symlink_to(where if way == "absolute" else "../" * 30 + where.lstrip("/"))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", PLACES)
def test_a_link_where_something_is_mounted(tmp_path: Path, place: str, way: str) -> None:
    folder = canary(tmp_path)
    options = foreign(tmp_path, [])
    plant(tmp_path / "foreign", place, folder, way)
    shown = tmp_path / "shown"
    shown.mkdir()
    before = seen(folder)
    if place == "given":
        options["mounts"].append(f"{shown}:/given/below")
    try:
        with Sandbox(**options, workdir="/") as sandbox:
            done = sandbox.run([PYTHON, "-I", "-S", "-c", LOOK])
            assert done.stdout == "kept\n", done.stderr
    except SandboxError as error:
        said = str(error)
    else:
        said = "/"
    assert "/" in said  # refused, with the path that it was about
    assert seen(folder) == before
    assert os.listdir(shown) == []


@pytest.mark.parametrize("place", PLACES)
def test_who_follows_it_lands_outside(tmp_path: Path, place: str) -> None:
    """The proof: made as a careless sandbox makes its files, by the image's own names."""
    folder = canary(tmp_path)
    plant(tmp_path / "foreign", place, folder, "absolute")
    before = seen(folder)
    path = tmp_path / "foreign" / place
    if path.is_dir():
        (path / "made").mkdir()
    else:
        path.write_text("changed")
    assert seen(folder) != before


@pytest.mark.parametrize("place", PLACES)
def test_a_file_or_a_fifo_where_something_is_mounted(tmp_path: Path, place: str) -> None:
    options = foreign(tmp_path, [])
    path = tmp_path / "foreign" / place
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)  # whoever opens it waits for ever
    if place == "given":
        options["mounts"].append(f"{tmp_path}:/given/below:ro")
    try:
        with Sandbox(**options, workdir="/") as sandbox:
            assert sandbox.run([PYTHON, "-I", "-S", "-c", LOOK], timeout=20).stdout == "kept\n"
    except SandboxError as error:
        said = str(error)
    else:
        said = "/"
    assert "/" in said
