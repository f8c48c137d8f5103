"""What a test replaces, as tests of programs do, the plugin's own code in that test's process goes without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]


def test_functions_that_are_replaced_while_reports_are_sent(pytester: pytest.Pytester, boxed: Run) -> None:
    pytester.makepyfile("""
        import builtins, gc, json, linecache, os, signal, threading, warnings
        import pytest

        NAMES = {os: ("write", "_exit", "getpid", "getuid", "close", "fdopen", "fork"), json: ("loads", "dumps"),
                 signal: ("signal", "getsignal"), threading: ("current_thread", "get_ident"), gc: ("collect",),
                 linecache: ("getline",), builtins: ("open", "print")}

        def replacement(*args, **kwargs):
            raise RuntimeError("this one is the test's")

        @pytest.mark.parametrize("module", NAMES, ids=lambda module: module.__name__)
        @pytest.mark.parametrize("fails", [False, True])
        def test_it(monkeypatch, module, fails):
            print("printed before")
            warnings.warn("warned before")
            for name in NAMES[module]:
                monkeypatch.setattr(module, name, replacement)
            assert not fails or module is linecache  # pytest shows no failure without it
    """)
    result = boxed("-rA", "-p", "no:randomly")
    result.assert_outcomes(passed=8, failed=6, warnings=14)
    assert result.outlines.count("printed before") == 14


def test_functions_that_stay_replaced(pytester: pytest.Pytester, boxed: Run) -> None:
    pytester.makepyfile("""
        import json, os, signal

        def test_replaces():
            os.write = os._exit = os.getpid = os.stat = json.loads = json.dumps = signal.signal = None

        def test_after():
            assert os.getpid()
    """)
    boxed().assert_outcomes(passed=2)
