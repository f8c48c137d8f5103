"""``Sandbox.call``: a function of the caller's runs inside, and its value comes back as data."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import abort_unless_apart, namespaces

import pytest_sandbox
from pytest_sandbox import Sandbox, SandboxCallError


@pytest.fixture
def started() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "text ÿ \0 \ud800 \n", [1, [2]], {"a": {"b": None}}, [],
                                   "x" * 3_000_000])
def test_values_come_back(started: Sandbox, value: object) -> None:
    assert started.call(lambda: value) == value


def test_arguments_and_closures_go_in(started: Sandbox) -> None:
    there = object()
    assert started.call(lambda a, *b: [a is there, len(b)], there, 1, 2) == [True, 2]
    assert started.call(lambda: (1, 2)) == [1, 2]


def test_it_runs_inside(started: Sandbox) -> None:
    assert not set(started.call(namespaces).values()) & set(namespaces().values())
    assert started.call(pytest_sandbox.inside) is True
    assert pytest_sandbox.inside() is False
    started.call(lambda: Path("/tmp/made-by-a-call").write_text("x"))
    assert started.run(["cat", "/tmp/made-by-a-call"]).stdout == "x"
    assert not os.path.exists("/tmp/made-by-a-call")


def test_what_it_changes_in_memory_stays_there(started: Sandbox) -> None:
    held: list[int] = []
    started.call(held.append, 1)
    started.call(lambda: os.environ.update(ONLY_INSIDE="1"))
    started.call(os.chdir, "/")
    assert held == []
    assert "ONLY_INSIDE" not in os.environ
    assert os.getcwd() != "/"


def _raise() -> None:
    raise ValueError("the reason")


def test_an_exception(started: Sandbox) -> None:
    with pytest.raises(SandboxCallError) as caught:
        started.call(_raise)
    error = caught.value
    assert str(error) == "_raise() raised ValueError in the sandbox: the reason"
    assert error.type_name == "ValueError"
    assert error.traceback is not None
    assert "in _raise" in error.traceback


class _Rude(Exception):
    def __str__(self) -> str:
        os._exit(3)


def _rude() -> None:
    raise _Rude


@pytest.mark.parametrize(("body", "words"), [
    (lambda: {1, 2}, "raised TypeError in the sandbox: Object of type set is not JSON serializable"),
    (lambda: b"bytes", "Object of type bytes is not JSON serializable"),
    (lambda: sys.exit(4), "raised SystemExit in the sandbox: 4"),
    (lambda: os._exit(4), "ended its process in the sandbox: it ended with status 4"),
    (lambda: os.kill(os.getpid(), signal.SIGKILL), "it ended with signal 9"),
    (os.abort, "it ended with signal 6"),
    (lambda: "x" * (17 << 20), "returned too much"),
    (_rude, "it ended with status 3"),
])
def test_what_has_no_value(started: Sandbox, body: object, words: str) -> None:
    with pytest.raises(SandboxCallError) as caught:
        started.call(body)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert started.call(int) == 0
    assert started.processes() == []


def test_a_recursive_value(started: Sandbox) -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(SandboxCallError, match="Circular reference"):
        started.call(lambda: loop)


def test_it_may_ruin_what_it_sees() -> None:
    with Sandbox(user="root") as sandbox:
        abort_unless_apart(sandbox)

        def ruin() -> list[str]:
            import shutil
            shutil.rmtree("/etc", ignore_errors=True)
            with contextlib.suppress(ProcessLookupError):  # there is nobody else
                os.kill(-1, signal.SIGKILL)
            return sorted(os.listdir("/etc") if os.path.exists("/etc") else [])

        left = sandbox.call(ruin)
        assert "passwd" not in left
    assert os.path.exists("/etc/passwd")


def test_daemons_of_a_call_stay_inside(started: Sandbox) -> None:
    def leave_one() -> int:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            signal.pause()  # with copies of every descriptor, the one for the value too
        return pid

    pid = started.call(leave_one)
    assert [one["pid"] for one in started.processes()] == [pid]
    started.kill()
    assert started.processes() == []


class _Interrupt(Exception):
    pass


def _interrupt(*_: object) -> None:
    raise _Interrupt


def test_an_interrupted_call_ends_its_process(started: Sandbox) -> None:
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(_Interrupt):
            started.call(signal.pause)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert started.processes() == []
    assert started.call(int) == 0


def test_sandboxes_do_not_nest_by_accident(started: Sandbox) -> None:
    with pytest.raises(SandboxCallError, match="SandboxClosedError"):
        started.call(lambda: started.run(["true"]))
    assert started.run(["echo", "alive"]).stdout == "alive\n"
