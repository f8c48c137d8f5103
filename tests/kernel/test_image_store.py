"""The store: references in, layers out; what is kept, shared, found again, refused."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from imagemaker import (
    Item,
    compressed,
    directory,
    docker_archive,
    file,
    hardlink,
    image,
    index,
    layer,
    stdlib_layer,
    symlink,
    tar_of,
    write_layout,
)
from support import until
from treelook import look_at, merge

from pytest_sandbox import ImageCorrupt, ImageError, ImageNotFound, LayerRejected, StoreError
from pytest_sandbox.image import abilities, ingest
from pytest_sandbox.image.abilities import Abilities
from pytest_sandbox.image.collect import verify
from pytest_sandbox.image.manifest import LayerStack, Platform
from pytest_sandbox.image.store import ImageStore

BASE = layer([directory("etc"), file("etc/passwd", "root:x:0:0\n"), directory("usr"), directory("usr/lib"),
              file("usr/lib/libc.so", b"\x7fELF", mode=0o755), symlink("lib", "usr/lib"), directory("tmp", 0o1777),
              directory("srv", 0o750, uid=7, gid=8, mtime=1234567890), file("srv/data", "lower")])
NEXT = layer([directory("etc"), file("etc/hostname", "box\n"), file("etc/.wh.passwd"), directory("srv", 0o711),
              file("srv/.wh..wh..opq"), file("srv/new", "upper")])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore(tmp_path / "cache") as store:
        yield store


def names(path: str | Path) -> set[str]:
    return set(look_at(path)) - {"."}


def clean(store: ImageStore) -> bool:
    """Nothing is left of work in progress."""
    return not store.layout.keys("staging") and not store.layout.keys("trash")


def test_a_layout_becomes_layers_that_stack(store: ImageStore, tmp_path: Path) -> None:
    made = image([BASE, NEXT], config={"Env": ["A=1", "B=x=y"], "User": "app:staff", "WorkingDir": "/srv",
                                      "Entrypoint": ["/init"], "Cmd": ["-v"], "StopSignal": "SIGQUIT"})
    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', made)}")
    assert len(stack.layers) == 2
    assert stack.digest == made.digest
    assert stack.config.env == (("A", "1"), ("B", "x=y"))
    assert (stack.config.user, stack.config.workdir, stack.config.stop_signal) == ("app:staff", "/srv", "SIGQUIT")
    assert (stack.config.entrypoint, stack.config.cmd) == (("/init",), ("-v",))
    merged = merge(stack.layers)
    assert set(merged) == {".", "etc", "etc/hostname", "usr", "usr/lib", "usr/lib/libc.so", "lib", "tmp", "srv",
                           "srv/new"}
    assert merged["srv"].mode == 0o711
    assert merged["tmp"].mode == 0o1777
    assert clean(store)


@pytest.mark.parametrize("how", ["gzip", "zstd", "xz", "plain"])
def test_compression_is_told_from_the_bytes(store: ImageStore, tmp_path: Path, how: str) -> None:
    if how == "zstd" and sys.version_info < (3, 14):
        pytest.importorskip("backports.zstd", reason="no zstd: pip install pytest-sandbox[zstd]")
    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([BASE], how=how))}")
    assert "etc/passwd" in names(stack.layers[0])


def test_zstd_without_a_library_names_the_extra(store: ImageStore, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    frame = b"\x28\xb5\x2f\xfd" + bytes(40)
    for module in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "root.tar.zst"
    path.write_bytes(frame)
    with pytest.raises(ImageError, match=r"pytest-sandbox\[zstd\]"):
        store.resolve(f"rootfs:{path}")


def test_an_archive_and_a_layout_of_one_image_are_one_image(store: ImageStore, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "l", image([BASE, NEXT]))
    archive = tar_of(layout, tmp_path / "l.tar")
    assert store.resolve(f"oci:{layout}").layers == store.resolve(f"oci-archive:{archive}").layers


@pytest.mark.parametrize("how", ["plain", "gzip", "xz"])
def test_a_docker_archive_shares_layers_with_a_layout(store: ImageStore, tmp_path: Path, how: str) -> None:
    layout = write_layout(tmp_path / "l", image([BASE, NEXT]))
    archive = docker_archive(tmp_path / "d.tar", [BASE, NEXT])
    archive.write_bytes(compressed(archive.read_bytes(), how))
    stack = store.resolve(f"docker-archive:{archive}")
    assert stack.layers == store.resolve(f"oci:{layout}").layers
    assert stack.digest is None
    assert store.resolve(f"docker-archive:{archive}:example/app:1").layers == stack.layers
    with pytest.raises(ImageNotFound, match=r"example/app:1"):
        store.resolve(f"docker-archive:{archive}:other:1")


def test_a_directory_is_used_where_it_is(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir(mode=0o711)
    stack = store.resolve(f"rootfs:{tmp_path / 'root'}")
    assert stack.layers == (str(tmp_path / "root"),)
    assert not stack.immutable
    assert stack.root.mode == 0o711


@pytest.mark.parametrize("how", ["plain", "gzip"])
def test_a_tarball_is_an_image_of_one_layer(store: ImageStore, tmp_path: Path, how: str) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(compressed(BASE, how))
    stack = store.resolve(f"rootfs:{path}")
    assert names(stack.layers[0]) == set(merge(stack.layers)) - {"."}
    assert store.resolve(f"rootfs:{path}") == stack
    path.write_bytes(compressed(NEXT, how))
    os.utime(path, (1, 1))
    assert store.resolve(f"rootfs:{path}").layers != stack.layers


def test_a_second_store_finds_what_the_first_one_made(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "l", image([BASE, NEXT]))
    with ImageStore(tmp_path / "cache") as store:
        first = store.resolve(f"oci:{layout}")
        inodes = {one: os.stat(one).st_ino for one in first.layers}
    with ImageStore(tmp_path / "cache") as store:
        assert store.resolve(f"oci:{layout}") == first
        assert {one: os.stat(one).st_ino for one in first.layers} == inodes


def test_a_changed_layout_is_read_again(store: ImageStore, tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "l", image([BASE]))
    first = store.resolve(f"oci:{layout}")
    write_layout(layout, image([BASE, NEXT]))
    assert len(store.resolve(f"oci:{layout}").layers) == 2
    assert len(first.layers) == 1


def test_tags_choose_among_images(store: ImageStore, tmp_path: Path) -> None:
    one, two = image([BASE]), image([BASE, NEXT])
    layout = write_layout(tmp_path / "l", one, two, names=["one", "two"])
    assert store.resolve(f"oci:{layout}:one").digest == one.digest
    assert store.resolve(f"oci:{layout}:two").digest == two.digest
    with pytest.raises(ImageNotFound, match="one, two"):
        store.resolve(f"oci:{layout}:three")
    with pytest.raises(ImageNotFound, match="2 images"):
        store.resolve(f"oci:{layout}")


def test_an_index_is_resolved_for_the_platform(tmp_path: Path) -> None:
    arm, amd = image([BASE], architecture="arm64"), image([NEXT])
    listing = index([(arm, {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}}),
                     (amd, {"platform": {"os": "linux", "architecture": "amd64"}})])
    layout = write_layout(tmp_path / "l", arm, amd, index_bytes=listing)
    for platform, wanted in (("linux/amd64", amd), ("linux/arm64", arm), ("linux/arm64/v8", arm)):
        with ImageStore(tmp_path / "cache", platform=Platform.parse(platform)) as store:
            assert store.resolve(f"oci:{layout}").digest == wanted.digest
    with ImageStore(tmp_path / "cache", platform=Platform("linux", "s390x")) as store, \
            pytest.raises(ImageNotFound, match="linux/amd64, linux/arm64/v8"):
        store.resolve(f"oci:{layout}")


def test_every_tar_format_gives_the_same_tree(store: ImageStore, tmp_path: Path) -> None:
    long = "d" * 90 + "/" + "e" * 90
    items = [directory("d" * 90), directory(long), file(f"{long}/file", "x" * 2000, uid=12, gid=13, mode=0o4755),
             symlink("short", "l" * 150), hardlink("hard", f"{long}/file"), file("tail", "end")]
    looks = []
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        path.write_bytes(stdlib_layer(items, form))
        looks.append(look_at(store.resolve(f"rootfs:{path}").layers[0]))
    assert looks[0] == looks[1]
    assert looks[0]["short"].content == "l" * 150
    assert looks[0]["hard"].links == (f"{long}/file", "hard")
    assert looks[0]["hard"].mode == 0o4755


def test_attributes_arrive(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    path.write_bytes(layer([
        directory("d", 0o2775, mtime=1111111111), file("d/f", "x", mode=0o6711, mtime=1222222222.5,
                                                       pax={"SCHILY.xattr.user.note": b"\x00\xff"}),
        symlink("d/l", "f", mtime=1333333333), Item("d/p", "6", mode=0o622), file("zero", mode=0),
        directory("closed", 0), file("closed/inside", "in a directory that nobody may enter")]))
    found = look_at(store.resolve(f"rootfs:{path}").layers[0]) if os.geteuid() == 0 else {}
    if found:
        assert (found["d"].mode, found["d"].mtime) == (0o2775, 1111111111)
        assert (found["d/f"].mode, found["d/f"].xattrs) == (0o6711, (("user.note", b"\x00\xff"),))
        assert found["d/l"].mtime == 1333333333
        assert (found["d/p"].kind, found["d/p"].mode) == ("p", 0o622)
        assert (found["closed"].mode, found["zero"].mode) == (0, 0)
        status = os.lstat(store.resolve(f"rootfs:{path}").layers[0] + "/d/f")
        assert status.st_mtime_ns == 1222222222_500000000


def test_file_capabilities(store: ImageStore, tmp_path: Path) -> None:
    """cap_net_raw+ep, as the kernel keeps it (VFS_CAP_REVISION_2); only root may set it, others are told."""
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    path = tmp_path / "root.tar"
    path.write_bytes(layer([file("ping", "x", mode=0o755, uid=7, pax={"SCHILY.xattr.security.capability": value})]))
    stack = store.resolve(f"rootfs:{path}")
    if os.geteuid() == 0:
        assert os.getxattr(f"{stack.layers[0]}/ping", "security.capability") == value
        assert os.stat(f"{stack.layers[0]}/ping").st_uid == 7
    else:
        assert ["security.capability" in one for one in stack.notes] == [True]


def test_the_record_is_of_what_the_file_system_kept(store: ImageStore, tmp_path: Path) -> None:
    """Which has its own idea of what time can be."""
    far = {"mtime": "9" * 15}
    path = tmp_path / "root.tar"
    path.write_bytes(layer([directory("d", 0o2755, pax=far), file("d/f", pax=far), symlink("d/l", "f", pax=far),
                            directory("old", mtime=-1 << 40), directory("d/e", 0o3777, gid=4321)]))
    store.resolve(f"rootfs:{path}")
    assert verify(store) == []


def test_attributes_of_what_may_not_be_read_or_written(store: ImageStore, tmp_path: Path) -> None:
    """user.* takes the permission to write; an image's files are read-only as often as not, and /etc/shadow is 0."""
    note: dict[str, str | bytes] = {"SCHILY.xattr.user.note": "kept"}
    path = tmp_path / "root.tar"
    path.write_bytes(layer([
        file("read-only", "x", mode=0o444, pax=note), file("closed", "x", mode=0, pax=note),
        file("set-id", "x", mode=0o4555, pax=note), directory("d", 0o500, pax=note), directory("dark", 0, pax=note),
        directory("listed", 0o600, pax=note), directory("white", 0), file("white/.wh..wh..opq")]))
    stack = store.resolve(f"rootfs:{path}")
    root = Path(stack.layers[0])
    assert stack.notes == ()
    assert verify(store) == []
    modes = {}
    for name in ("read-only", "closed", "set-id", "d", "dark", "listed"):
        modes[name] = stat.S_IMODE((root / name).stat().st_mode)
        (root / name).chmod(0o700)
        assert os.getxattr(root / name, "user.note") == b"kept", name
    assert modes == {"read-only": 0o444, "closed": 0, "set-id": 0o4555, "d": 0o500, "dark": 0, "listed": 0o600}


@pytest.mark.parametrize("whiteouts", ["device", "xattr"])
def test_an_inode_number_that_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whiteouts: str) -> None:
    """What is known of a removed file is not believed of the next one that has its number."""
    probe = ingest.probe_abilities
    monkeypatch.setattr(ingest, "probe_abilities", lambda *where: replace(probe(*where), whiteouts=whiteouts))
    count = range(20)
    lower = layer([one for at in count for one in (directory(f"d{at}"), file(f"d{at}/low", "low", uid=77, gid=77))])
    items = [file("a", "a")]
    for at in count:  # each time a number is given back, and taken by what comes next
        items += [hardlink(f"d{at}/h", f"d{at}/low"), file(f"d{at}", "mine"), directory(f"e{at}"),
                  file(f"e{at}/low", "mine"), file(f"e{at}/.wh..wh..opq"),
                  file(f"x{at}", "gone", uid=9, gid=9), hardlink(f"x{at}", "a"), file(f".wh.nothing{at}")]
    with ImageStore(tmp_path / "cache") as store:
        stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([lower, layer(items)]))}")
        expected = {".", "a", *(name for at in count for name in (f"d{at}", f"e{at}", f"e{at}/low", f"x{at}"))}
        marks = {f"nothing{at}" for at in count} if whiteouts == "xattr" else set()
        assert set(merge(stack.layers)) == expected | marks
        assert verify(store) == []


def test_links_to_lower_files_that_cannot_be_read_or_are_mostly_holes(store: ImageStore, tmp_path: Path) -> None:
    huge = 60 << 30
    pieces: dict[str, str | bytes] = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(huge),
                                      "GNU.sparse.map": f"0,4,{huge - 4},4"}
    lower = layer([file("shadow", "secret", mode=0, pax={"SCHILY.xattr.user.note": "kept"}),
                   file("holes", b"headtail", pax=pieces)])
    upper = layer([hardlink("also", "shadow"), hardlink("as-well", "holes")])
    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([lower, upper]))}")
    assert verify(store) == []
    low, top = Path(stack.layers[0]), Path(stack.layers[1])
    for name in ("holes", "as-well"):
        look = (top / name).stat()
        assert (look.st_size, look.st_nlink) == (huge, 2)
        assert look.st_blocks * 512 < 1 << 20
    with open(top / "holes", "rb") as content:
        assert content.read(4) == b"head"
        content.seek(huge - 4)
        assert content.read() == b"tail"
    assert [stat.S_IMODE((one / "shadow").stat().st_mode) for one in (low, top)] == [0, 0]
    (top / "also").chmod(0o600)
    assert (top / "shadow").read_text() == "secret"
    assert os.getxattr(top / "shadow", "user.note") == b"kept"


def test_an_owner_that_the_user_namespace_does_not_have(tmp_path: Path) -> None:
    """Root in a rootless container has some ids, not all; that is no matter of the disk."""
    if os.geteuid() != 0:
        pytest.skip("only root can map several ids without a helper")
    ours = os.readlink("/proc/self/ns/user")
    for name, items in (("file", [file("x", uid=70_000)]), ("directory", [directory("x", gid=70_000)])):
        layout = write_layout(tmp_path / name, image([layer(items)]))
        script = ("import sys; from pytest_sandbox.image.store import ImageStore\n"
                  f"try: ImageStore(sys.argv[1]).resolve('oci:{layout}')\n"
                  "except Exception as error: print(type(error).__name__, error)")
        # what is executed before there is a map has no capabilities afterwards
        command = ["unshare", "--user", "sh", "-c", 'read go && exec "$@"', "sh", sys.executable, "-c", script,
                   tmp_path / "cache"]
        with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            until(lambda: os.readlink(f"/proc/{child.pid}/ns/user") != ours, "the user namespace")
            for kind in ("uid", "gid"):
                Path(f"/proc/{child.pid}/{kind}_map").write_text("0 0 65536")
            said = child.communicate("go\n", timeout=60)[0]
        assert said.startswith("LayerRejected"), said
        assert "has no id in the user namespace" in said
        assert os.listdir(tmp_path / "cache/v1/layers") == []


@pytest.mark.parametrize("ends", ["error", "killed"])
def test_trying_what_a_disk_can_do_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    reference = f"oci:{write_layout(tmp_path / 'l', image([BASE]))}"

    def fail(root: int, store: str) -> Abilities:
        os.mkdir("half", dir_fd=root)
        if ends == "killed":
            os._exit(9)
        raise OSError(5, "the disk is dying")

    monkeypatch.setattr(abilities, "_probe", fail)
    with ImageStore(tmp_path / "cache") as store:
        if ends == "error":
            with pytest.raises(StoreError, match=r"cache/v1' cannot be used: the disk is dying"):
                store.resolve(reference)
        else:
            pid = os.fork()
            if pid == 0:
                store.resolve(reference)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
            assert os.listdir(tmp_path / "cache/v1/staging")
            store.layout.sweep()
        assert os.listdir(tmp_path / "cache/v1/staging") == []


def test_the_store_is_nobody_elses(store: ImageStore) -> None:
    status = os.stat(store.layout.root)
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.geteuid()


def test_a_store_of_another_user_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a directory of another user's")
    (tmp_path / "cache" / "v1").mkdir(parents=True)
    os.chown(tmp_path / "cache" / "v1", 12345, 12345)
    with pytest.raises(StoreError, match="PYTEST_SANDBOX_CACHE"):
        ImageStore(tmp_path / "cache")


@pytest.mark.parametrize("reference", ["oci:nowhere", "oci-archive:nowhere.tar", "rootfs:nowhere"])
def test_nothing_there(store: ImageStore, reference: str) -> None:
    with pytest.raises(ImageNotFound, match="No such file"):
        store.resolve(reference)


def test_offline_names_the_command(tmp_path: Path) -> None:
    with ImageStore(tmp_path / "c", offline=True) as store, \
            pytest.raises(ImageNotFound, match="pytest-sandbox pull debian"):
        store.resolve("debian:12")


@pytest.mark.parametrize(("damage", "says"), [
    ("layer", "digest is"), ("short layer", "bytes"), ("long layer", "more than"), ("config", "bytes are"),
    ("manifest", "bytes are"), ("diff id", "diff id"), ("missing layer", "no file blobs"),
    ("not gzip", "header|archive|gzip"),
    ("two meanings", "both"), ("huge manifest", "larger"), ("schema 1", "schema 1"), ("layers", "layers"),
    ("traversal", "digest that can be checked"), ("not json", "JSON"), ("twin", "twice")])
def test_what_is_not_as_promised_is_refused_and_leaves_nothing(store: ImageStore, tmp_path: Path, damage: str,
                                                               says: str) -> None:
    import json

    made = image([BASE, NEXT])
    packed = made.layers[0]
    name = next(digest for digest, data in made.blobs.items() if data is packed)
    manifest = json.loads(made.manifest)
    listing = None
    if damage == "layer":
        made.blobs[name] = packed[:-4] + bytes([packed[-4] ^ 1]) + packed[-3:]
    elif damage == "short layer":
        made.blobs[name] = packed[:-9]
    elif damage == "long layer":
        made.blobs[name] = packed + b"\0"
    elif damage == "config":
        made.blobs[manifest["config"]["digest"]] = made.config.replace(b"amd64", b"arm64")
    elif damage == "manifest":
        made.blobs[made.digest] = made.manifest.replace(b"+gzip", b"+GZIP")
    elif damage == "diff id":
        made = image([BASE, NEXT], diff_ids=["sha256:" + "0" * 64, "sha256:" + "1" * 64])
    elif damage == "missing layer":
        del made.blobs[name]
    elif damage == "not gzip":
        made = image([b"\x1f\x8bnot gzip at all" + bytes(100)], how="plain")
    elif damage == "two meanings":
        made = image([BASE], manifest={"manifests": []})
    elif damage == "huge manifest":
        made = image([BASE], manifest={"padding": "x" * (5 << 20)})
    elif damage == "schema 1":
        made = image([BASE], manifest={"schemaVersion": 1})
    elif damage == "layers":
        made = image([BASE], manifest={"layers": manifest["layers"]})
    elif damage == "traversal":
        made = image([BASE], manifest={"config": {**manifest["config"], "digest": "sha256:../../../../etc/passwd"}})
    elif damage == "not json":
        listing = b"{"
    elif damage == "twin":
        listing = index([(made, {})]).replace(b'{"schemaVersion"', b'{"schemaVersion": 2, "schemaVersion"', 1)
    with pytest.raises(ImageError, match=says) as caught:
        store.resolve(f"oci:{write_layout(tmp_path / 'l', made, index_bytes=listing)}")
    assert isinstance(caught.value, ImageCorrupt) or damage in ("schema 1", "traversal")
    assert clean(store)
    assert not store.layout.keys("images")


def test_a_layer_that_depends_on_those_below_is_kept_for_each_stack(store: ImageStore, tmp_path: Path) -> None:
    above = layer([file("srv/late", "x"), hardlink("etc/alias", "etc/passwd")])
    other = layer([directory("srv", 0o700, uid=3), directory("etc"), file("etc/passwd", "other")])
    one = store.resolve(f"oci:{write_layout(tmp_path / 'one', image([BASE, above]))}")
    two = store.resolve(f"oci:{write_layout(tmp_path / 'two', image([other, above]))}")
    assert one.layers[1] != two.layers[1]
    first, second = merge(one.layers), merge(two.layers)
    assert (first["srv"].mode, first["srv"].mtime) == (0o750, 1234567890)
    assert second["srv"].mode == 0o700
    assert first["etc/alias"].content == first["etc/passwd"].content != second["etc/alias"].content
    assert first["etc/alias"].links == ("etc/alias", "etc/passwd")
    if os.geteuid() == 0:
        assert (first["srv"].uid, first["srv"].gid, second["srv"].uid) == (7, 8, 3)


def test_a_name_goes_through_a_lower_layers_link(store: ImageStore, tmp_path: Path) -> None:
    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([BASE, layer([file('lib/x.so', 'x')])]))}")
    merged = merge(stack.layers)
    assert merged["lib"].kind == "l"
    assert "usr/lib/x.so" in merged
    assert "usr/lib/libc.so" in merged


def test_equal_layers_are_mounted_once(store: ImageStore, tmp_path: Path) -> None:
    back = layer([directory("etc"), file("etc/passwd", "again")])
    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([BASE, back, NEXT, back]))}")
    assert len(stack.layers) == 3
    assert "etc/passwd" in merge(stack.layers)


def test_a_layer_may_hide_everything_below(store: ImageStore, tmp_path: Path) -> None:
    top = layer([file(".wh..wh..opq"), file("alone", "x")])
    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([BASE, top]))}")
    assert set(merge(stack.layers)) == {".", "alone"}


def test_an_image_without_layers_is_an_empty_root(store: ImageStore, tmp_path: Path) -> None:
    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([]))}")
    assert len(stack.layers) == 1
    assert names(stack.layers[0]) == set()


def test_unprivileged() -> None:
    """As an ordinary user: owners become the caller, devices are left out and said so, the rest is the same."""
    if os.geteuid() != 0:
        pytest.skip("this runs the other tests as a user already")
    with tempfile.TemporaryDirectory() as name:
        _unprivileged(Path(name))


def _unprivileged(tmp_path: Path) -> None:
    write_layout(tmp_path / "l", image([BASE, layer([Item("null", "3", device=(1, 3)), directory("closed", 0o100),
                                                     file("closed/x", "x", mode=0), file("etc/.wh.passwd"),
                                                     directory("srv", 0o500), file("srv/.wh..wh..opq")])]))
    for base, directories, files in os.walk(tmp_path):
        for one in [base, *(os.path.join(base, name) for name in directories + files)]:
            os.chmod(one, 0o755)
    os.chmod(tmp_path, 0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 4321, 4321)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(4321)
            os.setuid(4321)
            with ImageStore(home) as store:
                stack = store.resolve(f"oci:{tmp_path / 'l'}")
                assert stack.overlay_xattrs == ("user.overlay.",)
                assert any("null" in note for note in stack.notes), stack
                assert os.lstat(f"{stack.layers[0]}/srv").st_uid == 4321
                assert os.lstat(f"{stack.layers[1]}/etc/passwd").st_rdev == 0
                assert os.getxattr(f"{stack.layers[1]}/srv", "user.overlay.opaque") == b"y"
                assert os.lstat(f"{stack.layers[1]}/closed").st_mode & 0o777 == 0o100
            status = 0
        except BaseException:  # noqa: BLE001 - a child of fork reports through its status
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_many_processes_want_one_image(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "l", image([BASE, NEXT, layer([file("x", os.urandom(1 << 20))])]))
    script = ("import sys; from pytest_sandbox.image.store import ImageStore\n"
              "with ImageStore(sys.argv[1]) as store: print(*store.resolve(sys.argv[2]).layers)")
    command = [sys.executable, "-c", script, tmp_path / "cache", f"oci:{layout}"]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(6)]
    outputs = {run.communicate()[0] for run in runs}
    assert all(run.returncode == 0 for run in runs)
    assert len(outputs) == 1
    with ImageStore(tmp_path / "cache") as store:
        assert clean(store)
        assert len(store.layout.keys("layers")) == 3


@pytest.mark.parametrize("ends", ["close", "exit", "fork"])
def test_what_a_dead_process_left_goes_when_a_pull_s_process_ends(tmp_path: Path, ends: str) -> None:
    """Not at the pull, which a test may wait for."""
    layout = write_layout(tmp_path / "l", image([BASE]))
    with ImageStore(tmp_path / "cache") as store:
        left = Path(store.layout.staging("dead"))
        (left / "fs/deep").mkdir(parents=True)
        Path(f"{left}.lock").touch()
        full = store.layout.is_nearly_full()
    script = """if True:
        import os, sys
        from pytest_sandbox.image.store import ImageStore
        store = ImageStore(sys.argv[1])
        store.resolve(sys.argv[2])
        print(os.path.isdir(sys.argv[3]), flush=True)
        if sys.argv[4] == "close":
            store.close()
        elif sys.argv[4] == "fork":
            if os.fork() == 0:
                sys.exit()  # as any process ends
            os.wait()
        print(os.path.isdir(sys.argv[3]), flush=True)
    """
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "cache", f"oci:{layout}", left, ends],
                          capture_output=True, text=True, check=True)
    there = [not full, not full and ends != "close"]
    assert done.stdout.split() == [str(one) for one in there]
    assert clean(store)


def test_stacks_are_plain_data(store: ImageStore, tmp_path: Path) -> None:
    import pickle

    stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image([BASE]))}")
    assert isinstance(stack, LayerStack)
    assert pickle.loads(pickle.dumps(stack)) == stack
    assert hash(stack)


def test_an_error_of_one_layer_ends_the_others(store: ImageStore, tmp_path: Path) -> None:
    bad = layer([Item("x", "9")])
    with pytest.raises(LayerRejected, match="type"):
        store.resolve(f"oci:{write_layout(tmp_path / 'l', image([BASE, NEXT, bad]))}")
    assert clean(store)
    assert store.resolve(f"oci:{write_layout(tmp_path / 'm', image([BASE, NEXT]))}")
