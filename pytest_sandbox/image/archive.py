"""Images from the file system: OCI layouts, their tars, what ``docker save`` writes, tarballs of a root file system.

Nothing of an archive is unpacked to reach what is in it: members are found once and read where they lie.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NoReturn, Protocol, cast

from ..errors import ImageCorrupt, ImageError, ImageNotFound, LayerRejected
from .compression import Limits, decompressed, is_compressed
from .manifest import (
    MAX_DOCUMENT,
    OCI_INDEX,
    OCI_LAYER,
    Descriptor,
    Index,
    Manifest,
    Platform,
    check_document,
    choose_platform,
    digest_of,
    parse_config,
    parse_manifest,
    read_json,
)
from .printable import listed
from .reference import ArchiveReference, RootfsReference
from .source import SourceImage
from .tar import TarReader

_REF_NAME = "org.opencontainers.image.ref.name"
_IMAGE_NAME = "io.containerd.image.name"
_MOST_LINKS = 10


class Files(Protocol):
    """Named files, whether in a directory or in a tar."""

    def open(self, name: str) -> BinaryIO: ...

    def has(self, name: str) -> bool: ...

    def close(self) -> None: ...


class DirectoryFiles:
    """Files below a directory. Links are followed: it is the caller's own directory, and digests are checked anyway."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, name: str) -> BinaryIO:
        # not waiting for whoever might write to a named pipe, nor reading what has no end
        fd = os.open(os.path.join(self._path, name), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise FileNotFoundError(name)
        return open(fd, "rb")

    def has(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self._path, name))

    def close(self) -> None:
        pass


class TarFiles:
    """Regular members of a tar, opened where they lie in it. A later member replaces an earlier one of its name.

    :param limits: what the archive may be at most, decompressed.
    """

    def __init__(self, path: str, *, reference: str, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._file = _plain(open(path, "rb"), reference, limits)  # noqa: SIM115 - closed by close()
        self._where: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}  # docker save links equal layers, also to what comes later
        try:
            stream = FileStream(self._file)
            for entry in TarReader(stream, limits=limits, reference=reference):
                name = os.path.normpath(entry.name.decode("utf-8", "surrogateescape"))
                link = entry.link.decode("utf-8", "surrogateescape")
                here = (stream.at, entry.stored) if entry.kind == "0" and entry.pieces is None else None
                if entry.kind == "1":
                    here = self._find(os.path.normpath(link))
                self._where.pop(name, None)
                self._links.pop(name, None)
                if here is not None:
                    self._where[name] = here
                elif entry.kind == "2":
                    self._links[name] = os.path.normpath(os.path.join(os.path.dirname(name), link))
                stream.skip(entry.stored)
        except BaseException as error:
            self._file.close()
            if isinstance(error, (LayerRejected, ImageCorrupt)):
                raise ImageCorrupt(f"image {reference!r} cannot be used", reference=reference,
                                   why=f"the archive cannot be read: {error.why}") from None
            raise

    def _find(self, name: str) -> tuple[int, int] | None:
        """Where a file's bytes are; None where there is none, or links go in circles."""
        for _ in range(_MOST_LINKS):
            if name not in self._links:
                return self._where.get(name)
            name = self._links[name]
        return None

    def open(self, name: str) -> BinaryIO:
        found = self._find(os.path.normpath(name))
        if found is None:
            raise FileNotFoundError(name)
        return io.BufferedReader(_Window(self._file.fileno(), *found), 1 << 16)

    def has(self, name: str) -> bool:
        return self._find(os.path.normpath(name)) is not None

    def close(self) -> None:
        self._file.close()


def _plain(file: BinaryIO, reference: str, limits: Limits) -> BinaryIO:
    """The archive itself, or what it holds if all of it was compressed (``docker save | gzip``)."""
    head = file.read(6)
    file.seek(0)
    if not is_compressed(head):
        return file
    with file:
        plain = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the source
        try:
            for piece in _bounded(file, reference, limits):
                plain.write(piece)
            plain.seek(0)
        except BaseException:
            plain.close()
            raise
        return cast(BinaryIO, plain)


def _bounded(file: BinaryIO, reference: str, limits: Limits) -> Iterator[bytes]:
    """A file's decompressed pieces.

    :raises ImageCorrupt: when they are broken, or more than ``limits`` say.
    """
    size = 0
    for piece in decompressed(file, reference):
        size += len(piece)
        if size > limits.bytes or (size > limits.ratio_from and size > limits.ratio * file.tell()):
            raise ImageCorrupt(f"image {reference!r} cannot be used", reference=reference,
                               why=f"it expands to more than {size} bytes, from {file.tell()}",
                               remedy="If you trust it, set PYTEST_SANDBOX_LAYER_LIMITS, or decompress it yourself.")
        yield piece


class FileStream:
    """A seekable file for :class:`TarReader`: what is skipped is not read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.at = 0

    def read(self, count: int, /) -> bytes:
        data = self._file.read(count)
        self.at += len(data)
        return data

    def take(self, most: int, /) -> memoryview:
        return memoryview(self.read(most))

    def skip(self, count: int, /) -> None:
        self.at += count
        if self.at > self._size:
            raise ImageCorrupt("an archive cannot be read", reference="", why="it ends in the middle of a file")
        self._file.seek(self.at)


class _Window(io.RawIOBase):
    """A part of an open file, read by position: several threads may read one archive."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd, self._start, self._at, self._end = os.dup(fd), start, start, start + size

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: self._start, os.SEEK_CUR: self._at, os.SEEK_END: self._end}[whence]
        self._at = min(max(base + offset, self._start), self._end)
        return self._at - self._start

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._fd, min(len(buffer), self._end - self._at), self._at)
        buffer[:len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


class _ArchiveSource:
    keep_blobs = False

    def __init__(self, files: Files, reference: str) -> None:
        self._files, self._reference = files, reference

    def _refuse(self, why: str, remedy: str | None = None) -> NoReturn:
        raise ImageCorrupt(f"image {self._reference!r} cannot be used", reference=self._reference, why=why,
                           remedy=remedy)

    def _read(self, name: str, most: int = MAX_DOCUMENT) -> bytes:
        try:
            with self._files.open(name) as file:
                data = file.read(most + 1)
        except (FileNotFoundError, NotADirectoryError):
            self._refuse(f"there is no file {name} in it", "A root file system is used directly: rootfs:PATH."
                         if name == "index.json" else "Copy or export it again.")
        except OSError as error:
            self._refuse(f"{name} in it cannot be read: {error.strerror}")
        if len(data) > most:
            self._refuse(f"{name} is larger than {most} bytes")
        return data

    def _where(self, layer: Descriptor) -> str:
        raise NotImplementedError

    @contextlib.contextmanager
    def open_layer(self, layer: Descriptor) -> Iterator[BinaryIO]:
        try:
            file = self._files.open(self._where(layer))
        except (FileNotFoundError, NotADirectoryError):
            self._refuse(f"there is no file {self._where(layer)} in it", "Copy or export it again.")
        except OSError as error:
            self._refuse(f"{self._where(layer)} in it cannot be read: {error.strerror}")
        with file:
            yield file

    def fetch_layer(self, layer: Descriptor, write: Callable[[bytes], None], offset: int) -> None:
        with self.open_layer(layer) as file:
            file.seek(offset)
            while data := file.read(1 << 20):
                write(data)

    def close(self) -> None:
        self._files.close()


class OciSource(_ArchiveSource):
    """An image in an OCI layout (image-layout.md): ``index.json`` names manifests, blobs lie below ``blobs/``."""

    def __init__(self, files: Files, reference: ArchiveReference, platform: Platform) -> None:
        super().__init__(files, str(reference))
        self._tag, self._platform = reference.tag, platform

    def names(self) -> list[str]:
        """The names under which the layout has images."""
        return sorted({name for one in self.index().manifests for name in _names(one)})

    def index(self) -> Index:
        """What the layout lists."""
        index = parse_manifest(self._read("index.json"), reference=self._reference, media_type=OCI_INDEX)
        if not isinstance(index, Index):
            self._refuse("its index.json is no index")
        return index

    def _where(self, layer: Descriptor) -> str:
        algorithm, _, value = layer.digest.partition(":")
        return f"blobs/{algorithm}/{value}"

    def _document(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT:
            self._refuse(f"{descriptor.digest} is larger than {MAX_DOCUMENT} bytes")
        data = self._read(self._where(descriptor))
        check_document(data, descriptor, reference=self._reference)
        return data

    def image(self) -> SourceImage:
        """The chosen image.

        :raises ImageNotFound: when the tag, or the platform, is not there.
        :raises ImageCorrupt: when a document is not what its digest says.
        """
        chosen = self._choose(self.index())
        for _ in range(4):  # an index may hold an index, but not for ever
            data = self._document(chosen)
            manifest = parse_manifest(data, reference=self._reference, media_type=chosen.media_type)
            if isinstance(manifest, Manifest):
                config = self._document(manifest.config)
                return SourceImage(self._reference, chosen.digest, data, manifest.config.digest, config,
                                   parse_config(config, reference=self._reference), manifest.layers)
            chosen = choose_platform(manifest, self._platform, reference=self._reference)
        self._refuse("it has indexes within indexes")

    def _choose(self, index: Index) -> Descriptor:
        found = list(index.manifests)
        if self._tag is not None:
            found = [one for one in found if self._tag in _names(one) or one.digest == self._tag]
        elif len(found) > 1:
            found = [one for one in found if "latest" in _names(one)] or found
        if len(found) == 1:
            return found[0]
        # one image for several platforms; not several images that happen to name theirs
        if found and all(one.platform for one in found) and len({frozenset(_names(one)) for one in found}) == 1:
            return choose_platform(Index(tuple(found)), self._platform, reference=self._reference)
        what = f"{len(found) or 'no'} images {self._tag!r}" if self._tag else f"{len(index.manifests)} images"
        raise ImageNotFound(f"image {self._reference!r} is not there", reference=self._reference,
                            why=f"the layout has {what}",
                            remedy=f"Names in it: {listed(self.names())}. Put one behind the path: PATH:NAME.")


def _names(descriptor: Descriptor) -> set[str]:
    names = set()
    for key in (_REF_NAME, _IMAGE_NAME):
        value = descriptor.annotation(key)
        if value:
            names.add(value)
            names.add(value.rpartition(":")[2])
    return names


class DockerSource(_ArchiveSource):
    """An image as ``docker save`` writes it: ``manifest.json`` names the configuration and the layers' files.

    It states no digests but the diff ids and the configuration's own, so those are what is checked.

    :param at: which of several images is meant, by its place; else the reference's tag says.
    """

    def __init__(self, files: Files, reference: ArchiveReference, at: int | None = None) -> None:
        super().__init__(files, str(reference))
        self._tag, self._at = reference.tag, at
        self._names: dict[str, str] = {}

    def names(self) -> list[list[str]]:
        """What each of the images is called."""
        return [list(one.get("RepoTags") or []) for one in self._images()]

    def _images(self) -> list[dict[str, Any]]:
        data = b'{"images":' + self._read("manifest.json") + b"}"
        images = read_json(data, reference=self._reference, what="manifest.json")["images"]
        if not isinstance(images, list) or not images or not all(isinstance(one, dict) for one in images):
            self._refuse("its manifest.json lists no images")
        for one in images:
            tags = one.get("RepoTags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                self._refuse("the RepoTags in its manifest.json are not a list of names")
        return images

    def _where(self, layer: Descriptor) -> str:
        return self._names[layer.digest]

    def rename(self, old: Sequence[Descriptor], new: Sequence[Descriptor]) -> None:
        """Lets layers be asked for by other descriptors than those that :meth:`image` gave."""
        self._names = {there.digest: self._names[here.digest] for here, there in zip(old, new, strict=True)}

    def image(self) -> SourceImage:
        """The chosen image.

        :raises ImageNotFound: when the tag is not there, or none was given and there are several.
        """
        images = self._images()
        if self._at is not None:
            images = [images[self._at]]
        elif self._tag is not None:
            wanted = {self._tag, f"{self._tag}:latest", self._tag.removeprefix("docker.io/library/"),
                      self._tag.removeprefix("docker.io/")}
            images = [one for one in images if wanted & set(one.get("RepoTags") or [])]
        if len(images) != 1:
            raise ImageNotFound(f"image {self._reference!r} is not there", reference=self._reference,
                                why=f"the archive has {len(images)} such images",
                                remedy=f"Names in it: {listed(name for one in self.names() for name in one)}.")
        config_name, layers = images[0].get("Config"), images[0].get("Layers")
        if not isinstance(config_name, str) or not isinstance(layers, list):
            self._refuse("its manifest.json names no configuration or no layers")
        config = self._read(config_name)
        image_id = digest_of(config)
        stated = os.path.basename(config_name).removesuffix(".json")
        if len(stated) == 64 and f"sha256:{stated}" != image_id:
            self._refuse(f"its configuration is called {stated}, its bytes are {image_id}")
        document = parse_config(config, reference=self._reference)
        if len(layers) != len(document.diff_ids) or not all(isinstance(one, str) for one in layers):
            self._refuse(f"its manifest.json has {len(layers)} layers, its configuration {len(document.diff_ids)}")
        self._names = dict(zip(document.diff_ids, layers, strict=True))
        # The digest here only finds the file again: nothing but the diff id is promised about a layer's bytes.
        found = tuple(Descriptor(diff_id, -1, OCI_LAYER) for diff_id in document.diff_ids)
        return SourceImage(self._reference, None, None, image_id, config, document, found)


class TarballSource(_ArchiveSource):
    """A root file system in one tarball: an image of one layer, with a configuration that says nothing."""

    def __init__(self, reference: RootfsReference, limits: Limits) -> None:
        directory, self._name = os.path.split(os.path.abspath(reference.path))
        self._limits = limits
        super().__init__(DirectoryFiles(directory), str(reference))

    def _where(self, layer: Descriptor) -> str:
        return self._name

    def image(self) -> SourceImage:
        """The image. Reads the tarball once, to know its diff id."""
        digest = hashlib.sha256()
        with self._files.open(self._name) as file:
            for piece in _bounded(file, self._reference, self._limits):
                digest.update(piece)
        diff_id = f"sha256:{digest.hexdigest()}"
        here = Platform.here()
        config = json.dumps({"architecture": here.architecture, "config": {}, "os": here.os,
                             "rootfs": {"diff_ids": [diff_id], "type": "layers"}}, sort_keys=True).encode()
        return SourceImage(self._reference, None, None, digest_of(config), config,
                           parse_config(config, reference=self._reference), (Descriptor(diff_id, -1, OCI_LAYER),))


def open_archive(reference: ArchiveReference | RootfsReference, platform: Platform,
                 limits: Limits) -> OciSource | DockerSource | TarballSource:
    """The source behind a reference to the file system. The caller closes it.

    :raises ImageNotFound: when there is nothing at that path.
    :raises ImageError: when it is something else than the reference says.
    """
    text = str(reference)
    try:
        status = os.stat(reference.path)
    except OSError as error:
        raise ImageNotFound(f"image {text!r} is not there", reference=text, why=error.strerror,
                            remedy="Check the path; relative ones start at the current directory.") from None
    if isinstance(reference, RootfsReference):
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"image {text!r} cannot be used", reference=text,
                             why="it is neither a directory nor a file")
        return TarballSource(reference, limits)
    if reference.kind == "oci":
        if not stat.S_ISDIR(status.st_mode):
            raise ImageError(f"image {text!r} cannot be used", reference=text, why="it is not a directory",
                             remedy="A tar of an OCI layout is written oci-archive:FILE.")
        return OciSource(DirectoryFiles(reference.path), reference, platform)
    if not stat.S_ISREG(status.st_mode):
        remedy = "A directory that holds an OCI layout is written oci:DIR." if stat.S_ISDIR(status.st_mode) else None
        raise ImageError(f"image {text!r} cannot be used", reference=text, why="it is not a file", remedy=remedy)
    files = TarFiles(reference.path, reference=text, limits=limits)
    return OciSource(files, reference, platform) if reference.kind == "oci-archive" else DockerSource(files, reference)
