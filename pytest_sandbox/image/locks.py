"""Locks of the store: ``flock(2)`` on files inside it. Held by the kernel, gone when the holder dies, however it dies.

filelock, which guards ``sandbox.lock``, has no shared mode on ``flock`` and does not notice that a locked file was
replaced, and with those two written here nothing of the store would be left for it to do (docs/design/0012).
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from types import TracebackType

from ..errors import StoreError


class FileLock:
    """One lock on one file. Made by :func:`lock`, ends with :meth:`release` or with the process.

    Forked children hold it too until they end or execute something: its descriptor is close-on-exec.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path, self.fd = path, fd

    def release(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def remove(self) -> None:
        """Removes the file, for good and while it is still locked: who waits for it notices and starts anew."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass
        self.release()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.release()


def lock(path: str, *, exclusive: bool, create: bool = False, wait: bool = True,
         on_wait: Callable[[], None] | None = None, cancelled: Callable[[], bool] | None = None) -> FileLock | None:
    """Locks the file that ``path`` names, and makes sure that it still names it afterwards.

    Waiting is polled: a thread that hangs in ``flock`` could not be cancelled.

    :param create: make the file when it is absent; otherwise absence is an error.
    :param wait: False returns None when somebody holds a lock that excludes this one.
    :param on_wait: called before each wait, which is a fifth of a second at most.
    :param cancelled: looked at while waiting; None is returned when it says so.
    :raises FileNotFoundError: when there is no such file, and ``create`` was not given.
    :raises StoreError: when the file system has no locks.
    """
    # a shared lock needs no more than reading: what is in a store on a read-only disk can be used
    flags = os.O_RDWR | os.O_CREAT if create else os.O_RDWR if exclusive else os.O_RDONLY
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW
    how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    pause = 0.005
    while True:
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise StoreError(f"{path!r} cannot be locked", path=path, errno=error.errno, why=error.strerror,
                                 remedy="Set PYTEST_SANDBOX_CACHE to a directory on a local disk.") from None
            if not wait or (cancelled is not None and cancelled()):
                return None
            if on_wait is not None:
                on_wait()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.2)
            continue
        except BaseException:
            os.close(fd)
            raise
        try:
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                return FileLock(path, fd)
        except FileNotFoundError:
            pass
        os.close(fd)  # removed or replaced between open and flock
