"""The report's data, and its two forms."""

from __future__ import annotations

import html
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

#: What a report's name ends in.
FORMS = (".html", ".json")


@dataclass
class Record:
    """One test. ``usage`` has the fields of ``Usage`` that are known, ``options`` the sandbox's as they were given."""

    test: str
    outcome: str = "passed"
    duration: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, float] = field(default_factory=dict)
    failure: str | None = None
    worker: str | None = None


@dataclass
class Run:
    """One run of pytest. ``started`` is an ISO 8601 time, ``host`` says on what."""

    started: str
    host: dict[str, str]
    tests: list[Record]


def write(run: Run, path: str) -> None:
    """Writes the report, whole or not at all.

    :raises OSError: when the file cannot be written.
    """
    text = json.dumps({"version": 1, **asdict(run)}, indent=1) if path.endswith(".json") else "".join(_page(run))
    put(text, path)


def put(text: str, path: str) -> None:
    """Writes a file, whole or not at all, and the directories that lead to it.

    :raises OSError: when it cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    made = f"{path}.{os.getpid()}.part"
    try:
        with open(made, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(made, path)
    except OSError:
        if os.path.exists(made):
            os.unlink(made)
        raise


#: The columns of figures: the field, the heading, what a number of it is.
_COLUMNS = (("cpu_seconds", "CPU", "s"), ("wall_seconds", "wall", "s"), ("memory_peak", "memory", "B"),
            ("disk", "disk", "B"), ("pids_peak", "pids", ""), ("io_read", "read", "B"), ("io_written", "written", "B"))

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } p.host { color: #666; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .25rem .6rem; text-align: right; }
th { border-bottom: 2px solid #888; cursor: pointer; white-space: nowrap; } td { border-top: 1px solid #ddd; }
th:nth-child(-n+2), td:nth-child(-n+2), td:last-child, th:last-child { text-align: left; }
td:nth-child(2) { overflow-wrap: anywhere; } .passed { color: #176f2c; } .failed { color: #b3261e; font-weight: 600; }
.skipped { color: #8a6d00; } pre { background: #f5f5f5; overflow: auto; padding: .6rem; max-height: 30rem; }
code { color: #555; font-size: .85em; }
@media (prefers-color-scheme: dark) { body { background: #1b1b1b; color: #ddd; } pre { background: #262626; }
 td { border-color: #444; } .passed { color: #7ccf8f; } .failed { color: #ff8a80; } .skipped { color: #e0c068; } }
"""

_SCRIPT = """
for (const [at, head] of [...document.querySelectorAll("th")].entries()) head.onclick = () => {
  const body = document.querySelector("tbody"), down = head.dataset.down = head.dataset.down === "1" ? "0" : "1";
  const key = row => { const cell = row.children[at]; return cell.dataset.value ?? cell.textContent; };
  const rows = [...body.children].sort((a, b) => {
    const x = key(a), y = key(b), both = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
    return both ? x - y : String(x).localeCompare(String(y)); });
  body.append(...(down === "1" ? rows.reverse() : rows));
};
"""


def _page(run: Run) -> Iterator[str]:
    counts = Counter(one.outcome for one in run.tests)
    said = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "no sandboxed test"
    yield (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Sandboxes: {_text(said)}</title>'
           f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
           f"<h1>Sandboxes of a test run: {_text(said)}</h1>"
           f'<p class="host">{_text(run.started)} &middot; '
           + " &middot; ".join(_text(f"{name} {value}") for name, value in run.host.items()) + "</p>\n")
    yield "<table><thead><tr><th>outcome</th><th>test</th>"
    yield "".join(f"<th>{heading}</th>" for _, heading, _ in _COLUMNS) + "<th>options</th></tr></thead><tbody>\n"
    for one in run.tests:
        yield from _row(one)
    yield f"</tbody></table><script>{_SCRIPT}</script></body></html>\n"


def _row(one: Record) -> Iterator[str]:
    yield f'<tr><td class="{_text(one.outcome)}">{_text(one.outcome)}</td><td>{_text(one.test)}'
    if one.failure:
        yield f"<details><summary>failure</summary><pre>{_text(one.failure)}</pre></details>"
    yield "</td>"
    for name, _, unit in _COLUMNS:
        value = one.usage.get(name)
        if value is None:
            yield '<td data-value="-1">&ndash;</td>'
        else:
            yield f'<td data-value="{value:g}">{_figure(value, unit)}</td>'
    options = ", ".join(f"{name}={value!r}" for name, value in one.options.items())
    yield f"<td><code>{_text(options)}</code></td></tr>\n"


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.2f}&nbsp;s"
    if unit != "B":
        return f"{value:g}"
    for name in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or name == "GiB":
            break
        value /= 1024
    return f"{value:.4g}&nbsp;{name}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
