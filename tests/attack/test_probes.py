"""Every attack of the catalogue in ``probes/``, in several kinds of sandbox; and that each works where it is not shut.

The two go together: a probe that nothing stands in the way of anywhere proves nothing where it fails.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stage import stage
from worlds import FILES, IS_ROOT, KINDS, core, names, proofs_of, verdicts_of


@pytest.fixture(scope="session")
def context() -> Iterator[dict[str, Any]]:
    with stage(FILES) as made, pytest.MonkeyPatch.context() as patched:
        patched.setenv("ATTACK", made["secret"])
        yield made


@pytest.fixture(scope="session", params=KINDS)
def found(request: pytest.FixtureRequest, context: dict[str, Any], tmp_path_factory: pytest.TempPathFactory,
          ) -> tuple[str, dict[str, str]]:
    kind: str = request.param
    place = tmp_path_factory.mktemp(kind)
    return kind, verdicts_of(kind, context, place)


@pytest.mark.parametrize("name", core.PROBES)
def test_the_sandbox_stands(found: tuple[str, dict[str, str]], name: str) -> None:
    kind, verdicts = found
    if name not in names(kind):
        return  # docs/security.md does not promise it here
    one = core.PROBES[name]
    verdict = verdicts[name]
    assert verdict in one.reasons or verdict.startswith("absent: "), (
        f"{one.promise}: {verdict}\nwhat was tried: {one.tries}\nwhat a weaker sandbox would allow: {one.weaker}\n"
        f"it should have been: {' or '.join(one.reasons)}")


@pytest.fixture(scope="session")
def proofs(context: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {}


@pytest.mark.parametrize("name", [name for name, one in core.PROBES.items() if IS_ROOT or not one.root])
def test_the_attack_works_where_nothing_is_in_its_way(
    proofs: dict[str, dict[str, str]], context: dict[str, Any], name: str,
) -> None:
    one = core.PROBES[name]
    if one.proof not in proofs:
        proofs[one.proof] = proofs_of(one.proof, context)
    verdict = proofs[one.proof][name]
    if verdict.startswith("absent: "):
        pytest.skip(verdict)
    assert verdict.startswith("open: "), f"{one.tries} In the world {one.proof}: {verdict}"


def test_there_are_enough_of_them() -> None:
    assert len(core.PROBES) >= 120
    assert all(one.tries and one.weaker and one.promise for one in core.PROBES.values())
