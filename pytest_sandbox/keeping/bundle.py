"""A kept test as one file, for another machine or another cache: an OCI layout with a record in it.

The image in it is the state in which the test was kept, as podman and Docker load it: the layers that it had started
from, then what the test had changed. Of a test on the host there is no more than what had been changed. What comes in
is checked as any image is; the record and the output are bounded and read as data.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import planning
from ..errors import ImageError, KeptTestError
from ..image.archive import OciSource, TarFiles
from ..image.commit import change_config, empty_document, now
from ..image.diff import open_archive
from ..image.export import add_member, layer_file, layers_source, write_layout
from ..image.layout import store_error
from ..image.manifest import OCI_LAYER, Descriptor, digest_of, parse_config
from ..image.reference import ArchiveReference
from ..image.restack import below
from ..image.source import SourceImage
from .opening import plain_layer, start_image
from .record import KeptLayer, Record, Start
from .shelf import Bounds, Draft, Kept, Shelf

if TYPE_CHECKING:
    from ..image.store import ImageStore, StoredImage

_ROOM = "pytest-sandbox"
_RECORD, _OUTPUT = f"{_ROOM}/kept.json", f"{_ROOM}/output.txt"
_MOST_RECORD, _MOST_OUTPUT = 4 << 20, 8 << 20
_GZIP = f"{OCI_LAYER}+gzip"


def export(kept: Kept, target: Path) -> str:
    """Writes a kept test to ``target``, whole or not at all; returns the digest of its image.

    :raises KeptTestError: when it was kept without its layers, or what it started from is gone.
    :raises ImageError: when the layers that it started from cannot be had.
    :raises StoreError: when the disk is full or fails.
    """
    record = kept.record
    assert record is not None
    if record.left_out:
        raise KeptTestError(f"kept test {kept.id} cannot be exported", id=kept.id, why=record.left_out)
    if not target.absolute().parent.is_dir():
        raise KeptTestError(f"{target} could not be written", id=kept.id,
                            why=f"there is no directory {target.absolute().parent}", remedy="Make it, or correct -o.")
    store = planning.store()
    base = _base(kept, record, store)
    try:
        with tempfile.TemporaryDirectory(dir=target.absolute().parent, prefix=f".{target.name}.") as scratch:
            partial = Path(scratch) / "bundle"
            with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
                digest = _write(tar, kept, record, base, store, scratch)
            os.rename(partial, target)
    except OSError as error:
        raise KeptTestError(f"{target} could not be written", id=kept.id, why=error.strerror or str(error),
                            remedy="Name another place: -o FILE.") from None
    return digest


def _base(kept: Kept, record: Record, store: ImageStore) -> StoredImage | None:
    """What it had started from, in the store; None for the host itself."""
    if record.start.kind == "host":
        return None
    reference = start_image(record, kept.path)
    image_id = planning.resolve(reference).image_id if record.start.kind != "directory" else None
    found = store.image(image_id) if image_id is not None else None
    if found is None:
        raise KeptTestError(f"kept test {record.id} cannot be exported", id=record.id,
                            why=f"its image is a plain directory, {reference}",
                            remedy="Run the test on a tarball of it: rootfs:FILE.")
    return found


def _write(tar: tarfile.TarFile, kept: Kept, record: Record, base: StoredImage | None, store: ImageStore,
           scratch: str) -> str:
    for name in ("blobs", "blobs/sha256", "blobs/sha512", _ROOM):
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    layers: list[Descriptor] = []
    diff_ids: list[str] = []
    more: tuple[KeptLayer, ...] = ()
    document = empty_document(store.platform)
    if base is not None and base.host is not None:
        more = tuple(_state_layers(tar, base, store, scratch, layers, diff_ids))
    elif base is not None:
        document = json.loads(base.config)
        with layers_source(store, base) as source:
            for at in range(len(base.layers)):
                with layer_file(store, base, source, at, scratch) as (known, file):
                    _blob(tar, known, file, layers)
        diff_ids = list(base.diff_ids)
    for number, layer in enumerate(record.layers):
        with open(kept.layer(number), "rb") as packed:
            _blob(tar, Descriptor(layer.digest, layer.size, _GZIP), packed, layers)
        diff_ids.append(layer.diff_id)
    document["config"] = document.get("config") or {}
    change_config(document["config"], record.start.config)
    document["rootfs"] = {"type": "layers", "diff_ids": diff_ids}
    document["created"] = now()
    document["history"] = [*(document.get("history") or []),
                           *({"created": now(), "created_by": f"pytest-sandbox export, {record.nodeid}"}
                             for _ in (*more, *record.layers))]
    config = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    start = record.start
    if more:  # the state of a host is a host and layers anywhere else
        start = Start("host", "host", exact=record.start.exact)
    whole = replace(record, start=start, layers=(*more, *record.layers), below=record.below + len(more))
    told = {**whole.as_json(),
            "base": base64.b64encode(base.config).decode() if base is not None and base.host is None else None}
    add_member(tar, _RECORD, json.dumps(told).encode())
    add_member(tar, _OUTPUT, kept.output.encode("utf-8", "replace")[:_MOST_OUTPUT])
    name = f"localhost/pytest-sandbox/kept:{record.id}"
    return write_layout(tar, config, layers, name)


def _blob(tar: tarfile.TarFile, known: Descriptor, file: BinaryIO, layers: list[Descriptor]) -> None:
    if known.digest not in {one.digest for one in layers}:
        info = tarfile.TarInfo(f"blobs/{known.digest.replace(':', '/')}")
        info.size, info.mode = known.size, 0o644
        tar.addfile(info, file)
    layers.append(known)


def _state_layers(tar: tarfile.TarFile, base: StoredImage, store: ImageStore, scratch: str, layers: list[Descriptor],
                  diff_ids: list[str]) -> list[KeptLayer]:
    """The layers of a state of the host, each of one tree, as layers of the whole root."""
    found = []
    where = {number: tree for tree, numbers in base.host or () for number in numbers}
    with layers_source(store, base) as source:
        for at in range(len(base.layers)):
            with layer_file(store, base, source, at, scratch) as (_, file), \
                    tempfile.TemporaryFile(dir=scratch) as plain, tempfile.TemporaryFile(dir=scratch) as whole:
                while data := file.read(1 << 20):
                    plain.write(data)
                plain.seek(0)
                with open_archive(whole) as out:
                    below(plain, where.get(at, "/"), out, base.reference)
                size = whole.tell()
                whole.seek(0)
                digest = hashlib.sha256()
                while data := whole.read(1 << 20):
                    digest.update(data)
                whole.seek(0)
                name = f"sha256:{digest.hexdigest()}"
                _blob(tar, Descriptor(name, size, OCI_LAYER), whole, layers)
                diff_ids.append(name)
                found.append(KeptLayer(name, name, size, size))
    return found


# And back.

def is_bundle(path: str | Path) -> bool:
    """Whether a file is one that :func:`export` wrote."""
    try:
        with contextlib.closing(TarFiles(str(path), reference=str(path))) as files:
            return files.has(_RECORD)
    except (OSError, ImageError):
        return False


def load_bundle(path: Path) -> Kept:
    """Puts a bundle's test on this cache's shelf, and the image that it started from into the store.

    :raises KeptTestError: when it is none, or its parts do not fit together.
    :raises ImageError: when a layer or a document is not what its digest says, or is refused.
    :raises StoreError: when the disk is full or fails.
    """
    text = str(path)
    try:
        files = TarFiles(text, reference=text)
    except FileNotFoundError:
        raise KeptTestError(f"{text} cannot be loaded", id=text, why="there is no such file",
                            remedy="Check the path; relative ones start at the current directory.") from None
    shelf = Shelf()
    with contextlib.closing(files):
        if not files.has(_RECORD):
            raise KeptTestError(f"{text} cannot be loaded", id=text, why="there is no kept test in it",
                                remedy="An image is loaded with pytest-sandbox load.")
        document = _read(files, _RECORD, _MOST_RECORD, text)
        try:
            told = json.loads(document)
            base_config = base64.b64decode(told.pop("base") or "", validate=True)
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
            raise _broken(text, "its record cannot be read") from None
        record = replace(Record.from_json(told, text), imported=True, run="")
        known = _known(shelf, record)
        if known is not None:
            return known
        output = _read(files, _OUTPUT, _MOST_OUTPUT, text) if files.has(_OUTPUT) else b""
        source = OciSource(files, ArchiveReference("oci-archive", text, None), planning.store().platform)
        image = source.image()
        _compare(record, image, base_config, text)
        if record.start.kind == "image":
            _load_base(source, image, record, base_config, text)
        draft = shelf.begin()
        try:
            _copy_layers(source, image, record, draft, text)
            return draft.publish(record, output.decode("utf-8", "replace"), Bounds(1 << 30, 1 << 62))
        except OSError as error:
            raise (error if hasattr(error, "what") else store_error(error, shelf.layout.root)) from None
        finally:
            draft.drop()


def _known(shelf: Shelf, record: Record) -> Kept | None:
    """The same kept test, if it is there already."""
    for one in shelf.entries():
        have = one.record
        if have is not None and have.layers == record.layers and (have.nodeid, have.created, have.phase) == (
                record.nodeid, record.created, record.phase):
            return one
    return None


def _read(files: TarFiles, name: str, most: int, text: str) -> bytes:
    with files.open(name) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise _broken(text, f"{name} is larger than {most} bytes")
    return data


def _broken(text: str, why: str) -> KeptTestError:
    return KeptTestError(f"{text} cannot be loaded", id=text, why=why,
                         remedy="Export it again; if it came from somebody else, do not trust it.")


def _compare(record: Record, image: SourceImage, base_config: bytes, text: str) -> None:
    """The record and the image tell of the same layers."""
    ours = [one.diff_id for one in record.layers]
    have = list(image.document.diff_ids)
    if len(image.layers) != len(have):
        raise _broken(text, "its manifest and its configuration have different layers")
    above = list(zip(image.layers, have, strict=True))[len(have) - len(ours):]
    if [diff_id for _, diff_id in above] != ours or any(
            (one.digest, one.size) != (layer.digest, layer.size)
            for (one, _), layer in zip(above, record.layers, strict=True)):
        raise _broken(text, "its record and its image have different layers")
    if record.start.kind == "host":
        if len(have) != len(ours):
            raise _broken(text, "there are layers below a test of the host")
    elif record.start.kind != "image":
        raise _broken(text, f"a {record.start.kind} is nothing that a file can hold")
    elif digest_of(base_config) != record.start.image_id or list(
            parse_config(base_config, reference=text).diff_ids) != have[:len(have) - len(ours)]:
        raise _broken(text, "the image that it started from is another than its record says")


def _load_base(source: OciSource, image: SourceImage, record: Record, config: bytes, text: str) -> None:
    """The image that the test had started from, as an image of this store."""
    assert record.start.image_id is not None
    layers = image.layers[:len(image.layers) - len(record.layers)]
    source.keep_blobs = True
    base = SourceImage(text, None, None, record.start.image_id, config, parse_config(config, reference=text), layers)
    try:
        planning.store().add(source, base)
    except OSError as error:
        raise (error if hasattr(error, "what") else store_error(error, planning.store().layout.root)) from None


def _copy_layers(source: Any, image: SourceImage, record: Record, draft: Draft, text: str) -> None:
    for number, (layer, there) in enumerate(zip(record.layers, image.layers[-len(record.layers):], strict=True)):
        target = f"{draft.path}/layer-{number}.tar.gz"
        digest, size = hashlib.sha256(), 0
        with source.open_layer(there) as file, open(target, "xb") as out:
            while data := file.read(1 << 20):
                digest.update(data)
                size += len(data)
                if size > layer.size:
                    break
                out.write(data)
            out.flush()
            os.fsync(out.fileno())
        if (size, f"sha256:{digest.hexdigest()}") != (layer.size, layer.digest):
            raise _broken(text, f"{layer.digest} is not what its bytes are")
        with plain_layer(target, layer, text):
            pass  # which compares what is in it

