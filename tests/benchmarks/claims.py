"""What is to be reached, beside what was: ratios of medians and of p99, with the confidence that the samples give."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

RESAMPLED = 1000


def p99(samples: Sequence[float]) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


@dataclass
class Claim:
    """One row: ``ours`` over ``theirs`` (none of these: ``ours`` itself, in ``unit``) is to be at most ``wanted``.

    ``least``: at least. ``missing``: why there is no figure.
    """

    what: str
    against: str
    wanted: float
    ours: list[float] = field(default_factory=list)
    theirs: list[float] | None = None
    unit: str = "x"
    least: bool = False
    missing: str = ""

    def figure(self, of: Callable[[Sequence[float]], float] = statistics.median) -> float:
        return of(self.ours) / of(self.theirs) if self.theirs else of(self.ours)

    def between(self) -> tuple[float, float]:
        """What the median figure is in 95 of 100 samples of this size (percentile bootstrap)."""
        chance = random.Random(8)
        found = []
        for _ in range(RESAMPLED):
            again = Claim(self.what, self.against, self.wanted, chance.choices(self.ours, k=len(self.ours)),
                          chance.choices(self.theirs, k=len(self.theirs)) if self.theirs else None)
            found.append(again.figure())
        found.sort()
        return found[RESAMPLED // 40], found[-RESAMPLED // 40]

    @property
    def met(self) -> bool:
        return self.figure() >= self.wanted if self.least else self.figure() <= self.wanted

    def row(self) -> str:
        goal = f"{'at least' if self.least else 'at most'} {self.wanted:g} {self.unit}"
        if self.missing:
            return f"| {self.what} | {self.against} | {goal} | not measured: {self.missing} | | | |"
        low, high = self.between()
        tail = f"{self.figure(p99):.2f}" if len(self.ours) >= 20 and (not self.theirs or len(self.theirs) >= 20) else ""
        return (f"| {self.what} | {self.against} | {goal} | **{self.figure():.2f}** | {low:.2f} to {high:.2f} "
                f"| {tail} | {'yes' if self.met else 'no'} |")


def table(claims: Sequence[Claim]) -> str:
    """All of them in Markdown."""
    return "\n".join(["### Goals", "", "| what | against | goal | median | 95 % of samples | p99 | reached |",
                      "|---|---|---|---|---|---|---|", *(one.row() for one in claims)])


def plot(claims: Sequence[Claim], about: str) -> str:
    """The ratios as an SVG: a bar for each, and a line where the goal is, on a logarithmic scale."""
    import math

    shown = [one for one in claims if not one.missing and one.unit == "x"]
    left, width, step = 470, 420, 30
    low, high = math.log10(0.005), math.log10(4)

    def at(ratio: float) -> float:
        return left + (math.log10(min(max(ratio, 0.005), 4)) - low) / (high - low) * width

    height = 60 + step * len(shown) + 40
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
             'font-family="sans-serif" font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
             f'<text x="10" y="20" font-size="14">pytest-sandbox beside its peers: ratio of medians ({_escaped(about)})'
             '</text>', '<text x="10" y="38" fill="#555">Black line: the goal. Thin line: 95 % of samples. '
             'Green: reached.</text>']
    for ratio in (0.01, 0.03, 0.1, 0.3, 1, 3):
        x = at(ratio)
        parts.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="50" y2="{height - 30}" stroke="#ddd"/>'
                     f'<text x="{x:.0f}" y="{height - 14}" text-anchor="middle" fill="#555">{ratio:g}</text>')
    for number, one in enumerate(shown):
        y = 56 + number * step
        (least, most), goal = one.between(), at(one.wanted)
        parts.append(
            f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{_escaped(f"{one.what}: {one.against}"[:74])}</text>'
            f'<rect x="{left}" y="{y}" width="{at(one.figure()) - left:.1f}" height="18" '
            f'fill="{"#7bb77b" if one.met else "#d99a6c"}"/>'
            f'<line x1="{at(least):.1f}" x2="{at(most):.1f}" y1="{y + 9}" y2="{y + 9}" stroke="#444"/>'
            f'<line x1="{goal:.1f}" x2="{goal:.1f}" y1="{y - 3}" y2="{y + 21}" stroke="black" stroke-width="2"/>'
            f'<text x="{left + width + 8}" y="{y + 13}">{one.figure():.2f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
