"""Floods: a test takes all of something that it can get. It fails, or not, alone; the next test of the run finds all.

Not part of the default suite: ``tox -e soak``. What others have left while a flood goes on is in ``tests/attack``.

Nothing here may hurt the machine: each flood first makes sure that it is in namespaces of its own, and has a bound of
its own besides the one that is tested.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))
sys.path.insert(0, str(Path(__file__).parent.parent / "attack"))
from support import needs
from test_reports_hostile import run

HEAD = '''
import ctypes, errno, os, signal, subprocess, sys, time
import pytest
MNT, PID = os.readlink("/proc/self/ns/mnt"), os.readlink("/proc/self/ns/pid")
libc = ctypes.CDLL(None, use_errno=True)

@pytest.fixture(autouse=True)
def apart(request):
    if "sandbox" in request.keywords and (os.readlink("/proc/self/ns/mnt") == MNT or
                                          os.readlink("/proc/self/ns/pid") == PID):
        pytest.exit("this test is not in namespaces of its own")

def until_refused(take, most):
    """How often it could be had, and why no more."""
    for number in range(most):
        try:
            if take(number) == -1:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        except OSError as error:
            return number, errno.errorcode[error.errno]
    return most, "never"

def works(request):
    """What the next test needs of all that was flooded."""
    subprocess.run(["true"], check=True)
    with open("/var/tmp/x", "wb") as file:
        file.write(bytes(100_000))
    assert libc.inotify_init1(os.O_CLOEXEC) >= 0
    os.dup(0), os.pipe()
    print("printed")
'''
NEXT = '''
@pytest.mark.sandbox
def test_next(request):
    works(request)

def test_next_on_the_host(request):
    assert libc.inotify_init1(os.O_CLOEXEC) >= 0
    subprocess.run(["true"], check=True)
'''


def flooded(place: Path, options: str, body: str) -> str:
    """What a run of the flood and of two tests after it says; those two have passed."""
    lines = "\n    ".join(body.strip().splitlines())
    (place / "test_x.py").write_text(f"{HEAD}\n@pytest.mark.sandbox({options})\ndef test_flood():\n    {lines}\n{NEXT}")
    output, peak = run(place, "-rA", "-vv")
    assert re.search("PASSED .*test_next$", output, re.MULTILINE), output[-4000:]
    assert re.search("PASSED .*test_next_on_the_host$", output, re.MULTILINE), output[-4000:]
    assert peak < 400
    return output


@needs("pids")
@pytest.mark.parametrize("how", ["forks", "threads"])
def test_processes(tmp_path: Path, how: str) -> None:
    take = {"forks": "os.fork() or os._exit(signal.pause() or 0)",
            "threads": "__import__('threading').Thread(target=signal.pause, daemon=True).start() or 0"}[how]
    output = flooded(tmp_path, "pids=64", f"""
def take(number):
    return {take}
while True:
    take(0)
""")
    assert "PidsLimitExceeded" in output
    assert "pids" in output


@needs("pids")
def test_a_fork_bomb(tmp_path: Path) -> None:
    """Every child forks as well, and none of them ever ends by itself."""
    output = flooded(tmp_path, "pids=32, timeout=1", """
while True:
    try:
        os.fork()
    except OSError:
        pass
""")
    assert "TimeLimitExceeded" in output


@needs("memory")
def test_memory(tmp_path: Path) -> None:
    output = flooded(tmp_path, 'memory="96M"', """
keep = []
for _ in range(1000):
    keep.append(b"x" * (1 << 20))
""")
    assert "MemoryLimitExceeded" in output


@needs("memory")
@pytest.mark.parametrize("where", ["memfd", "sockets", "shm"])
def test_memory_of_the_kernel(tmp_path: Path, where: str) -> None:
    """What is no process's own counts too."""
    body = {
        "memfd": "os.write(os.memfd_create('x'), bytes(1 << 20))",
        "shm": "open(f'/dev/shm/{number}', 'wb').write(bytes(1 << 20))",
        "sockets": "import socket; keep.append(socket.socketpair()); [one.setblocking(False) for one in keep[-1]]; "
                   "keep[-1][0].send(bytes(1 << 17))",
    }[where]
    output = flooded(tmp_path, 'memory="96M"', f"""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
keep = []
for number in range(1000):
    {body}
assert False, "all of it could be had"
""")
    assert "MemoryLimitExceeded" in output or "No space left" in output or "Too many open files" in output, output


def test_bytes_of_the_writable_layer(tmp_path: Path) -> None:
    output = flooded(tmp_path, 'disk="16M"', """
with open("/var/tmp/flood", "wb") as file:
    for _ in range(64):
        file.write(bytes(1 << 20))
""")
    assert "DiskLimitExceeded" in output


def test_files_of_the_writable_layer(tmp_path: Path) -> None:
    output = flooded(tmp_path, 'disk="16M"', """
os.mkdir("/var/tmp/flood")
for number in range(20000):
    os.close(os.open(f"/var/tmp/flood/{number}", os.O_CREAT | os.O_WRONLY))
""")
    assert "DiskLimitExceeded" in output or "No space left" in output


@pytest.mark.parametrize("user", ["root", "me"])
def test_by_default_the_writable_layer_ends(tmp_path: Path, user: str) -> None:
    """Without any option: half of this host's memory. Nothing is written to try it; a sparse file has a size, too."""
    flooded(tmp_path, f'user="{user}"', """
with open("/proc/meminfo") as file:
    memory = int(file.readline().split()[1]) << 10
facts = os.statvfs("/var/tmp")
assert 0 < facts.f_blocks * facts.f_frsize <= memory // 2 + 4096
assert facts.f_files <= memory // 2 // 4096 + 1024
""")


def test_descriptors(tmp_path: Path) -> None:
    flooded(tmp_path, "", """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (min(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
many, why = until_refused(lambda number: os.dup(0), 20000)
assert why == "EMFILE"
""")


@pytest.mark.parametrize("user", ["root", "me"])
def test_user_namespaces_and_mounts(tmp_path: Path, user: str) -> None:
    """Nested as deep as the kernel lets them be, and in each of them mounts."""
    output = flooded(tmp_path, f'user="{user}"', """
def nested(number):
    if libc.unshare(0x10000000 | 0x00020000) == -1:
        raise OSError(ctypes.get_errno(), "unshare")
    for _ in range(50):
        if libc.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, b"size=4k") == -1:
            return 0
    return 0
pid = os.fork()
if pid == 0:
    many, why = until_refused(nested, 100)
    print(many, why, flush=True)
    os.write(1, f"NESTED {many} {why}".encode())
    os._exit(0)
os.waitpid(pid, 0)
""")
    found = re.search(r"NESTED (\d+) (\w+)", output)
    assert found, output[-3000:]
    assert int(found[1]) <= 33


@pytest.mark.parametrize("user", ["root", "me"])
def test_keys(tmp_path: Path, user: str) -> None:
    """They are counted by user, not by namespace: the filter refuses them all."""
    flooded(tmp_path, f'user="{user}"', """
number = {"x86_64": 248, "aarch64": 217}[os.uname().machine]
many, why = until_refused(lambda key: libc.syscall(number, b"user", b"flood%d" % key, b"x", 1, -2), 500)
assert (many, why) in [(0, "EPERM"), (0, "ENOSYS")]
""")


@pytest.mark.parametrize("user", ["root", "me"])
def test_inotify(tmp_path: Path, user: str) -> None:
    flooded(tmp_path, f'user="{user}"', """
many, why = until_refused(lambda number: libc.inotify_init1(os.O_CLOEXEC), 5000)
assert why == "EMFILE"
pid = os.fork()  # which keeps them for as long as the sandbox lives
if pid == 0:
    signal.pause()
""")


@pytest.mark.parametrize("capture", ["fd", "sys", "no"])
def test_output(tmp_path: Path, capture: str) -> None:
    """A gigabyte at descriptor 1: neither pytest's memory nor the disk below the file that it goes to holds it."""
    (tmp_path / "test_x.py").write_text(HEAD + """
@pytest.mark.sandbox
def test_flood():
    for _ in range(1024):
        os.write(1, b"x" * 1023 + b"\\n" if os.isatty(1) else (b"y" * 63 + b"\\n") * (1 << 14))
    time.sleep(0.6)
    assert os.fstat(1).st_blocks * 512 < 400 << 20
    assert False, "so that it is shown"
""" + NEXT)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run([sys.executable, "-c", (
            "import pytest, resource, sys; code = pytest.main(sys.argv[1:]);"
            "print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)"),
            "-p", "no:cacheprovider", "-p", "no:randomly", f"--capture={capture}", "-rf"], cwd=tmp_path, timeout=100,
            stdout=subprocess.DEVNULL if capture != "fd" else out, stderr=subprocess.PIPE, text=True, check=False)
    found = re.search(r"PEAK (\d+)", done.stderr)
    assert found, done.stderr
    assert int(found[1]) < 400
    if capture == "fd":
        said = (tmp_path / "out").read_text()
        assert "bytes of output left out" in said
        assert "1 failed, 2 passed" in said, said[-1000:]
        assert len(said) < 40 << 20
