"""``--sandbox-trace``: where the time of a run's sandboxes goes. What is slow shows, and nothing shows unasked."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

SUITE = """
    import time
    import pytest

    @pytest.mark.sandbox
    @pytest.mark.parametrize("number", range(8))
    def test_marked(number):
        time.sleep(0.1 if number == 6 else 0)

    @pytest.fixture
    def slow():
        time.sleep(0.07)
        yield
        time.sleep(0.08)

    @pytest.mark.sandbox(disk="16M")
    def test_slow_fixture(slow):
        pass

    def test_driven(sandbox):
        sandbox.run(["sleep", "0.09"], check=True)
        sandbox.run(["true"], check=True)
"""

#: What every sandbox's making has.
MAKING = {"tmpfs for the writable layer", "overlay on /", "/proc", "/dev", "pivot into the new root",
          "make its user namespace", "make its network namespace", "loopback up", "map its user ids",
          "drop privileges, filter system calls"}


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *args)
    result.assert_outcomes(passed=10)
    return result


def rows(name: str) -> dict[str, list[dict[str, Any]]]:
    """The file's events by the test that they are of."""
    events = json.loads(Path(name).read_text())["traceEvents"]
    names = {one["pid"]: one["args"]["name"] for one in events if one["name"] == "process_name"}
    found: dict[str, list[dict[str, Any]]] = {}
    for one in events:
        if one["ph"] == "X":
            found.setdefault(names[one["pid"]].rpartition("::")[2], []).append(one)
    return found


def taken(events: list[dict[str, Any]], who: str, what: str) -> float:
    """Seconds."""
    return sum(one["dur"] for one in events if (one["cat"], one["name"]) == (who, what)) / 1e6


@pytest.mark.parametrize("args", [[], ["-p", "xdist", "-n", "2"], ["--capture=no"]], ids=["alone", "workers", "live"])
def test_what_is_slow_shows(pytester: pytest.Pytester, args: list[str]) -> None:
    if "-n" in args:
        pytest.importorskip("xdist")
    result = run(pytester, "--sandbox-trace=out/trace.json", *args)
    result.stdout.fnmatch_lines([
        "*= sandbox trace: * sandboxes, 10 tests =*", "microseconds*median*p99*times", "the helper:",
        "  make its cgroup *" if "make its cgroup" in result.stdout.str() else "  start its first process *",
        "the sandbox's first process:", "  overlay on / *", "the test:", "  body *", "sandbox trace: *out/trace.json"])
    tests = rows("out/trace.json")
    used = {f"test_marked[{number}]" for number in range(8)} | {"test_slow_fixture", "test_driven"}
    assert set(tests) - {"used by no test"} == used
    for name in used:
        made = {one["name"] for one in tests[name] if one["cat"] == "init"}
        assert made >= MAKING, name
        assert [one["name"] for one in tests[name] if one["cat"] == "test"] == ["set-up", "body", "teardown"]
        assert any(one["cat"] == "end" for one in tests[name]), name
    assert taken(tests["test_marked[6]"], "test", "body") >= 0.1
    assert taken(tests["test_slow_fixture"], "test", "set-up") >= 0.07
    assert taken(tests["test_slow_fixture"], "test", "teardown") >= 0.08
    assert taken(tests["test_driven"], "run", "sleep") >= 0.09
    assert 0 < taken(tests["test_driven"], "run", "true") < taken(tests["test_driven"], "test", "body")
    for name in used - {"test_driven"}:
        assert taken(tests[name], "fork", "enter its namespaces, drop privileges") > 0, name


def test_the_steps_of_a_making_fill_its_time(pytester: pytest.Pytester) -> None:
    """They follow one another without a gap, between the moment it was asked for and the first phase of its test."""
    run(pytester, "--sandbox-trace=trace.json")
    for name, events in rows("trace.json").items():
        asked = min(one["ts"] for one in events)
        steps = sorted((one for one in events if one["cat"] == "init"), key=lambda one: one["ts"])
        for one, following in itertools.pairwise(steps):
            assert one["ts"] + one["dur"] == pytest.approx(following["ts"], abs=0.01)
        assert asked <= steps[0]["ts"]
        if bodies := [one for one in events if one["name"] == "body"]:
            assert steps[-1]["ts"] + steps[-1]["dur"] <= bodies[0]["ts"], name


def test_nothing_is_shown_or_kept_without_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest

        def pytest_sandbox_started(sandbox):
            assert sandbox.trace is None

        @pytest.hookimpl(trylast=True)
        def pytest_unconfigure(config):
            from pytest_sandbox.runtime import tracing
            print("recorder:", tracing.recorder)
            assert not config.pluginmanager.has_plugin("sandbox-tracer")
    """)
    result = run(pytester, "-s")
    result.stdout.fnmatch_lines(["recorder: None"])
    result.stdout.no_fnmatch_line("*sandbox trace*")


def test_a_failed_and_a_crashed_test_have_their_place(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_suite="""
        import os
        import pytest

        pytestmark = pytest.mark.sandbox

        def test_fails():
            assert False

        def test_dies():
            os._exit(3)

        def test_lives():
            pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox-trace=trace.json")
    result.assert_outcomes(passed=1, failed=2)
    tests = rows("trace.json")
    assert {"test_fails", "test_dies", "test_lives"} <= set(tests)
    assert taken(tests["test_fails"], "test", "body") > 0
    assert any(one["cat"] == "end" for one in tests["test_dies"])


@pytest.mark.parametrize("given", ["trace.txt", "test_suite.py"])
def test_a_name_that_says_no_form(pytester: pytest.Pytester, given: str) -> None:
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest_subprocess("--sandbox-trace", given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--sandbox-trace: a file that ends in .json, not '{given}': write "
                                 "--sandbox-trace=trace.json, or put it last"])


def test_a_file_that_cannot_be_written_is_told_and_fails_nothing(pytester: pytest.Pytester) -> None:
    pytester.path.joinpath("there").write_text("a file")
    result = run(pytester, "--sandbox-trace=there/trace.json")
    result.stdout.fnmatch_lines(["the sandbox trace could not be written: *there*"])
