"""Limits that show only in time: what a CPU quota and CPU weights give, and what having limits costs a start."""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measure import Table, in_turns, timed

from pytest_sandbox import Sandbox
from pytest_sandbox.runtime.blockio import bfq_weight
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


def first_of_all() -> None:
    """Lets this run's sandboxes have the CPU before others, so that a quota can be told from a busy machine."""
    control = host_control()
    place = control.place("cpu", True)
    for name, most in (("cpu.shares", "262144"), ("cpu.weight", "10000")):
        if os.path.exists(f"{place}/{name}"):
            Path(place, name).write_text(most)


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


def read_past_the_cache(descriptor: int, most: int, seconds: float) -> float:
    """Reads up to ``most`` bytes for up to ``seconds``; returns bytes a second."""
    buffer = mmap.mmap(-1, 1 << 18)
    size = os.lseek(descriptor, 0, os.SEEK_END) >> 18 << 18
    done, begin = 0, time.monotonic()
    while done < most and time.monotonic() - begin < seconds:
        done += os.preadv(descriptor, [buffer], done % size)
    return done / (time.monotonic() - begin)


def bandwidth(limit: int) -> str:
    """What a reader under ``io`` gets of a file on this host's disk."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.write(os.urandom(16 << 20))
        file.flush()
        os.fsync(file.fileno())
        try:
            descriptor = os.open(file.name, os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            return f"io: /var/tmp cannot be read past the page cache ({error.strerror})."
        with Sandbox(io={"read": limit}) as sandbox:
            rates = sorted(float(sandbox.call(read_past_the_cache, descriptor, 2 * limit, 60)) / limit
                           for _ in range(3))
        os.close(descriptor)
    return (f"A reader under io={limit >> 20}M, in shares of that, over two seconds, three times: "
            f"{', '.join(f'{one:.3f}' for one in rates)}.")


def io_contest(low: int, high: int, seconds: float) -> str:
    """How much more a reader of weight ``high`` gets than one of ``low``, of a loop device that BFQ schedules."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.truncate(256 << 20)
        done = subprocess.run(["losetup", "--find", "--show", file.name], capture_output=True, text=True)
        device = done.stdout.strip()
        if done.returncode:
            return f"io_weight: no loop device to be had ({done.stderr.strip()})."
        settings = Path("/sys/block", os.path.basename(device), "queue")
        before = (settings / "scheduler").read_text().partition("[")[2].partition("]")[0]
        try:
            # Exact rather than fast: the device is so quick that nobody would wait for it.
            for name, value in (("scheduler", "bfq"), ("iosched/low_latency", "0"), ("iosched/strict_guarantees", "1")):
                (settings / name).write_text(value)
            if not host_control().abilities()["io_weight"].ok:
                return "io_weight: not on this host, even with BFQ."
            with Sandbox(io_weight=low) as first, Sandbox(io_weight=high) as second, ThreadPoolExecutor(2) as both:
                readers = [os.open(device, os.O_RDONLY | os.O_DIRECT) for _ in range(2)]
                got = [one.result() for one in [both.submit(box.call, read_past_the_cache, reader, 1 << 40, seconds)
                                                for box, reader in zip((first, second), readers, strict=True)]]
                for reader in readers:
                    os.close(reader)
            return (f"Readers of weights {low} and {high} on a loop device with BFQ over {seconds:g} s, the second to "
                    f"the first: {float(got[1]) / float(got[0]):.2f} (BFQ's own weights: "
                    f"{bfq_weight(high) / bfq_weight(low):.2f}).")
        except OSError as error:
            return f"io_weight: this kernel has no BFQ ({error.strerror})."
        finally:
            with contextlib.suppress(OSError):
                (settings / "scheduler").write_text(before)  # a loop device keeps it for whoever has it next
            subprocess.run(["losetup", "--detach", device], check=True)


def run(rounds: int) -> list[Table]:
    abilities = host_control().abilities()
    options = {name: value for name, value in ALL.items() if name == "disk" or abilities[name].ok}
    table = Table("A sandbox with limits: start, one command, end",
                  in_turns({"no limits": lambda: start({}), "all limits": lambda: start(options)}, rounds), "no limits")
    table.notes.append(f"All limits: {', '.join(options)}; cgroup v{host_control().version}.")
    if abilities["cpus"].ok:
        first_of_all()
        for cpus in (0.1, 0.5):
            shares = sorted(share(cpus, 2) for _ in range(5))
            table.notes.append(f"A burner under cpus={cpus}, of one CPU over 2 s, five times: "
                               f"{', '.join(f'{one:.3f}' for one in shares)} (wanted: within 20 % of it).")
    if abilities["cpu_weight"].ok:
        ratios = sorted(contest(100, 900, 3) for _ in range(3))
        table.notes.append(f"Burners of weights 100 and 900 on one CPU over 3 s, the second to the first, three times: "
                           f"{', '.join(f'{one:.2f}' for one in ratios)} (wanted: 6 to 12).")
    if abilities["io"].ok:
        table.notes.append(bandwidth(8 << 20))
    if os.geteuid() == 0:
        table.notes.append(io_contest(100, 10_000, 3))
    return [table]
