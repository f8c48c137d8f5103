"""``Sandbox.copy_in`` and ``copy_out``: files and trees between the host and a sandbox.

Inside, everything goes through :class:`~pytest_sandbox.files.SandboxPath` or descriptors that it opened. On the host,
no link is followed that an earlier copy could have put there.
"""

from __future__ import annotations

import errno
import os
import stat
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .files import SandboxPath


def copy_in(src: str, to: SandboxPath) -> None:
    """See ``Sandbox.copy_in``."""
    if to.is_dir():
        to = to / os.path.basename(os.path.abspath(src))
    _in(os.path.realpath(src), to)


def _in(src: str, to: SandboxPath) -> None:
    look = os.lstat(src)
    if stat.S_ISLNK(look.st_mode):
        to.unlink(missing_ok=True)
        to.symlink_to(os.readlink(src))
    elif stat.S_ISDIR(look.st_mode):
        to.mkdir(exist_ok=True)
        for name in sorted(os.listdir(src)):
            _in(os.path.join(src, name), to / name)
        to.chmod(stat.S_IMODE(look.st_mode))
    elif stat.S_ISREG(look.st_mode):
        _file_in(src, to)
    else:
        raise OSError(22, "neither a file nor a directory", src)


def _file_in(src: str, there: SandboxPath) -> None:
    with open(src, "rb") as origin, there.open("wb") as copy:
        look = os.fstat(origin.fileno())
        _pump(origin.fileno(), copy.fileno())
        os.fchmod(copy.fileno(), stat.S_IMODE(look.st_mode))
        os.utime(copy.fileno(), ns=(look.st_atime_ns, look.st_mtime_ns))


def _pump(source: int, target: int) -> None:
    """Copies content. Holes stay holes: the size that a file claims inside is no measure of what it holds."""
    end = os.fstat(source).st_size
    at = 0
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            raise
        hole = os.lseek(source, at, os.SEEK_HOLE)
        os.lseek(source, at, os.SEEK_SET)
        os.lseek(target, at, os.SEEK_SET)
        while at < hole:
            chunk = os.read(source, min(1 << 20, hole - at))
            if not chunk:
                break
            at += len(chunk)
            view = memoryview(chunk)
            while view:
                view = view[os.write(target, view):]
        else:
            continue
        break  # it shrank meanwhile
    os.ftruncate(target, end)


def copy_out(src: SandboxPath, dst: str) -> None:
    """See ``Sandbox.copy_out``."""
    if os.path.isdir(dst):
        dst = os.path.join(dst, src.name)
    left_out: list[str] = []
    fd = src._open(os.O_PATH)
    pending: list[tuple[str, tuple[str, ...]]] = []
    try:
        _out(fd, dst, str(src), left_out, (), pending)
        while pending:
            path, parts = pending.pop()
            inner = _down(fd, parts)
            if inner is not None:
                try:
                    _out(inner, path, "/".join((str(src), *parts)), left_out, parts, pending)
                finally:
                    os.close(inner)
    finally:
        os.close(fd)
    if left_out:
        warnings.warn(f"not copied out of the sandbox, being neither files nor directories: {', '.join(left_out)}",
                      stacklevel=3)


def _down(fd: int, parts: tuple[str, ...]) -> int | None:
    """Follows names from a directory, no link among them; None where one has gone meanwhile."""
    here = os.dup(fd)
    for part in parts:
        try:
            following = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
        except (FileNotFoundError, NotADirectoryError):
            return None
        finally:
            os.close(here)
        here = following
    return here


def _out(fd: int, dst: str, name: str, left_out: list[str], parts: tuple[str, ...],
         pending: list[tuple[str, tuple[str, ...]]]) -> None:
    """Copies what the O_PATH descriptor ``fd`` is; what a directory holds is put on ``pending``.

    A link in the target's place on the host is not followed either.
    """
    look = os.fstat(fd)
    if stat.S_ISLNK(look.st_mode):
        if os.path.islink(dst):
            os.unlink(dst)
        os.symlink(os.readlink("", dir_fd=fd), dst)
    elif stat.S_ISREG(look.st_mode):
        # Not blocking: whoever holds a lease on the file inside would otherwise make us wait for it.
        source = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            target = os.open(dst, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                _pump(source, target)
                os.fchmod(target, stat.S_IMODE(look.st_mode) & 0o777)  # never a set-id file on the host
                os.utime(target, ns=(look.st_atime_ns, look.st_mtime_ns))
            finally:
                os.close(target)
        finally:
            os.close(source)
    elif stat.S_ISDIR(look.st_mode):
        try:
            os.mkdir(dst, 0o700)
        except FileExistsError:
            if os.path.islink(dst):  # copied out earlier, perhaps: it was the sandbox that said where it leads
                raise OSError(errno.ENOTDIR, "a symbolic link stands where a directory is to be made", dst) from None
        listing = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = os.listdir(listing)
        finally:
            os.close(listing)
        pending += [(os.path.join(dst, one), (*parts, one)) for one in sorted(names, reverse=True)]
        os.chmod(dst, stat.S_IMODE(look.st_mode) & 0o777 | 0o700)
    else:
        left_out.append(name)
