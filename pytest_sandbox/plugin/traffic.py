"""What a failed test tried to reach and could not: a section of its report. Used by ``item`` and ``fixtures``.

Inside, for ``network="none"``, Python's own audit events name addresses and hosts (a hook costs 0.1 µs an event).
Outside, when a test has failed, the kernel's counters tell of what other programs tried, and of an outbound network its
packet filter knows each address. A test that passes is never asked.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_sandbox.sandbox import Sandbox

SECTION = "Sandbox network"
_MOST = 20
_EVENTS = {"socket.connect": "connect to", "socket.sendto": "send to", "socket.getaddrinfo": "look up"}
_LOCAL = ("127.", "::1", "localhost", "::ffff:127.")
_tried: dict[str, None] = {}


def watch() -> None:
    """From now on, in this process, remembers what Python code tries to reach beyond the loopback."""
    sys.addaudithook(_hook)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event in _EVENTS and len(_tried) < _MOST:
        address = args[:2] if event == "socket.getaddrinfo" else args[1]
        if not isinstance(address, tuple) or len(address) < 2:
            return  # a path, or a family of its own
        host = address[0].decode(errors="replace") if isinstance(address[0], bytes) else address[0]
        if not isinstance(host, str) or not host or host.startswith(_LOCAL):
            return
        if event == "socket.getaddrinfo":
            if ":" in host or host.replace(".", "").isdecimal():
                return  # an address already
            _tried[f"tried to look up {host}"] = None
        else:
            _tried[f"tried to {_EVENTS[event]} {f'[{host}]' if ':' in host else host}:{address[1]}"] = None


def begin() -> None:
    """A test begins in this process, perhaps not its first."""
    _tried.clear()


def add_tried(report: pytest.TestReport) -> None:
    """Inside: adds what was tried so far to a report, if it is of a failure."""
    if _tried and report.failed:
        report.sections.append((SECTION, "\n".join([*_tried, _why("none")])))


def add_refused(report: pytest.TestReport, sandbox: Sandbox) -> None:
    """Outside: adds what the sandbox's kernel knows to a report, if it is of a failure and does not have it yet."""
    if not report.failed or any(name == SECTION for name, _ in report.sections):
        return
    from pytest_sandbox.errors import SandboxError
    from pytest_sandbox.spec import network_kind

    kind = network_kind(sandbox.spec.network)
    try:
        if kind == "outbound":
            lines = [_tried_by(*one.split(" ", 1)) for one in sandbox.refused()]
        elif kind == "host" or not (times := sandbox.without_route()):
            return
        else:
            lines = [f"tried to reach addresses outside {'once' if times == 1 else f'{times} times'}"]
    except (SandboxError, OSError):
        return  # it has ended
    if lines:
        report.sections.append((SECTION, "\n".join([*lines, _why(kind)])))


def _tried_by(protocol: str, where: str) -> str:
    return f"tried to connect to {where}" if protocol == "tcp" else f"tried to send {protocol} to {where}"


def _why(kind: str) -> str:
    if kind == "outbound":
        return "Its network does not lead there: see the allow list of its Outbound."
    has_none = 'network="none"' if kind == "none" else "Its Network"
    return f'{has_none} has no way there; network="outbound" has.'


class Follower:
    """A plugin, registered when the first test drives a sandbox: adds to that test's report."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """For a failed test with the ``sandbox`` fixture."""
        report = yield
        sandbox = getattr(item, "funcargs", {}).get("sandbox")
        if report.failed and sandbox is not None and hasattr(sandbox, "without_route"):
            add_refused(report, sandbox)
        return report


def follow(config: pytest.Config) -> None:
    """A test of this run drives a sandbox."""
    if not config.pluginmanager.has_plugin("sandbox-traffic"):
        config.pluginmanager.register(Follower(), "sandbox-traffic")
