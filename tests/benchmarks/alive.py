"""Many sandboxes alive at once: what starting each more takes, and what each takes of memory.

Each has a command running in it. Measured in a process of its own (``python alive.py COUNT``), which prints JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def main(count: int) -> None:
    from processes import below, meminfo, memory, name_of

    from pytest_sandbox import Sandbox

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    halves: list[int] = []
    with Sandbox() as first:
        first.run(["true"])
    halves.append(sum(memory(pid)["Uss"] for pid in (os.getpid(), *below(os.getpid()))))
    before, own, descriptors = meminfo(), memory(os.getpid()), len(os.listdir("/proc/self/fd"))
    alive, times = [], []
    for number in range(count):
        began = time.perf_counter()
        sandbox = Sandbox().start()
        times.append((time.perf_counter() - began) * 1000)
        alive.append((sandbox, sandbox.popen(["sleep", "100000"], stdout=None, stderr=None)))
        if number + 1 in (count // 2, count):
            halves.append(sum(memory(pid)["Uss"] for pid in (os.getpid(), *below(os.getpid()))))
    went = before["MemAvailable"] - meminfo()["MemAvailable"]
    grown = {name: memory(os.getpid())[name] - own[name] for name in own}
    each: dict[str, dict[str, float]] = {}
    for pid in below(os.getpid()):
        name = name_of(pid)
        if name in ("sandbox-init", "sleep"):
            known = each.setdefault(name, {"count": 0, "Rss": 0, "Pss": 0, "Uss": 0})
            known["count"] += 1
            for kind, number in memory(pid).items():
                known[kind] += number / count
    used = len(os.listdir("/proc/self/fd")) - descriptors
    began = time.perf_counter()
    for sandbox, process in alive:
        process.kill()
        process.wait()
        sandbox.close()
    closing = (time.perf_counter() - began) * 1000 / count
    print(json.dumps({"times": times, "halves": halves, "grown": grown, "each": each, "descriptors": used,
                      "closing": closing, "soft": soft, "went": went}))


def run(count: int) -> list:  # type: ignore[type-arg]
    from claims import Claim
    from measure import Series, Table

    done = subprocess.run([sys.executable, __file__, str(count)], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": f"{CHECKOUT}:{os.environ.get('PYTHONPATH', '')}"})
    if done.returncode:
        raise SystemExit(f"{count} sandboxes could not be alive at once:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout)
    times, tenth = found["times"], max(1, count // 10)
    series = [Series(f"number {place + 1} to {place + tenth}", times[place:place + tenth])
              for place in range(0, count - tenth + 1, tenth)]
    table = Table(f"Starting one more sandbox, up to {count} alive at once", series, series[0].name)
    inside = found["each"]
    private = sum(one["Uss"] for one in inside.values()) / 1024
    ours = found["grown"]["Uss"] / count / 1024
    before, half, both = found["halves"]
    table.claims += [
        Claim(f"start of the last of {count} alive", "the first tenth", 1.2, times[-tenth:], times[:tenth]),
        Claim(f"private memory of each of {count}", "all its processes, and its share of the caller's", 2.0,
              [private + ours], unit="MiB"),
        Claim(f"private memory of the second half of {count}", "the first half", 1.2, [float(both - half)],
              [float(half - before)]),
    ]
    for name, one in inside.items():
        table.notes.append(f"{name} ({one['count']} of them), KiB each: {one['Uss']:.0f} private, "
                           f"{one['Pss']:.0f} with its share of what is shared (Pss), {one['Rss']:.0f} mapped "
                           "(Rss): the difference is page cache that all of them share.")
    table.notes.append(f"The caller grew by {ours * 1024:.0f} KiB and {found['descriptors'] / count:.1f} descriptors a "
                       f"sandbox. All memory of the machine that went, the kernel's and that of others included: "
                       f"{found['went'] / count:.0f} KiB a sandbox. Closing took {found['closing']:.1f} ms each.")
    return [table]


if __name__ == "__main__":
    main(int(sys.argv[1]))
