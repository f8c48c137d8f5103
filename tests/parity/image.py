"""An image for the suite: Debian's packages, and the Python and the environment that run the harness, at their paths.

``python tests/parity --image`` runs the sandboxed side in there, in the image's own Python, so that the two sides
differ in how a test gets to its body, and in nothing else.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import guestimage


def make(folder: Path) -> Path:
    """The image's root, made anew in ``folder``."""
    root = guestimage.make_python_root(folder / "image", "parity")
    (root / "etc/os-release").unlink()
    guestimage.add_packages(root, guestimage.download_packages(folder / "packages"))
    environment = root / sys.prefix[1:]
    shutil.copytree(sys.prefix, environment, symlinks=True, dirs_exist_ok=True)
    program = Path(sys.executable)
    while program.is_symlink():  # from the environment's to the interpreter itself
        program = program.parent / os.readlink(program)
        there = root / str(program)[1:]
        if not os.path.lexists(there):
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(os.path.realpath(program))
    return root


def options(root: Path, place: Path, environment: Mapping[str, str]) -> list[str]:
    """The command line of a run in that image: with the plain side's variables, and with its folders."""
    variables = "\n".join(f"{name}={value}" for name, value in environment.items())
    # Not as mounts: a test that could write there could not start over when it asks for a fixture by name.
    persists = "\n".join(("tmp_path", "cache_dir", ".hypothesis", str(place / "logs"), str(place / "home")))
    return ["--sandbox=all", f"--sandbox-image=rootfs:{root}", f"-osandbox_python={sys.executable}",
            f"-osandbox_env={variables}", f"-osandbox_persist={persists}"]
