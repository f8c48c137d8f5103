"""Has the pages that a test's process and pytest itself write to copied by the fork; for :mod:`.attempt`.

Where the pytest process forks each test itself, both sides copy about a thousand pages a test one by one, whoever
writes to them first. Pinned pages are copied by the fork, once, for half the price (see ``runtime.prefault``). It is
worth its while in a run of many tests only.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_sandbox.runtime.prefault import Meeting, Pages

#: How many tests are forked before anything is learned.
FIRST = 10


class Copies:
    """One a session; counts its forks, and learns from a few of them."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._forks = 0
        self._pages: Pages | None = None
        self._meeting: Meeting | None = None

    def before_fork(self, useful: bool) -> None:
        """The pytest process is about to fork a test; ``useful``: once, and the child ends with that test."""
        self.over()
        self._forks += 1
        if not useful or self._forks < FIRST or (self._pages is not None and not self._pages.learns):
            return
        from pytest_sandbox.runtime.prefault import Meeting, Pages

        if self._pages is None:
            self._pages = Pages(others=False, both=True)
        if self._pages.learns:
            self._meeting = Meeting()

    def inside(self) -> None:
        """In the fork."""
        if self._meeting is not None:
            from pytest_sandbox.runtime import entering

            self._meeting.inside()
            entering.when_told.append(self._meeting.come)

    def outside(self) -> None:
        """The fork has been made."""
        if self._meeting is not None:
            self._meeting.forked()

    def look(self, pid: int) -> None:
        """The child has told all, and waits at its end if it is one to learn from."""
        meeting, pages = self._meeting, self._pages
        if meeting is not None and pages is not None and self._owner == os.getpid() and meeting.has_come():
            pages.look(pid)
        self.over()

    def over(self) -> None:
        """Whoever waits may go."""
        meeting, self._meeting = self._meeting, None
        if meeting is not None:
            meeting.over()
