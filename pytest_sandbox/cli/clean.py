"""``pytest-sandbox doctor --clean``: shows and removes what killed runs have left.

Most of a sandbox is gone with its last process: mounts, networks, the writable layer. What can outlive a kill of
everything at once are cgroups, and half-made things in the store. Whoever makes one of these holds a lock on it
(flock(2)), which the kernel lets go when its holder ends, however it ends; that is how a dead run's are told apart.
"""

from __future__ import annotations

import json
import os


def clean(as_json: bool) -> int:
    """Removes it, and prints each thing. The exit status is 1 if something is still there."""
    found = [*_cgroups(), *_store()]
    if as_json:
        print(json.dumps({"left": found}, indent=2))
    elif not found:
        print("Killed runs have left nothing behind.")
    else:
        for one in found:
            print(f"  {'removed' if one['removed'] else 'STILL THERE'}  {one['path']}  ({one['what']})")
    return 0 if all(one["removed"] for one in found) else 1


def _cgroups() -> list[dict[str, object]]:
    from pytest_sandbox.runtime.leftovers import dead_cgroups
    return [{"kind": "cgroup", "path": path, "removed": not os.path.exists(path),
             "what": f"the cgroup of a run that has ended, {count} processes in it"}
            for path, count in dead_cgroups(remove=True)]


def _store() -> list[dict[str, object]]:
    from pytest_sandbox.image.layout import Layout, default_root
    from pytest_sandbox.image.progress import show_bytes
    if not (default_root() / "v1").exists():
        return []  # nothing was ever stored: nor do we make the store
    layout = Layout()
    left = layout.leftovers()
    layout.sweep()
    return [{"kind": "store", "path": path, "removed": not os.path.lexists(path),
             "what": f"half made or half removed in the store, {show_bytes(size)}"} for path, size in left]
