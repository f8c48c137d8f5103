"""``FROM host``: stages on the host's own root, whose layers are changes of its trees. For ``builder`` and ``layered``.

What a step finds is asked of a sandbox, as the host has no layers to look into. The image that comes out is a state
of the host: it is named ``host:NAME``, and has no configuration.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import planning
from ..image.commit import Written, write_archive
from ..image.diff import open_archive
from ..image.restack import Restacker
from ..runtime import launch
from ..runtime import syscalls as sc
from ..spec import SandboxSpec
from .context import Missing, Source
from .layers import LayerMaker

if TYPE_CHECKING:
    from ..image.manifest import HostTrees
    from ..sandbox import Sandbox
    from .builder import Builder, State

#: What changes when packages come or go.
_SIGNS = ("/etc/os-release", "/var/lib/dpkg/status", "/var/lib/rpm", "/lib/apk/db/installed", "/var/lib/pacman/local",
          "/usr/bin", "/usr/lib", "/usr/local/bin", "/etc")


def fingerprint() -> str:
    """Something that differs when the host has other packages. Not a sum of all that a step could read."""
    found = [" ".join(os.uname())]
    for path in _SIGNS:
        with suppress(OSError):
            look = os.stat(path)
            found.append(f"{path} {look.st_ino} {look.st_mtime_ns}")
    return hashlib.sha256("\0".join(found).encode()).hexdigest()


@contextmanager
def opened(build: Builder, state: State) -> Iterator[Sandbox]:
    """A sandbox on a stage as it is."""
    from ..sandbox import Sandbox

    with Sandbox(image=image_of(build, state), user="root") as sandbox:
        yield sandbox


def image_of(build: Builder, state: State) -> str:
    """A reference to a stage as it is."""
    if state.base is None:
        return "host"
    build.store.know(state.base)
    return f"image:{state.base.image_id}"


class HostMaker(LayerMaker):
    """As the other, for a stage on the host: it looks into a sandbox."""

    def __init__(self, build: Builder, sandbox: Sandbox) -> None:
        super().__init__(build.store, (), build.latest)
        self._files = HostFiles(sandbox)

    def is_directory(self, path: str) -> bool:
        look = self._files.look(path)
        return look is not None and stat.S_ISDIR(look.st_mode)

    def exists(self, path: str) -> bool:
        return self._files.look(path) is not None


class HostFiles:
    """A stage on the host as a source of ``COPY --from``: the sandbox's merged files, no link followed out of them."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._root = sandbox._root_fd

    def __enter__(self) -> HostFiles:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def look(self, path: str) -> os.stat_result | None:
        """What a path leads to."""
        try:
            fd = sc.openat2(self._root, os.path.normpath("/" + path), os.O_PATH, resolve=sc.RESOLVE_IN_ROOT)
        except OSError:
            return None
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def tree(self, path: str) -> list[Source]:
        """A file or a directory and all below it.

        :raises Missing: when there is none.
        """
        clean = os.path.normpath("/" + path)
        try:
            fd = sc.openat2(self._root, clean, os.O_PATH, resolve=sc.RESOLVE_IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"there is no {path!r} in it", "Check the path on this host and in the stage.") from None
        try:
            real = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        where = f"/proc/self/fd/{self._root}{real}"
        top = Source("", where, os.lstat(where))
        return [top, *self._below(where, "")]

    def _below(self, where: str, relative: str) -> list[Source]:
        if not stat.S_ISDIR(os.lstat(where).st_mode):
            return []
        made = []
        for name in sorted(os.listdir(where)):
            there, inner = f"{where}/{name}", f"{relative}/{name}" if relative else name
            look = os.lstat(there)
            made.append(Source(inner, there, look, os.readlink(there) if stat.S_ISLNK(look.st_mode) else ""))
            if stat.S_ISDIR(look.st_mode):
                made += self._below(there, inner)
        return made


def split(build: Builder, written: Written) -> list[tuple[str, Written]]:
    """A layer of the whole root as one for each of the host's trees."""
    trees = [tree.target for tree in planning._host_root(SandboxSpec(), launch.supervisor().host).trees]
    blob = build.store.layout.blob(written.digest)
    with open(blob, "rb") as file:
        parts = Restacker(file, trees, "a build", _look)

        def write_tree(tree: str) -> Written:
            def write(out: BinaryIO) -> int:
                with open_archive(out) as tar:
                    return parts.write(tree, tar)
            return write_archive(build.store, write)

        found = [(tree, write_tree(tree)) for tree in parts.found]
    if written.digest not in {one.digest for _, one in found}:
        os.unlink(blob)
    return found


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def changed(build: Builder, state: State, sandbox: Sandbox) -> list[tuple[str, Written]]:
    """What a ``RUN`` has changed, tree by tree."""
    from ..committing import write_trees
    from ..images import Image

    running = sandbox._ready()
    uppers = {tree.target: f"/proc/self/fd/{running.scratch}/{number}/upper"
              for number, tree in enumerate(running.plan.root.trees)}
    return [(tree, one) for tree, one in write_trees(Image(image_of(build, state)), running.plan, uppers, build.latest)
            if one.entries]


def mapping(before: HostTrees | None, count: int, added: Sequence[tuple[str, Any]]) -> HostTrees:
    """Which layers belong to which tree, once ``added`` ones lie above ``count`` others."""
    on = {tree: tuple(numbers) for tree, numbers in before or ()}
    for number, (tree, _) in enumerate(added):
        on[tree] = (*on.get(tree, ()), count + number)
    return tuple(sorted(on.items()))


def owner(text: str) -> tuple[int, int]:
    """The ids that ``--chown`` means on this host.

    :raises ValueError: when there is nobody of that name.
    """
    import grp
    import pwd

    user, _, group = text.partition(":")
    try:
        found = pwd.getpwnam(user) if not user.isdigit() else None
        uid = found.pw_uid if found is not None else int(user)
        gid = found.pw_gid if found is not None else uid
        if group:
            gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ValueError(f"this host knows no {text!r}") from None
    return uid, gid
