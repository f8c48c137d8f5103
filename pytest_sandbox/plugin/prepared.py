"""States that a session makes once and its tests start from: ``sandbox_factory.prepared``. With xdist, once a run."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

    from pytest_sandbox.images import Image
    from pytest_sandbox.sandbox import Sandbox

#: What the images of a run are called while it lasts.
RUN = "run.pytest-sandbox"
_OLD = 3600  # seconds after which what a run has left in the store, and nobody uses, goes


class Factory:
    """What the fixture ``sandbox_factory`` returns; lives as long as the session.

    :param make: makes a started sandbox from options.
    """

    def __init__(self, config: pytest.Config, make: Callable[[dict[str, Any]], Sandbox]) -> None:
        self._config, self._make = config, make
        self._made: list[Sandbox] = []

    def __call__(self, **options: Any) -> Sandbox:
        sandbox = self._make(options)
        self._made.append(sandbox)
        return sandbox

    def close(self) -> None:
        """Ends what is left."""
        for sandbox in reversed(self._made):
            sandbox.close()
        self._made.clear()

    def prepared(self, prepare: Callable[[Sandbox], object], *, name: str | None = None, **options: Any) -> Image:
        """The state of a sandbox after ``prepare(sandbox)``, as an image that tests start from.

        Made once: kept in memory in a plain run; in a run with several workers made by the first that comes, handed to
        the others through the layer store, and removed by a later run.

        :param prepare: works the sandbox; what it raises is raised.
        :param name: tells two states apart that the same function prepares; its module and name by default.
        :param options: of the sandbox, as the marker takes them.
        """
        called = name or f"{prepare.__module__}.{getattr(prepare, '__qualname__', repr(type(prepare)))}"
        run = getattr(self._config, "workerinput", {}).get("testrunuid")
        if run is None:
            return self._commit(prepare, options, None)
        return self._shared(prepare, options, hashlib.sha256(f"{run} {called}".encode()).hexdigest()[:32])

    def _commit(self, prepare: Callable[[Sandbox], object], options: dict[str, Any], name: str | None) -> Image:
        sandbox = self._make(options)
        try:
            prepare(sandbox)
            return sandbox.commit(name)
        finally:
            sandbox.close()

    def _shared(self, prepare: Callable[[Sandbox], object], options: dict[str, Any], key: str) -> Image:
        from pytest_sandbox import planning
        from pytest_sandbox.errors import ImageNotFound
        from pytest_sandbox.image.locks import lock
        from pytest_sandbox.images import Image
        from pytest_sandbox.spec import make_spec

        from . import settings_of

        store = planning.store()
        spec = make_spec(options, settings_of(self._config).base())
        name = f"host:run-{key}" if planning.is_host(spec.image) else f"{RUN}/{key}:1"
        held = lock(store.layout.staging(f"run-{key}.lock"), exclusive=True, create=True)
        assert held is not None
        try:
            try:
                if store.has(name):
                    planning.resolve(name)
                    return Image(name)
            except ImageNotFound:
                pass
            _remove_old(store)
            return self._commit(prepare, options, name)
        finally:
            held.release()


def _remove_old(store: Any) -> None:
    """What earlier runs have left, as far as nobody uses it."""
    from pytest_sandbox.errors import ImageError
    from pytest_sandbox.image.collect import list_images, remove
    from pytest_sandbox.image.store import HOST_STATES
    from pytest_sandbox.keeping.shelf import Shelf

    needed = Shelf(store.layout).needed_images()
    for image in list_images(store):
        names = [one for one in image.names if one.startswith((f"{HOST_STATES}:run-", f"{RUN}/"))]
        if names and image.image_id not in needed and time.time() - max(image.used, image.created) > _OLD:
            for name in names:
                try:
                    remove(store, name)
                except (ImageError, OSError):
                    continue  # it is in use after all, or somebody else was faster

