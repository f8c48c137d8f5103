"""The helper: a small process that makes sandboxes, so that the caller's heap is not copied for each.

Started once per caller, by :mod:`.supervisor`, as ``python -I -S``. It moves into a pid namespace of its own as its
first process, so that its end is the end of every sandbox, and, for an unprivileged caller, into a user namespace of
its own, in which it is root. It ends when its socket closes or the caller ends.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # of the signal module, whose enums cost 5 ms
import errno
import gc
import os
import select
import socket
import sys

from . import cgroup_make, init, mapped, mounts, netns, own, protocol, relay, spawner
from . import syscalls as sc
from .commands import stand_back, step_forward
from .isolation import begin_again, isolate, new_root
from .tracing import Marks

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

def main() -> None:
    """Entry of the new process.

    Arguments: the socket's descriptor, a pidfd of the caller, what kind of helper it is (``root`` where the caller is
    that, ``nested`` where its sandboxes are for a guest), how it wants sandboxes to be started
    (:data:`.spawner.VARIABLE`), and the commands that map subordinate ids, if these are wanted.
    """
    stand_back()
    os.umask(0o022)  # what is made inside does not depend on who starts the sandbox, nor on when the helper was started
    gc.disable()  # a collection writes to every object, so that each sandbox would copy the whole heap
    argv = sys.argv[1:]
    sock = socket.socket(fileno=int(argv[0]))
    lifeline = int(argv[1])
    privileged, nested = "root" in argv[2], "nested" in argv[2]
    compiled = spawner.is_there(argv[3])
    os.set_inheritable(sock.fileno(), False)
    os.set_inheritable(lifeline, False)
    program = -1
    try:
        maps = [one.split("\t") for one in argv[4:]]
        if nested:
            from . import boarding  # noqa: F401 - while there is a tree to import from
        if "again" not in argv[2]:
            isolate(privileged, nested, maps)
            if nested and not privileged and not compiled:
                begin_again(sock, lifeline)
        program = os.open(spawner.PROGRAM, os.O_RDONLY | os.O_CLOEXEC) if compiled else -1
        new_root()
        if privileged or nested or maps:
            sc.mount("proc", "/proc", "proc", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC)
        if nested:
            sc.prctl(sc.PR_SET_DUMPABLE, 0)  # the guest, which is below us, must not look into us
        message: protocol.Message = {"hello": True}
    except OSError as error:
        message = {"failed": {"step": ["helper"], "errno": error.errno, "path": error.filename}}
    pidfd = sc.pidfd_open(os.getpid())
    try:
        protocol.send(sock, message, (pidfd,))
    except OSError:
        # The caller has gone; what it had begun to make is ours to remove. If it has not, it must not wait for us.
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    os.close(pidfd)
    if "failed" in message:
        os._exit(1)
    helper = _Helper(sock, lifeline, privileged or nested or bool(maps))
    if program >= 0:
        helper.spawner = spawner.Spawner(program, lifeline)
    try:
        helper.serve()
    finally:
        helper.end()
        os._exit(0)


class _Helper:
    """Serves one caller for as long as that lives."""

    def __init__(self, sock: socket.socket, lifeline: int, writes_maps: bool) -> None:
        self.sock, self.lifeline, self.writes_maps = sock, lifeline, writes_maps
        self.plans: dict[str, dict[str, Any]] = {}
        # Our own layers that are there, which plans of the same root share. The first has been unwanted longest.
        self.ready: dict[str, None] = {}
        self.mapped: set[str] = set()  # plans whose layers are shown with shifted ids
        self.users: dict[int, str] = {}  # by the pid of an init: the layers that its sandbox stands on
        self.groups = cgroup_make.Groups()
        self.spawner: spawner.Spawner | None = None
        self.tracer: socket.socket | None = None  # to the caller, if it wants to know how long each step takes
        self.traced: dict[int, int] = {}  # by the pid of an init: the number of its trace
        self.guest, self.guest_status = 0, -1
        self.forsaken = True  # unless the caller says goodbye
        self.waiting: dict[int, tuple[socket.socket, int, dict[str, Any]]] = {}  # inits that wait for their id maps
        self.wake, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGPIPE, _signal.SIGTSTP):
            _signal.signal(number, _signal.SIG_IGN)  # Ctrl-C is the caller's to handle; our end follows from its end
        self.poll = select.poll()
        for fd in (sock.fileno(), lifeline, self.wake):
            self.poll.register(fd, select.POLLIN)

    def serve(self) -> None:
        """Until the caller closes its end, or ends."""
        while True:
            for fd, _ in self.poll.poll(1 if self.groups.suspects else None):
                if fd == self.lifeline:
                    return
                if fd == self.wake:
                    self.reap()
                elif fd in self.waiting:
                    self.map_ids(fd)
                elif fd in self.groups.by_event:
                    self.groups.out_of_memory(fd)
                elif fd == self.sock.fileno():
                    got = protocol.receive(self.sock)
                    if got is None:
                        return
                    self.obey(*got)
            if self.groups.suspects:
                self.groups.judge()

    def end(self) -> None:
        """Removes what would outlive us."""
        self.sock.setblocking(False)
        try:
            while self.forsaken and (got := protocol.receive(self.sock)) is not None:
                if "place" in got[0]:  # told of in the caller's last moment
                    self.obey(*got)
        except (OSError, protocol.BadMessage):
            pass
        # The socket may end before the caller has, and we for another reason than that.
        caller = select.poll()
        caller.register(self.lifeline, select.POLLIN)
        self.groups.close(self.forsaken and bool(caller.poll(1000)))

    def unwatch(self, event: int) -> None:
        if event >= 0:
            self.poll.unregister(event)

    def reap(self) -> None:
        try:
            os.read(self.wake, 4096)
        except BlockingIOError:
            pass
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                self.users.pop(pid, None)
                if pid == self.guest:
                    self.tell_of_guest(status)
                number = self.traced.pop(pid, -1)
                marks = Marks("reaped") if number >= 0 else None
                self.unwatch(self.groups.ended(pid))
                if marks is not None:
                    marks("removed")
                    self.trace(number, marks)
        except ChildProcessError:
            pass

    def obey(self, message: protocol.Message, fds: list[int]) -> None:
        if "plan" in message:
            self.plans[message["plan"]] = message["body"]
        elif "freeze" in message:
            self.freeze(message["freeze"], fds[0])
        elif "recall" in message:
            with socket.socket(fileno=fds[0]) as channel:
                self.recall(message["recall"], channel)
        elif "shift" in message:
            with socket.socket(fileno=fds[0]) as channel:
                self.answer(channel, mapped.answer(message["shift"]))
        elif "thaw" in message:
            self.thaw(message["thaw"])
        elif "make" in message:
            control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fds[0])  # else it asks for these
            try:
                self.make(message["make"], control, message.get("group"), message.get("trace", -1))
            except mounts.StepFailed as failure:
                self.tell(control, failure.step, failure.errno, failure.path)
            except OSError as error:
                self.tell(control, ["clone3"], error.errno, error.filename)
            finally:
                control.close()
        elif "trace" in message:
            self.tracer = socket.socket(fileno=fds[0])
            self.tracer.setblocking(False)
        elif "place" in message:
            self.groups.places.add(message["place"])
        elif "watch" in message:
            event = self.groups.watch(message["watch"])
            if event >= 0:
                self.poll.register(event, select.POLLIN)
        elif "froze" in message:
            self.groups.froze(message["froze"], message["path"])
        elif "resize" in message:
            self.resize(message["resize"], fds)
        elif "bye" in message:
            self.forsaken = False
        elif "drop" in message:
            self.unwatch(self.groups.drop(message["drop"]))
        elif "guest" in message:
            self.board(message, fds)
        elif "net" in message:
            if os.fork() == 0:
                netns.serve(message["net"], socket.socket(fileno=fds[0]), fds[1] if len(fds) > 1 else None)
            protocol.close(fds)
        elif "relay" in message:
            if os.fork() == 0:
                step_forward()
                relay.relay(message["relay"], fds)
            protocol.close(fds)
        elif "outbound" in message:
            if os.fork() == 0:
                step_forward()
                relay.outbound(message["outbound"], fds)
            protocol.close(fds)

    def answer(self, channel: socket.socket, message: protocol.Message) -> None:
        try:
            protocol.send(channel, message)
        except OSError:
            pass  # whoever asked has gone

    def freeze(self, key: str, fd: int) -> None:
        """Mounts a frozen layer where plans will look for it. A failure shows in the plan that wants it."""
        try:
            os.mkdir(f"/frozen/{key}")
            sc.move_mount(fd, "", sc.AT_FDCWD, f"/frozen/{key}", sc.MOVE_MOUNT_F_EMPTY_PATH)
        except OSError:
            pass
        finally:
            os.close(fd)

    def recall(self, key: str, channel: socket.socket) -> None:
        try:
            tree = sc.open_tree(sc.AT_FDCWD, f"/frozen/{key}", sc.OPEN_TREE_CLONE | sc.OPEN_TREE_CLOEXEC)
            protocol.send(channel, {"tree": key}, (tree,))
            os.close(tree)
        except OSError:
            pass  # the channel's end is answer enough

    def thaw(self, key: str) -> None:
        try:
            mapped.forget(f"{mapped.PLACE}/frozen-{key}")
            sc.umount2(f"/frozen/{key}", sc.MNT_DETACH)
            os.rmdir(f"/frozen/{key}")
        except OSError:
            pass

    def tell(self, control: socket.socket, step: list[Any], errno: int | None, path: str | None) -> None:
        try:
            protocol.send(control, {"failed": {"step": step, "errno": errno, "path": path}})
        except OSError:
            pass  # whoever asked has gone

    def make(self, key: str, control: socket.socket, name: str | None, number: int) -> None:
        marks = Marks() if number >= 0 else None
        body = self.plans[key]
        if body["layers"] not in self.ready:
            self.prepare(body)
            if marks is not None:
                marks("layers")
        self.ready[body["layers"]] = self.ready.pop(body["layers"])  # now the last that was wanted
        if body["base"] and key not in self.mapped:
            mapped.begin(body["uid_map"])
            mounts.prepare(body["mapped"])
            self.mapped.add(key)
        group = self.group(body["group"], name) if name is not None else None
        if marks is not None:
            marks("group")
        ours, theirs = socket.socketpair() if self.writes_maps else (None, None)
        try:
            pid = self.spawn(key, control, theirs, group, number >= 0) or self.fork(
                body, control, (ours, theirs), group, number >= 0)
        except OSError:
            if name is not None:
                self.groups.abandon(name)
            raise
        self.users[pid] = body["layers"]
        if marks is not None:
            marks("spawn")
            self.traced[pid] = number
            self.trace(number, marks)
        if group is not None:
            self.groups.started(group, pid)
            if group.event >= 0:
                self.poll.register(group.event, select.POLLIN)
        if ours is not None and theirs is not None:
            theirs.close()
            self.waiting[ours.fileno()] = (ours, pid, body)
            self.poll.register(ours, select.POLLIN)

    def trace(self, number: int, marks: Marks) -> None:
        """Tells the caller how long something took. Never waits: what it has no room for is lost."""
        if self.tracer is not None:
            try:
                protocol.send(self.tracer, {"trace": number, "marks": marks.made})
            except OSError:
                pass

    def prepare(self, body: dict[str, Any]) -> None:
        """Makes the layers of our own that sandboxes of a plan stand on."""
        while True:
            own.own_nothing(body["layers"])  # an attempt may have failed halfway
            try:
                mounts.prepare(body["template"])
                break
            except mounts.StepFailed as failure:
                if failure.errno != errno.ENOSPC or not self.make_room():
                    raise
        self.ready[body["layers"]] = None

    def make_room(self) -> bool:
        """Removes layers that no sandbox stands on; they are made anew when they are wanted again."""
        self.reap()  # what has ended stands on nothing
        used = set(self.users.values())
        for layers in self.ready:
            if layers not in used:
                own.own_nothing(layers)
                del self.ready[layers]
                return True
        return False

    def spawn(self, key: str, control: socket.socket, sync: socket.socket | None,
              group: cgroup_make.Made | None, traced: bool) -> int:
        """Has the spawner start the first process of a sandbox; 0 where that is for :meth:`fork` to do."""
        if self.spawner is None:
            return 0
        try:
            return self.spawner.make(key, self.plans[key], control.fileno(), None if sync is None else sync.fileno(),
                                     group, traced)
        except spawner.Lost:
            self.spawner.close()
            self.spawner = None
            return 0

    def fork(self, body: dict[str, Any], control: socket.socket,
             syncs: tuple[socket.socket | None, socket.socket | None], group: cgroup_make.Made | None,
             traced: bool) -> int:
        """The same by a fork of the helper itself."""
        pid = sc.clone3(sc.CLONE_NEWPID | sc.CLONE_NEWNS, into=-1 if group is None else group.into)
        if pid == 0:
            self.sock.close()
            if self.spawner is not None:
                self.spawner.close()
            if self.tracer is not None:
                self.tracer.close()
            self.groups.leave()
            for ours in (syncs[0], *(one for one, _, _ in self.waiting.values())):
                if ours is not None:
                    ours.close()
            init.main(control, syncs[1], self.lifeline, body, [] if group is None else group.joins,
                      [] if group is None else group.stays, traced)
        return pid

    def board(self, message: protocol.Message, fds: list[int]) -> None:
        """Starts the guest that this helper is for. ``fds`` are its socket and its status pipe."""
        from . import boarding
        what, name = message["guest"], message.get("group")
        with socket.socket(fileno=fds[0]) as sock:
            self.guest_status = fds[1]
            group = None
            try:
                boarding.make_layer(what["layer"])
                body = what["body"]
                if body["layers"] not in self.ready:
                    self.prepare(body)
                self.users[0] = body["layers"]  # for as long as we are there
                group = self.group(body["group"], name) if name is not None else None
                pid = sc.clone3(sc.CLONE_NEWNS, into=-1 if group is None else group.into)
            except mounts.StepFailed as failure:
                self.tell(sock, failure.step, failure.errno, failure.path)
            except OSError as error:
                self.tell(sock, ["guest"], error.errno, error.filename)
            else:
                if pid == 0:
                    self.sock.close()
                    os.close(self.guest_status)
                    if self.spawner is not None:
                        self.spawner.close()
                    self.groups.leave()
                    boarding.main(sock, what, [] if group is None or body["group"]["version"] != 1 else group.stays)
                self.guest = pid
                if group is not None:
                    self.groups.started(group, pid)
                    if group.event >= 0:
                        self.poll.register(group.event, select.POLLIN)
        protocol.close(fds[2:])

    def tell_of_guest(self, status: int) -> None:
        """The guest has ended."""
        try:
            os.write(self.guest_status, str(status).encode())
        except OSError:
            pass  # nobody wants to know any more
        os.close(self.guest_status)
        self.guest, self.guest_status = 0, -1

    def resize(self, options: dict[str, str], fds: list[int]) -> None:
        number = 0
        try:
            mounts.resize(fds[0], options)
        except OSError as error:
            number = error.errno or 0
        with socket.socket(fileno=fds[1]) as channel:
            self.answer(channel, {"errno": number})
        os.close(fds[0])

    def group(self, layout: dict[str, Any], name: str) -> cgroup_make.Made:
        try:
            return self.groups.make(layout, name)
        except OSError as error:
            raise mounts.StepFailed(["cgroup"], error.errno or 0, error.filename) from error

    def map_ids(self, fd: int) -> None:
        sync, pid, body = self.waiting.pop(fd)
        self.poll.unregister(fd)
        with sync:
            try:
                if sync.recv(1):
                    for name in ("uid_map", "gid_map"):
                        cgroup_make.write(f"/proc/{pid}/{name}", body[name])
                    sync.send(b"m")
            except OSError:
                pass  # init ended meanwhile, or finds its socket closed and says so
