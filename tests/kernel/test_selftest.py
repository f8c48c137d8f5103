"""``--sandbox-selftest``: each check holds in a sandbox, and fails where what it looks at is not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import IS_ROOT

import pytest_sandbox.planning
from pytest_sandbox import Sandbox, SandboxStartError
from pytest_sandbox.planning import plan_for
from pytest_sandbox.runtime import selftest, shift, supervisor
from pytest_sandbox.runtime import syscalls as sc
from pytest_sandbox.runtime.plan import Plan
from pytest_sandbox.spec import make_spec


@pytest.fixture
def verified() -> Iterator[None]:
    selftest.enable()
    yield
    supervisor.verify.clear()


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("options", [
    {}, {"user": "root"}, {"network": "host"}, {"network": "outbound"}, {"seccomp": "unconfined"},
    {"capabilities": ["SYS_ADMIN", "NET_ADMIN"], "user": "root"}, {"disk": "16M"},
], ids=str)
def test_sandboxes_keep_their_promises(options: dict[str, Any]) -> None:
    if options.get("network") == "outbound":
        pytest.importorskip("pyroute2")
    with Sandbox(**options) as sandbox:
        assert sandbox.run(["echo", "there"]).stdout == "there\n"
        sandbox.reset()
        assert sandbox.run(["echo", "again"]).stdout == "again\n"


@pytest.mark.parametrize("promise", selftest.CHECKS)
def test_on_the_host_itself_none_of_them_holds(
    promise: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "secret").touch()
    seen = selftest.visit(plan_for(make_spec({"hide": [str(tmp_path / "secret")]})))
    monkeypatch.setattr(selftest, "INIT", os.getpid())  # the machine's own may be shut to us for other reasons
    if promise == "network" and not _is_connected():
        pytest.skip("this machine has no network interface that is up")
    wrong = selftest.CHECKS[promise](seen)
    assert wrong


def _is_connected() -> bool:
    return any(Path(one, "operstate").read_text().strip() == "up" or Path(one).name.startswith("eth")
               for one in map(str, Path("/sys/class/net").iterdir()) if Path(one).name != "lo")


def _without(flag: int) -> Callable[[dict[str, Any]], None]:
    def change(body: dict[str, Any]) -> None:
        body["namespaces"] &= ~flag
        if flag == sc.CLONE_NEWNET:
            body["inside"] = [step for step in body["inside"] if step[0] not in ("loopback", "fresh_sys")]
        if flag == sc.CLONE_NEWUTS:
            body["inside"] = [step for step in body["inside"] if step[0] != "hostname"]
    return change


def _uncovered(body: dict[str, Any]) -> None:
    body["mounts"] = [["proc", [], step[2]] if step[0] == "proc" else step for step in body["mounts"]]


def _writable(body: dict[str, Any]) -> None:
    body["mounts"] = [["proc", step[1], []] if step[0] == "proc" else step for step in body["mounts"]]


def _another_sys(body: dict[str, Any]) -> None:
    body["inside"] = [step for step in body["inside"] if step[0] != "fresh_sys"]
    body["mounts"].insert(-1, ["tmpfs", "/sys", 0, "size=64k"])


def _a_device_of_the_hosts(body: dict[str, Any]) -> None:
    found = [one for one in ("kmsg", "kvm", "fuse", "mem", "console", "vda", "sda", "loop-control", "rtc0")
             if os.path.exists(f"/dev/{one}")]
    if not found:
        pytest.skip("this machine's /dev has no other device")
    body["mounts"].insert(-1, ["bind", f"/dev/{found[0]}", f"/dev/{found[0]}", True])


def _ids_of_the_hosts(body: dict[str, Any]) -> None:
    body["uid_map"] = body["gid_map"] = "0 0 4294967295"


def _every_capability(body: dict[str, Any]) -> None:
    body["drop"] = []


def _no_filter(body: dict[str, Any]) -> None:
    body["seccomp"] = ""


def _nothing_hidden(body: dict[str, Any]) -> None:
    body["template"] = [step for step in body["template"] if step[0] != "own_hide"]
    body["layers"] = f"{body['layers']}x"
    text = json.dumps([body["template"], body["mounts"]]).replace(body["layers"][:-1], body["layers"])
    body["template"], body["mounts"] = json.loads(text)


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize(("promise", "change"), [
    ("namespaces", _without(sc.CLONE_NEWUTS)), ("namespaces", _without(sc.CLONE_NEWIPC)),
    ("namespaces", _without(sc.CLONE_NEWCGROUP)), ("namespaces", _without(sc.CLONE_NEWNET)),
    pytest.param("kernel files", _uncovered), ("kernel files", _another_sys),
    pytest.param("kernel files", _writable, marks=pytest.mark.skipif(
        not IS_ROOT, reason="the kernel itself lets nobody but root write there")),
    pytest.param("privileges", _ids_of_the_hosts, marks=pytest.mark.skipif(
        not IS_ROOT, reason="only root's ids are shifted")),
    pytest.param("devices", _a_device_of_the_hosts), ("privileges", _every_capability), ("system calls", _no_filter),
    ("secrets", _nothing_hidden),
], ids=lambda one: one if isinstance(one, str) else one.__name__)
def test_a_sandbox_without_one_of_its_protections(
    promise: str, change: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:
    make = pytest_sandbox.planning.make_plan
    if change is _writable:  # the ids alone would keep it
        monkeypatch.setenv(shift.VARIABLE, "host")

    def weaker(*args: Any, **named: Any) -> Plan:
        plan = make(*args, **named)
        body = json.loads(json.dumps(plan.body))
        change(body)
        return replace(plan, key=f"{plan.key}-{os.urandom(4).hex()}", body=body)

    secret = tmp_path / "secret"
    secret.touch()
    sandbox = Sandbox(hide=[str(secret)])
    monkeypatch.setattr(pytest_sandbox.planning, "make_plan", weaker)
    with pytest.raises(SandboxStartError) as caught:
        sandbox.start()
    assert caught.value.step == f"selftest: {promise}"
    assert f"does not keep its promise '{promise}'" in str(caught.value)


def test_a_run_with_it(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("""
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def looks():
            from pytest_sandbox.runtime import selftest, supervisor
            looked = []
            for position, one in enumerate(supervisor.verify):
                supervisor.verify[position] = lambda running, one=one: (looked.append(1), one(running))
            yield looked
            print(f"\\nlooked {len(looked)} times")
    """)
    pytester.makepyfile("""
        import pytest

        @pytest.mark.sandbox
        @pytest.mark.parametrize("number", range(3))
        def test_marked(number): pass

        def test_fixture(sandbox):
            assert sandbox.run(["echo", "x"]).stdout == "x\\n"
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-s", "--sandbox-selftest")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*looked 4 times"])
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-s")
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["*looked 0 times"])
