"""The processes of a sandbox and what they use, as an init that is Python reads them from its own /proc."""

from __future__ import annotations

import os
import resource

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any


def pids() -> list[int]:
    """All but init's."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def counted(used: Any) -> list[float]:
    """Of a ``struct rusage``: user and system seconds, blocks read and written."""
    return [used.ru_utime, used.ru_stime, used.ru_inblock, used.ru_oublock]


def usage() -> dict[str, Any]:
    """What was used inside, for hosts without cgroups: by all that was reaped, and by what runs now."""
    sums = counted(resource.getrusage(resource.RUSAGE_CHILDREN))
    ticks = os.sysconf("SC_CLK_TCK")
    tasks = 0
    for pid in pids():
        try:
            with open(f"/proc/{pid}/stat", errors="replace") as file:
                fields = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended meanwhile
        # proc_pid_stat(5) counts from 1; these begin with field 3.
        sums[0] += (int(fields[11]) + int(fields[13])) / ticks
        sums[1] += (int(fields[12]) + int(fields[14])) / ticks
        tasks += int(fields[17])
    return {"used": sums, "pids": tasks}


def processes() -> list[dict[str, Any]]:
    """The processes inside but this one, from /proc: pid, parent, state, name and arguments."""
    found = []
    for pid in pids():
        try:
            with open(f"/proc/{pid}/stat", errors="replace") as file:
                head, tail = file.read().rsplit(")", 1)
            with open(f"/proc/{pid}/cmdline", errors="replace") as file:
                arguments = file.read(65536).rstrip("\0").split("\0")
        except OSError:
            continue  # it ended meanwhile
        state, parent = tail.split()[:2]
        found.append({"pid": pid, "ppid": int(parent), "state": state, "name": head.split("(", 1)[1],
                      "args": arguments if arguments != [""] else []})
    return found
