"""Calls the hooks of :mod:`.hookspecs`, where somebody implements them. Used wherever sandboxes are made and end."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError, SandboxUsageError

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.spec import SandboxSpec

_DECISIVE: pytest.StashKey[pytest.TestReport] = pytest.StashKey()


def changed(item: pytest.Item, spec: SandboxSpec) -> SandboxSpec:
    """The spec of ``item``'s sandbox after ``pytest_sandbox_spec``, or that of a kept test that is run again."""
    from pytest_sandbox.spec import SandboxSpec

    if path := item.config.getoption("sandbox_replay", None):
        from .replaying import replayed

        return replayed(item, spec, path)
    hook = item.ihook.pytest_sandbox_spec
    if hook.get_hookimpls():
        try:
            found = hook(item=item, spec=spec)
        except SandboxUsageError as error:
            raise pytest.UsageError(f"pytest_sandbox_spec, for {item.nodeid}: {error}") from None
        if found is not None:
            if not isinstance(found, SandboxSpec):
                raise pytest.UsageError(
                    f"{item.nodeid}: pytest_sandbox_spec returned {found!r}, which is not a spec. Return "
                    f"spec.with_options(...), or None to leave it as it is.")
            return found
    return spec


def sourced(config: pytest.Config, spec: SandboxSpec) -> SandboxSpec:
    """The spec with the image that ``pytest_sandbox_image_source`` has for its reference."""
    hook = config.hook.pytest_sandbox_image_source
    if not isinstance(spec.image, str) or spec.image == "host" or not hook.get_hookimpls():
        return spec
    found = hook(reference=spec.image)
    if found is None:
        return spec
    try:
        return spec.with_options(image=found)
    except SandboxUsageError as error:
        raise pytest.UsageError(f"pytest_sandbox_image_source, for {spec.image!r}: {error}") from None


def started(config: pytest.Config, sandbox: Sandbox) -> None:
    """A sandbox has started."""
    hook = config.hook.pytest_sandbox_started
    if hook.get_hookimpls():
        hook(sandbox=sandbox)


def finished(item: pytest.Item, sandbox: Sandbox, result: pytest.TestReport | None) -> None:
    """A test is over; its sandbox still runs, unless the test has ended it."""
    hook = item.ihook.pytest_sandbox_finished
    if not hook.get_hookimpls():
        return
    from pytest_sandbox.usage import Usage

    try:
        usage = sandbox.usage()
    except SandboxError:
        usage = Usage()
    hook(item=item, usage=usage, result=result if result is not None else item.stash.get(_DECISIVE, None))


class Decisive:
    """Remembers the decisive report of tests that drive a sandbox. Registered where somebody wants to hear of it."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if decides(report) or _DECISIVE not in item.stash:
            item.stash[_DECISIVE] = report
        return report


def decides(report: pytest.TestReport) -> bool:
    """Whether a later phase's report says more about the test than those before it."""
    return report.when == "call" or not report.passed


def register(config: pytest.Config) -> None:
    """At the beginning of a run with sandboxes."""
    plugins: Any = config.pluginmanager
    if config.hook.pytest_sandbox_finished.get_hookimpls() and not plugins.has_plugin("sandbox-decisive"):
        plugins.register(Decisive(), "sandbox-decisive")
