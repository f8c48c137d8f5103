"""``--sandbox-keep``: failed tests' sandboxes, kept, opened, run again and taken elsewhere, typed as a user would."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_sandbox import ImageError, KeptTestError, planning
from pytest_sandbox.keeping.bundle import load_bundle
from pytest_sandbox.runtime.cgroups import host_control

SUITE = """
    import os
    import signal
    import time
    from pathlib import Path
    import pytest

    HERE = Path("/var/tmp/pytest-sandbox-kept")

    @pytest.fixture
    def cleans():
        yield
        HERE.unlink()

    @pytest.mark.sandbox(env={"COLOUR": "blue"}, hostname="kitchen")
    def test_fails(cleans):
        HERE.write_text("as it was when the test failed")
        print("what it printed")
        assert 1 == 2

    @pytest.fixture
    def broken():
        HERE.write_text("set-up")
        raise OSError("no such luck")

    @pytest.mark.sandbox
    def test_in_setup(broken):
        pass

    @pytest.fixture
    def sticks():
        yield
        HERE.write_text("teardown")
        raise OSError("it sticks")

    @pytest.mark.sandbox
    def test_in_teardown(sticks):
        pass

    @pytest.mark.sandbox
    def test_dies():
        HERE.write_text("before it died")
        os.kill(os.getpid(), signal.SIGKILL)

    @pytest.mark.sandbox(timeout=0.5)
    def test_hangs():
        HERE.write_text("before it hung")
        time.sleep(100)

    @pytest.mark.sandbox
    def test_passes():
        HERE.write_text("nobody asks")

    @pytest.mark.sandbox(hostname="driven")
    def test_drives(sandbox):
        sandbox.path(HERE).write_text("driven")
        sandbox.popen(["sleep", "100"])
        assert not sandbox

    @pytest.mark.sandbox(timeout=0.5)
    def test_drives_into_its_timeout(sandbox):
        sandbox.path(HERE).write_text("overdue")
        sandbox.popen(["sleep", "100"]).wait()

    def test_drives_two(sandbox_factory):
        for name in ("one", "two"):
            sandbox_factory(hostname=name).path(HERE).write_text(name)
        assert False

    def test_closes(sandbox):
        sandbox.close()
        assert False
"""

LEFT = {"test_fails": "as it was when the test failed", "test_in_setup": "set-up", "test_in_teardown": "teardown",
        "test_dies": "before it died", "test_hangs": "before it hung", "test_drives": "driven",
        "test_drives_into_its_timeout": "overdue"}

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def cache(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    where = pytester.path / "cache"
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(where))
    monkeypatch.setenv("SHELL", "/bin/sh")
    return where


@pytest.fixture
def command() -> Command:
    def run(*words: str, given: str = "", cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pytest_sandbox.cli", *words], input=given, capture_output=True,
                              text=True, check=False, timeout=120, cwd=cwd, env={**os.environ, **env})
    return run


def keep(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox-keep=failed", *args)


def ids(result: pytest.RunResult) -> dict[str, str]:
    """The ids that the summary prints, by test."""
    found = re.findall(r"^pytest-sandbox \w+ ([0-9a-f]{8})    \S*?::(\S+(?: \[\w+\])?)", result.stdout.str(), re.M)
    return {name: one for one, name in found}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of one test that was kept, to be copied: its directory, and the id."""
    root = tmp_path_factory.mktemp("template")
    (root / "test_suite.py").write_text(textwrap.dedent(SUITE))
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:randomly",
                           "--sandbox-keep=failed", f"--rootdir={root}", "-k", "test_fails"], cwd=root,
                          capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, "PYTEST_SANDBOX_CACHE": str(root / "cache")})
    found = re.search(r"^pytest-sandbox shell (\w+)", done.stdout, re.M)
    assert found is not None, done.stdout + done.stderr
    return root, found[1]


@pytest.fixture
def one_kept(pytester: pytest.Pytester, template: tuple[Path, str], cache: Path) -> str:
    """A test that was kept in the current directory; its id."""
    root, name = template
    shutil.copytree(root / "cache", cache, symlinks=True)
    record = cache / "v1/kept" / name / "record.json"
    record.write_text(record.read_text().replace(str(root), str(pytester.path)))
    pytester.makepyfile(test_suite=SUITE)
    return name


def left_in(cache: Path, name: str) -> str:
    """What a kept layer holds of the file that each test writes, read without any of our code."""
    with tarfile.open(cache / "v1/kept" / name / "layer-0.tar.gz") as tar:
        found = tar.extractfile("var/tmp/pytest-sandbox-kept")
        assert found is not None
        return found.read().decode()


@pytest.mark.usefixtures("all_plugins")
@pytest.mark.parametrize("args", [[], ["-n", "2"], ["-s"]], ids=["alone", "workers", "live"])
def test_every_way_to_fail(pytester: pytest.Pytester, command: Command, args: list[str], cache: Path) -> None:
    if "-n" in args:
        pytest.importorskip("xdist")
    pytester.makepyfile(test_suite=SUITE)
    result = keep(pytester, *args)
    result.assert_outcomes(passed=3, failed=6, errors=3)
    kept = ids(result)
    assert set(kept) == {*LEFT, "test_drives_two [one]", "test_drives_two [two]"}
    result.stdout.fnmatch_lines(["not kept: *::test_closes: its sandbox was closed before the test had failed"])
    # A worker may be ended before it has tidied up: the next run that keeps removes the file that it had locked.
    assert not [one for one in (cache / "v1/staging").iterdir() if not one.name.startswith("kept-run-")]
    assert result.stdout.str().count("Changes in the sandbox") == 8  # in each report of a failure
    for test, text in {**LEFT, "test_drives_two [one]": "one", "test_drives_two [two]": "two"}.items():
        assert left_in(cache, kept[test]) == text, test
    shown = command("kept", kept["test_fails"]).stdout
    for words in ("test_suite.py::test_fails", "failed, kept in its call", "assert 1 == 2", "what it printed",
                  "kitchen"):
        assert words in shown
    assert "pytest_sandbox" not in command("kept").stderr
    assert command("kept").stdout.splitlines()[-1].startswith("9 kept tests, ")


def test_out_of_memory(pytester: pytest.Pytester, command: Command) -> None:
    ability = host_control().abilities()["memory"]
    if not ability.ok:
        pytest.skip(f"memory: {ability.how}")
    pytester.makepyfile(test_suite="""
        import pytest
        @pytest.mark.sandbox(memory="48M")
        def test_grows():
            open("/var/tmp/before", "w").write("it grew")
            bytearray(b"x") * (1 << 30)
    """)
    result = keep(pytester)
    result.assert_outcomes(failed=1)
    found = command("shell", ids(result)["test_grows"], given="cat /var/tmp/before\n")
    assert found.stdout == "it grew"


def test_a_shell_is_in_exactly_that_sandbox_and_changes_nothing(pytester: pytest.Pytester, one_kept: str,
                                                                command: Command) -> None:
    name = one_kept
    script = "echo $COLOUR; hostname; pwd; rm /var/tmp/pytest-sandbox-kept; echo more > /var/tmp/more\n"
    done = command("shell", name[:5], given=script, cwd=Path("/"))
    assert done.stdout.splitlines() == ["blue", "kitchen", str(pytester.path)]
    assert "the state of test_suite.py::test_fails when its call had failed" in done.stderr
    again = command("shell", name, given="ls /var/tmp/pytest-sandbox-kept /var/tmp/more\n")
    assert again.stdout == "/var/tmp/pytest-sandbox-kept\n"
    assert command("shell", "--env", "COLOUR=red", name, given="echo $COLOUR\n").stdout == "red\n"


def test_nothing_is_kept_or_imported_unless_somebody_asks(pytester: pytest.Pytester, cache: Path) -> None:
    pytester.makepyfile("""
        import sys
        import pytest
        @pytest.mark.sandbox
        def test_it():
            assert [name for name in sys.modules if "keep" in name and "pytest_sandbox" in name] == []
            assert False, "as it should"
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*AssertionError: as it should"])
    result.stdout.no_fnmatch_line("*kept sandboxes*")
    assert not (cache / "v1/kept").exists() or not list((cache / "v1/kept").iterdir())


def test_all_tests_and_the_ini_file(pytester: pytest.Pytester, command: Command) -> None:
    pytester.makeini("[pytest]\nsandbox_keep = all")
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-k", "passes or fails or drives_two")
    kept = ids(result)
    assert {"test_passes", "test_fails"} <= set(kept)
    assert command("shell", kept["test_passes"], given="cat /var/tmp/pytest-sandbox-kept\n").stdout == "nobody asks"
    assert "ended:    passed" in command("kept", kept["test_passes"]).stdout
    pytester.makeini("[pytest]\nsandbox_keep = fialed")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*sandbox_keep='fialed' cannot be used. Allowed: none, failed, all. Did you mean*"])


def test_tests_that_share_a_sandbox(pytester: pytest.Pytester, command: Command) -> None:
    pytester.makepyfile(test_suite="""
        from pathlib import Path
        import pytest
        pytestmark = pytest.mark.sandbox(scope="module")
        def test_one(): Path("/var/tmp/one").write_text("1")
        def test_two():
            Path("/var/tmp/two").write_text("2")
            assert False
        def test_three():
            assert Path("/var/tmp/two").exists()
            Path("/var/tmp/three").write_text("3")
        def test_four():
            import os
            os._exit(1)
    """)
    result = keep(pytester)
    result.assert_outcomes(passed=2, failed=2)
    kept = ids(result)
    assert command("shell", kept["test_two"], given="cd /var/tmp; ls one two three").stdout == "one\ntwo\n"
    assert command("shell", kept["test_four"], given="cd /var/tmp; ls one two three").stdout == "one\nthree\ntwo\n"


def test_tests_that_a_zygote_forks_keep_their_own(pytester: pytest.Pytester, cache: Path) -> None:
    pytester.makepyfile(test_suite="""
        from pathlib import Path
        import pytest
        @pytest.mark.parametrize("number", range(12))
        @pytest.mark.sandbox
        def test_one(number):
            Path("/var/tmp/pytest-sandbox-kept").write_text(str(number))
            assert number % 3
    """)
    result = keep(pytester)
    result.assert_outcomes(passed=8, failed=4)
    kept = ids(result)
    assert set(kept) == {f"test_one[{number}]" for number in (0, 3, 6, 9)}
    for name, one in kept.items():
        assert f"test_one[{left_in(cache, one)}]" == name


# Bounds.


def entries(cache: Path) -> list[str]:
    return sorted(one.name for one in (cache / "v1/kept").iterdir() if not one.name.startswith("."))


def test_the_number_is_bounded_and_the_oldest_go(pytester: pytest.Pytester, cache: Path) -> None:
    pytester.makeini("[pytest]\nsandbox_keep_count = 3")
    pytester.makepyfile(test_suite="""
        import pytest
        @pytest.mark.parametrize("number", range(5))
        @pytest.mark.sandbox
        def test_it(number): assert False
    """)
    first = keep(pytester)
    assert list(ids(first)) == ["test_it[0]", "test_it[1]", "test_it[2]"]
    first.stdout.fnmatch_lines(["not kept: *test_it?4?: 3 tests of this run are kept already (sandbox_keep_count)"])
    assert entries(cache) == sorted(ids(first).values())
    second = keep(pytester, "-k", "1 or 2")
    assert len(entries(cache)) == 3
    assert set(ids(second).values()) < set(entries(cache))


def test_a_large_writable_layer_is_left_out_and_said(pytester: pytest.Pytester, command: Command,
                                                     cache: Path) -> None:
    pytester.makeini("[pytest]\nsandbox_keep_size = 2M")
    pytester.makepyfile(test_suite="""
        import os
        import pytest
        @pytest.mark.sandbox
        def test_large():
            open("/var/tmp/large", "wb").write(os.urandom(5 << 20))
            assert False, "too much"
        @pytest.mark.sandbox
        def test_sparse():
            os.truncate(os.open("/var/tmp/sparse", os.O_CREAT | os.O_RDWR), 1 << 40)
            assert False
    """)
    result = keep(pytester)
    name = ids(result)["test_large"]
    result.stdout.fnmatch_lines([f"pytest-sandbox kept {name}    *::test_large (output only: *more than *2.0 MiB*"])
    assert "test_sparse" in ids(result)
    done = command("shell", name)
    assert done.returncode == 2
    assert "has no writable layer" in done.stderr
    assert f"pytest-sandbox kept {name}" in done.stderr
    assert "too much" in command("kept", name).stdout
    assert "more than" in command("export", name).stderr
    assert sum(one.stat().st_size for one in cache.glob("v1/kept/*/*")) < 1 << 20


def test_a_full_disk_costs_no_test_and_leaves_nothing(pytester: pytest.Pytester, cache: Path) -> None:
    wrap = ["unshare", "-m"] if os.getuid() == 0 else ["unshare", "-rm"]
    probe = subprocess.run([*wrap, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip(f"no mount namespace of its own: {probe.stderr.decode()}")
    pytester.makepyfile(test_suite="""
        import os
        import pytest
        @pytest.mark.sandbox
        def test_it():
            open("/var/tmp/large", "wb").write(os.urandom(5 << 20))
            assert False, "its own failure"
    """)
    cache.mkdir()
    script = (f"mount -t tmpfs -o size=1m none {cache}; {sys.executable} -m pytest -p no:cacheprovider "
              f"--sandbox-keep=failed; find {cache}/v1/kept {cache}/v1/staging -type f")
    done = subprocess.run([*wrap, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert "1 failed" in done.stdout
    assert "its own failure" in done.stdout
    assert "::test_it: the image store" in done.stdout
    assert "No space left on device" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("===")


def test_a_live_runs_tests_and_those_in_use_stay(pytester: pytest.Pytester, one_kept: str, command: Command,
                                                 cache: Path) -> None:
    pytester.makeini("[pytest]\nsandbox_keep_count = 1")
    name = one_kept
    shell = subprocess.Popen([sys.executable, "-m", "pytest_sandbox.cli", "shell", name], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    try:
        assert shell.stdin is not None
        assert shell.stdout is not None
        shell.stdin.write("echo open\n")
        shell.stdin.flush()
        assert shell.stdout.readline() == "open\n"
        result = keep(pytester, "-k", "test_dies")
        result.stdout.fnmatch_lines(["not kept: *test_dies: there is no room for another kept test*"])
        done = command("kept", "--remove", name)
        assert done.returncode == 1
        assert "in use" in done.stderr
        assert entries(cache) == [name]
    finally:
        shell.communicate("exit\n")
    assert ids(keep(pytester, "-k", "test_dies"))["test_dies"] in entries(cache)
    assert name not in entries(cache)


# Again, and elsewhere.


def test_replay(pytester: pytest.Pytester, one_kept: str, command: Command) -> None:
    name = one_kept
    changed = SUITE.replace('env={"COLOUR": "blue"}, hostname="kitchen"', 'hostname="other"').replace(
        "assert 1 == 2",
        "import socket; assert (socket.gethostname(), os.environ.get('COLOUR')) == ('kitchen', 'blue')")
    pytester.makepyfile(test_suite=changed)
    done = command("replay", name, "--", "-p", "no:cacheprovider", cwd=Path("/"))
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "has changed since the test was kept" in done.stderr
    pytester.makepyfile(test_suite="def test_other(): pass")
    done = command("replay", name)
    assert done.returncode == 4
    assert f"may have changed since it was kept. What it left is there all the same: pytest-sandbox shell {name}" in (
        done.stderr)
    (pytester.path / "test_suite.py").unlink()
    done = command("replay", name)
    assert done.returncode == 2
    assert "test_suite.py is not there. Give the directory that the tests lie in: --rootdir DIR." in done.stderr


def test_replay_of_a_driven_sandbox_and_of_what_only_the_command_line_said(pytester: pytest.Pytester,
                                                                          command: Command) -> None:
    pytester.makepyfile(test_suite="""
        import os
        def test_drives(sandbox): assert sandbox.run(["hostname"]).stdout == "x"
        def test_plain(): assert not os.path.exists("/run/pytest-sandbox")
    """)
    kept = ids(keep(pytester, "--sandbox=all", "-o", "sandbox_hostname=fromini"))
    assert set(kept) == {"test_drives", "test_plain"}
    assert "fromini" in command("replay", kept["test_drives"]).stdout
    assert "1 failed" in command("replay", kept["test_plain"]).stdout


def test_a_bundle_opens_in_another_cache(pytester: pytest.Pytester, one_kept: str, command: Command) -> None:
    name = one_kept
    done = command("export", name, "-o", "bundle.tar")
    assert done.returncode == 0, done.stderr
    elsewhere = {"PYTEST_SANDBOX_CACHE": str(pytester.path / "elsewhere")}
    shown = command("shell", "bundle.tar", given="cat /var/tmp/pytest-sandbox-kept; echo $COLOUR", **elsewhere)
    assert shown.stdout == "as it was when the test failedblue\n"
    assert command("load", "bundle.tar", **elsewhere).stdout.endswith("test_suite.py::test_fails\n")
    assert command("kept", **elsewhere).stdout.splitlines()[-1].startswith("1 kept tests, ")
    done = command("replay", "bundle.tar", **elsewhere)
    assert "assert 1 == 2" in done.stdout
    assert done.returncode == 1
    listed = json.loads(command("kept", "--json", **elsewhere).stdout)
    assert listed[0]["imported"] is True
    assert listed[0]["nodeid"] == "test_suite.py::test_fails"
    shutil.rmtree(pytester.path / "cache")
    again = command("shell", listed[0]["id"], given="cat /var/tmp/pytest-sandbox-kept", **elsewhere)
    assert again.stdout == "as it was when the test failed"


def test_a_bundle_is_the_same_twice_and_a_target_that_cannot_be(pytester: pytest.Pytester, one_kept: str,
                                                               command: Command,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    name = one_kept
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    assert command("export", name, "-o", "one").returncode == command("export", name, "-o", "two").returncode == 0
    assert Path("one").read_bytes() == Path("two").read_bytes()
    done = command("export", name, "-o", "no/such/place")
    assert done.returncode == 2
    assert "no/such/place could not be written" in done.stderr


# What a stranger would try.


def test_ids_that_name_nothing_or_too_much(pytester: pytest.Pytester, one_kept: str, command: Command,
                                           cache: Path) -> None:
    name = one_kept
    for words in (("shell", "00000000"), ("replay", "nothing"), ("export", "00000000"), ("kept", "00000000"),
                  ("kept", "--remove", "00000000"), ("replay", "")):
        done = command(*words)
        assert done.returncode == 2, words
        assert "there is no kept test" in done.stderr
        assert ("An image of that name is written 00000000:latest." in done.stderr) == (words[0] == "shell")
    twin = name[:6] + ("00" if name[6:] != "00" else "11")
    shutil.copytree(cache / "v1/kept" / name, cache / "v1/kept" / twin)
    record = cache / "v1/kept" / twin / "record.json"
    record.write_text(record.read_text().replace(f'"id": "{name}"', f'"id": "{twin}"'))
    done = command("shell", name[:6])
    assert done.returncode == 2
    assert f"{name[:6]!r} is the beginning of 2 kept tests" in done.stderr
    assert name in done.stderr
    assert twin in done.stderr
    assert command("kept", "--remove", "--all").returncode == 0
    assert command("kept").stdout.startswith("0 kept tests")


def damage(where: Path, how: str) -> None:
    record, layer = where / "record.json", where / "layer-0.tar.gz"
    if how == "record":
        record.write_text("{")
    elif how == "empty":
        record.unlink()
    elif how == "version":
        record.write_text(record.read_text().replace('"version": 1', '"version": 99'))
    elif how == "layer":
        data = bytearray(layer.read_bytes())
        data[len(data) // 2] ^= 0xFF
        layer.write_bytes(data)
    elif how == "gone":
        layer.unlink()
    elif how == "cut":
        layer.write_bytes(layer.read_bytes()[:-5])
    else:
        where.rename("aside")
        where.symlink_to(Path("aside").absolute())


def test_a_damaged_one_is_named_and_can_be_removed(pytester: pytest.Pytester, one_kept: str, command: Command,
                                                   cache: Path) -> None:
    name = one_kept
    where = cache / "v1/kept" / name
    shutil.copytree(where, "whole")
    assert "Traceback" not in command("kept").stderr
    for how in ("record", "empty", "version", "layer", "gone", "cut", "link"):
        shutil.rmtree(where, ignore_errors=True)
        shutil.copytree("whole", where)
        damage(where, how)
        done = command("shell", name)
        assert done.returncode == 2, how
        assert name in done.stderr
        assert "Traceback" not in done.stderr
        assert command("kept", "--remove", name).returncode == (2 if how == "link" else 0)
        assert where.exists() == (how == "link")
    assert Path("aside/record.json").exists()


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes | None],
              more: dict[str, bytes] | None = None) -> str:
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for member in old:
            file = old.extractfile(member)
            data = change(member.name, file.read()) if file is not None else b""
            if data is not None:
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        for name, data in (more or {}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            new.addfile(info, io.BytesIO(data))
    return str(target)


def in_record(**changes: object) -> Callable[[str, bytes], bytes | None]:
    def change(name: str, data: bytes) -> bytes | None:
        return json.dumps({**json.loads(data), **changes}).encode() if name == "pytest-sandbox/kept.json" else data
    return change


HOSTILE: list[tuple[Callable[[str, bytes], bytes | None], str]] = [
    (in_record(nodeid="-p"), "its test is '-p'"),
    (in_record(nodeid="../../etc/x.py::t"), "its test is"),
    (in_record(nodeid="/etc/x.py::t"), "its test is"),
    (in_record(source="../../../etc/passwd"), "its file is"),
    (in_record(id="../../up"), "its id is"),
    (in_record(options={"plugin": "evil"}), "its options are not a sandbox's"),
    (in_record(layers=[]), "there are layers below a test of the host"),
    (in_record(layers="x"), "cannot be read as a kept test"),
    (in_record(start={"kind": "image", "reference": "x", "image_id": "sha256:" + "0" * 64}), "is another than"),
    (in_record(start={"kind": "directory", "reference": "/etc"}), "a directory is nothing that a file can hold"),
    (in_record(created="now"), "its created is 'now'"),
    (in_record(created=10 ** 300), "nothing was kept at that time"),
    (in_record(base=7), "its record cannot be read"),
    (lambda name, data: b"[]" if name.endswith("kept.json") else data, "its record cannot be read"),
    (lambda name, data: b"[" * 100_000 if name.endswith("kept.json") else data, "its record cannot be read"),
    (lambda name, data: b" " * (5 << 20) if name.endswith("kept.json") else data, "larger than"),
    (lambda name, data: data[:-1] + b"x" if data[:2] == b"\x1f\x8b" else data, "is not what its bytes are"),
    (lambda name, data: data + bytes(100) if data[:2] == b"\x1f\x8b" else data, "is not what its bytes are"),
    (lambda name, data: None if data[:2] == b"\x1f\x8b" else data, "there is no file blobs/"),
]


def test_a_hostile_bundle_is_refused_whole(pytester: pytest.Pytester, one_kept: str, command: Command,
                                           cache: Path) -> None:
    name = one_kept
    command("export", name, "-o", "good.tar")
    command("kept", "--remove", name)
    for change, why in HOSTILE:
        bad = rewritten(Path("good.tar"), Path("bad.tar"), change)
        with pytest.raises((KeptTestError, ImageError), match=re.escape(why)):
            load_bundle(Path(bad))
        assert entries(cache) == []
        assert not list((cache / "v1/staging").iterdir())
    planning.release_images()
    for words in (("load", bad), ("shell", bad), ("replay", bad)):
        done = command(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_a_hostile_layer_stays_inside(pytester: pytest.Pytester, one_kept: str, command: Command, cache: Path) -> None:
    """Its digests are right, so what is in it has to be harmless by itself."""
    name = one_kept
    out = pytester.path / "outside"
    out.mkdir()
    entry = cache / "v1/kept" / name
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for path, kind, link in ((f"../../../../../../../..{out}/a", tarfile.REGTYPE, ""),
                                 (f"{out}/b", tarfile.REGTYPE, ""),
                                 ("var/tmp/way", tarfile.SYMTYPE, str(out)), ("var/tmp/way/c", tarfile.REGTYPE, ""),
                                 ("var/tmp/hard", tarfile.LNKTYPE, "../../../../../etc/passwd"),
                                 ("var/tmp/.wh...", tarfile.REGTYPE, "")):
            info = tarfile.TarInfo(path)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    for text in (plain.getvalue(), plain.getvalue()[:700], b"x" * 2000):
        packed = gzip.compress(text)
        (entry / "layer-0.tar.gz").write_bytes(packed)
        record = json.loads((entry / "record.json").read_text())
        record["layers"] = [{"digest": f"sha256:{hashlib.sha256(packed).hexdigest()}", "size": len(packed),
                             "diff_id": f"sha256:{hashlib.sha256(text).hexdigest()}", "bytes": len(text)}]
        (entry / "record.json").write_text(json.dumps(record))
        done = command("shell", name, given="true\n")
        assert "Traceback" not in done.stderr
        assert not list(out.iterdir())
        assert command("export", name, "-o", "hostile.tar").returncode == 0
        assert "Traceback" not in command("shell", "hostile.tar", given="true\n",
                                          PYTEST_SANDBOX_CACHE=str(pytester.path / "elsewhere")).stderr
        assert not list(out.iterdir())
    assert Path("/etc/passwd").stat().st_nlink == 1


def test_a_killed_runs_half_kept_tests_are_swept(pytester: pytest.Pytester, one_kept: str, cache: Path) -> None:
    (cache / "v1/staging/kept-00000000").mkdir()
    (cache / "v1/staging/kept-00000000/layer-0.tar.gz").write_bytes(b"half")
    (cache / "v1/staging/kept-00000000.lock").touch()
    (cache / "v1/staging/kept-run-of-long-ago.lock").touch()
    keep(pytester, "-k", "test_dies")
    assert not list((cache / "v1/staging").iterdir())
    assert len(entries(cache)) == 2


def test_what_reaches_out_is_not_taken_from_a_bundle(pytester: pytest.Pytester, one_kept: str,
                                                     command: Command) -> None:
    name = one_kept
    command("export", name, "-o", "good.tar")
    secret = pytester.path / "secret"
    secret.mkdir()
    bad = rewritten(Path("good.tar"), Path("bad.tar"), in_record(
        created=1, options={"network": "host", "mounts": [[str(secret), "/mnt", False]], "seccomp": "unconfined",
                            "hide": [], "env": {"COLOUR": "blue"}}))
    done = command("shell", bad, given=f"touch /mnt/x; ls /sys/class/net; echo $COLOUR; touch {secret}/y")
    assert "these options are not taken from it: hide, mounts, network, seccomp" in done.stderr
    assert done.stdout.splitlines() == ["lo", "blue"]
    assert not list(secret.iterdir())


def test_what_a_terminal_would_obey_is_not_printed(pytester: pytest.Pytester, command: Command) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox
        def test_it():
            print("\\x1b]0;title\\x07\\x9b31m")
            assert False
    """)
    name = ids(keep(pytester))["test_it"]
    shown = command("kept", name).stdout
    assert "]0;title" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x9b]", shown)
