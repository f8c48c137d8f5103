"""Who a command is inside and what it may do: identities, capability sets, no_new_privs."""

from __future__ import annotations

import getpass
import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from support import IS_ROOT

from pytest_sandbox import Sandbox, SandboxUsageError
from pytest_sandbox.spec import CAPABILITIES, DEFAULT_CAPABILITIES


def _status(pid: str = "self") -> dict[str, str]:
    with open(f"/proc/{pid}/status") as file:
        return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in file)}


def _of_command(sandbox: Sandbox) -> dict[str, str]:
    text = sandbox.run(["cat", "/proc/self/status"]).stdout
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in text.splitlines())}


def _bits(*names: str) -> str:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        last = int(file.read())
    return f"{sum(1 << CAPABILITIES.index(name) for name in names if CAPABILITIES.index(name) <= last):016x}"


NOTHING = _bits()


@pytest.mark.parametrize("way", ["command", "fork"])
@pytest.mark.parametrize("user", ["me", "root"])
def test_no_new_privileges_and_the_default_capabilities(user: str, way: str) -> None:
    with Sandbox(user=user) as sandbox:
        status = _of_command(sandbox) if way == "command" else sandbox.call(_status)
    assert status["NoNewPrivs"] == "1"
    held = _bits(*DEFAULT_CAPABILITIES) if user == "root" or IS_ROOT else NOTHING
    assert (status["CapEff"], status["CapPrm"], status["CapInh"], status["CapAmb"]) == (held, held, NOTHING, NOTHING)
    assert status["CapBnd"] == _bits(*DEFAULT_CAPABILITIES)


@pytest.mark.parametrize("way", ["command", "fork"])
@pytest.mark.parametrize("kept", [[], ["NET_BIND_SERVICE"], ["SYS_ADMIN", "CAP_CHOWN"], list(CAPABILITIES)])
def test_the_capabilities_that_were_asked_for_and_no_others(kept: list[str], way: str) -> None:
    with Sandbox(user="root", capabilities=kept) as sandbox:
        status = _of_command(sandbox) if way == "command" else sandbox.call(_status)
    held = _bits(*(name.removeprefix("CAP_") for name in kept))
    assert (status["CapEff"], status["CapPrm"], status["CapBnd"]) == (held, held, held)


def test_a_capability_counts_inside_only() -> None:
    with Sandbox(user="root", capabilities=["SYS_ADMIN", "SYS_TIME", "SYS_BOOT"]) as sandbox:
        assert sandbox.run(["mount", "-t", "tmpfs", "none", "/mnt"]).returncode == 0
        assert sandbox.run(["date", "-s", "@0"]).returncode != 0
        assert sandbox.run(["cat", "/proc/kmsg"]).returncode != 0
    with Sandbox(user="root") as sandbox:
        assert sandbox.run(["mount", "-t", "tmpfs", "none", "/mnt"]).returncode != 0
        assert sandbox.run(["umount", "/proc"]).returncode != 0
        assert sandbox.run(["unshare", "-n", "true"]).returncode != 0


def test_set_id_programs_give_nothing() -> None:
    with Sandbox(user="root") as sandbox:
        sandbox.copy_in(shutil.which("id") or "/usr/bin/id", "/tmp/id")
        sandbox.path("/tmp/id").chmod(0o6755)
        assert stat.S_IMODE(sandbox.path("/tmp/id").stat().st_mode) == 0o6755
        if IS_ROOT:
            assert sandbox.run(["/tmp/id", "-u"], user="1000:1000").stdout == "1000\n"
    with Sandbox(user="me") as sandbox:
        assert _of_command(sandbox)["NoNewPrivs"] == "1"


@pytest.mark.parametrize("way", ["command", "fork"])
@pytest.mark.parametrize(("user", "ids"), [("me", [os.getuid(), os.getgid()]), ("root", [0, 0]),
                                           ("1000:1000", [1000, 1000]), ("1234:4321", [1234, 4321])])
def test_a_command_is_the_user_that_was_asked_for(user: str, ids: list[int], way: str) -> None:
    with Sandbox(user=user) as sandbox:
        assert list(sandbox.ids) == ids
        if way == "fork":
            found = sandbox.call(lambda: [*os.getresuid(), *os.getresgid()])
        else:
            status = _of_command(sandbox)
            found = [int(one) for one in (*status["Uid"].split()[:3], *status["Gid"].split()[:3])]
    assert found == [*[ids[0]] * 3, *[ids[1]] * 3]


def test_me_is_known_by_name() -> None:
    with Sandbox(user="me") as sandbox:
        assert sandbox.run(["id", "-un"]).stdout.strip() == getpass.getuser()


def test_a_file_made_inside_belongs_to_its_user() -> None:
    with Sandbox(user="1000:1000") as sandbox:
        sandbox.run(["touch", "/tmp/theirs"], check=True)
        look = sandbox.path("/tmp/theirs").stat()
        outside = (1000, 1000) if IS_ROOT else (os.getuid(), os.getgid())
        assert (look.st_uid, look.st_gid) == outside
        sandbox.path("/tmp/ours").write_text("")
        assert sandbox.run(["stat", "-c", "%u:%g", "/tmp/ours"]).stdout == "1000:1000\n"
        assert sandbox.run(["stat", "-c", "%u:%g", f"/run/user/{1000}"]).stdout == "1000:1000\n"


@pytest.mark.skipif(not IS_ROOT, reason="an unprivileged sandbox has a single user id")
def test_root_s_files_stay_closed_to_others() -> None:
    with Sandbox() as sandbox:
        as_root = sandbox.run(["cat", "/etc/shadow"])
        as_user = sandbox.run(["cat", "/etc/shadow"], user="1000:1000")
        assert as_root.stdout == Path("/etc/shadow").read_text()
        assert as_user.returncode != 0
        assert "Permission denied" in as_user.stderr
        status = sandbox.run(["grep", "-E", "^(Groups|CapEff|CapPrm):", "/proc/self/status"], user="1000:1000").stdout
        assert status.split() == ["Groups:", "1000", "CapPrm:", NOTHING, "CapEff:", NOTHING]


@pytest.mark.skipif(IS_ROOT, reason="root may read everything")
@pytest.mark.parametrize("user", ["me", "root"])
def test_what_the_caller_cannot_read_stays_unreadable(user: str) -> None:
    with Sandbox(user=user) as sandbox:
        assert sandbox.run(["cat", "/etc/shadow"]).stdout == ""
        assert sandbox.run(["ls", "-A", "/root"]).stdout == ""


@pytest.mark.skipif(IS_ROOT, reason="root can change user within a sandbox")
def test_an_unprivileged_sandbox_has_one_user() -> None:
    with Sandbox() as sandbox:
        with pytest.raises(SandboxUsageError, match="single user id") as caught:
            sandbox.run(["true"], user="root")
        assert caught.value.option == "user"
        assert "Start a sandbox with user='root'" in str(caught.value)
        assert sandbox.run(["true"], user="me").returncode == 0


def test_init_cannot_be_looked_into() -> None:
    with Sandbox(user="root") as sandbox:
        listed = sandbox.run(["ls", "/proc/1/fd"])
        if sandbox._ready().plan.base:  # it belongs to an id that nobody inside is
            assert listed.returncode != 0
        else:
            assert listed.stdout  # their numbers are no secret
        for number in (*listed.stdout.split(), *range(10)):
            assert sandbox.run(["readlink", f"/proc/1/fd/{number}"]).returncode != 0
        assert sandbox.run(["ls", "/proc/1/root/"]).returncode != 0
        assert sandbox.run(["cat", "/proc/1/mem"]).returncode != 0


def test_the_owner_of_the_caller_s_files_does_not_change() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "file")
        file.write_text("ours")
        file.chmod(0o640)
        with Sandbox(user="me") as sandbox:
            inside = sandbox.run(["stat", "-c", "%u:%g %a", str(file)]).stdout
        assert inside == f"{os.getuid()}:{os.getgid()} 640\n"
