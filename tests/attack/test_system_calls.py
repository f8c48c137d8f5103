"""What the filter of system calls denies, tried from inside; and what it leaves. Each without the filter, too."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_sandbox import Sandbox
from pytest_sandbox.runtime import seccomp
from pytest_sandbox.runtime import syscalls as sc

EPERM, ENOSYS = 1, 38
COLUMN = {"x86_64": 0, "aarch64": 2, "riscv64": 2}.get(os.uname().machine)
pytestmark = pytest.mark.skipif(COLUMN is None, reason="the numbers of this machine's system calls are not known here")


def _call(number: int, *args: int) -> int:
    """The errno of a system call with arguments that no kernel acts on; 0 if it succeeds."""
    import ctypes

    import pytest_sandbox

    assert pytest_sandbox.inside()  # never on the machine itself
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(one & (1 << 64) - 1) for one in (*args, *[-1] * (6 - len(args)))]
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(number), *words) == -1 else 0


def _socket(family: int) -> int:
    import socket

    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError as error:
        return error.errno or -1
    return 0


@pytest.mark.parametrize("user", ["root", "me"])
def test_every_call_of_the_list_is_denied(user: str) -> None:
    assert COLUMN is not None
    with Sandbox(user=user) as sandbox:
        for name, numbers in seccomp.DENIED.items():
            number = numbers[COLUMN]
            if number is not None:
                assert sandbox.call(_call, number) == EPERM, name
        assert sandbox.run(["sed", "-n", "s/^Seccomp:\t//p", "/proc/self/status"]).stdout == "2\n"


#: Harmless ones, which anybody may try where there is no filter: what they answer is about their arguments.
OPEN = {"io_uring_setup": (0, 0), "userfaultfd": (0xFFFFFF,), "keyctl": (0, -3, 0)}


def test_without_the_filter_they_are_open() -> None:
    assert COLUMN is not None
    with Sandbox(seccomp="unconfined") as sandbox:
        for name, args in OPEN.items():
            number = seccomp.DENIED[name][COLUMN]
            assert number is not None
            assert sandbox.call(_call, number, *args) not in (EPERM, ENOSYS), name
        assert sandbox.run(["sed", "-n", "s/^Seccomp:\t//p", "/proc/self/status"]).stdout == "0\n"


def test_a_socket_to_the_machine_around_this_one() -> None:
    with Sandbox(seccomp="unconfined") as sandbox:
        if sandbox.call(_socket, 40):
            pytest.skip("this kernel has no AF_VSOCK")
    with Sandbox() as sandbox:
        assert sandbox.call(_socket, 40) == EPERM
        assert sandbox.call(_socket, 2) == 0
    with Sandbox(network="host") as sandbox:
        assert sandbox.call(_socket, 40) == 0


def test_a_marked_test_has_the_filter(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        def filters():
            with open("/proc/self/status") as file:
                return next(line.split()[1] for line in file if line.startswith("Seccomp:"))

        @pytest.mark.sandbox
        @pytest.mark.parametrize("number", range(5))
        def test_default(number):
            assert filters() == "2"

        @pytest.mark.sandbox(seccomp="unconfined")
        def test_without():
            assert filters() == "0"
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=6)


def _int80(number: int) -> int:
    """A system call by the 32-bit entry, as any 64-bit process can make it."""
    import ctypes
    import mmap

    code = b"\x53\x31\xdb\x31\xc9\x31\xd2\xb8" + number.to_bytes(4, "little") + b"\xcd\x80\x5b\xc3"
    memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    memory.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return -int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="only x86_64 has a second way of calling")
def test_the_32_bit_entry_is_filtered_too() -> None:
    with Sandbox(seccomp="unconfined") as sandbox:
        if sandbox.call(_int80, 425) == ENOSYS:
            pytest.skip("this kernel has no 32-bit entry")
    with Sandbox() as sandbox:
        assert sandbox.call(_int80, 425) == EPERM  # io_uring_setup
        assert sandbox.call(_int80, 102) == ENOSYS  # socketcall
        assert sandbox.call(_int80, 20) < 0  # getpid


def test_what_suites_need_is_left() -> None:
    def works() -> list[int]:
        import ctypes
        import mmap
        import os

        libc = ctypes.CDLL(None, use_errno=True)
        child = os.fork()
        if not child:
            traced = libc.ptrace(0, 0, 0, 0)
            os._exit(0 if traced == 0 else 1)
        status = os.waitpid(child, 0)[1]
        mmap.mmap(-1, 4096).close()
        os.close(os.memfd_create("x"))
        child = os.fork()
        if not child:
            os._exit(0 if libc.unshare(0x10000000) == 0 else 1)  # CLONE_NEWUSER
        return [status, os.waitpid(child, 0)[1]]

    with Sandbox() as sandbox:
        assert sandbox.call(works) == [0, 0]


@pytest.mark.skipif(not sc.has_libseccomp(), reason="libseccomp is not installed")
def test_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    content: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}
    path.write_text(json.dumps(content))
    with Sandbox(seccomp=str(path)) as sandbox:
        done = sandbox.run(["mkdir", "/tmp/x"], env={"LC_ALL": "C"})
        assert done.returncode == 1
        assert "No space left" in done.stderr
        keyctl = seccomp.DENIED["keyctl"][COLUMN or 0]
        assert sandbox.call(_call, keyctl, 0, -3, 0) == 0  # the default's list is not added
