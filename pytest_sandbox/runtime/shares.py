"""What the kernel counts by user, and not by cgroup: how much of it one sandbox may have. Used by ``plan``.

Instances of inotify and namespaces are counted for the user who owns the sandbox, too (namespaces(7), "The
/proc/sys/user directory"): one that takes them all leaves that user none outside. So the sandbox's own user namespace
has limits below the host's. And when the host itself runs out of memory, the kernel shall look at sandboxes first.
"""

from __future__ import annotations

import functools
import os

#: The files of /proc/sys/user of which a sandbox may have half.
HALVED = ("max_inotify_instances", "max_inotify_watches", "max_fanotify_groups", "max_fanotify_marks")
#: Those of which it may have this many: each namespace costs the kernel some 10 to 100 KiB.
NAMESPACES = tuple(f"max_{one}_namespaces" for one in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"))
MOST_NAMESPACES = 1024
#: oom_score_adj: as if half of the host's memory were in use by each process inside (proc_pid_oom_score_adj(5)).
OUT_OF_MEMORY = 500


@functools.lru_cache(maxsize=1)
def counts() -> list[list[str]]:
    """Names and values for /proc/sys/user, as far as this kernel has them."""
    found = []
    for name in (*HALVED, *NAMESPACES):
        try:
            with open(f"/proc/sys/user/{name}") as file:
                here = int(file.read())
        except (OSError, ValueError):
            continue
        share = (here + 1) // 2 if name in HALVED else min(here, MOST_NAMESPACES)
        found.append([name, str(share)])
    return found


@functools.lru_cache(maxsize=1)
def out_of_memory() -> str:
    """The oom_score_adj of all inside; empty where the caller's own is no lower."""
    try:
        with open("/proc/self/oom_score_adj") as file:
            here = int(file.read())
    except (OSError, ValueError):
        return ""
    return str(OUT_OF_MEMORY) if here < OUT_OF_MEMORY else ""


def come_first() -> None:
    """In a fork of the caller that has entered a sandbox: as the processes there."""
    if text := out_of_memory():
        try:
            fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.write(fd, text.encode())
        except OSError:
            pass
        finally:
            os.close(fd)
