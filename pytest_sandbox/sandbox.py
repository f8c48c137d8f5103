"""``Sandbox``: what can be done with one sandbox from the host. Used by the plugin, the command line, and directly."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import IO, TYPE_CHECKING, Any

from .errors import (
    SandboxClosedError,
    SandboxCommandError,
    SandboxError,
    SandboxTimeout,
    SandboxUsageError,
)
from .lifetime import Lifetime
from .runtime.children import ForkedChild
from .runtime.entering import inside
from .runtime.launch import shutdown
from .runtime.plan import user_ids
from .runtime.running import Running
from .runtime.tracing import now
from .spec import network_kind, parse_options

if TYPE_CHECKING:
    import asyncio

    from .errors import MemoryLimitExceeded
    from .files import SandboxPath
    from .images import Image
    from .layerdiff import Change
    from .process import Process, Result
    from .stacks import ProcessStack
    from .usage import LimitEvents, Usage

    StrPath = str | os.PathLike[str] | bytes

__all__ = ["Change", "ForkedChild", "Process", "Result", "Sandbox", "SandboxPath", "inside", "shutdown"]


def __getattr__(name: str) -> Any:
    if name in ("Process", "Result"):
        from . import process as module
    elif name == "Change":
        from . import layerdiff as module  # type: ignore[no-redef]
    elif name == "SandboxPath":
        from . import files as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


def _says_all(excinfo: Any) -> bool:
    """For pytest: a traceback through these functions adds nothing to an error of ours."""
    return isinstance(excinfo.value, SandboxError)


class Sandbox(Lifetime):
    """A sandbox: made from options or a spec, it runs from :meth:`start` (or entering, or first use) to :meth:`close`.

    Its processes, mounts, network and writable layer exist only while it runs; they also end when this process ends.

    :param options: as the marker takes them.
    :raises SandboxUsageError: for an option that is unknown or holds an unusable value.
    """

    # Its state.

    def commit(self, name: str | None = None, **config: Any) -> Image:
        """Freezes the writable layer into a read-only one, and returns an image that any sandbox can start from.

        While nothing runs inside, the layer is kept where it is, in memory, whatever its size, until nobody refers to
        the image any more or this process ends. The sandbox goes on above it: its files are as they were, ``/run`` and
        ``/dev/shm`` are empty, and :meth:`changes` starts anew. While something runs inside, and for a commit with a
        name, the layer is copied into the layer store; what runs inside goes on undisturbed.

        :param name: what to call the image, for later runs: a reference such as ``"team/app:1"``; for a state of the
            host ``"host:NAME"``.
        :param config: changes of the image's configuration: ``env``, ``user``, ``workdir``, ``entrypoint``, ``cmd``,
            ``stop_signal``, ``labels``.
        :raises ImageError: when the image below cannot be committed on.
        :raises StoreError: when the layer store's disk is full or fails.
        """
        from . import committing
        with self._lock:
            running = self._ready()
            before = self._spec_now().image
            busy = bool(running.children or self.processes())
            image = committing.commit(running, before, name, config, busy)
            if busy:
                return image
            self._running = None
            running.let_go()
            running.wait_gone()
            self._onward = committing.without(image, before) if config else image
            if name is not None:
                return committing.store(image, running.plan, {}, name)
            return image

    def kill(self) -> None:
        """Kills every process inside, also those that left their session or ignore signals. The files remain.

        They are gone when it returns, except that a fork of the caller's still has to be waited for.
        """
        running = self._ready()
        if running.group is not None and running.group.frozen:
            running.group.kill(running.init_pid())
            self.thaw()
        running.request({"kill": int(signal.SIGKILL)})
        with nullcontext() if running.group is None else running.group.unthrottled():
            for child in list(running.children):
                child.kill()
            running.ask({"ping": True})

    # Processes.

    def popen(self, args: Sequence[StrPath], *, stdin: int | IO[Any] | None = None,
              stdout: int | IO[Any] | None = subprocess.PIPE,
              stderr: int | IO[Any] | None = subprocess.PIPE, env: Mapping[str, str | None] | None = None,
              cwd: str | os.PathLike[str] | None = None, user: str | None = None, text: bool = True) -> Process:
        """Starts a command and returns at once.

        :param args: the command and its arguments; found by the ``PATH`` of its environment, inside. Empty: what the
            image runs by itself.
        :param stdin: ``subprocess.PIPE``, a descriptor or file, or None for an empty input. ``stdout`` and ``stderr``:
            ``PIPE``, ``DEVNULL``, a descriptor or file, or None for the caller's own; ``stderr`` also ``STDOUT``.
        :param env: changes to the sandbox's environment; None as a value removes a variable.
        :param cwd: where it starts; else the spec's ``workdir``, else the caller's working directory, or the image's.
        :param user: ``"root"``, ``"me"`` or ``"uid:gid"``; else the spec's.
        :raises FileNotFoundError: when there is no such command, or directory, inside.
        """
        from .process import start
        running = self._in_time()
        return start(running, self._command(args, env, cwd, user, running), (stdin, stdout, stderr), text)

    def _command(self, args: Sequence[StrPath], env: Mapping[str, str | None] | None,
                 cwd: str | os.PathLike[str] | None, user: str | None, running: Running) -> dict[str, Any]:
        args = args or running.plan.root.command
        if isinstance(args, (str, bytes)) or not args:
            raise SandboxUsageError(f"a command is a list of words, not {args!r}", option="args", value=args,
                                    remedy='Write ["ls", "-l"], or ["sh", "-c", "..."] for a shell.')
        root = running.plan.root
        environment = dict(os.environ if root.env is None else root.env)
        for name, value in (*self.spec.env, *(env or {}).items()):
            if not isinstance(name, str) or not isinstance(value, (str, type(None))):
                raise TypeError(f"a variable's name and value are text, or None to remove it: {name!r} has {value!r}")
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        spec = self.spec if user is None else self.spec.merged(parse_options({"user": user}))
        ids = user_ids(spec, running.host, root)
        own = (0, 0) if running.host.has_users else running.plan.ids
        if ids != own and not running.host.has_users:
            raise SandboxUsageError(f"user={user!r} cannot be used in this sandbox", option="user", value=user,
                                    why="an unprivileged sandbox has a single user id",
                                    remedy=f"Start a sandbox with user={user!r}.")
        argv = [os.fsdecode(one) for one in args]
        where = os.fsdecode(cwd) if cwd is not None else self.spec.workdir
        if where is None:
            where = os.getcwd() if root.host else root.workdir
        if any("\0" in one for one in (*argv, where, *environment, *environment.values())):
            raise ValueError("a command, its environment and its directory hold no NUL character")
        return {"argv": argv, "env": environment, "cwd": where, "ids": None if ids == own else list(ids)}

    def run(self, args: Sequence[StrPath], *, input: str | bytes | None = None,  # noqa: A002 - as subprocess.run
            env: Mapping[str, str | None] | None = None, cwd: str | os.PathLike[str] | None = None,
            user: str | None = None, timeout: float | None = None, check: bool = False, text: bool = True,
            output_limit: int | None = None) -> Result:
        """Runs a command to its end and returns what it printed and how it ended.

        :param input: what it reads; else nothing.
        :param timeout: seconds; then the command and its process group are killed and ``timed_out`` is true.
        :param check: whether a status other than 0 raises.
        :param text: whether output is text (UTF-8, what is not is replaced) or bytes.
        :param output_limit: bytes kept of each stream (16 MiB); a command that prints more is cut off by SIGPIPE.
        :raises SandboxCommandError: with ``check``.
        :raises MemoryLimitExceeded: with ``check``, when the sandbox reached its memory limit.
        :raises FileNotFoundError: when there is no such command inside.
        """
        __tracebackhide__ = _says_all
        from .limits import Watch, exceeded
        from .process import OUTPUT_LIMIT, Result
        running = self._ready()
        began = now() if running.trace is not None else 0
        with Watch(running) as watch:
            process = self.popen(args, stdin=None if input is None else subprocess.PIPE, env=env, cwd=cwd, user=user,
                                 text=text)
            timed_out = False
            with process:
                limit = OUTPUT_LIMIT if output_limit is None else output_limit
                try:
                    process.communicate(input, timeout, limit)
                except subprocess.TimeoutExpired:
                    timed_out = True
                    process.kill()
                    with suppress(subprocess.TimeoutExpired):  # by whatever left the group and still holds the output
                        process.communicate(None, 0.5, limit)
                except BaseException:
                    process.kill()
                    raise
                out, err, truncated = process.output()
            assert process.returncode is not None
            if running.trace is not None:
                running.trace.add("run", process.args[0], began)
            self._in_time()
            error = exceeded(running)
            result = Result(process.args, process.returncode, out, err, timed_out=timed_out, truncated=truncated,
                            oom_killed=error is not None, usage=watch.end(process._used))
        if check and error is not None:
            raise error
        if check and (result.returncode or timed_out):
            raise SandboxCommandError(result.returncode, process.args, out, err,
                                      why=f"it ran longer than {timeout} s" if timed_out else None)
        return result

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a function in a fork of this process inside, and returns its value as data (what JSON can hold).

        :raises SandboxCallError: when it raises, ends its process, or returns something that is not data.
        """
        from .calls import call
        try:
            return call(self, function, args)
        except SandboxError as error:
            failed = error
        self._in_time()  # which may be the reason
        raise failed

    def processes(self) -> list[dict[str, Any]]:
        """What runs inside, init left out: dicts with ``pid``, ``ppid``, ``state``, ``name`` and ``args``."""
        return list(self._ready().ask({"list": True})["processes"])

    def stacks(self) -> list[ProcessStack]:
        """Where everything inside stands: each process with its threads, what each waits for, and its Python frames.

        Read from outside without stopping anything: Python frames from the memory of every CPython 3.10 to 3.14 that
        this user may read, for the rest what the kernel tells. ``str()`` of each is text to print.
        """
        from .stacks import stacks
        return stacks(self._root_fd)

    # Resource control.

    def usage(self) -> Usage:
        """What everything inside has used since the sandbox was started. A figure that this host cannot give is None.

        :raises SandboxClosedError: after :meth:`close`.
        """
        from .limits import usage
        return usage(self._ready())

    @property
    def counts_as_it_goes(self) -> bool:
        """Whether :meth:`usage` knows of a fork of the caller's while that runs, and not only when it has ended."""
        return self._ready().group is not None

    def limit_events(self) -> LimitEvents:
        """Which limits were met since the sandbox was started, also when that ended it.

        :raises SandboxClosedError: after :meth:`close`.
        """
        from .limits import events
        return events(self._ready())

    def limit_error(self) -> MemoryLimitExceeded | None:
        """Why the sandbox has ended, if that was by a limit; None when it runs, or ended otherwise."""
        from .limits import exceeded
        return exceeded(self._ready())

    def update(self, **limits: Any) -> None:
        """Changes limits while the sandbox runs; ``spec`` holds them afterwards. None takes a limit away.

        :param limits: ``memory``, ``swap``, ``cpus``, ``cpu_weight``, ``io_weight``, ``io``, ``pids``, ``disk``.
        :raises SandboxUnavailable: for a limit that this sandbox cannot get while it runs.
        :raises SandboxError: when more is in use than the new limit allows. The old one stays.
        """
        from .limits import update
        self.spec = update(self._ready(), self.spec, limits)

    def freeze(self) -> None:
        """Stops every process inside, until :meth:`thaw`. They use no CPU time, and notice nothing but the time.

        Requests to a frozen sandbox, such as :meth:`run`, wait.

        :raises SandboxUnavailable: when this host cannot.
        """
        from .runtime.cgroup import unavailable
        from .runtime.cgroups import FREEZE_NEEDS
        group = self._ready().group
        if group is None:
            raise unavailable("freeze", *FREEZE_NEEDS)
        group.freeze()

    def thaw(self) -> None:
        """Lets a frozen sandbox go on. Does nothing when it is not frozen."""
        group = self._ready().group
        if group is not None and group.frozen:
            group.thaw()

    # Files.

    def path(self, path: str | os.PathLike[str]) -> SandboxPath:
        """A path of the sandbox's own tree. No symbolic link in there leads out of it."""
        from .files import SandboxPath
        return SandboxPath(self, path)

    @property
    def _root_fd(self) -> int:
        running = self._ready()
        if running.root < 0:  # the helper's end has ended it
            raise SandboxClosedError("the sandbox has ended")
        return running.root

    def copy_in(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """Copies a file or tree of the host into the sandbox; into ``dst`` if that is a directory, else as ``dst``."""
        from .copying import copy_in
        from .files import room
        with room(self, dst):
            copy_in(os.fspath(src), self.path(dst))

    def copy_out(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """Copies a file or a tree of the sandbox to the host; into ``dst`` if that is a directory, else as ``dst``.

        Symbolic links are copied as links. Devices, sockets and FIFOs are left out, with a warning that names them.
        """
        from .copying import copy_out
        copy_out(self.path(src), os.fspath(dst))

    def changes(self) -> list[Change]:
        """What the writable layer holds, sorted by path."""
        from .layerdiff import changes
        root, running = self._root_fd, self._ready()
        return changes(running.plan, running.scratch, root, running.host.privileged)

    def wait_for_file(self, path: str | os.PathLike[str], timeout: float = 10.0) -> None:
        """Waits until ``path`` exists inside.

        :raises SandboxTimeout: after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        pause = 0.001
        while not self.path(path).exists():
            if time.monotonic() > deadline:
                raise SandboxTimeout(f"{os.fspath(path)} did not appear in the sandbox in {timeout} s", seconds=timeout)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)

    # Ways in.

    def connect(self, port: int | str | os.PathLike[str], host: str = "127.0.0.1", *,
                type: socket.SocketKind = socket.SOCK_STREAM,  # noqa: A002 - as socket.socket
                timeout: float | None = 10.0) -> socket.socket:
        """A blocking socket that is connected to a server inside. Nothing opens on the host; close it when done.

        :param port: a port of ``host``, or the path of a Unix socket.
        :param host: an address, or a name that the sandbox's own ``/etc/hosts`` has.
        :param type: ``SOCK_STREAM`` (TCP), ``SOCK_DGRAM`` (UDP), or what a Unix socket is.
        :param timeout: seconds to wait for the connection.
        :raises SandboxConnectionRefused: when nobody listens there.
        :raises SandboxTimeout: when nobody answers in time.
        """
        from .connections import connect
        return connect(self, port, host, type, timeout)

    async def open_connection(self, port: int | str | os.PathLike[str], host: str = "127.0.0.1", *,
                              timeout: float | None = 10.0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As :func:`asyncio.open_connection`, to a server inside; takes what :meth:`connect` takes."""
        from .connections import open_connection
        return await open_connection(self, port, host, timeout)

    def forward(self, port: int, host: str = "127.0.0.1") -> tuple[str, int]:
        """Host and port, on the host's loopback, that lead to a TCP port inside until the sandbox closes or resets.

        For libraries that want a URL; whoever can reach the host's loopback can use it.
        """
        from .connections import forward
        return forward(self, port, host)

    def refused(self) -> list[str]:
        """What was tried to reach from an ``"outbound"`` sandbox in vain, such as ``"tcp 198.51.100.7:443"``."""
        if network_kind(self.spec.network) != "outbound":
            return []
        from .outbound import refused
        return refused(self._ready())

    def without_route(self) -> int:
        """How often something inside tried to reach an address to which its network has no way."""
        from .connections import without_route
        return without_route(self)

    def wait_for_port(self, port: int, timeout: float = 10.0, *, host: str = "127.0.0.1",
                      type: socket.SocketKind = socket.SOCK_STREAM) -> None:  # noqa: A002 - as socket.socket
        """Waits until something inside listens on a port. The server does not notice: nothing connects to it.

        :param type: ``SOCK_STREAM`` (TCP) or ``SOCK_DGRAM`` (UDP).
        :raises SandboxTimeout: after ``timeout`` seconds.
        """
        from .connections import wait_for_port
        wait_for_port(self, port, timeout, host, type)
