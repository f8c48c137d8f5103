"""From a spec to a plan: asks ``image`` what the root filesystem is made of, and ``runtime`` for the plan of it.

Used by ``sandbox``. Holds, for as long as the process lives, the layer store and the plans made so far.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from .runtime import cgroups, launch
from .runtime.plan import Host, Plan, make_plan
from .spec import LIMITS, SandboxSpec, network_kind

if TYPE_CHECKING:
    from .image.host import HostImage
    from .image.store import ImageStore
    from .rootfs import Root

_host_image: HostImage | None = None
_generation = 0
_store: tuple[str, ImageStore] | None = None
_plans: dict[Any, tuple[Root, Plan]] = {}
_planning = threading.Lock()


def cache_directory() -> str:
    """Where layers are kept: ``PYTEST_SANDBOX_CACHE``, or ``pytest-sandbox`` in the user's cache directory."""
    given = os.environ.get("PYTEST_SANDBOX_CACHE")
    if given:
        return os.path.abspath(given)
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pytest-sandbox")


def plan_for(spec: SandboxSpec) -> Plan:
    """The plan by which sandboxes of this spec are made here.

    :raises ImageError: when the image cannot be had or used.
    :raises SandboxStartError: when a mount's source does not exist.
    :raises SandboxUnavailable: when this host cannot enforce a limit.
    """
    host = launch.supervisor().host
    with _planning:
        root = _host_root(spec, host) if spec.image == "host" else _image_root(spec.image)
    key = (spec.image, network_kind(spec.network), spec.user, spec.mounts, spec.persist, spec.hostname,
           spec.capabilities, spec.hide, spec.workdir, host, *_limits(spec))
    control = cgroups.host_control()
    made = _plans.get(key)
    if made is None or made[0] != root or spec.mounts:  # the source of a mount may have gone since
        made = _plans[key] = root, make_plan(spec, root, host, control.layout(spec))
    return made[1]


def _limits(spec: SandboxSpec) -> tuple[Any, ...]:
    return (*(getattr(spec, option) for option in LIMITS), cgroups.asked_pids(spec), cgroups.host_control().run.name)


def _host_root(spec: SandboxSpec, host: Host) -> Root:
    global _host_image, _generation
    if _host_image is None:
        from .image.host import HostImage
        _host_image = HostImage()
    root = _host_image.root(spec.hide, cache_directory(), not host.privileged)
    if _host_image.generation != _generation:
        _generation = _host_image.generation
        launch.renew()  # the helper has a copy of the mounts as they were
    return root


def _image_root(reference: str) -> Root:
    """The image's layers, held in the store until this process ends."""
    global _store
    from .image.roots import image_root
    from .image.store import ImageStore
    cache = cache_directory()
    if _store is None or _store[0] != cache:
        _store = cache, ImageStore(cache)
    return image_root(_store[1].resolve(reference))


def _in_fork() -> None:
    global _planning, _host_image
    _planning = threading.Lock()  # another thread of the parent may have held it, and does not exist here
    if _host_image is not None:
        _host_image.close()
        _host_image = None


os.register_at_fork(after_in_child=_in_fork)
