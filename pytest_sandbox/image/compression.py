"""A layer's bytes, decompressed, hashed and counted while they stream. Used by the layer applier.

What a stream is compressed with is told from its first bytes, never from a name or a media type. Decompression and
hashing run in a thread of their own: both release the interpreter's lock, so writing files goes on meanwhile.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import ImageCorrupt, ImageError, LayerRejected

_CHUNK = 1 << 18  # large enough to be cheap for each call, small enough to stay in the processor's cache
_ZSTD, _XZ = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00"
_XZ_MEMORY = 256 << 20  # bytes; "xz -9" needs 65 MiB. zstd's own limit, for windows, is 128 MiB
_AHEAD = 8  # chunks that may wait for the reader


@dataclass(frozen=True, slots=True)
class Limits:
    """What one layer may ask for at most. Real images stay far below; ``PYTEST_SANDBOX_LAYER_LIMITS`` changes them.

    :param bytes: decompressed size of the archive.
    :param entries: files, directories and all else in it.
    :param file: logical size of one file, holes included.
    :param name: bytes of one path.
    :param header: bytes of one extended header.
    :param ratio: decompressed size divided by compressed size, looked at from ``ratio_from`` bytes on.
    """

    bytes: int = 64 << 30
    entries: int = 2_000_000
    file: int = 64 << 30
    name: int = 4096
    header: int = 1 << 20
    ratio: int = 400
    ratio_from: int = 256 << 20

    @classmethod
    def parse(cls, text: str) -> Limits:
        """Reads ``name=number,name=number``.

        :raises ValueError: for an unknown name or a value that is no whole number.
        """
        given: dict[str, int] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            name, _, value = part.partition("=")
            if name not in cls.__dataclass_fields__ or not value.isdigit():
                raise ValueError(f"{part!r} is not one of {', '.join(cls.__dataclass_fields__)}, '=' and a number")
            given[name] = int(value)
        return cls(**given)


class Cancelled(Exception):
    """Another layer of the same image failed, or the user gave up; this one ends too."""


class LayerStream:
    """The decompressed bytes of one layer, read once from front to back.

    Lives as long as the ``with`` block around it, which ends the decompressing thread. ``raw`` stays the caller's.

    :param reference: what to name in errors.
    :param cancelled: ends the stream with :class:`Cancelled` when set.
    """

    def __init__(self, raw: BinaryIO, *, limits: Limits, reference: str,
                 cancelled: threading.Event | None = None) -> None:
        self._reference = reference
        self._cancelled = cancelled
        self._limits = limits
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._stopped = False
        self._sha256 = hashlib.sha256()
        self._chunk = b""
        self._at = 0
        self._ended = False
        self._thread = threading.Thread(target=self._produce, args=(raw,), name="sandbox-inflate", daemon=True)

    def __enter__(self) -> LayerStream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        while self._thread.is_alive():  # the producer may wait for room in the queue
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                pass
        self._thread.join()

    def read(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer only at the end."""
        at = self._at
        if len(self._chunk) - at >= count:
            self._at = at + count
            return self._chunk[at:at + count]
        parts = []
        while count:
            piece = self.take(count)
            if not piece:
                break
            parts.append(piece)
            count -= len(piece)
        return b"".join(parts)

    def take(self, most: int) -> memoryview:
        """Between 1 and ``most`` bytes without copying them; none at the end."""
        while self._at == len(self._chunk):
            if self._ended:
                return memoryview(b"")
            item = self._queue.get()
            if item is None:
                self._ended = True
            elif isinstance(item, BaseException):
                self._ended = True
                raise item
            else:
                self._chunk, self._at = item, 0
        piece = memoryview(self._chunk)[self._at:self._at + most]
        self._at += len(piece)
        return piece

    def skip(self, count: int) -> None:
        """Passes over ``count`` bytes.

        :raises ImageCorrupt: when the stream ends before.
        """
        while count:
            piece = self.take(count)
            if not piece:
                raise self._corrupt("the archive ends in the middle of a file")
            count -= len(piece)

    def digest(self) -> str:
        """Reads what is left and gives the digest of everything: the layer's diff id."""
        while self.take(_CHUNK):
            pass
        return f"sha256:{self._sha256.hexdigest()}"

    def _corrupt(self, why: str) -> ImageCorrupt:
        return ImageCorrupt(f"a layer of {self._reference!r} cannot be unpacked", reference=self._reference, why=why)

    def _produce(self, raw: BinaryIO) -> None:
        try:
            self._pump(raw)
        except BaseException as error:  # noqa: BLE001 - handed to the reading thread, which raises it
            self._put(error)
        else:
            self._put(None)

    def _pump(self, raw: BinaryIO) -> None:
        consumed = produced = 0
        limits = self._limits

        def compressed() -> bytes:
            nonlocal consumed
            data = raw.read(_CHUNK)
            consumed += len(data)
            return data

        for chunk in _decompress(compressed, self._reference):
            if self._stopped:
                return
            if self._cancelled is not None and self._cancelled.is_set():
                raise Cancelled
            produced += len(chunk)
            if produced > limits.bytes:
                raise self._over(f"it holds more than {limits.bytes} bytes", "bytes")
            if produced > limits.ratio_from and produced > limits.ratio * consumed:
                raise self._over(f"it expands more than {limits.ratio} times", "ratio")
            self._sha256.update(chunk)
            self._put(chunk)

    def _over(self, why: str, name: str) -> LayerRejected:
        return LayerRejected(
            f"a layer of {self._reference!r} cannot be unpacked", reference=self._reference, rule="limit", why=why,
            remedy=f"If you trust this image, set PYTEST_SANDBOX_LAYER_LIMITS={name}=NUMBER.")

    def _put(self, item: bytes | BaseException | None) -> None:
        while not self._stopped:
            try:
                self._queue.put(item, timeout=0.5)
                return
            except queue.Full:
                continue


def is_compressed(head: bytes) -> bool:
    """Whether bytes that start like this (six of them are enough) are compressed in a way that we read."""
    return head.startswith((b"\x1f\x8b", _ZSTD, _XZ, b"BZh")) or _is_skippable(head)


def decompressed(raw: BinaryIO, reference: str) -> Iterator[bytes]:
    """The decompressed pieces of ``raw``, where nothing but their digest is wanted: no limits apply.

    :raises ImageCorrupt: when they are broken.
    """
    return _decompress(lambda: raw.read(_CHUNK), reference)


def _decompress(source: Callable[[], bytes], reference: str) -> Iterator[bytes]:
    head = source()
    while len(head) < 6 and (more := source()):
        head += more
    if head.startswith(b"\x1f\x8b"):
        yield from _frames(source, head, _Gzip, lambda rest: rest.startswith(b"\x1f"), "gzip", reference)
    elif head.startswith(_ZSTD) or _is_skippable(head):
        yield from _frames(source, head, _zstd(reference),
                           lambda rest: rest.startswith(_ZSTD) or _is_skippable(rest), "zstd", reference)
    elif head.startswith(_XZ):
        import lzma  # not in every build of Python

        yield from _frames(source, head, lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
                           lambda rest: rest.startswith(_XZ[:4]), "xz", reference)
    elif head.startswith(b"BZh"):
        import bz2

        yield from _frames(source, head, bz2.BZ2Decompressor, lambda rest: rest.startswith(b"BZh"), "bzip2", reference)
    else:
        while head:
            yield head
            head = source()


def _frames(source: Callable[[], bytes], head: bytes, make: Callable[[], Any], is_next: Callable[[bytes], bool],
            name: str, reference: str) -> Iterator[bytes]:
    """Decompresses one frame (gzip: member) after the other; zero bytes may follow the last one, nothing else."""
    data = head
    while True:
        while _is_skippable(data):
            data = _skip_frame(data, source, reference)
        if not data:
            return
        machine = make()
        while not machine.eof:
            try:
                out = machine.decompress(data, _CHUNK)
            except Exception as error:  # noqa: BLE001 - zlib, isal, zstd and lzma each have their own
                raise ImageCorrupt(f"a layer of {reference!r} cannot be unpacked", reference=reference,
                                   why=f"its {name} data is broken: {error}") from None
            data = b""
            if out:
                yield out
            if not machine.eof and machine.needs_input:
                data = source()
                if not data:
                    raise ImageCorrupt(f"a layer of {reference!r} cannot be unpacked", reference=reference,
                                       why=f"its {name} data ends early")
        data = machine.unused_data or source()
        while len(data) < 4 and (more := source()):
            data += more
        if not is_next(data):
            while data:
                if data.strip(b"\0"):
                    raise ImageCorrupt(f"a layer of {reference!r} cannot be unpacked", reference=reference,
                                       why=f"something follows its {name} data")
                data = source()
            return


class _Gzip:
    """One gzip member, with the interface that the other decompressors have."""

    def __init__(self) -> None:
        self._machine = _inflater()
        self.eof = False
        self.needs_input = True
        self.unused_data = b""

    def decompress(self, data: bytes, most: int) -> bytes:
        machine = self._machine
        out: bytes = machine.decompress(machine.unconsumed_tail + data if machine.unconsumed_tail else data, most)
        self.eof = machine.eof
        self.needs_input = not machine.unconsumed_tail and len(out) < most
        if self.eof:
            self.unused_data = machine.unused_data
        return out


def _inflater() -> Any:
    try:
        from isal import isal_zlib  # optional: half the time of zlib

        return isal_zlib.decompressobj(wbits=31)
    except ImportError:
        return zlib.decompressobj(wbits=31)


def _zstd(reference: str) -> Callable[[], Any]:
    try:
        from compression.zstd import ZstdDecompressor  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
    except ImportError:
        try:
            from backports.zstd import ZstdDecompressor
        except ImportError:
            raise ImageError(f"a layer of {reference!r} cannot be unpacked", reference=reference,
                             why="it is compressed with zstd, which this Python cannot read",
                             remedy="Install pytest-sandbox[zstd], or use Python 3.14 or newer.") from None
    make: Callable[[], Any] = ZstdDecompressor
    return make


def _is_skippable(data: bytes) -> bool:
    """Whether a zstd frame starts here that holds no content (RFC 8878, 3.1.2): zstd:chunked layers have them."""
    return len(data) >= 4 and data[1:4] == b"\x2a\x4d\x18" and data[0] & 0xF0 == 0x50


def _skip_frame(data: bytes, source: Callable[[], bytes], reference: str) -> bytes:
    while len(data) < 8 and (more := source()):
        data += more
    left = 8 + int.from_bytes(data[4:8], "little")
    while left > len(data):
        left -= len(data)
        data = source()
        if not data:
            raise ImageCorrupt(f"a layer of {reference!r} cannot be unpacked", reference=reference,
                               why="its zstd data ends early")
    data = data[left:] or source()
    while len(data) < 4 and (more := source()):
        data += more
    return data
