"""``pytest-sandbox kept``, ``replay`` and ``export``: tests that ``pytest --sandbox-keep`` has kept."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.keeping.record import Record
    from pytest_sandbox.keeping.shelf import Kept, Shelf

#: A word that is an id, or the beginning of one, and not an image. An image of such a name is written with its tag.
WORD = re.compile(r"[0-9a-f]{4,8}")


def register(commands: Any) -> None:
    """Adds the subcommands."""
    kept = commands.add_parser("kept", help="list the tests that were kept, or show one",
                               description="Lists the tests that pytest --sandbox-keep has kept, or shows one.")
    kept.set_defaults(run=_kept)
    kept.add_argument("id", nargs="*", metavar="ID", help="show what this test had printed, and its verdict")
    kept.add_argument("--remove", action="store_true", help="remove these")
    kept.add_argument("--all", action="store_true", help="with --remove: all that are not in use")
    kept.add_argument("--json", action="store_true", help="for machines")

    replay = commands.add_parser(
        "replay", help="run a kept test again, from where it had started",
        description="Runs a kept test again, as pytest run of that one test, in a sandbox as its own had started.",
        usage="pytest-sandbox replay [options] ID [-- ARGUMENTS OF PYTEST]")
    replay.set_defaults(run=_replay, arguments=[])
    replay.add_argument("id", metavar="ID", help="of a kept test; or a file that export wrote")
    replay.add_argument("--rootdir", type=Path, help="where the tests lie, if not where they were")

    export = commands.add_parser("export", help="write a kept test to a file, for another machine",
                                 description="Writes a kept test to a file: its image, which podman and Docker load, "
                                             "and all that pytest-sandbox load, shell and replay need.")
    export.set_defaults(run=_export)
    export.add_argument("id", metavar="ID")
    export.add_argument("--output", "-o", type=Path, metavar="FILE", help="default: ID.tar")


def _shelf() -> Shelf:
    from pytest_sandbox.keeping.shelf import Shelf

    return Shelf()


def find(word: str) -> Kept:
    """The kept test that ``word`` means: an id, its beginning, or the file of a bundle, which is loaded.

    :raises KeptTestError: when there is none.
    """
    if not WORD.fullmatch(word) and os.path.isfile(word):
        from pytest_sandbox.keeping.bundle import load_bundle

        kept = load_bundle(Path(word))
        print(f"{word} is kept test {kept.id} here", file=sys.stderr)
        return kept
    return _shelf().find(word)


def _kept(given: argparse.Namespace) -> int:
    shelf = _shelf()
    if given.remove:
        return _remove(given, shelf)
    if given.id:
        for word in given.id:
            _show(shelf.find(word), given.json)
        return 0
    from pytest_sandbox.image.progress import show_bytes
    from pytest_sandbox.keeping.shelf import ago

    entries = shelf.entries()
    if given.json:
        print(json.dumps([_document(one) for one in entries], indent=2))
        return 0
    for one in entries:
        what = one.record.nodeid if one.record is not None else f"damaged: {one.damage}"
        print(f"{one.id}  {show_bytes(one.size):>10}  {ago(one.created):16} {_printable(what)}")
    print(f"{len(entries)} kept tests, {show_bytes(sum(one.size for one in entries))} in {shelf.root}")
    return 0


def _document(kept: Kept) -> dict[str, Any]:
    facts = kept.record.as_json() if kept.record is not None else {"damage": kept.damage}
    return {**facts, "id": kept.id, "path": kept.path, "size": kept.size}


def _show(kept: Kept, as_json: bool) -> None:
    record = kept.record
    assert record is not None
    if as_json:
        print(json.dumps({**_document(kept), "output": kept.output}, indent=2))
        return
    facts = {"test": record.nodeid, "ended": f"{record.outcome}, kept in its {record.phase}",
             "image": record.start.reference, "rootdir": f"{record.rootdir} (on {record.host})", **record.options}
    if record.left_out:
        facts["layer"] = f"left out: {record.left_out}"
    for name, value in facts.items():
        print(_printable(f"{name + ':':9} {value}"))
    print(f"\n{_printable(kept.output)}")


def _printable(text: str) -> str:
    """Without what a terminal would obey."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "?", text.replace("\r\n", "\n"))


def _remove(given: argparse.Namespace, shelf: Shelf) -> int:
    from pytest_sandbox.errors import KeptTestError

    if bool(given.id) == given.all:
        print("pytest-sandbox: say which kept tests to remove: ID ..., or --all", file=sys.stderr)
        return 2
    status = 0
    entries = shelf.entries()
    chosen = entries if given.all else [
        next((one for one in entries if one.id == word), None) or shelf.find(word) for word in given.id]
    for one in chosen:
        try:
            shelf.remove(one)
        except KeptTestError as error:
            print(f"pytest-sandbox: {error}", file=sys.stderr)
            status = 1
        else:
            print(f"{one.id}: removed")
    return status


def _replay(given: argparse.Namespace) -> int:
    import subprocess

    from pytest_sandbox.errors import KeptTestError
    from pytest_sandbox.keeping.opening import start_image
    from pytest_sandbox.keeping.record import sum_of

    kept = find(given.id)
    record = kept.record
    assert record is not None
    with _shelf().hold(kept):
        root = _root(record, given.rootdir)
        source = os.path.join(root, record.source)
        if not os.path.exists(source):
            raise KeptTestError(f"kept test {kept.id} cannot be run again", id=kept.id, why=f"{source} is not there",
                                remedy="Give the directory that the tests lie in: --rootdir DIR.")
        if sum_of(source) != record.source_sum:
            print(f"pytest-sandbox: note: {source} has changed since the test was kept", file=sys.stderr)
        if record.withheld:
            print("pytest-sandbox: note: it came from elsewhere, so these options are not taken from it: "
                  + ", ".join(record.withheld), file=sys.stderr)
        if record.start.exact:
            start_image(record, kept.path)  # whose absence is better told here
        else:
            print("pytest-sandbox: note: what was committed below it is made again by the test's fixtures",
                  file=sys.stderr)
        python = sys.executable
        if not record.imported and os.access(record.python, os.X_OK):
            python = record.python
        here = record.directory if not record.imported and os.path.isdir(record.directory) else root
        words = [python, "-m", "pytest", f"--rootdir={root}", f"--sandbox={record.mode}", "--sandbox-keep=none",
                 f"--sandbox-replay={kept.path}/record.json"]
        if not record.imported and record.config_file and os.path.exists(record.config_file):
            words.append(f"--config-file={record.config_file}")
        status = subprocess.run([*words, *given.arguments, f"{root}/{record.nodeid}"], cwd=here, check=False).returncode
    if status in (4, 5):
        print(f"pytest-sandbox: pytest did not find {record.nodeid} in {root}: the test may have changed since it was "
              f"kept. What it left is there all the same: pytest-sandbox shell {kept.id}", file=sys.stderr)
    return status


def _root(record: Record, given: Path | None) -> str:
    if given is not None:
        return str(given.absolute())
    if not record.imported and os.path.isdir(record.rootdir):
        return record.rootdir
    return os.getcwd()


def _export(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.progress import show_bytes
    from pytest_sandbox.keeping.bundle import export

    shelf = _shelf()
    kept = shelf.find(given.id)
    target = given.output or Path(f"{kept.id}.tar")
    with shelf.hold(kept):
        digest = export(kept, target)
    print(f"{target}: {show_bytes(target.stat().st_size)}, image {digest}")
    print(f"there: pytest-sandbox shell {target.name}, pytest-sandbox replay {target.name} in a checkout of the tests; "
          f"podman load -i {target.name}", file=sys.stderr)
    return 0
