"""The parts of a plan that are files: what must fit the sandbox and not the host or the image, and what shows through.

Used by :mod:`.plan`.
"""

from __future__ import annotations

import hashlib
import os
import pwd
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import SandboxStartError
from ..rootfs import Root
from ..spec import SandboxSpec, network_kind

if TYPE_CHECKING:
    from .plan import Host

#: The address of an outbound sandbox's own name server.
OUTBOUND_RESOLVER = "10.0.2.3"


def image_files(spec: SandboxSpec, ids: tuple[int, int], root: Root) -> dict[str, Any]:
    """What must fit this sandbox and not the machine that the image was made on; see :mod:`.ownfiles`."""
    files = {
        "hostname": f"{spec.hostname}\n",
        "hosts": f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{spec.hostname}\n",
        "machine-id": hashlib.sha256(spec.hostname.encode()).hexdigest()[:32] + "\n",
        "resolv.conf": "",
    }
    if (text := _resolver(spec)) is not None:
        files["resolv.conf"] = text
    else:
        del files["resolv.conf"]  # no resolver on the host, none in here
    return {"files": files, "user": f"{_name(ids[0])}:x:{ids[0]}:{ids[1]}::{root.user[2]}:/bin/sh\n",
            "workdir": root.workdir if root.workdir != "/" else "", "places": ["proc", "sys", "dev", "run"]}


def _name(uid: int) -> str:
    """What a uid is called in an image that does not know it."""
    if uid == 0:
        return "root"
    try:
        return pwd.getpwuid(uid).pw_name if uid == os.getuid() else "sandbox"
    except KeyError:
        return "sandbox"


def run(uid: int, gid: int, spec: SandboxSpec, host: Host) -> list[Any]:
    files = {"pytest-sandbox": "1\n"}
    path = os.path.realpath("/etc/resolv.conf")
    text = _resolver(spec)
    if text and path.startswith("/run/"):
        files[os.path.relpath(path, "/run")] = text
    # Unprivileged, all that init makes is the caller's already.
    owner = [uid, gid] if host.has_users else [-1, -1]
    return ["run", [["lock", 0o1777, -1, -1], ["user", 0o755, -1, -1], [f"user/{uid}", 0o700, *owner]], files]


def _resolver(spec: SandboxSpec) -> str | None:
    """What resolv.conf says inside; None where the host has none that can be read."""
    kind = network_kind(spec.network)
    if kind not in ("host", "outbound"):
        return ""
    try:
        with open("/etc/resolv.conf") as file:
            text = file.read(65536)
    except OSError:
        return None if kind == "host" else f"nameserver {OUTBOUND_RESOLVER}\n"
    if kind == "host":
        return text
    lines = [line for line in text.splitlines() if line.split()[:1] in (["search"], ["domain"], ["options"])]
    return "\n".join([f"nameserver {OUTBOUND_RESOLVER}", *lines, ""])


def names(spec: SandboxSpec, root: Root) -> list[list[Any]]:
    """The steps for names of networks: files of the sandbox's own, where the host's would show through."""
    kind = network_kind(spec.network)
    steps: list[list[Any]] = [["hosts"]] if kind in ("networks", "outbound") else []
    if kind == "outbound" and root.host and not os.path.realpath("/etc/resolv.conf").startswith("/run/"):
        steps.append(["resolver", _resolver(spec)])
    return steps


def binds(spec: SandboxSpec) -> list[list[Any]]:
    for one in (*spec.persist, *spec.mounts):
        if not os.path.exists(one.source):
            raise SandboxStartError(f"cannot mount {one.source} at {one.target}", step="bind", path=one.source, errno=2,
                                    why=f"{one.source} does not exist on this host",
                                    remedy="Create it, or correct the sandbox's mounts option.")
    return [["bind", os.path.realpath(one.source), one.target, one.read_only] for one in (*spec.persist, *spec.mounts)]


def mount_points(spec: SandboxSpec) -> Iterable[str]:
    for one in (*spec.persist, *spec.mounts):
        path = os.path.normpath(one.target)
        while path != "/":
            yield path
            path = os.path.dirname(path)
