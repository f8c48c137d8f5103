"""Which user ids the steps of a build have: all as root, subordinate ones as an ordinary user, or a single one.

With a single id everything in the image belongs to the step's user while it runs: that is said, once a build. Used by
``layered``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

from ..image.locks import lock
from ..image.owners import is_listed, owners_of
from ..runtime import launch
from ..runtime.subids import REMEDY, Ids, NoSubordinateIds, probe
from ..runtime.supervisor import find_host

if TYPE_CHECKING:
    from ..image.store import ImageStore

_Made = TypeVar("_Made")
_SHOWN = 3


class Identities:
    """The ids of one build's steps, found when the first of them runs. :meth:`close` ends what was started for them.

    :param say: takes a line for the user, or None.
    """

    def __init__(self, store: ImageStore, say: Callable[[str], object] | None) -> None:
        self._store, self._say = store, say
        self._stack = ExitStack()
        self._known = self._privileged = False
        self._ids: Ids | None = None
        self._mapped_away: set[str] = set()
        #: Why there is but one id; None where there are all or many.
        self.why_single: str | None = None

    def close(self) -> None:
        self._stack.close()

    def owners(self, keys: Sequence[str]) -> str | None:
        """What a step on these layers is to be given as ``SandboxSpec.owners``; says what that cannot give."""
        self._find()
        if self._privileged:
            return None
        if old := [key for key in keys if not is_listed(self._store.layout, key)]:
            self._tell(f"note: {len(old)} of the image's layers were unpacked by an older version, which did not note "
                       "whom files belong to: they are root's in this build. Remove the image (pytest-sandbox rm), "
                       "and get it again.")
        owned = owners_of(self._store.layout, keys)
        if self._ids is None:
            self._mapped(owned)
            return None
        beyond = [one for one in owned if one[1] >= self._ids.users or one[2] >= self._ids.groups]
        self._mapped(beyond)
        return self._list([one for one in owned if one not in set(beyond)]) if owned else ""

    def _find(self) -> None:
        if self._known:
            return
        self._known = True
        self._privileged = find_host().privileged
        if self._privileged:
            return
        try:
            self._ids = probe()
        except NoSubordinateIds as error:
            self.why_single = f"this user has a single id inside: {error}"
            self._tell(f"note: {self.why_single}. chown to others fails. {REMEDY}")
            return
        self._stack.enter_context(launch.with_ids(self._ids))
        self._tell(f"steps have {self._ids.users} user ids, as /etc/subuid allows")

    def _mapped(self, owned: Sequence[tuple[str, int, int]]) -> None:
        """Says what belongs to somebody whom this build cannot have."""
        new = [one for one in owned if one[0] not in self._mapped_away]
        self._mapped_away.update(name for name, _, _ in new)
        if new:
            shown = ", ".join(f"/{name} ({uid}:{gid})" for name, uid, gid in new[:_SHOWN])
            more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
            self._tell(f"note: mapped away: {shown}{more} belong to the user of the next step while that runs")

    def _list(self, owned: list[tuple[str, int, int]]) -> str:
        """A file with the list, which is there until the build ends; its name tells what is in it."""
        text = json.dumps(owned).encode()
        path = self._store.layout.staging(f"owners-{os.getpid()}-{hashlib.sha256(text).hexdigest()[:24]}")
        if not os.path.exists(path):
            held = lock(f"{path}.lock", exclusive=True, create=True)
            assert held is not None
            self._stack.callback(held.remove)
            self._stack.callback(os.unlink, path)
            with open(path, "xb") as file:
                file.write(text)
        return path

    def _tell(self, text: str) -> None:
        if self._say is not None:
            self._say(text)
