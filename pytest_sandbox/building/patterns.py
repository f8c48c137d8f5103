"""Patterns of ``COPY`` and ``.dockerignore``: Go's ``filepath.Match`` with ``**`` (moby's patternmatcher).

They come with a build's context, so nobody's word is taken for how long they take: a regular expression with many stars
tries every way to share a name out among them. Those are matched by following all ways at once instead.
"""

from __future__ import annotations

import re
from typing import Protocol

#: Up to so many stars a regular expression is the faster one, whatever the name.
_FEW = 2


class Pattern(Protocol):
    """What ``re.Pattern`` has of it."""

    def fullmatch(self, name: str, /) -> object:
        """Something true, if ``name`` is one that is meant."""


def compiled(pattern: str) -> Pattern:
    """:raises ValueError: for a class of characters that is none, as ``[z-a]``."""
    parts = _parts(pattern)
    try:
        if sum(one.kind != "one" for one in parts) <= _FEW:
            return re.compile("".join(one.text for one in parts), re.DOTALL)
        return _Ways(parts)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a pattern: {error}") from None


class _Part:
    """``one`` character; ``star``, any but slashes; ``deep``, any; ``tree``, nothing or any and a slash."""

    __slots__ = ("kind", "text")

    def __init__(self, kind: str, text: str) -> None:
        self.kind, self.text = kind, text


def _parts(pattern: str) -> list[_Part]:
    parts: list[_Part] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("**/", at):
            part, at = _Part("tree", "(?:.*/)?"), at + 3
        elif pattern.startswith("**", at):
            part, at = _Part("deep", ".*"), at + 2
        elif char == "*":
            part, at = _Part("star", "[^/]*"), at + 1
        elif char == "?":
            part, at = _Part("one", "[^/]"), at + 1
        elif char == "[" and "]" in pattern[at + 1:]:
            close = pattern.index("]", at + 1)
            inner = pattern[at + 1:close]
            listed = ("^" + inner[1:] if inner[:1] in ("^", "!") else inner).replace("\\", "\\\\").replace("[", "\\[")
            part, at = _Part("one", f"[{listed}]"), close + 1
        elif char == "\\" and at + 1 < len(pattern):
            part, at = _Part("one", re.escape(pattern[at + 1])), at + 2
        else:
            part, at = _Part("one", re.escape(char)), at + 1
        if part.kind == "one" or not parts or parts[-1].kind != part.kind:  # two of a kind mean no more than one
            parts.append(part)
    return parts


class _Ways:
    """Matches in time proportional to the pattern's length times the name's."""

    def __init__(self, parts: list[_Part]) -> None:
        self._kinds = [one.kind for one in parts]
        self._ones = [re.compile(one.text, re.DOTALL) if one.kind == "one" else None for one in parts]

    def fullmatch(self, name: str) -> bool:
        """See :class:`Pattern`. A way is the number of the part that comes next, doubled; odd within a tree."""
        kinds, end = self._kinds, 2 * len(self._kinds)
        ways = self._skip([0])
        for char in name:
            taken = []
            for way in ways:
                kind = kinds[way >> 1] if way < end else ""
                if kind == "one":
                    one = self._ones[way >> 1]
                    if one is not None and one.match(char):
                        taken.append(way + 2)
                elif kind == "deep" or (kind == "star" and char != "/"):
                    taken.append(way)
                elif kind == "tree":
                    taken.append(way | 1)
                    if char == "/":
                        taken.append((way | 1) + 1)
            ways = self._skip(taken)
            if not ways:
                return False
        return end in ways

    def _skip(self, ways: list[int]) -> set[int]:
        """With those that are reached without a character."""
        found = set()
        for way in ways:
            while way not in found:
                found.add(way)
                if not way & 1 and way >> 1 < len(self._kinds) and self._kinds[way >> 1] != "one":
                    way += 2
        return found
