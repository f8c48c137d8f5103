"""What is kept of a guest's compiled modules: its own files, whatever else it has put there."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pytest_sandbox import bytecode


def test_only_what_is_a_compiled_module_is_taken(tmp_path: Path) -> None:
    written = tmp_path / f"0/upper{bytecode.WRITTEN}"
    (written / "usr/lib").mkdir(parents=True)
    (written / "project/tests").mkdir(parents=True)
    (tmp_path / "secret.pyc").write_bytes(b"the caller's")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.pyc").write_bytes(b"the caller's")
    (written / "usr/lib/module.pyc").write_bytes(b"compiled")
    (written / "usr/lib/module.py").write_bytes(b"a source")
    (written / "usr/lib/link.pyc").symlink_to(tmp_path / "secret.pyc")
    (written / "usr/lib/folder.pyc").mkdir()
    (written / "usr/linked").symlink_to(tmp_path / "outside")
    os.mkfifo(written / "usr/lib/pipe.pyc")
    with open(written / "usr/lib/long.pyc", "wb") as file:
        file.truncate(1 << 30)
    (written / "project/tests/conftest.pyc").write_bytes(b"a test's")
    made = tmp_path / "cache/compiled-it"
    old, used = made.with_name("compiled-old"), made.with_name("compiled-used")
    for one in (old, used):
        one.mkdir(parents=True)
    os.utime(old, (0, time.time() - 40 * 86400))
    os.utime(used, (0, time.time() - 20 * 86400))
    assert not bytecode.is_kept(str(made))

    layer = os.open(tmp_path, os.O_PATH)
    try:
        bytecode.take(layer, 0, ["/project"], str(made))
    finally:
        os.close(layer)
    assert bytecode.is_kept(str(made))
    assert {str(one.relative_to(made)) for one in made.rglob("*") if not one.is_dir()} == {"usr/lib/module.pyc"}
    assert sorted(one.name for one in made.parent.iterdir()) == ["compiled-it", "compiled-used"]


def test_a_directory_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "0/upper").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.pyc").write_bytes(b"the caller's")
    (tmp_path / f"0/upper{bytecode.WRITTEN}").symlink_to(tmp_path / "outside")
    made = tmp_path / "cache/compiled-it"
    layer = os.open(tmp_path, os.O_PATH)
    try:
        bytecode.take(layer, 0, [], str(made))
    finally:
        os.close(layer)
    assert not list(tmp_path.glob("cache/**/*.pyc"))
