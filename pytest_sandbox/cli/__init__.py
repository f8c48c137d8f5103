"""The ``pytest-sandbox`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

#: Commands of the interface that a later version brings.
COMING = frozenset({"export", "replay"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the subcommand. Returns the exit status."""
    from pytest_sandbox.cli import build, doctor, images, run
    parser = argparse.ArgumentParser(
        prog="pytest-sandbox", description="Sandboxes for tests: what this host can do, and what to do about the rest.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    doctor.register(commands)
    images.register(commands)
    build.register(commands)
    run.register(commands)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] and words[0] in COMING:
        print(f"pytest-sandbox: the command {words[0]!r} is not available yet in this version", file=sys.stderr)
        return 2
    end = words.index("--") if words[:1] == ["run"] and "--" in words else len(words)
    given = parser.parse_args(words[:end])
    if end < len(words):
        given.command = words[end + 1:]
    from pytest_sandbox.errors import SandboxError
    try:
        status: int = given.run(given)
    except SandboxError as error:
        print(f"pytest-sandbox: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    return status
