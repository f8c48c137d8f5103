"""Can anybody tell a sandboxed run from a plain one? Run by ``tox run -e parity``.

Runs the suite beside this file with many command lines, each with ``-p no:sandbox`` and with ``--sandbox=all``, and
compares all that a person or a tool can see. Prints a table and every difference; ends with 1 if one of them is not in
explained.toml.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path

import harness
import image
import pytest
from variants import VARIANTS, Variant

HEADER = """\
| variant | tests | plain, s | sandboxed, s | explained differences | known defects | unexplained |
|---|---|---|---|---|---|---|"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="parity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", nargs="*", help="only these variants, shell patterns allowed (default: all)")
    parser.add_argument("--list", action="store_true", help="print the variants and end")
    parser.add_argument("--folder", type=Path, help="work here and leave it (default: a temporary folder)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="variants at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one run")
    parser.add_argument("--image", action="store_true", help="run the sandboxed side in an image's own Python: one "
                        "that is made of Debian's packages and of this environment (on Debian, as root)")
    parser.add_argument("--lines", type=int, default=40, help="differences shown of each variant")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    patterns = options.variant or ["*"]
    chosen = [one for one in VARIANTS if any(fnmatchcase(one.name, pattern) for pattern in patterns)]
    if not chosen:
        raise SystemExit(f"No variant is called {' or '.join(patterns)}. --list prints them all.")
    if options.list:
        for one in chosen:
            print(f"{one.name}: {'; '.join(' '.join(step) for step in one.steps)}")
        return 0
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        return compare_all(chosen, options.folder.resolve(), options)
    with tempfile.TemporaryDirectory(prefix="sandbox-parity-", dir="/var/tmp") as folder:
        return compare_all(chosen, Path(folder), options)


def compare_all(chosen: list[Variant], folder: Path, options: argparse.Namespace) -> int:
    known = harness.explanations()
    root = None
    if options.image:
        known = [*known, *harness.explanations("explained-images.toml")]
        root = image.make(folder)
    results: list[harness.Comparison] = []
    problems: list[str] = []

    def compare(variant: Variant) -> harness.Comparison | str:
        if lacking := harness.missing(variant):
            return f"left out: {variant.name} needs {', '.join(lacking)}"
        try:
            return harness.compare(variant, folder, known, options.timeout, root)
        except harness.RunBroke as error:
            return f"BROKE {variant.name}: {error}"

    print(f"Python {platform.python_version()}, pytest {pytest.__version__}, uid {os.geteuid()}\n\n{HEADER}")
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome in pool.map(compare, chosen):
            if isinstance(outcome, str):
                problems.append(outcome)
                continue
            results.append(outcome)
            defects = sum(entry.defect for _, entry in outcome.explained)
            print(f"| {outcome.variant.name} | {outcome.plain.tests} | {outcome.plain.seconds:.1f} "
                  f"| {outcome.sandboxed.seconds:.1f} | {len(outcome.explained) - defects} | {defects} "
                  f"| {len(outcome.unexplained)} |", flush=True)
    report(results, known, options.lines)
    for text in problems:
        print(f"\n{text}")
    unexplained = sum(len(one.unexplained) for one in results)
    defects = sum(entry.defect for one in results for _, entry in one.explained)
    print(f"\n{len(results)} variants, {sum(one.plain.tests for one in results)} tests each way, "
          f"{sum(len(one.explained) for one in results) - defects} explained differences, {defects} by known defects, "
          f"{unexplained} unexplained")
    return 1 if unexplained or any(text.startswith("BROKE") for text in problems) else 0


def report(results: list[harness.Comparison], known: list[harness.Explanation], limit: int) -> None:
    used = set()
    for one in results:
        used |= {cause for _, cause in one.explained}
        if one.unexplained:
            print(f"\nUNEXPLAINED in {one.variant.name} (- plain, + sandboxed)")
            for artefact, lines in itertools.groupby(one.unexplained[:limit], lambda found: found.artefact):
                print(f"  {artefact}")
                for line in lines:
                    print(f"    {str(line)[:300]}")
            if len(one.unexplained) > limit:
                print(f"    and {len(one.unexplained) - limit} more")
    for entry in known:
        if entry not in used and any(fnmatchcase(one.variant.name, entry.variant) for one in results):
            print(f"\nnot seen in these variants, from explained.toml: {entry.line} ({entry.cause})")


if __name__ == "__main__":
    sys.exit(main())
