"""Pages that are copied ahead: found by the kernel's own tables, copied by one call, seen by the count of faults."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
from collections.abc import Callable

import pytest

from pytest_sandbox.runtime import prefault
from pytest_sandbox.runtime import syscalls as sc

PAGE = mmap.PAGESIZE

pytestmark = pytest.mark.skipif(not sc.can_populate(), reason="this kernel has no process_madvise of one's own memory")


class Child:
    """A fork that runs ``body`` and waits until it is released. ``told`` is what ``body`` returned."""

    def __init__(self, body: Callable[[], int]) -> None:
        reading, writing = os.pipe()
        gate, self._release = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.write(writing, bytes([min(body(), 255)]))
                os.close(self._release)
                os.read(gate, 1)
            finally:
                os._exit(0)
        os.close(writing)
        os.close(gate)
        self.told = os.read(reading, 1)[0]
        os.close(reading)

    def release(self) -> None:
        os.close(self._release)
        os.waitpid(self.pid, 0)


def test_a_forks_own_pages_are_copied_ahead_for_the_next() -> None:
    memory = mmap.mmap(-1, 1000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * 1000 * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory)) // PAGE
    touched = [*range(0, 100), 102, *range(400, 500)]
    pages = prefault.Pages()
    assert pages.learns

    def touch(*more: int) -> int:
        """How many page faults that takes."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for page in (*touched, *more):
            memory[page * PAGE] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    for number in range(prefault.CHILDREN):
        child = Child(lambda: touch(600 + number))  # noqa: B023 - called at once
        assert child.told > 190
        pages.look(child.pid)
        child.release()
    assert not pages.learns
    assert pages._ranges is not None
    numbers = list(pages._ranges)
    ranges = {begin // PAGE - first: length // PAGE for begin, length in zip(numbers[::2], numbers[1::2], strict=True)
              if first <= begin // PAGE < first + 1000}
    assert ranges == {0: 100, 102: 1, 400: 100}

    def ahead() -> int:
        pages.copy()
        return touch()

    child = Child(ahead)
    child.release()
    assert child.told < 100, "they were copied one by one"
    assert memory[0] == ord("x"), "the copies were somebody else's"


def test_what_is_gone_is_no_failure() -> None:
    memory = mmap.mmap(-1, PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert sc.populate(sc.ranges([(address, PAGE)]))
    assert not sc.populate(sc.ranges([(1 << 46, PAGE)]))
    pages = prefault.Pages()
    pages.copy()  # nothing learned yet
    pages.look(1 << 22)  # no such process
    assert pages.learns
