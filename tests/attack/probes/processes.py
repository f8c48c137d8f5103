"""Processes of the host, by their numbers there, and the sandbox's own first process."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
from collections.abc import Callable

from core import Absent, Context, Shut, call, in_child, opened, probe

PROMISE = "processes"


def _on_host(name: str, weaker: str, act: Callable[[int], object], text: str, *reasons: str) -> None:
    @probe(PROMISE, weaker, *(reasons or ("ESRCH",)), proof="outside", name=name)
    def attack(context: Context) -> object:
        return act(context["pid"])

    attack.__doc__ = f"{text} a process of the host, by its number there."


def _read(pid: int, name: str) -> object:
    with open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read(100)


def _ptrace(pid: int) -> object:
    call("ptrace", 0x4206, pid, 0, 0)  # PTRACE_SEIZE, which does not even stop it
    return "traced"


class _Part(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def _memory(pid: int, number: str = "process_vm_readv") -> object:
    buffer = ctypes.create_string_buffer(8)
    try:
        return call(number, pid, _Part(ctypes.addressof(buffer), 8), 1, _Part(16, 8), 1, 0)
    except OSError as error:
        if error.errno == 14:  # nothing is at that address: it was allowed to look
            return "allowed"
        raise


def _pidfd(pid: int) -> object:
    fd = call("pidfd_open", pid, 0)
    os.close(fd)
    return "a pidfd"


def _getfd(pid: int) -> object:
    return call("pidfd_getfd", call("pidfd_open", pid, 0), 0, 0)


_GONE = ("ENOENT",)
for _name, _weaker, _act, _text, _reasons in (
    ("kill_a_process", "it would be ended", lambda pid: os.kill(pid, 0), "Sends no signal to", ()),
    ("stop_its_group", "it would be stopped", lambda pid: os.killpg(os.getpgid(pid), 0), "Asks for the group of", ()),
    ("trace_a_process", "its secrets would be read", _ptrace, "Traces", ()),
    ("memory_of_a_process", "its secrets would be read", _memory, "Reads the memory of", ()),
    ("write_memory_of_a_process", "it would run the attacker's code", lambda pid: _memory(pid, "process_vm_writev"),
     "Writes nowhere in the memory of", ()),
    ("pidfd_of_a_process", "it would be held on to", _pidfd, "Opens a pidfd of", ()),
    ("descriptor_of_a_process", "its files would be used", _getfd, "Takes a descriptor of", ()),
    ("affinity_of_a_process", "it would be moved", lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(pid)),
     "Gives the processors that it has to", ()),
    ("priority_of_a_process", "it would be slowed down",
     lambda pid: os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid)),
     "Gives the priority that it has to", ()),
    ("scheduler_of_a_process", "it would be slowed down", os.sched_getscheduler, "Asks for the scheduler of", ()),
    ("limits_of_a_process", "it would fail", lambda pid: resource.prlimit(pid, resource.RLIMIT_NOFILE),
     "Asks for the limits of", ()),
    ("session_of_a_process", "it would be found", os.getsid, "Asks for the session of", ()),
    ("pages_of_a_process", "its memory would be moved", lambda pid: call("move_pages", pid, 0, None, None, None, 0),
     "Moves no page of", ()),
    ("io_priority_of_a_process", "it would be slowed down", lambda pid: call("ioprio_get", 1, pid),
     "Asks for the I/O priority of", ()),
    ("compare_with_a_process", "addresses of the kernel would be told",
     lambda pid: call("kcmp", os.getpid(), pid, 1, 0, 0), "Compares memory with", ()),
    ("environment_of_a_process", "its secrets would be read", lambda pid: _read(pid, "environ"),
     "Reads the environment of", _GONE),
    ("arguments_of_a_process", "its secrets would be read", lambda pid: _read(pid, "cmdline"),
     "Reads the arguments of", _GONE),
    ("root_of_a_process", "the host's tree would be reached", lambda pid: os.listdir(f"/proc/{pid}/root/")[:1],
     "Goes through the root of", _GONE),
    ("directory_of_a_process", "the host's tree would be reached", lambda pid: os.listdir(f"/proc/{pid}/cwd/")[:1],
     "Goes through the working directory of", _GONE),
    ("files_of_a_process", "its files would be opened", lambda pid: os.listdir(f"/proc/{pid}/fd"),
     "Lists the open files of", _GONE),
    ("memory_file_of_a_process", "it would run the attacker's code",
     lambda pid: opened(f"/proc/{pid}/mem", os.O_RDWR), "Opens the memory of", _GONE),
    ("namespaces_of_a_process", "its namespaces would be entered", lambda pid: opened(f"/proc/{pid}/ns/mnt"),
     "Opens the mount namespace of", _GONE),
    ("oom_score_of_a_process", "it would be the first to be killed",
     lambda pid: opened(f"/proc/{pid}/oom_score_adj", os.O_WRONLY), "Opens the OOM score of", _GONE),
    ("program_of_a_process", "it would be overwritten", lambda pid: opened(f"/proc/{pid}/exe"),
     "Opens the program of", _GONE),
):
    _on_host(_name, _weaker, _act, _text, *_reasons)


@probe(PROMISE, "every process of the machine would be listed", "shut: its own", proof="outside")
def list_of_processes(context: Context) -> object:
    """Looks through /proc for a process with the mark of the test's stand-in."""
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if context["mark"].encode() in file.read() and int(name) not in (os.getppid(), 1):
                        return name
            except OSError:
                continue
    raise Shut("its own")


@probe(PROMISE, "the caller's environment would be read in the helper or in init", "EACCES", "EPERM", "shut: nothing",
       proof="outside")
def environment_of_init(context: Context) -> object:
    """Looks in the environment of the first process for the caller's secret; outside in that of the stand-in."""
    pid = context["pid"] if context["world"] == "outside" else 1
    with open(f"/proc/{pid}/environ", "rb") as file:
        if context["secret"].encode() in file.read():
            return "the secret"
    raise Shut("nothing")


# The sandbox's first process. It holds the way to the caller.

def _of_init(name: str, weaker: str, act: Callable[[int], object], text: str, *reasons: str) -> None:
    @probe("init", weaker, *(reasons or ("EPERM", "EACCES")), proof="outside", name=name)
    def attack(context: Context) -> object:
        return act(context["pid"] if context["world"] == "outside" else 1)

    attack.__doc__ = f"{text} the sandbox's first process; outside a stand-in."


for _name, _weaker, _act, _text in (
    ("trace_init", "reports would be forged, the caller's descriptors be used", _ptrace, "Traces"),
    ("read_memory_of_init", "what it holds would be read", _memory, "Reads the memory of"),
    ("write_memory_of_init", "it would run the attacker's code", lambda pid: _memory(pid, "process_vm_writev"),
     "Writes nowhere in the memory of"),
    ("memory_file_of_init", "it would run the attacker's code", lambda pid: opened(f"/proc/{pid}/mem", os.O_RDWR),
     "Opens the memory of"),
    ("descriptor_of_init", "the socket to the caller would be used", _getfd, "Takes a descriptor of"),
    ("files_of_init", "the socket to the caller would be used",
     lambda pid: [os.readlink(f"/proc/{pid}/fd/{one}") for one in os.listdir(f"/proc/{pid}/fd")],
     "Asks for the names of the open files of"),
    ("file_of_init", "the socket to the caller would be used", lambda pid: opened(f"/proc/{pid}/fd/0"),
     "Opens standard input of"),
    ("program_of_init", "the program of every sandbox would be overwritten (CVE-2019-5736)",
     lambda pid: opened(f"/proc/{pid}/exe"), "Opens the program of"),
    ("program_of_init_by_name", "its place on the host would be known", lambda pid: os.readlink(f"/proc/{pid}/exe"),
     "Asks for the name of the program of"),
    ("maps_of_init", "an attack on it would be guided", lambda pid: _read(pid, "maps") or "a map",
     "Reads the memory map of"),
    ("directory_of_init", "a directory that it left open would be used (CVE-2024-21626)",
     lambda pid: os.listdir(f"/proc/{pid}/cwd/")[:1], "Goes through the working directory of"),
    ("namespace_of_init", "its namespace would be entered", lambda pid: opened(f"/proc/{pid}/ns/mnt"),
     "Opens the mount namespace of"),
):
    _of_init(_name, _weaker, _act, _text)


def _survives(number: int) -> object:
    if os.getpid() == 1 or os.getppid() == 0:
        raise Absent("this is the first process")
    os.kill(1, number)
    with open("/proc/1/stat") as file:
        state = file.read().rsplit(")", 1)[1].split()[0]
    if state in "TtZX":
        return f"state {state}"
    raise Shut("it goes on")


def _signal(name: str, number: int) -> None:
    @probe("init", "the sandbox would hang for ever, or end without a word", "shut: it goes on", "EPERM",
           proof="outside", name=name)
    def attack(context: Context) -> object:
        if context["world"] != "outside":
            return _survives(number)

        def body() -> object:  # a child of its own is a stand-in that does not survive
            pid = os.fork()
            if pid == 0:
                signal.pause()
            os.kill(pid, number)
            return f"state {os.waitpid(pid, os.WUNTRACED)[1]}, and {os.kill(pid, 9) if number == 19 else 'gone'}"

        return in_child(body)

    attack.__doc__ = f"Sends signal {number} to the first process."


_signal("stop_init", signal.SIGSTOP)
_signal("kill_init", signal.SIGKILL)
_signal("abort_init", signal.SIGABRT)


@probe("init", "the first process would be frozen by a debugger's stop", "EPERM", "EACCES", proof="outside")
def attach_init(context: Context) -> object:
    """Attaches to the first process by the old call; outside to a child."""
    if context["world"] != "outside":
        return call("ptrace", 16, 1, 0, 0)
    pid = os.fork()
    if pid == 0:
        signal.pause()
    call("ptrace", 16, pid, 0, 0)
    os.waitpid(pid, 0)
    os.kill(pid, 9)
    return "attached"


# Signals that processes ask for by other ways than kill(2).

@probe(PROMISE, "a signal would be sent by the owner of a file", "ESRCH", proof="outside")
def owner_of_a_file(context: Context) -> object:
    """Makes a process of the host the owner of a pipe, which would get its SIGIO."""
    import fcntl
    reading, _writing = os.pipe()
    fcntl.fcntl(reading, 15, struct.pack("ii", 1, context["pid"]))  # F_SETOWN_EX, F_OWNER_PID
    return "its owner"
