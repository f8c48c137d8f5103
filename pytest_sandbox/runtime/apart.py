"""Work that is done in a fork of this process, since it must be done by somebody else or somewhere else.

Used by :mod:`.probe`, and by ``committing`` for what a build's step has written: an ordinary user's sandbox with
subordinate ids has files that the user may not read from outside.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import syscalls as sc
from .entering import forking

if TYPE_CHECKING:
    from .running import Running


def in_namespace_of(running: Running, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns, done by a fork of this process that is root of a sandbox's user namespace.

    It is in no other namespace of it: it sees the caller's files, and runs nothing of the sandbox's.

    :raises OSError: when the namespace cannot be entered, or as ``work`` raises it.
    """
    def enter_and_work() -> dict[str, Any]:
        sc.setns(running.pidfd, sc.CLONE_NEWUSER)
        return work()

    return in_fork(enter_and_work)


def in_fork(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns, done by a fork of this process.

    :raises OSError: as ``work`` raises it, or when it ended without an answer.
    """
    sys.stdout.flush()
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with forking, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses but one
        pid = os.fork()
    if pid == 0:
        answer: dict[str, Any]
        try:
            answer = {"done": work()}
        except OSError as error:
            answer = {"errno": error.errno, "what": error.strerror or str(error),
                      "path": str(error.filename or getattr(error, "path", None) or "")}
        except BaseException as error:  # noqa: BLE001 - it travels as text; nothing of the caller may run in here
            answer = {"errno": None, "what": f"{type(error).__name__}: {error}", "path": ""}
        try:
            with open(writing, "wb") as pipe:
                pipe.write(json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    if not text:
        raise OSError(5, "a process that was forked for this ended early")
    answer = json.loads(text)
    if "done" not in answer:
        raise OSError(answer["errno"] or 5, answer["what"], answer["path"] or None)
    done: dict[str, Any] = answer["done"]
    return done
