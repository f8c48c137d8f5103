"""Where kept tests lie: ``<cache>/v1/kept/<id>/``, with a record, an output and layers; bounded in number and size.

An entry is made in the store's staging area and renamed into place, so it is there whole or not at all. Who uses one
holds a shared lock on the file ``lock`` in it; a run that keeps holds one on a file of its own, as long as it lives.
What makes room takes entries whose locks nobody holds, the oldest first. All locks are the kernel's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import KeptTestError, StoreError
from ..image.layout import Layout, disk_usage, store_error, sync_directory, write_file
from ..image.locks import FileLock, lock
from .record import ID, Record

#: How many tests are kept at most, and how many bytes they take, unless the ini file says otherwise.
MOST_TESTS = 50
MOST_BYTES = 1 << 30
_RECORD = 4 << 20  # bytes; a record is a few kilobytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may be kept: in all tests together, and by this run."""

    tests: int = MOST_TESTS
    bytes: int = MOST_BYTES


class NoRoom(KeptTestError):
    """What is kept already fills the bounds, and none of it can go."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept test on disk. ``record`` is None where it cannot be read; then ``damage`` says why."""

    id: str
    path: str
    record: Record | None
    size: int
    created: float
    damage: str = ""

    def layer(self, number: int) -> str:
        return f"{self.path}/layer-{number}.tar.gz"

    @property
    def output(self) -> str:
        """The test's output, and its verdict."""
        with contextlib.suppress(OSError), open(f"{self.path}/output.txt", encoding="utf-8", errors="replace") as file:
            return file.read()
        return ""


class Shelf:
    """One process's use of the kept tests of a cache. Holds nothing open; :meth:`hold` and :meth:`run` do.

    :raises StoreError: when the cache cannot be used.
    """

    def __init__(self, layout: Layout | None = None) -> None:
        self.layout = layout or Layout()
        self.root = f"{self.layout.root}/kept"

    # What is there.

    def entries(self) -> list[Kept]:
        """All kept tests, the oldest first; also those that cannot be read."""
        found = []
        for name in self.layout.keys("kept"):
            if ID.fullmatch(name) and (one := self._entry(name)) is not None:
                found.append(one)
        return sorted(found, key=lambda one: (one.created, one.id))

    def _entry(self, name: str) -> Kept | None:
        path = f"{self.root}/{name}"
        try:
            status = os.lstat(path)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                return None  # not one of ours
            size = sum(disk_usage(f"{path}/{one}") for one in os.listdir(path))
        except OSError:
            return None
        try:
            with open(f"{path}/record.json", "rb") as file:
                data = file.read(_RECORD + 1)
            record = Record.from_json(json.loads(data), f"{path}/record.json")
            if record.id != name:
                raise KeptTestError(f"{path}/record.json cannot be read as a kept test", why=f"it is of {record.id}")
            for number, layer in enumerate(record.layers):
                if (there := os.stat(f"{path}/layer-{number}.tar.gz").st_size) != layer.size:
                    raise KeptTestError(f"kept test {name} is damaged",
                                        why=f"layer-{number}.tar.gz has {there} bytes, not {layer.size}")
            return Kept(name, path, record, size, record.created)
        except (OSError, ValueError) as error:
            return Kept(name, path, None, size, status.st_mtime, str(error))

    def find(self, text: str) -> Kept:
        """The kept test whose id begins with ``text``.

        :raises KeptTestError: when there is none, or several, or it is damaged.
        """
        found = [one for one in self.entries() if one.id.startswith(text)] if text else []
        if not found:
            raise KeptTestError(f"there is no kept test {text!r}", id=text,
                                remedy="See pytest-sandbox kept. Tests are kept by pytest --sandbox-keep=failed.")
        if len(found) > 1:
            listed = ", ".join(f"{one.id} ({one.record.nodeid if one.record else 'damaged'})" for one in found[:10])
            raise KeptTestError(f"{text!r} is the beginning of {len(found)} kept tests", id=text, why=listed,
                                remedy="Give more of the id.")
        if found[0].record is None:
            raise KeptTestError(f"kept test {found[0].id} cannot be used", id=found[0].id, why=found[0].damage,
                                remedy=f"Remove it: pytest-sandbox kept --remove {found[0].id}.")
        return found[0]

    def hold(self, kept: Kept) -> FileLock:
        """A lock that keeps it from being removed. The caller releases it.

        :raises KeptTestError: when it has gone.
        """
        try:
            held = lock(f"{kept.path}/lock", exclusive=False)
        except FileNotFoundError:
            raise KeptTestError(f"kept test {kept.id} is gone", id=kept.id, why="it was removed meanwhile") from None
        assert held is not None
        return held

    def needed_images(self) -> frozenset[str]:
        """The images that kept tests started from."""
        return frozenset(one.record.start.image_id for one in self.entries()
                         if one.record is not None and one.record.start.image_id is not None)

    # What comes and goes.

    def run(self, name: str) -> FileLock:
        """Says, as long as the lock is held, that the run ``name`` lives: what it has kept stays."""
        self.layout.sweep()  # what a killed run has left half made
        held = lock(self._run_lock(name), exclusive=False, create=True)
        assert held is not None
        return held

    def end_run(self, held: FileLock) -> None:
        """After :meth:`run`: lets go, and removes the lock's file when no other process of the run needs it."""
        held.release()
        with contextlib.suppress(FileNotFoundError, StoreError):
            if (last := lock(held.path, exclusive=True, wait=False)) is not None:
                last.remove()

    def _run_lock(self, name: str) -> str:
        return self.layout.staging(f"kept-run-{name}.lock")

    @contextlib.contextmanager
    def draft(self) -> Iterator[Draft]:
        """A place to write a kept test in; whatever is not published when the block is left is removed."""
        draft = self.begin()
        try:
            yield draft
        finally:
            draft.drop()

    def begin(self) -> Draft:
        """A place to write a kept test in. The caller publishes or drops it; a killed one's is swept by the store.

        :raises StoreError: when the disk is full or fails.
        """
        while True:
            name = os.urandom(4).hex()
            if os.path.exists(f"{self.root}/{name}"):
                continue
            path = self.layout.staging(f"kept-{name}")
            try:
                held = lock(f"{path}.lock", exclusive=True, create=True, wait=False)
                if held is None:
                    continue
                try:
                    os.mkdir(path, 0o700)
                except BaseException:
                    held.remove()
                    raise
            except FileExistsError:
                continue
            except OSError as error:
                raise store_error(error, self.layout.root) from None
            return Draft(self, name, path, held)

    def of_run(self, name: str) -> int:
        """How many tests a run has kept."""
        return sum(one.record is not None and one.record.run == name for one in self.entries())

    def make_room(self, size: int, bounds: Bounds) -> None:
        """Removes the oldest kept tests until one more of ``size`` bytes fits. Called under :meth:`_alone`.

        :raises NoRoom: when it cannot.
        """
        entries = self.entries()
        total = sum(one.size for one in entries)
        for one in sorted(entries, key=lambda one: (one.record is not None, one.created)):
            if len(entries) < bounds.tests and total + size <= bounds.bytes:
                return
            if (one.record is None or not self._lives(one.record.run)) and self._discard(one):
                entries.remove(one)
                total -= one.size
        if len(entries) >= bounds.tests or total + size > bounds.bytes:
            from ..image.progress import show_bytes

            raise NoRoom("there is no room for another kept test", why=(
                f"{len(entries)} tests of {show_bytes(total)} are kept by runs that go on, of at most {bounds.tests} "
                f"and {show_bytes(bounds.bytes)}; this one takes {show_bytes(size)}"),
                remedy="Raise the ini options sandbox_keep_count and sandbox_keep_size.")

    def _lives(self, run: str) -> bool:
        try:
            held = lock(self._run_lock(run), exclusive=True, wait=False)
        except (FileNotFoundError, OSError):
            return False
        if held is None:
            return True
        held.remove()
        return False

    def remove(self, kept: Kept) -> None:
        """:raises KeptTestError: when somebody uses it."""
        if (kept.record is not None and self._lives(kept.record.run)) or not self._discard(kept):
            raise KeptTestError(f"kept test {kept.id} cannot be removed", id=kept.id, why="it is in use",
                                remedy="Wait until that run, shell or replay has ended.")

    def _discard(self, kept: Kept) -> bool:
        try:
            held = lock(f"{kept.path}/lock", exclusive=True, wait=False)
        except OSError:
            held = None  # damaged: nobody can hold it
        else:
            if held is None:
                return False
        try:
            self.layout.discard(kept.path)
        finally:
            if held is not None:
                held.release()
        return True

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While one process makes room, no other does."""
        held = lock(f"{self.root}/.lock", exclusive=True, create=True)
        assert held is not None
        try:
            yield
        finally:
            held.release()


class Draft:
    """A kept test that is being written. Made by :meth:`Shelf.begin`, ends with :meth:`publish` or :meth:`drop`."""

    def __init__(self, shelf: Shelf, name: str, path: str, held: FileLock) -> None:
        self.shelf, self.id, self.path, self._held = shelf, name, path, held
        self.record: Record | None = None

    def publish(self, record: Record, output: str, bounds: Bounds) -> Kept:
        """Puts it on the shelf.

        :raises NoRoom: when the bounds do not allow it.
        :raises StoreError: when the disk is full or fails.
        """
        try:
            write_file(f"{self.path}/output.txt", output.encode("utf-8", "replace"))
            write_file(f"{self.path}/record.json", json.dumps(record.with_id(self.id).as_json()).encode())
            write_file(f"{self.path}/lock", b"")
            size = sum(disk_usage(f"{self.path}/{one}") for one in os.listdir(self.path))
            with self.shelf.alone():
                self.shelf.make_room(size, bounds)
                self._place()
        except OSError as error:
            raise (error if hasattr(error, "what") else store_error(error, self.shelf.layout.root)) from None
        finally:
            self.drop()
        found = self.shelf._entry(self.id)
        assert found is not None
        return found

    def _place(self) -> None:
        try:
            os.rename(self.path, f"{self.shelf.root}/{self.id}")
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            raise KeptTestError(f"the id {self.id} is taken", id=self.id, remedy="Try again.") from None
        sync_directory(self.shelf.root)

    def drop(self) -> None:
        """Removes what was not published. Does nothing the second time."""
        if self._held.fd >= 0:
            self.shelf.layout.discard(self.path)
            self._held.remove()


def ago(then: float) -> str:
    """A time in words, such as ``3 hours ago``."""
    seconds = max(0, int(time.time() - then))
    for name, length in (("weeks", 604800), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {name} ago"
    return "just now"
