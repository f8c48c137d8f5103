"""Compares two runs of a suite, test by test, from their JUnit reports. No I/O beyond reading the files."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ABSENT = "absent"

#: In a reason: addresses, and the number in the name of pytest's temporary folder of a run.
_VARYING = re.compile(r"(?<=\b0x)[0-9a-f]+|(?<=/pytest-)\d+(?=/)")


@dataclass(frozen=True)
class Outcome:
    """What became of one test. ``detail`` is the reason of a skip or an expected failure; others have none."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


@dataclass(frozen=True)
class Difference:
    test: str
    plain: Outcome
    sandboxed: Outcome


@dataclass(frozen=True)
class Explanation:
    """An accepted difference. An absent field matches anything."""

    project: str
    cause: str
    test: str = "*"
    user: str | None = None
    plain: str | None = None
    sandboxed: str | None = None

    def covers(self, project: str, user: str, difference: Difference) -> bool:
        return (
            self.project == project
            and self.user in (None, user)
            and self.plain in (None, difference.plain.kind)
            and self.sandboxed in (None, difference.sandboxed.kind)
            and (difference.test == self.test or fnmatchcase(difference.test, self.test))
        )


def outcomes(report: Path) -> dict[str, Outcome]:
    """Every test of a JUnit report. Two of one name (a test and the error of its teardown, say) get a number."""
    found: dict[str, Outcome] = {}
    seen: Counter[str] = Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        seen[name] += 1
        if seen[name] > 1:
            name = f"{name} #{seen[name]}"
        found[name] = _outcome(case)
    return found


def _outcome(case: ElementTree.Element) -> Outcome:
    kinds = []
    detail = ""
    for child in case:
        if child.tag == "failure":
            kinds.append("failed")
        elif child.tag == "error":
            # pytest says which phase it was; the rest of the message is the exception, as variable as a failure's.
            phase = re.match(r"failed on (\w+)|collection", child.get("message", ""))
            kinds.append(f"error in {phase[1] or 'collection'}" if phase else "error")
        elif child.tag == "skipped":
            kinds.append("xfailed" if child.get("type") == "pytest.xfail" else "skipped")
            detail = _VARYING.sub("...", child.get("message") or "")
    return Outcome(" and ".join(kinds) or "passed", detail)


def differences(plain: Mapping[str, Outcome], sandboxed: Mapping[str, Outcome]) -> list[Difference]:
    nothing = Outcome(ABSENT)
    return [
        Difference(test, plain.get(test, nothing), sandboxed.get(test, nothing))
        for test in [*plain, *(test for test in sandboxed if test not in plain)]
        if plain.get(test, nothing) != sandboxed.get(test, nothing)
    ]


def counted(found: Iterable[Outcome]) -> str:
    """``12 passed, 1 skipped``."""
    return ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(one.kind for one in found).items()))
