"""From an image's layers and configuration to a root filesystem that can be mounted. Called by ``planning``."""

from __future__ import annotations

import os
import signal
import stat
from dataclasses import replace

from ..errors import ImageError
from ..rootfs import Root, Tree
from .lower import LowerView
from .manifest import ImageConfig, LayerStack
from .resolve import openat2

#: Where programs are searched for in an image that does not say.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def image_root(stack: LayerStack, above: tuple[str, ...] = ()) -> Root:
    """The root filesystem of an image.

    :param above: layers on top that are not part of it; its user may be found in them.
    :raises ImageError: when its user or its stop signal cannot be found.
    """
    config = stack.config
    uid, gid, home = find_user(replace(stack, layers=(*stack.layers, *above)) if above else stack)
    env = {"PATH": PATH, "HOME": home, **dict(config.env)}
    return Root(
        (Tree("/", stack.layers),), look=(stack.root.mode, stack.root.uid, stack.root.gid), env=tuple(env.items()),
        user=(uid, gid, home), workdir=config.workdir or "/", command=config.entrypoint + config.cmd,
        stop_signal=_stop_signal(config, stack.reference))


def _stop_signal(config: ImageConfig, reference: str) -> int:
    text = config.stop_signal.strip().upper()
    if not text:
        return signal.SIGTERM
    try:
        return signal.Signals(int(text)) if text.isdigit() else signal.Signals["SIG" + text.removeprefix("SIG")]
    except (KeyError, ValueError):
        raise ImageError(f"image {reference!r} cannot be used", reference=reference,
                         why=f"its stop signal is {config.stop_signal!r}") from None


def find_user(stack: LayerStack) -> tuple[int, int, str]:
    """The uid, gid and home directory of the image's user; names are looked up in the image's own files."""
    user, _, group = stack.config.user.partition(":")
    user = user or "0"
    uid = gid = None
    home = "/"
    for name, _, one, own, _, place, *_ in _entries(stack, "etc/passwd", 7):
        if user in (name, one):
            uid, gid, home = int(one), int(own), place or "/"
            break
    if uid is None:
        if not _is_id(user):
            raise _no_such("user", user, stack)
        uid, home = int(user), "/root" if user == "0" else "/"
    if group:
        gid = next((int(one) for name, _, one, *_ in _entries(stack, "etc/group", 3) if group in (name, one)), None)
        if gid is None:
            if not _is_id(group):
                raise _no_such("group", group, stack)
            gid = int(group)
    return uid, gid or 0, home


def _no_such(kind: str, name: str, stack: LayerStack) -> ImageError:
    return ImageError(f"image {stack.reference!r} cannot be used", reference=stack.reference,
                      why=f"it wants to run as the {kind} {name!r}, which it does not have",
                      remedy='Give the sandbox a user="uid:gid".')


def _entries(stack: LayerStack, path: str, fields: int) -> list[list[str]]:
    """The lines of a file of the image with that many fields, numbers checked."""
    with LowerView(stack.layers) as view:
        found = view.follow(path.encode().split(b"/"))
        if found is None or not stat.S_ISREG(found.status.st_mode):
            return []
        try:
            fd = openat2(found.layer_fd, found.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return []
        with open(fd, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n").split(":") for line in file.read(1 << 20).splitlines()]
    numbers = slice(2, 4 if fields == 7 else 3)
    return [line for line in lines if len(line) >= fields and all(map(_is_id, line[numbers]))]


def _is_id(text: str) -> bool:
    """Whether this is a user's or group's number. The largest of 32 bits is none: it says "as it is" to the kernel."""
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < 0xFFFFFFFF
