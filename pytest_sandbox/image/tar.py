"""Reading tar headers: ustar, pax, GNU and v7, with sparse files. Used by the layer applier and the archive sources.

Own code, for two reasons. Two programs that read one archive differently are an attack, and every other tool that
reads layers (containerd, umoci, podman, Docker) uses Go's ``archive/tar``: where the formats leave room, we read as
that does. And the standard library's reader costs half of an unpacking's time (measured: docs/design/0011).

Names stay bytes: layers may hold names of any encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..errors import ImageCorrupt, LayerRejected
from .compression import Limits

_BLOCK = 512
_ZEROS = bytes(_BLOCK)
# Types that never have data, whatever their header's size says (Go: isHeaderOnly).
_NO_DATA = frozenset(b"123456")
_KNOWN = frozenset(b"0123456\x00" b"7S")
_XATTR = b"SCHILY.xattr."
_LARGEST = (1 << 63) - 1


def _is_sum(block: bytes) -> bool:
    """Whether a header's checksum is right; some old programs summed up signed bytes."""
    text = block[148:156].strip(b" \0").partition(b"\0")[0]
    if not text or text.strip(b"01234567"):
        return False
    total = sum(block) - sum(block[148:156]) + 256
    signed = total - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return int(text, 8) in (total, signed)


def _sparse_version(pax: dict[bytes, bytes]) -> int | None:
    """Which of GNU's sparse formats an extended header speaks of, 0 or 1; None where the file is an ordinary one."""
    version = pax.get(b"GNU.sparse.major", b""), pax.get(b"GNU.sparse.minor", b"")
    if version in ((b"0", b"0"), (b"0", b"1")) or (version == (b"", b"") and pax.get(b"GNU.sparse.map")):
        return 0
    return 1 if version == (b"1", b"0") else None


class ByteStream(Protocol):
    """What an archive is read from."""

    def read(self, count: int, /) -> bytes: ...
    def take(self, most: int, /) -> memoryview: ...
    def skip(self, count: int, /) -> None: ...


@dataclass(slots=True)
class Entry:
    """One member of an archive.

    ``kind`` is the type as one character of ``0123456`` (regular, hard link, symbolic link, character device, block
    device, directory, fifo). ``size`` is the logical size, ``stored`` the bytes that follow in the archive, ``pieces``
    where they belong as ``(offset, length)`` if the file is sparse. ``mtime`` is in nanoseconds since 1970.
    """

    kind: str
    name: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    major: int
    minor: int
    stored: int
    pieces: tuple[tuple[int, int], ...] | None
    xattrs: tuple[tuple[bytes, bytes], ...]


def show(name: bytes) -> str:
    """A name for a message: printable, and bounded."""
    text = name.decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)
    return text if len(text) <= 200 else f"{text[:200]}..."


class TarReader:
    """Iterates over an archive's members. The caller reads ``entry.stored`` bytes after each one, or :meth:`skip` does.

    :param stream: positioned at the archive's beginning; read only forwards.
    """

    def __init__(self, stream: ByteStream, *, limits: Limits, reference: str) -> None:
        self._stream = stream
        self._limits = limits
        self._reference = reference
        self._padding = 0
        self._begun = False
        self.name = b""  # of the member being read, for messages

    def __iter__(self) -> Iterator[Entry]:
        entries = 0
        while (entry := self._next()) is not None:
            entries += 1
            if entries > self._limits.entries:
                raise self._over("limit", f"it has more than {self._limits.entries} entries", "entries")
            yield entry

    def reject(self, rule: str, why: str, remedy: str | None = None) -> LayerRejected:
        """An error about the current member."""
        return LayerRejected(f"a layer of {self._reference!r} cannot be unpacked: entry {show(self.name)!r}",
                             reference=self._reference, entry=show(self.name), rule=rule, why=why, remedy=remedy)

    def _over(self, rule: str, why: str, limit: str) -> LayerRejected:
        return self.reject(rule, why,
                           f"If you trust this image, set PYTEST_SANDBOX_LAYER_LIMITS={limit}=NUMBER.")

    def _next(self) -> Entry | None:
        """The next member that is one: extended headers are read and applied on the way."""
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        while True:
            block = self._block()
            if block is None:
                return None
            kind = block[156]
            if kind in b"xgLK":
                size = self._number(block[124:136], "size")
                if size > self._limits.header:
                    raise self._over("limit", f"it has a header of {size} bytes", "header")
                data = self._stream.read(size)
                if len(data) != size:
                    raise self._early()
                self._stream.skip(-size % _BLOCK)
                if kind == ord("x"):
                    pax = self._pax(data)
                elif kind == ord("L"):
                    long_name = data.partition(b"\0")[0]
                elif kind == ord("K"):
                    long_link = data.partition(b"\0")[0]
                continue  # g: Go hands it to the caller, and no reader of layers applies it
            return self._entry(block, pax, long_name, long_link)

    def _block(self) -> bytes | None:
        """The next header with its checksum proved; None at the end."""
        if self._padding:
            self._stream.skip(self._padding)
            self._padding = 0
        block = self._stream.read(_BLOCK)
        if not block:
            return None
        if len(block) != _BLOCK:
            raise self._early()
        if block == _ZEROS:
            second = self._stream.read(_BLOCK)
            if second and second != _ZEROS:
                raise self.reject("header", "a single block of zeros stands between two headers")
            return None
        if not _is_sum(block):
            if not self._begun:
                raise LayerRejected(
                    f"a layer of {self._reference!r} cannot be unpacked", reference=self._reference, rule="header",
                    why=f"it is no tar archive, nor one compressed with gzip, zstd, xz or bzip2: it begins with "
                        f"{show(block[:16])!r}")
            raise self.reject("header", "the header's checksum is wrong")
        self._begun = True
        return block

    def _early(self) -> ImageCorrupt:
        why = f"the archive ends early, after entry {show(self.name)!r}" if self.name else "it is no tar archive"
        return ImageCorrupt(f"a layer of {self._reference!r} cannot be unpacked", reference=self._reference, why=why)

    def _number(self, field: bytes, what: str, *, negative: bool = False) -> int:
        if field[0] & 0x80:  # GNU's base-256, two's complement over the rest
            value = int.from_bytes(field, "big") & ~(1 << (8 * len(field) - 1))
            if field[0] & 0x40:
                value -= 1 << (8 * len(field) - 1)
        else:
            text = field.strip(b" \0").partition(b"\0")[0]
            if text.strip(b"01234567"):
                raise self.reject("header", f"the header's {what} is not a number")
            value = int(text, 8) if text else 0
        if not (-_LARGEST if negative else 0) <= value <= _LARGEST:
            raise self.reject("header", f"the header's {what} is {value}")
        return value

    def _pax(self, data: bytes) -> dict[bytes, bytes]:
        """An extended header's records; the pieces of GNU's sparse format 0.0, which repeat a key, become its map."""
        records: dict[bytes, bytes] = {}
        sparse: list[bytes] = []
        at = 0  # and no slices of what is left: a header of many short records would take minutes
        while at < len(data):
            digits, space, _ = data[at:at + 20].partition(b" ")
            length = int(digits) if space and digits.isdigit() else 0
            record = data[at:at + length]
            key, equals, value = record[len(digits) + 1:-1].partition(b"=")
            if length < 5 or len(record) != length or record[-1:] != b"\n" or not equals or not key:
                raise self.reject("header", "an extended header is broken")
            if b"\0" in (value if key in (b"path", b"linkpath", b"uname", b"gname") else key):
                raise self.reject("header", "an extended header holds a NUL")
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                expected = b"GNU.sparse.numbytes" if len(sparse) % 2 else b"GNU.sparse.offset"
                if key != expected or b"," in value:
                    raise self.reject("sparse", "the map of a sparse file is out of order")
                sparse.append(value)
            else:
                records[key] = value
            at += length
        if sparse:
            records[b"GNU.sparse.map"] = b",".join(sparse)
        return records

    def _entry(self, block: bytes, pax: dict[bytes, bytes], long_name: bytes | None,
               long_link: bytes | None) -> Entry:
        kind = block[156]
        name = block[:100].partition(b"\0")[0]
        magic = block[257:265]
        if magic == b"ustar\x0000":
            # the last field is shorter in Schily's star, which ends in "tar\0"
            prefix = block[345:476 if block[508:512] == b"tar\0" else 500].partition(b"\0")[0]
            if prefix:
                name = prefix + b"/" + name
        elif magic == b"ustar  \0" and (block[345] or block[357]):
            prefix = self._prefix_of_old_go(block)
            if prefix:
                name = prefix + b"/" + name
        self.name = name = long_name or pax.get(b"path") or name
        link = long_link or pax.get(b"linkpath") or block[157:257].partition(b"\0")[0]
        size = self._decimal(pax, b"size", self._number(block[124:136], "size"))
        if kind in (0, ord("0"), ord("7"), ord("S")):
            regular = True
            if kind == 0 and name.endswith(b"/"):
                kind, regular = ord("5"), False
        else:
            regular = False
        if kind not in _KNOWN:
            raise self.reject("type", f"it has the type {chr(kind)!r}, which layers cannot have")
        stored = 0 if kind in _NO_DATA else size
        self._padding = -stored % _BLOCK
        pieces = None
        if regular:
            if kind == ord("S"):
                size, pieces, stored = self._old_sparse(block, stored)
            elif (version := _sparse_version(pax)) is not None:
                size, pieces, stored = self._pax_sparse(pax, version, size, stored)
                self.name = name = pax.get(b"GNU.sparse.name") or name
        for text, what in ((name, "name"), (link, "link target")):
            if len(text) > self._limits.name:
                raise self._over("limit", f"its {what} has {len(text)} bytes", "name")
        if size > self._limits.file:
            raise self._over("limit", f"it has a size of {size} bytes", "file")
        return Entry(
            kind="0" if regular else chr(kind), name=name, link=link,
            mode=self._number(block[100:108], "mode") & 0o7777,
            uid=self._decimal(pax, b"uid", self._number(block[108:116], "uid", negative=True)),
            gid=self._decimal(pax, b"gid", self._number(block[116:124], "gid", negative=True)),
            size=size if regular else 0, mtime=self._time(block, pax),
            major=self._number(block[329:337], "device") if kind in b"34" else 0,
            minor=self._number(block[337:345], "device") if kind in b"34" else 0, stored=stored, pieces=pieces,
            xattrs=tuple((key[len(_XATTR):], pax[key]) for key in pax if key.startswith(_XATTR)))

    def _prefix_of_old_go(self, block: bytes) -> bytes:
        """Programs made with Go before 1.8 put a prefix where GNU's format has times; Go reads it where those are none.
        """
        try:
            for field in (block[345:357], block[357:369]):
                if field[0]:
                    self._number(field, "time", negative=True)
        except LayerRejected:
            prefix = block[345:500].partition(b"\0")[0]
            return prefix if prefix.isascii() else b""
        return b""

    def _decimal(self, pax: dict[bytes, bytes], key: bytes, otherwise: int) -> int:
        text = pax.get(key)
        if not text:
            return otherwise
        if not text.isdigit() or len(text) > 19 or int(text) > _LARGEST:
            raise self.reject("header", f"an extended header says {show(key)}={show(text)}")
        return int(text)

    def _time(self, block: bytes, pax: dict[bytes, bytes]) -> int:
        text = pax.get(b"mtime")
        if not text:
            return self._number(block[136:148], "time", negative=True) * 1_000_000_000
        whole, _, part = text.partition(b".")
        if not whole.removeprefix(b"-").isdigit() or (part and not part.isdigit()) or len(whole) > 18:
            raise self.reject("header", f"an extended header says mtime={show(text)}")
        fraction = int(part[:9].ljust(9, b"0")) if part else 0
        return int(whole) * 1_000_000_000 + (-fraction if whole.startswith(b"-") else fraction)

    def _old_sparse(self, block: bytes, stored: int) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """GNU's own sparse type: four pieces in the header, more in blocks that follow it."""
        real = self._number(block[483:495], "sparse size")
        fields, more, flag = block[386:482], 4, block[482]
        pieces: list[tuple[int, int]] = []
        while True:
            for at in range(0, more * 24, 24):
                if not fields[at]:
                    break
                pieces.append((self._number(fields[at:at + 12], "sparse map"),
                               self._number(fields[at + 12:at + 24], "sparse map")))
            if not flag:
                break
            if len(pieces) > self._limits.header // 24:
                raise self._over("limit", "the map of a sparse file is too long", "header")
            extension = self._stream.read(_BLOCK)
            if len(extension) != _BLOCK:
                raise self._early()
            fields, more, flag = extension[:504], 21, extension[504]
        return real, self._checked_map(pieces, real, stored), stored

    def _pax_sparse(self, pax: dict[bytes, bytes], version: int, size: int,
                    stored: int) -> tuple[int, tuple[tuple[int, int], ...], int]:
        """GNU's sparse formats 0.0, 0.1 (map in the extended header) and 1.0 (map before the data)."""
        if version == 1:
            numbers, used = self._map_in_data(stored)
            stored -= used
        else:
            text = pax.get(b"GNU.sparse.map")
            numbers = [self._count(one) for one in text.split(b",")] if text else []
        real = self._decimal(pax, b"GNU.sparse.size", self._decimal(pax, b"GNU.sparse.realsize", size))
        if len(numbers) % 2:
            raise self.reject("sparse", "the map of a sparse file has an odd length")
        pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
        return real, self._checked_map(pieces, real, stored), stored

    def _map_in_data(self, stored: int) -> tuple[list[int], int]:
        used, text = 0, b""
        numbers: list[int] = []
        wanted: int | None = None
        while wanted is None or len(numbers) < wanted:
            line, newline, rest = text.partition(b"\n")
            if not newline:
                if used + _BLOCK > min(stored + (-stored % _BLOCK), self._limits.header):
                    raise self.reject("sparse", "the map of a sparse file has no end")
                block = self._stream.read(_BLOCK)
                if len(block) != _BLOCK:
                    raise self._early()
                used, text = used + _BLOCK, text + block
                continue
            text = rest
            if wanted is None:
                wanted = 2 * self._count(line)
            else:
                numbers.append(self._count(line))
        if used > stored:
            raise self.reject("sparse", "the map of a sparse file is longer than the file")
        return numbers, used

    def _count(self, text: bytes) -> int:
        if not text.isdigit() or len(text) > 19 or int(text) > _LARGEST:
            raise self.reject("sparse", "the map of a sparse file is not made of numbers")
        return int(text)

    def _checked_map(self, pieces: list[tuple[int, int]], real: int, stored: int) -> tuple[tuple[int, int], ...]:
        end = 0
        for offset, length in pieces:
            if offset < end or offset + length > real:
                raise self.reject("sparse", "the pieces of a sparse file overlap, or lie beyond its end")
            end = offset + length
        if sum(length for _, length in pieces) != stored:
            raise self.reject("sparse", "the pieces of a sparse file are not as long as its data")
        return tuple(pieces)
