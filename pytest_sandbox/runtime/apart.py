"""Work that must be done in a sandbox's own user namespace, where its files' owners are ours to read.

An ordinary user's sandbox with subordinate ids has files that the user may not read from outside. Used by
``committing`` for what a build's step has written.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import Any

from . import syscalls as sc
from .entering import forking
from .running import Running


def in_namespace_of(running: Running, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns, done by a fork of this process that is root of a sandbox's user namespace.

    It is in no other namespace of it: it sees the caller's files, and runs nothing of the sandbox's.

    :raises OSError: when the namespace cannot be entered, or as ``work`` raises it.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    with forking, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the child uses but one
        pid = os.fork()
    if pid == 0:
        answer: dict[str, Any]
        try:
            sc.setns(running.pidfd, sc.CLONE_NEWUSER)
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
        raise OSError(5, "the process that read what a sandbox has written ended early")
    answer = json.loads(text)
    if "done" not in answer:
        raise OSError(answer["errno"] or 5, answer["what"], answer["path"] or None)
    done: dict[str, Any] = answer["done"]
    return done
