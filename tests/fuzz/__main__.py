"""Fuzzes every parser that reads bytes which nobody vouches for. ``tox -e fuzz``, or ``python tests/fuzz``.

Each parser gets its share of the time, in slices, each in a process of its own with bounded memory. What a slice found
new lines with is there for the next. Ends with 1 if an input made a parser fail in a way that it should not: a crash,
an error that is not ours, or a hang. The input lies in the output directory; put it into ``tests/fuzz/found/PARSER/``
when it is mended, where ``tests/unit/test_fuzz.py`` tries it from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MEMORY = 2 << 30


def main() -> int:
    options = argparse.ArgumentParser(prog="tests/fuzz", description=(__doc__ or "").splitlines()[0])
    options.add_argument("--seconds", type=float, default=300, help="for each parser (default: 300)")
    options.add_argument("--slice", type=float, default=300, help="seconds of one process (default: 300)")
    options.add_argument("--only", action="append", help="a parser; may be repeated")
    options.add_argument("--seed", type=int, default=0, help="repeats a run")
    options.add_argument("--output", type=Path, help="where failures and the corpus go (default: a new directory)")
    options.add_argument("--before", default="", metavar="COMMAND", help="run before each slice")
    options.add_argument("--worker", nargs=3, metavar=("SECONDS", "SEED", "REPORT"), help=argparse.SUPPRESS)
    given = options.parse_args()
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    import parsers

    if given.worker:
        import engine

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        seconds, seed, report = given.worker
        output = Path(report).parent
        engine.run(parsers.PARSERS[given.only[0]], float(seconds), int(seed), output / "corpus" / given.only[0],
                   Path(report))
        return 0
    output = given.output or Path(tempfile.mkdtemp(prefix="fuzz-"))
    wanted = given.only or list(parsers.PARSERS)
    seed = given.seed or random.randrange(1 << 30)
    print(f"seed {seed}, inputs that fail: {output}", flush=True)
    failed = 0
    totals: dict[str, list[float]] = {}
    left = dict.fromkeys(wanted, given.seconds)
    while any(left.values()):
        for name in wanted:
            seconds = min(given.slice, left[name])
            if not seconds:
                continue
            left[name] -= seconds
            seed += 1
            (output / "corpus" / name).mkdir(parents=True, exist_ok=True)
            if given.before:
                subprocess.run(given.before, shell=True, check=True)
            report = output / f"{name}-{seed}.json"
            command = [sys.executable, "-B", __file__, "--only", name, "--worker", str(seconds), str(seed), str(report)]
            with open(output / f"{name}-{seed}.log", "wb") as log:
                try:
                    code = subprocess.run(command, stdout=log, stderr=log, timeout=seconds * 1.5 + 120,
                                          check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}).returncode
                except subprocess.TimeoutExpired:
                    code = -99
            if code or not report.exists():
                failed += 1
                print(f"{name}: the process ended with {code}; {output / f'{name}-{seed}'}.last is what it read",
                      flush=True)
                continue
            told = json.loads(report.read_text())
            failed += told["failures"]
            total = totals.setdefault(name, [0, 0, 0, 0])
            total[0] += seconds
            total[1] += told["tried"]
            total[2], total[3] = told["lines"], total[3] + told["failures"]
            print(f"{name}: {total[0]:.0f} s, {total[1]:.0f} inputs, {total[2]:.0f} lines, {total[3]:.0f} failures",
                  flush=True)
    print(f"{sum(one[0] for one in totals.values()):.0f} s, {sum(one[1] for one in totals.values()):.0f} inputs, "
          f"{failed} failures")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
