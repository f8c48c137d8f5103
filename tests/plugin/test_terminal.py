"""What a test writes by pytest's own reporter, and by streams that it had at import, is where it is in a plain run."""

from __future__ import annotations

import re

import pytest

_OPTIONS = [(), ("-v",), ("-s",), ("-vs",), ("--log-cli-level=INFO",), ("--setup-show",),
            ("--capture=tee-sys",), ("-v", "--color=yes")]


@pytest.mark.parametrize("is_buffered", [False, True], ids=["as to a terminal", "as to a file"])
@pytest.mark.parametrize("options", _OPTIONS, ids=" ".join)
def test_lines_by_the_reporter(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch,
                               options: tuple[str, ...], is_buffered: bool) -> None:
    """To a file, the reporter's lines pass by the capture: what is written in a teardown precedes the result then."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PYTHONUNBUFFERED", "" if is_buffered else "1")
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
        def test_around(AROUND): pass
        def test_last(): pass
    """.replace("AROUND", "" if is_buffered else "around"))
    runs = [pytester.runpytest_subprocess("-p", "no:randomly", f"--sandbox={mode}", *options).outlines
            for mode in ("all", "off")]
    seen = [[re.sub(r" in [0-9.]+s.*", "", line) for line in out if not line.startswith("sandbox: ")] for out in runs]
    assert seen[0] == seen[1]
    if {"-s", "-vs", "--capture=tee-sys"}.intersection(options) or is_buffered:
        assert "\n".join(seen[0]).count("LINE") == (4 if is_buffered else 6)


@pytest.mark.parametrize("args", [(), ("--capture=sys",)], ids=" ".join)
def test_a_handler_made_at_import_writes_where_its_stream_does(pytester: pytest.Pytester,
                                                               args: tuple[str, ...]) -> None:
    pytester.makepyfile("""
        import logging, os, sys
        import pytest
        logger = logging.getLogger("early")
        logger.addHandler(logging.StreamHandler(sys.stdout))
        early = sys.stderr

        @pytest.mark.parametrize("number", range(2))
        def test_fails(number):
            logger.warning("by the handler")
            print("printed")
            print("by a name of its own", file=early)
            assert sys.stderr is early
            assert 0

        def test_dies():
            logger.warning("before the end")
            if pytest.importorskip("pytest_sandbox").inside():
                os._exit(3)
            assert 0
    """)

    def parts(*more: str) -> list[list[str]]:
        out = pytester.runpytest_subprocess("-p", "no:randomly", "-p", "no:logging", *args, *more).outlines
        text = "\n".join(out)
        return [re.findall(r"^(?:by .*|printed|before the end)$", one, re.MULTILINE)
                for one in re.split(r"^_{3,} test_.* _{3,}$", text, flags=re.MULTILINE)[1:]]

    sandboxed = parts("--sandbox=all")
    assert sandboxed == parts("--sandbox=off")
    assert sandboxed[:2] == [["by the handler", "printed", "by a name of its own"]] * 2
    assert sandboxed[2] == ["before the end"]
