"""Tests of the plugin run pytest on small suites, most of them twice: plainly and sandboxed, and compare."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass
class Both:
    """The same suite, run plainly and sandboxed."""

    plain: pytest.RunResult
    boxed: pytest.RunResult

    def lines(self, result: pytest.RunResult) -> list[str]:
        return [normal(line) for line in result.outlines if not line.startswith(("sandbox: all", "rootdir:"))]

    def assert_equal(self) -> None:
        """The terminal shows the same, line by line, but for times, addresses and process ids."""
        assert self.lines(self.boxed) == self.lines(self.plain)
        assert self.boxed.ret == self.plain.ret


def normal(line: str) -> str:
    line = re.sub(r"0x[0-9a-f]+", "0xADDRESS", line)
    line = re.sub(r"in \d+\.\d+s(?: \(\d+:\d+:\d+\))?", "in TIME", line)
    line = re.sub(r"\b\d+\.\d+s\b", "TIME", line)
    return re.sub(r"={3,}|-{3,}", "===", line)


@pytest.fixture
def all_plugins() -> None:
    """For tests about other plugins: the runs of pytest that they make load all that are installed."""


@pytest.fixture(autouse=True)
def few_plugins(request: pytest.FixtureRequest) -> None:
    """The runs of pytest that a test makes load our plugin and no other, which takes a third of the time.

    Where they load all (:func:`all_plugins`), pytest-randomly, which would shuffle the suites that are compared, is
    left out until a test asks for it.
    """
    if "pytester" not in request.fixturenames:
        return
    request.getfixturevalue("pytester")  # which removes the variables
    environment = request.getfixturevalue("monkeypatch")
    if "all_plugins" in request.fixturenames:
        environment.setenv("PYTEST_ADDOPTS", "-p no:randomly")
    else:
        environment.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        environment.setenv("PYTEST_ADDOPTS", "-p sandbox")


@pytest.fixture
def both(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Both]:
    """Runs pytest in the current pytester directory without and with ``--sandbox=all``."""
    monkeypatch.setenv("PYTHONHASHSEED", "0")  # pytest's coloured log levels depend on it

    def run(*args: str) -> Both:
        plain = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox=off", *args)
        boxed = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox=all", *args)
        plain.outlines[:] = [line for line in plain.outlines if line != "sandbox: off"]
        return Both(plain, boxed)

    return run


@pytest.fixture
def boxed(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Runs pytest in the current pytester directory with ``--sandbox=all``."""

    def run(*args: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox=all", *args)

    return run


@pytest.fixture
def fixture_log(pytester: pytest.Pytester, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], list[str]]:
    """Gives suites a ``log(text)`` that prints into the host's file from inside a sandbox too; returns its lines.

    The descriptor was opened outside, so what is written through it reaches the host's file.
    """
    path = tmp_path_factory.mktemp("log") / "log.txt"
    pytester.makeconftest(f"""
        import os
        import pytest
        descriptor = os.open({str(path)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        @pytest.fixture(scope="session")
        def log():
            return lambda text: os.write(descriptor, (text + "\\n").encode())
    """)

    def read() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return read
