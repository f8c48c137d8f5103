"""The messages between a sandboxed test's process and pytest. Used by ``guest`` (writes) and ``inbox`` (reads).

A message is a four byte length, most significant byte first, and that many bytes of JSON: an array of the message's
kind and its fields. The kinds, and the order in which a test that ends normally sends them::

    ["report", phase, {report}, {item's changes}, main]    a phase's own report (main), or one logged from within it
    ["shown", phase]                                       the debugger has shown the failure that phase reported
    ["debugger", phase, entered, line]                     someone sits at a debugger's prompt, or has left it; line
                                                           is what pytest wrote into the terminal's current one
    ["fixture", phase, name, place, level, held]           asks for another attempt, with this fixture set up outside;
                                                           place tells it from others of its name that it overrides or
                                                           that override it; level is that of the root logger;
                                                           held: capsys holds what is printed
    ["exit", phase, type, text, returncode, place]         pytest.exit() or KeyboardInterrupt left the phase, at place;
                                                           "over" if the last was reported
    ["broken", phase, text]                                pytest itself failed in there; text is the traceback
    ["entered", "setup", began, ended]                     where it is traced: when the process entered its sandbox, in
                                                           nanoseconds of the monotonic clock
    ["coverage", "teardown", {data}]                       what was measured in there
    ["done"]                                               the last one
    ["waits"]                                              instead of "done": the process waits for its next test

What pytest answers, a line of JSON each, only to a process that shares its sandbox or whose reports are shown at once::

    ["go", line, in_line]               the report was dealt with; where that is shown, the terminal's line and whether
                                        it is the test's, or its file's
    ["run", item, nextitem, failures]   the next test, by its position in the session
    ["leave", item, nextitem]           item is over, but did not run in there, or nextitem is another than was said

Whatever arrives is a claim of code that we do not trust: sizes are bounded before anything is kept, nothing is ever
unpickled or imported, and what does not fit raises :class:`~pytest_sandbox.errors.SandboxProtocolError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from os import write  # a test may replace the module's
from pathlib import PurePath
from typing import Any

from pytest_sandbox.errors import SandboxProtocolError

#: One message and all messages of one test, in bytes. A report that is larger than this cannot be shown to anybody.
MESSAGE_LIMIT = 64 << 20
TOTAL_LIMIT = 256 << 20
#: All messages of one test, and the values in them: a small message can take much memory, and each takes time.
MESSAGES_LIMIT = 100_000
VALUES_LIMIT = 4_000_000
#: Values nested deeper than this are not data that a report carries.
DEPTH_LIMIT = 40
#: And a whole message than this: each level of a value may take two, and a report has some of its own.
LEVELS_LIMIT = 100

KINDS = {"report": 5, "shown": 2, "debugger": 4, "fixture": 6, "exit": 6, "broken": 3, "coverage": 3, "entered": 4,
         "done": 1, "waits": 1}
PHASES = ("setup", "call", "teardown")

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class NotData(Exception):
    """A value that cannot travel as data."""


class Opaque:
    """Stands for a value that could not travel. Prints as that value did inside."""

    def __init__(self, type_name: str, text: str, shown: str) -> None:
        self.type_name = type_name
        self._text = text
        self._shown = shown

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        return self._shown


def encode(message: list[Any]) -> bytes:
    """One message as bytes, its length first.

    :raises SandboxProtocolError: when it is larger than the other side accepts.
    """
    body = _encode(message).encode("ascii")
    if len(body) > MESSAGE_LIMIT:
        raise SandboxProtocolError(f"a report of {len(body):,} bytes", why=f"more than {MESSAGE_LIMIT:,} cannot travel")
    return len(body).to_bytes(4, "big") + body


def write_all(descriptor: int, data: bytes) -> None:
    """Writes everything; blocks while the reader is busy."""
    written = write(descriptor, data)
    if written != len(data):
        view = memoryview(data)[written:]
        while view:
            view = view[write(descriptor, view):]


class Decoder:
    """Turns the bytes that arrive into messages. One for each sandboxed process."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._total = self._messages = self._values = 0

    def feed(self, data: bytes) -> Iterator[list[Any]]:
        """The messages that ``data`` completes.

        :raises SandboxProtocolError: for anything but messages of a known kind within the limits.
        """
        self._total += len(data)
        if self._total > TOTAL_LIMIT:
            raise SandboxProtocolError("the sandboxed test sent too much", why=f"more than {TOTAL_LIMIT:,} bytes")
        pending = self._pending
        pending += data
        while len(pending) >= 4:
            size = int.from_bytes(pending[:4], "big")
            if size > MESSAGE_LIMIT:
                raise SandboxProtocolError("the sandboxed test sent bytes that are not a message",
                                           why=f"a length of {size:,} bytes")
            if len(pending) < 4 + size:
                return
            with memoryview(pending) as view:
                body = bytes(view[4:4 + size])
            del pending[:4 + size]
            self._count(body)
            yield _message(body)

    def _count(self, body: bytes) -> None:
        self._messages += 1
        values = _values(body)
        if self._values + values > VALUES_LIMIT and body.count(b'"') <= VALUES_LIMIT:
            values = _values(_TEXT.sub(b"", body))  # it may be text that looks like values
        self._values += values
        if self._messages > MESSAGES_LIMIT or self._values > VALUES_LIMIT:
            what = f"{MESSAGES_LIMIT:,} messages" if self._messages > MESSAGES_LIMIT else f"{VALUES_LIMIT:,} values"
            raise SandboxProtocolError("the sandboxed test sent too much", why=f"more than {what}")


_TEXT = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')


def _values(body: bytes) -> int:
    return body.count(b",") + body.count(b"[") + body.count(b"{")


def _message(body: bytes) -> list[Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise SandboxProtocolError("the sandboxed test sent bytes that are not a message",
                                   why=f"not JSON ({type(error).__name__})") from None
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise SandboxProtocolError("the sandboxed test sent bytes that are not a message", why="not an array")
    if KINDS.get(message[0]) != len(message):
        raise SandboxProtocolError(f"the sandboxed test sent an unknown message {message[0][:40]!r}")
    if _is_deep(message):
        raise SandboxProtocolError("the sandboxed test sent a message that is nested too deeply",
                                   why=f"more than {LEVELS_LIMIT} levels")
    if len(message) > 1 and message[1] not in PHASES and (message[1] != "over" or message[0] not in ("exit", "broken")):
        raise SandboxProtocolError(f"the sandboxed test sent a message of phase {message[1]!r:.40}")
    return message


def _is_deep(message: list[Any]) -> bool:
    level: list[Any] = [message]
    for _ in range(LEVELS_LIMIT):
        level = [inner for outer in level for inner in (outer.values() if type(outer) is dict else outer)
                 if type(inner) is dict or type(inner) is list]
        if not level:
            return False
    return True


def pack(value: object, name_of: Callable[[object], str | None], opaque: bool = True, depth: int = 0) -> Any:
    """``value`` as JSON holds it, with tags for what JSON lacks: tuples, sets, bytes, paths, other mappings.

    :param name_of: names the objects that both sides have (the item, the session); they travel by name.
    :param opaque: what is not data travels as text; without it :class:`NotData` is raised.
    """
    kind = type(value)
    if value is None or kind is str or kind is bool or kind is int or kind is float:
        return value
    if depth > DEPTH_LIMIT:
        raise NotData(kind.__name__)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        items = [pack(one, name_of, opaque, depth + 1) for one in value]  # type: ignore[attr-defined]
        return items if kind is list else {f"${kind.__name__}": items}
    if isinstance(value, Mapping) and kind.__module__ in ("builtins", "collections"):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: pack(one, name_of, opaque, depth + 1) for key, one in value.items()}
        return {"$items": [[pack(key, name_of, opaque, depth + 1), pack(one, name_of, opaque, depth + 1)]
                           for key, one in value.items()]}
    if kind is bytes:
        import base64

        return {"$bytes": base64.b64encode(value).decode("ascii")}  # type: ignore[arg-type]
    if isinstance(value, PurePath):
        return {"$path": str(value)}
    name = name_of(value)
    if name is not None:
        return {"$name": name}
    if isinstance(value, str):
        return str.__str__(value)
    if not opaque:
        raise NotData(kind.__name__)
    return {"$opaque": [kind.__qualname__, _safe(str, value), _safe(repr, value)]}


def _safe(show: Callable[[object], str], value: object) -> str:
    try:
        return show(value)[:10_000]
    except Exception as error:  # noqa: BLE001 - any code of the test's may run here
        return f"<[{type(error).__name__} raised in {show.__name__}()] {type(value).__name__} object>"


def unpack(value: Any, named: Callable[[str], object]) -> Any:
    """What :func:`pack` packed.

    :raises SandboxProtocolError: for tags that ``pack`` does not write.
    """
    if isinstance(value, list):
        return [unpack(one, named) for one in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        (tag, content), = value.items()
        if tag.startswith("$"):
            try:
                return _UNPACK[tag](content, named)
            except SandboxProtocolError:
                raise
            except (KeyError, TypeError, ValueError) as error:
                raise SandboxProtocolError(f"the sandboxed test sent a value of unknown form {tag[:40]!r}",
                                           why=type(error).__name__) from None
    return {key: unpack(one, named) for key, one in value.items()}


def _bytes(content: Any, named: Callable[[str], object]) -> bytes:
    import base64

    return base64.b64decode(content, validate=True)


def _path(content: Any, named: Callable[[str], object]) -> object:
    from pathlib import Path

    return Path(content)


_UNPACK: dict[str, Callable[[Any, Callable[[str], object]], Any]] = {
    "$tuple": lambda content, named: tuple([unpack(one, named) for one in content]),
    "$set": lambda content, named: {unpack(one, named) for one in content},
    "$frozenset": lambda content, named: frozenset(unpack(one, named) for one in content),
    "$items": lambda content, named: {unpack(key, named): unpack(one, named) for key, one in content},
    "$bytes": _bytes,
    "$path": _path,
    "$name": lambda content, named: named(content),
    "$opaque": lambda content, named: Opaque(*map(str, content)),
}
