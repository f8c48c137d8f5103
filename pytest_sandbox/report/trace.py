"""A run's traces as text, and as a file for a viewer of traces: Chrome's format, which Perfetto and others open.

Plain data goes in, as :meth:`Sandboxed.data` makes it, so that it can come from another process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from .write import put

#: Who can have taken the time, in the order in which they come, and in words.
WHO = {
    "pytest": "the pytest process", "helper": "the helper", "init": "the sandbox's first process",
    "fork": "the test's process, on its way in", "run": "commands in a driven sandbox",
    "test": "the test", "report": "its reports", "end": "the end, off the test's path",
}
#: One sandbox: the test's id or None, the process that made it, when it was asked for, and its spans, in nanoseconds:
#: who, what, from, to.
Sandboxed = dict[str, Any]


def table(sandboxes: Sequence[Sandboxed]) -> list[str]:
    """What a user wants to see of it: each step, its median, its 99th percentile, and how often it was."""
    times: dict[str, dict[str, list[int]]] = {who: {} for who in WHO}
    begins: dict[tuple[str, str], list[int]] = {}
    for one in sandboxes:
        for who, what, began, ended in one["spans"]:
            times.setdefault(who, {}).setdefault(what, []).append(ended - began)
            begins.setdefault((who, what), []).append(began - one["asked"])
    rows = []
    for who, steps in times.items():
        if not steps:
            continue
        rows.append(f"{WHO.get(who, who)}:")
        for what in sorted(steps, key=lambda what: _median(begins[who, what])):
            taken = steps[what]
            rows.append(f"  {_short(what):50} {_median(taken) / 1000:10,.0f} {_high(taken) / 1000:10,.0f} "
                        f"{len(taken):7}")
    return [f"{'microseconds':52} {'median':>10} {'p99':>10} {'times':>7}", *rows] if rows else []


def _short(text: str) -> str:
    return text if len(text) <= 50 else f"{text[:22]}...{text[-25:]}"


def _median(numbers: Iterable[int]) -> float:
    ordered = sorted(numbers)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _high(numbers: list[int]) -> int:
    return sorted(numbers)[min(len(numbers) - 1, int(len(numbers) * 0.99))]


def write(sandboxes: Sequence[Sandboxed], path: str) -> None:
    """Writes all of it, whole or not at all: in the viewer each sandbox has a row for each who.

    :raises OSError: when the file cannot be written.
    """
    begin = min((began for one in sandboxes for _, _, began, _ in one["spans"]), default=0)
    events: list[dict[str, Any]] = []
    order = {who: number for number, who in enumerate(WHO, 1)}
    for number, one in enumerate(sandboxes, 1):
        name = one["label"] or "used by no test"
        events.append({"ph": "M", "pid": number, "name": "process_name", "args": {"name": name}})
        events.append({"ph": "M", "pid": number, "name": "process_labels", "args": {"labels": one["worker"] or ""}})
        for who in dict.fromkeys(who for who, *_ in one["spans"]):
            row = order.get(who, 0)
            events.append({"ph": "M", "pid": number, "tid": row, "name": "thread_name",
                           "args": {"name": WHO.get(who, who)}})
            events.append({"ph": "M", "pid": number, "tid": row, "name": "thread_sort_index",
                           "args": {"sort_index": row}})
        for who, what, began, ended in one["spans"]:
            events.append({"ph": "X", "pid": number, "tid": order.get(who, 0), "cat": who, "name": what,
                           "ts": (began - begin) / 1000, "dur": (ended - began) / 1000})
    text = json.dumps({"displayTimeUnit": "ns", "traceEvents": events})
    put(text, path)
