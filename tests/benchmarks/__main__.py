"""Measures what pytest-sandbox costs, its peers beside it in the same run. Run by ``tox run -e bench``.

Writes results.json and results.md and prints the latter. States figures; asserts nothing about them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import alive
import footprint
import guest
import hardening
import installed
import layers
import limits
import longrun
import measure
import network
import noop
import peers
import start
import states
import workers

import images

#: The rows of the goals: what a plain run measures.
GOALS = ("noop", "peers", "layers", "workers", "longrun", "alive", "installed", "footprint")
PARTS = (*GOALS, "start", "limits", "network", "states", "images", "hardening", "guest")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--tests", type=int, default=300, help="tests in the suite of no-op tests (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs of that suite for each variant (%(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="sandboxes for each variant (%(default)s)")
    parser.add_argument("--starts", type=int, default=20, help="pytest starts for each environment (%(default)s)")
    parser.add_argument("--long", type=int, default=10_000, help="tests of the long run (%(default)s)")
    parser.add_argument("--alive", type=int, default=500, help="sandboxes alive at once (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"), help="folder (%(default)s)")
    parser.add_argument("--add", action="store_true", help="keep what an earlier run has there of other parts")
    options = parser.parse_args()
    chosen = options.only or GOALS
    output = options.output.resolve()
    facts = measure.machine()
    tables = measure.earlier(output, [part for part in PARTS if part not in chosen]) if options.add else []
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as name:
        for part in chosen:
            folder = Path(name) / part
            for table in _run(part, folder, options):
                table.part = part
                tables.append(table)
    tables.sort(key=lambda table: PARTS.index(table.part))
    print(measure.save(output, facts, tables))
    return 0


def _run(part: str, folder: Path, options: argparse.Namespace) -> list[measure.Table]:
    rounds = options.rounds
    if part in ("noop", "installed", "guest"):
        folder.mkdir()
    actions = {
        "noop": lambda: noop.run(folder, options.tests, options.runs),
        "peers": lambda: peers.run(folder, rounds),
        "layers": lambda: layers.run(folder, rounds),
        "workers": lambda: workers.run(folder, options.tests, max(2, options.runs - 1)),
        "longrun": lambda: longrun.run(folder, options.long),
        "alive": lambda: alive.run(options.alive),
        "installed": lambda: installed.run(folder, options.starts),
        "footprint": lambda: footprint.run(folder, options.tests, options.runs),
        "start": lambda: [start.run(rounds)],
        "limits": lambda: limits.run(rounds),
        "network": lambda: network.run(rounds),
        "states": lambda: states.run(rounds),
        "images": lambda: images.run(folder.parent, max(3, rounds // 40)),
        "hardening": lambda: hardening.run(rounds),
        "guest": lambda: guest.run(folder, options.tests, options.runs),
    }
    return actions[part]()


if __name__ == "__main__":
    sys.exit(main())
