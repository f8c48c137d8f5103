"""What ``pytest_runtest_makereport`` keeps for later tests, is there for them, as in a plain run."""

from __future__ import annotations

import re

import pytest

from pytest_sandbox.plugin import retelling

# The first three are recipes of pytest's documentation.
CONFTEST = '''
    import pluggy
    import pytest

    FAILED = {}
    REPORTS = pytest.StashKey()

    def pytest_runtest_makereport(item, call):
        if "incremental" in item.keywords and call.excinfo is not None:
            FAILED.setdefault(str(item.cls), item.name)

    def pytest_runtest_setup(item):
        if "incremental" in item.keywords and str(item.cls) in FAILED:
            pytest.xfail(f"previous test failed ({FAILED[str(item.cls)]})")

    class InFile:
        @pytest.hookimpl(hookwrapper=True, tryfirst=True)
        def pytest_runtest_makereport(self, item, call):
            report = (yield).get_result()
            if report.when == "call" and report.failed:
                with open("failures", "a") as file:
                    file.write(f"{report.nodeid} {call.excinfo.typename} {call.excinfo.value}\\n")

    class InStash:
        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(self, item, call):
            report = yield
            item.stash.setdefault(REPORTS, {})[report.when] = report
            return report

    class Speaks:
        """Says more than once what is to be seen once, and needs what is inside."""
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(self, item, call):
            report = yield
            if report.when == "call":
                print("printed by a hook")
                item.config.get_terminal_writer().line("written by a hook")
                report.sections.append(("a hook's", "own section"))
                assert item.funcargs["inner"] == 1
            return report

    def pytest_configure(config):
        for plugin in (InFile(), InStash(), Speaks()):
            config.pluginmanager.register(plugin)

    @pytest.fixture
    def inner():
        return 1

    @pytest.fixture(scope="class", autouse=True)
    def seen(request):
        yield
        found = [one.stash[REPORTS]["call"].outcome for one in request.session.items if one.cls is request.cls
                 and "call" in one.stash[REPORTS]]
        print("\\nthe class was", found)
'''
TESTS = '''
    import pytest

    @pytest.mark.incremental
    class TestSteps:
        def test_login(self, inner): pass
        def test_modification(self, inner): raise KeyError("no such user")
        def test_deletion(self, inner): pass

    class TestOthers:
        def test_passes(self, inner): pass
        def test_fails(self, inner): assert inner == 2
'''


@pytest.mark.parametrize("options", [(), ("-s",)], ids=["captured", "live"])
def test_what_is_kept_is_what_a_plain_run_keeps(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nmarkers = incremental")
    runs = []
    for choice in (("-p", "no:sandbox"), ("--sandbox=all",)):
        result = pytester.runpytest_subprocess(*choice, *options, "-rA", "-q", "-p", "no:cacheprovider")
        result.assert_outcomes(passed=2, failed=2, xfailed=1)
        runs.append((re.sub(r"0x[0-9a-f]+| in [\d.]+s|sandbox: all\n", "", result.stdout.str()),
                     pytester.path.joinpath("failures").read_text()))
        pytester.path.joinpath("failures").unlink()
    assert runs[1][1] == runs[0][1]
    assert "TestSteps::test_modification KeyError 'no such user'" in runs[0][1]
    assert "the class was ['passed', 'failed']" in runs[0][0]
    for text in ("printed by a hook", "written by a hook", "own section", "the class was ['passed', 'failed']",
                 "previous test failed (test_modification)"):
        assert runs[1][0].count(text) == runs[0][0].count(text) > 0, text


def test_an_exception_is_told_as_what_it_was(pytester: pytest.Pytester) -> None:
    """Its class and text, where it is one of Python's own; objects do not leave a sandbox."""
    pytester.makeconftest("""
        class Kept:
            seen = []

            def pytest_runtest_makereport(self, item, call):
                if call.excinfo is not None:
                    self.seen.append((call.when, call.excinfo.typename, str(call.excinfo.value).splitlines()[:1]))

        def pytest_configure(config):
            config.pluginmanager.register(Kept())

        def pytest_unconfigure():
            print()
            for one in Kept.seen:
                print("KEPT", *one)
    """)
    pytester.makepyfile("""
        import pytest

        class Own(Exception): pass
        def test_assert(): assert 1 == 2
        def test_unpacks(): b"\\xff".decode()
        def test_own(): raise Own("text")
        def test_skips(): pytest.skip("not today")
        @pytest.mark.xfail
        def test_xfails(): raise OSError(2, "no such thing")
    """)
    result = pytester.runpytest_subprocess("--sandbox=all", "-q", "-s")
    assert [line[5:] for line in result.outlines if line.startswith("KEPT ")] == [
        "call AssertionError ['assert 1 == 2']",
        f"call {retelling.FailedInside.__name__} [\"UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in "
        "position 0: invalid start byte\"]",
        f"call {retelling.FailedInside.__name__} ['test_an_exception_is_told_as_what_it_was.Own: text']",
        "call Skipped ['not today']",
        "call FileNotFoundError ['[Errno 2] no such thing']",
    ]
