"""Near a limit of the host nothing fails: in a user namespace that may have few network namespaces, from both sides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

#: Everything runs as an ordinary user below a user namespace that has room for this many network namespaces.
ROOM = 4
LIMITED = (f'echo {ROOM} > /proc/sys/user/max_net_namespaces && '
           'exec unshare --user --map-user=1000 --map-group=1000 "$@"')

PRELUDE = f"""
import ctypes, os, sys, time
sys.path.insert(0, {str(CHECKOUT)!r})
libc = ctypes.CDLL(None, use_errno=True)

def refused():
    '''Whether the kernel refuses another network namespace now.'''
    pid = os.fork()
    if pid == 0:
        os._exit(ctypes.get_errno() if libc.unshare(0x50000000) else 0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0

from pytest_sandbox import Sandbox
from pytest_sandbox.errors import SandboxStartError
from pytest_sandbox.runtime import launch
"""


def run(code: str) -> str:
    done = subprocess.run(["unshare", "--user", "--map-root-user", "sh", "-c", LIMITED, "sh", sys.executable, "-c",
                           PRELUDE + code], capture_output=True, text=True, check=False, timeout=120)
    if "unshare failed" in done.stderr:
        pytest.skip(f"this host lets nobody make a user namespace: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_waits_ahead_makes_room() -> None:
    said = run(f"""
first = Sandbox().start()
spec = first.spec
launch.supervisor().gauge.allowed = lambda wanted, alive: wanted  # also where the machine is busy
Sandbox.prepare(spec, {ROOM - 1})
while len([one for one in launch.supervisor().ahead[first._running.plan.key] if one.is_ready()]) < {ROOM - 1}:
    time.sleep(0.01)
print("full", refused())
other = Sandbox(hostname="other").start()  # by another plan: none of those that wait is of use
print("started", other.run(["hostname"]).stdout.strip())
""")
    assert said.split() == ["full", "True", "started", "other"]


def test_a_run_goes_on_while_the_kernel_takes_down_what_was() -> None:
    """Each sandbox is let go without waiting, and its network namespace is taken down later than it ends."""
    said = run("""
short = 0
for number in range(30):
    sandbox = Sandbox().start()
    Sandbox.prepare(sandbox.spec, 2)
    short += refused()
    assert sandbox.run(["true"]).returncode == 0
    sandbox.discard()
print("all", 30, short > 0)
""")
    assert said.split()[:2] == ["all", "30"]


def test_too_many_open_files_is_an_error_that_says_so() -> None:
    said = run("""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
alive = []
try:
    for _ in range(60):
        alive.append(Sandbox(network="host").start())
except SandboxStartError as error:
    print("error", error.errno, "ulimit -n" in str(error))
for _ in range(4):
    alive.pop().close()
print("again", alive[-1].run(["true"]).returncode)
""")
    assert said.split() == ["error", "24", "True", "again", "0"]


def test_what_no_room_can_mend_is_an_error_that_says_so() -> None:
    said = run(f"""
alive = [Sandbox().start() for _ in range({ROOM})]
try:
    Sandbox().start()
except SandboxStartError as error:
    print("error", error.errno, "as many namespaces as this user may have" in str(error))
alive.pop().close()
alive.append(Sandbox().start())
print("again", alive[-1].run(["true"]).returncode)
""")
    assert said.split() == ["error", "28", "True", "again", "0"]
