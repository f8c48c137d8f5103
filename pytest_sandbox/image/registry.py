"""Images from registries: the OCI distribution API, as far as pulling needs it. Used by the store.

Own code, and not oras-py: see docs/design/0010.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from http.client import HTTPException
from typing import BinaryIO, NoReturn, TypeVar

from ..errors import ImageCorrupt, ImageError, ImageNotFound, RegistryError
from .hosts import Endpoint, endpoints
from .manifest import (
    MANIFEST_TYPES,
    MAX_DOCUMENT,
    Descriptor,
    Index,
    Manifest,
    Platform,
    check_document,
    choose_platform,
    digest_of,
    parse_config,
    parse_manifest,
)
from .reference import RegistryReference
from .source import Progress, SourceImage
from .transport import Answer, Transport

_T = TypeVar("_T")

_CHUNK = 1 << 18
_STALLS = 5  # times in a row that a download may break off without having brought anything


class RegistrySource:
    """One image in a registry or one of its mirrors. ``close`` ends its connections.

    After :meth:`image`, ``top_digest`` is the digest that the reference itself meant: of the index, where there is one.
    """

    keep_blobs = True

    def __init__(self, reference: RegistryReference, platform: Platform, *, progress: Progress) -> None:
        self._reference, self._platform, self._progress = reference, platform, progress
        self._text = str(reference)
        self._transports: dict[Endpoint, Transport] = {}
        self._places = endpoints(reference)
        self.top_digest: str | None = None

    def close(self) -> None:
        for transport in self._transports.values():
            transport.close()

    def _transport(self, place: Endpoint) -> Transport:
        if place not in self._transports:
            self._transports[place] = Transport(place, self._text)
        return self._transports[place]

    def image(self) -> SourceImage:
        """The image for the wanted platform, from the first place that has it.

        :raises ImageNotFound: when no place has it, or not for this platform.
        :raises RegistryError: when no place answers as it should.
        :raises ImageCorrupt: when what is answered is not what was asked for.
        """
        return self._somewhere(lambda place: self._image(self._transport(place)))

    def manifest(self) -> tuple[str, Manifest | Index]:
        """What the reference means now, with its digest. For lock files."""
        def ask(place: Endpoint) -> tuple[str, Manifest | Index]:
            wanted = self._reference.digest or self._reference.tag or "latest"
            digest, _, parsed = self._manifest(self._transport(place), wanted)
            return digest, parsed
        return self._somewhere(ask)

    def _somewhere(self, ask: Callable[[Endpoint], _T]) -> _T:
        """Asks one place after the other. The registry's own answer decides when none helps."""
        for place in self._places[:-1]:
            try:
                found = ask(place)
            except (ImageNotFound, RegistryError, ImageCorrupt) as error:
                self._progress.note(f"mirror {place.host}: {error.why or error}")
            else:
                self._places = [place, *(one for one in self._places if one != place)]
                return found
        return ask(self._places[-1])

    def _image(self, transport: Transport) -> SourceImage:
        wanted = self._reference.digest or self._reference.tag or "latest"
        self.top_digest = None
        for _ in range(4):  # an index may hold an index, but not for ever
            digest, data, parsed = self._manifest(transport, wanted)
            self.top_digest = self.top_digest or digest
            if isinstance(parsed, Manifest):
                config = self._document(transport, parsed.config)
                return SourceImage(self._text, digest, data, parsed.config.digest, config,
                                   parse_config(config, reference=self._text), parsed.layers)
            wanted = choose_platform(parsed, self._platform, reference=self._text).digest
        self._corrupt("it has indexes within indexes")

    def _manifest(self, transport: Transport, wanted: str) -> tuple[str, bytes, Manifest | Index]:
        answer = transport.get(f"manifests/{wanted}", {"Accept": ", ".join(MANIFEST_TYPES)})
        if answer.response.status != 200:
            answer.response.close()
            if answer.response.status == 404:
                raise ImageNotFound(f"image {self._text!r} is not there", reference=self._text,
                                    why=f"{transport.endpoint.host} has no {transport.endpoint.repository} {wanted}",
                                    remedy="Check the name and the tag.")
            raise RegistryError(f"image {self._text!r} cannot be pulled", reference=self._text, url=answer.url,
                                status=answer.response.status, why=f"an answer {answer.response.status} to a manifest")
        media_type = (answer.response.header("Content-Type") or "").partition(";")[0].strip() or None
        data = self._bounded(answer, "manifest")
        promised = wanted if ":" in wanted else answer.response.header("Docker-Content-Digest")
        if promised:
            algorithm = promised.partition(":")[0]
            actual = digest_of(data, algorithm) if algorithm in ("sha256", "sha512") else ""
            if actual != promised:
                self._corrupt(f"{transport.endpoint.host} promised manifest {promised} and sent {actual or 'another'}")
        return promised if ":" in wanted and promised else digest_of(data), data, parse_manifest(
            data, reference=self._text, media_type=media_type if media_type in MANIFEST_TYPES else None)

    def _bounded(self, answer: Answer, what: str) -> bytes:
        data = b""
        try:
            while len(data) <= MAX_DOCUMENT and (piece := answer.response.read(_CHUNK)):
                data += piece
        except (HTTPException, OSError) as error:
            raise RegistryError(f"image {self._text!r} cannot be pulled", reference=self._text, url=answer.url,
                                why=f"the {what} breaks off: {error}", remedy="Pull again.") from None
        finally:
            answer.response.close() if len(data) > MAX_DOCUMENT else answer.response.release()
        if len(data) > MAX_DOCUMENT:
            self._corrupt(f"the {what} is larger than {MAX_DOCUMENT} bytes")
        return data

    def _document(self, transport: Transport, descriptor: Descriptor) -> bytes:
        if descriptor.size > MAX_DOCUMENT:
            self._corrupt(f"{descriptor.digest} is larger than {MAX_DOCUMENT} bytes")
        data = bytearray()

        def write(piece: bytes) -> None:
            data.extend(piece)
            if len(data) > descriptor.size:
                self._corrupt(f"{descriptor.digest} has more than the {descriptor.size} bytes that were promised")

        self._fetch(transport, descriptor, write, 0)
        document = bytes(data)
        check_document(document, descriptor, reference=self._text)
        return document

    def _corrupt(self, why: str) -> NoReturn:
        raise ImageCorrupt(f"image {self._text!r} cannot be used", reference=self._text, why=why)

    # Blobs.

    @contextlib.contextmanager
    def open_layer(self, layer: Descriptor) -> Iterator[BinaryIO]:
        raise ImageError(f"image {self._text!r} is fetched, not opened", reference=self._text)
        yield

    def fetch_layer(self, layer: Descriptor, write: Callable[[bytes], None], offset: int) -> None:
        """Gives a blob's bytes from ``offset`` on to ``write``, going on where a connection breaks off.

        :raises RegistryError: when no place brings it to its end.
        """
        at = offset

        def counted(data: bytes) -> None:
            nonlocal at
            write(data)
            at += len(data)

        for place in self._places[:-1]:
            try:
                self._fetch(self._transport(place), layer, counted, at)
            except (ImageNotFound, RegistryError) as error:
                self._progress.note(f"mirror {place.host}: {error.why or error}")
            else:
                return
        self._fetch(self._transport(self._places[-1]), layer, counted, at)

    def _fetch(self, transport: Transport, blob: Descriptor, write: Callable[[bytes], None], at: int) -> None:
        stalls = 0
        while True:
            answer = transport.get(f"blobs/{blob.digest}", {"Range": f"bytes={at}-"} if at else {})
            skip = self._begin(transport, answer, blob, at)
            before = at
            why = ""
            try:
                while not why:
                    try:  # only this is the network's: an error of write() is about the disk, or about the bytes
                        data = answer.response.read(_CHUNK)
                    except (HTTPException, OSError) as error:
                        why = str(error)
                        break
                    if not data:
                        why = f"it ends after {at} of {blob.size} bytes"
                    elif skip >= len(data):
                        skip -= len(data)
                    else:
                        data = data[skip:]
                        skip = 0
                        write(data)
                        at += len(data)
            except BaseException:
                answer.response.close()
                raise
            answer.response.close() if at < blob.size else answer.response.release()
            if at >= blob.size:
                return
            stalls = 0 if at > before else stalls + 1
            if stalls >= _STALLS:
                raise RegistryError(
                    f"image {self._text!r} cannot be pulled", reference=self._text, url=answer.url,
                    why=f"{transport.endpoint.host} breaks off {blob.digest[:19]} at byte {at} of {blob.size}: {why}",
                    remedy="Pull again: it goes on from there.")
            transport.pause(stalls)

    def _begin(self, transport: Transport, answer: Answer, blob: Descriptor, at: int) -> int:
        """Checks a blob's headers; how many bytes to pass over, where a registry sends all of it again."""
        response = answer.response
        status = response.status
        if status == 404:
            response.close()
            raise ImageNotFound(f"image {self._text!r} is not there", reference=self._text,
                                why=f"{transport.endpoint.host} has its manifest, but not its blob {blob.digest}",
                                remedy="Push the image again.")
        if status == 416 or (status == 206 and not at):
            response.close()
            raise RegistryError(f"image {self._text!r} cannot be pulled", reference=self._text, url=answer.url,
                                status=status, why=f"{transport.endpoint.host} answers {status} to bytes {at} on")
        expected = blob.size
        if status == 206:
            given = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.header("Content-Range") or "")
            if given is None or int(given[1]) != at:
                response.close()
                raise RegistryError(f"image {self._text!r} cannot be pulled", reference=self._text, url=answer.url,
                                    status=status, why=f"{transport.endpoint.host} sends another part than asked for")
            expected = blob.size - at
        length = response.header("Content-Length")
        if length is not None and length.isdigit() and int(length) > expected:
            response.close()
            self._corrupt(f"blob {blob.digest} should have {blob.size} bytes, "
                          f"{transport.endpoint.host} has {int(length) + blob.size - expected}")
        return at if status == 200 else 0
