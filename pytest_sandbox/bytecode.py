"""What an image's Python would compile at each start of a guest: kept once for an image, from its first guest.

An image need not have its standard library compiled, and the graft is compiled for the caller's version of Python at
most. What a guest has compiled before it knows anything of the tests is the image's and ours alone. It is taken then,
and mounted read-only for later guests of that image, whose Python still compares each file with its source.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Sequence

from .grafts import graft_made
from .planning import cache_directory

#: Where a guest finds what was kept, and where it writes when there is nothing yet.
TARGET, WRITTEN = "/run/.pytest-sandbox-compiled", "/.pytest-sandbox-compiled"
#: What is taken of one image at most: files, and bytes of each.
_MOST, _LONGEST = 5000, 8 << 20
#: After how many seconds without use it is forgotten.
_OLD = 30 * 86400


def place(image_id: str, python: str | None) -> str:
    """The directory for what is compiled in that image. It is there once a guest of it has started.

    :param python: the interpreter that the marker names.
    """
    name = hashlib.sha256(f"{image_id}\0{python}\0{os.path.basename(graft_made())}".encode()).hexdigest()[:24]
    return os.path.join(cache_directory(), "guests", f"compiled-{name}")


def is_kept(made: str) -> bool:
    """Whether it is there; then it is used, and stays."""
    try:
        os.utime(made)
    except PermissionError:
        return True  # somebody else's, in a cache that several use
    except OSError:
        return False
    return True


def take(layer: int, number: int, apart: Sequence[str], made: str) -> None:
    """Keeps as ``made`` what a guest has written.

    :param layer: a descriptor of where the writable layers of its overlays are.
    :param number: the one of its root.
    :param apart: directories of the host that are visible in there: what is compiled of them is not the image's.
    """
    _forget_old(os.path.dirname(made))
    begun = f"{made}.{os.getpid()}"
    shutil.rmtree(begun, ignore_errors=True)
    os.makedirs(begun)
    try:
        left = _MOST
        for folder, _, names, fd in os.fwalk(f"{number}/upper{WRITTEN}", dir_fd=layer):
            inside = folder.partition(WRITTEN)[2]
            if any(f"{inside}/".startswith(f"{one}/") for one in apart):
                continue
            for name in names[:left]:
                data = _read(name, fd) if name.endswith(".pyc") else None
                if data is not None:
                    left -= 1
                    os.makedirs(f"{begun}{inside}", exist_ok=True)
                    with open(f"{begun}{inside}/{name}", "wb") as file:
                        file.write(data)
        os.chmod(begun, 0o755)
        os.rename(begun, made)
    except OSError:
        pass  # another process was faster, or the disk is full: the next guest compiles once more
    finally:
        shutil.rmtree(begun, ignore_errors=True)


def _read(name: str, folder: int) -> bytes | None:
    """A regular file that is not too long; None for what else there is."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return None
    with open(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _LONGEST:
            return None
        return file.read(_LONGEST)


def _forget_old(folder: str) -> None:
    try:
        with os.scandir(folder) as found:
            for one in found:
                if one.name.startswith("compiled-") and one.stat().st_mtime < time.time() - _OLD:
                    shutil.rmtree(one.path, ignore_errors=True)
    except OSError:
        pass  # another process is at it
