"""From a kept test to an image that sandboxes start from: in the state that it was kept in, or as it had started."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, cast

from .. import planning
from ..errors import ImageCorrupt, ImageError, ImageNotFound, KeptTestError
from ..image.commit import Written, add_image, empty_document, write_archive
from ..image.compression import LayerStream
from ..image.diff import open_archive
from ..image.layout import store_error
from ..image.restack import Restacker
from ..images import Image
from ..runtime import launch

if TYPE_CHECKING:
    from ..image.store import StoredImage
    from ..spec import SandboxSpec
    from .record import KeptLayer, Record, Start
    from .shelf import Kept


def start_image(record: Record, folder: str) -> str:
    """A reference to what a kept test's sandbox had started from.

    :param folder: where its layers lie.
    :raises KeptTestError: when that cannot be had any more.
    """
    start = record.start
    if record.below:
        return _state(record, folder)
    if start.kind in ("host", "directory"):
        return start.reference
    assert start.image_id is not None
    if start.kind == "state":
        with contextlib.suppress(ImageError):
            if planning.resolve(start.reference).image_id == start.image_id:
                return start.reference
    with contextlib.suppress(ImageNotFound):
        planning.resolve(f"image:{start.image_id}")
        if start.kind == "image":
            return f"image:{start.image_id}"
        stored = planning.store().image(start.image_id)
        assert stored is not None
        return _named(record, stored)
    return _again(record, start)


def _named(record: Record, stored: StoredImage) -> str:
    from ..image.export import name_image

    name = f"host:kept-{record.id}"
    name_image(planning.store(), name, stored)
    return name


def _state(record: Record, folder: str) -> str:
    """A state of another host, as one of this host."""
    trees = _trees(record.spec())
    written: list[Written] = []
    on: dict[str, list[int]] = {}
    for number, layer in enumerate(record.layers[:record.below]):
        for tree, one in _split(f"{folder}/layer-{number}.tar.gz", layer, trees, f"kept test {record.id}"):
            on.setdefault(tree, []).append(len(written))
            written.append(one)
    if not written:
        return "host"
    store = planning.store()
    host = tuple((tree, tuple(numbers)) for tree, numbers in sorted(on.items()))
    added = add_image(store, None, empty_document(store.platform), written, f"host:kept-{record.id}", host)
    return _named(record, added)


def _trees(spec: SandboxSpec) -> list[str]:
    return [tree.target for tree in planning._host_root(spec, launch.supervisor().host).trees]


def _again(record: Record, start: Start) -> str:
    """The image by its digest, from where it came from."""
    from ..image.reference import RegistryReference, parse_reference

    why = "it was removed from the store"
    if start.kind == "image" and start.digest is not None:
        with contextlib.suppress(ImageError, OSError):
            parsed = parse_reference(start.reference)
            if isinstance(parsed, RegistryReference):
                pinned = f"{parsed.name}@{start.digest}"
                try:
                    if planning.resolve(pinned).image_id == start.image_id:
                        return pinned
                except ImageError as error:
                    why = f"{why}, and cannot be had again: {error}"
    raise KeptTestError(f"the image that kept test {record.id} started from is gone: {start.reference}", id=record.id,
                        why=why, remedy="Make it again with the same content, or run the test again.")


def kept_image(kept: Kept, spec: SandboxSpec) -> Image:
    """The state in which a test was kept, for sandboxes of this process.

    :param spec: of the sandbox to come: what of the host it sees decides where the layers lie.
    :raises KeptTestError: when it was kept without its writable layer, or its image is gone.
    :raises ImageError: when a layer is not what it was.
    :raises StoreError: when the disk is full or fails.
    """
    record = kept.record
    assert record is not None
    if record.left_out:
        raise KeptTestError(f"kept test {kept.id} has no writable layer", id=kept.id, why=record.left_out,
                            remedy=f"Its output is there: pytest-sandbox kept {kept.id}.")
    base = "host" if record.below else start_image(record, kept.path)
    image = Image(base, **dict(record.start.config))
    trees = _trees(spec) if planning.is_host(base) else ["/"]
    for number, layer in enumerate(record.layers):
        for target, path in _lay_down(kept, number, layer, trees).items():
            image.layers[target] = (*image.layers.get(target, ()), path)
    return image


def _lay_down(kept: Kept, number: int, layer: KeptLayer, trees: Sequence[str]) -> dict[str, str]:
    """Unpacks one layer into the store, where it stays until a collection; returns a directory for each tree."""
    store = planning.store()
    found = _split(kept.layer(number), layer, trees, f"kept test {kept.id}")
    if not found:
        return {}
    written = [one for _, one in found]
    host = tuple((tree, (at,)) for at, (tree, _) in enumerate(found))
    added = add_image(store, None, empty_document(store.platform), written, f"kept test {kept.id}", host, record=False)
    for one in written:  # the archive on the shelf is enough
        with contextlib.suppress(OSError):
            os.unlink(store.layout.blob(one.digest))
    return {tree: f"{store.layout.layer(key)}/fs" for (tree, _), key in zip(found, added.keys, strict=True)}


def _split(path: str, layer: KeptLayer, trees: Sequence[str], what: str) -> list[tuple[str, Written]]:
    """One archive for each tree that a layer has something for, in the store."""
    with plain_layer(path, layer, what) as file:
        parts = Restacker(file, trees, what, _look)

        def write_tree(tree: str) -> Written:
            def write(out: BinaryIO) -> int:
                with open_archive(out) as tar:
                    return parts.write(tree, tar)
            return write_archive(planning.store(), write)

        return [(tree, write_tree(tree)) for tree in parts.found]


@contextlib.contextmanager
def plain_layer(path: str, layer: KeptLayer, what: str) -> Iterator[BinaryIO]:
    """A layer's archive, decompressed into a file without a name and compared with its digest.

    :raises ImageCorrupt: when it is not what it was.
    """
    store = planning.store()
    folder = os.path.dirname(store.layout.staging("x"))
    try:
        with open(path, "rb") as raw, tempfile.TemporaryFile(dir=folder) as plain:
            with LayerStream(raw, limits=store.limits, reference=what, cancelled=threading.Event()) as stream:
                while piece := stream.take(1 << 20):
                    plain.write(piece)
                found = stream.digest()
            if found != layer.diff_id:
                raise ImageCorrupt(f"{what} cannot be used", reference=what,
                                   why=f"{os.path.basename(path)} has the digest {found}, {layer.diff_id} was kept",
                                   remedy="It was changed or damaged on disk; remove it: pytest-sandbox kept --remove.")
            plain.seek(0)
            yield cast(BinaryIO, plain)
    except OSError as error:
        raise (error if hasattr(error, "what") else store_error(error, store.layout.root)) from None


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None
