"""A command that runs in a sandbox, seen from outside: the live :class:`Process` and the finished :class:`Result`."""

from __future__ import annotations

import errno
import io
import os
import reprlib
import select
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Any

from .errors import (
    SandboxClosedError,
    SandboxCommandDenied,
    SandboxCommandMisplaced,
    SandboxCommandNotFound,
    SandboxCommandRefused,
    SandboxError,
    SandboxProtocolError,
)
from .runtime import protocol
from .runtime.entering import forking, when_inside
from .runtime.protocol import wait_readable
from .runtime.running import Running
from .runtime.shift import hand_over
from .usage import Usage

#: How much of each output stream ``run()`` keeps unless it is told otherwise, in bytes.
OUTPUT_LIMIT = 16 << 20


class Result(subprocess.CompletedProcess[Any]):
    """What ``Sandbox.run`` returns: a :class:`subprocess.CompletedProcess` that also tells how the command ended.

    ``timed_out``: it was ended because its time was up. ``signal``: the number of the signal that ended it, or None.
    ``truncated``: it printed more than ``output_limit`` and was cut off there. ``oom_killed``: the sandbox reached its
    memory limit meanwhile, which ended it. ``usage``: what was used inside while the command ran.
    """

    def __init__(self, args: Sequence[str], returncode: int, stdout: Any = None, stderr: Any = None, *,
                 timed_out: bool = False, truncated: bool = False, oom_killed: bool = False,
                 usage: Usage | None = None) -> None:
        super().__init__(args, returncode, stdout, stderr)
        self.timed_out = timed_out
        self.truncated = truncated
        self.signal = -returncode if returncode < 0 else None
        self.oom_killed = oom_killed
        self.usage = usage or Usage()


_live: weakref.WeakSet[Process] = weakref.WeakSet()


def _leave_outside() -> None:
    """In a fork that goes into a sandbox: gives up every command that runs elsewhere, without a word to it."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for process in _live:
        process._channel.close()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None and not stream.closed:
                os.dup2(null, stream.fileno(), False)  # not closed: that would write out what is still buffered
    os.close(null)


when_inside.append(_leave_outside)


class Process:
    """A live command in a sandbox, as ``Sandbox.popen`` returns it: the useful part of :class:`subprocess.Popen`.

    Lives until it is waited for; leaving a ``with`` block closes its streams and waits, and kills it first if that
    is left by an exception. ``pid`` is its number inside.
    """

    def __init__(self, args: Sequence[str], channel: socket.socket, streams: tuple[int, int, int], text: bool,
                 running: Running) -> None:
        self.args = list(args)
        self._running = running
        self._stop_signal = running.plan.root.stop_signal
        self._used: list[float] | None = None  # as its init counted it
        self.returncode: int | None = None
        self.pid = -1
        self._channel = channel
        self._lock = threading.Lock()  # of the channel's sending side, and of its closing
        self._waiting = threading.Lock()  # of its receiving side
        self._read = (bytearray(), bytearray())  # what communicate() has read so far
        self._cut = False
        self._started()
        _live.add(self)
        self.stdin = _stream(streams[0], "w", text)
        self.stdout = _stream(streams[1], "r", text)
        self.stderr = _stream(streams[2], "r", text)

    def _started(self) -> None:
        message = self._receive()
        if "errno" in message:
            raise _not_started(self.args[0], int(message["errno"]), str(message.get("path") or self.args[0]))
        if type(message.get("pid")) is not int:
            raise SandboxProtocolError("the sandbox's init sent no process id for a command that it was to start")
        self.pid = message["pid"]

    def _receive(self) -> protocol.Message:
        try:
            try:
                got = protocol.receive(self._channel)
            except ConnectionResetError:
                # Init has closed its end before it read a signal of ours. What it said before that comes next.
                got = protocol.receive(self._channel)
        except (OSError, protocol.BadMessage) as error:
            raise SandboxProtocolError("the sandbox's init sent what is not a message", why=str(error)) from error
        if got is None:
            self._close()
            raise SandboxClosedError("the sandbox ended while a command ran in it",
                                     why=f"it was {reprlib.repr(self.args)}")
        protocol.close(got[1])
        return got[0]

    def _close(self) -> None:
        with self._lock:
            self._channel.close()

    def fileno(self) -> int:
        """A descriptor that can be read once the command has ended."""
        return self._channel.fileno()

    def poll(self) -> int | None:
        """The exit status, the negative signal number, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end.

        :raises subprocess.TimeoutExpired: after ``timeout`` seconds.
        :raises SandboxClosedError: when the sandbox ended first.
        """
        deadline = None if timeout is None else time.monotonic() + max(0.0, timeout)
        if not self._waiting.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        try:
            if self.returncode is None:
                if self._channel.fileno() < 0:
                    raise SandboxClosedError("the sandbox ended while a command ran in it",
                                             why=f"it was {reprlib.repr(self.args)}")
                poll = select.poll()
                poll.register(self._channel, select.POLLIN)
                if not poll.poll(None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000):
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                self.returncode = self._ended()
                self._close()
            return self.returncode
        finally:
            self._waiting.release()

    def _ended(self) -> int:
        try:
            message = self._receive()
        except SandboxClosedError:
            from .limits import exceeded
            if exceeded(self._running) is not None:
                return -int(signal.SIGKILL)
            raise
        used = message.get("used")
        if isinstance(used, list) and len(used) == 4 and all(isinstance(one, (int, float)) for one in used):
            self._used = used
        return os.waitstatus_to_exitcode(int(message["status"]))

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        self._signal(number, False)

    def terminate(self) -> None:
        """Asks it to end: SIGTERM, or the signal that its image names for that."""
        self._signal(self._stop_signal, False)

    def kill(self) -> None:
        """SIGKILL to the command and to every process that stayed in its process group."""
        group = self._running.group
        self._signal(signal.SIGKILL, True)
        if group is not None and group.throttled:
            with group.unthrottled():
                if self._channel.fileno() >= 0:
                    wait_readable(self._channel.fileno(), 5)

    def _signal(self, number: int, group: bool) -> None:
        with self._lock, suppress(OSError):
            if self.returncode is None:
                protocol.send(self._channel, {"signal": int(number), "group": group})

    def communicate(self, input: str | bytes | None = None, timeout: float | None = None,  # noqa: A002 - as Popen
                    output_limit: int | None = None) -> tuple[Any, Any, bool]:
        """Feeds ``input``, reads both outputs to their ends and waits; True as the third when an output was cut.

        :raises subprocess.TimeoutExpired: after ``timeout`` seconds; the command goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        data = input.encode() if isinstance(input, str) else input
        _exchange(self, data, deadline, output_limit)
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return self.output()

    def output(self) -> tuple[Any, Any, bool]:
        """What :meth:`communicate` has read so far."""
        kept: list[Any] = []
        for stream, data in zip((self.stdout, self.stderr), self._read, strict=True):
            if stream is None:
                kept.append(None)
            elif isinstance(stream, io.TextIOBase):
                kept.append(data.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n"))
            else:
                kept.append(bytes(data))
        return kept[0], kept[1], self._cut

    def __enter__(self) -> Process:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.kill()  # a failed assertion must not wait for a server that nobody will stop any more
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        with suppress(SandboxClosedError):
            self.wait()


def _not_started(command: str, code: int, path: str) -> SandboxError:
    what = f"{command!r} cannot be started in the sandbox"
    if code == errno.ENOENT and path == command and "/" not in command:
        return SandboxCommandNotFound(what, filename=path, why="no directory of its PATH inside has it",
                                      remedy="Install it in the image, or give its whole path.")
    why = f"{os.strerror(code)}: {path}"
    if code == errno.ENOENT:
        return SandboxCommandNotFound(what, filename=path, why=why,
                                      remedy="Check the path inside, and the interpreter that a script names.")
    remedy = {errno.EACCES: "Make it executable inside, for the sandbox's user.",
              errno.ENOTDIR: "Give a directory as cwd.",
              errno.ENOEXEC: "It is no program for this machine; start a script by its interpreter."}.get(code)
    kinds = {errno.EACCES: SandboxCommandDenied, errno.EPERM: SandboxCommandDenied,
             errno.ENOTDIR: SandboxCommandMisplaced}
    return kinds.get(code, SandboxCommandRefused)(what, filename=path, errno=code, why=why, remedy=remedy)


def start(running: Running, what: dict[str, Any], given: tuple[Any, Any, Any], text: bool) -> Process:
    """Starts a command by a ``spawn`` message. ``given``: its three streams, as ``Sandbox.popen`` has them."""
    ours, theirs, keep = [-1, -1, -1], [-1, -1, -1], []
    channel, other = protocol.pair()
    try:
        with other, forking:  # a fork that had the command's ends of its pipes would keep them open
            try:
                for number, one in enumerate(given):
                    if one == subprocess.PIPE:
                        reading, writing = os.pipe()
                        ours[number], theirs[number] = (writing, reading) if number == 0 else (reading, writing)
                        keep.append(theirs[number])
                    elif one == subprocess.STDOUT and number == 2:
                        theirs[2] = theirs[1]
                    elif one == subprocess.DEVNULL or (one is None and number == 0):
                        theirs[number] = os.open(os.devnull, os.O_RDWR)
                        keep.append(theirs[number])
                    elif one is None:
                        theirs[number] = number
                    else:
                        theirs[number] = one if isinstance(one, int) else one.fileno()
                if running.plan.base:
                    hand_over(keep, running.plan.base, what.get("ids") or (0, 0))
                running.request({"spawn": what}, (*theirs, other.fileno()))
            finally:
                protocol.close(keep)
        return Process(what["argv"], channel, (ours[0], ours[1], ours[2]), text, running)
    except BaseException:
        protocol.close([fd for fd in ours if fd >= 0])
        channel.close()
        raise


def _stream(fd: int, mode: str, text: bool) -> IO[Any] | None:
    if fd < 0:
        return None
    if text:
        return open(fd, mode, encoding="utf-8", errors="replace", newline=None)
    return open(fd, mode + "b", buffering=-1 if mode == "r" else 0)


def _exchange(process: Process, data: bytes | None, deadline: float | None, limit: int | None) -> None:
    """Moves bytes until both outputs have ended. An output beyond ``limit`` is closed: its writer gets a SIGPIPE."""
    poll = select.poll()
    outputs = {}
    for stream, buffer in zip((process.stdout, process.stderr), process._read, strict=True):
        if stream is not None and not stream.closed:
            outputs[stream.fileno()] = stream, buffer
            poll.register(stream, select.POLLIN)
    feed = memoryview(data or b"")
    stdin = process.stdin
    if stdin is not None and not stdin.closed:
        if feed:
            os.set_blocking(stdin.fileno(), False)
            poll.register(stdin, select.POLLOUT)
        else:
            stdin.close()
    while outputs or feed:
        left = None if deadline is None else (deadline - time.monotonic()) * 1000
        if left is not None and left <= 0:
            raise subprocess.TimeoutExpired(process.args, 0)
        for fd, _ in poll.poll(left):
            if fd in outputs:
                stream, buffer = outputs[fd]
                chunk = os.read(fd, 1 << 16)
                buffer += chunk
                if limit is not None and len(buffer) > limit:
                    del buffer[limit:]
                    process._cut, chunk = True, b""
                if not chunk:
                    poll.unregister(fd)
                    del outputs[fd]
                    stream.close()
            elif stdin is not None:
                try:
                    feed = feed[os.write(fd, feed[:1 << 16]):]
                except BrokenPipeError:
                    feed = feed[len(feed):]
                if not feed:
                    poll.unregister(fd)
                    with suppress(BrokenPipeError):
                        stdin.close()
