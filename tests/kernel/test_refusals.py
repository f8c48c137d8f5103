"""Bad input and hosts that cannot: each error names the thing, the reason and the remedy, and nothing is left."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from support import IS_ROOT, prints

from pytest_sandbox import (
    ImageNotFound,
    Sandbox,
    SandboxCallError,
    SandboxClosedError,
    SandboxError,
    SandboxStartError,
    SandboxUsageError,
)


@pytest.mark.parametrize(("options", "words"), [
    ({"memry": "64M"}, ["unknown sandbox option 'memry'", "Allowed: ", "network"]),
    ({"hostnam": "x"}, ["unknown sandbox option 'hostnam'", "did you mean 'hostname'?"]),
    ({"memory": "64X"}, ["memory='64X' cannot be used", '"64M"']),
    ({"disk": "much"}, ["disk='much' cannot be used", '"64M"']),
    ({"disk": 0}, ["disk=0 cannot be used", "more than nothing"]),
    ({"user": "nobody"}, ["user='nobody'", '"root", "me"']),
    ({"user": 0}, ["user=0", '"1000:1000"']),
    ({"env": "NAME"}, ["env=", "a mapping"]),
    ({"env": {"A": 1}}, ["env=", "A has the value 1"]),
    ({"workdir": "relative"}, ["workdir='relative'", "an absolute path"]),
    ({"mounts": ["relative:/x"]}, ["mounts=", "both paths absolute"]),
    ({"mounts": [("/a", "/b")]}, ["mounts="]),
    ({"hostname": "a b"}, ["hostname='a b'", "letters, digits"]),
    ({"network": "bridge"}, ["network='bridge'", '"none"']),
    ({"capabilities": ["NET_BIND"]}, ["capabilities='NET_BIND'", "did you mean 'NET_"]),
    ({"capabilities": 5}, ["capabilities=5", "a list of capability names"]),
    ({"image": None}, ["image=None", '"host"']),
])
def test_an_option_that_cannot_be_used(options: dict[str, object], words: Sequence[str]) -> None:
    with pytest.raises(SandboxUsageError) as caught:
        Sandbox(**options)
    assert isinstance(caught.value, ValueError)
    assert caught.value.option == next(iter(options))
    for one in words:
        assert one in str(caught.value)


@pytest.mark.skipif(IS_ROOT, reason="every file's owner has an id in root's sandboxes")
def test_an_image_whose_files_are_somebody_elses(tmp_path: Path) -> None:
    """A mount point cannot be made in there."""
    with pytest.raises(SandboxStartError) as caught:
        Sandbox(image="rootfs:/usr", mounts=[f"{tmp_path}:/share/some/place"]).start()
    assert caught.value.errno in (errno.EACCES, errno.EOVERFLOW)
    for words in ("/share/some/place", "somebody else's", "tarball"):
        assert words in str(caught.value)


def test_an_image_that_does_not_exist(tmp_path: Path) -> None:
    reference = f"rootfs:{tmp_path}/none"
    sandbox = Sandbox(image=reference)
    for _ in range(2):
        with pytest.raises(ImageNotFound) as caught:
            sandbox.start()
        assert caught.value.reference == reference
        assert reference in str(caught.value)
        assert "Check the path" in str(caught.value)
    with pytest.raises(ImageNotFound), sandbox:
        pass


def test_a_test_cannot_be_forked_into_an_image_of_another_system(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with Sandbox(image=f"rootfs:{tmp_path}/root") as sandbox, pytest.raises(SandboxUsageError, match="sandbox fixture"):
        sandbox.fork()


def test_a_sandbox_says_why_it_cannot_be_pickled() -> None:
    with Sandbox(hostname="there") as sandbox:
        with pytest.raises(TypeError, match=r"belongs to the process that made it\. Pickle its spec"):
            pickle.dumps(sandbox)
        with Sandbox(pickle.loads(pickle.dumps(sandbox.spec))) as other:
            assert other.run(["uname", "-n"]).stdout == "there\n"


def test_errors_of_a_real_sandbox_can_be_pickled() -> None:
    found: list[SandboxError] = []
    attempts = [lambda: Sandbox(disk=object()), lambda: Sandbox(mounts=["/no/such:/x"]).start(),
                lambda: Sandbox(image="rootfs:/does/not/exist").start(), lambda: sandbox.call(_fail),
                lambda: sandbox.run(["false"], check=True), lambda: (sandbox.close(), sandbox.run(["true"]))]
    sandbox = Sandbox().start()
    for attempt in attempts:
        try:
            attempt()
        except SandboxError as error:
            found.append(error)
    assert [type(one).__name__ for one in found] == [
        "SandboxUsageError", "SandboxStartError", "ImageNotFound", "SandboxCallError", "SandboxCommandError",
        "SandboxClosedError"]
    for one in found:
        again = pickle.loads(pickle.dumps(one))
        assert (type(again), str(again)) == (type(one), str(one))
        assert vars(again).keys() == vars(one).keys()


def _fail() -> None:
    raise KeyError("reason")


# Hosts that cannot make sandboxes.

ATTEMPT = """
import os, sys
from pytest_sandbox import Sandbox, SandboxError
for _ in range(2):
    try:
        Sandbox().start()
        print("started")
    except SandboxError as error:
        print(type(error).__name__, getattr(error, "feature", None), error.errno, error)
Sandbox.prepare(Sandbox().spec)
from pytest_sandbox.sandbox import shutdown
shutdown()
try:
    print("child", os.waitpid(-1, os.WNOHANG))
except ChildProcessError:
    print("no child")
"""


def _in_user_namespace(*command: str, switches: str = "-Ur") -> list[str]:
    """A command prefix; skips where this host gives nobody a user namespace."""
    done = subprocess.run(["unshare", switches, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"unshare {switches} is refused here: {done.stderr.strip()}")
    return ["unshare", switches, *command]


@pytest.mark.parametrize(("kind", "number"), [("user", errno.ENOSPC), ("mnt", errno.ENOSPC), ("pid", errno.ENOSPC),
                                              ("net", errno.ENOSPC), ("ipc", errno.ENOSPC)])
def test_a_host_without_namespaces(kind: str, number: int) -> None:
    """The knob belongs to the private user namespace that it is turned in: nobody else's changes."""
    knob = Path(f"/proc/sys/user/max_{kind}_namespaces")
    before = knob.read_text()
    under = _in_user_namespace("sh", "-c", f"echo 0 >{knob} && exec \"$@\"", "sh")
    lines = prints(ATTEMPT, under=under)
    assert lines[2:] == ["no child"]
    for line in lines[:2]:
        assert line.startswith("SandboxUnavailable ")
        assert f" {number} this host cannot run sandboxes: it cannot " in line
        assert "(unshare(" in line
        assert line.endswith(f"`sudo sysctl -w user.max_{kind}_namespaces=10000`.")
    assert knob.read_text() == before


def test_a_host_that_maps_no_id() -> None:
    lines = prints(ATTEMPT, under=_in_user_namespace(switches="-U"))
    assert lines[2:] == ["no child"]
    for line in lines[:2]:
        assert line.startswith(f"SandboxUnavailable user-namespace {errno.EPERM} this host cannot run sandboxes: it "
                               "cannot make a user namespace (unshare(CLONE_NEWUSER): Operation not permitted)")


def test_a_sandbox_within_another_user_namespace() -> None:
    """Real root that has become root of a mere user namespace is treated as what it is."""
    assert prints("""
        from pytest_sandbox import Sandbox
        from pytest_sandbox.runtime.supervisor import find_host
        host = find_host(); print(host.privileged, host.uid, host.gid)
        with Sandbox() as sandbox:
            print(sandbox.run(["id", "-u"]).stdout.strip(), sandbox.call(int))
    """, under=_in_user_namespace()) == ["False 0 0", "0 0"]


def test_no_descriptors_left() -> None:
    """However few are left, whatever fails says so, and nothing stays behind."""
    lines = prints("""
        import os, resource
        from pytest_sandbox import Sandbox, SandboxError
        with Sandbox() as sandbox:
            sandbox.run(["true"])
            highest = max(map(int, os.listdir("/proc/self/fd")))
            before = len(os.listdir("/proc/self/fd"))
            kinds = set()
            for more in range(14):
                resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + more, 4096))
                for attempt in (lambda: sandbox.run(["true"]), lambda: sandbox.call(int), sandbox.processes,
                                lambda: sandbox.path("/etc/passwd").read_text(), lambda: Sandbox().start().close()):
                    try:
                        attempt()
                    except Exception as error:
                        kinds.add(f"{type(error).__name__}: {error}"[:300])
            resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
            print(len(os.listdir("/proc/self/fd")) - before)
            print(sandbox.run(["echo", "alive"]).stdout.strip(), sandbox.call(int), len(sandbox.processes()))
            print(*sorted(kinds), sep="\\n")
    """)
    assert lines[:2] == ["0", "alive 0 0"]
    for line in lines[2:]:
        assert "Too many open files" in line or "SandboxProtocolError" in line or "a message was cut" in line, line


def test_no_processes_left() -> None:
    if IS_ROOT:
        pytest.skip("RLIMIT_NPROC does not bind root")
    lines = prints("""
        import os, resource
        from pytest_sandbox import Sandbox
        with Sandbox() as sandbox:
            before = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
            try:
                print(sandbox.call(int))
            except Exception as error:
                print(type(error).__name__, error)
            print(len(os.listdir("/proc/self/fd")) - before)
    """)
    assert lines == ["BlockingIOError [Errno 11] Resource temporarily unavailable", "0"]


def test_the_messages_of_a_closed_sandbox_are_not_those_of_a_failed_start() -> None:
    assert not issubclass(SandboxClosedError, SandboxStartError)
    assert issubclass(SandboxCallError, RuntimeError)
    assert os.getpid()
