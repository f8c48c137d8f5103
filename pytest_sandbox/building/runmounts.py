"""``RUN --mount``: bind (of the context, of a stage or of an image), cache, secret and tmpfs. Used by ``layered``.

What is mounted is never part of the layer. A secret's content goes nowhere but into the mount: neither into the key of
the step nor into the image's history.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..image.locks import lock
from ..spec import Mount
from .context import Source, checksum
from .text import Instruction

if TYPE_CHECKING:
    from .builder import Builder, State

_SSH = ("it would hand your agent's keys to what the step downloads. Fetch before the build, or give a deploy key as "
        "a secret: --mount=type=secret.")


#: Where a heredoc is that names its interpreter.
SCRIPT = "/dev/pipes/EOF"


@dataclass
class Mounts:
    """What ``--mount`` asks for. ``sums`` is what of it counts for the cache; ``stack`` removes what was made."""

    stack: ExitStack
    binds: list[Mount] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    sums: list[str] = field(default_factory=list)
    #: Called when the step is really carried out.
    late: list[Callable[[], None]] = field(default_factory=list)


def mounts(build: Builder, state: State, step: Instruction, stack: ExitStack) -> Mounts:
    """The mounts of a step. What has to be made for them is made by ``late``, and removed by ``stack``."""
    made = Mounts(stack)
    for flag in step.flags:
        if not flag.startswith("--mount="):
            continue
        fields = {key.strip().lower(): value for key, _, value in (
            one.partition("=") for one in build.expand(state, flag[8:], step).split(","))}
        kind = fields.get("type", "bind")
        target = fields.get("target") or fields.get("dst") or fields.get("destination") or ""
        if target and not target.startswith("/"):
            target = os.path.join(state.config.get("WorkingDir") or "/", target)
        if kind == "ssh":
            raise build.file.error("--mount=type=ssh is refused", step, _SSH[0].upper() + _SSH[1:])
        handler = _KINDS.get(kind)
        if handler is None:
            raise build.file.error(f"--mount=type={kind} is not available", step, f"Known: {', '.join(_KINDS)}.")
        if not target and kind != "secret":
            raise build.file.error(f"--mount=type={kind} has no target", step, "Add target=/where/it/goes.")
        handler(build, state, step, fields, target, made)
    return made


def _is_on(fields: dict[str, str], *names: str) -> bool:
    return any(fields.get(name, "false") not in ("false", "0") for name in names)


def _bind(build: Builder, state: State, step: Instruction, fields: dict[str, str], target: str, made: Mounts) -> None:
    if _is_on(fields, "rw", "readwrite"):
        raise build.file.error("--mount=type=bind,rw is not available", step,
                               "What a step writes there would be lost; copy it first, or use type=tmpfs.")
    source = fields.get("source") or fields.get("src") or "."
    if "from" not in fields:
        [(name, path)] = build.context.find(source)
        made.binds.append(Mount(path, target, read_only=True))
        made.sums.append(f"bind {target} {checksum(list(build.context.tree(name, path)))}")
        return
    from .layered import origin

    files = made.stack.enter_context(origin(build, state, step, fields["from"]))
    found = files.tree(source)
    made.sums.append(f"bind {target} {checksum(found)}")
    place = _place(build, made)

    def copy() -> None:
        made.binds.append(Mount(_copied(found, place()), target, read_only=True))

    made.late.append(copy)


def _place(build: Builder, made: Mounts) -> Callable[[], str]:
    """A directory of the store's staging area; what a killed build leaves of it is swept."""
    def make() -> str:
        path = build.store.layout.staging(f"build-{os.urandom(8).hex()}")
        held = lock(f"{path}.lock", exclusive=True, create=True)
        assert held is not None
        os.mkdir(path, 0o755)
        made.stack.callback(held.remove)
        made.stack.callback(build.store.layout.discard, path)
        return path

    return make


def _copied(found: list[Source], place: str) -> str:
    """Files of another stage below ``place``: the layers' own, as links where that can be."""
    top = f"{place}/it"
    for one in found:
        there = f"{top}/{one.name}" if one.name else top
        status = one.status
        assert status is not None
        if stat.S_ISDIR(status.st_mode):
            os.makedirs(there, 0o700, exist_ok=True)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(one.text, there)
        elif stat.S_ISREG(status.st_mode):
            os.makedirs(os.path.dirname(there), exist_ok=True)
            try:
                os.link(one.path, there)
            except OSError:  # another file system
                shutil.copyfile(one.path, there)
                os.chmod(there, stat.S_IMODE(status.st_mode))
    os.makedirs(top, exist_ok=True)
    for one in reversed(found):
        if one.status is not None and stat.S_ISDIR(one.status.st_mode):
            os.chmod(f"{top}/{one.name}", stat.S_IMODE(one.status.st_mode))
    if not found or found[0].name:  # a whole image: its root is no entry
        os.chmod(top, 0o755)
    return top


def _cache(build: Builder, state: State, step: Instruction, fields: dict[str, str], target: str, made: Mounts) -> None:
    if "from" in fields:
        raise build.file.error("--mount=type=cache,from=... is not available", step, "Fill the cache in the step.")
    name = hashlib.sha256((fields.get("id") or target).encode()).hexdigest()[:32]
    folder = f"{build.store.layout.root}/build-caches/{name}"
    os.makedirs(folder, mode=0o755, exist_ok=True)
    made.binds.append(Mount(folder, target, read_only=_is_on(fields, "readonly", "ro")))
    made.sums.append(f"cache {target}")


def _tmpfs(build: Builder, state: State, step: Instruction, fields: dict[str, str], target: str, made: Mounts) -> None:
    if "size" in fields:
        raise build.file.error("--mount=type=tmpfs,size=... is not available", step,
                               "Leave the size out; --memory bounds the step.")
    place = _place(build, made)

    def make() -> None:
        path = place()
        os.chmod(path, 0o1777)
        made.binds.append(Mount(path, target))

    made.late.append(make)
    made.sums.append(f"tmpfs {target}")


def _secret(build: Builder, state: State, step: Instruction, fields: dict[str, str], target: str,
            made: Mounts) -> None:
    name = fields.get("id") or os.path.basename(target)
    path = build.options.secrets.get(name)
    if path is None:
        if _is_on(fields, "required"):
            raise build.file.error(f"there is no secret {name!r}", step, f"Give it: --secret id={name},src=FILE.")
        return
    if "env" in fields:
        with open(path, encoding="utf-8") as file:
            made.env[fields["env"]] = file.read()
    if "env" not in fields or target:
        made.binds.append(Mount(os.path.realpath(path), target or f"/run/secrets/{name}", read_only=True))
    made.sums.append(f"secret {name} {target}")  # not what it holds: that must not show anywhere


def script(build: Builder, step: Instruction, made: Mounts) -> None:
    """Lets a heredoc show through as a program, where BuildKit has it, too."""
    one = step.heredocs[0]
    path = f"{_place(build, made)()}/it"
    with open(path, "xb") as file:
        file.write(one.content.encode("utf-8", "surrogateescape"))
    os.chmod(path, 0o755)
    made.binds.append(Mount(path, SCRIPT, read_only=True))


_KINDS: dict[str, Callable[..., None]] = {"bind": _bind, "cache": _cache, "secret": _secret, "tmpfs": _tmpfs}
