"""Command lines of the caller's that guests must follow: ``tox run -e guests``."""

from __future__ import annotations

import importlib.util
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("pexpect") is None, reason="pexpect is not installed")
def test_the_debugger_in_there(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_debug="""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_fails():
            where = open("/etc/os-release").read()
            assert where == "elsewhere"
        @pytest.mark.sandbox(image=FIRST)
        def test_next(): pass
    """)
    child = suite.spawn(f"{sys.executable} -m pytest -p no:cacheprovider --pdb", expect_timeout=60)
    child.expect("Pdb")
    child.sendline("p 'saw', where")
    child.expect(r"\('saw', 'ID=first")
    child.sendline("c")
    child.expect("1 failed, 1 passed")
    child.wait()
    child.close()
    child.logfile.close()
