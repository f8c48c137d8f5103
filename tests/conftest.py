"""For all tests: pytest's own plugin-testing fixture, and the leak check."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import guestimage
import leaks
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background by a shell: what tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def leak_check() -> Iterator[None]:
    """Fails the test if it left a process, mount, namespace, cgroup, file or descriptor behind."""
    yield from leaks.watch(pytest.fail)


@pytest.fixture(scope="session")
def first_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("images")
    yield guestimage.make_python_root(folder / "first")
    shutil.rmtree(folder)  # not for pytest to keep: these are many files


@pytest.fixture(scope="session")
def second_root(first_root: Path) -> Path:
    return guestimage.another(first_root, first_root.parent / "second", "second")


@pytest.fixture
def suite(pytester: pytest.Pytester, first_root: Path, second_root: Path, leak_check: None) -> pytest.Pytester:
    """A suite whose modules know ``FIRST`` and ``SECOND``; nothing may be left when it has run."""
    pytester.makepyfile(images=f"FIRST = 'rootfs:{first_root}'\nSECOND = 'rootfs:{second_root}'\n")
    return pytester
