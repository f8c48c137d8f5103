"""What an image is, as data: descriptors, manifests, indexes, configurations, platforms; and how their JSON is read.

Everything from a registry or an archive comes through here before it is believed. Formats: the OCI image specification
1.1 and Docker's "image manifest version 2, schema 2". Schema 1 is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ImageCorrupt, ImageError, ImageNotFound
from .printable import listed
from .reference import check_digest

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFEST_TYPES = (OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX)

#: Longest manifest, index or configuration in bytes: the limit that registries themselves set for manifests.
MAX_DOCUMENT = 4 << 20
#: Most layers: the kernel's overlayfs takes 500 below one mount.
MAX_LAYERS = 500
_MAX_BLOB = 1 << 40


#: Trees of the host's root, each with the numbers of the layers on top of it.
HostTrees = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system and processor as OCI names them. ``variant`` is "" where there is none."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Reads ``os/architecture[/variant]``.

        :raises ImageError: for anything else.
        """
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ImageError(f"platform {text!r} cannot be read", reference=text,
                             remedy='Write it like "linux/amd64" or "linux/arm/v7".')
        return cls(*parts)

    @classmethod
    def here(cls) -> Platform:
        machine = os.uname().machine.lower()
        architecture, variant = _MACHINES.get(machine, (machine, ""))
        return cls("linux", architecture, variant)


_MACHINES = {
    "x86_64": ("amd64", ""), "amd64": ("amd64", ""), "i386": ("386", ""), "i686": ("386", ""),
    "aarch64": ("arm64", "v8"), "arm64": ("arm64", "v8"), "armv8l": ("arm", "v7"), "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"), "ppc64le": ("ppc64le", ""), "s390x": ("s390x", ""), "riscv64": ("riscv64", ""),
    "loongarch64": ("loong64", ""),
}

# What a processor also runs, best first, after its own variant: containerd's platforms.Default() order.
_ALSO_RUNS = {
    ("arm64", "v8"): (("arm64", ""), ("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")),
    ("arm", "v7"): (("arm", ""), ("arm", "v6"), ("arm", "v5")),
    ("arm", "v6"): (("arm", "v5"),),
    ("amd64", ""): (("amd64", "v1"), ("386", "")),
}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob by digest, with its size in bytes and its media type."""

    digest: str
    size: int
    media_type: str
    platform: Platform | None = None
    annotations: tuple[tuple[str, str], ...] = ()

    def annotation(self, name: str) -> str | None:
        return dict(self.annotations).get(name)

    def as_json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests, usually one for each platform."""

    manifests: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image wants to be run. Empty where the image says nothing."""

    env: tuple[tuple[str, str], ...] = ()
    user: str = ""
    workdir: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    stop_signal: str = ""
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """An image's configuration document. ``diff_ids`` are those of its layers, lowest first."""

    config: ImageConfig
    diff_ids: tuple[str, ...]
    platform: Platform


@dataclass(frozen=True, slots=True)
class RootDirectory:
    """The attributes of an image's own root directory, which a writable layer put above it has to repeat."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True, slots=True)
class LayerStack:
    """Read-only layers ready to be mounted, lowest first. Made by ``ImageStore.resolve``.

    The directories stay as they are until the store that gave them out is closed, or its process ends: until then
    it holds a shared lock on each of them, and no collection removes a layer that somebody holds.

    :param layers: absolute paths of directories; between 1 and 500.
    :param config: how the image wants to be run.
    :param image_id: digest of the image's configuration; None for a plain directory.
    :param digest: digest of the manifest that was resolved; None where the source has no manifest.
    :param reference: what the user wrote.
    :param overlay_xattrs: the prefixes under which opaque directories are marked (``user.overlay.`` needs the mount
        option ``userxattr``, ``trusted.overlay.`` forbids it). Both are there when root unpacked.
    :param root: attributes of the image's root directory.
    :param host: for changes of the host's root: which of the layers belong to which of its trees, lowest first.
    :param immutable: False for a plain directory, which its owner may change at any time.
    """

    layers: tuple[str, ...]
    config: ImageConfig = ImageConfig()
    image_id: str | None = None
    digest: str | None = None
    reference: str = ""
    overlay_xattrs: tuple[str, ...] = ("user.overlay.",)
    root: RootDirectory = RootDirectory()
    immutable: bool = True
    notes: tuple[str, ...] = field(default=(), compare=False)
    host: HostTrees | None = None


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def chain_id(diff_ids: Iterable[str]) -> str:
    """The OCI chain id of a stack of layers: equal for equal stacks. Empty text for no layer."""
    chain = ""
    for diff_id in diff_ids:
        chain = digest_of(f"{chain} {diff_id}".encode()) if chain else diff_id
    return chain


def check_document(data: bytes, descriptor: Descriptor, *, reference: str) -> None:
    """Compares bytes with the descriptor that promised them.

    :raises ImageCorrupt: for another size or digest.
    """
    if len(data) != descriptor.size:
        raise ImageCorrupt(f"image {reference!r} cannot be used", reference=reference,
                           why=f"{descriptor.digest} has {len(data)} bytes, {descriptor.size} were promised")
    actual = digest_of(data, descriptor.digest.partition(":")[0])
    if actual != descriptor.digest:
        raise ImageCorrupt(f"image {reference!r} cannot be used", reference=reference,
                           why=f"{descriptor.digest} was promised, the bytes are {actual}")


def read_json(data: bytes, *, reference: str, what: str) -> dict[str, Any]:
    """A JSON object, read strictly: a name that appears twice could mean two things to two readers."""
    if len(data) > MAX_DOCUMENT:
        raise _corrupt(reference, f"the {what} is larger than {MAX_DOCUMENT} bytes")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _corrupt(reference, f"the {what} is not JSON that can be read: {error}") from None
    if not isinstance(document, dict):
        raise _corrupt(reference, f"the {what} is not a JSON object")
    if b"\\ud" in data.lower():  # half of a character outside of the basic plane is no text, and no program takes it
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _corrupt(reference, f"the {what} holds half a character") from None
    return document


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a name appears twice in one object")
    return document


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def parse_manifest(data: bytes, *, reference: str, media_type: str | None = None) -> Manifest | Index:
    """Reads any of the four manifest types.

    :param media_type: what the registry's header or the descriptor said; it must agree with the document.
    :raises ImageCorrupt: when the document is broken or could be read in two ways (CVE-2021-41190).
    :raises ImageError: when it is sound but of no use to us (schema 1, no image).
    """
    document = read_json(data, reference=reference, what="manifest")
    if document.get("schemaVersion") == 1:
        raise ImageError(f"image {reference!r} cannot be used", reference=reference,
                         why="it has a manifest of the old schema 1, which cannot be verified",
                         remedy="Push it again with a current tool.")
    if document.get("schemaVersion") != 2:
        raise _corrupt(reference, f"the manifest has schemaVersion {document.get('schemaVersion')!r}")
    is_index, is_manifest = "manifests" in document, "layers" in document or "config" in document
    if is_index == is_manifest:
        raise _corrupt(reference, "the manifest is both an index and an image" if is_index else "the manifest is empty")
    stated = document.get("mediaType", media_type)
    allowed = (OCI_INDEX, DOCKER_INDEX) if is_index else (OCI_MANIFEST, DOCKER_MANIFEST)
    for claim in (stated, media_type):
        if claim in MANIFEST_TYPES and claim not in allowed:
            raise _corrupt(reference, f"the manifest says that it is {claim}, its fields say otherwise")
    if stated is not None and stated not in allowed:
        raise ImageError(f"image {reference!r} cannot be used", reference=reference,
                         why=f"it is a {str(stated)[:200]!r}, not an image")
    if is_index:
        return Index(tuple(_descriptor(one, reference) for one in _list(document["manifests"], reference, "manifests")))
    config = _descriptor(document.get("config"), reference)
    layers = tuple(_descriptor(one, reference) for one in _list(document.get("layers"), reference, "layers"))
    if len(layers) > MAX_LAYERS:
        raise ImageError(f"image {reference!r} cannot be used", reference=reference,
                         why=f"it has {len(layers)} layers; the kernel mounts {MAX_LAYERS} at most",
                         remedy="Squash it.")
    return Manifest(config, layers)


def parse_config(data: bytes, *, reference: str) -> ConfigDocument:
    """Reads an image configuration.

    :raises ImageCorrupt: when it is broken.
    """
    document = read_json(data, reference=reference, what="configuration")
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict) or rootfs.get("type") != "layers":
        raise _corrupt(reference, "the configuration names no layers")
    diff_ids = tuple(check_digest(one, reference=reference)
                     for one in _list(rootfs.get("diff_ids") or [], reference, "diff_ids"))
    runtime = document.get("config") or {}
    if not isinstance(runtime, dict):
        raise _corrupt(reference, "the configuration's config is not an object")
    text = {name: runtime.get(name) or "" for name in ("User", "WorkingDir", "StopSignal")}
    if not all(isinstance(value, str) and "\0" not in value for value in text.values()):
        raise _corrupt(reference, "User, WorkingDir and StopSignal have to be text")
    env = tuple(_variable(line, reference) for line in _texts(runtime.get("Env"), reference, "Env"))
    labels = runtime.get("Labels") or {}
    if not isinstance(labels, dict):
        raise _corrupt(reference, "the configuration's labels are not an object")
    config = ImageConfig(
        env=tuple(dict(env).items()), user=text["User"], workdir=text["WorkingDir"],
        entrypoint=_texts(runtime.get("Entrypoint"), reference, "Entrypoint"),
        cmd=_texts(runtime.get("Cmd"), reference, "Cmd"), stop_signal=text["StopSignal"],
        labels=tuple(sorted((str(name), str(value)) for name, value in labels.items())))
    return ConfigDocument(config, diff_ids, _platform_of(document, reference) or Platform("linux", "unknown"))


def choose_platform(index: Index, wanted: Platform, *, reference: str) -> Descriptor:
    """The manifest that suits ``wanted`` best: its own variant, then what that processor also runs.

    :raises ImageNotFound: listing the platforms that there are.
    """
    wishes = [(wanted.architecture, wanted.variant), *_ALSO_RUNS.get((wanted.architecture, wanted.variant), ())]
    if not wanted.variant and wanted.architecture == "arm64":
        wishes = [("arm64", ""), ("arm64", "v8")]
    for architecture, variant in wishes:
        for one in index.manifests:
            found = one.platform
            if found is not None and found == Platform(wanted.os, architecture, variant):
                return one
    if len(index.manifests) == 1 and index.manifests[0].platform is None:
        return index.manifests[0]
    have = {str(one.platform) for one in index.manifests if one.platform and one.platform.os != "unknown"}
    raise ImageNotFound(f"image {reference!r} is not made for {wanted}", reference=reference,
                        why=f"it is made for {listed(have, 'no platform that it names')}",
                        remedy="Ask for one of these with --platform, or for another image.")


def _corrupt(reference: str, why: str) -> ImageCorrupt:
    return ImageCorrupt(f"image {reference!r} cannot be used", reference=reference, why=why)


def _list(value: object, reference: str, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise _corrupt(reference, f"{name} is not a list")
    return value


def _texts(value: object, reference: str, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) and "\0" not in one for one in value):
        raise _corrupt(reference, f"the configuration's {name} is not a list of texts")
    return tuple(value)


def _variable(line: str, reference: str) -> tuple[str, str]:
    name, _, value = line.partition("=")
    if not name:
        raise _corrupt(reference, f"the configuration's Env holds {line!r}")
    return name, value


def _descriptor(value: object, reference: str) -> Descriptor:
    if not isinstance(value, Mapping):
        raise _corrupt(reference, "a descriptor is not an object")
    size, media_type = value.get("size"), value.get("mediaType")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_BLOB:
        raise _corrupt(reference, f"a descriptor has the size {size!r}")
    if not isinstance(media_type, str):
        raise _corrupt(reference, f"a descriptor has the media type {media_type!r}")
    annotations = value.get("annotations") or {}
    if not isinstance(annotations, Mapping):
        raise _corrupt(reference, "a descriptor's annotations are not an object")
    platform = value.get("platform")
    return Descriptor(check_digest(value.get("digest"), reference=reference), size, media_type,
                      _platform_of(platform, reference) if isinstance(platform, Mapping) else None,
                      tuple(sorted((str(name), str(text)) for name, text in annotations.items())))


def _platform_of(value: Mapping[str, Any], reference: str) -> Platform | None:
    parts = value.get("os"), value.get("architecture"), value.get("variant") or ""
    if not all(isinstance(part, str) for part in parts):
        return None
    return Platform(*(str(part) for part in parts))
