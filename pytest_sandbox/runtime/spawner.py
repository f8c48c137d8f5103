"""The compiled spawner, as the helper works it: a small program that starts the first processes of sandboxes.

A fork of a Python process copies thousands of pages and touches hundreds of them again; that of the spawner (its
source is ``native/``) a few dozen, and what it forks is smaller by as much for as long as the sandbox lives. It is
built with the package where there is a C compiler. Where it is not there, or cannot run, or lacks an action of a plan,
inits are made of Python by :mod:`.init`: the same sandbox, some milliseconds later.
"""

from __future__ import annotations

import os

from . import mounts, protocol
from .actions import COMPILED
from .commands import stands_back

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

    from .actions import Action
    from .cgroup_make import Made

#: The program, where the package was built with it.
PROGRAM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "native", "spawner")
#: Set to "python", this variable of the environment does without it.
VARIABLE = "PYTEST_SANDBOX_SPAWNER"


def is_there(wanted: str) -> bool:
    """Whether the program can be used, which ``wanted``, the value of :data:`VARIABLE`, does not forbid."""
    return wanted != "python" and os.access(PROGRAM, os.X_OK) and not is_stale()


def is_stale() -> bool:
    """Whether it is older than its source, which only a checkout has beside it. It may not know what it is asked."""
    folder = os.path.dirname(PROGRAM)
    sources = [name for name in os.listdir(folder) if name.endswith((".c", ".h"))]
    made = os.stat(PROGRAM).st_mtime if sources else 0
    return any(os.stat(f"{folder}/{name}").st_mtime > made for name in sources)


class Lost(Exception):
    """The spawner has ended, or never began."""


class Spawner:
    """Runs from its making until the helper ends, or :meth:`close`.

    :param program: a descriptor of the program, which is closed.
    :param lifeline: a pidfd of the caller, which inits watch.
    """

    def __init__(self, program: int, lifeline: int) -> None:
        self.sock, theirs = protocol.pair()
        self.plans: dict[str, bool] = {}  # by key: whether it has been told of it; False for one that it cannot do
        if os.fork() == 0:
            try:
                os.set_inheritable(theirs.fileno(), True)
                os.set_inheritable(lifeline, True)
                os.execve(program, ["sandbox-spawner", str(theirs.fileno()), str(lifeline),
                                     str(int(stands_back()))], {})
            finally:
                os._exit(127)
        os.close(program)
        theirs.close()

    def make(self, key: str, body: dict[str, Any], control: int, sync: int | None, group: Made | None,
             traced: bool = False) -> int:
        """Starts an init, a child of the helper; returns its process id, or 0 where it must be made of Python.

        :raises Lost: when there is no spawner any more.
        :raises OSError: when the kernel makes no process.
        """
        try:
            if key not in self.plans:
                compiled = compile_plan(body)
                self.plans[key] = compiled is not None
                if compiled is not None:
                    protocol.send(self.sock, {"plan": key, "body": compiled})
            if not self.plans[key]:
                return 0
            joins, stays, into = ([], [], -1) if group is None else (group.joins, group.stays, group.into)
            moves = [stay != join for join, stay in zip(joins, stays, strict=True)]
            fds = [control, *([] if sync is None else [sync]), *([] if into < 0 else [into]), *joins,
                   *(stay for stay, moved in zip(stays, moves, strict=True) if moved)]
            order: protocol.Message = {"make": key, "sync": sync is not None, "into": into >= 0, "moves": moves}
            if traced:
                order["trace"] = 1
            protocol.send(self.sock, order, tuple(fds))
            got = protocol.receive(self.sock)
        except OSError as error:
            raise Lost from error
        if got is None:
            raise Lost
        answer = got[0]
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]))
        pid: int = answer["pid"]
        return pid

    def close(self) -> None:
        """Lets go of it, so that it ends."""
        self.sock.close()


def compile_plan(body: dict[str, Any]) -> dict[str, Any] | None:
    """A plan with actions in place of its operations; None where one of these is not for the spawner."""
    if body.get("wide"):
        return None
    parts = {part: [mounts.actions_of(step) for step in body[part]] for part in ("scratch", "mounts", "inside")}
    if not all(_is_compiled(actions) for steps in parts.values() for actions in steps):
        return None
    return {name: body[name] for name in ("group", "nproc", "namespaces", "uid_map", "gid_map", "drop",
                                          "seccomp", "counts", "oom", "base")} | parts


def _is_compiled(actions: list[Action]) -> bool:
    for action in actions:
        name, *arguments = action
        if name == "either":
            inner = [*arguments[0], *arguments[1]]
        elif name == "may":
            inner = [arguments[1]]
        else:
            inner = []
        if name not in COMPILED or not _is_compiled(inner):
            return False
    return True
