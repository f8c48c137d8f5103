"""Pages that are copied ahead: found by the kernel's own tables, copied by one call, seen by the count of faults."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import traceback
from collections.abc import Callable

import pytest

from pytest_sandbox.runtime import prefault
from pytest_sandbox.runtime import syscalls as sc

PAGE = mmap.PAGESIZE

needs_populate = pytest.mark.skipif(
    not sc.populate(sc.a_page()), reason="this kernel has no process_madvise of one's own memory")
needs_pin = pytest.mark.skipif(not sc.pin(sc.a_page()), reason="this kernel has no io_uring, or it is switched off")


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
            except AssertionError:
                traceback.print_exc()
                os.write(writing, b"\0")
            finally:
                os._exit(0)
        os.close(writing)
        os.close(gate)
        self.told = os.read(reading, 1)[0]
        os.close(reading)

    def release(self) -> None:
        os.close(self._release)
        os.waitpid(self.pid, 0)


TOUCHED = [*range(0, 100), 102, *range(400, 500)]


class Memory:
    """A thousand pages of which forks write to the same two hundred."""

    def __init__(self) -> None:
        self.pages = mmap.mmap(-1, 1000 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.pages.write(b"x" * 1000 * PAGE)
        self.first = ctypes.addressof(ctypes.c_char.from_buffer(self.pages)) // PAGE

    def touch(self, *more: int) -> int:
        """How many page faults that takes."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for page in (*TOUCHED, *more):
            self.pages[page * PAGE] = 1
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    def teach(self, pages: prefault.Pages) -> None:
        """Has the first forks looked at."""
        assert pages.learns
        for number in range(prefault.CHILDREN):
            child = Child(lambda: self.touch(600 + number))  # noqa: B023 - called at once
            assert child.told > 190
            pages.look(child.pid)
            child.release()
        assert not pages.learns


@needs_populate
def test_a_forks_own_pages_are_copied_ahead_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sc, "pin", lambda memory: False)
    memory, pages = Memory(), prefault.Pages()
    memory.teach(pages)
    assert pages._ranges is not None
    numbers = list(pages._ranges)
    ranges = {begin // PAGE - memory.first: length // PAGE
              for begin, length in zip(numbers[::2], numbers[1::2], strict=True)
              if memory.first <= begin // PAGE < memory.first + 1000}
    assert ranges == {0: 100, 102: 1, 400: 100}

    def ahead() -> int:
        pages.copy()
        return memory.touch()

    child = Child(ahead)
    child.release()
    assert child.told < 100, "they were copied one by one"
    assert memory.pages[0] == ord("x"), "the copies were somebody else's"


@needs_pin
def test_a_fork_copies_what_the_forks_before_wrote_to() -> None:
    def in_a_process_of_its_own() -> int:  # whose pages are let go with it
        memory, pages = Memory(), prefault.Pages()
        memory.teach(pages)
        assert pages._ranges is None, "the children were to copy"
        child = Child(memory.touch)
        child.release()
        assert child.told < 100, "they were shared"
        assert memory.pages[0] == ord("x"), "the copies were somebody else's"
        assert memory.touch(700) < 100, "they were copied for the parent"
        other = Child(lambda: memory.touch(*range(200, 300)))
        other.release()
        assert other.told >= 100, "more was copied than the forks before wrote to"
        return 1

    child = Child(in_a_process_of_its_own)
    child.release()
    assert child.told == 1, "an assertion failed: see above"


@needs_pin
def test_a_fork_has_no_hand_on_pinned_pages() -> None:
    def in_a_process_of_its_own() -> int:
        memory = Memory()
        assert sc.pin(sc.ranges([(memory.first * PAGE, 100 * PAGE)]))

        def unregister() -> int:
            """Takes the buffers from the thread's first ring; 0, or the error."""
            call = ctypes.CDLL(None, use_errno=True).syscall
            return ctypes.get_errno() if call(427, 0, 1 | 1 << 31, None, 0) < 0 else 0

        child = Child(unregister)
        child.release()
        assert child.told != 0, "a fork can work its parent's ring"
        assert not [name for name in os.listdir("/proc/self/fd")
                    if "io_uring" in os.path.realpath(f"/proc/self/fd/{name}")]
        assert unregister() == 0, "the call itself does not work"
        return 1

    child = Child(in_a_process_of_its_own)
    child.release()
    assert child.told == 1, "an assertion failed: see above"


def test_what_is_not_memory_is_not_pinned() -> None:
    assert not sc.pin(sc.ranges([(1 << 46, PAGE)]))


@needs_populate
def test_what_is_gone_is_no_failure() -> None:
    memory = mmap.mmap(-1, PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert sc.populate(sc.ranges([(address, PAGE)]))
    assert not sc.populate(sc.ranges([(1 << 46, PAGE)]))
    pages = prefault.Pages()
    pages.copy()  # nothing learned yet
    pages.look(1 << 22)  # no such process
    assert pages.learns
