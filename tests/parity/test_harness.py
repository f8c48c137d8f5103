"""The comparison itself: it must see what differs, and accept only what an explanation covers."""

from __future__ import annotations

from pathlib import Path

import artefacts
import harness
import pytest
from harness import Difference, Explanation
from variants import Variant


@pytest.mark.parametrize(("text", "same"), [
    ("<object at 0x7f001234>", "<object at 0x7fff9876>"),
    ("==== 3 failed, 2 passed in 1.20s ====", "=== 3 failed, 2 passed in 61.00s (0:01:01) ==="),
    ("0.20s call     test_a", "0.21s call     test_a"),
    ("plugins: sandbox-0.1.0, cov-7.1.0", "plugins: cov-7.1.0"),
    ("plugins: cov-7.1.0, sandbox-0.1.0", "plugins: cov-7.1.0"),
])
def test_what_varies_by_itself_is_replaced(text: str, same: str) -> None:
    assert artefacts.of_text(text) == artefacts.of_text(same)


@pytest.mark.parametrize(("text", "other"), [
    ("==== 3 failed, 2 passed in 1.20s ====", "==== 2 failed, 3 passed in 1.20s ===="),
    ("test_a.py:12: AssertionError", "test_a.py:13: AssertionError"),
    ("0.20s call     test_a", "0.20s setup    test_a"),
    ('  File "/x/pytest_sandbox/plugin/item.py", line 3, in deliver\n', ""),
    ("test_a.py .F", "test_a.py F."),
])
def test_what_matters_is_not(text: str, other: str) -> None:
    assert artefacts.of_text(text) != artefacts.of_text(other)


def test_results_that_mix_with_output_are_left_out_of_the_running_part_only() -> None:
    plain = "a.py::t one\nPASSEDdown\nb.py::u FAILED\n=== FAILURES ===\nFAILED b.py::u\n"
    later = "a.py::t one\ndown\nPASSED\nb.py::u FAILED\n=== FAILURES ===\nFAILED b.py::u\n"
    assert artefacts.of_text(plain, live=True) == artefacts.of_text(later, live=True)
    assert artefacts.of_text(plain, live=True) != artefacts.of_text(later.replace("FAILED b", "ERROR b"), live=True)
    assert artefacts.of_text(plain, live=True) != artefacts.of_text(later.replace("down", ""), live=True)


def test_differences_are_lines_that_only_one_has() -> None:
    found = list(harness.differences("v", {"a": ["1", "2", "3"], "b": ["x"]}, {"a": ["1", "4", "3"], "c": ["y"]}))
    assert [(one.artefact, str(one)) for one in found] == [
        ("a", "- 2"), ("a", "+ 4"), ("b", "- x"), ("b", "+ <absent>"), ("c", "- <absent>"), ("c", "+ y")]


@pytest.mark.parametrize(("entry", "covers"), [
    (Explanation("why", "l.ne"), True),
    (Explanation("why", "^ine"), False),
    (Explanation("why", "line", variant="tb-*"), True),
    (Explanation("why", "line", variant="log-*"), False),
    (Explanation("why", "line", artefact="stdout *"), True),
    (Explanation("why", "line", artefact="junit *"), False),
    (Explanation("why", "line", side="plain"), True),
    (Explanation("why", "line", side="sandboxed"), False),
])
def test_an_explanation_covers_only_what_it_names(entry: Explanation, covers: bool) -> None:
    assert entry.covers(Difference("tb-short", "stdout 1", "plain", "a line")) is covers


def test_every_explanation_gives_a_cause() -> None:
    assert all(len(one.cause) > 5 and (one.line or one.variant != "*") for one in harness.explanations())


def test_a_run_that_did_not_begin_proves_nothing(tmp_path: Path) -> None:
    variant = Variant("mistyped", (("--rootdir=nowhere",),))
    with pytest.raises(harness.RunBroke, match="wrote no report"):
        harness.compare(variant, tmp_path, ())
