"""Turns a plan's operations into actions: one function each, named as in :mod:`.plan`, which says what each is for.

Carried out in the helper (the template, once) and in a sandbox's future init (the rest, each time), in a mount
namespace whose root is the helper's own small tmpfs: ``/host`` there is the host's tree, ``/own`` the layers that we
made ourselves, ``/scratch`` the writable layer, ``/root`` the root filesystem that is being built. Operations get their
arguments as plain JSON values. Imports stay few: this module is in the helper's heap, which is copied for every sandbox
whose init is Python.
"""

from __future__ import annotations

import os

from . import syscalls as sc
from .actions import ROOT, perform
from .mapped import HOST, own_mapped
from .own import (
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
from .ownfiles import own_files
from .ownowners import own_owners
from .ownstate import own_state
from .shadow import own_shadow

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .actions import Action
    from .tracing import Marks

NODES = ("null", "zero", "full", "random", "urandom", "tty")
_EXIST, _PERM, _NODEV = 17, 1, 19


class StepFailed(Exception):
    """An operation failed: which one, with what errno, about which path."""

    def __init__(self, step: list[Any], errno: int, path: str | None) -> None:
        self.step, self.errno, self.path = step, errno, path


def prepare(steps: list[list[Any]]) -> None:
    """Performs the operations of a template in their order.

    :raises StepFailed: at the first one that fails.
    """
    for step in steps:
        try:
            TEMPLATE[step[0]](*step[1:])
        except OSError as error:
            raise _failed(step, error) from error


def carry_out(steps: list[list[Any]], marks: Marks | None = None, part: str = "") -> None:
    """Performs the operations of a sandbox in their order.

    :param marks: gets one after each, named ``part``.
    :raises StepFailed: at the first one that fails.
    """
    for number, step in enumerate(steps):
        try:
            for action in actions_of(step):
                perform(action)
        except OSError as error:
            raise _failed(step, error) from error
        if marks is not None:
            marks(part, number)


def _failed(step: list[Any], error: OSError) -> StepFailed:
    path = error.filename
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return StepFailed(step, error.errno or 0, path if isinstance(path, str) else None)


def actions_of(step: list[Any]) -> list[Action]:
    """What is done for one operation of a sandbox."""
    return OPERATIONS[step[0]](*step[1:])


# The root filesystem.

def scratch(options: str) -> list[Action]:
    """The writable layer: a tmpfs that only this mount namespace holds."""
    return [["mount", "pytest-sandbox", "/scratch", "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options]]


def scratch_mapped() -> list[Action]:
    """The writable layer as root of a shifted range owns it; what is handed out is how it is stored."""
    return [["mapped", "/scratch"]]


def resize(fd: int, options: dict[str, str]) -> None:
    """Gives the tmpfs that ``fd`` is the root of other limits. Not a step of a plan: the caller asks for it."""
    picked = sc.fspick(fd, "", sc.FSPICK_CLOEXEC | sc.FSPICK_EMPTY_PATH)
    try:
        for key, value in options.items():
            sc.fsconfig(picked, sc.FSCONFIG_SET_STRING, key, value)
        sc.fsconfig(picked, sc.FSCONFIG_CMD_RECONFIGURE)
    finally:
        os.close(picked)


def are_many(lowers: list[str]) -> bool:
    """Whether layers want short names: twenty, or fewer that lie so deep that their names fill an overlay's options."""
    return len(lowers) > 20 or sum(len(escape(one).encode(errors="surrogateescape")) + 1 for one in lowers) > 3500


def overlay(number: int, target: str, lowers: list[str], short: str | None, like: str | list[int], flags: int,
            options: str, may_write: bool, seed: str | None) -> list[Action]:
    """One overlay: read-only ``lowers`` (lowest first), the writable layer's directory ``number`` on top.

    An overlay's root looks like the root of its uppermost layer, which therefore gets the look of ``like``: a
    directory, or mode, owner and group. ``short`` is a directory with short names for the layers: mount(2) takes no
    more than 4,095 bytes of options, which 500 short names fit into. ``seed`` is a layer for which there is no room
    among the 500 that the kernel takes: the writable layer starts with what it holds.
    """
    upper, work = f"/scratch/{number}/upper", f"/scratch/{number}/work"
    acts: list[Action] = [["mkdir", path, 0o777] for path in (f"/scratch/{number}", upper, work)]
    if seed is not None:
        acts.append(["seed", seed, upper])
    if isinstance(like, str):
        acts.append(["like", upper, like, may_write])
    else:
        acts.append(["chmod", upper, like[0]])
        acts.append(["may", [], ["chown", upper, like[1], like[2]]])  # not mapped: it stays ours
    if short is None:
        stack = ":".join(escape(lower) for lower in reversed(lowers))
    else:
        stack = ":".join(str(one) for one in reversed(range(len(lowers))))
        acts.append(["chdir", short])
    where = ROOT
    if target != "/":
        acts.append(["enter", target])
        where = "."
    mount = ["mount", "overlay", where, "overlay", flags,
             f"lowerdir={stack},upperdir={upper},workdir={work},{options}"]
    if number == 0:
        return [*acts, mount]
    # Some file systems cannot lie below an overlay (vfat, some of FUSE): of those the host's files are shown as they
    # are, read-only.
    shown = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV
    return [*acts, ["either", [mount], [["mount", lowers[0], where, None, sc.MS_BIND, None], ["enter", target],
                                        ["attributes", ".", shown]]]]


def proc(masked: list[str], read_only: list[str], options: str | None = None) -> list[Action]:
    """A fresh /proc of the sandbox's own processes, without the entries that reach the whole machine."""
    flags = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    acts: list[Action] = [["enter", "/proc"], ["mount", "proc", ".", "proc", flags, options], ["enter", "/proc"],
                          ["shares"]]  # which are written when there is a user namespace, and this is read-only
    acts += [["mask", path] for path in masked]
    for path in read_only:
        acts.append(["mount", path, path, None, sc.MS_BIND, None])
        acts.append(["mount", path, path, None, sc.MS_REMOUNT | sc.MS_BIND | sc.MS_RDONLY | flags, None])
    return acts


def sys(masked: list[str]) -> list[Action]:
    """The host's /sys, read-only. A fresh one is laid over it later, where the kernel allows that."""
    flags = sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | sc.MOUNT_ATTR_NOEXEC
    acts: list[Action] = [["tree", f"{HOST}/sys", "/sys", True, flags, True]]
    if masked:
        acts.append(["enter", "/sys"])
    return [*acts, *(["mask", path] for path in masked)]


def dev(nodes: list[str], source: str | None = None) -> list[Action]:
    """A minimal /dev: the harmless nodes of the host, terminals and shared memory of the sandbox's own.

    ``source``: where the helper has nodes with shifted ids; the terminals are then :func:`pts`.
    """
    acts: list[Action] = [["enter", "/dev"],
                          ["mount", "dev", ".", "tmpfs", sc.MS_NOSUID, "mode=0755,size=64k"], ["enter", "/dev"]]
    for node in nodes:
        acts.append(["file", node, 0o666, ""])
        acts.append(["mount", f"{source or '/nodes'}/{node}", node, None, sc.MS_BIND, None])
    for name, text in (("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1"),
                       ("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")):
        acts.append(["link", text, name])
    acts += [["mkdir", name, 0o777] for name in ("pts", "shm", "mqueue")]
    return acts if source else [*acts, *pts("pts")]


def pts(path: str = "/dev/pts") -> list[Action]:
    """Terminals of the sandbox's own. They belong to the root of the user namespace in which they are mounted."""
    return [["mount", "devpts", path, "devpts", sc.MS_NOSUID | sc.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"]]


def tmpfs(target: str, flags: int, options: str) -> list[Action]:
    """An empty tmpfs."""
    return [["enter", target], ["mount", "tmpfs", ".", "tmpfs", flags, options]]


def run(directories: list[list[Any]], files: dict[str, str]) -> list[Action]:
    """A fresh /run with ``directories`` (path, mode, owner, group) and small ``files``."""
    acts = [*tmpfs("/run", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755,size=64m"), ["enter", "/run"]]
    for path, mode, uid, gid in directories:
        acts.append(["mkdir", path, 0o777])
        acts.append(["chmod", path, mode])
        if uid != -1:
            acts.append(["chown", path, uid, gid])
    for path, text in files.items():
        parts = path.split("/")
        for number in range(1, len(parts)):
            acts.append(["may", [_EXIST], ["mkdir", "/".join(parts[:number]), 0o777]])
        acts.append(["file", path, 0o644, text])
    return acts


def hosts() -> list[Action]:
    """An /etc/hosts that the caller can write to through the writable layer's own directory, beside the layer."""
    return [["copy", "etc/hosts", "/scratch/hosts"], _own_etc("hosts")]


def _own_etc(name: str) -> Action:
    return ["tree", f"/scratch/{name}", f"/etc/{name}", False, 0, False]


def resolver(text: str) -> list[Action]:
    """An /etc/resolv.conf that names the sandbox's own name server."""
    return [["file", "/scratch/resolv.conf", 0o644, text], _own_etc("resolv.conf")]


def bind(source: str, target: str, read_only: bool, more: int = 0) -> list[Action]:
    """A host path that shows through. ``more``: other attributes of the mount."""
    flags = more | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV | (sc.MOUNT_ATTR_RDONLY if read_only else 0)
    return [["tree", HOST + source, target, True, flags, None]]


def pivot() -> list[Action]:
    """Makes the new root the root and lets go of everything else."""
    return [["pivot", ROOT]]


# What only the sandbox's own namespaces can give, done after they exist.

def fresh_sys(masked: list[str]) -> list[Action]:
    """A /sys of the sandbox's own network namespace. Where the kernel refuses it, the host's read-only one remains."""
    flags = sc.MS_RDONLY | sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    # Masked only now: the kernel gives a fresh /sys to whoever sees the whole of another.
    return [["may", [_PERM, 13], ["mount", "sysfs", "/sys", "sysfs", flags, None]],
            *(["mount", "masked", f"/sys/{path}", "tmpfs", flags, "size=4k"] for path in masked)]


def mqueue() -> list[Action]:
    """POSIX message queues of the sandbox's own ipc namespace, where the kernel has them."""
    flags = sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC
    # No such file system, or not here.
    return [["may", [_NODEV, _PERM], ["mount", "mqueue", "/dev/mqueue", "mqueue", flags, None]]]


def hostname(name: str) -> list[Action]:
    """The name of the machine as seen inside."""
    return [["hostname", name]]


def loopback() -> list[Action]:
    """Brings the sandbox's own loopback up."""
    return [["loopback"]]


#: What makes the layers between an image and the writable one, in the helper.
TEMPLATE: dict[str, Callable[..., None]] = {
    one.__name__: one for one in (
        own_layer, own_parents, own_hide, own_link, own_file, own_dir, own_files, own_names, own_ways, own_shadow,
        own_state, own_owners, own_mapped)
}
#: What makes a sandbox.
OPERATIONS: dict[str, Callable[..., list[Action]]] = {
    one.__name__: one for one in (
        scratch, scratch_mapped, overlay, proc, sys, dev, pts, tmpfs, run, hosts, resolver, bind, pivot, fresh_sys,
        mqueue, hostname, loopback)
}
