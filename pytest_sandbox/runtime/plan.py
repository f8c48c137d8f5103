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
from dataclasses import dataclass
from typing import Any

from ..errors import SandboxStartError
from ..rootfs import Root, Tree
from ..spec import CAPABILITIES, DEFAULT_CAPABILITIES, SandboxSpec
from . import syscalls as sc

#: How each operation reads; the arguments are those of the function of the same name in :mod:`.mounts`.
_READS = {
    "own_layer": "make the layer {0} in the likeness of {1}",
    "own_hide": "hide {2} of {1}",
    "own_link": "link {1} to {2} in {0}",
    "own_file": "copy {2} to {1} in {0}",
    "own_dir": "make the directory {1} in {0} like {2}",
    "own_ways": "repeat the directories of others in {1} that lead to what the caller may write to, in {0}",
    "own_shadow": "repeat the directories of {1}, owned by the caller, in {0}",
    "scratch": "mount a tmpfs ({0}) as the writable layer",
    "overlay": "mount an overlay of {2} on {1}",
    "proc": "mount a fresh /proc",
    "sys": "mount /sys read-only",
    "dev": "make a minimal /dev with {0}",
    "tmpfs": "mount an empty tmpfs on {0} ({2})",
    "run": "make a fresh /run",
    "bind": "let {0} show through at {1}",
    "pivot": "make it the root",
    "fresh_sys": "mount a /sys of the sandbox's own network namespace, if the kernel allows it",
    "mqueue": "mount /dev/mqueue, if the kernel has it",
    "hostname": "set the host name to {0}",
    "loopback": "bring the loopback up",
    "helper": "start the helper process",
    "clone3": "start the sandbox's first process in new namespaces",
    "init": "start the sandbox's first process",
}


def describe(step: list[Any]) -> str:
    """One operation in words."""
    return _READS.get(str(step[0]), str(step[0])).format(*step[1:])


@dataclass(frozen=True, slots=True)
class Host:
    """What of this machine shapes a plan.

    :param privileged: real root of the initial user namespace, which may mount there.
    """

    privileged: bool
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All that the helper and init need to know. ``key`` names its content; ``kept`` is root's capabilities, as bits.

    ``made`` holds the paths that the making itself leaves in the writable layer: where mounts are put.
    """

    key: str
    body: dict[str, Any]
    trees: tuple[Tree, ...]
    kept: int
    made: frozenset[str]

    def steps(self) -> Iterable[str]:
        """Every operation in words, in order."""
        for part in ("template", "scratch", "mounts", "inside"):
            for step in self.body[part]:
                yield describe(step)


#: OCI's masked and read-only paths (runtime-spec, config-linux.md), and Docker's additions, below /proc.
_MASKED = ("acpi", "asound", "interrupts", "kcore", "keys", "latency_stats", "sched_debug", "scsi", "timer_list",
           "timer_stats")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
_MASKED_SYS = ("devices/virtual/powercap", "firmware")
_NODES = ("null", "zero", "full", "random", "urandom", "tty")


def user_ids(spec: SandboxSpec, host: Host) -> tuple[int, int]:
    """The uid and gid inside that a sandbox's processes run as."""
    user = spec.user or ("me" if spec.image == "host" else "root")
    if user == "me":
        return host.uid, host.gid
    if user == "root":
        return 0, 0
    uid, _, gid = user.partition(":")
    return int(uid), int(gid or uid)


def make_plan(spec: SandboxSpec, root: Root, host: Host) -> Plan:
    """The plan of a sandbox.

    :raises SandboxStartError: when a mount's source does not exist.
    """
    uid, gid = user_ids(spec, host)
    owns = not host.privileged and uid == 0 and root.host  # root of a tree whose owners are not mapped
    template, overlays = [], []
    layers = f"/own/{_layers_name(root, owns, host, spec.workdir)}"
    for number, tree in enumerate(root.trees):
        lowers = [f"/host{lower}".rstrip("/") for lower in tree.lowers]
        like = lowers[-1]
        layer = f"{layers}/{number}"
        made = _own_layer(layer, tree, owns, () if host.privileged or not root.host else _written(spec))
        if made:
            template += made
            if tree.entries is not None:
                lowers = [layer]
            else:
                lowers.append(layer)
        options = "redirect_dir=on,xino=auto" if host.privileged else "userxattr,xino=auto"
        flags = sc.MS_NODEV | (sc.MS_NOEXEC if tree.noexec else 0)
        overlays.append(["overlay", number, tree.target, lowers, like, flags, options, uid == 0])
    size = f"size={spec.disk}" if spec.disk else "size=50%"
    namespaces = sc.CLONE_NEWUSER | sc.CLONE_NEWNS | sc.CLONE_NEWUTS | sc.CLONE_NEWIPC | sc.CLONE_NEWCGROUP
    inside: list[list[Any]] = [["hostname", spec.hostname], ["mqueue"]]
    masked_sys = [one for one in _MASKED_SYS if os.path.isdir(f"/sys/{one}")]
    if spec.network == "none":
        namespaces |= sc.CLONE_NEWNET
        inside += [["loopback"], ["fresh_sys", masked_sys]]
    keep = DEFAULT_CAPABILITIES if spec.capabilities is None else spec.capabilities
    body = {
        "layers": layers,
        "template": template,
        "scratch": [["scratch", f"mode=0700,{size}"]],
        "mounts": [
            *overlays,
            ["proc", [one for one in _MASKED if os.path.exists(f"/proc/{one}")],
             [one for one in _READ_ONLY if os.path.exists(f"/proc/{one}")]],
            ["sys", [] if spec.network == "none" else masked_sys],
            ["dev", [one for one in _NODES if os.path.exists(f"/dev/{one}")]],
            ["tmpfs", "/dev/shm", sc.MS_NOSUID | sc.MS_NODEV, "mode=1777"],
            _run(uid, gid, spec, host),
            *_binds(spec),
            ["pivot"],
        ],
        "inside": inside,
        "namespaces": namespaces,
        "uid_map": "0 0 4294967295" if host.privileged else f"{uid} 0 1",
        "gid_map": "0 0 4294967295" if host.privileged else f"{gid} 0 1",
        "drop": [number for number, one in enumerate(CAPABILITIES) if one not in keep and number <= _last_capability()],
    }
    key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]
    kept = sum(1 << number for number, one in enumerate(CAPABILITIES) if one in keep)
    return Plan(key, body, root.trees, kept, frozenset(_made(spec)))


def _last_capability() -> int:
    try:
        with open("/proc/sys/kernel/cap_last_cap") as file:
            return int(file.read())
    except OSError:
        return len(CAPABILITIES) - 1


def _layers_name(root: Root, owns: bool, host: Host, workdir: str | None) -> str:
    return hashlib.sha256(repr((root, owns, host, workdir)).encode()).hexdigest()[:16]


#: Trees of system software, where a search for places that the caller may write to would be long and in vain.
_SYSTEM = ("/usr", "/etc", "/boot", "/proc", "/sys", "/dev", "/run", "/bin", "/sbin", "/lib", "/lib64", "/root")


@functools.cache
def _places() -> tuple[str, ...]:
    """Where the caller is known to write, found once: it names layers that should not be made anew at each turn."""
    return tuple(os.path.realpath(one) for one in (
        os.getcwd(), os.path.expanduser("~"), os.environ.get("TMPDIR") or "/tmp", "/var/tmp", sys.prefix))


def _written(spec: SandboxSpec) -> tuple[str, ...]:
    return (*_places(), os.path.realpath(spec.workdir)) if spec.workdir else _places()


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


def _run(uid: int, gid: int, spec: SandboxSpec, host: Host) -> list[Any]:
    files = {"pytest-sandbox": "1\n"}
    resolver = os.path.realpath("/etc/resolv.conf")
    if spec.network == "host" and resolver.startswith("/run/"):
        try:
            with open(resolver) as file:
                files[os.path.relpath(resolver, "/run")] = file.read(65536)
        except OSError:
            pass  # unreadable for the caller outside as well
    # Unprivileged, all that init makes is the caller's already.
    owner = [uid, gid] if host.privileged else [-1, -1]
    return ["run", [["lock", 0o1777, -1, -1], ["user", 0o755, -1, -1], [f"user/{uid}", 0o700, *owner]], files]


def _binds(spec: SandboxSpec) -> list[list[Any]]:
    for one in (*spec.persist, *spec.mounts):
        if not os.path.exists(one.source):
            raise SandboxStartError(f"cannot mount {one.source} at {one.target}", step="bind", path=one.source, errno=2,
                                    why=f"{one.source} does not exist on this host",
                                    remedy="Create it, or correct the sandbox's mounts option.")
    return [["bind", os.path.realpath(one.source), one.target, one.read_only] for one in (*spec.persist, *spec.mounts)]


def _made(spec: SandboxSpec) -> Iterable[str]:
    for one in (*spec.persist, *spec.mounts):
        path = os.path.normpath(one.target)
        while path != "/":
            yield path
            path = os.path.dirname(path)
