"""A guest whose Python is built on another libc than the caller's, as Alpine's are: ``tox run -e guests``."""

from __future__ import annotations

import os

import pytest

ROOT = os.environ.get("SANDBOX_TEST_MUSL", "")


@pytest.mark.skipif(not ROOT, reason="SANDBOX_TEST_MUSL names no root: see tests/guests/muslpython.py")
def test_a_python_of_another_libc(pytester: pytest.Pytester, leak_check: None) -> None:
    pytester.makepyfile(f"""
        import ctypes, os, sys
        from pathlib import Path
        import pytest
        pytestmark = pytest.mark.sandbox(image="rootfs:{ROOT}")

        @pytest.fixture(scope="session")
        def made(): return sys.implementation._multiarch

        @pytest.mark.parametrize("number", [1, 2])
        def test_libc(made, number, tmp_path):
            maps = Path("/proc/self/maps").read_text()
            assert made.endswith("-musl") and "ld-musl" in maps and "libc.so.6" not in maps
            assert not Path("/new").exists()
            Path("/new").write_text("")
            (tmp_path / "file").write_text("")

        def test_fails():
            assert {{"a": 1}} == {{"a": 2}}

        def test_dies():
            os.abort()

        @pytest.mark.sandbox(timeout=1)
        def test_hangs():
            while True: pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines_random([
        "*Differing items:*", "*SandboxCrashed: *SIGABRT*", "Fatal Python error: Aborted",
        "*TimeLimitExceeded*spinning*", "*in test_hangs"])
