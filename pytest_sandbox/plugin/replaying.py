"""``--sandbox-replay``, which ``pytest-sandbox replay`` gives: a test runs in a sandbox as the kept one had started."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from pytest_sandbox.errors import SandboxError

if TYPE_CHECKING:
    from pytest_sandbox.keeping.record import Record
    from pytest_sandbox.spec import SandboxSpec

_RECORD: pytest.StashKey[Record] = pytest.StashKey()


def replayed(item: pytest.Item, spec: SandboxSpec, path: str) -> SandboxSpec:
    """The spec of the kept test if ``item`` is that test, else ``spec``. What its options do not tell stays.

    :raises pytest.UsageError: when the record cannot be used, or its image is gone.
    """
    from pytest_sandbox.keeping.opening import start_image
    from pytest_sandbox.keeping.record import Record

    stash = item.config.stash
    try:
        if _RECORD not in stash:
            with open(path, encoding="utf-8") as file:
                stash[_RECORD] = Record.from_json(json.load(file), path)
        record = stash[_RECORD]
        if item.nodeid != record.nodeid:
            return spec
        kept = record.spec()
        options = {name: getattr(kept, name) for name in kept.given}
        if record.start.exact:
            options["image"] = start_image(record, os.path.dirname(path))
            if record.start.config:
                from pytest_sandbox.images import Image

                options["image"] = Image(options["image"], **dict(record.start.config))
        return spec.merged(options)
    except (OSError, ValueError, SandboxError) as error:
        raise pytest.UsageError(f"--sandbox-replay={path}: {error}") from None
