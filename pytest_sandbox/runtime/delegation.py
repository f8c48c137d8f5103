"""Finds, or asks systemd for, a part of cgroup v2 that this process may divide. Used by :mod:`.cgroup_v2`.

systemd's rules: https://systemd.io/CGROUP_DELEGATION. A unit with ``Delegate=yes`` is marked by an extended attribute;
other cgroups are systemd's own, also where we could write to them: an out-of-memory kill in there would end the unit.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import Any

from .cgroup_v2 import LEAF, _controllers, _enable


class NotDelegated(Exception):
    """There is no such part: ``why``, and the ``remedy``."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.why, self.remedy = why, remedy


def find(own: str, ask: bool) -> str:
    """The directory below which cgroups can be made, this process moved out of its way if need be.

    :param own: the directory of this process's cgroup.
    :param ask: whether to ask systemd for one when there is none.
    :raises NotDelegated: when there is none.
    """
    if os.path.basename(own) == LEAF and _ours(os.path.dirname(own)):
        return os.path.dirname(own)  # somebody moved us here before
    if not os.path.exists(f"{own}/cgroup.type"):  # the root of all
        if os.access(f"{own}/cgroup.procs", os.W_OK):
            return own
    elif _ours(own) and (_marked(own) or not _systemd()):
        _make_room(own)
        return own
    if not _systemd():
        raise NotDelegated(f"the cgroup {own} is not ours to divide", "Run as root, or in a container that was started "
                           "with a writable cgroup namespace (`--cgroupns=private`, `--privileged`).")
    if not ask:
        raise NotDelegated(f"systemd has not delegated the cgroup {own}; it is asked to when a test wants a limit",
                           "Give a limit, or start with `systemd-run --user --scope -p Delegate=yes pytest ...`.")
    with _Manager() as manager:
        if _ours(own) and manager.delegates(os.path.basename(own)):
            _make_room(own)
            return own
        manager.give_scope()
    from .hierarchies import find_hierarchies
    moved = find_hierarchies().unified
    if moved is None:
        raise NotDelegated("the cgroup that systemd gave is not visible here", "Mount cgroup v2 at /sys/fs/cgroup.")
    _make_room(moved)
    return moved


def _ours(path: str) -> bool:
    return os.access(path, os.W_OK) and os.access(f"{path}/cgroup.procs", os.W_OK)


def _marked(path: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _systemd() -> bool:
    return os.path.isdir("/run/systemd/system")


def _make_room(path: str) -> None:
    """Moves the processes of ``path`` to a leaf of it, so that its controllers can be given on.

    :raises NotDelegated: when that is refused.
    """
    leaf = f"{path}/{LEAF}"
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf)
        for _ in range(100):
            with open(f"{path}/cgroup.procs") as file:
                pids = file.read().split()
            if not pids:
                break
            for pid in pids:
                try:
                    with open(f"{leaf}/cgroup.procs", "w") as file:
                        file.write(pid)
                except OSError as error:
                    if error.errno != errno.ESRCH:  # it ended meanwhile
                        raise
    except OSError as error:
        raise NotDelegated(f"the processes in the cgroup {path} cannot be moved to a leaf of it: {error.strerror}",
                           "Start the run with `systemd-run --user --scope -p Delegate=yes pytest ...`.") from None
    _enable(path, _controllers(path))


_REMEDY = ("Start the run with `systemd-run --user --scope -p Delegate=yes pytest ...`; where no user manager runs, as "
           "over ssh or in a service, `sudo loginctl enable-linger $USER` starts one.")


class _Manager:
    """A connection to systemd: the user's for a user, the machine's for root.

    :raises NotDelegated: when systemd cannot be reached, or refuses.
    """

    def __enter__(self) -> _Manager:
        from jeepney import DBusAddress
        from jeepney.io.blocking import open_dbus_connection
        if os.geteuid() == 0:
            bus = "SYSTEM"
        else:
            bus = "SESSION"
            runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
            if "DBUS_SESSION_BUS_ADDRESS" not in os.environ and os.path.exists(f"{runtime}/bus"):
                bus = f"unix:path={runtime}/bus"
        self.address = DBusAddress("/org/freedesktop/systemd1", "org.freedesktop.systemd1",
                                   "org.freedesktop.systemd1.Manager")
        try:
            self.connection: Any = open_dbus_connection(bus, auth_timeout=10)
        except (OSError, KeyError, ValueError) as error:
            raise NotDelegated(f"systemd cannot be asked for a cgroup over D-Bus: {error!r}", _REMEDY) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def _call(self, message: Any) -> tuple[Any, ...]:
        from jeepney.wrappers import DBusErrorResponse, unwrap_msg
        try:
            answer: tuple[Any, ...] = unwrap_msg(self.connection.send_and_get_reply(message, timeout=10))
        except (OSError, ValueError, DBusErrorResponse) as error:
            raise NotDelegated(f"systemd does not give us a cgroup: {error!r}", _REMEDY) from None
        return answer

    def delegates(self, unit: str) -> bool:
        """Whether the unit whose cgroup we are in is delegated, by its own word."""
        from jeepney import DBusAddress, Properties, new_method_call
        kind = unit.rpartition(".")[2].capitalize()
        if kind not in ("Scope", "Service"):
            return False
        try:
            path, = self._call(new_method_call(self.address, "GetUnit", "s", (unit,)))
            where = DBusAddress(path, "org.freedesktop.systemd1", f"org.freedesktop.systemd1.{kind}")
            (_, value), = self._call(Properties(where).get("Delegate"))
        except NotDelegated:
            return False
        return bool(value)

    def give_scope(self) -> None:
        """Has this process moved, as it runs, into a scope that is delegated to us."""
        from jeepney import new_method_call
        scope = f"pytest-sandbox-{os.getpid()}-{os.urandom(4).hex()}.scope"
        self._call(new_method_call(self.address, "StartTransientUnit", "ssa(sv)a(sa(sv))", (scope, "fail", [
            ("Description", ("s", f"pytest-sandbox, process {os.getpid()}")),
            ("PIDs", ("au", [os.getpid()])),
            ("Delegate", ("b", True)),
            ("CollectMode", ("s", "inactive-or-failed")),
        ], [])))
        deadline = time.monotonic() + 10
        while True:
            with open("/proc/self/cgroup") as file:
                if f"/{scope}\n" in file.read():
                    return
            if time.monotonic() > deadline:
                raise NotDelegated(f"systemd did not move this process into {scope}", _REMEDY)
            time.sleep(0.005)
