"""Pulling and unpacking, beside skopeo, umoci and podman in one run. ``python tests/benchmarks/images.py --help``.

Needs docker-registry, skopeo, umoci, podman, apache2-utils and mmdebstrap of Debian's. Each variant runs in a process
of its own (ours with a whole Python to start), in turns; wall and CPU seconds, best and median, as ratios to the peer.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent.parent))

import imagemaker  # noqa: E402 - from the tests' own folder
import realregistry  # noqa: E402

OURS = "import sys; from pytest_sandbox.image.store import ImageStore; ImageStore(sys.argv[1]).resolve(sys.argv[2])"
FETCH = """
import sys, tempfile, threading
from contextlib import closing
from pathlib import Path
from pytest_sandbox.image.blobs import fetch_blob
from pytest_sandbox.image.layout import Layout
from pytest_sandbox.image.manifest import Platform
from pytest_sandbox.image.reference import parse_registry_reference
from pytest_sandbox.image.registry import RegistrySource
from pytest_sandbox.image.source import Progress
from concurrent.futures import ThreadPoolExecutor
layout = Layout(Path(sys.argv[1]))
def one(layer):
    with fetch_blob(layout, source, layer, "x", "x", Progress(), threading.Event(), synced=True):
        pass
with closing(RegistrySource(parse_registry_reference(sys.argv[2]), Platform.here(), progress=Progress())) as source:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, source.image().layers))
"""


def timed(command: list[str], prepare: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of one run."""
    prepare()
    before, began = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)})
    wall, after = time.perf_counter() - began, os.times()
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr}")
    return wall, (after.children_user + after.children_system) - (before.children_user + before.children_system)


def report(title: str, against: str, runs: dict[str, list[tuple[float, float]]]) -> None:
    base = statistics.median(wall for wall, _ in runs[against]), statistics.median(cpu for _, cpu in runs[against])
    print(f"\n{title}\n{'':28} wall med  best   cpu med   wall/{against}  cpu/{against}")
    for name, samples in runs.items():
        walls, cpus = [wall for wall, _ in samples], [cpu for _, cpu in samples]
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        print(f"{name:28} {wall:8.2f} {min(walls):6.2f} {cpu:8.2f} {wall / base[0]:10.2f} {cpu / base[1]:10.2f}")


def second_use(scratch: Path) -> None:
    from pytest_sandbox.image.store import ImageStore

    print("\nsecond use: a new ImageStore, resolve() of an image that is there (ms, median of 50)")
    for count in (1, 60):
        layers = [imagemaker.layer([imagemaker.directory("./"), imagemaker.file(f"f{at}", "x")]) for at in range(count)]
        layout = imagemaker.write_layout(scratch / f"l{count}", imagemaker.image(layers))
        samples = []
        for _ in range(51):
            began = time.perf_counter()
            with ImageStore(scratch / "second") as store:
                assert len(store.resolve(f"oci:{layout}").layers) == count
                samples.append((time.perf_counter() - began) * 1000)
        print(f"{count:3} layers: {statistics.median(samples[1:]):.2f}  worst {max(samples[1:]):.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tar", type=Path, help="root file system to use; made with mmdebstrap otherwise")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    print(f"{platform.release()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {options.scratch}")
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        tar = options.tar or scratch / "base.tar"
        if options.tar is None:
            subprocess.run(["mmdebstrap", "--variant=minbase", "--include=python3-minimal", "bookworm", str(tar)],
                           check=True, capture_output=True)
        image = imagemaker.image([tar.read_bytes(), imagemaker.layer([imagemaker.file("etc/motd", "x")])])
        layout = imagemaker.write_layout(scratch / "layout", image, names=["t"])
        with realregistry.registry(scratch / "registry") as host:
            subprocess.run(["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}:t",
                            f"docker://{host}/app:1"], check=True, capture_output=True)
            measure(scratch, layout, f"{host}/app:1", options.runs)
        second_use(scratch)
    return 0


def measure(scratch: Path, layout: Path, reference: str, runs: int) -> None:
    target = scratch / "target"

    def clear() -> None:
        shutil.rmtree(target, ignore_errors=True)

    def clear_podman() -> None:
        clear()
        target.mkdir()

    skopeo = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", f"docker://{reference}"]
    podman = ["podman", "--root", str(target / "s"), "--runroot", str(target / "r"), "--storage-driver", "overlay"]
    groups: list[tuple[str, str, dict[str, tuple[list[str], Callable[[], None]]]]] = [
        ("pull without unpacking", "skopeo", {
            "ours": ([sys.executable, "-c", FETCH, str(target), reference], clear),
            "skopeo": ([*skopeo, f"oci:{target}:t"], clear)}),
        ("unpack from an OCI layout", "umoci raw", {
            "ours": ([sys.executable, "-c", OURS, str(target), f"oci:{layout}:t"], clear),
            "umoci raw": (["umoci", "raw", "unpack", "--image", f"{layout}:t", str(target)], clear),
            "umoci (with its mtree)": (["umoci", "unpack", "--image", f"{layout}:t", str(target)], clear)}),
        ("pull and unpack", "podman", {
            "ours": ([sys.executable, "-c", OURS, str(target), reference], clear),
            "podman": ([*podman, "pull", "-q", "--tls-verify=false", reference], clear_podman)}),
    ]
    for title, against, variants in groups:
        found: dict[str, list[tuple[float, float]]] = {one: [] for one in variants}
        for _ in range(runs):
            for one, (command, prepare) in variants.items():
                found[one].append(timed(command, prepare))
        clear()
        report(title, against, found)


if __name__ == "__main__":
    sys.exit(main())
