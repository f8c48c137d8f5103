"""What a guest and its tests show past all capturing, and write into the log file, on its way there. ``hosting``'s.

A guest has no descriptor of ours: it writes into files in memory, and what they hold is copied from time to time. With
``-s`` and its kin it has the terminal itself, or nobody could answer what a test asks.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

from pytest_sandbox.runtime import syscalls as sc

from . import compat
from .outgoing import SECTION_LIMIT

if TYPE_CHECKING:
    import pytest

#: Bytes that are copied in one piece.
_PIECE = 1 << 16
#: A file's place in ``Relay.files``.
_LOG = 2


class Relay:
    """Made when a guest starts, closed when it has ended. ``files`` are for its output, its errors and its log."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.files: list[int] = []
        self._done = [0, 0, 0]  # how much of each has been copied
        for name in ("stdout", "stderr", "log"):
            file = os.memfd_create(name, os.MFD_CLOEXEC)
            self.files.append(file)
            fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND | os.O_RDWR)  # more than one process writes there

    def forward(self, log: bool = True) -> None:
        """Copies what is new. Of what is more than anybody prints, the end.

        :param log: also into the log file, from which a test that starts over takes back what it had logged.
        """
        for place, file in enumerate(self.files):
            if place == _LOG and not log:
                continue
            size = os.fstat(file).st_size
            begin = min(self._done[place], size)
            self._done[place] = size
            if begin == size:
                continue
            _, *targets = compat.true_streams(self._config)
            target = compat.log_file(self._config) if place == _LOG else targets[place]
            compat.flush_streams()
            try:
                if size - begin > SECTION_LIMIT:  # it may say so of a file that has nothing in it
                    left_out = size - begin - SECTION_LIMIT
                    begin += left_out
                    _write(target, f"[... {left_out:,} bytes of output left out ...]\n".encode())
                while begin < size and (data := os.pread(file, min(_PIECE, size - begin), begin)):
                    begin += len(data)
                    _write(target, data)
            except OSError:
                pass  # nobody reads it any more, or there never was such a stream
            try:
                sc.punch_hole(file, 0, size)
            except OSError:
                pass  # it stays in memory until the guest ends

    def close(self) -> None:
        """The guest has ended."""
        self.forward()
        for file in self.files:
            os.close(file)
        self.files = []


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data):]
