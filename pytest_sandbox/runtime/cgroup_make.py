"""The helper's side of cgroups: makes a sandbox's directories, puts its init into them, watches, and removes them.

:mod:`.cgroups` decides what is made, as plain JSON values (a *layout*), and :mod:`.cgroup` reads and writes the files
while the sandbox runs. The helper does the rest because it works beside the running test, sees a sandbox's end first,
and outlives a caller that was killed. Imports stay few: this module is in the helper's heap.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # as typing's, whose import the helper's heap can do without
if TYPE_CHECKING:
    from typing import Any

HOST = "/host"
#: The directory within a sandbox's own that its processes are in: a cgroup namespace rooted here does not show the
#: files that set the limits, whoever mounts what inside.
INNER = "in"


class Made:
    """One sandbox's directories: made by :meth:`Groups.make`; they go when it was dropped and its init has ended."""

    __slots__ = ("counter", "dropped", "event", "into", "joins", "paths", "pid", "stays")

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.joins: list[int] = []  # files that take a process which writes "0" to them
        self.stays: list[int] = []  # the same, for when it has its cgroup namespace; mostly the same files
        self.into = -1  # a directory for clone3(CLONE_INTO_CGROUP)
        self.event = self.counter = -1
        self.pid = 0
        self.dropped = False

    def close(self) -> None:
        """Lets go of what only the making needs."""
        for fd in {*self.joins, *self.stays}:
            os.close(fd)
        self.joins, self.stays = [], []
        if self.into >= 0:
            os.close(self.into)
            self.into = -1

    def unwatch(self) -> None:
        """Stops watching for the kernel's out-of-memory kills."""
        for fd in (self.event, self.counter):
            if fd >= 0:
                os.close(fd)
        self.event = self.counter = -1


class Groups:
    """All that one helper has made."""

    def __init__(self) -> None:
        self.by_name: dict[str, Made] = {}
        self.by_pid: dict[int, Made] = {}
        self.by_event: dict[int, Made] = {}
        self.places: set[str] = set()  # the caller's own directories, in which it has us make the sandboxes
        self.suspects: dict[int, tuple[Made, float]] = {}  # out of memory, and no kill counted yet

    def make(self, layout: dict[str, Any], name: str) -> Made:
        """The directories of one sandbox, with their limits.

        :raises OSError: with the path; nothing is left of it.
        """
        made = Made()
        try:
            where = {}
            for key, place in layout["places"]:
                path = f"{HOST}{place}/{name}"
                os.mkdir(path)
                made.paths.append(path)
                where[key] = path
            for key, file, text in layout["files"]:
                write(f"{where[key]}/{file}", text)
            for key in where:
                outer = where[key]
                where[key] += f"/{INNER}"
                os.mkdir(where[key])
                for folder, files in ((where[key], made.joins), (outer, made.stays)):
                    if folder == outer and key not in layout["flat"]:
                        files.append(made.joins[-1])
                    else:
                        files.append(os.open(f"{folder}/{layout['join']}", os.O_WRONLY | os.O_CLOEXEC))
                        where[key] = folder
            if layout["version"] == 2:
                made.into = os.open(where["unified"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            elif layout["memory"] is not None:
                self._watch(made, where["memory"])
        except OSError:
            made.close()
            made.unwatch()
            remove(made.paths)
            raise
        self.by_name[name] = made
        return made

    def _watch(self, made: Made, path: str) -> None:
        # cgroup v1 has no oom.group: the kernel kills one process and leaves the rest. It tells of it by an eventfd.
        made.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        made.counter = os.open(f"{path}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        write(f"{path}/cgroup.event_control", f"{made.event} {made.counter}")
        self.by_event[made.event] = made

    def started(self, made: Made, pid: int) -> None:
        """The sandbox's init runs."""
        made.close()
        made.pid = pid
        self.by_pid[pid] = made

    def leave(self) -> None:
        """In a new init: closes what is the helper's alone."""
        for made in self.by_name.values():
            made.unwatch()

    def out_of_memory(self, event: int) -> None:
        """The kernel says that a sandbox has reached its memory limit; it may yet find something to kill."""
        made = self.by_event.get(event)
        if made is not None:
            try:
                os.eventfd_read(event)
            except BlockingIOError:
                return
            self.suspects[event] = made, time.monotonic() + 1

    def judge(self) -> None:
        """Ends each sandbox in which the kernel has killed a process for want of memory."""
        for event, (made, until) in list(self.suspects.items()):
            try:
                killed = b"\noom_kill 0" not in os.pread(made.counter, 4096, 0)
            except OSError:
                killed = False  # ENODEV: the caller has removed it, of which the eventfd tells, too
                until = 0
            if killed and made.pid:
                os.kill(made.pid, 9)  # the first process of its pid namespace: all others end with it
            if killed or time.monotonic() > until:
                del self.suspects[event]

    def watch(self, name: str) -> int:
        """A sandbox has got a memory limit while it runs. Returns the eventfd that tells of its kills, or -1."""
        made = self.by_name.get(name)
        if made is None or made.event >= 0:
            return -1
        for path in made.paths:
            if os.path.exists(f"{path}/{INNER}/memory.oom_control"):
                self._watch(made, f"{path}/{INNER}")
        return made.event

    def froze(self, name: str, path: str) -> None:
        """The caller has made another directory for a sandbox."""
        made = self.by_name.get(name)
        if made is not None:
            made.paths.append(HOST + path)

    def drop(self, name: str) -> int:
        """Nobody will read the sandbox's figures any more. Returns the eventfd that is closed now, or -1."""
        made = self.by_name.get(name)
        if made is None:
            return -1
        made.dropped = True
        return -1 if made.pid else self._forget(name, made)

    def ended(self, pid: int) -> int:
        """A sandbox's init has been reaped. Returns the eventfd that is closed now, or -1."""
        made = self.by_pid.pop(pid, None)
        if made is None:
            return -1
        made.pid = 0
        if made.dropped:
            return self._forget(os.path.basename(made.paths[0]), made)
        return -1

    def abandon(self, name: str) -> int:
        """A sandbox whose init could not be started."""
        made = self.by_name[name]
        made.close()
        return self._forget(name, made)

    def _forget(self, name: str, made: Made) -> int:
        del self.by_name[name]
        event = made.event
        self.by_event.pop(event, None)
        self.suspects.pop(event, None)
        made.unwatch()
        remove(made.paths)
        return event

    def close(self, forsaken: bool) -> None:
        """The helper ends: so does everything that it has made.

        :param forsaken: the caller has ended without a word: what it made itself goes, too.
        """
        for pid, made in list(self.by_pid.items()):
            try:
                os.kill(pid, 9)
                thaw(made.paths)
                unthrottle(made.paths)
                # Whatever else has ended, too: what ran in a sandbox and was forked by a guest is now for us to reap,
                # and the kernel keeps the sandbox until that is done.
                while os.waitpid(-1, 0)[0] != pid:
                    pass
            except OSError:
                pass  # reaped already
        for made in self.by_name.values():
            remove(made.paths)
        if forsaken:
            for place in self.places:
                try:
                    os.rmdir(HOST + place)
                except OSError:
                    pass  # another helper of the same caller still has something there


def write(path: str, text: str) -> None:
    """Writes a file of a cgroup.

    :raises OSError: with the path.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        error.filename = path
        raise
    finally:
        os.close(fd)


def thaw(paths: list[str]) -> None:
    """Lets frozen processes go on: on cgroup v1 they do not even die before."""
    for path in paths:
        try:
            write(f"{path}/freezer.state", "THAWED")
        except OSError:
            pass  # not that controller's


def unthrottle(paths: list[str]) -> list[tuple[str, str]]:
    """Lifts the limits of block I/O: whoever waits for one cannot even be killed. Returns what sets them again."""
    lifted = []
    for path in paths:
        for name, nothing in (("io.max", "rbps=max wbps=max"), ("blkio.throttle.read_bps_device", "0"),
                              ("blkio.throttle.write_bps_device", "0")):
            try:
                with open(f"{path}/{name}") as file:
                    lines = file.read().splitlines()
                for line in lines:
                    write(f"{path}/{name}", f"{line.split()[0]} {nothing}")
                    lifted.append((f"{path}/{name}", line))
            except OSError:
                pass  # not that controller's, or the disk has gone
    return lifted


def remove(paths: list[str]) -> None:
    """Removes a sandbox's directories; what runs in them is dead or dying."""
    for path in paths:
        for _ in range(200):
            try:
                try:
                    os.rmdir(f"{path}/{INNER}")
                    os.rmdir(path)
                except OSError:
                    _remove_below(path)  # it has none, or others, made inside
                    os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError:
                time.sleep(0.005)  # EBUSY: the last one to leave is still on its way


def _remove_below(path: str) -> None:
    for folder, names, _ in os.walk(path, topdown=False):
        for name in names:
            os.rmdir(f"{folder}/{name}")
