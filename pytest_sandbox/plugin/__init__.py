"""The pytest plugin. Having it installed must cost next to nothing: whatever is not needed to say whether a run has
sandboxed tests is imported when the first one is found.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

from .fixtures import sandbox, sandbox_factory, sandbox_image, sandbox_network
from .options import MARKER, PytestSandboxWarning, Settings, add_options, drives_a_sandbox, usage_text

if TYPE_CHECKING:
    from .conductor import Conductor

__all__ = ["PytestSandboxWarning", "sandbox", "sandbox_factory", "sandbox_image", "sandbox_network"]

_settings: pytest.StashKey[Settings] = pytest.StashKey()
_conductor: pytest.StashKey[Conductor] = pytest.StashKey()


def settings_of(config: pytest.Config) -> Settings:
    """What this run's configuration says about sandboxes."""
    return config.stash[_settings]


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from . import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


#: The runs of this process: a run that tests plugins has others within it (``pytester.runpytest_inprocess``).
_runs: set[int] = set()


def pytest_configure(config: pytest.Config) -> None:
    _runs.add(id(config))
    config.addinivalue_line("markers", MARKER)
    settings = config.stash[_settings] = Settings(config)
    if config.getoption("sandbox_keep") or config.getini("sandbox_keep") != "none":
        from . import keeping

        keeping.register(config, settings)
    if config.getoption("sandbox_selftest") and sys.platform == "linux":
        from pytest_sandbox.runtime import selftest

        selftest.enable()
    if (trace := config.getoption("sandbox_trace")) is not None and sys.platform == "linux":
        from . import tracer

        tracer.register(config, trace)
    most = config.getoption("sandbox_usage")
    if most is not None and not hasattr(config, "workerinput"):
        from .consumption import UsageSummary

        config.pluginmanager.register(UsageSummary(most), "sandbox-usage")
    if (config.getoption("sandbox_report") or config.getini("sandbox_report")) and not hasattr(config, "workerinput"):
        from .recorder import Recorder, path_of

        path = path_of(config)
        if path is not None:
            config.pluginmanager.register(Recorder(config, path), "sandbox-recorder")


def pytest_report_header(config: pytest.Config) -> str | None:
    mode = settings_of(config).mode
    return None if mode == "marked" else f"sandbox: {mode}"


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``image=[...]`` makes a test of each image."""
    for mark in metafunc.definition.iter_markers("sandbox"):
        if "image" in mark.kwargs:
            if isinstance(mark.kwargs["image"], (list, tuple)):
                from .several import parametrize

                parametrize(metafunc, mark.kwargs["image"])
            return


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A marker that cannot be used is a collection error of the file that has it."""
    report = yield
    settings = settings_of(collector.config)
    if report.passed and settings.mode != "off":
        wrong = []
        for node in report.result or ():
            if isinstance(node, pytest.Item) and settings.marks(node):
                from pytest_sandbox.errors import SandboxUsageError

                try:
                    settings.spec(node)
                except SandboxUsageError as error:
                    wrong.append(usage_text(node, error))
        if wrong:
            report.outcome = "failed"
            report.longrepr = "\n".join(wrong)
            report.result = []
    return report


def pytest_collection_finish(session: pytest.Session) -> None:
    """Decides about every item that is left, and takes the sandboxed ones over."""
    config = session.config
    settings = settings_of(config)
    if settings.mode == "off" or config.option.collectonly:
        return
    settings.forget_marks()
    conductor: Conductor | None = None
    for item in session.items:
        if settings.mode != "all" and not settings.marks(item):
            continue
        from pytest_sandbox.errors import SandboxUsageError

        try:
            spec = settings.spec(item)
        except SandboxUsageError as error:  # a marker that a hook added after its file was collected
            raise pytest.UsageError(usage_text(item, error)) from None
        if spec is None or drives_a_sandbox(item, settings.mode):
            continue
        from . import extensions

        if conductor is None:
            from .conductor import Conductor

            conductor = config.stash[_conductor] = Conductor(session, settings)
            config.pluginmanager.register(conductor, "sandbox-conductor")
        if conductor.waits_for_image(item, spec):
            continue
        conductor.adopt(item, extensions.sourced(config, extensions.changed(item, spec)))
    if conductor is not None:
        conductor.adopted()


def pytest_enter_pdb() -> None:
    _debugging(True)


def pytest_leave_pdb() -> None:
    _debugging(False)


def _debugging(prompt: bool) -> None:
    """The timeouts of sandboxes that a test drives stand still while somebody sits at a debugger's prompt."""
    module = sys.modules.get("pytest_sandbox.deadline")
    if module is not None:
        module.debugging(prompt)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The report of a failed test that drives a sandbox says what had been changed in it."""
    report = yield
    if report.when == "call" and report.failed and "sandbox" in getattr(item, "funcargs", ()):
        from .assertions import CHANGES, changes_section

        if text := changes_section(item.funcargs["sandbox"]):  # type: ignore[attr-defined]
            report.sections.append((CHANGES, text))
    return report


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Tells lists of a sandbox's changes apart by path."""
    if op != "==" or "pytest_sandbox.layerdiff" not in sys.modules:
        return None
    from .assertions import are_changes, explain

    return explain(left, right) if are_changes(left) or are_changes(right) else None


def pytest_unconfigure(config: pytest.Config) -> None:
    conductor = config.stash.get(_conductor, None)
    if conductor is not None:
        conductor.undo()
    _runs.discard(id(config))
    module = sys.modules.get("pytest_sandbox.sandbox")
    if module is not None and not _runs:
        module.shutdown()
