"""What is read from the mount table, and from the list of what is hidden. No mount is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_sandbox.image.host import HostImage, MountPoint, read_host, read_mounts


def _line(path: str, fstype: str = "ext4", options: str = "rw,relatime", tags: str = "", number: int = 30) -> str:
    return f"{number} 1 8:1 / {path} {options}{tags} - {fstype} /dev/sda1 rw,errors=remount-ro"


def _paths(*lines: str) -> list[str]:
    return [one.path for one in read_mounts("\n".join(lines) + "\n")]


def test_a_line() -> None:
    assert read_mounts(_line("/home", "btrfs", "rw,noexec", number=77)) == [
        MountPoint("/home", "btrfs", frozenset({"rw", "noexec"}), 77)]
    assert read_mounts("") == []


@pytest.mark.parametrize("tags", [" shared:1", " master:2", " shared:1 master:2 propagate_from:3", " unbindable"])
def test_optional_fields_are_skipped(tags: str) -> None:
    assert read_mounts(_line("/home", "xfs", tags=tags))[0].fstype == "xfs"


@pytest.mark.parametrize(("written", "path"), [
    (r"/with\040blank", "/with blank"), (r"/tab\011new\012line", "/tab\tnew\nline"),
    (r"/back\134slash", r"/back\slash"), (r"/hash\043", "/hash#"),
    (r"/not\134040decoded\040twice", r"/not\040decoded twice"), (r"/\0401", "/ 1"),
    ("/a-b - c".replace(" ", r"\040"), "/a-b - c"),
])
def test_octal_escapes(written: str, path: str) -> None:
    assert _paths(_line(written)) == [path]


@pytest.mark.parametrize("name", ["à", "Å", "\N{NEXT LINE}", "\N{NO-BREAK SPACE}", "日本", "x\x0b\x0c\x1c\x1d\x1e\r"])
def test_any_bytes_but_newline_are_part_of_a_name(name: str) -> None:
    """The table is read as latin-1, in which halves of these are blanks and line ends to str.split()."""
    table = (_line(f"/mnt/{name}") + "\n" + _line("/other") + "\n").encode().decode("latin-1")
    assert [one.path for one in read_mounts(table)] == [f"/mnt/{name}", "/other"]


def test_bytes_that_are_not_utf_8() -> None:
    assert [one.path for one in read_mounts(_line("/mnt/\xff"))] == ["/mnt/\udcff"]


def test_of_several_on_one_path_the_last_counts() -> None:
    found = read_mounts("\n".join([_line("/a", "ext4"), _line("/b"), _line("/a", "tmpfs")]))
    assert [(one.path, one.fstype) for one in found] == [("/b", "ext4"), ("/a", "tmpfs")]


def test_a_mount_covers_what_was_mounted_below_it() -> None:
    assert _paths(_line("/a/b"), _line("/a/b/c"), _line("/ab"), _line("/a")) == ["/ab", "/a"]
    assert _paths(_line("/", "rootfs"), _line("/proc", "proc"), _line("/")) == ["/"]


def test_the_tree_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for split in (False, True):
        root = read_host((".netrc", "link", "absent"), "/nonexistent", split)
        assert root.host
        assert root.trees[0].target == "/"
        assert len({tree.target for tree in root.trees}) == len(root.trees)
        positions = {tree.target: number for number, tree in enumerate(root.trees)}
        for tree in root.trees:  # parents first
            for other, number in positions.items():
                if other != "/" and other.startswith(tree.target.rstrip("/") + "/"):
                    assert positions[tree.target] < number
            assert not any(tree.target == fresh or tree.target.startswith(f"{fresh}/")
                           for fresh in ("/proc", "/sys", "/dev", "/run"))
        hidden = {f"{tree.target.rstrip('/')}/{path}" for tree in root.trees for path in tree.hidden}
        assert {f"{tmp_path}/.netrc", f"{tmp_path}/link", f"{tmp_path}/real"} <= hidden
        assert not any("absent" in path for path in hidden)
        assert all(tree.entries is None for tree in root.trees) is not split or split


def test_what_is_known_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    image = HostImage()
    first = image.root((".netrc",), "/nonexistent", False)
    assert image.root((".netrc",), "/nonexistent", False) is first
    (tmp_path / "other").touch()
    assert image.root((".netrc",), "/nonexistent", False) is first  # the same object, though the directory changed
    (tmp_path / ".netrc").touch()
    assert image.root((".netrc",), "/nonexistent", False) != first
    assert image.generation == 0
