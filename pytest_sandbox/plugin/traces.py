"""Leaves the plugin's own frames out of a test's traceback. Called by ``conductor`` before a report is made.

pytest hides such frames in the styles that it formats itself. Python's formatting (``--tb=native``, exception groups,
``--full-trace``) shows every frame, and there they would be what tells a sandboxed test from a plain one. Of a doctest,
and of other items that are no functions, pytest shows its own frames and pluggy's in every style: there it would be the
one of pluggy through which an exception passes each hook wrapper.
"""

from __future__ import annotations

import inspect
import os
from types import TracebackType

import pluggy

_PLUGGY = os.path.dirname(pluggy.__file__)
_HERE = os.path.dirname(__file__)
#: Between pytest's runner and the test there is nothing of this plugin but what is in these files.
_OWN = frozenset(os.path.join(_HERE, name) for name in (
    "asked.py", "compat.py", "conductor.py", "delivering.py", "entering.py", "entering_abroad.py", "guest.py",
    "higher.py", "item.py", "listening.py", "visiting.py"))


def leave_out_own_frames(error: BaseException) -> None:
    """Unlinks those frames from the traceback of ``error`` and of all that it was raised from or holds."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        _unlink(one)
        pending += (one.__cause__, one.__context__)
        members = getattr(one, "exceptions", ())
        if isinstance(members, tuple):  # of an exception group; the attribute of another kind may be anything
            pending += [member for member in members if isinstance(member, BaseException)]


def _unlink(error: BaseException) -> None:
    trace = _next_of_others(error.__traceback__)
    if trace is None:
        return  # all of it is ours: then it is ours to show
    if trace is not error.__traceback__:
        error.__traceback__ = trace
    while trace.tb_next is not None:
        following = _next_of_others(trace.tb_next)
        if following is not trace.tb_next:
            trace.tb_next = following
        else:
            trace = trace.tb_next


def _next_of_others(trace: TracebackType | None) -> TracebackType | None:
    """``trace``, or what follows the frames of ours that it begins with."""
    while trace is not None and (_is_own(trace) or _leads_through_wrapper(trace)):
        trace = trace.tb_next
    return trace


def _leads_through_wrapper(trace: TracebackType) -> bool:
    """Whether this is pluggy, throwing what an inner implementation raised into a wrapper of ours."""
    code, inner = trace.tb_frame.f_code, trace.tb_next
    return (
        inner is not None and inner.tb_next is not None and _is_own(inner)
        and bool(inner.tb_frame.f_code.co_flags & inspect.CO_GENERATOR)
        and os.path.dirname(code.co_filename) == _PLUGGY
    )


def _is_own(trace: TracebackType) -> bool:
    return trace.tb_frame.f_code.co_filename in _OWN
