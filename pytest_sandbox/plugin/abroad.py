"""All tests of a session whose body runs in an image's own Python. Used by ``conductor``, ``attempt`` and ``inbox``.

Items of one image are a party (``party``); it has a guest from the moment that one of them is near until after the last
(``hosting``).
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxUsageError
from pytest_sandbox.runtime.protocol import wait_readable

from . import briefing
from .options import PytestSandboxWarning
from .party import Party

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_sandbox.spec import SandboxSpec

    from .conductor import Conductor
    from .item import ItemRun

#: How many tests ahead a guest is started.
NEAR = 40


def is_foreign(spec: SandboxSpec) -> bool:
    """Whether a body in such a sandbox needs another Python than ours."""
    image = spec.image
    if image == "host":
        return False
    from pytest_sandbox.planning import is_host

    return not is_host(image)


class Abroad:
    """All parties of a session. Made when the first item of another image than the host's is found."""

    def __init__(self, conductor: Conductor) -> None:
        self.conductor = conductor
        self.config = conductor.session.config
        self._parties: dict[Any, Party] = {}
        self._positions: dict[pytest.Item, int] = {}
        self._visible: tuple[str, ...] = ()
        self._told: set[str] = set()
        self._wanted: ItemRun | None = None
        self._idle, self._memory = conductor.settings.guest_idle, conductor.settings.guest_memory
        self._look_again, self._short = 0.0, False

    def adopt(self, run: ItemRun) -> None:
        """Gives ``run`` its party.

        :raises pytest.UsageError: when its options cannot be had in an image's own Python.
        """
        spec = run.spec
        why = _refusal(spec, self.home_spec(spec))
        if why is not None:
            raise pytest.UsageError(f"{run.item.nodeid}: " + str(SandboxUsageError(
                f"{why[0]} cannot be had for a test's body in image {str(spec.image)!r}", option=why[0],
                value=getattr(spec, why[0]), why=why[1],
                remedy="Leave it out, or keep the body on the host: request the sandbox fixture.")))
        key = (spec.image if isinstance(spec.image, str) else spec.image.token, spec.python)
        party = self._parties.get(key)
        if party is None:
            party = self._parties[key] = Party(self, spec)
        party.runs.append(run)
        run.party = party

    def adopted(self) -> None:
        """All items have been seen."""
        items = self.conductor.session.items
        self._positions = {item: position for position, item in enumerate(items)}
        self._visible = briefing.visible(self.config, items)

    @property
    def is_worker(self) -> bool:
        """Whether this is one of pytest-xdist's workers, which does not know which tests it will get."""
        return hasattr(self.config, "workerinput")

    def position(self, item: pytest.Item) -> int:
        return self._positions[item]

    def visible(self) -> tuple[str, ...]:
        """The directories of the host that are visible in the images, at their own paths."""
        return self._visible

    def near(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """``item``'s turn comes: starts the guests that will be wanted soon."""
        position = self._positions.get(item, 0)
        parties = self._of([item, nextitem] if self.is_worker
                           else self.conductor.session.items[position:position + NEAR])
        at_hand = self._of([item, nextitem])
        for party in parties[:2]:
            if party in at_hand or not self.is_short():
                party.hosting.wanted()

    def _of(self, items: Sequence[pytest.Item | None]) -> list[Party]:
        found: list[Party] = []
        for one in items:
            run = self.conductor.run_of(one)
            if run is not None and run.party is not None and run.party not in found:
                found.append(run.party)
        return found

    def leave(self, item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
        """``item`` is about to be torn down: ends the guests of other tests that are not needed any more, or rest.

        Returns what there is to report of their fixtures' end, which belongs to ``item``'s teardown, as it does
        wherever pytest tears down late what tests before have set up.
        """
        at_hand = self._of([item, nextitem])
        others = [one for one in self._parties.values() if one.hosting.guest is not None and one not in at_hand]
        if not others:
            return []
        found: list[pytest.TestReport] = []
        position = self._positions.get(item, 0) + 1
        soon = self._of([nextitem] if self.is_worker else self.conductor.session.items[position:position + NEAR])
        for party in others:
            if (nextitem is None or self.is_short() or (party not in soon and party.idle() > self._idle)) and (
                    party.may_rest()):
                report = party.rest()
                _tell_warnings(party, item)
                if report is not None:
                    party.explain(report)
                    found.append(report)
        return found

    def is_short(self) -> bool:
        """Whether memory is short: guests that are not needed at once should make room. Looked up once a second."""
        now = time.monotonic()
        if now >= self._look_again:
            self._look_again = now + 1.0
            available, total = _memory()
            least = self._memory if self._memory is not None else total // 20
            self._short = available < least
        return self._short

    def forward(self) -> None:
        """Shows what tests in images have shown past all capturing, while one of them runs."""
        for party in self._parties.values():
            party.hosting.forward(log=False)

    # As the spares of tests in the host's image (see ``spares``), for ``inbox``.

    def ahead(self, run: ItemRun) -> None:
        """``run``'s test has begun: gets ready for the next one."""
        self._wanted = None
        following = self.conductor.run_of(run.nextitem)
        if following is not None and following.party is not None and following.party.wait_for_next(run, following):
            self._wanted = following
            self.go_on()

    @property
    def pending(self) -> int:
        """A descriptor that can be read when :meth:`go_on` has something to do; -1 when it has not."""
        wanted = self._wanted
        return -1 if wanted is None or wanted.party is None else wanted.party.pending(wanted)

    def go_on(self) -> None:
        """Has the next test's child forked, if its sandbox is ready."""
        wanted = self._wanted
        if wanted is not None and wanted.party is not None and wait_readable(self.pending, 0):
            self._wanted = None
            wanted.party.fork_ahead(wanted)

    def home_spec(self, spec: SandboxSpec) -> SandboxSpec:
        """The sandbox that the guest of such a test is at home in: what the configuration says, in that image."""
        base = self.conductor.settings.base()
        return self.conductor.with_persistence(base.merged({"image": spec.image, "scope": "function"}))

    def tell_once(self, text: str) -> None:
        """A warning of the run, and of no test in it."""
        if text not in self._told:
            self._told.add(text)
            import warnings

            warning = warnings.WarningMessage(PytestSandboxWarning(text), PytestSandboxWarning, "", 0)
            self.config.hook.pytest_warning_recorded.call_historic(kwargs={
                "warning_message": warning, "nodeid": "", "when": "config", "location": None})

    def close(self) -> None:
        """The session is over. What is left by now is so because something ended it early."""
        for party in self._parties.values():
            report = party.rest()
            if self.conductor.session.items:
                _tell_warnings(party, self.conductor.session.items[-1])
            if report is None:
                continue
            # As in a plain run, where no test is there any more either: shown when capturing ends.
            for name, text in report.sections:
                if name.startswith("Captured std"):
                    print(text, end="", file=sys.stderr if "stderr" in name else sys.stdout)
            if report.failed:
                self.tell_once(f"a fixture in image {party.image!r} failed at its end:\n{report.longreprtext[:10_000]}")


def _tell_warnings(party: Party, item: pytest.Item) -> None:
    """Tells of the warnings of a guest that has ended as of ``item``'s."""
    for message in party.warned:
        item.ihook.pytest_warning_recorded.call_historic(kwargs={
            "warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None})
    party.warned.clear()


def _memory() -> tuple[int, int]:
    """What this machine could give away of its memory, and all of it, in bytes; see proc_meminfo(5)."""
    found = {"MemAvailable": 0, "MemTotal": 0}
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                name, _, text = line.partition(":")
                if name in found:
                    found[name] = int(text.split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return 1, 0  # nobody knows: it is not short
    return found["MemAvailable"], found["MemTotal"]


def _refusal(spec: SandboxSpec, home: SandboxSpec) -> tuple[str, str] | None:
    """The option that is not to be had, and why."""
    if spec.seccomp != home.seccomp:
        return "seccomp", "each test is a fork of one process, which has the filter of the ini option sandbox_seccomp"
    return None
