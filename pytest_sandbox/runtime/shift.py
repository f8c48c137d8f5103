"""Shifted ids: the root of a sandbox is, outside, an id that owns nothing. For sandboxes of real root.

Without it a sandbox's root has the host's own id 0, and what keeps it from the host's files is that it has no way to
them. With it, it is nobody's id even where such a way is found. What belongs to 0 on disk is shown as that id's by
id-mapped mounts of all that a sandbox's root is made of: the layers below, the writable one, and what shows through.
So nothing is stored with a shifted id, and whoever looks at a layer from outside sees the ids as they are inside.

:func:`shifted` rewrites a plan that was made for the host's own ids. :mod:`.mapped` is the helper's side. Where a file
system cannot be mapped the plan stays as it was, and says why (:attr:`.plan.Plan.unshifted`).
"""

from __future__ import annotations

import functools
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from . import syscalls as sc

if TYPE_CHECKING:
    from .plan import Plan

#: Set to "host", this variable of the environment keeps the host's ids.
VARIABLE = "PYTEST_SANDBOX_IDS"
#: Candidates for the range: where it begins, and how many ids it has. The upper half of all ids is given to nobody:
#: useradd(8) and systemd give out lower ones, some programs take these for negative numbers.
_RANGES = ((1 << 31, (1 << 31) - 1), (1 << 31, 1 << 30), (3 << 30, (1 << 30) - 1),
           *((first << 28, 1 << 28) for first in range(8, 15)))


@functools.lru_cache(maxsize=1)
def the_range() -> tuple[int, int] | None:
    """The ids of sandboxes: the first, which is their root, and their number. None if all are subordinate ids here."""
    taken = []
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(path) as file:
                fields = [line.strip().split(":") for line in file]
        except OSError:
            continue
        taken += [(int(one[1]), int(one[1]) + int(one[2])) for one in fields
                  if len(one) == 3 and one[1].isdigit() and one[2].isdigit()]
    return free_range(taken)


def free_range(taken: Iterable[tuple[int, int]]) -> tuple[int, int] | None:
    """The first candidate that has none of the ids ``taken``: the first of each range, and the one after its last."""
    taken = list(taken)
    for first, count in _RANGES:
        if not any(begin < first + count and first < end for begin, end in taken):
            return first, count
    return None


def unwanted() -> str:
    """Why ids are not shifted at all, before anything is tried; empty where nothing speaks against it."""
    if os.environ.get(VARIABLE) == "host":
        return f"{VARIABLE}=host is set"
    return "" if the_range() is not None else "all ranges of ids are somebody's in /etc/subuid or /etc/subgid"


@contextmanager
def acting_as(base: int) -> Iterator[None]:
    """While this lasts, the calling thread makes files as the root of sandboxes, with real root's rights over others.

    An overlay of mapped layers has no place for the ids of anybody else.
    """
    own, (effective, permitted, inheritable) = (os.geteuid(), os.getegid()), sc.capget()
    # The kernel takes these away with each change of ids, and what we do here is nobody's business.
    kept = [(setting, value) for setting, value in ((sc.PR_SET_DUMPABLE, sc.prctl(sc.PR_GET_DUMPABLE)),
                                                    (sc.PR_SET_PDEATHSIG, sc.death_signal())) if value]
    sc.act_as(base, base)
    try:
        yield
    finally:
        sc.act_as(*own)
        sc.capset(effective, permitted, inheritable)
        for setting, value in kept:
            with suppress(OSError):
                sc.prctl(setting, value)


def hand_over(fds: Iterable[int], base: int, ids: tuple[int, int]) -> None:
    """Gives a process's streams to whom it runs as, who can then open them by name (/dev/stderr), as anybody else can.

    What has a name outside, or is somebody's terminal, keeps its owner.
    """
    for fd in fds:
        with suppress(OSError):
            look = os.fstat(fd)
            if stat.S_ISFIFO(look.st_mode) or (stat.S_ISREG(look.st_mode) and look.st_nlink == 0):
                os.fchown(fd, base + ids[0], base + ids[1])


#: What has its place in a status: Python 3.13 refuses to be given it by name as well.
_PLACED = ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size")


def seen_inside(look: os.stat_result, plan: Plan) -> os.stat_result:
    """A file's status with the owner and group that it has inside; ids that are not mapped stay what they are."""
    if not plan.base:
        return look
    values = tuple(look)  # of a structure with more than that: it has the others by name only
    names = {name: getattr(look, name) for name in dir(look) if name.startswith("st_") and name not in _PLACED}
    ids = [one - plan.base if one >= plan.base else one for one in (look.st_uid, look.st_gid)]
    return os.stat_result((*values[:4], *ids, *values[6:]), names)


class _Sources:
    """Where the helper shows what a plan's paths name; collects the steps that this takes."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole  # layers are file systems of the host, not directories of the store
        self.found: dict[str, tuple[str, list[str]]] = {}

    def seen(self, path: str) -> str:
        """The path of a layer, mapped."""
        parts = path.split("/")
        if parts[1] == "own":
            return self._need("/mapped/own", "/own", path[len("/own/"):], False)
        if parts[1] == "frozen":
            return self._need(frozen_place(parts[2]), f"/frozen/{parts[2]}", "/".join(parts[3:]), False)
        # Of the store, the directory that holds all layers: one mount for as many as there are.
        depth = 0 if self.whole else min(2, len(parts) - 2)
        source, name = "/".join(parts[:len(parts) - depth]), "/".join(parts[len(parts) - depth:])
        if depth and not _on_one_file_system(source[len("/host"):] or "/", path[len("/host"):]):
            source, name = path, ""
        place = f"/mapped/{hashlib.sha256(os.fsencode(source)).hexdigest()[:12]}"
        return self._need(place, source, name, True)

    def _need(self, place: str, source: str, name: str, check: bool) -> str:
        names = self.found.setdefault(place, (source, []))[1]
        if name and check and name not in names:
            names.append(name)
        return f"{place}/{name}" if name else place

    def steps(self) -> list[list[Any]]:
        return [["own_mapped", place, source, names] for place, (source, names) in self.found.items()]


def _on_one_file_system(one: str, other: str) -> bool:
    try:
        return os.stat(one).st_dev == os.stat(other).st_dev
    except OSError:
        return True  # whoever mounts it will say so


def frozen_place(key: str) -> str:
    """Where the helper shows a frozen layer, mapped."""
    return f"/mapped/frozen-{key}"


def shifted(body: dict[str, Any], whole: bool, ids: tuple[int, int]) -> dict[str, Any]:
    """A plan's body whose sandbox has its ids from ``ids`` on, the first and their number.

    :param whole: whether its layers are file systems of the host.
    """
    base, count = ids
    sources = _Sources(whole)
    template = []
    for step in body["template"]:
        template.append(step)
        if step[0] == "own_names":
            template.append(["own_names", _seen_names(step[1]), [sources.seen(one) for one in step[2]]])
    steps = [_step(step, base, sources) for step in body["mounts"]]
    return {
        **body,
        "template": template,
        "mapped": sources.steps(),
        "scratch": [["scratch", f"{options},uid=0,gid=0"] for _, options in body["scratch"]],
        "mounts": [["scratch_mapped"], *steps],
        "inside": [["pts"], *body["inside"]],
        "base": base,
        "uid_map": f"0 {base} {count}",
        "gid_map": f"0 {base} {count}",
    }


def _seen_names(short: str) -> str:
    return f"{short}.mapped"


def _step(step: list[Any], base: int, sources: _Sources) -> list[Any]:
    name, *rest = step
    if name == "overlay":
        number, target, lowers, short, like, flags, options, may_write, seed = rest
        like = sources.seen(like) if isinstance(like, str) else [like[0], like[1] + base, like[2] + base]
        return [name, number, target, [sources.seen(one) for one in lowers], short and _seen_names(short), like, flags,
                options, may_write, seed and sources.seen(seed)]
    if name == "dev":
        return [name, rest[0], "/mapped/nodes"]
    if name == "run":
        directories = [[path, mode, uid + base if uid >= 0 else -1, gid + base if gid >= 0 else -1]
                       for path, mode, uid, gid in rest[0]]
        return [name, directories, rest[1]]
    if name == "bind":
        return [*step, sc.MOUNT_ATTR_IDMAP]
    return step


def asked(body: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What of the host's must be mapped for it: layers, and what shows through."""
    lowers = [source[len("/host"):] or "/" for _, _, source, _ in body["mapped"] if source.startswith("/host")]
    return lowers, [step[1] for step in body["mounts"] if step[0] == "bind"]


def told(answer: dict[str, Any]) -> str:
    """Why ids are not shifted, from what the helper answered; empty where they can be."""
    if not answer:
        return ""
    why = os.strerror(answer["errno"]) if answer["errno"] else "other ids than asked for"
    if "step" in answer:
        return f"this kernel cannot {answer['step']}: {why}"
    return f"the file system of {answer['path']} ({_kind(answer['path'])}) cannot be mapped: {why}"


def _kind(path: str) -> str:
    best, kind = "", "unknown"
    with open("/proc/self/mounts") as file:
        for line in file:
            _, point, found, *_ = line.split(" ")
            if f"{path}/".startswith(f"{point.rstrip('/')}/") and len(point) >= len(best):
                best, kind = point, found
    return kind
