"""Test bodies in an image's own Python. The images hold this machine's Python, without anything that is installed."""

from __future__ import annotations

import json
import marshal
import sys
import tarfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sandboxes are made of Linux namespaces")


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


def test_each_body_runs_in_its_images_python_and_leaves_nothing(suite: pytest.Pytester, first_root: Path) -> None:
    suite.makeconftest("""
        import os, pytest
        MADE = []
        @pytest.fixture(scope="session")
        def prepared(tmp_path_factory):
            folder = tmp_path_factory.mktemp("prepared")
            (folder / "file").write_text("made once")
            with open("/etc/prepared", "w") as file:
                file.write("made once")
            MADE.append(os.getpid())
            print("prepares")
            yield folder
            print("puts away")
    """)
    suite.makepyfile(test_mixed="""
        import os, sys
        from pathlib import Path
        import pytest
        import conftest, pytest_sandbox
        from images import FIRST, SECOND
        first, second = pytest.mark.sandbox(image=FIRST), pytest.mark.sandbox(image=SECOND)

        def system():
            return Path("/etc/os-release").read_text().strip()

        def is_pristine():
            assert not os.path.exists("/etc/written")
            Path("/etc/written").write_text("")
            sys.seen = getattr(sys, "seen", 0) + 1
            return sys.seen == 1

        @first
        def test_one(prepared, tmp_path):
            assert system() == "ID=first" and is_pristine() and pytest_sandbox.inside()
            assert (prepared / "file").read_text() == Path("/etc/prepared").read_text() == "made once"
            (tmp_path / "own").write_text("")
            assert not any("site-packages" in one for one in sys.path), sys.path

        def test_outside():
            assert system() not in ("ID=first", "ID=second")

        @pytest.mark.sandbox
        def test_host_image():
            assert system() not in ("ID=first", "ID=second")

        @second
        @pytest.mark.parametrize("number", [1, 2])
        def test_two(prepared, number, monkeypatch):
            assert system() == "ID=second" and is_pristine()
            assert Path("/etc/prepared").read_text() == "made once"
            assert len(conftest.MADE) == 1
            monkeypatch.setenv("X", "1")

        class TestMore:
            pytestmark = first
            def test_three(self, prepared):
                assert system() == "ID=first" and is_pristine() and len(conftest.MADE) == 1
                Path(__file__).write_text("spoilt")
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=6)
    assert not (first_root / "etc/written").exists()
    assert "spoilt" not in (suite.path / "test_mixed.py").read_text()[:10]
    text = result.stdout.str()
    assert [text.count(word) for word in ("prepares", "puts away")] == [2, 2]  # once an image


def test_reports_come_back_whole(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_kinds="""
        import os, sys, warnings, logging
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        INSIDE = "ID=first" in open("/etc/os-release").read()

        def test_introspection():
            print("printed")
            logging.getLogger("x").warning("logged")
            assert {"a": 1} == {"a": 2}

        def test_warning(record_property):
            record_property("colour", "green")
            warnings.warn("beware")

        @pytest.mark.skipif(INSIDE, reason="not in there")
        def test_skipped(): pass

        @pytest.mark.skipif(not INSIDE, reason="not out here")
        def test_not_skipped(): pass

        @pytest.mark.xfail(INSIDE, reason="as is known")
        def test_xfailed(): assert 0

        def test_nothing_to_request(no_such_fixture): pass

        def test_dies():
            print("last words", flush=True)
            os.abort()

        @pytest.mark.sandbox(timeout=0.5)
        def test_hangs():
            while True: pass

        @pytest.fixture
        def bad_end():
            yield
            raise ValueError("at its end")
        def test_teardown(bad_end): pass

        @pytest.fixture(scope="module")
        def bad_begin():
            print("tries")
            raise LookupError("at its begin")
        def test_setup(bad_begin): pass
        def test_setup_again(bad_begin): pass

        def test_still_fine(): pass
    """)
    suite.makeini("[pytest]\nfilterwarnings =\n    error\n    default::UserWarning\n")  # ours are none
    result = run(suite, "-rs", "--junitxml=out.xml")
    result.assert_outcomes(passed=4, failed=3, errors=4, skipped=1, xfailed=1)
    result.stdout.fnmatch_lines_random([
        "*assert {'a': 1} == {'a': 2}", "*Differing items:*", "*Captured stdout call*", "printed",
        "*x:test_kinds.py*logged",
        "test_kinds.py:10: AssertionError", "*fixture 'no_such_fixture' not found", "*UserWarning: beware",
        "*SandboxCrashed: *SIGABRT*", "last words", "*TimeLimitExceeded*", "*ValueError: at its end",
        "*LookupError: at its begin", "*Captured stdout setup*", "tries", "SKIPPED*test_kinds.py:*not in there"])
    assert '<property name="colour" value="green"' in (suite.path / "out.xml").read_text()


def test_what_cannot_be_is_said_once_and_the_others_go_on(suite: pytest.Pytester, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "etc").mkdir(parents=True)
    suite.makepyfile(
        test_a=f"""
            import pytest
            @pytest.mark.sandbox(image="rootfs:{empty}")
            def test_no_python(): pass
            @pytest.mark.sandbox(image="rootfs:{empty}")
            def test_again(): pass
        """,
        test_b="""
            import sys, pytest
            from images import FIRST, SECOND
            @pytest.mark.sandbox(image=FIRST)
            @pytest.mark.parametrize("place", [open("/etc/os-release").read().split()[0]])
            def test_other_ids(place): pass
            @pytest.mark.sandbox(image=SECOND, python="python2.7")
            def test_no_such_python(): pass
        """,
        test_c="""
            import pytest
            from images import FIRST
            import pytest_asyncio_or_so_that_no_image_has
            @pytest.mark.sandbox(image=FIRST)
            def test_import(): pass
        """,
        test_d="""
            import pytest
            from images import FIRST
            @pytest.mark.sandbox(image=FIRST)
            def test_fine(): pass
        """,
        pytest_asyncio_or_so_that_no_image_has="""
            import os
            if "ID=first" in open("/etc/os-release").read():
                raise ImportError("is not for images")
        """)
    result = run(suite)
    result.assert_outcomes(passed=1, errors=5)
    result.stdout.fnmatch_lines_random([
        "*a test's body cannot run in image *empty*has no python3 or python*python=*sandbox fixture*",
        "*there is no guest of image*empty*told in full*",
        "*test_b.py::test_other_ids?*? is not what image *outside there are test_b.py::test_other_ids?*inside there "
        "are test_b.py::test_other_ids?ID=first?*", "*it has no python2.7*",
        "*test_c.py::test_import cannot be collected in image*", "*ImportError: is not for images*"])


def test_an_option_that_is_not_to_be_had_is_refused(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST, seccomp="unconfined")
        def test_one(): pass
    """)
    result = run(suite)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_one: seccomp cannot be had for a test's body in image*sandbox fixture*"])


def test_a_guest_reaches_nothing_of_the_host(suite: pytest.Pytester) -> None:
    """What runs in the guest's own process, at import and in fixtures, is above the sandboxes. It tries much."""
    suite.makepyfile(test_attack="""
        import ctypes, errno, os, signal, sys
        import pytest
        from images import FIRST
        libc = ctypes.CDLL(None, use_errno=True)
        secret = os.path.realpath(sys.executable)
        INSIDE = "ID=first" in open("/etc/os-release").read()

        def tries(importing=False):
            found = []
            me = os.getpid()
            if [one for one in os.listdir("/proc") if one.isdigit() and int(one) != me]:
                found.append("sees other processes")
            for pid in range(1, 50):
                if pid == me:
                    continue
                for name in ("root", "cwd", "fd", "environ", "mem", "ns/mnt", "ns/user", "maps"):
                    try:
                        path = f"/proc/{pid}/{name}"
                        os.listdir(path) if name in ("root", "cwd", "fd") else os.open(path, os.O_RDONLY)
                        found.append(path)
                    except OSError:
                        pass
                if libc.ptrace(16, pid, 0, 0) == 0:
                    found.append(f"traces {pid}")
            for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/uevent_helper",
                         "/proc/sys/kernel/hostname"):
                try:
                    os.close(os.open(path, os.O_WRONLY))
                    found.append(f"writes {path}")
                except OSError:
                    pass
                if libc.umount2(path.encode(), 2) == 0:
                    found.append(f"uncovers {path}")
            for path in (b"/proc/sys", b"/proc/kcore", b"/proc", b"/sys", b"/dev", b"/run/.pytest-sandbox"):
                if libc.umount2(path, 2) == 0:
                    found.append(f"uncovers {path}")
            if libc.mount(b"proc", b"/tmp", b"proc", 0, None) == 0:
                if os.path.exists("/tmp/sys/kernel/core_pattern") and os.access("/tmp/sysrq-trigger", os.W_OK):
                    found.append("has a /proc of its own")
            try:
                os.listdir("/run/.pytest-sandbox")
                open("/run/.pytest-sandbox/x", "w")
                found.append("writes to the graft")
            except OSError:
                pass
            try:
                os.kill(1, signal.SIGKILL)
            except OSError:
                pass
            for one in os.listdir("/proc/self/fd"):
                try:
                    where = os.readlink(f"/proc/self/fd/{one}")
                except OSError:
                    continue
                # Before its first test: later it holds the namespaces and pipes of the one that it forks.
                if importing and int(one) > 2 and where.startswith(("pipe:", "/sys/", "mnt:", "user:", "pid:")):
                    found.append(f"has {where}")
            with open("/proc/self/status") as file:
                status = dict(line.split(":", 1) for line in file)
            if int(status["CapEff"], 16) >> 19 & 1:
                found.append("may trace")
            if status["NoNewPrivs"].strip() != "1" or status["Seccomp"].strip() != "2":
                found.append("has no filter")
            return found

        FOUND = tries(True) if INSIDE else []

        @pytest.fixture(scope="session")
        def guest():
            return tries()

        @pytest.mark.sandbox(image=FIRST)
        def test_it(guest):
            assert INSIDE and FOUND == [] and guest == []
        @pytest.mark.sandbox(image=FIRST)
        def test_a_test(guest):
            links = []
            for one in os.listdir("/proc/self/fd"):
                try:
                    links.append(os.readlink(f"/proc/self/fd/{one}"))
                except OSError:
                    pass
            assert not [one for one in links if one.startswith(("/sys/", "mnt:", "user:", "pid:", "net:"))], links
            with open("/proc/self/status") as file:
                assert not int(dict(line.split(":", 1) for line in file)["CapEff"], 16) >> 21 & 1
    """)
    result = run(suite)
    result.assert_outcomes(passed=2)


def test_what_an_images_python_compiles_is_kept(suite: pytest.Pytester, first_root: Path, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """By an image's first guest, before it knows of the tests. Later ones read it, unless the source is another."""
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    image = tmp_path / "uncompiled.tar"
    with tarfile.open(image, "w") as archive:
        archive.add(first_root, ".", filter=lambda one: None if one.name.endswith("__pycache__") else one)
    suite.makeconftest("import colorsys")  # the project's doing: compiled by the image as ever, and not kept
    suite.makepyfile(test_it=f"""
        import json, os, sys
        import pytest
        pytestmark = pytest.mark.sandbox(image="rootfs:{image}")
        def test_it():
            print("compiled:", json.__cached__, hasattr(json, "OTHER"))
            assert not [one for one in os.listdir("/") if "compiled" in one] and sys.dont_write_bytecode
            assert "compiled" not in sys.modules["colorsys"].__cached__
    """)

    def seen() -> str:
        result = run(suite, "-rP")
        result.assert_outcomes(passed=1)
        return next(line for line in result.outlines if line.startswith("compiled:"))

    assert seen().startswith("compiled: /.pytest-sandbox-compiled/")
    (made,) = (tmp_path / "cache/guests").glob("compiled-*")
    kept = [str(one.relative_to(made)) for one in made.rglob("*.pyc")]
    assert len(kept) > 100
    assert not [one for one in kept if "conftest" in one or "test_it" in one or "colorsys" in one]
    said = seen()
    assert said.startswith("compiled: /run/.pytest-sandbox-compiled/")
    assert said.endswith("False")

    (file,) = made.glob(f"**/json/__pycache__/__init__.{sys.implementation.cache_tag}.pyc")
    header, code = file.read_bytes()[:16], compile("OTHER = 1\n" + Path(json.__file__).read_text(), "json", "exec")
    file.write_bytes(header + marshal.dumps(code))
    assert seen().endswith("True"), "what is kept is not what is read"
    file.write_bytes(header[:12] + bytes(4) + marshal.dumps(code))  # as if of a source of another size
    assert seen().endswith("False")
