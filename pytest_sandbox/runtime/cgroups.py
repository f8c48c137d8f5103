"""Resource control as the caller sees it: what this host can limit, and what a sandbox's cgroup shall be.

:func:`host_control` finds out, once a process, by making a directory of this run in each hierarchy; sandboxes get
theirs below. :meth:`Control.layout` says what the helper shall make for a spec (:mod:`.cgroup_make` makes it), and a
:class:`~.cgroup.Group` reads, changes, freezes and kills it. :mod:`.cgroup_v1` and :mod:`.cgroup_v2` know the files.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import SandboxUsageError
from ..spec import DEFAULT_PIDS, SandboxSpec
from .cgroup import FEATURES, unavailable
from .hierarchies import Hierarchies, Missing, Run, find_hierarchies

if TYPE_CHECKING:
    from .cgroup import Group
    from .probe import Finding

#: What the helper shall make: ``version``, ``places``, ``files`` and ``flat`` as lists, ``join``, ``memory``. Plain
#: JSON values.
Layout = dict[str, Any]

#: Why a sandbox without a cgroup cannot be frozen, and what to do.
FREEZE_NEEDS = ("it has no cgroup", "Run `pytest-sandbox doctor` to see how this host can give it one.")


@dataclass(frozen=True, slots=True)
class Ability:
    """One thing that resource control does on this host.

    :param how: the mechanism, or what stands in its way.
    :param remedy: how to get it.
    """

    ok: bool
    how: str
    remedy: str = ""


class Control:
    """What this process can limit. Made by :func:`host_control`; one of the two versions, or none at all."""

    version = 0
    #: The controllers by which processes are frozen, and their use of CPUs is counted.
    others: ClassVar[dict[str, str]] = {"freeze": "", "accounting": ""}
    #: What an ability leaves out, in words, by the name of the option.
    only: ClassVar[dict[str, str]] = {}
    #: The controllers whose limits hold only in the very directory that they are set in.
    flat: ClassVar[tuple[str, ...]] = ()

    def __init__(self, found: Hierarchies) -> None:
        self.found = found
        self.moved = 0  # how often this process was moved to another cgroup, to have limits
        self.run = Run()

    def close(self) -> None:
        """The process ends, or its last sandbox has: nothing of this run stays."""
        self.run.close()
        self.run = Run()

    # What the two versions say.

    def place(self, controller: str, asked: bool) -> str:
        """The directory in which sandboxes' groups with this controller are made. It has the files that theirs have.

        :param asked: a user asked for it: then it may cost something to get it.
        :raises Missing: when it cannot be had.
        """
        raise Missing("no cgroup hierarchy is mounted here", "Mount one: cgroup v2 at /sys/fs/cgroup.")

    def files(self, option: str, value: Any, spec: SandboxSpec) -> list[tuple[str, str, str]]:
        """Controller, file and text by which a limit is set.

        :raises Missing: when this host has the controller but not this limit.
        """
        raise NotImplementedError

    def group(self, layout: Layout, name: str) -> Group:
        """The caller's side of a sandbox's cgroup."""
        raise NotImplementedError

    def accounting(self) -> tuple[str, ...]:
        """The controllers that only count."""
        return ()

    # What follows.

    def layout(self, spec: SandboxSpec) -> Layout | None:
        """What the helper shall make for a sandbox of this spec; None for nothing.

        :raises SandboxUnavailable: for a limit that was asked for and that cannot be enforced here.
        """
        if spec.swap is not None and spec.memory is None:
            raise SandboxUsageError("sandbox option swap cannot be used without memory", option="swap",
                                    value=spec.swap, remedy="Give the memory option, too.")
        places: dict[str, str] = {}
        files: list[tuple[str, str, str]] = []
        given = {option for option in ("memory", "cpus", "cpu_weight", "io_weight", "io", "pids")
                 if getattr(spec, option) is not None and (option != "pids" or asked_pids(spec))}
        for option in sorted(given | {"pids"}):
            try:
                controller = CONTROLLERS[option]
                place = self.place(controller, option in given)
                files += self.files(option, getattr(spec, option), spec)
                places[self.key(controller)] = place
            except Missing as missing:
                if option in given and not (option == "pids" and limits_by_rlimit()):
                    raise unavailable(option, *missing.args) from None
        for controller in self.accounting():
            with contextlib.suppress(Missing):
                place = self.place(controller, False)
                places[self.key(controller)] = place
        if not places:
            return None
        return {"version": self.version, "places": sorted(places.items()),
                "files": [(self.key(controller), file, text) for controller, file, text in files],
                "join": "tasks" if self.version == 1 else "cgroup.procs", "memory": spec.memory,
                "flat": [self.key(name) for name in self.flat if self.key(name) in places]}

    def key(self, controller: str) -> str:
        """Under which name a controller's directory travels."""
        return controller

    def abilities(self) -> dict[str, Ability]:
        """Each limit, and what else there is, by name, and whether it can be had: by doing what a sandbox would do."""
        found = {}
        spec = SandboxSpec(memory=1 << 30, swap=0, cpus=1, cpu_weight=100, io_weight=100, io=(("read", 1 << 30),))
        for name, controller in {**CONTROLLERS, **self.others}.items():
            try:
                place = self.place(controller, True)
                if name in CONTROLLERS:
                    self.files(name, getattr(spec, name), spec)
                how = f"cgroup v{self.version}: {os.path.dirname(place)}{self.only.get(name, '')}"
                found[name] = Ability(True, how)
            except Missing as missing:
                found[name] = Ability(False, *missing.args)
        return found


#: The controller that each limit needs, by its name in cgroup v1.
CONTROLLERS = {"memory": "memory", "swap": "memory", "cpus": "cpu", "cpu_weight": "cpu", "io_weight": "blkio",
               "io": "blkio", "pids": "pids"}


def quota(cpus: float | None) -> tuple[int, int]:
    """The quota and the period, in microseconds, of ``cpus``; -1 for no limit. The kernel takes no quota below 1 ms."""
    if cpus is None:
        return -1, 100_000
    period = 100_000 if cpus >= 0.05 else 1_000_000
    return max(1000, round(cpus * period)), period


def asked_pids(spec: SandboxSpec) -> bool:
    """Whether the user said how many tasks there may be."""
    return "pids" in spec.given or spec.pids != DEFAULT_PIDS


def limits_by_rlimit() -> bool:
    """Whether RLIMIT_NPROC can stand in for ``pids``: it counts the tasks of a user namespace, and spares real root."""
    return os.geteuid() != 0


_control: tuple[int, Control] | None = None
_making = threading.Lock()
_names = itertools.count(1)


def host_control() -> Control:
    """This process's resource control: probed at the first call, by doing."""
    global _control
    with _making:
        if _control is None:
            atexit.register(shutdown)
        if _control is None or _control[0] != os.getpid():
            _control = os.getpid(), _find()
        return _control[1]


def _find() -> Control:
    found = find_hierarchies()
    if any(name in found.v1 for name in ("memory", "pids", "cpu")):
        from .cgroup_v1 import ControlV1
        return ControlV1(found)
    if found.unified is not None:
        from .cgroup_v2 import ControlV2
        return ControlV2(found)
    return Control(found)


def places() -> list[str]:
    """This run's directories."""
    if _control is not None and _control[0] == os.getpid():
        return list(_control[1].run.places.values())
    return []


def findings() -> list[Finding]:
    """What of resource control there is on this host, in the order of the options, for ``doctor``."""
    from .probe import Finding
    found = []
    for name, ability in host_control().abilities().items():
        feature, what = FEATURES[name]
        how = ability.how
        ok = ability.ok
        if name == "pids" and not ok and limits_by_rlimit():
            ok, how = True, "by RLIMIT_NPROC in a user namespace; forks that it refuses are not counted"
        found.append(Finding(feature, what, ok, False, how, "" if ok else FOLLOWS.get(name, _REFUSED.format(name)),
                             "" if ok else ability.remedy))
    found.append(Finding("disk-limit", "limit the writable layer", True, False, "the size of a tmpfs"))
    return found


_REFUSED = "tests with the option {} are refused"
FOLLOWS = {
    "pids": "there is no limit by default, and tests with the option pids are refused",
    "freeze": "Sandbox.freeze() is refused",
    "accounting": "Usage has no memory and no peaks, and counts only processes that somebody waited for",
}


def next_name() -> str:
    """A name for a sandbox's cgroup that no other sandbox of this process has."""
    return str(next(_names))


def shutdown() -> None:
    """Removes this run's directories. Does nothing where none were made."""
    if _control is not None and _control[0] == os.getpid():
        _control[1].close()


def _in_fork() -> None:
    global _control, _making
    _making = threading.Lock()
    if _control is not None:
        _control[1].run.forget()
        _control = None


os.register_at_fork(after_in_child=_in_fork)
