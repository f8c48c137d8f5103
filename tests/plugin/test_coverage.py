"""pytest-cov measures what it measures in a plain run: lines, branches, contexts, subprocesses, with xdist too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_cov")

import coverage

pytestmark = pytest.mark.usefixtures("all_plugins")

SUITE = {
    "shop": """
        import sys
        def price(count):
            if count > 10:
                return count * 9
            for one in range(count):
                count += one
            return count
        def buy(count):
            try:
                return price(count)
            finally:
                print("bought")
        def higher():
            return 1
        def later():
            return 2
        if __name__ == "__main__":
            print(price(int(sys.argv[1])))
    """,
    "test_shop": """
        import os, subprocess, sys
        import pytest, shop

        @pytest.fixture(scope="module")
        def module():
            yield shop.higher()
            shop.later()

        def test_price(module): assert shop.price(3) == 6
        @pytest.mark.parametrize("count", [1, 20])
        def test_buy(count, module): shop.buy(count)
        def test_fails(): assert shop.price(2) == 0
        def test_subprocess():
            assert subprocess.check_output([sys.executable, shop.__file__, "30"]) == b"270\\n"
        class TestShared:
            pytestmark = pytest.mark.sandbox(scope="class")
            def test_one(self): shop.price(11)
            def test_two(self): shop.price(0)
    """,
}


def measured(pytester: pytest.Pytester, mode: str, *args: str) -> tuple[object, str]:
    """Contexts, files and their lines or arcs, and the report."""
    result = pytester.runpytest_subprocess(f"--sandbox={mode}", "--cov", "--cov-report=term-missing", *args)
    result.assert_outcomes(passed=6, failed=1)
    data = coverage.CoverageData(basename=str(pytester.path / ".coverage"))
    data.read()
    found = {}
    for context in sorted(data.measured_contexts()):
        data.set_query_context(context)
        for name in data.measured_files():
            places = data.arcs(name) if data.has_arcs() else data.lines(name)
            if places:
                found[context, Path(name).name] = sorted(places)
    assert not list(pytester.path.glob(".coverage.*"))
    report = [line for line in result.outlines if "%" in line and line.startswith(("shop", "test_shop", "TOTAL"))]
    return found, "\n".join(report)


@pytest.mark.parametrize("args", [
    (), ("--cov-branch",), ("--cov-branch", "--cov-context=test"),
    # By scope: else it is chance which test is a worker's last, in whose context the module's fixture ends.
    ("--cov-context=test", "-n2", "--dist=loadscope"),
], ids=lambda args: " ".join(args) or "lines")
def test_the_data_is_that_of_the_plain_run(pytester: pytest.Pytester, args: tuple[str, ...]) -> None:
    if "-n2" in args:
        pytest.importorskip("xdist")
    pytester.makepyfile(**SUITE)
    (pytester.path / ".coveragerc").write_text("[run]\nsource = .\npatch = subprocess\n")
    plain = measured(pytester, "off", *args)
    boxed = measured(pytester, "all", *args)
    assert boxed == plain
    assert "shop.py" in plain[1]


def test_coverage_run_without_pytest_cov(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(**SUITE)
    found = []
    for mode in ("off", "all"):
        result = pytester.run(sys.executable, "-m", "coverage", "run", "--branch", "--source=.",
                              "-m", "pytest", "-p", "no:cov", f"--sandbox={mode}")
        result.assert_outcomes(passed=6, failed=1)
        data = coverage.CoverageData(basename=str(pytester.path / ".coverage"))
        data.read()
        found.append({name: sorted(data.arcs(name) or ()) for name in data.measured_files()})
    assert found[0] == found[1]


def test_data_that_is_none_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from pytest_sandbox.plugin import cover
        def test_one():
            cover.Recorder.take = lambda self: {"seen": {"": {"/etc/passwd": ["DROP TABLE"]}}, "tracers": {},
                                                "context": None}
    """)
    result = pytester.runpytest_subprocess("--sandbox=all", "--cov")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines([
        "*the coverage of this test is lost: the sandboxed test sent coverage data that cannot be read: *"])
