"""What a guest needs beside its image's Python: pytest and our own modules, copied once to where they can be mounted.

Only what is pure Python is taken, from the caller's own installation, so that a guest runs the caller's pytest. The
copy lies in the cache directory, named after what it holds, and is never changed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, distribution

from . import wheels
from .errors import SandboxUnavailable
from .planning import cache_directory

#: The modules and packages that are grafted, where the caller has them.
MODULES = ("pytest", "_pytest", "py", "pluggy", "iniconfig", "packaging", "pygments", "pytest_sandbox")
#: Directories in the graft, with what not every guest has on its path.
OLDER, MEASURING = "below-3.11", "measuring"
#: Their distributions: what importlib.metadata says of them in there.
DISTRIBUTIONS = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
#: Where a guest, and each of its tests, finds the graft.
TARGET = "/run/.pytest-sandbox"
_NEEDED = ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "pytest_sandbox")
_FORM = 2  # of a copy
_made: str | None = None


def graft_made(anew: bool = False) -> str:
    """The same, looked up once a process, or ``anew`` when something came that may go along."""
    global _made
    if _made is None or anew:
        _made = graft()
    return _made


def graft() -> str:
    """The directory that holds the graft, made if need be.

    :raises SandboxUnavailable: when the caller's pytest is not one that can be copied.
    """
    found = {name: place for name in MODULES if (place := _place(name)) is not None}
    if missing := [name for name in _NEEDED if name not in found]:
        raise SandboxUnavailable(
            "a test's body cannot run in another image than the host's", feature="guests",
            why=f"{', '.join(missing)} cannot be copied there: it is not installed as files",
            remedy="Install pytest in the usual way.")
    apart = _apart()
    name = hashlib.sha256(repr((_FORM, sys.implementation.cache_tag, [
        (one, _version_of(one, place)) for one, place in [*found.items(), *apart]])).encode()).hexdigest()[:24]
    folder = os.path.join(cache_directory(), "guests")
    made = os.path.join(folder, name)
    if not os.path.isdir(made):
        os.makedirs(folder, exist_ok=True)
        begun = f"{made}.{os.getpid()}"
        shutil.rmtree(begun, ignore_errors=True)
        os.mkdir(begun)
        for place in found.values():
            _copy(place, begun)
        for folder_in, place in apart:
            os.makedirs(f"{begun}/{folder_in}", exist_ok=True)
            _copy(place, f"{begun}/{folder_in}")
        for one in DISTRIBUTIONS:
            _copy_metadata(one, begun)
        os.chmod(begun, 0o755)
        try:
            os.rename(begun, made)
        except OSError:  # another process was faster
            shutil.rmtree(begun, ignore_errors=True)
    return made


def _apart() -> list[tuple[str, str]]:
    """What goes along where there is some of it: the directory in the graft, and the file or directory."""
    apart = []
    for one in wheels.MODULES:
        place = _place(one)
        if place is None:
            kept = os.path.join(wheels.directory((3, 10)), one)
            place = next((path for path in (kept, f"{kept}.py") if os.path.exists(path)), None)
        if place is not None:
            apart.append((OLDER, place))
    if (place := _place("coverage")) is not None:
        apart.append((MEASURING, place))
    return apart


def _place(name: str) -> str | None:
    """The file or directory of a module; None where there is none of the kind that can be copied."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None or spec.origin is None or not os.path.isfile(spec.origin):
        return None
    return os.path.dirname(spec.origin) if spec.submodule_search_locations else spec.origin


def _version_of(name: str, place: str) -> object:
    if name == "pytest_sandbox":  # ours may be a checkout that somebody works on
        return place, max(os.stat(os.path.join(folder, file)).st_mtime_ns for folder, _, files in os.walk(place)
                          for file in files if file.endswith(".py"))
    facts = os.stat(place)
    return place, facts.st_mtime_ns, facts.st_size


def _copy(place: str, folder: str) -> None:
    target = os.path.join(folder, os.path.basename(place))
    if os.path.isfile(place):
        shutil.copy2(place, target)
        return

    def ignore(directory: str, names: list[str]) -> list[str]:
        return [one for one in names if one.endswith((*EXTENSION_SUFFIXES, ".c", ".h", ".pyi")) or one == "spawner"]

    # Compiled modules go along: a guest of the same version of Python need not compile them again.
    shutil.copytree(place, target, ignore=ignore)


def _copy_metadata(name: str, folder: str) -> None:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    version = found.version
    text = found.read_text("METADATA")
    if text is None:
        return
    target = os.path.join(folder, f"{name}-{version}.dist-info")
    os.mkdir(target)
    with open(os.path.join(target, "METADATA"), "w", encoding="utf-8") as file:
        file.write(text)
