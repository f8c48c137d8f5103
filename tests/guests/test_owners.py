"""Images that are directories of another user's. ``tox run -e guests``, as an ordinary user."""

from __future__ import annotations

import os

import pytest


@pytest.mark.skipif(os.geteuid() == 0, reason="every file's owner has an id in root's sandboxes")
def test_an_image_of_somebody_elses_is_refused_by_name(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image="rootfs:/usr")
        def test_of_root(): pass
        @pytest.mark.sandbox(image=FIRST)
        def test_of_ours(): open("/etc/os-release", "a").close()
    """)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*a test's body cannot run in image 'rootfs:/usr': the directory belongs to another "
                                 "user (uid 0)*tarball*"])
