"""Measures what pytest-sandbox costs, its peers beside it in the same run. Run by ``tox run -e bench``.

Writes results.json and results.md and prints the latter. States figures; asserts nothing about them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import guest
import hardening
import installed
import limits
import measure
import network
import noop
import start
import states

import images

PARTS = ("noop", "start", "installed", "limits", "network", "states", "images", "hardening", "guest")


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append")
    parser.add_argument("--tests", type=int, default=300, help="tests in the suite of no-op tests (%(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs of that suite for each variant (%(default)s)")
    parser.add_argument("--rounds", type=int, default=200, help="sandboxes for each variant (%(default)s)")
    parser.add_argument("--starts", type=int, default=20, help="pytest starts for each environment (%(default)s)")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"), help="folder (%(default)s)")
    options = parser.parse_args()
    chosen = options.only or PARTS
    output = options.output.resolve()
    facts = measure.machine()
    tables = []
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-") as name:
        for part in ("noop", "installed"):
            (Path(name) / part).mkdir()
        if "noop" in chosen:
            tables += noop.run(Path(name) / "noop", options.tests, options.runs)
        if "start" in chosen:
            tables.append(start.run(options.rounds))
        if "installed" in chosen:
            tables += installed.run(Path(name) / "installed", options.starts)
        if "network" in chosen:
            tables += network.run(options.rounds)
        if "limits" in chosen:
            tables += limits.run(options.rounds)
        if "hardening" in chosen:
            tables += hardening.run(options.rounds)
        if "states" in chosen:
            tables += states.run(options.rounds)
        if "guest" in chosen:
            tables += guest.run(Path(name), options.tests, options.runs)
        if "images" in chosen:
            tables += images.run(Path(name), max(3, options.rounds // 40))
    print(measure.save(output, facts, tables))
    return 0


if __name__ == "__main__":
    sys.exit(main())
