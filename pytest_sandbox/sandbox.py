"""``Sandbox``: one sandbox's lifetime, seen from the host. Used by the plugin, the command line, and directly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import (
    ImageError,
    ImageNotFound,
    SandboxCallError,
    SandboxCommandError,
    SandboxProtocolError,
    SandboxStartError,
    SandboxTimeout,
    SandboxUsageError,
)
from .runtime import launch, protocol
from .runtime.launch import ForkedChild, inside, shutdown
from .runtime.plan import Plan, make_plan, user_ids
from .spec import SandboxSpec, parse_options

if TYPE_CHECKING:
    from .files import Change, SandboxPath
    from .image.host import HostImage
    from .process import Process, Result

__all__ = ["Change", "ForkedChild", "Process", "Result", "Sandbox", "SandboxPath", "inside", "shutdown"]


def __getattr__(name: str) -> Any:
    if name in ("Process", "Result"):
        from . import process as module
    elif name in ("Change", "SandboxPath"):
        from . import files as module  # type: ignore[no-redef]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(module, name)


_host_image: HostImage | None = None
_plans: dict[Any, Plan] = {}


def cache_directory() -> str:
    """Where layers are kept: ``PYTEST_SANDBOX_CACHE``, or ``pytest-sandbox`` in the user's cache directory."""
    given = os.environ.get("PYTEST_SANDBOX_CACHE")
    if given:
        return os.path.abspath(given)
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pytest-sandbox")


def plan_for(spec: SandboxSpec) -> Plan:
    """The plan by which sandboxes of this spec are made here.

    :raises ImageNotFound: when there is no such image.
    :raises SandboxStartError: when a mount's source does not exist.
    """
    global _host_image
    host = launch.supervisor().host
    if spec.image != "host":
        raise _no_such_image(spec.image)
    if _host_image is None:
        from .image.host import HostImage
        _host_image = HostImage()
    root = _host_image.root(spec.hide, cache_directory(), not host.privileged)
    key = (spec.network, spec.user, spec.mounts, spec.hostname, spec.disk, spec.capabilities, id(root), os.getpid())
    plan = _plans.get(key)
    if plan is None or spec.mounts:  # the source of a mount may have gone since
        plan = _plans[key] = make_plan(spec, root, host)
    return plan


def _no_such_image(reference: Any) -> ImageError:
    return ImageNotFound(f"image {reference!r} cannot be used", reference=str(reference),
                         why="this version of pytest-sandbox knows only the image 'host'",
                         remedy='Use image="host", which needs no download.')


class Sandbox:
    """A sandbox: made from options or a spec, it runs from :meth:`start` (or entering, or first use) to :meth:`close`.

    Its processes, mounts, network and writable layer exist only while it runs; they also end when this process ends.

    :param options: as the marker takes them.
    :raises SandboxUsageError: for an option that is unknown or holds an unusable value.
    """

    def __init__(self, spec: SandboxSpec | None = None, **options: Any) -> None:
        self.spec = (spec or SandboxSpec()).merged(parse_options(options))
        self._running: launch.Running | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not started" if self._running is None else "running"
        return f"<Sandbox image={self.spec.image!r} user={self.spec.user or 'me'!r} {state}>"

    # Lifetime.

    @classmethod
    def prepare(cls, spec: SandboxSpec) -> None:
        """Says that a sandbox of this spec is wanted soon: it is made in the background. Never raises, never waits."""
        with suppress(Exception):  # a real start will raise it where somebody can act on it
            launch.supervisor().prepare(plan_for(spec))

    def start(self) -> Sandbox:
        """Starts it; does nothing when it runs.

        :raises SandboxUnavailable: when this host cannot give what the spec asks for.
        :raises SandboxStartError: when a step of the start-up failed. Nothing is left of it.
        """
        self._ready()
        return self

    def _ready(self) -> launch.Running:
        if self._closed:
            from .errors import SandboxClosedError
            raise SandboxClosedError("this sandbox is closed", remedy="Make a new Sandbox, or use reset() instead.")
        if self._running is None:
            try:
                self._running = launch.supervisor().take(plan_for(self.spec))
            except SandboxStartError as error:
                from .runtime.probe import explain
                raise explain(error) from error
        return self._running

    def close(self) -> None:
        """Ends everything inside and forgets the writable layer. Does nothing when it is closed already."""
        self._closed = True
        if self._running is not None:
            running, self._running = self._running, None
            running.let_go()
            running.wait_gone()

    def discard(self) -> None:
        """As :meth:`close`, without waiting for the end, unless what runs inside could still be met outside."""
        if self.spec.network == "host" or any(not one.read_only for one in self.spec.mounts):
            self.close()
        self._closed = True
        if self._running is not None:
            running, self._running = self._running, None
            launch.supervisor().end(running)

    def reset(self) -> None:
        """Throws the writable layer and all processes away and starts afresh."""
        self.close()
        self._closed = False
        self._ready()

    def kill(self) -> None:
        """Kills every process inside, also those that left their session or ignore signals. The files remain."""
        running = self._ready()
        running.request({"kill": int(signal.SIGKILL)})
        running.request({"ping": True})
        running.answer()

    def __enter__(self) -> Sandbox:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    # Processes.

    @property
    def ids(self) -> tuple[int, int]:
        """The uid and gid that processes have inside."""
        return user_ids(self.spec, launch.supervisor().host)

    def fork(self) -> ForkedChild | None:
        """Forks the calling process into the sandbox.

        Returns None in the child, which sees the sandbox's root and namespaces and stands in the spec's working
        directory, else in the caller's; in the parent a :class:`ForkedChild`.
        """
        where = self.spec.workdir or os.getcwd()
        child = self._ready().fork(self.ids)
        if child is None:
            self._closed, self._running = True, None  # it belongs to the parent
            os.chdir(where)
            for name, value in self.spec.env:
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        return child

    def popen(self, args: Sequence[str], *, stdin: int | None = None, stdout: int | None = subprocess.PIPE,
              stderr: int | None = subprocess.PIPE, env: Mapping[str, str | None] | None = None,
              cwd: str | os.PathLike[str] | None = None, user: str | None = None, text: bool = True) -> Process:
        """Starts a command and returns at once.

        :param args: the command and its arguments; found by the ``PATH`` of its environment, inside.
        :param stdin: ``subprocess.PIPE``, a descriptor, or None for an empty input. ``stdout`` and ``stderr``:
            ``PIPE``, ``DEVNULL``, a descriptor, or None for the caller's own; ``stderr`` also ``STDOUT``.
        :param env: changes to the sandbox's environment; None as a value removes a variable.
        :param cwd: where it starts; else the spec's ``workdir``, else the caller's working directory.
        :param user: ``"root"``, ``"me"`` or ``"uid:gid"``; else the spec's.
        :raises FileNotFoundError: when there is no such command, or directory, inside.
        """
        from .process import Process
        running = self._ready()
        what = self._command(args, env, cwd, user, running)
        ours, theirs, keep = [-1, -1, -1], [-1, -1, -1], []
        channel, other = protocol.pair()
        try:
            for number, (given, caller) in enumerate(((stdin, -1), (stdout, 1), (stderr, 2))):
                if given == subprocess.PIPE:
                    reading, writing = os.pipe()
                    ours[number], theirs[number] = (writing, reading) if number == 0 else (reading, writing)
                    keep.append(theirs[number])
                elif given == subprocess.STDOUT and number == 2:
                    theirs[2] = theirs[1]
                elif given is None and number:
                    theirs[number] = caller
                elif given in (None, subprocess.DEVNULL):
                    theirs[number] = os.open(os.devnull, os.O_RDWR)
                    keep.append(theirs[number])
                else:
                    theirs[number] = int(given or 0)
            running.request({"spawn": what}, (*theirs, other.fileno()))
            other.close()
            for fd in keep:
                os.close(fd)
            keep.clear()
            return Process(what["argv"], channel, (ours[0], ours[1], ours[2]), text)
        except BaseException:
            for fd in (*keep, *(fd for fd in ours if fd >= 0)):
                os.close(fd)
            channel.close()
            raise
        finally:
            other.close()

    def _command(self, args: Sequence[str], env: Mapping[str, str | None] | None,
                 cwd: str | os.PathLike[str] | None, user: str | None, running: launch.Running) -> dict[str, Any]:
        if isinstance(args, (str, bytes)) or not args:
            raise SandboxUsageError(f"a command is a list of words, not {args!r}", option="args", value=args,
                                    remedy='Write ["ls", "-l"], or ["sh", "-c", "..."] for a shell.')
        environment = dict(os.environ)
        for name, value in (*self.spec.env, *(env or {}).items()):
            if value is None:
                environment.pop(name, None)
            else:
                environment[name] = value
        spec = self.spec if user is None else self.spec.merged(parse_options({"user": user}))
        ids = user_ids(spec, running.host)
        own = (0, 0) if running.host.privileged else self.ids
        if ids != own and not running.host.privileged:
            raise SandboxUsageError(f"user={user!r} cannot be used in this sandbox", option="user", value=user,
                                    why="an unprivileged sandbox has a single user id",
                                    remedy=f"Start a sandbox with user={user!r}.")
        return {"argv": [os.fspath(one) for one in args], "env": environment,
                "cwd": os.fspath(cwd) if cwd is not None else self.spec.workdir or os.getcwd(),
                "ids": None if ids == own else list(ids)}

    def run(self, args: Sequence[str], *, input: str | bytes | None = None,  # noqa: A002 - as subprocess.run
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
        :raises FileNotFoundError: when there is no such command inside.
        """
        from .process import OUTPUT_LIMIT, Result
        process = self.popen(args, stdin=None if input is None else subprocess.PIPE, env=env, cwd=cwd, user=user,
                             text=text)
        timed_out = False
        with process:
            try:
                process.communicate(input, timeout, output_limit or OUTPUT_LIMIT)
            except subprocess.TimeoutExpired:
                timed_out = True
                process.kill()
                with suppress(subprocess.TimeoutExpired):  # by whatever left the group and still holds the output
                    process.communicate(None, 0.5, output_limit or OUTPUT_LIMIT)
            out, err, truncated = process.output()
        assert process.returncode is not None
        result = Result(process.args, process.returncode, out, err, timed_out=timed_out, truncated=truncated)
        if check and (result.returncode or timed_out):
            raise SandboxCommandError(result.returncode, process.args, out, err,
                                      why=f"it ran longer than {timeout} s" if timed_out else None)
        return result

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a function in a fork of this process inside, and returns its value as data (what JSON can hold).

        :raises SandboxCallError: when it raises, ends its process, or returns something that is not data.
        """
        reading, writing = os.pipe()
        child = self.fork()
        if child is None:
            try:
                os.close(reading)
                with open(writing, "w", encoding="utf-8") as pipe:
                    _call(pipe, function, args)
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, "rb") as pipe:
            body = pipe.read(protocol.LARGEST + 1)
        returncode = child.wait()
        name = getattr(function, "__qualname__", repr(function))
        if not body:
            how = f"signal {-returncode}" if returncode < 0 else f"status {returncode}"
            raise SandboxCallError(f"{name}() ended its process in the sandbox", why=f"it ended with {how}")
        try:
            answer = json.loads(body)
            value, raised = answer.get("value"), answer.get("raised")
        except (ValueError, AttributeError, RecursionError) as error:
            raise SandboxProtocolError(f"{name}() sent no valid message out of the sandbox", why=str(error)) from error
        if raised is not None:
            raise SandboxCallError(f"{name}() raised {raised.get('type')} in the sandbox", why=str(raised.get("text")),
                                   type_name=str(raised.get("type")), traceback=str(raised.get("traceback")))
        return value

    def processes(self) -> list[dict[str, Any]]:
        """What runs inside, init left out: dicts with ``pid``, ``ppid``, ``state``, ``name`` and ``args``."""
        ours, theirs = protocol.pair()
        with ours, theirs:
            self._ready().request({"list": True}, (theirs.fileno(),))
            theirs.close()
            got = protocol.receive(ours)
            return list(got[0]["processes"]) if got else []

    # Files.

    def path(self, path: str | os.PathLike[str]) -> SandboxPath:
        """A path of the sandbox's own tree. No symbolic link in there leads out of it."""
        from .files import SandboxPath
        return SandboxPath(self, path)

    @property
    def _root_fd(self) -> int:
        return self._ready().root

    def copy_in(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """Copies a file or tree of the host into the sandbox; into ``dst`` if that is a directory, else as ``dst``."""
        from .files import copy_in
        copy_in(os.fspath(src), self.path(dst))

    def copy_out(self, src: str | os.PathLike[str], dst: str | os.PathLike[str]) -> None:
        """Copies a file or a tree of the sandbox to the host; into ``dst`` if that is a directory, else as ``dst``.

        Symbolic links are copied as links. Devices, sockets and FIFOs are left out, with a warning that names them.
        """
        from .files import copy_out
        copy_out(self.path(src), os.fspath(dst))

    def changes(self) -> list[Change]:
        """What the writable layer holds, sorted by path."""
        from .files import changes
        running = self._ready()
        return changes(running.plan, running.scratch, running.root, running.host.privileged)

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


def _call(pipe: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        answer = json.dumps({"value": function(*args)})
    except BaseException as error:  # noqa: BLE001 - all of it is the caller's to hear
        answer = json.dumps({"raised": {"type": type(error).__name__, "text": str(error),
                                        "traceback": traceback.format_exc()}})
    pipe.write(answer)
    pipe.flush()
