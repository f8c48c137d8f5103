"""The first process of a sandbox: sets it up, then starts commands, reaps, forwards signals and ends with its caller.

Forked by the helper straight into new mount and pid namespaces. It is pid 1 inside: when it ends, the kernel ends
everything else, and the mounts, the network and the writable layer vanish with their namespaces.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # of the signal module, whose enums cost 5 ms
import os
import resource
import select
import socket

from . import actions, inside, protocol, shares
from . import syscalls as sc
from .commands import begin_as, limit_tasks, start, unbound
from .mounts import StepFailed, carry_out
from .tracing import NAMESPACES, Marks

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

_FORWARDED = (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP, _signal.SIGQUIT, _signal.SIGUSR1, _signal.SIGUSR2)


def main(control: socket.socket, sync: socket.socket | None, lifeline: int, body: dict[str, Any],
         joins: list[int], stays: list[int], traced: bool = False) -> None:
    """Runs in the new process until the sandbox ends; never returns.

    :param control: this sandbox's socket; its other end is the caller's.
    :param sync: to the helper, where the helper must write the id maps; None where this process may.
    :param lifeline: a pidfd of the caller.
    :param body: the encoded plan.
    :param joins: the files by which a process enters this sandbox's cgroups, in which its cgroup namespace begins.
    :param stays: the files by which it enters those that it then stays in; the caller gets them, for its forks.
    :param traced: whether the caller wants to know how long each step takes.
    """
    marks = Marks() if traced else None
    try:
        if body["group"] is not None and body["group"]["version"] == 1:  # else it was born there
            for fd in joins:
                os.write(fd, b"0")
        if marks is not None:
            marks("cgroup")
        scratch = _set_up(sync, body, marks)
        for join, stay in zip(joins, stays, strict=True):
            if stay != join:
                os.write(stay, b"0")
                os.close(join)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        pidfd = sc.pidfd_open(os.getpid())
        ready: protocol.Message = {"ready": True}
        if marks is not None:
            marks("ready")
            ready["trace"] = marks.made
        protocol.send(control, ready, (pidfd, root, scratch, *stays))
        for fd in (pidfd, root, *stays):  # not the writable layer: the last to let go of a detached mount waits for it
            os.close(fd)
        _Init(control, lifeline).serve()
    except StepFailed as failure:
        say(control, {"failed": {"step": failure.step, "errno": failure.errno, "path": failure.path}})
    except OSError as error:
        say(control, {"failed": {"step": ["init"], "errno": error.errno, "path": error.filename}})
    except BaseException as error:  # noqa: BLE001 - nothing above us could report it
        say(control, {"failed": {"step": ["init"], "errno": 0, "path": None, "error": repr(error)}})
    finally:
        os._exit(1)


def say(control: socket.socket, message: protocol.Message) -> None:
    """Sends a message, unless nobody is there any more to hear it."""
    try:
        protocol.send(control, message)
    except OSError:
        pass  # the caller has gone, and so shall we


def _set_up(sync: socket.socket | None, body: dict[str, Any], marks: Marks | None) -> int:
    """The sandbox's making, in the one order that works. Returns a descriptor of the writable layer."""
    # Mounts first, while the host's tree may still be used as a lower layer: the kernel refuses an overlay of a
    # directory with mounts below it once a user namespace has locked those.
    if body["base"]:
        begin_as(body["base"])
    carry_out(body["scratch"], marks, "scratch")
    # A detached copy of the mount, for the caller: with it a commit can keep the layer when all of this has ended.
    scratch = sc.open_tree(sc.AT_FDCWD, "/scratch", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC)
    if marks is not None:
        marks("tree")
    carry_out(body["mounts"], marks, "mounts")
    # The user namespace second: it owns the network, ipc and uts namespaces made with it, and the copy of the mount
    # namespace, in which every mount made so far is locked.
    limits = unbound() if body["base"] else []
    if marks is None:
        sc.unshare(body["namespaces"])
    else:  # each by itself, to be timed
        for flag in NAMESPACES:
            if body["namespaces"] & flag:
                sc.unshare(flag)
                marks("namespace", flag)
    for which, limit in limits:
        resource.setrlimit(which, limit)
    if sync is not None:
        sync.send(b"m")
        if sync.recv(1) != b"m":
            raise OSError(1, "the helper could not write the id maps")
        sync.close()
    else:
        _write_maps(body["uid_map"], body["gid_map"])
    if marks is not None:
        marks("ids")
    shares.take(actions.shares_folder, body["counts"])
    shares.come_first(body["oom"])
    if marks is not None:
        marks("shares")
    carry_out(body["inside"], marks, "inside")
    if body["nproc"] is not None:
        limit_tasks(body["nproc"])  # only now: it counts in the user namespace that we are in
    # Privileges last: all of the above needs them. A set of uid 0 loses on exec what is not in the bounding set.
    sc.drop_from_bounding_set(body["drop"])
    sc.prctl(sc.PR_SET_NO_NEW_PRIVS, 1)
    if not body["base"]:
        sc.new_session_keyring()
    if sync is not None and not body.get("wide"):
        # Nobody inside may look into this process, whatever their capabilities. Unprivileged, the helper could not
        # enter its namespaces either: our memory is of a program that was started outside of the helper's.
        sc.prctl(sc.PR_SET_DUMPABLE, 0)
    if body["seccomp"]:
        sc.seccomp(bytes.fromhex(body["seccomp"]))
    if marks is not None:
        marks("privileges")
    return scratch


def _write_maps(uid_map: str, gid_map: str) -> None:
    for name, text in (("setgroups", "deny"), ("uid_map", uid_map), ("gid_map", gid_map)):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


class _Init:
    """Serves one sandbox: made when it is ready, lives as long as it."""

    def __init__(self, control: socket.socket, lifeline: int) -> None:
        self.control, self.lifeline = control, lifeline
        self.channels: dict[int, socket.socket] = {}  # by pid, of every command that still runs
        self.by_fd: dict[int, int] = {}
        self.killed: set[int] = set()  # what kill() has ended and may not be gone yet
        self.asked: list[socket.socket] = []  # who wants to hear when it is
        self.wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (_signal.SIGCHLD, *_FORWARDED):
            _signal.signal(number, lambda *_: None)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
        self.poll = select.poll()
        self.poll.register(control, select.POLLIN)
        self.poll.register(lifeline, select.POLLIN)
        self.poll.register(self.wake, select.POLLIN)

    def serve(self) -> None:
        """Until the caller lets go of the control socket, or ends."""
        while True:
            # Not every end is ours to reap, so those that are awaited are looked for again and again.
            for fd, _ in self.poll.poll(5 if self.asked else None):
                if fd == self.lifeline:
                    return
                if fd == self.wake:
                    self.signalled()
                elif fd == self.control.fileno():
                    try:
                        got = protocol.receive(self.control)
                    except protocol.BadMessage:  # it came with more descriptors than we may have
                        continue
                    if got is None:
                        return
                    self.obey(*got)
                elif fd in self.by_fd:
                    self.to_command(self.by_fd[fd])
            if self.asked:
                self.answer()

    def signalled(self) -> None:
        try:
            numbers = os.read(self.wake, 4096)
        except BlockingIOError:
            return
        for number in set(numbers):
            if number in _FORWARDED:
                for pid in self.channels:
                    self.signal(pid, number, True)
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.channels:
                channel = self.channels[pid]
                say(channel, {"status": status, "used": inside.counted(used)})
                self.forget(pid)

    def forget(self, pid: int) -> None:
        channel = self.channels.pop(pid)
        self.by_fd.pop(channel.fileno(), None)
        try:
            self.poll.unregister(channel)
        except KeyError:
            pass
        channel.close()

    def obey(self, message: protocol.Message, fds: list[int]) -> None:
        try:
            if "spawn" in message:
                self.spawn(message["spawn"], fds)
            elif "kill" in message:
                self.killed = set(inside.pids())
                try:
                    os.kill(-1, message["kill"])
                except ProcessLookupError:
                    pass
            elif "list" in message:
                with socket.socket(fileno=os.dup(fds[0])) as channel:
                    say(channel, {"processes": inside.processes()})
            elif "usage" in message:
                with socket.socket(fileno=os.dup(fds[0])) as channel:
                    say(channel, inside.usage())
            elif "ping" in message:
                self.asked.append(socket.socket(fileno=os.dup(fds[0])))
        except OSError:
            pass  # no descriptor left for the answer: whoever asked finds the channel closed
        finally:
            protocol.close(fds)

    def answer(self) -> None:
        self.signalled()
        left = {one["pid"] for one in inside.processes() if one["ppid"] != 0}  # others have their parent outside
        self.killed &= left
        if not self.killed:
            for channel in self.asked:
                say(channel, {"pong": True})
                channel.close()
            self.asked.clear()

    def spawn(self, what: dict[str, Any], fds: list[int]) -> None:
        channel = socket.socket(fileno=os.dup(fds[3]))
        channel.setblocking(False)  # nobody outside can make us wait
        try:
            pid = start(what, fds[:3])
        except (OSError, ValueError) as error:
            path = getattr(error, "filename", None)
            say(channel, {"errno": getattr(error, "errno", 22),
                           "path": os.fsdecode(path) if path is not None else None})
            channel.close()
            return
        self.channels[pid] = channel
        self.by_fd[channel.fileno()] = pid
        self.poll.register(channel, select.POLLIN)
        say(channel, {"pid": pid})

    def to_command(self, pid: int) -> None:
        channel = self.channels[pid]
        try:
            got = protocol.receive(channel)
        except BlockingIOError:  # meant for one that had this descriptor before
            return
        except (OSError, protocol.BadMessage):
            got = None
        if got is None:  # the caller no longer listens; the command goes on
            self.poll.unregister(channel)
            self.by_fd.pop(channel.fileno(), None)
            return
        message, fds = got
        protocol.close(fds)
        if "signal" in message:
            self.signal(pid, message["signal"], message.get("group", False))

    def signal(self, pid: int, number: int, group: bool) -> None:
        try:
            os.kill(-pid if group else pid, number)
        except ProcessLookupError:
            pass
