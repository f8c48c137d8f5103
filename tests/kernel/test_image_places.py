"""Where the store may lie, and where it may not: read-only disks, other users, no network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from imagemaker import file, image, layer, tar_of, write_layout

from pytest_sandbox import StoreError
from pytest_sandbox.image.locks import lock
from pytest_sandbox.image.store import ImageStore

APP = image([layer([file("which", "one")])])
#: A mount, or network, namespace of one's own.
UNSHARE = ["unshare"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]


def command(*words: str, cache: Path | str, before: list[str] | None = None, cwd: Path | None = None,
            status: int = 2) -> str:
    """What ``pytest-sandbox`` prints, on both streams; never a traceback."""
    done = subprocess.run([*(before or []), sys.executable, "-m", "pytest_sandbox.cli", *words], check=False, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd,
                          env={**os.environ, "PYTEST_SANDBOX_CACHE": str(cache)})
    assert "Traceback" not in done.stdout, done.stdout
    assert done.returncode == status, done.stdout
    return done.stdout


def test_what_is_in_a_read_only_store_can_be_used(tmp_path: Path) -> None:
    """CI systems mount their caches so. What is not in it is an error that says why."""
    cache, layout = tmp_path / "cache", write_layout(tmp_path / "layout", APP)
    other = write_layout(tmp_path / "other", image([layer([file("other")])]))
    with ImageStore(cache) as store:
        store.resolve(f"oci:{layout}")
    read_only = [*UNSHARE, "--mount", "sh", "-ec",
                 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$@"', str(cache)]
    assert "1 layers" in command("pull", f"oci:{layout}", cache=cache, before=read_only, status=0)
    assert "1 images" in command("images", cache=cache, before=read_only, status=0)
    if os.geteuid() == 0:  # with other users' numbers, as in a user namespace, it is not what was recorded
        assert "everything is as it was made" in command("verify", cache=cache, before=read_only, status=0)
    for words in (["pull", f"oci:{other}"], ["prune", "--all"], ["rm", f"oci:{layout}"]):
        assert "Read-only file system" in command(*words, cache=cache, before=read_only)


@pytest.mark.parametrize("where", ["/proc/nowhere", "/etc/passwd", "/dev/null/x"])
def test_places_where_no_store_can_be(where: str) -> None:
    assert "PYTEST_SANDBOX_CACHE" in command("images", cache=where)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_a_store_of_another_user(tmp_path: Path) -> None:
    ImageStore(tmp_path / "cache").close()
    os.chown(tmp_path / "cache/v1", 12345, 12345)
    said = command("images", cache=tmp_path / "cache")
    assert "it belongs to user 12345, we are user 0" in said
    assert "PYTEST_SANDBOX_CACHE" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(0o555)
    assert "Permission denied" in command("images", cache=tmp_path / "closed")


def test_a_network_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    script = """
import sys, time
from pytest_sandbox.image.store import ImageStore
def sleep(seconds): raise AssertionError("it waits for a network that will not come")
time.sleep = sleep
try:
    ImageStore(sys.argv[1]).resolve("192.0.2.1/app")
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([*UNSHARE, "--net", sys.executable, "-c", script, tmp_path / "cache"], check=True, text=True,
                          capture_output=True)
    assert done.stdout.startswith("RegistryError"), done
    assert "192.0.2.1: Network is unreachable. Check the network" in done.stdout


def test_a_lock_file_that_is_not_there_is_no_success(tmp_path: Path) -> None:
    for words in (["lock"], ["lock", "--check"]):
        assert "there is no sandbox.lock" in command(*words, cache=tmp_path / "cache", cwd=tmp_path)
    assert not (tmp_path / "sandbox.lock").exists()
    assert "No such file" in command("pull", "--lock-file", "absent", "x", cache=tmp_path / "cache", cwd=tmp_path)


def test_interrupting_a_command_prints_no_traceback(tmp_path: Path) -> None:
    """It waits for a layer that we hold, and says so; then it is interrupted."""
    layout = write_layout(tmp_path / "layout", APP)
    with ImageStore(tmp_path / "cache") as store:
        diff_id = json.loads(APP.config)["rootfs"]["diff_ids"][0]
        held = lock(store.layout.staging(f"{diff_id[7:]}.lock"), exclusive=True, create=True)
        assert held is not None

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a job in the background ignores it

    with subprocess.Popen([sys.executable, "-m", "pytest_sandbox.cli", "pull", f"oci:{layout}"], text=True,
                          stderr=subprocess.PIPE, env={**os.environ, "PYTEST_SANDBOX_CACHE": str(tmp_path / "cache")},
                          preexec_fn=heed) as child:
        assert child.stderr is not None
        said = child.stderr.readline()
        assert said.startswith("waiting for layer 1/1"), said
        child.send_signal(signal.SIGINT)
        assert "Traceback" not in child.stderr.read()
    held.remove()
    assert child.returncode == 130


def test_a_store_error_says_what_to_do() -> None:
    with pytest.raises(StoreError, match="PYTEST_SANDBOX_CACHE"):
        ImageStore("/proc/nowhere")


@pytest.mark.parametrize(("words", "says"), [
    (["save", "oci-archive:{here}/x.tar", "-o", "/nowhere/x.tar"], "there is no directory /nowhere. Make it"),
    (["load", "nothing.tar"], "Check the path"),
    (["lock", "oci-archive:{here}/x.tar"], "a registry's image or a new name is wanted"),
    (["run", "oci:{here}", "--", "true"], "there is no file index.json in it. A root file system is used directly"),
])
def test_what_a_stranger_types_wrong(tmp_path: Path, words: list[str], says: str) -> None:
    tar_of(write_layout(tmp_path / "l", APP), tmp_path / "x.tar")
    said = command(*(one.replace("{here}", str(tmp_path)) for one in words), cache=tmp_path / "cache", cwd=tmp_path)
    assert says in said
