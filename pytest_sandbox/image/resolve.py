"""Opening names inside a directory that the names cannot leave: ``openat2(2)``. Used by the layer applier and readers.

The one place of the image room that calls libc directly: Python has neither ``openat2`` nor ``syncfs``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator

from ..errors import SandboxUnavailable

_SYS_OPENAT2 = 437  # the same number on every architecture: new system calls share one table since Linux 5.1

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

_INSIDE = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """``struct open_how`` of ``linux/openat2.h``."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(root_fd: int, path: bytes, flags: int, mode: int = 0, resolve: int = _INSIDE) -> int:
    """Opens ``path`` as if ``root_fd`` were the root: absolute names and links start there, ``..`` ends there.

    :raises OSError: with the kernel's errno and the path.
    :raises SandboxUnavailable: on kernels before 5.6, or where a seccomp filter hides the call.
    """
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    size = ctypes.sizeof(how)
    while True:
        fd: int = _libc.syscall(_SYS_OPENAT2, root_fd, path, ctypes.byref(how), size)
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        if number in (errno.EAGAIN, errno.EINTR):
            continue  # EAGAIN: something on the machine was renamed while ".." was resolved; the page says to try again
        if number in (errno.ENOSYS, errno.EPERM):
            raise SandboxUnavailable(
                "images cannot be unpacked here", feature="openat2", errno=number,
                why="the kernel, or a seccomp filter around us, refuses openat2()",
                remedy="Use Linux 5.6 or newer, or allow openat2 in the outer filter.")
        raise OSError(number, os.strerror(number), path)


def open_directory(root_fd: int, path: bytes) -> int:
    """A path descriptor of the directory ``path`` inside ``root_fd``; links on the way are followed inside it."""
    return openat2(root_fd, path or b".", os.O_PATH | os.O_DIRECTORY)


def syncfs(fd: int) -> None:
    """Writes everything of ``fd``'s file system to disk and reports what could not be written (Linux 5.8 and newer)."""
    if _libc.syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def entry_path(dir_fd: int, name: bytes) -> bytes:
    """A name for one entry of an open directory, for the calls that take no directory descriptor (the xattr family)."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def remove_tree(dir_fd: int, name: bytes) -> None:
    """Removes ``name`` and all that is below it, following nothing, without recursion; absent is fine.

    Directories that their own modes would protect are made writable first: the caller owns them.
    """
    # One descriptor, and ".." on the way back: a layer may be deeper than we may have files open.
    names = [name]
    here = os.dup(dir_fd)
    try:
        while names:
            if _unlink(here, names[-1]):
                names.pop()
                if names:
                    here = _step(here, b"..")
                continue
            if (inner := _open_to_empty(here, names[-1])) is None:
                continue
            below = _empty_shallow(inner)
            if below is None:
                os.close(inner)
            else:
                os.close(here)
                here = inner
                names.append(below)
    finally:
        os.close(here)


def _step(fd: int, name: bytes) -> int:
    """Trades a directory's descriptor for that of ``name`` in it."""
    inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    os.close(fd)
    return inner


def _unlink(parent: int, leaf: bytes) -> bool:
    """Whether ``leaf`` is gone; False for a directory that is not empty."""
    try:
        os.unlink(leaf, dir_fd=parent)
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM, errno.EACCES):
            raise
        if not stat.S_ISDIR(os.lstat(leaf, dir_fd=parent).st_mode):
            raise
        try:
            os.rmdir(leaf, dir_fd=parent)
        except FileNotFoundError:
            return True
        except OSError as inner:
            if inner.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
    return True


def _open_to_empty(parent: int, leaf: bytes) -> int | None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(leaf, flags, dir_fd=parent)
    except FileNotFoundError:
        return None
    except PermissionError:
        path_fd = os.open(leaf, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:  # by descriptor: a name could have become a link in between
            os.chmod(b"/proc/self/fd/%d" % path_fd, 0o700)
        finally:
            os.close(path_fd)
        fd = os.open(leaf, flags, dir_fd=parent)
    if os.fstat(fd).st_mode & 0o300 != 0o300:
        os.fchmod(fd, 0o700)
    return fd


def _empty_shallow(fd: int) -> bytes | None:
    """Unlinks what is no directory in ``fd``; the first directory that is not empty, else None."""
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                if not _unlink(fd, name):
                    return name
            else:
                try:
                    os.unlink(name, dir_fd=fd)
                except FileNotFoundError:
                    continue
    return None


@contextlib.contextmanager
def opened(fd: int, status: os.stat_result, flags: int, need: int) -> Iterator[int]:
    """Opens what an ``O_PATH`` descriptor stands for; where its owner, who we are, may not, it is let for that long.

    :param need: the permissions that reading it takes.
    """
    path = f"/proc/self/fd/{fd}"
    mode = stat.S_IMODE(status.st_mode)
    lent = os.geteuid() != 0 and status.st_uid == os.geteuid() and mode & need != need
    if lent:
        os.chmod(path, mode | need)
    try:
        inner = os.open(path, flags | os.O_CLOEXEC)
        try:
            yield inner
        finally:
            os.close(inner)
    finally:
        if lent:
            os.chmod(path, mode)
