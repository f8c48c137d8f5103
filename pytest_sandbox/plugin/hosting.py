"""The guest of one image: started when a test is near, heard, given up, started again. ``party``'s.

Everything here is about the guest's own life; what it does for tests is ``party``'s, and what a guest is, is said in
``runtime.guests``.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from pytest_sandbox.errors import SandboxError, SandboxGuestError, SandboxStartError

from . import briefing, compat, measuring
from .collected import Collected
from .relaying import Relay

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_sandbox.runtime.guests import Guest
    from pytest_sandbox.spec import SandboxSpec

    from .abroad import Abroad
    from .item import ItemRun

#: How often a guest that has died is started anew for the tests that are left.
MOST_STARTS = 3
#: Directories of an image that no directory of the host may lie over.
_SYSTEM = ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var",
           "/tmp", "/root", "/home", "/opt", "/usr/lib", "/usr/bin", "/usr/local")


class Hosting:
    """Made with its party. ``guest`` is there from its start to its end, ``collected`` once it has collected.

    :param runs: the tests that are wanted of it; a list that grows until the session's tests begin.
    """

    def __init__(self, abroad: Abroad, spec: SandboxSpec, runs: Sequence[ItemRun]) -> None:
        self.abroad = abroad
        self.conductor = abroad.conductor
        self.name = spec.image if isinstance(spec.image, str) else str(spec.image)
        self.image: str | None = None  # with what is installed for the tests
        self.guest: Guest | None = None
        self.collected: Collected | None = None
        self.dump = -1  # where faulthandler writes in there
        self._spec, self._runs = spec, runs
        self.began = 0.0  # when it was started, by time.monotonic()
        self._starts = 0
        self._relay: Relay | None = None
        self._supplied = False
        self._here: Callable[[str], str | None] = lambda name: None
        self._failed: SandboxError | None = None
        self._unsent: tuple[dict[str, Any], str, int] | None = None  # the session, and where to keep what is compiled
        self._first: tuple[dict[str, Any], list[int]] | None = None  # of its messages

    @property
    def there(self) -> bool:
        """Whether it has collected, and not ended as far as we know."""
        return self.guest is not None and self.collected is not None and self.guest.alive()

    def directory(self) -> str:
        """Where its tests start."""
        return briefing.directory(self.abroad.config, self.abroad.visible())

    def patience(self) -> float:
        """How long it may take for one thing, in seconds."""
        return float(self.conductor.settings.guest_timeout)

    def wanted(self) -> None:
        """One of the tests is near: starts the guest, unless it is there. Never raises, never waits."""
        try:
            if self.guest is None:
                if self._failed is None:
                    self._start()
            elif self._unsent is not None and self._first is None:
                self._first = self.guest.heard()
                if self._first is not None and "hello" in self._first[0]:
                    self._instruct(self.guest)
        except (SandboxError, OSError):
            pass  # the test will hear of it

    def ready(self) -> Guest:
        """The guest, when it has collected.

        :raises SandboxError: when there is none to be had.
        """
        if self.guest is not None and not self.guest.alive():
            self.forget()
        if self.guest is None:
            if self._failed is not None:
                raise _again(self._failed, self.name)
            if self._starts >= MOST_STARTS:
                raise SandboxGuestError(f"the guest of image {self.name!r} is not started again", image=self.name,
                                        why=f"it has died {self._starts} times")
            try:
                self._start()
            except SandboxError as error:
                self._failed = error
                raise
        assert self.guest is not None
        if self.collected is None:
            try:
                if not self._collect(self.guest):
                    self.forget()
                    self._starts -= 1
                    return self.ready()
            except SandboxError as error:
                self._failed = error
                self.forget()
                raise
        return self.guest

    def forget(self) -> None:
        """Ends the guest, if it is there."""
        guest, self.guest, self.collected = self.guest, None, None
        self._unsent = self._first = None
        if guest is not None:
            guest.close()
        if self.dump >= 0:
            os.close(self.dump)
            self.dump = -1
        self._end_relay()

    def forward(self, log: bool = True) -> None:
        """Shows what its tests have shown past all capturing. See ``Relay.forward``."""
        if self._relay is not None:
            self._relay.forward(log)

    def _end_relay(self) -> None:
        relay, self._relay = self._relay, None
        if relay is not None:
            relay.close()

    def rested(self) -> None:
        """It was ended though it was well: that does not count as a death."""
        self._starts = max(0, self._starts - 1)

    def _start(self) -> None:
        from pytest_sandbox import bytecode, grafts
        from pytest_sandbox.planning import plan_abroad
        from pytest_sandbox.runtime import guestplans, guests, launch
        from pytest_sandbox.spec import Mount

        seen = self.abroad.visible()
        for one in seen:
            if one in _SYSTEM:
                raise SandboxGuestError(
                    f"a test's body cannot run in image {self.name!r}", image=self.name,
                    why=f"the project's directory, {one}, is there at its own path, and would cover the image's own",
                    remedy="Move the project, or give pytest another --rootdir.")
        spec = self.abroad.home_spec(self._spec)
        if text := self.conductor.settings.requirements():
            spec = spec.merged({"image": self._with_requirements(spec, text)})
        mounts = [*spec.mounts, Mount(grafts.graft_made(), grafts.TARGET, True)]
        kept, folder, number = self._keeps_compiled(spec), bytecode.WRITTEN, -1
        if kept is not None and bytecode.is_kept(kept):
            mounts.append(Mount(kept, bytecode.TARGET, True))
            kept, folder = None, bytecode.TARGET
        home = spec.merged({"mounts": tuple(mounts), "timeout": None})
        plan = plan_abroad(home, seen)
        if kept is not None:
            number = next(step[1] for step in plan.body["mounts"] if step[0] == "overlay" and step[2] == "/")
        guest = guests.Guest(self.name, launch.supervisor().host)
        self._starts += 1
        self.began = time.monotonic()
        try:
            python = [self._spec.python] if self._spec.python else ["python3", "python"]
            given = {**dict(plan.root.env or ()), **dict(spec.env), "PYTHONDONTWRITEBYTECODE": "1"}
            env = {name: value for name, value in given.items() if value is not None}
            argv = ["-c", f"exec(compile(open('{grafts.TARGET}/pytest_sandbox/plugin/landing.py').read(), "
                          "'landing.py', 'exec'))", grafts.TARGET, folder]
            config = self.abroad.config
            guest.start(plan, guestplans.disk(spec), python, argv, env, self.directory())
            base = compat.temporary_base(config)
            persists = base is not None and any(one.target == os.path.realpath(base) for one in home.persist)
            told = briefing.brief(config, [run.item for run in self._runs], seen, image=self.name,
                                  live=self.conductor.live, keeps=self.conductor.keeper is not None, persists=persists)
            self._relay = Relay(config)
            told["written"] = folder if kept is not None else None
            if kept is not None:
                self._unsent = told, kept, number
            else:
                self._tell(guest, told)
        except SandboxStartError as error:
            guest.close()
            from pytest_sandbox.runtime.probe import explain

            raise explain(error) from error
        except BaseException:
            guest.close()
            self._end_relay()
            raise
        self.guest = guest

    def _keeps_compiled(self, spec: SandboxSpec) -> str | None:
        """Where what the image's Python compiles is kept; None for what may change at any time."""
        from pytest_sandbox import bytecode
        from pytest_sandbox.planning import resolve

        image_id = resolve(spec.image).image_id if isinstance(spec.image, str) else None
        return None if image_id is None else bytecode.place(image_id, self._spec.python)

    def _instruct(self, guest: Guest) -> None:
        """It has said hello, and knows nothing of the tests yet: takes what it has compiled, and tells it of them."""
        if self._unsent is not None:
            from pytest_sandbox import bytecode

            (told, kept, number), self._unsent = self._unsent, None
            bytecode.take(guest.layer, number, self.abroad.visible(), kept)
            self._tell(guest, told)

    def _tell(self, guest: Guest, session: dict[str, Any]) -> None:
        """Tells it of the session, and gives it what its tests' output and log go to."""
        assert self._relay is not None
        with open(os.devnull, "r+b", 0) as null:
            streams: Sequence[int] = (null.fileno(), *self._relay.files[:2])
            if self.conductor.live:
                found = compat.true_streams(self.abroad.config)
                streams = [one if _is_open(one) else null.fileno() for one in found]
            guest.send({"session": session}, (*streams, self._relay.files[2]), "started")

    def _with_requirements(self, spec: SandboxSpec, text: str) -> str:
        from pytest_sandbox.requirements import with_requirements

        if not isinstance(spec.image, str):
            raise SandboxGuestError(f"sandbox_requirements cannot be installed in {self.name}", image=self.name,
                                    why="it is a state that was committed",
                                    remedy="Install them before the commit.")
        self.image = with_requirements(spec.image, self._spec.python or "python3", text)
        return self.image

    def _collect(self, guest: Guest) -> bool:
        """Hears what it has collected. False when it has to be started again, with more beside it."""
        until = guest.by(self.patience())
        (message, _), self._first = self._first or guest.receive(until, "started"), None
        if "lacks" in message and not self._supplied:
            self._supply(message["lacks"])
            return False
        if "unfit" in message:
            guest.close()
            raise SandboxGuestError(
                f"a test's body cannot run in image {self.name!r}", image=self.name, why=str(message["unfit"])[:1000],
                remedy="Or keep the body on the host: request the sandbox fixture and run commands in the image.")
        if "hello" in message:
            self._instruct(guest)
            message, fds = guest.receive(until, "collected the tests")
            self.dump = fds.pop(0) if fds else -1
        if "collected" not in message:
            printed = guest.printed()
            guest.close()
            raise SandboxGuestError(
                f"the guest of image {self.name!r} could not collect the tests", image=self.name, output=printed,
                why=str(message.get("broken", "it said something else"))[-20_000:].strip())
        told = message["collected"]
        self.collected = Collected(self.conductor.session, self.name, told)
        self._here = measuring.mapper(self.abroad.visible(), self.collected.path)
        measured = told.get("coverage")
        if isinstance(measured, str):
            self.abroad.tell_once(f"coverage of the tests in image {self.name!r} is not measured, since its Python "
                                  f"cannot import coverage.py: {measured[:500]}")
        self.measured(measured)
        if lacking := self.collected.lacking:
            self.abroad.tell_once(
                f"image {self.name!r} has no {', '.join(lacking)}: its tests run without what is a plugin of this run "
                "elsewhere. Install them in the image to have them there.")
        return True

    def measured(self, sent: Any) -> None:
        """Adds what the guest or a test of its has measured to what is measured here.

        :raises SandboxProtocolError: when it cannot be read.
        """
        if sent is not None and not isinstance(sent, str):
            measuring.add(sent, self._here)

    def _supply(self, version: object) -> None:
        """Its Python needs what newer ones have in their standard library.

        :raises SandboxGuestError: when that cannot be had.
        """
        from pytest_sandbox import grafts, wheels

        self._supplied = True
        if version != [3, 10]:
            raise SandboxGuestError(f"the guest of image {self.name!r} sent what is not an answer", image=self.name,
                                    why=f"a version of Python that it cannot have: {version!r:.50}")
        try:
            wheels.obtain((3, 10), bool(self.abroad.config.getoption("sandbox_offline", False)))
        except SandboxGuestError as error:
            raise SandboxGuestError(f"a test's body cannot run in image {self.name!r}", image=self.name,
                                    why=str(error)) from None
        grafts.graft_made(anew=True)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _again(error: SandboxError, image: str) -> SandboxError:
    """The error for each later test of a guest that could not be had."""
    return SandboxGuestError(f"there is no guest of image {image!r}", image=image,
                             why=f"{str(error).partition(chr(10))[0]} (told in full of the first test of that image)")
