"""What a marked test, being a fork of pytest, could reach outside through what it was born with.

Each probe is harmless where it succeeds: stand-in files, present values, a signal that only a pytest of its own gets.
"""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

GUARD = """
import os, pytest
MNT, PID = os.readlink("/proc/self/ns/mnt"), os.readlink("/proc/self/ns/pid")

@pytest.fixture(autouse=True)
def guard(request):
    if "sandbox" in request.keywords and (os.readlink("/proc/self/ns/mnt") == MNT or
                                          os.readlink("/proc/self/ns/pid") == PID):
        pytest.exit("this test is not in namespaces of its own")
"""


@pytest.fixture(autouse=True)
def guarded(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(GUARD)


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile("import os, pytest\n" + body)
    return pytester.runpytest_subprocess("-p", "no:cacheprovider")


def test_signals_to_the_process_group_stay_inside(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
@pytest.mark.sandbox
def test_group():
    import signal
    os.kill(0, signal.SIGUSR1)  # its default action ends a process

@pytest.mark.sandbox
def test_own_group():
    assert os.getpgrp() == os.getsid(0) == os.getpid()

def test_pytest_is_alive(): pass
""")
    result.assert_outcomes(passed=2, errors=0, failed=1)
    result.stdout.fnmatch_lines(["*SandboxCrashed*SIGUSR1*"])


def test_nothing_is_typed_into_the_terminal(pytester: pytest.Pytester) -> None:
    """TIOCSTI puts characters into a terminal's input queue, where the shell would read them afterwards."""
    pytester.makepyfile("""
        import fcntl, pytest, termios

        @pytest.mark.sandbox
        def test_type():
            for name in ("/dev/tty", 0):
                try:
                    with open(name, "rb", closefd=name != 0) as terminal:
                        for one in b"typed\\n":
                            fcntl.ioctl(terminal, termios.TIOCSTI, bytes([one]))
                except OSError as error:
                    print("refused", error.errno)
    """)
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(pytester.path)
        os.execv(sys.executable, [sys.executable, "-c", (
            "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pytest', '-s', '-p', 'no:cacheprovider']);"
            "import select; print('QUEUED' if select.select([0], [], [], 0)[0] else 'EMPTY')")])
    output = b""
    while select.select([master], [], [], 60)[0]:
        try:
            chunk = os.read(master, 4096)
        except OSError:
            break
        if not chunk:
            break
        output += chunk
    os.waitpid(pid, 0)
    os.close(master)
    assert b"1 passed" in output
    assert output.count(b"refused") == 2
    assert b"EMPTY" in output


def test_directory_descriptors_lead_inside(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
@pytest.fixture(scope="session")
def folder(request):
    path = request.config.rootpath / "folder"  # not below tmp_path, which shows through
    path.mkdir()
    path.joinpath("there").write_text("host")
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    yield path, fd
    os.close(fd)
    assert os.listdir(path) == ["there"]

@pytest.mark.sandbox
def test_write(folder):
    path, fd = folder
    assert os.listdir(fd) == ["there"]
    os.close(os.open("made", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    assert path.joinpath("made").exists()

@pytest.mark.sandbox
def test_no_look_at_the_mount_table():
    for name in os.listdir("/proc/self/fd"):
        try:
            assert "mountinfo" not in os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass
""")
    result.assert_outcomes(passed=2)


def test_device_nodes_cannot_be_changed(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
@pytest.mark.sandbox
@pytest.mark.parametrize("name", ["null", "zero", "full", "random", "urandom"])
def test_node(name):
    look = os.stat(f"/dev/{name}")
    with pytest.raises(OSError):
        os.chmod(f"/dev/{name}", look.st_mode & 0o777)  # what it is already
    with pytest.raises(OSError):
        os.utime(f"/dev/{name}", ns=(look.st_atime_ns, look.st_mtime_ns))
    with open("/dev/null", "wb") as file:
        file.write(b"x")
""")
    result.assert_outcomes(passed=5)


def test_the_session_keyring_stays_outside(pytester: pytest.Pytester, tmp_path: Path) -> None:
    keyctl = {"x86_64": 250, "aarch64": 219}.get(os.uname().machine)
    if keyctl is None:
        pytest.skip("the number of keyctl(2) on this machine is not known here")
    script = tmp_path / "driver.py"
    script.write_text(f"""
import ctypes, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.syscall({keyctl}, 1, None) < 0:  # KEYCTL_JOIN_SESSION_KEYRING
    print("no keyrings"); sys.exit(77)
add = {{250: 248, 219: 217}}[{keyctl}]
assert libc.syscall(add, b"user", b"sandbox_probe", b"secret", 6, -3) > 0
sys.exit(subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]).returncode)
""")
    pytester.makepyfile(f"""
        import ctypes, pytest
        libc = ctypes.CDLL(None, use_errno=True)

        def search():
            return libc.syscall({keyctl}, 10, -3, b"user", b"sandbox_probe", 0)  # KEYCTL_SEARCH

        def test_outside_it_is_there():
            assert search() > 0

        @pytest.mark.sandbox
        def test_inside_it_is_not():
            assert search() == -1

        def test_a_command_does_not_have_it(sandbox):
            keys = sandbox.run(["cat", "/proc/keys"])
            assert "sandbox_probe" not in keys.stdout
    """)
    done = subprocess.run([sys.executable, str(script)], cwd=pytester.path, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("keyctl(2) is refused here: " + done.stdout.strip())
    assert done.returncode == 0, done.stdout


def test_commands_of_other_sandboxes_are_out_of_reach(pytester: pytest.Pytester) -> None:
    result = run(pytester, """
@pytest.fixture(scope="session")
def process(sandbox_factory):
    with sandbox_factory().popen(["sleep", "100"]) as process:
        yield process
        assert process.poll() is None
        process.kill()

@pytest.mark.sandbox
def test_kill(process):
    process.kill()
    process.send_signal(9)

def test_it_lives(process):
    assert process.poll() is None
""")
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("forgery", [
    'report.duration = 1e400', 'report.duration = float("nan")', 'report.wasxfail = 5', 'report.outcome = "weird"',
    'report.outcome = "skipped"', 'report.outcome = "failed"', 'report.start = "now"',
])
def test_a_forged_report_fails_its_test_and_no_more(pytester: pytest.Pytester, forgery: str) -> None:
    pytester.makeconftest(f"""
        import pytest
        from pytest_sandbox import inside

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(item):
            report = yield
            if inside() and report.when == "call" and item.name == "test_forged":
                {forgery}
            return report
    """)
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox
        def test_forged(): pass
        @pytest.mark.sandbox
        def test_after(): pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--junitxml=out.xml", "--durations=3")
    assert result.ret == 1, result.stdout.str()
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.fnmatch_lines(["*SandboxProtocolError*"])
    assert " 1 passed" in result.stdout.str()
