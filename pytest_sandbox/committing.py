"""``Sandbox.commit``: a writable layer becomes a read-only one. Used by ``sandbox``.

Two ways. A sandbox in which nothing runs is *frozen*: its writable layer, a tmpfs, is kept as it is and mounted below
others from then on, whatever its size; the sandbox goes on with a new layer above it. Where something runs, the layer
is *copied* into the layer store instead, so that nobody inside notices. A commit with a name also goes to the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import planning
from .errors import ImageError, SandboxUsageError
from .images import Image, check_config
from .runtime import frozen

if TYPE_CHECKING:
    from .image.commit import Written
    from .image.store import StoredImage
    from .rootfs import Tree
    from .runtime.plan import Plan
    from .runtime.running import Running

#: Overlays of the kernel: so many layers below one mount.
MOST_LAYERS = 500


def freeze(running: Running, image: Any, config: Mapping[str, Any]) -> Image:
    """The image of a sandbox that has ended; takes its writable layer over."""
    made = Image(image, **config)
    plan = running.plan
    for tree in plan.root.trees:
        if len(tree.lowers) + len(tree.frozen) + 2 > MOST_LAYERS:
            raise ImageError("a sandbox cannot be committed", reference=made.base,
                             why=f"its image has {len(tree.lowers) + len(tree.frozen)} layers already; "
                                 f"the kernel mounts {MOST_LAYERS}", remedy="Commit with a name, and squash the image.")
    key = frozen.hold(os.dup(running.scratch))
    made._hold(key)
    for number, tree in enumerate(plan.root.trees):
        made.layers[tree.target] = (*made.layers.get(tree.target, ()), f"@{key}/{number}/upper")
    return made


def copy(running: Running, image: Any, name: str | None, config: Mapping[str, Any]) -> Image:
    """The image of a sandbox as it is at this moment, in the store; the sandbox is not touched."""
    uppers = {tree.target: f"/proc/self/fd/{running.scratch}/{number}/upper"
              for number, tree in enumerate(running.plan.root.trees)}
    return store(Image(image, **config), running.plan, uppers, name)


def store(image: Image, plan: Plan, uppers: Mapping[str, str], name: str | None) -> Image:
    """Writes what lies on ``image``'s base into the store.

    :param uppers: by tree, a writable layer on top of the image's own.
    :raises ImageError: when the base is not in the store itself.
    :raises StoreError: when the store's disk is full or fails.
    """
    from .image.commit import add_image
    from .image.export import name_image

    kept = planning.store()
    base, host = _base(image), None
    document = _document(image, base)
    written: list[Written] = []
    if planning.is_host(image):
        on = dict((base.host if base is not None else None) or ())
        start = len(base.diff_ids) if base is not None else 0
        for target, one in write_trees(image, plan, uppers):
            on[target] = (*on.get(target, ()), start + len(written))
            written.append(one)
        host = tuple(sorted(on.items()))
    else:
        written = [one for _, one in write_trees(image, plan, uppers)]
    added = add_image(kept, base, document, written, name or "a commit", host)
    if name is not None:
        name_image(kept, name, added)
        return Image(name)
    return Image(f"image:{added.image_id}")


def check_name(name: object, image: Any) -> str:
    """:raises SandboxUsageError: for a name that an image cannot have, or that says something else about its base."""
    from .image.reference import parse_registry_reference

    if not isinstance(name, str):
        raise SandboxUsageError(f"name={name!r} cannot be used", option="name", value=name, allowed="text, or None")
    on_host = planning.is_host(image)
    if on_host != name.startswith("host:"):
        better = f'"host:{name.partition(":")[2] or name}"' if on_host else '"app:1", or "team/app"'
        raise SandboxUsageError(f"name={name!r} cannot be used", option="name", value=name,
                                why="a state of the host is named host:NAME, and nothing else is",
                                remedy=f"Call it {better}.")
    parse_registry_reference(name)
    return name


def without(image: Image, before: Any) -> Image:
    """The same layers with the configuration that there was before."""
    plain = Image(image)
    plain.config = dict(before.config) if isinstance(before, Image) else {}
    return plain


def _base(image: Image) -> StoredImage | None:
    """The base as the store has it; None for the host itself."""
    if image.base == "host":
        return None
    stack = planning.resolve(image.base)
    found = planning.store().image(stack.image_id) if stack.image_id is not None else None
    if found is None:
        raise ImageError(f"a sandbox on {image.base!r} cannot be committed to the store", reference=image.base,
                         why="its image is a plain directory, which may change at any time",
                         remedy="Commit without a name while nothing runs inside, or use a tarball: rootfs:FILE.")
    return found


def _document(image: Image, base: StoredImage | None) -> dict[str, Any]:
    import json

    from .image.commit import change_config, empty_document, now

    document = json.loads(base.config) if base is not None else empty_document(planning.store().platform)
    document["created"] = now()
    document.setdefault("config", {})
    document["config"] = document["config"] or {}
    change_config(document["config"], image.config)
    count = max((len(one) for one in image.layers.values()), default=0) or 1
    document["history"] = [*(document.get("history") or []),
                           *({"created": now(), "created_by": "pytest-sandbox commit"} for _ in range(count))]
    return dict(document)


def write_trees(image: Image, plan: Plan, uppers: Mapping[str, str],
                latest: int | None = None) -> list[tuple[str, Written]]:
    """What lies on a base, tree by tree, lowest first.

    :param uppers: by tree, a writable layer on top of the image's own.
    :param latest: the latest modification time that is kept.
    """
    return [(tree.target, one) for tree in plan.root.trees if tree.target in uppers or image.layers.get(tree.target)
            for one in _write(image, tree, uppers, plan, latest)]


def _write(image: Image, tree: Tree, uppers: Mapping[str, str], plan: Plan,
           latest: int | None = None) -> list[Written]:
    """One archive for each layer on top of a tree's base, as far as it holds anything."""
    from .image.commit import write_diff

    above = [frozen.path_here(one) for one in image.layers.get(tree.target, ())]
    if tree.target in uppers:
        above.append(uppers[tree.target])
    kept = tree.frozen[:len(tree.frozen) - len(image.layers.get(tree.target, ()))]
    below = [*tree.lowers, *map(frozen.path_here, kept)]
    prefix = tree.target.rstrip("/") + "/"
    skip = frozenset(path[len(prefix):] for path in plan.made if path.startswith(prefix))
    owner = None if os.getuid() == 0 else plan.ids
    written = []
    for number in range(len(above)):
        one = write_diff(planning.store(), [*below, *above[:number + 1]], skip=skip, owner=owner, latest=latest,
                         root=plan.root.look if tree.target == "/" else None)
        if one.entries or not planning.is_host(image):
            written.append(one)
    return written


def write_upper(image: Image, running: Running, latest: int | None) -> Written:
    """The layer that a sandbox on a stored image has made, for a build.

    :param latest: the latest modification time that is kept.
    """
    from .image.commit import Written, write_diff

    plan = running.plan
    [tree] = plan.root.trees
    layers = [*tree.lowers, f"/proc/self/fd/{running.scratch}/0/upper"]
    skip = frozenset(path.lstrip("/") for path in plan.made)
    store = planning.store()
    if "wide" in plan.body:
        from .runtime.apart import in_namespace_of

        def write() -> dict[str, Any]:
            one = write_diff(store, layers, skip=skip, latest=latest, root=plan.root.look)
            return {"digest": one.digest, "size": one.size, "entries": one.entries}
        return Written(**in_namespace_of(running, write))
    return write_diff(store, layers, skip=skip, owner=None if os.getuid() == 0 else plan.ids, latest=latest,
                      root=plan.root.look)


def commit(running: Running, image: Any, name: str | None, config: Mapping[str, Any], busy: bool) -> Image:
    """See ``Sandbox.commit``; ``busy``: something runs inside."""
    check_config(config)
    if config and planning.is_host(image):
        raise SandboxUsageError("a state of the host has no configuration", option=next(iter(config)),
                                value=next(iter(config.values())), allowed="name",
                                remedy="Give the sandboxes that use it these options.")
    if name is not None:
        check_name(name, image)
    if busy:
        return copy(running, image, name, config)
    return freeze(running, image, config)
