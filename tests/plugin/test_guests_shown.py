"""What test bodies in an image's own Python show, log and leave, beside a run without images."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .test_guests import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes are made of Linux namespaces")


@pytest.mark.parametrize("option", ["--capture=fd", "--capture=sys", "-s"])
def test_what_is_shown_past_capturing_is_seen_once(suite: pytest.Pytester, option: str) -> None:
    suite.makepyfile(test_shown="""
        import os, sys
        import pytest
        from images import FIRST

        @pytest.fixture(scope="module")
        def module_wide(pytestconfig):
            show("module set up")
            yield
            show("module torn down")

        def show(text):
            print(f"{text} in {open('/etc/os-release').read().strip()}")

        @pytest.mark.sandbox(image=FIRST)
        def test_one(module_wide, capsys):
            print("captured one")
            with capsys.disabled():
                show("one")
                os.write(1, b"written\\n")
                print("to stderr", file=sys.stderr)
            if os.isatty(0):
                show("a terminal")

        @pytest.mark.sandbox(image=FIRST)
        def test_two(module_wide, capsys):
            with capsys.disabled():
                show("two")
            assert 0
    """)
    result = run(suite, option, "-v")
    result.assert_outcomes(passed=1, failed=1)
    lines = "\n".join(result.outlines)
    for text in ("one in ID=first", "two in ID=first"):
        assert lines.count(text) == 1, lines
    assert lines.index("one in ID=first") < lines.index("two in ID=first") < lines.index("= FAILURES")
    assert lines.count("written") == 1
    assert result.errlines.count("to stderr") == 1
    assert ("captured one" in lines) == (option == "-s")
    assert ("module set up" in lines) == (option == "-s")


def test_live_logs_and_the_log_file_have_what_is_logged_in_an_image(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_logs="""
        import logging
        import pytest
        from images import FIRST

        @pytest.fixture(scope="module")
        def module_wide():
            logging.warning("module set up")
            yield
            logging.warning("module torn down")

        @pytest.fixture
        def own():
            logging.warning("own set up")

        @pytest.mark.sandbox(image=FIRST)
        def test_one(module_wide, own):
            logging.info("in the body")
            logging.debug("too little")

        def test_outside():
            logging.info("outside")
    """)
    result = run(suite, "--log-cli-level=INFO", "--log-file=run.log", "--log-file-level=INFO")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([
        "test_logs.py::test_one *", "*- live log setup -*", "WARNING *module set up", "WARNING *own set up",
        "*- live log call -*", "INFO *in the body", "PASSED*", "*- live log teardown -*", "WARNING *module torn down",
        "test_logs.py::test_outside *", "*- live log call -*", "INFO *outside", "PASSED*"], consecutive=False)
    assert result.stdout.str().count("live log setup") == 1, "both of its parts are under one heading"
    assert "too little" not in result.stdout.str()
    logged = [" ".join(line.split()[2:]) for line in (suite.path / "run.log").read_text().splitlines()]
    assert logged == ["module set up", "own set up", "in the body", "module torn down", "outside"]


@pytest.mark.parametrize("option", ["--setup-show", "--setup-only", "--setup-plan"])
def test_what_is_set_up_in_an_image_is_shown(suite: pytest.Pytester, option: str) -> None:
    suite.makepyfile(test_setup="""
        import pytest
        from images import FIRST

        @pytest.fixture(scope="module")
        def module_wide():
            yield

        @pytest.fixture
        def own(module_wide):
            yield

        @IMAGE
        def test_one(own):
            pass

        @IMAGE
        def test_two(own):
            pass
    """.replace("@IMAGE", "@pytest.mark.sandbox(image=FIRST)"))
    shown = [[line for line in run(suite, option, *more).outlines if line.startswith("  ") and "Warning" not in line]
             for more in ((), ("--sandbox=off",))]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 8


def test_maxfail_is_known_in_an_image(suite: pytest.Pytester) -> None:
    suite.makeconftest("""
        def pytest_runtest_teardown(item, nextitem):
            print("next is", nextitem)
    """)
    suite.makepyfile(test_two="""
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        def test_one(): assert 0
        def test_two(): pass
    """)
    result = run(suite, "-x", "-s")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*next is None"])


def test_a_guest_that_shows_without_end_is_bounded(suite: pytest.Pytester) -> None:
    """The size of what it fills is its own to set: here far more than there is."""
    suite.makepyfile(test_flood="""
        import os
        import pytest
        from images import FIRST

        @pytest.mark.sandbox(image=FIRST)
        def test_it(capfd):
            with capfd.disabled():
                os.ftruncate(1, 1 << 40)
                print("the end of it", flush=True)
    """)
    result = run(suite)
    result.assert_outcomes(passed=1)
    out = result.stdout.str()
    assert "bytes of output left out" in out
    assert "the end of it" in out
    assert len(out) < 20 << 20


def test_the_end_of_a_guest_leaves_the_folders_of_failed_tests(suite: pytest.Pytester, tmp_path: Path) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        def test_fails(tmp_path):
            (tmp_path / "left").write_text("")
            assert 0
        def test_passes(tmp_path):
            (tmp_path / "gone").write_text("")
    """)
    base = tmp_path / "base"
    base.mkdir()
    suite._monkeypatch.setenv("PYTEST_DEBUG_TEMPROOT", str(base))
    result = suite.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly",
                       "-otmp_path_retention_policy=failed", "-osandbox_persist=tmp_path")
    result.assert_outcomes(passed=1, failed=1)
    assert [one.name for one in base.rglob("left")] == ["left"]
    assert not list(base.rglob("gone"))
