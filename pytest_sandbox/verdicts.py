"""What a test was doing when its time was up: *spinning*, *blocked* or *waiting*, and the words for it.

Used by ``deadline`` and by the plugin. The rule, with the figures behind it, is in docs/explanation/verdicts.md.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .stacks import ProcessStack, of_processes

if TYPE_CHECKING:
    from .runtime.tasks import CpuTimes, Proc, ProcessView, Task

#: How long, in seconds, the CPU time is watched before a limit strikes; of a limit under twice this, half of it.
WINDOW = 1.0
#: Of one CPU: above the first is spinning, below the second nothing that counts happens.
BUSY, IDLE = 0.5, 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """What everything inside together was doing.

    :param kind: ``"spinning"``: it used the CPU. ``"blocked"``: all of it waits for something that no clock will
        bring. ``"waiting"``: it waits for time to pass, or works too little to be called spinning.
    :param cpu_seconds: CPU time that was used, or wanted while others had the CPU, in ``seconds``.
    :param seconds: how long was looked.
    :param reason: why, as half a sentence that names who waits for what.
    """

    kind: str
    cpu_seconds: float
    seconds: float
    reason: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Sample:
    """The CPU times at a moment."""

    when: float
    times: CpuTimes


def sample(proc: Proc) -> Sample:
    """Takes one."""
    return Sample(time.monotonic(), proc.cpu_times())


def judge(proc: Proc, before: Sample) -> tuple[Verdict, list[ProcessStack]]:
    """The verdict on what happened since ``before``, and where everything stands now."""
    views = proc.processes()
    found = of_processes(proc, views)
    now = sample(proc)
    return verdict(views, before, now), found


def verdict(views: list[ProcessView], before: Sample, now: Sample) -> Verdict:
    """The verdict on two samples and the tasks at the second of them."""
    seconds = max(now.when - before.when, 0.001)
    ran = sum(max(0, spent - before.times.ran.get(tid, 0)) for tid, spent in now.times.ran.items()) / 1e9
    queued = sum(max(0, spent - before.times.queued.get(tid, 0)) for tid, spent in now.times.queued.items()) / 1e9
    used = max(ran, now.times.used - before.times.used, 0.0)
    wanted = used + queued  # a machine with more to do than CPUs makes nobody idle
    share = wanted / seconds
    tasks = [(view, task) for view in views for task in view.tasks]
    figures = f"{used:.2f} s of CPU in the last {seconds:.2f} s"
    if queued > 0.2 * seconds:
        figures += f", and wanted {queued:.2f} s more while others had the CPU"
    if share > BUSY:
        running = next((one for one in tasks if one[1].state == "R"), None)
        who = f", {_who(*running)} runs" if running else ""
        return Verdict("spinning", wanted, seconds, f"it used {figures}{who}")
    clocked = [one for one in tasks if one[1].timed]
    if share > IDLE:
        return Verdict("waiting", wanted, seconds, f"it polls, or makes slow progress: it used {figures}")
    if clocked or not tasks:
        view, task = clocked[0] if clocked else (None, None)
        waits = f"{_who(view, task)} waits for {task.waits_for}" if view and task else "nothing runs inside"
        return Verdict("waiting", wanted, seconds, f"it used {figures}; {waits}")
    return Verdict("blocked", wanted, seconds, f"it used {figures}, and nothing inside will go on by itself: "
                   + "; ".join(_waits(views)))


def _who(view: ProcessView, task: Task) -> str:
    name = f"{view.name} (process {view.pid})"
    return name if task.tid == view.pid else f"thread {task.tid} of {name}"


def _waits(views: list[ProcessView]) -> list[str]:
    """Who waits for what, main threads only, the deepest first: the others wait for it."""
    parents = {view.ppid for view in views}
    ordered = sorted(views, key=lambda view: view.pid in parents)
    said = [f"{_who(view, view.tasks[0])} waits for {view.tasks[0].waits_for or 'nothing'}"
            for view in ordered if view.tasks]
    return said[:3] + ([f"{len(said) - 3} more"] if len(said) > 3 else [])
