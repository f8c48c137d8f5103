"""Options that shape a sandbox: environment, working directory, disk, mounts."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from support import IS_ROOT

from pytest_sandbox import Mount, Sandbox, SandboxStartError, SandboxUsageError


def test_variables_are_set_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT", "host's")
    monkeypatch.setenv("GONE", "host's")
    monkeypatch.setenv("ODD", os.fsdecode(b"not utf-8: \xff"))
    show = 'echo "$KEPT|${GONE-unset}|$NEW|${ODD#not utf-8: }"'
    with Sandbox(env={"GONE": None, "NEW": "a=b\nc"}) as sandbox:
        done = sandbox.run(["sh", "-c", show], text=False)
        assert done.stdout == b"host's|unset|a=b\nc|\xff\n"
        assert sandbox.run(["sh", "-c", show], env={"KEPT": None, "NEW": "later", "GONE": "back"}, text=False).stdout \
            == b"|back|later|\xff\n"
        assert sandbox.call(lambda: [os.environ.get(name) for name in ("KEPT", "GONE", "NEW")]) \
            == ["host's", None, "a=b\nc"]
    assert os.environ["GONE"] == "host's"
    assert "NEW" not in os.environ


def test_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Sandbox() as sandbox:
        assert sandbox.run(["pwd"]).stdout == f"{tmp_path}\n"
        assert sandbox.run(["pwd"], cwd="/usr").stdout == "/usr\n"
        assert sandbox.call(os.getcwd) == str(tmp_path)
    with Sandbox(workdir="/etc") as sandbox:
        assert sandbox.run(["pwd"]).stdout == "/etc\n"
        assert sandbox.call(os.getcwd) == "/etc"
        assert sandbox.run(["pwd"], cwd=tmp_path).stdout == f"{tmp_path}\n"
    assert os.getcwd() == str(tmp_path)


def test_a_working_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = f"{tmp_path}/no/such/place"
    with Sandbox(workdir=missing) as sandbox:
        for attempt in (lambda: sandbox.run(["pwd"]), lambda: sandbox.call(os.getcwd)):
            with pytest.raises(FileNotFoundError, match=missing) as caught:
                attempt()
            assert caught.value.filename == missing
        sandbox.path(missing).mkdir(parents=True)
        assert sandbox.run(["pwd"]).stdout == f"{missing}\n"
        assert sandbox.call(os.getcwd) == missing


def test_a_full_disk_is_an_ordinary_error_inside() -> None:
    fill = "head -c 64M /dev/zero >/tmp/fill; echo status $?"
    with Sandbox(disk="8M") as sandbox:
        done = sandbox.run(["sh", "-c", fill])
        assert done.stdout == "status 1\n"
        assert "No space left on device" in done.stderr
        assert sandbox.path("/tmp/fill").stat().st_size <= 8 << 20
        with pytest.raises(OSError, match="writable layer of 8 MiB is full"):
            sandbox.path("/tmp/more").write_bytes(b"x" * (1 << 20))
        # It goes on: what is there can be read, run and removed.
        assert sandbox.run(["echo", "alive"]).stdout == "alive\n"
        assert sandbox.call(os.path.getsize, "/tmp/fill") > 0
        sandbox.run(["rm", "/tmp/fill"], check=True)
        assert sandbox.run(["sh", "-c", "head -c 4M /dev/zero >/tmp/fits"]).returncode == 0


def test_mounts_show_through(tmp_path: Path) -> None:
    for name in ("rw", "ro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "there").write_text("host's")
    (tmp_path / "file").write_text("one file")
    mounts = [f"{tmp_path}/rw:/data/rw", Mount(f"{tmp_path}/ro", "/data/ro", read_only=True),
              f"{tmp_path}/file:/etc/one.conf", f"{tmp_path}/file:/etc/two.conf:ro"]
    with Sandbox(mounts=mounts, user="root") as sandbox:
        shown = sandbox.run(["cat", "/data/rw/there", "/data/ro/there", "/etc/one.conf"]).stdout
        assert shown == "host'shost'sone file"
        sandbox.run(["sh", "-c", "echo -n new >/data/rw/made; echo -n changed >/etc/one.conf; rm /data/rw/there"],
                    check=True)
        for command in ("touch /data/ro/x", "rm /data/ro/there", "echo x >/etc/two.conf"):
            assert "Read-only" in sandbox.run(["sh", "-c", command]).stderr
        assert sandbox.run(["rm", "/etc/one.conf"]).returncode != 0
        assert sandbox.changes() == []
    assert (tmp_path / "rw" / "made").read_text() == "new"
    assert (tmp_path / "file").read_text() == "changed"
    assert not (tmp_path / "rw" / "there").exists()
    assert (tmp_path / "ro" / "there").read_text() == "host's"
    assert not os.path.exists("/data/rw")
    assert not os.path.exists("/etc/one.conf")


def test_what_is_later_mounted_in_the_source_stays_out(tmp_path: Path) -> None:
    (tmp_path / "fifo").touch()
    with Sandbox(mounts=[f"{tmp_path}:/data"], user="root", capabilities=["MKNOD"]) as sandbox:
        assert sandbox.run(["sh", "-c", "chmod u+s /data/fifo"]).returncode == 0
        options = sandbox.run(["findmnt", "-rno", "VFS-OPTIONS", "/data"]).stdout.strip().split(",")
    assert {"nosuid", "nodev", "rw"} <= set(options)


def test_a_source_that_is_missing_is_named(tmp_path: Path) -> None:
    sandbox = Sandbox(mounts=[f"{tmp_path}/absent:/data"])
    with pytest.raises(SandboxStartError) as caught:
        sandbox.start()
    assert str(caught.value) == (f"cannot mount {tmp_path}/absent at /data: {tmp_path}/absent does not exist on this "
                                 "host. Create it, or correct the sandbox's mounts option.")
    assert (caught.value.step, caught.value.path, caught.value.errno) == ("bind", f"{tmp_path}/absent", 2)
    (tmp_path / "absent").mkdir()
    with sandbox:  # the same object, once the cause is gone
        assert sandbox.path("/data").is_dir()


def test_a_target_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("/no/such")
    for target, why in ((f"{tmp_path}/file/below", "Not a directory"), (f"{tmp_path}/loop", "symbolic links"),
                        (f"{tmp_path}/dangling", "exists")):
        with pytest.raises(SandboxStartError, match=why) as caught:
            Sandbox(mounts=[f"{tmp_path}:{target}"]).start()
        assert f"let {tmp_path} show through at {target}" in str(caught.value)


@pytest.mark.parametrize("target", ["/", "//", "/.", "/..", "/a/.."])
def test_the_root_is_no_target(target: str, tmp_path: Path) -> None:
    with pytest.raises(SandboxUsageError, match="cannot be the root itself"):
        Sandbox(mounts=[f"{tmp_path}:{target}"])


def test_a_link_cannot_lead_a_mount_out_of_the_sandbox(tmp_path: Path) -> None:
    """The target's components are links of the tree inside: they are resolved there, dots and all."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "mark").touch()
    (tmp_path / "absolute").symlink_to("/opt")
    (tmp_path / "upwards").symlink_to("../" * 40 + "opt")
    before = sorted(os.listdir("/opt"))
    for link in ("absolute", "upwards"):
        with Sandbox(mounts=[f"{source}:{tmp_path}/{link}/{link}-target"], user="root") as sandbox:
            assert sandbox.path(f"/opt/{link}-target/mark").exists()
            assert sandbox.run(["ls", f"/opt/{link}-target"]).stdout == "mark\n"
    with Sandbox(mounts=[f"{source}:/../../../opt/dots/../dots"], user="root") as sandbox:
        assert sandbox.path("/opt/dots/mark").exists()
    assert sorted(os.listdir("/opt")) == before


def test_the_caller_s_temporary_directory_is_copied_on_write() -> None:
    with tempfile.TemporaryDirectory() as folder, Sandbox() as sandbox:
        Path(folder, "file").write_text("host's")
        sandbox.run(["sh", "-c", f"cat {folder}/file; echo inside >{folder}/file; touch {folder}/new"], check=True)
        assert Path(folder, "file").read_text() == "host's"
        assert os.listdir(folder) == ["file"]


def test_two_sandboxes_of_one_root_and_many_shapes() -> None:
    shapes = [{"hostname": "a"}, {"hostname": "b"}, {"user": "root"}, {"disk": "4M"}, {"network": "host"},
              {"capabilities": []}, {"hide": []}, {"hide": ["/opt"]}]
    sandboxes = [Sandbox(**shape).start() for shape in shapes]
    for one in sandboxes:
        assert one.run(["echo", "works"]).stdout == "works\n"
        one.close()
    assert IS_ROOT or os.getuid() != 0
