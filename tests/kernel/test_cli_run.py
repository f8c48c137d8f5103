"""``pytest-sandbox build``, ``run`` and ``shell``, typed as a user would."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from imagemaker import directory, file, image, layer, symlink, write_layout

BUSYBOX = shutil.which("busybox")
pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="no static program at hand: apt-get install busybox-static")


@pytest.fixture
def base(tmp_path: Path) -> str:
    assert BUSYBOX is not None
    items = [directory("bin"), file("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755),
             *(symlink(f"bin/{name}", "busybox") for name in ("sh", "cat", "echo", "id", "rm", "sleep", "env"))]
    where = write_layout(tmp_path / "layout", image([layer(items)], config={"Env": ["PATH=/bin"], "Cmd": ["id", "-u"]}))
    return f"oci:{where}"


def command(tmp_path: Path, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pytest_sandbox.cli", *words], input=given, capture_output=True,
                          text=True, check=False, cwd=tmp_path, timeout=120,
                          env={**os.environ, "PYTEST_SANDBOX_CACHE": str(tmp_path / "cache")})


def test_run_is_the_command(tmp_path: Path, base: str) -> None:
    assert command(tmp_path, "run", base).stdout == "0\n"
    done = command(tmp_path, "run", "--env", "A=1", base, "--", "sh", "-c", "cat; echo $A >&2; exit 3", given="typed")
    assert (done.returncode, done.stdout, done.stderr) == (3, "typed", "1\n")
    assert command(tmp_path, "run", "--user", "root", "--", "id", "-u").stdout == "0\n"
    done = command(tmp_path, "run", "--timeout", "0.2", base, "--", "sleep", "100")
    assert done.returncode == 124
    assert "longer than 0.2 s" in done.stderr
    done = command(tmp_path, "run")
    assert (done.returncode, done.stderr) == (2, "pytest-sandbox: give a command after --\n")
    refused = command(tmp_path, "run", "--pids", "0", base, "--", "id")
    assert (refused.returncode, "option pids=0 cannot be used" in refused.stderr) == (2, True)
    names = command(tmp_path, "run", "--network", "outbound", "--pids", "50", base, "--", "cat", "/etc/resolv.conf")
    assert names.stdout.startswith("nameserver 10.0.2.3\n")
    assert "no directory of its PATH" in command(tmp_path, "run", base, "--", "nothing").stderr


def test_shell_changes_and_commit(tmp_path: Path, base: str) -> None:
    done = command(tmp_path, "shell", "--changes", "--commit", "team/app:2", base,
                   given="echo kept > /kept; rm /bin/env\n")
    assert "added     /kept" in done.stderr
    assert "deleted   /bin/env" in done.stderr
    assert "committed as team/app:2" in done.stderr
    assert command(tmp_path, "run", "team/app:2", "--", "cat", "/kept").stdout == "kept\n"


def test_build(tmp_path: Path, base: str) -> None:
    if importlib.util.find_spec("dockerfile") is None:
        pytest.skip("the parser is not installed: pip install pytest-sandbox[build]")
    (tmp_path / "Containerfile").write_text(
        f"FROM {base} AS one\nARG WHO=nobody\nRUN echo hello $WHO > /said\nCMD cat /said\n"
        "FROM one\nRUN echo 2 > /two\n")
    done = command(tmp_path, "build", "-t", "app", "--build-arg", "WHO=you", "--target", "one")
    assert done.returncode == 0, done.stderr
    assert "Containerfile:3: RUN echo hello $WHO > /said" in done.stderr
    assert command(tmp_path, "run", "app").stdout == "hello you\n"
    again = command(tmp_path, "build", "-q", "--build-arg", "WHO=you", ".")
    assert (again.stdout[:7], again.stderr) == ("sha256:", "")
    assert command(tmp_path, "run", f"image:{again.stdout.strip()}", "--", "cat", "/two").stdout == "2\n"
    (tmp_path / "Bad").write_text(f"FROM {base}\nRUN echo no such thing; exit 4\n")
    bad = command(tmp_path, "build", "-f", "Bad")
    assert bad.returncode == 2
    assert "Bad cannot be built: line 2, RUN echo no such thing; exit 4: it ended with status 4" in bad.stderr
    assert command(tmp_path, "build", "no-such-directory").returncode == 2


def test_images_lists_what_was_built_under_its_name(tmp_path: Path, base: str) -> None:
    if importlib.util.find_spec("dockerfile") is None:
        pytest.skip("the parser is not installed: pip install pytest-sandbox[build]")
    (tmp_path / "Containerfile").write_text(f"FROM {base}\nRUN echo 1 > /1\nRUN echo 2 > /2\n")
    command(tmp_path, "build", "-t", "app")
    listed = command(tmp_path, "images").stdout
    assert "docker.io/library/app:latest" in listed
    assert listed.splitlines()[-1].startswith("2 images"), "the base and the result, none of the steps"
    command(tmp_path, "rm", base)
    command(tmp_path, "prune")
    assert command(tmp_path, "run", "app", "--", "cat", "/1", "/2").stdout == "1\n2\n"
    assert command(tmp_path, "verify").returncode == 0
    records = tmp_path / "cache/v1/builds"
    assert [one for one in records.iterdir() if one.suffix == ".json"]
    command(tmp_path, "prune", "--all")
    assert [one for one in records.iterdir() if one.suffix == ".json"] == []
    assert list((tmp_path / "cache/v1/layers").iterdir()) == []
