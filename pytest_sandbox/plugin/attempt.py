"""One run of a sandboxed item, outside: what happens in the pytest process while, and after, it runs in its fork.

An attempt goes through three rooms, and holds what they share:

1. ``entering``: what outlives the sandbox is set up, the sandbox is started, and pytest forks into it
   (``entering_abroad`` where the body runs in the Python of another image);
2. ``listening``: what the child says is heard, until its end;
3. ``delivering``: each phase's report is handed to pytest, and after the teardown what is due out here is done.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from .delivering import Delivery
from .entering import Entry
from .entering_abroad import EntryAbroad
from .inbox import Inbox
from .listening import Listener
from .signals import Signals

if TYPE_CHECKING:
    from .household import Fork
    from .item import ItemRun
    from .limits import Limits
    from .timers import Timers


class Attempt:
    """Made when the item's set-up begins. Holds the sandbox and the child from the fork until the teardown is
    reported.
    """

    def __init__(self, run: ItemRun) -> None:
        self.run = run
        self.item = run.item
        self.conductor = run.conductor
        self.keeper = run.conductor.keeper
        self.forked = False
        self.fork: Fork | None = None
        self.inbox = Inbox(run.item, run.conductor.shared_objects)
        self.timers: Timers | None = None
        self.limits: Limits | None = None
        self.signals = Signals()
        self.entry = Entry(self) if run.party is None else EntryAbroad(self, run.party)
        self.listener = Listener(self)
        self.delivery = Delivery(self)

    def close(self) -> None:
        """The attempt is over. Its processes are gone, at the latest, when the next sandbox starts.

        A group's go on, unless the attempt was left before it had ended.
        """
        fork, self.fork = self.fork, None
        group = self.run.group
        if fork is not None and self.conductor.live and not (self.inbox.done or self.inbox.ending):
            self.listener.leave_early(fork)
        self.signals.hold()  # half closed it would be closed again
        if fork is not None and not (self.inbox.waits and group is not None and group.fork is fork):
            fork.close()
            if group is not None and group.fork is fork:
                group.fork = None
        if self.forked:
            os.environ.pop("PYTEST_CURRENT_TEST", None)
        if self.keeper is not None:
            self.keeper.clear_gate()
        self.signals.end()
