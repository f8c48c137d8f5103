"""``--sandbox-report``: what the sandboxes of a run used, as one file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("all_plugins")

SUITE = """
    import os
    import pytest

    @pytest.mark.sandbox(disk="32M", env={"A": "<b>"})
    def test_uses():
        with open("/var/tmp/data", "wb") as file:
            file.write(bytes(3 << 20))

    @pytest.mark.sandbox
    def test_fails():
        assert "<script>" == 1

    @pytest.mark.sandbox
    def test_dies():
        os._exit(3)

    @pytest.mark.sandbox
    def test_skips():
        pytest.skip("so")

    def test_drives(sandbox):
        assert sandbox.run(["true"]).returncode == 0

    def test_plain():
        pass
"""


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)
    result.assert_outcomes(passed=3, failed=2, skipped=1)
    return result


@pytest.mark.parametrize("args", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_as_json(pytester: pytest.Pytester, args: list[str]) -> None:
    if args:
        pytest.importorskip("xdist")
    result = run(pytester, "--sandbox-report=out/report.json", *args)
    result.stdout.fnmatch_lines(["*sandbox report: *out/report.json*"])
    content = json.loads(Path("out/report.json").read_text())
    tests = {one["test"].split("::")[1]: one for one in content["tests"]}
    assert set(tests) == {"test_uses", "test_fails", "test_dies", "test_skips", "test_drives"}
    assert {name: one["outcome"] for name, one in tests.items()} == {
        "test_uses": "passed", "test_fails": "failed", "test_dies": "failed", "test_skips": "skipped",
        "test_drives": "passed"}
    assert tests["test_uses"]["options"] == {"disk": 32 << 20, "env": [["A", "<b>"]]}
    assert tests["test_uses"]["usage"]["disk"] >= 3 << 20
    assert tests["test_uses"]["usage"]["wall_seconds"] > 0
    assert "exited with status 3" in tests["test_dies"]["failure"]
    assert tests["test_uses"]["failure"] is None
    assert content["version"] == 1
    assert content["host"]["pytest"] == pytest.__version__
    assert (tests["test_uses"]["worker"] is None) == (not args)


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_as_html(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nsandbox_report = report.html")
    run(pytester)
    page = Page()
    page.feed(Path("report.html").read_text())
    assert page.links == []  # it needs nothing else
    assert page.tags.count("script") == 1  # and what tests print is text
    assert page.tags.count("tr") == 6
    for words in ("2 failed, 2 passed, 1 skipped", "test_suite.py::test_dies", "exited with status 3",
                  "env=[['A', '<b>']]"):
        assert words in page.text, words
    assert re.search(r"3(\.\d+)?\xa0MiB", page.text)


def test_a_name_that_says_no_form_and_a_place_that_cannot_be(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("--sandbox-report=report.txt")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*report.txt*Let it end in .html or .json*"])
    Path("file").write_text("x")
    result = pytester.runpytest_subprocess("--sandbox-report=file/report.json")
    result.stdout.fnmatch_lines(["*the sandbox report could not be written: *"])
    assert result.ret == 0


def test_without_it_reports_are_what_they_are(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox
        def test_it(request): assert request.node.user_properties == []
    """)
    pytester.runpytest_subprocess("--junitxml=junit.xml").assert_outcomes(passed=1)
    assert "sandbox_" not in Path("junit.xml").read_text()
