"""The debugger works inside, on the terminal, and reports appear in the order of a plain run."""

from __future__ import annotations

import sys
from typing import Any

import pytest

pexpect: Any = pytest.importorskip("pexpect")

SUITE = """
    import pytest
    @pytest.fixture
    def function():
        yield
        print("function down")
    def test_fails(function):
        local = 41
        print("hello")
        assert local == 0
    def test_stops(function):
        local = 7
        breakpoint()
        assert local == 8
    def test_after(): pass
    def test_pytest_s_own(function):
        local = 7
        pytest.set_trace()
        assert local == 7
"""


def session(pytester: pytest.Pytester, mode: str, args: list[str], typed: list[str]) -> list[str]:
    """What the terminal showed of a run with somebody at it, who types a line at each prompt."""
    from .conftest import normal

    child = pexpect.spawn(sys.executable, ["-m", "pytest", "-p", "no:cacheprovider", f"--sandbox={mode}", *args],
                          cwd=str(pytester.path), timeout=15, encoding="utf-8", dimensions=(50, 100))
    shown = ""
    for line in typed:
        child.expect_exact("(Pdb) ")
        shown += child.before + child.after
        if line == "\x03":
            child.send(line)
        else:
            child.sendline(line)
    child.expect(pexpect.EOF)
    shown += child.before
    child.close()
    return [normal(line.rstrip()) for line in shown.splitlines() if not line.startswith(("sandbox: ", "rootdir:"))]


@pytest.mark.parametrize(("args", "typed"), [
    (["--pdb"], ["p local + 1000", "c", "p local + 1000", "c", "c", "c"]),
    (["--pdb", "-k", "fails"], ["\x03", "p local", "q"]),
    (["-k", "stops"], ["local = 8", "c"]),
    (["-k", "s_own"], ["up", "p session", "down", "p local", "c"]),
    (["--trace", "-k", "after"], ["c"]),
    (["-s", "-v", "-k", "fails"], []),
], ids=["pdb", "ctrl-c", "breakpoint", "set_trace", "trace", "live"])
def test_the_terminal_is_that_of_the_plain_run(pytester: pytest.Pytester, args: list[str],
                                               typed: list[str]) -> None:
    pytester.makepyfile(SUITE)
    assert session(pytester, "all", args, typed) == session(pytester, "off", args, typed)
