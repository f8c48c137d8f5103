"""Pages that are copied ahead: found by the kernel's own tables, copied by one call, seen by the count of faults."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource

import pytest

from pytest_sandbox.runtime import prefault
from pytest_sandbox.runtime import syscalls as sc

PAGE = mmap.PAGESIZE

pytestmark = [
    pytest.mark.skipif(not sc.can_populate(), reason="this kernel has no process_madvise of one's own memory"),
]


def test_a_forks_own_pages_are_copied_ahead_for_the_next() -> None:
    memory = mmap.mmap(-1, 1000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * 1000 * PAGE)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory)) // PAGE
    touched = [*range(0, 100), 102, *range(400, 500)]
    pages = prefault.Pages()
    assert pages.learns
    for number in range(prefault.CHILDREN):
        reading, writing = os.pipe()
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            for page in [*touched, 600 + number]:  # and one that no other touches
                memory[page * PAGE] = 1
            os.write(tell, b"x")
            os.read(reading, 1)
            os._exit(0)
        os.read(told, 1)
        pages.look(pid)
        os.write(writing, b"x")
        os.waitpid(pid, 0)
        for fd in (reading, writing, told, tell):
            os.close(fd)
    assert not pages.learns
    assert pages._ranges is not None
    numbers = list(pages._ranges)
    ranges = {begin // PAGE - first: length // PAGE for begin, length in zip(numbers[::2], numbers[1::2], strict=True)
              if first <= begin // PAGE < first + 1000}
    assert ranges == {0: 100, 102: 1, 400: 100}
    reading, writing = os.pipe()
    if os.fork() == 0:
        def faults() -> int:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for page in touched:
                memory[page * PAGE] = 2
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        if os.fork() == 0:
            os.write(writing, bytes([min(faults(), 255)]))  # first: without
            os._exit(0)
        os.wait()
        pages.copy()
        os.write(writing, bytes([min(faults(), 255)]))
        os._exit(0)
    os.wait()
    without, ahead = os.read(reading, 2)
    os.close(reading)
    os.close(writing)
    assert without >= len(touched)
    assert ahead < len(touched) / 2
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
