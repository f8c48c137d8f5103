"""What a test writes into files that it shares with pytest: its output. A flood of it must not fill the host's disk.

Those files exist outside, so that what a test printed is known when it has died, and no limit of its sandbox
counts them. While the test runs, ``inbox`` lets :class:`Outputs` look at them; of one that has grown large the middle
is let go, which nobody is shown anyway. The file keeps its size, so that whoever reads it says how much there was.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from pytest_sandbox.runtime import syscalls as sc

from . import compat
from .outgoing import SECTION_LIMIT

if TYPE_CHECKING:
    import pytest

    from .conductor import Conductor

#: Seconds between two looks.
INTERVAL = 0.25
#: Bytes on disk from which on the middle of a file goes. At each end there stays more than anybody reads.
LIMIT = 8 * SECTION_LIMIT


class Outputs:
    """The files of one pytest process. Lives as long as its session."""

    def __init__(self, config: pytest.Config, conductor: Conductor) -> None:
        self._config = config
        self._conductor = conductor
        self._looked = time.monotonic()

    def look(self) -> None:
        """Lets go of what is too much, if it is time to look."""
        now = time.monotonic()
        if now - self._looked < INTERVAL:
            return
        self._looked = now
        if self._conductor.abroad is not None:
            self._conductor.abroad.forward()
        for descriptor in self._descriptors():
            try:
                there = os.fstat(descriptor)
                if there.st_blocks * 512 > LIMIT and there.st_size > LIMIT:
                    sc.punch_hole(descriptor, SECTION_LIMIT, there.st_size - 2 * SECTION_LIMIT)
            except OSError:
                pass  # a file system that cannot: then the disk is what bounds it

    def _descriptors(self) -> list[int]:
        found = compat.capture_files(self._config)
        if self._conductor.held is not None:
            found += self._conductor.held.descriptors
        if self._conductor.fault_descriptor is not None:
            found.append(self._conductor.fault_descriptor)
        return found
