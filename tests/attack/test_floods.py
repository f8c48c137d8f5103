"""What the host and other sandboxes have left while one takes all that it can get of what the kernel counts by user.

Each flood first makes sure that it is in namespaces of its own. The other floods are in ``tests/soak/test_floods.py``.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))
from stage import PYTHON
from support import abort_unless_apart

from pytest_sandbox import Sandbox

HOLDS = """
import ctypes, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
count = 0
while count < 3000 and TAKE:
    count += 1
print(count, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("user", ["root", "me"])
def test_inotify_while_it_is_flooded(user: str) -> None:
    """The kernel counts instances by user: a sandbox has half of what its owner may have."""
    libc = ctypes.CDLL(None)
    most = int(Path("/proc/sys/user/max_inotify_instances").read_text())
    with Sandbox(user=user) as box:
        abort_unless_apart(box)
        taken = HOLDS.replace("TAKE", "libc.inotify_init1(0) >= 0")
        with box.popen([PYTHON, "-c", taken], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert 0 < int(process.stdout.readline()) <= (most + 1) // 2
            mine = libc.inotify_init1(os.O_CLOEXEC)
            assert mine >= 0
            os.close(mine)
            process.kill()


@pytest.mark.parametrize("user", ["root", "me"])
def test_namespaces_while_they_are_flooded(user: str) -> None:
    """Of each kind a sandbox has at most 1024, and the host's user has the others."""
    take = ("libc.unshare(0x10000000 if not count else 0x04000000) >= 0 "
            "and os.open('/proc/self/ns/uts', os.O_RDONLY) >= 0")
    code = ("import resource\nmost = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
            "resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n" + HOLDS.replace("TAKE", take))
    with Sandbox(user=user) as box:
        abort_unless_apart(box)
        with box.popen([PYTHON, "-c", code], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert 100 < int(process.stdout.readline()) <= 1025
            with Sandbox() as other:
                assert other.run(["true"]).returncode == 0
            process.kill()


def test_the_kernel_looks_at_sandboxes_first() -> None:
    """When the host's memory ends, whoever flooded it without a limit of its own is the first to go."""
    here = int(Path("/proc/self/oom_score_adj").read_text())
    with Sandbox(user="root") as box:
        said = box.run(["sh", "-c", "cat /proc/self/oom_score_adj; echo -1000 > /proc/self/oom_score_adj; "
                        "cat /proc/self/oom_score_adj"]).stdout.split()
        assert int(said[0]) == max(here, 500)
        assert int(said[1]) >= here
        assert int(box.call(lambda: Path("/proc/self/oom_score_adj").read_text())) == max(here, 500)
    assert int(Path("/proc/self/oom_score_adj").read_text()) == here
