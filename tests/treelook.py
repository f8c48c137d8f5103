"""What a directory tree is, as data to compare: for tests that unpack layers, beside other tools or alone."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MARKS = ("trusted.overlay.", "user.overlay.")


@dataclass(frozen=True)
class Look:
    """One file. ``links`` are all names of the same inode, for regular files that have several."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime: int | None
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[str, ...]


def _content(path: str, status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return f"{status.st_size} {hashlib.file_digest(file, 'sha256').hexdigest()}" \
                if hasattr(hashlib, "file_digest") else f"{status.st_size} {hashlib.sha256(file.read()).hexdigest()}"
    if stat.S_ISLNK(status.st_mode):
        return os.fsdecode(os.readlink(path))
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return ""


def _xattrs(path: str) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, os.getxattr(path, name, follow_symlinks=False))
                 for name in sorted(os.listxattr(path, follow_symlinks=False)) if not name.startswith(_MARKS))


def look_at(root: str | Path, *, times: bool = True, directory_times: bool = True,
            owners: bool = True) -> dict[str, Look]:
    """Every name below ``root``, relative to it, and the root itself as ``.``."""
    names: dict[tuple[int, int], list[str]] = {}
    found: dict[str, tuple[str, os.stat_result]] = {}
    top = os.fspath(root)
    for base, directories, files in os.walk(top):
        for path in [base, *(os.path.join(base, name) for name in [*files, *directories])]:
            name = os.path.relpath(path, top)
            status = os.lstat(path)
            if name not in found and not stat.S_ISDIR(status.st_mode):
                names.setdefault((status.st_dev, status.st_ino), []).append(name)
            found[name] = (path, status)
    looks = {}
    for name, (path, status) in found.items():
        kind = stat.S_IFMT(status.st_mode)
        timed = times and (directory_times or kind != stat.S_IFDIR)
        links = names.get((status.st_dev, status.st_ino), [])
        looks[name] = Look(
            stat.filemode(status.st_mode)[0], stat.S_IMODE(status.st_mode), status.st_uid if owners else -1,
            status.st_gid if owners else -1, status.st_mtime_ns // 1_000_000_000 if timed else None,
            _content(path, status), _xattrs(path), tuple(sorted(links)) if len(links) > 1 else ())
    return looks


def merge(layers: Sequence[str | Path], **how: bool) -> dict[str, Look]:
    """What overlayfs would show of these layers, lowest first, computed by its rules and without mounting anything."""
    merged: dict[str, Look] = {}
    for one in layers:
        here = look_at(one, **how)
        for name in sorted(here):
            path = os.path.join(one, name)
            if name == ".":
                merged["."] = here["."]
                continue
            gone = here[name].kind == "c" and here[name].content == "0:0"
            hides = here[name].kind != "d" or _is_opaque(path)
            if hides or (name in merged and merged[name].kind != "d"):
                for old in [old for old in merged if old == name or old.startswith(f"{name}/")]:
                    del merged[old]
            if not gone:
                merged[name] = here[name]
    return merged


def _is_opaque(path: str) -> bool:
    for mark in _MARKS:
        try:
            if os.getxattr(path, f"{mark}opaque", follow_symlinks=False) == b"y":
                return True
        except OSError:
            continue
    return False


def differences(ours: dict[str, Look], theirs: dict[str, Look]) -> list[str]:
    """One line for each name that differs."""
    lines = [f"only ours: {name} {ours[name]}" for name in sorted(ours.keys() - theirs.keys())]
    lines += [f"only theirs: {name} {theirs[name]}" for name in sorted(theirs.keys() - ours.keys())]
    lines += [f"{name}: ours {ours[name]}, theirs {theirs[name]}"
              for name in sorted(ours.keys() & theirs.keys()) if ours[name] != theirs[name]]
    return lines
