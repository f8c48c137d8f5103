"""Logs what pytest does and in which order, and collects YAML files as tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import orderlog
import pytest

pytest_plugins = ["pytester"]

collect_ignore = []
for module, files in {
    "django": ["djangosite"],
    "pytest_django": ["djangosite"],
}.items():
    if importlib.util.find_spec(module) is None:
        collect_ignore += files


def pytest_configure(config):
    worker = getattr(config, "workerinput", {}).get("workerid", "main")
    orderlog.start(worker)


def pytest_sessionfinish(session, exitstatus):
    orderlog.log("session finished", int(exitstatus), session.testscollected, session.testsfailed)


def pytest_keyboard_interrupt(excinfo):
    orderlog.log("interrupt", excinfo.typename)


def pytest_internalerror(excrepr):
    orderlog.log("internal error", excrepr.reprcrash)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    name = f"{fixturedef.scope} fixture {fixturedef.argname}"
    if hasattr(request, "param"):
        name += f"[{request.param!r}]"
    orderlog.log("set up", name, "for", request.node.nodeid)
    try:
        return (yield)
    except BaseException as error:
        orderlog.log("failed", name, type(error).__name__)
        raise


def pytest_fixture_post_finalizer(fixturedef, request):
    if fixturedef.cached_result is not None:
        orderlog.log("finalize", fixturedef.scope, "fixture", fixturedef.argname)


def pytest_runtest_logstart(nodeid):
    orderlog.log("start", nodeid)


def pytest_runtest_logfinish(nodeid):
    orderlog.log("finish", nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    orderlog.log("setup", item.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    orderlog.log("call", item.nodeid)
    try:
        return (yield)
    finally:
        orderlog.log("called", item.nodeid)


def pytest_runtest_teardown(item, nextitem):
    orderlog.log("teardown", item.nodeid, "next", nextitem and nextitem.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    raised = call.excinfo.typename if call.excinfo else None
    orderlog.log("make report", item.nodeid, call.when, report.outcome, raised)
    if call.when == "call":
        report.parity_note = f"noted by conftest: {report.outcome}"
    return report


def pytest_runtest_logreport(report):
    orderlog.log("report", report.nodeid, report.when, report.outcome, getattr(report, "parity_note", None),
                 sorted(report.keywords), report.user_properties, [name for name, _ in report.sections])


def pytest_exception_interact(node, call, report):
    orderlog.log("interact", node.nodeid, report.when, call.excinfo.typename)


def pytest_warning_recorded(warning_message, when, nodeid, location):
    orderlog.log("warning", when, nodeid, location, warning_message.category.__name__, warning_message.message,
                 warning_message.filename, warning_message.lineno)


def pytest_assertrepr_compare(config, op, left, right):
    if isinstance(left, Money) and isinstance(right, Money) and op == "==":
        return ["amounts of money:", f"   {left.amount} is not {right.amount}"]
    return None


class Money:
    """Compared by a hook of this file."""

    def __init__(self, amount):
        self.amount = amount

    def __eq__(self, other):
        return self.amount == other.amount

    __hash__ = None


@pytest.fixture
def money():
    return Money


@pytest.fixture
def log(request):
    """Writes to the order log, in the name of the test."""
    return lambda *words: orderlog.log(request.node.nodeid, *words)


class YamlFile(pytest.File):
    def collect(self):
        yaml = pytest.importorskip("yaml")
        for name, steps in sorted(yaml.safe_load(self.path.read_text(encoding="utf-8")).items()):
            yield YamlItem.from_parent(self, name=name, steps=steps)


class YamlError(Exception):
    pass


class YamlItem(pytest.Item):
    def __init__(self, *, steps, **rest):
        super().__init__(**rest)
        self.steps = steps
        if steps.get("xfail"):
            self.add_marker(pytest.mark.xfail(reason=steps["xfail"]))
        if steps.get("skip"):
            self.add_marker(pytest.mark.skip(reason=steps["skip"]))

    def setup(self):
        orderlog.log("yaml setup", self.name)
        if self.steps.get("break") == "setup":
            raise YamlError("setup", "broken", "whole")

    def runtest(self):
        print(f"running {self.name}")
        self.user_properties.append(("steps", len(self.steps)))
        self.add_report_section("call", "yaml", f"steps: {sorted(self.steps)}")
        for name, wanted in sorted(self.steps.get("expect", {}).items()):
            found = eval(name)
            if found != wanted:
                raise YamlError(name, found, wanted)

    def teardown(self):
        orderlog.log("yaml teardown", self.name)
        if self.steps.get("break") == "teardown":
            raise YamlError("teardown", "broken", "whole")

    def repr_failure(self, excinfo):
        if isinstance(excinfo.value, YamlError):
            return "{}: {!r} is not {!r}".format(*excinfo.value.args)
        return super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, f"yaml case {self.name}"


def pytest_collect_file(parent, file_path: Path):
    if file_path.suffix == ".yaml" and file_path.name.startswith("cases"):
        return YamlFile.from_parent(parent, path=file_path)
    return None
