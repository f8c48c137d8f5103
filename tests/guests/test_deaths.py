"""What a guest dies of, and requirements in its image: ``tox run -e guests``. See ``tests/plugin/test_guests.py``."""

from __future__ import annotations

import importlib.util
import shutil
import tarfile
from pathlib import Path

import guestimage
import pytest

from pytest_sandbox.runtime.cgroups import host_control


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


@pytest.mark.skipif(importlib.util.find_spec("dockerfile") is None,
                    reason="pip install 'pytest-sandbox[build]': the parser of Containerfiles is not installed")
def test_requirements_are_installed_once(suite: pytest.Pytester, first_root: Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(suite.path / "cache"))
    root = guestimage.another(first_root, suite.path / "root", "with-pip")
    stdlib = next(root.rglob("json/__init__.py")).parent.parent
    (stdlib / "pip").mkdir()
    (stdlib / "pip/__init__.py").touch()
    # A pip that needs no network: makes an empty module of each name, and says how often it ran.
    (stdlib / "pip/__main__.py").write_text("""if True:
        import os, sys
        assert sys.argv[1:3] == ["install", "-r"], sys.argv
        for name in open(sys.argv[3]).read().split():
            open(os.path.join(os.path.dirname(os.__file__), name + ".py"), "w").write("MADE = %r" % os.urandom(8))
    """)
    with tarfile.open(suite.path / "root.tar", "w") as tar:
        tar.add(root, ".")
    shutil.rmtree(root)
    suite.makeini("[pytest]\nsandbox_requirements =\n    needs.txt\n    other_needed\n")
    (suite.path / "needs.txt").write_text("# comment\nmuch_needed\n")
    suite.makepyfile(f"""
        import pytest
        from pathlib import Path
        @pytest.mark.sandbox(image="rootfs:{suite.path}/root.tar")
        def test_it():
            import much_needed, other_needed
            print("made", much_needed.MADE)
        @pytest.mark.sandbox(image="rootfs:{first_root}")
        def test_directory(): pass
    """)
    said = []
    for _ in range(2):
        result = run(suite, "-rA")
        result.assert_outcomes(passed=1, errors=1)
        said.append([line for line in result.outlines if line.startswith("made")])
    assert said[0] == said[1] != []
    result.stdout.fnmatch_lines(["*sandbox_requirements cannot be installed in image *first*rootfs:FILE*"])
    shutil.rmtree(suite.path / "cache")


def test_a_guest_that_dies_fails_one_test(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_deaths="""
        import os, signal, time
        import pytest
        from images import FIRST, SECOND

        @pytest.fixture(scope="module")
        def deadly():
            print("the last that it says")
            os.kill(os.getpid(), signal.SIGKILL)
        @pytest.fixture(scope="module")
        def endless():
            while True: time.sleep(1)

        @pytest.mark.sandbox(image=FIRST)
        def test_before(): pass
        @pytest.mark.sandbox(image=FIRST)
        def test_dies(deadly): pass
        @pytest.mark.sandbox(image=FIRST)
        def test_after(): pass
        @pytest.mark.sandbox(image=SECOND)
        def test_hangs(endless): pass
        @pytest.mark.sandbox(image=SECOND)
        def test_next(): pass
    """)
    suite.makeini("[pytest]\nsandbox_guest_timeout = 15\n")
    result = run(suite)
    result.assert_outcomes(passed=3, errors=2)
    result.stdout.fnmatch_lines_random([
        "*the guest of image *first* failed when it prepared a test: it was killed by SIGKILL*",
        "*the guest of image *second* failed when it prepared a test: it was not done after 15 s*"])


@pytest.mark.skipif(not host_control().abilities()["memory"].ok,
                    reason="this host cannot limit memory, see pytest-sandbox doctor")
def test_a_guest_without_memory_fails_one_test(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        @pytest.fixture(scope="session")
        def greedy():
            kept = []
            while True: kept.append(b"x" * (8 << 20))
        def test_greedy(greedy): pass
        def test_next(): pass
    """)
    suite.makeini("[pytest]\nsandbox_memory = 160M\n")
    result = run(suite)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*failed when it prepared a test: it was killed by SIGKILL, for it had no more "
                                 "memory*"])


def test_a_guest_that_cannot_collect_fails_its_own_tests(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        test_a="""
            import os, time, pytest
            from images import FIRST
            if "ID=first" in open("/etc/os-release").read():
                os.write(2, b"on its way out")
                os._exit(3)
            @pytest.mark.sandbox(image=FIRST)
            def test_exits(): pass
            @pytest.mark.sandbox(image=FIRST)
            def test_too(): pass
        """,
        test_b="""
            import pytest
            from images import SECOND
            if "ID=second" in open("/etc/os-release").read():
                while True: print("for ever" * 100)
            @pytest.mark.sandbox(image=SECOND)
            def test_prints(): pass
            def test_fine(): pass
        """)
    suite.makeini("[pytest]\nsandbox_guest_timeout = 15\n")
    result = run(suite)
    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines_random(["*the guest of image *first* failed when it collected the tests: it exited "
                                        "with status 3*", "*second* failed when it collected the tests: *"])
