"""The names in a sandbox's ``/etc/hosts``: used by ``network`` and ``outbound``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .running import Running

_MOST = 1 << 20


def write_names(running: Running, mark: str, lines: list[str]) -> None:
    """Puts ``lines`` in the place of those that ``mark`` marks in a sandbox's /etc/hosts; the others stay."""
    if running.scratch < 0 or running.owner != os.getpid():
        return
    begin, end = f"# {mark} of pytest-sandbox", f"# end of {mark}"
    fd = os.open("hosts", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=running.scratch)
    try:
        text = os.read(fd, _MOST).decode(errors="surrogateescape")
        head, found, rest = text.partition(f"{begin}\n")
        if found:
            text = head + rest.partition(f"{end}\n")[2]
        if lines:
            text = "\n".join([begin, *lines, end, text])
        raw = text.encode(errors="surrogateescape")
        os.pwrite(fd, raw, 0)
        os.ftruncate(fd, len(raw))
    finally:
        os.close(fd)
