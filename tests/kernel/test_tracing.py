"""Traces of sandboxes without pytest: by the compiled spawner and by Python the same steps, and nothing unasked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_sandbox import Sandbox
from pytest_sandbox.runtime import launch, protocol, spawner, tracing
from pytest_sandbox.runtime.running import Running


@pytest.fixture(scope="module", autouse=True)
def helper_again(helper: None) -> Iterator[None]:
    """The tests of other modules find the session's helper, as they expect it."""
    yield
    with Sandbox():
        pass


@pytest.fixture(params=["compiled", "python"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tracing.Recorder]:
    if request.param == "compiled" and not spawner.is_there(""):
        pytest.skip("no compiler: the spawner was not built")
    monkeypatch.setenv(spawner.VARIABLE, "python" if request.param == "python" else "")
    launch.shutdown()  # whose helper starts them the other way
    yield tracing.enable()
    tracing.recorder = None
    launch.shutdown()


@pytest.fixture
def fresh() -> Iterator[None]:
    """A helper of the test's own, which goes with it."""
    launch.shutdown()
    yield
    tracing.recorder = None
    launch.shutdown()


def by_who(trace: tracing.Trace) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for who, what, began, ended in trace.spans:
        assert trace.asked <= began or what == "have it", (who, what)
        assert began <= ended, (who, what)
        found.setdefault(who, []).append(what)
    return found


def test_every_step_of_the_plan_is_there(recorder: tracing.Recorder) -> None:
    with Sandbox(mounts=["/usr/bin:/mnt:ro"]) as sandbox:
        sandbox.run(["true"], check=True)
        running = sandbox._ready()
        body = running.plan.body
        trace = sandbox.trace
        assert trace is not None
    launch.finish_traces()
    steps = by_who(trace)
    plan = [tracing._name(part, number, body) for part in ("scratch", "mounts", "inside")
            for number in range(len(body[part]))]
    assert [one for one in steps["init"] if one in plan] == plan
    assert "/mnt shows through" in plan
    namespaces = [one for one in steps["init"] if one.endswith(" namespace")]
    assert namespaces == [f"make its {one} namespace" for one in (
        "user", "mount", "host name", "ipc", "cgroup", "network")]
    assert "start its first process" in steps["helper"]
    assert steps["run"] == ["true"]
    assert steps["end"] == ["end of its processes and namespaces", "remove its cgroup"]


def test_namespaces_made_one_by_one_are_those_that_are_made_at_once(recorder: tracing.Recorder) -> None:
    """What is traced is the sandbox that there is without: the same namespaces, mounts and privileges."""
    look = ["sh", "-c", "cut -d' ' -f5- /proc/self/mountinfo; cat /proc/self/uid_map; grep -E 'Cap|Secc|NoNew' "
                        "/proc/self/status; cat /proc/sys/user/max_net_namespaces; hostname; touch /proc/sys/user 2>&1"]
    with Sandbox() as traced:
        seen = traced.run(look).stdout
    tracing.recorder = None
    with Sandbox() as plain:
        assert plain.run(look).stdout == seen


def test_unasked_nothing_is_measured_and_nothing_more_is_sent(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[protocol.Message] = []
    receive = protocol.receive

    def heard(sock: object) -> object:
        message = receive(sock)  # type: ignore[arg-type]
        if message is not None:
            got.append(message[0])
        return message

    monkeypatch.setattr(protocol, "receive", heard)
    assert tracing.recorder is None
    with Sandbox() as sandbox:
        running = sandbox._ready()
        assert isinstance(running, Running)
        assert running.trace is None
        assert sandbox.trace is None
        assert launch.supervisor().tracer is None
    assert {"ready": True} in got
    assert not any("trace" in one for one in got)


def test_the_command_line_shows_it(fresh: None, capfd: pytest.CaptureFixture[str]) -> None:
    from pytest_sandbox.cli import main

    assert main(["run", "--trace", "--", "sleep", "0.1"]) == 0
    lines = capfd.readouterr().err.splitlines()
    overlay = next(line for line in lines if "overlay on / " in line)
    assert overlay.split()[-1] == "1"
    assert any(line.startswith("the end") for line in lines)
