"""The ``pytest-sandbox`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the subcommand. Returns the exit status."""
    from pytest_sandbox.cli import build, doctor, images, kept, run
    parser = argparse.ArgumentParser(
        prog="pytest-sandbox", description="Sandboxes for tests: what this host can do, and what to do about the rest.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    doctor.register(commands)
    images.register(commands)
    build.register(commands)
    run.register(commands)
    kept.register(commands)
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if words[:1] in (["run"], ["replay"]) and "--" in words else len(words)
    given = parser.parse_args(words[:end])
    if end < len(words):
        setattr(given, "command" if words[0] == "run" else "arguments", words[end + 1:])
    from pytest_sandbox.errors import SandboxError
    try:
        status: int = given.run(given)
    except SandboxError as error:
        print(f"pytest-sandbox: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
        print(f"pytest-sandbox: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    return status
