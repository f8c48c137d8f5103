"""``Sandbox.stacks``: where everything inside stands: Python stacks of every CPython, the kernel's view of the rest.

Nothing has to be set up inside: the stacks are read from outside, from the processes' memory (:mod:`.runtime.pystack`)
and from the sandbox's /proc (:mod:`.runtime.tasks`). Nothing is stopped, and no signal is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .runtime.pystack import Frame, NotPython, PythonThread, Unreadable, python_threads
from .runtime.tasks import Proc, ProcessView, Task

__all__ = ["Frame", "ProcessStack", "Task", "ThreadStack", "in_words", "of_processes", "stacks"]


#: Of how many processes the Python frames are read, at about a millisecond each.
_MOST_PYTHONS = 200


@dataclass(frozen=True, slots=True)
class ThreadStack:
    """Where one thread stands. ``python``: its frames, the outermost call first; empty if it is in no Python code."""

    task: Task
    python: tuple[Frame, ...] = ()

    def __str__(self) -> str:
        return self.shown()

    def shown(self, keep: Callable[[tuple[Frame, ...]], tuple[Frame, ...]] | None = None) -> str:
        """As text; ``keep`` chooses the frames that are worth showing."""
        task, frames = self.task, self.python
        waits = task.waits_for
        doing = f"waits for {waits}" if waits else {"R": "runs", "Z": "has ended"}.get(task.state, task.state)
        details = [detail for detail in (
            task.syscall and f"in {task.syscall}", task.wchan and f"at {task.wchan}") if detail]
        lines = [f"thread {task.tid} ({task.name}) {doing}" + (f" ({', '.join(details)})" if details else "")]
        if keep is not None:
            frames = keep(frames)
        if len(frames) < len(self.python):
            lines.append(f"  ... {len(self.python) - len(frames)} calls of pytest and its plugins")
        for frame in frames:
            lines.append(f'  File "{frame.filename}", line {frame.line or "?"}, in {frame.function}')
        if not self.python and task.kernel:
            lines.append(f"  in the kernel: {' < '.join(task.kernel[:8])}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class ProcessStack:
    """Where one process inside stands. Numbers are those that it has inside.

    :param threads: its threads, the main one first.
    :param why: why the Python frames of an interpreter could not be read; None where they were, or there are none.
    """

    pid: int
    ppid: int
    name: str
    args: tuple[str, ...]
    threads: tuple[ThreadStack, ...]
    why: str | None = None

    def __str__(self) -> str:
        return self.shown()

    def shown(self, keep: Callable[[tuple[Frame, ...]], tuple[Frame, ...]] | None = None) -> str:
        """As text; ``keep`` chooses the frames that are worth showing."""
        command = " ".join(" ".join(self.args).split()) or self.name
        if len(command) > 100:
            command = f"{command[:97]}..."
        head = f"process {self.pid}: {command}"
        if self.why is not None:
            head += f" [its Python stack cannot be read: {self.why}]"
        return "\n".join([head, *("  " + one.shown(keep).replace("\n", "\n  ") for one in self.threads)])


def in_words(found: list[ProcessStack], keep: Callable[[tuple[Frame, ...]], tuple[Frame, ...]] | None = None,
             most: int = 10) -> str:
    """Several processes as text, at most so many of them."""
    texts = [one.shown(keep) for one in found[:most]]
    if len(found) > most:
        texts.append(f"and {len(found) - most} more processes")
    return "\n".join(texts)


def stacks(root: int) -> list[ProcessStack]:
    """Where everything in a sandbox stands; ``root`` is a descriptor of its root directory."""
    with Proc(root) as proc:
        return of_processes(proc, proc.processes())


def of_processes(proc: Proc, views: list[ProcessView]) -> list[ProcessStack]:
    """The stacks of these processes; Python frames of the first so many."""
    return [_stack_of(proc, view, number < _MOST_PYTHONS) for number, view in enumerate(views)]


def _stack_of(proc: Proc, view: ProcessView, read: bool) -> ProcessStack:
    python: list[PythonThread] = []
    why = None if read else "there are too many processes"
    try:
        if read:
            python = python_threads(proc.fd, view.pid)
    except NotPython:
        pass
    except Unreadable as error:
        why = str(error)
    by_tid = {one.tid: one.frames for one in python if one.tid is not None}
    frames: list[tuple[Frame, ...]] = []
    for number, task in enumerate(view.tasks):
        known = by_tid.get(task.tid, ())
        if not known and (number == 0 or not by_tid) and number < len(python):
            # A fork may keep its parent's number of the thread, and 3.10 has none: then by the order of their start.
            known = python[number].frames
        frames.append(known)
    return ProcessStack(view.pid, view.ppid, view.name, view.args,
                        tuple(ThreadStack(task, one) for task, one in zip(view.tasks, frames, strict=True)), why)
