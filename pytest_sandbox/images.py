"""``Image``: what a sandbox's root filesystem can be made of, as an object. Used by ``sandbox`` and by ``planning``."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import SandboxUsageError
from .runtime import frozen, launch

if TYPE_CHECKING:
    from .image.manifest import ImageConfig
    from .rootfs import Root

#: What ``commit`` and ``Image`` can change of an image's configuration.
CONFIG = ("env", "user", "workdir", "entrypoint", "cmd", "stop_signal", "labels")


def check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """:raises SandboxUsageError: for an unknown name, or a value of the wrong kind."""
    kinds: dict[str, tuple[Any, str]] = {
        "env": (Mapping, "a mapping of names to text, or to None to remove a variable"),
        "labels": (Mapping, "a mapping of names to text"), "entrypoint": (Sequence, "a list of words"),
        "cmd": (Sequence, "a list of words"), "user": (str, 'text such as "app" or "1000:1000"'),
        "workdir": (str, "an absolute path"), "stop_signal": (str, 'a name such as "SIGINT"')}
    for name, value in config.items():
        if name not in kinds:
            raise SandboxUsageError(f"unknown image option {name!r}", option=name, value=value,
                                    allowed=", ".join(CONFIG))
        kind, allowed = kinds[name]
        listed = kind is Sequence
        if not isinstance(value, kind) or (listed and (isinstance(value, str)
                                                       or not all(isinstance(one, str) for one in value))):
            raise SandboxUsageError(f"image option {name}={value!r} cannot be used", option=name, value=value,
                                    allowed=allowed)
    return dict(config)


class Image:
    """What a sandbox can start from: a reference, or what ``Sandbox.commit`` returned.

    One that was committed without a name keeps its layer in memory, until :meth:`close`, until nobody refers to it any
    more, or until this process ends. Any number of sandboxes of this process may use it at once.

    :param reference: as the option ``image`` takes it.
    :param config: changes of its configuration: ``env``, ``user``, ``workdir``, ``entrypoint``, ``cmd``,
        ``stop_signal``.
    :raises SandboxUsageError: for a configuration that cannot be used.
    """

    is_sandbox_image = True

    def __init__(self, reference: str | Image = "host", **config: Any) -> None:
        base = reference if isinstance(reference, Image) else None
        self.config: dict[str, Any] = {**(base.config if base else {}), **check_config(config)}
        if base is not None and "env" in base.config and "env" in config:
            self.config["env"] = {**base.config["env"], **config["env"]}
        self.base: str = base.base if base else str(reference)
        #: What lies on top of the base, for each of its trees, lowest first.
        self.layers: dict[str, tuple[str, ...]] = dict(base.layers) if base else {}
        self._under = base  # whose layers we use, and which therefore has to live as long as we do
        self.token = os.urandom(8).hex()
        self._release: weakref.finalize[Any, Image] | None = None

    def __repr__(self) -> str:
        count = max((len(one) for one in self.layers.values()), default=0)
        more = f" and {count} committed layer{'s' * (count > 1)}" if count else ""
        return f"<Image {self.base!r}{more}>"

    def __reduce__(self) -> Any:
        if self.layers:
            raise TypeError(f"{self!r} cannot be pickled: its layers are in the memory of the process that committed "
                            "them. Commit with a name, and use that.")
        return _again, (self.base, self.config)

    @property
    def in_memory(self) -> bool:
        """Whether it ends with this process."""
        return bool(self.layers)

    def close(self) -> None:
        """Lets its layer go. Sandboxes that run on it go on; new ones cannot be made. Does nothing the second time."""
        if self._release is not None:
            self._release()

    def _hold(self, key: str) -> None:
        self._release = weakref.finalize(self, _let_go, key, os.getpid())


def _again(reference: str, config: dict[str, Any]) -> Image:
    return Image(reference, **config)


def _let_go(key: str, owner: int) -> None:
    if owner == os.getpid():
        launch.thaw(key)
    else:  # a fork of the owner: only its own copy of the descriptor is ours to close
        frozen.release(key)


def stack_up(image: Image, base: Root) -> Root:
    """``base`` with what was committed on top of it."""
    return replace(base, trees=tuple(replace(tree, frozen=(*tree.frozen, *image.layers.get(tree.target, ())))
                                     for tree in base.trees))


def changed(config: ImageConfig, changes: Mapping[str, Any]) -> ImageConfig:
    """A configuration with ``Image``'s keywords laid over it."""
    fields = {name: value for name, value in changes.items() if name not in ("env", "labels")}
    for name in ("entrypoint", "cmd"):
        if name in fields:
            fields[name] = tuple(fields[name])
    for name in ("env", "labels"):
        if name in changes:
            have = dict(getattr(config, name))
            for key, text in changes[name].items():
                have.pop(key, None) if text is None else have.update({key: text})
            fields[name] = tuple(have.items())
    return replace(config, **fields)
