"""A sandbox's files, seen from outside: ``SandboxPath``. ``copying`` and ``layerdiff`` have the rest of it.

Everything goes through a descriptor of the sandbox's root and openat2(2) with ``RESOLVE_IN_ROOT``: whatever links,
FIFOs or devices the code inside has made, nothing here is led out, blocked or made to read a device.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from .runtime import syscalls as sc
from .runtime.shift import acting_as, seen_inside

if TYPE_CHECKING:
    from .sandbox import Sandbox

_IN_ROOT = sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS
_FLAGS = {"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC, "a": os.O_WRONLY | os.O_CREAT | os.O_APPEND,
          "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL, "r+": os.O_RDWR}


@contextmanager
def room(sandbox: Sandbox, path: object) -> Iterator[None]:
    """Says, when there is no space left to write ``path``, which option is about that."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        from .limits import disk_error, events, usage
        running = sandbox._ready()
        met = events(running)
        raise disk_error(sandbox.spec, met, usage(running).disk, path=str(path)) from None


class SandboxPath:
    """A path in a sandbox's own tree, with the methods of :class:`pathlib.Path` that make sense from outside.

    Absolute; a relative one starts at ``/``. Made by ``Sandbox.path``, usable for as long as the sandbox runs.
    """

    __slots__ = ("_path", "_sandbox")

    def __init__(self, sandbox: Sandbox, path: str | os.PathLike[str]) -> None:
        self._sandbox = sandbox
        self._path = PurePosixPath("/", os.fspath(path))

    def _with(self, path: str | os.PathLike[str]) -> SandboxPath:
        return SandboxPath(self._sandbox, path)

    # What needs no look at the files.

    def __truediv__(self, other: str | os.PathLike[str]) -> SandboxPath:
        return self._with(self._path / other)

    def __str__(self) -> str:
        return str(self._path)

    def __repr__(self) -> str:
        return f"SandboxPath({str(self._path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SandboxPath) and (self._sandbox, self._path) == (other._sandbox, other._path)

    def __hash__(self) -> int:
        return hash(self._path)

    def __lt__(self, other: SandboxPath) -> bool:
        return self._path < other._path

    @property
    def name(self) -> str:
        """The last component."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """The last component's suffix."""
        return self._path.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The components."""
        return self._path.parts

    @property
    def parent(self) -> SandboxPath:
        """The directory that holds it."""
        return self._with(self._path.parent)

    def joinpath(self, *others: str | os.PathLike[str]) -> SandboxPath:
        """As ``/``, several at once."""
        return self._with(self._path.joinpath(*others))

    def with_name(self, name: str) -> SandboxPath:
        """The same with another last component."""
        return self._with(self._path.with_name(name))

    # Looking.

    def _open(self, flags: int, mode: int = 0) -> int:
        try:
            return sc.openat2(self._sandbox._root_fd, str(self._path), flags, mode, _IN_ROOT)
        except OSError as error:
            error.filename = str(self._path)
            raise

    @contextmanager
    def _in_parent(self) -> Iterator[tuple[int, str]]:
        """A descriptor of the parent directory, links resolved inside, and the name in it."""
        name = self._path.name
        if name in ("", ".."):
            raise OSError(22, "not a name that can be made or removed", str(self._path))
        fd = self.parent._open(os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd, name
        except OSError as error:
            error.filename = str(self._path)
            raise
        finally:
            os.close(fd)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """stat(2). Owner and group are as they are inside."""
        fd = self._open(os.O_PATH | (0 if follow_symlinks else os.O_NOFOLLOW))
        try:
            return seen_inside(os.fstat(fd), self._sandbox._ready().plan)
        finally:
            os.close(fd)

    def lstat(self) -> os.stat_result:
        """lstat(2)."""
        return self.stat(follow_symlinks=False)

    def _mode(self, follow: bool = True) -> int:
        try:
            return self.stat(follow_symlinks=follow).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except OSError as error:
            if error.errno == 40:  # ELOOP
                return 0
            raise

    def exists(self) -> bool:
        """Whether it exists, links followed inside."""
        return self._mode() != 0

    def is_file(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self._mode())

    def is_dir(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self._mode())

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self._mode(follow=False))

    def readlink(self) -> str:
        """What a symbolic link says."""
        with self._in_parent() as (fd, name):
            return os.readlink(name, dir_fd=fd)

    def iterdir(self) -> Iterator[SandboxPath]:
        """The directory's entries, sorted."""
        fd = self._open(os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(os.listdir(fd))
        finally:
            os.close(fd)
        for name in names:
            yield self / name

    def rglob(self, pattern: str) -> Iterator[SandboxPath]:
        """What lies below and matches, links not followed."""
        pending = [self]
        while pending:
            folder = pending.pop()
            try:
                entries = list(folder.iterdir())
            except (FileNotFoundError, NotADirectoryError):
                if folder is self:
                    raise
                continue  # it went meanwhile
            for entry in entries:
                if entry._path.match(pattern):
                    yield entry
            pending += [entry for entry in reversed(entries) if stat.S_ISDIR(entry._mode(follow=False))]

    def glob(self, pattern: str) -> Iterator[SandboxPath]:
        """The directory's own entries whose names match."""
        return (entry for entry in self.iterdir() if entry._path.match(pattern))

    # Content.

    def open(self, mode: str = "r", encoding: str | None = None, errors: str | None = None,
             newline: str | None = None) -> IO[Any]:
        """A file object, for regular files only.

        :raises OSError: also when it is a device, a FIFO or a socket.
        """
        kind = mode.replace("b", "").replace("t", "")
        if kind not in _FLAGS:
            raise ValueError(f"mode {mode!r} cannot be used on a sandbox's file: use one of {', '.join(_FLAGS)}")
        flags = _FLAGS[kind]
        before = self._mode(follow=kind != "x")
        fd = -1
        if not before or stat.S_ISREG(before) or kind == "x":
            with self._making() if flags & os.O_CREAT else nullcontext():
                fd = self._open(flags & ~os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY, 0o644 if flags & os.O_CREAT else 0)
        if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode):
            if fd >= 0:
                os.close(fd)
            code = 21 if stat.S_ISDIR(before) else 22
            raise OSError(code, "not a regular file", str(self._path))
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
        if not before:
            self._own(fd)
        os.set_blocking(fd, True)
        if "b" in mode:
            return open(fd, mode)
        return open(fd, mode, encoding=encoding or "utf-8", errors=errors, newline=newline)

    def _own(self, fd: int) -> None:
        running = self._sandbox._ready()
        if running.host.privileged and self._sandbox.ids != (0, 0):
            uid, gid = self._sandbox.ids
            os.chown(fd, running.plan.base + uid, running.plan.base + gid)

    def _making(self) -> AbstractContextManager[None]:
        """What is made here belongs to the sandbox's root. Outside, that may be another id than ours."""
        base = self._sandbox._ready().plan.base
        return acting_as(base) if base else nullcontext()

    def read_bytes(self) -> bytes:
        """The whole content."""
        with self.open("rb") as file:
            return bytes(file.read())

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The whole content as text (UTF-8 unless told otherwise)."""
        with self.open("r", encoding, errors) as file:
            return str(file.read())

    def write_bytes(self, data: bytes) -> int:
        """Replaces the content, or makes the file.

        :raises DiskLimitExceeded: an ENOSPC, when the sandbox's writable layer is full.
        """
        with room(self._sandbox, self), self.open("wb") as file:
            return int(file.write(data))

    def write_text(self, data: str, encoding: str | None = None, errors: str | None = None) -> int:
        """Replaces the content, or makes the file.

        :raises DiskLimitExceeded: an ENOSPC, when the sandbox's writable layer is full.
        """
        with room(self._sandbox, self), self.open("w", encoding, errors) as file:
            return int(file.write(data))

    # Changing.

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Makes a directory."""
        if parents and not self.parent.exists():
            self.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._in_parent() as (fd, name):
                with self._making():
                    os.mkdir(name, mode, dir_fd=fd)
                made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                try:
                    self._own(made)
                finally:
                    os.close(made)
        except FileExistsError:
            if not exist_ok or not self.is_dir():
                raise

    def touch(self, exist_ok: bool = True) -> None:
        """Makes an empty file."""
        self.open("a" if exist_ok else "x").close()

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes a file or link."""
        try:
            with self._in_parent() as (fd, name):
                os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """Removes an empty directory."""
        with self._in_parent() as (fd, name):
            os.rmdir(name, dir_fd=fd)

    def chmod(self, mode: int) -> None:
        """Changes the mode, of a link's target."""
        fd = self._open(os.O_PATH)
        try:
            os.chmod(f"/proc/self/fd/{fd}", mode)
        finally:
            os.close(fd)

    def symlink_to(self, target: str | os.PathLike[str]) -> None:
        """Makes a symbolic link; it is resolved inside."""
        with self._in_parent() as (fd, name), self._making():
            os.symlink(os.fspath(target), name, dir_fd=fd)

    def rename(self, target: str | os.PathLike[str] | SandboxPath) -> SandboxPath:
        """Renames it; an existing file is replaced."""
        to = target if isinstance(target, SandboxPath) else self._with(target)
        with self._in_parent() as (fd, name), to._in_parent() as (other, new):
            os.rename(name, new, src_dir_fd=fd, dst_dir_fd=other)
        return to
