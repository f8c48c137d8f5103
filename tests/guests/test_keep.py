"""``--sandbox-keep`` of tests whose body runs in an image's own Python: ``tox run -e guests``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_sandbox import Sandbox, planning
from pytest_sandbox.keeping.opening import kept_image
from pytest_sandbox.keeping.shelf import Shelf


def test_what_is_kept_stands_on_the_guests_files(pytester: pytest.Pytester, first_root: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    suite = pytester
    suite.makepyfile(images=f"FIRST = 'rootfs:{first_root}'")
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(suite.path / "cache"))
    suite.makepyfile(test_keep="""
        import os, pytest
        from pathlib import Path
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)

        @pytest.fixture(scope="session")
        def session():
            Path("/etc/of-the-guest").write_text("session")
            Path("/etc/passwd").unlink()
        @pytest.fixture
        def cleans():
            yield
            Path("/etc/of-the-test").unlink()

        def test_fails(session, cleans):
            Path("/etc/of-the-test").write_text("call")
            Path("data.txt").write_text("beside the tests")
            assert not Path("/etc/of-the-guest").exists()
        def test_dies(session):
            Path("/etc/of-the-test").write_text("before it died")
            os.abort()
        def test_passes(session): pass
    """)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", "--sandbox-keep=failed")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["pytest-sandbox shell *test_keep.py::test_fails",
                                 "pytest-sandbox shell *test_keep.py::test_dies"])
    kept = {one.record.nodeid.rpartition("::")[2]: one for one in Shelf().entries()}
    assert set(kept) == {"test_fails", "test_dies"}
    for name, text in (("test_fails", "call"), ("test_dies", "before it died")):
        spec = kept[name].record.spec()
        assert not spec.mounts
        with Sandbox(image=kept_image(kept[name], spec)) as sandbox:
            assert sandbox.path("/etc/of-the-test").read_text() == text
            assert sandbox.path("/etc/of-the-guest").read_text() == "session"
            assert not sandbox.path("/etc/passwd").exists()
            assert sandbox.path("/etc/os-release").read_text() == "ID=first\n"
            assert sandbox.path(f"{suite.path}/data.txt").exists() == (name == "test_fails")
    again = subprocess.run([sys.executable, "-m", "pytest_sandbox.cli", "replay", kept["test_fails"].record.id],
                           capture_output=True, text=True, cwd=suite.path, check=False)
    assert "1 failed" in again.stdout, again.stdout + again.stderr
    assert not Path("/etc/of-the-test").exists()
    planning.release_images()
