"""What a run leaves behind, as lines of text that can be compared. Called by the harness after each run.

Times, memory addresses and the like are replaced; nothing else is left out, so that a difference has to be explained.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

Lines = list[str]

_REPLACED = (
    (re.compile(r"0x[0-9a-f]+(?:\.\.\.)?|(?<=\.\.\.)x[0-9a-f]{8,}"), "0x..."),
    # Python's own formatting shows how pytest gets to a fixture, and that is another way from outside the sandbox. What
    # is left shows the plugin's frames if there are any.
    (re.compile(r"^[ |]* File \"[^\"]*/(?:_pytest|pluggy)/[^\"]*\", line \d+, in .*\n"
                r"(?:(?![ |]* File \")[ |]* {4}[^ |\n].*\n){0,8}",
                re.MULTILINE), ""),
    (re.compile(r"Duration\(start=Instant\(.*?\), stop=Instant\(.*?\)\)|Instant\(time=.*?\)"), "DURATION"),
    # The last line of a run is centred, so its fill depends on how long the time is.
    (re.compile(r"^(\x1b\[\d+m)*=+ (.*) in [\d.]+s(?: \(\d+:\d\d:\d\d\))?((?:\x1b\[[\d;]*m)*) =+((?:\x1b\[[\d;]*m)*)$",
                re.MULTILINE), r"= \2 in N s\3 ="),
    (re.compile(r"(\d (?:passed|failed|errors?|skipped|xfailed|xpassed|deselected|warnings?|rerun|ran).*|no tests \w+)"
                r" in [\d.]+s(?: \(\d+:\d\d:\d\d\))?"), r"\1 in N s"),
    (re.compile(r"\b\d+\.\d\ds (setup|call|teardown)"), r"N s \1"),
    (re.compile(r"(tests? collected|tests? ran).* in [\d.]+s"), r"\1 in N s"),
    (re.compile(r"generated in \d+.*"), "generated in N"),
    (re.compile(r"\b\d\d\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d[\d.,+:]*"), "DATE"),
    (re.compile(r"cache from [\d:]+ ago"), "cache from N ago"),  # --stepwise
    (re.compile(r"\bpopen-gw\d"), "popen-gw"),  # the temporary folder of a worker
    (re.compile(r"(?<=<Task finished name='Task-)\d+"), "N"),  # counted in each process
    (re.compile(r"duration=[\d.]+s"), "duration=N s"),  # of a run by pytester
    # hypothesis puts its statistics, times included, into JUnit reports.
    (re.compile(r"[A-Za-z0-9+/]{160,}=*"), "BASE64"),
    (re.compile(r"(phase) \([\d.]+ seconds\)|(Typical runtimes):.*"), r"\1\2 N"),
    # This plugin's own name among the plugins of the header, and in what pytest-metadata says there.
    (re.compile(r"(?<=plugins: )sandbox-[\w.]+, |, sandbox-[\w.+]+"), ""),
    (re.compile(r"'sandbox': '[\w.+]+', |, 'sandbox': '[\w.+]+'"), ""),
)
_DURATION_KEYS = frozenset({"duration", "start", "stop", "time", "timestamp", "hostname", "testrun_uid", "item_index",
                            "worker_id", "node", "execution_time", "generated"})


def normal(text: str) -> str:
    """``text`` without what differs from run to run."""
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return text


#: The result of a test, as it is shown while tests run.
_RESULT = re.compile(
    r"(?:\x1b\[[\d;]*m)|(?:SUB)?(?:PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS|RERUN)(?:\[[^]]*\])?(?: ?\(.*?\))?"
    r"|^[.FEsxXu,]+|[.FEsxXu,]+(?: +\[ *\d+%\])?$| +\[ *\d+%\]$")
_SUMMARY = re.compile(
    r"^(\x1b\[\d+m)*=+ (ERRORS|FAILURES|PASSES|XFAILURES|warnings summary|short test summary|\d+ \w+)")
#: What several workers' output has nothing but their names and progress in, or a test without a result.
_NOISE = re.compile(r"(\[gw\]|[.FEsxX ]|\[ *\d+%\]|ready|\[\d+ items?\]|/)*|\S+::.* ")


def of_text(text: str, ordered: bool = True, figures: bool = True, live: bool = False) -> Lines:
    """A terminal's or a log's lines. Without order: sorted, and without the names of workers and the progress.

    ``live`` is for output that mixes with what tests print while they run. A sandboxed test's result comes at its very
    end, a plain one's before its teardown, so that up to the summary only what else is there can be compared.
    """
    lines = normal(text).splitlines()
    if not figures:
        lines = [re.sub(r"\(time in [mun]?s\)|\b[KM]?ops/s\b", "UNIT", one) for one in lines]
        lines = [re.sub(r">?[\d.,]+", "N", re.sub(r"[ =-]{2,}", "  ", one)) for one in lines]
    if live:
        end = next((number for number, line in enumerate(lines) if _SUMMARY.match(line)), len(lines))
        running = [_RESULT.sub("", _RESULT.sub("", line).strip()).strip() for line in lines[:end]]
        lines = [*sorted(line for line in running if line), *lines[end:]]
    if not ordered:
        lines = sorted(re.sub(r"\[gw\d\]( \[ *\d+%\])? ?|\bgw\d\b", "[gw] ", one) for one in lines)
        lines = [one for one in lines if not _NOISE.fullmatch(one)]
    return lines


def _flat(where: str, value: Any) -> Iterator[str]:
    """One line for each leaf of JSON data."""
    if isinstance(value, dict) and value:
        for key, inner in sorted(value.items()):
            if key not in _DURATION_KEYS:
                yield from _flat(f"{where} {key}", inner)
    elif isinstance(value, list) and any(isinstance(one, (list, dict)) for one in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{where}[{index}]", inner)
    elif isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        yield from _flat(f"{where}[]", "\n".join(one.rstrip("\n") for one in value))
    elif isinstance(value, str):
        for line in normal(value).splitlines() or [""]:
            yield f"{where}: {line!r}"
    else:
        yield f"{where}: {normal(repr(value))}"


def junit(path: Path, ordered: bool) -> Lines:
    """A JUnit report, one line for each attribute and each line of text."""
    root = ElementTree.parse(path).getroot()
    cases = [list(_element("", case)) for case in root.iter("testcase")]
    if not ordered:
        cases.sort()
    lines = [line for suite in root.iter("testsuite") for line in _attributes("testsuite", suite)]
    for properties in root.iter("testsuite"):
        for one in properties.findall("properties/property"):
            lines += _attributes("suite property", one)
    return lines + [line for case in cases for line in case]


def _element(where: str, element: ElementTree.Element) -> Iterator[str]:
    here = f"{where} {element.tag}".strip()
    yield from _attributes(here, element)
    for line in normal(element.text or "").splitlines():
        yield f"{here}: {line}"
    for child in element:
        yield from _element(here, child)


def _attributes(where: str, element: ElementTree.Element) -> Lines:
    return [f"{where} {key}={normal(value)!r}" for key, value in element.attrib.items() if key not in _DURATION_KEYS]


def report_log(path: Path, ordered: bool) -> Lines:
    """pytest-reportlog's file: every field of every report and warning."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not ordered:
        records = [one for one in records if one.get("$report_type") == "TestReport"]
        records.sort(key=lambda one: (one["nodeid"], one["when"], json.dumps(one.get("context"))))
        for one in records:
            del one["sections"]
    return [line for one in records
            for line in _flat(f"{one.get('nodeid', '')} {one.get('when', one.get('$report_type'))}", one)]


def html_report(path: Path) -> Lines:
    """pytest-html's data, and the rest of the page without it."""
    page = path.read_text(encoding="utf-8")
    found = re.search(r'data-jsonblob="([^"]*)"', page)
    assert found is not None, "pytest-html writes its data into an attribute"
    data = json.loads(html.unescape(found[1]))
    lines = []
    for nodeid, results in data.pop("tests").items():
        for number, result in enumerate(results):
            result["resultsTableRow"] = [one for one in result["resultsTableRow"] if "col-duration" not in one]
            lines += _flat(f"{nodeid}[{number}]", result)
    data["environment"] = {key: value for key, value in data.get("environment", {}).items() if key != "Plugins"}
    lines += _flat("data", data)
    rest = normal(page.replace(found[1], ""))
    counts = r'<span class="(?:passed|failed|error|skipped|x\w+|rerun)">[^<]*|<p class="run-count">[^<]*'
    summary = re.findall(counts, rest)
    return lines + [re.sub(r"took .*", "took N", one) for one in summary]


def coverage_data(path: Path) -> Lines:
    """Every line and every branch that was run, with its contexts."""
    import coverage

    data = coverage.CoverageData(str(path))
    data.read()
    lines = []
    for file in sorted(data.measured_files()):
        name = Path(file).name
        for number, contexts in sorted(data.contexts_by_lineno(file).items()):
            lines.append(f"{name}:{number} {sorted(contexts)}")
        lines += [f"{name} {start}->{end}" for start, end in sorted(data.arcs(file) or ())]
    return lines


def cache(folder: Path, ordered: bool) -> Lines:
    """pytest's cache, as the next run finds it."""
    lines = []
    for path in sorted(folder.glob("v/**/*")):
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                lines.append(f"{path.relative_to(folder)}: {normal(line if ordered else line.rstrip(','))}")
    return lines if ordered else sorted(lines)


#: What pytest tells plugins about a test that has run. A sandboxed test's reports are logged when it has ended (see
#: docs/reference/differences.md), so these are compared among themselves, apart from what the test did.
_KINDS = {"reports": ("report ", "warning "), "making of reports": ("make report ", "interact ")}
_TOLD = tuple(start for starts in _KINDS.values() for start in starts)
_OF_TESTS = (*_TOLD, "start ", "finish ", "setup ", "call ", "called ", "set up function ", "finalize function ")


def order(paths: Iterable[Path], ordered: bool) -> dict[str, Lines]:
    """The order logs. Which worker set up what is chance, so that without order only the tests' own lines remain."""
    lines = [line for path in sorted(paths) for line in normal(path.read_text(encoding="utf-8")).splitlines()]
    if not ordered:  # nor which test's report has the output of a fixture that several use
        lines = sorted(re.sub(r"^(report .*) \[[^]]*\]$", r"\1", line) for line in lines if line.startswith(_OF_TESTS))
    found = {name: [line for line in lines if line.startswith(starts)] for name, starts in _KINDS.items()}
    return {"order": [line for line in lines if not line.startswith(_TOLD)], **found}


def tree(folder: Path) -> Lines:
    """The files that are there, but for compiled ones."""
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*"))
            if "__pycache__" not in path.parts and ".pytest_cache" not in path.parts]
