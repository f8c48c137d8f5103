"""The part of ``compat`` that is about single plugins: some that come with pytest, and others that run beside us.

Private names of other plugins, checked when theirs is loaded and a run has sandboxed tests:

=======================================================  =============================================================
``pytest_timeout._get_item_settings``                    its timer, where a thread keeps it, starts anew inside
``pytest_rerunfailures.suspended_finalizers``            what it takes aside between two attempts is put back
``item._test_failed_statuses``, ``_terminal_errors``,    what it keeps of phases, of a test that runs in a guest
``_test_xfailed``
``pytest_benchmark.stats.Metadata``, ``.Stats``          the figures that were measured inside, for its table
``Coverage._collector``: ``flush_data``, ``branch``,     what runs inside is measured too
``covdata``, and ``CoverageData._current_context``
=======================================================  =============================================================
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest


def optional(module: str, name: str) -> Any:
    """A name that only some versions have. Looked up once: an import that fails is searched for each time."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


_subtests_key: Any = optional("_pytest.subtests", "failed_subtests_key")
_fault_key: Any = optional("_pytest.faulthandler", "fault_handler_stderr_fd_key")
_junit_key: Any = optional("_pytest.junitxml", "xml_key")


def failed_subtests(item: pytest.Item) -> int:
    """How many of ``item``'s subtests have failed."""
    if _subtests_key is None:
        return 0
    counts = item.config.stash.get(_subtests_key, None)
    return int(counts.get(getattr(item, "id", item.nodeid), 0)) if counts is not None else 0


def set_failed_subtests(item: pytest.Item, count: int) -> None:
    """Sets that count; pytest reads it when it reports the item's call."""
    counts = item.config.stash.get(_subtests_key, None) if _subtests_key is not None else None
    if counts is not None:
        counts[getattr(item, "id", item.nodeid)] = count


def faulthandler_descriptor(config: pytest.Config) -> int | None:
    """Where pytest has faulthandler write to."""
    return config.stash.get(_fault_key, None) if _fault_key is not None else None


def fixtures_of_plugin(plugin: object) -> Iterator[str]:
    """The names of the fixtures that a plugin, a module mostly, defines or imports."""
    definition = optional("_pytest.fixtures", "FixtureFunctionDefinition")
    for one in list(getattr(plugin, "__dict__", {}).values()):
        if definition is not None and type(one) is definition:
            yield str(one.name)


def ini(config: pytest.Config, name: str) -> object:
    """An ini option that not all versions have; None where it is unknown."""
    try:
        return config.getini(name)
    except ValueError:
        return None


def junit(config: pytest.Config) -> JUnit | None:
    """The JUnit report of this run, if one is being written."""
    log = config.stash.get(_junit_key, None) if _junit_key is not None else None
    return JUnit(log) if log is not None else None


class JUnit:
    """The parts of pytest's ``LogXML`` that tests write to directly.

    Made before a test runs, it goes on to read the report with what pytest had then, whatever the test replaces.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._reporter: Callable[[str], Any] = log.node_reporter

    def suite_properties(self) -> list[tuple[str, str]]:
        """What ``record_testsuite_property`` recorded so far."""
        properties: list[tuple[str, str]] = self._log.global_properties
        return properties

    def attributes(self, nodeid: str) -> dict[str, Any]:
        """What ``record_xml_attribute`` recorded for one test."""
        attributes: dict[str, Any] = self._reporter(nodeid).attrs
        return attributes


# Other people's plugins.


def timeout_settings(item: pytest.Item) -> Any:
    """What pytest-timeout knows of the timer that it has set for ``item``, or None."""
    module = sys.modules.get("pytest_timeout")
    return module._get_item_settings(item) if module is not None and hasattr(item, "cancel_timeout") else None


def is_timed(item: pytest.Item) -> bool:
    """Whether pytest-timeout will set a timer for ``item``."""
    module = sys.modules.get("pytest_timeout")
    return module is not None and bool(module._get_item_settings(item).timeout)


def attempts(item: pytest.Item) -> int | None:
    """The number of this attempt of ``item`` where pytest-rerunfailures counts them."""
    found = getattr(item, "execution_count", None)
    return found if isinstance(found, int) else None


def set_attempts(item: Any, number: int) -> None:
    """Makes this attempt the one of that number."""
    item.execution_count = number


def forget_failures(item: pytest.Item) -> None:
    """Has pytest-rerunfailures forget fixtures of higher scope that failed, as it does between two attempts."""
    forget = getattr(sys.modules.get("pytest_rerunfailures"), "_remove_cached_results_from_failed_fixtures", None)
    if forget is not None:
        forget(item)


def seed(item: pytest.Item, when: str) -> None:
    """Has pytest-randomly do what it does at the beginning of phase ``when``, where its hook is called too late."""
    for one in getattr(item.config.hook, f"pytest_runtest_{when}").get_hookimpls():
        if one.function.__module__ == "pytest_randomly":
            one.function(item)


def note_for_reruns(item: Any, report: pytest.TestReport) -> None:
    """What pytest-rerunfailures, where it has a place for it, keeps of a phase, by which it decides on another."""
    item._test_failed_statuses[report.when] = report.failed
    item._terminal_errors[report.when] = False
    item._test_xfailed[report.when] = hasattr(report, "wasxfail")


def finalizers_aside() -> dict[Any, Any]:
    """What pytest-rerunfailures keeps between two attempts: node -> (finalizers, error)."""
    return getattr(sys.modules.get("pytest_rerunfailures"), "suspended_finalizers", None) or {}


def coverage_collector() -> Any:
    """The collector of coverage.py that measures in this process, or None."""
    coverage = sys.modules.get("coverage")
    if coverage is None:
        return None
    measuring = coverage.Coverage.current()
    collector = getattr(measuring, "_collector", None)
    return collector if getattr(collector, "covdata", None) is not None else None


def coverage_context(data: Any) -> str | None:
    """The context that ``data``, a ``CoverageData``, is measuring in."""
    context: str | None = getattr(data, "_current_context", None)
    return context


def benchmarks(config: pytest.Config) -> list[Any] | None:
    """What pytest-benchmark has measured in this run, its own objects; None without it."""
    found: list[Any] | None = getattr(getattr(config, "_benchmarksession", None), "benchmarks", None)
    return found


def benchmark(facts: SimpleNamespace, iterations: int, options: dict[str, Any], data: list[float]) -> Any:
    """One entry of that list, as its fixture makes it."""
    from pytest_benchmark.stats import Metadata  # type: ignore[import-not-found,unused-ignore]

    made: Any = Metadata(facts, iterations=iterations, options=options)
    made.stats.data = data
    return made


def needed_of_others() -> Iterator[tuple[str, str, bool]]:
    """The plugin, the name, and whether it is there, for each plugin that is."""
    for module, distribution, names in (
        ("pytest_timeout", "pytest-timeout", ("_get_item_settings",)),
        ("pytest_rerunfailures", "pytest-rerunfailures", ("suspended_finalizers",)),
        ("pytest_benchmark.stats", "pytest-benchmark", ("Metadata", "Stats")),
    ):
        if module in sys.modules:
            for name in names:
                yield distribution, f"{module}.{name}", hasattr(sys.modules[module], name)
    coverage: Any = sys.modules.get("coverage")
    measuring = coverage.Coverage.current() if coverage is not None else None
    if measuring is not None:
        yield "coverage", "Coverage._collector", hasattr(measuring, "_collector")
        collector = getattr(measuring, "_collector", None)
        if collector is not None:
            for name in ("flush_data", "branch", "covdata"):
                yield "coverage", f"Coverage._collector.{name}", hasattr(collector, name)
