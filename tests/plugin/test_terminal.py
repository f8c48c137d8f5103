"""What a test writes by pytest's own reporter stands where it does in a plain run."""

from __future__ import annotations

import re

import pytest

_OPTIONS = [(), ("-v",), ("-s",), ("-vs",), ("--log-cli-level=INFO",), ("--setup-show",),
            ("--capture=tee-sys",), ("-v", "--color=yes")]


@pytest.mark.parametrize("options", _OPTIONS, ids=" ".join)
def test_lines_by_the_reporter(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch,
                               options: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    pytester.makepyfile("""
        import pytest

        @pytest.fixture
        def reporter(request):
            return request.config.pluginmanager.get_plugin("terminalreporter")

        @pytest.fixture
        def around(reporter):
            reporter.write_line("LINE before")
            yield
            reporter.write_line("LINE after")

        def test_first(): pass
        def test_one(reporter): reporter.write_line("LINE one")
        def test_two(reporter):
            reporter.write_line("LINE two")
            reporter.write_line("LINE two, again")
        def test_prints(): print("printed")
        def test_three(reporter):
            reporter.ensure_newline()
            reporter.write_line("LINE three")
            print("and printed")
        def test_around(around): pass
        def test_last(): pass
    """)
    runs = [pytester.runpytest_subprocess("-p", "no:randomly", f"--sandbox={mode}", *options).outlines
            for mode in ("all", "off")]
    seen = [[re.sub(r" in [0-9.]+s.*", "", line) for line in out if not line.startswith("sandbox: ")] for out in runs]
    assert seen[0] == seen[1]
    assert ("\n".join(seen[0]).count("LINE") == 6) == (options in {("-s",), ("-vs",), ("--capture=tee-sys",)})
