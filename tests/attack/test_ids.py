"""What leaks to a sandbox of real root still belongs to somebody else: its root is not the host's.

Each leak is made by the test itself, and leads to stand-ins or to files that are opened and not written to. In a
sandbox with the host's own ids (an identity map) the same leak gives what it leads to.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from stage import PYTHON

from pytest_sandbox import Sandbox
from pytest_sandbox.runtime import shift

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's sandboxes have that user's own id")
#: The ids that a sandbox has, and what a leak then gives.
IDS = pytest.mark.parametrize(("ids", "given"), [("", "refused 13"), ("host", "open")], ids=["shifted", "identity"])
TRY = """
import os, sys
path, flags = sys.argv[1], int(sys.argv[2])
try:
    os.close(os.open(path, flags, dir_fd=9))
    print("open")
except OSError as error:
    print("refused", error.errno)
"""


@pytest.fixture
def leak(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Tries to open a path, seen from a descriptor of a directory that a command inside was given by mistake."""
    with ExitStack() as stack:
        def attempt(ids: str, folder: str, path: str, flags: int, **options: object) -> str:
            monkeypatch.setenv(shift.VARIABLE, ids)
            fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            with Sandbox(user="root", **options) as sandbox:
                command = ["sh", "-c", 'exec 9<&0 </dev/null "$@"', "sh",  # Python refuses such a standard input
                           PYTHON, "-I", "-S", "-B", "-c", TRY, path, str(flags)]
                with sandbox.popen(command, stdin=fd) as process:
                    out, err, _ = process.communicate()
                assert not err
                return str(out).strip()
        yield attempt


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("secret")
    path.chmod(0o600)
    return path


@IDS
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY], ids=["read", "write"])
def test_a_file_of_the_host_s_root(ids: str, given: str, flags: int, leak: Callable[..., str], secret: Path) -> None:
    assert leak(ids, str(secret.parent), "secret", flags) == given


@IDS
def test_a_file_that_everybody_may_read_is_not_changed(
    ids: str, given: str, leak: Callable[..., str], secret: Path,
) -> None:
    secret.chmod(0o644)
    secret.parent.chmod(0o755)
    assert leak(ids, str(secret.parent), "secret", os.O_WRONLY) == given
    assert leak(ids, str(secret.parent), "secret", os.O_RDONLY) == "open"


@IDS
def test_a_new_file_beside_it(ids: str, given: str, leak: Callable[..., str], secret: Path) -> None:
    assert leak(ids, str(secret.parent), "new", os.O_CREAT | os.O_WRONLY) == given
    assert (secret.parent / "new").exists() is (given == "open")


@IDS
@pytest.mark.parametrize("path", ["kernel/core_pattern", "kernel/modprobe", "vm/drop_caches"])
def test_a_setting_of_the_kernel(ids: str, given: str, path: str, leak: Callable[..., str]) -> None:
    if not os.path.exists(f"/proc/sys/{path}"):
        pytest.skip(f"this kernel has no {path}")
    assert leak(ids, "/proc/sys", path, os.O_WRONLY) == given


@IDS
def test_a_process_of_the_host_s_root(ids: str, given: str, leak: Callable[..., str]) -> None:
    assert leak(ids, "/proc/self", "oom_score_adj", os.O_WRONLY) == given


@IDS
@pytest.mark.parametrize("path", ["root", "cwd", "fd/0", "mem", "environ"])
def test_what_the_kernel_keeps_from_both(ids: str, given: str, path: str, leak: Callable[..., str]) -> None:
    """A process of another user namespace: no capability over it."""
    assert leak(ids, "/proc/self", path, os.O_RDONLY) == "refused 13"


@IDS
def test_capabilities_do_not_help(ids: str, given: str, leak: Callable[..., str], secret: Path) -> None:
    """All of them, none over what does not belong to an id inside."""
    assert leak(ids, str(secret.parent), "secret", os.O_RDONLY, seccomp="unconfined",
                capabilities=["DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "SYS_ADMIN", "SYS_PTRACE"]) == given


@IDS
def test_a_server_that_trusts_root(
    ids: str, given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Docker's, systemd's, D-Bus's: they ask the kernel who has connected."""
    monkeypatch.setenv(shift.VARIABLE, ids)
    seen = []

    def serve() -> None:
        sock, _ = server.accept()
        with sock:
            seen.append(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1] & 0xFFFFFFFF)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        with Sandbox(user="root", mounts=[f"{tmp_path}:{tmp_path}"]) as sandbox:
            code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
            sandbox.run([PYTHON, "-c", code, str(tmp_path / "socket")], check=True)
        thread.join()
    assert (seen == [0]) is (given == "open")


@pytest.mark.parametrize(("ids", "outcome"), [("", "refused"), ("host", "opened")], ids=["shifted", "identity"])
def test_a_descriptor_of_pytest_s_is_opened_anew(
    ids: str, outcome: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A marked test has pytest's descriptors; by /proc/self/fd one for reading becomes one for writing."""
    monkeypatch.setenv(shift.VARIABLE, ids)
    pytester.makepyfile("""
import os
import pytest

@pytest.fixture(scope="session")
def settings(request):
    path = request.config.rootpath / "settings"
    path.write_text("original")
    with path.open() as file:
        yield file

@pytest.mark.sandbox
def test_write(settings):
    try:
        os.close(os.open(f"/proc/self/fd/{settings.fileno()}", os.O_WRONLY))
        print("opened")
    except PermissionError:
        print("refused")
""")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-rP")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([outcome])


