"""What the whole hardening adds to a sandbox's start: the default beside the same sandbox without it, and step by step.

Without it there are the same namespaces, mounts and cgroups; but no filter of system calls, all capabilities, nothing
of /proc and /sys covered or read-only, and no share of what the kernel counts by user.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from measure import Table, in_turns, timed

from pytest_sandbox import Sandbox
from pytest_sandbox.runtime import plan
from pytest_sandbox.spec import CAPABILITIES

OPEN: dict[str, Any] = {"seccomp": "unconfined", "capabilities": CAPABILITIES}
NO_MASKS: dict[str, Any] = {"_MASKED": (), "_READ_ONLY": (), "_MASKED_SYS": ()}
NO_SHARES: dict[str, Any] = {"shares.counts": list, "shares.out_of_memory": str}


@contextmanager
def replaced(names: dict[str, Any]) -> Iterator[None]:
    """The plan is made with these in place of its own; it is kept, so that only the first start needs it."""
    patches = [patch(f"{plan.__name__}.{name}", value) for name, value in names.items()]
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()


def start(options: dict[str, Any]) -> float:
    def life() -> None:
        with Sandbox(**options) as sandbox:
            sandbox.run(["/bin/true"])

    return timed(life)


def run(rounds: int) -> list[Table]:
    # Each has a name of its own, so that each has a plan of its own.
    variants: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "without": ({**OPEN, "hostname": "without"}, {**NO_MASKS, **NO_SHARES}),
        "filter and capabilities": ({"hostname": "filter"}, {**NO_MASKS, **NO_SHARES}),
        "covered and read-only paths": ({**OPEN, "hostname": "masks"}, NO_SHARES),
        "shares of the user's": ({**OPEN, "hostname": "shares"}, NO_MASKS),
        "all of it": ({"hostname": "all"}, {}),
    }
    for options, names in variants.values():
        with replaced(names):
            start(options)
    table = Table("Hardening: start, one command, end", in_turns(
        {name: (lambda options=options: start(options)) for name, (options, _) in variants.items()}, rounds), "without")
    table.notes.append("Wanted: all of it within 1.15 of none.")
    return [table]
