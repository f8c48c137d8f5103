"""The ``host`` image: this machine's own tree as read-only lower layers, one for each real file system mounted.

Called by ``sandbox``. Reads the mount table and, for an unprivileged caller, the directories that have mounts below
them: the kernel refuses those as lower layers in a user namespace (EINVAL, since Linux 5.14), so they are made anew and
their children are overlaid instead.
"""

from __future__ import annotations

import os
import pwd
import re
import select
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from ..rootfs import Entry, Root, Tree

#: Never shown: each sandbox has these of its own.
FRESH = ("/proc", "/sys", "/dev", "/run")

#: File systems that hold no files of the machine's own.
PSEUDO = frozenset({
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal", "hugetlbfs", "mqueue", "nsfs", "proc", "pstore",
    "resctrl", "rpc_pipefs", "securityfs", "selinuxfs", "sysfs", "tracefs",
})

_COPIED = 1 << 20  # a file in a directory that is made anew is copied up to this size
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """A line of ``/proc/self/mountinfo`` (proc_pid_mountinfo(5)). ``number``: the mount's id."""

    path: str
    fstype: str
    options: frozenset[str]
    number: int


def read_mounts(text: str) -> list[MountPoint]:
    """The mounts that can be reached, in the order of the table; of several on one path the last.

    :param text: the table, read as latin-1: a path may hold any bytes.
    """
    found: dict[str, MountPoint] = {}
    for line in filter(None, text.split("\n")):  # not splitlines(), nor split(): in latin-1 half an "à" is a blank
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        path = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]).encode("latin-1")
        where = os.fsdecode(path)
        for below in [one for one in found if one.startswith(where.rstrip("/") + "/")]:
            del found[below]  # a later mount on a parent covers it
        found.pop(where, None)
        found[where] = MountPoint(where, right.split(" ")[0], frozenset(fields[5].split(",")),
                                  int(fields[0]))
    return list(found.values())


def _below(path: str, parents: tuple[str, ...]) -> bool:
    return any(path == parent or path.startswith(parent + "/") for parent in parents)


def read_host(hide: tuple[str, ...], cache: str, split: bool) -> Root:
    """The host's tree as it is now.

    :param hide: credential stores to hide: absolute, or relative to every home directory.
    :param cache: the layer cache, hidden too.
    :param split: whether directories with mounts below them must be made anew (an unprivileged caller).
    """
    mounts = _mounts()
    others = [one for one in mounts if one.path != "/" and not _below(one.path, FRESH)]
    pseudo = tuple(one.path for one in others if one.fstype in PSEUDO)
    whole = tuple(one.path for one in others if one.fstype in PSEUDO - {"autofs"})  # with whatever is mounted below
    kept = [one.path for one in others if one.fstype not in PSEUDO and not _below(one.path, whole)]
    real = [path for path in kept if os.path.isdir(path)]
    files = [path for path in kept if _is_small_file(path)]
    noexec = {one.path: "noexec" in one.options for one in mounts}
    hidden = _hidden(hide, cache)
    trees: dict[str, tuple[Entry, ...] | None] = {"/": None}
    for path in sorted(real):
        if not _below(path, hidden):
            trees[path] = None
    if split:
        _split(trees, [one.path for one in mounts if one.path != "/"], hidden)
        for path in [path for path in trees if path not in real and _below(path, pseudo)]:
            del trees[path]  # a /proc or the like, elsewhere: an empty directory
    ordered = sorted(trees, key=lambda path: (path.count("/"), path) if path != "/" else (0, ""))
    return Root(tuple(_tree(path, trees[path], ordered, hidden, files, noexec) for path in ordered), host=True)


def _mounts() -> list[MountPoint]:
    with open("/proc/self/mountinfo", encoding="latin-1") as file:
        return read_mounts(file.read())


def _is_small_file(path: str) -> bool:
    try:
        look = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(look.st_mode) and look.st_size <= _COPIED


def _tree(path: str, entries: tuple[Entry, ...] | None, all_trees: list[str], hidden: tuple[str, ...],
          files: list[str], noexec: dict[str, bool]) -> Tree:
    mount = max((one for one in noexec if _below(path, (one,)) or one == "/"), key=len, default="/")
    nearer = tuple(one for one in all_trees if one != path and (path == "/" or one.startswith(path + "/")))

    def ours(paths: Iterable[str]) -> tuple[str, ...]:
        return tuple(os.path.relpath(one, path) for one in paths
                     if one != path and (path == "/" or one.startswith(path + "/")) and not _below(one, nearer))

    if entries is not None:
        return Tree(path, (path,), (), entries, noexec=noexec.get(mount, False))
    return Tree(path, (path,), ours(hidden), None, ours(one for one in files if not _below(one, hidden)),
                noexec.get(mount, False))


def _split(trees: dict[str, tuple[Entry, ...] | None], mounts: list[str],
           hidden: tuple[str, ...]) -> None:
    """Replaces every directory that has mounts below it by its children."""
    pending = list(trees)
    while pending:
        path = pending.pop()
        prefix = path.rstrip("/") + "/"
        if not any(one.startswith(prefix) for one in mounts):
            continue
        entries = []
        for name in sorted(_listed(path)):
            child = prefix + name
            if child in hidden:
                continue
            look = os.lstat(child)
            if stat.S_ISLNK(look.st_mode):
                entries.append(Entry(name, "link", os.readlink(child)))
            elif stat.S_ISDIR(look.st_mode):
                entries.append(Entry(name, "dir"))
                if not _below(child, FRESH) and os.access(child, os.R_OK | os.X_OK) and child not in trees:
                    trees[child] = None
                    pending.append(child)
            elif stat.S_ISREG(look.st_mode) and look.st_size <= _COPIED:
                entries.append(Entry(name, "file"))
        trees[path] = tuple(entries)


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _hidden(hide: tuple[str, ...], cache: str) -> tuple[str, ...]:
    """Absolute paths, without symbolic links in their parents, of all that exists and is to be hidden."""
    homes = _homes()
    found = set()
    for one in (*hide, cache):
        for path in [one] if one.startswith("/") else [f"{home}/{one}" for home in homes]:
            if os.path.lexists(path):
                parent, name = os.path.split(os.path.normpath(path))
                found.add(os.path.join(os.path.realpath(parent), name))
                found.add(os.path.realpath(path))
    found = {one for one in found if os.path.lexists(one) and not _below(one, FRESH) and one not in homes | {"/"}}
    return tuple(sorted(one for one in found if not any(one.startswith(other + "/") for other in found)))


def _homes() -> set[str]:
    homes = {os.path.expanduser("~")}
    for user in pwd.getpwall():
        if user.pw_uid in (0, os.getuid()) or user.pw_uid >= 1000:
            homes.add(user.pw_dir)
    return homes - {"/"}


class HostImage:
    """The host's tree, read again only when mounts or credential stores came or went. One a process, as long as it."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLPRI)  # proc(5): readable as an exception when a mount came or went
        #: Goes up with each change of the mounts: whoever holds copies of them from before has too few, or too many.
        self.generation = 0
        self._mounts = _mounts()
        self._roots: dict[tuple[tuple[str, ...], str, bool], tuple[object, Root]] = {}
        self._parents: dict[tuple[tuple[str, ...], str, str], list[str]] = {}

    def close(self) -> None:
        """Lets go of the mount table, which a fork must not take into a sandbox."""
        os.close(self._fd)

    def root(self, hide: tuple[str, ...], cache: str, split: bool) -> Root:
        """As :func:`read_host`."""
        if self._poll.poll(0):
            before, self._mounts = self._mounts, _mounts()
            # Where nothing looks different, one has been replaced by another: the kernel gives a number again at once.
            if before == self._mounts or _with_files(before) != _with_files(self._mounts):
                self._roots.clear()
                self.generation += 1
        key = (hide, cache, split)
        known, look = self._roots.get(key), self._look(hide, cache)
        if known is None or known[0] != look:
            self._parents.clear()
            look = self._look(hide, cache)
            root = read_host(*key)
            if known is not None and known[1] == root:
                root = known[1]  # the same object: what was made for it is still right
            known = self._roots[key] = look, root
        return known[1]

    def _look(self, hide: tuple[str, ...], cache: str) -> object:
        """Something that differs when a store may have come or gone: when the directories that hold them changed."""
        home = os.path.expanduser("~")
        key = (hide, cache, home)
        if key not in self._parents:
            paths = [one if one.startswith("/") else f"{place}/{one}" for one in (*hide, cache)
                     for place in ([""] if one.startswith("/") else _homes())]
            self._parents[key] = sorted({_existing(os.path.dirname(one)) for one in paths})
        return home, [_changed(one) for one in self._parents[key]]


def _existing(path: str) -> str:
    """``path``, or the nearest directory above it that exists: what changes when something appears at ``path``."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _with_files(mounts: list[MountPoint]) -> list[MountPoint]:
    return [one for one in mounts if one.fstype not in PSEUDO and not _below(one.path, FRESH)]


def _changed(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None
