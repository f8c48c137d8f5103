"""A small fuzzer: inputs are changed at random, and those that reach new lines of the parser are changed further.

Used by ``__main__`` in a process of its own for each slice of time. Nothing but the standard library, so that it runs
on every Python that the project runs on; what a line costs to trace, a C extension would save, and we have the time.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from parsers import Parser

PACKAGE = str(Path(__file__).resolve().parents[2] / "pytest_sandbox")
#: Seconds of one input's own processor time after which it counts as a hang.
PATIENCE = 5.0
NUMBERS = (0, -0.0, 1, -1, 127, 255, 256, 4095, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, 1 << 53, 1 << 63, 1 << 64,
           10**400, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324)
TEXTS = ("", "\0", "\ud800", "\udc80", "\ud83d\ude00", "..", "/", "../../etc", "a" * 5000, "\n", "\x1b[2J", "$",
         "$tuple", "sha256:" + "0" * 64, "%s{0}", "٣", "١" * 20, "-1", "1e9", "nan", "true")
BYTES = (b"\0", b"\xff", b"\x80", b"\n", b"=", b"/", b"..", b" ", b"9" * 20, b"\0" * 512, b"\xff" * 8, b"\x1f\x8b",
         b"-", b"[", b"{", b'"', b"\\", b"'", b"$", b"${", b"<<", b"*", b"**/", b":", b"@", b"," * 3)


class Hang(BaseException):
    """An input took longer than anybody waits."""


class Lines:
    """The lines of the package that have been reached, told by tracing."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int]] = set()
        self.new = 0
        self._ours: dict[CodeType, bool] = {}

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        ours = self._ours.get(code)
        if ours is None:
            ours = self._ours[code] = code.co_filename.startswith(PACKAGE)
        return self._line if ours else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        place = frame.f_code, frame.f_lineno
        if place not in self.seen:
            self.seen.add(place)
            self.new += 1
        return self._line

    @contextmanager
    def watched(self) -> Iterator[None]:
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)


class Mutator:
    """Changes inputs: bytes anywhere; and where an input is JSON, its values and their nesting."""

    def __init__(self, chance: random.Random, parser: Parser) -> None:
        self.chance = chance
        self.words = (*BYTES, *parser.words)
        self.json = parser.json

    def change(self, data: bytes, others: list[bytes]) -> bytes:
        for _ in range(self.chance.choice((1, 1, 1, 2, 3, 6))):
            if self.json and self.chance.random() < 0.85:
                data = self._change_json(data, others)
            else:
                data = self._change_bytes(data, others)
        return data[:1 << 20]

    def _change_bytes(self, data: bytes, others: list[bytes]) -> bytes:
        chance, at = self.chance, self.chance.randrange(len(data) + 1)
        end = min(len(data), at + int(chance.expovariate(0.1)) + 1)
        kind = chance.randrange(8)
        if kind == 0:
            return data[:at] + chance.randbytes(end - at) + data[end:]
        if kind == 1:
            return data[:at] + data[end:]
        if kind == 2:
            return data[:at] + data[at:end] * chance.choice((2, 3, 50)) + data[end:]
        if kind == 3:
            return data[:at] + chance.choice(self.words) + data[at:]
        if kind == 4:
            word = chance.choice(self.words)
            return data[:at] + word + data[at + len(word):]
        if kind == 5:
            other = chance.choice(others)
            start = chance.randrange(len(other) + 1)
            return data[:at] + other[start:start + chance.choice((8, 64, 512, 4096))] + data[end:]
        if kind == 6 and at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1:]
        return data[:at]

    def _change_json(self, data: bytes, others: list[bytes]) -> bytes:
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            return self._change_bytes(data, others)
        places = list(_places(document))
        if not places:
            return json.dumps(self._value()).encode()
        holder, key = self.chance.choice(places)
        kind = self.chance.randrange(6)
        if kind == 0 and isinstance(holder, dict):
            holder[self._text()] = holder.pop(key)
        elif kind == 1:
            del holder[key]
        elif kind == 2 and isinstance(holder, list):
            holder.extend(holder[key:key + 1] * self.chance.choice((1, 3, 100)))
        elif kind == 3:
            holder[key] = self.chance.choice(([holder[key]], {self._text(): holder[key]}, str(holder[key])))
        elif kind == 4:
            other, where = self.chance.choice(places)
            holder[key] = copy(other[where])
        else:
            holder[key] = self._value()
        try:
            return json.dumps(document).encode()
        except RecursionError:
            return data

    def _text(self) -> str:
        return self.chance.choice((*TEXTS, *[one.decode("latin-1") for one in self.words]))

    def _value(self) -> Any:
        kind = self.chance.randrange(9)
        if kind < 3:
            return self.chance.choice(NUMBERS)
        if kind < 6:
            return self._text()
        if kind == 6:
            deep: Any = []
            for _ in range(self.chance.choice((3, 60, 400))):
                deep = [deep]
            return deep
        return self.chance.choice((None, True, False, [], {}, [[]], {"": {}}, [None, 1], {self._text(): self._text()}))


def copy(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except RecursionError:
        return None


def _places(document: Any, most: int = 2000) -> Iterator[tuple[Any, Any]]:
    waiting = [document]
    while waiting and most:
        one = waiting.pop()
        for key in list(one if isinstance(one, dict) else range(len(one))) if isinstance(one, (dict, list)) else ():
            most -= 1
            yield one, key
            waiting.append(one[key])


def _too_long(number: int, frame: object) -> None:
    raise Hang


def run(parser: Parser, seconds: float, seed: int, corpus: Path, report: Path) -> None:
    """Fuzzes one parser for a while. Each input that fails is a file beside ``report``; ``report`` counts."""
    chance = random.Random(seed)
    lines, mutate = Lines(), Mutator(chance, parser)
    pool = [*parser.seeds(), *[one.read_bytes() for one in sorted(corpus.glob("*"))]]
    last = report.with_suffix(".last")
    failures: dict[str, str] = {}
    tried = kept = 0
    signal.signal(signal.SIGVTALRM, _too_long)

    def one_input(data: bytes) -> None:
        nonlocal tried, kept
        last.write_bytes(data)
        tried += 1
        before = lines.new
        signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
        try:
            with lines.watched():
                parser.read(data)
        except Hang:
            where = traceback.format_exc()
        except Exception:  # noqa: BLE001 - whatever the parser lets through is what is looked for
            where = traceback.format_exc()
        else:
            where = ""
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if where:
            key = "".join(line for line in where.splitlines() if line.startswith("  File"))[-300:]
            if key not in failures:
                failures[key] = where
                name = f"{parser.name}-{seed}-{len(failures)}"
                report.with_name(f"{name}.input").write_bytes(data)
                report.with_name(f"{name}.txt").write_text(where, errors="backslashreplace")
        elif lines.new > before and tried > first:
            pool.append(data)
            kept += 1
            (corpus / f"{seed}-{kept}").write_bytes(data)

    def loop() -> None:
        for data in list(pool):
            one_input(parser.mend(data))
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            one_input(parser.mend(mutate.change(chance.choice(pool), pool)))

    first = len(pool)
    parser.drive(loop)
    report.write_text(json.dumps({"parser": parser.name, "seed": seed, "tried": tried, "pool": len(pool),
                                  "lines": len(lines.seen), "failures": len(failures)}))
