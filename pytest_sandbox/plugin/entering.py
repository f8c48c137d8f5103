"""How a test gets into its sandbox: the sandbox is started, and pytest forks into it. Used by ``attempt``, outside."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError, SandboxUnavailable

from . import compat
from .fixtures import make_sandbox
from .options import PytestSandboxWarning

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import Sandbox

    from .item import ItemRun


def start(run: ItemRun) -> Sandbox | None:
    """The started sandbox; None to go on without.  Errors become the outcome of the test's set-up."""
    __tracebackhide__ = True
    try:
        sandbox = make_sandbox(run.conductor.sandbox_of(run))
        sandbox.check_fork(run.spec)
        sandbox.start()
    except SandboxUnavailable as error:
        unavailable = run.conductor.settings.unavailable
        if unavailable == "skip":
            raise compat.skip_at_item(f"{type(error).__name__}: {error}") from None
        if unavailable == "run":
            run.item.warn(PytestSandboxWarning(f"this test ran without its sandbox: {error}"))
            return None
        raise failure(error) from None
    except SandboxError as error:
        raise failure(error) from None
    return sandbox


def fork_into(sandbox: Sandbox, run: ItemRun) -> Any:
    """The child; None in it."""
    run.conductor.warm_up(run.item)
    run.conductor.prepare_for(run)
    streams = [sys.stdout, sys.stderr]
    if run.item.config.getoption("capture", "fd") != "fd":
        # The terminal's: what is printed goes through it, or stays in its buffer (--capture=tee-sys, sys). Under fd
        # its descriptor is pytest's file at this moment.
        streams += [sys.__stdout__, sys.__stderr__]
    for stream in streams:
        try:
            stream.flush()  # the child has a copy of every buffer
        except (AttributeError, OSError, ValueError):
            pass
    return sandbox.fork()


def failure(error: SandboxError | OSError) -> BaseException:
    """Fails the test with the error's own words; a traceback through this plugin would tell nobody anything."""
    if isinstance(error, FileNotFoundError) and error.filename is not None:
        return pytest.fail.Exception(
            f"{type(error).__name__}: {error}: the sandbox has no such directory to start the test in. Correct its "
            f"workdir option, or make the directory with the image or a mount.", pytrace=False)
    return pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False)
