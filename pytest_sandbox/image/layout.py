"""Where things lie in the layer store, and how files get into it: whole or not at all. For the store's modules.

::

    <cache>/v1/                    0700, ours
      layers/<key>/                a finished layer, never written again
        fs/  tree.mtree.gz  owners.json.gz  meta.json  lock
      blobs/sha256/<hex>           verified compressed layers, as the registry has them
      images/<hex>.json            manifest, configuration and layer keys of one image, by image id
      names/<hex>.json             what a reference meant when it was resolved
      builds/<key>.json            what a step of a build has made; build-caches/ are its cache mounts
      kept/<id>/                   a kept test (see ``keeping.shelf``)
      staging/<name>[.lock]        being made; without a holder of its lock it is rubbish
      trash/<random>               being deleted

A layer's key is its diff id, unless its directory depends on the layers below it (see :mod:`.unpack`).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import StoreError
from .locks import lock
from .resolve import remove_tree

_ROOMS = ("layers", "blobs", "blobs/sha256", "blobs/sha512", "images", "names", "builds", "build-caches", "kept",
          "staging", "trash")


def default_root() -> Path:
    """``PYTEST_SANDBOX_CACHE``, else the user's cache directory (XDG base directory specification).

    :raises StoreError: when there is neither.
    """
    given = os.environ.get("PYTEST_SANDBOX_CACHE")
    if given:
        return Path(given).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):
        try:
            base = str(Path.home() / ".cache")
        except RuntimeError:
            raise StoreError("there is no place for the image store", why="this user has no home directory",
                             remedy="Set PYTEST_SANDBOX_CACHE to a directory.") from None
    return Path(base) / "pytest-sandbox"


class Layout:
    """The directories of one store. Holds nothing open.

    :raises StoreError: when the directory cannot be made, or belongs to somebody else.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.root = str((cache or default_root()) / "v1")
        try:
            Path(self.root).mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.stat(self.root)
            if status.st_uid != os.geteuid():
                raise StoreError(
                    f"the image store {self.root!r} cannot be used", path=self.root, errno=errno.EPERM,
                    why=f"it belongs to user {status.st_uid}, we are user {os.geteuid()}",
                    remedy="Set PYTEST_SANDBOX_CACHE to a directory of your own.")
            if status.st_mode & 0o077:  # layers hold set-id programs: nobody else may reach them (CVE-2021-41103)
                os.chmod(self.root, 0o700)
            for room in _ROOMS:
                Path(self.root, room).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise store_error(error, self.root) from None

    def layer(self, key: str) -> str:
        return f"{self.root}/layers/{key}"

    def blob(self, digest: str) -> str:
        algorithm, _, value = digest.partition(":")
        return f"{self.root}/blobs/{algorithm}/{value}"

    def image(self, image_id: str) -> str:
        return f"{self.root}/images/{image_id.partition(':')[2]}.json"

    def name(self, key: str) -> str:
        return f"{self.root}/names/{hashlib.sha256(key.encode()).hexdigest()}.json"

    def staging(self, name: str) -> str:
        return f"{self.root}/staging/{name}"

    def keys(self, room: str) -> list[str]:
        return sorted(one for one in os.listdir(f"{self.root}/{room}") if not one.startswith("."))

    def read_record(self, path: str) -> dict[str, Any] | None:
        """A record that :meth:`write_record` wrote; None when it is absent, or not readable as one."""
        try:
            with open(path, "rb") as file:
                record = json.load(file)
        except (FileNotFoundError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def write_record(self, path: str, record: dict[str, Any]) -> None:
        """Puts a record at ``path``: synced, then renamed, so that a power cut leaves the old one or the new one."""
        data = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        while True:
            temporary = self.staging(f"{os.urandom(8).hex()}.record")
            fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)  # tells sweepers that its writer lives
                write_all(fd, data)
                os.fsync(fd)
                os.rename(temporary, path)
                break
            except FileNotFoundError:
                continue  # a sweeper came between open and flock
            except BaseException:
                try:
                    os.unlink(temporary)
                except FileNotFoundError:
                    pass
                raise
            finally:
                os.close(fd)
        sync_directory(os.path.dirname(path))

    def discard(self, path: str) -> None:
        """Takes a directory out of sight at once, and deletes it then. Works on a full disk."""
        trash = f"{self.root}/trash/{os.urandom(8).hex()}"
        try:
            os.rename(path, trash)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            try:  # without its lock file it is no layer any more
                os.unlink(f"{path}/lock")
            except FileNotFoundError:
                pass
            trash = path
        _delete(trash)

    def sweep(self, *, partials: bool = False) -> int:
        """Deletes what dead processes left in staging and trash; returns how many things.

        :param partials: also the beginnings of downloads, which a later pull would go on with.
        """
        swept = 0
        for name in self.keys("staging"):
            path = self.staging(name)
            if name.endswith(".record"):
                swept += _sweep_file(path)
            elif name.endswith(".lock"):
                swept += self._sweep_locked(path, partials=partials)
            elif not os.path.exists(f"{path.removesuffix('.partial')}.lock"):
                # Its lock is made before and removed after it: only an interrupted sweep leaves it alone like this.
                held = lock(f"{path.removesuffix('.partial')}.lock", exclusive=True, create=True, wait=False)
                if held is not None:
                    held.release()
                    swept += self._sweep_locked(held.path, partials=partials)
        return swept + self._empty_trash()

    def is_nearly_full(self) -> bool:
        """Whether the store's disk has so little room that what dead processes left may be in the way."""
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize < max(1 << 30, disk.f_blocks * disk.f_frsize // 20)

    def leftovers(self) -> list[tuple[str, int]]:
        """What :meth:`sweep` would delete now, and how many bytes each takes on disk."""
        found = []
        for name in self.keys("staging"):
            path = self.staging(name)
            guard = path if name.endswith((".record", ".lock")) else f"{path.removesuffix('.partial')}.lock"
            base = path.removesuffix(".lock")
            if (name.endswith(".lock") and not os.path.lexists(base)) or name.endswith(".partial") or os.path.exists(
                    f"{base}.partial"):
                continue  # a lock that nobody needs, which takes no room; what a later download goes on with
            try:
                held = lock(guard, exclusive=True, wait=False)
            except FileNotFoundError:
                held = None
                if os.path.lexists(path):
                    found.append((path, tree_usage(path)))
            if held is not None:
                held.release()
                if not name.endswith(".lock"):
                    found.append((path, tree_usage(path)))
        return found + [(f"{self.root}/trash/{name}", tree_usage(f"{self.root}/trash/{name}"))
                        for name in self.keys("trash")]

    def _sweep_locked(self, lock_path: str, *, partials: bool) -> int:
        try:
            held = lock(lock_path, exclusive=True, wait=False)
        except FileNotFoundError:
            return 0
        if held is None:
            return 0
        base = lock_path.removesuffix(".lock")
        if os.path.exists(f"{base}.partial") and not partials:
            held.release()
            return 0
        try:
            os.unlink(f"{base}.partial")
        except FileNotFoundError:
            pass
        self.discard(base)
        held.remove()
        return 1

    def _empty_trash(self) -> int:
        names = self.keys("trash")
        if names:
            try:
                held = lock(f"{self.root}/trash/.lock", exclusive=True, create=True, wait=False)
            except OSError:
                held = None  # a full disk has no room for a lock; two deleters do no harm either
            for name in names:
                _delete(f"{self.root}/trash/{name}")
            if held is not None:
                held.release()
        return len(names)


def _sweep_file(path: str) -> int:
    try:
        held = lock(path, exclusive=True, wait=False)
    except FileNotFoundError:
        return 0
    if held is None:
        return 0
    held.remove()
    return 1


def _delete(path: str) -> None:
    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        remove_tree(parent, os.fsencode(os.path.basename(path)))
    except FileNotFoundError:
        pass  # somebody else deletes it too
    finally:
        os.close(parent)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def write_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def store_error(error: OSError, path: str) -> StoreError:
    """The store's own error for one of the kernel's, with what to do about it."""
    if isinstance(error, StoreError):
        return error
    remedies = {
        errno.ENOSPC: "Free some space (pytest-sandbox prune --all removes every image that is not in use), "
                      "or set PYTEST_SANDBOX_CACHE to another disk.",
        errno.EDQUOT: "Free some of your quota (pytest-sandbox prune), or set PYTEST_SANDBOX_CACHE to another disk.",
        errno.EROFS: "Set PYTEST_SANDBOX_CACHE to a directory that can be written to.",
        errno.EACCES: "Set PYTEST_SANDBOX_CACHE to a directory of your own.",
        errno.EMFILE: "Raise the limit of open files (ulimit -n).",
    }
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path
    return StoreError(f"the image store {path!r} cannot be used", path=where, errno=error.errno,
                      why=error.strerror or str(error),
                      remedy=remedies.get(error.errno or 0, "Set PYTEST_SANDBOX_CACHE to another directory."))


def tree_usage(path: str) -> int:
    """Bytes on disk of a file, or of all files below a directory."""
    if not os.path.isdir(path) or os.path.islink(path):
        return disk_usage(path) if not os.path.islink(path) else 0
    return sum(disk_usage(f"{folder}/{name}") for folder, _, names in os.walk(path) for name in names
               if not os.path.islink(f"{folder}/{name}"))


def disk_usage(path: str) -> int:
    """Bytes on disk of one file."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) else 0
