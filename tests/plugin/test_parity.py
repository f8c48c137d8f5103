"""A sandboxed run shows what the plain run shows: the same suite, both ways, line by line."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Both

pytestmark = pytest.mark.usefixtures("all_plugins")

SUITES = Path(__file__).with_name("suites")


@pytest.fixture
def suite(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_kinds=(SUITES / "kinds.py").read_text(), test_docs=(SUITES / "doctests.py").read_text())


@pytest.mark.parametrize("args", [
    ("-rA",), ("-v", "--color=yes", "--showlocals"), ("-x", "--tb=short"), ("--maxfail=3", "--capture=sys"),
    ("-q", "--tb=long", "--show-capture=no"), ("--runxfail", "--tb=line"), ("-W", "error", "-q"),
], ids=" ".join)
def test_the_terminal(suite: None, both: Callable[..., Both], args: tuple[str, ...]) -> None:
    result = both("--doctest-modules", *args)
    result.assert_equal()
    assert "failed" in result.plain.stdout.str()


def test_the_junit_report(suite: None, both: Callable[..., Both], pytester: pytest.Pytester) -> None:
    reports = []
    pytester.makeconftest("""
        import pytest
        @pytest.fixture(autouse=True)
        def attribute(record_xml_attribute):
            record_xml_attribute("extra", "value")
    """)
    pytester.makeini("[pytest]\njunit_logging = all\njunit_family = xunit1\n")
    for mode in ("off", "all"):
        pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--sandbox={mode}", "--junitxml=report.xml")
        root = ElementTree.parse(pytester.path / "report.xml").getroot()
        for element in root.iter():
            for name in ("time", "timestamp"):
                element.attrib.pop(name, None)
        reports.append(normalised(ElementTree.tostring(root, "unicode")))
    assert reports[0] == reports[1]
    assert 'extra="value"' in "".join(reports[0])
    assert '<property name="s" value="v" />' in "".join(reports[0])


def test_the_junit_report_of_a_test_that_replaces_what_writes_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        from _pytest.junitxml import LogXML

        def test_one(monkeypatch, record_xml_attribute):
            record_xml_attribute("extra", "value")
            monkeypatch.setattr(LogXML, "node_reporter", None)
    """)
    pytester.makeini("[pytest]\njunit_family = xunit1\n")
    found = []
    for mode in ("off", "all"):
        pytester.runpytest_subprocess("-p", "no:cacheprovider", f"--sandbox={mode}", "--junitxml=report.xml")
        found += [case.get("extra") for case in ElementTree.parse(pytester.path / "report.xml").iter("testcase")]
    assert found == ["value", "value"]


def normalised(text: str) -> list[str]:
    from .conftest import normal

    return [normal(line) for line in text.splitlines()]


def test_frames_of_pluggy_that_pytest_shows_of_a_doctest(pytester: pytest.Pytester, both: Callable[..., Both]) -> None:
    pytester.makeconftest("""
        import pytest
        @pytest.fixture(autouse=True)
        def broken():
            raise OSError("the fixture")
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_teardown():
            yield
            raise OSError("the hook")
    """)
    pytester.maketxtfile("""
        >>> 40 + 2
        42
    """)
    found = both("--doctest-glob=*.txt", "--tb=short")
    found.plain.assert_outcomes(errors=2)
    found.plain.stdout.fnmatch_lines(["*pluggy*", "E *OSError: the fixture", "*pluggy*", "E *OSError: the hook"])
    found.assert_equal()


def test_rerunfailures(pytester: pytest.Pytester, both: Callable[..., Both], tmp_path: Path) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(f"""
        import os, pytest

        @pytest.fixture(scope="session")
        def count():
            descriptor = os.open({str(tmp_path / "count")!r}, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC)
            def count(name):
                os.write(descriptor, f"{{name}}\\n".encode())
                return os.pread(descriptor, 10000, 0).decode().split().count(name)
            return count

        @pytest.fixture(scope="module")
        def module():
            print("module up")
            yield
            print("module down")

        def test_third_time_lucky(module, count):
            assert count("third") == 3

        @pytest.mark.flaky(reruns=1)
        def test_too_few(module, count):
            assert count("few") == 3

        @pytest.mark.flaky(reruns=2, only_rerun=["KeyError"])
        def test_another_error(count):
            if count("another") < 2:
                raise ValueError

        @pytest.fixture
        def teardown(count):
            yield
            if count("teardown") < 2:
                raise RuntimeError("teardown")

        def test_teardown(teardown, module):
            pass
    """)
    result = both("--reruns=2", "-rAR", "-v")
    result.assert_equal()
    assert "5 rerun" in result.boxed.outlines[-1]


def test_rerunfailures_after_a_crash(pytester: pytest.Pytester, boxed: Callable[..., pytest.RunResult],
                                     tmp_path: Path) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(f"""
        import os, pytest

        @pytest.fixture(scope="session")
        def descriptor():
            print("session up")
            yield os.open({str(tmp_path / "count")!r}, os.O_RDWR | os.O_CREAT | os.O_APPEND)

        @pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
        def test_crashes_once(descriptor, phase, crash):
            crash("call")

        @pytest.fixture
        def crash(descriptor, phase):
            def crash(when):
                if when == phase:
                    os.write(descriptor, f"{{phase}}\\n".encode())
                    if os.pread(descriptor, 1000, 0).decode().split().count(phase) < 2:
                        os._exit(1)
            crash("setup")
            yield crash
            crash("teardown")
    """)
    result = boxed("--reruns=2", "-rA")
    result.assert_outcomes(passed=4 if "teardown" else 3)
    assert "3 rerun" in result.outlines[-1]
    assert result.stdout.str().count("session up") >= 1
