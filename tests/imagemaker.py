"""Makes layers and images for tests, by hand: also those that no tool would make. Uses nothing of the code under test.

A layer is a list of :class:`Item`; what the format allows and the standard library would refuse is written as it is.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Item:
    """One member. ``raw`` replaces bytes of the finished header (offset to bytes), the checksum is made right again."""

    name: str | bytes
    kind: str = "0"
    data: bytes = b""
    link: str | bytes = ""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_000_000_000
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str | bytes] = field(default_factory=dict)
    size: int | None = None
    raw: dict[int, bytes] = field(default_factory=dict)


def directory(name: str | bytes, mode: int = 0o755, **more: Any) -> Item:
    return Item(name, "5", mode=mode, **more)


def file(name: str | bytes, data: bytes | str = b"", **more: Any) -> Item:
    return Item(name, "0", data.encode() if isinstance(data, str) else data, **more)


def symlink(name: str | bytes, to: str | bytes, **more: Any) -> Item:
    return Item(name, "2", link=to, mode=0o777, **more)


def hardlink(name: str | bytes, to: str | bytes, **more: Any) -> Item:
    return Item(name, "1", link=to, **more)


def _bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def header(item: Item, name: bytes, link: bytes) -> bytes:
    size = len(item.data) if item.size is None else item.size
    block = bytearray(512)

    def put(at: int, value: bytes) -> None:
        block[at:at + len(value)] = value

    put(0, name[:100])
    put(100, b"%07o\0" % item.mode)
    put(108, b"%07o\0" % min(item.uid, 0o7777777))
    put(116, b"%07o\0" % min(item.gid, 0o7777777))
    put(124, b"%011o\0" % size)
    put(136, b"%011o\0" % max(0, int(item.mtime)))
    put(156, item.kind.encode("latin-1"))
    put(157, link[:100])
    put(257, b"ustar\x0000")
    put(329, b"%07o\0" % item.device[0])
    put(337, b"%07o\0" % item.device[1])
    for at, value in item.raw.items():
        put(at, value)
    put(148, b" " * 8)
    put(148, b"%06o\0 " % sum(block))
    return bytes(block)


def pax_record(key: str | bytes, value: str | bytes) -> bytes:
    body = b" " + _bytes(key) + b"=" + _bytes(value) + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(item: Item) -> bytes:
    """One member with the extended header that it needs."""
    name, link = _bytes(item.name), _bytes(item.link)
    records = dict(item.pax)
    if len(name) > 100 and "path" not in records:
        records["path"] = name
    if len(link) > 100 and "linkpath" not in records:
        records["linkpath"] = link
    if item.mtime != int(item.mtime) or item.mtime < 0:
        records.setdefault("mtime", repr(item.mtime))
    for key, value in (("uid", item.uid), ("gid", item.gid)):
        if value > 0o7777777:
            records.setdefault(key, str(value))
    out = b""
    if records:
        data = b"".join(pax_record(key, value) for key, value in records.items())
        out += header(Item("PaxHeaders/x", "x", data), b"PaxHeaders/x", b"") + padded(data)
    return out + header(item, name, link) + padded(item.data)


def layer(items: Iterable[Item | bytes]) -> bytes:
    """A layer's archive, plain. Bytes among the items are put in as they are."""
    return b"".join(one if isinstance(one, bytes) else member(one) for one in items) + bytes(1024)


def stdlib_layer(items: Sequence[Item], form: int) -> bytes:
    """The same through the standard library, in one of its formats."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for one in items:
            info = tarfile.TarInfo(_bytes(one.name).decode("utf-8", "surrogateescape"))
            info.type, info.mode, info.uid, info.gid = one.kind.encode(), one.mode, one.uid, one.gid
            info.mtime = one.mtime if form == tarfile.PAX_FORMAT else int(one.mtime)
            info.linkname, info.size = _bytes(one.link).decode("utf-8", "surrogateescape"), len(one.data)
            info.devmajor, info.devminor = one.device
            info.pax_headers = {key: value for key, value in one.pax.items() if isinstance(value, str)}
            tar.addfile(info, io.BytesIO(one.data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def compressed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if how == "zstd":
        from backports import zstd

        return zstd.compress(data)
    if how == "xz":
        import lzma

        return lzma.compress(data, preset=0)
    return data


@dataclass
class Image:
    """One image's blobs. ``blobs`` go by digest and may be changed before they are written."""

    manifest: bytes
    config: bytes
    layers: list[bytes]
    blobs: dict[str, bytes]

    @property
    def digest(self) -> str:
        return digest(self.manifest)


def image(layers: Sequence[bytes], *, how: str = "gzip", config: dict[str, Any] | None = None, docker: bool = False,
          architecture: str = "amd64", diff_ids: Sequence[str] | None = None,
          manifest: dict[str, Any] | None = None) -> Image:
    """An image of plain layer archives; ``manifest`` and ``diff_ids`` replace what would be true."""
    packed = [compressed(one, how) for one in layers]
    document = json.dumps({
        "architecture": architecture, "os": "linux", "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids or [digest(one) for one in layers])},
        "history": [{"created_by": "test"} for _ in layers]}).encode()
    kind = ("application/vnd.docker.image.rootfs.diff.tar.gzip" if docker
            else "application/vnd.oci.image.layer.v1.tar+gzip")
    stated = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json" if docker
        else "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json" if docker
                   else "application/vnd.oci.image.config.v1+json", "digest": digest(document), "size": len(document)},
        "layers": [{"mediaType": kind, "digest": digest(one), "size": len(one)} for one in packed],
    }
    body = json.dumps({**stated, **(manifest or {})}).encode()
    return Image(body, document, packed, {digest(one): one for one in [*packed, document, body]})


def index(images: Sequence[tuple[Image, dict[str, Any]]], **more: Any) -> bytes:
    """An index of images, each with the descriptor fields that go with it (platform, annotations)."""
    return json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": one.digest,
                       "size": len(one.manifest), **fields} for one, fields in images], **more}).encode()


def write_layout(path: Path, *images: Image, names: Sequence[str] = ("latest",),
                 index_bytes: bytes | None = None) -> Path:
    """An OCI layout on disk."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    for one in images:
        for name, data in one.blobs.items():
            (blobs / name.partition(":")[2]).write_bytes(data)
    fields = [(one, {"annotations": {"org.opencontainers.image.ref.name": name}})
              for one, name in zip(images, names, strict=False)]
    (path / "index.json").write_bytes(index_bytes if index_bytes is not None else index(fields))
    return path


def tar_of(directory_path: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as tar:
        for one in sorted(directory_path.rglob("*")):
            tar.add(one, arcname=str(one.relative_to(directory_path)), recursive=False)
    return target


def docker_archive(path: Path, layers: Sequence[bytes], *, tags: Sequence[str] = ("example/app:1",),
                   config: dict[str, Any] | None = None) -> Path:
    """What ``docker save`` wrote before version 25: the configuration by digest, a directory for each layer."""
    made = image(layers, how="plain", config=config)
    files = {f"{digest(made.config)[7:]}.json": made.config}
    names = []
    for one in layers:
        names.append(f"{digest(one)[7:]}/layer.tar")
        files[names[-1]] = one
    files["manifest.json"] = json.dumps([{"Config": f"{digest(made.config)[7:]}.json", "RepoTags": list(tags),
                                          "Layers": names}]).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
