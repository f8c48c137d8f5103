"""The fixtures of tests that stay on the host and work a sandbox from outside."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_sandbox.network import Network
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.spec import SandboxSpec

    from .prepared import Factory


@pytest.fixture(scope="session")
def sandbox_image() -> Any:
    """The image of the tests below; override it in a conftest to hand tests an image of your own.

    Tests that drive a sandbox ask for it as for any fixture. For those whose body runs inside it is asked for before
    the first test, so that the override must have scope="session".

    Without an override: ``--sandbox-image``, else the ini option ``sandbox_image``, else ``"host"``.
    """
    return None


@pytest.fixture(scope="session")
def sandbox_factory(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Factory]:
    """Makes sandboxes that may live as long as the session: ``sandbox_factory(image=..., **options)``.

    Takes the marker's options; what is not given comes from the command line and the ini file. The sandbox that is
    returned is started. Close it when it is not needed any more; at the end of the session all are closed.

    ``sandbox_factory.prepared(function, **options)`` calls ``function(sandbox)`` once a run and returns the state that
    it leaves as an image.
    """
    from . import settings_of
    from .prepared import Factory

    _only_outside(pytestconfig, "sandbox_factory", request)
    base = settings_of(pytestconfig).base()

    def make(options: dict[str, Any]) -> Sandbox:
        from pytest_sandbox.spec import make_spec

        return start(pytestconfig, make_spec(options, base))

    factory = Factory(pytestconfig, make)
    yield factory
    factory.close()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, sandbox_image: Any) -> Iterator[Sandbox]:
    """A started sandbox for this test to work from outside; closed when the test ends.

    ``@pytest.mark.sandbox(...)`` on the test describes it. The test's own body stays on the host.
    """
    from pytest_sandbox.spec import make_spec

    from . import extensions, settings_of, traffic

    _only_outside(request.config, "sandbox", request)
    extensions.register(request.config)
    settings = settings_of(request.config)
    spec = settings.spec(request.node) or settings.base()
    if sandbox_image is not None and "image" not in marked_options(request.node):
        spec = make_spec({"image": sandbox_image}, spec)
    sandbox = start(request.config, extensions.changed(request.node, spec))
    if sandbox.trace is not None:
        sandbox.trace.used_by(request.node.nodeid)
    traffic.follow(request.config)
    yield sandbox
    from . import limits

    limits.after_driving(request.node, sandbox)
    if (keeper := request.config.pluginmanager.get_plugin("sandbox-keeper")) is not None:
        keeper.before_close(request.node, sandbox)
    extensions.finished(request.node, sandbox, None)
    sandbox.close()
    sandbox.raise_untold()


def _only_outside(config: pytest.Config, name: str, request: pytest.FixtureRequest) -> None:
    """Fails in a guest: what works sandboxes is of no use where only bodies run."""
    __tracebackhide__ = True
    from . import settings_of

    if settings_of(config).visiting:
        from .compat import requested_by

        through = requested_by(request)
        asked = f", which {through!r} requests," if through is not None else ""
        pytest.fail(f"the fixture {name!r}{asked} works sandboxes from the host, and this test's body, with all its "
                    "fixtures, runs in an image's own Python. Let the test request the sandbox fixture, so that its "
                    "body stays on the host, or do without it.", pytrace=False)


def marked_options(node: pytest.Item) -> set[str]:
    """The options that the markers of ``node`` give."""
    return {name for mark in node.iter_markers("sandbox") for name in mark.kwargs}


def start(config: pytest.Config, spec: Any) -> Sandbox:
    """A started sandbox. A host that cannot give it fails or skips the test; there is no doing without here."""
    __tracebackhide__ = True
    from pytest_sandbox.errors import SandboxError, SandboxUnavailable

    from . import extensions, settings_of

    try:
        sandbox = make_sandbox(extensions.sourced(config, spec))
        sandbox.start()
        extensions.started(config, sandbox)
    except SandboxError as error:
        if isinstance(error, SandboxUnavailable) and settings_of(config).unavailable == "skip":
            pytest.skip(f"{type(error).__name__}: {error}")
        raise error.with_traceback(None) from None  # it says itself what failed and why
    return sandbox


@pytest.fixture
def sandbox_network(request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[Network]:
    """A private network for the sandboxes of this test: ``sandbox_factory(network=sandbox_network, hostname="a")``.

    It is made when the first sandbox joins, and closed when the test ends.
    """
    from pytest_sandbox.network import Network

    _only_outside(pytestconfig, "sandbox_network", request)
    with contextlib.closing(Network()) as network:
        yield network


def make_sandbox(spec: SandboxSpec) -> Sandbox:
    """A sandbox that is not started.

    :raises SandboxUnavailable: on hosts that are not Linux.
    """
    import sys

    if sys.platform != "linux":
        from pytest_sandbox.errors import SandboxUnavailable

        raise SandboxUnavailable("this host cannot run sandboxes", feature="linux",
                                 why=f"it runs {sys.platform}, and sandboxes are made of Linux namespaces")
    from pytest_sandbox.sandbox import Sandbox

    return Sandbox(spec)
