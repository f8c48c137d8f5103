"""A few variants of the parity harness, in this environment. ``tox run -e parity`` runs all of them."""

from __future__ import annotations

from pathlib import Path

import harness
import pytest
from variants import VARIANTS, Variant


@pytest.mark.parametrize("variant", [pytest.param(one, id=one.name) for one in VARIANTS if one.short])
def test_a_sandboxed_run_looks_like_a_plain_one(variant: Variant, tmp_path: Path) -> None:
    result = harness.compare(variant, tmp_path, harness.explanations())
    assert result.plain.tests == result.sandboxed.tests > 0
    assert [f"{one.artefact}: {one}" for one in result.unexplained] == []


def test_the_suite_is_large_enough(tmp_path: Path) -> None:
    """A comparison of nothing finds no differences."""
    (variant,) = (one for one in VARIANTS if one.name == "collect-only")
    result = harness.compare(variant, tmp_path, [])
    collected = [line for line in result.plain.found["stdout 1"] if "::" in line]
    assert len(collected) >= 200
