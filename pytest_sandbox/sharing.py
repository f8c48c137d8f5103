"""``pytest_sandbox.shared``: marks fixtures whose value is made on the host, and passed into images as plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])
_MARK = "_pytest_sandbox_shared"


def shared(function: _Function) -> _Function:
    """Marks the function of a fixture of higher scope, below ``@pytest.fixture``.

    Tests whose body runs in an image's own Python then get a copy of the value that the fixture has on the host, where
    it is set up and torn down; without the mark they have a fixture of their own, set up in the image. The value must
    be plain data: None, bool, int, float, str, bytes, paths, and lists, tuples, sets and dicts of them.

    :raises TypeError: for anything but a function.
    """
    try:
        if not hasattr(function, "__code__"):
            raise TypeError
        setattr(function, _MARK, True)
    except (AttributeError, TypeError):
        raise TypeError(f"pytest_sandbox.shared marks the function of a fixture, not {function!r}: write it below "
                        "@pytest.fixture") from None
    return function


def is_shared(function: object) -> bool:
    """Whether a fixture's function is marked so."""
    return getattr(function, _MARK, False) is True
