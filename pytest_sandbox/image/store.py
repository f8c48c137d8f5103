"""The layer store: references in, read-only layers out. What ``sandbox`` and the command line call.

A store on disk is shared by any number of processes; an :class:`ImageStore` is one process's use of it.
"""

from __future__ import annotations

import atexit
import base64
import os
import stat
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ImageCorrupt, ImageError, ImageNotFound, StoreError
from .archive import open_archive
from .compression import Limits
from .ingest import Ingest, Layer, hold_layer
from .layout import Layout, store_error
from .locks import FileLock
from .manifest import (
    OCI_LAYER,
    ConfigDocument,
    Descriptor,
    HostTrees,
    LayerStack,
    Platform,
    RootDirectory,
    digest_of,
    parse_config,
)
from .reference import (
    ArchiveReference,
    Reference,
    RegistryReference,
    RootfsReference,
    StoredReference,
    parse_reference,
)
from .source import Progress, Source, SourceImage

_NOTHING = digest_of(b"")  # an archive of no bytes has no entries
_EMPTY = Descriptor(_NOTHING, 0, OCI_LAYER)

#: Where committed states of the host have their names (``host:NAME``); no registry is asked for them.
HOST_STATES = "docker.io/library/host"

_TOUCH_AFTER = 600  # seconds; the least recently used order needs no finer time, and reading should not write


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One image of the store, as its record has it. ``keys`` name its layers' directories, lowest first.

    ``host`` is for changes of the host's root: which of the layers belong to which of its trees, lowest first.
    """

    image_id: str
    digest: str | None
    reference: str
    manifest: bytes | None
    config: bytes
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[str, ...]
    keys: tuple[str, ...]
    overlay_xattrs: tuple[str, ...]
    root: RootDirectory
    notes: tuple[str, ...]
    created: int
    host: HostTrees | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "version": 1, "image_id": self.image_id, "digest": self.digest, "reference": self.reference,
            "manifest": base64.b64encode(self.manifest).decode() if self.manifest is not None else None,
            "config": base64.b64encode(self.config).decode(), "layers": [one.as_json() for one in self.layers],
            "diff_ids": list(self.diff_ids), "keys": list(self.keys), "overlay_xattrs": list(self.overlay_xattrs),
            "root": [self.root.mode, self.root.uid, self.root.gid], "notes": list(self.notes), "created": self.created,
            **({"host": [list(one) for one in self.host]} if self.host is not None else {}),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> StoredImage:
        manifest = record["manifest"]
        return cls(
            image_id=record["image_id"], digest=record["digest"], reference=record["reference"],
            manifest=base64.b64decode(manifest) if manifest is not None else None,
            config=base64.b64decode(record["config"]),
            layers=tuple(Descriptor(one["digest"], one["size"], one["mediaType"]) for one in record["layers"]),
            diff_ids=tuple(record["diff_ids"]), keys=tuple(record["keys"]),
            overlay_xattrs=tuple(record["overlay_xattrs"]), root=RootDirectory(*record["root"]),
            notes=tuple(record["notes"]), created=record["created"],
            host=tuple((str(tree), tuple(map(int, which))) for tree, which in record["host"])
            if "host" in record else None)


class ImageStore:
    """One process's use of the layer store. Made by whoever resolves images; ``close`` lets its layers go.

    One that has brought something in deletes what dead processes left, when it is closed or its process ends.

    Whatever :meth:`resolve` returned stays on disk until ``close``, or until the process ends.

    :param cache: directory of the store; by default ``PYTEST_SANDBOX_CACHE``, else the user's cache directory.
    :param offline: never ask a registry.
    :param platform: which image of an index is meant; this machine's by default.
    :param pins: what a lock file says: from a reference to the digest that is to be used for it.
    :raises StoreError: when the directory cannot be used.
    """

    def __init__(self, cache: str | Path | None = None, *, offline: bool = False, platform: Platform | None = None,
                 limits: Limits | None = None, progress: Progress | None = None,
                 pins: Callable[[RegistryReference, Platform], str | None] | None = None) -> None:
        self.layout = Layout(Path(cache) if cache is not None else None)
        self.offline = offline
        self.platform = platform or Platform.here()
        self.limits = limits or limits_from_environment()
        self.progress = progress or Progress()
        self._pins = pins
        self._held: dict[str, FileLock] = {}
        self._stacks: dict[str, LayerStack] = {}
        self._passing: dict[str, StoredImage] = {}
        self._mutex = threading.Lock()
        self._has_added = 0  # the process that did

    def __enter__(self) -> ImageStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Lets the layers go. They stay on disk until a collection takes them."""
        with self._mutex:
            for held in self._held.values():
                held.release()
            self._held.clear()
            self._stacks.clear()
        self._tidy_up()

    def _tidy_up(self) -> None:
        atexit.unregister(self._tidy_up)
        added, self._has_added = self._has_added, 0
        if added == os.getpid():  # not in a fork of it
            with suppress(OSError):
                self.layout.sweep()

    def know(self, stored: StoredImage) -> None:
        """Lets an image without a record be resolved by its id in this process: a step of a build."""
        self._passing[stored.image_id] = stored

    def recorded(self, record: object) -> StoredImage | None:
        """An image from what ``as_json`` gave, its layers held; None when one is gone."""
        try:
            stored = StoredImage.from_json(record)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError):
            return None
        return stored if self._hold(stored, stored.reference) is not None else None

    def stack(self, stored: StoredImage, reference: str) -> LayerStack:
        """The layers of an image that this store holds."""
        return self._stack(stored, reference)

    def forget(self) -> None:
        """Reads the names anew: one means something else now."""
        with self._mutex:
            self._stacks.clear()

    def resolve(self, reference: str, *, refresh: bool = False) -> LayerStack:
        """The layers of ``reference``, on disk and verified, ready to be mounted.

        Asks a registry only when the reference is not in the store yet, or with ``refresh``.

        :raises ImageNotFound: when there is no such image, or none for this platform, or offline none in the store.
        :raises ImageError: when the reference or the image is unusable.
        :raises StoreError: when the store is.
        """
        with self._mutex:
            if not refresh and (known := self._stacks.get(reference)) is not None and known.immutable:
                return known
            parsed = parse_reference(reference)
            try:
                if isinstance(parsed, RootfsReference) and os.path.isdir(parsed.path):
                    return _plain_directory(parsed)
                stack = self._known(parsed, reference) if not refresh else None
                if stack is None:
                    stack = self._ingest(parsed, reference)
            except OSError as error:
                if isinstance(error, StoreError | ImageError):
                    raise
                raise store_error(error, self.layout.root) from error
            if not isinstance(parsed, ArchiveReference | RootfsReference):
                self._stacks[reference] = stack
            return stack

    # What is there already.

    def image(self, image_id: str) -> StoredImage | None:
        """The record of an image; None when there is none that can be read."""
        if image_id in self._passing:
            return self._passing[image_id]
        record = self.layout.read_record(self.layout.image(image_id))
        try:
            stored = StoredImage.from_json(record) if record is not None else None
        except (KeyError, TypeError, ValueError):
            return None  # of another version, or damaged: as good as absent
        if stored is None or digest_of(stored.config, image_id.partition(":")[0]) != image_id:
            return None
        return stored

    def name_key(self, reference: Reference) -> str:
        """Under what a reference is remembered."""
        if isinstance(reference, ArchiveReference):
            absolute = ArchiveReference(reference.kind, os.path.realpath(reference.path), reference.tag)
            return f"{absolute} {self.platform}"
        if isinstance(reference, RootfsReference):
            return f"rootfs:{os.path.realpath(reference.path)}"
        return f"{reference} {self.platform}"

    def has(self, reference: str) -> bool:
        """Whether the store knows what ``reference`` means."""
        parsed = parse_reference(reference)
        return os.path.exists(self.layout.name(self.name_key(self.pinned(parsed))))

    def _known(self, parsed: Reference, reference: str) -> LayerStack | None:
        if isinstance(parsed, StoredReference):
            image_id: str | None = parsed.image_id
        else:
            record = self.layout.read_record(self.layout.name(self.name_key(self.pinned(parsed)))) or {}
            if record.get("stamp") != _stamp(parsed):
                return None
            image_id = record.get("image_id")
        stored = self.image(image_id) if isinstance(image_id, str) else None
        if stored is None:
            return None
        return self._hold(stored, reference)

    def pinned(self, parsed: Reference) -> Reference:
        """A registry reference with the digest that the lock file has for it."""
        if isinstance(parsed, RegistryReference) and parsed.digest is None and self._pins is not None:
            digest = self._pins(parsed, self.platform)
            if digest is not None:
                return RegistryReference(parsed.domain, parsed.path, None, digest)
        return parsed

    def _hold(self, stored: StoredImage, reference: str) -> LayerStack | None:
        """Locks an image's layers; None if one is gone."""
        new: dict[str, FileLock] = {}
        for key in stored.keys:
            if key in self._held or key in new:
                continue
            found = hold_layer(self.layout, key)
            if found is None:
                for held in new.values():
                    held.release()
                return None
            _touch(found[0])
            new[key] = found[0]
        self._held.update(new)  # not before all are there: one that was let go again is not held
        return self._stack(stored, reference)

    def _stack(self, stored: StoredImage, reference: str) -> LayerStack:
        document = parse_config(stored.config, reference=reference)
        return LayerStack(
            layers=tuple(f"{self.layout.layer(key)}/fs" for key in stored.keys), config=document.config,
            image_id=stored.image_id, digest=stored.digest, reference=reference, overlay_xattrs=stored.overlay_xattrs,
            root=stored.root, notes=stored.notes, host=stored.host)

    # What has to be brought in.

    def _ingest(self, parsed: Reference, reference: str) -> LayerStack:
        if isinstance(parsed, StoredReference):
            raise ImageNotFound(f"image {reference!r} is not there", reference=reference,
                                why="the store has no image of this id, or parts of it were removed",
                                remedy="See pytest-sandbox images.")
        if isinstance(parsed, RegistryReference) and parsed.name == HOST_STATES:
            raise ImageNotFound(f"image {reference!r} is not there", reference=reference,
                                why="no state of this host was committed under that name",
                                remedy="Commit one: Sandbox().commit(name), or see pytest-sandbox images.")
        stamp = _stamp(parsed)
        target = self.pinned(parsed)
        stored = self._bring(target, reference)
        self.layout.write_record(self.layout.name(self.name_key(target)), {
            "version": 1, "name": str(target), "platform": str(self.platform), "image_id": stored.image_id,
            "digest": stored.digest, "stamp": stamp, "resolved": int(time.time())})
        return self._stack(stored, reference)

    def _bring(self, target: Reference, reference: str) -> StoredImage:
        self.progress.begin(reference, "pulling" if isinstance(target, RegistryReference) else "unpacking")
        try:
            with closing(self.source(target, reference)) as source:
                stored = self.add(source, source.image())
        except BaseException:
            self.progress.finish(failed=True)
            raise
        self.progress.finish()
        return stored

    def source(self, parsed: Reference, reference: str) -> Source:
        """Where a reference leads. The caller closes it.

        :raises ImageNotFound: offline, for what only a registry has.
        """
        if isinstance(parsed, ArchiveReference | RootfsReference):
            return open_archive(parsed, self.platform, self.limits)
        assert isinstance(parsed, RegistryReference)
        if self.offline:
            raise ImageNotFound(f"image {reference!r} is not in the store", reference=reference,
                                why="registries are not asked (--offline)",
                                remedy=f"Run pytest-sandbox pull {reference} while there is a network.")
        from .registry import RegistrySource

        return RegistrySource(parsed, self.platform, progress=self.progress)

    def add(self, source: Source, image: SourceImage, host: HostTrees | None = None, *,
            record: bool = True) -> StoredImage:
        """Brings an image's layers and its record into the store, and holds them. Not for two threads at once."""
        if not image.layers:  # "FROM scratch" and nothing else; overlayfs wants a layer all the same
            image = replace(image, document=replace(image.document, diff_ids=(_NOTHING,)), layers=(_EMPTY,))
        if self._has_added != os.getpid():
            self._has_added = os.getpid()
            atexit.register(self._tidy_up)
        layers = Ingest(self.layout, source, image, limits=self.limits, progress=self.progress).run()
        stored = _record(image, layers)
        if host is not None:
            stored = replace(stored, host=host, keys=tuple(layer.key for layer in layers))
        used = set(stored.keys)
        for layer in layers:
            if layer.key in used and layer.key not in self._held:
                self._held[layer.key] = layer.held
            elif self._held.get(layer.key) is not layer.held:
                layer.held.release()
        if record:
            self.layout.write_record(self.layout.image(image.image_id), stored.as_json())
        return stored

    def held_keys(self) -> frozenset[str]:
        """The layers that this store holds itself."""
        return frozenset(self._held)


def _record(image: SourceImage, layers: list[Layer]) -> StoredImage:
    """An image's record. Layers that cannot show through are not part of the stack."""
    if len({tuple(layer.meta["overlay_xattrs"]) for layer in layers}) > 1:
        common = set.intersection(*(set(layer.meta["overlay_xattrs"]) for layer in layers))
        if not common:
            raise ImageCorrupt(f"image {image.reference!r} cannot be used", reference=image.reference,
                               why="its layers were unpacked with different rights",
                               remedy="Remove it from the store (pytest-sandbox rm), and pull it again.")
        marks = tuple(sorted(common))
    else:
        marks = tuple(layers[0].meta["overlay_xattrs"])
    start = max((at for at, layer in enumerate(layers) if layer.meta["opaque_root"]), default=0)
    visible = layers[start:]
    # One directory cannot be mounted twice; laid over everything, it hides what it would add further down.
    keys = [layer.key for at, layer in enumerate(visible) if layer.key not in {one.key for one in visible[at + 1:]}]
    root = next((layer.root for layer in reversed(visible) if layer.root is not None), RootDirectory())
    return StoredImage(
        image_id=image.image_id, digest=image.digest, reference=image.reference, manifest=image.manifest,
        config=image.config, layers=image.layers, diff_ids=image.document.diff_ids, keys=tuple(keys),
        overlay_xattrs=marks, root=root, notes=tuple(note for layer in layers for note in layer.meta["notes"])[:100],
        created=int(time.time()))


def _plain_directory(parsed: RootfsReference) -> LayerStack:
    path = os.path.realpath(parsed.path)
    try:
        status = os.stat(path)
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        raise ImageError(f"image {str(parsed)!r} cannot be used", reference=str(parsed), why=error.strerror) from None
    return LayerStack(layers=(path,), reference=str(parsed), immutable=False,
                      root=RootDirectory(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid))


def _stamp(parsed: Reference) -> list[int] | None:
    """What of a file changes when the file does."""
    if isinstance(parsed, ArchiveReference | RootfsReference):
        is_layout = isinstance(parsed, ArchiveReference) and parsed.kind == "oci"
        path = os.path.join(parsed.path, "index.json") if is_layout else parsed.path
        try:
            status = os.stat(path)
        except OSError:
            return [0]
        return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return None


def _touch(held: FileLock) -> None:
    try:
        if time.time() - os.fstat(held.fd).st_mtime > _TOUCH_AFTER:
            os.utime(held.fd)
    except OSError:
        pass  # a read-only or full disk: the order of use is then less exact


def limits_from_environment() -> Limits:
    """The limits on layers, changed by ``PYTEST_SANDBOX_LAYER_LIMITS``.

    :raises StoreError: when that cannot be read.
    """
    text = os.environ.get("PYTEST_SANDBOX_LAYER_LIMITS", "")
    try:
        return Limits.parse(text)
    except ValueError as error:
        raise StoreError(f"PYTEST_SANDBOX_LAYER_LIMITS={text!r} cannot be read", why=str(error)) from None


__all__ = ["ConfigDocument", "ImageStore", "StoredImage", "limits_from_environment"]
