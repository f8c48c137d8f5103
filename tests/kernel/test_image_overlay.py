"""The kernel's own overlay of our layers shows what the image is: opaque directories, whiteouts, links and attributes.

Mounted in a mount namespace of its own: by root with ``trusted`` marks, and in a user namespace with ``userxattr``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from imagemaker import directory, file, hardlink, image, layer, symlink, write_layout
from treelook import merge

from pytest_sandbox.image.store import ImageStore

LAYERS = [
    layer([directory("gone"), file("gone/x"), directory("cut"), file("cut/low"), directory("kept", 0o711),
           file("kept/low", "low"), symlink("lib", "usr/lib"), directory("usr"), directory("usr/lib"),
           file("replaced", "file"), directory("swapped"), file("swapped/low")]),
    layer([file(".wh.gone"), directory("cut"), file("cut/.wh..wh..opq"), file("cut/new"), file("kept/late", "late"),
           file("lib/x.so"), directory("replaced"), file("swapped", "file now"), hardlink("kept/alias", "kept/low")]),
    layer([directory("gone"), file("gone/again"), file("kept/.wh.late"), directory("w", pax={
        "SCHILY.xattr.user.overlay.opaque": "y", "SCHILY.xattr.user.mine": "1"}), file("w/inside")]),
]

MOUNT = """
import json, os, subprocess, sys
target, options, layers = sys.argv[1], sys.argv[2], sys.argv[3:]
lower = ":".join(reversed(layers))
subprocess.run(["mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={lower}{options}", target], check=True)
found = {}
for base, directories, files in os.walk(target):
    for name in [*directories, *files]:
        path = os.path.join(base, name)
        status = os.lstat(path)
        mine = [one for one in os.listxattr(path, follow_symlinks=False) if one == "user.mine"]
        found[os.path.relpath(path, target)] = [status.st_mode, status.st_size if files and name in files else 0, mine]
print(json.dumps(found))
"""


def overlay(namespaces: list[str], options: str, target: Path, layers: tuple[str, ...]) -> dict[str, list[object]]:
    done = subprocess.run(["unshare", *namespaces, sys.executable, "-c", MOUNT, str(target), options, *layers],
                          capture_output=True, text=True, check=False)
    if done.returncode and "-U" in namespaces[0] and "Operation not permitted" in done.stderr:
        pytest.skip("this host gives no user namespace, or no overlay in one: see pytest-sandbox doctor")
    assert done.returncode == 0, done.stderr
    found: dict[str, list[object]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("how", ["trusted", "userxattr"])
def test_the_kernel_shows_what_the_image_is(tmp_path: Path, how: str) -> None:
    if how == "trusted" and os.geteuid() != 0:
        pytest.skip("only root reads trusted attributes")
    target = tmp_path / "mnt"
    target.mkdir()
    with ImageStore(tmp_path / "cache") as store:
        stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image(LAYERS))}")
        expected = merge(stack.layers)
        namespaces = ["-m"] if how == "trusted" else ["-Urm"]
        found = overlay([*namespaces, "--propagation", "private"], "" if how == "trusted" else ",userxattr", target,
                        stack.layers)
    assert set(found) == set(expected) - {"."}
    assert "gone/x" not in found
    assert "cut/low" not in found
    assert "usr/lib/x.so" in found
    assert "w/inside" in found
    for name, (mode, _, mine) in found.items():
        assert mode & 0o7777 == expected[name].mode, name  # type: ignore[operator]
        assert bool(mine) == (name == "w")


@pytest.mark.parametrize("count", [1, 60])
def test_many_layers(tmp_path: Path, count: int) -> None:
    layers = [layer([directory("d"), file(f"d/{at}"), *([file(f"d/.wh.{at - 1}")] if at % 2 else [])])
              for at in range(count)]
    with ImageStore(tmp_path / "cache") as store:
        stack = store.resolve(f"oci:{write_layout(tmp_path / 'l', image(layers))}")
        assert len(stack.layers) == count
        assert {one for one in merge(stack.layers) if "/" in one} == {
            f"d/{at}" for at in range(count) if at % 2 or at == count - 1}
