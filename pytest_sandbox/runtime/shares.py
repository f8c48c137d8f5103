"""What the kernel counts by user, and not by cgroup: how much of it one sandbox may have. Used by ``plan``.

Instances of inotify and namespaces are counted for the user who owns the sandbox, too (namespaces(7), "The
/proc/sys/user directory"): one that takes them all leaves that user none outside. So the sandbox's own user namespace
has limits below the host's. And when the host itself runs out of memory, the kernel shall look at sandboxes first.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

#: The files of /proc/sys/user of which a sandbox may have half.
HALVED = ("max_inotify_instances", "max_inotify_watches", "max_fanotify_groups", "max_fanotify_marks")
#: Those of which it may have this many: each namespace costs the kernel some 10 to 100 KiB.
NAMESPACES = tuple(f"max_{one}_namespaces" for one in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"))
MOST_NAMESPACES = 1024
#: oom_score_adj: as if half of the host's memory were in use by each process inside (proc_pid_oom_score_adj(5)).
OUT_OF_MEMORY = 500


_known: dict[str, Any] = {}


def counts() -> list[list[str]]:
    """Names and values for /proc/sys/user, as far as this kernel has them."""
    if "counts" not in _known:
        found = []
        for name in (*HALVED, *NAMESPACES):
            try:
                with open(f"/proc/sys/user/{name}") as file:
                    here = int(file.read())
            except (OSError, ValueError):
                continue
            share = (here + 1) // 2 if name in HALVED else min(here, MOST_NAMESPACES)
            found.append([name, str(share)])
        _known["counts"] = found
    known: list[list[str]] = _known["counts"]
    return known


def out_of_memory() -> str:
    """The oom_score_adj of all inside; empty where the caller's own is no lower."""
    if "oom" not in _known:
        try:
            with open("/proc/self/oom_score_adj") as file:
                _known["oom"] = str(OUT_OF_MEMORY) if int(file.read()) < OUT_OF_MEMORY else ""
        except (OSError, ValueError):
            _known["oom"] = ""
    known: str = _known["oom"]
    return known


# In an init that is Python, and in forks of the caller that go into a sandbox.

def take(folder: int, files: list[list[str]]) -> None:
    """Sets what :func:`counts` gave, and closes ``folder``, a /proc/sys/user that was opened before it was read-only.

    What is opened below it is that of the user namespace one is in. Where the host's own /proc/sys is read-only, as in
    most containers, they stay at the host's.
    """
    if folder >= 0:
        for name, text in files:
            _write(name, text, folder)
        os.close(folder)


def come_first(text: str) -> None:
    """Sets what :func:`out_of_memory` gave for the calling process, which what it starts inherits."""
    if text:
        _write("/proc/self/oom_score_adj", text, None)


def _write(path: str, text: str, folder: int | None) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return
    try:
        os.write(fd, text.encode())
    except OSError:
        pass
    finally:
        os.close(fd)
