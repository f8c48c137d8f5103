"""``pytest-sandbox pull``, ``images``, ``prune``, ``verify``, ``save``, ``load``, ``rm`` and ``lock``."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.image.collect import Removed
    from pytest_sandbox.image.store import ImageStore

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def register(commands: Any) -> None:
    """Adds the subcommands to an ``argparse`` sub-parsers action. Each sets ``run``, which returns an exit status."""
    pull = _add(commands, "pull", _pull, "bring images into the store")
    pull.add_argument("images", nargs="+", metavar="IMAGE")
    pull.add_argument("--refresh", action="store_true", help="ask the registry again, and follow tags that moved")
    pull.add_argument("--platform", help="such as linux/arm64/v8; this machine's by default")
    pull.add_argument("--lock-file", type=Path, help="use the digests of this lock file (default: ./sandbox.lock)")
    pull.add_argument("--offline", action="store_true", help="ask no registry: what is not in the store is an error")
    pull.add_argument("--quiet", "-q", action="store_true", help="print nothing but the digests")

    images = _add(commands, "images", _images, "list the images in the store")
    images.add_argument("--json", action="store_true", help="for machines")

    prune = _add(commands, "prune", _prune,
                 "remove what no image needs, superseded images, and old ones if asked; never what is used")
    prune.add_argument("--all", action="store_true", help="every image that is not in use")
    prune.add_argument("--unused-for", type=_age, metavar="AGE", help="images not used for so long, such as 30d or 12h")
    prune.add_argument("--max-size", type=_size, metavar="SIZE",
                       help="the least recently used images, until the store is no larger, such as 10G")
    prune.add_argument("--blobs", action="store_true", help="also compressed layers, which only save needs")
    prune.add_argument("--dry-run", "-n", action="store_true", help="only say what would go")

    verify = _add(commands, "verify", _verify, "compare everything in the store with what it was when it came")
    verify.add_argument("--discard", action="store_true", help="remove what is damaged; the next use brings it again")
    verify.add_argument("--json", action="store_true", help="for machines")

    save = _add(commands, "save", _save, "write an image to a file that podman, Docker and skopeo load")
    save.add_argument("image", metavar="IMAGE")
    save.add_argument("--output", "-o", type=Path, required=True, metavar="FILE")

    load = _add(commands, "load", _load, "bring the images of such a file into the store, or a test from export")
    load.add_argument("file", type=Path, metavar="FILE")
    load.add_argument("--name", help="what to call the image")

    remove = _add(commands, "rm", _rm, "remove images from the store")
    remove.add_argument("images", nargs="+", metavar="IMAGE")

    lock = _add(commands, "lock", _lock, "write down which digest each image is to have")
    lock.add_argument("images", nargs="*", metavar="IMAGE", help="to add or to update; all that are locked by default")
    lock.add_argument("--lock-file", type=Path, default=Path("sandbox.lock"))
    lock.add_argument("--check", action="store_true", help="only tell which tags have moved; exit 1 if any did")


def _add(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    parser.set_defaults(run=run)
    return parser


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500M or 10G")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


def _age(text: str) -> float:
    found = _AGE.fullmatch(text.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age such as 12h, 30d or 4w")
    return float(found[1]) * _SECONDS[found[2]]


def _store(**how: Any) -> ImageStore:
    from pytest_sandbox.image.store import ImageStore

    return ImageStore(**how)


def _pull(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.lockfile import NAME, LockFile
    from pytest_sandbox.image.manifest import Platform
    from pytest_sandbox.image.progress import progress_for

    path = given.lock_file or Path(NAME)
    pins = LockFile.read(path).pin if given.lock_file or path.exists() else None
    how: dict[str, Any] = {} if given.quiet else {"progress": progress_for(sys.stderr)}
    if given.platform:
        how["platform"] = Platform.parse(given.platform)
    with _store(pins=pins, offline=given.offline, **how) as store:
        for reference in given.images:
            if given.refresh and not given.offline and pins is not None:
                _tell_moved(path, reference)
            stack = store.resolve(reference, refresh=given.refresh)
            shown = stack.digest or stack.image_id or "a plain directory"
            print(shown if given.quiet else f"{reference}: {shown}, {len(stack.layers)} layers")
    return 0


def _tell_moved(path: Path, reference: str) -> None:
    """Says that a locked tag names something else by now. What is locked stays what is used."""
    from pytest_sandbox.image.lockfile import LockFile, moved
    from pytest_sandbox.image.reference import RegistryReference, parse_reference

    parsed = parse_reference(reference)
    locked = LockFile.read(path)
    if isinstance(parsed, RegistryReference) and (known := locked.images.get(str(parsed))) is not None:
        for one in moved(LockFile({str(parsed): known})):
            print(f"{reference} has moved: {path} keeps {one.locked}, the tag is now {one.now} "
                  f"(pytest-sandbox lock {reference} would take it over)", file=sys.stderr)


def _images(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.collect import list_images, store_size
    from pytest_sandbox.image.progress import show_bytes

    with _store() as store:
        found = list_images(store)
        if given.json:
            print(json.dumps([asdict(one) for one in found], indent=2))
            return 0
        for one in found:
            for name in one.names:
                note = ("  superseded" if one.superseded else "") + ("" if one.complete else "  incomplete")
                print(f"{name:50} {one.image_id[7:19]}  {one.platform:14} {show_bytes(one.size):>10}  "
                      f"used {_ago(one.used)}{note}")
        print(f"{len(found)} images, {show_bytes(store_size(store))} in {store.layout.root}")
    return 0


def _ago(then: int) -> str:
    seconds = max(0, int(time.time()) - then)
    for name, length in (("weeks", 604800), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {name} ago"
    return "just now"


def _prune(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.collect import prune
    from pytest_sandbox.keeping.shelf import Shelf

    with _store() as store:
        needed = Shelf(store.layout).needed_images()
        _tell(prune(store, everything=given.all, unused_for=given.unused_for, most=given.max_size, blobs=given.blobs,
                    dry_run=given.dry_run, needed=needed), "would be removed" if given.dry_run else "removed")
    return 0


def _tell(removed: Removed, verb: str) -> None:
    from pytest_sandbox.image.progress import show_bytes

    for one in removed.images:
        print(f"{', '.join(one.names)}: {verb}")
    for one in removed.busy:
        print(f"{', '.join(one.names)}: in use, or a kept test needs it; stays")
    print(f"{len(removed.images)} images, {len(removed.layers)} layers, {len(removed.blobs)} compressed layers, "
          f"{show_bytes(removed.bytes)} {verb}")


def _verify(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.collect import verify

    with _store() as store:
        problems = verify(store, discard=given.discard)
    if given.json:
        print(json.dumps([asdict(one) for one in problems], indent=2))
    else:
        for one in problems:
            print(f"{one.where}: {one.path or '(itself)'}: {one.kind}{': ' if one.what else ''}{one.what}")
        print("everything is as it was made" if not problems else f"{len(problems)} differences")
    return 1 if problems else 0


def _save(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.export import save_image

    with _store() as store:
        print(save_image(store, given.image, given.output))
    return 0


def _load(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.export import load_images
    from pytest_sandbox.keeping.bundle import is_bundle, load_bundle

    if is_bundle(given.file):
        kept = load_bundle(given.file)
        assert kept.record is not None
        print(f"kept test {kept.id}: {kept.record.nodeid}")
        return 0
    with _store() as store:
        for stored in load_images(store, given.file, given.name):
            print(f"image:{stored.image_id}")
    return 0


def _rm(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.collect import remove

    with _store() as store:
        for reference in given.images:
            _tell(remove(store, reference), "removed")
    return 0


def _lock(given: argparse.Namespace) -> int:
    from pytest_sandbox.image.lockfile import LockFile, look_up, moved

    if not given.images and not given.lock_file.exists():
        print(f"pytest-sandbox: there is no {given.lock_file}; write it with pytest-sandbox lock IMAGE...",
              file=sys.stderr)
        return 2
    lock = LockFile.read(given.lock_file) if given.lock_file.exists() else LockFile()
    if given.check:
        found = moved(lock)
        for one in found:
            print(f"{one.reference} has moved: locked {one.locked}, now {one.now}")
        return 1 if found else 0
    looked_up = dict(look_up(reference) for reference in given.images or list(lock.images))
    known = LockFile.update(given.lock_file, looked_up)
    for name, locked in looked_up.items():
        before = known.get(name)
        change = "" if before is None or before.digest == locked.digest else f" (was {before.digest})"
        print(f"{name}: {locked.digest}{change}")
    return 0
