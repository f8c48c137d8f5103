"""Marker, command line and ini files -> what each test's sandbox is. Called by the hooks at start-up and collection."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_sandbox.errors import SandboxUsageError
    from pytest_sandbox.image.source import Progress
    from pytest_sandbox.spec import SandboxSpec

MODES = ("marked", "all", "off")
UNAVAILABLE = ("error", "skip", "run")
KEEP = ("none", "failed", "all")

MARKER = (
    "sandbox(*, image, network, user, env, workdir, mounts, hostname, memory, swap, cpus, cpu_weight, io_weight, "
    "io, pids, disk, capabilities, seccomp, scope, hide, timeout, python): "
    "run this test's body in a fork of the pytest process that sits in a sandbox of its own: fresh Linux namespaces "
    "and a copy-on-write view of the file system, gone when the test ends. Function-scoped fixtures run inside, "
    "fixtures of higher scope once, outside. Options are keyword-only; the nearest marker wins option by option. "
    "A test that requests the 'sandbox' fixture stays outside, and the marker describes that fixture's sandbox."
)

#: The marker options that an ini file can give a default: the option, the ini type, the help. The names are repeated
#: here because reading them from ``spec`` would make every pytest run import it; a test compares the two.
INI_OPTIONS = (
    ("network", "string", "'none' (own loopback) or 'host'"),
    ("user", "string", "'root', 'me', or numbers such as '1000:1000'"),
    ("env", "linelist", "extra variables, a NAME=value a line"),
    ("workdir", "string", "the directory that tests start in"),
    ("mounts", "linelist", "host paths that show through, 'src:dst' or 'src:dst:ro' a line"),
    ("hostname", "string", "the host name inside"),
    ("memory", "string", "the most memory, such as '256M'"),
    ("swap", "string", "the most swap space beside it (0 when memory is set)"),
    ("cpus", "string", "CPU bandwidth; 0.5 is half of one CPU"),
    ("cpu_weight", "string", "share of the CPUs under contention, 1 to 10000"),
    ("io_weight", "string", "share of the block devices under contention, 1 to 10000"),
    ("io", "string", "bytes a second from and to each block device, such as '10M', or 'read=10M write=5M'"),
    ("pids", "string", "the most processes and threads at once (4096)"),
    ("disk", "string", "the size of the writable layer, such as '512M'"),
    ("capabilities", "args", "the capabilities that are kept inside, by name"),
    ("seccomp", "string", "the filter of system calls: 'default', 'unconfined', or the path of a profile"),
    ("scope", "string", "which tests share a sandbox"),
    ("hide", "args", "paths that the host image does not show"),
    ("timeout", "string", "seconds from a test's start to its end"),
    ("python", "string", "the Python of an image that test bodies run in (python3, else python)"),
)


#: The name of the parameter by which a test has one of several images.
IMAGE_PARAMETER = "_sandbox_image"


class PytestSandboxWarning(pytest.PytestWarning):
    """Something about a sandboxed test is not as asked for, and the user said to go on."""


def add_options(parser: pytest.Parser) -> None:
    """Registers the options of the command line and of ini files."""
    group = parser.getgroup("sandbox", "sandboxed tests")
    group.addoption("--sandbox", choices=MODES, default=None, dest="sandbox_mode",
                    help="Sandbox the tests that are marked so (default), all tests, or none.")
    group.addoption("--sandbox-image", metavar="REF", default=None, dest="sandbox_image",
                    help="The image of tests whose marker names none (default: host).")
    group.addoption("--sandbox-unavailable", choices=UNAVAILABLE, default=None, dest="sandbox_unavailable",
                    help="When this host cannot give the sandbox that a test asks for: fail with the reason (default), "
                         "skip with the reason, or run unsandboxed with a warning.")
    group.addoption("--sandbox-offline", action="store_true", default=False, dest="sandbox_offline",
                    help="Ask no registry: images that are not in the store are an error.")
    group.addoption("--sandbox-usage", metavar="N", nargs="?", type=_count, const=10, default=None,
                    dest="sandbox_usage", help="Show the N sandboxed tests that used the most CPU time (default 10; 0 "
                                               "for all), and put what each test used in its report.")
    group.addoption("--sandbox-report", metavar="PATH", default=None, dest="sandbox_report",
                    help="Write what the sandboxes of this run used and how their tests ended to PATH: .html or .json.")
    group.addoption("--sandbox-trace", metavar="PATH", nargs="?", type=_trace, const=True, default=None,
                    dest="sandbox_trace", help="Show how long each step of the sandboxes took, from helper to end, and "
                                               "write it to PATH, a .json file for ui.perfetto.dev.")
    group.addoption("--sandbox-keep", choices=KEEP, default=None, dest="sandbox_keep",
                    help="Keep the sandboxes of failed tests, or of all, to be opened afterwards with 'pytest-sandbox "
                         "shell', run again with 'replay', or taken elsewhere with 'export' (default: none).")
    group.addoption("--sandbox-replay", metavar="FILE", default=None, dest="sandbox_replay", help=argparse.SUPPRESS)
    parser.addini("sandbox_keep", "Which tests' sandboxes are kept: none, failed or all.", type="string",
                  default="none")
    parser.addini("sandbox_keep_count", "How many tests are kept at most, the latest ones (50).", type="string",
                  default="")
    parser.addini("sandbox_keep_size", "How much disk the kept tests take at most, such as '4G' (1G).", type="string",
                  default="")
    group.addoption("--sandbox-selftest", action="store_true", default=False, dest="sandbox_selftest",
                    help="Verify from inside each sandbox, before its test runs, what docs/security.md promises.")
    parser.addini("sandbox_report", "Where to write the report of a run's sandboxes: a path that ends in .html or "
                  ".json, relative to rootdir.", type="string", default="")
    parser.addini("sandbox", "Which tests are sandboxed: marked, all or off.", type="string", default="marked")
    parser.addini("sandbox_image", "The image of tests whose marker names none.", type="string", default="")
    parser.addini("sandbox_unavailable", "When a sandbox cannot be had: error, skip or run.", type="string",
                  default="error")
    parser.addini("sandbox_persist", "What sandboxed tests may change for good: 'tmp_path', 'cache_dir', and paths, "
                  "relative ones to rootdir; 'none' for nothing (default: tmp_path cache_dir .hypothesis).",
                  type="args", default=[])
    parser.addini("sandbox_requirements", "What test bodies need in images other than the host's, installed once by "
                  "the image's own pip: requirements, one a line, or files of them, relative to rootdir.",
                  type="linelist", default=[])
    parser.addini("sandbox_guest_timeout", "Seconds that an image's own Python may take to start and collect, and to "
                  "set up fixtures (300).", type="string", default="")
    parser.addini("sandbox_guest_idle", "Seconds after which the process of an image's own Python ends while no "
                  "near test needs it (300).", type="string", default="")
    parser.addini("sandbox_guest_memory", "Such processes that the tests at hand do not need end while less memory "
                  "than this is available, such as '2G' (a twentieth of the machine's).", type="string", default="")
    for name, kind, text in INI_OPTIONS:
        parser.addini(f"sandbox_{name}", f"Default of the sandbox marker's option {name}: {text}.",
                      type=kind, default="" if kind == "string" else [])  # type: ignore[arg-type]


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a number of tests, not {text!r}: write --sandbox-usage=10, or put it last")
    return int(text)


def _trace(text: str) -> str:
    if not text.endswith(".json"):
        raise argparse.ArgumentTypeError(
            f"a file that ends in .json, not {text!r}: write --sandbox-trace=trace.json, or put it last")
    return text


def chosen(config: pytest.Config, dest: str, ini: str, allowed: tuple[str, ...]) -> str:
    """What the command line says, else the ini file.

    :raises pytest.UsageError: for a word in the ini file that is none of ``allowed``.
    """
    given = config.getoption(dest)
    if given is None:
        given = config.getini(ini)
        if given not in allowed:
            import difflib

            close = difflib.get_close_matches(str(given), allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise pytest.UsageError(f"ini option {ini}={given!r} cannot be used. Allowed: {', '.join(allowed)}.{hint}")
    return str(given)


class Settings:
    """What one run's configuration says. Made at ``pytest_configure``; its expensive parts are made at first use."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.mode = chosen(config, "sandbox_mode", "sandbox", MODES)
        self.unavailable = chosen(config, "sandbox_unavailable", "sandbox_unavailable", UNAVAILABLE)
        self.visiting = config.pluginmanager.has_plugin("sandbox-visitor")  # this is the session of a guest
        self._base: SandboxSpec | None = None
        self._specs: dict[tuple[object, ...], tuple[list[pytest.Mark], SandboxSpec]] = {}
        self._marks: dict[pytest.Collector, tuple[pytest.Mark, ...]] = {}

    def base(self) -> SandboxSpec:
        """The spec of a marker without options: defaults, with the ini file and the command line laid over them.

        :raises pytest.UsageError: for a value that cannot be used.
        """
        if self._base is None:
            from pytest_sandbox.errors import SandboxUsageError
            from pytest_sandbox.spec import SandboxSpec, parse_options

            spec = SandboxSpec()
            self._locate_images()
            for option, shown, value in self._configured():
                try:
                    spec = spec.merged(parse_options({option: value}))
                except SandboxUsageError as error:
                    raise pytest.UsageError(f"{shown}: {error}") from None
            self._base = spec
        return self._base

    def _locate_images(self) -> None:
        import sys

        if sys.platform == "linux":
            from pytest_sandbox import planning

            planning.settings = planning.ImageSettings(
                offline=bool(self.config.getoption("sandbox_offline")),
                lock_file=str(self.config.rootpath / "sandbox.lock"), progress=self._progress)

    def _progress(self) -> Progress | None:
        from .pulling import announcer

        return announcer(self.config)

    def _configured(self) -> Iterable[tuple[str, str, object]]:
        for name, _, _ in INI_OPTIONS:
            value = self.config.getini(f"sandbox_{name}")
            if value:
                yield name, f"ini option sandbox_{name}", value
        if image := self.config.getoption("sandbox_image"):
            yield "image", "--sandbox-image", image
        elif image := self.config.getini("sandbox_image"):
            yield "image", "ini option sandbox_image", image

    @property
    def guest_timeout(self) -> float:
        """How long a guest may take for what has no limit of its own, in seconds.

        :raises pytest.UsageError: when the ini file says something else than that.
        """
        return self._seconds("sandbox_guest_timeout", "300")

    @property
    def guest_idle(self) -> float:
        """After how many seconds a guest ends that nobody needs.

        :raises pytest.UsageError: when the ini file says something else than that.
        """
        return self._seconds("sandbox_guest_idle", "300")

    @property
    def guest_memory(self) -> int | None:
        """How many bytes must be available for guests to stay that are not needed at once; None: the default.

        :raises pytest.UsageError: when the ini file says something else than that.
        """
        text = self.config.getini("sandbox_guest_memory")
        if not text:
            return None
        from pytest_sandbox.errors import SandboxUsageError
        from pytest_sandbox.spec import parse_size

        try:
            return parse_size("sandbox_guest_memory", text)
        except SandboxUsageError as error:
            raise pytest.UsageError(f"ini option: {error}") from None

    def _seconds(self, option: str, default: str) -> float:
        text = self.config.getini(option) or default
        try:
            seconds = float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < 1e6:
            raise pytest.UsageError(f"ini option {option}={text!r} cannot be used. Allowed: a number of seconds, more "
                                    "than 0.")
        return seconds

    def requirements(self) -> str:
        """What is to be installed in images whose own Python runs tests, as a requirements file.

        :raises pytest.UsageError: when a file of them is not there.
        """
        lines = []
        for one in self.config.getini("sandbox_requirements"):
            if not one.endswith(".txt"):
                lines.append(one)
                continue
            try:
                lines += (self.config.rootpath / one).read_text(encoding="utf-8").splitlines()
            except OSError as error:
                raise pytest.UsageError(f"ini option sandbox_requirements: {one}: {error.strerror}") from None
        return "".join(f"{line}\n" for line in lines if line.strip() and not line.lstrip().startswith("#"))

    def forget_marks(self) -> None:
        """Markers can be added to collectors until collection ends; what was read before then may be stale."""
        self._marks.clear()

    def marks(self, node: pytest.Item | pytest.Collector) -> tuple[pytest.Mark, ...]:
        """The ``sandbox`` markers that apply to ``node``, the nearest first. Collectors' answers are kept."""
        inherited: tuple[pytest.Mark, ...] = ()
        parent = node.parent
        if isinstance(parent, pytest.Collector):
            known = self._marks.get(parent)
            inherited = self._marks.setdefault(parent, self.marks(parent)) if known is None else known
        own = node.own_markers
        if own:
            return (*[mark for mark in own if mark.name == "sandbox"], *inherited)
        return inherited

    def spec(self, node: pytest.Item) -> SandboxSpec | None:
        """What ``node``'s markers and the configuration ask for, or None when it is not to be sandboxed.

        :raises SandboxUsageError: for a marker that cannot be used.
        """
        marks = self.marks(node)
        if not marks:
            return self.base() if self.mode == "all" else None
        image = getattr(getattr(node, "callspec", None), "params", {}).get(IMAGE_PARAMETER)
        key = (*map(id, marks), image if isinstance(image, str) else id(image))
        known = self._specs.get(key)
        if known is None:
            known = self._specs[key] = (list(marks), self._read(marks, image))  # they stay alive: ids are not reused
        return known[1]

    def _read(self, marks: tuple[pytest.Mark, ...], image: object) -> SandboxSpec:
        from pytest_sandbox.errors import SandboxUsageError
        from pytest_sandbox.spec import OPTIONS, parse_options

        options: dict[str, object] = {}
        nearest = next((mark for mark in marks if "image" in mark.kwargs), None)
        for mark in reversed(marks):
            if mark.args:
                raise SandboxUsageError(
                    f"the sandbox marker takes keyword options only, not {', '.join(map(repr, mark.args))}",
                    option="", value=mark.args, allowed=", ".join(sorted(OPTIONS)), why=_meant(mark.args[0]))
            kwargs = mark.kwargs
            if isinstance(kwargs.get("image"), (list, tuple)):
                if mark is not nearest:
                    kwargs = {name: value for name, value in kwargs.items() if name != "image"}
                elif image is not None:
                    kwargs = {**kwargs, "image": image}
            options.update(parse_options(kwargs))
        return self.base().merged(options)


def _meant(value: object) -> str | None:
    """A positional argument is most often an image, or an option's name."""
    from pytest_sandbox.spec import OPTIONS

    if not isinstance(value, str):
        return None
    return f"did you mean {value}=...?" if value in OPTIONS else f"did you mean image={value!r}?"


def usage_text(node: pytest.Item, error: SandboxUsageError) -> str:
    """The message of a marker that cannot be used; names the test first."""
    return f"{node.nodeid}: {error}"


def drives_a_sandbox(item: pytest.Item, mode: str) -> bool:
    """Whether ``item`` keeps its body on the host because it works a sandbox from outside.

    Whoever requests ``sandbox`` or ``sandbox_network``, itself or through its fixtures, does. ``sandbox_factory``
    counts when the test itself names it: a session's database may live in a sandbox and the test that uses it in
    another. With ``--sandbox=all``, where nobody asked for this test to be moved, its fixtures' requests count too.
    """
    names = getattr(item, "fixturenames", ())
    if "sandbox" in names or "sandbox_network" in names:
        return True
    if "sandbox_factory" not in names:
        return False
    from .compat import requested_names

    return (mode == "all" and item.get_closest_marker("sandbox") is None) or "sandbox_factory" in requested_names(item)
