"""One sandbox with a fork of pytest in it, and the tests that share one. Used by ``item`` and ``conductor``.

A test of ``scope="function"`` has a :class:`Fork` to itself. Those of a class or module with that scope are a
:class:`Group`: the first one starts the group's fork, which stays when the test is over and waits for the next.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxUsageError

from . import compat

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import ForkedChild, Sandbox
    from pytest_sandbox.spec import SandboxSpec

    from .item import ItemRun


class Fork:
    """Lives from the fork to :meth:`close`, in the parent. Owns the sandbox and our ends of both pipes.

    ``commands`` is -1 where the child asks for none.
    """

    __slots__ = ("child", "commands", "reading", "sandbox")

    def __init__(self, sandbox: Sandbox, child: ForkedChild, reading: int, commands: int) -> None:
        self.sandbox = sandbox
        self.child = child
        self.reading = reading
        self.commands = commands

    def command(self, *words: Any) -> bool:
        """Tells the child something; False when it is gone."""
        try:
            os.write(self.commands, json.dumps(words).encode() + b"\n")
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Ends the sandbox and all in it."""
        if self.reading >= 0:
            os.close(self.reading)
            if self.commands >= 0:
                os.close(self.commands)
            self.reading = self.commands = -1
            self.sandbox.discard()


class Group:
    """The tests that share a sandbox and a process, in the order of the session. Made when collection has finished.

    ``fork`` is theirs while it lives; ``lost`` says, after its end, which test it died in, until the next one starts.
    """

    def __init__(self, node: pytest.Collector, positions: dict[pytest.Item, int]) -> None:
        self.node = node
        self.positions = positions  # of all items in the session
        self.runs: list[ItemRun] = []
        self.parameters: dict[str, int] = {}
        self.fork: Fork | None = None
        self.lost: str | None = None

    def keeps(self, nextitem: pytest.Item | None) -> bool:
        """Whether the process may still be needed when ``nextitem`` is what comes next.

        It is, as long as pytest does not leave the class or module and one of the group's tests is still to come.
        """
        return (nextitem is not None and self.positions[nextitem] <= self.positions[self.runs[-1].item]
                and self.node in nextitem.listchain())

    def close(self) -> None:
        """Ends the process, if it is there."""
        fork, self.fork = self.fork, None
        if fork is not None:
            fork.close()


def form_groups(runs: Iterable[ItemRun], positions: dict[pytest.Item, int]) -> None:
    """Gives every run whose sandbox is shared its group.

    A fixture of higher scope that takes another parameter is another fixture, as it is to pytest: a new group begins.

    :raises pytest.UsageError: when tests that share a sandbox ask for different ones.
    """
    newest: dict[tuple[pytest.Collector, Any], Group] = {}
    first: dict[pytest.Collector, ItemRun] = {}
    for run in runs:
        scope = run.spec.scope
        if scope == "function":
            continue
        node = run.item.getparent(pytest.Class if scope == "class" else pytest.Module)
        if node is None:
            continue  # a function outside of every class: like a fixture of class scope, for it alone
        known = first.setdefault(node, run)
        if _without_image(known.spec) != _without_image(run.spec):
            error = SandboxUsageError(
                f"the tests of a sandbox of scope={scope!r} share it, and this one asks for another than "
                f"{known.item.name}",
                option="scope", value=scope, why=_difference(known.spec, run.spec),
                remedy="Give both the same options, or this one scope='function'.")
            raise pytest.UsageError(f"{run.item.nodeid}: {error}")
        key = node, run.spec.image
        parameters = compat.higher_parameters(run.item, scope)
        group = newest.get(key)
        if group is None or any(group.parameters.get(name, number) != number for name, number in parameters.items()):
            group = newest[key] = Group(node, positions)
        group.parameters.update(parameters)
        group.runs.append(run)
        run.group = group


def _without_image(spec: SandboxSpec) -> SandboxSpec:
    """What the tests of a group have in common; each has a time of its own."""
    return spec.merged({"image": None, "timeout": None})


def _difference(one: SandboxSpec, other: SandboxSpec) -> str:
    from pytest_sandbox.spec import SPEC_FIELDS

    return ", ".join(f"{name}={getattr(other, name)!r} instead of {getattr(one, name)!r}" for name in SPEC_FIELDS
                     if name not in ("image", "given") and getattr(one, name) != getattr(other, name))
