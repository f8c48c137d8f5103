"""Where the suite writes what happened, in order. Used by conftest and by fixtures that pytest's hooks do not see.

The file is opened once, before any test: what a test writes to a file may be gone after it, what it writes to an open
descriptor is not.
"""

from __future__ import annotations

import os
from pathlib import Path

_descriptor = -1


def start(worker: str) -> None:
    """Opens the log of this process; one for each xdist worker."""
    global _descriptor
    folder = os.environ.get("PARITY_LOG")
    if folder:
        path = Path(folder, f"order-{worker}.log")
        _descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)


def log(*words: object) -> None:
    """One line: ``words``, as text."""
    if _descriptor >= 0:
        os.write(_descriptor, (" ".join(map(str, words)).replace("\n", "\\n") + "\n").encode("utf-8", "replace"))
