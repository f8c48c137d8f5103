"""Words of somebody else's, registries' and archives', as messages may show them."""

from __future__ import annotations

from collections.abc import Iterable


def printable(text: str) -> str:
    """The text without what a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in text)


def listed(names: Iterable[str], none: str = "none") -> str:
    """Names in order, printable, and not without end; ``none`` where there are none."""
    return printable(", ".join(sorted(names))[:1000]) or none
