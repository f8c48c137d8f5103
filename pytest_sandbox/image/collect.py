"""What is in the store, what of it can go, and whether it is still what it was. For the command line.

Nothing here runs on the path of a test, and nothing needs room on the disk: removing is a rename and deletions.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ImageError, ImageNotFound
from .ingest import hold_layer
from .layout import Layout, disk_usage
from .locks import lock
from .manifest import parse_config
from .reference import StoredReference, parse_reference
from .store import ImageStore, StoredImage
from .tree import compare_tree

_YOUNG = 3600  # seconds; a blob without an image may belong to a pull that is under way


@dataclass(frozen=True, slots=True)
class ListedImage:
    """One image as ``pytest-sandbox images`` shows it. Times are seconds since 1970, ``size`` is bytes on disk.

    ``complete`` is False when a layer is gone: the next use brings it in again. ``superseded`` is True when what it
    came from means another image by now (a tag that moved, a file that was replaced), and it has no other name.
    """

    names: tuple[str, ...]
    image_id: str
    digest: str | None
    platform: str
    layers: tuple[str, ...]
    size: int
    created: int
    used: int
    complete: bool
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class Removed:
    """What a collection took, or with a dry run would take. ``busy`` are images in use, which stay."""

    images: tuple[ListedImage, ...]
    layers: tuple[str, ...]
    blobs: tuple[str, ...]
    bytes: int
    busy: tuple[ListedImage, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in the store that is not as it was made. ``path`` is the file, printable."""

    where: str
    path: str
    kind: str
    what: str


def _stored(store: ImageStore) -> Iterator[StoredImage]:
    for name in store.layout.keys("images"):
        stored = store.image(f"sha256:{name.removesuffix('.json')}")
        if stored is not None:
            yield stored


def _names(layout: Layout) -> dict[str, list[tuple[str, str]]]:
    """By image id: what it is called, and the record that says so."""
    names: dict[str, list[tuple[str, str]]] = {}
    for file in layout.keys("names"):
        path = f"{layout.root}/names/{file}"
        record = layout.read_record(path) or {}
        names.setdefault(str(record.get("image_id")), []).append((str(record.get("name")), path))
    return names


def list_images(store: ImageStore) -> list[ListedImage]:
    """All images of the store, the most recently used first."""
    names = _names(store.layout)
    taken = {name for called in names.values() for name, _ in called}
    found = []
    for stored in _stored(store):
        sizes, used = [], []
        for key in stored.keys:
            meta = store.layout.read_record(f"{store.layout.layer(key)}/meta.json")
            try:
                used.append(int(os.stat(f"{store.layout.layer(key)}/lock").st_mtime))
            except FileNotFoundError:
                meta = None
            sizes.append(meta["bytes"] if meta else None)
        document = parse_config(stored.config, reference=stored.reference)
        found.append(ListedImage(
            names=tuple(sorted(name for name, _ in names.get(stored.image_id, []))) or (stored.reference,),
            image_id=stored.image_id, digest=stored.digest, platform=str(document.platform), layers=stored.keys,
            size=sum(size for size in sizes if size is not None), created=stored.created,
            used=min(used, default=stored.created),  # a layer that it shares with others says when those were used
            complete=None not in sizes,
            superseded=stored.image_id not in names and stored.reference in taken))
    return sorted(found, key=lambda one: one.used, reverse=True)


def prune(store: ImageStore, *, everything: bool = False, unused_for: float | None = None, most: int | None = None,
          blobs: bool = False, dry_run: bool = False, needed: frozenset[str] = frozenset()) -> Removed:
    """Removes what no image needs, and superseded images; others, if asked to. Never what any process uses.

    :param everything: all images that are not in use.
    :param unused_for: images that were not used for so many seconds.
    :param most: images, the least recently used first, until the store has at most so many bytes.
    :param blobs: also the compressed layers, which only ``save`` needs; a registry has them still.
    :param needed: ids of images that stay in any case.
    """
    images = list_images(store)
    busy = tuple(one for one in images if one.image_id in needed or _in_use(store.layout, one))
    idle = [one for one in reversed(images) if one not in busy]
    doomed = [one for one in idle if everything or one.superseded or (
        unused_for is not None and time.time() - one.used > unused_for)]
    if most is not None:
        parts = {one.image_id: _parts(store, one, blobs=not blobs) for one in images}
        for one in idle:
            stay: dict[str, int] = {}
            for other in images:
                if other not in doomed:
                    stay.update(parts[other.image_id])  # what several need counts once
            if sum(stay.values()) <= most:
                break
            if one not in doomed:
                doomed.append(one)
    if everything and not dry_run:
        for name in store.layout.keys("build-caches"):
            store.layout.discard(f"{store.layout.root}/build-caches/{name}")
    return _remove(store, doomed, busy, blobs=blobs, dry_run=dry_run, old_blobs=everything)


def remove(store: ImageStore, reference: str) -> Removed:
    """Removes one name; and its image, when it has no other name, with the layers that nothing else needs.

    :raises ImageNotFound: when the store does not have it.
    :raises ImageError: when it is in use.
    """
    parsed = parse_reference(reference)
    record = store.layout.read_record(store.layout.name(store.name_key(parsed))) or {}
    image_id = parsed.image_id if isinstance(parsed, StoredReference) else record.get("image_id")
    image = next((one for one in list_images(store) if one.image_id == image_id), None)
    if image is None:
        raise ImageNotFound(f"image {reference!r} is not in the store", reference=reference,
                            remedy="See pytest-sandbox images.")
    if not isinstance(parsed, StoredReference) and len(_names(store.layout).get(image.image_id, [])) > 1:
        _unlink(store.layout.name(store.name_key(parsed)))
        return Removed((), (), (), 0, ())
    if _in_use(store.layout, image):
        raise ImageError(f"image {reference!r} cannot be removed", reference=reference, why="a process uses it",
                         remedy="Wait until that run has ended.")
    return _remove(store, [image], (), blobs=False, dry_run=False, old_blobs=True)


def store_size(store: ImageStore) -> int:
    """Bytes on disk of all layers and blobs."""
    layout = store.layout
    layers = (layout.read_record(f"{layout.layer(key)}/meta.json") or {} for key in layout.keys("layers"))
    return sum(int(meta.get("bytes", 0)) for meta in layers) + sum(disk_usage(path) for path in _blobs(store.layout))


def _blobs(layout: Layout) -> list[str]:
    return [f"{layout.root}/blobs/{algorithm}/{name}" for algorithm in ("sha256", "sha512")
            for name in layout.keys(f"blobs/{algorithm}")]


def _parts(store: ImageStore, image: ListedImage, *, blobs: bool) -> dict[str, int]:
    """What an image has on disk, with its bytes: its layers, and its compressed ones."""
    layout = store.layout
    parts = {key: int((layout.read_record(f"{layout.layer(key)}/meta.json") or {}).get("bytes", 0))
             for key in image.layers}
    stored = store.image(image.image_id) if blobs else None
    for layer in stored.layers if stored is not None else ():
        parts[layer.digest] = disk_usage(layout.blob(layer.digest))
    return parts


def _in_use(layout: Layout, image: ListedImage) -> bool:
    """Whether a process holds the image: such a one holds all of its layers."""
    for key in image.layers:
        try:
            held = lock(f"{layout.layer(key)}/lock", exclusive=True, wait=False)
        except FileNotFoundError:
            return False
        if held is not None:
            held.release()
            return False
    return bool(image.layers)


def _remove(store: ImageStore, doomed: list[ListedImage], busy: tuple[ListedImage, ...], *, blobs: bool, dry_run: bool,
            old_blobs: bool) -> Removed:
    layout = store.layout
    gone = {one.image_id for one in doomed}
    names = _names(layout)
    stored = list(_stored(store))
    kept = [one for one in stored if one.image_id not in gone]
    if not dry_run:
        for image_id in gone:
            for _, path in names.get(image_id, []):
                _unlink(path)
            _unlink(layout.image(image_id))
        layout.sweep(partials=True)
    needed = {key for one in kept for key in one.keys}
    freed, layers = 0, []
    for key in layout.keys("layers"):
        if key not in needed and (size := _discard_layer(layout, key, dry_run)) is not None:
            freed += size
            layers.append(key)
    if not dry_run:
        _forget_builds(layout)
    wanted = {layout.blob(layer.digest) for one in kept for layer in one.layers} if not blobs else set()
    theirs = {layout.blob(layer.digest) for one in stored if one.image_id in gone for layer in one.layers}
    taken = []
    for path in _blobs(layout):
        if path not in wanted and (old_blobs or blobs or path in theirs or _age(path) > _YOUNG):
            freed += disk_usage(path)
            taken.append(os.path.basename(path))
            if not dry_run:
                _unlink(path)
    return Removed(tuple(doomed), tuple(layers), tuple(taken), freed, busy)


def _age(path: str) -> float:
    """Seconds since a file was written; 0 where somebody else has just removed it."""
    try:
        return time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return 0


def _forget_builds(layout: Layout) -> None:
    """Removes the records of builds' steps whose layers have gone."""
    for name in layout.keys("builds"):
        path = f"{layout.root}/builds/{name}"
        record = layout.read_record(path) or {}
        keys = (record.get("image") or {}).get("keys") or []
        if not keys or not all(os.path.exists(layout.layer(key)) for key in keys):
            _unlink(path)


def _discard_layer(layout: Layout, key: str, dry_run: bool) -> int | None:
    """Bytes that a layer's removal frees; None when it is in use."""
    path = layout.layer(key)
    size = int((layout.read_record(f"{path}/meta.json") or {}).get("bytes", 0))
    try:
        held = lock(f"{path}/lock", exclusive=True, wait=False)
    except FileNotFoundError:
        held = None  # a removal that was cut off, or on a full disk: nobody can use it
    else:
        if held is None:
            return None
    try:
        if not dry_run:
            layout.discard(path)
    finally:
        if held is not None:
            held.release()
    return size


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def verify(store: ImageStore, *, discard: bool = False) -> list[Problem]:
    """Compares every layer with the record made when it was unpacked, and every blob with its digest.

    :param discard: removes what is damaged and not in use, so that the next use brings it in again.
    """
    problems: list[Problem] = []
    layout = store.layout
    for name in layout.keys("images"):
        stored = store.image(f"sha256:{name.removesuffix('.json')}")
        if stored is None:
            problems.append(Problem(f"images/{name}", "", "changed", "the record is not readable, or not that image's"))
            continue
        problems.extend(Problem(f"image {stored.reference}", "", "missing", f"layer {key[:12]}")
                        for key in stored.keys if not os.path.exists(layout.layer(key)))
    for key in layout.keys("layers"):
        found = verify_layer(layout, key)
        problems.extend(found)
        if found and discard:
            _discard_layer(layout, key, False)
    for path in _blobs(layout):
        algorithm, name = path.split("/")[-2:]
        digest = hashlib.new(algorithm)
        try:
            with open(path, "rb") as file:
                while data := file.read(1 << 20):
                    digest.update(data)
        except FileNotFoundError:
            continue  # a collection took it meanwhile
        if digest.hexdigest() != name:
            problems.append(Problem(f"blob {name[:12]}", "", "changed", "its digest is another"))
            if discard:
                _unlink(path)
    return problems


def verify_layer(layout: Layout, key: str) -> list[Problem]:
    """What is not as recorded in one layer."""
    where, path = f"layer {key[:12]}", layout.layer(key)
    found = hold_layer(layout, key)
    if found is None:  # unless a collection took all of it meanwhile
        return [Problem(where, "", "missing", "its lock or its record is gone")] if os.path.exists(path) else []
    held, meta = found
    try:
        with open(f"{path}/tree.mtree.gz", "rb") as file:
            packed = file.read()
        if f"sha256:{hashlib.sha256(packed).hexdigest()}" != meta.get("tree"):
            return [Problem(where, "tree.mtree.gz", "changed", "the layer's record is another")]
        return [Problem(where, one.path, one.kind, one.what)
                for one in compare_tree(f"{path}/fs", gzip.decompress(packed))]
    except OSError as error:
        return [Problem(where, str(error.filename or ""), "changed", error.strerror or str(error))]
    finally:
        held.release()
