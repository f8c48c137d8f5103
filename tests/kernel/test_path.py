"""``Sandbox.path``: pathlib's methods on the sandbox's tree, out of which nothing in there can lead."""

from __future__ import annotations

import os
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_sandbox import Sandbox, SandboxClosedError, SandboxPath


@pytest.fixture
def started() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def folder(started: Sandbox, tmp_path: Path) -> SandboxPath:
    """A directory that is there on both sides."""
    return started.path(tmp_path)


def test_names_need_no_files(started: Sandbox) -> None:
    path = started.path("/a/b/file.tar.gz")
    assert (path.name, path.stem, path.suffix, path.parts) == ("file.tar.gz", "file.tar", ".gz",
                                                               ("/", "a", "b", "file.tar.gz"))
    assert str(path.parent) == "/a/b"
    assert str(path.parent / "x" / "/y") == "/y"
    assert str(path.joinpath("c", "d")) == "/a/b/file.tar.gz/c/d"
    assert str(path.with_name("other")) == "/a/b/other"
    assert str(started.path("relative")) == "/relative"
    assert repr(path) == "SandboxPath('/a/b/file.tar.gz')"
    assert path == started.path("/a/b/file.tar.gz") != started.path("/a")
    assert len({path, started.path("/a/b/file.tar.gz")}) == 1
    assert sorted([path, started.path("/a")]) == [started.path("/a"), path]
    with pytest.raises(TypeError):
        os.fspath(path)  # type: ignore[call-overload]  # it is no path of the host's
    with Sandbox() as other:
        assert other.path("/a") != started.path("/a")


def test_content(folder: SandboxPath, started: Sandbox, tmp_path: Path) -> None:
    file = folder / "file"
    assert not file.exists()
    assert file.write_text("grüße\n") == 6
    assert file.read_bytes() == "grüße\n".encode()
    assert file.write_bytes(b"\xff") == 1
    assert file.read_text(errors="replace") == "�"
    with file.open("a") as out:
        out.write("more")
    with file.open("r+b") as both:
        assert both.read() == b"\xffmore"
        both.seek(0)
        both.write(b"X")
    assert started.run(["cat", str(file)]).stdout == "Xmore"
    started.run(["sh", "-c", f"printf inside >{file}"], check=True)
    assert file.read_text() == "inside"
    with pytest.raises(FileExistsError):
        file.open("x")
    for mode in ("w+", "", "rw"):
        with pytest.raises(ValueError, match="cannot be used on a sandbox's file"):
            file.open(mode)
    assert os.listdir(tmp_path) == []


def test_looking(folder: SandboxPath, started: Sandbox) -> None:
    started.run(["sh", "-c", f"cd {folder}; mkdir d d/e; echo x >d/f.txt; ln -s d link; ln -s nowhere dangling; "
                             "chmod 640 d/f.txt; mkfifo fifo"], check=True)
    file = folder / "d" / "f.txt"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.is_file()
    assert not file.is_dir()
    assert (folder / "d").is_dir()
    link = folder / "link"
    assert link.is_symlink()
    assert link.is_dir()
    assert link.readlink() == "d"
    assert stat.S_ISLNK(link.lstat().st_mode)
    assert (link / "f.txt").read_text() == "x\n"
    assert not (folder / "dangling").exists()
    assert (folder / "dangling").is_symlink()
    assert (folder / "fifo").exists()
    assert not (folder / "fifo").is_file()
    assert [one.name for one in folder.iterdir()] == ["d", "dangling", "fifo", "link"]
    assert [one.name for one in folder.glob("d*")] == ["d", "dangling"]
    assert [str(one.name) for one in folder.rglob("*.txt")] == ["f.txt"]
    with pytest.raises(NotADirectoryError):
        list(file.iterdir())
    with pytest.raises(FileNotFoundError) as caught:
        (folder / "absent").stat()
    assert caught.value.filename == f"{folder}/absent"


def test_changing(folder: SandboxPath, started: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("host's")
    new = folder / "a" / "b"
    with pytest.raises(FileNotFoundError):
        new.mkdir()
    new.mkdir(parents=True)
    new.mkdir(exist_ok=True)
    with pytest.raises(FileExistsError):
        new.mkdir()
    (new / "file").touch()
    (new / "file").touch()
    with pytest.raises(FileExistsError):
        (new / "file").touch(exist_ok=False)
    with pytest.raises(OSError, match="not empty"):
        new.rmdir()
    (new / "file").chmod(0o600)
    assert stat.S_IMODE((new / "file").stat().st_mode) == 0o600
    assert (new / "file").rename(folder / "moved") == folder / "moved"
    new.rmdir()
    (folder / "moved").rename(folder / "hosts")
    assert (folder / "hosts").read_text() == ""
    (folder / "link").symlink_to("hosts")
    assert started.run(["readlink", f"{folder}/link"]).stdout == "hosts\n"
    (folder / "link").unlink()
    (folder / "link").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (folder / "link").unlink()
    for bad in (folder / "..", started.path("/")):
        with pytest.raises(OSError, match="not a name"):
            bad.rmdir()
    assert started.run(["ls", str(folder)]).stdout.split() == ["a", "hosts"]
    assert (tmp_path / "hosts").read_text() == "host's"
    assert os.listdir(tmp_path) == ["hosts"]


def test_links_lead_nowhere_but_inside(folder: SandboxPath, started: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("outside")
    started.run(["sh", "-c", f"cd {folder}; printf inside >secret; ln -s {secret} absolute; "
                             f"ln -s {'../' * 50}{secret} upwards; ln -s {tmp_path} up; ln -s absolute twice; "
                             f"mkdir deep; ln -s ../../../../../../../..{secret} deep/relative"], check=True)
    for name in ("absolute", "upwards", "twice", "up/secret", "deep/relative", "deep/../absolute", "up/up/up/secret"):
        assert (folder / name).read_text() == "inside", name
        (folder / name).write_text("inside")
    assert secret.read_text() == "outside"
    (folder / "up" / "made").write_text("x")
    (folder / "up" / "secret").unlink()
    assert secret.read_text() == "outside"
    assert os.listdir(tmp_path) == ["secret"]


def test_links_in_a_circle(folder: SandboxPath, started: Sandbox) -> None:
    started.run(["sh", "-c", f"cd {folder}; ln -s loop loop; ln -s b a; ln -s a b; ln -s . here"], check=True)
    for name in ("loop", "a", "b/x"):
        assert not (folder / name).exists()
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            (folder / name).stat()
        with pytest.raises(OSError, match="Too many levels of symbolic links"):
            (folder / name).read_text()
    assert (folder / "loop").is_symlink()
    assert (folder / "here/here/here").is_dir()
    assert len(list(folder.rglob("*"))) == 4


def test_magic_links_are_refused(started: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    opened = os.open(tmp_path, os.O_RDONLY)
    try:
        started.run(["ln", "-s", "/proc/1/root", f"{tmp_path}/link"], check=True)
        for path in ("/proc/1/root/etc/passwd", "/proc/1/cwd", f"/proc/1/fd/{opened}", "/proc/1/exe",
                     f"{tmp_path}/link/etc/passwd", "/dev/fd/0", "/dev/stdin"):
            assert not started.path(path).is_file()
            with pytest.raises(OSError, match=r"symbolic links|No such file"):
                started.path(path).read_text()
    finally:
        os.close(opened)


def test_what_would_block_does_not(folder: SandboxPath, started: Sandbox) -> None:
    started.run(["sh", "-c", f"cd {folder}; mkfifo fifo; ln -s fifo link; ln -s /dev/zero zero"], check=True)

    def bind() -> None:
        import socket
        socket.socket(socket.AF_UNIX).bind(f"{folder}/socket")

    started.call(bind)
    for name in ("fifo", "link", "zero", "socket"):
        for mode in ("r", "w", "a", "r+"):
            with pytest.raises(OSError, match="not a regular file"):
                (folder / name).open(mode)
    with pytest.raises(IsADirectoryError):
        folder.open()
    for device in ("/dev/null", "/dev/tty", "/dev/ptmx", "/dev/random"):
        with pytest.raises(OSError, match="not a regular file"):
            started.path(device).read_bytes()


def test_a_file_that_becomes_a_link_meanwhile(folder: SandboxPath, started: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("outside")
    swap = (f"cd {folder}; printf inside >secret; printf inside >plain; "
            f"while :; do cp -f plain victim 2>/dev/null; rm -f victim; ln -s {tmp_path}/secret victim; rm -f victim; "
            "mkfifo victim; rm -f victim; done")
    seen: set[str] = set()
    with started.popen(["sh", "-c", swap], stderr=-3) as process:
        for _ in range(400):
            try:
                seen.add((folder / "victim").read_text())
                (folder / "victim").write_text("inside")
            except OSError:
                continue
        process.kill()
    assert seen <= {"inside", ""}
    assert (tmp_path / "secret").read_text() == "outside"


def test_files_that_the_caller_may_not_read(started: Sandbox) -> None:
    if os.getuid() == 0:
        assert started.path("/etc/shadow").read_text() == Path("/etc/shadow").read_text()
    else:
        with pytest.raises(PermissionError) as caught:
            started.path("/etc/shadow").read_text()
        assert caught.value.filename == "/etc/shadow"
        with pytest.raises(PermissionError):
            started.path("/usr/x").write_text("")


def test_odd_names(folder: SandboxPath, started: Sandbox) -> None:
    for name in ("a b", "new\nline", "quote'\"", "ünï", os.fsdecode(b"\xff"), "-rf", "x" * 255):
        (folder / name).write_text(name, errors="surrogateescape")
        assert (folder / name).read_text(errors="surrogateescape") == name
        assert started.run(["cat", "--", name], cwd=str(folder), text=False).stdout == os.fsencode(name)
    assert len(list(folder.iterdir())) == 7
    with pytest.raises(OSError, match="File name too long"):
        (folder / ("x" * 256)).write_text("")
    with pytest.raises(ValueError, match="null byte"):
        (folder / "a\0b").exists()


def test_waiting_for_a_file(started: Sandbox, folder: SandboxPath) -> None:
    from pytest_sandbox import SandboxTimeout
    with pytest.raises(SandboxTimeout, match=r"/absent did not appear in the sandbox in 0\.05 s"):
        started.wait_for_file(f"{folder}/absent", 0.05)
    maker = threading.Thread(target=lambda: started.run(["touch", f"{folder}/there"]))
    maker.start()
    started.wait_for_file(f"{folder}/there")
    maker.join()


def test_a_sandbox_that_has_ended(started: Sandbox) -> None:
    path = started.path("/etc/passwd")
    started.close()
    for attempt in (path.read_text, path.exists, path.stat, path.unlink, lambda: list(path.parent.iterdir()),
                    lambda: path.write_text("x")):
        with pytest.raises(SandboxClosedError):
            attempt()
    assert Path("/etc/passwd").exists()


def test_paths_open_while_the_machine_renames() -> None:
    """The kernel cannot be sure of ``..`` then, and says EAGAIN."""
    link = "/tmp/a/../a/.."
    with Sandbox() as sandbox:
        sandbox.path("/tmp/a").mkdir()
        (sandbox.path("/tmp/a") / "file").write_text("x")
        shuffle = [sys.executable, "-S", "-c", "import os\nos.chdir('/tmp')\nopen('p', 'w')\n"
                   "while True: os.rename('p', 'q'); os.rename('q', 'p')"]
        with sandbox.popen(shuffle, stdout=None, stderr=None) as process:
            for _ in range(1000):
                assert sandbox.path(f"{link}/a/file").read_text() == "x"
            process.kill()
