"""What a sandboxed test writes is gone afterwards, except for what must outlive a test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., pytest.RunResult]


def test_tmp_path_outlives_the_test_as_in_a_plain_run(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pytester.makepyfile("""
        import pytest
        from pathlib import Path

        @pytest.fixture(scope="session")
        def made(tmp_path_factory):
            path = tmp_path_factory.mktemp("session")
            (path / "file").write_text("outside")
            return path

        def test_one(tmp_path, made):
            (tmp_path / "result").write_text("one")
            assert (made / "file").read_text() == "outside"
            (made / "inside").write_text("inside")
            Path("in-rootdir").write_text("gone")
        def test_two(tmp_path_factory, made):
            (tmp_path_factory.mktemp("mine") / "result").write_text("two")
            assert (made / "inside").read_text() == "inside"
            assert not Path("in-rootdir").exists()
        @pytest.mark.parametrize("n", [1, 2])
        def test_three(tmp_path, n): assert n == 1
    """)
    trees = []
    for mode in ("off", "all"):
        for policy in ("all", "failed", "none"):
            base = tmp_path / mode / policy
            base.parent.mkdir(exist_ok=True)
            result = pytester.runpytest_subprocess(f"--sandbox={mode}", f"--basetemp={base}", "-o",
                                                   f"tmp_path_retention_policy={policy}", "-p", "no:cacheprovider")
            assert (pytester.path / "in-rootdir").exists() == (mode == "off")
            if mode == "off":
                (pytester.path / "in-rootdir").unlink()
            else:
                result.assert_outcomes(passed=3, failed=1)
            trees.append(sorted(str(path.relative_to(base)) for path in base.rglob("*")) if base.exists() else None)
    assert trees[:3] == trees[3:]
    assert "test_one0/result" in (trees[3] or ())


def test_another_user_has_a_folder_of_its_own(pytester: pytest.Pytester, boxed: Run) -> None:
    """pytest's base folder is for the user who started it alone."""
    if os.geteuid():
        pytest.skip("only root can run a test as an arbitrary user")
    pytester.makepyfile("""
        import os, pytest
        pytestmark = pytest.mark.sandbox(user="1000:1000", workdir="/")
        @pytest.mark.parametrize("n", range(5))
        def test_one(tmp_path, tmp_path_factory, n):
            assert os.getuid() == tmp_path.stat().st_uid == 1000
            (tmp_path / "file").write_text("x")
            (tmp_path_factory.mktemp("more") / "file").write_text("x")
            print("FOLDER", tmp_path)
        class TestShared:
            pytestmark = pytest.mark.sandbox(user="1000:1000", workdir="/", scope="class")
            def test_two(self, tmp_path): (tmp_path / "file").write_text("x")
            def test_three(self, tmp_path): (tmp_path / "file").write_text("x")
    """)
    result = boxed("-rA")
    result.assert_outcomes(passed=7)
    folders = [Path(line[7:]) for line in result.outlines if line.startswith("FOLDER ")]
    assert len(folders) == 5
    assert not any(folder.exists() for folder in folders)


@pytest.mark.usefixtures("all_plugins")
def test_caches_outlive_the_test(pytester: pytest.Pytester) -> None:
    pytest.importorskip("hypothesis")
    pytester.makepyfile("""
        from hypothesis import given, settings, strategies as st
        settings.load_profile("default")  # on CI, of which it knows a dozen signs, hypothesis keeps no examples
        def test_cache(request):
            value = request.config.cache.get("mine/count", 0)
            request.config.cache.set("mine/count", value + 1)
            print("COUNT", value)
        @given(st.integers())
        def test_example(number): assert number < 1000
    """)
    for count in range(2):
        result = pytester.runpytest_subprocess("--sandbox=all", "-rA")
        result.assert_outcomes(passed=1, failed=1)
        assert f"COUNT {count}" in result.outlines
    assert list(pytester.path.glob(".hypothesis/examples/*/*"))


def test_sandbox_persist(pytester: pytest.Pytester, boxed: Run) -> None:
    kept = pytester.mkdir("kept")
    pytester.makeini("[pytest]\nsandbox_persist = kept\n")
    pytester.makepyfile("""
        from pathlib import Path
        def test_one(tmp_path):
            Path("kept/file").write_text("x")
            Path("other").write_text("x")
            (tmp_path / "file").write_text("x")
            print("TMP", tmp_path)
    """)
    result = boxed("-rA")
    result.assert_outcomes(passed=1)
    assert (kept / "file").exists()
    assert not (pytester.path / "other").exists()
    place = next(line for line in result.outlines if line.startswith("TMP "))
    assert not Path(place[4:]).exists()
    result = boxed("-o", "sandbox_persist=no/such")
    result.stdout.fnmatch_lines(["*ini option sandbox_persist: */no/such does not exist*"])
