"""``copy_in`` and ``copy_out``: files and trees between the host and a sandbox, links kept as links."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_sandbox import Sandbox


@pytest.fixture
def started() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def _make_tree(top: Path) -> None:
    (top / "sub" / "deeper").mkdir(parents=True)
    (top / "file").write_bytes(bytes(range(256)) * 5000)
    (top / "program").write_text("#!/bin/sh\necho ran\n")
    (top / "program").chmod(0o755)
    (top / "sub" / "private").write_text("p")
    (top / "sub" / "private").chmod(0o600)
    (top / "sub" / "deeper").chmod(0o750)
    (top / "link").symlink_to("sub/private")
    (top / "absolute").symlink_to("/etc/passwd")
    (top / "dangling").symlink_to("nowhere")
    os.utime(top / "file", (1_000_000_000, 1_000_000_000))


def _describe(top: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        look = path.lstat()
        kind = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(top))] = (0 if path.is_symlink() else stat.S_IMODE(look.st_mode), kind)
    return found


def test_a_tree_goes_in_and_comes_out_the_same(started: Sandbox, tmp_path: Path) -> None:
    _make_tree(tmp_path / "tree")
    started.copy_in(tmp_path / "tree", "/tmp/copied")
    assert not os.path.exists("/tmp/copied")
    assert started.run(["/tmp/copied/program"]).stdout == "ran\n"
    assert started.run(["cat", "/tmp/copied/link"]).stdout == "p"
    assert started.run(["stat", "-c", "%U:%a", "/tmp/copied/sub/private"]).stdout.split(":")[1] == "600\n"
    assert started.path("/tmp/copied/file").stat().st_mtime == 1_000_000_000
    started.copy_out("/tmp/copied", tmp_path / "back")
    assert _describe(tmp_path / "back") == _describe(tmp_path / "tree")
    assert (tmp_path / "back" / "file").stat().st_mtime == 1_000_000_000
    assert {path.lstat().st_uid for path in (tmp_path / "back").rglob("*")} == {os.getuid()}


def test_where_a_copy_goes(started: Sandbox, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("text")
    (tmp_path / "alias").symlink_to("source")
    started.copy_in(source, "/tmp")  # into a directory
    assert started.path("/tmp/source").read_text() == "text"
    started.copy_in(source, "/tmp/renamed")
    assert started.path("/tmp/renamed").read_text() == "text"
    started.copy_in(tmp_path / "alias", "/tmp")  # the file, under the name it was given by
    assert started.path("/tmp/alias").read_text() == "text"
    assert not started.path("/tmp/alias").is_symlink()
    (tmp_path / "out").mkdir()
    started.copy_out("/tmp/renamed", tmp_path / "out")
    started.copy_out("/tmp/renamed", tmp_path / "out" / "again")
    assert sorted(os.listdir(tmp_path / "out")) == ["again", "renamed"]
    with pytest.raises(FileNotFoundError):
        started.copy_in(tmp_path / "absent", "/tmp")
    with pytest.raises(FileNotFoundError):
        started.copy_in(source, "/no/such/place")
    with pytest.raises(FileNotFoundError, match="/no/such"):
        started.copy_out("/no/such", tmp_path)


def test_a_tree_is_laid_over_what_is_there(started: Sandbox, tmp_path: Path) -> None:
    _make_tree(tmp_path / "tree")
    for _ in range(2):
        started.copy_in(tmp_path / "tree", "/tmp/over")
        started.path("/tmp/over").rename("/tmp/aside")
        started.path("/tmp/aside/file").write_text("changed")
        started.path("/tmp/aside").rename("/tmp/over")
    started.copy_in(tmp_path / "tree" / "sub", "/tmp/over/sub")
    assert started.path("/tmp/over/sub/sub/private").read_text() == "p"


def test_a_copied_file_belongs_to_the_sandbox_s_user(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for user, ids in (("1000:1000", "1000:1000"), ("root", "0:0")):
        with Sandbox(user=user) as sandbox:
            sandbox.copy_in(tmp_path / "file", "/tmp/file")
            assert sandbox.run(["stat", "-c", "%u:%g", "/tmp/file"]).stdout == f"{ids}\n"


def test_links_inside_cannot_lead_a_copy_out(started: Sandbox, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("outside")
    (tmp_path / "source").write_text("copied")
    started.run(["ln", "-s", str(victim), "/tmp/way-out"], check=True)
    started.run(["ln", "-s", str(tmp_path), "/tmp/up"], check=True)
    started.copy_in(tmp_path / "source", "/tmp/way-out")
    started.copy_in(tmp_path / "source", "/tmp/up")
    started.copy_in(tmp_path / "source", "/tmp/up/made")
    assert victim.read_text() == "outside"
    assert not (tmp_path / "made").exists()
    started.copy_out("/tmp/way-out", tmp_path / "read")
    assert (tmp_path / "read").read_text() == "copied"


def test_a_copy_out_follows_no_link_that_an_earlier_one_left(started: Sandbox, tmp_path: Path) -> None:
    """First a link, then a directory, under one name: what the sandbox says must not choose where files go."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    started.run(["sh", "-c", f"mkdir /tmp/t; ln -s {elsewhere} /tmp/t/d; ln -s {elsewhere}/file /tmp/t/f"], check=True)
    started.copy_out("/tmp/t", tmp_path / "t")
    started.run(["sh", "-c", "cd /tmp/t; rm d f; mkdir d; echo evil >d/planted"], check=True)
    with pytest.raises(OSError, match="symbolic link stands where a directory is to be made"):
        started.copy_out("/tmp/t", tmp_path)
    started.run(["sh", "-c", "cd /tmp/t; rm -r d; echo evil >f"], check=True)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        started.copy_out("/tmp/t", tmp_path)
    assert os.listdir(elsewhere) == []


def test_what_is_neither_file_nor_directory_is_left_out_and_named(started: Sandbox, tmp_path: Path) -> None:
    started.run(["sh", "-c", "mkdir /tmp/t; cd /tmp/t; mkdir s; mkfifo fifo; ln -s /dev/zero zero; echo x >s/f"],
                check=True)
    with pytest.warns(UserWarning, match="being neither files nor directories: /tmp/t/fifo"):
        started.copy_out("/tmp/t", tmp_path / "t")
    assert sorted(os.listdir(tmp_path / "t")) == ["s", "zero"]
    assert os.readlink(tmp_path / "t" / "zero") == "/dev/zero"
    with pytest.warns(UserWarning, match="/tmp/t/zero"):
        started.copy_out("/tmp/t/zero", tmp_path / "z")
    assert not (tmp_path / "z").exists()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="neither a file nor a directory"):
        started.copy_in(tmp_path / "fifo", "/tmp")


def test_no_set_id_file_reaches_the_host(started: Sandbox, tmp_path: Path) -> None:
    started.run(["sh", "-c", "cp /bin/true /tmp/true; chmod 6755 /tmp/true; mkdir -m 3777 /tmp/d"], check=True)
    started.copy_out("/tmp/true", tmp_path)
    started.copy_out("/tmp/d", tmp_path)
    assert stat.S_IMODE((tmp_path / "true").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o777


def test_what_was_copied_is_a_change(tmp_path: Path) -> None:
    _make_tree(tmp_path / "tree")
    with Sandbox() as sandbox:
        sandbox.copy_in(tmp_path / "tree", "/tmp/pytest-sandbox-tree")
        found = {change.path: change.kind for change in sandbox.changes()}
    inside = {f"/tmp/pytest-sandbox-tree/{path.relative_to(tmp_path / 'tree')}" for path in
              (tmp_path / "tree").rglob("*")}
    assert found == dict.fromkeys({"/tmp/pytest-sandbox-tree", *inside}, "added")
