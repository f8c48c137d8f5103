"""A new image from an old one and a writable layer: archived, unpacked into the store, recorded. For ``sandbox``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from ..errors import ImageError
from .diff import DiffWriter
from .layout import store_error, sync_directory
from .locks import lock
from .manifest import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Descriptor, HostTrees, Platform, digest_of, parse_config
from .source import SourceImage
from .store import ImageStore, StoredImage

#: How ``commit``'s keywords are called in an image's configuration.
CONFIG_KEYS = {"env": "Env", "user": "User", "workdir": "WorkingDir", "entrypoint": "Entrypoint", "cmd": "Cmd",
               "stop_signal": "StopSignal", "labels": "Labels"}


@dataclass(frozen=True, slots=True)
class Written:
    """A layer archive that lies in the store as a blob. ``entries`` is 0 when nothing had changed."""

    digest: str
    size: int
    entries: int


class _HashedFile:
    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self.sha256, self.size = raw, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._raw.write(data)

    def tell(self) -> int:
        return self.size

    def close(self) -> None:
        pass


def write_diff(store: ImageStore, layers: Sequence[str], *, skip: frozenset[str] = frozenset(),
               owner: tuple[int, int] | None = None, latest: int | None = None,
               root: tuple[int, int, int] | None = None) -> Written:
    """Archives the uppermost of ``layers``, seen on those below it, into the store.

    :raises StoreError: when the disk is full or fails.
    """
    def write(out: BinaryIO) -> int:
        writer = DiffWriter(out, layers, skip=skip, owner=owner, latest=latest, root=root)
        writer.write()
        return writer.entries

    return write_archive(store, write)


def write_archive(store: ImageStore, write: Callable[[BinaryIO], int]) -> Written:
    """Lets ``write`` write a layer archive, which then lies in the store under its digest.

    :param write: returns how many entries it has written.
    :raises StoreError: when the disk is full or fails.
    """
    layout = store.layout
    base = layout.staging(f"commit-{os.urandom(8).hex()}")
    held = lock(f"{base}.lock", exclusive=True, create=True)
    assert held is not None
    try:
        with open(f"{base}.partial", "xb", buffering=1 << 20) as raw:
            out = _HashedFile(raw)
            entries = write(out)  # type: ignore[arg-type]
            raw.flush()
            os.fchmod(raw.fileno(), 0o400)
            os.fsync(raw.fileno())
        digest = f"sha256:{out.sha256.hexdigest()}"
        os.rename(f"{base}.partial", layout.blob(digest))
        sync_directory(os.path.dirname(layout.blob(digest)))
        return Written(digest, out.size, entries)
    except OSError as error:
        raise (error if hasattr(error, "what") else store_error(error, layout.root)) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{base}.partial")
        held.remove()


class _Stored:
    """A source for what the store has already: the layers below, and the blob that was just written."""

    keep_blobs = True

    def __init__(self, image: SourceImage) -> None:
        self._image = image

    def image(self) -> SourceImage:
        return self._image

    @contextlib.contextmanager
    def open_layer(self, layer: Descriptor) -> Iterator[BinaryIO]:
        raise self._gone(layer)
        yield

    def fetch_layer(self, layer: Descriptor, write: Callable[[bytes], None], offset: int) -> None:
        raise self._gone(layer)

    def _gone(self, layer: Descriptor) -> ImageError:
        return ImageError(f"{self._image.reference} cannot be committed", reference=self._image.reference,
                          why=f"the layer {layer.digest} was removed from the store meanwhile", remedy="Try again.")

    def close(self) -> None:
        pass


def change_config(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Lays ``commit``'s keywords over a configuration's ``config`` object."""
    for name, value in changes.items():
        key = CONFIG_KEYS[name]
        if value is None:
            config.pop(key, None)
        elif name == "env":
            have = dict(line.split("=", 1) for line in config.get("Env") or [])
            for variable, text in value.items():
                have.pop(variable, None) if text is None else have.update({variable: text})
            config["Env"] = [f"{variable}={text}" for variable, text in have.items()]
        elif name == "labels":
            config["Labels"] = {**(config.get("Labels") or {}), **value}
        elif name in ("entrypoint", "cmd"):
            config[key] = list(value)
        else:
            config[key] = value


def empty_document(platform: Platform) -> dict[str, Any]:
    """The configuration of an image that holds nothing."""
    document: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os, "config": {},
                                "rootfs": {"type": "layers", "diff_ids": []}, "history": []}
    if platform.variant:
        document["variant"] = platform.variant
    return document


def add_image(store: ImageStore, base: StoredImage | None, document: Mapping[str, Any], written: Sequence[Written],
              reference: str, host: HostTrees | None = None, record: bool = True) -> StoredImage:
    """Records an image: ``base``'s layers and ``written`` ones above, described by ``document``.

    :param document: the configuration without its layers, which are filled in.
    :param record: whether it is to be listed and found later: not so for the steps of a build.
    :param host: for changes of the host's root: which of all these layers belong to which of its trees.
    """
    below = base.diff_ids if base is not None else ()
    descriptors = [*(base.layers if base is not None else ()),
                   *(Descriptor(one.digest, one.size, OCI_LAYER) for one in written)]
    full = {**document, "rootfs": {"type": "layers", "diff_ids": [*below, *(one.digest for one in written)]}}
    config = json.dumps(full, sort_keys=True, separators=(",", ":")).encode()
    image_id = digest_of(config)
    known = all(one.size >= 0 for one in descriptors)
    manifest = None
    if known and host is None:
        manifest = json.dumps({
            "config": Descriptor(image_id, len(config), OCI_CONFIG).as_json(),
            "layers": [one.as_json() for one in descriptors], "mediaType": OCI_MANIFEST, "schemaVersion": 2,
        }, sort_keys=True).encode()
    image = SourceImage(reference, digest_of(manifest) if manifest is not None else None, manifest, image_id, config,
                        parse_config(config, reference=reference), tuple(descriptors))
    return store.add(_Stored(image), image, host, record=record)


def now() -> str:
    """The time as image configurations have it; ``SOURCE_DATE_EPOCH`` if that is set."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch) if epoch.isdigit() else None))
