"""A sandbox's writable layer as files of a kept test. Used by the plugin at the moment when a test has failed.

What lies above the stored image, or above the host, is written: the writable layer, and below it what was committed in
memory. Every name starts at the sandbox's root, whatever file systems the host is made of, so that another host, or
another user of this one, can lay it down again.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from .. import planning
from ..errors import ImageError, KeptTestError
from ..image.diff import DiffWriter, open_archive
from ..image.progress import show_bytes
from ..images import Image
from ..runtime import frozen
from .record import KeptLayer, Start

if TYPE_CHECKING:
    from ..rootfs import Tree
    from ..runtime.running import Running
    from ..sandbox import Sandbox


class TooLarge(KeptTestError):
    """A writable layer holds more than may be kept."""


class _Packed:
    """Writes gzip, counts and hashes both sides, and stops at the bound."""

    def __init__(self, raw: BinaryIO, most: int) -> None:
        self._raw, self._most = raw, most
        self._machine = zlib.compressobj(1, zlib.DEFLATED, 31)
        self._plain, self._packed = hashlib.sha256(), hashlib.sha256()
        self.bytes = self.size = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        if self.bytes > self._most:
            raise TooLarge("the writable layer is not kept",
                           why=f"it holds more than sandbox_keep_size={show_bytes(self._most)} allows")
        self._plain.update(data)
        self._out(self._machine.compress(data))
        return len(data)

    def tell(self) -> int:
        return self.bytes

    def _out(self, data: bytes) -> None:
        self._raw.write(data)
        self._packed.update(data)
        self.size += len(data)

    def finish(self) -> KeptLayer:
        self._out(self._machine.flush())
        return KeptLayer(f"sha256:{self._packed.hexdigest()}", f"sha256:{self._plain.hexdigest()}", self.size,
                         self.bytes)


def write_layers(sandbox: Sandbox, folder: str, most: int) -> tuple[KeptLayer, ...]:
    """Writes what a sandbox has changed into ``folder``, lowest first. What runs inside is not disturbed.

    :param most: bytes, before they are compressed.
    :raises TooLarge: when it is more.
    :raises OSError: when the disk is full or fails.
    """
    running = sandbox._ready()
    image = sandbox._spec_now().image
    made = image if isinstance(image, Image) else Image(image)
    depth = max((len(one) for one in made.layers.values()), default=0) + (running.beneath >= 0)
    layers: list[KeptLayer] = []
    for level in range(depth + 1):
        with open(f"{folder}/layer-{level}.tar.gz", "xb", buffering=1 << 18) as raw:
            packed = _Packed(raw, most - sum(one.bytes for one in layers))
            with open_archive(cast(BinaryIO, packed)) as tar:
                for tree in running.plan.root.trees:
                    _write_tree(tar, running, tree, made, level)
            layers.append(packed.finish())
            raw.flush()
            os.fsync(raw.fileno())
    return tuple(layers)


def _write_tree(tar: Any, running: Running, tree: Tree, image: Image, level: int) -> None:
    """One level of one tree: what was committed in memory, and above all of that the writable layer."""
    committed = image.layers.get(tree.target, ())
    number = running.plan.root.trees.index(tree)
    writable = [f"/proc/self/fd/{fd}/{number}/upper" for fd in (running.beneath, running.scratch) if fd >= 0]
    above = [*map(frozen.path_here, committed), *writable]
    if level >= len(above):
        return
    kept = tree.frozen[:len(tree.frozen) - len(committed)]
    below = [*tree.lowers, *map(frozen.path_here, kept)]
    prefix = tree.target.rstrip("/") + "/"
    skip = frozenset(path[len(prefix):] for path in running.plan.made if path.startswith(prefix))
    DiffWriter(tar, [*below, *above[:level + 1]], skip=skip, owner=None if os.getuid() == 0 else running.plan.ids,
               root=running.plan.root.look if tree.target == "/" else None, below=prefix.lstrip("/")).write()


def start_of(sandbox: Sandbox) -> Start:
    """What a sandbox had started from, below what :func:`write_layers` writes."""
    image = sandbox._spec_now().image
    made = image if isinstance(image, Image) else Image(image)
    exact = not made.layers
    if made.base == "host":
        return Start("host", "host", exact=exact)
    try:
        stack = planning.resolve(made.base)
    except ImageError:  # removed while the sandbox runs
        return Start("directory", made.base, config=dict(made.config), exact=exact)
    if stack.image_id is None:
        kind, _, path = made.base.partition(":")
        return Start("directory", f"{kind}:{os.path.abspath(path)}", config=dict(made.config), exact=exact)
    return Start("state" if stack.host is not None else "image", made.base, stack.image_id, stack.digest,
                 dict(made.config), exact)
