"""Tests whose body runs in an image's own Python: the guests that they run in, seen from the caller's session.

Used by ``conductor`` and ``attempt``. Items of one image are a :class:`Party`; it has a guest from the moment that one
of them is near until after the last (see ``runtime.guests``). What the guest says is believed in nothing but what it is
about: its own tests.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from pytest_sandbox.errors import SandboxError, SandboxGuestError, SandboxStartError, SandboxUsageError
from pytest_sandbox.runtime.protocol import wait_readable

from . import compat, reporting, wire
from .household import Fork
from .options import PytestSandboxWarning

if TYPE_CHECKING:
    from pytest_sandbox.runtime.guests import Guest, GuestChild
    from pytest_sandbox.runtime.plan import Plan
    from pytest_sandbox.sandbox import Sandbox
    from pytest_sandbox.spec import SandboxSpec

    from .asked import Wanted
    from .conductor import Conductor
    from .item import ItemRun

#: How many tests ahead a guest is started.
NEAR = 40
#: How often a guest that has died is started anew for the tests that are left.
MOST_STARTS = 3
#: How many sandboxes wait for the tests after the one at hand.
AHEAD = 2
#: Directories of an image that no directory of the host may lie over.
_SYSTEM = ("/", "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var",
           "/tmp", "/root", "/home", "/opt", "/usr/lib", "/usr/bin", "/usr/local")


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

    def adopt(self, run: ItemRun) -> None:
        """Gives ``run`` its party.

        :raises pytest.UsageError: when its options cannot be had in an image's own Python.
        """
        spec = run.spec
        why = _refusal(spec, self.home_spec(spec))
        if why is not None:
            raise pytest.UsageError(f"{run.item.nodeid}: " + str(SandboxUsageError(
                f"{why[0]} cannot be had for a test's body in image {str(spec.image)!r} yet", option=why[0],
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
        self._visible = visible(self.config, items)

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
        """``item``'s turn comes: starts the guests that will be wanted soon, ends those that will not be any more."""
        items, position = self.conductor.session.items, self._positions.get(item, 0)
        soon = [item, nextitem] if self.is_worker else items[position:position + NEAR]
        parties: list[Party] = []
        for one in soon:
            run = self.conductor.run_of(one)
            if run is not None and run.party is not None and run.party not in parties:
                parties.append(run.party)
        for party in parties[:2]:
            party.wanted()

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
        """The session is over."""
        for party in self._parties.values():
            party.close(finish=True)


def _refusal(spec: SandboxSpec, home: SandboxSpec) -> tuple[str, str] | None:
    """The option that is not to be had, and why."""
    if spec.scope != "function":
        return "scope", "its tests have a sandbox each"
    if spec.network not in ("none", "host"):
        return "network", 'it knows "none" and "host"'
    if spec.seccomp != home.seccomp:
        return "seccomp", "each test is a fork of one process, which has the filter of the ini option sandbox_seccomp"
    return None


def visible(config: pytest.Config, items: list[pytest.Item]) -> tuple[str, ...]:
    """The directories that the tests' own files are in: the project's, and those of tests outside of it."""
    places = {str(config.rootpath)}
    places |= {str(item.path.parent) for item in items if getattr(item, "path", None) is not None}
    if config.inipath is not None:
        places.add(str(config.inipath.parent))
    found: list[str] = []
    for one in sorted(os.path.realpath(place) for place in places):
        if not any(one == known or one.startswith(f"{known}/") for known in found):
            found.append(one)
    return tuple(found)


class Party:
    """The tests of one image, and their guest while there is one."""

    def __init__(self, abroad: Abroad, spec: SandboxSpec) -> None:
        self.abroad = abroad
        self.conductor = abroad.conductor
        self.image = spec.image if isinstance(spec.image, str) else str(spec.image)
        self.spec = spec
        self.runs: list[ItemRun] = []
        self.guest: Guest | None = None
        self.dump = -1  # where faulthandler writes in there
        self._positions: dict[str, int] | None = None
        self._told: dict[str, Any] = {}
        self._image: str | None = None  # with what is installed for the tests
        self._plans: dict[SandboxSpec, Plan] = {}
        self._starts = 0
        self._failed: SandboxError | None = None
        self._waiting: tuple[Fork, ItemRun] | None = None
        self._last: ItemRun | None = None

    # The guest.

    def wanted(self) -> None:
        """One of the tests is near: starts the guest, unless it is there. Never raises."""
        if self.guest is None and self._failed is None:
            try:
                self._start()
            except (SandboxError, OSError):
                pass  # the test will hear of it

    def _start(self) -> None:
        from pytest_sandbox import grafts
        from pytest_sandbox.planning import plan_abroad
        from pytest_sandbox.runtime import guests, launch
        from pytest_sandbox.spec import Mount

        seen = self.abroad.visible()
        for one in seen:
            if one in _SYSTEM:
                raise SandboxGuestError(
                    f"a test's body cannot run in image {self.image!r}", image=self.image,
                    why=f"the project's directory, {one}, is there at its own path, and would cover the image's own",
                    remedy="Move the project, or give pytest another --rootdir.")
        spec = self.abroad.home_spec(self.spec)
        if text := self.conductor.settings.requirements():
            from pytest_sandbox.requirements import with_requirements

            if not isinstance(spec.image, str):
                raise SandboxGuestError(f"sandbox_requirements cannot be installed in {self.image}", image=self.image,
                                        why="it is a state that was committed",
                                        remedy="Install them before the commit.")
            self._image = with_requirements(spec.image, self.spec.python or "python3", text)
            spec = spec.merged({"image": self._image})
        graft = Mount(grafts.graft(), grafts.TARGET, True)
        self._home_spec = spec.merged({"mounts": (*spec.mounts, graft), "timeout": None})
        plan = plan_abroad(self._home_spec, seen)
        guest = guests.Guest(self.image, launch.supervisor().host)
        self._starts += 1
        try:
            python = [self.spec.python] if self.spec.python else ["python3", "python"]
            env = dict(plan.root.env or ())
            env.update({"PYTHONDONTWRITEBYTECODE": "1"})
            argv = ["-c", f"exec(compile(open('{grafts.TARGET}/pytest_sandbox/plugin/landing.py').read(), "
                          "'landing.py', 'exec'))", grafts.TARGET]
            guest.start(plan, guests.disk(spec), python, argv, env, self._directory(),
                        compat.true_streams(self.abroad.config) if self.conductor.live else None)
            guest.send({"session": self._order()}, doing="started")
        except SandboxStartError as error:
            guest.close()
            from pytest_sandbox.runtime.probe import explain

            raise explain(error) from error
        except BaseException:
            guest.close()
            raise
        self.guest = guest

    def _directory(self) -> str:
        where = os.path.realpath(os.getcwd())
        if any(where == one or where.startswith(f"{one}/") for one in self.abroad.visible()):
            return where
        return str(self.abroad.config.rootpath)

    def _order(self) -> dict[str, Any]:
        config = self.abroad.config
        options = {}
        for name, value in vars(config.option).items():
            if name == "file_or_dir" or name.startswith("_"):
                continue  # the parser's own
            try:
                options[name] = wire.pack(value, lambda one: None, opaque=False)
            except wire.NotData:
                continue
        writer = config.get_terminal_writer()
        seen = self.abroad.visible()
        prefixes = tuple({f"{os.path.realpath(one)}/" for one in (sys.prefix, sys.base_prefix, sys.exec_prefix)})
        path = [one for one in map(os.path.realpath, filter(None, sys.path))
                if any(f"{one}/".startswith(f"{place}/") for place in seen) and not f"{one}/".startswith(prefixes)]
        base = compat.temporary_base(config)
        persists = base is not None and any(one.target == os.path.realpath(base) for one in self._home_spec.persist)
        environ = {name: value for name, value in os.environ.items() if name in _PASSED}
        return {
            "args": sorted({str(run.item.path) for run in self.runs}),
            "wanted": [run.item.nodeid for run in self.runs],
            "options": options, "plugins": [str(one) for one in config.option.plugins or ()],
            "ini": str(config.inipath) if config.inipath is not None else None, "rootdir": str(config.rootpath),
            "cwd": self._directory(), "path": path, "environ": environ, "live": self._live(),
            "basetemp": os.path.realpath(base) if base is not None and persists else None,
            "markup": bool(writer.hasmarkup), "width": writer.fullwidth,
        }

    def _live(self) -> bool:
        """Whether a test waits for an answer to each of its reports."""
        return self.conductor.live

    def _ready(self) -> Guest:
        """The guest, when it has collected.

        :raises SandboxError: when there is none to be had.
        """
        if self.guest is not None and not self.guest.alive():
            self._lost()
        if self.guest is None:
            if self._failed is not None:
                raise _again(self._failed, self.image)
            if self._starts >= MOST_STARTS:
                raise SandboxGuestError(f"the guest of image {self.image!r} is not started again", image=self.image,
                                        why=f"it has died {self._starts} times")
            try:
                self._start()
            except SandboxError as error:
                self._failed = error
                raise
        assert self.guest is not None
        if self._positions is None:
            try:
                self._collect(self.guest)
            except SandboxError as error:
                self._failed = error
                self._forget()
                raise
        return self.guest

    def _collect(self, guest: Guest) -> None:
        until = guest.by(self._patience())
        message, _ = guest.receive(until, "started")
        if "unfit" in message:
            guest.close()
            raise SandboxGuestError(
                f"a test's body cannot run in image {self.image!r}", image=self.image, why=str(message["unfit"])[:1000],
                remedy="Or keep the body on the host: request the sandbox fixture and run commands in the image.")
        if "hello" in message:
            message, fds = guest.receive(until, "collected the tests")
            self.dump = fds.pop(0) if fds else -1
        if "collected" not in message:
            printed = guest.printed()
            guest.close()
            raise SandboxGuestError(
                f"the guest of image {self.image!r} could not collect the tests", image=self.image, output=printed,
                why=str(message.get("broken", "it said something else"))[-20_000:].strip())
        if self.conductor.keeper is not None:
            self.abroad.tell_once("--sandbox-keep keeps nothing of tests whose body runs in an image's own Python: "
                                  "their files stand on those of a process that ends with the run.")
        if compat.coverage_collector() is not None:
            self.abroad.tell_once("coverage is not measured in tests whose body runs in an image's own Python.")
        told = message["collected"]
        ours = {str(dist.project_name) for _, dist in self.abroad.config.pluginmanager.list_plugin_distinfo()}
        try:
            positions = {str(one): int(place) for one, place in told["positions"].items()}
            lacking = sorted((ours - set(map(str, told["plugins"])) - _NOT_MISSED) | set(map(str, told["lacking"])))
            self._told = {"problems": {str(name): str(text) for name, text in told["problems"].items()},
                          "ids": [str(one) for one in told["ids"]]}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            guest.close()
            raise SandboxGuestError(f"the guest of image {self.image!r} sent what is not an answer", image=self.image,
                                    why=f"{type(error).__name__}: {error}"[:500]) from None
        self._positions = positions
        if lacking:
            self.abroad.tell_once(
                f"image {self.image!r} has no {', '.join(lacking)}: its tests run without what is a plugin of this run "
                "elsewhere. Install them in the image to have them there.")

    def _patience(self) -> float:
        return float(self.conductor.settings.guest_timeout)

    def _lost(self) -> None:
        """The guest has died between two tests."""
        guest, self.guest = self.guest, None
        if guest is not None:
            guest.close()
        self._forget()

    def _forget(self) -> None:
        self._drop_waiting()
        if self.guest is not None:
            self.guest.close()
            self.guest = None
        self._positions = None
        if self.dump >= 0:
            os.close(self.dump)
            self.dump = -1

    # Tests.

    def position(self, item: pytest.Item) -> int:
        """Where the guest has ``item``.

        :raises SandboxGuestError: when it collected something else.
        """
        assert self._positions is not None
        place = self._positions.get(item.nodeid)
        if place is not None:
            return place
        problems = self._told["problems"]
        file = item.nodeid.partition("::")[0]
        near = [text for name, text in problems.items() if not name or item.nodeid.startswith(name)
                or name == file]
        if near:
            raise SandboxGuestError(f"{item.nodeid} cannot be collected in image {self.image!r}", image=self.image,
                                    why="\n" + "\n\n".join(near).strip())
        base = item.nodeid.partition("[")[0]
        inside = [one for one in self._told["ids"] if one.partition("[")[0] == base]
        outside = [one.nodeid for one in self.conductor.session.items if one.nodeid.partition("[")[0] == base]
        raise SandboxGuestError(
            f"{item.nodeid} is not what image {self.image!r} collects", image=self.image,
            why=f"outside there are {_listed(outside)}; inside there are {_listed(inside)}",
            remedy="Parameters that a test takes from its Python or system must be the same in both: choose them "
                   "inside of the test, or in a fixture of function scope.")

    def sandbox(self, run: ItemRun) -> Sandbox:
        """A started sandbox for ``run``.

        :raises SandboxError: when it cannot be had.
        """
        from pytest_sandbox.sandbox import Sandbox

        guest = self._ready()
        self.position(run.item)  # before anything is made for it
        spec = self._spec_of(run)
        sandbox = Sandbox(spec)
        sandbox.adopt(guest.take(self._plan(spec)))
        return sandbox

    def _spec_of(self, run: ItemRun) -> SandboxSpec:
        from pytest_sandbox import grafts
        from pytest_sandbox.spec import Mount

        spec = self.conductor.sandbox_of(run)
        if self._image is not None:
            spec = spec.merged({"image": self._image})
        return spec.merged({"mounts": (*spec.mounts, Mount(grafts.graft_made(), grafts.TARGET, True))})

    def _plan(self, spec: SandboxSpec) -> Plan:
        known = self._plans.get(spec)
        if known is None:
            from pytest_sandbox.planning import plan_abroad
            from pytest_sandbox.runtime.guests import upon

            known = self._plans[spec] = upon(plan_abroad(spec, self.abroad.visible()))
        return known

    def set_up_wanted(self, item: pytest.Item, wanted: Wanted) -> None:
        """A test has asked for a fixture of higher scope by name: has the guest set it up."""
        assert self.guest is not None
        self._settle()
        self._drop_waiting()  # it has not what will be there now
        self.guest.ask({"wanted": [wanted.name, wanted.place, wanted.level, wanted.held], "item": self.position(item)},
                       (), self._patience(), "set up a fixture")

    # The child of the next test is forked ahead, where nothing is set up for it that the test at hand could see.

    def wait_for_next(self, run: ItemRun, following: ItemRun) -> bool:
        """``run``'s test has begun: asks for the sandbox of the ``following`` one, which is of this party.

        Returns whether its child may be forked before ``run``'s test has ended.
        """
        guest = self.guest
        if guest is None or self._positions is None or self._waiting is not None or not guest.alive():
            return False
        before = run if run.party is self else self._last
        try:
            guest.supervisor.prepare(self._plan(self._spec_of(following)), AHEAD)
        except (SandboxError, OSError):
            return False  # a start in its own time will say what is wrong
        return before is not None and following.item.nodeid in self._positions and _nothing_new(before, following)

    def pending(self, run: ItemRun) -> int:
        """A descriptor that can be read when :meth:`fork_ahead` need not wait; -1 if there is none."""
        return -1 if self.guest is None else self.guest.supervisor.when_ready(self._plan(self._spec_of(run)))

    def fork_ahead(self, run: ItemRun) -> None:
        """Has ``run``'s child forked, into a sandbox that is ready. Never raises, never waits."""
        if self.guest is None or self._waiting is not None:
            return
        from pytest_sandbox.sandbox import Sandbox

        try:
            spec = self._spec_of(run)
            plan = self._plan(spec)
            running = self.guest.supervisor.take_ready(plan)
            if running is not None:
                sandbox = Sandbox(spec)
                sandbox.adopt(running)
                self._waiting = self._fork_into(sandbox, run, None), run
                self.guest.supervisor.prepare(plan, AHEAD)
        except (SandboxError, OSError):
            pass  # a fork in its own time will say what is wrong

    def _settle(self) -> None:
        """Hears what the guest answers about the child that waits, before it is asked something else."""
        if self._waiting is not None:
            try:
                there = self._waiting[0].child.is_there()  # type: ignore[attr-defined]
            except SandboxError:
                there = False
            if not there:
                self._drop_waiting()

    def _drop_waiting(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting[0].close()

    def fork(self, run: ItemRun, replay: str | None = None) -> Fork:
        """The child that waits to run ``run``'s test, in its sandbox.

        :param replay: the phase in which the attempt before asked for what has been made since.
        :raises SandboxError: when there is none to be had.
        """
        self._settle()
        self._last = run
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            if waiting[1] is run and replay is None and waiting[0].child.is_alive():
                return waiting[0]
            waiting[0].close()
        fork = self._fork_into(self.sandbox(run), run, replay)
        child: GuestChild = fork.child  # type: ignore[assignment]
        try:
            there = child.is_there()
        except BaseException:
            fork.close()
            self._lost_in(run)
            raise
        if not there:
            fork.close()
            raise SandboxGuestError(f"the guest of image {self.image!r} could not enter the test's sandbox",
                                    image=self.image)
        if late := child.said.get("late"):
            run.item.warn(PytestSandboxWarning(f"a fixture of an earlier test failed at its end: {str(late)[:10_000]}"))
        return fork

    def _lost_in(self, run: ItemRun) -> None:
        if self.guest is not None and not self.guest.alive():
            self._lost()

    def _fork_into(self, sandbox: Sandbox, run: ItemRun, replay: str | None) -> Fork:
        conductor, guest = self.conductor, self._ready()
        reading, writing = conductor.open_pipe()
        orders, commands = conductor.open_orders()
        try:
            child = guest.fork(sandbox._ready(), sandbox.spec.workdir or self._directory(), list(sandbox.spec.env),
                               (writing, orders), {"item": self.position(run.item), "replay": replay}, self._patience())
        except BaseException:
            os.close(reading)
            os.close(commands)
            sandbox.discard()
            raise
        finally:
            os.close(writing)
            os.close(orders)
        return Fork(sandbox, child, reading, commands)

    def order(self, run: ItemRun, may_start_over: bool) -> tuple[str, int, int | None, int, bool]:
        """What the child is told so that it begins."""
        following = self.following(run.item, run.nextitem)
        assert self._positions is not None
        return ("run", self.position(run.item),
                self._positions.get(following.nodeid) if following is not None else None,
                run.item.session.testsfailed, may_start_over)

    def following(self, item: pytest.Item, nextitem: pytest.Item | None) -> pytest.Item | None:
        """The test after ``item`` that this guest runs, as far as anybody knows; None if there is none."""
        if nextitem is None:
            return None
        run = self.conductor.run_of(nextitem)
        if run is not None and run.party is self:
            return nextitem
        position = self.abroad.position(nextitem)
        return next((one.item for one in self.runs if self.abroad.position(one.item) > position), None)

    def left(self, item: pytest.Item, nextitem: pytest.Item | None) -> pytest.TestReport | None:
        """``item`` is over: has the guest tear down what it set up and no later test needs.

        Returns what there is to report of that, as of ``item``'s teardown.
        """
        following = self.following(item, nextitem)
        guest = self.guest
        if guest is None or self._positions is None or (
                following is not None and following.parent is item.parent):
            return None
        report = None
        self._settle()
        self._drop_waiting()
        try:
            place = self._positions.get(item.nodeid)
            answer = {} if place is None else guest.ask({"leave": place, "next": self._positions.get(following.nodeid)
                                if following is not None else None}, (), self._patience(), "tore down fixtures")
            data = answer.get("left")
            if data is not None:
                report = reporting.report_from_data(data, item, lambda name: None)
        except SandboxError as error:
            self._lost()
            report = failed(item, "teardown", error)
        if following is None:
            self.close(finish=True)
        return report

    def residue(self) -> dict[str, str]:
        """What a test that died had printed and not reported."""
        if self.guest is None:
            return {}
        self._settle()
        try:
            found = self.guest.ask({"residue": True}, (), 10.0, "was asked what a test had printed").get("residue")
        except SandboxError:
            return {}
        if not isinstance(found, dict):
            return {}
        return {str(name): str(text) for name, text in found.items() if name in ("stdout", "stderr")}

    def close(self, finish: bool = False) -> None:
        """Ends the guest, if there is one."""
        guest = self.guest
        self._settle()
        self._drop_waiting()
        if guest is not None and finish and self._positions is not None and guest.alive():
            try:
                answer = guest.ask({"finish": True}, (), self._patience(), "finished its session")
                if late := answer.get("late"):
                    self.abroad.tell_once(f"a fixture in image {self.image!r} failed at its end: {str(late)[:10_000]}")
            except SandboxError as error:
                self.abroad.tell_once(str(error))
        self._forget()


#: What of the caller's environment a guest gets: what tells test runs apart.
_PASSED = frozenset({"PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_XDIST_TESTRUNUID", "CI",
                     "BUILD_NUMBER", "PYTEST_VERSION", "PYTHONHASHSEED", "TERM", "COLUMNS", "LINES"})
#: Plugins that have their say outside only.
_NOT_MISSED = frozenset({"pytest-sandbox", "pytest-xdist", "pytest-html", "pytest-reportlog", "pytest-split",
                         "pytest-randomly", "pytest-metadata", "pytest-forked", "pytest-rerunfailures",
                         "pytest-timeout", "pytest-cov"})


def _nothing_new(before: ItemRun, following: ItemRun) -> bool:
    """Whether all fixtures of higher scope that a test wants are there since the one ``before`` it, which stays."""
    one, other = before.item, following.item
    return one.parent is other.parent and set(compat.higher_fixtures(other)) <= set(compat.higher_fixtures(one)) and (
        compat.higher_parameters(one, "function") == compat.higher_parameters(other, "function"))


def _again(error: SandboxError, image: str) -> SandboxError:
    """The error for each later test of a guest that could not be had."""
    return SandboxGuestError(f"there is no guest of image {image!r}", image=image,
                             why=f"{str(error).partition(chr(10))[0]} (told in full of the first test of that image)")


def _listed(ids: list[str]) -> str:
    if not ids:
        return "none"
    return ", ".join(ids[:10]) + (f" and {len(ids) - 10} more" if len(ids) > 10 else "")


def failed(item: pytest.Item, when: Any, error: BaseException) -> pytest.TestReport:
    """The report of a phase that failed with an error of ours."""
    def fail() -> None:
        raise pytest.fail.Exception(f"{type(error).__name__}: {error}", pytrace=False)

    call = pytest.CallInfo.from_call(fail, when=when)
    return pytest.TestReport.from_item_and_call(item, call)
