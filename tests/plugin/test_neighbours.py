"""Plugins that change how tests run do with sandboxed tests what they do with plain ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from .conftest import Both

pytestmark = pytest.mark.usefixtures("all_plugins")

Run = Callable[..., pytest.RunResult]


def test_pytest_benchmark_has_its_figures(pytester: pytest.Pytester, boxed: Run, tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    pytester.makepyfile("""
        import pytest
        @pytest.mark.parametrize("size", [10, 20])
        def test_measured(benchmark, size):
            benchmark.extra_info["size"] = size
            benchmark.pedantic(list, args=(range(size),), rounds=7)
        class TestShared:
            pytestmark = [pytest.mark.sandbox(scope="class"), pytest.mark.benchmark(group="shared")]
            def test_one(self, benchmark): benchmark.pedantic(len, args=("",), rounds=3)
            def test_two(self, benchmark): benchmark.pedantic(len, args=("",), rounds=4)
        def test_fails(benchmark):
            benchmark.pedantic(int, args=("no",), rounds=3)
    """)
    found = {}
    for mode in ("off", "all"):
        file = tmp_path / f"{mode}.json"
        result = boxed(f"--sandbox={mode}", f"--benchmark-json={file}")
        result.assert_outcomes(passed=4, failed=1)
        assert [line for line in result.outlines if line.startswith("test_measured[20]")]
        found[mode] = [{**one, "stats": (one["stats"]["rounds"], one["stats"]["iterations"], len(one["stats"]["data"]))}
                       for one in json.loads(file.read_text())["benchmarks"]]
    assert found["all"] == found["off"]
    assert [one["stats"][0] for one in found["all"]] == [7, 7, 3, 4]


def test_pytest_randomly_shuffles_and_seeds_alike(pytester: pytest.Pytester, both: Callable[..., Both],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytest_randomly")
    monkeypatch.delenv("PYTEST_ADDOPTS")
    pytester.makepyfile("""
        import random, pytest
        @pytest.mark.parametrize("n", range(8))
        def test_random(n): print("NUMBER", n, random.random())
        class TestShared:
            pytestmark = pytest.mark.sandbox(scope="class")
            @pytest.mark.parametrize("n", range(4))
            def test_random(self, n): print("NUMBER", n, random.random())
    """)
    result = both("--randomly-seed=3", "-rA", "-v")
    result.assert_equal()
    result.boxed.assert_outcomes(passed=12)


def test_pytest_mock(pytester: pytest.Pytester, both: Callable[..., Both]) -> None:
    pytest.importorskip("pytest_mock")
    pytester.makepyfile("""
        import os, pytest
        @pytest.fixture(scope="module")
        def everywhere(module_mocker): return module_mocker.patch("os.getlogin", return_value="nobody")
        def test_patch(mocker):
            getcwd = mocker.patch("os.getcwd", return_value="/elsewhere")
            assert os.getcwd() == "/elsewhere"
            getcwd.assert_called_once_with()
        def test_undone(everywhere): assert os.getcwd() != "/elsewhere" and os.getlogin() == "nobody"
        def test_fails(mocker):
            stub = mocker.stub(name="stub")
            stub(1)
            stub.assert_called_once_with(2)
    """)
    result = both("-rA")
    result.assert_equal()
    result.boxed.assert_outcomes(passed=2, failed=1)


def test_pytest_split(pytester: pytest.Pytester, both: Callable[..., Both]) -> None:
    pytest.importorskip("pytest_split")
    pytester.makepyfile("""
        import pytest
        @pytest.mark.parametrize("n", range(5))
        def test_one(n): pass
    """)
    for group in (1, 2):
        both("--splits=2", f"--group={group}", "-v").assert_equal()


def test_pytest_rerunfailures_in_a_shared_sandbox(pytester: pytest.Pytester, boxed: Run,
                                                  fixture_log: Callable[[], list[str]]) -> None:
    """Each attempt is in the process that the class shares: it finds what the one before has left."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile("""
        import os, pytest
        STATE = []
        @pytest.fixture(scope="module")
        def module(log):
            log("module up")
            yield
            log("module down")
        @pytest.mark.sandbox(scope="class")
        class TestShared:
            @pytest.fixture(scope="class")
            def klass(self, log):
                log("class up")
                yield
                log("class down")
            @pytest.fixture
            def function(self, log):
                log("up")
                yield
                log("down")
            def test_first(self, module, klass, function): STATE.append("first")
            def test_lucky(self, module, klass, function):
                STATE.append("lucky")
                assert STATE == ["first", "lucky", "lucky"]
            def test_last(self, module, klass, function): assert len(STATE) == 3
        def test_after(module): assert not STATE
    """)
    result = boxed("--reruns=2", "-v")
    result.assert_outcomes(passed=4)
    assert result.parseoutcomes()["rerun"] == 1
    assert fixture_log() == ["module up", "class up", *["up", "down"] * 4, "class down", "module down"]


@pytest.mark.parametrize("args", [
    ("-n2", "--dist=load"), ("-n2", "--dist=loadscope"), ("-n2", "--dist=loadfile"), ("-n2", "--dist=worksteal"),
    ("--tx=2*popen", "--dist=each"),
], ids=" ".join)
def test_xdist(pytester: pytest.Pytester, boxed: Run, leak_check: None, args: tuple[str, ...]) -> None:
    pytest.importorskip("xdist")
    for name in ("one", "two"):
        pytester.makepyfile(**{f"test_{name}": """
            import os, pytest, pytest_sandbox
            @pytest.fixture(scope="module")
            def module(): return os.getpid()
            @pytest.mark.parametrize("n", range(4))
            def test_alone(n, module, worker_id, tmp_path):
                assert pytest_sandbox.inside()
                assert worker_id in str(tmp_path)
                assert n != 3
            @pytest.mark.sandbox(scope="class")
            class TestShared:
                def test_one(self): pass
                def test_two(self): pass
        """})
    result = boxed(*args)
    times = 2 if "--dist=each" in args else 1
    result.assert_outcomes(passed=10 * times, failed=2 * times)


def test_a_worker_of_xdist_that_crashes(pytester: pytest.Pytester, boxed: Run, leak_check: None) -> None:
    """The test's own crash is the test's; the worker's is told by pytest-xdist, and the run goes on."""
    pytest.importorskip("xdist")
    pytester.makepyfile("""
        import os, pytest
        @pytest.fixture(scope="module")
        def outside():
            os._exit(3)
        def test_dies_inside(): os.abort()
        def test_worker_dies(outside): pass
        @pytest.mark.parametrize("n", range(4))
        def test_after(n): pass
    """)
    result = boxed("-n2")
    result.assert_outcomes(passed=4, failed=2)
    text = result.stdout.str()
    assert re.search(r"worker '?gw\d'? crashed while running 'test_\w+.py::test_worker_dies'", text)
    assert "SandboxCrashed: the process of" in text


@pytest.mark.parametrize(("plugin", "distribution", "name"), [
    ("pytest_timeout", "pytest-timeout", "_get_item_settings"),
    ("pytest_rerunfailures", "pytest-rerunfailures", "suspended_finalizers"),
])
def test_a_version_of_a_plugin_that_lacks_what_we_need(pytester: pytest.Pytester, boxed: Run, plugin: str,
                                                       distribution: str, name: str) -> None:
    module: Any = pytest.importorskip(plugin)
    assert hasattr(module, name)
    pytester.makeconftest(f"""
        import {plugin}
        del {plugin}.{name}
    """)
    pytester.makepyfile("def test_one(): pass")
    result = boxed()
    result.stderr.fnmatch_lines([
        f"*cannot run sandboxed tests beside {distribution} {version(distribution)}: {plugin}.{name} is not there.*"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
