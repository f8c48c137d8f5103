"""Image references as users type them, told apart and checked. Pure text; nothing here looks at files or networks.

The grammar of registry names is that of https://github.com/distribution/reference, with Docker's rules for short names:
``debian`` means ``docker.io/library/debian:latest``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import ImageError

#: Digest algorithms that we can check, with the length of their hexadecimal form.
ALGORITHMS = {"sha256": 64, "sha512": 128}

DEFAULT_REGISTRY = "docker.io"

_SEPARATED = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_PATH = re.compile(rf"{_SEPARATED}(?:/{_SEPARATED})*")
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_DIGEST = re.compile(r"([a-z0-9]+(?:[+._-][a-z0-9]+)*):([0-9a-fA-F]{32,})")

_REMEDY = 'Write it like "debian:12", "registry.example:5000/team/app:1.2" or "name@sha256:<64 digits>".'


@dataclass(frozen=True, slots=True)
class RegistryReference:
    """An image in a registry. ``tag`` may be None only where ``digest`` is given; with both, the digest decides."""

    domain: str
    path: str
    tag: str | None
    digest: str | None

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.path}"

    @property
    def api_host(self) -> str:
        """The host that speaks the API: Docker Hub's differs from its name."""
        return "registry-1.docker.io" if self.domain == DEFAULT_REGISTRY else self.domain

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


@dataclass(frozen=True, slots=True)
class ArchiveReference:
    """An image on disk; ``kind`` is ``oci``, ``oci-archive`` or ``docker-archive``, ``tag`` one of several."""

    kind: str
    path: str
    tag: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True, slots=True)
class RootfsReference:
    """A directory or a tarball that holds a root file system."""

    path: str

    def __str__(self) -> str:
        return f"rootfs:{self.path}"


@dataclass(frozen=True, slots=True)
class StoredReference:
    """An image that is in the store already, by the id of its configuration (``sha256:...``) or a name we gave it."""

    image_id: str

    def __str__(self) -> str:
        return f"image:{self.image_id}"


Reference = RegistryReference | ArchiveReference | RootfsReference | StoredReference


def check_digest(digest: object, *, reference: str) -> str:
    """``digest`` if we can check it. To be called before a digest becomes part of a path or a URL (CVE-2024-3727)."""
    if isinstance(digest, str):
        algorithm, _, value = digest.partition(":")
        if len(value) == ALGORITHMS.get(algorithm, -1) and re.fullmatch(r"[0-9a-f]+", value):
            return digest
    raise ImageError(f"image reference {reference!r} cannot be used", reference=reference,
                     why=f"{digest!r} is not a digest that can be checked",
                     remedy='Allowed: "sha256:" and 64, or "sha512:" and 128, lower-case hexadecimal digits.')


def parse_reference(text: str) -> Reference:
    """What ``text`` names. ``host`` and ``containerfile:`` belong to other rooms and must be taken out before.

    :raises ImageError: naming the part that cannot be read.
    """
    kind, colon, rest = text.partition(":")
    if colon and kind in ("oci", "oci-archive", "docker-archive"):
        return _archive(text, kind, rest)
    if colon and kind == "rootfs":
        if not rest or "\0" in rest:
            raise _refuse(text, "no path follows rootfs:", "Name a directory or a tarball: rootfs:./debian.tar.")
        return RootfsReference(rest)
    if colon and kind == "image":
        return StoredReference(check_digest(rest, reference=text))
    return parse_registry_reference(text)


def parse_registry_reference(text: str) -> RegistryReference:
    """Reads ``[domain/]path[:tag][@digest]``.

    :raises ImageError: naming the part that cannot be read.
    """
    if text.startswith(("oci:", "oci-archive:", "docker-archive:", "rootfs:", "image:", "containerfile:")):
        raise _refuse(text, "it names a file, a directory or an image of the store, where a registry's image or a new "
                            "name is wanted")
    rest, at, digest = text.partition("@")
    if at:
        if not _DIGEST.fullmatch(digest):
            raise _refuse(text, f"{digest!r} after the @ is not a digest")
        check_digest(digest, reference=text)
    head, slash, last = rest.rpartition("/")
    last, colon, tag = last.partition(":")
    if colon and not _TAG.fullmatch(tag):
        raise _refuse(text, f"{tag!r} is not a tag: up to 128 letters, digits, '_', '.', '-', the first not '.' or '-'")
    name = f"{head}{slash}{last}"
    domain, path = _split_domain(name)
    if not path:
        raise _refuse(text, "there is no name in it")
    if not _DOMAIN.fullmatch(domain) or (domain.startswith("[") and not _is_address(domain)):
        raise _refuse(text, f"{domain!r} is not a host name")
    port = domain.rpartition(":")[2] if not domain.endswith("]") else ""
    if port.isdigit() and ":" in domain and not 0 < int(port[:6]) < 65536:
        raise _refuse(text, f"{port[:20]} is not a port: 1 to 65535")
    if not _PATH.fullmatch(path):
        raise _refuse(text, _why_not_a_path(path))
    if len(path) > 255:
        raise _refuse(text, "the name is longer than 255 characters")
    if domain == DEFAULT_REGISTRY and re.fullmatch(r"[0-9a-f]{64}", name):
        raise _refuse(text, "64 hexadecimal digits are an image id, not a name", f'Write "image:sha256:{name}".')
    return RegistryReference(domain, path, tag or (None if at else "latest"), digest or None)


def _is_address(domain: str) -> bool:
    """Whether what stands between brackets is an IPv6 address."""
    import ipaddress  # for these few names alone

    try:
        return bool(ipaddress.IPv6Address(domain[1:domain.index("]")]))
    except ValueError:
        return False


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    # Docker's rule: what stands before the first slash is a host if it could not be a user's name on Docker Hub.
    if slash and (any(mark in first for mark in ".:[") or first == "localhost" or first.lower() != first):
        domain, path = first, rest
    else:
        domain, path = DEFAULT_REGISTRY, name
    if domain == "index.docker.io":
        domain = DEFAULT_REGISTRY
    if domain == DEFAULT_REGISTRY and path and "/" not in path:
        path = f"library/{path}"
    return domain, path


def _why_not_a_path(path: str) -> str:
    if path != path.lower():
        return "names are in lower case"
    for part in path.split("/"):
        if not part:
            return "a part between two slashes is empty"
        if not re.fullmatch(_SEPARATED, part):
            return f"{part!r} is not a name: letters and digits, joined by '.', '_', '__' or '-'"
    return f"{path!r} is not a name"


def _archive(text: str, kind: str, rest: str) -> ArchiveReference:
    path, colon, tag = rest.rpartition(":")
    before, _, name = rest.partition(":")
    if kind != "docker-archive" and _is_full_name(name):
        path, tag = before, name
    elif not colon or ("/" in tag and kind == "oci"):
        path, tag = rest, ""
    if kind == "docker-archive" and "/" in tag:
        # "docker-archive:FILE:registry/name:tag" has colons in its second part: split at the first one.
        path, _, tag = rest.partition(":")
    elif kind == "docker-archive" and rest.count(":") > 1:
        path, _, tag = rest.partition(":")
    if not path or "\0" in path:
        what = "directory" if kind == "oci" else "file"
        raise _refuse(text, f"no path follows {kind}:", f"Name a {what}: {kind}:PATH.")
    return ArchiveReference(kind, path, tag or None)


def _is_full_name(text: str) -> bool:
    """Whether this is an image's name with its registry, as layouts have them: what else it is, is no path's end."""
    first, slash, _ = text.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        return False
    try:
        return bool(parse_registry_reference(text))
    except ImageError:
        return False


def _refuse(text: str, why: str, remedy: str = _REMEDY) -> ImageError:
    return ImageError(f"image reference {text!r} cannot be read", reference=text, why=why, remedy=remedy)
