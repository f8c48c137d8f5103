"""Images that an override of the fixture ``sandbox_image`` gives to tests whose body runs inside. ``conductor``'s.

The image says which process a body runs in, so it is asked for before the first test. It is a fixture all the same: set
up once, with what it requests, and torn down when the session ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from . import compat
from .fixtures import marked_options

if TYPE_CHECKING:
    from pytest_sandbox.spec import SandboxSpec

    from .conductor import Conductor

NAME = "sandbox_image"


def is_overridden(item: pytest.Item) -> bool:
    """Whether a fixture of the project's says which image the ``item`` is for: no marker does, which would win."""
    fixturedef = compat.nearest_fixture(item, NAME)
    return (fixturedef is not None and getattr(fixturedef.func, "__module__", "") != "pytest_sandbox.plugin.fixtures"
            and "image" not in marked_options(item))


def spec_of(conductor: Conductor, item: pytest.Item, spec: SandboxSpec) -> SandboxSpec:
    """``spec`` in the image that the fixture gives.

    :raises pytest.UsageError: for a fixture of a lower scope than the session's. What it raises is raised.
    """
    __tracebackhide__ = True
    from pytest_sandbox.spec import make_spec

    fixturedef = compat.nearest_fixture(item, NAME)
    if fixturedef.scope != "session":
        raise pytest.UsageError(
            f"{item.nodeid}: the fixture sandbox_image has scope {fixturedef.scope!r}, and the image of a test whose "
            "body runs inside is asked for before the first test. Give it scope='session'; for some of the tests only, "
            "define it in their conftest or module, or give them the marker's image=...")
    stack = conductor.patch.stack
    assert item.parent is not None
    conductor.patch.setup(item.parent)
    stack[item] = ([], None)
    try:
        image: Any = compat.fixture_value(item, NAME)[1]
    finally:
        del stack[item]
        conductor.patch.teardown_exact(conductor.session)
    return spec if image is None else make_spec({"image": image}, spec)
