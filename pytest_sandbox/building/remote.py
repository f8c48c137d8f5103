"""``ADD`` of URLs: downloaded into the store's staging area, compared with ``--checksum``, and put into a layer.

Git repositories are refused: a commit is fetched better, and checked, by a ``RUN`` or before the build.
"""

from __future__ import annotations

import email.utils
import hashlib
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

_MOST = 8 << 30
_SECONDS = 60  # without a byte


@dataclass(frozen=True, slots=True)
class Remote:
    """A downloaded file: what to call it, where it lies until the step is over, and its SHA-256."""

    name: str
    path: str
    digest: str
    mtime: int


def is_url(source: str) -> bool:
    """Whether a source of ``ADD`` is fetched over HTTP."""
    return source.startswith(("http://", "https://"))


def is_git(source: str) -> bool:
    """Whether a source of ``ADD`` is a Git repository."""
    return source.startswith(("git@", "git://", "ssh://")) or bool(
        is_url(source) and re.search(r"\.git(#[^/]*)?$", source))


def name_of(url: str) -> str:
    """The file's name if the destination is a directory.

    :raises ValueError: when the URL has none.
    """
    name = os.path.basename(unquote(urlsplit(url).path))
    if not name or name in (".", ".."):
        raise ValueError(f"{url} names no file: end the destination with a file's name, not with a slash")
    return name


def fetch(url: str, target: str, checksum: str | None, aside: Callable[[], AbstractContextManager[None]]) -> Remote:
    """Downloads ``url`` to ``target``.

    :param checksum: ``sha256:...``, which the content has to have.
    :raises ValueError: when it has another, or the server does not hand it out.
    """
    expected = None
    if checksum is not None:
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", checksum):
            raise ValueError(f"--checksum={checksum} is not sha256: and 64 hexadecimal digits")
        expected = checksum
    digest, size = hashlib.sha256(), 0
    try:
        with aside():
            request = urllib.request.Request(url, headers={"User-Agent": "pytest-sandbox"})
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer, open(target, "xb") as file:
                modified = answer.headers.get("Last-Modified")
                while data := answer.read(1 << 20):
                    size += len(data)
                    if size > _MOST:
                        raise ValueError(f"{url} is larger than {_MOST >> 30} GiB")
                    digest.update(data)
                    file.write(data)
                stated = answer.headers.get("Content-Length")
        if stated is not None and stated.isdigit() and int(stated) != size:
            raise ValueError(f"{url}: the server sent {size} bytes of {stated}")
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url}: the server answered {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise ValueError(f"{url} cannot be fetched: {error.reason}; check the address, the network and "
                         "HTTPS_PROXY") from None
    found = f"sha256:{digest.hexdigest()}"
    if expected is not None and found != expected:
        raise ValueError(f"{url} has the checksum {found}, --checksum says {expected}: if it may have changed, put "
                         "the new one down")
    when = email.utils.parsedate_to_datetime(modified) if modified else None
    return Remote("", target, found, int(when.timestamp()) if when is not None else 0)
