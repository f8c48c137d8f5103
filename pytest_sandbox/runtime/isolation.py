"""How the helper sets itself apart: a pid namespace of its own, and a small root to build in. See :mod:`.helper`."""

from __future__ import annotations

import errno
import os
import sys

from . import cgroup_make, mounts
from . import syscalls as sc

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    import socket

ALL_IDS = "0 0 4294967295"


def isolate(privileged: bool, nested: bool, maps: list[list[str]]) -> None:
    """Continues in a new process: the first of a pid namespace, with a mount namespace to build in."""
    uid, gid = os.getuid(), os.getgid()
    mapped, told = os.pipe2(os.O_CLOEXEC)
    every = privileged and nested  # all ids are for root outside to map
    flags = sc.CLONE_NEWPID | sc.CLONE_NEWNS | (0 if privileged and not nested else sc.CLONE_NEWUSER)
    # A sibling, not a child: the caller can wait for it, and the process in between is gone at once.
    if pid := sc.clone3(flags | sc.CLONE_PARENT, exit_signal=0):
        if maps:
            os.write(told, b"m" if all(_map(pid, one) for one in maps) else b"x")
        elif every:
            for name in ("uid_map", "gid_map"):
                cgroup_make.write(f"/proc/{pid}/{name}", ALL_IDS)
            os.write(told, b"m")
        os._exit(0)
    os.close(told)
    if (maps or every) and os.read(mapped, 1) != b"m":
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), maps[0][0] if maps else "uid_map")
    os.close(mapped)
    if not privileged and not maps:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def begin_again(sock: socket.socket, lifeline: int) -> None:
    """Starts this program anew, in our user namespace.

    Inits that are forks of ours, and cannot be dumped, may then be looked up by who has power over that namespace: us,
    who map their ids, and the caller. Who started a program outside of it may not be looked up by either.
    """
    for fd in (sock.fileno(), lifeline):
        os.set_inheritable(fd, True)
    argv = list(sys.orig_argv)
    place = len(argv) - len(sys.argv[1:]) + 2
    argv[place] += " again"
    os.execv(sys.executable, argv)


def _map(pid: int, command: list[str]) -> bool:
    """Has newuidmap(1) or newgidmap(1) map ids for a process."""
    return os.spawnv(os.P_WAIT, command[0], [command[0], str(pid), *command[1:]]) == 0


def new_root() -> None:
    """A tmpfs as root, with the host's whole tree at /host: a place to build in that hides nothing of the host."""
    sc.mount("none", "/", None, sc.MS_REC | sc.MS_PRIVATE)
    host = sc.open_tree(sc.AT_FDCWD, "/", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC | sc.AT_RECURSIVE)
    base = "/tmp"
    sc.mount("pytest-sandbox", base, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, "mode=0755")
    os.chdir(base)
    for name in ("host", "own", "scratch", "root", "proc", "nodes", "frozen", "mapped"):
        os.mkdir(name)
    sc.move_mount(host, "", sc.AT_FDCWD, "host", sc.MOVE_MOUNT_F_EMPTY_PATH)
    os.close(host)
    for name in mounts.NODES:
        # Read-only, as their binds in the sandboxes will be: a device can be written to all the same, but nobody
        # inside, whose root may be the host's, can change its mode or owner.
        if os.path.exists(f"host/dev/{name}"):
            os.close(os.open(f"nodes/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            sc.mount(f"host/dev/{name}", f"nodes/{name}", None, sc.MS_BIND)
            sc.mount_setattr(sc.AT_FDCWD, f"nodes/{name}", 0, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID)
    sc.pivot_root(".", ".")
    sc.umount2(".", sc.MNT_DETACH)
    os.chdir("/")
