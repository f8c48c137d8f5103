"""Every ``python`` block of every page is run, alone: as a test file if it holds tests, else as a program.

A comment above a block can say more: ``<!-- example: failed=1 -->`` names other outcomes than all passed,
``<!-- example: conftest -->`` keeps the block as conftest.py for the next block of its page, and
``<!-- example: not run, because ... -->`` gives a reason; ``<!-- example: needs=memory -->`` runs it where this host
can enforce that limit. An image that the page would pull stands for one that is made of this machine's Python.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import guestimage
import pytest
from pages import Block, blocks

from pytest_sandbox.runtime.cgroups import host_control

REGISTRY = "python:3.13-slim"
ALL = list(blocks("python"))
CONFTESTS = {block.name: block for block in ALL if block.note == "conftest"}
RUN = [block for block in ALL if block.name not in CONFTESTS and not block.note.startswith("not run, because ")]


def conftest_for(block: Block) -> str | None:
    before = [one for one in ALL if one.page == block.page and one.line < block.line]
    return before[-1].text if before and before[-1].name in CONFTESTS else None


@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_an_example_does_what_the_page_says(block: Block, pytester: pytest.Pytester) -> None:
    note = block.note
    if note.startswith("needs="):
        ability = host_control().abilities()[note.removeprefix("needs=")]
        if not ability.ok:
            pytest.skip(f"{note}: {ability.how}")
        note = ""
    if (conftest := conftest_for(block)) is not None:
        pytester.makeconftest(conftest)
    count = block.text.count("def test_")
    if not count:
        subprocess.run([sys.executable, "-c", block.text], cwd=pytester.path, check=True)
        return
    text, image = block.text, pytester.path.with_suffix(".image")
    if "guests.md" in block.name and REGISTRY in text:
        text = text.replace(REGISTRY, f"rootfs:{guestimage.make_python_root(image)}")
    pytester.makepyfile(test_example=text)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--strict-markers")
    if note:
        result.assert_outcomes(**{name: int(number) for name, number in (one.split("=") for one in note.split())})
    else:
        outcomes = result.parseoutcomes()
        if image.exists():
            outcomes.pop("warnings", None)  # of plugins that are here, and not in there
            shutil.rmtree(image)
        assert set(outcomes) == {"passed"}
        assert outcomes["passed"] >= count


def test_there_are_examples() -> None:
    assert len(RUN) > 5
