"""Reads the documentation's pages for the tests beside this file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_BLOCK = re.compile(
    r"^(?:<!-- example: (?P<note>[^\n]*?) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every page that a reader may meet, fragments of the changelog aside."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/*/README.md")]
    return sorted(page for page in found if "changelog.d" not in page.parts)


@dataclass(frozen=True)
class Block:
    """A fenced block. ``note`` is what a comment ``<!-- example: ... -->`` above it says, invisible to readers."""

    page: Path
    line: int
    language: str
    note: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages: str) -> Iterator[Block]:
    for page in pages():
        whole = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(whole):
            if match["language"] in languages:
                line = whole.count("\n", 0, match.start("language")) + 1
                yield Block(page, line, match["language"], match["note"] or "", match["text"])
