"""Reports and warnings as data, both ways, and the report of a test whose process died.

``guest`` turns them into data inside, ``item`` turns data into reports outside. Reports go through pytest's own
``pytest_report_to_serializable`` and ``pytest_report_from_serializable``, so report types of other plugins travel too;
what those hooks lose (pytest-xdist users know it) is put back here.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_sandbox.errors import SandboxProtocolError

from . import benchmarks, wire

#: Fields that pytest's serialisation delivers as JSON has them. All others may hold anything and are packed.
_PLAIN_FIELDS = frozenset({
    "nodeid", "location", "keywords", "outcome", "longrepr", "when", "sections", "duration", "start", "stop", "result",
    "$report_type", "_report_type",
})
_SCALARS = (str, int, float, bool, type(None))


class RenderedRepr:
    """A failure representation of a kind that pytest sends as bare text (doctest's, a missing fixture's).

    Has what pytest asks of a ``TerminalRepr``, and prints with the colours that the original printed.
    """

    def __init__(self, plain: str, coloured: str) -> None:
        self.plain = plain
        self.coloured = coloured

    def __str__(self) -> str:
        return self.plain.strip()

    def toterminal(self, tw: Any) -> None:
        tw.write(self.coloured if tw.hasmarkup else self.plain)


def report_to_data(report: pytest.TestReport, config: pytest.Config,
                   name_of: Callable[[object], str | None]) -> dict[str, Any]:
    """``report`` as JSON holds it. Runs inside."""
    data: dict[str, Any] = config.hook.pytest_report_to_serializable(config=config, report=report)
    for key, value in data.items():
        if key not in _PLAIN_FIELDS and not isinstance(value, _SCALARS):
            data[key] = wire.pack(value, name_of)
    longrepr = report.longrepr
    if isinstance(data["longrepr"], str) and not isinstance(longrepr, str):
        data["longrepr"] = _rendered(longrepr, config)
    return data


def _rendered(longrepr: Any, config: pytest.Config) -> Any:
    from .compat import terminal_writer

    texts = []
    for markup in (False, True):
        buffer = io.StringIO()
        writer = terminal_writer(config, buffer)
        writer.hasmarkup = markup
        longrepr.toterminal(writer)
        texts.append(buffer.getvalue())
    return {"$rendered": texts}


def report_from_data(data: Any, item: pytest.Item, named: Callable[[str], object]) -> pytest.TestReport:
    """The report that ``data`` describes, checked: it is about ``item``, and it can be shown. Runs outside.

    :raises SandboxProtocolError: when it is neither.
    """
    try:
        return _report_from_data(data, item, named)
    except SandboxProtocolError:
        raise
    except Exception as error:  # noqa: BLE001 - the reading is pytest's and other plugins'; the data is anybody's
        raise SandboxProtocolError("the sandboxed test sent a report that cannot be read",
                                   why=f"{type(error).__name__}: {error}"[:500]) from None


def _report_from_data(data: Any, item: pytest.Item, named: Callable[[str], object]) -> pytest.TestReport:
    if not isinstance(data, dict) or data.get("nodeid") != item.nodeid:
        raise SandboxProtocolError("the sandboxed test sent a report about something else",
                                   why=f"{data.get('nodeid') if isinstance(data, dict) else data!r}"[:200])
    known = _methods()
    for key, value in data.items():
        if key not in _PLAIN_FIELDS and not isinstance(value, _SCALARS):
            data[key] = wire.unpack(value, named)
        if key in known or key.startswith("__"):
            raise SandboxProtocolError(f"the sandboxed test sent a report with a field {key!r:.60}")
    rendered = data["longrepr"]
    if isinstance(rendered, dict) and "$rendered" in rendered:
        plain, coloured = rendered["$rendered"]
        data["longrepr"] = None
        rendered = RenderedRepr(str(plain), str(coloured))
    else:
        rendered = None
    context = data.get("_subtest.context")
    report = item.config.hook.pytest_report_from_serializable(config=item.config, data=data)
    if not isinstance(report, pytest.TestReport) or report.when not in wire.PHASES:
        raise SandboxProtocolError("the sandboxed test sent something that is not a test's report")
    if rendered is not None:
        report.longrepr = rendered
    elif isinstance(report.longrepr, list):
        path, line, text = report.longrepr
        report.longrepr = (str(path), int(line), str(text))
    elif report.longrepr is not None:
        report.longreprtext  # noqa: B018 - must be printable; better found here than in the terminal's code
    report.location = item.location  # tuples again, and nobody can report another test's
    _share(report, item)
    report.sections = [(str(name), str(text)) for name, text in report.sections]
    report.user_properties = [(str(name), value) for name, value in report.user_properties]
    _check_shape(report)
    if isinstance(context, dict):
        _restore_subtest(report, context)
    if hasattr(item.config, "workerinput"):
        _check_passage(report, item.config)
    return report


def _share(report: pytest.TestReport, item: pytest.Item) -> None:
    """A run keeps all of its reports: what each would have a copy of, it has from the item, or once for all."""
    report.nodeid = item.nodeid
    for name in ("when", "outcome"):
        if type(text := getattr(report, name)) is str:
            setattr(report, name, sys.intern(text))
    if type(report.keywords) is dict:  # else it is refused below
        report.keywords = {sys.intern(name): value for name, value in report.keywords.items()}


def _check_passage(report: pytest.TestReport, config: pytest.Config) -> None:
    """In a worker of pytest-xdist: what its controller cannot be sent would end the worker."""
    dumps: Any = getattr(sys.modules.get("execnet"), "dumps", None)
    if dumps is None:
        return
    try:
        dumps(config.hook.pytest_report_to_serializable(config=config, report=report))
    except Exception as error:  # noqa: BLE001 - execnet's own, or another plugin's
        raise SandboxProtocolError("the sandboxed test sent a report that cannot travel to pytest-xdist's controller",
                                   why=str(error)) from None


def _check_shape(report: pytest.TestReport) -> None:
    """What pytest and other plugins take for granted of a report, and would break the run over."""
    def refuse(what: str) -> SandboxProtocolError:
        return SandboxProtocolError(f"the sandboxed test sent a report with {what}")

    if report.outcome not in ("passed", "failed", "skipped"):
        raise refuse(f"the outcome {report.outcome!r:.60}")
    for figure in (report.duration, report.start, report.stop):
        if isinstance(figure, bool) or not isinstance(figure, (int, float)) or not -1e12 < figure < 1e12:
            raise refuse("a time that is not a sensible number")
    if not isinstance(report.keywords, dict):
        raise refuse("keywords that are none")
    if not isinstance(getattr(report, "wasxfail", ""), str):
        raise refuse("a reason for an expected failure that is not text")
    longrepr: Any = report.longrepr
    if report.outcome == "failed" and longrepr is None:
        raise refuse("a failure and nothing to show for it")
    if report.outcome == "skipped" and not hasattr(report, "wasxfail") and not isinstance(longrepr, tuple):
        raise refuse("a skip without its place and reason")
    crash = getattr(longrepr, "reprcrash", None)
    if crash is not None and not (isinstance(crash.message, str) and isinstance(crash.path, str)
                                  and isinstance(crash.lineno, int)):
        raise refuse("a failure at no place")


_known_methods: frozenset[str] = frozenset()


def _methods() -> frozenset[str]:
    """The names that a report's fields must not hide."""
    global _known_methods
    if not _known_methods:
        _known_methods = frozenset(name for name in dir(pytest.TestReport)
                                   if callable(getattr(pytest.TestReport, name)) and name not in _PLAIN_FIELDS)
    return _known_methods


def _restore_subtest(report: pytest.TestReport, sent: dict[str, Any]) -> None:
    """pytest 9.1 and 9.2 quote a subtest's parameters once more each time a report is read (``i=1``, ``i='1'``)."""
    context: Any = getattr(report, "context", None)
    kwargs = sent.get("kwargs")
    if context is not None and isinstance(kwargs, dict) and getattr(context, "kwargs", kwargs) != kwargs:
        object.__setattr__(context, "kwargs", kwargs)


# What ends a run.


def place_of(error: BaseException) -> list[Any] | None:
    """The file and line that raised ``error``. Runs inside."""
    traceback = error.__traceback__
    if traceback is None:
        return None
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return [traceback.tb_frame.f_code.co_filename, traceback.tb_lineno]


def set_place(error: BaseException, place: Any) -> None:
    """Gives ``error`` a traceback whose only entry is ``place``: pytest says where an interrupt met the run."""
    if not (isinstance(place, list) and len(place) == 2 and isinstance(place[0], str) and isinstance(place[1], int)
            and 0 < place[1] < 1 << 24 and "\0" not in place[0]):
        return
    import ast

    tree = ast.increment_lineno(ast.parse("raise error"), place[1] - 1)
    try:
        code = compile(tree, place[0], "exec")
    except ValueError:  # a name that no file can have
        return
    try:
        exec(code, {"error": error})  # our own text: only its place is the child's
    except (KeyboardInterrupt, pytest.exit.Exception) as raised:
        traceback = raised.__traceback__
        raised.__traceback__ = traceback.tb_next if traceback is not None else None


# The report of a process that died.


def crash_longrepr(item: pytest.Item, error: Exception, report: pytest.TestReport) -> Any:
    """A failure representation that says what happened, at the test's own place, without frames of ours."""
    data = item.config.hook.pytest_report_to_serializable(config=item.config, report=report)
    path, line, _ = item.reportinfo()
    name = type(error).__name__
    said, _, details = str(error).partition("\n\n")
    text = f"{name}: {said}"
    place = {"path": _relative(item, str(path)), "lineno": (line or 0) + 1, "message": name}
    lines = [f"E   {one}" for one in text.splitlines()]
    entry = {"type": "ReprEntry", "data": {"lines": lines, "reprfuncargs": None, "reprlocals": None,
                                           "reprfileloc": place, "style": "long"}}
    data["longrepr"] = {
        "reprcrash": {**place, "message": text}, "chain": None,
        "sections": [["where it stood", details, "-"]] if details else [],
        "reprtraceback": {"reprentries": [entry], "extraline": None, "style": "long"},
    }
    return item.config.hook.pytest_report_from_serializable(config=item.config, data=data).longrepr


def _relative(item: pytest.Item, path: str) -> str:
    start = f"{item.config.invocation_params.dir}/"
    return path.removeprefix(start)


# Warnings.


def warning_to_data(message: warnings.WarningMessage) -> dict[str, Any]:
    """A recorded warning as JSON holds it; the source line goes along, since its file may exist inside only."""
    line = message.line
    if line is None:
        import linecache

        try:
            line = linecache.getline(message.filename, message.lineno) or None
        except Exception:  # noqa: BLE001 - the test may have replaced what reads files
            line = None
    category = message.category
    return {"text": str(message.message), "category": category.__name__, "module": category.__module__,
            "filename": message.filename, "lineno": message.lineno, "line": line,
            "source": message.source is not None}


def warning_from_data(data: Any, travels: bool = False) -> warnings.WarningMessage:
    """The warning that ``data`` describes.

    :param travels: on to pytest-xdist's controller, which imports the module of its category.
    :raises SandboxProtocolError: when it describes none.
    """
    try:
        category = _category(_text(data["module"]), _text(data["category"]))
        text = _text(data["text"])
        if travels and getattr(sys.modules.get(category.__module__), category.__name__, None) is not category:
            category, text = UserWarning, f"{category.__name__}: {text}"
        line = None if data["line"] is None else _text(data["line"])
        return warnings.WarningMessage(
            _instance(category, text), category, _text(data["filename"]), int(data["lineno"]), None, line,
            object() if data["source"] else None)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise SandboxProtocolError("the sandboxed test sent a warning that cannot be read") from None


def _text(value: object) -> str:
    """As text that every file and every channel can hold."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _category(module: str, name: str) -> type[Warning]:
    """Looked up among what is imported already: a sandboxed test cannot make the parent import anything."""
    found = getattr(sys.modules.get(module), name, None)
    if isinstance(found, type) and issubclass(found, Warning):
        return found
    return type(name, (Warning,), {"__module__": module})


def _instance(category: type[Warning], text: str) -> Warning:
    message = category.__new__(category)
    Warning.__init__(message, text)
    return message if str(message) == text else UserWarning(text)


# What travels beside the reports.

#: Attributes of an item that are pytest's own affair, or travel by other means.
KEPT_BACK = frozenset({
    "funcargs", "own_markers", "keywords", "stash", "user_properties", "callspec", "fixturenames", "originalname",
    "name", "parent", "session", "config", "path", "extra_keyword_matches", "obj", "instance", "dtest", "runner",
    "_request", "_fixtureinfo", "_report_sections", "_instance", "_obj", "_nodeid", "_id", "_store", "_excinfo",
})


def may_travel(item: pytest.Item, name: str) -> bool:
    """Whether an attribute of this name, found on the item inside, is set on the item outside."""
    return name not in KEPT_BACK and not name.startswith("__") and not hasattr(type(item), name)


@dataclass(slots=True)
class Changes:
    """What one phase changed, inside, that others read outside."""

    attributes: dict[str, Any] = field(default_factory=dict)
    warnings: list[warnings.WarningMessage] = field(default_factory=list)
    failed_subtests: int = 0
    suite_properties: list[tuple[str, str]] = field(default_factory=list)
    xml_attributes: dict[str, str] = field(default_factory=dict)
    suspended: bool = False
    should_stop: str = ""
    benchmarks: list[Any] = field(default_factory=list)
    line: str | None = None  # what is in the terminal's current line, where the inside writes to it
    left_line: bool = False  # whether that is no longer the test's, or its file's


def changes_from_data(data: Any, item: pytest.Item, named: Callable[[str], object]) -> Changes:
    """The changes that ``guest`` described.

    :raises SandboxProtocolError: for anything else.
    """
    try:
        attributes = {str(name): wire.unpack(value, named) for name, value in data.get("attributes", {}).items()}
        for name in attributes:
            if not may_travel(item, name):
                raise SandboxProtocolError(f"the sandboxed test tried to change {name!r} of its item")
        return Changes(
            attributes,
            [warning_from_data(one, hasattr(item.config, "workerinput")) for one in data.get("warnings", ())],
            int(data.get("failed_subtests", 0)),
            [(str(name), str(value)) for name, value in data.get("suite_properties", ())],
            {str(name): str(value) for name, value in data.get("xml_attributes", {}).items()},
            data.get("suspended") is True,
            str(data.get("should_stop", "")),
            benchmarks.from_data(data.get("benchmarks"), item, named),
            str(data["line"])[:1000] if "line" in data else None,
            data.get("left_line") is True,
        )
    except SandboxProtocolError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise SandboxProtocolError("the sandboxed test sent changes that cannot be read",
                                   why=f"{type(error).__name__}: {error}"[:500]) from None


# Two reports of one teardown: the test's own, and that of what it shared with others.


def join_sections(report: pytest.TestReport) -> None:
    """Puts output that was captured in two processes, in one phase, under one heading."""
    joined: dict[str, str] = {}
    for name, text in report.sections:
        joined[name] = joined[name] + text if name in joined and name.startswith("Captured ") else text
    if len(joined) < len(report.sections):
        report.sections = list(joined.items())


def add(report: pytest.TestReport, other: pytest.TestReport, heading: str) -> None:
    """Adds to ``report`` an ``other`` one of the same phase, of what another process did after it.

    :param heading: of the other's failure, where both have failed.
    """
    report.duration += other.duration
    report.start, report.stop = min(report.start, other.start), max(report.stop, other.stop)
    report.sections = [*report.sections, *other.sections]
    join_sections(report)
    if not other.failed:
        return
    if report.failed:
        report.sections.append((heading, other.longreprtext))
    else:
        report.outcome, report.longrepr = other.outcome, other.longrepr


def both(report: pytest.TestReport, shared: pytest.TestReport) -> pytest.TestReport:
    """One report of the two."""
    told, other = (report, shared) if report.failed else (shared, report)
    told.duration += other.duration
    told.start = min(report.start, shared.start)
    told.stop = max(report.stop, shared.stop)
    told.sections = merged(other.sections, told.sections)
    return told


def merged(reported: list[tuple[str, str]], attached: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A report's sections, those that are attached to its item brought up to date."""
    names = {name for name, _ in attached}
    return [*attached, *[(name, text) for name, text in reported if name not in names]]
