"""System call filters: what a sandbox's processes may not even ask the kernel. Compiled here to the kernel's BPF.

The default denies what no test suite needs and what has most often been the way from a user namespace into the kernel;
a profile in Docker's JSON format takes its place. Numbers of system calls come from a small table of the default's own,
others from libseccomp, where it is installed.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import SandboxUnavailable, SandboxUsageError
from . import syscalls as sc

# linux/audit.h
X86_64, I386, AARCH64, RISCV64, LOONGARCH64 = 0xC000003E, 0x40000003, 0xC00000B7, 0xC00000F3, 0xC0000102
_ARCHES = {"x86_64": (X86_64, I386), "aarch64": (AARCH64,), "riscv64": (RISCV64,), "loongarch64": (LOONGARCH64,),
           "ppc64le": (0xC0000015,), "s390x": (0x80000016,)}
_X32 = 0x40000000  # the bit that marks calls of the x32 ABI

#: What the default denies with EPERM: number on x86_64, i386, and machines with the generic table; None: has it not.
DENIED: dict[str, tuple[int | None, int | None, int | None]] = {
    # the kernel itself: modules, another kernel, reboot, its log, its programs, its counters
    "init_module": (175, 128, 105), "finit_module": (313, 350, 273), "delete_module": (176, 129, 106),
    "create_module": (174, 127, None), "query_module": (178, 167, None), "get_kernel_syms": (177, 130, None),
    "kexec_load": (246, 283, 104), "kexec_file_load": (320, None, 294), "reboot": (169, 88, 142),
    "syslog": (103, 103, 116), "bpf": (321, 357, 280), "perf_event_open": (298, 336, 241),
    "lookup_dcookie": (212, 253, 18), "nfsservctl": (180, 169, 42), "_sysctl": (156, 149, None),
    "sysfs": (139, 135, None), "ustat": (136, 62, None), "uselib": (134, 86, None),
    # the machine: clock, swap, accounting, quotas, ports, terminals, 16-bit mode
    "settimeofday": (164, 79, 170), "clock_settime": (227, 264, 112), "clock_settime64": (None, 404, None),
    "stime": (None, 25, None), "swapon": (167, 87, 224), "swapoff": (168, 115, 225), "acct": (163, 51, 89),
    "quotactl": (179, 131, 60), "quotactl_fd": (443, 443, 443), "iopl": (172, 110, None), "ioperm": (173, 101, None),
    "vhangup": (153, 111, 58), "vm86": (None, 166, None), "vm86old": (None, 113, None),
    # keys, which no namespace separates; files by handle, which no mount namespace bounds
    "add_key": (248, 286, 217), "request_key": (249, 287, 218), "keyctl": (250, 288, 219),
    "open_by_handle_at": (304, 342, 265),
    # the usual ways into a hole of the kernel
    "userfaultfd": (323, 374, 282), "io_uring_setup": (425, 425, 425), "io_uring_enter": (426, 426, 426),
    "io_uring_register": (427, 427, 427),
}
#: Denied by an argument.
_NUMBERS = {**DENIED, "socket": (41, 359, 198), "socketcall": (None, 102, None), "ioctl": (16, 54, 29)}

_ACTIONS = {"SCMP_ACT_ALLOW": 0x7FFF0000, "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_TRACE": 0x7FF00000,
            "SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRAP": 0x00030000, "SCMP_ACT_KILL": 0x00000000,
            "SCMP_ACT_KILL_THREAD": 0x00000000, "SCMP_ACT_KILL_PROCESS": 0x80000000}
_ALLOW, _ERRNO = _ACTIONS["SCMP_ACT_ALLOW"], _ACTIONS["SCMP_ACT_ERRNO"]
_OPERATORS = ("SCMP_CMP_NE", "SCMP_CMP_LT", "SCMP_CMP_LE", "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT",
              "SCMP_CMP_MASKED_EQ")
_LOW = 0xFFFFFFFF
#: Families of sockets that nobody tests with and whose modules, loaded when one is asked for, have had their holes:
#: AX25, NETROM, X25, ROSE, DECNET, RDS, LLC, TIPC, RXRPC, PHONET, CAIF, ALG, KCM, QIPCRTR.
OLD_FAMILIES = (3, 6, 9, 11, 12, 21, 26, 30, 33, 35, 37, 38, 41, 42)
_AF_VSOCK, _TIOCSTI, _TIOCLINUX = 40, 0x5412, 0x541C

#: Most instructions that the kernel takes (BPF_MAXINSNS).
_LONGEST = 4096


@dataclass(frozen=True)
class Condition:
    """A comparison of one argument, as libseccomp has it. For MASKED_EQ ``value`` is the mask, ``other`` the rest."""

    index: int
    operator: str
    value: int
    other: int = 0


@dataclass(frozen=True)
class Rule:
    """What happens on a system call whose arguments meet all conditions."""

    name: str
    action: int
    conditions: tuple[Condition, ...] = ()


def filter_for(setting: str, capabilities: Iterable[str], host_network: bool) -> bytes:
    """The program of a sandbox; empty for none.

    :param setting: ``default``, ``unconfined``, or the path of a profile.
    :param capabilities: that root keeps inside: profiles allow calls by them.
    :raises SandboxUsageError: when the profile cannot be read or used.
    :raises SandboxUnavailable: when it cannot be had on this machine.
    """
    if setting == "unconfined":
        return b""
    machine = os.uname().machine
    if setting == "default":
        return _default(machine, host_network)
    try:
        look = os.stat(setting)
    except OSError as error:
        raise _unusable(setting, error.strerror or str(error)) from error
    return _from_file(machine, setting, (look.st_mtime_ns, look.st_size, look.st_ino), frozenset(capabilities))


@functools.cache
def _default(machine: str, host_network: bool) -> bytes:
    rules = [Rule(name, _ERRNO | errno.EPERM) for name in DENIED]
    # Typing into a terminal, and into the machine's console. The kernel looks at 32 bits only.
    rules += [Rule("ioctl", _ERRNO | errno.EPERM, (Condition(1, "SCMP_CMP_MASKED_EQ", _LOW, command),))
              for command in (_TIOCSTI, _TIOCLINUX)]
    # A virtual machine's sockets to its host: no network namespace separates them.
    families = OLD_FAMILIES if host_network else (*OLD_FAMILIES, _AF_VSOCK)
    rules += [Rule("socket", _ERRNO | errno.EPERM, (Condition(0, "SCMP_CMP_MASKED_EQ", _LOW, family),))
              for family in families]
    rules.append(Rule("socketcall", _ERRNO | errno.ENOSYS))  # its arguments cannot be looked at
    return compile_rules(rules, _ALLOW, _arches(machine), _number)


def _arches(machine: str) -> tuple[int, ...]:
    try:
        return _ARCHES[machine]
    except KeyError:
        raise SandboxUnavailable(
            "this host cannot filter system calls", feature="seccomp", why=f"its architecture, {machine}, is not known",
            remedy='Use seccomp="unconfined".') from None


def _number(arch: int, name: str) -> int | None:
    """The number of a call; None where the architecture has it not."""
    column = {X86_64: 0, I386: 1, AARCH64: 2, RISCV64: 2, LOONGARCH64: 2}.get(arch)
    known = _NUMBERS.get(name)
    if known is not None and column is not None:
        return known[column]
    found = sc.syscall_number(arch, name)
    return found if found >= 0 else None


# Profiles.

def _unusable(path: str, why: str) -> SandboxUsageError:
    return SandboxUsageError(f"sandbox option seccomp={path!r} cannot be used", option="seccomp", value=path,
                             allowed='"default", "unconfined", or the path of a profile in Docker\'s JSON format',
                             why=why)


@functools.lru_cache(maxsize=16)
def _from_file(machine: str, path: str, look: tuple[int, ...], capabilities: frozenset[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            profile = json.loads(file.read(4 << 20))
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(path, str(error)) from error
    try:
        default, rules = _read(profile, machine, capabilities)
    except _Wrong as error:
        raise _unusable(path, str(error)) from None
    if not sc.has_libseccomp():
        raise SandboxUnavailable(
            "this host cannot read seccomp profiles", feature="seccomp-profile",
            why="libseccomp, which knows the numbers of the system calls, is not installed",
            remedy="Install it (Debian and Ubuntu: apt-get install libseccomp2), or use seccomp=\"default\".")
    arches = _arches(machine)
    kept = []
    for rule in rules:
        if all(_number(arch, rule.name) is None for arch in arches):
            if _strictness(rule.action) > _strictness(default):
                raise _unusable(path, f"it denies {rule.name!r}, which is no system call that libseccomp knows")
            continue
        kept.append(rule)
    try:
        return compile_rules(kept, default, arches, _number)
    except _Wrong as error:
        raise _unusable(path, str(error)) from None


class _Wrong(ValueError):
    """What is wrong with a profile."""


def _strictness(action: int) -> int:
    order = (_ALLOW, _ACTIONS["SCMP_ACT_LOG"], _ACTIONS["SCMP_ACT_TRACE"], _ERRNO)
    return order.index(action & 0xFFFF0000) if action & 0xFFFF0000 in order else len(order)


def _read(profile: Any, machine: str, capabilities: frozenset[str]) -> tuple[int, list[Rule]]:
    """The default action and the rules that apply on this machine."""
    if not isinstance(profile, dict) or "defaultAction" not in profile:
        raise _Wrong('it has no "defaultAction": it is not a profile')
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    rules = []
    entries = profile.get("syscalls", [])
    if not isinstance(entries, list):
        raise _Wrong('"syscalls" is not a list')
    for entry in entries:
        if not isinstance(entry, dict):
            raise _Wrong(f'an entry of "syscalls" is {entry!r}')
        names = entry.get("names") or ([entry["name"]] if "name" in entry else [])
        if not isinstance(names, list) or not names or not all(
                isinstance(name, str) and name.isascii() for name in names):
            raise _Wrong('an entry of "syscalls" has no "names"')
        action = _action(entry.get("action"), entry.get("errnoRet"))
        if not _applies(entry, machine, capabilities) or action == default:
            continue
        given = entry.get("args") or []
        if not isinstance(given, list):
            raise _Wrong(f'"args" of an entry of "syscalls" is {given!r}')
        conditions = tuple(_condition(one) for one in given)
        rules += [Rule(name, action, conditions) for name in names]
    return default, rules


def _action(name: object, number: object) -> int:
    if name == "SCMP_ACT_NOTIFY":
        raise _Wrong("SCMP_ACT_NOTIFY needs a program that answers, and there is none")
    if not isinstance(name, str) or name not in _ACTIONS:
        raise _Wrong(f"{name!r} is not an action; there are {', '.join(_ACTIONS)}")
    action = _ACTIONS[name]
    if action in (_ERRNO, _ACTIONS["SCMP_ACT_TRACE"]):
        number = errno.EPERM if number is None else number
        if not isinstance(number, int) or not 0 <= number <= 4095:
            raise _Wrong(f"{number!r} is not an errno")
        action |= number
    return action


def _condition(entry: object) -> Condition:
    if not isinstance(entry, dict):
        raise _Wrong(f"{entry!r} is not a comparison of an argument")
    index, operator = entry.get("index"), entry.get("op")
    values = entry.get("value", 0), entry.get("valueTwo", 0)
    if not isinstance(index, int) or not 0 <= index <= 5 or operator not in _OPERATORS:
        raise _Wrong(f"{entry!r} is not a comparison of an argument")
    if not all(isinstance(one, int) and 0 <= one < 1 << 64 for one in values):
        raise _Wrong(f"{entry!r} compares with something that is not a number of 64 bits")
    return Condition(index, str(operator), *values)


_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64"}


def _applies(entry: dict[str, Any], machine: str, capabilities: frozenset[str]) -> bool:
    def meets(which: object, all_of: bool) -> list[bool]:
        found = which if isinstance(which, dict) else {}
        arch = _GO_NAMES.get(machine, machine)
        checks = []
        arches, caps = found.get("arches"), found.get("caps")
        for name, one in (("arches", arches), ("caps", caps)):
            if one is not None and not isinstance(one, list):
                raise _Wrong(f"{name!r} of an entry of \"syscalls\" is {one!r}")
        if arches:
            checks.append(arch in arches)
        if caps:
            has = [str(one).removeprefix("CAP_") in capabilities for one in caps]
            checks.append(all(has) if all_of else any(has))
        if kernel := found.get("minKernel"):
            checks.append(_kernel(os.uname().release) >= _kernel(str(kernel)))
        return checks
    return all(meets(entry.get("includes"), True)) and not any(meets(entry.get("excludes"), False))


def _kernel(text: str) -> tuple[int, ...]:
    parts = text.split("-")[0].split(".")[:2]
    return tuple(int(one) for one in parts if one.isdecimal())


# The compiler. One instruction is (code, jump if true, jump if false, constant); jumps are relative.

_LOAD, _JUMP, _EQUAL, _GREATER, _NOT_LESS, _AND, _RETURN = 0x20, 0x05, 0x15, 0x25, 0x35, 0x54, 0x06
_Instruction = tuple[int, int, int, int]
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data; the arguments follow at 16


def compile_rules(rules: list[Rule], default: int, arches: Iterable[int],
                  number: Callable[[int, str], int | None]) -> bytes:
    """The program, as an array of ``struct sock_filter``. Calls of other architectures are denied with ENOSYS.

    Of several rules for a call the first counts whose conditions are met; one without conditions counts last.
    """
    program: list[_Instruction] = [(_LOAD, 0, 0, _ARCH)]
    for arch in arches:
        block = list(_block(rules, default, arch, number))
        program += [(_EQUAL, 1, 0, arch), (_JUMP, 0, 0, len(block)), *block]
    program.append((_RETURN, 0, 0, _ERRNO | errno.ENOSYS))
    if len(program) > _LONGEST:
        raise _Wrong(f"it comes to {len(program)} instructions, and the kernel takes {_LONGEST}")
    return b"".join(struct.pack("=HBBI", *one) for one in program)


def _block(rules: list[Rule], default: int, arch: int, number: Callable[[int, str], int | None]
           ) -> Iterator[_Instruction]:
    """All about one architecture. Ends with a return."""
    by_number: dict[int, list[Rule]] = {}
    for rule in rules:
        found = number(arch, rule.name)
        if found is not None:
            by_number.setdefault(found, []).append(rule)
    yield _LOAD, 0, 0, _NUMBER
    if arch == X86_64:
        yield _NOT_LESS, 0, 1, _X32
        yield _RETURN, 0, 0, _ERRNO | errno.ENOSYS
    for found, several in by_number.items():
        inner: list[_Instruction] = []
        for rule in sorted(several, key=lambda one: not one.conditions):
            inner += _checked(rule)
            if not rule.conditions:
                break
        else:
            inner.append((_RETURN, 0, 0, default))
        if len(inner) == 1:
            yield _EQUAL, 0, 1, found
        else:
            yield _EQUAL, 1, 0, found
            yield _JUMP, 0, 0, len(inner)
        yield from inner
    yield _RETURN, 0, 0, default


def _checked(rule: Rule) -> list[_Instruction]:
    """A rule: its comparisons, each of which goes past its end when it is not met, and the return."""
    code: list[_Instruction] = [(_RETURN, 0, 0, rule.action)]
    for condition in reversed(rule.conditions):
        code = [*_compared(condition, len(code)), *code]
    if len(code) > 250:  # a jump's distance is one byte
        raise _Wrong(f"a rule for {rule.name!r} has too many comparisons")
    return code


def _compared(one: Condition, rest: int) -> list[_Instruction]:
    """A comparison of 64 bits by two of 32; a miss jumps over itself and ``rest`` instructions."""
    low, high = (_LOAD, 0, 0, 16 + 8 * one.index), (_LOAD, 0, 0, 20 + 8 * one.index)  # little-endian
    if os.uname().machine == "s390x":
        low, high = high, low
    value_low, value_high = one.value & _LOW, one.value >> 32
    kind = one.operator.removeprefix("SCMP_CMP_")
    if kind == "MASKED_EQ":
        return [high, (_AND, 0, 0, value_high), (_EQUAL, 0, rest + 3, one.other >> 32),
                low, (_AND, 0, 0, value_low), (_EQUAL, 0, rest, one.other & _LOW)]
    if kind == "EQ":
        return [high, (_EQUAL, 0, rest + 2, value_high), low, (_EQUAL, 0, rest, value_low)]
    if kind == "NE":
        return [high, (_EQUAL, 0, 2, value_high), low, (_EQUAL, rest, 0, value_low)]
    test = _NOT_LESS if kind in ("GE", "LT") else _GREATER
    if kind in ("GE", "GT"):
        return [high, (_GREATER, 3, 0, value_high), (_EQUAL, 0, rest + 2, value_high), low,
                (test, 0, rest, value_low)]
    return [high, (_GREATER, rest + 3, 0, value_high), (_EQUAL, 0, 2, value_high), low, (test, rest, 0, value_low)]
