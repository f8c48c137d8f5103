"""From a spec to a plan: asks ``image`` what the root filesystem is made of, and ``runtime`` for the plan of it.

Used by ``sandbox``. Holds, for as long as the process lives, the layer store and the plans made so far.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import ImageError
from .images import Image, changed, stack_up
from .rootfs import Tree
from .runtime import blockio, cgroups, frozen, launch, shift
from .runtime.plan import Host, Plan, make_plan
from .spec import LIMITS, SandboxSpec, network_kind

if TYPE_CHECKING:
    from .image.host import HostImage
    from .image.manifest import LayerStack
    from .image.source import Progress
    from .image.store import ImageStore
    from .rootfs import Root



@dataclass(frozen=True)
class ImageSettings:
    """Where images may come from, for all sandboxes of this process.

    :param offline: never ask a registry.
    :param lock_file: a ``sandbox.lock`` whose digests hold; one that does not exist locks nothing.
    :param progress: makes what is told how images come in; called when the store is first used.
    """

    offline: bool = False
    lock_file: str | None = None
    progress: Callable[[], Progress | None] | None = field(default=None, compare=False)


settings = ImageSettings()
_host_image: HostImage | None = None
_generation = 0
_store: tuple[str, ImageSettings, ImageStore] | None = None
_plans: dict[Any, tuple[Root, Plan]] = {}
_roots: dict[str, tuple[LayerStack, Root]] = {}
_layouts: dict[tuple[Any, ...], cgroups.Layout | None] = {}
_built: dict[str, str] = {}
_planning = threading.Lock()
_building = threading.Lock()


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
    _build(spec.image.base if isinstance(spec.image, Image) else spec.image)
    with _planning:
        layout = _layout(spec)  # first: it may move this process, and a helper must be where its caller is
    host = (launch.supervisor() if spec.owners is None else launch.builder()).host
    with _planning:
        root = _root(spec, host)
    image = spec.image.token if isinstance(spec.image, Image) else spec.image  # not itself: it shall be let go one day
    key = (image, network_kind(spec.network), spec.user, spec.mounts, spec.persist, spec.hostname, spec.capabilities,
           spec.seccomp, spec.hide, spec.workdir, spec.owners, host, os.environ.get(shift.VARIABLE), *_limits(spec))
    made = _plans.get(key)
    if made is None or made[0] != root or spec.mounts:  # the source of a mount may have gone since
        made = _plans[key] = root, _make_plan(spec, root, host, layout)
    return made[1]


def _make_plan(spec: SandboxSpec, root: Root, host: Host, layout: cgroups.Layout | None) -> Plan:
    """With shifted ids, where this host's root has them and everything that it is made of can show them."""
    if not host.privileged:
        return make_plan(spec, root, host, layout)
    why = shift.unwanted()
    if not why:
        plan = make_plan(spec, root, host, layout, shift.the_range())
        why = launch.supervisor().shifts(plan.body)
        if not why:
            return plan
        if any(f" of {one.source} " in why for one in spec.mounts):  # a host that cannot is `doctor`'s to tell
            warnings.warn(f"a sandbox has the host's own user ids: {why}", stacklevel=2)
    return make_plan(spec, root, host, layout, unshifted=why)


def unshifted(spec: SandboxSpec) -> str:
    """Why root's sandboxes of this spec, or of images here, have the host's own ids; empty where they do not."""
    store = {"mapped": [["own_mapped", "", f"/host{cache_directory()}", []]], "mounts": []}
    return plan_for(spec).unshifted or launch.supervisor().shifts(store)


def plan_abroad(spec: SandboxSpec, visible: tuple[str, ...]) -> Plan:
    """The plan by which a guest of this spec's image is at home, and on which those of its sandboxes stand.

    :param visible: directories of the host that are there too, copy-on-write.
    :raises ImageError: when the image cannot be had, or not be used so.
    """
    from .runtime.guestplans import nested
    if isinstance(spec.image, Image) and any(frozen.key_of(one) is not None for layers in spec.image.layers.values()
                                             for one in layers):
        raise ImageError(f"a test's body cannot run in {spec.image!r}", reference=str(spec.image.base),
                         why="what was committed is kept in memory, and a guest has another",
                         remedy="Commit with a name: sandbox.commit(\"...\").")
    _build(spec.image.base if isinstance(spec.image, Image) else spec.image)
    with _planning:
        layout = _layout(spec)
    host = nested(launch.supervisor().host)
    with _planning:
        root = _root(spec, host)
    if not host.privileged:
        _check_owner(spec, root)
    trees = (*root.trees, *(Tree(one, (one,)) for one in sorted(visible)))
    return make_plan(spec, replace(root, trees=trees), host, layout,
                     unshifted="the test's body runs in the image's own Python" if host.privileged else "")


def _check_owner(spec: SandboxSpec, root: Root) -> None:
    """A directory that is an image must be the caller's, who is not root: of others' nothing can be changed inside."""
    if not isinstance(spec.image, str) or resolve(spec.image).immutable:
        return
    owner = os.stat(root.trees[0].lowers[-1]).st_uid
    if owner != os.geteuid():
        raise ImageError(
            f"a test's body cannot run in image {spec.image!r}", reference=spec.image,
            why=f"the directory belongs to another user (uid {owner}), who has no id in sandboxes of an ordinary user, "
                "so that nothing could be changed in there",
            remedy="Make a tarball of it and use that (rootfs:FILE.tar), or make its files yours.")


def _layout(spec: SandboxSpec) -> cgroups.Layout | None:
    control, limits = cgroups.host_control(), _limits(spec)
    if limits not in _layouts:
        moved = control.moved
        layout = control.layout(spec)
        if control.moved != moved:
            launch.renew()  # one that is there already may not enter what is below our new place
            _layouts.clear()
            _plans.clear()
        _layouts[limits] = layout
    return _layouts[limits]


def _limits(spec: SandboxSpec) -> tuple[Any, ...]:
    disks = blockio.disks() if spec.io is not None else ()  # they come and go
    return (*(getattr(spec, option) for option in LIMITS), disks, cgroups.asked_pids(spec),
            cgroups.host_control().run.name)


def is_host(image: Any) -> bool:
    """Whether an image is the host's own root, or a state of it that was committed."""
    base = image.base if isinstance(image, Image) else image
    return bool(base == "host" or base.startswith("host:"))


def _root(spec: SandboxSpec, host: Host) -> Root:
    image = spec.image if isinstance(spec.image, Image) else None
    reference = image.base if image is not None else spec.image
    if reference == "host":
        root = _host_root(spec, host)
    elif image is None or not image.config:
        stack = resolve(reference)
        if stack.host is not None:
            root = _on_host(_host_root(spec, host), stack)
        else:
            known = _roots.get(reference)
            if known is None or known[0] is not stack:
                known = _roots[reference] = stack, _image_root(stack)
            root = known[1]
    else:
        above = tuple(frozen.path_here(one) for one in image.layers.get("/", ()))
        stack = resolve(reference)
        root = _image_root(replace(stack, config=changed(stack.config, image.config)), above)
    return stack_up(image, root) if image is not None and image.layers else root


def _image_root(stack: LayerStack, above: tuple[str, ...] = ()) -> Root:
    from .image.roots import image_root
    return image_root(stack, above)


def _on_host(root: Root, stack: LayerStack) -> Root:
    """The host's root with a committed state of it on top."""
    assert stack.host is not None
    on = {target: tuple(dict.fromkeys(stack.layers[at] for at in which)) for target, which in stack.host}
    missing = on.keys() - {tree.target for tree in root.trees}
    if missing:
        raise ImageError(f"image {stack.reference!r} cannot be used", reference=stack.reference,
                         why=f"the host has no file system at {', '.join(sorted(missing))} any more",
                         remedy="Commit it again.")
    return replace(root, trees=tuple(replace(tree, frozen=on.get(tree.target, ())) for tree in root.trees))


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


def store() -> ImageStore:
    """This process's use of the layer store. What it has resolved stays on disk until the process ends."""
    global _store
    from .image.store import ImageStore
    cache = cache_directory()
    if _store is None or _store[:2] != (cache, settings):
        pins = None
        if settings.lock_file is not None and os.path.exists(settings.lock_file):
            from .image.lockfile import LockFile
            pins = LockFile.read(settings.lock_file).pin
        _store = cache, settings, ImageStore(cache, offline=settings.offline, pins=pins,
                                              progress=settings.progress() if settings.progress else None)
        _roots.clear()
        _built.clear()
    return _store[2]


def resolve(reference: str) -> LayerStack:
    """The image's layers, held in the store until this process ends. A ``containerfile:`` is built first.

    :raises ImageError: when the image cannot be had or used.
    """
    if reference.startswith("containerfile:"):
        from .building.builder import Options
        from .building.reference import build, locate
        kept = store()  # which forgets what was built for another one
        known = _built.get(reference)
        if known is None:
            path, context = locate(reference.partition(":")[2])
            progress = kept.progress
            progress.begin(reference, "building")
            failed = True
            try:
                known = build(kept, path, context, Options(say=progress.step))[0].image_id
                failed = False
            finally:
                progress.finish(failed=failed)
            _built[reference] = known
        reference = f"image:{known}"
    return store().resolve(reference)


def _build(reference: str) -> None:
    """Builds what has to be built before anything is planned: a build plans and runs sandboxes itself."""
    if reference.startswith("containerfile:"):
        with _building:
            resolve(reference)


def release_images() -> None:
    """Lets the images go that this process has used: from now on a collection may take them."""
    global _store
    with _planning:
        if _store is not None:
            _store[2].close()
        _store = None
        _roots.clear()
        _built.clear()


def _in_fork() -> None:
    global _planning, _building, _host_image
    _building = threading.Lock()
    _planning = threading.Lock()  # another thread of the parent may have held it, and does not exist here
    if _host_image is not None:
        _host_image.close()
        _host_image = None


os.register_at_fork(after_in_child=_in_fork)
