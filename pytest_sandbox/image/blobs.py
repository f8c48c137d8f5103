"""Compressed layers: fetched into the store once, and verified before anything reads them. Used by :mod:`.ingest`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ..errors import ImageCorrupt
from .compression import Cancelled
from .layout import Layout, sync_directory, write_all
from .locks import lock
from .manifest import Descriptor
from .source import Progress, Source


class CheckedReader:
    """A file that hashes what is read of it."""

    def __init__(self, raw: BinaryIO, layer: Descriptor, reference: str) -> None:
        self._raw, self._layer, self._reference = raw, layer, reference
        self._hash = hashlib.new(layer.digest.partition(":")[0])
        self._size = 0

    def read(self, count: int) -> bytes:
        data = self._raw.read(count)
        self._hash.update(data)
        self._size += len(data)
        if self._size > self._layer.size:
            raise self._corrupt(f"it has more than the {self._layer.size} bytes that were promised")
        return data

    def finish(self) -> None:
        while self.read(1 << 20):
            pass
        if self._size != self._layer.size:
            raise self._corrupt(f"it has {self._size} bytes, {self._layer.size} were promised")
        actual = f"{self._hash.name}:{self._hash.hexdigest()}"
        if actual != self._layer.digest:
            raise self._corrupt(f"its digest is {actual}")

    def _corrupt(self, why: str) -> ImageCorrupt:
        return ImageCorrupt(f"image {self._reference!r} cannot be used: layer {self._layer.digest}",
                            reference=self._reference, why=why)


@contextlib.contextmanager
def fetch_blob(layout: Layout, source: Source, layer: Descriptor, what: str, reference: str, progress: Progress,
               cancel: threading.Event, *, synced: bool = False) -> Iterator[BinaryIO]:
    """A verified blob, open for reading. Fetched unless the store has it; a download that broke off is gone on with.

    :param synced: the ``with`` block ends with a ``syncfs`` of the store: a blob that was fetched gets its name then,
        and is not synced by itself: one wait for the disk instead of two.
    :raises ImageCorrupt: when the bytes are not the promised ones; they are removed.
    """
    path = layout.blob(layer.digest)
    base = layout.staging(f"blob-{os.path.basename(path)}")
    while True:
        try:
            there = open(path, "rb")  # noqa: SIM115 - closed below: the block's own errors are not this one's
        except FileNotFoundError:
            pass
        else:
            with there:
                yield there
            return
        held = lock(f"{base}.lock", exclusive=True, create=True, cancelled=cancel.is_set,
                    on_wait=lambda: progress.waiting(what, "another process is downloading it"))
        if held is None:
            raise Cancelled
        try:
            if not os.path.exists(path):
                fd = _download(source, layer, f"{base}.partial", what, reference, progress, cancel)
                with open(fd, "rb") as file:
                    whole = False
                    try:
                        yield file
                        whole = synced
                    finally:  # whatever came of the block: these bytes are the promised ones
                        _keep(fd, f"{base}.partial", path, whole)
                return
        except _StartOver:
            continue
        except BaseException:
            if os.path.exists(f"{base}.partial"):
                held.release()  # the lock file stays with the partial one
            raise
        finally:
            if held.fd >= 0:
                held.remove()


class _Hashing:
    """Hashes in a thread of its own what it is given: SHA-256 is most of a fast download's time, and it releases the
    interpreter's lock. Lives as long as the ``with`` block around it.

    :param digest: what has been hashed so far.
    """

    _AHEAD = 16  # pieces that may wait

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest
        self._queue: queue.Queue[bytes | None] = queue.Queue(self._AHEAD)
        self._thread = threading.Thread(target=self._run, name="sandbox-hash", daemon=True)

    def __enter__(self) -> Callable[[bytes], None]:
        self._thread.start()
        return self._queue.put

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (data := self._queue.get()) is not None:
            self._digest.update(data)


class _StartOver(Exception):
    """A download that an earlier run had begun does not come out right; the beginning is thrown away."""


def _keep(fd: int, partial: str, path: str, synced: bool) -> None:
    """Gives a whole blob its name. A name that a power cut takes is fetched again; one of half a blob would stay."""
    if not synced:
        os.fsync(fd)
    os.rename(partial, path)
    os.fchmod(fd, 0o400)  # not before: whoever is killed in between leaves a beginning that can be gone on with
    if not synced:
        sync_directory(os.path.dirname(path))


def _download(source: Source, layer: Descriptor, partial: str, what: str, reference: str, progress: Progress,
              cancel: threading.Event) -> int:
    """Brings a blob into ``partial``; its descriptor, at the beginning, once the bytes are the promised ones."""
    try:
        fd = os.open(partial, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except PermissionError:  # of a version that made it read-only too early, and was killed then
        os.chmod(partial, 0o600)
        fd = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
    try:
        digest = hashlib.new(layer.digest.partition(":")[0])
        size = 0
        while data := os.read(fd, 1 << 20):  # what an earlier run has fetched already
            digest.update(data)
            size += len(data)
        resumed = size

        def write(data: bytes) -> None:
            nonlocal size
            if cancel.is_set():
                raise Cancelled
            size += len(data)
            if size > layer.size:
                raise corrupt(f"it has more than the {layer.size} bytes that were promised")
            hashed(data)
            write_all(fd, data)
            progress.advance(what, len(data))

        def corrupt(why: str) -> Exception:
            os.unlink(partial)
            if resumed:  # perhaps it was the earlier part that was wrong
                return _StartOver()
            return ImageCorrupt(
                f"image {reference!r} cannot be used: layer {layer.digest}", reference=reference, why=why,
                remedy="Pull again; if it stays so, the registry or a proxy on the way is broken.")

        if size > layer.size:
            raise corrupt("")
        progress.start(what, layer.size)
        progress.advance(what, size)
        if size < layer.size or layer.size == 0:
            with _Hashing(digest) as hashed:
                source.fetch_layer(layer, write, size)
        if size != layer.size:
            raise corrupt(f"it has {size} bytes, {layer.size} were promised")
        actual = f"{digest.name}:{digest.hexdigest()}"
        if actual != layer.digest:
            raise corrupt(f"its digest is {actual}")
        progress.done(what)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
