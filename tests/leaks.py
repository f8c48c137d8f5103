"""What a test may have left behind on the host: found by comparing two looks at the kernel's own tables.

Used by every kernel test through the ``leak_check`` fixture (``tests/conftest.py``), and by hand::

    before = look()
    ...
    assert leaks_since(before) == []

Only what is ours is looked at, so that runs beside each other do not accuse one another. A process is ours when it

- descends from this one, or
- was forked from this one and lost its parent since: a fork keeps the stack's address, which is random for each
  exec, so it serves as a mark that nobody has to set, or
- was started with our environment: it holds the token below.
"""

from __future__ import annotations

import gc
import os
import re
import select
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

TOKEN_NAME = "PYTEST_SANDBOX_LEAK_TOKEN"
OUR_PREFIXES = ("pytest-sandbox", "pytest_sandbox")

#: Fields of /proc/self/status that a sandbox must not change in the process that asked for it.
OWN_STATE = ("Umask", "Uid", "Gid", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
             "NoNewPrivs", "Seccomp")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    state: str
    started: int  # clock ticks since boot: with the pid it names a process for ever
    stack: tuple[int, int]  # addresses; zero where we may not look
    name: str

    def __str__(self) -> str:
        command = _read(f"/proc/{self.pid}/cmdline").replace("\0", " ").strip()
        return f"{self.pid} ({self.name}, state {self.state}, parent {self.parent}) {command}".rstrip()


@dataclass
class Look:
    """One look. Each field maps what identifies a thing to what is printed about it."""

    processes: dict[object, Process] = field(default_factory=dict)
    mounts: dict[object, str] = field(default_factory=dict)
    namespaces: dict[object, str] = field(default_factory=dict)
    cgroups: dict[object, str] = field(default_factory=dict)
    files: dict[object, str] = field(default_factory=dict)
    descriptors: dict[object, str] = field(default_factory=dict)
    threads: dict[object, str] = field(default_factory=dict)
    state: dict[object, str] = field(default_factory=dict)


def look() -> Look:
    return Look(
        processes={(one.pid, one.started): one for one in _our_processes()},
        mounts=dict(_mounts()),
        namespaces=dict(_own_namespaces()),
        cgroups={path: path for path in _cgroups()},
        files={path: path for path in _files()},
        descriptors=dict(_descriptors()),
        threads={thread.ident: f"thread {thread.name}" for thread in threading.enumerate()},
        state=dict(_own_state()),
    )


def leaks_since(before: Look, patience: float = 5.0) -> list[str]:
    """What is there now and was not ``before``, as lines to print.

    A killed process takes a moment to be gone: those that still run get up to ``patience`` seconds, all else none.
    """
    deadline = time.monotonic() + patience
    found, running = _compare(before, look())
    if found:
        gc.collect()  # a failed test's traceback may have kept alive what a closed sandbox had let go
        found, running = _compare(before, look())
    while found and (left := deadline - time.monotonic()) > 0 and (
            _wait_for_an_end(running, left) or _wait_for_a_helper(found)):
        found, running = _compare(before, look())
    return found


def _compare(before: Look, now: Look) -> tuple[list[str], list[Process]]:
    found = []
    for kind in ("processes", "mounts", "cgroups", "files", "threads"):
        old, new = getattr(before, kind), getattr(now, kind)
        found += [f"{kind}: {what}" for key, what in new.items() if key not in old]
    for kind in ("descriptors", "namespaces", "state"):
        old, new = getattr(before, kind), getattr(now, kind)
        found += [f"{kind}: {what} (was {old.get(key, 'not there')})"
                  for key, what in new.items() if old.get(key) != what]
    running = [one for key, one in now.processes.items() if key not in before.processes and one.state not in "ZX"]
    return found, running


def _wait_for_a_helper(found: list[str]) -> bool:
    """A sandbox's cgroup is removed just after its end, by a process that the test does not wait for."""
    if not any(one.startswith("cgroups: ") for one in found):
        return False
    time.sleep(0.01)
    return True


def _wait_for_an_end(running: list[Process], seconds: float) -> bool:
    """Waits until one of the processes has ended and tells whether one did."""
    poller = select.poll()
    opened = []
    try:
        for one in running:
            try:
                opened.append(os.pidfd_open(one.pid))
            except ProcessLookupError:
                return True
            poller.register(opened[-1], select.POLLIN)
        return bool(opened) and bool(poller.poll(seconds * 1000))
    finally:
        for pidfd in opened:
            os.close(pidfd)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _process(pid: int) -> Process | None:
    text = _read(f"/proc/{pid}/stat")
    if not text:
        return None
    name, rest = text[text.index("(") + 1:text.rindex(")")], text[text.rindex(")") + 2:].split()
    # proc_pid_stat(5) counts from 1 and from the pid; rest begins with field 3.
    return Process(pid, parent=int(rest[1]), state=rest[0], started=int(rest[19]),
                   stack=(int(rest[25]), int(rest[45])), name=name)


def _our_processes() -> Iterator[Process]:
    token = os.environ.setdefault(TOKEN_NAME, uuid.uuid4().hex)
    everyone = {pid: found for pid in _pids() if (found := _process(pid)) is not None}
    me = everyone[os.getpid()]
    ours = {me.pid}
    grown = True
    while grown:
        grown = False
        for one in everyone.values():
            if one.pid not in ours and one.parent in ours:
                ours.add(one.pid)
                grown = True
    for one in everyone.values():
        if one.pid == me.pid or (one.state in "ZX" and one.parent != me.pid):
            continue  # somebody else's child that waits to be reaped is somebody else's affair
        forked = one.stack == me.stack and any(one.stack)
        if one.pid in ours or forked or f"{TOKEN_NAME}={token}" in _read(f"/proc/{one.pid}/environ"):
            yield one


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _mounts() -> Iterator[tuple[object, str]]:
    for line in _read("/proc/self/mountinfo").splitlines():
        words = line.split()
        yield (words[0], words[4]), f"{words[4]} ({' '.join(words[words.index('-') + 1:])})"


def _own_namespaces() -> Iterator[tuple[object, str]]:
    """Namespaces of each of our threads: one that went into a sandbox's and did not come back shows here."""
    for task in os.listdir("/proc/self/task"):
        folder = f"/proc/self/task/{task}/ns"
        try:
            kinds = os.listdir(folder)
        except FileNotFoundError:  # the thread has just ended
            continue
        for kind in kinds:
            if (target := _link(f"{folder}/{kind}")) is not None:
                yield (kind, target), f"{kind} namespace {target}"


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _cgroups() -> Iterator[str]:
    """Sandboxes' cgroups of living runs that are ours, and whole directories of runs that have ended.

    A living run keeps its own directory, which is named after its process; those of other runs are their affair.
    """
    for folder, names, _ in os.walk("/sys/fs/cgroup"):
        for name in [one for one in names if one.startswith(OUR_PREFIXES)]:
            path = f"{folder}/{name}"
            owner = re.fullmatch(r"pytest-sandbox-run-(\d+)-[0-9a-f]+", name)
            if owner is None:
                if not name.endswith((".host", ".scope")):  # systemd's, and where pytest itself runs then
                    yield path
            elif int(owner[1]) == os.getpid():
                yield from (f"{path}/{one.name}" for one in os.scandir(path) if one.is_dir())
            elif not os.path.exists(f"/proc/{owner[1]}"):
                yield path


def _files() -> Iterator[str]:
    places = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", "/run", "/run/lock", "/run/netns",
              os.environ.get("XDG_RUNTIME_DIR") or "/run"}
    for place in sorted(places):
        try:
            names = os.listdir(place)
        except OSError:
            continue
        yield from (f"{place}/{name}" for name in names if name.startswith(OUR_PREFIXES))


def _descriptors() -> Iterator[tuple[object, str]]:
    for number in os.listdir("/proc/self/fd"):
        # The listing's own descriptor is gone by now, and so has no target.
        if (target := _link(f"/proc/self/fd/{number}")) is not None:
            yield number, f"descriptor {number} -> {target}"


def _own_state() -> Iterator[tuple[object, str]]:
    yield "cwd", os.getcwd()
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "SigCgt":
            # Without 32 and 33: libc takes them for itself when the first thread starts (nptl(7)).
            value = f"{int(value, 16) & ~(0b11 << 31):x}"
        if name in OWN_STATE:
            yield name, f"{name} {' '.join(value.split())}"


def watch(fail: Callable[[str], object]) -> Iterator[None]:
    """The body of a fixture: looks, lets the test run, looks again and calls ``fail`` with what is left."""
    before = look()
    yield
    if left := leaks_since(before):
        fail("left behind on the host:\n  " + "\n  ".join(left))
