"""What each option accepts, and what is said about what it does not accept."""

from __future__ import annotations

import dataclasses
import pickle
from collections import OrderedDict
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest

from pytest_sandbox import spec
from pytest_sandbox.errors import SandboxUsageError
from pytest_sandbox.spec import Mount, SandboxSpec, make_spec, parse_options

LONGEST_LABEL = "a" * 63

GOOD: dict[str, list[tuple[Any, Any]]] = {
    "image": [("host", "host"), (" host \n", "host"), ("python:3.13-slim", "python:3.13-slim")],
    "network": [("none", "none"), ("host", "host"), ("outbound", "outbound")],
    "user": [("root", "root"), ("me", "me"), ("0", "0"), ("1000", "1000"), ("1000:100", "1000:100")],
    "env": [
        ({}, ()),
        ({"B": "2", "A": "1"}, (("A", "1"), ("B", "2"))),
        ({"GONE": None}, (("GONE", None),)),
        ({"EMPTY": ""}, (("EMPTY", ""),)),
        (OrderedDict(A="1"), (("A", "1"),)),
        (MappingProxyType({"A": "1"}), (("A", "1"),)),
        ("A=1\n\nB=x=y\n", (("A", "1"), ("B", "x=y"))),
        (["A=1", "B="], (("A", "1"), ("B", ""))),
    ],
    "workdir": [("/", "/"), ("/srv/app", "/srv/app"), (Path("/srv"), "/srv"), (PurePosixPath("/srv"), "/srv")],
    "mounts": [
        ([], ()),
        (["/a:/b"], (Mount("/a", "/b"),)),
        (["/a:/b:ro", "/c:/d:rw"], (Mount("/a", "/b", True), Mount("/c", "/d", False))),
        (("/a:/b",), (Mount("/a", "/b"),)),
        ([Mount("/a", "/b", read_only=True)], (Mount("/a", "/b", True),)),
        (Mount("/a", "/b"), (Mount("/a", "/b"),)),
        (Mount(Path("/a"), Path("/b")), (Mount("/a", "/b"),)),  # type: ignore[arg-type]
        ("/a:/b\n  /c:/d:ro\n", (Mount("/a", "/b"), Mount("/c", "/d", True))),
    ],
    "hostname": [("web", "web"), ("a.b-c.example", "a.b-c.example"), ("7", "7"), (LONGEST_LABEL, LONGEST_LABEL)],
    "memory": [(1, 1), ("64M", 64 << 20), ("1.5G", 3 << 29)],
    "swap": [(0, 0), ("0", 0), ("64M", 64 << 20)],
    "cpus": [(0.5, 0.5), ("0.5", 0.5), (2, 2.0), ("16", 16.0), (0.01, 0.01)],
    "cpu_weight": [(1, 1), ("100", 100), (10_000, 10_000)],
    "io_weight": [(1, 1), ("100", 100), (10_000, 10_000)],
    "io": [("10M", (("read", 10 << 20), ("write", 10 << 20))), (7, (("read", 7), ("write", 7))),
           ({"write": "1K"}, (("write", 1024),)), ({"write": 2, "read": "1"}, (("read", 1), ("write", 2))),
           ("read=1M write=5K", (("read", 1 << 20), ("write", 5 << 10))), ("write=5", (("write", 5),))],
    "pids": [(1, 1), ("64", 64), (4096, 4096)],
    "disk": [
        (1, 1), ("1", 1), ("64K", 64 << 10), ("64M", 64 << 20), ("1.5G", 3 << 29), ("2t", 2 << 40),
        ("10 MiB", 10 << 20), ("10mb", 10 << 20), (" 5 K ", 5 << 10), ("0.5K", 512),
    ],
    "seccomp": [("default", "default"), ("unconfined", "unconfined"), ("/p/x.json", "/p/x.json"),
                (PurePosixPath("/p/x"), "/p/x")],
    "capabilities": [
        ([], ()),
        ("", ()),
        ("NET_ADMIN", ("NET_ADMIN",)),
        ("cap_net_admin, chown", ("CHOWN", "NET_ADMIN")),
        (["KILL", "kill", "CAP_KILL"], ("KILL",)),
        ({"KILL"}, ("KILL",)),
        (frozenset({"CHOWN"}), ("CHOWN",)),
    ],
    "scope": [("function", "function"), ("class", "class"), ("module", "module")],
    "timeout": [(10, 10.0), (0.5, 0.5), ("2.5", 2.5)],
    "python": [("python3.12", "python3.12"), (" /opt/py/bin/python ", "/opt/py/bin/python")],
    "hide": [
        ([], ()), ("", ()), (".ssh .aws", (".ssh", ".aws")), (["/etc/ssl/private"], ("/etc/ssl/private",)),
        ((".config/x",), (".config/x",)),
    ],
}

BAD: dict[str, list[Any]] = {
    "image": ["", "  ", None, 3, b"host", ["host"]],
    "network": ["", "None", "bridge", "Outbound", None, True, 0, [], {}],
    "user": ["", "nobody", "1000:", ":1000", "-1", "1000:1000:1000", "1 000", "9999999999", "١", 0, None, ("1", "2")],
    "env": ["A", ["A"], [("A", "1")], 3, None, {"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": 1}, {"A": "x\0"}, {3: "x"}],
    "workdir": ["", "relative", "./x", "~", "/a\0b", None, 3, Path("relative")],
    "mounts": [
        "/only", ["/a"], ["a:/b"], ["/a:b"], ["/a:/b:no"], ["/a:/b:ro:rw"], [""], [":"], ["/a:/b\0"], [3], [None],
        None, 3, {"/a": "/b"}, [Mount("a", "/b")], [Mount("/a", "b")],
    ],
    "hostname": ["", "-a", "a-", "a..b", "a_b", "ä", "a b", "a" * 64, ".".join(["a" * 32] * 3), None, 7],
    "memory": ["", "M", "-1", 0, -1, "0", 1.5, True, None, []],
    "swap": ["", "M", "-1", -1, 1.5, True, False, None, []],
    "cpus": ["", "half", 0, 0.001, -1, "inf", "nan", 1e9, True, None, []],
    "cpu_weight": ["", "high", 0, 10_001, -1, 1.5, "1.5", True, None, []],
    "io_weight": ["", "high", 0, 10_001, -1, 1.5, "1.5", True, None, []],
    "io": ["", "fast", 0, -1, True, None, [], {}, {"reed": 1}, {"read": 0}, "read=1 read=2", "read=", ("read", 1)],
    "pids": ["", "many", 0, -1, 1.5, "1.5", 1 << 40, True, None, []],
    "disk": [
        "", "M", "-1", "1.G", "1X", "1 2", "ten", "inf", "nan", "8388608T",
        "9" * 400, 1 << 63, 0, -1, "0", "0.1", 1.5, True, None, [],
    ],
    "seccomp": [None, 3, "", "none", "Default", ["default"], "/a\0b"],
    "capabilities": [None, 3, ["NOPE"], ["KILL", None], "ALL", [""], {"KILL": True}],
    "scope": ["session", "classes", "", None],
    "timeout": [None, 0, -1, "soon", True, float("inf"), float("nan")],
    "python": [None, 3, "", " ", "-c", "a\0b"],
    "hide": [None, 3, [""], [3], ["../x"], "a/../b", {".ssh"}],
}


def refusal(name: str, value: object) -> SandboxUsageError:
    with pytest.raises(SandboxUsageError) as caught:
        parse_options({name: value})
    return caught.value


def test_every_option_is_tried_here_with_good_and_bad_values() -> None:
    assert set(GOOD) == set(BAD) == set(spec.OPTIONS)


@pytest.mark.parametrize(("name", "value", "parsed"), [
    (name, value, parsed) for name, cases in GOOD.items() for value, parsed in cases
])
def test_a_good_value(name: str, value: object, parsed: object) -> None:
    assert parse_options({name: value}) == {name: parsed}


# env is typed as a mapping and parsed into pairs: what it parses to is not what a user types.
@pytest.mark.parametrize("name", sorted(GOOD.keys() - {"env"}))
def test_parsing_what_was_parsed_changes_nothing(name: str) -> None:
    """Specs are laid over each other; an extension may hand a parsed value back as an option."""
    for _, parsed in GOOD[name]:
        assert parse_options({name: parsed}) == {name: parsed}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_bad_value_is_refused_with_the_facts(name: str, value: object) -> None:
    error = refusal(name, value)
    assert error.option == name
    assert error.allowed
    assert error.allowed in str(error)
    assert f"sandbox option {name}=" in str(error)
    pickle.loads(pickle.dumps(error))


def test_a_bad_element_is_the_value_that_is_named() -> None:
    assert refusal("capabilities", ["KILL", "NET_ADMN"]).value == "NET_ADMN"
    assert refusal("mounts", ["/a:/b", "nonsense"]).value == "nonsense"


def test_every_default_is_a_value_that_the_option_accepts() -> None:
    for one in dataclasses.fields(SandboxSpec):
        default = getattr(SandboxSpec(), one.name)
        if one.name in spec.OPTIONS and default is not None and one.name != "env":
            assert parse_options({one.name: default}) == {one.name: default}


@pytest.mark.parametrize(("typed", "meant"), [
    ("imge", "image"), ("newtork", "network"), ("mount", "mounts"), ("host_name", "hostname"),
    ("capability", "capabilities"),
])
def test_an_unknown_option_gets_the_closest_spelling_and_all_that_exist(typed: str, meant: str) -> None:
    error = refusal(typed, "x")
    assert error.option == typed
    assert f"unknown sandbox option {typed!r}: did you mean {meant!r}?" in str(error)
    assert all(name in str(error) for name in spec.OPTIONS)


def test_an_option_unlike_any_other_gets_no_guess() -> None:
    assert "did you mean" not in str(refusal("zzzzzz", "x"))


def test_a_misspelt_capability_gets_the_closest_spelling() -> None:
    assert "did you mean 'NET_ADMIN'?" in str(refusal("capabilities", "CAP_NET_ADMN"))


def test_a_spec_is_frozen_hashable_and_pickles() -> None:
    made = make_spec({"env": {"A": "1"}, "mounts": ["/a:/b:ro"], "disk": "1M"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.disk = 3  # type: ignore[misc]
    assert hash(made) == hash(make_spec({"env": {"A": "1"}, "mounts": ["/a:/b:ro"], "disk": 1 << 20}))
    copied = pickle.loads(pickle.dumps(made))
    assert copied == made
    assert copied.given == made.given


def test_specs_are_laid_over_each_other_option_by_option() -> None:
    base = make_spec({"hostname": "base", "disk": "1M"})
    over = make_spec({"hostname": "over", "user": "root"}, base)
    assert (over.hostname, over.disk, over.user) == ("over", 1 << 20, "root")
    assert over.given == {"hostname", "disk", "user"}
    assert (base.hostname, base.user, base.given) == ("base", None, {"hostname", "disk"})


def test_what_was_given_does_not_make_two_equal_specs_differ() -> None:
    assert make_spec({"hostname": "sandbox"}) == SandboxSpec()


def test_every_option_is_a_field_and_the_default_capabilities_exist() -> None:
    assert set(spec.OPTIONS) == set(spec.SPEC_FIELDS) - {"given", "owners", "persist"}
    assert set(spec.DEFAULT_CAPABILITIES) <= set(spec.CAPABILITIES)


def test_the_capabilities_are_in_the_kernels_order() -> None:
    """Their position is their number (linux/capability.h), which is what capset takes."""
    known = {name: number for number, name in enumerate(spec.CAPABILITIES)}
    assert (known["CHOWN"], known["KILL"], known["NET_ADMIN"], known["SYS_ADMIN"], known["SETFCAP"], known["BPF"],
            known["CHECKPOINT_RESTORE"]) == (0, 5, 12, 21, 31, 39, 40)
