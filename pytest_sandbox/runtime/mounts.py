"""Carries out a plan's operations: one function each, named as in :mod:`.plan`, which says what each is for.

Runs in the helper (the template, once) and in a sandbox's future init (the rest, each time), in a mount namespace whose
root is the helper's own small tmpfs: ``/host`` there is the host's tree, ``/own`` the layers that we made ourselves,
``/scratch`` the writable layer, ``/root`` the root filesystem that is being built. Operations get their arguments as
plain JSON values. Imports stay few: this module is in the helper's heap, which is copied for every sandbox.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import struct

from . import syscalls as sc
from .own import (
    copy_stat,
    escape,
    own_dir,
    own_file,
    own_hide,
    own_layer,
    own_link,
    own_names,
    own_parents,
    own_ways,
)
from .ownfiles import copy_layer, own_files
from .ownstate import own_state
from .shadow import own_shadow

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ROOT = "/root"
NODES = ("null", "zero", "full", "random", "urandom", "tty")
HOST = "/host"


class StepFailed(Exception):
    """An operation failed: which one, with what errno, about which path."""

    def __init__(self, step: list[Any], errno: int, path: str | None) -> None:
        self.step, self.errno, self.path = step, errno, path


def carry_out(steps: list[list[Any]]) -> None:
    """Performs the operations in their order.

    :raises StepFailed: at the first one that fails.
    """
    for step in steps:
        try:
            OPERATIONS[step[0]](*step[1:])
        except OSError as error:
            path = error.filename
            if isinstance(path, bytes):
                path = os.fsdecode(path)
            raise StepFailed(step, error.errno or 0, path if isinstance(path, str) else None) from error


# Places in the new root: every name is resolved inside it, so a link in an image cannot lead a mount out of it.

def _place(path: str, directory: bool = True) -> int:
    """An O_PATH descriptor of ``path`` in the new root; what is missing of it is made. The caller closes it."""
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


def _enter(path: str) -> None:
    """Makes ``path`` of the new root the working directory, so that a mount can name it as '.'."""
    fd = _place(path)
    os.fchdir(fd)
    os.close(fd)


# The root filesystem.

def scratch(options: str) -> None:
    """The writable layer: a tmpfs that only this mount namespace holds."""
    sc.mount("pytest-sandbox", "/scratch", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)


def resize(fd: int, options: dict[str, str]) -> None:
    """Gives the tmpfs that ``fd`` is the root of other limits. Not a step of a plan: the caller asks for it."""
    picked = sc.fspick(fd, "", sc.FSPICK_CLOEXEC | sc.FSPICK_EMPTY_PATH)
    try:
        for key, value in options.items():
            sc.fsconfig(picked, sc.FSCONFIG_SET_STRING, key, value)
        sc.fsconfig(picked, sc.FSCONFIG_CMD_RECONFIGURE)
    finally:
        os.close(picked)


def overlay(number: int, target: str, lowers: list[str], short: str | None, like: str | list[int], flags: int,
            options: str, may_write: bool, seed: str | None) -> None:
    """One overlay: read-only ``lowers`` (lowest first), the writable layer's directory ``number`` on top.

    An overlay's root looks like the root of its uppermost layer, which therefore gets the look of ``like``: a
    directory, or mode, owner and group. ``short`` is a directory with short names for the layers: mount(2) takes no
    more than 4,095 bytes of options, which 500 short names fit into. ``seed`` is a layer for which there is no room
    among the 500 that the kernel takes: the writable layer starts with what it holds.
    """
    upper, work = f"/scratch/{number}/upper", f"/scratch/{number}/work"
    os.mkdir(f"/scratch/{number}")
    os.mkdir(upper)
    os.mkdir(work)
    if seed is not None:
        copy_layer(seed, upper)
    if isinstance(like, str):
        copy_stat(upper, os.stat(like), may_write)
    else:
        os.chmod(upper, like[0])
        try:
            os.chown(upper, like[1], like[2])
        except OSError:
            pass  # not mapped: it stays ours
    if short is None:
        stack = ":".join(escape(lower) for lower in reversed(lowers))
    else:
        stack = ":".join(str(one) for one in reversed(range(len(lowers))))
        os.chdir(short)
    if target == "/":
        where = ROOT
    else:
        _enter(target)
        where = "."
    try:
        sc.mount("overlay", where, "overlay", flags, f"lowerdir={stack},upperdir={upper},workdir={work},{options}")
    except OSError:
        if number == 0:
            raise
        # Some file systems cannot lie below an overlay (vfat, some of FUSE): of those the host's files are shown as
        # they are, read-only.
        sc.mount(lowers[0], where, None, sc.MS_BIND)
        _enter(target)
        sc.mount_setattr(sc.AT_FDCWD, ".", 0, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV)


def proc(masked: list[str], read_only: list[str]) -> None:
    """A fresh /proc of the sandbox's own processes, without the entries that reach the whole machine."""
    _enter("/proc")
    sc.mount("proc", ".", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)
    _enter("/proc")
    _mask(masked)
    flags = sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    for path in read_only:
        sc.mount(path, path, None, sc.MS_BIND)
        sc.mount(path, path, None, flags)


def _mask(paths: list[str]) -> None:
    for path in paths:
        if os.path.isdir(path):
            sc.mount("masked", path, "tmpfs", sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC, "size=4k")
        else:
            sc.mount("/nodes/null", path, None, sc.MS_BIND)


def sys(masked: list[str]) -> None:
    """The host's /sys, read-only. A fresh one is laid over it later, where the kernel allows that."""
    tree = sc.open_tree(sc.AT_FDCWD, f"{HOST}/sys", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE)
    flags = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC
    sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, flags)
    _attach(tree, "/sys")
    _enter("/sys")
    _mask(masked)


def _attach(tree: int, target: str, directory: bool = True) -> None:
    place = _place(target, directory)
    sc.move_mount(tree, "", place, "", sc.MOVE_MOUNT_F_EMPTY_PATH | 0x40)  # 0x40: MOVE_MOUNT_T_EMPTY_PATH
    os.close(place)
    os.close(tree)


def dev(nodes: list[str]) -> None:
    """A minimal /dev: the harmless nodes of the host, terminals and shared memory of the sandbox's own."""
    _enter("/dev")
    sc.mount("dev", ".", "tmpfs", sc.MS_NOSUID, "mode=0755,size=64k")
    _enter("/dev")
    for node in nodes:
        os.close(os.open(node, os.O_CREAT | os.O_WRONLY, 0o666))
        sc.mount(f"/nodes/{node}", node, None, sc.MS_BIND)
    for name, text in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
                       ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")):
        os.symlink(text, name)
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(name)
    sc.mount("devpts", "pts", "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")


def tmpfs(target: str, flags: int, options: str) -> None:
    """An empty tmpfs."""
    _enter(target)
    sc.mount("tmpfs", ".", "tmpfs", flags, options)


def run(directories: list[list[Any]], files: dict[str, str]) -> None:
    """A fresh /run with ``directories`` (path, mode, owner, group) and small ``files``."""
    tmpfs("/run", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755,size=64m")
    _enter("/run")
    for path, mode, uid, gid in directories:
        os.mkdir(path)
        os.chmod(path, mode)
        if uid != -1:
            os.chown(path, uid, gid)
    for path, text in files.items():
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
        os.write(fd, text.encode())
        os.close(fd)


def hosts() -> None:
    """An /etc/hosts that the caller can write to through the writable layer's own directory, beside the layer."""
    text = b""
    root = sc.openat2(sc.AT_FDCWD, ROOT, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = sc.openat2(root, "etc/hosts", os.O_RDONLY | os.O_NONBLOCK,
                        resolve=sc.RESOLVE_IN_ROOT | sc.RESOLVE_NO_MAGICLINKS)
        text = os.read(fd, 1 << 20)
        os.close(fd)
    except OSError:
        pass  # there is none, or it cannot be read
    finally:
        os.close(root)
    _own_etc("hosts", text)


def _own_etc(name: str, text: bytes) -> None:
    fd = os.open(f"/scratch/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    os.write(fd, text)
    os.close(fd)
    tree = sc.open_tree(sc.AT_FDCWD, f"/scratch/{name}", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC)
    _attach(tree, f"/etc/{name}", False)


def resolver(text: str) -> None:
    """An /etc/resolv.conf that names the sandbox's own name server."""
    _own_etc("resolv.conf", text.encode())


def bind(source: str, target: str, read_only: bool) -> None:
    """A host path that shows through."""
    tree = sc.open_tree(sc.AT_FDCWD, HOST + source, sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE)
    flags = sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | (sc.MOUNT_ATTR_RDONLY if read_only else 0)
    sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, flags)
    _attach(tree, target, stat.S_ISDIR(os.fstat(tree).st_mode))


def pivot() -> None:
    """Makes the new root the root and lets go of everything else."""
    os.chdir(ROOT)
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")


# What only the sandbox's own namespaces can give, done after they exist.

def fresh_sys(masked: list[str]) -> None:
    """A /sys of the sandbox's own network namespace. Where the kernel refuses it, the host's read-only one remains."""
    flags = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    try:
        sc.mount("sysfs", "/sys", "sysfs", flags)
    except PermissionError:
        pass
    # Masked only now: the kernel gives a fresh /sys to whoever sees the whole of another.
    os.chdir("/sys")
    for path in masked:
        sc.mount("masked", path, "tmpfs", flags, "size=4k")
    os.chdir("/")


def mqueue() -> None:
    """POSIX message queues of the sandbox's own ipc namespace, where the kernel has them."""
    try:
        sc.mount("mqueue", "/dev/mqueue", "mqueue", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)
    except OSError as error:
        if error.errno not in (19, 1):  # ENODEV: no such file system; EPERM: not here
            raise


def hostname(name: str) -> None:
    """The name of the machine as seen inside."""
    socket.sethostname(name)


def loopback() -> None:
    """Brings the sandbox's own loopback up; the kernel gives it 127.0.0.1 and ::1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


OPERATIONS: dict[str, Callable[..., None]] = {
    one.__name__: one for one in (
        own_layer, own_parents, own_hide, own_link, own_file, own_dir, own_files, own_names, own_ways, own_shadow,
        own_state, scratch, overlay, proc, sys, dev, tmpfs, run, hosts, resolver, bind, pivot, fresh_sys, mqueue,
        hostname, loopback)
}
