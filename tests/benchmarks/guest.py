"""What a test in an image's own Python costs: beside the host's image, over several images, and beside podman.

The images hold this machine's Python (``tests/guestimage.py``), so that what differs is how a test gets there.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import time
from pathlib import Path

from measure import Series, Table, in_turns
from peers import Runner

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import guestimage

SUITE = """
import pytest

pytestmark = pytest.mark.sandbox(image={image!r})

@pytest.mark.parametrize("number", range({count}))
def test_nothing(number):
    pass
"""
#: How many tests of the host's image a run has while a guest starts.
BEFORE = 80
PLAIN = ["-p", "no:cacheprovider", "-p", "no:pytest_forked", "-p", "no:randomly"]


def run(folder: Path, count: int, rounds: int) -> list[Table]:
    roots = [guestimage.make_python_root(folder / "first")]
    roots += [guestimage.another(roots[0], folder / name, name) for name in ("second", "third")]
    references = [f"rootfs:{root}" for root in roots]
    tables = []
    for title, variants, against in (
        ("One more test that does nothing, after the first", {"host image": "host", "guest": references[0]},
         "host image"),
        (f"A run of {count} tests", {"over one image": references[0], "over three images": references},
         "over one image"),
    ):
        actions = {}
        for name, image in variants.items():
            tests = count // 3 if isinstance(image, list) else count
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "test_nothing.py").write_text(SUITE.format(image=image, count=tests))
            actions[name] = lambda place=folder / name, whole="run" in title: one(place, whole)
        tables.append(Table(f"{title} ({rounds} runs each)", in_turns(actions, rounds), against))
    tables.append(first(folder, roots[0], rounds))
    return tables


def one(folder: Path, whole: bool) -> list[float]:
    """Milliseconds between the outcomes of two tests, or of the whole run."""
    began, times, said = time.perf_counter(), [], []
    with subprocess.Popen([sys.executable, "-m", "pytest", "-v", *PLAIN], cwd=folder, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if " PASSED " in line:
                times.append(time.perf_counter())
    if process.returncode or not times:
        raise SystemExit(f"pytest in {folder} did not pass:\n{''.join(said)[-2000:]}")
    if whole:
        return [(time.perf_counter() - began) * 1000]
    return [(after - before) * 1000 for before, after in itertools.pairwise(times)]


def first(folder: Path, root: Path, rounds: int) -> Table:
    """A run of one test, from nothing: beside a container in which the same pytest runs it."""
    from pytest_sandbox import grafts

    place = folder / "alone"
    place.mkdir()
    (place / "test_nothing.py").write_text(SUITE.format(image=f"rootfs:{root}", count=1))
    store = folder / "podman"
    words = ["podman", f"--root={store}/s", f"--runroot={store}/r", "--storage-driver=overlay",
             "--cgroup-manager=cgroupfs", "run", "--rm", "--network=none", "--cgroups=disabled",
             "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096", "--security-opt=seccomp=unconfined",
             f"--volume={grafts.graft()}:/graft:ro", f"--volume={place}:/project", "--workdir=/project",
             "--env=PYTHONPATH=/graft", "--env=PYTHONDONTWRITEBYTECODE=1", "--rootfs", str(root),
             "/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    later = folder / "later"
    later.mkdir()
    (later / "test_first.py").write_text(SUITE.format(image="host", count=BEFORE))
    (later / "test_second.py").write_text(SUITE.format(image=f"rootfs:{root}", count=1))
    actions = {"guest": lambda: one(place, True),
               f"guest, of the test alone, after {BEFORE} of the host": lambda: one(later, False)[-1:]}
    note = "podman is not here, or cannot run a container."
    runner = Runner()
    if shutil.which("podman") is not None:
        _, code, said = runner.run(words)
        if code == 0:
            note = ""
            actions["podman run"] = lambda: [runner.timed(words)]
        else:
            note = f"podman cannot run a container here: {said.strip()[-200:]}"
    try:
        series: list[Series] = in_turns(actions, rounds)
    finally:
        runner.run(["umount", "-q", f"{store}/s/overlay"])
        runner.close()
    against = "podman run" if "podman run" in actions else "guest"
    return Table(f"A run of one test ({rounds} runs each)", series, against, [note] if note else [])

