"""Random stacks of layers, ours beside umoci's: the merged tree is the same, or both refuse.

The same stacks every time, so that a run does not depend on luck; SOAK_EXAMPLES=2000 goes looking for others.
umoci applies each layer to one tree, we make directories for overlayfs: two ways that have to come to the same.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagemaker import Item, directory, file, hardlink, image, layer, symlink, write_layout
from treelook import Look, differences, look_at, merge

from pytest_sandbox import ImageError
from pytest_sandbox.image.store import ImageStore

pytestmark = [
    pytest.mark.skipif(shutil.which("umoci") is None, reason="no umoci: apt-get install umoci"),
    pytest.mark.skipif(os.geteuid() != 0, reason="umoci keeps owners only for root"),
]

paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
modes = st.sampled_from([0o755, 0o700, 0o644, 0o4755, 0o1777])
owners = st.sampled_from([0, 1, 1000])
times = st.integers(1, 10**9)
targets = st.sampled_from(["a", "b", "/a", "../b", "/", "c/a", "nowhere", "/b/c"])


def whiteout(path: str) -> Item:
    head, slash, name = path.rpartition("/")
    return file(f"{head}{slash}.wh.{name}")


items = st.one_of(
    st.builds(lambda path, mode, uid, mtime: directory(path, mode, uid=uid, mtime=mtime), paths, modes, owners, times),
    st.builds(lambda path, data, mode, uid, mtime: file(path, data, mode=mode, uid=uid, mtime=mtime), paths,
              st.sampled_from(["", "x", "yy" * 300]), modes, owners, times),
    st.builds(lambda path, to, uid, mtime: symlink(path, to, uid=uid, mtime=mtime), paths, targets, owners, times),
    st.builds(hardlink, paths, paths),
    st.builds(whiteout, paths),
    st.builds(lambda path: file(f"{path}/.wh..wh..opq"), paths),
    st.builds(lambda path, mode, uid, mtime: Item(path, "6", mode=mode, uid=uid, mtime=mtime), paths, modes, owners,
              times),
)
stacks = st.lists(st.lists(items, min_size=1, max_size=8), min_size=1, max_size=4)


def comparable(looks: dict[str, Look]) -> dict[str, Look]:
    """Without what the two cannot share: times of directories, the root's attributes, links across layers."""
    return {name: dataclasses.replace(look, links=()) for name, look in looks.items() if name != "."}


EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "0"))


@settings(max_examples=EXAMPLES or 60, deadline=None, derandomize=not EXAMPLES, database=None,
          suppress_health_check=list(HealthCheck))
@given(stacks)
def test_our_tree_is_umocis(layers: list[list[Item]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        layout = write_layout(scratch / "layout", image([layer(one) for one in layers]), names=["t"])
        try:
            with ImageStore(scratch / "cache") as store:
                ours = comparable(merge(store.resolve(f"oci:{layout}").layers, directory_times=False))
        except ImageError:
            ours = None
        done = subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:t", str(scratch / "umoci")],
                              capture_output=True, check=False)
        theirs = comparable(look_at(scratch / "umoci", directory_times=False)) if done.returncode == 0 else None
        if ours is None or theirs is None:
            assert ours == theirs, done.stderr.decode()
        else:
            assert differences(ours, theirs) == []
