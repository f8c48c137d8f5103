"""What a probe is, and the program that carries probes out: inside a sandbox, in a weaker one, or on a stand-in.

Runs by itself, without pytest and without this project: ``python -I -S core.py CONTEXT`` prints one JSON object,
each probe's name and its verdict. A verdict is one of

- ``open: what was got``          the attack went through
- ``EPERM`` or another errno      the kernel refused it
- ``shut: why``                   it was refused, or led nowhere, in another way
- ``absent: why``                 this kernel or machine has not what is attacked, so nothing was tried

Every probe is harmless where it succeeds: an open without a write, arguments that no kernel acts on, stand-ins.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Context = dict[str, Any]

#: Where the probes are.
MODULES = ("calls", "devices", "files", "kernel_files", "mounts", "privileges", "processes", "reach")


class Shut(Exception):
    """Refused, but not by an errno."""


class Absent(Exception):
    """Nothing to attack on this machine."""


@dataclass(frozen=True)
class Probe:
    """One attack.

    :param promise: which line of docs/security.md it tries to break, by its word there.
    :param weaker: what a weaker sandbox would allow.
    :param reasons: the verdicts by which a sandbox may stand it: the right reasons and no other.
    :param proof: the world in which it must succeed: ``outside`` (no sandbox, against stand-ins of the test's own),
        ``naive`` (namespaces and no more), or a sandbox of which one layer was taken away, see ``test_probes.py``.
    :param root: that world exists for real root only.
    """

    name: str
    attack: Callable[[Context], object]
    promise: str
    weaker: str
    reasons: tuple[str, ...]
    proof: str
    root: bool

    @property
    def tries(self) -> str:
        return " ".join((self.attack.__doc__ or "").split())


PROBES: dict[str, Probe] = {}


def probe(promise: str, weaker: str, *reasons: str, proof: str, root: bool = False, name: str | None = None,
          ) -> Callable[[Callable[[Context], object]], Callable[[Context], object]]:
    """Registers an attack: a function that returns what it got, or raises."""
    def register(attack: Callable[[Context], object]) -> Callable[[Context], object]:
        called = name or attack.__name__
        assert called not in PROBES, called
        assert reasons, called
        PROBES[called] = Probe(called, attack, promise, weaker, reasons, proof, root)
        return attack
    return register


# System calls.

libc = ctypes.CDLL(None, use_errno=True)
#: Numbers on x86_64, and on machines with the generic table.
NUMBERS = {
    "acct": (163, 89), "add_key": (248, 217), "adjtimex": (159, 171), "bpf": (321, 280), "capset": (126, 91),
    "capget": (125, 90), "clock_settime": (227, 112), "delete_module": (176, 106), "fanotify_init": (300, 262),
    "finit_module": (313, 273), "fsconfig": (431, 431), "fsopen": (430, 430), "init_module": (175, 105),
    "io_uring_setup": (425, 425), "ioperm": (173, None), "iopl": (172, None), "ioprio_get": (252, 31),
    "ioprio_set": (251, 30), "kcmp": (312, 272), "kexec_file_load": (320, 294), "kexec_load": (246, 104),
    "keyctl": (250, 219), "migrate_pages": (256, 238), "mount_setattr": (442, 442), "move_mount": (429, 429),
    "move_pages": (279, 239), "mq_open": (240, 180), "msgget": (68, 186), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "open_tree": (428, 428), "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pivot_root": (155, 41),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "ptrace": (101, 117), "quotactl": (179, 60), "reboot": (169, 142),
    "request_key": (249, 218), "semget": (64, 190), "setns": (308, 268), "settimeofday": (164, 170),
    "shmget": (29, 194), "swapoff": (168, 225), "swapon": (167, 224), "sysfs": (139, None), "syslog": (103, 116),
    "userfaultfd": (323, 282), "vhangup": (153, 58),
}
COLUMN = {"x86_64": 0, "aarch64": 1, "riscv64": 1}.get(platform.machine())


def call(name: str, *args: int | bytes | ctypes.Array[Any] | ctypes.Structure | None) -> int:
    """One system call.

    :raises OSError: what the kernel says.
    :raises Absent: where the machine or its kernel has it not.
    """
    number = None if COLUMN is None else NUMBERS[name][COLUMN]
    if number is None:
        raise Absent(f"{name} has no number here")
    words = [ctypes.c_long(one) if isinstance(one, int) else
             ctypes.byref(one) if isinstance(one, ctypes.Structure) else one for one in args]
    words += [ctypes.c_long(0)] * (6 - len(words))
    ctypes.set_errno(0)
    got = int(libc.syscall(ctypes.c_long(number), *words))
    if got == -1:
        failed = ctypes.get_errno()
        if failed == errno.ENOSYS:
            raise Absent(f"this kernel has no {name}")
        raise OSError(failed, os.strerror(failed), name)
    return got


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2)."""
    texts = [None if one is None else one.encode() for one in (source, target, kind, options)]
    if libc.mount(texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3]) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def umount(target: str, flags: int = 2) -> None:
    """umount2(2), by default with MNT_DETACH."""
    if libc.umount2(target.encode(), flags) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def unshare(flags: int) -> None:
    """unshare(2)."""
    if libc.unshare(flags) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


NEWNS, NEWCGROUP, NEWUSER, NEWPID, NEWNET = 0x20000, 0x2000000, 0x10000000, 0x20000000, 0x40000000


def nested(context: Context, flags: int) -> None:
    """New namespaces as any process may have them: with a user namespace, in which it has every capability.

    In the naive world the process has those capabilities over the mounts already.
    """
    if context["world"] == "naive":
        return unshare(flags & ~NEWUSER)
    uid, gid = os.geteuid(), os.getegid()
    unshare(NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    return None


def reached(function: Callable[[], object], *names: str) -> str:
    """For calls whose arguments no kernel acts on: with one of these errnos it got past every check of privilege."""
    try:
        return f"returned {function()}"
    except OSError as error:
        if (word := errno.errorcode.get(error.errno or 0, "?")) in names:
            return f"the kernel got as far as {word}"
        raise


def opened(path: str, flags: int = os.O_RDONLY) -> str:
    """Opens, reads nothing, writes nothing."""
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC))
    return f"opened {path}"


def in_child(body: Callable[[], object]) -> object:
    """What ``body`` returns or raises in a forked child: for what changes the process for good."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, _verdict(body).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    kind, _, rest = text.partition(": ")
    if kind == "open":
        return rest
    if kind == "shut":
        raise Shut(rest)
    if kind == "absent":
        raise Absent(rest)
    if hasattr(errno, text):
        raise OSError(getattr(errno, text), text)
    raise RuntimeError(text or "the child died")


def _verdict(body: Callable[[], object]) -> str:
    try:
        return f"open: {body()}"
    except Shut as shut:
        return f"shut: {shut}"
    except Absent as absent:
        return f"absent: {absent}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, f"crash: {error!r}")
    except BaseException as error:  # noqa: BLE001 - it travels as text
        return f"crash: {error!r}"


def _apart(context: Context) -> None:
    """Stops everything where an attack would reach the machine of the runner."""
    for kind in ("mnt", "pid"):
        if os.readlink(f"/proc/self/ns/{kind}") == context["namespaces"][kind]:
            print(f"not apart from the host: the {kind} namespace is its own", file=sys.stderr)
            os._exit(3)


def attack(context: Context) -> dict[str, str]:
    """Carries out the probes that the context names, each in a child of its own."""
    world = context["world"]
    if world != "outside":
        _apart(context)
    verdicts = {}
    for name in context["probes"]:
        one = PROBES[name]
        assert world == "sandbox" or one.proof == world, f"{name} is not for {world}"

        def body(one: Probe = one) -> object:
            signal.alarm(20)
            return one.attack(context)

        try:
            verdicts[name] = f"open: {in_child(body)}"
        except RuntimeError as error:
            verdicts[name] = f"crash: {error}"
        except (Shut, Absent, OSError) as error:
            raised: Exception = error

            def again(raised: Exception = raised) -> object:
                raise raised

            verdicts[name] = _verdict(again)
    return verdicts


def load() -> None:
    """Registers every probe."""
    sys.modules.setdefault("core", sys.modules[__name__])
    folder = os.path.dirname(os.path.abspath(__file__))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    for name in MODULES:
        importlib.import_module(name)


def main() -> None:
    context = json.loads(sys.argv[1])
    load()
    if context["world"] == "naive":
        _apart(context)
        importlib.import_module("naive").prepare(context)
    print(json.dumps(attack(context)))


if __name__ == "__main__":
    main()
