"""Pulling and unpacking, beside skopeo, umoci and podman in one run. Also by itself: ``images.py --help``.

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
from measure import Series, Table  # noqa: E402

OURS = "import sys; from pytest_sandbox.image.store import ImageStore; ImageStore(sys.argv[1]).resolve(sys.argv[2])"
FETCH = """
import sys, threading
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

#: The least that Python can do: the standard library, one connection, the bytes hashed and written; no store, no login,
#: no second try. What it takes is the floor of any pull by a Python that starts for it.
LEAST = """
import hashlib, http.client, json, queue, sys, threading
host, _, name = sys.argv[2].partition("/")
name, _, tag = name.partition(":")
connection = http.client.HTTPConnection(host)
def get(what):
    connection.request("GET", f"/v2/{name}/{what}", headers={"Accept": "application/vnd.oci.image.manifest.v1+json"})
    return connection.getresponse()
with get(f"manifests/{tag}") as answer:
    layers = json.loads(answer.read())["layers"]
for layer in layers:
    pieces, digest = queue.Queue(16), hashlib.sha256()
    def run():
        while (piece := pieces.get()) is not None:
            digest.update(piece)
    thread = threading.Thread(target=run)
    thread.start()
    with get(f"blobs/{layer['digest']}") as answer, open(sys.argv[1], "wb", buffering=0) as file:
        while piece := answer.read1(1 << 18):
            pieces.put(piece)
            file.write(piece)
    pieces.put(None)
    thread.join()
    assert layer["digest"] == f"sha256:{digest.hexdigest()}"
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


def table(title: str, against: str, runs: dict[str, list[tuple[float, float]]]) -> Table:
    """Wall times as samples; what they cost in CPU time as notes."""
    made = Table(title, [Series(name, [wall * 1000 for wall, _ in got]) for name, got in runs.items()], against)
    base = statistics.median(cpu for _, cpu in runs[against])
    for name, got in runs.items():
        cpu = statistics.median(cpu for _, cpu in got)
        made.notes.append(f"{name}: CPU {cpu * 1000:.0f} ms, {cpu / base:.2f} of {against}'s; best wall "
                          f"{min(wall for wall, _ in got) * 1000:.0f} ms")
    return made


def second_use(scratch: Path) -> Table:
    """A new ImageStore, and resolve() of an image that is there."""
    from pytest_sandbox.image.store import ImageStore

    series = []
    for count in (1, 60):
        layers = [imagemaker.layer([imagemaker.directory("./"), imagemaker.file(f"f{at}", "x")]) for at in range(count)]
        layout = imagemaker.write_layout(scratch / f"l{count}", imagemaker.image(layers))
        samples = []
        for _ in range(51):
            began = time.perf_counter()
            with ImageStore(scratch / "second") as store:
                assert len(store.resolve(f"oci:{layout}").layers) == count
                samples.append((time.perf_counter() - began) * 1000)
        series.append(Series(f"{count} layers", samples[1:]))
    return Table("Second use of an image", series, "1 layers")


def missing() -> list[str]:
    """What of the peers is not installed."""
    return [name for name in ("docker-registry", "skopeo", "umoci", "podman", "htpasswd", "mmdebstrap")
            if shutil.which(name) is None]


def run(scratch: Path, runs: int, tar: Path | None = None) -> list[Table]:
    """Every table; an empty list where a peer is missing, which is said."""
    if without := missing():
        print(f"no images: {', '.join(without)} not installed", file=sys.stderr)
        return []
    if tar is None:
        tar = scratch / "base.tar"
        subprocess.run(["mmdebstrap", "--variant=minbase", "--include=python3-minimal", "bookworm", str(tar)],
                       check=True, capture_output=True)
    image = imagemaker.image([tar.read_bytes(), imagemaker.layer([imagemaker.file("etc/motd", "x")])])
    layout = imagemaker.write_layout(scratch / "layout", image, names=["t"])
    with realregistry.registry(scratch / "registry") as host:
        subprocess.run(["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}:t",
                        f"docker://{host}/app:1"], check=True, capture_output=True)
        tables = compare(scratch, layout, f"{host}/app:1", runs)
    return [*tables, second_use(scratch)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tar", type=Path, help="root file system to use; made with mmdebstrap otherwise")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    options = parser.parse_args()
    print(f"{platform.release()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {options.scratch}\n")
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        print("\n".join(one.markdown() for one in run(Path(name), options.runs, options.tar)))
    return 0


def compare(scratch: Path, layout: Path, reference: str, runs: int) -> list[Table]:
    target, least = scratch / "target", scratch / "least"

    def clear() -> None:
        shutil.rmtree(target, ignore_errors=True)
        least.unlink(missing_ok=True)

    def clear_podman() -> None:
        clear()
        target.mkdir()

    skopeo = ["skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", f"docker://{reference}"]
    podman = ["podman", "--root", str(target / "s"), "--runroot", str(target / "r"), "--storage-driver", "overlay"]
    groups: list[tuple[str, str, dict[str, tuple[list[str], Callable[[], None]]]]] = [
        ("Pull without unpacking", "skopeo", {
            "ours": ([sys.executable, "-c", FETCH, str(target), reference], clear),
            "the shortest Python, no store": ([sys.executable, "-S", "-c", LEAST, str(least), reference], clear),
            "skopeo": ([*skopeo, f"oci:{target}:t"], clear)}),
        ("Unpack from an OCI layout", "umoci raw", {
            "ours": ([sys.executable, "-c", OURS, str(target), f"oci:{layout}:t"], clear),
            "umoci raw": (["umoci", "raw", "unpack", "--image", f"{layout}:t", str(target)], clear),
            "umoci (with its mtree)": (["umoci", "unpack", "--image", f"{layout}:t", str(target)], clear)}),
        ("Pull and unpack", "podman", {
            "ours": ([sys.executable, "-c", OURS, str(target), reference], clear),
            "podman": ([*podman, "pull", "-q", "--tls-verify=false", reference], clear_podman)}),
    ]
    tables = []
    for title, against, variants in groups:
        found: dict[str, list[tuple[float, float]]] = {one: [] for one in variants}
        for _ in range(runs):
            for one, (command, prepare) in variants.items():
                found[one].append(timed(command, prepare))
        clear()
        tables.append(table(title, against, found))
    return tables


if __name__ == "__main__":
    sys.exit(main())
