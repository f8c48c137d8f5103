"""What the helper does in network namespaces, for the caller: makes one, and makes sockets in one.

The helper may enter every network namespace of its sandboxes; the caller, unprivileged, may not. A socket belongs to
the namespace that it was made in for as long as it lives, whoever holds it, so a descriptor is all the caller needs.
Nothing of this runs code of a sandbox, or where such code could reach it.
"""

from __future__ import annotations

import errno
import os
import socket

from . import protocol
from . import syscalls as sc

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def in_namespace(tell: Callable[[protocol.Message, tuple[int, ...]], bool], what: dict[str, Any],
                 namespace: int | None) -> list[int]:
    """The caller's side: has a helper do something in a network namespace; returns the descriptors that it made there.

    :param tell: sends that helper a request.
    :param what: see :func:`serve`.
    :param namespace: a network namespace or a pidfd; None for a new namespace.
    :raises SandboxClosedError: when the helper, or whoever the pidfd names, is gone.
    :raises OSError: as the kernel says, with the path.
    """
    from ..errors import SandboxClosedError
    ours, theirs = protocol.pair()
    with ours:
        with theirs:
            tell({"net": what}, (theirs.fileno(),) if namespace is None else (theirs.fileno(), namespace))
        got = protocol.receive(ours)  # nothing, when it could not be told
    if got is None:
        raise SandboxClosedError("the helper process of the sandboxes has ended")
    message, made = got
    if "errno" in message:
        if message["errno"] == errno.ESRCH:
            raise SandboxClosedError("the sandbox has ended")
        raise OSError(message["errno"], os.strerror(message["errno"]), message.get("path"))
    return made


def serve(what: dict[str, Any], channel: socket.socket, namespace: int | None) -> None:
    """Does what a ``net`` request asks for and answers it on ``channel``. Runs in a fork of the helper; never returns.

    In a fork, since an unprivileged helper could not come back into the network that it has left.

    :param what: ``{"namespace": bool, "sockets": [[family, type, protocol], ...], "sysctl": {name: text}}``.
    :param namespace: a network namespace, or a pidfd of a process in it; None for a new one.
    """
    made: list[int] = []
    try:
        if namespace is None:
            sc.unshare(sc.CLONE_NEWNET)
        else:
            sc.setns(namespace, sc.CLONE_NEWNET)
        if what.get("namespace"):
            made.append(os.open("/host/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        for kind in what.get("sockets", ()):
            made.append(socket.socket(*kind).detach())
        for name, text in what.get("sysctl", {}).items():
            with open(f"/host/proc/sys/{name}", "w") as file:
                file.write(text)
        protocol.send(channel, {"net": len(made)}, tuple(made))
    except OSError as error:
        try:
            protocol.send(channel, {"errno": error.errno, "path": error.filename})
        except OSError:
            pass  # whoever asked has gone
    finally:
        os._exit(0)
