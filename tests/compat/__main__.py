"""Do the suites of well-known projects have the same outcomes sandboxed as plain? Run by ``tox run -e compat``.

For each project: its sdist from PyPI, an environment with its test requirements and this plugin, then its suite with
``-p no:sandbox`` and with ``--sandbox=all``; as root and as an unprivileged user when run as root, otherwise as the
caller. Prints a table and every difference; ends with 1 if one of them is not in explained.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import compare
from compare import Difference, Explanation
from project import HERE, Project, download, make_environment, projects, tomllib
from suite import Run, SuiteBroke, User, run_suite

PLAIN, SANDBOXED = ["-p", "no:sandbox"], ["--sandbox=all"]


@dataclass
class Comparison:
    project: str
    user: User
    plain: Run
    sandboxed: Run
    explained: list[tuple[Difference, Explanation]] = field(default_factory=list)
    unexplained: list[Difference] = field(default_factory=list)

    def row(self) -> str:
        cost = (self.sandboxed.seconds - self.plain.seconds) / max(1, len(self.sandboxed.tests)) * 1000
        return (f"| {self.project} | {self.user.kind} | {compare.counted(self.plain.tests.values())} "
                f"| {len(self.explained)} | {len(self.unexplained)} | {self.plain.seconds:.1f} "
                f"| {self.sandboxed.seconds:.1f} | {cost:.1f} |")


HEADER = """\
| project | as | outcomes, plain | explained differences | unexplained | plain, s | sandboxed, s | added a test, ms |
|---|---|---|---|---|---|---|---|"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compat", description=__doc__)
    parser.add_argument("project", nargs="*", help="only these projects (default: all of projects.toml)")
    parser.add_argument("--as", dest="users", action="append", metavar="USER",
                        help="only as this user; may be repeated (default as root: root and sandbox-ci)")
    parser.add_argument("--pytest", default="pytest>=8.4", metavar="REQUIREMENT", help="the pytest to run with")
    parser.add_argument("--folder", type=Path, help="work here and leave it (default: a temporary folder)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one run of one suite")
    parser.add_argument("--json", type=Path, help="also write every outcome to this file")
    return parser.parse_args()


def chosen_users(names: list[str] | None) -> list[User]:
    if names is None:
        names = ["root", "sandbox-ci"] if os.geteuid() == 0 else [User.caller().name]
    try:
        return [User.named(name) for name in names]
    except KeyError as unknown:
        raise SystemExit(f"{unknown.args[0]}. Make that user (useradd --create-home sandbox-ci) "
                         "or name another with --as.") from None


def readable_interpreter(users: list[User]) -> str:
    """One Python that every user can run, so that all runs use the same: ours may lie below /root."""
    for candidate in (str(Path(sys.executable).resolve()), "/usr/bin/python3"):
        check = [candidate, "-c", "import sys; raise SystemExit(sys.version_info < (3, 10))"]
        try:
            if all(user.start(check, cwd="/").wait() == 0 for user in users):
                return candidate
        except OSError:
            continue
    raise SystemExit("No Python 3.10 or newer that all of these users can run: "
                     f"{', '.join(user.name for user in users)}. Install python3.")


def explanations() -> list[Explanation]:
    text = (HERE / "explained.toml").read_text(encoding="utf-8")
    return [Explanation(**one) for one in tomllib.loads(text).get("difference", [])]


def compared(project: str, user: User, plain: Run, sandboxed: Run, known: list[Explanation]) -> Comparison:
    result = Comparison(project, user, plain, sandboxed)
    for one in compare.differences(plain.tests, sandboxed.tests):
        cause = next((entry for entry in known if entry.covers(project, user.kind, one)), None)
        if cause is None:
            result.unexplained.append(one)
        else:
            result.explained.append((one, cause))
    return result


def main() -> int:
    options = arguments()
    known_projects = projects()
    for name in options.project:
        if name not in known_projects:
            raise SystemExit(f"{name} is not in {HERE / 'projects.toml'}. Known: {', '.join(known_projects)}.")
    names = options.project or list(known_projects)
    users = chosen_users(options.users)
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix="sandbox-compat-", dir="/var/tmp") as folder:
            return compare_all(options, [known_projects[name] for name in names], users, Path(folder))
    options.folder.mkdir(parents=True, exist_ok=True)
    return compare_all(options, [known_projects[name] for name in names], users, options.folder.resolve())


def compare_all(options: argparse.Namespace, chosen: list[Project], users: list[User], folder: Path) -> int:
    folder.chmod(0o755)
    interpreter = readable_interpreter(users)
    known = explanations()
    results: list[Comparison] = []
    broken: list[str] = []
    for project in chosen:
        place = folder / project.name
        place.mkdir()
        print(f"{project.name} {project.version}: setting up", flush=True)
        source = download(project, place)
        python = make_environment(project, source, place, interpreter, options.pytest)
        for user in users:
            own = place / user.name
            own.mkdir()
            runs = []
            for mode, extra in (("plain", PLAIN), ("sandboxed", SANDBOXED)):
                print(f"{project.name} {project.version}: {mode} as {user.name}", flush=True)
                try:
                    runs.append(run_suite(project, source, python, user, own, extra, options.timeout))
                except SuiteBroke as error:
                    broken.append(f"{project.name}, {mode}, as {user.name}: {error}")
                    break
                (own / "output.txt").rename(own / f"{mode}.txt")
            if len(runs) == 2:
                results.append(compared(project.name, user, runs[0], runs[1], known))
    report(results, broken, known, options, interpreter)
    return 1 if broken or any(one.unexplained for one in results) else 0


def report(results: list[Comparison], broken: list[str], known: list[Explanation], options: argparse.Namespace,
           interpreter: str) -> None:
    version = subprocess.run([interpreter, "--version"], capture_output=True, text=True).stdout.strip()
    print(f"\n{version}, {options.pytest}\n\n{HEADER}")
    for one in results:
        print(one.row())
    for one in results:
        for difference in one.unexplained:
            print(f"\nUNEXPLAINED {one.project} as {one.user.kind}: {difference.test}\n"
                  f"  plain:     {difference.plain}\n  sandboxed: {difference.sandboxed}")
    for cause in {cause for one in results for _, cause in one.explained}:
        number = sum(entry is cause for one in results for _, entry in one.explained)
        print(f"\nexplained {cause.project} {cause.test}: {number} differences. {cause.cause}")
    ran = {(one.project, one.user.kind) for one in results}
    used = {cause for one in results for _, cause in one.explained}
    for entry in known:
        if entry not in used and any(entry.project == name and entry.user in (None, kind) for name, kind in ran):
            print(f"\nno longer needed in explained.toml: {entry.project} {entry.test}")
    for text in broken:
        print(f"\nBROKE {text}")
    tests = sum(len(one.sandboxed.tests) for one in results)
    unexplained = sum(len(one.unexplained) for one in results)
    print(f"\n{tests} sandboxed tests compared, {unexplained} unexplained differences, {len(broken)} broken runs")
    if options.json:
        rows = [{"project": one.project, "user": one.user.kind,
                 "plain": {name: str(outcome) for name, outcome in one.plain.tests.items()},
                 "sandboxed": {name: str(outcome) for name, outcome in one.sandboxed.tests.items()}}
                for one in results]
        options.json.write_text(json.dumps({"python": version, "comparisons": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
