"""The compiler of system call filters, against a plain reading of the same rules."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_sandbox.errors import SandboxUsageError
from pytest_sandbox.runtime import seccomp
from pytest_sandbox.runtime import syscalls as sc
from pytest_sandbox.runtime.seccomp import AARCH64, I386, X86_64, Condition, Rule

ALLOW, ERRNO = 0x7FFF0000, 0x00050000


def run(program: bytes, arch: int, number: int, args: tuple[int, ...] = ()) -> int:
    """What the kernel would return: an interpreter of the few instructions that filters use."""
    code = list(struct.iter_unpack("=HBBI", program))
    data = struct.pack("=iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0,
                       *(*args, *[0] * (6 - len(args))))
    accumulator = position = 0
    while True:
        kind, true, false, constant = code[position]
        position += 1
        if kind == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, constant)
        elif kind == 0x54:
            accumulator &= constant
        elif kind == 0x05:
            position += constant
        elif kind == 0x06:
            return constant
        else:
            met = {0x15: accumulator == constant, 0x25: accumulator > constant, 0x35: accumulator >= constant}[kind]
            position += true if met else false


def meets(condition: Condition, args: tuple[int, ...]) -> bool:
    argument, value = args[condition.index], condition.value
    return {"NE": argument != value, "EQ": argument == value, "LT": argument < value, "LE": argument <= value,
            "GT": argument > value, "GE": argument >= value,
            "MASKED_EQ": argument & value == condition.other}[condition.operator.removeprefix("SCMP_CMP_")]


def expected(rules: list[Rule], default: int, name: str, args: tuple[int, ...]) -> int:
    mine = [one for one in rules if one.name == name]
    for rule in sorted(mine, key=lambda one: not one.conditions):
        if all(meets(one, args) for one in rule.conditions):
            return rule.action
    return default


words = st.integers(0, (1 << 64) - 1) | st.sampled_from(
    [0, 1, 2, 40, 0xFFFFFFFF, 0x100000000, 0x100000028, (1 << 64) - 1])
conditions = st.builds(Condition, st.integers(0, 5), st.sampled_from([
    f"SCMP_CMP_{one}" for one in ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")]), words, words)
names = st.sampled_from(["one", "two", "three"])
rule_lists = st.lists(st.builds(Rule, names, st.sampled_from([ALLOW, ERRNO | 1, ERRNO | 38, 0]),
                                st.lists(conditions, max_size=3).map(tuple)), max_size=8)
NUMBERS = {"one": 1, "two": 200, "three": 460}


@settings(max_examples=300, deadline=None)
@given(rule_lists, names, st.tuples(*[words] * 6), st.sampled_from([ALLOW, ERRNO | 1]))
def test_a_program_does_what_its_rules_say(rules: list[Rule], name: str, args: tuple[int, ...], default: int) -> None:
    program = seccomp.compile_rules(rules, default, (X86_64, I386), lambda arch, one: NUMBERS[one])
    for arch in (X86_64, I386):
        assert run(program, arch, NUMBERS[name], args) == expected(rules, default, name, args)
        assert run(program, arch, 7, args) == default


def test_the_default_on_each_architecture() -> None:
    for machine, arches in (("x86_64", (X86_64, I386)), ("aarch64", (AARCH64,))):
        program = seccomp._default(machine, False)
        for arch in arches:
            column = {X86_64: 0, I386: 1, AARCH64: 2}[arch]
            for name, numbers in seccomp.DENIED.items():
                if numbers[column] is not None:
                    assert run(program, arch, numbers[column]) == ERRNO | 1, name
            socket = {X86_64: 41, I386: 359, AARCH64: 198}[arch]
            assert run(program, arch, socket, (40,)) == ERRNO | 1
            assert run(program, arch, socket, (40 | 1 << 32,)) == ERRNO | 1  # of which the kernel sees 40
            assert run(program, arch, socket, (2,)) == ALLOW
            assert run(seccomp._default(machine, True), arch, socket, (40,)) == ALLOW
        assert run(program, 0x1234, 0) == ERRNO | 38
    assert run(seccomp._default("x86_64", False), X86_64, 0x40000000 + 39) == ERRNO | 38


needs_libseccomp = pytest.mark.skipif(not sc.has_libseccomp(), reason="libseccomp is not installed")


@needs_libseccomp
def test_the_numbers_of_the_default_are_those_of_libseccomp() -> None:
    for name, numbers in seccomp._NUMBERS.items():
        for arch, ours in zip((X86_64, I386, AARCH64), numbers, strict=True):
            theirs = sc.syscall_number(arch, name)
            if theirs >= 0:
                assert ours == theirs, (name, hex(arch))


def profile(tmp_path: Path, content: object) -> str:
    path = tmp_path / "profile.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@needs_libseccomp
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers below are those of x86_64")
def test_a_profile_in_dockers_format(tmp_path: Path) -> None:
    path = profile(tmp_path, {
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
        "syscalls": [
            {"names": ["read", "write", "no_such_call_yet"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["socket"], "action": "SCMP_ACT_ALLOW",
             "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
             "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
            {"names": ["s390_runtime_instr"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
        ]})
    program = seccomp.filter_for(path, ["CHOWN"], False)
    found = {name: run(program, X86_64, *call) for name, call in {
        "read": (0,), "open": (2,), "socket": (41, (2,)), "vsock": (41, (40,)), "fork": (56, (17,)),
        "newuser": (56, (0x10000000,)), "clone3": (435,), "bpf": (321,), "ptrace": (101,),
        "arch_prctl": (158,)}.items()}
    assert found == {"read": ALLOW, "open": ERRNO | 1, "socket": ALLOW, "vsock": ERRNO | 1, "fork": ALLOW,
                     "newuser": ERRNO | 1, "clone3": ERRNO | 38, "bpf": ERRNO | 1, "ptrace": ALLOW, "arch_prctl": ALLOW}
    assert run(program, I386, 3) == ALLOW  # read
    assert run(seccomp.filter_for(path, ["SYS_ADMIN"], False), X86_64, 321) == ALLOW


@pytest.mark.parametrize(("content", "why"), [
    ("{", "Expecting"), ([], "not a profile"), ({}, "not a profile"),
    ({"defaultAction": "SCMP_ACT_MAYBE"}, "not an action"),
    ({"defaultAction": "SCMP_ACT_NOTIFY"}, "needs a program"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}, "not a list"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [3]}, "is 3"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ERRNO"}]}, "no \"names\""),
    ({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}, "not an errno"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [
        {"index": 9, "op": "SCMP_CMP_EQ"}]}]}, "comparison"),
    ({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [
        {"index": 0, "op": "SCMP_CMP_EQ", "value": -1}]}]}, "64 bits"),
    pytest.param({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["raed"], "action": "SCMP_ACT_ERRNO"}]},
                 "'raed'", marks=needs_libseccomp),
])
def test_a_profile_that_cannot_be_used_says_why(tmp_path: Path, content: object, why: str) -> None:
    path = profile(tmp_path, content)
    with pytest.raises(SandboxUsageError) as caught:
        seccomp.filter_for(path, [], False)
    assert path in str(caught.value)
    assert why in str(caught.value)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SandboxUsageError, match="No such file"):
        seccomp.filter_for(str(tmp_path / "none.json"), [], False)


def test_a_profile_of_every_call_fits(tmp_path: Path) -> None:
    rules = [Rule(f"call{number}", ALLOW) for number in range(460)]
    program = seccomp.compile_rules(rules, ERRNO | 1, (X86_64, I386), lambda arch, name: int(name[4:]))
    assert run(program, X86_64, 459) == ALLOW
    assert run(program, I386, 460) == ERRNO | 1
