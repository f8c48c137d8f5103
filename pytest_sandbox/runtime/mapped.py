"""The helper's side of shifted ids: the host's files as the root of a sandbox owns them, by id-mapped mounts.

:mod:`.shift` says what that is for, and how a plan asks for it. Everything here is made once for each helper, below
``/mapped`` in its own root, and shared by its sandboxes. ``/map`` there is the user namespace whose map all these
mounts have: a file system stores the ids that are seen inside, and nothing is ever stored with a shifted one.
"""

from __future__ import annotations

import errno
import os
import stat

from . import syscalls as sc
from .actions import MAP, ROOT, map_tree
from .cgroup_make import write

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

HOST, PLACE = "/host", "/mapped"

_map = ""  # what MAP says, as the kernel takes it
_lacks: dict[str, Any] | None = None  # why this kernel cannot do it; empty where it can
_wanted: set[str] = set()


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    """Whether mounts can be mapped: ``{}``, or what failed.

    :param asked: ``range``, and paths of the host: ``lowers``, and ``binds``, which include what is mounted below them.
    """
    global _lacks
    try:
        if _lacks is None:
            begin("0 {} {}".format(*asked["range"]))
            _lacks = _try_overlay()
        if _lacks:
            return _lacks
        for recursive, name in ((False, "lowers"), (True, "binds")):
            for path in asked[name]:
                try:
                    os.close(map_tree(HOST + path, recursive))
                except OSError as error:
                    if error.errno != errno.ENOENT:  # who mounts it will say so
                        return {"path": path, "errno": error.errno}
    except OSError as error:
        _lacks = {"step": "make a user namespace with a shifted range", "errno": error.errno}
        return _lacks
    return {}


def own_mapped(place: str, source: str, names: list[str]) -> None:
    """Shows ``source`` at ``place``, mapped; also what is a mount of its own among ``names`` in it. A template's step.
    """
    if place not in _wanted:
        os.makedirs(place)
        _attach(map_tree(source), place)
        _wanted.add(place)
    for name in names:
        look, shown = os.stat(f"{source}/{name}"), os.stat(f"{place}/{name}")
        if (look.st_dev, look.st_ino) != (shown.st_dev, shown.st_ino):
            _attach(map_tree(f"{source}/{name}"), f"{place}/{name}")


def forget(place: str) -> None:
    """Lets go of one."""
    if place in _wanted:
        _wanted.discard(place)
        sc.umount2(place, sc.MNT_DETACH)
        os.rmdir(place)


def _attach(copy: int, place: str) -> None:
    try:
        sc.move_mount(copy, "", sc.AT_FDCWD, place, sc.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(copy)


def begin(text: str) -> None:
    """Makes ``/map``, with the map ``text``, and the nodes of /dev. What comes before all else."""
    global _map
    if _map:
        return
    ready, done = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.close(done[1])
            sc.unshare(sc.CLONE_NEWUSER)
            os.write(ready[1], b"u")
            os.read(done[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    try:
        if not os.read(ready[0], 1):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        for name in ("uid_map", "gid_map"):
            write(f"/proc/{pid}/{name}", text)
        if not os.path.exists(MAP):
            os.close(os.open(MAP, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        sc.mount(f"/proc/{pid}/ns/user", MAP, None, sc.MS_BIND)
    finally:
        for fd in (ready[0], *done):
            os.close(fd)
        os.waitpid(pid, 0)
    _map = text
    _nodes()


def _nodes() -> None:
    """The nodes of /dev, as files of our own: as the host's they would be nobody's inside."""
    sc.mount("nodes", PLACE, "tmpfs", sc.MS_NOSUID, "mode=0755,size=64k")
    os.mkdir(f"{PLACE}/nodes")
    for name in os.listdir("/nodes"):
        place, look = f"{PLACE}/nodes/{name}", os.stat(f"/nodes/{name}")
        try:
            os.mknod(place, stat.S_IFCHR | 0o666, look.st_rdev)
            os.chmod(place, 0o666)
            copy = map_tree(place, False, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID)
            _attach(copy, place)
        except PermissionError:  # in a container that may make none
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            sc.mount(f"/nodes/{name}", place, None, sc.MS_BIND)


def _try_overlay() -> dict[str, Any]:
    """Whether an overlay takes mapped layers, and writes to them: empty, or what failed."""
    base = int(_map.split()[1])
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            from .commands import begin_as
            sc.unshare(sc.CLONE_NEWNS)
            begin_as(base)
            sc.mount("probe", "/scratch", "tmpfs", 0, "mode=0700,uid=0,gid=0")
            _attach(map_tree("/scratch"), "/scratch")
            for name in ("lower", "upper", "work"):
                os.mkdir(f"/scratch/{name}")
            os.mkdir("/scratch/lower/folder")
            sc.mount("overlay", ROOT, "overlay", 0,
                     "lowerdir=/scratch/lower,upperdir=/scratch/upper,workdir=/scratch/work,redirect_dir=on")
            os.rmdir(f"{ROOT}/folder")
            os.mkdir(f"{ROOT}/folder")
            if os.stat(f"{ROOT}/folder").st_uid != base:
                said = "0"
        except OSError as error:
            said = str(error.errno)
        finally:
            os.write(writing, said.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        failed = pipe.read()
    os.waitpid(pid, 0)
    return {"step": "mount an overlay of id-mapped layers", "errno": int(failed)} if failed else {}
