"""The instructions that change nothing but an image's configuration (image-spec, config.md, and Docker's additions)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .text import Containerfile, Instruction

if TYPE_CHECKING:
    from .builder import State

    Expand = Callable[..., str]

_UNITS = {"ns": 1, "us": 10 ** 3, "ms": 10 ** 6, "s": 10 ** 9, "m": 60 * 10 ** 9, "h": 3600 * 10 ** 9}
_SHELL = ["/bin/sh", "-c"]


def configure(file: Containerfile, state: State, step: Instruction, expand: Expand) -> None:
    """Carries out one of :data:`CONFIGURE`."""
    words = [expand(one, state.variables(), step) for one in step.words] if step.name in _EXPANDED else list(step.words)
    CONFIGURE[step.name](file, state, step, words)


def _env(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    env = state.env
    for name, value in zip(words[::2], words[1::2], strict=False):
        env[name] = value
    state.config["Env"] = [f"{name}={value}" for name, value in env.items()]


def _label(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    labels = dict(state.config.get("Labels") or {})
    labels.update(zip(words[::2], words[1::2], strict=False))
    state.config["Labels"] = labels


def _command(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    shell = state.config.get("Shell") or _SHELL
    made = words if step.is_json else [*shell, *words] if words and words[0] else []
    if step.name == "CMD":
        state.config["Cmd"] = made
        state.cmd_here = True
    else:
        state.config["Entrypoint"] = made
        if not state.cmd_here:
            state.config.pop("Cmd", None)


def _user(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    state.config["User"] = words[0]


def _expose(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    ports = dict(state.config.get("ExposedPorts") or {})
    for word in " ".join(words).split():
        port, _, kind = word.partition("/")
        first, _, last = port.partition("-")
        if not first.isdigit() or (last and not last.isdigit()) or kind.lower() not in ("", "tcp", "udp", "sctp"):
            raise file.error(f"{word!r} is not a port", step, "Write it like 80, 8000-8010 or 53/udp.")
        for number in range(int(first), int(last or first) + 1):
            ports[f"{number}/{kind.lower() or 'tcp'}"] = {}
    state.config["ExposedPorts"] = ports


def _volume(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    state.config["Volumes"] = {**(state.config.get("Volumes") or {}), **{word: {} for word in words}}


def _shell(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    if not step.is_json or not words:
        raise file.error("SHELL takes a list in JSON", step, 'Write it like ["/bin/bash", "-c"].')
    state.config["Shell"] = words


def _stop_signal(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    state.config["StopSignal"] = words[0]


def _maintainer(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    state.document["author"] = " ".join(words)


def _on_build(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    name = words[0].split(None, 1)[0].upper()
    if name in ("ONBUILD", "FROM", "MAINTAINER"):
        raise file.error(f"ONBUILD cannot be followed by {name}", step, "Use any other instruction.")
    state.config["OnBuild"] = [*(state.config.get("OnBuild") or []), words[0]]


def _health_check(file: Containerfile, state: State, step: Instruction, words: list[str]) -> None:
    kind = words[0].upper()
    if kind == "NONE":
        state.config["Healthcheck"] = {"Test": ["NONE"]}
        return
    if kind != "CMD" or len(words) < 2:
        raise file.error("HEALTHCHECK says neither CMD and a command, nor NONE", step,
                         "Write it like HEALTHCHECK --interval=30s CMD curl -f http://localhost/.")
    check: dict[str, Any] = {"Test": ["CMD", *words[1:]] if step.is_json else ["CMD-SHELL", words[1]]}
    for flag, key in (("interval", "Interval"), ("timeout", "Timeout"), ("start-period", "StartPeriod"),
                      ("start-interval", "StartInterval")):
        if (given := step.flag(flag)) is not None:
            check[key] = _nanoseconds(file, step, given)
    if (retries := step.flag("retries")) is not None:
        if not retries.isdigit():
            raise file.error(f"--retries={retries} is not a number", step, "Write it like --retries=3.")
        check["Retries"] = int(retries)
    state.config["Healthcheck"] = check


def _nanoseconds(file: Containerfile, step: Instruction, text: str) -> int:
    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise file.error(f"{text!r} is not a time", step, "Write it like 500ms, 30s or 1m30s.")
    return int(sum(float(number) * _UNITS[unit] for number, unit in parts))


_EXPANDED = frozenset({"ENV", "LABEL", "USER", "EXPOSE", "VOLUME", "STOPSIGNAL"})

CONFIGURE: dict[str, Callable[[Containerfile, State, Instruction, list[str]], None]] = {
    "ENV": _env, "LABEL": _label, "CMD": _command, "ENTRYPOINT": _command, "USER": _user, "EXPOSE": _expose,
    "VOLUME": _volume, "SHELL": _shell, "STOPSIGNAL": _stop_signal, "MAINTAINER": _maintainer, "ONBUILD": _on_build,
    "HEALTHCHECK": _health_check,
}
