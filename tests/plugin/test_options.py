"""Markers, the command line and ini files: what is accepted, what wins, what is refused and how it is said."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pytest_sandbox.plugin import options
from pytest_sandbox.spec import OPTIONS


def test_ini_options_are_those_that_the_spec_knows() -> None:
    assert {name for name, _, _ in options.INI_OPTIONS} == set(OPTIONS) - {"image"}


@pytest.mark.parametrize(("marker", "says"), [
    ("immage='host'", "*::test_one: unknown sandbox option 'immage': did you mean 'image'?*Allowed: *image*"),
    ("network='hots'", "*test_wrong.py::test_one: sandbox option network='hots' cannot be used*Allowed: *none*host*"),
    ("'host'", "*test_wrong.py::test_one: the sandbox marker takes keyword options only, not 'host'*"
               "did you mean image='host'?*"),
    ("'network'", "*test_wrong.py::test_one: *did you mean network=...?*"),
    ("memory='64X'", "*test_wrong.py::test_one: sandbox option memory='64X' cannot be used*"),
    ("mounts=3", "*test_wrong.py::test_one: sandbox option mounts=3 cannot be used*"),
])
def test_a_marker_that_cannot_be_used_is_a_collection_error(pytester: pytest.Pytester, marker: str, says: str) -> None:
    pytester.makepyfile(test_wrong=f"""
        import pytest
        @pytest.mark.sandbox({marker})
        def test_one():
            pass
    """, test_right="""
        def test_two():
            pass
    """)
    result = pytester.runpytest_subprocess("--continue-on-collection-errors")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*ERROR collecting test_wrong.py*", says])


def test_every_wrong_test_of_a_file_is_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        pytestmark = pytest.mark.sandbox(hostnam="x")
        def test_one(): pass
        def test_two(): pass
    """)
    result = pytester.runpytest_subprocess("--collect-only")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*::test_one: unknown sandbox option 'hostnam'*did you mean 'hostname'?*"])
    result.stdout.fnmatch_lines(["*::test_two: unknown sandbox option 'hostnam'*"])


def test_a_wrong_marker_that_a_hook_adds_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest
        def pytest_collection_modifyitems(items):
            items[0].add_marker(pytest.mark.sandbox(scpoe="function"))
    """)
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*ERROR: *::test_one: unknown sandbox option 'scpoe'*did you mean 'scope'?*"])


@pytest.mark.parametrize(("ini", "says"), [
    ("sandbox = mraked", "*ini option sandbox='mraked' cannot be used. *marked, all, off. Did you mean 'marked'?*"),
    ("sandbox_unavailable = ignore", "*sandbox_unavailable='ignore' cannot be used. Allowed: error, skip, run.*"),
    ("sandbox_disk = lots", "*ini option sandbox_disk: sandbox option disk='lots' cannot be used*"),
])
def test_a_wrong_ini_value_names_the_option(pytester: pytest.Pytester, ini: str, says: str) -> None:
    pytester.makeini(f"[pytest]\n{ini}\n")
    pytester.makepyfile("import pytest\n@pytest.mark.sandbox\ndef test_one(): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([says])


def test_the_nearest_marker_wins_option_by_option_then_the_command_line_then_the_ini_file(
        pytester: pytest.Pytester) -> None:
    pytester.makeini("""
        [pytest]
        sandbox_image = from-ini
        sandbox_hostname = from-ini
        sandbox_user = me
        sandbox_workdir = /ini
        sandbox_env =
            A=1
            B=2
        sandbox_hide = .ssh .aws
    """)
    pytester.makeconftest("""
        from pytest_sandbox.plugin import settings_of
        def pytest_collection_finish(session):
            for item in session.items:
                spec = settings_of(session.config).spec(item)
                print("SPEC", item.name, spec and (spec.image, spec.hostname, spec.user, spec.workdir))
                if item.name == "test_function":
                    print("MORE", spec.env, spec.hide)
    """)
    pytester.makepyfile("""
        import pytest
        pytestmark = pytest.mark.sandbox(hostname="module", user="root")

        @pytest.mark.sandbox(workdir="/class")
        class TestClass:
            @pytest.mark.sandbox(hostname="function")
            def test_function(self): pass
            def test_other(self): pass

        @pytest.mark.parametrize("case", [pytest.param(1, marks=pytest.mark.sandbox(user="1:1")), 2])
        def test_case(case): pass
    """)
    result = pytester.runpytest_subprocess("--sandbox-image=from-cli", "-s", "--collect-only")
    result.stdout.fnmatch_lines([
        "SPEC test_function ('from-cli', 'function', 'root', '/class')",
        "MORE (('A', '1'), ('B', '2')) ('.ssh', '.aws')",
        "SPEC test_other ('from-cli', 'module', 'root', '/class')",
        "SPEC test_case[[]1] ('from-cli', 'module', '1:1', '/ini')",
        "SPEC test_case[[]2] ('from-cli', 'module', 'root', '/ini')",
    ])


def test_native_toml_configuration(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("""
        [tool.pytest.ini_options]
        sandbox = "all"
        sandbox_hostname = "toml"
        sandbox_env = ["A=1"]
    """)
    pytester.makepyfile("""
        import os, socket
        def test_one():
            assert socket.gethostname() == "toml"
            assert os.environ["A"] == "1"
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_the_marker_and_the_fixtures_explain_themselves(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.sandbox(*image*): run this test's body in a fork of the pytest *"])
    result = pytester.runpytest_subprocess("--fixtures")
    result.stdout.fnmatch_lines_random([
        "sandbox_image*", "sandbox_factory*", "*A started sandbox for this test to work from outside*"])


def test_the_header_speaks_when_the_mode_is_not_the_default(pytester: pytest.Pytester) -> None:
    assert "sandbox: all" in pytester.runpytest_subprocess("--sandbox=all").outlines
    assert "sandbox: off" in pytester.runpytest_subprocess("--sandbox=off").outlines
    assert "sandbox: marked" not in pytester.runpytest_subprocess().outlines


def test_being_installed_imports_next_to_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass")
    code = ("import sys, pytest; before = set(sys.modules); code = pytest.main(['-q', '-p', 'no:cacheprovider']);"
            "print('LOADED', sorted(m for m in sys.modules if m.startswith('pytest_sandbox'))); sys.exit(code)")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = next(line for line in result.stdout.splitlines() if line.startswith("LOADED"))
    assert loaded == ("LOADED ['pytest_sandbox', 'pytest_sandbox.plugin', 'pytest_sandbox.plugin.fixtures', "
                      "'pytest_sandbox.plugin.hookspecs', 'pytest_sandbox.plugin.options']")


def test_a_pytest_that_lacks_what_we_build_on_is_named(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        from _pytest import runner
        def pytest_collection_modifyitems():
            del runner.call_and_report
    """)
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_subprocess("--sandbox=all")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([
        f"*cannot run sandboxed tests with pytest {pytest.__version__}: "
        "_pytest.runner.call_and_report(item, when, log) is not there*"])
