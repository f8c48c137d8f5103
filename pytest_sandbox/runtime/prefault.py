"""Has the pages that a fork is known to write to copied at once, in place of a page fault for each.

After a fork, the first write to a page makes the kernel stop the process, copy the page and go on: about 2.5 us each in
a virtual machine, a thousand times for a test. Which pages these are differs little from test to test, for most are
those of the interpreter's and pytest's own objects. So the zygote looks at the page tables of its first children, from
outside (nothing is asked of a child, or believed), and pins what most of these had copied: then the fork itself copies
these pages, for 1.5 us each, and the zygote need not copy any that it writes to between two forks. Where they cannot be
pinned later children copy them in one call.
"""

from __future__ import annotations

import os
import socket
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from . import syscalls as sc

#: How many children are looked at.
CHILDREN = 3
#: How many pages are copied ahead at most: 16 MiB.
MOST = 4096
_PAGE = os.sysconf("SC_PAGE_SIZE")
_EXCLUSIVE = 1 << 56  # of an entry of /proc/PID/pagemap: nobody else maps the page


class Pages:
    """In what forks: learns from the first children, then knows.

    :param pins: whether the fork may copy the pages.
    :param others: whether children may, where these are not pinned; they then call :meth:`copy`.
    :param both: whether to learn from what the forking process writes to, too.
    """

    def __init__(self, pins: bool = True, others: bool = True, both: bool = False) -> None:
        self._seen: list[set[int]] = []
        self._ranges: sc.Ranges | None = None  # for the children to copy
        self._both = both
        self._pins = pins and sc.pin(sc.a_page())
        self._others = others and sc.populate(sc.a_page())
        self.learns = self._pins or self._others

    def look(self, pid: int) -> None:
        """Looks at a child that has done its work, or where that waits for a fork of its own at that one.

        One that has ended, or may not be looked at, is no failure.
        """
        if not self.learns:
            return
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                inner = file.read().split()
            found = _own_pages(inner[0] if inner else str(pid))
            if found and self._both:
                found |= _own_pages("self")  # shared with the fork until we wrote to them
        except OSError:
            return
        if found:
            self._seen.append(found)
        if len(self._seen) == CHILDREN:
            self.learns = False
            found_in_most = _ranges(self._seen)
            self._seen = []
            if not (self._pins and sc.pin(found_in_most)) and self._others:
                self._ranges = found_in_most

    def copy(self) -> None:
        """In a new child: copies what it will write to, unless the fork did."""
        if self._ranges is not None:
            sc.populate(self._ranges)


class Meeting:
    """One child of a fork to be looked at: made before it, met by the child at its end and by whoever forked it."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()

    def fileno(self) -> int:
        """A descriptor that can be read when the child has come, or has ended."""
        return self._ours.fileno()

    def forked(self) -> None:
        """In the process that forked."""
        self._theirs.close()

    def inside(self) -> None:
        """In the child."""
        self._ours.close()

    def come(self) -> None:
        """In the child, at its end: lets itself be looked at; does not wait for ever."""
        with self._theirs, suppress(OSError):
            self._theirs.settimeout(0.5)
            self._theirs.send(b"x")
            self._theirs.recv(1)  # its end is the answer

    def has_come(self) -> bool:
        """Waits for the child, not for ever; False where it ended without a word."""
        try:
            self._ours.settimeout(0.5)
            return bool(self._ours.recv(1))
        except OSError:
            return False

    def over(self) -> None:
        """The child may go."""
        self._ours.close()
        self._theirs.close()


def _writable(pid: str) -> Iterator[tuple[int, int]]:
    """The private writable mappings of a process, as numbers of their first page and of the one after their last."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            where, flags, *_ = line.split(maxsplit=2)
            if flags.startswith("rw-p"):
                begin, end = where.split("-")
                yield int(begin, 16) // _PAGE, int(end, 16) // _PAGE


def _own_pages(pid: str) -> set[int]:
    """The numbers of the writable pages that are the process's own."""
    found: set[int] = set()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for begin, end in _writable(pid):
            entries = array("Q")
            entries.frombytes(os.pread(pagemap.fileno(), (end - begin) * 8, begin * 8))
            found.update(begin + place for place, entry in enumerate(entries) if entry & _EXCLUSIVE)
    return found


def _ranges(seen: list[set[int]]) -> sc.Ranges:
    """The pages that most of these have in common and this process has, too, as ranges."""
    counts = Counter(page for one in seen for page in one)
    common = {page for page, count in counts.items() if count * 2 > len(seen)}
    pages = sorted(page for begin, end in _writable("self") for page in common.intersection(range(begin, end)))
    ranges: list[list[int]] = []
    for page in pages[:MOST]:
        if ranges and page == ranges[-1][1]:
            ranges[-1][1] = page + 1
        else:
            ranges.append([page, page + 1])
    return sc.ranges([(begin * _PAGE, (end - begin) * _PAGE) for begin, end in ranges[:sc.MOST_RANGES]])
