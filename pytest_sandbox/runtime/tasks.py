"""The kernel's view of what runs in a sandbox: its tasks, what they wait for, and how much CPU they used.

Read from outside through the sandbox's own /proc, which numbers and lists exactly what is inside. Used by ``stacks``
and ``verdicts``. A file that is not there, or not ours to read, is a fact that is missing, never an error: tasks end
while they are looked at.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

_TICK = os.sysconf("SC_CLK_TCK")
#: Of one process, and of all: a fork bomb is not looked at to its last thread.
_MOST_TASKS, _MOST_TASKS_IN_ALL = 500, 3000

#: Calls that wait, by machine and number: name, and how they say for how long: the argument that is a pointer to a time
#: ("*", null for ever) or a number of milliseconds ("ms", negative for ever); None for those that never say.
_TIMED: dict[str, tuple[int, str] | None] = {
    "futex": (3, "*"), "futex_waitv": (3, "*"), "poll": (2, "ms"), "ppoll": (2, "*"), "select": (4, "*"),
    "pselect6": (4, "*"), "epoll_wait": (3, "ms"), "epoll_pwait": (3, "ms"), "epoll_pwait2": (3, "*"),
    "rt_sigtimedwait": (2, "*"), "semtimedop": (3, "*"), "mq_timedreceive": (4, "*"), "mq_timedsend": (4, "*"),
    "recvmmsg": (4, "*"), "io_getevents": (4, "*"),
}
_NAMES = {
    "x86_64": {
        0: "read", 1: "write", 7: "poll", 19: "readv", 20: "writev", 23: "select", 34: "pause", 35: "nanosleep",
        42: "connect", 43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 56: "clone",
        57: "fork", 58: "vfork", 59: "execve", 61: "wait4", 65: "semop", 69: "msgsnd", 70: "msgrcv", 72: "fcntl",
        73: "flock", 74: "fsync", 128: "rt_sigtimedwait", 130: "rt_sigsuspend", 202: "futex", 208: "io_getevents",
        219: "restart_syscall", 220: "semtimedop", 230: "clock_nanosleep", 232: "epoll_wait", 242: "mq_timedsend",
        243: "mq_timedreceive", 247: "waitid", 270: "pselect6", 271: "ppoll", 281: "epoll_pwait", 288: "accept4",
        299: "recvmmsg", 435: "clone3", 441: "epoll_pwait2", 449: "futex_waitv", 2: "open", 257: "openat",
    },
    "aarch64": {
        63: "read", 64: "write", 65: "readv", 66: "writev", 72: "pselect6", 73: "ppoll", 22: "epoll_pwait",
        25: "fcntl", 32: "flock", 82: "fsync", 95: "waitid", 98: "futex", 101: "nanosleep", 115: "clock_nanosleep",
        128: "restart_syscall", 133: "rt_sigsuspend", 137: "rt_sigtimedwait", 182: "mq_timedsend",
        183: "mq_timedreceive", 188: "msgrcv", 189: "msgsnd", 192: "semtimedop", 193: "semop", 202: "accept",
        203: "connect", 206: "sendto", 207: "recvfrom", 211: "sendmsg", 212: "recvmsg", 220: "clone", 221: "execve",
        242: "accept4", 243: "recvmmsg", 260: "wait4", 435: "clone3", 441: "epoll_pwait2", 449: "futex_waitv",
        4: "io_getevents", 56: "openat",
    },
}.get(os.uname().machine, {})

#: Calls that wait for time to pass, and for nothing else.
_SLEEPS = frozenset({"nanosleep", "clock_nanosleep", "restart_syscall"})
_FIRST_IS_FILE = frozenset({"read", "write", "readv", "writev", "accept", "accept4", "connect", "sendto", "recvfrom",
                            "sendmsg", "recvmsg", "recvmmsg", "flock", "fcntl", "fsync"})

_WAITS_FOR = {
    "futex": "a lock", "futex_waitv": "a lock", "wait4": "a child process", "waitid": "a child process",
    "poll": "a file or socket to become ready", "ppoll": "a file or socket to become ready",
    "select": "a file or socket to become ready", "pselect6": "a file or socket to become ready",
    "epoll_wait": "a file or socket to become ready", "epoll_pwait": "a file or socket to become ready",
    "epoll_pwait2": "a file or socket to become ready", "nanosleep": "time to pass", "clock_nanosleep": "time to pass",
    "restart_syscall": "time to pass", "accept": "a connection", "accept4": "a connection", "connect": "a connection",
    "pause": "a signal", "rt_sigsuspend": "a signal", "rt_sigtimedwait": "a signal", "flock": "a file lock",
    "fcntl": "a file lock", "semop": "a semaphore", "semtimedop": "a semaphore", "vfork": "a child to start",
    "clone": "a child to start", "clone3": "a child to start", "open": "the other end of a FIFO",
    "openat": "the other end of a FIFO",
}
_STATES = {"D": "an uninterruptible wait in the kernel", "T": "SIGCONT: it is stopped", "t": "a debugger"}


@dataclass(frozen=True, slots=True)
class Task:
    """One thread of a process, as the kernel has it. What cannot be known is None, or empty.

    :param state: the letter of proc_pid_stat(5): R runs, S waits, D waits and cannot be interrupted, T is stopped.
    :param syscall: the name of the system call that it is in.
    :param wchan: the kernel function in which it waits.
    :param file: what that call is about: a path, or ``pipe:[1]``, ``socket:[1]``.
    :param timed: whether the wait ends by itself after a time.
    :param kernel: its stack in the kernel, innermost function first; for root alone to read.
    """

    tid: int
    name: str
    state: str
    syscall: str | None
    wchan: str | None
    file: str | None
    timed: bool
    kernel: tuple[str, ...]

    @property
    def waits_for(self) -> str | None:
        """What it waits for, in words; None when it does not wait."""
        if self.state in "RZX":
            return None
        if self.state in _STATES and self.syscall not in ("vfork", "clone", "clone3"):
            return _STATES[self.state]
        file = _file_in_words(self.file)
        if self.syscall in ("read", "readv", "recvfrom", "recvmsg", "recvmmsg"):
            return f"data from {file}"
        if self.syscall in ("write", "writev", "sendto", "sendmsg"):
            return f"room to write to {file}"
        what = _WAITS_FOR.get(self.syscall or "") or ("time to pass" if self.wchan == "hrtimer_nanosleep" else None)
        if what is None:
            return f"something in the kernel ({self.syscall or self.wchan or f'state {self.state}'})"
        return f"{what}, for a limited time" if self.timed and self.syscall not in _SLEEPS else what


def _file_in_words(file: str | None) -> str:
    if file is None:
        return "a file or socket"
    kind = file.split(":", 1)[0]
    return {"pipe": "a pipe", "socket": "a socket"}.get(kind, file)


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One process inside: numbers are those that it has there. Its first task is its main thread."""

    pid: int
    ppid: int
    name: str
    args: tuple[str, ...]
    tasks: tuple[Task, ...]


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """What all processes inside had used at a moment.

    :param used: seconds, those of ended children included.
    :param ran: nanoseconds on a CPU of each living thread, by tid.
    :param queued: nanoseconds that it was ready to run and had to wait for a CPU.
    """

    used: float
    ran: dict[int, int]
    queued: dict[int, int]


class Proc:
    """A sandbox's /proc, opened from outside; to be closed."""

    def __init__(self, root: int) -> None:
        """:param root: a descriptor of the sandbox's root directory."""
        self.fd = os.open("proc", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)

    def close(self) -> None:
        """Lets go of it."""
        os.close(self.fd)

    def __enter__(self) -> Proc:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, path: str, most: int = 65536) -> str:
        """A file's text, empty when it cannot be had."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return ""
        try:
            return os.read(fd, most).decode(errors="replace")
        except OSError:
            return ""
        finally:
            os.close(fd)

    def _numbers(self, path: str) -> list[int]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return []
        try:
            return sorted(int(name) for name in os.listdir(fd) if name.isdecimal())
        except OSError:
            return []
        finally:
            os.close(fd)

    def pids(self) -> list[int]:
        """All processes but the sandbox's own first one."""
        return [pid for pid in self._numbers(".") if pid != 1]

    def living(self) -> bool:
        """Whether a process besides the first has not ended."""
        return any(fields[0] not in "ZX" for pid in self.pids() if (fields := self._stat(str(pid))[1]))

    def _stat(self, folder: str) -> tuple[str, list[str]]:
        """The name, and the fields of proc_pid_stat(5) from the third on; no fields when it has ended."""
        head, _, tail = self.read(f"{folder}/stat").rpartition(")")
        return head.partition("(")[2], tail.split()

    def cpu_times(self) -> CpuTimes:
        """What everything inside has used so far."""
        ticks, ran, queued = 0, {}, {}
        for pid in self._numbers("."):
            _, fields = self._stat(str(pid))
            if len(fields) > 14:
                ticks += sum(map(int, fields[11:15]))  # of the process and of its ended children: user, system
            for tid in self._numbers(f"{pid}/task")[:_MOST_TASKS]:
                words = self.read(f"{pid}/task/{tid}/schedstat", 100).split()
                if len(words) == 3:
                    ran[tid], queued[tid] = int(words[0]), int(words[1])
        return CpuTimes(ticks / _TICK, ran, queued)

    def processes(self) -> list[ProcessView]:
        """All processes but the first, with their threads; those that have ended and wait for their parent left out."""
        found, count = [], 0
        for pid in self.pids():
            if count > _MOST_TASKS_IN_ALL:
                break
            name, fields = self._stat(str(pid))
            if not fields or fields[0] in "ZX":
                continue
            arguments = self.read(f"{pid}/cmdline").rstrip("\0").split("\0")
            tasks = [self._task(pid, tid) for tid in self._numbers(f"{pid}/task")[:_MOST_TASKS]]
            count += len(tasks)
            tasks.sort(key=lambda one: one is None or one.tid != pid)
            found.append(ProcessView(pid, int(fields[1]), name, tuple(arguments if arguments != [""] else ()),
                                     tuple(one for one in tasks if one is not None)))
        return found

    def _task(self, pid: int, tid: int) -> Task | None:
        folder = f"{pid}/task/{tid}"
        name, fields = self._stat(folder)
        if not fields:
            return None
        words = self.read(f"{folder}/syscall", 400).split()
        call, arguments = None, []
        if words and words[0].lstrip("-").isdecimal():
            call = _NAMES.get(int(words[0]), f"system call {words[0]}" if int(words[0]) >= 0 else None)
            arguments = [int(word, 16) for word in words[1:7]]
        wchan = self.read(f"{folder}/wchan", 200)
        stack = [line.split("] ", 1)[-1].split("+")[0] for line in self.read(f"{folder}/stack", 4096).splitlines()]
        return Task(tid, name, fields[0], call, wchan if wchan not in ("", "0") else None,
                    self._file(pid, call, arguments), _is_timed(call, arguments, wchan), tuple(stack))

    def _file(self, pid: int, call: str | None, arguments: list[int]) -> str | None:
        if call not in _FIRST_IS_FILE or not arguments:
            return None
        try:
            return os.readlink(f"{pid}/fd/{arguments[0] & 0xFFFFFFFF}", dir_fd=self.fd)
        except OSError:
            return None


def _is_timed(call: str | None, arguments: list[int], wchan: str) -> bool:
    if call in _SLEEPS or (call is None and wchan == "hrtimer_nanosleep"):
        return True
    rule = _TIMED.get(call or "")
    if rule is None or len(arguments) <= rule[0]:
        return False
    value = arguments[rule[0]]
    if rule[1] == "*":
        return value != 0
    milliseconds: int = struct.unpack("<i", struct.pack("<I", value & 0xFFFFFFFF))[0]
    return milliseconds >= 0
