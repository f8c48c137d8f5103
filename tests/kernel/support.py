"""What several kernel tests need: looks at the kernel's tables from both sides, waiting, and programs run apart."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import pytest_sandbox
from pytest_sandbox import Sandbox
from pytest_sandbox.runtime.cgroups import host_control

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
IS_ROOT = os.getuid() == 0
PACKAGE = str(Path(pytest_sandbox.__file__).parent.parent)


def namespaces(pid: int | str = "self") -> dict[str, str]:
    """The identity of each namespace of a process."""
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}


def abort_unless_apart(sandbox: Sandbox) -> None:
    """Before anything that would hurt the host: the run ends here if it could reach it."""
    inside = sandbox.run(["sh", "-c", "readlink /proc/self/ns/mnt /proc/self/ns/pid"]).stdout.split()
    ours = namespaces()
    if len(inside) != 2 or inside[0] == ours["mnt"] or inside[1] == ours["pid"]:
        pytest.exit(f"the sandbox shares namespaces with the host: {inside}", returncode=3)


def until(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Asks again and again; fails the test when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"it took more than {seconds} s until {what}")
        time.sleep(0.001)


def init_pid(sandbox: Sandbox) -> int:
    """The host's number of the sandbox's first process."""
    with open(f"/proc/self/fdinfo/{sandbox._ready().pidfd}") as file:
        return int(next(line.split()[1] for line in file if line.startswith("Pid:")))


def python_path() -> str:
    """What makes this package, this module, and what they need known to a program run apart."""
    return os.pathsep.join([PACKAGE, str(Path(__file__).parent), *sys.path])


def script(text: str, *arguments: str, under: Sequence[str] = (), timeout: float = 60,
           env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a Python program on the host, in a process of its own, that can import this package and this module."""
    return subprocess.run(
        [*under, sys.executable, "-B", "-c", textwrap.dedent(text), *arguments], capture_output=True, text=True,
        timeout=timeout, check=False,
        env={**os.environ, **(env or {}), "PYTHONPATH": python_path()})


def prints(text: str, *arguments: str, under: Sequence[str] = (), env: dict[str, str] | None = None) -> list[str]:
    """As :func:`script`; the lines that it prints. Fails the test when it fails."""
    done = script(text, *arguments, under=under, env=env)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


def private_mounts() -> list[str]:
    """The command under which a program may mount without the machine noticing; skips where there is none."""
    command = ["unshare", "-m"] if IS_ROOT else ["unshare", "-Urm"]
    try:
        done = subprocess.run([*command, "sh", "-c", "readlink /proc/self/ns/mnt"], capture_output=True, text=True,
                              check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no private mount namespace to be had: {error}")
    if done.returncode or done.stdout.strip() == namespaces()["mnt"]:
        pytest.skip(f"no private mount namespace to be had: {done.stderr.strip()}")
    return command


def needs(*limits: str) -> pytest.MarkDecorator:
    """Skips a test where this host cannot enforce one of these limits, and says why not."""
    abilities = host_control().abilities()
    lacking = [f"{one}: {abilities[one].how}" for one in limits if not abilities[one].ok]
    return pytest.mark.skipif(bool(lacking), reason="; ".join(lacking) or "there")


def cgroups_of(sandbox: Sandbox) -> list[str]:
    """The directories of a sandbox's cgroups on the host; none where it has none."""
    group = sandbox._ready().group
    return [] if group is None else list(group.paths.values())
