"""Images out of the store into a file, and back: ``save`` and ``load``.

A saved file is an OCI layout and a ``docker save`` archive at once, as Docker itself writes since version 25, so that
Docker, podman, skopeo and containerd all load it. The layers are the registry's own bytes: the image keeps its digests.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ImageError, ImageNotFound
from .archive import DockerSource, OciSource, TarFiles
from .blobs import CheckedReader, fetch_blob
from .compression import decompressed, is_compressed
from .layout import store_error
from .manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, digest_of
from .reference import ArchiveReference, RegistryReference, StoredReference, parse_reference, parse_registry_reference
from .source import Source, SourceImage
from .store import ImageStore, StoredImage


def save_image(store: ImageStore, reference: str, target: str | Path) -> str:
    """Writes an image to ``target``, whole or not at all; returns the digest of its manifest.

    :raises ImageError: when the image has no layers of its own (a plain directory), or their bytes are gone.
    """
    stack = store.resolve(reference)
    stored = store.image(stack.image_id) if stack.image_id else None
    if stored is None:
        raise ImageError(f"image {reference!r} cannot be saved", reference=reference, why="it is a plain directory",
                         remedy="Make a tarball of it: rootfs:FILE.")
    target = Path(target)
    if not target.absolute().parent.is_dir():
        raise ImageNotFound(f"image {reference!r} cannot be saved to {str(target)!r}", reference=reference,
                            why=f"there is no directory {target.absolute().parent}", remedy="Make it, or correct -o.")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        partial = Path(scratch) / "image"
        with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            digest = _write(store, stored, reference, tar, scratch)
        os.rename(partial, target)
    return digest


def _write(store: ImageStore, stored: StoredImage, reference: str, tar: tarfile.TarFile, scratch: str) -> str:
    for name in ("blobs", "blobs/sha256", "blobs/sha512"):
        # skopeo, not as root, fails on directories that it has to make up: it wants to give them to root
        info = tarfile.TarInfo(name)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(info)
    layers: list[Descriptor] = []
    with layers_source(store, stored) as source:
        for at in range(len(stored.layers)):
            with layer_file(store, stored, source, at, scratch) as (known, file):
                if known.digest not in {one.digest for one in layers}:
                    checked = CheckedReader(file, known, reference)  # it may have lain in the store for long
                    try:
                        _add(tar, f"blobs/{known.digest.replace(':', '/')}", known.size, checked)
                    finally:
                        checked.finish()  # also where it is too short, of which tarfile has less to say
                layers.append(known)
    config = Descriptor(stored.image_id, len(stored.config), OCI_CONFIG)
    manifest = stored.manifest
    if manifest is None or tuple(layers) != stored.layers:
        manifest = _manifest(config, layers)
    parsed = parse_reference(reference)
    tagged = f"{parsed.name}:{parsed.tag}" if isinstance(parsed, RegistryReference) and parsed.tag else None
    return _write_documents(tar, stored.config, manifest, layers, tagged)


def write_layout(tar: tarfile.TarFile, config: bytes, layers: list[Descriptor], name: str | None) -> str:
    """Ends an archive that has an image's layers as blobs already: configuration, manifest, and what lists them.

    :param name: what to call the image, with its tag.
    :return: the manifest's digest.
    """
    manifest = _manifest(Descriptor(digest_of(config), len(config), OCI_CONFIG), layers)
    return _write_documents(tar, config, manifest, layers, name)


def _write_documents(tar: tarfile.TarFile, config: bytes, manifest: bytes, layers: list[Descriptor],
                     name: str | None) -> str:
    digest, image_id = digest_of(manifest), digest_of(config)
    for one, data in ((image_id, config), (digest, manifest)):
        add_member(tar, f"blobs/{one.replace(':', '/')}", data)
    entry: dict[str, Any] = {"mediaType": json.loads(manifest).get("mediaType", OCI_MANIFEST), "digest": digest,
                             "size": len(manifest)}
    tags: list[str] = []
    if name is not None:
        entry["annotations"] = {"io.containerd.image.name": name,
                                "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
        tags = [name.removeprefix("docker.io/library/").removeprefix("docker.io/")]
    for file, document in (
            ("index.json", {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                            "manifests": [entry]}),
            ("manifest.json", [{"Config": f"blobs/{image_id.replace(':', '/')}", "RepoTags": tags,
                                "Layers": [f"blobs/{one.digest.replace(':', '/')}" for one in layers]}]),
            ("oci-layout", {"imageLayoutVersion": "1.0.0"})):
        add_member(tar, file, json.dumps(document, sort_keys=True).encode())
    return digest


def _manifest(config: Descriptor, layers: list[Descriptor]) -> bytes:
    return json.dumps({"config": config.as_json(), "layers": [one.as_json() for one in layers],
                       "mediaType": OCI_MANIFEST, "schemaVersion": 2}, sort_keys=True).encode()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Adds a file with the given content."""
    _add(tar, name, len(data), io.BytesIO(data))


def _add(tar: tarfile.TarFile, name: str, size: int, file: BinaryIO | CheckedReader) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0  # nothing of today: a saved image is the same file every time
    tar.addfile(info, file)  # type: ignore[arg-type]  # it only reads


@contextlib.contextmanager
def layers_source(store: ImageStore, stored: StoredImage) -> Iterator[Source | None]:
    """Where the image came from, for layers whose bytes the store has not kept; opened only if one is missing."""
    if all(os.path.exists(store.layout.blob(one.digest)) or one.size == 0 for one in stored.layers):
        yield None
        return
    stored = _known_by(store, stored)
    parsed = parse_reference(stored.reference)
    if isinstance(parsed, RegistryReference) and stored.digest is not None:
        parsed = replace(parsed, tag=None, digest=stored.digest)
    try:
        if isinstance(parsed, StoredReference):
            raise ImageNotFound("it has no source", reference=stored.reference)
        source = store.source(parsed, stored.reference)
        try:
            image = source.image()
            if image.image_id != stored.image_id:
                raise ImageNotFound("its source has another image now", reference=stored.reference)
            yield source
        finally:
            source.close()
    except ImageNotFound as error:
        raise ImageError(f"image {stored.reference!r} cannot be saved", reference=stored.reference,
                         why=f"the store has not kept its compressed layers, and {error.what}",
                         remedy="Pull it again, or load it with pytest-sandbox load.") from None


def _known_by(store: ImageStore, stored: StoredImage) -> StoredImage:
    """The image that the missing layers came with: for one that was committed or built, the one that it is based on."""
    missing = {one.digest for one in stored.layers
               if one.size != 0 and not os.path.exists(store.layout.blob(one.digest))}
    found = stored
    for name in store.layout.keys("images"):
        other = store.image(f"sha256:{name.removesuffix('.json')}")
        if (other is not None and missing <= {one.digest for one in other.layers}
                and len(other.diff_ids) < len(found.diff_ids)
                and other.diff_ids == stored.diff_ids[:len(other.diff_ids)]):
            found = other
    return found


@contextlib.contextmanager
def layer_file(store: ImageStore, stored: StoredImage, source: Source | None, at: int,
               scratch: str) -> Iterator[tuple[Descriptor, BinaryIO]]:
    """The bytes of an image's layer, and what to call them."""
    layer, what = stored.layers[at], f"layer {at + 1}/{len(stored.layers)}"
    if layer.size == 0:
        yield layer, io.BytesIO()
    elif layer.size < 0:
        assert source is not None
        with source.open_layer(layer) as raw, tempfile.TemporaryFile(dir=scratch) as plain:
            for piece in decompressed(raw, stored.reference):
                plain.write(piece)
            size = plain.tell()
            plain.seek(0)
            digest = hashlib.sha256()
            while data := plain.read(1 << 20):
                digest.update(data)
            if f"sha256:{digest.hexdigest()}" != stored.diff_ids[at]:
                raise ImageError(f"image {stored.reference!r} cannot be saved", reference=stored.reference,
                                 why="its source has changed")
            plain.seek(0)
            yield Descriptor(stored.diff_ids[at], size, OCI_LAYER), plain
    else:
        with fetch_blob(store.layout, _Needed(source, stored.reference), layer, what, stored.reference, store.progress,
                        threading.Event()) as file:
            yield layer, file


class _Needed:
    """A source that is perhaps not there."""

    keep_blobs = True

    def __init__(self, source: Source | None, reference: str) -> None:
        self._source, self._reference = source, reference

    def image(self) -> SourceImage:
        raise ImageNotFound("no source", reference=self._reference)

    def open_layer(self, layer: Descriptor) -> contextlib.AbstractContextManager[BinaryIO]:
        raise ImageNotFound("no source", reference=self._reference)

    def fetch_layer(self, layer: Descriptor, write: Callable[[bytes], None], offset: int) -> None:
        if self._source is None:  # it was removed a moment ago
            raise ImageNotFound(f"image {self._reference!r} cannot be saved", reference=self._reference,
                                why="its layers are being removed")
        self._source.fetch_layer(layer, write, offset)

    def close(self) -> None:
        pass


def load_images(store: ImageStore, path: str | Path, name: str | None = None) -> list[StoredImage]:
    """Brings the images of an archive into the store, under the names that it has for them, or under ``name``.

    :raises ImageError: when it is no archive of images, or ``name`` is given and there are several.
    """
    text = str(path)
    try:
        files = TarFiles(text, reference=text, limits=store.limits)
    except OSError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageNotFound(f"{text!r} cannot be loaded", reference=text, why=error.strerror,
                            remedy="Check the path; relative ones start at the current directory.") from None
    with contextlib.closing(files):
        is_oci = files.has("index.json") and files.has("oci-layout")
        if not is_oci and not files.has("manifest.json"):
            raise ImageError(f"{text!r} cannot be loaded", reference=text,
                             why="it holds neither an OCI layout nor what docker save writes",
                             remedy=f"A root file system is used directly: rootfs:{text}.")
        kind = "oci-archive" if is_oci else "docker-archive"
        tags = _tags(files, kind, text, store)
        if name is not None and len(tags) > 1:
            raise ImageError(f"{text!r} cannot be loaded as {name!r}", reference=text, why=f"it has {len(tags)} images",
                             remedy="Load them under the names that they have, without one.")
        loaded = []
        for at, (tag, names) in enumerate(tags):
            reference = ArchiveReference(kind, text, tag)
            source: OciSource | DockerSource = OciSource(files, reference, store.platform) if is_oci \
                else DockerSource(files, reference, at)
            image = source.image()
            source.keep_blobs = True
            if isinstance(source, DockerSource):
                image = _with_digests(source, image)
            try:
                stored = store.add(source, image)
            except OSError as error:
                raise (error if hasattr(error, "what") else store_error(error, store.layout.root)) from None
            for one in [name] if name is not None else names:
                name_image(store, one, stored)
            loaded.append(stored)
        return loaded


def name_image(store: ImageStore, name: str, stored: StoredImage) -> None:
    """Lets ``name`` mean an image of the store from now on."""
    parsed = parse_registry_reference(name)
    store.layout.write_record(store.layout.name(store.name_key(parsed)), {
        "version": 1, "name": str(parsed), "platform": str(store.platform), "image_id": stored.image_id,
        "digest": stored.digest, "stamp": None, "resolved": int(time.time())})
    store.forget()


def _tags(files: TarFiles, kind: str, text: str, store: ImageStore) -> list[tuple[str | None, list[str]]]:
    """What to ask the source for, image by image, and what each is called as a reference."""
    reference = ArchiveReference(kind, text, None)
    if kind == "docker-archive":
        return [(names[0] if names else None, names) for names in DockerSource(files, reference).names()]
    index = OciSource(files, reference, store.platform).index()
    called = [_full_names(one) for one in index.manifests]
    if len(called) == 1 or (all(one.platform for one in index.manifests) and called[1:] == called[:-1]):
        return [(None, called[0])]
    return [(one.digest, _full_names(one)) for one in index.manifests]


def _full_names(descriptor: Descriptor) -> list[str]:
    for key in ("io.containerd.image.name", "org.opencontainers.image.ref.name"):
        value = descriptor.annotation(key) or ""
        if "/" in value or (key.startswith("org") and ":" in value):
            with contextlib.suppress(ImageError):
                return [str(parse_registry_reference(value))]
    return []


def _with_digests(source: DockerSource, image: SourceImage) -> SourceImage:
    """What ``docker save`` leaves out: the digests of its files, and a manifest that has them."""
    layers = []
    for layer in image.layers:
        with source.open_layer(layer) as file:
            digest, size, head = hashlib.sha256(), 0, b""
            while data := file.read(1 << 20):
                head = head or data[:6]
                digest.update(data)
                size += len(data)
        kind = f"{OCI_LAYER}+gzip" if is_compressed(head) else OCI_LAYER
        layers.append(Descriptor(f"sha256:{digest.hexdigest()}", size, kind))
    source.rename(image.layers, layers)
    manifest = _manifest(Descriptor(image.image_id, len(image.config), OCI_CONFIG), layers)
    return replace(image, layers=tuple(layers), manifest=manifest, digest=digest_of(manifest))
