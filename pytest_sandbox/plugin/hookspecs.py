"""The hooks that this plugin offers. Each may be implemented in a conftest or by another plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.spec import SandboxSpec
    from pytest_sandbox.usage import Usage


@pytest.hookspec(firstresult=True)
def pytest_sandbox_spec(item: pytest.Item, spec: SandboxSpec) -> SandboxSpec | None:
    """Changes a test's sandbox before it starts. Called once for each sandboxed test, when collection has finished.

    :return: another spec, such as ``spec.with_options(memory="256M")``; None to leave it as it is. The first
        implementation that returns one decides.
    """


@pytest.hookspec(firstresult=True)
def pytest_sandbox_image_source(reference: str) -> Any:
    """Adds a source of images. Called with each reference but ``"host"`` before anything else looks at it.

    :return: what the reference stands for: an ``Image``, or a reference of another kind, such as
        ``"rootfs:/srv/trees/base"``; None where it is not known here.
    """


def pytest_sandbox_started(sandbox: Sandbox) -> None:
    """A sandbox has started, for a test or a fixture; nothing of the test's has run in it yet. Called on the host."""


def pytest_sandbox_finished(item: pytest.Item, usage: Usage, result: pytest.TestReport | None) -> None:
    """A test is over and its sandbox is about to end. Called on the host.

    :param usage: what the sandbox used. :param result: the report that decides about the test: of the phase that
        failed or skipped it, else of its call; None where there is none.
    """
