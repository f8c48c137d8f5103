"""Kernel tests need namespaces, and each of them ends with a leak check."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_sandbox import Sandbox, planning
from pytest_sandbox.runtime.cgroups import host_control
from pytest_sandbox.sandbox import shutdown


@pytest.fixture(scope="session", autouse=True)
def helper() -> Iterator[None]:
    """The helper and this process's cgroups outlive each test, as they should: they are there before the first look."""
    with Sandbox(**({"memory": "64M"} if host_control().abilities()["memory"].ok else {})):
        pass
    yield
    shutdown()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(helper: None, leak_check: None) -> None:
    """Autouse, so that it is set up before a test's own fixtures and looks again after the last of them."""


@pytest.fixture
def build_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_left_behind: None) -> Iterator[Path]:
    """A cache of a build's own, in which it leaves nothing half done; beside it a context with one file."""
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "context").mkdir()
    (tmp_path / "context/a.txt").write_text("a")
    (tmp_path / "context/a.txt").chmod(0o644)
    yield tmp_path / "cache/v1"
    staging = tmp_path / "cache/v1/staging"
    assert not staging.exists() or list(staging.iterdir()) == []
    planning.release_images()
