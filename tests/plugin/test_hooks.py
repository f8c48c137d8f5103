"""The hooks that others may implement: each is called at its time, and what it returns counts."""

from __future__ import annotations

import pytest

from pytest_sandbox import SandboxSpec, SandboxUsageError


def test_a_spec_can_be_changed_for_tests_of_both_kinds(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        def pytest_sandbox_spec(item, spec):
            if "plain" not in item.name:
                return spec.with_options(hostname="changed", env={"TEST": item.name})
    """)
    pytester.makepyfile("""
        import os, socket
        import pytest

        @pytest.mark.sandbox
        def test_inside():
            assert (socket.gethostname(), os.environ["TEST"]) == ("changed", "test_inside")

        @pytest.mark.sandbox
        def test_plain():
            assert socket.gethostname() == "sandbox"

        def test_driven(sandbox):
            assert sandbox.run(["hostname"]).stdout == "changed\\n"
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=3)


@pytest.mark.parametrize(("body", "said"), [
    ("return spec.with_options(memroy='1G')", "*pytest_sandbox_spec, for *::test_it: unknown sandbox option 'memroy'*"),
    ("return {'memory': '1G'}", "*::test_it: pytest_sandbox_spec returned {'memory': '1G'}, which is not a spec*"),
])
def test_a_spec_that_cannot_be_used_ends_the_run(pytester: pytest.Pytester, body: str, said: str) -> None:
    pytester.makeconftest(f"""
        def pytest_sandbox_spec(item, spec):
            {body}
    """)
    pytester.makepyfile("import pytest\n@pytest.mark.sandbox\ndef test_it(): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([said])


def test_a_source_of_images(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        ASKED = []
        def pytest_sandbox_image_source(reference):
            ASKED.append(reference)
            return "host" if reference == "team:base" else None
    """)
    pytester.makepyfile("""
        import pytest, conftest

        @pytest.mark.sandbox(image="team:base")
        def test_inside():
            assert conftest.ASKED == ["team:base"]

        @pytest.mark.sandbox(image="team:base")
        def test_driven(sandbox):
            assert sandbox.run(["true"]).returncode == 0

        def test_made(sandbox_factory):
            assert sandbox_factory(image="team:base").run(["true"]).returncode == 0

        def test_unknown(sandbox_factory):
            with pytest.raises(Exception, match="team:other|other"):
                sandbox_factory(image="oci:/no/such/team:other")
            assert conftest.ASKED[-1] == "oci:/no/such/team:other"
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=4)


def test_a_source_is_asked_once_for_a_sandbox(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        ASKED = []
        def pytest_sandbox_image_source(reference):
            ASKED.append(reference)
            return "rootfs:/no/such/tree"
        def pytest_terminal_summary(terminalreporter):
            terminalreporter.write_line(f"ASKED {ASKED}")
    """)
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(image="team:tree")
        def test_driven(sandbox): pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    assert "ASKED ['team:tree']" in result.outlines


def test_started_and_finished(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        def pytest_sandbox_started(sandbox):
            print("\\nSTARTED", sandbox.spec.hostname, sandbox.path("/etc").is_dir())

        def pytest_sandbox_finished(item, usage, result):
            print("\\nFINISHED", item.name, result.when, result.outcome, usage.wall_seconds > 0)
    """)
    pytester.makepyfile("""
        import os
        import pytest

        @pytest.mark.sandbox(hostname="a")
        def test_passes(): pass

        @pytest.mark.sandbox(hostname="b")
        def test_fails(): assert 0

        @pytest.mark.sandbox(hostname="c")
        def test_dies(): os._exit(3)

        @pytest.mark.sandbox(hostname="d")
        def test_skips(): pytest.skip("so")

        @pytest.fixture
        def broken():
            yield
            assert 0

        @pytest.mark.sandbox(hostname="e")
        def test_ends_badly(broken): pass

        @pytest.mark.sandbox(hostname="f")
        @pytest.mark.parametrize("number", range(5))
        def test_many(number): pass

        @pytest.mark.sandbox(hostname="g")
        def test_drives(sandbox): assert sandbox.run(["false"]).returncode == 0
    """)
    result = pytester.runpytest_subprocess("-s", "-p", "no:cacheprovider")
    lines = [line for line in result.outlines if line.startswith(("STARTED", "FINISHED"))]
    assert lines == [
        "STARTED a True", "FINISHED test_passes call passed True",
        "STARTED b True", "FINISHED test_fails call failed True",
        "STARTED c True", "FINISHED test_dies call failed True",
        "STARTED d True", "FINISHED test_skips call skipped True",
        "STARTED e True", "FINISHED test_ends_badly teardown failed True",
        *[line for number in range(5) for line in ("STARTED f True", f"FINISHED test_many[{number}] call passed True")],
        "STARTED g True", "FINISHED test_drives call failed True"]


def test_a_spec_with_options() -> None:
    spec = SandboxSpec().with_options(memory="1K", hostname="x")
    assert (spec.memory, spec.hostname, spec.given) == (1024, "x", {"memory", "hostname"})
    with pytest.raises(SandboxUsageError, match="did you mean 'memory'"):
        spec.with_options(memroy="1K")
