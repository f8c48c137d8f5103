"""pytest-sandbox: tests in a fresh root filesystem and fresh namespaces that leave nothing behind.

The public names. Each is imported when it is first used, so that having the plugin installed costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as typing's, whose import costs more than the rest of this module
if TYPE_CHECKING:
    from typing import Any

    from .errors import (
        DiskLimitExceeded,
        ImageBuildError,
        ImageCorrupt,
        ImageError,
        ImageNotFound,
        KeptTestError,
        LayerRejected,
        LimitExceeded,
        MemoryLimitExceeded,
        NetworkError,
        PidsLimitExceeded,
        RegistryAuthError,
        RegistryError,
        SandboxCallError,
        SandboxClosedError,
        SandboxCommandDenied,
        SandboxCommandError,
        SandboxCommandMisplaced,
        SandboxCommandNotFound,
        SandboxCommandRefused,
        SandboxConnectionError,
        SandboxConnectionRefused,
        SandboxCrashed,
        SandboxError,
        SandboxGuestError,
        SandboxProtocolError,
        SandboxStartError,
        SandboxTimeout,
        SandboxUnavailable,
        SandboxUsageError,
        StoreError,
        TimeLimitExceeded,
    )
    from .images import Image
    from .network import Network
    from .outbound import Outbound
    from .sandbox import Change, Process, Result, Sandbox, SandboxPath, inside
    from .sharing import shared
    from .spec import Mount, SandboxSpec
    from .usage import LimitEvents, Usage

_HOME = {
    **dict.fromkeys(("Change", "Process", "Result", "Sandbox", "SandboxPath", "inside"), "sandbox"),
    "Network": "network",
    "Outbound": "outbound",
    **dict.fromkeys(("Mount", "SandboxSpec"), "spec"),
    "Image": "images",
    "shared": "sharing",
    **dict.fromkeys(("LimitEvents", "Usage"), "usage"),
    **dict.fromkeys((
        "DiskLimitExceeded", "LimitExceeded", "MemoryLimitExceeded", "PidsLimitExceeded", "TimeLimitExceeded",
        "ImageBuildError", "ImageCorrupt", "ImageError", "ImageNotFound", "KeptTestError", "LayerRejected",
        "NetworkError", "RegistryAuthError", "RegistryError",
        "SandboxCallError", "SandboxClosedError", "SandboxCommandDenied", "SandboxCommandError",
        "SandboxCommandMisplaced", "SandboxCommandNotFound", "SandboxCommandRefused", "SandboxConnectionError",
        "SandboxConnectionRefused", "SandboxCrashed", "SandboxError", "SandboxGuestError",
        "SandboxProtocolError", "SandboxStartError", "SandboxTimeout", "SandboxUnavailable", "SandboxUsageError",
        "StoreError",
    ), "errors"),
}

__all__ = [
    "Change",
    "DiskLimitExceeded",
    "Image",
    "ImageBuildError",
    "ImageCorrupt",
    "ImageError",
    "ImageNotFound",
    "KeptTestError",
    "LayerRejected",
    "LimitEvents",
    "LimitExceeded",
    "MemoryLimitExceeded",
    "Mount",
    "Network",
    "NetworkError",
    "Outbound",
    "PidsLimitExceeded",
    "Process",
    "RegistryAuthError",
    "RegistryError",
    "Result",
    "Sandbox",
    "SandboxCallError",
    "SandboxClosedError",
    "SandboxCommandDenied",
    "SandboxCommandError",
    "SandboxCommandMisplaced",
    "SandboxCommandNotFound",
    "SandboxCommandRefused",
    "SandboxConnectionError",
    "SandboxConnectionRefused",
    "SandboxCrashed",
    "SandboxError",
    "SandboxGuestError",
    "SandboxPath",
    "SandboxProtocolError",
    "SandboxSpec",
    "SandboxStartError",
    "SandboxTimeout",
    "SandboxUnavailable",
    "SandboxUsageError",
    "StoreError",
    "TimeLimitExceeded",
    "Usage",
    "inside",
    "shared",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
