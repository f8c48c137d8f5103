"""What is written down of a kept test, as data: from a sandbox to JSON, and back with every field checked.

A record may have come from another machine: nothing in it is believed before :meth:`Record.from_json` has seen it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..errors import KeptTestError, SandboxUsageError
from ..spec import OPTIONS, Mount, SandboxSpec, network_kind

VERSION = 1
ID = re.compile(r"[0-9a-f]{8}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NODE = re.compile(r"[^-\x00-\x1f/][^\x00-\x1f\x7f-\x9f]*")

#: Options that a record from elsewhere may not decide: they reach out of a sandbox, or weaken it.
_REACHING = frozenset({"mounts", "network", "seccomp", "capabilities", "hide"})
_NOT_KEPT = frozenset({"image", "network", "mounts", "scope"})


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """One layer archive of a kept test, compressed with gzip: ``size`` and ``digest`` are of the file, ``diff_id`` and
    ``bytes`` of what it holds. Names in it start at the sandbox's root."""

    digest: str
    diff_id: str
    size: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Start:
    """What a kept test's sandbox had started from, below its kept layers.

    :param kind: ``host``, ``state`` (of the host, named), ``image`` (in the store) or ``directory``.
    :param reference: what the test called it.
    :param image_id: which image that was, for a state or an image.
    :param digest: of its manifest, where a registry has it under that.
    :param config: changes of its configuration, as ``commit`` takes them.
    :param exact: whether ``reference`` alone is the same start: not so if something in memory was committed on top.
    """

    kind: str
    reference: str
    image_id: str | None = None
    digest: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """One kept test. ``left_out`` says why there are no layers, if there are none.

    :param mode: how the run sandboxed: ``marked`` or ``all``.
    :param source: the test's file, relative to ``rootdir``; ``source_sum`` is the digest that its content had.
    :param options: the sandbox's options, in the form that users type.
    :param below: how many of ``layers`` belong to what it had started from: a state of another host.
    :param networks: why its network cannot be had again, for what is not told by ``options``.
    :param imported: whether it came out of a bundle.
    """

    id: str
    nodeid: str
    phase: str
    outcome: str
    verdict: str
    created: int
    run: str
    mode: str
    rootdir: str
    directory: str
    config_file: str
    python: str
    host: str
    source: str
    source_sum: str
    start: Start
    options: Mapping[str, Any]
    layers: tuple[KeptLayer, ...] = ()
    left_out: str = ""
    networks: str = ""
    imported: bool = False
    below: int = 0

    def as_json(self) -> dict[str, Any]:
        document = {one.name: getattr(self, one.name) for one in fields(self)}
        document["start"] = {one.name: getattr(self.start, one.name) for one in fields(Start)}
        document["layers"] = [{one.name: getattr(layer, one.name) for one in fields(KeptLayer)}
                              for layer in self.layers]
        return {"version": VERSION, **document}

    @classmethod
    def from_json(cls, document: object, where: str) -> Record:
        """Reads what :meth:`as_json` gave.

        :param where: what to name in errors.
        :raises KeptTestError: for anything else.
        """
        try:
            return _read(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise KeptTestError(f"{where} cannot be read as a kept test", why=str(error) or type(error).__name__,
                                remedy="It was changed, or is of another version of pytest-sandbox.") from None

    def spec(self) -> SandboxSpec:
        """The sandbox as it was, but for its image; what reaches out is left out of what came from elsewhere.

        :raises KeptTestError: when its options cannot be read.
        """
        options = {name: value for name, value in self.options.items()
                   if not (self.imported and name in _REACHING)}
        try:
            if "mounts" in options:
                options["mounts"] = [Mount(*one) for one in options["mounts"]]
            return SandboxSpec().with_options(**options)
        except (SandboxUsageError, TypeError) as error:
            raise KeptTestError(f"the options of kept test {self.id} cannot be read", why=str(error)) from None

    @property
    def withheld(self) -> list[str]:
        """The options that :meth:`spec` leaves out."""
        return sorted(name for name in _REACHING & self.options.keys()
                      if self.imported and (name, self.options[name]) != ("network", "none"))

    @property
    def bytes(self) -> int:
        """What its layers take."""
        return sum(one.size for one in self.layers)

    def with_id(self, name: str) -> Record:
        return replace(self, id=name)


def options_of(spec: SandboxSpec) -> tuple[dict[str, Any], str]:
    """A spec's options as JSON holds them, as far as they can be had again; and why its network cannot."""
    plain = SandboxSpec()
    options = {name: _plain(getattr(spec, name)) for name in OPTIONS
               if name not in _NOT_KEPT and (name in spec.given or getattr(spec, name) != getattr(plain, name))}
    options = {name: value for name, value in options.items() if value is not None}
    if "env" in options:
        options["env"] = dict(spec.env)
    if spec.mounts:
        options["mounts"] = [[one.source, one.target, one.read_only] for one in spec.mounts]
    if isinstance(spec.network, str):
        options["network"] = spec.network
        return options, ""
    return options, "an Outbound(...)" if network_kind(spec.network) == "outbound" else "a Network with other members"


def sum_of(path: str) -> str:
    """The digest of a file's content; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except OSError:
        return ""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, frozenset)) else value


def _read(document: Any) -> Record:
    if document["version"] != VERSION:
        raise ValueError(f"its version is {document['version']!r}")
    values: dict[str, Any] = {}
    for one in fields(Record):
        if one.name in ("start", "options", "layers"):
            continue
        values[one.name] = document[one.name]
        kind = {"created": int, "imported": bool, "below": int}.get(one.name, str)
        if type(values[one.name]) is not kind or (kind is str and "\0" in values[one.name]):
            raise ValueError(f"its {one.name} is {values[one.name]!r}"[:200])
    if not 0 <= values["created"] < 1 << 40:
        raise ValueError("nothing was kept at that time")
    if not ID.fullmatch(values["id"]):
        raise ValueError(f"its id is {values['id']!r}"[:200])
    if not _NODE.fullmatch(values["nodeid"]) or ".." in values["nodeid"].partition("::")[0].split("/"):
        raise ValueError(f"its test is {values['nodeid']!r}"[:200])
    if values["source"].startswith("/") or ".." in values["source"].split("/"):
        raise ValueError(f"its file is {values['source']!r}"[:200])
    if values["mode"] not in ("marked", "all"):
        raise ValueError(f"its mode is {values['mode']!r}"[:200])
    options = document["options"]
    if not isinstance(options, dict) or not options.keys() <= OPTIONS.keys():
        raise ValueError("its options are not a sandbox's")
    layers = tuple(_layer(one) for one in document["layers"])
    if len(layers) > 400 or not 0 <= values["below"] <= len(layers):
        raise ValueError("it has too many layers")
    return Record(**values, options=options, layers=layers, start=_start(document["start"]))


def _layer(document: Any) -> KeptLayer:
    layer = KeptLayer(**document)
    for digest in (layer.digest, layer.diff_id):
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"a layer's digest is {digest!r}"[:200])
    for number in (layer.size, layer.bytes):
        if type(number) is not int or not 0 <= number < 1 << 62:
            raise ValueError(f"a layer's size is {number!r}"[:200])
    return layer


def _start(document: Any) -> Start:
    start = Start(**document)
    if start.kind not in ("host", "state", "image", "directory") or not isinstance(start.reference, str):
        raise ValueError(f"its start is {start.kind!r}"[:200])
    for digest in (start.image_id, start.digest):
        if digest is not None and (not isinstance(digest, str) or not re.fullmatch(r"sha(256|512):[0-9a-f]+", digest)):
            raise ValueError(f"its image is {digest!r}"[:200])
    if start.kind in ("state", "image") and start.image_id is None:
        raise ValueError("its image has no id")
    if not isinstance(start.config, dict) or type(start.exact) is not bool:
        raise ValueError("its image's configuration cannot be read")
    return start
