"""A Containerfile as data: instructions with their arguments, and variables in them replaced.

Read by BuildKit's own parser, through the package ``dockerfile`` (the extra ``pytest-sandbox[build]``). Variables
follow https://docs.docker.com/reference/dockerfile/#environment-replacement.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ImageBuildError, ImageError

KNOWN = frozenset({"ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
                   "MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"})
#: Arguments that every build has (https://docs.docker.com/reference/dockerfile/#predefined-args).
PREDEFINED = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "FTP_PROXY", "ftp_proxy", "NO_PROXY",
              "no_proxy", "ALL_PROXY", "all_proxy", "SOURCE_DATE_EPOCH")
#: What to do about a stage that takes from itself, or from one that takes from it.
LATER = "A stage can take from those above it: move that one up, and mind that two do not take from each other."
_REFERENCE = "Instructions are written as in https://docs.docker.com/reference/dockerfile/."
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A text that an instruction has below it. ``expand`` says whether variables in it are replaced."""

    name: str
    content: str
    expand: bool


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. ``words`` are its arguments, ``is_json`` tells the exec form, ``text`` is as it was written."""

    name: str
    words: tuple[str, ...]
    flags: tuple[str, ...]
    is_json: bool
    text: str
    line: int
    heredocs: tuple[Heredoc, ...] = ()

    def flag(self, name: str) -> str | None:
        """The value of ``--name=value``, the last one if there are several; "" without a value."""
        found = None
        for one in self.flags:
            key, _, value = one.partition("=")
            if key == f"--{name}":
                found = value
        return found


@dataclass(frozen=True, slots=True)
class Stage:
    """``FROM`` and what follows it."""

    number: int
    name: str
    base: Instruction
    steps: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Containerfile:
    """A whole file. ``arguments`` are the ``ARG`` before the first ``FROM``, which hold for the ``FROM`` lines only."""

    path: str
    arguments: tuple[Instruction, ...]
    stages: tuple[Stage, ...]
    escape: str = "\\"

    def error(self, why: str, where: Instruction | None, remedy: str | None = None) -> ImageBuildError:
        return ImageBuildError(f"{self.path} cannot be built", reference=self.path, file=self.path,
                               line=where.line if where is not None else None,
                               step=_one_line(where.text) if where is not None else None, why=why, remedy=remedy)

    def find(self, name: str) -> Stage | None:
        """The last stage of that name or number."""
        for stage in reversed(self.stages):
            if name.lower() in (stage.name, str(stage.number)):
                return stage
        return None


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


def parse(text: str, path: str) -> Containerfile:
    """Reads a Containerfile.

    :param path: what to call it in errors.
    :raises ImageBuildError: naming the line that cannot be read.
    :raises ImageError: when the parser is not installed.
    """
    empty = Containerfile(path, (), ())
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ImageBuildError(f"{path} cannot be built", reference=path, file=path,
                              line=text.count("\n", 0, error.start) + 1, why="there are bytes in it that are not UTF-8",
                              remedy="Save it as UTF-8.") from None
    answer = _ask(text, path)
    if "error" in answer:
        raise ImageBuildError(f"{path} cannot be built", reference=path, file=path, line=answer["line"],
                              why=answer["error"], remedy=_REFERENCE)
    commands: list[dict[str, Any]] = answer["commands"]
    found = re.match(r"(?:\s*#[^\n]*\n)*?\s*#\s*escape\s*=\s*([\\`])", text, re.IGNORECASE)
    arguments: list[Instruction] = []
    stages: list[tuple[Instruction, list[Instruction]]] = []
    for command in commands:
        one = _instruction(command)
        if one.name not in KNOWN:
            raise empty.error(f"there is no instruction {one.name!r}", one,
                              f"{_close(one.name)}Known: {', '.join(sorted(KNOWN))}.")
        if one.name == "ONBUILD" and not one.words:
            raise empty.error("nothing follows ONBUILD", one, "An instruction follows it: ONBUILD RUN make.")
        if one.name == "FROM":
            stages.append((one, []))
        elif stages:
            stages[-1][1].append(one)
        elif one.name == "ARG":
            arguments.append(one)
        else:
            raise empty.error(f"{one.name} stands before the first FROM", one,
                              "Begin with FROM and an image, or with ARG for the FROM lines.")
    if not stages:
        raise empty.error("there is no FROM in it", None, "Begin with FROM and an image, scratch or host.")
    made = []
    for number, (base, steps) in enumerate(stages):
        words = base.words
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].upper() != "AS"):
            raise empty.error("FROM takes an image, and AS with a name", base,
                              "Write it like FROM debian:bookworm AS tools.")
        made.append(Stage(number, words[2].lower() if len(words) == 3 else "", base, tuple(steps)))
    return Containerfile(path, tuple(arguments), tuple(made), found[1] if found else "\\")


#: Runs in a process of its own: the parser is written in Go, whose runtime brings threads and signal handlers along
#: that a process which forks its tests can do without.
_PARSER = """
import json, re, sys
import dockerfile
text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape")
def refused(text):
    try:
        return None, dockerfile.parse_string(text)
    except (dockerfile.GoParseError, dockerfile.GoIOError, ValueError) as error:
        return str(error), ()
error, commands = refused(text)
if error is None:
    answer = {"commands": [{
        "cmd": one.cmd, "value": list(one.value), "flags": list(one.flags), "json": bool(one.json),
        "original": one.original, "line": one.start_line,
        "heredocs": [[doc.name, doc.content] for doc in getattr(one, "heredocs", ())]} for one in commands]}
else:
    found = re.search(r"line (\\d+)", error)
    line = int(found[1]) if found else None
    lines = text.splitlines(keepends=True)
    if line is None:
        line = next((count for count in range(1, len(lines) + 1) if refused("".join(lines[:count]))[0] == error), None)
    answer = {"error": error, "line": line}
print(json.dumps(answer))
"""


def _ask(text: str, path: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-B", "-c", _PARSER], input=text.encode("utf-8", "surrogateescape"),
                          capture_output=True, check=False)
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer
    said = done.stderr.decode(errors="replace").strip().splitlines()
    why = "the parser of Containerfiles is not installed" if "No module named 'dockerfile'" in "".join(said[-1:]) else (
        f"the parser of Containerfiles failed: {said[-1] if said else done.returncode}")
    raise ImageError(f"{path} cannot be built", reference=path, why=why,
                     remedy="pip install 'pytest-sandbox[build]'.")


def _close(name: str) -> str:
    from difflib import get_close_matches
    found = get_close_matches(name, KNOWN, 1)
    return f"Did you mean {found[0]}? " if found else ""


def _instruction(command: dict[str, Any]) -> Instruction:
    words, original = tuple(command["value"]), command["original"] or ""
    name = (command["cmd"] or "").upper()
    heredocs = tuple(Heredoc(one, content, not _quoted(original, one)) for one, content in command["heredocs"])
    if name == "ONBUILD":
        words = tuple(one.strip() for one in original.split(None, 1)[1:])
    return Instruction(name, words, tuple(command["flags"]), command["json"], original, command["line"], heredocs)


def _quoted(original: str, name: str) -> bool:
    return re.search(rf"<<-?\s*(['\"]){re.escape(name)}\1", original) is not None


def expand(text: str, variables: Mapping[str, str], *, escape: str = "\\", unset: Callable[[str], None] | None = None,
           keep_quotes: bool = False) -> str:
    """Replaces variables in ``text`` and removes its quotes, as BuildKit's shell lexer does.

    :param unset: called with the name of each variable that has no value.
    :param keep_quotes: leave quotes alone, as in heredocs.
    :raises ValueError: for a ``${`` that does not end, or an operator that is not known.
    """
    return _Lexer(text, variables, escape, unset, keep_quotes).word("")


class _Lexer:
    def __init__(self, text: str, variables: Mapping[str, str], escape: str, unset: Callable[[str], None] | None,
                 keep_quotes: bool) -> None:
        self.text, self.variables, self.escape, self.unset = text, variables, escape, unset
        self.keep_quotes = keep_quotes
        self.at = 0

    def word(self, end: str) -> str:
        """Up to ``end`` (which is passed over), or to the end of the text."""
        out: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == end:
                self.at += 1
                return "".join(out)
            if char == "'" and not self.keep_quotes:
                close = self.text.find("'", self.at + 1)
                if close < 0:
                    raise ValueError("a quote is not closed")
                out.append(self.text[self.at + 1:close])
                self.at = close + 1
            elif char == '"' and not self.keep_quotes:
                self.at += 1
                out.append(self._double())
            elif char == self.escape:
                following = self.text[self.at + 1:self.at + 2]
                out.append(following if not self.keep_quotes or following == "$" else char + following)
                self.at += 2
            elif char == "$":
                out.append(self._dollar())
            else:
                out.append(char)
                self.at += 1
        if end:
            raise ValueError(f"{end!r} is missing in {self.text!r}")
        return "".join(out)

    def _double(self) -> str:
        out: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return "".join(out)
            if char == "$":
                out.append(self._dollar())
                continue
            if char == self.escape and self.text[self.at + 1:self.at + 2] in ('"', "$", self.escape):
                self.at += 1
                char = self.text[self.at]
            out.append(char)
            self.at += 1
        raise ValueError("a quote is not closed")

    def _dollar(self) -> str:
        self.at += 1
        if self.text[self.at:self.at + 1] != "{":
            found = _VARIABLE.match(self.text, self.at)
            if found is None:
                return "$"
            self.at = found.end()
            return self._value(found[0]) or ""
        self.at += 1
        found = _VARIABLE.match(self.text, self.at)
        if found is None:
            raise ValueError(f"'${{' without a name in {self.text!r}")
        self.at = found.end()
        return self._operator(found[0])

    def _operator(self, name: str) -> str:
        rest = self.text[self.at:]
        if rest.startswith("}"):
            self.at += 1
            return self._value(name) or ""
        colon = rest.startswith(":")
        operator = rest[colon:colon + 1]
        if operator not in ("-", "+", "?"):
            raise ValueError(f"${{{name}{rest[:2]}...}} is not understood; known are :-, :+, :?, -, + and ?")
        self.at += colon + 1
        other = self.word("}")
        value = self.variables.get(name)
        there = value is not None and (value != "" or not colon)
        if operator == "+":
            return other if there else ""
        if there:
            return value or ""
        if operator == "?":
            raise ValueError(f"{name}: {other or 'is not set'}")
        return other

    def _value(self, name: str) -> str | None:
        value = self.variables.get(name)
        if value is None and self.unset is not None:
            self.unset(name)
        return value
