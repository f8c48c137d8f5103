"""What other plugins need to work beside us. Each part acts only when its plugin is there; none is imported by us."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from . import compat


def before_teardown(item: pytest.Item, stack: dict[Any, tuple[list[Callable[[], object]], Any]],
                    suspended: bool) -> None:
    """pytest-rerunfailures keeps the finalizers of higher scopes aside between two attempts of an item.

    It does so in its ``pytest_runtest_teardown``, which ran inside. Those that it took aside out here (the attempt
    before failed in its set-up, before there was an inside) are due when no further attempt follows.
    """
    if suspended:
        return
    aside = compat.finalizers_aside()
    for node, (finalizers, _) in list(aside.items()):
        if node in stack:
            stack[node][0][:0] = [one for one in finalizers if one not in stack[node][0]]
    aside.clear()


def after_setup(item: pytest.Item) -> None:
    """pytest-rerunfailures wants these on the item. Exceptions in them cannot leave the sandbox, nor did they."""
    if "pytest_rerunfailures" in sys.modules:
        for name in ("_rerun_condition_excinfos", "_rerun_condition_results"):
            if not hasattr(item, name):
                setattr(item, name, {})


_STATES = ("_test_failed_statuses", "_terminal_errors", "_test_xfailed", "_rerun_condition_excinfos",
           "_rerun_condition_results")


def reported(item: pytest.Item, report: pytest.TestReport) -> None:
    """The same of a test whose body ran where no pytest-rerunfailures is: what that would have kept of a phase."""
    if "pytest_rerunfailures" not in sys.modules or report.when is None:
        return
    for name in _STATES:
        if report.when == "setup" or not hasattr(item, name):
            setattr(item, name, {})
    compat.note_for_reruns(item, report)


def watch(item: pytest.Item) -> bool:
    """Whether pytest-rerunfailures may repeat this test, or pytest-timeout times it: around the set-up, outside."""
    reruns = sys.modules.get("pytest_rerunfailures")
    return (reruns is not None and reruns.get_reruns_count(item) is not None) or compat.is_timed(item)


def threads(config: pytest.Config) -> int:
    """How many threads there are that touch nothing of a test's: execnet's, in a worker, and pytest-rerunfailures's."""
    targets = [getattr(one, "_target", None) for one in threading.enumerate()]
    known = [one for one in targets if getattr(one, "__module__", None) == "pytest_rerunfailures"]
    return len(known) + hasattr(config, "workerinput")
