"""docs/security.md names attacks that exist, and every promise that attacks are made against."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from worlds import core

ROOT = Path(__file__).parents[2]


def rows() -> list[list[str]]:
    text = (ROOT / "docs/security.md").read_text().partition("<!-- promises -->")[2]
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_attacks_of_the_table_exist() -> None:
    assert len(rows()) >= 15
    for promise, *_, attacks in rows():
        names = re.findall("`([^`]+)`", attacks)
        assert names, promise
        for name in names:
            if name.endswith(".py"):
                assert (ROOT / name).is_file(), name
            else:
                assert name in core.PROBES, f"{promise}: there is no attack {name}"


def test_every_promise_that_is_attacked_is_in_the_table() -> None:
    assert {one.promise for one in core.PROBES.values()} <= {row[0] for row in rows()}
