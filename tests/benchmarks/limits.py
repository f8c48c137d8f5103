"""Limits that show only in time: what a CPU quota and CPU weights give, and what having limits costs a start."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from measure import Table, in_turns, timed

from pytest_sandbox import Sandbox
from pytest_sandbox.runtime.cgroups import host_control

BURN = [sys.executable, "-c", "while True: pass"]
QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
#: All limits at once, none of them so low that an empty start would meet it.
ALL = {"memory": "512M", "swap": 0, "cpus": 2, "cpu_weight": 100, "pids": 512, "disk": "256M"}


def share(cpus: float, seconds: float) -> float:
    """What a burner under ``cpus`` gets of one CPU. On a busy machine the others may leave it less than that."""
    with Sandbox(cpus=cpus) as sandbox:
        process = sandbox.popen(BURN, **QUIET)
        while (sandbox.usage().cpu_seconds or 0) < 0.3:
            time.sleep(0.01)  # it burns by now
        before, begin = sandbox.usage().cpu_seconds, time.monotonic()
        time.sleep(seconds)
        after, end = sandbox.usage().cpu_seconds, time.monotonic()
        process.kill()
        process.wait()
        return ((after or 0) - (before or 0)) / (end - begin)


def contest(low: int, high: int, seconds: float) -> float:
    """How much more CPU time a burner of weight ``high`` gets than one of ``low``, both on one CPU."""
    cpu = sorted(os.sched_getaffinity(0))[0]
    with Sandbox(cpu_weight=low) as first, Sandbox(cpu_weight=high) as second:
        burners = [one.popen(["taskset", "-c", str(cpu), *BURN], **QUIET) for one in (first, second)]
        time.sleep(0.3)
        before = [one.usage().cpu_seconds or 0 for one in (first, second)]
        time.sleep(seconds)
        after = [one.usage().cpu_seconds or 0 for one in (first, second)]
        for one in burners:
            one.kill()
            one.wait()
        used = [end - begin for begin, end in zip(before, after, strict=True)]
        return used[1] / used[0]


def start(options: dict[str, Any]) -> float:
    """A whole life: start, one command, end."""
    def life() -> None:
        with Sandbox(**options) as sandbox:
            sandbox.run(["/bin/true"])

    return timed(life)


def run(rounds: int) -> list[Table]:
    abilities = host_control().abilities()
    options = {name: value for name, value in ALL.items() if name == "disk" or abilities[name].ok}
    table = Table("A sandbox with limits: start, one command, end",
                  in_turns({"no limits": lambda: start({}), "all limits": lambda: start(options)}, rounds), "no limits")
    table.notes.append(f"All limits: {', '.join(options)}; cgroup v{host_control().version}.")
    if abilities["cpus"].ok:
        for cpus in (0.1, 0.5):
            shares = sorted(share(cpus, 2) for _ in range(5))
            table.notes.append(f"A burner under cpus={cpus}, of one CPU over 2 s, five times: "
                               f"{', '.join(f'{one:.3f}' for one in shares)} (wanted: within 20 % of it).")
    if abilities["cpu_weight"].ok:
        ratios = sorted(contest(100, 900, 3) for _ in range(3))
        table.notes.append(f"Burners of weights 100 and 900 on one CPU over 3 s, the second to the first, three times: "
                           f"{', '.join(f'{one:.2f}' for one in ratios)} (wanted: 6 to 12).")
    return [table]
