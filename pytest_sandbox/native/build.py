"""Builds the compiled spawner: with the package, as hatchling's hook, or where it lies (``python build.py``).

It is a convenience: without a C compiler the package is built all the same, for every machine, and starts its sandboxes
by Python. ``CC`` and ``CFLAGS`` are those of the environment.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "spawner"
# Static: it is started where the host's libraries are not, and runs on every machine of this kind.
FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fstack-protector-strong", "-static", "-s"]


class NotBuiltError(Exception):
    """There is no compiler, or it failed; the message says which."""


def build() -> Path:
    """Compiles it, and returns where it is.

    :raises NotBuiltError: when it cannot be; what there was before is gone.
    """
    PROGRAM.unlink(missing_ok=True)
    if not sys.platform.startswith("linux"):
        raise NotBuiltError("it is for Linux only")
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise NotBuiltError(f"there is no C compiler ({compiler[0]}): install gcc and libc6-dev, or musl-dev")
    made = PROGRAM.with_name(f"spawner.{os.getpid()}")
    command = [*compiler, *FLAGS, *shlex.split(os.environ.get("CFLAGS", "")), "-o", str(made),
               *sorted(str(one) for one in HERE.glob("*.c"))]
    try:
        run = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if run.returncode:
            raise NotBuiltError(f"{compiler[0]} failed: {run.stderr.strip() or run.returncode}")
        if subprocess.run([made, "--actions"], capture_output=True).returncode:
            raise NotBuiltError("what was compiled does not run here")
        made.replace(PROGRAM)
    finally:
        made.unlink(missing_ok=True)
    return PROGRAM


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand
    pass
else:
    class SpawnerHook(BuildHookInterface[Any]):
        """What hatchling runs before it makes a wheel."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """Builds the program and makes the wheel one for this kind of machine; without it, one for all."""
            try:
                build()
            except (NotBuiltError, OSError) as error:
                self.app.display_warning(f"pytest-sandbox is built without its compiled spawner: {error}")
                return
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["artifacts"].append("/pytest_sandbox/native/spawner")
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"


if __name__ == "__main__":
    try:
        print(build())
    except NotBuiltError as problem:
        sys.exit(f"not built: {problem}")
