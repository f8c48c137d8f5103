"""What processes use, from /proc: the benchmarks of many sandboxes and long runs look at their own with it."""

from __future__ import annotations

import os
from pathlib import Path


def below(pid: int) -> list[int]:
    """All descendants of a process."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {pid})


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def memory(pid: int) -> dict[str, int]:
    """KiB: ``Rss``, ``Pss``, and ``Uss``, which is private to the process."""
    found = {"Uss": 0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = line.partition(":")
        number = int(rest.split()[0])
        if name in ("Rss", "Pss"):
            found[name] = number
        elif name.startswith("Private_"):
            found["Uss"] += number
    return found


def meminfo() -> dict[str, int]:
    """KiB."""
    return {line.partition(":")[0]: int(line.partition(":")[2].split()[0])
            for line in Path("/proc/meminfo").read_text().splitlines()}


def cgroups() -> int:
    """Directories that sandboxes of ours have now."""
    return sum("pytest-sandbox-run" in place for place, _, _ in os.walk("/sys/fs/cgroup"))


def busy() -> float:
    """Seconds that all processors together have worked since the machine started."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
