"""Where probes are tried: in sandboxes of several kinds, in weaker ones, and outside, on the stand-ins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stage import PROBES, PYTHON, look_at_files, reset_files

from pytest_sandbox import Sandbox
from pytest_sandbox.spec import CAPABILITIES

sys.path.insert(0, str(PROBES))
import core

core.load()
IS_ROOT = os.geteuid() == 0
FILES = [name for name, one in core.PROBES.items() if one.promise == "files"]
COMMAND = [PYTHON, "-I", "-S", "-B", "/attack/core.py"]
#: The kinds of sandbox that every probe is tried in. ``marked`` is a marked test, a fork of pytest itself.
KINDS = (("host-root", "host-other", "foreign-root", "marked") if IS_ROOT
         else ("host-me", "host-root", "foreign-root", "marked"))
#: The host image has the caller's environment, by its definition.
NOT_PROMISED = {("environment", kind) for kind in KINDS if kind != "foreign-root"}
WEAKER: dict[str, dict[str, Any]] = {
    "unfiltered": {"seccomp": "unconfined"},
    "capable": {"capabilities": CAPABILITIES},
    "open": {"seccomp": "unconfined", "capabilities": CAPABILITIES},
}


def names(kind: str) -> list[str]:
    return [name for name in core.PROBES if (name, kind) not in NOT_PROMISED]


def verdicts_of(kind: str, context: dict[str, Any], tmp: Path) -> dict[str, str]:
    """What became of every probe in one kind of sandbox."""
    folder = Path(context["folder"])
    reset_files(folder, FILES)
    before = look_at_files(folder, FILES)
    context = {**context, "world": "sandbox", "probes": names(kind)}
    found = _marked(context, tmp) if kind == "marked" else _in_sandbox(kind, context, tmp)
    after = look_at_files(folder, FILES)
    for name in FILES:
        if found[name] == "open: done" and before[name] == after[name]:
            found[name] = "shut: not the host's"
        elif before[name] != after[name]:
            found[name] = f"open: the host's file has changed ({found[name]})"
    return found


def _in_sandbox(kind: str, context: dict[str, Any], tmp: Path) -> dict[str, str]:
    image, user = kind.split("-")
    options: dict[str, Any] = {"user": {"root": "root", "me": "me", "other": "1000:1000"}[user],
                               "mounts": [f"{PROBES}:/attack:ro"], "hide": [f"{context['folder']}/credentials"],
                               "workdir": "/"}
    if image == "foreign":
        options.update(foreign(tmp, options["mounts"]))
    with Sandbox(**options) as sandbox:
        return _parsed(sandbox.run([*COMMAND, json.dumps(context)], timeout=240))


def foreign(tmp: Path, mounts: list[str]) -> dict[str, Any]:
    """An image that is not the host's root: an empty tree, with the interpreter's files shown in it."""
    tree = tmp / "foreign"
    for name in ("usr", "tmp", "mnt", "etc", "var/tmp"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    places = {"/usr"}
    for name in ("lib", "lib64", "bin"):
        path = Path("/", name)
        if path.is_symlink():
            (tree / name).symlink_to(os.readlink(path))
        elif path.is_dir():
            places.add(str(path))
    prefix = sys.base_prefix
    if not any(f"{prefix}/".startswith(f"{one}/") for one in places):
        places.add(prefix)
    return {"image": f"rootfs:{tree}", "mounts": [*mounts, *(f"{one}:{one}:ro" for one in sorted(places))]}


def _parsed(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    if done.returncode == 3:
        pytest.exit(f"an attack would have reached this machine: {done.stderr}", returncode=3)
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _marked(context: dict[str, Any], tmp: Path) -> dict[str, str]:
    place = Path(context["folder"]) / "marked"  # where it does not show through, as tmp_path does
    place.mkdir()
    place.chmod(0o777)
    (place / "test_marked.py").write_text(f"""
import json, sys
import pytest

@pytest.mark.sandbox(hide=[{context['folder'] + '/credentials'!r}], mounts=[{f'{PROBES}:/attack:ro'!r}])
def test_attack():
    sys.path.insert(0, {str(PROBES)!r})
    import core
    core.load()
    print("VERDICTS " + json.dumps(core.attack(json.loads({json.dumps(context)!r}))))
""")
    done = subprocess.run([sys.executable, "-m", "pytest", "-rP", "-p", "no:cacheprovider", "--rootdir=.",
                           "--sandbox-selftest", str(place)],
                          cwd=place, capture_output=True, text=True, timeout=240, check=False,
                          env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    shutil.rmtree(place)
    if "not apart from the host" in done.stdout + done.stderr or done.returncode == 3:
        pytest.exit(f"an attack would have reached this machine: {done.stdout}", returncode=3)
    lines = [line for line in done.stdout.splitlines() if line.startswith("VERDICTS ")]
    assert lines, done.stdout + done.stderr
    found: dict[str, str] = json.loads(lines[0].partition(" ")[2])
    return found


def proofs_of(world: str, context: dict[str, Any]) -> dict[str, str]:
    """What becomes of the probes whose proof is in this world."""
    wanted = [name for name, one in core.PROBES.items() if one.proof == world and (IS_ROOT or not one.root)]
    context = {**context, "world": world, "probes": wanted}
    folder = Path(context["folder"])
    if world in WEAKER:
        with Sandbox(user="root", workdir="/", mounts=[f"{PROBES}:/attack:ro"], **WEAKER[world]) as sandbox:
            return _parsed(sandbox.run([*COMMAND, json.dumps(context)], timeout=240))
    here = [PYTHON, "-I", "-S", "-B", str(PROBES / "core.py"), json.dumps(context)]
    if world == "naive":
        under = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--uts", "--ipc", "--net",
                 "--kill-child", *([] if IS_ROOT else ["--map-root-user"])]
        with Sandbox():  # which has cgroups, for the probes that look for others'
            return _parsed(subprocess.run([*under, *here], capture_output=True, text=True, timeout=240, check=False))
    assert world == "outside"
    reset_files(folder, FILES)
    before = look_at_files(folder, FILES)
    left_open = os.open(context["folder"], os.O_RDONLY)
    try:
        found = _parsed(subprocess.run(here, capture_output=True, text=True, timeout=240, check=False,
                                       pass_fds=(left_open,), env={**os.environ, "ATTACK": context["secret"]}))
    finally:
        os.close(left_open)
    after = look_at_files(folder, FILES)
    for name in FILES:
        if found[name] == "open: done" and before[name] == after[name]:
            found[name] = "crash: the host's file has not changed"
    return found
