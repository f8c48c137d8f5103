"""Warnings and failures of fixtures of higher scope, and the configured environment, are those of a plain run."""

from __future__ import annotations

import re

import pytest


def lines(result: pytest.RunResult) -> list[str]:
    return [line.rpartition(" in ")[0] if line.startswith("=====") else line for line in result.outlines
            if line != "sandbox: off"]


def test_what_is_set_up_in_the_image_looks_as_if_it_were_here(suite: pytest.Pytester,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIVEN", "1")  # here; images have it by their option
    suite.makeini("[pytest]\nsandbox_env =\n    GIVEN=1\nfilterwarnings =\n    error:this is an error\n")
    suite.makepyfile("""
        import os, unittest, warnings
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        GIVEN = os.environ["GIVEN"]

        @pytest.fixture(scope="module")
        def warns():
            warnings.warn("module set up")
            yield
            warnings.warn("module torn down")
        @pytest.fixture(scope="session")
        def broken(): raise OSError("session fixture is broken")
        @pytest.fixture(scope="session")
        def refused(): warnings.warn("this is an error")
        @pytest.fixture(scope="session")
        def by_name(): warnings.warn("set up by name")
        @pytest.fixture(scope="session")
        def given(): return os.environ["GIVEN"]

        def test_warns(warns): pass
        def test_broken(broken): pass
        def test_broken_again(broken, warns): pass
        def test_refused(refused): pass
        def test_by_name(request): request.getfixturevalue("by_name")
        def test_environment(given): assert given == GIVEN == os.environ["GIVEN"] == "1"

        MADE = []
        @pytest.fixture(scope="session")
        def not_wanted(): MADE.append(1)
        @pytest.mark.skip(reason="not today")
        def test_skipped(not_wanted): pass
        @pytest.mark.xfail(run=False)
        def test_not_run(not_wanted): pass
        def test_seen(): assert MADE == []

        class TestBroken(unittest.TestCase):
            @classmethod
            def setUpClass(cls): raise OSError("the class is broken")
            def test_one(self): pass
    """)
    inside, plain = (suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", "-p",
                                                "no:hypothesispytest", *args) for args in ((), ("--sandbox=off",)))
    plain.assert_outcomes(passed=4, errors=4, skipped=1, xfailed=1, warnings=3)
    assert lines(inside) == lines(plain)


def test_what_is_recorded_for_the_junit_report(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)

        @pytest.fixture(scope="session")
        def records(record_testsuite_property):
            record_testsuite_property("by", "a fixture")
            yield
            record_testsuite_property("late", "at its end")
        def test_one(records, record_testsuite_property): record_testsuite_property("by a", "test")
        @pytest.mark.filterwarnings("ignore")
        def test_two(records, record_xml_attribute): record_xml_attribute("status", "good")
    """)
    kept = []
    for name, args in (("inside", ()), ("plain", ("--sandbox=off",))):
        suite.runpytest_subprocess("-p", "no:cacheprovider", f"--junitxml={name}.xml", "-ojunit_family=xunit1",
                                   *args).assert_outcomes(passed=2)
        text = (suite.path / f"{name}.xml").read_text()
        kept.append([sorted(re.findall('<property name="(.*?)" value="(.*?)"', text)), text.count('status="good"')])
    assert kept[0] == kept[1] == [[("by", "a fixture"), ("by a", "test"), ("late", "at its end")], 1]
