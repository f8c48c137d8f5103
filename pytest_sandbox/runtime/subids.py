"""Subordinate ids: the ranges of user and group ids that the system gives an ordinary user (subuid(5), subgid(5)).

With them a user namespace has other ids than the caller's own. Only setuid programs may write such maps, newuidmap(1)
and newgidmap(1). Used by builds, whose steps install what belongs to others, and by ``pytest-sandbox doctor``.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from . import syscalls as sc

#: As many as one user gets by default, and more than any image's users need.
_MOST = 1 << 16
REMEDY = ("Install them: `sudo apt-get install uidmap` and `sudo usermod --add-subuids 100000-165535 "
          "--add-subgids 100000-165535 $USER`.")


class NoSubordinateIds(Exception):
    """There are none here, or they cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Ids:
    """What is mapped: the caller's own ids to 0, and the subordinate ones from 1 on.

    ``uids`` and ``gids`` are command lines for newuidmap and newgidmap, without the process; ``users`` and ``groups``
    say how many ids there are.
    """

    uids: tuple[str, ...]
    gids: tuple[str, ...]
    users: int
    groups: int


def find() -> Ids:
    """The ranges that belong to the caller, as far as can be told without using them.

    :raises NoSubordinateIds: when there are none.
    """
    uids, users = _map("newuidmap", "/etc/subuid", os.getuid(), ())
    gids, groups = _map("newgidmap", "/etc/subgid", os.getgid(), ("-g",))
    return Ids(uids, gids, users, groups)


def probe() -> Ids:
    """As :func:`find`, tried: maps them for a process that does nothing, and looks whether they are there.

    :raises NoSubordinateIds: when there are none, or the system refuses them.
    """
    ids = find()
    ready, done = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(done[1])
            sc.unshare(sc.CLONE_NEWUSER)
            os.write(ready[1], b"u")
            if os.read(done[0], 1) == b"m":
                os.setgroups([ids.groups - 1])
                os.setresgid(ids.groups - 1, ids.groups - 1, ids.groups - 1)
                os.setresuid(ids.users - 1, ids.users - 1, ids.users - 1)
                status = 0
        finally:
            os._exit(status)
    try:
        os.close(done[0])
        os.close(ready[1])
        if not os.read(ready[0], 1):
            raise NoSubordinateIds("this user may not make user namespaces")
        for command in (ids.uids, ids.gids):
            said = subprocess.run([command[0], str(pid), *command[1:]], capture_output=True, text=True, check=False)
            if said.returncode:
                raise NoSubordinateIds(f"{os.path.basename(command[0])} refused: "
                                       f"{' '.join(said.stderr.split()) or f'status {said.returncode}'}")
        os.write(done[1], b"m")
    finally:
        os.close(ready[0])
        os.close(done[1])
        status = os.waitpid(pid, 0)[1]
    if status:
        raise NoSubordinateIds("a process in a namespace with these ids could not take one of them on")
    return ids


def _map(program: str, path: str, own: int, option: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    where = next((f"{one}/{program}" for one in os.environ.get("PATH", os.defpath).split(":")
                  if one.startswith("/") and os.access(f"{one}/{program}", os.X_OK)), None)
    if where is None:
        raise NoSubordinateIds(f"{program} is not installed")
    command, count = [where, "0", str(own), "1"], 1
    for first, length in _ranges(path, option):
        length = min(length, _MOST - count)
        if length > 0 and not first <= own < first + length:
            command += [str(count), str(first), str(length)]
            count += length
    if count == 1:
        raise NoSubordinateIds(f"{path} has no range for {_name() or os.getuid()}")
    return tuple(command), count


def _ranges(path: str, option: tuple[str, ...]) -> list[tuple[int, int]]:
    names = {_name(), str(os.getuid())}
    try:
        with open(path) as file:
            lines = [line.strip().split(":") for line in file]
    except OSError:
        lines = []
    found = [(int(one[1]), int(one[2])) for one in lines
             if len(one) == 3 and one[0] in names and one[1].isdigit() and one[2].isdigit()]
    return found or _asked(option)


def _asked(option: tuple[str, ...]) -> list[tuple[int, int]]:
    """What getsubids(1) knows: ranges may come from a directory service (nsswitch.conf, ``subid``)."""
    name = _name()
    if name is None:
        return []
    try:
        said = subprocess.run(["getsubids", *option, name], capture_output=True, text=True, check=False)
    except OSError:
        return []
    lines = [line.split() for line in said.stdout.splitlines()]  # "0: tester 100000 65536"
    return [(int(one[2]), int(one[3])) for one in lines if len(one) == 4 and one[2].isdigit() and one[3].isdigit()]


def _name() -> str | None:
    import pwd
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return None
