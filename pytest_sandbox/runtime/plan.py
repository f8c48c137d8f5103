"""The plan: every operation of a sandbox's making as printable data, before anything is done.

Made by :func:`make_plan` from a spec and a root filesystem, without side effects. :mod:`.mounts` has one function for
each operation. The plan travels to the helper as JSON and is kept there, so a second sandbox of the same plan costs
the caller one short message.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import SandboxStartError
from ..rootfs import Root, Tree
from ..spec import CAPABILITIES, DEFAULT_CAPABILITIES, SandboxSpec
from . import shares, shift
from . import syscalls as sc
from .frozen import key_of, path_in_helper
from .mounts import NODES, are_many
from .plan_files import binds, image_files, mount_points, names, run
from .seccomp import filter_for
from .subids import Ids

#: How each operation reads; the arguments are those of the function of the same name in :mod:`.mounts`.
_READS = {
    "own_layer": "make the layer {0} in the likeness of {1}",
    "own_hide": "hide {2} of {1}",
    "own_parents": "make what leads to {2} in {0}",
    "own_link": "link {1} to {2} in {0}",
    "own_file": "copy {2} to {1} in {0}",
    "own_dir": "make the directory {1} in {0} like {2}",
    "own_owners": "give back the owners that {4} lists, in {0}",
    "own_files": "make what is this sandbox's own, and not the image's, in {0}",
    "own_state": "bring the committed layer {1} into memory, at {0}",
    "own_names": "give the layers short names in {0}",
    "own_mapped": "show {1} at {0} with shifted ids",
    "own_ways": "repeat the directories of others in {1} that lead to what the caller may write to, in {0}",
    "own_shadow": "repeat the directories of {1}, owned by the caller, in {0}",
    "scratch": "mount a tmpfs ({0}) as the writable layer",
    "scratch_mapped": "show the writable layer with shifted ids",
    "overlay": "mount an overlay of {2} on {1}",
    "proc": "mount a fresh /proc",
    "sys": "mount /sys read-only",
    "dev": "make a minimal /dev with {0}",
    "pts": "make terminals of its own",
    "tmpfs": "mount an empty tmpfs on {0} ({2})",
    "run": "make a fresh /run",
    "hosts": "give it an /etc/hosts for the names of its networks",
    "resolver": "give it an /etc/resolv.conf of its own",
    "bind": "let {0} show through at {1}",
    "pivot": "make it the root",
    "fresh_sys": "mount a /sys of the sandbox's own network namespace, if the kernel allows it",
    "mqueue": "mount /dev/mqueue, if the kernel has it",
    "hostname": "set the host name to {0}",
    "loopback": "bring the loopback up",
    "helper": "start the helper process",
    "cgroup": "make its cgroup",
    "clone3": "start the sandbox's first process in new namespaces",
    "init": "start the sandbox's first process",
    "guest": "start the image's own Python as the guest of its tests",
    "python": "find a Python in the image",
}


def describe(step: list[Any]) -> str:
    """One operation in words."""
    return _READS.get(str(step[0]), str(step[0])).format(*step[1:])


@dataclass(frozen=True, slots=True)
class Host:
    """What of this machine shapes a plan.

    :param privileged: real root of the initial user namespace, which may mount there.
    :param ids: the subordinate ids that sandboxes are to have, for an ordinary user.
    :param nested: whether mounts are made in a user namespace of the helper's all the same, since the sandboxes are for
        a guest to enter (:mod:`.boarding`).
    """

    privileged: bool
    uid: int
    gid: int
    ids: Ids | None = None
    nested: bool = False

    @property
    def has_users(self) -> bool:
        """Whether a sandbox has more than one user id."""
        return self.privileged or self.ids is not None

    @property
    def own_marks(self) -> bool:
        """Whether overlays keep their marks where anybody may, for what mounts them is not real root."""
        return self.nested or not self.privileged


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the helper and init need to know. ``key`` names its content; ``kept`` is root's capabilities, as bits.

    ``made`` holds the paths that the making itself leaves in the writable layer: where mounts are put. ``ids`` are the
    uid and gid inside that processes run as. ``frozen`` are the keys of the layers in memory that it needs.
    ``waived`` are the promises of docs/security.md that the options do without. ``unshifted`` says why root's sandbox
    has the host's own ids; it is empty where it has not, and for others than root.
    """

    key: str
    body: dict[str, Any]
    root: Root
    kept: int
    made: frozenset[str]
    ids: tuple[int, int]
    frozen: frozenset[str] = frozenset()
    waived: frozenset[str] = frozenset()
    unshifted: str = ""

    @property
    def base(self) -> int:
        """The id outside that is 0 inside: see :mod:`.shift`. 0 where the ids are the host's own, or the caller's."""
        base: int = self.body["base"]
        return base

    def steps(self) -> Iterable[str]:
        """Every operation in words, in order."""
        for part in ("template", "mapped", "scratch", "mounts", "inside"):
            for step in self.body[part]:
                yield describe(step)


#: OCI's masked and read-only paths (runtime-spec, config-linux.md), and Docker's additions, below /proc.
_MASKED = ("acpi", "asound", "interrupts", "iomem", "ioports", "kcore", "keys", "kpagecgroup", "kpagecount",
           "kpageflags", "latency_stats", "pagetypeinfo", "sched_debug", "scsi", "slabinfo", "timer_list",
           "timer_stats", "vmallocinfo")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_MASKED_SYS = ("devices/virtual/powercap", "firmware")


def user_ids(spec: SandboxSpec, host: Host, root: Root | None = None) -> tuple[int, int]:
    """The uid and gid inside that a sandbox's processes run as; an image may name them where the spec does not."""
    user = spec.user
    if user is None and root is not None and not root.host:
        return root.user[0], root.user[1]
    if user is None or user == "me":
        return host.uid, host.gid
    if user == "root":
        return 0, 0
    uid, _, gid = user.partition(":")
    return int(uid), int(gid or uid)


def make_plan(spec: SandboxSpec, root: Root, host: Host, group: dict[str, Any] | None = None,
              ids_from: tuple[int, int] | None = None, unshifted: str = "") -> Plan:
    """The plan of a sandbox. ``group`` is the layout of its cgroup, as :mod:`.cgroups` has it.

    :param ids_from: the range that its ids are shifted to, the first and their number; None for no shift.
    :param unshifted: why there is none.
    :raises SandboxStartError: when a mount's source does not exist.
    """
    uid, gid = user_ids(spec, host, root)
    owns = not host.privileged and uid == 0 and root.host  # root of a tree whose owners are not mapped
    template: list[list[Any]] = []
    overlays: list[list[Any]] = []
    own = {} if root.host else image_files(spec, (uid, gid), root)
    base = [(replace(tree, frozen=()), _states(tree)) for tree in root.trees]  # what our own layers are made from
    _check_ids(uid, gid, host, ids_from)
    layers = f"/own/{_layers_name(base, owns, host, spec.workdir, own, spec.owners, ids_from)}"
    for number, tree in enumerate(root.trees):
        lowers = [f"/host{lower}".rstrip("/") for lower in tree.lowers]
        committed = [path_in_helper(one) for one in tree.frozen]
        if root.host:
            for one in _states(tree):
                at = tree.frozen.index(one)
                committed[at] = f"{layers}/{number}.state{at}"
                template.append(["own_state", committed[at], f"/host{one}"])
        image = not root.host and tree.target == "/"
        like: str | list[int] = lowers[-1] if root.look is None or not image else list(root.look)
        if committed:
            like = committed[-1]
        layer = f"{layers}/{number}"
        made = _own_layer(layer, tree, owns, () if host.privileged else _written(spec)) if root.host else []
        if made:
            template += made
            if tree.entries is not None:
                lowers = [layer]
            else:
                lowers += [f"{layer}.data", layer] if made[-1][0] == "own_shadow" else [layer]
        options = "userxattr,xino=auto" if host.own_marks else "redirect_dir=on,xino=auto"
        flags = sc.MS_NODEV | (sc.MS_NOEXEC if tree.noexec else 0)
        short = f"{layer}.short" if are_many([*lowers, *committed]) else None
        seed = None
        if image:
            marked = "userxattr" if host.own_marks else ""
            if spec.owners:
                short = short or f"{layer}.short"  # for as many as there will be
                template.append(["own_owners", f"{layer}.owners", lowers, short, marked, f"/host{spec.owners}"])
                lowers = [*lowers, f"{layer}.owners"]
            below, lowers = lowers, [*lowers, layer]
            template.append(["own_files", layer, below, short, marked, own])
            if len(lowers) > _MOST_LAYERS and not committed:
                lowers, seed = below, layer
        lowers = [*lowers, *committed]
        if short is not None:
            template.insert(0, ["own_names", short, lowers])
        overlays.append(["overlay", number, tree.target, lowers, short, like, flags, options, uid == 0, seed])
    size = tmpfs_limits(disk_of(spec))
    namespaces = sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP
    inside: list[list[Any]] = [["hostname", spec.hostname], ["mqueue"]]
    masked_sys = [one for one in _MASKED_SYS if os.path.isdir(f"/sys/{one}")]
    if spec.network != "host":
        namespaces |= sc.CLONE_NEWNET
        inside += [["loopback"], ["fresh_sys", masked_sys]]
    keep = DEFAULT_CAPABILITIES if spec.capabilities is None else spec.capabilities
    body = {
        "group": group,
        "base": 0,
        "mapped": [],
        "nproc": _nproc(spec, host, group),
        "layers": layers,
        "template": template,
        "scratch": [["scratch", f"mode=0700,{size}"]],
        "mounts": [
            *overlays,
            ["proc", [one for one in _MASKED if os.path.exists(f"/proc/{one}")],
             [one for one in _READ_ONLY if os.path.exists(f"/proc/{one}")]],
            ["sys", masked_sys if spec.network == "host" else []],
            ["dev", [one for one in NODES if os.path.exists(f"/dev/{one}")]],
            ["tmpfs", "/dev/shm", sc.MS_NOSUID | sc.MS_NODEV, f"mode=1777,{size}"],
            run(uid, gid, spec, host),
            *names(spec, root),
            *binds(spec),
            ["pivot"],
        ],
        "inside": inside,
        "counts": shares.counts(),
        "oom": shares.out_of_memory(),
        "seccomp": filter_for(spec.seccomp, keep, spec.network == "host").hex(),
        "namespaces": namespaces,
        "uid_map": _map(host, uid, host.ids.uids if host.ids is not None else ()),
        "gid_map": _map(host, gid, host.ids.gids if host.ids is not None else ()),
        "drop": [number for number, one in enumerate(CAPABILITIES) if one not in keep and number <= _last_capability()],
    }
    if host.ids is not None:
        body["wide"] = True
    if ids_from is not None:
        body = shift.shifted(body, root.host, ids_from)
    key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]
    kept = sum(1 << number for number, one in enumerate(CAPABILITIES) if one in keep)
    made_paths = frozenset(mount_points(spec)) | (frozenset() if root.host else _MOUNTED)
    if any(one[-1] is not None for one in overlays):
        made_paths |= _SEEDED
    kept_layers = frozenset(name for tree in root.trees for one in tree.frozen if (name := key_of(one)) is not None)
    return Plan(key, body, root, kept, made_paths, (uid, gid), kept_layers, _waived(spec),
                unshifted)


def _check_ids(uid: int, gid: int, host: Host, ids_from: tuple[int, int] | None) -> None:
    if host.ids is not None and (uid >= host.ids.users or gid >= host.ids.groups):
        why, remedy = (f"this user has {host.ids.users} subordinate ids",
                       "Give it more of them (`sudo usermod --add-subuids`, `--add-subgids`).")
    elif ids_from is not None and (uid >= ids_from[1] or gid >= ids_from[1]):
        why, remedy = (f"sandboxes of root have {ids_from[1]} ids",
                       f"Use a lower one, or set {shift.VARIABLE}=host for sandboxes with the host's own ids.")
    else:
        return
    raise SandboxStartError(f"a sandbox cannot run as {uid}:{gid}", step="ids", path=None, errno=None, why=why,
                            remedy=remedy)


def _map(host: Host, own: int, command: tuple[str, ...]) -> str:
    """Root's ids are the host's; an ordinary user has the one that it takes on, or those that the helper has.

    These one range at a time: the kernel takes none that lies across two of the helper's.
    """
    if command:
        return "\n".join(f"{first} {first} {count}" for first, count in zip(command[1::3], command[3::3], strict=True))
    return "0 0 4294967295" if host.privileged else f"{own} 0 1"


def _waived(spec: SandboxSpec) -> frozenset[str]:
    """What the options say that is not wanted: for :mod:`.selftest`."""
    waived = {"network"} if spec.network != "none" else set()
    if spec.network == "host":
        waived.add("network namespace")
    if spec.seccomp != "default":
        waived.add("filter" if spec.seccomp == "unconfined" else "default filter")
    return frozenset(waived)


def _states(tree: Tree) -> list[str]:
    """What was committed on top of a tree and lies in the layer store."""
    return [one for one in tree.frozen if key_of(one) is None]


def _nproc(spec: SandboxSpec, host: Host, group: dict[str, Any] | None) -> int | None:
    """The RLIMIT_NPROC of an unprivileged sandbox that no cgroup limits: it counts the tasks of a user namespace.

    Real root is exempt from it (setrlimit(2)).
    """
    if host.privileged or (group is not None and any(file == "pids.max" for _, file, _ in group["files"])):
        return None
    return spec.pids + 1  # the sandbox's init is one of them


def disk_of(spec: SandboxSpec) -> int | None:
    """The size of the writable layer, in bytes; None for half of the host's memory.

    Its files are memory of the sandbox: where that is limited, half of it, so that a full disk is told as that.
    """
    return spec.disk if spec.disk or not spec.memory else spec.memory // 2


def tmpfs_limits(size: int | None) -> str:
    """The mount options of a tmpfs of ``size`` bytes. As the kernel has it by itself, there is a file for each page."""
    if size is None:
        return "size=50%"
    return f"size={size},nr_inodes={max(size // 4096, 1024)}"


def _last_capability() -> int:
    try:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            return int(file.read())
    except OSError:
        return len(CAPABILITIES) - 1


def _layers_name(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


#: Trees of system software, where a search for places that the caller may write to would be long and in vain.
_SYSTEM = ("/usr", "/etc", "/boot", "/proc", "/sys", "/dev", "/run", "/bin", "/sbin", "/lib", "/lib64", "/root")


@functools.cache
def _places() -> tuple[str, ...]:
    """Where the caller is known to write, found once: it names layers that should not be made anew at each turn."""
    return tuple(os.path.realpath(one) for one in (
        os.getcwd(), os.path.expanduser("~"), os.environ.get("TMPDIR") or "/tmp", "/var/tmp", sys.prefix))


def _written(spec: SandboxSpec) -> tuple[str, ...]:
    return (*_places(), os.path.realpath(spec.workdir)) if spec.workdir else _places()


#: What an image may lack and every sandbox has: made, if need be, to mount something there.
_MOUNTED = frozenset({"/proc", "/sys", "/dev", "/run"})
#: What stands in the writable layer itself where there is no room for a layer of ours below it.
_SEEDED = frozenset({"/etc", "/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/resolv.conf", "/etc/passwd"})


#: What the kernel takes below one overlay (fs/overlayfs, OVL_MAX_STACK).
_MOST_LAYERS = 500


#: Where an unprivileged root can edit the host's files in place.
_EDITABLE = ("/etc", "/usr/local", "/opt", "/var", "/srv")


def _own_layer(layer: str, tree: Tree, owns: bool, written: tuple[str, ...]) -> list[list[Any]]:
    """The steps that make the layer between the tree's lower layers and the writable one; none when it needs none."""
    inside = tree.target.rstrip("/") + "/"
    top = f"/host{tree.lowers[-1]}".rstrip("/") or "/host"
    steps: list[list[Any]] = []
    for entry in tree.entries or ():
        source = f"{top}/{entry.name}"
        if entry.kind == "link":
            steps.append(["own_link", layer, entry.name, entry.text])
        elif entry.kind == "dir":
            steps.append(["own_dir", layer, entry.name, source, owns])
        else:
            steps.append(["own_file", layer, entry.name, source])
    for path in tree.hidden:
        steps.append(["own_hide", layer, top, path])
    for path in tree.files:
        steps += [["own_parents", layer, top, path], ["own_file", layer, path, f"{top}/{path}"]]
    if owns and tree.entries is None:
        files = [os.path.relpath(one, tree.target) for one in _EDITABLE if one.startswith(inside)]
        if any(f"{tree.target}/".startswith(f"{one}/") for one in _EDITABLE):
            files.append("")
        steps.append(["own_shadow", layer, top, files])
    elif written and tree.entries is None:
        known = sorted({os.path.relpath(one, tree.target) for one in written if one.startswith(inside)})
        scan = not any(inside.startswith(f"{one}/") for one in _SYSTEM)
        if known or scan:
            steps.append(["own_ways", layer, top, known, scan])
    return [["own_layer", layer, top], *steps] if steps else []
