"""The exceptions of pytest-sandbox. Raised everywhere, imported by everyone, importing nothing of ours.

::

    SandboxError
    ├── SandboxUsageError        (ValueError)          what the user typed is wrong
    ├── SandboxUnavailable       (OSError)             this host cannot give what was asked for
    ├── SandboxStartError        (OSError)             a step of the start-up failed
    ├── SandboxCommandNotFound   (FileNotFoundError)   there is no such command, or directory, in a sandbox
    ├── SandboxCommandRefused    (OSError)             a command is there and could not be started
    │   ├── SandboxCommandDenied (PermissionError)     the sandbox's user may not start it
    │   └── SandboxCommandMisplaced (NotADirectoryError) where it was to start is no directory
    ├── SandboxClosedError       (RuntimeError)        the sandbox is not running any more
    ├── SandboxCommandError      (CalledProcessError)  a command failed and check=True was given
    ├── SandboxConnectionError   (ConnectionError)     a server inside could not be reached
    │   └── SandboxConnectionRefused (ConnectionRefusedError) nobody listens there
    ├── NetworkError             (OSError)             a network could not be made or changed as asked
    ├── SandboxTimeout           (TimeoutError)        something awaited did not happen in time
    ├── SandboxProtocolError     (ValueError)          what came out of a sandbox is not a valid message
    ├── SandboxCallError         (RuntimeError)        a function called inside raised, or its value is not data
    ├── SandboxCrashed           (RuntimeError)        a test's process died before it could report
    ├── SandboxGuestError        (RuntimeError)        the Python of an image could not run tests, or died
    ├── LimitExceeded            (RuntimeError)        what ran in a sandbox reached one of its limits
    │   ├── MemoryLimitExceeded  (MemoryError)         the kernel killed it for want of memory
    │   ├── PidsLimitExceeded    (BlockingIOError)     no more processes or threads
    │   ├── DiskLimitExceeded    (OSError)             its writable layer is full
    │   └── TimeLimitExceeded    (TimeoutError)        its time was up
    ├── KeptTestError            (ValueError)          a kept test is not there, or cannot be used
    ├── StoreError               (OSError)             the layer store cannot be used, or is full
    └── ImageError               (ValueError)          an image reference, or an image, is unusable
        ├── ImageBuildError      (ValueError)          a Containerfile cannot be built
        ├── ImageNotFound        (LookupError)         there is no such image
        ├── ImageCorrupt         (ValueError)          an image's bytes are not what its digests promise
        │   └── LayerRejected    (ValueError)          a layer asks for something that no layer may do
        └── RegistryError        (ConnectionError)     a registry did not answer as it should
            └── RegistryAuthError (PermissionError)    a registry wants other credentials

Every error keeps its facts as attributes, can be pickled, and reads as *what failed: why. Remedy*.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Any


def _rebuild(cls: type[SandboxError], state: dict[str, Any]) -> SandboxError:
    # Not cls.__new__: where ValueError comes before OSError, that is ValueError's, which cannot make what OSError is.
    error = OSError.__new__(cls) if issubclass(cls, OSError) else Exception.__new__(cls)
    Exception.__init__(error, state.get("_text", ""))
    for name, value in state.items():
        setattr(error, name, value)
    return error


class SandboxError(Exception):
    """Anything that pytest-sandbox raises.

    :param what: what failed, and on what.
    :param why: the reason, as far as it is known.
    :param remedy: what the reader can do about it.
    """

    what: str
    why: str | None
    remedy: str | None

    def __init__(self, what: str, *, why: str | None = None, remedy: str | None = None) -> None:
        self._tell(what, why, remedy)

    def _tell(self, what: str, why: str | None, remedy: str | None) -> None:
        self.what, self.why, self.remedy = what, why, remedy
        text = what if why is None else f"{what}: {why}"
        if remedy is not None:
            text = f"{text} {remedy}" if text.endswith("?") else f"{text.rstrip('.')}. {remedy}"
        self._text = text
        Exception.__init__(self, text)

    def __str__(self) -> str:
        return self._text

    def __reduce__(self) -> tuple[Callable[..., SandboxError], tuple[type[SandboxError], dict[str, Any]]]:
        state = self.__dict__.copy()
        if isinstance(self, OSError):
            state["errno"] = self.errno  # slots of OSError's own, absent from __dict__
            state["strerror"], state["filename"] = self.strerror, self.filename
        return _rebuild, (type(self), state)


class SandboxUsageError(SandboxError, ValueError):
    """An option has an unknown name or an unusable value.

    ``option`` is the option's name, ``value`` what was given, ``allowed`` what would have been accepted.
    """

    def __init__(self, what: str, *, option: str, value: object = None, allowed: str | None = None,
                 why: str | None = None, remedy: str | None = None) -> None:
        self.option, self.value, self.allowed = option, value, allowed
        if remedy is None and allowed is not None:
            remedy = f"Allowed: {allowed}."
        self._tell(what, why, remedy)

    def __reduce__(self) -> tuple[Callable[..., SandboxError], tuple[type[SandboxError], dict[str, Any]]]:
        state = self.__dict__.copy()
        if not isinstance(self.value, (str, int, float, bool, type(None))):
            state["value"] = repr(self.value)  # whatever was typed need not be picklable
        return _rebuild, (type(self), state)


class SandboxUnavailable(SandboxError, OSError):
    """This host cannot give what was asked for. ``feature`` names the ability (as ``pytest-sandbox doctor`` does)."""

    def __init__(self, what: str, *, feature: str, why: str | None = None, remedy: str | None = None,
                 errno: int | None = None) -> None:
        self.feature = feature
        self.errno = errno
        self._tell(what, why, remedy)


class SandboxStartError(SandboxError, OSError):
    """A step of a sandbox's start-up failed; nothing of the sandbox is left.

    ``step`` is the step as the plan prints it, ``path`` the file it was about, ``errno`` the kernel's answer.
    """

    def __init__(self, what: str, *, step: str, path: str | None = None, errno: int | None = None,
                 why: str | None = None, remedy: str | None = None) -> None:
        self.step, self.path = step, path
        self.errno = errno
        self._tell(what, why, remedy)


class SandboxCommandNotFound(SandboxError, FileNotFoundError):
    """A command, or the directory it was to start in, does not exist inside. ``filename`` is what was looked for."""

    def __init__(self, what: str, *, filename: str, why: str | None = None, remedy: str | None = None) -> None:
        self.filename = filename
        self.errno, self.strerror = 2, os.strerror(2)
        self._tell(what, why, remedy)


class SandboxCommandRefused(SandboxError, OSError):
    """The kernel refused to start a command inside: ``errno`` says why, ``filename`` is the file it was about."""

    def __init__(self, what: str, *, filename: str, errno: int, why: str | None = None,
                 remedy: str | None = None) -> None:
        self.filename = filename
        self.errno, self.strerror = errno, os.strerror(errno)
        self._tell(what, why, remedy)


class SandboxCommandDenied(SandboxCommandRefused, PermissionError):
    """The sandbox's user may not execute a command inside, or not enter the directory it was to start in."""


class SandboxCommandMisplaced(SandboxCommandRefused, NotADirectoryError):
    """Where a command was to start inside, or what leads to it, is no directory."""


class SandboxClosedError(SandboxError, RuntimeError):
    """The sandbox was closed, killed, or its first process ended."""


class SandboxConnectionError(SandboxError, ConnectionError):
    """A server inside could not be reached: ``address`` is where it was looked for, ``errno`` the kernel's answer."""

    def __init__(self, what: str, *, address: str, errno: int | None = None, why: str | None = None,
                 remedy: str | None = None) -> None:
        self.address = address
        self.errno = errno
        self._tell(what, why, remedy)


class SandboxConnectionRefused(SandboxConnectionError, ConnectionRefusedError):
    """Nobody listens there."""


class NetworkError(SandboxError, OSError):
    """A network could not be made, joined or changed. ``network`` is its range, ``errno`` the kernel's answer."""

    def __init__(self, what: str, *, network: str, errno: int | None = None, why: str | None = None,
                 remedy: str | None = None) -> None:
        self.network = network
        self.errno = errno
        self._tell(what, why, remedy)


class SandboxTimeout(SandboxError, TimeoutError):
    """Something that was waited for did not happen within ``seconds``."""

    def __init__(self, what: str, *, seconds: float, why: str | None = None, remedy: str | None = None) -> None:
        self.seconds = seconds
        self._tell(what, why, remedy)


class SandboxProtocolError(SandboxError, ValueError):
    """Bytes that came out of a sandbox are not a message that we accept. The sandbox is not to be trusted further."""


class SandboxCallError(SandboxError, RuntimeError):
    """A function that ``Sandbox.call`` ran inside raised, or returned something that is not plain data.

    ``type_name`` is the exception's type as text, ``traceback`` its traceback as text: data, never an unpickled object.
    """

    def __init__(self, what: str, *, type_name: str | None = None, traceback: str | None = None,
                 why: str | None = None, remedy: str | None = None) -> None:
        self.type_name, self.traceback = type_name, traceback
        self._tell(what, why, remedy)


class SandboxCrashed(SandboxError, RuntimeError):
    """A sandboxed test's process ended before it reported its outcome.

    ``signal`` is the signal's number or None, ``exitcode`` the status or None, ``phase`` is ``setup``, ``call`` or
    ``teardown``, ``output`` the end of what it had printed.
    """

    def __init__(self, what: str, *, phase: str, signal: int | None = None, exitcode: int | None = None,
                 output: str = "", why: str | None = None, remedy: str | None = None) -> None:
        self.phase, self.signal, self.exitcode, self.output = phase, signal, exitcode, output
        self._tell(what, why, remedy)


class SandboxGuestError(SandboxError, RuntimeError):
    """The guest of an image, in whose own Python tests run, could not start or has died.

    ``image`` is the image, ``output`` the end of what the guest had printed.
    """

    def __init__(self, what: str, *, image: str, output: str = "", why: str | None = None,
                 remedy: str | None = None) -> None:
        self.image, self.output = image, output
        self._tell(what, why, remedy)
        if output:
            self._text += f"\n\nWhat it had printed:\n{output.rstrip()}"
            Exception.__init__(self, self._text)


class LimitExceeded(SandboxError, RuntimeError):
    """What ran in a sandbox reached one of its limits. ``option`` names it, ``limit`` is its value."""

    option: str
    limit: float | None


class MemoryLimitExceeded(LimitExceeded, MemoryError):
    """The kernel ended a sandbox because it reached its memory limit.

    ``limit`` and ``peak`` are bytes, ``kills`` how many processes the kernel killed, ``victim`` the name of the first
    one and ``victim_pid`` the host's number of it, where they are known.
    """

    def __init__(self, what: str, *, limit: int | None, peak: int | None = None, kills: int | None = None,
                 victim: str | None = None, victim_pid: int | None = None, why: str | None = None,
                 remedy: str | None = None) -> None:
        self.option, self.limit, self.peak, self.kills = "memory", limit, peak, kills
        self.victim, self.victim_pid = victim, victim_pid
        self._tell(what, why, remedy)


class PidsLimitExceeded(LimitExceeded, BlockingIOError):
    """A sandbox reached the most tasks that it may have. ``limit`` and ``peak`` are tasks, ``refused`` failed forks."""

    def __init__(self, what: str, *, limit: int | None, peak: int | None = None, refused: int | None = None,
                 why: str | None = None, remedy: str | None = None) -> None:
        self.option, self.limit, self.peak, self.refused = "pids", limit, peak, refused
        self.errno, self.strerror = 11, os.strerror(11)  # EAGAIN, as fork(2) has it
        self._tell(what, why, remedy)


class DiskLimitExceeded(LimitExceeded, OSError):
    """A sandbox's writable layer is full. ``limit`` is its size in bytes, ``full`` is ``blocks`` or ``inodes``."""

    def __init__(self, what: str, *, limit: int | None, used: int | None = None, full: str = "blocks",
                 why: str | None = None, remedy: str | None = None) -> None:
        self.option, self.limit, self.used, self.full = "disk", limit, used, full
        self.errno, self.strerror = 28, os.strerror(28)  # ENOSPC
        self._tell(what, why, remedy)


class TimeLimitExceeded(LimitExceeded, TimeoutError):
    """What ran in a sandbox was ended because its time was up.

    ``limit`` is the timeout in seconds, ``elapsed`` how long it ran, ``verdict`` is ``spinning``, ``blocked`` or
    ``waiting`` (None: not known), ``stacks`` where its processes stood, as text.
    """

    def __init__(self, what: str, *, limit: float | None, elapsed: float | None = None, verdict: str | None = None,
                 stacks: str = "", why: str | None = None, remedy: str | None = None) -> None:
        self.option, self.limit, self.elapsed = "timeout", limit, elapsed
        self.verdict, self.stacks = verdict, stacks
        self._tell(what, why, remedy)

    def __str__(self) -> str:
        return f"{self._text}\n\n{self.stacks}" if self.stacks else self._text


class SandboxCommandError(SandboxError, subprocess.CalledProcessError):
    """A command in a sandbox failed and ``check=True`` was given. Carries what ``CalledProcessError`` carries."""

    def __init__(self, returncode: int, cmd: Sequence[str], output: Any = None, stderr: Any = None, *,
                 why: str | None = None, remedy: str | None = None) -> None:
        self.returncode, self.cmd, self.output, self.stderr = returncode, list(cmd), output, stderr
        ended = f"ended by signal {-returncode}" if returncode < 0 else f"returned {returncode}"
        tail = stderr if isinstance(stderr, str) else (stderr or b"").decode(errors="replace")
        lines = tail.strip().splitlines()[-5:]
        self._tell(f"command {list(cmd)!r} {ended}", why or ("\n".join(lines) or None), remedy)

    def __str__(self) -> str:
        return self._text


class KeptTestError(SandboxError, ValueError):
    """A kept test is not there, is damaged, or cannot be kept, opened or sent. ``id`` is what it was asked for by."""

    def __init__(self, what: str, *, id: str = "", why: str | None = None,  # noqa: A002 - what users call it
                 remedy: str | None = None) -> None:
        self.id = id
        self._tell(what, why, remedy)


class ImageError(SandboxError, ValueError):
    """An image reference cannot be read, or what it names cannot be used. ``reference`` is what was given."""

    def __init__(self, what: str, *, reference: str, why: str | None = None, remedy: str | None = None) -> None:
        self.reference = reference
        self._tell(what, why, remedy)


class ImageBuildError(ImageError):
    """A Containerfile cannot be built: ``file``, ``line`` and ``step`` say where, ``output`` is how its output ended.

    ``line`` and ``step`` are None where the whole file is meant.
    """

    def __init__(self, what: str, *, reference: str, file: str, line: int | None = None, step: str | None = None,
                 output: str = "", why: str | None = None, remedy: str | None = None) -> None:
        self.file, self.line, self.step, self.output = file, line, step, output
        if line is not None:
            what = f"{what}: line {line}" + (f", {step}" if step else "")
        super().__init__(what, reference=reference, why=why, remedy=remedy)


class ImageNotFound(ImageError, LookupError):
    """There is no image of that name where the reference points."""


class ImageCorrupt(ImageError):
    """Bytes of an image are not what its digests, sizes or formats promise. Nothing of them was used."""


class LayerRejected(ImageCorrupt):
    """A layer asks for what no layer may do, or goes over a limit; what was unpacked of it is gone.

    ``entry`` is the name in the archive as printable text, ``rule`` a short fixed word for what was broken
    (``name``, ``type``, ``link``, ``whiteout``, ``header``, ``sparse``, ``limit``, ``owner``).
    """

    def __init__(self, what: str, *, reference: str, entry: str = "", rule: str = "header",
                 why: str | None = None, remedy: str | None = None) -> None:
        self.entry, self.rule = entry, rule
        super().__init__(what, reference=reference, why=why, remedy=remedy)


class RegistryError(ImageError, ConnectionError):
    """A registry could not be reached or gave an answer that cannot be used, after the retries that make sense.

    ``url`` is what was asked for (never with credentials), ``status`` the HTTP status or None.
    """

    def __init__(self, what: str, *, reference: str, url: str | None = None, status: int | None = None,
                 why: str | None = None, remedy: str | None = None) -> None:
        self.url, self.status = url, status
        super().__init__(what, reference=reference, why=why, remedy=remedy)


class RegistryAuthError(RegistryError, PermissionError):
    """A registry refused: no credentials, wrong ones, or ones that do not reach this repository."""


class StoreError(SandboxError, OSError):
    """The layer store cannot be used. ``path`` is the file or directory it was about, ``errno`` the kernel's answer."""

    def __init__(self, what: str, *, path: str | None = None, errno: int | None = None,
                 why: str | None = None, remedy: str | None = None) -> None:
        self.path = path
        self.errno = errno
        self._tell(what, why, remedy)
