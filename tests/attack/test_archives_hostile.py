"""Archives, layouts, compressed streams and documents that are not what they say, or would keep us busy for ever."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imagemaker import (
    Image,
    Item,
    digest,
    directory,
    file,
    header,
    image,
    index,
    layer,
    padded,
    pax_record,
    tar_of,
    write_layout,
)

from pytest_sandbox import ImageCorrupt, ImageError, ImageNotFound
from pytest_sandbox.image.collect import verify
from pytest_sandbox.image.compression import Limits
from pytest_sandbox.image.manifest import LayerStack
from pytest_sandbox.image.store import ImageStore

PLAIN = layer([file("x", "y")])
PACKED = gzip.compress(PLAIN, mtime=0)
APP = image([PLAIN])
BLOB = f"blobs/sha256/{json.loads(APP.manifest)['layers'][0]['digest'][7:]}"


def resolve(reference: str, tmp_path: Path) -> LayerStack:
    """The image, and the certainty that nothing is left of a failure."""
    with ImageStore(tmp_path / "cache") as store:
        try:
            return store.resolve(reference)
        finally:
            assert store.layout.keys("staging") == []
            assert store.layout.keys("trash") == []


def names(stack: LayerStack) -> list[str]:
    return sorted(os.listdir(stack.layers[-1]))


# Compressed streams.

def with_layer(blob: bytes, plain: bytes = PLAIN) -> Image:
    """An image whose one layer is ``blob``, which should come to ``plain``."""
    made = image([plain], how="plain")
    document = json.loads(made.manifest)
    document["layers"][0].update(digest=digest(blob), size=len(blob))
    body = json.dumps(document).encode()
    return Image(body, made.config, [blob], {**made.blobs, digest(blob): blob, digest(body): body})


def zstd(data: bytes) -> bytes:
    from backports import zstd

    return zstd.compress(data)


SKIPPED = b"\x50\x2a\x4d\x18" + struct.pack("<I", 10) + bytes(10)  # a frame without content
def needs_zstd(name: str) -> None:
    if name.startswith("zstd"):  # made with it, whatever reads it
        pytest.importorskip("backports.zstd", reason="no zstd: pip install pytest-sandbox[zstd]")


GOOD_STREAMS: dict[str, Callable[[], bytes]] = {
    "gzip, zeros behind it": lambda: PACKED + bytes(5000),
    "gzip of two members": lambda: gzip.compress(PLAIN[:700]) + gzip.compress(PLAIN[700:]),
    "gzip of a member a byte": lambda: b"".join(gzip.compress(PLAIN[at:at + 1]) for at in range(len(PLAIN))),
    "gzip, an empty member first": lambda: gzip.compress(b"") + PACKED,
    "gzip with a name of 3 MB": lambda: PACKED[:3] + b"\x08" + PACKED[4:10] + b"n" * 3_000_000 + b"\0" + PACKED[10:],
    "zstd of two frames": lambda: zstd(PLAIN[:600]) + zstd(PLAIN[600:]),
    "zstd, frames to skip": lambda: SKIPPED + zstd(PLAIN) + SKIPPED,
    "zstd, zeros behind it": lambda: zstd(PLAIN) + bytes(100),
    "xz": lambda: lzma.compress(PLAIN),
    "xz of two streams": lambda: lzma.compress(PLAIN[:600]) + lzma.compress(PLAIN[600:]),
    "xz with padding": lambda: lzma.compress(PLAIN) + bytes(4),
    "bzip2": lambda: bz2.compress(PLAIN),
}


@pytest.mark.parametrize("name", GOOD_STREAMS)
def test_streams_that_are_unusual(name: str, tmp_path: Path) -> None:
    needs_zstd(name)
    reference = f"oci:{write_layout(tmp_path / 'layout', with_layer(GOOD_STREAMS[name]()))}"
    assert names(resolve(reference, tmp_path)) == ["x"]


def window(exponent: int) -> bytes:
    """A zstd frame that wants so much memory."""
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(exponent - 10) << 3]) + b"\x01\x00\x00"


BAD_STREAMS: dict[str, tuple[Callable[[], bytes], str]] = {
    "gzip, garbage behind it": (lambda: PACKED + b"garbage", "something follows its gzip data"),
    "gzip, half a member behind it": (lambda: PACKED + b"\x1f\x8bx", "gzip data ends early"),
    "gzip, zeros between members": (lambda: gzip.compress(PLAIN[:700]) + bytes(9) + gzip.compress(PLAIN[700:]),
                                    "something follows"),
    "gzip cut off": (lambda: PACKED[:-5], "ends early"),
    "gzip with a wrong sum": (lambda: PACKED[:-8] + bytes(4) + PACKED[-4:], "gzip data is broken"),
    "gzip with a wrong length": (lambda: PACKED[:-4] + b"\1\0\0\0", "gzip data is broken"),
    "gzip with a name without end": (lambda: PACKED[:3] + b"\x08" + PACKED[4:10] + b"n" * 3_000_000, "ends early"),
    "two bytes of gzip": (lambda: b"\x1f\x8b", "ends early"),
    "zstd, garbage behind it": (lambda: zstd(PLAIN) + b"garbage", "something follows its zstd data"),
    "zstd cut off": (lambda: zstd(PLAIN)[:-3], "ends early"),
    "zstd that skips 4 GiB": (lambda: b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + bytes(100), "ends early"),
    "zstd with a window of 2 GiB": (lambda: window(31), "zstd data is broken.*memory"),
    "zstd with a window of 2 TiB": (lambda: window(41), "zstd data is broken.*memory"),
    "zstd with a dictionary": (lambda: b"\x28\xb5\x2f\xfd\x03\x58\1\2\3\4\1\0\0", "zstd data is broken"),
    "xz with a dictionary of 1.5 GiB": (
        lambda: lzma.compress(PLAIN, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 3 << 29}]),
        "xz data is broken.*[Mm]emory"),
    "xz, garbage behind it": (lambda: lzma.compress(PLAIN) + b"garbage", "something follows its xz data"),
    "a web page": (lambda: b"<html>" + b" " * 600, "it is no tar archive.*begins with '<html>"),
    "a zip": (lambda: b"PK\x03\x04" + bytes(600), "it is no tar archive.*begins with 'PK"),
    "one byte": (lambda: b"\x1f", "it is no tar archive"),
}


@pytest.mark.parametrize("name", BAD_STREAMS)
def test_streams_that_are_broken(name: str, tmp_path: Path) -> None:
    needs_zstd(name)
    make, says = BAD_STREAMS[name]
    reference = f"oci:{write_layout(tmp_path / 'layout', with_layer(make()))}"
    with pytest.raises(ImageError, match=says):
        resolve(reference, tmp_path)


# Layouts.

def replaced(path: Path, make: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


@pytest.mark.parametrize("name", [BLOB, f"blobs/sha256/{digest(APP.config)[7:]}", "index.json"])
@pytest.mark.parametrize("kind", ["pipe", "directory", "endless", "absent"])
def test_what_should_be_a_file_is_something_else(kind: str, name: str, tmp_path: Path) -> None:
    """A named pipe nobody writes to, or a device without an end, would be waited for in vain."""
    layout = write_layout(tmp_path / "layout", APP)
    replaced(layout / name, {"pipe": os.mkfifo, "directory": Path.mkdir, "absent": lambda path: None,
                             "endless": lambda path: path.symlink_to("/dev/zero")}[kind])
    with pytest.raises(ImageCorrupt, match=f"there is no file {name} in it"):
        resolve(f"oci:{layout}", tmp_path)


def test_a_blob_that_leads_out_is_compared_like_any_other(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", APP)
    replaced(layout / BLOB, lambda path: path.symlink_to("/etc/passwd"))
    with pytest.raises(ImageCorrupt, match="layer sha256:"):
        resolve(f"oci:{layout}", tmp_path)
    assert os.listdir(tmp_path / "cache/v1/layers") == []


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive", "rootfs"])
@pytest.mark.parametrize("what", ["pipe", "device", "text", "absent"])
def test_what_should_be_an_archive_is_something_else(kind: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "text":
        path.write_text("root:x:0:0:root:/root:/bin/sh\n" * 100)
    elif what == "device":
        path = Path("/dev/zero")
    says = {"pipe": "neither a directory nor a file|is not a file", "device": "neither a directory nor a file|is not a",
            "text": "no tar archive.*begins with 'root:x:0:0:root:'", "absent": "No such file"}[what]
    with pytest.raises(ImageNotFound if what == "absent" else ImageError, match=says):
        resolve(f"{kind}:{path}", tmp_path)


# What docker save writes.

DOCKER = image([PLAIN], how="plain")


def docker_archive(path: Path, members: dict[str, bytes | tuple[str, str]], **listed: Any) -> Path:
    """An archive with a configuration, ``members`` (content; or kind and target of a link), and a manifest."""
    stated = {"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["l.tar"], **listed}
    with tarfile.open(path, "w") as tar:
        for name, what in {"c.json": DOCKER.config, **members, "manifest.json": json.dumps([stated]).encode()}.items():
            info = tarfile.TarInfo(name)
            if isinstance(what, tuple):
                info.type, info.linkname = (tarfile.SYMTYPE if what[0] == "2" else tarfile.LNKTYPE), what[1]
                tar.addfile(info)
            else:
                info.size = len(what)
                tar.addfile(info, io.BytesIO(what))
    return path


@pytest.mark.parametrize("members", [
    {"l.tar": PLAIN}, {"real.tar": PLAIN, "l.tar": ("2", "real.tar")}, {"real.tar": PLAIN, "l.tar": ("1", "real.tar")},
    {"a/real.tar": PLAIN, "l.tar": ("2", "./b/../a/real.tar")}, {"l.tar": PACKED},
    {"l.tar": ("2", "real.tar"), "real.tar": PLAIN},
    {"l.tar": ("2", "a/l.tar"), "b/real.tar": b"", "a/l.tar": ("2", "../b/real.tar"), "./b/real.tar": PLAIN},
    {"real.tar": PLAIN, "l.tar": ("1", "real.tar"), "./real.tar": b"another"}])
def test_layers_of_docker_archives_may_be_linked_or_packed(members: dict[str, Any], tmp_path: Path) -> None:
    assert names(resolve(f"docker-archive:{docker_archive(tmp_path / 'a.tar', members)}", tmp_path)) == ["x"]


@pytest.mark.parametrize(("members", "listed", "says"), [
    ({"l.tar": ("2", "/etc/passwd")}, {}, "no file l.tar"), ({"l.tar": ("2", "l.tar")}, {}, "no file l.tar"),
    ({"l.tar": ("1", "../../etc/passwd")}, {}, "no file l.tar"), ({}, {}, "no file l.tar"),
    ({"l.tar": ("2", "m.tar"), "m.tar": ("2", "l.tar")}, {}, "no file l.tar"),
    ({"l.tar": ("1", "real.tar"), "real.tar": PLAIN}, {}, "no file l.tar"),
    ({"l.tar": PLAIN, "./l.tar": ("2", "nothing")}, {}, "no file l.tar"),
    ({"l.tar": PLAIN}, {"Config": "../../../../etc/passwd"}, "no file .*passwd in it"),
    ({"l.tar": PLAIN}, {"Config": 5}, "names no configuration"), ({"l.tar": PLAIN}, {"Layers": "l.tar"}, "no layers"),
    ({"l.tar": PLAIN}, {"Layers": [5]}, "layers"), ({"l.tar": PLAIN}, {"Layers": []}, "has 0 layers"),
    ({"l.tar": PLAIN}, {"RepoTags": [5, {}]}, "RepoTags"), ({"l.tar": PLAIN}, {"RepoTags": "a:1"}, "RepoTags"),
    ({"l.tar": layer([file("other")])}, {}, "diff id"), ({"l.tar": PLAIN}, {"x": "y" * (5 << 20)}, "larger than")])
def test_docker_archives_that_lie(members: dict[str, Any], listed: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ImageCorrupt, match=says):
        resolve(f"docker-archive:{docker_archive(tmp_path / 'a.tar', members, **listed)}", tmp_path)


@pytest.mark.parametrize("cut", [100, 2000, 3000])
def test_archives_that_end_early(cut: int, tmp_path: Path) -> None:
    path = docker_archive(tmp_path / "a.tar", {"l.tar": PLAIN})
    os.truncate(path, cut)
    with pytest.raises(ImageCorrupt, match=r"a\.tar"):
        resolve(f"docker-archive:{path}", tmp_path)


def test_a_packed_archive_that_expands_without_end(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=9) as out:
        for _ in range(300):
            out.write(bytes(1 << 20))
    with pytest.raises(ImageCorrupt, match="expands to more than"):
        resolve(f"docker-archive:{path}", tmp_path)


def test_a_tarball_that_expands_without_end(tmp_path: Path) -> None:
    """It has to be read once to know what it is called, and that once is enough."""
    path = tmp_path / "bomb.tar.gz"
    with gzip.open(path, "wb", compresslevel=9) as out:
        out.write(layer([file("x")])[:-1024])
        for _ in range(20):
            out.write(bytes(1 << 20))
    with ImageStore(tmp_path / "cache", limits=Limits(ratio=50, ratio_from=1 << 20)) as store:
        with pytest.raises(ImageCorrupt, match=r"expands to more than .* PYTEST_SANDBOX_LAYER_LIMITS"):
            store.resolve(f"rootfs:{path}")
        assert os.listdir(tmp_path / "cache/v1/layers") == []


def test_images_that_share_a_tag_have_to_be_named_in_full(tmp_path: Path) -> None:
    """Also where each says what it is made for: these are two images, not one for two platforms."""
    one, two = image([PLAIN]), image([layer([file("z")])])
    for more in ({}, {"platform": {"os": "linux", "architecture": "amd64"}}):
        listing = index([(made, {"annotations": {"org.opencontainers.image.ref.name": "1",
                                                 "io.containerd.image.name": f"r.example/{name}:1"}, **more})
                         for made, name in ((one, "one"), (two, "two"))])
        layout = write_layout(tmp_path / f"layout{len(more)}", one, two, index_bytes=listing)
        packed = tar_of(layout, tmp_path / f"packed{len(more)}.tar")
        for reference in (f"oci:{layout}", f"oci-archive:{packed}"):
            for tag in ("", ":1"):
                with pytest.raises(ImageNotFound, match=r"2 images.*r\.example/one:1, r\.example/two:1"):
                    resolve(f"{reference}{tag}", tmp_path)
            assert names(resolve(f"{reference}:r.example/one:1", tmp_path)) == ["x"]
            assert names(resolve(f"{reference}:r.example/two:1", tmp_path)) == ["z"]


# Documents.

def changed(place: list[str | int], value: Any) -> Image:
    document = json.loads(APP.manifest)
    here = document
    for key in place[:-1]:
        here = here[key]
    here[place[-1]] = value
    body = json.dumps(document).encode()
    return Image(body, APP.config, APP.layers, {**APP.blobs, digest(body): body})


@pytest.mark.parametrize(("place", "value"), [
    (["annotations"], 5), (["annotations"], {"a": 1}), (["layers", 0, "annotations"], {"x": None}),
    (["layers", 0, "urls"], ["http://169.254.169.254/"]), (["layers", 0, "urls"], 5), (["layers", 0, "data"], "AAAA"),
    (["layers", 0, "mediaType"], "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
    (["layers", 0, "mediaType"], "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
    (["layers", 0, "platform"], "x"), (["subject"], 5), (["artifactType"], "application/x")])
def test_oddities_that_change_nothing(place: list[str | int], value: Any, tmp_path: Path) -> None:
    reference = f"oci:{write_layout(tmp_path / 'layout', changed(place, value))}"
    assert names(resolve(reference, tmp_path)) == ["x"]


@pytest.mark.parametrize(("place", "value"), [
    (["layers", 0, "size"], 1.5), (["layers", 0, "size"], -1), (["layers", 0, "size"], True),
    (["layers", 0, "size"], 1 << 62), (["layers", 0, "size"], "5"), (["layers", 0, "mediaType"], None),
    (["layers", 0, "digest"], "sha256:../../../etc/passwd"), (["layers", 0, "digest"], "sha256:" + "A" * 64),
    (["layers", 0, "digest"], "md5:" + "a" * 32), (["layers", 0, "digest"], 5), (["layers"], None), (["layers"], {}),
    (["layers"], []), (["layers"], [None]), (["layers", 0, "annotations"], 7), (["config"], None), (["config"], []),
    (["config", "size"], 0), (["schemaVersion"], 1), (["schemaVersion"], "2"), (["mediaType"], 5),
    (["mediaType"], "application/vnd.oci.image.index.v1+json"), (["manifests"], [])])
def test_manifests_that_cannot_be(place: list[str | int], value: Any, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        resolve(f"oci:{write_layout(tmp_path / 'layout', changed(place, value))}", tmp_path)


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{}", b"\xef\xbb\xbf{}", '{"a": 1}'.encode("utf-16"), b"[" * 100_000, b'{"schemaVersion": 2}\0',
    b'{"schemaVersion": ' + b"9" * 10_000 + b"}", b'{"schemaVersion": NaN}',
    b'{"schemaVersion": 2, "schemaVersion": 2, "config": {}, "layers": []}'])
def test_bytes_that_are_no_manifest(body: bytes, tmp_path: Path) -> None:
    made = Image(body, APP.config, APP.layers, {**APP.blobs, digest(body): body})
    with pytest.raises(ImageError):
        resolve(f"oci:{write_layout(tmp_path / 'layout', made)}", tmp_path)


@pytest.mark.parametrize("config", [
    {"Env": "A=b"}, {"Env": [5]}, {"Env": ["=b"]}, {"Env": ["A=\0"]}, {"Env": ["A=\ud800"]}, {"Entrypoint": "sh"},
    {"Cmd": {}}, {"User": 5}, {"WorkingDir": "/a\0"}, {"StopSignal": 9}, {"Labels": ["x"]}])
def test_configurations_that_cannot_be(config: dict[str, Any], tmp_path: Path) -> None:
    made = image([PLAIN], config=config)
    with pytest.raises(ImageCorrupt):
        resolve(f"oci:{write_layout(tmp_path / 'layout', made)}", tmp_path)


def test_indexes_within_indexes_come_to_an_end(tmp_path: Path) -> None:
    platform = {"platform": {"os": "linux", "architecture": "amd64"}}
    blobs: dict[str, bytes] = dict(APP.blobs)
    descriptor = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": APP.digest,
                  "size": len(APP.manifest), **platform}
    for depth in range(6):
        body = index([], manifests=[descriptor])
        blobs[digest(body)] = body
        layout = write_layout(tmp_path / f"layout{depth}", Image(b"", APP.config, APP.layers, blobs), index_bytes=body)
        if depth < 4:
            assert names(resolve(f"oci:{layout}", tmp_path)) == ["x"]
        else:
            with pytest.raises(ImageCorrupt, match="indexes within indexes"):
                resolve(f"oci:{layout}", tmp_path)
        descriptor = {"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest(body),
                      "size": len(body), **platform}


# Sparse files.

@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files_as_gnu_tar_writes_them(form: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "holes", "wb") as out:
        for at in range(1, 40):  # more pieces than fit into one header
            out.seek(at << 20)
            out.write(b"A" * (5000 + at))
        out.truncate(50 << 20)
    how = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    made = subprocess.run(["tar", "-S", *how, "-cf", "-", "holes"], cwd=source, capture_output=True, check=True).stdout
    assert len(made) < 1 << 20
    stack = resolve(f"oci:{write_layout(tmp_path / 'layout', image([made]))}", tmp_path)
    there = Path(stack.layers[0]) / "holes"
    assert there.read_bytes() == (source / "holes").read_bytes()
    assert there.stat().st_blocks * 512 < 4 << 20


SPARSE_HEADERS: dict[str, tuple[list[tuple[str, str]], bytes]] = {
    "of two sizes the first kind": ([("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"), ("GNU.sparse.map", "0,4"),
                                     ("GNU.sparse.realsize", "9"), ("GNU.sparse.size", "6")], b"1234\0\0"),
    "of two maps the pairs": ([("GNU.sparse.size", "6"), ("GNU.sparse.map", "0,4"), ("GNU.sparse.offset", "2"),
                               ("GNU.sparse.numbytes", "4")], b"\0\0" + b"1234"),
    "half a version is none": ([("GNU.sparse.minor", "1"), ("GNU.sparse.map", "2,4"), ("GNU.sparse.size", "6")],
                               b"1234"),
    "an unknown version is none": ([("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0"), ("GNU.sparse.map", "2,4"),
                                    ("GNU.sparse.name", "evil"), ("GNU.sparse.size", "6")], b"1234"),
    "no version and no map is none": ([("GNU.sparse.name", "evil"), ("GNU.sparse.size", "6")], b"1234"),
}


@pytest.mark.parametrize("name", SPARSE_HEADERS)
def test_headers_of_sparse_files_mean_what_they_mean_to_go(name: str, tmp_path: Path) -> None:
    records, content = SPARSE_HEADERS[name]
    data = b"".join(pax_record(key, value) for key, value in records)
    made = layer([header(Item("p", "x", data), b"p", b"") + padded(data), file("plain", "1234")])
    stack = resolve(f"oci:{write_layout(tmp_path / 'layout', image([made]))}", tmp_path)
    assert names(stack) == ["plain"]
    assert (Path(stack.layers[0]) / "plain").read_bytes() == content


def test_holes_cost_nothing_and_changes_between_them_are_found(tmp_path: Path) -> None:
    """Thirty files of 60 GiB each: whoever read them would read for a quarter of an hour."""
    huge = 60 << 30
    sparse = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(huge),
              "GNU.sparse.map": f"0,4,{huge - 4},4"}
    made = image([layer([directory("d"), *(file(f"d/{at}", b"headtail", pax=sparse) for at in range(30))])])
    with ImageStore(tmp_path / "cache") as store:
        stack = store.resolve(f"oci:{write_layout(tmp_path / 'layout', made)}")
        assert verify(store) == []
        one = Path(stack.layers[0]) / "d/7"
        look = one.stat()
        assert look.st_size == huge
        with open(one, "r+b") as out:
            out.seek(huge // 2)
            out.write(b"changed")
        os.utime(one, ns=(look.st_mtime_ns, look.st_mtime_ns))
        (found,) = verify(store)
        assert (found.path, found.kind) == ("./d/7", "changed")
        assert "sha256extents" in found.what
