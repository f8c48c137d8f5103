"""The instructions that make layers: RUN, COPY, ADD and WORKDIR."""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from .. import planning
from ..errors import ImageError, SandboxError
from ..image.locks import lock
from ..images import Image
from ..runtime.subids import REMEDY
from ..sandbox import Sandbox
from ..spec import SandboxSpec
from .context import Source, checksum
from .hosted import HostFiles, changed, image_of, opened
from .layers import StageFiles
from .remote import fetch, is_git, is_url, name_of
from .runmounts import SCRIPT, Mounts, mounts, script
from .text import LATER, PREDEFINED, Instruction

if TYPE_CHECKING:
    from .builder import Builder, State

_SHELL = ["/bin/sh", "-c"]
_DISK_SIGNS = ("No space left on device", "ENOSPC", "Disk quota exceeded")
_OWNER_SIGNS = ("Operation not permitted", "Invalid argument", "setgroups", "seteuid", "setegid", "chown")
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
    with build.maker(state) as maker:
        if maker.is_directory(path):
            state.key = key
            build._history(state, step, empty=True)
        elif not build.known(state, key, step):
            owner = build.owner(state, state.config.get("User") or "", step)
            build.keep(state, key, step, maker.directory(path, owner))


# COPY and ADD

def copy(build: Builder, state: State, step: Instruction) -> None:
    from .builder import step_key

    _refuse_flags(build, step, {"chown", "chmod", "link", *(["from"] if step.name == "COPY" else ["checksum"])})
    words = [build.expand(state, one, step) for one in step.words]
    if len(words) < 2:
        raise build.file.error(f"{step.name} has no destination", step,
                               f"Write it like {step.name} SOURCE... DESTINATION.")
    *sources, destination = words
    heredocs = {one.name: one for one in step.heredocs}
    target = os.path.join(state.config.get("WorkingDir") or "/", destination)
    with ExitStack() as stack:
        maker = stack.enter_context(build.maker(state))
        into = destination.endswith(("/", "/.")) or destination in (".", "..") or maker.is_directory(target)
        found: list[tuple[str, list[Source]]] = []
        archives: list[tuple[str, str]] = []
        taken = step.flag("from")
        files = stack.enter_context(origin(build, state, step, taken)) if taken is not None else None
        checksum_given = build.expand(state, step.flag("checksum") or "", step) or None
        if checksum_given is not None and not (len(sources) == 1 and is_url(sources[0])):
            raise build.file.error("--checksum goes with one URL", step,
                                   "Leave it out, or give each URL an ADD of its own.")
        for source in sources:
            if source.startswith("<<"):
                name = source[2:].lstrip("-").strip("'\"")
                doc = heredocs[name]
                text = build.expand(state, doc.content, step, keep_quotes=True) if doc.expand else doc.content
                found.append((name, [Source("", "", None, data=text.encode("utf-8", "surrogateescape"))]))
            elif step.name == "ADD" and files is None and is_git(source):
                raise build.file.error(f"{source} is a Git repository, which ADD does not fetch here", step,
                                       "Clone it in a RUN, or before the build.")
            elif step.name == "ADD" and files is None and is_url(source):
                found.append(_remote(build, step, source, into, checksum_given, stack))
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


def _remote(build: Builder, step: Instruction, url: str, into: bool, checksum_given: str | None,
            stack: ExitStack) -> tuple[str, list[Source]]:
    """A download as a source; gone with ``stack``."""
    name = name_of(url) if into else ""
    path = build.store.layout.staging(f"build-{os.urandom(8).hex()}")
    held = lock(f"{path}.lock", exclusive=True, create=True)
    assert held is not None
    stack.callback(held.remove)
    stack.callback(lambda: os.unlink(path) if os.path.exists(path) else None)
    one = fetch(url, path, checksum_given, build.stages.aside)
    os.utime(path, (one.mtime, one.mtime))
    os.chmod(path, 0o600)  # as Docker documents it for what is downloaded
    return name, [Source("", path, os.lstat(path))]


@contextmanager
def origin(build: Builder, state: State, step: Instruction, given: str) -> Iterator[StageFiles | HostFiles]:
    """The files of another stage or image, which ``--from`` names."""
    name = build.expand(state, given, step)
    other = build.file.find(name)
    if other is None and name == "host":
        with Sandbox(user="root") as sandbox:
            yield HostFiles(sandbox)
        return
    if other is not None:
        if other.number >= state.number:
            raise build.file.error(f"the stage {name!r} comes later, or is this one", step, LATER)
        found = build.stages.of(other)
        if found.host:
            with opened(build, found) as sandbox:
                yield HostFiles(sandbox)
            return
        with StageFiles(build.layers_of(found)) as files:
            yield files
        return
    with _image_files(build, step, name) as files:
        yield files


def _image_files(build: Builder, step: Instruction, name: str) -> StageFiles:
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
        raise build.file.error(f"--chmod={text} is not an octal mode", step, "Write it like --chmod=755.")
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

def run(build: Builder, state: State, step: Instruction) -> None:
    from .builder import step_key

    _refuse_flags(build, step, {"mount", "network"})
    if state.base is None and not state.host:
        raise build.file.error("RUN in an image that holds nothing", step, "COPY a program into it first.")
    network = {None: build.options.network, "default": build.options.network, "host": "host", "none": "none"}.get(
        step.flag("network"))
    if network is None:
        raise build.file.error(f"--network={step.flag('network')} is not available", step,
                               "Known: default, host, none.")
    command = _command(state, step)
    with ExitStack() as stack:
        made = mounts(build, state, step, stack)
        visible = {name: value for name, value in state.arguments.items() if name not in state.env}
        if is_script(step):
            made.sums.append(f"script {step.heredocs[0].content}")
            made.late.append(lambda: script(build, step, made))
        key = step_key(state.key, "RUN", *command, *(f"{name}={value}" for name, value in sorted(visible.items())
                                                     if name not in PREDEFINED), *made.sums, network)
        if build.known(state, key, step):
            return
        for one in made.late:
            one()
        _carry_out(build, state, step, command, _sandbox(build, state, network, made, visible), key)


def _sandbox(build: Builder, state: State, network: str, made: Mounts, visible: dict[str, str]) -> Sandbox:
    given = {name: value for name, value in build.options.arguments.items() if name in PREDEFINED}
    options: dict[str, Any] = {name: value for name in ("memory", "disk")
                               if (value := getattr(build.options, name)) is not None}
    env = {**given, **visible, **made.env}
    if state.host:
        options["user"] = state.config.get("User") or "root"
        options["workdir"] = state.config.get("WorkingDir") or "/"
        return Sandbox(image=image_of(build, state), network=network, mounts=made.binds, env={**state.env, **env},
                       **options)
    image = build.image_of(state)
    build.store.know(image)
    owners = build.identities.owners(image.keys)
    return Sandbox(SandboxSpec(owners=owners), image=f"image:{image.image_id}", network=network, mounts=made.binds,
                   env=env, **options)


def _carry_out(build: Builder, state: State, step: Instruction, command: list[str], sandbox: Sandbox,
               key: str) -> None:
    with sandbox:
        with build.stages.aside(sandbox):
            done = sandbox.run(command, timeout=build.options.timeout, text=True)
        build.stages.check()
        said = (done.stdout + done.stderr)[-_SHOWN:]
        if build.options.say is not None and said:
            build.options.say(said.rstrip("\n"))
        if done.returncode or done.timed_out:
            raise _failed(build, step, done, said, sandbox)
        if state.host:
            build.keep_on_host(state, key, step, changed(build, state, sandbox))
            return
        from .. import committing
        written = committing.write_upper(Image(sandbox.spec.image), sandbox._ready(), build.latest)
    build.keep(state, key, step, written)


def _failed(build: Builder, step: Instruction, done: Any, said: str, sandbox: Sandbox) -> Exception:
    remedy = "Mend the command and build again: the steps above it are kept."
    if done.timed_out:
        why = f"it ran longer than {build.options.timeout} s"
        remedy = "Give it longer (--timeout), or find out what it waits for: it has no terminal and no input."
    elif done.oom_killed:
        limit = sandbox.limit_error()
        why = str(limit) if limit is not None else "the kernel killed it for want of memory"
        remedy = "Give each RUN more: --memory SIZE."
    elif done.returncode < 0:
        why = f"it was ended by signal {-done.returncode}"
    else:
        why = f"it ended with status {done.returncode}"
    if any(sign in said for sign in _DISK_SIGNS) or _is_full(sandbox):
        remedy = ("What a RUN writes lies in memory, at most half of it: give it more (--disk SIZE), or write less in "
                  "one step.")
    elif build.identities.why_single is not None and any(sign in said for sign in _OWNER_SIGNS):
        remedy = f"It may have wanted other users' ids, and {build.identities.why_single}. {REMEDY}"
    tail = "\n".join(said.splitlines()[-20:])
    error = build.file.error(f"{why}\n{tail}" if tail else why, step, remedy)
    error.output = said
    return error


def _is_full(sandbox: Sandbox) -> bool:
    """Whether the writable layer has no room left: programs may say anything about that."""
    try:
        layer = os.fstatvfs(sandbox._ready().scratch)
    except (SandboxError, OSError):
        return False  # it has ended
    return layer.f_bfree == 0 or layer.f_ffree == 0


def _command(state: State, step: Instruction) -> list[str]:
    if step.is_json:
        return list(step.words)
    shell = list(state.config.get("Shell") or _SHELL)
    if _is_whole(step):
        body = step.heredocs[0].content
        return [SCRIPT] if is_script(step) else [*shell, body]
    if step.heredocs:
        text = step.words[0] + "\n" + "".join(f"{one.content}{one.name}\n" for one in step.heredocs)
        return [*shell, text]
    return [*shell, step.words[0]]


def _is_whole(step: Instruction) -> bool:
    """Whether a heredoc is the whole command."""
    first = step.words[0].split() if step.words else []
    return bool(step.heredocs) and len(first) == 1 and first[0].startswith("<<")


def is_script(step: Instruction) -> bool:
    """Whether that one names its interpreter."""
    return _is_whole(step) and not step.is_json and step.heredocs[0].content.startswith("#!")


LAYERED: dict[str, Callable[[Builder, State, Instruction], None]] = {
    "RUN": run, "COPY": copy, "ADD": copy, "WORKDIR": workdir,
}
