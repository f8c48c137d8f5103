"""Images as a suite uses them: the lock file beside its configuration, without a network, the overridable fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakeregistry import FakeRegistry
from imagemaker import file, image, layer, write_layout

from pytest_sandbox.image.lockfile import LockFile, look_up

pytestmark = pytest.mark.usefixtures("all_plugins")

ONE, TWO = (image([layer([file("which", name)])]) for name in ("one", "two"))
READS = """
    def test_which(sandbox):
        print("it is", sandbox.path("/which").read_text())
"""


@pytest.fixture(autouse=True)
def cache(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(pytester.path / "cache"))


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put("app", "1", ONE)
        yield registry


def test_a_locked_tag_that_moved_is_not_followed_and_not_asked_for(pytester: pytest.Pytester,
                                                                   registry: FakeRegistry) -> None:
    reference = f"{registry.host}/app:1"
    pytester.makeini(f"[pytest]\nsandbox_image = {reference}")
    pytester.mkdir("sub")
    pytester.makepyfile(**{"sub/test_it": READS})
    LockFile(dict([look_up(reference)])).write(pytester.path / "sandbox.lock")
    registry.put("app", "1", TWO)
    registry.seen.clear()
    result = pytester.runpytest_subprocess("-s", "sub")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*it is one*"])
    assert registry.paths("manifests") == [f"/v2/app/manifests/{ONE.digest}"]
    registry.seen.clear()
    pytester.runpytest_subprocess("-s", "sub", "--sandbox-offline").stdout.fnmatch_lines(["*it is one*"])
    assert registry.seen == []
    (pytester.path / "sandbox.lock").unlink()
    pytester.runpytest_subprocess("-s", "sub").stdout.fnmatch_lines(["*it is two*"])


def test_offline_asks_nobody(pytester: pytest.Pytester, registry: FakeRegistry) -> None:
    pytester.makepyfile(READS)
    result = pytester.runpytest_subprocess("--sandbox-offline", f"--sandbox-image={registry.host}/app:1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ImageNotFound: image '*/app:1' is not in the store*registries are not asked*"])
    assert registry.seen == []


def test_a_broken_lock_file_is_an_error(pytester: pytest.Pytester, registry: FakeRegistry) -> None:
    (pytester.path / "sandbox.lock").write_text("{}")
    pytester.makepyfile(READS)
    result = pytester.runpytest_subprocess(f"--sandbox-image={registry.host}/app:1")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ImageError: lock file '*sandbox.lock' cannot be used*"])


def test_a_conftest_hands_an_image_to_its_tests(pytester: pytest.Pytester) -> None:
    write_layout(pytester.path / "layout", ONE)
    pytester.makeconftest("""
        import pytest
        @pytest.fixture(scope="session")
        def sandbox_image():
            return "oci:layout"
    """)
    pytester.makepyfile(READS)
    result = pytester.runpytest_subprocess("-s")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*it is one*"])


PREPARED = """
    import os, time
    import pytest

    def prepare(sandbox):
        with open("made", "a") as log:
            log.write("once\\n")
        time.sleep(0.2)
        sandbox.path("/etc/prepared").write_text("yes")

    @pytest.fixture(scope="session")
    def sandbox_image(sandbox_factory):
        return sandbox_factory.prepared(prepare, user="root")
"""
USES = """
    import pytest
    pytestmark = pytest.mark.sandbox(user="root")

    @pytest.mark.parametrize("number", range(6))
    def test_it(sandbox, number):
        assert sandbox.path("/etc/prepared").read_text() == "yes"
        assert sandbox.changes() == []
        sandbox.run(["rm", "/etc/prepared"], check=True)
"""


def test_a_state_is_prepared_once_a_run(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(PREPARED)
    pytester.makepyfile(USES)
    pytester.runpytest_subprocess().assert_outcomes(passed=6)
    assert (pytester.path / "made").read_text() == "once\n"


def test_a_state_is_prepared_once_for_all_workers(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makeconftest(PREPARED)
    pytester.makepyfile(USES)
    for count in (1, 2):
        result = pytester.runpytest_subprocess("-n", "2")
        result.assert_outcomes(passed=6)
        assert (pytester.path / "made").read_text() == "once\n" * count


def test_a_preparation_that_fails_is_told(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(PREPARED.replace('sandbox.path("/etc', 'sandbox.path("/no/etc'))
    pytester.makepyfile(USES)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=6)
    result.stdout.fnmatch_lines(["*FileNotFoundError*"])


@pytest.mark.parametrize("name", ["host:prepared", "an object"])
def test_a_marked_test_runs_on_a_state_of_the_host(pytester: pytest.Pytester, name: str) -> None:
    pytester.makepyfile(f"""
        from pathlib import Path
        import pytest
        from pytest_sandbox import Sandbox, inside

        with Sandbox(user="root") as first:
            first.path("/etc/prepared").write_text("yes")
            image = first.commit({name!r} if ":" in {name!r} else None)

        @pytest.mark.sandbox(image=image, user="root")
        def test_inside():
            assert inside()
            assert Path("/etc/prepared").read_text() == "yes"

        def test_outside():
            assert not Path("/etc/prepared").exists()
    """)
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


def test_a_failed_comparison_of_changes_names_the_paths(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.sandbox(user="root")
        def test_it(sandbox):
            sandbox.path("/opt/new").write_text("x")
            sandbox.path("/etc/passwd").write_text("")
            assert sandbox.changes() == [("/etc/gone", "deleted"), ("/etc/passwd", "metadata")]

        @pytest.mark.sandbox(user="root")
        def test_set(sandbox):
            sandbox.path("/opt/new").write_text("x")
            assert set(sandbox.changes()) == set()

        def test_other_lists():
            assert [("a", "b")] == [("c", "d")]
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines([
        "E*the sandbox's changes are not what was expected",
        "E*missing:      deleted   /etc/gone",
        "E*other kind:   modified  /etc/passwd (expected: metadata)",
        "E*not expected: added     /opt/new",
    ])
    result.stdout.fnmatch_lines(["E*At index 0 diff: ('a', 'b') != ('c', 'd')"])


def test_the_report_of_a_failed_test_says_what_it_had_changed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.sandbox(user="root")
        def test_it(sandbox):
            for number in range(50):
                sandbox.path(f"/opt/{number:02}").write_text("x")
            assert 0

        @pytest.mark.sandbox(user="root")
        def test_nothing(sandbox):
            assert 0

        @pytest.mark.sandbox(user="root")
        def test_closed(sandbox):
            sandbox.path("/opt/x").write_text("x")
            sandbox.close()
            assert 0
    """)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*- Changes in the sandbox -*", "added     /opt/00", "added     /opt/39",
                                 "and 10 more"])
    assert result.stdout.str().count("Changes in the sandbox") == 1
