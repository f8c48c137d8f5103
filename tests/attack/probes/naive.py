"""The naive world: namespaces made by unshare(1), and no more. Covers are stand-ins over files of its own."""

from __future__ import annotations

import os

from core import Context, mount


def prepare(context: Context) -> None:
    """Mounts what the probes of mounts take away again, all on a tmpfs of this namespace."""
    mount("none", "/", None, 16384 | 1 << 18)  # private: nothing shows on the host
    mount("stand", "/tmp", "tmpfs", 0, "mode=1777")
    for name in ("proc", "proc/sys", "proc/firmware", "bind"):
        os.mkdir(f"/tmp/{name}")
    for name in ("proc/kcore", "proc/sys/file", "bind/file"):
        with open(f"/tmp/{name}", "w") as file:
            file.write("secret")
    mount("/dev/null", "/tmp/proc/kcore", None, 4096)
    mount("masked", "/tmp/proc/firmware", "tmpfs", 1)
    for name in ("proc/sys", "bind"):
        mount(f"/tmp/{name}", f"/tmp/{name}", None, 4096)
        mount("none", f"/tmp/{name}", None, 4096 | 32 | 1)
    context.update(masked_files=["/tmp/proc/kcore"], masked_directories=["/tmp/proc/firmware"],
                   read_only=["/tmp/proc/sys"], read_only_binds=["/tmp/bind"])
