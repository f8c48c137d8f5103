"""Values of fixtures that are made on the host and passed into an image as data (``pytest_sandbox.shared``).

``attempt`` asks for them before a test's child is forked; ``visiting``, in the image, puts them in the fixtures' place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxGuestError
from pytest_sandbox.sharing import is_shared

from . import compat, wire

if TYPE_CHECKING:
    from .item import ItemRun

#: All values of one test, in characters of JSON.
_MOST = 8 << 20


def names(item: pytest.Item) -> list[str]:
    """The fixtures of ``item`` that are shared, in pytest's order."""
    return [name for name, found in compat.fixtures_of(item).items() if found and is_shared(found[-1].func)]


def values(run: ItemRun) -> dict[str, Any]:
    """The values of ``run``'s shared fixtures as data, by name. Sets them up out here; the item's teardown ends them.

    :raises SandboxGuestError: when one cannot pass. What a fixture raises is raised.
    """
    __tracebackhide__ = True
    item, patch = run.item, run.conductor.patch
    wanted = names(item)
    if not wanted:
        return {}
    assert item.parent is not None
    patch.setup(item.parent)
    found: dict[str, Any] = {}
    patch.stack[item] = ([], None)
    try:
        with compat.capturing(item, "setup"):
            for name in wanted:
                found[name] = _packed(name, compat.fixture_value(item, name), run)
    finally:
        del patch.stack[item]
    if len(wire.encode([found])) > _MOST:
        raise _error(run, wanted, f"they are more than {_MOST:,} characters together")
    return found


def _packed(name: str, made: tuple[str, object], run: ItemRun) -> Any:
    scope, value = made
    if scope == "function":
        raise _error(run, [name], "it is of function scope, which runs in the image in any case",
                     "Give it a higher scope, or take pytest_sandbox.shared away.")
    try:
        return wire.pack(value, lambda one: None, opaque=False)
    except wire.NotData as error:
        raise _error(run, [name], f"it has a {error} in it, an object of this process, and only plain data passes: "
                                  "None, numbers, text, bytes, paths, lists, tuples, sets and dicts of them") from None


def _error(run: ItemRun, wanted: Sequence[str], why: str, remedy: str | None = None) -> SandboxGuestError:
    image = "" if run.party is None else run.party.image
    return SandboxGuestError(
        f"the value of the fixture {', '.join(map(repr, wanted))} cannot pass to image {image!r}", image=image, why=why,
        remedy=remedy or "Let it return data by which the test finds the thing (an address, a path), or keep the body "
                         "on the host: request the sandbox fixture.")


# In the image.

def prune(item: pytest.Item) -> None:
    """Takes away the fixtures that only shared ones need: they are set up on the host."""
    if not names(item):
        return
    fixtures = compat.fixtures_of(item)
    needed: set[str] = set()
    left = list(compat.requested_names(item))
    while left:
        name = left.pop()
        if name not in needed:
            needed.add(name)
            found = fixtures.get(name) or ()
            if not (found and is_shared(found[-1].func)):
                left += [one for fixturedef in found for one in fixturedef.argnames]
    compat.keep_fixtures(item, needed)


def arrive(item: pytest.Item, sent: dict[str, Any]) -> None:
    """Puts values in the place of ``item``'s shared fixtures."""
    fixtures = compat.fixtures_of(item)
    for name, packed in sent.items():
        found = fixtures.get(name)
        if found:
            compat.replace_fixture(found[-1], wire.unpack(packed, lambda name: None))
