"""What the store asks of a place that images come from. Implemented by :mod:`.registry` and :mod:`.archive`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from ..errors import ImageCorrupt
from .manifest import ConfigDocument, Descriptor


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image for one platform, its documents checked against their digests.

    :param digest: of the manifest; None where the source has none that could be verified.
    :param manifest: the manifest's bytes; None as above.
    :param layers: one descriptor for each diff id, in the same order. A size of -1 says that nothing is promised about
        the bytes but the diff id.
    """

    reference: str
    digest: str | None
    manifest: bytes | None
    image_id: str
    config: bytes
    document: ConfigDocument
    layers: tuple[Descriptor, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.document.diff_ids):
            raise ImageCorrupt(
                f"image {self.reference!r} cannot be used", reference=self.reference,
                why=f"its manifest has {len(self.layers)} layers, its configuration {len(self.document.diff_ids)}")


class Source(Protocol):
    """Where one image comes from. Lives for one resolution; ``close`` ends what it holds open."""

    #: Whether the store keeps the compressed layers, so that they are neither fetched again nor lost for ``save``.
    keep_blobs: bool

    def image(self) -> SourceImage: ...

    def open_layer(self, layer: Descriptor) -> contextlib.AbstractContextManager[BinaryIO]:
        """A layer's bytes as the source has them, unverified, from the beginning."""
        ...

    def fetch_layer(self, layer: Descriptor, write: Callable[[bytes], None], offset: int) -> None:
        """Gives a layer's bytes from ``offset`` on to ``write``, unverified. Asked for where blobs are kept."""
        ...

    def close(self) -> None: ...


class Progress:
    """What a pull has to tell. This one tells nothing; see :mod:`.progress`. Called from several threads, but for
    ``begin``, ``step`` and ``finish``."""

    def begin(self, reference: str, doing: str = "pulling") -> None:
        """An image is on its way: ``pulling``, ``unpacking`` or ``building``. May nest: a build pulls its base."""

    def step(self, text: str) -> None:
        """What a build does now."""

    def start(self, what: str, total: int | None) -> None: ...

    def advance(self, what: str, count: int) -> None: ...

    def done(self, what: str) -> None: ...

    def waiting(self, what: str, why: str) -> None:
        """Said again and again, while it lasts."""

    def note(self, text: str) -> None: ...

    def finish(self, *, failed: bool = False) -> None:
        """What began last is there, or will not come."""
