"""Pulls killed at random moments, and disks that fill up: afterwards one clean run makes everything whole.

Not part of the default suite. ``python -m pytest tests/soak/test_image_crashes.py``; SOAK_KILLS changes the number of
kills, SOAK_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry
from imagemaker import Image, directory, file, hardlink, image, layer
from treelook import look_at, merge

from pytest_sandbox.image.collect import list_images, verify
from pytest_sandbox.image.store import ImageStore

KILLS = int(os.environ.get("SOAK_KILLS", "200"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.randrange(1 << 30)

PULL = """
import sys
from pytest_sandbox import SandboxError
from pytest_sandbox.image.store import ImageStore
with ImageStore(sys.argv[1]) as store:
    for reference in sys.argv[2:]:
        store.resolve(reference)
"""


def made(chance: random.Random) -> Image:
    def noise(size: int) -> bytes:
        return chance.randbytes(size)
    base = layer([directory("d"), *(file(f"d/{at}", noise(4000)) for at in range(400)), file("big", noise(3_000_000))])
    second = layer([directory("e"), *(file(f"e/{at}", noise(2000)) for at in range(400)), file("d/.wh.1")])
    third = layer([hardlink("link", "big"), file("d/new", noise(100))])
    return image([base, second, third, layer([file("top", noise(2_000_000))])])


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


def start(cache: Path, references: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PULL, cache, *references], stderr=subprocess.PIPE)


def test_killed_at_any_moment(registry: FakeRegistry, tmp_path: Path) -> None:
    print(f"SOAK_SEED={SEED}")
    chance = random.Random(SEED)
    images = [made(chance) for _ in range(2)]
    references = [registry.put("app", str(at), one) for at, one in enumerate(images)]
    with ImageStore(tmp_path / "clean") as store:
        began = time.monotonic()
        truth = [merge(store.resolve(one).layers) for one in references]
        alone = time.monotonic() - began
    cache = tmp_path / "cache"
    killed = 0
    while killed < KILLS:
        running = [start(cache, chance.sample(references, 2)) for _ in range(4)]
        for one in chance.sample(running, 4):
            time.sleep(chance.uniform(0, alone / 3))
            if one.poll() is None:
                one.send_signal(signal.SIGKILL)
                killed += 1
        for one in running:
            errors = one.communicate()[1].decode()
            assert one.returncode in (0, -signal.SIGKILL), errors
        if chance.random() < 0.8:  # begin anew, so that there is something to do
            with ImageStore(cache) as store:
                for listed in list_images(store)[: chance.randint(0, 2)]:
                    os.unlink(store.layout.image(listed.image_id))
                for key in store.layout.keys("layers"):
                    if chance.random() < 0.6:
                        store.layout.discard(store.layout.layer(key))
                for name in store.layout.keys("blobs/sha256"):
                    if chance.random() < 0.6:
                        os.unlink(f"{store.layout.root}/blobs/sha256/{name}")
    with ImageStore(cache) as store:
        for reference, expected in zip(references, truth, strict=True):
            assert merge(store.resolve(reference, refresh=True).layers) == expected
        assert verify(store) == []
        store.layout.sweep()
        assert store.layout.keys("staging") == []
        assert store.layout.keys("trash") == []


FULL = """
import json, os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={sys.argv[2]}k", "tmpfs", sys.argv[1]], check=True)
from pytest_sandbox import StoreError
from pytest_sandbox.image.collect import prune, verify
from pytest_sandbox.image.store import ImageStore
cache, big, small = sys.argv[1], sys.argv[3], sys.argv[4]
outcome = {}
try:
    with ImageStore(cache) as store:
        store.resolve(small)
    with ImageStore(cache) as store:
        store.resolve(big)
    outcome["pull"] = "fits"
except StoreError as error:
    outcome["pull"] = str(error)
outcome["problems"] = []
if "fits" not in outcome["pull"]:
    filler = open(os.path.join(cache, "filler"), "wb")  # not one byte is left
    try:
        while True:
            filler.write(bytes(4096)); filler.flush()
    except OSError:
        pass
try:
    with ImageStore(cache) as store:
        outcome["problems"] = [str(one) for one in verify(store)]
        outcome["freed"] = prune(store, everything=True, blobs=True).bytes
        outcome["left"] = [store.layout.keys(room) for room in ("layers", "blobs/sha256", "images", "staging", "trash")]
except StoreError as error:
    outcome["prune"] = str(error)
try:
    os.unlink(os.path.join(cache, "filler"))
except FileNotFoundError:
    pass
with ImageStore(cache) as store:
    store.resolve(small)
    outcome["after"] = [str(one) for one in verify(store)]
print(json.dumps(outcome))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is a mount in a namespace of our own: needs root")
def test_disk_full_at_any_moment(registry: FakeRegistry, tmp_path: Path) -> None:
    import json

    chance = random.Random(SEED)
    big = registry.put("app", "big", made(chance))
    small = registry.put("app", "small", image([layer([file("x", "y")])]))
    cache = tmp_path / "cache"
    cache.mkdir()
    outcomes = []
    for size in chance.sample(range(400, 17_000), 40):
        command = ["unshare", "-m", "--propagation", "private", sys.executable, "-c", FULL]
        done = subprocess.run([*command, cache, str(size), big, small], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (size, done.stderr)
        outcome = json.loads(done.stdout)
        outcomes.append(outcome["pull"])
        assert outcome["problems"] == [], (size, outcome)
        assert outcome["after"] == [], (size, outcome)
        assert "prune" not in outcome, (size, outcome)
        assert outcome["left"] == [[], [], [], [], []], (size, outcome)
        if outcome["pull"] != "fits":
            assert "No space left" in outcome["pull"]
            assert "prune" in outcome["pull"]
    assert any(one != "fits" for one in outcomes)
    assert look_at(cache).keys() == {"."}
