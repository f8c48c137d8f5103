"""Bringing one image's layers into the store: fetched, verified, unpacked, synced, renamed. Called by :mod:`.store`.

Each layer is one piece of work under one lock: of any number of processes one does it, and the others wait for it.
Nobody holds one layer's lock while waiting for another's.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import ImageCorrupt
from .abilities import Abilities, probe_abilities
from .blobs import CheckedReader, fetch_blob
from .compression import Cancelled, LayerStream, Limits
from .layout import Layout, store_error, sync_directory, write_file
from .locks import FileLock, lock
from .lower import LowerView
from .manifest import Descriptor, RootDirectory, chain_id
from .owners import OWNERS, pack
from .resolve import syncfs
from .source import Progress, Source, SourceImage
from .tree import finish_tree
from .unpack import Applied, NeedsLower, apply_layer

_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """One finished layer. ``held`` is a shared lock that keeps it from being collected."""

    key: str
    diff_id: str
    meta: dict[str, Any]
    held: FileLock

    @property
    def root(self) -> RootDirectory | None:
        """What the layer says about the root directory; None if nothing."""
        given = self.meta.get("root")
        return RootDirectory(given["mode"], given["uid"], given["gid"]) if given else None


def free_key(diff_id: str) -> str:
    """The key of a layer that can be laid down alone."""
    return diff_id.partition(":")[2]


def bound_key(diff_id: str, below: str) -> str:
    """The key of a layer that depends on the stack of layers below it, given as their chain id."""
    return hashlib.sha256(f"bound {diff_id} on {below}".encode()).hexdigest()


def hold_layer(layout: Layout, key: str) -> tuple[FileLock, dict[str, Any]] | None:
    """A finished layer, locked so that it stays; None when there is none."""
    try:
        held = lock(f"{layout.layer(key)}/lock", exclusive=False)
    except FileNotFoundError:
        return None
    assert held is not None
    meta = layout.read_record(f"{layout.layer(key)}/meta.json")
    if meta is None:
        held.release()
        return None
    return held, meta


class Ingest:
    """One image on its way into the store. Use :meth:`run` once."""

    def __init__(self, layout: Layout, source: Source, image: SourceImage, *, limits: Limits,
                 progress: Progress) -> None:
        self._layout, self._source, self._image = layout, source, image
        self._limits, self._progress = limits, progress
        self._cancel = threading.Event()
        self._abilities: Abilities | None = None

    def run(self) -> list[Layer]:
        """All layers of the image, lowest first, each locked. On an error nothing stays locked.

        :raises ImageError: when a layer is corrupt, hostile, or cannot be fetched.
        :raises StoreError: when the disk is full or fails.
        """
        diff_ids = self._image.document.diff_ids
        first = {diff_id: at for at, diff_id in reversed(list(enumerate(diff_ids)))}
        done: dict[int, Layer] = {}
        try:
            if self._layout.is_nearly_full():
                self._layout.sweep()  # else when the process ends: deleting is not to hold up a test
            with ThreadPoolExecutor(min(_AT_ONCE, max(1, len(first))), "sandbox-pull") as pool:
                jobs: dict[Future[Layer | None], int] = {}
                try:
                    for at in first.values():
                        jobs[pool.submit(self._free, at)] = at
                    wait(jobs, return_when=FIRST_EXCEPTION)
                except BaseException:  # a signal, which may come before the first job is known here
                    self._cancel.set()
                    raise
                finally:  # also when a signal comes
                    if not all(job.done() for job in jobs):
                        self._cancel.set()
                    for job in jobs:
                        job.cancel()
                    wait(jobs)
                    for job, at in jobs.items():
                        if not job.cancelled() and job.exception() is None and (layer := job.result()) is not None:
                            done[at] = layer
                self._raise_first([job.exception() for job in jobs if not job.cancelled()])
            stack: list[Layer] = []
            for at, diff_id in enumerate(diff_ids):
                layer = done.get(at)
                if layer is None and first[diff_id] != at:
                    layer = done.get(first[diff_id])
                    if layer is not None and layer.meta["bound"]:
                        layer = None
                if layer is None:
                    layer = done[at] = self._bound(at, stack)
                stack.append(layer)
            return stack
        except BaseException as error:
            for layer in done.values():
                layer.held.release()
            if isinstance(error, OSError):
                raise self._readable(error) from error
            raise

    def _readable(self, error: OSError) -> BaseException:
        return error if hasattr(error, "what") else store_error(error, self._layout.root)

    def _raise_first(self, errors: list[BaseException | None]) -> None:
        real = [error for error in errors if error is not None]
        for error in real:
            if not isinstance(error, Cancelled):
                raise error
        if real:
            raise real[0]

    def _short(self, at: int) -> str:
        return f"layer {at + 1}/{len(self._image.layers)} {self._image.document.diff_ids[at][7:19]}"

    def _below(self, at: int) -> str:
        return chain_id(self._image.document.diff_ids[:at])

    def _existing(self, at: int) -> Layer | None:
        diff_id = self._image.document.diff_ids[at]
        for key in (free_key(diff_id), bound_key(diff_id, self._below(at))):
            if found := hold_layer(self._layout, key):
                return Layer(key, diff_id, found[1], found[0])
        return None

    def _free(self, at: int) -> Layer | None:
        """A layer by itself; None when it turns out to be bound to those below it."""
        diff_id = self._image.document.diff_ids[at]
        with self._alone(free_key(diff_id), self._short(at)) as staging:
            if layer := self._existing(at):
                return layer
            if at > 0:
                try:
                    return self._make(at, staging, None)
                except NeedsLower:
                    return None
            with LowerView(()) as nothing:
                return self._make(at, staging, nothing)

    def _bound(self, at: int, stack: list[Layer]) -> Layer:
        """A layer on top of finished ones."""
        key = bound_key(self._image.document.diff_ids[at], self._below(at))
        with self._alone(key, self._short(at)) as staging:
            if layer := self._existing(at):
                return layer
            visible = stack[max((n for n, one in enumerate(stack) if one.meta["opaque_root"]), default=0):]
            with LowerView([f"{self._layout.layer(one.key)}/fs" for one in visible]) as lower:
                return self._make(at, staging, lower)

    @contextlib.contextmanager
    def _alone(self, name: str, what: str) -> Iterator[str]:
        """An empty name in the staging area that is nobody else's, and is nothing again afterwards."""
        staging = self._layout.staging(name)
        held = lock(f"{staging}.lock", exclusive=True, create=True, cancelled=self._cancel.is_set,
                    on_wait=lambda: self._progress.waiting(what, "another process is unpacking it"))
        if held is None:
            raise Cancelled
        try:
            self._layout.discard(staging)  # of one that was killed
            yield staging
        finally:
            self._layout.discard(staging)
            held.remove()

    def _make(self, at: int, staging: str, lower: LowerView | None) -> Layer:
        """Unpacks and publishes one layer."""
        diff_id, descriptor = self._image.document.diff_ids[at], self._image.layers[at]
        what = self._short(at)
        with self._layer_bytes(descriptor, what) as raw:
            self._progress.start(f"{what} unpacking", None)
            self._discard_remains(staging)
            os.mkdir(staging, 0o700)
            os.mkdir(f"{staging}/fs", 0o700)
            applied = self._apply(raw, diff_id, f"{staging}/fs", lower)
            key = bound_key(diff_id, self._below(at)) if applied.bound else free_key(diff_id)
            meta = self._describe(staging, key, diff_id, applied)
            layer = self._publish(staging, key, diff_id, meta)  # in here: its syncfs is the blob's as well
        self._progress.done(f"{what} unpacking")
        for note in applied.notes:
            self._progress.note(note)
        return layer

    def _discard_remains(self, staging: str) -> None:
        if os.path.lexists(staging):
            self._layout.discard(staging)

    def _apply(self, raw: BinaryIO, diff_id: str, root: str, lower: LowerView | None) -> Applied:
        reference = self._image.reference
        with LayerStream(raw, limits=self._limits, reference=reference, cancelled=self._cancel) as stream:
            applied = apply_layer(stream, root, abilities=self.abilities, limits=self._limits, reference=reference,
                                  lower=lower)
            actual = stream.digest()
        if diff_id.startswith("sha512:"):
            raise ImageCorrupt(f"image {reference!r} cannot be used", reference=reference,
                               why="its diff ids are not SHA-256, the only kind that is in use")
        if actual != diff_id:
            raise ImageCorrupt(f"image {reference!r} cannot be used", reference=reference,
                               why=f"a layer's diff id is {actual}, {diff_id} was promised")
        return applied

    @property
    def abilities(self) -> Abilities:
        if self._abilities is None:
            with self._alone(f"probe-{os.urandom(8).hex()}", "") as place:  # where a sweep finds what a killed one left
                os.mkdir(place, 0o700)
                self._abilities = probe_abilities(place, self._layout.root)
        return self._abilities

    def _describe(self, staging: str, key: str, diff_id: str, applied: Applied) -> dict[str, Any]:
        abilities = self.abilities
        root = applied.late.get(os.stat(f"{staging}/fs").st_ino)
        record, measured = finish_tree(f"{staging}/fs", applied, owners=abilities.owners)
        tree = gzip.compress(record, 1, mtime=0)
        meta: dict[str, Any] = {
            "version": 1, "key": key, "diff_id": diff_id, "bound": applied.bound, "opaque_root": applied.opaque_root,
            "root": {"mode": root[0], "uid": root[1], "gid": root[2]} if root and applied.root_given else None,
            "entries": measured.entries, "bytes": measured.bytes, "owners": "kept" if abilities.owners else "listed",
            "overlay_xattrs": list(abilities.overlay_xattrs), "whiteouts": abilities.whiteouts, "notes": applied.notes,
            "tree": f"sha256:{hashlib.sha256(tree).hexdigest()}", "created": int(time.time()),
        }
        write_file(f"{staging}/tree.mtree.gz", tree)
        if applied.owned:
            write_file(f"{staging}/{OWNERS}", pack(applied.owned))
        write_file(f"{staging}/meta.json", json.dumps(meta, sort_keys=True).encode())
        write_file(f"{staging}/lock", b"")
        return meta

    def _publish(self, staging: str, key: str, diff_id: str, meta: dict[str, Any]) -> Layer:
        held = lock(f"{staging}/lock", exclusive=False)
        assert held is not None
        try:
            syncfs(held.fd)  # a rename may reach the disk before the files do: containerd#5854, containers/podman#8005
            target = self._layout.layer(key)
            if os.path.exists(target):  # a deletion that was cut off: had it a lock and a record, it would be in use
                self._layout.discard(target)
            os.rename(staging, target)
            sync_directory(os.path.dirname(target))
        except BaseException:
            held.release()
            raise
        held.path = f"{target}/lock"
        return Layer(key, diff_id, meta, held)

    # Compressed bytes.

    @contextlib.contextmanager
    def _layer_bytes(self, layer: Descriptor, what: str) -> Iterator[BinaryIO]:
        """A layer's archive, verified: from the store if it is kept there, else straight from its source."""
        if layer.size == 0:
            yield io.BytesIO()
            return
        if self._source.keep_blobs:
            with fetch_blob(self._layout, self._source, layer, what, self._image.reference, self._progress,
                            self._cancel, synced=True) as file:
                yield file
            return
        with self._source.open_layer(layer) as raw:
            if layer.size < 0:
                yield raw  # nothing is promised about these bytes but the diff id
                return
            checked = CheckedReader(raw, layer, self._image.reference)
            try:
                yield checked  # type: ignore[misc]
            except ImageCorrupt:
                checked.finish()  # if the bytes are not the promised ones, that is the reason to tell
                raise
            checked.finish()
