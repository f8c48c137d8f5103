"""What this host can do, found out by doing it, with the remedy for what it cannot.

Each probe forks a child that tries one thing in namespaces of its own and tells how it went; nothing outlives it. Run
by ``pytest-sandbox doctor``, and by :func:`explain` when a sandbox could not start, so that both use the same words.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import SandboxError, SandboxStartError, SandboxUnavailable
from . import spawner
from . import syscalls as sc
from .apart import in_fork


@dataclass(frozen=True, slots=True)
class Finding:
    """One probe's outcome.

    :param name: the ability, as ``SandboxUnavailable.feature`` has it.
    :param what: the ability in words.
    :param ok: whether it is there.
    :param needed: whether the default sandbox cannot do without it.
    :param found: what the kernel said.
    :param follows: what the lack of it means.
    :param remedy: what to do about it.
    """

    name: str
    what: str
    ok: bool
    needed: bool
    found: str
    follows: str = ""
    remedy: str = ""


class _Failed(Exception):
    def __init__(self, step: str, errno: int) -> None:
        self.step, self.errno = step, errno


def _try(step: str, function: Callable[..., object], *args: object) -> None:
    try:
        function(*args)
    except OSError as error:
        raise _Failed(step, error.errno or 0) from error


def _in_child(body: Callable[[], None]) -> tuple[str, int] | None:
    """Runs ``body`` in a forked child; None when it went well, else the failed step and its errno."""
    def attempt() -> dict[str, Any]:
        try:
            body()
        except _Failed as failed:
            return {"step": failed.step, "errno": failed.errno}
        return {}

    try:
        said = in_fork(attempt)
    except OSError as error:
        return str(error), 0
    return (said["step"], said["errno"]) if said else None


def _privileged() -> bool:
    from .supervisor import find_host
    return find_host().privileged


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _user_namespace(flags: int = 0) -> None:
    """A user namespace with our own id mapped to root, as an unprivileged helper makes it; none for real root."""
    uid, gid = os.getuid(), os.getgid()
    if _privileged():
        if flags:
            _try("unshare(" + _names(flags) + ")", sc.unshare, flags)
        return
    _try("unshare(CLONE_NEWUSER)", sc.unshare, sc.CLONE_NEWUSER)
    _try("write setgroups", _write, "/proc/self/setgroups", "deny")
    _try("write uid_map", _write, "/proc/self/uid_map", f"0 {uid} 1")
    _try("write gid_map", _write, "/proc/self/gid_map", f"0 {gid} 1")
    if flags:
        _try("unshare(" + _names(flags) + ")", sc.unshare, flags)


def _names(flags: int) -> str:
    known = {"mnt": sc.CLONE_NEWNS, "pid": sc.CLONE_NEWPID, "net": sc.CLONE_NEWNET, "uts": sc.CLONE_NEWUTS,
             "ipc": sc.CLONE_NEWIPC, "cgroup": sc.CLONE_NEWCGROUP, "user": sc.CLONE_NEWUSER}
    return ", ".join(name for name, flag in known.items() if flags & flag)


def _tmpfs() -> None:
    _user_namespace(sc.CLONE_NEWNS)
    _try("make mounts private", sc.mount, "none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    _try("mount tmpfs", sc.mount, "probe", "/tmp", "tmpfs", 0, "mode=0755")
    os.chdir("/tmp")
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(name)


def _probe_user() -> None:
    _try("unshare(CLONE_NEWUSER)", sc.unshare, sc.CLONE_NEWUSER)


def _probe_overlay() -> None:
    _tmpfs()
    options = "" if _privileged() else ",userxattr"
    _try("mount overlay", sc.mount, "overlay", "merged", "overlay", 0,
         "lowerdir=lower,upperdir=upper,workdir=work" + options)


def _probe_opaque() -> None:
    _tmpfs()
    os.mkdir("lower/directory")
    options = "" if _privileged() else ",userxattr"
    _try("mount overlay", sc.mount, "overlay", "merged", "overlay", 0,
         "lowerdir=lower,upperdir=upper,workdir=work" + options)
    os.rmdir("merged/directory")
    _try("make a directory again that was removed", os.mkdir, "merged/directory")


def _probe_proc() -> None:
    _user_namespace(sc.CLONE_NEWNS | sc.CLONE_NEWPID)

    def mount_it() -> None:
        _try("make mounts private", sc.mount, "none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
        _try("mount proc", sc.mount, "proc", "/proc", "proc", 0)

    failed = _in_child(mount_it)
    if failed:
        raise _Failed(*failed)


def _probe_loopback() -> None:
    import fcntl
    _user_namespace(sc.CLONE_NEWNET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        _try("bring the loopback up", fcntl.ioctl, sock, 0x8914, struct.pack("16sh14x", b"lo", 0x41))


def _probe_mqueue() -> None:
    _tmpfs()
    _try("unshare(ipc)", sc.unshare, sc.CLONE_NEWIPC)
    _try("mount mqueue", sc.mount, "mqueue", "/tmp/merged", "mqueue")


def _probe_openat2() -> None:
    def attempt() -> None:
        os.close(sc.openat2(sc.AT_FDCWD, "/", os.O_PATH, resolve=sc.RESOLVE_IN_ROOT))

    _try("openat2", attempt)


def _probe_setattr() -> None:
    _tmpfs()

    def attempt() -> None:
        tree = sc.open_tree(sc.AT_FDCWD, "/tmp", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC)
        sc.mount_setattr(tree, "", sc.AT_EMPTY_PATH | sc.AT_RECURSIVE, sc.MOUNT_ATTR_RDONLY)

    _try("open_tree and mount_setattr", attempt)


def _probe_subordinate() -> None:
    from .subids import NoSubordinateIds
    from .subids import probe as try_ids
    try:
        try_ids()
    except NoSubordinateIds as error:
        raise _Failed(str(error), 0) from error


def _probe_spawner() -> None:
    if os.environ.get(spawner.VARIABLE) == "python":
        raise _Failed(f"{spawner.VARIABLE}=python is set", 0)
    _try(f"find {spawner.PROGRAM}", os.stat, spawner.PROGRAM)
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    pid = os.posix_spawn(spawner.PROGRAM, [spawner.PROGRAM, "--actions"], {},
                         file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
    if os.waitpid(pid, 0)[1]:
        raise _Failed(f"run {spawner.PROGRAM}", 8)


@dataclass(frozen=True, slots=True)
class _Probe:
    name: str
    what: str
    body: Callable[[], None]
    needed: bool
    follows: str


_PROBES = (
    _Probe("user-namespace", "make a user namespace", _probe_user, True,
           "no sandbox can start"),
    _Probe("id-map", "map our own id in it", lambda: _user_namespace(), True,
           "no sandbox can start"),
    _Probe("namespaces", "make mount, pid, network, uts, ipc and cgroup namespaces", lambda: _user_namespace(
        sc.CLONE_NEWNS | sc.CLONE_NEWPID | sc.CLONE_NEWNET | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP),
        True, "no sandbox can start"),
    _Probe("tmpfs", "mount a tmpfs in them", _tmpfs, True, "no sandbox can start"),
    _Probe("overlay", "mount an overlay with a tmpfs as its writable layer", _probe_overlay, True,
           "no sandbox can start"),
    _Probe("overlay-opaque", "remove a directory of the host and make it again", _probe_opaque, False,
           "inside, a directory of the image that was removed cannot be made again (EIO)"),
    _Probe("proc", "mount a fresh /proc", _probe_proc, True, "no sandbox can start"),
    _Probe("loopback", "bring up a loopback of our own", _probe_loopback, True,
           'no sandbox with network="none" can start'),
    _Probe("mount-attributes", "make mounts read-only recursively (Linux 5.12)", _probe_setattr, True,
           "no sandbox can start"),
    _Probe("openat2", "resolve names inside a root (Linux 5.6)", _probe_openat2, True, "no sandbox can start"),
    _Probe("mqueue", "mount /dev/mqueue", _probe_mqueue, False, "POSIX message queues are missing inside"),
    _Probe("spawner", "start sandboxes by the compiled spawner", _probe_spawner, False,
           "sandboxes start some milliseconds later, and are otherwise the same"),
    _Probe("subordinate-ids", "map subordinate ids", _probe_subordinate, False,
           "steps of builds have a single user id: chown and packages that bring users of their own fail"),
)


def probe(names: frozenset[str] | None = None) -> list[Finding]:
    """Every probe's outcome, or that of those named, in the order in which a sandbox needs them."""
    findings = []
    root = _privileged()
    for one in _PROBES:
        if (names is not None and one.name not in names) or (root and one.name == "subordinate-ids"):
            continue
        failed = _in_child(one.body)
        if failed is None:
            findings.append(Finding(one.name, one.what, True, one.needed, "yes"))
            continue
        step, errno = failed
        why = f"{step}: {os.strerror(errno)}" if errno else step
        findings.append(Finding(one.name, one.what, False, one.needed, why, one.follows,
                                remedy(one.name, step, errno)))
    return findings


def shifted_ids(why: str) -> Finding:
    """Whether root's sandboxes have ids of their own; ``why`` they have not (:attr:`.plan.Plan.unshifted`)."""
    what = "give root's sandboxes user ids that own nothing outside"
    if not why:
        return Finding("shifted-ids", what, True, False, "yes")
    if why.endswith("is set"):
        do = "Unset it."
    elif "cannot be mapped" in why:
        do = "Use a file system that has id-mapped mounts for it (ext4, xfs, btrfs, tmpfs), or another machine."
    elif "subuid" in why:
        do = "Give ranges below 2147483648 to users: see subuid(5)."
    else:
        do = f"Use Linux 6.3 or newer (this is {os.uname().release}), whose tmpfs and overlays take id-mapped mounts."
    return Finding("shifted-ids", what, False, False, why,
                   "root of a sandbox has the host's id 0: covered paths and missing capabilities keep it in", do)


def _knob(path: str) -> str | None:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:
        return None


def _in_container() -> bool:
    return os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv")


def remedy(name: str, step: str, errno: int) -> str:
    """What to do when the probe ``name`` failed at ``step`` with ``errno`` on this host."""
    if step.startswith(("unshare", "write ", "make mounts private")) or name == "tmpfs":
        return _namespace_remedy()
    if name == "proc":
        return ("Parts of /proc are covered here, as in a container: start it with `--security-opt "
                "systempaths=unconfined` (Docker, Podman), or with --privileged, or run on the machine itself.")
    if name in ("overlay", "overlay-opaque"):
        if name == "overlay" and errno == 19:
            return "Load the overlay module: `sudo modprobe overlay`."
        return (f"Use Linux 6.6 or newer (this is {os.uname().release}), whose tmpfs keeps the attributes that an "
                "unprivileged overlay needs, or run as root.")
    if name in ("mount-attributes", "openat2"):
        return (f"Use Linux 5.12 or newer (this is {os.uname().release}), or allow the call in the container's "
                "seccomp profile.")
    if name == "subordinate-ids":
        from .subids import REMEDY
        return REMEDY
    if name == "spawner":
        if step.endswith("is set"):
            return "Unset it."
        return ("Install a C compiler (`sudo apt-get install gcc libc6-dev`) and build the package anew: `pip install "
                "--force-reinstall --no-deps --no-binary pytest-sandbox pytest-sandbox`.")
    if name == "mqueue":
        return "Use a kernel built with CONFIG_POSIX_MQUEUE."
    return f"See the kernel's log (`dmesg`) for why {name} is refused."


def _namespace_remedy() -> str:
    if os.path.exists("/run/pytest-sandbox"):
        return "This process is in a sandbox itself, where a second one needs more than is kept: start it outside."
    if _knob("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return ("Ubuntu restricts user namespaces to profiled programs: `sudo sysctl -w "
                "kernel.apparmor_restrict_unprivileged_userns=0` (and a file in /etc/sysctl.d to keep it), or give "
                "this Python an AppArmor profile with `userns,`, or run as root.")
    if _knob("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return "`sudo sysctl -w kernel.unprivileged_userns_clone=1` (and a file in /etc/sysctl.d to keep it)."
    for kind in ("user", "mnt", "pid", "net", "uts", "ipc", "cgroup"):
        if _knob(f"/proc/sys/user/max_{kind}_namespaces") == "0":
            return f"`sudo sysctl -w user.max_{kind}_namespaces=10000`."
    profile = _knob("/proc/self/attr/current") or ""
    if re.search(r"\((enforce|unconfined)\)", profile) and "unconfined" not in profile:
        return f"The AppArmor profile {profile!r} forbids it: allow `userns,` and `capability,` in it, or leave it."
    if _in_container():
        return ("A container's seccomp profile forbids it: start it with `--security-opt seccomp=unconfined "
                "--security-opt apparmor=unconfined --security-opt systempaths=unconfined`, or with --privileged.")
    if not os.path.exists("/proc/self/ns/user"):
        return "Use a kernel built with CONFIG_USER_NS."
    return "A security module or seccomp filter forbids it: run as root, or outside of it."


def explain(error: SandboxStartError) -> SandboxError:
    """The error to raise for a failed start: what the host lacks if that is the cause, else the failed step itself."""
    if (error.errno == errno.ENOENT and error.step == "bind") or error.errno == errno.EMFILE:
        return error
    for finding in probe():
        if not finding.ok and finding.needed:
            return SandboxUnavailable("this host cannot run sandboxes", feature=finding.name, errno=error.errno,
                                      why=f"it cannot {finding.what} ({finding.found})", remedy=finding.remedy)
    return error
