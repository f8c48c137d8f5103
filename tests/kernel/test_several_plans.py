"""One process makes sandboxes of different specs, one after the other and at once."""

from __future__ import annotations

import pytest
from support import IS_ROOT, prints

from pytest_sandbox import Sandbox


@pytest.mark.parametrize("options", [{"user": "root"}, {}], ids=["root", "me"])
def test_specs_that_differ_in_anything_but_their_layers_share_them(options: dict[str, str]) -> None:
    with Sandbox(hostname="one", **options) as one, Sandbox(hostname="two", **options) as two:
        assert one.run(["uname", "-n"]).stdout == "one\n"
        assert two.run(["uname", "-n"]).stdout == "two\n"
        with Sandbox(hostname="one", network="host", **options) as three:
            assert three.run(["uname", "-n"]).stdout == "one\n"


def test_specs_with_other_layers() -> None:
    with Sandbox(hide=[]) as one, Sandbox(hide=["/etc/passwd"]) as two:
        assert one.path("/etc/passwd").exists()
        assert not two.path("/etc/passwd").exists()


#: The helper's own file system gets room for a few entries more than it has, from a child that enters its namespace.
FULL = """
    import os, sys
    from pytest_sandbox import Sandbox, SandboxStartError
    from pytest_sandbox.runtime import launch
    from pytest_sandbox.runtime import syscalls as sc

    def make(number):
        return Sandbox(hide=[f"/etc/{name}{number}" for name in ("passwd", "group", "hostname")], env={}).start()

    def fill(room):
        helper = launch.supervisor()
        if os.fork() == 0:
            try:
                ours = os.readlink("/proc/self/ns/mnt")
                sc.setns(helper.pidfd, sc.CLONE_NEWNS)
                now = os.statvfs("/")
                if os.path.isdir("/host/proc") and os.path.isdir("/own"):  # the helper's, and nobody else's
                    used = now.f_files - now.f_ffree
                    sc.mount("none", "/", None, sc.MS_REMOUNT, f"mode=0755,nr_inodes={used + room}")
                    os._exit(0)
            finally:
                os._exit(1)
        assert os.wait()[1] == 0
"""


@pytest.mark.skipif(not IS_ROOT, reason="only root enters the helper's mount namespace")
def test_layers_that_nobody_stands_on_make_room() -> None:
    assert prints(FULL + """
    one = make("")
    one.close()
    fill(1)
    two = make("-")
    print(two.run(["true"]).returncode)
    """) == ["0"]


@pytest.mark.skipif(not IS_ROOT, reason="only root enters the helper's mount namespace")
def test_layers_that_somebody_stands_on_stay() -> None:
    assert prints(FULL + """
    one = make("")
    fill(1)
    try:
        make("-")
    except SandboxStartError as error:
        print(error.errno, "close sandboxes that differ" in str(error))
    print(one.run(["ls", "/etc/passwd"]).returncode, one.run(["ls", "/etc/group-"]).returncode)
    """) == ["28 True", "2 0"]
