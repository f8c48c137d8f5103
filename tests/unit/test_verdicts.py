"""The rule behind *spinning*, *blocked* and *waiting*, and the tables of lines that are read from other processes."""

from __future__ import annotations

import sys
import time

import pytest

from pytest_sandbox.deadline import Watch
from pytest_sandbox.runtime.pystack import _line_of_locations, _line_of_pairs
from pytest_sandbox.runtime.tasks import CpuTimes, ProcessView, Task, _is_timed
from pytest_sandbox.verdicts import Sample, verdict

LOCK = Task(2, "python", "S", "futex", "futex_do_wait", None, False, ())
SLEEP = Task(3, "python", "S", "clock_nanosleep", "hrtimer_nanosleep", None, True, ())
RUNS = Task(2, "python", "R", None, None, None, False, ())
DEEP = Task(2, "python", "D", None, "folio_wait_bit", None, False, ())


def of(tasks: list[Task], used: float = 0.0, ran: float = 0.0, queued: float = 0.0) -> str:
    """The verdict on one second in which so much was used, ran and waited for a CPU."""
    before = Sample(100.0, CpuTimes(5.0, {2: 0}, {2: 7}))
    after = Sample(101.0, CpuTimes(5.0 + used, {2: int(ran * 1e9)}, {2: 7 + int(queued * 1e9)}))
    return verdict([ProcessView(2, 1, "python", (), tuple(tasks))], before, after).kind


@pytest.mark.parametrize(("tasks", "figures", "kind"), [
    ([RUNS], {"used": 0.99}, "spinning"),
    ([RUNS], {"ran": 0.51}, "spinning"),
    ([RUNS], {"ran": 0.1, "queued": 0.5}, "spinning"),
    ([SLEEP], {"used": 0.7}, "spinning"),  # its children did it, and are gone
    ([LOCK, RUNS], {"used": 3.5}, "spinning"),
    ([LOCK], {}, "blocked"),
    ([LOCK], {"ran": 0.04}, "blocked"),
    ([LOCK, LOCK], {}, "blocked"),
    ([DEEP], {}, "blocked"),
    ([SLEEP], {}, "waiting"),
    ([LOCK, SLEEP], {}, "waiting"),
    ([LOCK], {"ran": 0.2}, "waiting"),
    ([], {}, "waiting"),
])
def test_the_rule(tasks: list[Task], figures: dict[str, float], kind: str) -> None:
    assert of(tasks, **figures) == kind


def test_a_thread_that_ended_does_not_count_backwards() -> None:
    before = Sample(0.0, CpuTimes(9.0, {2: 10**9, 3: 10**12}, {}))
    after = Sample(1.0, CpuTimes(8.0, {2: 10**9}, {}))
    found = verdict([ProcessView(2, 1, "x", (), (LOCK,))], before, after)
    assert (found.kind, found.cpu_seconds) == ("blocked", 0.0)


@pytest.mark.parametrize(("call", "arguments", "timed"), [
    ("futex", [1, 128, 2, 0, 0, 0], False), ("futex", [1, 128, 2, 0x7FFF0000, 0, 0], True),
    ("poll", [1, 1, 0xFFFFFFFF], False), ("poll", [1, 1, 1000], True), ("poll", [1, 1, 0xFFFFFFFFFFFFFFFF], False),
    ("select", [1, 0, 0, 0, 0], False), ("select", [1, 0, 0, 0, 0x7FFF0000], True),
    ("epoll_wait", [3, 1, 1, 0xFFFFFFFF], False), ("clock_nanosleep", [], True), ("read", [0, 1, 2], False),
    (None, [], False),
])
def test_whether_a_wait_ends_by_itself(call: str | None, arguments: list[int], timed: bool) -> None:
    assert _is_timed(call, arguments, "") is timed


def test_the_lines_of_all_code_of_this_interpreter() -> None:
    """As ``co_lines`` has them, for every instruction of a large module."""
    import argparse
    import types

    def codes(code: types.CodeType) -> list[types.CodeType]:
        return [code, *[one for const in code.co_consts if isinstance(const, types.CodeType) for one in codes(const)]]

    with open(argparse.__file__, encoding="utf-8") as file:
        module = compile(file.read(), "argparse", "exec")
    read = _line_of_pairs if sys.version_info < (3, 11) else _line_of_locations
    for code in codes(module):
        for start, end, line in code.co_lines():
            for at in range(start, end, 2):
                assert read(code.co_linetable, code.co_firstlineno, at) == line, (code.co_name, at)


def test_the_clock_stands_still() -> None:
    watch = Watch(1000)
    assert 998 < (watch.next() or 0) <= 999  # to look before it strikes
    watch.debugging(True)
    assert watch.next() is None
    watch.debugging(True)
    watch._left = 5.0
    watch.debugging(False)
    assert 3 < (watch.next() or 0) <= 4
    watch._end = time.monotonic() - 1
    assert watch.tick(-1) == (None, [])  # there is no sandbox any more: nothing can be said
