"""Builds a Containerfile: each stage's steps in their order, each with a layer of its own or a changed configuration.

What a step makes is kept under a key: that of the step before, the instruction with its variables replaced, the
arguments that it can see, and for copied files their names, modes and contents, as BuildKit documents it
(https://docs.docker.com/build/cache/invalidation/). A step whose key is known is not carried out again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .. import planning
from ..errors import ImageBuildError, ImageError, SandboxError
from ..image.commit import Written, add_image, empty_document, now
from ..image.roots import PATH, find_user
from ..image.store import ImageStore, StoredImage
from .configure import CONFIGURE, configure
from .context import Context, Missing
from .hosted import HostMaker, fingerprint, mapping, opened, owner, split
from .identities import Identities
from .layers import LayerMaker
from .stages import Stages
from .text import LATER, PREDEFINED, Containerfile, Instruction, Stage, expand, parse


@dataclass
class Options:
    """How to build. ``memory``, ``disk`` and ``timeout`` bound each RUN, as the sandbox options of these names."""

    arguments: Mapping[str, str] = field(default_factory=dict)
    target: str | None = None
    cache: bool = True
    network: str = "host"
    memory: str | int | None = None
    disk: str | int | None = None
    timeout: float | None = None
    secrets: Mapping[str, str] = field(default_factory=dict)
    say: Any = None


@dataclass
class State:
    """A stage so far. ``base`` is None for ``scratch``, and for the host while nothing of it has changed.

    ``number`` is the stage's. ``host``: it is on the host, and so are its layers.
    """

    base: StoredImage | None
    document: dict[str, Any]
    key: str
    arguments: dict[str, str] = field(default_factory=dict)
    cmd_here: bool = False
    number: int = 0
    host: bool = False

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.document.setdefault("config", {})
        return found

    @property
    def env(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self.config.get("Env") or [] if "=" in line)

    def variables(self) -> dict[str, str]:
        """What instructions may name: arguments, and above them the environment."""
        return {**self.arguments, **self.env}


class Builder:
    """One build of one file; :meth:`build` once.

    :param context: the directory that ``COPY`` takes files from.
    """

    def __init__(self, store: ImageStore, file: Containerfile, context: Context, options: Options) -> None:
        self.store, self.file, self.context, self.options = store, file, context, options
        self.hits = self.made = self.steps = 0
        self._asked: set[str] = set()
        self.stages = Stages(self)
        self.identities = Identities(store, options.say)
        epoch = options.arguments.get("SOURCE_DATE_EPOCH") or os.environ.get("SOURCE_DATE_EPOCH") or ""
        self.latest = int(epoch) if epoch.isdigit() else None

    def build(self) -> StoredImage:
        """The image of the target stage, by default the last one.

        :raises ImageBuildError: naming the line.
        """
        stage = self.file.stages[-1]
        if self.options.target is not None:
            found = self.file.find(self.options.target)
            if found is None:
                names = ", ".join(one.name or str(one.number) for one in self.file.stages)
                raise self.file.error(f"there is no stage {self.options.target!r}", None, f"Its stages: {names}.")
            stage = found
        try:
            state = self.stages.make(stage)
        finally:
            self.identities.close()
        unused = [name for name in self.options.arguments if name not in {*self._asked, *PREDEFINED}]
        if unused and self.options.say is not None:
            self.options.say(f"note: no ARG of the stages that were built asks for {', '.join(unused)}")
        return self.image_of(state, record=True)

    def image_of(self, state: State, *, record: bool = False) -> StoredImage:
        """The image of a stage as it is now, which sandboxes can run on."""
        host = (state.base.host if state.base is not None else None) or ()
        return add_image(self.store, state.base, state.document, (), "a build", host if state.host else None,
                         record=record)

    def layers_of(self, state: State) -> list[str]:
        if state.base is None:
            return []
        return [f"{self.store.layout.layer(key)}/fs" for key in state.base.keys]

    # Stages.

    def make(self, stage: Stage) -> State:
        """Carries a stage out. Called by :attr:`stages`, once for each."""
        state = self._from(stage)
        state.number = stage.number
        triggers = state.config.pop("OnBuild", None) or []
        for trigger in triggers:
            for one in parse(f"FROM scratch\n{trigger}\n", self.file.path).stages[0].steps:
                self._step(state, one)
        for step in stage.steps:
            self._step(state, step)
        return state

    def _from(self, stage: Stage) -> State:
        outer: dict[str, str] = {}
        for one in self.file.arguments:
            self._declare(one, outer, outer)
        reference = self._expand(stage.base.words[0], {**_platform(), **outer}, stage.base)
        self._tell(stage.base, f"FROM {reference}")
        if not reference:
            raise self.file.error("FROM names nothing once its variables are replaced", stage.base,
                                  "Give the ARG a value, or the build --build-arg.")
        other = self.file.find(reference)
        if other is not None and other.number < stage.number:
            found = self.stages.of(other)
            return State(found.base, json.loads(json.dumps(found.document)), found.key, host=found.host)
        if other is not None and other.name == reference.lower():
            raise self.file.error(f"the stage {reference!r} comes later, or is this one", stage.base, LATER)
        return self._base(reference, stage.base, outer)

    def _base(self, reference: str, where: Instruction, outer: Mapping[str, str]) -> State:
        document = empty_document(self.store.platform)
        if reference == "scratch":
            document["config"] = {"Env": [f"PATH={PATH}"]}
            return State(None, document, self._first_key("scratch", str(self.store.platform)))
        if reference == "host":
            document["config"] = {}
            return State(None, document, self._first_key("host", fingerprint()), host=True)
        if reference.startswith("containerfile:"):
            raise self.file.error(f"{reference!r} cannot be the base of a build", where,
                                  "Build it first, with a name: pytest-sandbox build -t NAME.")
        try:
            stack = planning.resolve(reference)
        except ImageError as error:
            raise self.file.error(str(error), where) from error
        stored = self.store.image(stack.image_id) if stack.image_id is not None else None
        if stored is None:
            raise self.file.error(f"{reference!r} is a plain directory, which may change at any time", where,
                                  "Make a tarball of it: rootfs:FILE.")
        document = json.loads(stored.config)
        document["config"] = document.get("config") or {}
        on_host = stored.host is not None
        key = self._first_key("image", stored.image_id, *([fingerprint()] if on_host else []))
        return State(stored, document, key, host=on_host)

    def _first_key(self, *parts: str) -> str:
        """The key that the steps of a stage build upon: with other latest times all files may be others."""
        return _key(*parts, *([f"no later than {self.latest}"] if self.latest is not None else []))

    # Steps.

    def _step(self, state: State, step: Instruction) -> None:
        self.stages.check()
        self._tell(step, " ".join(step.text.split()))
        self.steps += 1
        try:
            if step.name == "ARG":
                self._declare(step, state.arguments, state.variables())
                state.key = _key(state.key, step.text, *_pairs(state.arguments))
            elif step.name in CONFIGURE:
                configure(self.file, state, step, self._expand)
                state.key = _key(state.key, step.name, json.dumps(state.config, sort_keys=True))
                self._history(state, step, empty=True)
            else:
                from .layered import LAYERED
                LAYERED[step.name](self, state, step)
        except ImageBuildError:
            raise
        except SandboxError as error:
            raise self.file.error(str(error), step) from error
        except Missing as error:
            raise self.file.error(str(error), step, error.remedy) from None
        except OSError as error:
            raise self.file.error(str(error), step, "Mend that, and build again: the steps so far are kept.") from None
        except ValueError as error:
            raise self.file.error(str(error), step, "Correct the line, or what it names.") from None

    def _declare(self, step: Instruction, into: dict[str, str], seen: Mapping[str, str]) -> None:
        for word in step.words:
            name, equals, default = word.partition("=")
            self._asked.add(name)
            if name in self.options.arguments:
                into[name] = self.options.arguments[name]
            elif equals:
                into[name] = self._expand(default, seen, step)
            else:
                outer: dict[str, str] = {}
                if into is not seen:
                    for one in self.file.arguments:
                        self._declare(one, outer, outer)
                value = {**_platform(), **outer}.get(name)
                if value is not None:
                    into[name] = value

    def _expand(self, text: str, variables: Mapping[str, str], where: Instruction, *, keep_quotes: bool = False) -> str:
        try:
            return expand(text, variables, escape=self.file.escape, keep_quotes=keep_quotes)
        except ValueError as error:
            raise self.file.error(str(error), where,
                                  "Correct the line; a dollar sign that means itself is written \\$.") from None

    def expand(self, state: State, text: str, where: Instruction, *, keep_quotes: bool = False) -> str:
        """A text with the stage's variables replaced."""
        return self._expand(text, state.variables(), where, keep_quotes=keep_quotes)

    def _history(self, state: State, step: Instruction, made: str | None = None, *, empty: bool) -> str | None:
        """Takes down a step. Returns when it was made, which is when the image was.

        :param made: when its layer was; without, it is as old as what lies below it, as BuildKit has it too: what is
            taken from the cache gives the same image then.
        """
        if self.latest is not None:
            made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.latest))
        made = made or state.document.get("created")
        entry = {**({"created": made} if made else {}), "created_by": " ".join(step.text.split())}
        state.document.setdefault("history", []).append({**entry, **({"empty_layer": True} if empty else {})})
        if made:
            state.document["created"] = made
        return made

    def known(self, state: State, key: str, step: Instruction) -> bool:
        """Takes over what a step made before; False when it has to be made."""
        record = self.store.layout.read_record(self._record(key)) if self.options.cache else None
        stored = self.store.recorded(record.get("image")) if record else None
        if stored is None:
            return False
        assert record is not None
        self.hits += 1
        state.base, state.key = stored, key
        layers = int(record.get("layers", 1))
        for number in range(max(layers, 1)):
            self._history(state, step, record.get("created") if layers else None, empty=number >= layers)
        return True

    def keep(self, state: State, key: str, step: Instruction, written: Written | None) -> None:
        """Adds a step's layer, and remembers it under its key."""
        self.made += 1
        if written is not None and state.host:
            self.keep_on_host(state, key, step, split(self, written))
            return
        made = None
        if written is not None:
            made = self._history(state, step, now(), empty=False)
            state.base = add_image(self.store, state.base, state.document, [written], "a build", record=False)
        else:
            self._history(state, step, empty=True)
            if state.base is None:
                state.key = key
                return
        state.key = key
        self.store.layout.write_record(self._record(key), {"version": 1, "image": state.base.as_json(),
                                                           "layers": int(written is not None), "created": made})

    def keep_on_host(self, state: State, key: str, step: Instruction, found: list[tuple[str, Written]]) -> None:
        """As :meth:`keep`, for a step's changes of the host's trees."""
        made = now() if found else None
        for number in range(max(len(found), 1)):
            self._history(state, step, made, empty=number >= len(found))
        count = len(state.base.diff_ids) if state.base is not None else 0
        before = state.base.host if state.base is not None else None
        if found:
            state.base = add_image(self.store, state.base, state.document, [one for _, one in found], "a build",
                                   mapping(before, count, found), record=False)
        state.key = key
        if state.base is not None:
            self.store.layout.write_record(self._record(key), {"version": 1, "image": state.base.as_json(),
                                                               "layers": len(found), "created": made})

    @contextmanager
    def maker(self, state: State) -> Iterator[LayerMaker]:
        """What makes layers of files on a stage as it is."""
        if state.host:
            with opened(self, state) as sandbox:
                yield HostMaker(self, sandbox)
        else:
            yield LayerMaker(self.store, self.layers_of(state), self.latest)

    def _record(self, key: str) -> str:
        return f"{self.store.layout.root}/builds/{key}.json"

    def owner(self, state: State, text: str, step: Instruction) -> tuple[int, int]:
        """The uid and gid that ``--chown`` means in the image."""
        if not text:
            return 0, 0
        user, _, group = text.partition(":")
        if user.isdigit() and (not group or group.isdigit()):
            return int(user), int(group or user)
        if state.host:
            return owner(text)
        image = self.image_of(state)
        stack = self.store.stack(image, self.file.path)
        from dataclasses import replace
        uid, gid, _ = find_user(replace(stack, config=replace(stack.config, user=text)))
        return uid, gid

    def _tell(self, step: Instruction, text: str) -> None:
        if self.options.say is not None:
            self.options.say(f"{self.file.path}:{step.line}: {text[:150]}")


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()


def _pairs(values: Mapping[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in sorted(values.items())]


def _platform() -> dict[str, str]:
    from ..image.manifest import Platform
    here = Platform.here()
    found: dict[str, str] = {}
    for side in ("BUILD", "TARGET"):
        found |= {f"{side}PLATFORM": str(here), f"{side}OS": here.os, f"{side}ARCH": here.architecture,
                  f"{side}VARIANT": here.variant}
    return found


def step_key(*parts: str) -> str:
    """The key of a step."""
    return _key(*parts)
