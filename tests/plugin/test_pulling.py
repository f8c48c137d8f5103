"""What a run tells while its images come in: on a terminal, in a log, from workers; and that it is silent otherwise."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from fakeregistry import FakeRegistry
from imagemaker import file, image, layer

from pytest_sandbox.image.layout import Layout
from pytest_sandbox.image.locks import lock

pytestmark = pytest.mark.usefixtures("all_plugins")

APP = image([layer([file("which", "one")]), layer([file("more", "x" * 100_000)])], how="plain")
TESTS = """
    import pytest
    def test_before():
        print("before")
    @pytest.fixture
    def noisy():
        print("setting up")
    def test_which(noisy, sandbox):
        print("inside", sandbox.path("/which").read_text())
        assert {result}
"""
AT_ONCE = """
    from pytest_sandbox.plugin import pulling
    pulling.LIVE, pulling.LOG = (0, 0.01), (0, 0.01)
"""


@pytest.fixture(autouse=True)
def cache(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(pytester.path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put("app", "1", APP)
        yield registry


@pytest.fixture
def suite(pytester: pytest.Pytester, registry: FakeRegistry) -> str:
    """A test that needs an image, and a run that has something to say about it at once. Gives the image's option."""
    pytester.makepyfile(TESTS.format(result=True))
    pytester.makeconftest(AT_ONCE)
    return f"--sandbox-image={registry.host}/app:1"


def test_what_is_quick_is_not_told(pytester: pytest.Pytester, suite: str) -> None:
    pytester.makeconftest("""
        from pytest_sandbox.plugin import pulling
        pulling.LIVE = pulling.LOG = (3600, 3600)
    """)
    result = pytester.runpytest_subprocess(suite)
    result.assert_outcomes(passed=2)
    assert "sandbox:" not in result.stdout.str() + result.stderr.str()


def test_a_log_says_what_is_pulled_and_that_it_is_there(pytester: pytest.Pytester, suite: str) -> None:
    result = pytester.runpytest_subprocess(suite)
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines_random([
        r"sandbox: pulling 127\.0\.0\.1:\d+/app:1", r"sandbox: pulled 127\.0\.0\.1:\d+/app:1, 10\d\.\d KiB, in \d+ s"])
    assert "\r" not in result.stdout.str()
    assert all(line.startswith("sandbox: ") for line in result.outlines if "sandbox: " in line)
    again = pytester.runpytest_subprocess(suite)
    assert "sandbox:" not in again.stdout.str(), "it is in the store now"


def test_it_is_no_part_of_what_the_test_prints(pytester: pytest.Pytester, suite: str) -> None:
    pytester.makepyfile(TESTS.format(result=False))
    out = pytester.runpytest_subprocess(suite).stdout.str()
    shown = out.partition("Captured stdout setup")[2]
    assert "setting up" in shown
    assert "inside one" in shown
    assert "sandbox: pull" not in shown
    assert "before" not in out.partition("Captured stdout")[0].replace("test_before", "")


@pytest.mark.parametrize("quiet", ["-q", "-qq"])
def test_quiet_logs_are_quiet(pytester: pytest.Pytester, suite: str, quiet: str) -> None:
    result = pytester.runpytest_subprocess(suite, quiet)
    assert result.ret == 0
    assert "sandbox:" not in result.stdout.str()


@pytest.mark.parametrize("options", ["", "-v", "-s", "-q", "--capture=sys"])
def test_a_terminal_has_one_line_that_stays_as_the_result(pytester: pytest.Pytester, suite: str, options: str,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    pexpect = pytest.importorskip("pexpect")
    monkeypatch.setenv("TERM", "xterm")
    child = pytester.spawn(f"{sys.executable} -m pytest {suite} {options}")
    child.expect(r"\rsandbox: pulling 127\.0\.0\.1:\d+/app:1")
    child.expect(r"\rsandbox: pulled 127\.0\.0\.1:\d+/app:1, 10\d\.\d KiB, in \d+ s")
    child.expect("2 passed")
    child.expect_exact(pexpect.EOF)
    assert not re.search(r"in \d+ s *\.", child.before.decode()), "the result has a line of its own"


def test_a_very_quiet_terminal_has_none(pytester: pytest.Pytester, suite: str) -> None:
    pexpect = pytest.importorskip("pexpect")
    child = pytester.spawn(f"{sys.executable} -m pytest {suite} -qq")
    child.expect_exact(pexpect.EOF)
    assert b"sandbox:" not in child.before


def test_a_pull_that_fails_says_so_where_it_was_told(pytester: pytest.Pytester, suite: str,
                                                     registry: FakeRegistry) -> None:
    registry.fault("blobs", times=99, replace=b"short")
    result = pytester.runpytest_subprocess(suite)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.re_match_lines_random([r"sandbox: failed: pulling 127\.0\.0\.1:\d+/app:1 after \d+ s"])


def test_who_waits_for_another_process_says_for_what(pytester: pytest.Pytester, suite: str,
                                                     registry: FakeRegistry) -> None:
    """The lock is ours until the run has told that it waits."""
    layout = Layout(pytester.path / "cache")
    diff_id = hashlib.sha256(APP.layers[0]).hexdigest()
    held = lock(layout.staging(f"{diff_id}.lock"), exclusive=True, create=True)
    assert held is not None
    guard = threading.Timer(60, held.remove)
    guard.start()
    lines = []
    with subprocess.Popen([sys.executable, "-m", "pytest", suite, "-p", "no:cacheprovider"], cwd=pytester.path,
                          stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line)
            if f"waiting for layer 1/2 {diff_id[:12]}: another process is unpacking it" in line:
                held.remove()
    guard.cancel()
    guard.join()
    assert child.returncode == 0
    assert any("waiting for layer" in line for line in lines)
    assert any("sandbox: pulled" in line for line in lines)


def test_one_worker_tells_at_a_time(pytester: pytest.Pytester, suite: str) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(**{f"test_{number}": TESTS.format(result=True) for number in range(4)})
    result = pytester.runpytest_subprocess(suite, "-n4", "--dist=loadfile")
    assert result.ret == 0
    told = [line for line in result.stderr.lines if "sandbox:" in line]
    assert told
    assert all(re.fullmatch(r"\[gw\d\] sandbox: pull(ing|ed) .*", line) for line in told)
    workers = [line[:5] for line in told]
    assert [*dict.fromkeys(workers)] == [one for at, one in enumerate(workers) if at == 0 or workers[at - 1] != one]
    assert "sandbox:" not in result.stdout.str()


def test_quiet_workers_are_quiet(pytester: pytest.Pytester, suite: str) -> None:
    pytest.importorskip("xdist")
    result = pytester.runpytest_subprocess(suite, "-n2", "-q")
    assert result.ret == 0
    assert "sandbox:" not in result.stdout.str() + result.stderr.str()


@pytest.mark.skipif(importlib.util.find_spec("dockerfile") is None,
                    reason="the parser is not installed: pip install pytest-sandbox[build]")
def test_a_build_says_which_step_it_is_at(pytester: pytest.Pytester, registry: FakeRegistry) -> None:
    pytester.makeconftest(AT_ONCE)
    pytester.makepyfile("def test_it(sandbox): assert sandbox.path('/etc/made').read_text() == 'x'")
    (pytester.path / "Containerfile").write_text(
        f"FROM {registry.host}/app:1\n" + "".join(f"COPY x /etc/{name}\n" for name in ("one", "two", "made")))
    (pytester.path / "x").write_text("x")
    result = pytester.runpytest_subprocess("--sandbox-image=containerfile:.")
    result.assert_outcomes(passed=1)
    result.stdout.re_match_lines_random([r"sandbox: building containerfile:\.: .*Containerfile:\d: (FROM|COPY) .*",
                                         r"sandbox: built containerfile:\., .* in \d+ s"])
