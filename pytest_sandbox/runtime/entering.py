"""How a fork of the caller gets into a sandbox, and what it must leave outside; for :mod:`.running` and :mod:`.zygote`.

Everything here that runs in the child is between two worlds: half inside, with all of the caller's memory. Whatever
fails there ends the child (:func:`give_up`); nothing of the caller's stack may go on.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import struct
import threading
import weakref
from collections.abc import Callable, Iterable
from os import _exit, write  # a test may replace the module's
from typing import TYPE_CHECKING, NoReturn

from . import syscalls as sc
from . import tracing
from .commands import become, limit_tasks
from .protocol import wait_readable
from .shares import come_first
from .shift import hand_over

if TYPE_CHECKING:
    from .running import Running

#: Held while descriptors are open that a fork of the caller must not inherit, and while the caller forks.
forking = threading.RLock()
#: Called in a fork of the caller when it has entered a sandbox.
when_inside: list[Callable[[], None]] = []
#: Called in a fork of the caller when it is in the sandbox's cgroup, and nowhere else yet.
when_joined: list[Callable[[], None]] = []
#: Called in a fork of the caller when it has done its work, before it tells so.
when_done: list[Callable[[], None]] = []
#: And when it has told so.
when_told: list[Callable[[], None]] = []
#: Called in the caller when all of its sandboxes have been ended.
when_over: list[Callable[[], None]] = []
#: Descriptors of directories, and their paths.
Folders = list[tuple[int, str]]

#: The sandboxes of this process.
everyone: weakref.WeakSet[Running] = weakref.WeakSet()
#: In a fork that has entered a sandbox and is traced: when it began to, and when it was there.
entered: tuple[int, int] | None = None
_inside = False
_near = False


def come_near(pidfd: int) -> bool:
    """Joins, for good, the user namespace above that of the sandbox whose init this is: the helper's.

    From there one fork goes into any sandbox of that helper. The caller has every capability there, which is none
    outside of it. It can fork into sandboxes only: it cannot point its children to its own pid namespace again.
    """
    global _near
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        pid = next(line.split()[1] for line in file if line.startswith("Pid:"))
    try:
        inner = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            above = fcntl.ioctl(inner, _NS_GET_PARENT)
        finally:
            os.close(inner)
        try:
            sc.setns(above, sc.CLONE_NEWUSER)
        finally:
            os.close(above)
    except OSError:
        return False
    _near = True
    return True


_NS_GET_PARENT = 0xB702


def fork_once(running: Running, ids: tuple[int, int], folders: Folders) -> int:
    """Forks; returns the child's process id, and in the child, when that is inside, 0.

    :raises SandboxClosedError: when the sandbox is gone.
    """
    # Root, and who came near, may point children to come at the sandbox's pid namespace, which saves a second fork.
    pid = -1
    with forking:
        own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            running.enter(sc.CLONE_NEWPID)
            try:
                pid = os.fork()
            finally:
                if pid and not _near:  # not in the child, whose own children belong inside
                    _return_to(own)
        except OSError as error:
            if pid > 0:  # nobody would wait for it, and until then the sandbox's first process could not end
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            running.check_there(error)
            raise
        finally:
            os.close(own)
    if not pid:
        _join(running, sc.CLONE_NEWUSER | running.namespaces(), ids, folders)
    return pid


def _return_to(own: int) -> None:
    """Whatever it takes: else each later child of the caller would be in the sandbox's pid namespace."""
    for attempt in range(20):
        try:
            sc.setns(own, sc.CLONE_NEWPID)
            return
        except OSError:
            if attempt == 19:
                raise


def fork_twice(running: Running, ids: tuple[int, int], folders: Folders) -> tuple[int, int]:
    """The same by two forks: the process id of the first, and a descriptor from which the second's status is read."""
    # Others may enter a pid namespace only from within the user namespace that owns it, and only by a fork.
    with forking:
        running.check_there(None)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:
            os.close(reading)
            os.close(writing)
            raise
        if pid:
            os.close(writing)
            return pid, reading
    try:
        os.close(reading)
        # What is typed is for the caller and for the child inside, where a Ctrl-C that comes early waits for it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTSTP))
        sc.setns(running.pidfd, sc.CLONE_NEWUSER | sc.CLONE_NEWPID | running.namespaces())
        inner = os.fork()
        if inner:
            os.closerange(0, writing)  # copies that would keep open what the caller and the child have closed
            os.closerange(writing + 1, os.sysconf("SC_OPEN_MAX"))
            _, status = os.waitpid(inner, 0)
            os.write(writing, struct.pack("i", status))
            os._exit(0)
    except BaseException as error:  # noqa: BLE001 - nothing of the caller's stack may run in this process
        give_up(error, running)
    os.close(writing)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _join(running, 0, ids, folders)
    return 0, -1


def _join(running: Running, namespaces: int, ids: tuple[int, int], folders: Folders) -> None:
    """In the child: enters what it is not in yet, takes on its identity and gives up everything else."""
    global _inside, entered
    began = tracing.now() if tracing.recorder is not None else 0
    try:
        if running.group is not None:
            running.group.join()
        for fd in running.joins:
            os.write(fd, b"0")
        for function in when_joined:
            function()
        come_first(running.plan.body["oom"])
        base = running.plan.body["base"]
        if base:
            hand_over(range(3), base, ids)
            sc.prctl(sc.PR_SET_DUMPABLE, 0)  # until we are who we shall be, nobody inside may take hold of us
        if namespaces:
            running.enter(namespaces)
        _inside = True
        # A session of its own: no terminal of the caller's to type into, no process group to send signals to.
        os.setsid()
        sc.new_session_keyring()
        leave_all()
        sc.drop_from_bounding_set(running.plan.body["drop"])
        if (most := running.plan.body["nproc"]) is not None:
            limit_tasks(most + 1)  # there is a process of ours more, which waits outside for this one
        if base or ids != (os.getuid(), os.getgid()):
            become(*ids)
        if base:
            sc.prctl(sc.PR_SET_DUMPABLE, 1)  # a change of ids takes it away, and with it our own files in /proc
        keep = running.plan.kept if ids[0] == 0 else 0
        sc.capset(keep, keep, 0)
        sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
        if running.plan.body["seccomp"]:
            sc.seccomp(bytes.fromhex(running.plan.body["seccomp"]))
        _reopen(folders)
        if began:
            entered = began, tracing.now()
    except BaseException as error:  # noqa: BLE001 - half inside, nothing of the caller's may go on
        give_up(error, running)


#: The nodes of /dev that everybody opens: by minor number, of the major number 1.
_MEMORY_NODES = (3, 5, 7, 8, 9)


def _leads_out(look: os.stat_result) -> bool:
    """Whether through such a descriptor lies the host's tree, or a node of the host's whose mode root could change."""
    return stat.S_ISDIR(look.st_mode) or (
        stat.S_ISCHR(look.st_mode) and os.major(look.st_rdev) == 1 and os.minor(look.st_rdev) in _MEMORY_NODES)


def open_folders() -> Folders:
    """The descriptors that this process has of directories, and of nodes such as /dev/null, with their paths."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if _leads_out(os.fstat(int(name))):
                found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            continue  # the listing's own descriptor
    return found


def _reopen(folders: Folders) -> None:
    """In the child: lets these descriptors mean the same paths of the sandbox. What is not there is closed."""
    for fd, path in folders:
        try:
            inheritable = os.get_inheritable(fd)
            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_CREAT
        except OSError:
            continue  # one of ours, closed meanwhile
        try:
            inside = os.open(path, flags | os.O_CLOEXEC)
        except OSError:
            os.close(fd)
            continue
        os.dup2(inside, fd, inheritable)
        os.close(inside)


def leave_all() -> None:
    """In a fork of the caller: closes its copies of all that the caller's sandboxes are worked by."""
    for running in everyone:
        running.forget()
    everyone.clear()
    for function in when_inside:
        function()


def go_to(where: str, env: Iterable[tuple[str, str | None]]) -> None:
    """In a fork of the caller, inside: its working directory, and the changes to its environment."""
    try:
        os.chdir(where)
    except OSError as error:
        give_up(error)
    for name, value in env:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def inside() -> bool:
    """Whether this process was forked into a sandbox, or runs where one has left its mark."""
    return _inside or os.path.exists("/run/pytest-sandbox")


#: How long to look whether what could not be entered is on its way out, in seconds.
_ENDS = 0.5


def give_up(error: BaseException, running: Running | None = None) -> NoReturn:
    """Ends a fork that could not get to where it belongs: without a word if the sandbox has ended meanwhile.

    That is told by its owner, who ends those that wait and are not needed.
    """
    try:
        if running is None or not _is_over(running, error):
            write(2, f"pytest-sandbox: a process could not enter its sandbox: {error!r}\n".encode())
    finally:
        _exit(126)


def _is_over(running: Running, error: BaseException) -> bool:
    return isinstance(error, ProcessLookupError) or (running.pidfd >= 0 and wait_readable(running.pidfd, _ENDS))
