"""``pytest-sandbox doctor --clean``: what killed runs have left goes, what belongs to anybody alive stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import python_path, until

from pytest_sandbox import Sandbox
from pytest_sandbox.cli import main
from pytest_sandbox.image.layout import Layout
from pytest_sandbox.image.locks import lock
from pytest_sandbox.runtime import hierarchies, leftovers
from pytest_sandbox.runtime.cgroups import host_control


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def clean(capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, object]]]:
    capsys.readouterr()
    status = main(["doctor", "--clean", "--json"])
    return status, json.loads(capsys.readouterr().out)["left"]


@pytest.fixture
def place() -> str:
    """The directory of this run in one hierarchy."""
    with Sandbox() as sandbox:
        sandbox.run(["true"])
        places = list(host_control().run.places.values())
    if not places:
        pytest.skip("this host gives us no cgroup: " + next(iter(host_control().abilities().values())).how)
    return places[0]


@pytest.fixture
def dead(place: str) -> Iterator[str]:
    """A directory as a killed run leaves it, with a sandbox's below it and a process that nobody waits for."""
    path = f"{os.path.dirname(place)}/{hierarchies.PREFIX}999999999-00000000"
    os.makedirs(f"{path}/1/in")
    yield path
    if os.path.exists(path):
        hierarchies.clear(path)


def test_the_cgroup_of_a_killed_run(dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as process:
        try:
            Path(dead, "1/in/cgroup.procs").write_text(str(process.pid))
        except OSError as error:
            process.kill()
            pytest.skip(f"a process cannot be put there: {error}")
        assert [one for one in leftovers.dead_cgroups() if one[0] == dead] == [(dead, 1)]  # looking removes nothing
        assert os.path.isdir(dead)
        status, found = clean(capsys)
        assert process.wait(10) == -signal.SIGKILL
    mine = [one for one in found if one["path"] == dead]
    assert status == 0
    assert [one["removed"] for one in mine] == [True]
    assert not os.path.exists(dead)
    assert clean(capsys)[1] == []


def test_a_live_run_keeps_its_cgroups(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = """
import sys
from pytest_sandbox import Sandbox
from pytest_sandbox.runtime.cgroups import host_control
with Sandbox() as sandbox:
    sandbox.run(["true"])
    print(*host_control().run.places.values(), flush=True)
    sys.stdin.read()
    assert sandbox.run(["echo", "alive"]).stdout == "alive\\n"
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": python_path()}) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        theirs = process.stdout.readline().split()
        found = clean(capsys)[1]
        assert not {one["path"] for one in found} & {*theirs, place}
        assert all(os.path.isdir(one) for one in [*theirs, place])
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
def test_another_users_cgroup_stays(dead: str, capsys: pytest.CaptureFixture[str]) -> None:
    os.chown(dead, 54321, 54321)
    assert dead not in [one["path"] for one in clean(capsys)[1]]
    assert os.path.isdir(dead)
    os.chown(dead, 0, 0)
    assert dead in [one["path"] for one in clean(capsys)[1]]


def test_after_a_kill_of_everything_at_once(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    program = """
import signal
from pytest_sandbox import Sandbox
from pytest_sandbox.runtime import launch
from pytest_sandbox.runtime.cgroups import host_control
sandbox = Sandbox().start()
sandbox.run(["true"])
with open(f"/proc/self/fdinfo/{launch.supervisor().pidfd}") as file:
    helper = next(line.split()[1] for line in file if line.startswith("Pid:"))
print(helper, *host_control().run.places.values(), flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": python_path()}) as process:
        assert process.stdout is not None
        helper, *theirs = process.stdout.readline().split()
        os.kill(int(helper), signal.SIGSTOP)  # it would remove them itself: nothing may run between the two
        process.kill()
        os.kill(int(helper), signal.SIGKILL)
        process.wait()
    until(lambda: not os.path.exists(f"/proc/{helper}"), "the helper is gone")
    left = [one for one in theirs if os.path.isdir(one)]
    assert left
    status, found = clean(capsys)
    assert status == 0
    assert {one["path"] for one in found} >= set(left)
    assert not [one for one in left if os.path.exists(one)]


def test_what_is_half_made_in_the_store(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert clean(capsys) == (0, [])
    assert not store.exists()  # looking makes nothing
    layout = Layout(store)
    for name in ("dead", "live"):
        folder = Path(layout.staging(name))
        folder.mkdir()
        (folder / "file").write_bytes(bytes(100_000))
        Path(layout.staging(f"{name}.lock")).touch()
    Path(layout.root, "trash", "rubbish").mkdir()
    download = Path(layout.staging("later.partial"))
    download.write_bytes(b"half")
    Path(layout.staging("later.lock")).touch()
    held = lock(layout.staging("live.lock"), exclusive=True)
    assert held is not None
    with held:
        status, found = clean(capsys)
    assert status == 0
    assert {Path(str(one["path"])).name for one in found} == {"dead", "rubbish"}
    assert not Path(layout.staging("dead")).exists()
    assert not Path(layout.root, "trash", "rubbish").exists()
    assert Path(layout.staging("live"), "file").exists()
    assert download.exists()  # a later pull goes on with it


def test_what_it_says(capsys: pytest.CaptureFixture[str], store: Path) -> None:
    layout = Layout(store)
    Path(layout.staging("dead")).mkdir()
    assert main(["doctor", "--clean"]) == 0
    said = capsys.readouterr().out
    assert f"removed  {layout.staging('dead')}  (half made or half removed in the store" in said
    assert main(["doctor", "--clean"]) == 0
    assert capsys.readouterr().out == "Killed runs have left nothing behind.\n"
