"""The layer applier: one layer archive into one directory, in the form that overlayfs reads. Called by the store.

What a layer can do is bounded by how names are opened: every parent by ``openat2`` inside the layer's own root, every
last part by ``O_EXCL``, ``O_NOFOLLOW`` or a call that follows nothing. Semantics follow containerd's and umoci's: names
and links are read as if the layer's root were ``/``.

A layer is *bound* when it cannot be laid down alone: it puts a file below a directory that it does not have itself, or
links to a file of a lower layer. Its directory then depends on the layers below, and the store keys it accordingly.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat

from ..errors import ImageCorrupt, LayerRejected
from .abilities import Abilities
from .compression import LayerStream, Limits
from .copyup import copy_up
from .inside import (
    WHITEOUT_PREFIX,
    Applied,
    LayerRoot,
    NeedsLower,
    NothingThere,
    is_from_below,
    is_opaque,
    mark_opaque,
)
from .lower import LowerView, is_whiteout
from .resolve import entry_path, remove_tree
from .tar import Entry, TarReader, show

_OPAQUE = b".wh..wh..opq"
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")
_NEW = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_NOTES = 100
_NOBODY = 0xFFFFFFFF  # (uid_t)-1, which chown takes for "leave it"


def apply_layer(stream: LayerStream, root: str, *, abilities: Abilities, limits: Limits, reference: str,
                lower: LowerView | None) -> Applied:
    """Unpacks ``stream`` into the empty directory ``root``.

    :param lower: the layers below; None when they are not there yet.
    :raises NeedsLower: when they are needed.
    :raises LayerRejected: for a layer that is hostile or beyond ``limits``; the caller removes ``root``.
    :raises ImageCorrupt: for broken data.
    :raises OSError: when the disk is full or fails.
    """
    reader = TarReader(stream, limits=limits, reference=reference)
    with _Applier(stream, reader, root, abilities, limits, lower) as applier:
        for entry in reader:
            applier.put(entry)
        return applier.applied


class _Applier:
    """One unpacking. Holds the root's descriptor and some of recently used directories."""

    def __init__(self, stream: LayerStream, reader: TarReader, root: str, abilities: Abilities, limits: Limits,
                 lower: LowerView | None) -> None:
        self._stream, self._reader, self._abilities, self._limits = stream, reader, abilities, limits
        self.applied = Applied()
        self._owners: set[tuple[int, int]] = set()  # who can own files here
        self._names = LayerRoot(root, reader, abilities, lower, self.applied)
        self._put = {"0": self._file, "1": self._hard_link, "2": self._symlink, "3": self._device, "4": self._device,
                     "5": self._directory, "6": self._fifo}

    def __enter__(self) -> _Applier:
        return self

    def __exit__(self, *_: object) -> None:
        self._names.close()

    def put(self, entry: Entry) -> None:
        """Lays one entry down."""
        parts = self._names.parts(entry.name)
        if not (0 <= entry.uid < _NOBODY and 0 <= entry.gid < _NOBODY):
            raise self._reader.reject("header", f"its owner {entry.uid}:{entry.gid} is no user")
        self.applied.entries += 1
        try:
            if self._abilities.owners and (entry.uid, entry.gid) not in self._owners:
                self._try_owner(entry)
            if not parts:
                if entry.kind != "5":
                    raise self._reader.reject("name", "it would replace the root directory")
                self._finish_directory(os.dup(self._names.fd), entry)
                self.applied.root_given = True
                return
            leaf = parts[-1]
            if leaf.startswith(WHITEOUT_PREFIX):
                self._stream.skip(entry.stored)
                try:
                    self._whiteout(self._names.parent(parts[:-1], to_remove=True), leaf)
                except NothingThere:
                    pass
            else:
                self._put[entry.kind](self._names.parent(parts[:-1]), leaf, entry)
        except OSError as error:
            if isinstance(error, LayerRejected | ImageCorrupt):
                raise
            raise self._translate(error) from error

    def _try_owner(self, entry: Entry) -> None:
        """Whether this owner exists here at all: in a user namespace, as of a rootless container, not all ids do."""
        try:
            os.fchown(self._names.fd, entry.uid, entry.gid)  # which gets its own owner in the end
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            raise self._reader.reject(
                "owner", f"its owner {entry.uid}:{entry.gid} has no id in the user namespace that we run in",
                "Give the container around us more ids, or run as an ordinary user.") from None
        self._owners.add((entry.uid, entry.gid))

    def _translate(self, error: OSError) -> Exception:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EXDEV, errno.ENOTDIR):
            return self._reader.reject("name", f"its name cannot be used here: {os.strerror(error.errno)}")
        if error.errno in (errno.EFBIG, errno.EMLINK):
            return self._reader.reject("limit", f"the file system refuses it: {os.strerror(error.errno)}")
        return error

    # Kinds of entries. Each makes a fresh thing; _clear takes an older one out of its way.

    def _clear(self, parent: int, leaf: bytes) -> bool:
        """Removes what stands at ``leaf``. Whether it hid what the lower layers have there."""
        status = os.lstat(leaf, dir_fd=parent)
        self.applied.copied.get(os.fstat(parent).st_ino, set()).discard(leaf)
        again = os.dup(parent)
        try:
            self._names.forget_parents()
            remove_tree(again, leaf)
        finally:
            os.close(again)
        return not stat.S_ISDIR(status.st_mode)

    def _fresh(self, parent: int, leaf: bytes) -> int:
        """A parent's descriptor with nothing at ``leaf``; the caller closes it."""
        fd = os.dup(parent)
        try:
            self._clear(fd, leaf)
        except FileNotFoundError:
            pass
        return fd

    def _file(self, parent: int, leaf: bytes, entry: Entry) -> None:
        # attributes in user.* take the permission to write, so then the mode comes last
        mode = entry.mode & 0o777 if not entry.xattrs else 0o600
        try:
            fd = os.open(leaf, _NEW, mode, dir_fd=parent)
        except FileExistsError:
            parent = self._fresh(parent, leaf)
            try:
                fd = os.open(leaf, _NEW, mode, dir_fd=parent)
            finally:
                os.close(parent)
        try:
            digest = self._sparse(fd, entry) if entry.pieces is not None else self._content(fd, entry.stored)
            made = os.fstat(fd)
            self.applied.begin(made.st_ino)
            self.applied.hashes[made.st_ino] = digest
            self._remember(made.st_ino, entry)
            # What is right already is left alone: on a disk each of these is an entry in its journal.
            moved = self._abilities.owners and (made.st_uid, made.st_gid) != (entry.uid, entry.gid)
            if moved:
                os.fchown(fd, entry.uid, entry.gid)
            if entry.xattrs:
                self._set_xattrs(fd, entry)  # after the owner: chown takes file capabilities away
            if moved or entry.xattrs or made.st_mode & 0o7777 != entry.mode:
                os.fchmod(fd, entry.mode)  # after the owner: chown takes set-id bits away
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _content(self, fd: int, left: int) -> bytes:
        digest = hashlib.sha256()
        while left:
            piece = self._stream.take(left)
            if not piece:
                raise self._reader.reject("header", "the archive ends in the middle of it")
            digest.update(piece)
            left -= len(piece)
            while piece:
                piece = piece[os.write(fd, piece):]
        return digest.digest()

    def _sparse(self, fd: int, entry: Entry) -> bytes:
        for offset, length in entry.pieces or ():
            os.lseek(fd, offset, os.SEEK_SET)
            self._content(fd, length)
        os.ftruncate(fd, entry.size)
        return b""

    def _directory(self, parent: int, leaf: bytes, entry: Entry) -> None:
        new = True
        try:
            os.mkdir(leaf, 0o700, dir_fd=parent)
        except FileExistsError:
            new = not stat.S_ISDIR(os.lstat(leaf, dir_fd=parent).st_mode)
            if new:
                parent = os.dup(parent)
                try:
                    opaque = self._clear(parent, leaf)
                    os.mkdir(leaf, 0o700, dir_fd=parent)
                    self._finish_directory(os.open(leaf, _DIR, dir_fd=parent), entry, new=True, opaque=opaque)
                finally:
                    os.close(parent)
                return
        self._finish_directory(os.open(leaf, _DIR, dir_fd=parent), entry, new=new)

    def _finish_directory(self, fd: int, entry: Entry, *, new: bool = False, opaque: bool = False) -> None:
        try:
            number = os.fstat(fd).st_ino
            if new:
                self.applied.begin(number)
            self.applied.late[number] = (entry.mode, entry.uid, entry.gid, entry.mtime)
            self.applied.implicit.discard(number)
            if entry.xattrs:
                self._set_xattrs(fd, entry)
            if opaque:
                mark_opaque(self._abilities, fd)
        finally:
            os.close(fd)

    def _symlink(self, parent: int, leaf: bytes, entry: Entry) -> None:
        if not entry.link or b"\0" in entry.link:
            raise self._reader.reject("link", "it is a symbolic link to nothing")
        parent = self._fresh(parent, leaf)
        try:
            os.symlink(entry.link, leaf, dir_fd=parent)
            self._finish_named(parent, leaf, entry)
        finally:
            os.close(parent)

    def _remember(self, number: int, entry: Entry) -> None:
        """Whom it belongs to, where that cannot be kept."""
        if not self._abilities.owners and (entry.uid, entry.gid) != (0, 0):
            self.applied.others[number] = entry.uid, entry.gid

    def _finish_named(self, parent: int, leaf: bytes, entry: Entry, *, mode: bool = False) -> None:
        """Attributes of what cannot be opened."""
        if self._abilities.owners:
            os.chown(leaf, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        else:
            number = os.lstat(leaf, dir_fd=parent).st_ino
            self.applied.begin(number)
            self._remember(number, entry)
        if mode:
            os.chmod(leaf, entry.mode, dir_fd=parent)  # just made by O_EXCL-like calls: no link can stand there
        if entry.xattrs:
            self._set_xattrs(entry_path(parent, leaf), entry)
        os.utime(leaf, ns=(entry.mtime, entry.mtime), dir_fd=parent, follow_symlinks=False)

    def _hard_link(self, parent: int, leaf: bytes, entry: Entry) -> None:
        target = self._names.parts(entry.link)
        if not target:
            raise self._reader.reject("link", "it is a hard link to the root directory")
        parent = os.dup(parent)  # looking for the target may push it out of the cache
        try:
            source = os.dup(self._names.parent(target[:-1]))
            try:
                self._link(source, target, parent, leaf)
            finally:
                os.close(source)
        finally:
            os.close(parent)

    def _link(self, source: int, target: list[bytes], parent: int, leaf: bytes) -> None:
        name = target[-1]
        try:
            status = os.lstat(name, dir_fd=source)
        except FileNotFoundError:
            status = self._copy_up(source, target)
        if stat.S_ISDIR(status.st_mode) or is_whiteout(source, name, status):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "something that the layer removes"
            raise self._reader.reject("link", f"it is a hard link to {what}, {show(b'/'.join(target))!r}")
        if name == leaf and os.path.sameopenfile(source, parent):
            raise self._reader.reject("link", "it is a hard link to itself")
        try:
            os.link(name, leaf, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileExistsError:
            if os.path.samestat(os.lstat(leaf, dir_fd=parent), status):
                return  # the same file already; removing it first could remove the target's last name
            self._clear(parent, leaf)
            try:
                os.link(name, leaf, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileNotFoundError:
                raise self._reader.reject("link", "it would replace the directory that its target is in") from None

    def _copy_up(self, source: int, target: list[bytes]) -> os.stat_result:
        """Brings a lower layer's file into this one, so that a link to it can be made."""
        path = os.fsencode(os.readlink(b"/proc/self/fd/%d" % source))
        root = os.fsencode(os.readlink(b"/proc/self/fd/%d" % self._names.fd))
        above = [part for part in path[len(root):].split(b"/") if part]  # where links on the way have led
        found = self._names.below([*above, target[-1]])
        if found is None:
            raise self._reader.reject("link", f"it is a hard link to {show(b'/'.join(target))!r}, which is not there")
        name, status = target[-1], found.status
        if not stat.S_ISDIR(status.st_mode):  # else an error: nothing is made
            status = copy_up(found, source, name, self.applied, owners=self._abilities.owners)
            self.applied.copied.setdefault(os.fstat(source).st_ino, set()).add(name)
        return status

    def _device(self, parent: int, leaf: bytes, entry: Entry) -> None:
        if entry.kind == "3" and entry.major == 0 and entry.minor == 0:
            raise self._reader.reject("type", "a character device 0/0 means a deleted file to overlayfs")
        if entry.major > 0xFFF or entry.minor > 0xFFFFF:
            raise self._reader.reject("header", f"its device number {entry.major}:{entry.minor} is beyond the kernel's")
        parent = self._fresh(parent, leaf)
        try:
            if not self._abilities.devices:
                self._note(f"device node {show(entry.name)} was left out: only root can make it")
                return
            kind = stat.S_IFCHR if entry.kind == "3" else stat.S_IFBLK
            os.mknod(leaf, kind | 0o600, os.makedev(entry.major, entry.minor), dir_fd=parent)
            self._finish_named(parent, leaf, entry, mode=True)
        finally:
            os.close(parent)

    def _fifo(self, parent: int, leaf: bytes, entry: Entry) -> None:
        parent = self._fresh(parent, leaf)
        try:
            os.mkfifo(leaf, 0o600, dir_fd=parent)
            self._finish_named(parent, leaf, entry, mode=True)
        finally:
            os.close(parent)

    # Whiteouts.

    def _whiteout(self, parent: int, leaf: bytes) -> None:
        if leaf == _OPAQUE:
            if os.path.sameopenfile(parent, self._names.fd):
                self.applied.opaque_root = True
            else:
                mark_opaque(self._abilities, b"/proc/self/fd/%d" % parent)
            if self.applied.copied:
                self._drop_copies(parent, b".")
            return
        if leaf.startswith(b".wh..wh."):
            self._note(f"{show(leaf)} was left out: a mark of aufs that means nothing here")
            return
        name = leaf[len(WHITEOUT_PREFIX):]
        if name in (b"", b".", b".."):
            raise self._reader.reject("whiteout", f"it would remove {show(name)!r}")
        try:
            status = os.lstat(name, dir_fd=parent)
        except FileNotFoundError:
            self._make_whiteout(parent, name)
            return
        if is_from_below(self.applied, parent, name, status):
            parent = self._fresh(parent, name)
            try:
                self._make_whiteout(parent, name)
            finally:
                os.close(parent)
            return
        # "Whiteout files MUST only apply to resources in lower layers" (OCI image spec, layer.md): what this layer
        # has itself stays. A file hides what is below it anyway; a directory must say so.
        if stat.S_ISDIR(status.st_mode):
            mark_opaque(self._abilities, entry_path(parent, name))
            if self.applied.copied:
                self._drop_copies(parent, name)

    def _drop_copies(self, parent: int, leaf: bytes) -> None:
        """Takes out of a directory that now hides the lower layers what had been brought up from them."""
        here = os.open(leaf, _DIR, dir_fd=parent)
        try:
            for name in map(os.fsencode, os.listdir(here)):
                status = os.lstat(name, dir_fd=here)
                if not is_whiteout(here, name, status) and is_from_below(self.applied, here, name, status):
                    self._clear(here, name)
        finally:
            os.close(here)

    def _make_whiteout(self, parent: int, name: bytes) -> None:
        if self._abilities.whiteouts == "device":
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
        else:
            os.close(os.open(name, _NEW, 0o600, dir_fd=parent))
        self.applied.begin(os.lstat(name, dir_fd=parent).st_ino)
        if self._abilities.whiteouts == "device":
            return
        for prefix in self._abilities.overlay_xattrs:
            os.setxattr(entry_path(parent, name), prefix + "whiteout", b"y")
            here = b"/proc/self/fd/%d" % parent
            if not is_opaque(here, prefix):  # "x": look for such files in here (kernel doc: overlayfs, whiteouts)
                os.setxattr(here, prefix + "opaque", b"x")

    # Extended attributes.

    def _set_xattrs(self, where: bytes | int, entry: Entry) -> None:
        for name, value in entry.xattrs:
            if b"\0" in name or not name or len(name) > 255 or len(value) > 65536:
                raise self._reader.reject("header", f"its extended attribute {show(name)!r} cannot be one")
            for prefix in _OVERLAY:
                if name.startswith(prefix):
                    # The kernel would obey it. One more "overlay." makes it plain data again (kernel doc: overlayfs,
                    # "Nested overlayfs mounts").
                    name = prefix + b"overlay." + name[len(prefix):]
            try:
                if isinstance(where, int):
                    os.setxattr(where, name, value)
                else:
                    os.setxattr(where, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL):
                    self._note(f"attribute {show(name)} of {show(entry.name)} was left out: {os.strerror(error.errno)}")
                elif error.errno in (errno.E2BIG, errno.ERANGE) or (error.errno == errno.ENOSPC and len(value) > 2048):
                    raise self._reader.reject(
                        "limit", f"the file system has no room for its attribute {show(name)!r} of {len(value)} bytes",
                        "Put PYTEST_SANDBOX_CACHE on another file system.") from None
                else:
                    raise

    def _note(self, text: str) -> None:
        if len(self.applied.notes) < _MOST_NOTES:
            self.applied.notes.append(text)
        elif len(self.applied.notes) == _MOST_NOTES:
            self.applied.notes.append("and more")


__all__ = ["Applied", "NeedsLower", "apply_layer"]
