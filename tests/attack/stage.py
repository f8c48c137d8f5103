"""The host as the probes find it: stand-ins of the test's own for what a real attacker would go for.

Everything here is this run's alone, made by :func:`stage` and gone with it: a process with a secret, sockets, shared
memory, a message queue, files, and stand-ins for credentials.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
PROBES = Path(__file__).parent / "probes"
#: The interpreter that probes run on: the system's, whose files every image of the tests has or is given.
PYTHON = "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else os.path.realpath(sys.executable)

_STANDS_IN = """
import ctypes, signal, sys
ctypes.CDLL(None).prctl(0x59616D61, -1, 0, 0, 0)  # PR_SET_PTRACER: Yama lets anybody of ours look
print("ready", flush=True)
signal.pause()
"""


@contextlib.contextmanager
def stage(file_probes: list[str]) -> Iterator[dict[str, Any]]:
    """The context of the probes, as far as it is the same in every world."""
    mark, secret = f"attack-{secrets.token_hex(8)}", f"secret-{secrets.token_hex(8)}"
    # Not below tmp_path, whose place may show through; everybody may look and write.
    folder = Path(tempfile.mkdtemp(prefix="attack-", dir="/var/tmp"))
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        (folder / "files").mkdir()
        for place in (folder, folder / "files"):
            place.chmod(0o777)
        reset_files(folder, file_probes)
        (folder / "credentials").mkdir()
        for name in ("key", "token"):
            (folder / "credentials" / name).write_text(secret)
        process = stack.enter_context(subprocess.Popen(
            [sys.executable, "-c", _STANDS_IN, mark], stdout=subprocess.PIPE, env={**os.environ, "ATTACK": secret}))
        stack.callback(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        context = {
            "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}, "folder": str(folder),
            "pid": process.pid, "mark": mark, "secret": secret, "abstract": mark, "abstract_datagram": f"{mark}-d",
            "credentials": [str(folder / "credentials" / name) for name in ("key", "token")], "queue": f"/{mark}",
            "setuid": str(folder / "setuid"), "masked_files": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
            "masked_directories": ["/proc/acpi", "/proc/scsi", "/proc/asound", "/sys/firmware"],
            "read_only": ["/proc/sys"], "read_only_binds": ["/attack"],
        }
        context.update(_sockets(stack, folder, mark), **_interprocess(stack, mark))
        _files(stack, folder)
        yield context


def _sockets(stack: contextlib.ExitStack, folder: Path, mark: str) -> dict[str, Any]:
    def listening(family: int, address: Any, kind: int = socket.SOCK_STREAM) -> socket.socket:
        sock = stack.enter_context(socket.socket(family, kind))
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(50)
        return sock

    listening(socket.AF_UNIX, f"\0{mark}")
    listening(socket.AF_UNIX, f"\0{mark}-d", socket.SOCK_DGRAM)
    listening(socket.AF_UNIX, str(folder / "socket"))
    (folder / "socket").chmod(0o777)
    port = listening(socket.AF_INET, ("127.0.0.1", 0)).getsockname()[1]
    address, open_port = None, 0
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        asked.connect(("192.0.2.1", 9))  # sends nothing: only to hear which address the host would use
        address = asked.getsockname()[0]
        open_port = listening(socket.AF_INET, (address, 0)).getsockname()[1]
    return {"port": port, "address": address, "open_port": open_port}


def _interprocess(stack: contextlib.ExitStack, mark: str) -> dict[str, Any]:
    libc = ctypes.CDLL(None, use_errno=True)
    key = secrets.randbelow(1 << 30) + 1
    segment, semaphores, queue = libc.shmget(key, 4096, 0o1666), libc.semget(key, 1, 0o1666), libc.msgget(key, 0o1666)
    stack.callback(libc.shmctl, segment, 0, None)
    stack.callback(libc.semctl, semaphores, 0, 0)
    stack.callback(libc.msgctl, queue, 0, None)
    for library in (libc, ctypes.CDLL("librt.so.1", use_errno=True)):
        if hasattr(library, "mq_open"):
            library.mq_open(f"/{mark}".encode(), os.O_CREAT | os.O_RDWR, 0o666, None)
            stack.callback(library.mq_unlink, f"/{mark}".encode())
            break
    shared = Path("/dev/shm", mark)
    shared.write_text("x")
    stack.callback(shared.unlink)
    return {"key": key}


def _files(stack: contextlib.ExitStack, folder: Path) -> None:
    os.mkfifo(folder / "fifo", 0o666)
    (folder / "fifo").chmod(0o666)
    stack.callback(os.close, os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK))
    (folder / "locked").touch(0o666)
    locked = os.open(folder / "locked", os.O_RDWR)
    stack.callback(os.close, locked)
    fcntl.flock(locked, fcntl.LOCK_EX)
    if os.geteuid() == 0:  # set-user-id of a user that nobody is; it prints who it runs as
        shutil.copy("/usr/bin/id", folder / "setuid")
        os.chown(folder / "setuid", 54321, 54321)
        (folder / "setuid").chmod(0o4755)


def reset_files(folder: Path, names: list[str]) -> None:
    """Makes the files anew that probes act on."""
    shutil.rmtree(folder / "files")
    (folder / "files").mkdir()
    (folder / "files").chmod(0o777)
    for name in names:
        path = folder / "files" / name
        path.write_bytes(b"original" * 1000)
        path.chmod(0o666)


def look_at_files(folder: Path, names: list[str]) -> dict[str, Any]:
    """All that can be seen of each file, and of what was made beside it."""
    found: dict[str, Any] = {name: [] for name in names}
    for path in sorted((folder / "files").iterdir()):
        look = path.lstat()
        seen = (path.name, look.st_mode, look.st_uid, look.st_size, look.st_mtime_ns, look.st_nlink,
                path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
                os.listxattr(path, follow_symlinks=False))
        found[path.name.split(".")[0]].append(seen)
    return found
