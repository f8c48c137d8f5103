"""Fixtures of the demo."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from demo import Host


@pytest.fixture(scope="session")
def host() -> Iterator[Host]:
    # A process that any "kill everything" would kill. It ends when its input closes, whatever becomes of us.
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as bystander:
        yield Host.seen_from_here(bystander.pid)


@pytest.fixture(autouse=True)
def a_line_of_its_own() -> None:
    print()
