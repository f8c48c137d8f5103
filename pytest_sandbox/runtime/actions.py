"""The smallest acts of a sandbox's making, as data: what :mod:`.mounts` turns the operations of a plan into.

An action is a list: its name, then its arguments, which are plain JSON values. Each is a system call or a few that
belong together. They are carried out here, in an init that is Python, and by the compiled one (``native/``), which has
the same function for each of these names; one that only this module has makes a sandbox's init be Python.

Paths are those of the helper's own root, see :mod:`.mounts`. *In the new root* means resolved inside ``/root``, so that
a link in an image cannot lead a mount out of it; what is missing of such a path is made.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct

from . import syscalls as sc
from .own import copy_stat
from .ownfiles import copy_layer

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Action = list[Any]

ROOT = "/root"
#: A user namespace; its map is that of mounts with ``MOUNT_ATTR_IDMAP``.
MAP = "/map"


def perform(action: Action) -> None:
    """Carries one out.

    :raises OSError: what its system call says.
    """
    ACTIONS[action[0]](*action[1:])


def either(first: list[Action], second: list[Action]) -> None:
    """All of ``first``, or where one of these fails all of ``second``."""
    try:
        for action in first:
            perform(action)
    except OSError:
        for action in second:
            perform(action)


def may(errnos: list[int], action: Action) -> None:
    """One that may fail: with one of ``errnos``, or in any way where there are none of them."""
    try:
        perform(action)
    except OSError as error:
        if errnos and error.errno not in errnos:
            raise


def place(path: str, directory: bool = True) -> int:
    """An O_PATH descriptor of ``path`` in the new root. The caller closes it."""
    root = sc.openat2(sc.AT_FDCWD, ROOT, os.O_PATH | os.O_DIRECTORY)
    try:
        inside = path.strip("/") or "."
        return sc.openat2(root, inside, os.O_PATH, resolve=sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS)
    except FileNotFoundError:
        return _make(root, [part for part in path.split("/") if part], directory)
    finally:
        os.close(root)


def _make(root: int, parts: list[str], directory: bool) -> int:
    at = root
    for number, part in enumerate(parts):
        so_far = "/".join(parts[:number + 1])
        try:
            following = sc.openat2(root, so_far, os.O_PATH, resolve=sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS)
        except FileNotFoundError:
            if number + 1 == len(parts) and not directory:
                os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o644, dir_fd=at))
            else:
                os.mkdir(part, 0o755, dir_fd=at)
            following = sc.openat2(at, part, os.O_PATH | os.O_NOFOLLOW)
        if at != root:
            os.close(at)
        at = following
    return at


def enter(path: str) -> None:
    """Makes the directory ``path`` in the new root the working directory, so that a mount can name it as '.'."""
    fd = place(path)
    try:
        os.fchdir(fd)
    finally:
        os.close(fd)


def mask(path: str) -> None:
    """Lays an empty directory over a directory, and /dev/null over anything else."""
    if os.path.isdir(path):
        sc.mount("masked", path, "tmpfs", sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC, "size=4k")
    else:
        sc.mount("/nodes/null", path, None, sc.MS_BIND)


def attributes(path: str, flags: int) -> None:
    """Sets attributes of the mount at ``path``."""
    sc.mount_setattr(sc.AT_FDCWD, path, 0, flags)


def tree(source: str, target: str, recursive: bool, flags: int, directory: bool | None) -> None:
    """A copy of the mount at ``source``, with attributes, at ``target`` in the new root.

    ``directory``: what is made there if it is missing; None for the kind that ``source`` is.
    """
    below = sc.AT_RECURSIVE if recursive else 0
    copy = sc.open_tree(sc.AT_FDCWD, source, sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | below)
    try:
        if flags:
            _attributes(copy, below, flags)
        if directory is None:
            directory = stat.S_ISDIR(os.fstat(copy).st_mode)
        at = place(target, directory)
        try:
            sc.move_mount(copy, "", at, "", sc.MOVE_MOUNT_F_EMPTY_PATH | sc.MOVE_MOUNT_T_EMPTY_PATH)
        finally:
            os.close(at)
    finally:
        os.close(copy)


def _attributes(copy: int, below: int, flags: int) -> None:
    namespace = os.open(MAP, os.O_RDONLY | os.O_CLOEXEC) if flags & sc.MOUNT_ATTR_IDMAP else -1
    try:
        sc.mount_setattr(copy, "", sc.AT_EMPTY_PATH | below, flags, max(namespace, 0))
    finally:
        if namespace >= 0:
            os.close(namespace)


def map_tree(source: str, recursive: bool = False, flags: int = 0) -> int:
    """A descriptor of a copy of the mount at ``source``, with the ids of :data:`MAP`."""
    below = sc.AT_RECURSIVE if recursive else 0
    copy = sc.open_tree(sc.AT_FDCWD, source, sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | below)
    try:
        _attributes(copy, below, flags | sc.MOUNT_ATTR_IDMAP)
    except OSError:
        os.close(copy)
        raise
    return copy


def mapped(path: str) -> None:
    """Lays over the mount at ``path`` a copy of it with the ids of :data:`MAP`."""
    copy = map_tree(path)
    try:
        sc.move_mount(copy, "", sc.AT_FDCWD, path, sc.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(copy)


def file(path: str, mode: int, text: str) -> None:
    """Makes a file."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, mode)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)


def copy(source: str, path: str) -> None:
    """Makes a file with the text that ``source`` in the new root has; empty where there is none that can be read."""
    text = b""
    root = sc.openat2(sc.AT_FDCWD, ROOT, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = sc.openat2(root, source, os.O_RDONLY | os.O_NONBLOCK,
                        resolve=sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS)
        try:
            text = os.read(fd, 1 << 20)
        finally:
            os.close(fd)
    except OSError:
        pass
    finally:
        os.close(root)
    file(path, 0o644, text.decode("utf-8", "surrogateescape"))


def like(path: str, source: str, may_write: bool) -> None:
    """Gives a directory the look of another, see :func:`.own.copy_stat`."""
    copy_stat(path, os.stat(source), may_write)


def pivot(path: str) -> None:
    """Makes ``path`` the root and lets go of everything else."""
    os.chdir(path)
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")


def loopback() -> None:
    """Brings the loopback up; the kernel gives it 127.0.0.1 and ::1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


def seed(layer: str, path: str) -> None:
    """Repeats a layer in a directory. The compiled init has no such function."""
    copy_layer(layer, path)


#: What :func:`shares` has opened.
shares_folder = -1


def shares() -> None:
    """Opens sys/user below the working directory, for as long as the making lasts.

    Not that of another /proc: there, each lookup goes through the entries of all user namespaces that have any.
    """
    global shares_folder
    try:
        shares_folder = os.open("sys/user", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        shares_folder = -1


ACTIONS: dict[str, Callable[..., object]] = {
    "attributes": attributes,
    "chdir": os.chdir,
    "chmod": os.chmod,
    "chown": os.chown,
    "copy": copy,
    "either": either,
    "enter": enter,
    "file": file,
    "hostname": socket.sethostname,
    "like": like,
    "link": os.symlink,
    "loopback": loopback,
    "mapped": mapped,
    "mask": mask,
    "may": may,
    "mkdir": os.mkdir,
    "mount": sc.mount,
    "pivot": pivot,
    "seed": seed,
    "shares": shares,
    "tree": tree,
}
#: What the compiled init can do.
COMPILED = ACTIONS.keys() - {"seed"}
