"""``Sandbox.run``: what goes in, what comes out, and what happens when it does not go well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import until

from pytest_sandbox import Sandbox, SandboxCommandError, SandboxUsageError


@pytest.fixture
def started() -> object:
    with Sandbox() as sandbox:
        yield sandbox


def test_a_result_is_a_completed_process(started: Sandbox) -> None:
    done = started.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert isinstance(done, subprocess.CompletedProcess)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (
        ["sh", "-c", "echo out; echo err >&2; exit 3"], 3, "out\n", "err\n")
    assert (done.timed_out, done.truncated, done.signal) == (False, False, None)
    killed = started.run(["sh", "-c", "kill -SEGV $$"])
    assert (killed.returncode, killed.signal) == (-11, signal.SIGSEGV)


def test_input_as_text_and_bytes(started: Sandbox) -> None:
    assert started.run(["cat"], input="grüße\n").stdout == "grüße\n"
    assert started.run(["cat"], input=b"\0\xff", text=False).stdout == b"\0\xff"
    assert started.run(["cat"]).stdout == ""
    assert started.run(["cat"], input="").stdout == ""
    assert started.run(["printf", r"a\r\nb\rc\377"]).stdout == "a\nb\nc�"
    assert started.run(["true"], input="x" * (1 << 20)).returncode == 0  # one that does not read it


def test_much_goes_in_and_comes_out_at_once(started: Sandbox) -> None:
    data = os.urandom(8 << 20)
    assert started.run(["cat"], input=data, text=False).stdout == data


def test_output_beyond_the_limit_is_cut(started: Sandbox) -> None:
    done = started.run(["yes"], output_limit=1000)
    assert done.truncated
    assert done.stdout == "y\n" * 500
    assert done.signal == signal.SIGPIPE
    done = started.run(["sh", "-c", "echo 12345; echo 12345 >&2"], output_limit=6)
    assert (done.stdout, done.stderr, done.truncated) == ("12345\n", "12345\n", False)
    assert started.run(["echo", "x"], output_limit=0).truncated


def test_a_command_that_takes_too_long(started: Sandbox) -> None:
    done = started.run(["sh", "-c", "echo begun; sleep 1000 & exec sleep 1000"], timeout=0.3)
    assert done.timed_out
    assert done.signal == signal.SIGKILL
    assert done.stdout == "begun\n"
    until(lambda: started.processes() == [], "its whole process group is gone")


def test_one_that_left_its_group_cannot_delay_the_timeout(started: Sandbox) -> None:
    done = started.run(["sh", "-c", "setsid sleep 1000 & echo begun; exec sleep 1000"], timeout=0.2)
    assert done.timed_out
    assert done.stdout == "begun\n"
    started.kill()
    assert started.processes() == []


def test_check(started: Sandbox) -> None:
    with pytest.raises(SandboxCommandError) as caught:
        started.run(["sh", "-c", "echo out; echo the reason >&2; exit 9"], check=True)
    error = caught.value
    assert isinstance(error, subprocess.CalledProcessError)
    assert (error.returncode, error.stdout, error.stderr) == (9, "out\n", "the reason\n")
    assert "the reason" in str(error)
    with pytest.raises(SandboxCommandError, match=r"it ran longer than 0\.1 s"):
        started.run(["sleep", "1000"], timeout=0.1, check=True)
    assert started.run(["true"], check=True).returncode == 0


def test_no_such_command(started: Sandbox, tmp_path: Path) -> None:
    for name in ("no-such-command", "/no/such/command", f"{tmp_path}/absent"):
        with pytest.raises(FileNotFoundError, match="cannot be started in the sandbox") as caught:
            started.run([name])
        assert caught.value.filename == name
    plain = tmp_path / "plain"
    plain.write_text("no program")
    plain.chmod(0o644)
    with pytest.raises(PermissionError) as refused:
        started.run([str(plain)])
    assert refused.value.filename == str(plain)
    program = tmp_path / "program"
    program.write_text("no program")
    program.chmod(0o755)
    with pytest.raises(OSError, match="Exec format error"):
        started.run([str(program)])
    assert started.run(["echo", "alive"]).stdout == "alive\n"


def test_a_command_of_the_sandbox_s_own(started: Sandbox, tmp_path: Path) -> None:
    program = started.path(tmp_path / "bin" / "made-inside")
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho $0 $@")
    program.chmod(0o755)
    assert started.run(["made-inside", "a b"], env={"PATH": f"{tmp_path}/bin:/bin:/usr/bin"}).stdout \
        == f"{program} a b\n"
    assert started.run(["./made-inside"], cwd=str(program.parent)).stdout == "./made-inside\n"
    with pytest.raises(FileNotFoundError):
        started.run(["made-inside"])


def test_a_directory_that_is_missing(started: Sandbox) -> None:
    with pytest.raises(FileNotFoundError, match="/no/such/place") as caught:
        started.run(["pwd"], cwd="/no/such/place")
    assert caught.value.filename == "/no/such/place"
    with pytest.raises(NotADirectoryError):
        started.run(["pwd"], cwd="/etc/passwd")


@pytest.mark.parametrize(("args", "kind", "match"), [
    ("ls -l", SandboxUsageError, "a command is a list of words, not 'ls -l'"),
    ([], SandboxUsageError, "a list of words"), (b"ls", SandboxUsageError, "a list of words"),
    ([1], TypeError, "int"), (["echo", None], TypeError, "NoneType"), (["echo", "a\0b"], ValueError, "NUL"),
])
def test_what_is_no_command(started: Sandbox, args: object, kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        started.run(args)  # type: ignore[arg-type]
    assert started.run([b"echo", Path("/alive")]).stdout == "/alive\n"


def test_an_environment_larger_than_a_packet(started: Sandbox) -> None:
    env = {f"VARIABLE_{number}": "x" * 4000 for number in range(75)}
    assert sum(map(len, env.values())) > 256 << 10
    assert started.run(["sh", "-c", "env | grep -c ^VARIABLE_"], env=env).stdout == "75\n"
    assert started.call(lambda: len(os.environ)) == len(os.environ)


def test_arguments_beyond_what_the_kernel_takes(started: Sandbox) -> None:
    for size in (1 << 20, 20 << 20):  # an argument may have 128 KiB; a message 16 MiB
        with pytest.raises(OSError, match="Argument list too long"):
            started.run(["echo", "x" * size])
        assert started.run(["echo", "alive"]).stdout == "alive\n"
    assert len(started.run(["echo", *["x" * 1000] * 1000]).stdout) == 1001 * 1000


def _open_descriptors(sandbox: Sandbox) -> list[str]:
    return sandbox.run(["ls", "/proc/self/fd"]).stdout.split()


def test_commands_inherit_three_descriptors_and_no_more(started: Sandbox) -> None:
    kept = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
    try:
        for fd in kept:
            os.set_inheritable(fd, True)
        assert _open_descriptors(started) == ["0", "1", "2", "3"]  # 3 is ls's own, of the directory
    finally:
        for fd in kept:
            os.close(fd)


def test_signals_are_at_their_defaults(started: Sandbox) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with Sandbox() as sandbox:
            status = sandbox.run(["grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status"]).stdout.split()
        libc = 0b11 << 31  # 32 and 33 are libc's own, whose posix_spawn() has them ignored until the program starts
        assert [int(status[1], 16), int(status[3], 16) & ~libc] == [0, 0]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_the_umask_is_the_usual_one_whatever_the_caller_s_is() -> None:
    before = os.umask(0o077)
    try:
        done = subprocess.run([sys.executable, "-c", UMASK], capture_output=True, text=True, check=True)
    finally:
        os.umask(before)
    assert done.stdout.split() == ["0022", "644", "755", "100"]


#: In a process of its own, whose helper starts with its umask and its limits.
UMASK = """if True:
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
    from pytest_sandbox import Sandbox
    with Sandbox() as sandbox:
        show = "umask; touch /tmp/one; stat -c %a /tmp/one; stat -c %a /run; ulimit -n"
        print(sandbox.run(["sh", "-c", show], check=True).stdout)
"""


class _Interrupt(Exception):
    pass


def _interrupt(*_: object) -> None:
    raise _Interrupt


def test_an_interrupted_run_ends_its_command(started: Sandbox) -> None:
    before = signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(_Interrupt):
            started.run(["sleep", "1000"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert started.processes() == []


def test_many_threads_run_commands_at_once(started: Sandbox) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for turn in range(10):
            text = f"{number}.{turn}\n" * 500
            done = started.run(["cat"], input=text, timeout=30)
            if (done.returncode, done.stdout) != (0, text):
                wrong.append(done)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    assert started.processes() == []


def test_a_fork_of_the_caller_does_not_keep_a_command_s_pipes_open(started: Sandbox) -> None:
    """While one thread calls a function that takes long, another's run() must see the end of its output."""
    reading, writing = os.pipe()
    release_read, release = os.pipe()

    def wait_inside() -> None:
        os.write(writing, b"x")
        os.read(release_read, 1)

    thread = threading.Thread(target=started.call, args=(wait_inside,))
    thread.start()
    try:
        os.read(reading, 1)
        for _ in range(5):
            assert started.run(["cat"], input="text", timeout=10).timed_out is False
    finally:
        os.write(release, b"x")
        thread.join()
        for fd in (reading, writing, release_read, release):
            os.close(fd)


def test_the_caller_s_interpreter_runs_inside(started: Sandbox) -> None:
    done = started.run([sys.executable, "-c", "import sys; print(sys.executable)"], check=True)
    assert done.stdout.strip() == sys.executable


def test_a_variable_that_is_no_text_is_named() -> None:
    with Sandbox() as sandbox, pytest.raises(TypeError, match="'NUMBER' has 5"):
        sandbox.run(["true"], env={"NUMBER": 5})  # type: ignore[dict-item]
