"""Verifies from inside what a sandbox promises: one cheap check each, that tries the forbidden thing. Off by default.

Turned on by ``pytest --sandbox-selftest``. Each sandbox is then visited by a fork of the caller before it is used; what
does not hold is an error that names the promise (docs/security.md). The checks know what was asked for
(:attr:`.plan.Plan.waived`, :attr:`~.plan.Plan.kept`), not what was done for it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import SandboxStartError
from .entering import forking
from .plan import Plan
from .running import Running
from .supervisor import verify

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
INIT = 1
_TIOCSTI, _SIOCGIFFLAGS = 0x5412, 0x8913
_NODES = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)}
#: Majors of terminals: those of the sandbox's own, and what means a process' own.
_TERMINALS = (5, 136)


@dataclass(frozen=True)
class Visit:
    """What the checks compare with: taken outside, used inside."""

    plan: Plan
    namespaces: dict[str, str]


def visit(plan: Plan) -> Visit:
    """As it is out here."""
    return Visit(plan, {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS})


# The checks: each returns what is wrong, or None.

def namespaces(visit: Visit) -> str | None:
    for kind, outside in visit.namespaces.items():
        if kind == "net" and "network namespace" in visit.plan.waived:
            continue
        if os.readlink(f"/proc/self/ns/{kind}") == outside:
            return f"its {kind} namespace is the host's"
    return None


def _can_open(path: str, flags: int) -> bool:
    try:
        fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    look = os.fstat(fd)
    os.close(fd)
    return not (stat.S_ISCHR(look.st_mode) and look.st_rdev == os.makedev(1, 3))  # covered


def kernel_files(visit: Visit) -> str | None:
    for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches"):
        if _can_open(path, os.O_WRONLY):
            return f"{path} can be opened for writing"
    for path in ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"):
        if _can_open(path, os.O_RDONLY):
            return f"{path} can be read"
    if not os.statvfs("/sys").f_flag & os.ST_RDONLY:
        return "/sys is writable"
    return None


def devices(visit: Visit) -> str | None:
    for name in os.listdir("/dev"):
        look = os.lstat(f"/dev/{name}")
        number = os.major(look.st_rdev), os.minor(look.st_rdev)
        if stat.S_ISBLK(look.st_mode) or (
                stat.S_ISCHR(look.st_mode) and number not in _NODES and number[0] not in _TERMINALS):
            return f"/dev/{name} is there"
    return None


def _status(name: str) -> list[str]:
    """A line of /proc/PID/status: of this process, and of init, from which every command has it."""
    found = []
    for pid in ("self", INIT):
        with open(f"/proc/{pid}/status") as file:
            found += [line.split(":")[1].strip() for line in file if line.startswith(f"{name}:")]
    return found


def privileges(visit: Visit) -> str | None:
    if visit.plan.base:
        with open("/proc/self/uid_map") as file:
            if any(line.split()[1] == "0" for line in file):
                return "its root is the host's own"
    if _status("NoNewPrivs") != ["1", "1"]:
        return "no_new_privs is not set"
    for text in _status("CapBnd"):
        if more := int(text, 16) & ~visit.plan.kept:
            return f"the bounding set has capabilities that were not asked for: {more:#x}"
    if more := int(_status("CapEff")[0], 16) & ~visit.plan.kept:
        return f"it has capabilities that were not asked for: {more:#x}"
    return None


def system_calls(visit: Visit) -> str | None:
    if "filter" in visit.plan.waived:
        return None
    if _status("Seccomp") != ["2", "2"]:
        return "there is no filter of system calls"
    if "default filter" not in visit.plan.waived:
        with open("/dev/null", "rb") as null:
            try:
                fcntl.ioctl(null, _TIOCSTI, b"x")
            except OSError as error:
                if error.errno != errno.EPERM:  # without a filter: no terminal
                    return f"TIOCSTI gets past the filter, as far as {errno.errorcode.get(error.errno or 0)}"
    return None


def init(visit: Visit) -> str | None:
    return "init's memory can be opened" if _can_open(f"/proc/{INIT}/mem", os.O_RDWR) else None


def network(visit: Visit) -> str | None:
    if "network" in visit.plan.waived:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            flags = struct.unpack("16xh14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("32s", name.encode())))[0]
            if name != "lo" and flags & 1:
                return f"it has the network interface {name}"
    return None


def secrets(visit: Visit) -> str | None:
    shown = [step[2] for step in visit.plan.body["mounts"] if step[0] == "bind"]
    for tree in visit.plan.root.trees:
        for name in tree.hidden:
            path = os.path.join(tree.target, name)
            if os.path.lexists(path) and not any(f"{path}/".startswith(f"{one}/") for one in shown):
                return f"{path} is there"
    return None


#: By the name of the promise.
CHECKS: dict[str, Callable[[Visit], str | None]] = {
    "namespaces": namespaces, "kernel files": kernel_files, "devices": devices, "privileges": privileges,
    "system calls": system_calls, "init": init, "network": network, "secrets": secrets,
}


def broken(visit: Visit) -> dict[str, str]:
    """What does not hold in the process that asks, by the name of the promise."""
    found = {}
    for promise, check in CHECKS.items():
        try:
            wrong = check(visit)
        except Exception as error:  # noqa: BLE001 - a check that cannot tell proves nothing
            wrong = f"it could not be tried: {error!r}"
        if wrong:
            found[promise] = wrong
    return found


def check(running: Running) -> None:
    """Verifies a sandbox that is ready.

    :raises SandboxStartError: when it does not keep a promise; it is ended.
    """
    seen = visit(running.plan)
    with forking:
        reading, writing = os.pipe()
        try:
            child = running.fork(running.plan.ids)
        except BaseException:
            os.close(reading)
            os.close(writing)
            raise
        if child is None:
            try:
                os.write(writing, json.dumps(broken(seen)).encode()[:4000])
            finally:
                os._exit(0)
        os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read(4096)
    status = child.wait()
    try:
        found = json.loads(text)
    except ValueError:
        found = {"selftest": f"the process that was to try it ended with status {status}"}
    if found:
        running.let_go()
        running.wait_gone()
        name, why = next(iter(found.items()))
        raise SandboxStartError(
            f"the sandbox does not keep its promise {name!r}", step=f"selftest: {name}", why=why,
            remedy="This is a bug of pytest-sandbox, or this host lets something through: see docs/security.md, run "
                   "`pytest-sandbox doctor`, and please report it.")


def enable() -> None:
    """From now on every sandbox of this process is verified before it is used."""
    if check not in verify:
        verify.append(check)
