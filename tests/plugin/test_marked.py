"""A marked test's body runs inside, its higher-scoped fixtures outside, and nothing of it remains."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]


def test_the_body_runs_in_namespaces_of_its_own_and_leaves_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"""
        import os, socket
        from pathlib import Path
        import pytest
        import pytest_sandbox

        NAMES = ("mnt", "pid", "net", "ipc", "uts")
        OUTSIDE = {{name: os.readlink(f"/proc/self/ns/{{name}}") for name in NAMES}}
        FILE = Path({str(pytester.path)!r}, "written-inside")

        @pytest.mark.sandbox
        def test_inside():
            assert pytest_sandbox.inside()
            for name in NAMES:
                assert os.readlink(f"/proc/self/ns/{{name}}") != OUTSIDE[name], name
            assert socket.gethostname() == "sandbox"
            assert Path.cwd() == Path({str(pytester.path)!r})
            FILE.write_text("x")

        def test_outside():
            assert not pytest_sandbox.inside()
            for name in NAMES:
                assert os.readlink(f"/proc/self/ns/{{name}}") == OUTSIDE[name], name
            assert not FILE.exists()
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


@pytest.mark.parametrize(("mode", "where"), [("marked", "in out"), ("all", "in in"), ("off", "out out")])
def test_modes(pytester: pytest.Pytester, mode: str, where: str) -> None:
    pytester.makepyfile("""
        import pytest, pytest_sandbox
        @pytest.mark.sandbox
        def test_marked(): print("WHERE marked", pytest_sandbox.inside())
        def test_plain(): print("WHERE plain", pytest_sandbox.inside())
    """)
    result = pytester.runpytest_subprocess(f"--sandbox={mode}", "-rP")
    result.assert_outcomes(passed=2)
    seen = ["in" if line.endswith("True") else "out" for line in result.outlines if line.startswith("WHERE")]
    assert " ".join(seen) == where


def test_a_test_that_requests_the_fixture_stays_outside(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest, pytest_sandbox

        @pytest.fixture
        def wrapped(sandbox):
            return sandbox

        @pytest.fixture(scope="session")
        def service(sandbox_factory):
            return sandbox_factory(hostname="service")

        @pytest.mark.sandbox(hostname="described")
        def test_driven(sandbox):
            assert not pytest_sandbox.inside()
            assert sandbox.run(["hostname"]).stdout == "described\\n"

        def test_through_a_fixture(wrapped):
            assert not pytest_sandbox.inside()
            assert wrapped.run(["hostname"]).stdout == "sandbox\\n"

        def test_factory(sandbox_factory):
            assert not pytest_sandbox.inside()

        def test_service(service):
            assert not pytest_sandbox.inside()

        @pytest.mark.sandbox
        def test_inside_beside_a_service(service):
            assert pytest_sandbox.inside()
    """)
    pytester.runpytest_subprocess("--sandbox=all").assert_outcomes(passed=5)


def test_sandbox_image_can_be_overridden(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.fixture(scope="session")
        def sandbox_image():
            return "rootfs:/no/such/root"
        def test_driven(sandbox): pass
        @pytest.mark.sandbox(image="host")
        def test_named(sandbox): pass
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*ImageNotFound*rootfs:/no/such/root*"])


def test_fixtures_of_higher_scope_are_set_up_once_outside(pytester: pytest.Pytester,
                                                          fixture_log: Callable[[], list[str]]) -> None:
    pytester.makepyfile("""
        import os, pytest
        PARENT = os.getpid()

        def made(scope):
            @pytest.fixture(scope=scope)
            def fixture(log):
                place = "out" if os.getpid() == PARENT else "in"
                log(f"{scope} up {place}")
                yield object()
                log(f"{scope} down {place}")
            return fixture

        session, package, module, klass, function = map(made, ("session", "package", "module", "class", "function"))

        class TestIt:
            def test_one(self, session, package, module, klass, function, log): log("one")
            def test_two(self, session, package, module, klass, function, log): log("two")
        def test_three(session, module, function, log): log("three")
    """)
    pytester.runpytest_subprocess("--sandbox=all").assert_outcomes(passed=3)
    assert fixture_log() == [
        "session up out", "package up out", "module up out", "class up out",
        "function up in", "one", "function down in", "function up in", "two", "function down in", "class down out",
        "function up in", "three", "function down in", "module down out", "package down out", "session down out",
    ]


def test_a_failing_test_leaves_no_sandbox_behind(pytester: pytest.Pytester, leak_check: None) -> None:
    pytester.makepyfile("""
        import os, signal, subprocess, pytest
        pytestmark = pytest.mark.sandbox
        def test_fails(): assert 0
        def test_daemon():
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
        def test_stubborn_daemon():
            if os.fork() == 0:
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.Signals)
                while True:
                    signal.pause()
        def test_dies(): os.kill(os.getpid(), signal.SIGKILL)
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=2, failed=2)


@pytest.mark.parametrize(("choice", "outcome"), [("error", {"errors": 1}), ("skip", {"skipped": 1}),
                                                 ("run", {"passed": 1, "warnings": 1})])
def test_a_host_without_sandboxes(pytester: pytest.Pytester, choice: str, outcome: dict[str, int]) -> None:
    # Only the answer of Sandbox.start is replaced: no host takes its namespaces away while a test runs.
    pytester.makeconftest("""
        import pytest_sandbox.sandbox
        from pytest_sandbox import SandboxUnavailable
        def start(self):
            raise SandboxUnavailable("no user namespaces", feature="userns", why="a sysctl forbids them",
                                     remedy="Ask root.")
        pytest_sandbox.sandbox.Sandbox.start = start
    """)
    pytester.makepyfile("""
        import pytest, pytest_sandbox
        @pytest.mark.sandbox
        def test_one(tmp_path):
            assert not pytest_sandbox.inside()
    """)
    result = pytester.runpytest_subprocess(f"--sandbox-unavailable={choice}", "-ra")
    result.assert_outcomes(**outcome)
    result.stdout.fnmatch_lines(["*no user namespaces: a sysctl forbids them. Ask root.*"])
    assert not [line for line in result.outlines if "pytest_sandbox/plugin" in line]


def test_another_system_than_linux(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import sys
        def pytest_collection_finish():
            sys.platform = "darwin"
        def pytest_sessionfinish():
            sys.platform = "linux"  # other plugins' summaries believe it too
    """)
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox
        def test_one(): pass
        def test_two(sandbox): pass
        def test_three(): pass
    """)
    result = pytester.runpytest_subprocess("--sandbox-unavailable=skip", "-rs")
    result.assert_outcomes(skipped=2, passed=1)
    result.stdout.fnmatch_lines(["SKIPPED * SandboxUnavailable: this host cannot run sandboxes: it runs darwin*"])


def test_an_image_that_does_not_exist(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(image="rootfs:/no/such/root")
        def test_one(sandbox): pass
        @pytest.mark.sandbox(mounts=["/no/such/source:/mnt"])
        def test_two(): pass
        @pytest.mark.sandbox(image="rootfs:/no/such/root")
        def test_three(): pass
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines([
        "*ImageNotFound: *rootfs:/no/such/root*", "SandboxStartError: */no/such/source*",
        "*ImageNotFound: *rootfs:/no/such/root*"])


def test_a_plugin_that_drives_the_phases_itself_is_refused(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest
        from _pytest.runner import CallInfo
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_protocol(item, nextitem):
            for when in ("setup", "call", "teardown"):
                kwds = {"nextitem": nextitem} if when == "teardown" else {}
                hook = getattr(item.ihook, f"pytest_runtest_{when}")
                call = CallInfo.from_call(lambda: hook(item=item, **kwds), when)
                report = item.ihook.pytest_runtest_makereport(item=item, call=call)
                item.ihook.pytest_runtest_logreport(report=report)
            return True
    """)
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_subprocess("--sandbox=all")
    result.stdout.fnmatch_lines(["*test_one is to run in a sandbox, but a plugin sets it up without*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_working_directory_that_is_missing_fails_each_test_clearly(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(workdir="/no/such/place")
        @pytest.mark.parametrize("number", range(5))
        def test_it(number): pass
        @pytest.mark.sandbox
        def test_after(): pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=5)
    said = [line for line in result.outlines if "no such directory to start the test in" in line and line[0] != "E"]
    assert len(said) >= 5
    assert all("'/no/such/place'" in line for line in said)


def test_garbage_in_cycles_is_its_tests(pytester: pytest.Pytester, boxed: Callable[..., pytest.RunResult]) -> None:
    pytester.makepyfile("""
        class Cycle:
            def __init__(self):
                self.itself = self
            def __del__(self):
                raise ValueError("from a cycle")
        def test_leaves_one():
            Cycle()
        def test_leaves_one_among_many():
            Cycle()
            assert len([[] for _ in range(1500)]) == 1500  # Python collects it meanwhile
        def test_leaves_none(): pass
    """)
    result = boxed("-W", "error::pytest.PytestUnraisableExceptionWarning", "-rA")
    result.assert_outcomes(passed=2, failed=1, errors=1)
    result.stdout.fnmatch_lines_random(["FAILED *::test_leaves_one_among_many - *", "ERROR *::test_leaves_one - *"])


@pytest.mark.usefixtures("all_plugins")  # which pytester, inside, loads, too
def test_a_run_within_a_run_leaves_its_sandboxes_alone(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("pytest_plugins = ['pytester']")
    pytester.makepyfile("""
        def test_outer(sandbox_factory, pytester):
            with sandbox_factory() as sandbox:
                pytester.makepyfile("def test_inner(sandbox): assert sandbox.run(['true']).returncode == 0")
                pytester.runpytest_inprocess().assert_outcomes(passed=1)
                assert sandbox.run(["true"]).returncode == 0
            with sandbox_factory() as sandbox:
                assert sandbox.run(["true"]).returncode == 0
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
