"""Root's sandboxes have ids of their own, and nothing shows that but a look from outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import init_pid, prints

from pytest_sandbox import Sandbox, planning
from pytest_sandbox.runtime import probe, shift
from pytest_sandbox.runtime import syscalls as sc
from pytest_sandbox.runtime.supervisor import find_host
from pytest_sandbox.spec import make_spec

pytestmark = pytest.mark.skipif(
    not find_host().privileged or bool(planning.plan_for(make_spec({})).unshifted),
    reason="not real root, or this host cannot shift its ids (see `pytest-sandbox doctor`)")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_left_behind: None) -> Iterator[Path]:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    planning.release_images()


def base() -> int:
    ids = shift.the_range()
    assert ids is not None
    return ids[0]


def test_who_it_is_inside_and_outside() -> None:
    with Sandbox(user="root") as sandbox:
        inside = sandbox.run(["cat", "/proc/self/uid_map", "/proc/self/gid_map"]).stdout.split()
        assert inside == [str(one) for one in (0, *(shift.the_range() or ()))] * 2
        assert sandbox.run(["id", "-u"]).stdout == "0\n"
        places = ["/", "/etc/passwd", "/dev/null", "/dev/pts", "/run", "/tmp", "/dev/shm", "/proc/self/fd/"]
        assert sandbox.run(["stat", "-c", "%u:%g", *places]).stdout.split() == ["0:0"] * len(places)
        outside = Path(f"/proc/{init_pid(sandbox)}/status").read_text()
        assert f"Uid:\t{base()}\t{base()}\t{base()}\t{base()}\n" in outside
        assert f"Gid:\t{base()}\t{base()}\t{base()}\t{base()}\n" in outside


def test_a_fork_of_the_caller() -> None:
    with Sandbox(user="root") as sandbox:
        assert sandbox.call(os.getresuid) == [0, 0, 0]
        assert sandbox.call(os.getgroups) == [0]
        assert sandbox.call(os.listdir, "/proc/self/fd")  # it can be looked into, and so can look into itself
        assert sandbox.call(lambda: Path("/proc/self/oom_score_adj").read_text()) == "500\n"
        assert sandbox.call(lambda: os.stat("/proc/self/mem").st_uid) == 0


@pytest.mark.parametrize("user", ["root", "1000:1001"])
def test_streams_can_be_opened_by_name(user: str) -> None:
    with Sandbox(user=user) as sandbox:
        done = sandbox.run(["sh", "-c", "cat /dev/stdin > /dev/stdout; echo too > /dev/stderr"], input="text")
        assert (done.stdout, done.stderr) == ("text", "too\n")


def test_other_users_and_their_files() -> None:
    with Sandbox(user="root") as sandbox:
        sandbox.run(["sh", "-c", "echo x > /srv/f; chown 1000:1001 /srv/f; chmod 600 /srv/f; mkdir -m 700 /srv/d; "
                     "chown 4000000:12 /srv/d"], check=True)
        assert sandbox.run(["cat", "/srv/f"], user="1000:1001").stdout == "x\n"
        assert sandbox.run(["cat", "/srv/f"], user="1002:1001").returncode != 0
        assert (sandbox.path("/srv/f").stat().st_uid, sandbox.path("/srv/f").stat().st_gid) == (1000, 1001)
        assert sandbox.path("/srv/d").stat().st_uid == 4000000
        assert {one.path: one.kind for one in sandbox.changes()} == {"/srv/f": "added", "/srv/d": "added"}


@pytest.mark.parametrize("user", ["root", "1000:1001"])
def test_what_is_put_there_belongs_to_its_user(user: str, tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "tree/below/file").write_text("copied")
    (tmp_path / "tree/link").symlink_to("below")
    with Sandbox(user=user) as sandbox:
        sandbox.path("/srv/made").mkdir()
        sandbox.path("/srv/made/text").write_text("text")
        sandbox.path("/srv/made/link").symlink_to("text")
        sandbox.path("/srv/made/text").rename("/srv/made/other")
        sandbox.path("/srv/made/other").chmod(0o640)
        sandbox.copy_in(str(tmp_path / "tree"), "/srv/tree")
        owner = "0:0" if user == "root" else user
        found = sandbox.run(["stat", "-c", "%u:%g", "/srv/made", "/srv/made/other", "/srv/tree/below/file"]).stdout
        assert found.split() == [owner] * 3
        assert sandbox.run(["cat", "/srv/tree/link/file"]).stdout == "copied"
        sandbox.copy_out("/srv/made", str(tmp_path / "out"))
    assert (tmp_path / "out/other").stat().st_uid == 0


def test_what_outlives_it_belongs_to_whom_it_did_inside(tmp_path: Path) -> None:
    with Sandbox(user="root", mounts=[f"{tmp_path}:/data"]) as sandbox:
        sandbox.run(["sh", "-c", "cd /data; touch root; mkdir folder; touch other; chown 1000:1001 other"], check=True)
    found = {one.name: (one.stat().st_uid, one.stat().st_gid) for one in tmp_path.iterdir()}
    assert found == {"root": (0, 0), "folder": (0, 0), "other": (1000, 1001)}


def test_ids_beyond_the_range(tmp_path: Path) -> None:
    for name, uid in (("mapped", 1 << 30), ("beyond", base() + 5)):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, uid, uid)
    with Sandbox(user="root", mounts=[f"{tmp_path}:/data"]) as sandbox:
        found = sandbox.run(["stat", "-c", "%u", "/data/mapped", "/data/beyond"]).stdout.split()
        assert found == [str(1 << 30), "65534"]


def test_a_named_commit_is_stored_with_the_ids_inside(cache: Path) -> None:
    with Sandbox(user="root") as sandbox:
        sandbox.run(["sh", "-c", "touch /srv/a /srv/b; chown 7:8 /srv/b"], check=True)
        image = sandbox.commit("host:shifted")
        held = sandbox.commit()
        for one in (image, held):
            with Sandbox(image=one, user="root") as other:
                assert other.run(["stat", "-c", "%u:%g", "/srv/a", "/srv/b"]).stdout.split() == ["0:0", "7:8"]
                other.run(["sh", "-c", "echo more >> /srv/b"], check=True)
                assert other.path("/srv/b").stat().st_uid == 7
    owners = {one.name: one.stat().st_uid for one in cache.rglob("srv/*")}
    assert owners == {"a": 0, "b": 7}


def test_python_makes_the_same() -> None:
    program = """
from pytest_sandbox import Sandbox, planning
with Sandbox(user="root") as sandbox:
    print(sandbox.run(["cat", "/proc/self/uid_map"]).stdout.split())
    look = "touch /srv/x; stat -c %u /srv/x /dev/pts/ptmx /dev/null; cat /proc/self/limits"
    print(sandbox.run(["sh", "-c", look]).stdout.split())
"""
    made = [prints(program, env={**os.environ, "PYTEST_SANDBOX_SPAWNER": how}) for how in ("", "python")]
    assert made[0] == made[1]
    assert "'0', '0', '0'" in made[0][1]


def test_one_file_system_that_cannot_be_mapped(tmp_path: Path) -> None:
    """/dev's: the sandbox has the host's ids, and says so."""
    (tmp_path / "folder").mkdir()
    sandbox = Sandbox(user="root", mounts=["/dev/full:/srv/full", f"{tmp_path}/folder:/data"])
    with pytest.warns(UserWarning, match=r"the file system of /dev/full \(\w+\) cannot be mapped"):
        sandbox.start()
    with sandbox:
        assert sandbox.run(["cat", "/proc/self/uid_map"]).stdout.split() == ["0", "0", "4294967295"]
        sandbox.run(["touch", "/data/file"], check=True)
        sandbox.path("/srv/x").write_text("x")
        assert sandbox.path("/srv/x").stat().st_uid == 0
    assert (tmp_path / "folder/file").stat().st_uid == 0


def test_without_it_where_that_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(shift.VARIABLE, "host")
    with Sandbox() as sandbox:
        assert sandbox.run(["cat", "/proc/self/uid_map"]).stdout.split() == ["0", "0", "4294967295"]
    assert planning.plan_for(make_spec({})).unshifted == f"{shift.VARIABLE}=host is set"


@pytest.mark.skipif(not sc.capget()[0] >> 24 & 1, reason="this root has no CAP_SYS_RESOURCE: it cannot lift limits")
def test_what_the_kernel_counts_by_user_is_each_one_s_own() -> None:
    """All sandboxes are one user outside; what one has of message queues, another does not lack."""
    flood = """
import ctypes, os
library = next(one for one in map(ctypes.CDLL, (None, "librt.so.1")) if hasattr(one, "mq_open"))
count = 0
while library.mq_open(f"/q{count}".encode(), os.O_CREAT | os.O_RDWR, 0o600, None) >= 0:
    count += 1
print(count)
"""
    with Sandbox(user="root") as one, Sandbox(user="root") as other:
        counts = [sandbox.run(["python3", "-c", flood], check=True).stdout for sandbox in (one, other)]
    assert counts[0] == counts[1] != "0\n"


def test_the_caller_stays_what_it_was() -> None:
    """Its thread makes files as somebody else for a moment; the kernel takes more away with that than it gives back."""
    sc.prctl(sc.PR_SET_PDEATHSIG, 10)
    try:
        before = sc.prctl(sc.PR_GET_DUMPABLE), sc.death_signal(), sc.capget(), os.getresuid()
        with Sandbox(user="root") as sandbox:
            sandbox.path("/srv/x").write_text("x")
            with pytest.raises(FileExistsError):
                sandbox.path("/srv/x").symlink_to("y")
        assert (sc.prctl(sc.PR_GET_DUMPABLE), sc.death_signal(), sc.capget(), os.getresuid()) == before
    finally:
        sc.prctl(sc.PR_SET_PDEATHSIG, 0)


@pytest.mark.parametrize(("taken", "found"), [
    ([], (1 << 31, (1 << 31) - 1)),
    ([(100000, 165536)], (1 << 31, (1 << 31) - 1)),
    ([(4000000000, 4000065536)], (1 << 31, 1 << 30)),
    ([(1 << 31, (1 << 31) + 1)], (3 << 30, (1 << 30) - 1)),
    ([(1 << 31, 1 << 32)], None),
], ids=str)
def test_the_range_is_nobody_else_s(taken: list[tuple[int, int]], found: tuple[int, int] | None) -> None:
    assert shift.free_range(taken) == found


@pytest.mark.parametrize(("why", "remedy"), [
    ("", ""), (f"{shift.VARIABLE}=host is set", "Unset it."),
    (shift.told({"path": "/", "errno": 22}), "Use a file system that has id-mapped mounts"),
    (shift.told({"step": "mount an overlay of id-mapped layers", "errno": 22}), "Use Linux 6.3 or newer"),
    ("all ranges of ids are somebody's in /etc/subuid or /etc/subgid", "see subuid"),
])
def test_the_doctor_says_why_not(why: str, remedy: str) -> None:
    found = probe.shifted_ids(why)
    assert found.ok is (not why)
    assert remedy in found.remedy
    assert not found.needed
