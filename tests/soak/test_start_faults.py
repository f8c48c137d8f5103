"""An error return of each of our own system calls at a sandbox's start, in turn: a clear error, and nothing is left.

strace(1) injects them, into every process that takes part: the caller, the helper, the spawner, init and the command.
Not part of the default suite: ``tox -e soak``, or ``python -m pytest -s tests/soak/test_start_faults.py``.
"""

from __future__ import annotations

import collections
import ctypes
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import leaks
import pytest
from test_sandboxes import alone, directories_of, new_mounts

from pytest_sandbox import Sandbox
from pytest_sandbox.sandbox import shutdown

PACKAGE = str(Path(__file__).parents[2])
#: Those by which a sandbox is made, one by one; what Python itself needs to begin is left alone.
CALLS = ("mount", "umount2", "move_mount", "open_tree", "mount_setattr", "fspick", "fsconfig", "pivot_root", "unshare",
         "setns", "clone3", "seccomp", "capset", "keyctl", "sethostname", "pidfd_open", "pidfd_send_signal", "sendmsg",
         "recvmsg", "memfd_create", "openat2", "fchdir", "setsid", "setuid", "setresuid", "setgroups", "socketpair",
         "mknodat", "mkdirat", "symlinkat", "setxattr", "fsetxattr", "flock", "ftruncate", "fchown", "fchmod", "prctl")
ERRORS = ("EPERM", "ENOMEM", "ENOSYS", "EIO", "EINVAL", "ENOSPC", "EMFILE")
MOST = int(os.environ.get("SOAK_TIMES", "12"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.randrange(1 << 30)

MAKE = """
import sys
from pytest_sandbox import Sandbox, SandboxError
try:
    with Sandbox() as box:
        done = box.run(["sh", "-c", "exit 3"])
        called = box.call(lambda: 7)
    print("fine" if (done.returncode, called) == (3, 7) else f"odd {done.returncode} {called}")
except SandboxError as error:
    print("told", type(error).__name__, str(error).replace("\\n", " "))
except OSError as error:
    print("oserror", error)
"""


def works_with_strace() -> str:
    if shutil.which("strace") is None:
        return "strace(1) is not installed"
    done = subprocess.run(["strace", "-f", "-o", "/dev/null", "-e", "inject=mount:error=EIO", "true"],
                          capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


@pytest.mark.timeout(0)
@pytest.mark.skipif(bool(works_with_strace()), reason=works_with_strace() or "there")
@pytest.mark.parametrize("spawner", ["", "python"], ids=["compiled", "python"])
def test_an_error_at_each_step(tmp_path: Path, spawner: str) -> None:
    print(f"\nSOAK_SEED={SEED}")
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    shutdown()
    assert alone(10) == []
    chance = random.Random(SEED)
    mounts, files = dict(leaks._mounts()), set(leaks._files())
    counts: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    pids: set[int] = set()
    environment = {**os.environ, "PYTHONPATH": PACKAGE, "PYTEST_SANDBOX_SPAWNER": spawner, "TMPDIR": str(tmp_path)}
    for call in CALLS:
        fine = 0
        for number in range(1, MOST + 1):
            error = chance.choice(ERRORS)
            where = f"{call}:error={error}:when={number}"
            process = subprocess.Popen(
                ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={where}",
                 sys.executable, "-B", "-c", MAKE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                env=environment, start_new_session=True)
            pids.add(process.pid)
            try:
                said, complaint = process.communicate(timeout=40)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said, complaint = process.communicate()
                wrong.append(f"{where}: it hangs")
            word = said.partition(" ")[0].strip()
            counts[word or "died"] += 1
            # An error of the caller's own calls may be told as the OSError that it is.
            if word not in ("fine", "told", "oserror") or process.returncode:
                wrong.append(f"{where}: {process.returncode} {said.strip()[:300]} {complaint.strip()[-300:]}")
            if left := alone(10):
                wrong.append(f"{where}: left {left}")
            if left := new_mounts(mounts, tmp_path):
                wrong.append(f"{where}: mounts are left: {left}")
            fine = fine + 1 if word == "fine" else 0
            if fine == 3:
                break
        print(call, dict(counts), f"wrong: {len(wrong)}", flush=True)
    with Sandbox() as sandbox:
        assert sandbox.run(["true"]).returncode == 0
    shutdown()
    assert alone(10) == []
    print(f"{sum(counts.values())} starts with a fault: {dict(counts)}; wrong: {len(wrong)}")
    print("\n".join(wrong))
    assert directories_of(pids) == []
    assert set(leaks._files()) - files == set()
    assert wrong == []
