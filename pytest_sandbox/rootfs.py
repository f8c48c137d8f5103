"""What a root filesystem is made of, as frozen data: ``image`` makes it, ``runtime`` mounts it. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A direct child of a directory that cannot be overlaid itself and is therefore made anew.

    ``kind`` is ``dir`` (made empty; a tree is mounted there), ``link`` (``text`` is its target) or ``file`` (copied).
    """

    name: str
    kind: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """One overlay of the root filesystem.

    :param target: the directory inside that it is mounted on; ``/`` for the first.
    :param lowers: read-only directories of the host, lowest first. With ``entries`` they only lend their looks.
    :param hidden: paths below the tree's root, relative to it, that are not shown.
    :param entries: what the tree's root holds, where the host's directory cannot be a lower layer itself.
    :param files: files below the tree's root, relative to it, that others are mounted on: those are copied.
    :param frozen: what was committed on top of these, lowest first: directories, or layers that are kept in memory.
    :param noexec: whether programs may not be run from it.
    """

    target: str
    lowers: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    entries: tuple[Entry, ...] | None = None
    files: tuple[str, ...] = ()
    noexec: bool = False
    frozen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Root:
    """A whole root filesystem.

    :param trees: the overlays, parents before children.
    :param host: whether these are the host's own directories, whose owners may be unmapped inside.
    :param look: mode, owner and group of the root directory itself; None to take them from its lowest layer.
    :param env: the image's variables; None for the host's root, where the caller's own hold.
    :param user: the uid, gid and home directory that the image wants to be run as.
    :param workdir: where its commands start.
    :param command: what it runs when nothing else is said.
    :param stop_signal: the number of the signal that asks its command to end.
    """

    trees: tuple[Tree, ...]
    host: bool = False
    look: tuple[int, int, int] | None = None
    env: tuple[tuple[str, str], ...] | None = None
    user: tuple[int, int, str] = (0, 0, "/root")
    workdir: str = "/"
    command: tuple[str, ...] = ()
    stop_signal: int = 15
