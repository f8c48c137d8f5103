"""The instructions that make layers: RUN, COPY, ADD and WORKDIR."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import planning
from ..errors import ImageError
from ..images import Image
from ..spec import Mount
from .context import Source, checksum
from .layers import LayerMaker, StageFiles
from .text import Instruction

if TYPE_CHECKING:
    from .builder import Builder, State

_SHELL = ["/bin/sh", "-c"]
_SHOWN = 4000  # characters of a failed command's output that its error keeps


def _refuse_flags(build: Builder, step: Instruction, known: set[str]) -> None:
    for flag in step.flags:
        name = flag.lstrip("-").partition("=")[0]
        if name not in known:
            raise build.file.error(f"{step.name} does not take --{name}", step,
                                   f"Known here: {', '.join('--' + one for one in sorted(known))}.")


# WORKDIR

def workdir(build: Builder, state: State, step: Instruction) -> None:
    from .builder import step_key

    text = build.expand(state, step.words[0], step)
    path = os.path.normpath(os.path.join(state.config.get("WorkingDir") or "/", text))
    state.config["WorkingDir"] = path
    key = step_key(state.key, "WORKDIR", path, state.config.get("User") or "")
    maker = LayerMaker(build.store, build.layers_of(state), build.latest)
    if maker.is_directory(path):
        state.key = key
        build._history(state, step, empty=True)
    elif not build.known(state, key, step):
        owner = build.owner(state, state.config.get("User") or "", step)
        build.keep(state, key, step, maker.directory(path, owner))


# COPY and ADD

def copy(build: Builder, state: State, step: Instruction) -> None:
    from .builder import step_key

    _refuse_flags(build, step, {"chown", "chmod", "link", *(["from"] if step.name == "COPY" else [])})
    words = [build.expand(state, one, step) for one in step.words]
    if len(words) < 2:
        raise build.file.error(f"{step.name} takes sources and a destination", step)
    *sources, destination = words
    heredocs = {one.name: one for one in step.heredocs}
    maker = LayerMaker(build.store, build.layers_of(state), build.latest)
    target = os.path.join(state.config.get("WorkingDir") or "/", destination)
    into = destination.endswith(("/", "/.")) or destination in (".", "..") or maker.is_directory(target)
    with ExitStack() as stack:
        found: list[tuple[str, list[Source]]] = []
        archives: list[tuple[str, str]] = []
        origin = step.flag("from")
        files = stack.enter_context(_origin(build, state, step, origin)) if origin is not None else None
        for source in sources:
            if source.startswith("<<"):
                name = source[2:].lstrip("-").strip("'\"")
                doc = heredocs[name]
                text = build.expand(state, doc.content, step, keep_quotes=True) if doc.expand else doc.content
                found.append((name, [Source("", "", None, data=text.encode("utf-8", "surrogateescape"))]))
            elif source.startswith(("http://", "https://", "git@", "git://")):
                raise build.file.error(f"{source} is not in the context", step,
                                       "Fetch it in a RUN, or before the build.")
            elif files is not None:
                found.append((os.path.basename(os.path.normpath(source)), files.tree(source)))
            else:
                for name, path in build.context.find(source):
                    if step.name == "ADD" and _is_archive(path):
                        archives.append((name, path))
                    else:
                        found.append((os.path.basename(name), list(build.context.tree(name, path))))
        if len(found) + len(archives) > 1 and not into:
            raise build.file.error(f"several sources, and {destination!r} is no directory", step,
                                   "End the destination with a slash.")
        owner = build.owner(state, build.expand(state, step.flag("chown") or "", step), step)
        mode = _mode(build, step, build.expand(state, step.flag("chmod") or "", step))
        sums = [f"{name} {checksum(one)}" for name, one in found]
        sums += [f"{name} {_file_sum(path)}" for name, path in archives]
        key = step_key(state.key, step.name, target, str(into), f"{owner}", f"{mode}", *sums)
        if build.known(state, key, step):
            return
        for at, (_, path) in enumerate(archives):  # a layer each; the last one has the step's key
            last = at + 1 == len(archives) and not found
            build.keep(state, key if last else step_key(key, str(at)), step, maker.archive(path, target))
        if found:
            copies = [(_destination(target, name, one, into), one) for name, one in found]
            build.keep(state, key, step, maker.files(copies, owner, mode))


def _destination(target: str, name: str, sources: list[Source], into: bool) -> str:
    """A directory's content goes into the destination; a file goes into it under its name if that is a directory."""
    first = sources[0] if sources else None
    if first is None or first.name != "" or (first.status is not None and stat.S_ISDIR(first.status.st_mode)):
        return target
    return f"{target.rstrip('/')}/{name}" if into else target


def _origin(build: Builder, state: State, step: Instruction, origin: str) -> StageFiles:
    name = build.expand(state, origin, step)
    other = build.file.find(name)
    if other is not None:
        if other.number >= build.current:
            raise build.file.error(f"the stage {name!r} comes later, or is this one", step)
        return StageFiles(build.layers_of(build._stage(other)))
    try:
        return StageFiles(list(planning.resolve(name).layers))
    except ImageError as error:
        raise build.file.error(str(error), step) from error


def _mode(build: Builder, step: Instruction, text: str) -> int | None:
    if not text:
        return None
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise build.file.error(f"--chmod={text} is not an octal mode such as 755", step)
    return mode


def _is_archive(path: str) -> bool:
    return os.path.isfile(path) and not os.path.islink(path) and tarfile.is_tarfile(path)


def _file_sum(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


# RUN

@dataclass
class _Mounts:
    """What ``--mount`` asks for. ``sums`` is what of it counts for the cache."""

    binds: list[Mount] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    sums: list[str] = field(default_factory=list)


def run(build: Builder, state: State, step: Instruction) -> None:
    from ..sandbox import Sandbox
    from .builder import PREDEFINED, step_key

    _refuse_flags(build, step, {"mount", "network"})
    if state.base is None:
        raise build.file.error("RUN in an image that holds nothing", step, "COPY a program into it first.")
    network = {None: build.options.network, "default": build.options.network, "host": "host", "none": "none"}.get(
        step.flag("network"))
    if network is None:
        raise build.file.error(f"--network={step.flag('network')} is not default, host or none", step)
    command = _command(state, step)
    mounts = _mounts(build, state, step)
    visible = {name: value for name, value in state.arguments.items() if name not in state.env}
    key = step_key(state.key, "RUN", *command, *(f"{name}={value}" for name, value in sorted(visible.items())
                                                 if name not in PREDEFINED), *mounts.sums, network)
    if build.known(state, key, step):
        return
    image = build.image_of(state)
    build.store.know(image)
    given = {name: value for name, value in build.options.arguments.items() if name in PREDEFINED}
    limits: dict[str, Any] = {}
    if build.options.memory is not None:
        limits["memory"] = build.options.memory
    sandbox = Sandbox(image=f"image:{image.image_id}", network=network, mounts=mounts.binds,
                      env={**given, **visible, **mounts.env}, **limits)
    with sandbox:
        done = sandbox.run(command, timeout=build.options.timeout, text=True)
        said = (done.stdout + done.stderr)[-_SHOWN:]
        if build.options.say is not None and said:
            build.options.say(said.rstrip("\n"))
        if done.returncode or done.timed_out:
            raise _failed(build, step, done, said)
        made = sandbox._ready()
        from .. import committing
        written = committing.write_upper(Image(f"image:{image.image_id}"), made, build.latest)
    build.keep(state, key, step, written)


def _failed(build: Builder, step: Instruction, done: Any, said: str) -> Exception:
    if done.timed_out:
        why = f"it ran longer than {build.options.timeout} s"
    elif done.returncode < 0:
        why = f"it was ended by signal {-done.returncode}"
    else:
        why = f"it ended with status {done.returncode}"
    tail = "\n".join(said.splitlines()[-20:])
    error = build.file.error(f"{why}\n{tail}" if tail else why, step)
    error.output = said
    return error


def _command(state: State, step: Instruction) -> list[str]:
    if step.is_json:
        return list(step.words)
    shell = list(state.config.get("Shell") or _SHELL)
    if step.heredocs and step.words and step.words[0].strip().startswith("<<") and len(step.words[0].split()) == 1:
        body = step.heredocs[0].content
        if body.startswith("#!"):
            interpreter = body[2:body.index("\n")].split()
            return [*interpreter[:1], *interpreter[1:], "-c", body] if interpreter else [*shell, body]
        return [*shell, body]
    if step.heredocs:
        text = step.words[0] + "\n" + "".join(f"{one.content}{one.name}\n" for one in step.heredocs)
        return [*shell, text]
    return [*shell, step.words[0]]


def _mounts(build: Builder, state: State, step: Instruction) -> _Mounts:
    made = _Mounts()
    for flag in step.flags:
        if not flag.startswith("--mount="):
            continue
        fields = {key.strip().lower(): value for key, _, value in (
            one.partition("=") for one in build.expand(state, flag[8:], step).split(","))}
        kind = fields.get("type", "bind")
        target = fields.get("target") or fields.get("dst") or fields.get("destination") or ""
        if target and not target.startswith("/"):
            target = os.path.join(state.config.get("WorkingDir") or "/", target)
        handler = _KINDS.get(kind)
        if handler is None:
            raise build.file.error(f"--mount=type={kind} is not available", step, f"Known: {', '.join(_KINDS)}.")
        handler(build, state, step, fields, target, made)
    return made


def _bind(build: Builder, state: State, step: Instruction, fields: dict[str, str], target: str, made: _Mounts) -> None:
    if "from" in fields:
        raise build.file.error("--mount=type=bind,from=... is not available", step, "Use COPY --from.")
    source = fields.get("source") or fields.get("src") or "."
    [(name, path)] = build.context.find(source)
    made.binds.append(Mount(path, target or "/", read_only=True))
    made.sums.append(f"bind {target} {checksum(list(build.context.tree(name, path)))}")


def _cache(build: Builder, state: State, step: Instruction, fields: dict[str, str], target: str, made: _Mounts) -> None:
    name = hashlib.sha256((fields.get("id") or target).encode()).hexdigest()[:32]
    folder = f"{build.store.layout.root}/build-caches/{name}"
    os.makedirs(folder, mode=0o755, exist_ok=True)
    made.binds.append(Mount(folder, target, read_only=fields.get("readonly", fields.get("ro", "false")) != "false"))
    made.sums.append(f"cache {target}")


def _secret(build: Builder, state: State, step: Instruction, fields: dict[str, str], target: str,
            made: _Mounts) -> None:
    name = fields.get("id") or os.path.basename(target)
    path = build.options.secrets.get(name)
    if path is None:
        if fields.get("required", "false") not in ("false", "0"):
            raise build.file.error(f"there is no secret {name!r}", step, f"Give it: --secret id={name},src=FILE.")
        return
    if "env" in fields:
        with open(path, encoding="utf-8") as file:
            made.env[fields["env"]] = file.read()
    else:
        made.binds.append(Mount(os.path.realpath(path), target or f"/run/secrets/{name}", read_only=True))
    made.sums.append(f"secret {name} {target}")  # not what it holds: that must not show anywhere


_KINDS: dict[str, Callable[..., None]] = {"bind": _bind, "cache": _cache, "secret": _secret}

LAYERED: dict[str, Callable[[Builder, State, Instruction], None]] = {
    "RUN": run, "COPY": copy, "ADD": copy, "WORKDIR": workdir,
}
