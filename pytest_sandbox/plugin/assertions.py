"""What a failed test says about its sandbox's changes: path by path, instead of two long lists."""

from __future__ import annotations

from typing import Any

_MOST = 40  # lines of differences
#: The title of what :func:`changes_section` gives, in reports.
CHANGES = "Changes in the sandbox"


def explain(left: Any, right: Any) -> list[str] | None:
    """The lines for two collections that are not equal; None when neither is of changes."""
    mine, others = _pairs(left), _pairs(right)
    if mine is None or others is None:
        return None
    found, wanted = dict(mine), dict(others)
    lines = []
    for path in sorted(found.keys() | wanted.keys()):
        have, want = found.get(path), wanted.get(path)
        if have == want:
            continue
        if want is None:
            lines.append(f"  not expected: {have:9} {path}")
        elif have is None:
            lines.append(f"  missing:      {want:9} {path}")
        else:
            lines.append(f"  other kind:   {have:9} {path} (expected: {want})")
    if not lines:
        lines.append("  the same changes, in another order or number")
    more = len(lines) - _MOST
    if more > 0:
        lines[_MOST:] = [f"  and {more} more"]
    return ["the sandbox's changes are not what was expected", *lines]


def _pairs(value: Any) -> list[tuple[str, str]] | None:
    """Changes as pairs of path and kind; also plain pairs, as tests write them."""
    if not isinstance(value, (list, tuple, set, frozenset)):
        return None
    pairs = [tuple(one) for one in value if isinstance(one, tuple) and len(one) == 2]
    if len(pairs) != len(value) or not all(isinstance(part, str) for pair in pairs for part in pair):
        return None
    return pairs


def are_changes(value: Any) -> bool:
    """Whether a collection holds ``Change``, looked at cheaply: this runs at every failed assertion."""
    if not isinstance(value, (list, tuple, set, frozenset)) or not value:
        return False
    kind = type(next(iter(value)))
    return kind.__name__ == "Change" and kind.__module__ == "pytest_sandbox.layerdiff"


def changes_section(sandbox: Any) -> str:
    """What a failed test had changed in its sandbox, for its report; empty when that cannot be said any more."""
    from pytest_sandbox.errors import SandboxError

    if not getattr(sandbox, "runs", False):
        return ""
    try:
        found = sandbox.changes()
    except (SandboxError, OSError):
        return ""
    lines = [f"{one.kind:9} {one.path}" for one in found[:_MOST]]
    if len(found) > _MOST:
        lines.append(f"and {len(found) - _MOST} more")
    return "\n".join(lines)
