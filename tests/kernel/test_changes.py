"""``Sandbox.changes``: what the writable layer says, against what was done."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from support import IS_ROOT

from pytest_sandbox import Sandbox


def _changes(sandbox: Sandbox, below: str) -> dict[str, str]:
    """Changes by path relative to ``below``; the test fails where there are others."""
    found = {}
    for path, kind in sandbox.changes():
        assert path == below or path.startswith(f"{below}/"), f"{kind}: {path}"
        found[os.path.relpath(path, below)] = kind
    assert list(found) == [os.path.relpath(one.path, below) for one in sorted(sandbox.changes())]
    return found


CASES = {
    # what is done in a directory that holds: file, other, link -> file, hard1 = hard2, d/{x,y,e/z}, empty/
    "nothing": ("ls -lR; cat file d/x; test -x d", {}),
    "a new file": ("echo >new", {"new": "added"}),
    "a new empty file": (": >new", {"new": "added"}),
    "a new tree": ("mkdir -p n/m; echo >n/m/f; ln -s f n/l", {"n": "added", "n/m": "added", "n/m/f": "added",
                                                               "n/l": "added"}),
    "an edit": ("echo more >>file", {"file": "modified"}),
    "an edit of the same size": ("printf FILE >file", {"file": "modified"}),
    "an edit through a link": ("echo more >>link", {"file": "modified"}),
    "a deletion": ("rm file", {"file": "deleted"}),
    "a file replaced by itself": ("cp -p file f2; mv f2 file", {}),
    "a file touched": ("touch -d @5 file", {"file": "metadata"}),
    "a file opened for writing": (": >>file", {}),
    "a mode": ("chmod 600 file", {"file": "metadata"}),
    "a directory's mode": ("chmod 700 d", {"d": "metadata"}),
    "made and removed": ("echo >new; rm new; mkdir n; rmdir n", {}),
    "removed and made again": ("rm file; printf other >file", {"file": "modified"}),
    "removed and made again as a directory": ("rm file; mkdir file; echo >file/f", {"file": "modified",
                                                                                     "file/f": "added"}),
    "a directory becomes a file": ("rm -r d; echo >d", {"d": "modified"}),
    "a link changes": ("ln -sfn other link", {"link": "modified"}),
    "a link becomes a file": ("rm link; printf file >link", {"link": "modified"}),
    "a file becomes a link": ("ln -sfn other file", {"file": "modified"}),
    "a rename": ("mv file moved", {"file": "deleted", "moved": "added"}),
    "a rename over another": ("mv file other", {"file": "deleted", "other": "modified"}),
    "a tree removed": ("rm -r d", {"d": "deleted"}),
    "an empty directory removed": ("rmdir empty", {"empty": "deleted"}),
    "a tree removed and made again, empty": ("rm -r d; mkdir d", {"d/x": "deleted", "d/y": "deleted",
                                                                  "d/e": "deleted"}),
    "a tree removed and made again": (
        "rm -r d; mkdir d d/e; printf x >d/x; touch -r file d/x; chmod 644 d/x; printf new >d/n; printf other >d/e/z",
        {"d/y": "deleted", "d/n": "added", "d/e/z": "modified"}),
    "a child removed in a directory": ("rm d/e/z", {"d/e/z": "deleted"}),
    "a hard link": ("ln file new", {"new": "added"}),
    "an edit through one of two names": ("echo more >>hard1", {"hard1": "modified"}),
    "a FIFO": ("mkfifo new", {"new": "added"}),
    "odd names": ("echo >'a b'; echo >\"$(printf 'n\\nl')\"; echo >\"$(printf '\\377')\"",
                  {"a b": "added", "n\nl": "added", os.fsdecode(b"\xff"): "added"}),
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "d" / "e").mkdir(parents=True)
    (top / "empty").mkdir()
    for name, text in (("file", "file"), ("other", "other"), ("hard1", "hard"), ("d/x", "x"), ("d/y", "y"),
                       ("d/e/z", "z")):
        (top / name).write_text(text)
        (top / name).chmod(0o644)
        os.utime(top / name, (1_500_000_000, 1_500_000_000))
    os.link(top / "hard1", top / "hard2")
    (top / "link").symlink_to("file")
    for folder in (top, top / "d", top / "d" / "e", top / "empty"):
        folder.chmod(0o755)
    return top


@pytest.mark.parametrize("user", ["me", "root"])
@pytest.mark.parametrize("case", CASES)
def test_a_change_is_seen_for_what_it_is(case: str, user: str, tree: Path) -> None:
    commands, expected = CASES[case]
    before = {path: path.lstat() for path in tree.rglob("*")}
    with Sandbox(user=user) as sandbox:
        sandbox.run(["sh", "-euc", commands], cwd=tree, check=True)
        assert _changes(sandbox, str(tree)) == expected
        shown = sandbox.run(["ls", "-A", str(tree)]).stdout
        if not expected:
            assert sorted(shown.split()) == sorted(os.listdir(tree))
    assert {path: path.lstat().st_mtime_ns for path in tree.rglob("*")} == {
        path: look.st_mtime_ns for path, look in before.items()}


def test_a_directory_renamed(tree: Path) -> None:
    """Root's overlay keeps a note of where it came from; others copy, as mv(1) does between file systems."""
    with Sandbox() as sandbox:
        sandbox.run(["sh", "-euc", "mv d moved; echo >moved/new; rm moved/y"], cwd=tree, check=True)
        assert sandbox.run(["ls", "moved", "moved/e"], cwd=tree).stdout.split() == [
            "moved:", "e", "new", "x", "moved/e:", "z"]
        assert _changes(sandbox, str(tree)) == {
            "d": "deleted", "moved": "added", "moved/e": "added", "moved/e/z": "added", "moved/new": "added",
            "moved/x": "added"}
        sandbox.run(["sh", "-euc", "mv moved d"], cwd=tree, check=True)
        found = _changes(sandbox, str(tree))
        assert found["d/new"] == "added"
        assert "moved" not in found


@pytest.mark.skipif(not IS_ROOT, reason="an unprivileged sandbox has a single user id")
def test_an_owner(tree: Path) -> None:
    with Sandbox() as sandbox:
        sandbox.run(["sh", "-euc", "chown 1000 file; chown 0:7 d; chown 0:0 other"], cwd=tree, check=True)
        assert _changes(sandbox, str(tree)) == {"file": "metadata", "d": "metadata"}


def test_changes_of_the_whole_tree() -> None:
    with Sandbox(user="root") as sandbox:
        assert sandbox.changes() == []
        sandbox.run(["sh", "-euc", "echo x >/etc/pytest-sandbox-new; echo >>/etc/passwd; rm /etc/hostname; "
                                   "mkdir /opt/new; echo >/var/new; echo >/tmp/new"], check=True)
        assert [tuple(one) for one in sandbox.changes()] == [
            ("/etc/hostname", "deleted"), ("/etc/passwd", "modified"), ("/etc/pytest-sandbox-new", "added"),
            ("/opt/new", "added"), ("/tmp/new", "added"), ("/var/new", "added")]
        sandbox.reset()
        assert sandbox.changes() == []


def test_changes_elsewhere_are_none(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    with Sandbox(mounts=[f"{tmp_path}/source:/srv/data/deep"], user="root") as sandbox:
        sandbox.run(["sh", "-euc", "echo >/srv/data/deep/f; echo >/run/f; echo >/dev/shm/f; mkdir /run/d"], check=True)
        assert sandbox.changes() == []
        sandbox.path("/srv/data/beside").write_text("x")
        assert [tuple(one) for one in sandbox.changes()] == [("/srv/data/beside", "added")]
    assert (tmp_path / "source" / "f").exists()


def test_what_is_hidden_was_never_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("secret")
    with Sandbox() as sandbox:
        assert sandbox.changes() == []
        sandbox.run(["sh", "-euc", "rm -f .netrc; echo >.netrc"], cwd=tmp_path, check=True)
        assert _changes(sandbox, str(tmp_path)) == {".netrc": "added"}


def test_a_link_in_the_writable_layer_is_not_followed(tree: Path) -> None:
    with Sandbox() as sandbox:
        sandbox.run(["sh", "-euc", "rm -r d; ln -s / d; ln -s /proc p; ln -s loop loop"], cwd=tree, check=True)
        assert _changes(sandbox, str(tree)) == {"d": "modified", "p": "added", "loop": "added"}


def test_while_files_come_and_go(tree: Path) -> None:
    busy = ("import os\nwhile True:\n    os.makedirs('w/x'); os.close(os.open('w/x/f', os.O_CREAT))\n"
            "    os.unlink('w/x/f'); os.removedirs('w/x')")
    with Sandbox() as sandbox, sandbox.popen([sys.executable, "-c", busy], cwd=tree) as process:
        for _ in range(1000):
            assert {one.path.removeprefix(str(tree)) for one in sandbox.changes()} <= {"/w", "/w/x", "/w/x/f"}
        process.kill()
