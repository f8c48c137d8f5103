"""``pytest-sandbox run`` and ``shell``: a command in a sandbox, with this terminal's input and output."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.image.source import Progress


def register(commands: Any) -> None:
    """Adds the subcommands."""
    for name, text in (("run", "run a command in a sandbox"), ("shell", "open a shell in a sandbox")):
        one = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}, which ends with it.",
                                  usage=f"pytest-sandbox {name} [options] [IMAGE{' | ID' * (name == 'shell')}]" + (
                                      " [-- COMMAND ...]" if name == "run" else ""))
        one.set_defaults(run=_run if name == "run" else _shell)
        one.add_argument("--network", choices=("none", "host", "outbound"), default=None)
        one.add_argument("--user", help='"root", "me", or numbers such as 1000:1000')
        one.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE")
        one.add_argument("--workdir", "-w", metavar="DIR")
        one.add_argument("--mount", "-v", action="append", default=[], metavar="SRC:DST[:ro]",
                         help="a host path that shows through")
        one.add_argument("--hostname")
        one.add_argument("--memory", metavar="SIZE")
        one.add_argument("--cpus", metavar="NUMBER", help="0.5 is half of one CPU")
        one.add_argument("--pids", metavar="NUMBER", help="the most processes and threads at once")
        one.add_argument("--io", metavar="RATE", help="bytes a second, such as 10M, or read=10M,write=5M")
        one.add_argument("--disk", metavar="SIZE")
        one.add_argument("--timeout", type=float, metavar="SECONDS")
        one.add_argument("--commit", metavar="NAME", help="keep what was changed, as an image of that name")
        one.add_argument("--changes", action="store_true", help="say afterwards what was changed")
        one.add_argument("--trace", action="store_true", help="say afterwards how long each step of the sandbox took")
        one.add_argument("image", nargs="?", default="host", metavar="IMAGE", help="default: host" + (
            "; or the id of a kept test, or a file from export" if name == "shell" else ""))
        if name == "run":
            one.add_argument("command", nargs="*", metavar="COMMAND", help="default: what the image runs by itself")


def _options(given: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"image": given.image}
    for name in ("network", "user", "workdir", "hostname", "memory", "cpus", "pids", "io", "disk"):
        if getattr(given, name) is not None:
            options[name] = getattr(given, name)
    if given.mount:
        options["mounts"] = given.mount
    if given.env:
        options["env"] = dict(one.partition("=")[::2] if "=" in one else (one, os.environ.get(one, ""))
                              for one in given.env)
    return options


def _run(given: argparse.Namespace) -> int:
    return _go(given, list(given.command))


def _shell(given: argparse.Namespace) -> int:
    from .kept import WORD

    if WORD.fullmatch(given.image) or (os.path.isfile(given.image) and ":" not in given.image):
        return _shell_in_kept(given)
    shell = os.environ.get("SHELL") or "/bin/sh"
    return _go(given, [shell, "-i"] if given.image == "host" else ["sh", "-i"])


def _progress() -> Progress:
    from pytest_sandbox.image.progress import StreamAnnouncer

    return StreamAnnouncer(sys.stderr)


def _settle() -> None:
    from pytest_sandbox import planning

    planning.settings = planning.ImageSettings(lock_file=os.path.abspath("sandbox.lock"), progress=_progress)


def _shell_in_kept(given: argparse.Namespace) -> int:
    """The state of a kept test: its files and options, without what limits it, and without its other networks."""
    from pytest_sandbox import planning
    from pytest_sandbox.errors import KeptTestError
    from pytest_sandbox.keeping.opening import kept_image
    from pytest_sandbox.keeping.shelf import Shelf
    from pytest_sandbox.spec import LIMITS

    from .kept import WORD, find

    _settle()
    try:
        kept = find(given.image)
    except KeptTestError as error:
        if WORD.fullmatch(given.image):
            error = KeptTestError(error.what, id=error.id, why=error.why, remedy=(
                f"{error.remedy} An image of that name is written {given.image}:latest."))
        raise error from None
    record = kept.record
    assert record is not None
    with Shelf().hold(kept):
        spec = record.spec()
        options = {name: getattr(spec, name) for name in spec.given if name not in (*LIMITS, "timeout", "scope")}
        asked = _options(given)
        options["env"] = {**dict(spec.env), **asked.pop("env", {})}
        gone = [one for one in options.get("mounts", ()) if not os.path.exists(one.source)]
        options["mounts"] = [one for one in options.get("mounts", ()) if one not in gone]
        notes = [f"{one.source} is not there any more" for one in gone]
        if record.withheld:
            notes.append("it came from elsewhere, so these options are not taken from it: "
                         + ", ".join(record.withheld))
        if record.networks:
            notes.append(f"its network was {record.networks}; here it has none")
        image = kept_image(kept, spec)
        options.update(asked, image=image)
        for note in notes:
            print(f"pytest-sandbox: note: {note}", file=sys.stderr)
        if planning.is_host(image) and "workdir" not in options and os.path.isdir(record.directory):
            options["workdir"] = record.directory
        shell = os.environ.get("SHELL") or "/bin/sh"
        print(f"the state of {record.nodeid} when its {record.phase} had {record.outcome}; changes here are not kept",
              file=sys.stderr)
        return _go(given, [shell, "-i"] if planning.is_host(image) else ["sh", "-i"], options)


def _go(given: argparse.Namespace, command: list[str], options: dict[str, Any] | None = None) -> int:
    import signal
    import subprocess

    from pytest_sandbox import Sandbox, planning
    from pytest_sandbox.runtime import tracing

    _settle()
    if given.trace:
        tracing.enable()
    with Sandbox(**(options if options is not None else _options(given))) as sandbox:
        if not command and planning.is_host(sandbox.spec.image):
            print("pytest-sandbox: give a command after --", file=sys.stderr)
            return 2
        process = sandbox.popen(command, stdin=0, stdout=None, stderr=None)
        old = signal.signal(signal.SIGINT, lambda *_: process.send_signal(signal.SIGINT))
        try:
            status = process.wait(given.timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            print(f"pytest-sandbox: the command ran longer than {given.timeout} s", file=sys.stderr)
            status = 124
        finally:
            signal.signal(signal.SIGINT, old)
        if given.changes:
            for one in sandbox.changes():
                print(f"{one.kind:9} {one.path}", file=sys.stderr)
        if given.commit:
            print(f"committed as {sandbox.commit(given.commit).base}", file=sys.stderr)
    if given.trace:
        from pytest_sandbox.report import trace
        from pytest_sandbox.runtime import launch

        launch.finish_traces()
        print("\n".join(trace.table(tracing.traced())), file=sys.stderr)
    return status if status >= 0 else 128 - status
