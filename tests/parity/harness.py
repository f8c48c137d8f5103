"""Runs the suite with one variant's command line, plainly or sandboxed, and compares the two. Used by ``__main__``
and by the tests beside it.
"""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import artefacts
import image
from variants import Variant

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
PLAIN, SANDBOXED = ("-p", "no:sandbox"), ("--sandbox=all",)
#: Plugins that change every run they are installed for; a variant that is about one turns it on by its option.
_UNASKED = {"pytest_randomly": "no:randomly"}


@dataclass(frozen=True)
class Difference:
    """One line that only one of the two runs has. ``side`` is ``plain`` or ``sandboxed``."""

    variant: str
    artefact: str
    side: str
    line: str

    def __str__(self) -> str:
        return f"{'-' if self.side == 'plain' else '+'} {self.line}"


@dataclass(frozen=True)
class Explanation:
    """A known difference. ``line`` is a regular expression; an absent field matches anything.

    ``defect`` says that it is one: it should not be there, and is counted apart.
    """

    cause: str
    line: str
    variant: str = "*"
    artefact: str = "*"
    side: str | None = None
    defect: bool = False

    def covers(self, difference: Difference) -> bool:
        return (
            self.side in (None, difference.side)
            and fnmatchcase(difference.variant, self.variant)
            and fnmatchcase(difference.artefact, self.artefact)
            and re.search(self.line, difference.line) is not None
        )


@dataclass(frozen=True)
class Run:
    """What one run left: artefact -> lines."""

    found: dict[str, list[str]]
    seconds: float
    tests: int


@dataclass(frozen=True)
class Comparison:
    variant: Variant
    plain: Run
    sandboxed: Run
    explained: list[tuple[Difference, Explanation]]
    unexplained: list[Difference]


class RunBroke(Exception):
    """pytest did not end by itself, or has nothing to compare. The text says where its output is."""


def explanations(name: str = "explained.toml") -> list[Explanation]:
    text = (HERE / name).read_text(encoding="utf-8")
    return [Explanation(**one) for one in tomllib.loads(text).get("difference", [])]


def missing(variant: Variant) -> list[str]:
    """The modules that this variant needs and this environment lacks."""
    return [name for name in variant.needs if importlib.util.find_spec(name) is None]


def compare(variant: Variant, folder: Path, known: Sequence[Explanation], timeout: float = 300,
            root: Path | None = None) -> Comparison:
    """Runs ``variant`` both ways, at the same path so that nothing differs by name, and compares.

    :param root: of an image; then the sandboxed side runs in the Python of that.
    :raises RunBroke: when a run takes longer than ``timeout`` seconds, or did not begin.
    """
    place = folder / variant.name
    runs = []
    for kind, options in (("plain", PLAIN), ("sandboxed", SANDBOXED)):
        now = place / "now"
        runs.append(_run(variant, now, options, timeout, root if kind == "sandboxed" else None))
        now.rename(place / kind)
    plain, sandboxed = runs
    explained, unexplained = [], []
    for one in differences(variant.name, plain.found, sandboxed.found):
        cause = next((entry for entry in known if entry.covers(one)), None)
        if cause is None:
            unexplained.append(one)
        else:
            explained.append((one, cause))
    return Comparison(variant, plain, sandboxed, explained, unexplained)


def differences(variant: str, plain: dict[str, list[str]], sandboxed: dict[str, list[str]]) -> Iterator[Difference]:
    for name in [*plain, *(one for one in sandboxed if one not in plain)]:
        before, after = plain.get(name, ["<absent>"]), sandboxed.get(name, ["<absent>"])
        for kind, i, j, m, n in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if kind != "equal":
                yield from (Difference(variant, name, "plain", line) for line in before[i:j])
                yield from (Difference(variant, name, "sandboxed", line) for line in after[m:n])


def _run(variant: Variant, place: Path, options: Sequence[str], timeout: float, root: Path | None) -> Run:
    suite, temporary, logs = place / "suite", place / "temp", place / "logs"
    shutil.copytree(HERE / "suite", suite, ignore=shutil.ignore_patterns("__pycache__", ".*cache"))
    for one in (temporary, logs, place / "home"):
        one.mkdir()
    environment = _environment(place, variant)
    if root is not None:
        options = image.options(root, place, environment)
    found: dict[str, list[str]] = {}
    began = time.monotonic()
    tests = 0
    for number, step in enumerate(variant.steps, 1):
        command = [sys.executable, "-m", "pytest", *options, *_common(logs, number), *step]
        status, output = _execute(command, suite, environment, variant.input, timeout)
        found |= _gather(variant, suite, logs, number, status, output)
        if f"junit {number}" not in found:
            raise RunBroke(f"pytest ended with {status} and wrote no report; what it printed is in {logs}")
        tests += sum(line.startswith("start ") for line in found.get(f"order {number}", ()))
    seconds = time.monotonic() - began
    found["files"] = artefacts.tree(suite)
    if variant.ordered:  # else it is chance which worker made which
        found["files"] += [f"temp/{one}" for one in artefacts.tree(temporary)]
    return Run(found, seconds, tests)


def _common(logs: Path, number: int) -> Iterator[str]:
    yield f"--junitxml={logs}/junit-{number}.xml"
    if importlib.util.find_spec("pytest_reportlog") is not None:
        yield f"--report-log={logs}/report-{number}.jsonl"
    if importlib.util.find_spec("pytest_asyncio") is not None:
        yield "-oasyncio_default_fixture_loop_scope=function"  # or it warns; without it, pytest warns of the option


def _environment(place: Path, variant: Variant) -> dict[str, str]:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(place / "home"),
        "LANG": "C.UTF-8", "USER": os.environ.get("USER", "root"), "LOGNAME": os.environ.get("LOGNAME", "root"),
        "COLUMNS": "100", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DEBUG_TEMPROOT": str(place / "temp"), "PARITY_LOG": str(place / "logs"),
        **dict(variant.environment),
    }
    unasked = [f"-p {option}" for module, option in _UNASKED.items()
               if module not in variant.needs and importlib.util.find_spec(module) is not None]
    if unasked:
        environment["PYTEST_ADDOPTS"] = " ".join(unasked)
    return environment


def _execute(command: Sequence[str], cwd: Path, environment: dict[str, str], text: str,
             timeout: float) -> tuple[int, tuple[str, str]]:
    # A terminal hands out what was typed line by line. From a pipe the first test that reads would take all of it into
    # its buffer, and a sandboxed test ends with its buffer.
    typing, terminal = os.openpty() if text else (-1, subprocess.DEVNULL)
    try:
        with subprocess.Popen(command, cwd=cwd, env=environment, stdin=terminal, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, start_new_session=True) as process:
            if text:
                os.write(typing, text.encode())
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
                cwd.joinpath("output.txt").write_bytes(out + err)
                raise RunBroke(f"it took longer than {timeout:.0f} s; its output is in {cwd}/output.txt") from None
    finally:
        if text:
            os.close(typing)
            os.close(terminal)
    return process.returncode, (out.decode(errors="backslashreplace"), err.decode(errors="backslashreplace"))


def _gather(variant: Variant, suite: Path, logs: Path, number: int, status: int,
            output: tuple[str, str]) -> dict[str, list[str]]:
    ordered = variant.ordered
    found = {
        f"status {number}": [str(status)],
        f"stdout {number}": artefacts.of_text(output[0], ordered, variant.figures, variant.live),
        f"stderr {number}": artefacts.of_text(output[1], ordered, variant.figures),
    }
    found |= {f"{name} {number}": lines for name, lines in artefacts.order(logs.glob("order-*.log"), ordered).items()}
    for path in logs.glob("order-*.log"):
        path.rename(path.with_name(f"{number}-{path.name}"))
    for stream, text in zip(("stdout", "stderr"), output, strict=True):
        logs.joinpath(f"{stream}-{number}.txt").write_text(text, encoding="utf-8", errors="backslashreplace")
    readers: tuple[tuple[str, Path, Callable[[Path], list[str]]], ...] = (
        ("junit", logs / f"junit-{number}.xml", lambda path: artefacts.junit(path, ordered)),
        ("report log", logs / f"report-{number}.jsonl", lambda path: artefacts.report_log(path, ordered)),
        ("html", suite / "report.html", artefacts.html_report),
        ("log file", suite / "run.log", lambda path: artefacts.of_text(path.read_text(encoding="utf-8"))),
        ("coverage", suite / ".coverage", artefacts.coverage_data),
        ("cache", suite / ".pytest_cache", lambda path: artefacts.cache(path, ordered)),
    )
    for name, path, read in readers:
        if path.exists():
            found[f"{name} {number}"] = read(path)
    return found
