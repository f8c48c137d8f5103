"""``Sandbox.call``: a function of the caller's runs inside, in a fork, and its value comes back as data."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from .errors import SandboxCallError, SandboxProtocolError
from .runtime import protocol
from .runtime.entering import forking

if TYPE_CHECKING:
    from .runtime.children import ForkedChild
    from .sandbox import Sandbox


def call(sandbox: Sandbox, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """See ``Sandbox.call``."""
    child, reading = _start(sandbox, function, args)
    try:
        with open(reading, "rb") as pipe:
            body = pipe.readline(protocol.LARGEST + 1)  # not to the end: a daemon of the function's may hold it open
    except BaseException:
        child.kill()
        raise
    finally:
        returncode = child.wait()
    name = getattr(function, "__qualname__", repr(function))
    if len(body) > protocol.LARGEST:
        raise SandboxCallError(f"{name}() returned too much", why=f"its value takes more than {protocol.LARGEST} bytes",
                               remedy="Write it to a file, and read that with path().")
    if not body:
        if returncode in (-signal.SIGKILL, 126):
            sandbox._ready().ask({"ping": True})  # an end that may be the whole sandbox's, which this would tell
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


def _start(sandbox: Sandbox, function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[ForkedChild, int]:
    with forking:
        reading, writing = os.pipe()
        try:
            child = sandbox.fork()
        except BaseException:
            os.close(reading)
            os.close(writing)
            raise
        if child is not None:
            os.close(writing)
            return child, reading
    try:
        os.close(reading)
        with open(writing, "w", encoding="utf-8") as pipe:
            _answer(pipe, function, args)
    finally:
        os._exit(0)


def _answer(pipe: TextIO, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        answer = json.dumps({"value": function(*args)})
    except BaseException as error:  # noqa: BLE001 - all of it is the caller's to hear
        answer = json.dumps({"raised": {"type": type(error).__name__, "text": str(error),
                                        "traceback": traceback.format_exc()}})
    pipe.write(answer + "\n")
    pipe.flush()
