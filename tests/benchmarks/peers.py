"""A sandbox from a root filesystem of its own: start, run ``true``, close. Beside bubblewrap, crun, podman, docker-py.

All get the same small root. Peers run in a mount namespace of this part's own that shows them cgroup v2 alone: crun and
podman refuse a machine that has both versions. That namespace is a process that starts them when it is told to, so that
they take turns with us.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from claims import Claim
from measure import Table, in_turns, timed
from start import bubblewrap

from pytest_sandbox import Sandbox

_RUNNER = """
import json, subprocess, sys, time
for line in sys.stdin:
    words = json.loads(line)
    began = time.perf_counter()
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    print(json.dumps([(time.perf_counter() - began) * 1000, done.returncode, done.stderr[-300:]]), flush=True)
"""


class Runner:
    """Starts commands where there is only cgroup v2, and says how long each took. As an ordinary user: just here."""

    def __init__(self) -> None:
        words = [sys.executable, "-c", _RUNNER]
        if os.geteuid() == 0:
            script = 'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
            words = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", *words]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, words: list[str]) -> tuple[float, int, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        took, code, said = json.loads(self.process.stdout.readline())
        return took, code, said

    def timed(self, words: list[str]) -> float:
        took, code, said = self.run(words)
        if code:
            raise SystemExit(f"{' '.join(words)} failed: {said}")
        return took

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def make_root(folder: Path) -> Path:
    """A root filesystem that holds ``true``: busybox, where it is installed, which needs no library."""
    root = folder / "root"
    for name in ("bin", "proc", "dev", "sys", "tmp", "etc", "run"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is not installed: apt-get install busybox-static")
    shutil.copy2(busybox, root / "bin" / "busybox")
    os.symlink("busybox", root / "bin" / "true")
    return root


def crun_bundle(folder: Path, root: Path) -> Path:
    """What crun would run; its root is read-only, for it makes no overlay."""
    subprocess.run(["crun", "spec"], cwd=folder, check=True)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config["process"].update(terminal=False, args=["/bin/true"])
    config["process"].pop("rlimits", None)
    config["linux"]["resources"] = {}
    config["root"] = {"path": str(root), "readonly": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def peers(folder: Path, root: Path) -> Iterator[tuple[dict[str, Callable[[], float]], dict[str, str]]]:
    """What runs ``true`` in that root, and why the others cannot."""
    runner = Runner()
    words = {"bubblewrap": [bubblewrap(), "--unshare-all", "--die-with-parent", "--overlay-src", str(root),
                            "--tmp-overlay", "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"]}
    missing = {}
    store = folder / "podman"
    if shutil.which("crun"):
        words["crun"] = ["crun", f"--root={folder}/crun", "run", f"--bundle={crun_bundle(folder, root)}", "bench"]
    if shutil.which("podman"):
        words["podman"] = [
            "podman", f"--root={store}/s", f"--runroot={store}/r", "--storage-driver=overlay",
            "--cgroup-manager=cgroupfs", "run", "--rm", "--network=none", "--cgroups=disabled",
            "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--rootfs", f"{root}:O", "/bin/true"]
    actions: dict[str, Callable[[], float]] = {}
    for name in ("bubblewrap", "crun", "podman"):
        if name not in words:
            missing[name] = f"not installed (apt-get install {name})"
            continue
        _, code, said = runner.run(words[name])
        if code:
            missing[name] = f"it cannot run here: {said.strip().splitlines()[-1] if said.strip() else code}"
        else:
            actions[name] = lambda one=words[name]: runner.timed(one)
    docker = docker_py(root)
    if isinstance(docker, str):
        missing["docker-py"] = docker
    else:
        actions["docker-py"] = docker
    try:
        yield actions, missing
    finally:
        runner.run(["umount", "-q", f"{store}/s/overlay"])
        runner.close()
        # podman makes a mount for its store in the namespace that it runs in, which has just gone.


def docker_py(root: Path) -> Callable[[], float] | str:
    """A container of that root by docker-py, or why there is none."""
    try:
        import docker  # type: ignore[import-not-found]
    except ImportError:
        return "docker-py is not installed"
    try:
        client = docker.from_env(timeout=5)
        client.ping()
    except Exception:  # noqa: BLE001 - whatever it says, there is none
        return "no Docker daemon answers"
    tar = subprocess.run(["tar", "-C", str(root), "-c", "."], check=True, capture_output=True).stdout
    client.api.import_image_from_data(tar, repository="pytest-sandbox-bench")
    return lambda: timed(lambda: client.containers.run("pytest-sandbox-bench", "/bin/true", remove=True,
                                                       network_mode="none"))


def run(folder: Path, rounds: int) -> list[Table]:
    folder.mkdir()
    root = make_root(folder)
    image = f"rootfs:{root}"

    def sandbox() -> None:
        with Sandbox(image=image) as one:
            one.run(["/bin/true"], check=True)

    with peers(folder, root) as (actions, missing):
        sandbox()
        variants = {"Sandbox": lambda: timed(sandbox), **{name: one for name, one in actions.items()
                                                           if name in ("bubblewrap", "crun")}}
        quick = in_turns(variants, rounds)
        slow = in_turns({"Sandbox": lambda: timed(sandbox), **{name: one for name, one in actions.items()
                                                                if name in ("podman", "docker-py")}},
                        max(10, rounds // 10))
    merged = {one.name: one for one in [*slow, *quick]}
    table = Table("Start, run true, close, on a small root with an overlay (crun: read-only, without)",
                  list(merged.values()), "bubblewrap" if "bubblewrap" in merged else "Sandbox")
    for name, wanted in (("bubblewrap", 0.75), ("crun", 0.3), ("podman", 0.03), ("docker-py", 0.02)):
        table.claims.append(Claim(
            "start, run, close", name, wanted, merged["Sandbox"].samples,
            merged[name].samples if name in merged else None, missing=missing.get(name, "")))
    table.notes += [f"{name}: {why}." for name, why in missing.items()]
    table.notes.append(", ".join(f"{name} {number}" for name, number in versions().items()))
    with Sandbox() as live:
        live.run(["true"], check=True)
        series = in_turns({
            "subprocess.run": lambda: timed(lambda: subprocess.run(["true"], check=True, stdin=subprocess.DEVNULL,
                                                                   capture_output=True, text=True)),
            "run() in a live sandbox": lambda: timed(lambda: live.run(["true"], check=True))}, rounds * 2)
    inside = Table("true, in a live sandbox and on the host", series, "subprocess.run")
    inside.claims.append(Claim("run([\"true\"]) in a live sandbox", "subprocess.run on the host", 1.15,
                               series[1].samples, series[0].samples))
    return [table, inside]


def versions() -> dict[str, str]:
    found = {}
    for name in ("crun", "podman"):
        if shutil.which(name):
            said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
            found[name] = (re.search(r"\d[\w.]+", said) or ["?"])[0]
    return found
