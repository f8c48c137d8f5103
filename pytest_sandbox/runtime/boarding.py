"""How the helper of a guest starts it: the image's own Python, in the image's root, able to enter what is made for it.

A *guest* is a process of an image's Python that forks itself into sandboxes (:mod:`.guests` has the caller's side,
:mod:`.aboard` the guest's). A process can enter a pid namespace only from one above it, and only with capabilities in
the user namespace that owns it. So the guest stays in the pid and user namespaces of its helper, which is its own
alone, and everything else of it is as in a sandbox: root, network, ipc, host name, cgroup. What it could do with its
place is taken from it: it cannot look into any process that sees the host's tree (these cannot be dumped, and it has
no CAP_SYS_PTRACE), the mounts that cover something in its root are locked, and its helper dies with the caller.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # of the signal module, whose enums cost 5 ms
import errno
import fcntl
import os
import socket

from . import mounts, protocol
from . import syscalls as sc
from .actions import perform
from .commands import DEFAULTED, limit_tasks, step_forward
from .init import say

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

#: Where the writable layer of the guest lies in the helper's root, so that later sandboxes can stand on it.
LAYER = "/guest"
#: What a guest can do in the user namespace above its sandboxes: what entering them takes, and what root in a sandbox
#: can do in its own. CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, SYS_CHROOT,
#: SYS_ADMIN, SETFCAP. Not SYS_PTRACE.
CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 21, 31)
_KEPT = sum(1 << number for number in CAPABILITIES)
#: Every process of the user namespaces below counts as one of the guest's.
_TASKS = 32768


def make_layer(options: str) -> None:
    """In the helper: the guest's writable layer."""
    os.mkdir(LAYER)
    sc.mount("pytest-sandbox", LAYER, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV, options)


def main(sock: socket.socket, what: dict[str, Any], joins: list[int]) -> None:
    """Runs in the new process, in a mount namespace of its own; becomes the guest, or says why not and ends.

    :param sock: the guest's end of the connection to the caller.
    :param what: ``body`` of the plan, ``python`` (programs to look for, in their order), ``argv`` that follows it,
        ``env``, ``cwd``.
    :param joins: the files by which a process enters the guest's cgroups.
    """
    step: list[Any] = ["helper"]
    try:
        body = what["body"]
        for fd in joins:
            os.write(fd, b"0")
        sc.mount(LAYER, "/scratch", None, sc.MS_BIND)
        log = os.open("/scratch/log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        layer = os.open("/scratch", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for step in body["mounts"]:
            _make(step)
        step = ["guest"]
        _leave(body)
        protocol.send(sock, {"boarded": True}, (log, layer))
        os.close(layer)
        _become(sock, what, log)
    except mounts.StepFailed as failure:
        say(sock, {"failed": {"step": failure.step, "errno": failure.errno, "path": failure.path}})
    except OSError as error:
        path = error.filename if isinstance(error.filename, str) else None
        say(sock, {"failed": {"step": step, "errno": error.errno, "path": path}})
    except BaseException as error:  # noqa: BLE001 - nothing above us could report it
        say(sock, {"failed": {"step": step, "errno": 0, "path": None, "error": repr(error)}})
    finally:
        os._exit(1)


def _make(step: list[Any]) -> None:
    actions = mounts.actions_of(step)
    if step[0] != "overlay":
        for action in actions:
            perform(action)
        return
    # Later sandboxes have this overlay's writable layer as one of their lower ones, as they have the host's own tree.
    # The kernel takes it for a mistake, and says so in its log at each mount, while the overlay holds the lock of its
    # layer. Another overlay that had the lock first, and is gone, leaves it without.
    number = step[1]
    upper, work = f"/scratch/{number}/upper", f"/scratch/{number}/first"
    for action in actions[:-1]:
        perform(action)
    where = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.mkdir(work)
    sc.mount("overlay", "/proc", "overlay", 0, f"lowerdir=/nodes,upperdir={upper},workdir={work},userxattr")
    os.fchdir(where)
    os.close(where)
    perform(actions[-1])
    sc.umount2("/proc", sc.MNT_DETACH)


def _leave(body: dict[str, Any]) -> None:
    """Goes on in namespaces of a user namespace below ours: there, the mounts that we have made are locked.

    They are made by a child, which is gone afterwards.
    """
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            sc.prctl(sc.PR_SET_DUMPABLE, 1)  # it is looked up in /proc
            sc.unshare(body["namespaces"])
            theirs.send(b"m")
            theirs.recv(1)
            mounts.carry_out(body["inside"])
            sc.unshare(sc.CLONE_NEWUSER | sc.CLONE_NEWNS)  # those that were made just now are locked, too
            theirs.send(b"r")
            theirs.recv(1)
        except mounts.StepFailed as failure:
            theirs.send(f"{failure.errno} {failure.step[0]}".encode())
        except OSError as error:
            theirs.send(f"{error.errno or 0} guest".encode())
        finally:
            os._exit(0)
    theirs.close()
    with ours:
        if ours.recv(100) == b"m":
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(body[name])
            ours.send(b"m")
        said = ours.recv(100)
        if said != b"r":
            number, _, name = said.decode().partition(" ")
            raise mounts.StepFailed([name or "guest"], int(number or 0), None)
        made = [(flag, os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC))
                for name, flag in (("net", sc.CLONE_NEWNET), ("ipc", sc.CLONE_NEWIPC), ("uts", sc.CLONE_NEWUTS),
                                   ("cgroup", sc.CLONE_NEWCGROUP), ("mnt", sc.CLONE_NEWNS))
                if body["namespaces"] & flag]
    for flag, fd in made:
        sc.setns(fd, flag)
        os.close(fd)
    os.waitpid(pid, 0)


def _become(sock: socket.socket, what: dict[str, Any], log: int) -> None:
    os.setsid()
    for number in DEFAULTED:  # its tests hear an interrupt, which the helper ignores
        _signal.signal(number, _signal.SIG_DFL)
    env: dict[str, str] = what["env"]
    program = _find(what["python"], env.get("PATH", os.defpath))
    try:
        os.chdir(what["cwd"])
    except OSError:
        os.chdir("/")
    limit_tasks(_TASKS)
    step_forward()
    os.umask(what["umask"])
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    streams = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (null, log, log)]
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    sc.new_session_keyring()
    sc.drop_from_bounding_set([number for number in range(_last()) if number not in CAPABILITIES])
    sc.capset(_KEPT, _KEPT, 0)
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    sc.seccomp(bytes.fromhex(what["body"]["seccomp"]))
    os.set_inheritable(sock.fileno(), True)
    os.execve(program, [program, *what["argv"], str(sock.fileno())], env)


def _last() -> int:
    with open("/proc/sys/kernel/cap_last_cap") as file:
        return int(file.read()) + 1


def _find(names: list[str], path: str) -> str:
    """The first of these programs that there is."""
    for name in names:
        for folder in path.split(":") if "/" not in name else [""]:
            file = os.path.join(folder, name)
            if os.path.isfile(file) and os.access(file, os.X_OK):
                return file
    raise mounts.StepFailed(["python"], errno.ENOENT, " or ".join(names))
