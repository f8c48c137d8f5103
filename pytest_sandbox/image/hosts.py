"""Which machines may serve a registry's images, and how to reach them: ``registries.conf``, certificates, proxies.

No format of our own: mirrors and plain HTTP are read where podman, skopeo and buildah read them
(containers-registries.conf(5)), certificates where they and Docker do (containers-certs.d(5)).
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ImageError
from .reference import RegistryReference


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that may have an image.

    :param host: host and port, as in URLs.
    :param repository: the name of the repository there.
    :param insecure: plain HTTP may be used when TLS does not answer.
    :param mirror: stands in for another registry.
    """

    host: str
    repository: str
    insecure: bool = False
    mirror: bool = False


def endpoints(reference: RegistryReference) -> list[Endpoint]:
    """Where to ask for an image, in this order: its mirrors, then its own registry.

    :raises ImageError: when the configuration is broken, or blocks this registry.
    """
    name = reference.name
    entry = _longest(name, _registries())
    if entry is None:
        return [_endpoint(name, False, False)]
    prefix = str(entry.get("prefix") or entry.get("location"))
    if entry.get("blocked") is True:
        raise ImageError(f"image {str(reference)!r} cannot be pulled", reference=str(reference),
                         why=f"registries.conf blocks {prefix}",
                         remedy="Change registries.conf, or use another registry.")
    found = []
    for mirror in entry.get("mirror") or ():
        usable = {"digest-only": reference.digest is not None, "tag-only": reference.digest is None}
        if usable.get(str(mirror.get("pull-from-mirror", "all")), True):
            found.append(_endpoint(_moved(name, prefix, str(mirror["location"])), mirror.get("insecure") is True, True))
    location = str(entry.get("location") or "")
    own = _moved(name, prefix, location) if location and not prefix.startswith("*.") else name
    return [*found, _endpoint(own, entry.get("insecure") is True, False)]


def _endpoint(name: str, insecure: bool, mirror: bool) -> Endpoint:
    host, _, repository = name.partition("/")
    if host == "docker.io":
        host = "registry-1.docker.io"
    try:
        parts = urlsplit(f"//{host}")
        usable = parts.hostname and (parts.port is None or parts.port) and parts.netloc == host and "@" not in host
    except ValueError:  # a port that is no number, half an IPv6 address
        usable = False
    if not usable:
        raise ImageError(f"location {name!r} cannot be used", reference=name, why=f"{host!r} is not a host name",
                         remedy="Correct it in registries.conf.")
    return Endpoint(host, repository, insecure or is_loopback(host), mirror)


def _moved(name: str, prefix: str, location: str) -> str:
    return location + name[len(prefix):]


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by its very name: there, as for Docker, plain HTTP is no risk."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]")
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _longest(name: str, entries: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    best: tuple[int, Mapping[str, Any]] | None = None
    for entry in entries:
        prefix = str(entry.get("prefix") or entry.get("location") or "")
        if prefix.startswith("*."):
            fits = name.partition("/")[0].partition(":")[0].endswith(prefix[1:])
        else:
            fits = bool(prefix) and (name == prefix or name.startswith((f"{prefix}/", f"{prefix}:")))
        if fits and (best is None or len(prefix) > best[0]):
            best = len(prefix), entry
    return best[1] if best else None


def _registries() -> list[Mapping[str, Any]]:
    entries: dict[str, Mapping[str, Any]] = {}
    for path in _registries_files():
        for entry in _read_toml(path).get("registry") or ():
            if not isinstance(entry, dict) or not all(isinstance(one, dict) and isinstance(one.get("location"), str)
                                                      for one in entry.get("mirror") or ()):
                raise ImageError(f"{str(path)!r} cannot be used", reference=str(path),
                                 why="a [[registry]] or [[registry.mirror]] in it has no location")
            entries[str(entry.get("prefix") or entry.get("location"))] = entry  # later files win, as the page says
    return list(entries.values())


def _registries_files() -> Iterator[Path]:
    given = os.environ.get("CONTAINERS_REGISTRIES_CONF")
    own = _config_home() / "containers"
    if given:
        main = Path(given)
    else:
        main = next((path for path in (own / "registries.conf", Path("/etc/containers/registries.conf"))
                     if path.is_file()), Path("/etc/containers/registries.conf"))
    if main.is_file():
        yield main
    if not given:
        for directory in (Path("/etc/containers/registries.conf.d"), own / "registries.conf.d"):
            if directory.is_dir():
                yield from sorted(directory.glob("*.conf"))


def _config_home() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # a dependency of pytest's own on this Python
    try:
        with path.open("rb") as file:
            document: dict[str, Any] = tomllib.load(file)
            return document
    except (OSError, ValueError) as error:
        raise ImageError(f"{str(path)!r} cannot be read", reference=str(path), why=str(error),
                         remedy="Correct it, or point CONTAINERS_REGISTRIES_CONF at another file.") from None


def tls_context(host: str) -> ssl.SSLContext:
    """How to verify ``host``: the system's authorities (``SSL_CERT_FILE`` changes them), and those of its ``certs.d``.

    :raises ImageError: when a certificate there cannot be read.
    """
    bundles = tuple(os.environ.get(name) or "" for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"))
    return _context(host, bundles)


@lru_cache(maxsize=16)  # reading the system's authorities takes some 70 ms
def _context(host: str, bundles: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()  # honours SSL_CERT_FILE itself
    try:
        bundle = bundles[0] or bundles[1]
        if bundle:
            context.load_verify_locations(**{"capath" if os.path.isdir(bundle) else "cafile": bundle})
        for base in (_config_home() / "containers", Path("/etc/containers"), Path("/etc/docker")):
            directory = base / "certs.d" / host
            if directory.is_dir():
                for authority in sorted(directory.glob("*.crt")):
                    context.load_verify_locations(authority)
                for certificate in sorted(directory.glob("*.cert")):
                    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    except (OSError, ssl.SSLError) as error:
        raise ImageError(f"the certificates for {host} cannot be read", reference=host, why=str(error),
                         remedy="See containers-certs.d(5).") from None
    return context


def proxy_for(scheme: str, host: str) -> str | None:
    """The proxy that the environment names for a host: ``HTTPS_PROXY``, ``HTTP_PROXY``, ``ALL_PROXY``, ``NO_PROXY``.

    Never for this machine itself, as in Go's programs: a proxy would look for it on its own side.
    """
    from urllib.request import getproxies, proxy_bypass

    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    return proxies.get(scheme) or proxies.get("all")
