"""Where the time of a sandbox goes: who took when for which step. Nothing of it is done unless somebody asked.

Who makes a sandbox (the helper, the spawner, init, a zygote) keeps *marks*: ``[what, number, nanoseconds]`` when each
step was over, by ``CLOCK_MONOTONIC``, which all of them share. These travel home: init's with its message that it is
ready, a zygote's with its answer, the helper's on a socket of its own. There they become *spans* of the sandbox's
:class:`Trace`, in the words of the plan. The :class:`Recorder` is the caller's, and holds all of a run.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

    Mark = list[Any]
    Span = tuple[str, str, int, int]  # who, what, and from when to when

now = time.monotonic_ns

#: Marks that are no step of a plan, in words.
_WORDS = {
    "ids": "map its user ids", "cgroup": "enter its cgroup", "tree": "keep a handle on the writable layer",
    "shares": "take its shares of kernel counters", "privileges": "drop privileges, filter system calls",
    "ready": "say that it is ready",
    "layers": "layers between image and writable layer", "group": "make its cgroup", "spawn": "start its first process",
    "map": "write its id maps", "reaped": "end of its processes and namespaces", "removed": "remove its cgroup",
}
_NAMESPACES = {0x10000000: "user", 0x20000: "mount", 0x4000000: "host name", 0x8000000: "ipc", 0x2000000: "cgroup",
               0x40000000: "network"}
#: In the order in which they are made one by one, where each is to be timed: the user namespace owns the others.
NAMESPACES = tuple(_NAMESPACES)


class Marks:
    """Kept by whoever makes a sandbox; ``made`` travels."""

    __slots__ = ("made",)

    def __init__(self, what: str = "begin") -> None:
        self.made: list[Mark] = []
        self(what)

    def __call__(self, what: str, number: int = -1) -> None:
        """A step is over."""
        self.made.append([what, number, now()])


class Trace:
    """What is known of one sandbox. ``label`` is the test's node id, or None for one that no test has used."""

    __slots__ = ("asked", "label", "let_go", "number", "over", "running", "spans", "told")

    def __init__(self, number: int) -> None:
        self.number = number
        self.label: str | None = None
        self.asked = now()
        self.let_go = 0
        self.running = 0  # when its test was told to begin
        self.over = False  # whether the helper has told of its end
        self.told = 0  # when all of its reports were here
        self.spans: list[Span] = []

    def add(self, who: str, what: str, began: int, ended: int | None = None) -> None:
        """A span that ends now, or ended then."""
        self.spans.append((who, what, began, now() if ended is None else ended))

    def used_by(self, label: str) -> None:
        """A test of this name has it from now on."""
        self.label, self.running = label, now()
        if recorder is not None:
            recorder.last[label] = self

    def heard(self, entered: tuple[int, int] | None) -> None:
        """The test's process has said all that it has to say."""
        if entered is not None:
            self.spans.append(("fork", "enter its namespaces, drop privileges", *entered))
        self.told = now()

    def add_marks(self, who: str, marks: list[Mark], body: dict[str, Any]) -> None:
        """Spans from one mark to the next."""
        before = 0
        for what, number, at in marks:
            if before:
                self.spans.append((who, _name(what, number, body), before, at))
            before = at


class Recorder:
    """All traces of a process, from :func:`enable` on."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.last: dict[str, Trace] = {}  # by the test that has it, or had it last

    def begin(self) -> Trace:
        """The trace of a sandbox that is asked for now."""
        trace = Trace(len(self.traces))
        self.traces.append(trace)
        return trace

    def heard(self, number: int, marks: list[Mark], body: dict[str, Any]) -> None:
        """What a helper says of one."""
        if 0 <= number < len(self.traces):
            trace, who = self.traces[number], "helper"
            if marks[0][0] == "reaped":  # what ends since it was let go
                who = "end"
                trace.over = True
                marks = [["begin", -1, min(trace.let_go or marks[0][2], marks[0][2])], *marks]
            trace.add_marks(who, marks, body)


#: This process's, while somebody wants to know.
recorder: Recorder | None = None


def enable() -> Recorder:
    """From now on every sandbox of this process is traced."""
    global recorder
    recorder = Recorder()
    return recorder


def traced(of: Recorder | None = None, worker: str | None = None) -> list[dict[str, Any]]:
    """All that is known, as data that can travel: see :mod:`pytest_sandbox.report.trace`."""
    known = of or recorder
    return [{"label": one.label, "worker": worker, "asked": one.asked, "spans": one.spans}
            for one in (known.traces if known is not None else ()) if one.spans]


def _name(what: str, number: int, body: dict[str, Any]) -> str:
    if what == "namespace":
        return f"make its {_NAMESPACES.get(number, number)} namespace"
    if number >= 0 and what in body:
        return _step(body[what][number])
    return _WORDS.get(what, what)


def _step(step: list[Any]) -> str:
    """An operation of a plan, in as few words as tell it from the others."""
    name = str(step[0])
    if name == "overlay":
        return f"overlay on {step[2]}"
    if name == "tmpfs":
        return f"tmpfs on {step[1]}"
    if name == "bind":
        return f"{step[2]} shows through"
    return _STEPS.get(name, name)


_STEPS = {
    "scratch": "tmpfs for the writable layer", "proc": "/proc", "sys": "/sys", "dev": "/dev", "run": "/run",
    "hosts": "/etc/hosts", "resolver": "/etc/resolv.conf", "pivot": "pivot into the new root",
    "hostname": "host name", "mqueue": "/dev/mqueue", "loopback": "loopback up", "fresh_sys": "/sys of its network",
}
