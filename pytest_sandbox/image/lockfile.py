"""``sandbox.lock``: which digest a reference is to mean, so that every run on every machine uses the same image.

JSON, sorted, one image a line group: it is made to be committed and to be read in a review.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ImageError
from .layout import default_root
from .manifest import Index, Platform
from .reference import RegistryReference, check_digest, parse_registry_reference
from .source import Progress

NAME = "sandbox.lock"


@dataclass(frozen=True, slots=True)
class Locked:
    """One reference's digests. ``digest`` is of what the tag named; ``platforms`` are the images of an index."""

    digest: str
    platforms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moved:
    """A tag that names something else than when it was locked."""

    reference: str
    locked: str
    now: str


class LockFile:
    """A lock file's content. Read by :meth:`read`; nothing is written before :meth:`write`."""

    def __init__(self, images: Mapping[str, Locked] | None = None) -> None:
        self.images = dict(images or {})

    @classmethod
    def read(cls, path: str | Path) -> LockFile:
        """:raises ImageError: when it cannot be read as one."""
        def broken(why: str) -> ImageError:
            return ImageError(f"lock file {str(path)!r} cannot be used", reference=str(path), why=why,
                              remedy="Correct it, or write it anew with pytest-sandbox lock.")
        try:
            document = json.loads(Path(path).read_bytes())
            if document.get("version") != 1:
                raise broken(f"it has version {document.get('version')!r}")
            images = {}
            for name, entry in document["images"].items():
                platforms = entry.get("platforms", {})
                for digest in (entry["digest"], *platforms.values()):
                    check_digest(digest, reference=name)
                images[str(parse_registry_reference(name))] = Locked(entry["digest"], dict(platforms))
        except ImageError as error:
            raise error if error.reference == str(path) else broken(str(error)) from None
        except OSError as error:
            raise broken(error.strerror or str(error)) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise broken(str(error) or type(error).__name__) from None
        return cls(images)

    def write(self, path: str | Path) -> None:
        """Replaces the file, whole or not at all."""
        document = {"version": 1, "images": {
            name: {"digest": one.digest, **({"platforms": dict(one.platforms)} if one.platforms else {})}
            for name, one in self.images.items()}}
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            partial.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
            os.rename(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def update(cls, path: str | Path, found: Mapping[str, Locked]) -> Mapping[str, Locked]:
        """Takes over what was looked up into the file at ``path``, which need not be there; returns what it held.

        Any number may do so at the same time: each finds what the others wrote.

        :raises ImageError: when what is there cannot be read.
        """
        from filelock import FileLock

        name = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        guards = default_root() / "locks"  # not beside the file, which is in somebody's repository
        guards.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(guards / f"{name}.lock"):
            known = cls.read(path) if os.path.exists(path) else cls()
            cls({**known.images, **found}).write(path)
        return known.images

    def pin(self, reference: RegistryReference, platform: Platform) -> str | None:
        """The digest to use for a reference on a platform; None when it is not locked."""
        locked = self.images.get(str(reference))
        if locked is None:
            return None
        return locked.platforms.get(str(platform), locked.digest)


def look_up(reference: str, progress: Progress | None = None) -> tuple[str, Locked]:
    """What a registry has for a reference now.

    :raises ImageError: when there is nothing.
    """
    from .registry import RegistrySource

    parsed = parse_registry_reference(reference)
    with closing(RegistrySource(parsed, Platform.here(), progress=progress or Progress())) as source:
        digest, document = source.manifest()
    if not isinstance(document, Index):
        return str(parsed), Locked(digest)
    return str(parsed), Locked(digest, {str(one.platform): one.digest for one in document.manifests
                                        if one.platform and one.platform.os != "unknown"})


def moved(lock: LockFile) -> list[Moved]:
    """The locked tags that name something else now. Nothing follows them by itself."""
    found = []
    for name, locked in lock.images.items():
        now = look_up(name)[1]
        if now.digest != locked.digest:
            found.append(Moved(name, locked.digest, now.digest))
    return found
