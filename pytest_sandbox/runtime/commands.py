"""Commands of a sandbox, as an init that is Python starts them, and what every process takes on or gives up first.

For :mod:`.init`, and for what comes into a sandbox in another way: forks of the caller (:mod:`.entering`) and guests.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # of the signal module, whose enums cost 5 ms
import fcntl
import os
import resource
import stat

from . import syscalls as sc

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

_stands_back = False


def start(what: dict[str, Any], fds: list[int]) -> int:
    """Starts a command. Without a change of user this is a vfork, which copies no page table.

    :raises OSError: with the path, when there is no such command or directory.
    """
    os.chdir(what["cwd"])
    try:
        env = {os.fsencode(name): os.fsencode(text) for name, text in what["env"].items()}
        argv = what["argv"]
        file = _find(argv[0], what["env"].get("PATH", os.defpath))
        if what.get("ids") is not None or what.get("umask") is not None:
            return _fork(file, argv, env, fds, what)
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(_above(fds))]
        if _stands_back:
            return os.posix_spawn(file, argv, env, file_actions=actions, setsid=True, setsigmask=(),
                                  setsigdef=DEFAULTED, scheduler=(os.SCHED_OTHER, os.sched_param(0)))
        return os.posix_spawn(file, argv, env, file_actions=actions, setsid=True, setsigmask=(),
                              setsigdef=DEFAULTED)
    finally:
        os.chdir("/")


DEFAULTED = tuple(number for number in range(1, 32) if number not in (_signal.SIGKILL, _signal.SIGSTOP))


_NULL = os.makedev(1, 3)


def _above(fds: list[int]) -> list[int]:
    """The descriptors, none of them among 0 to 2, so that placing one does not overwrite another.

    The null device is the sandbox's own instead: the host's mode could be changed through the one that came.
    """
    for position, fd in enumerate(fds):
        look = os.fstat(fd)
        if stat.S_ISCHR(look.st_mode) and look.st_rdev == _NULL:
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            os.dup2(null, fd, False)
            os.close(null)
        if fd < 3:
            fds[position] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(fd)
    return fds


def _find(name: str, path: str) -> str:
    """What execvp(3) would run."""
    if "/" in name:
        return name
    failure: OSError = FileNotFoundError(2, "No such file or directory", name)
    for folder in path.split(":"):
        file = os.path.join(folder or ".", name)
        try:
            if not os.path.isfile(file):
                continue
            if os.access(file, os.X_OK):
                return file
            failure = PermissionError(13, "Permission denied", file)
        except OSError:
            continue
    raise failure


def _fork(file: str, argv: list[str], env: dict[bytes, bytes], fds: list[int], what: dict[str, Any]) -> int:
    """Starts a command as somebody else."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            step_forward()
            for number, fd in enumerate(_above(fds)):
                os.dup2(fd, number)
            for number in DEFAULTED:
                _signal.signal(number, _signal.SIG_DFL)
            if what.get("umask") is not None:
                os.umask(what["umask"])
            if what.get("ids") is not None:
                become(*what["ids"])
            os.execve(file, argv, env)
        except OSError as error:
            os.write(writing, f"{error.errno}".encode())
        finally:
            os._exit(127)
    os.close(writing)
    failed = os.read(reading, 16)
    os.close(reading)
    if failed:
        os.waitpid(pid, 0)
        raise OSError(int(failed), os.strerror(int(failed)), file)
    return pid


def stand_back() -> None:
    """Lets whoever runs go on when this process wakes up (SCHED_BATCH): it works ahead, and others work now.

    Does nothing for one that its user has given another policy than the usual.
    """
    global _stands_back
    if os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        _stands_back = True


def stands_back() -> bool:
    """Whether this process, or one that it was forked from, does :func:`stand_back`."""
    return _stands_back


def step_forward() -> None:
    """Undoes :func:`stand_back`, for what a user waits for: policies are inherited."""
    global _stands_back
    if _stands_back:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        _stands_back = False


def become(uid: int, gid: int) -> None:
    """Takes on another identity for good."""
    try:
        os.setgroups([gid])
    except PermissionError:
        pass  # a user namespace of a single id denies setgroups, and leaves nothing to give up
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def begin_as(base: int) -> None:
    """Becomes the root of the sandbox that is to be: the id ``base`` out here, with every capability of real root.

    What is made and mounted from now on belongs to that root. The session keyring is made first, and counts for nobody:
    keys are counted by user, and all sandboxes have this one.
    """
    sc.new_session_keyring()
    sc.prctl(sc.PR_SET_KEEPCAPS, 1)
    os.setgroups([base])
    os.setresgid(base, base, base)
    os.setresuid(base, base, base)
    _, permitted, inheritable = sc.capget()
    sc.capset(permitted, permitted, inheritable)
    # Or our own files in /proc would be real root's. Nobody inside has power over a process of another user namespace.
    sc.prctl(sc.PR_SET_DUMPABLE, 1)


#: Limits of what the kernel counts by user, in each user namespace and in those above it.
_BY_USER = (resource.RLIMIT_NPROC, resource.RLIMIT_MSGQUEUE, resource.RLIMIT_SIGPENDING, resource.RLIMIT_MEMLOCK)


def unbound() -> list[tuple[int, tuple[int, int]]]:
    """Lifts these limits, and returns what they were.

    A user namespace bounds by those of its making what all sandboxes together have, whose root is one id outside. Each
    is bound by its own all the same.
    """
    before = [(which, resource.getrlimit(which)) for which in _BY_USER]
    for which in _BY_USER:
        try:
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except ValueError:
            pass  # in a container whose root may not
    return before


def limit_tasks(most: int) -> None:
    """RLIMIT_NPROC, unless a lower one holds already."""
    most = min([most, *(one for one in resource.getrlimit(resource.RLIMIT_NPROC) if one != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
