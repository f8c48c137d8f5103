"""Parsers of bytes that nobody vouches for: whatever comes, they answer, or refuse with an error of ours."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
import parsers

from pytest_sandbox.errors import SandboxError
from pytest_sandbox.image.manifest import parse_config, parse_manifest
from pytest_sandbox.image.reference import parse_reference
from pytest_sandbox.plugin.wire import Decoder
from pytest_sandbox.runtime import protocol, seccomp

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=12), inner, max_size=5), max_leaves=20)
MANIFEST = st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("schemaVersion", "mediaType", "config", "layers", "manifests", "annotations"),
    JSON | st.sampled_from([2, [], {}, "sha256:" + "0" * 64])))
CONFIG = st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("architecture", "os", "config", "rootfs", "history", "created", "variant"), JSON))
PROFILE = st.fixed_dictionaries({}, optional={
    "defaultAction": JSON | st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"]), "defaultErrnoRet": JSON,
    "archMap": JSON, "syscalls": JSON | st.lists(st.fixed_dictionaries({}, optional={
        "names": JSON | st.just(["read"]), "action": JSON | st.just("SCMP_ACT_KILL"), "errnoRet": JSON,
        "args": JSON | st.just([{"index": 9, "op": "SCMP_CMP_EQ"}]),
        "includes": JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(("arches", "caps", "minKernel"), JSON)),
        "excludes": JSON | st.fixed_dictionaries({}, optional=dict.fromkeys(("arches", "caps", "minKernel"), JSON)),
    }), max_size=4)})
fuzzed = settings(max_examples=150, deadline=None)


@fuzzed
@given(st.text(max_size=300))
def test_references(text: str) -> None:
    with contextlib.suppress(SandboxError):
        str(parse_reference(text))


@fuzzed
@given(st.binary(max_size=300) | (MANIFEST | JSON).map(lambda one: json.dumps(one).encode()))
def test_manifests(data: bytes) -> None:
    with contextlib.suppress(SandboxError):
        parse_manifest(data, reference="x")


@fuzzed
@given(st.binary(max_size=300) | (CONFIG | JSON).map(lambda one: json.dumps(one).encode()))
def test_configurations(data: bytes) -> None:
    with contextlib.suppress(SandboxError):
        parse_config(data, reference="x")


@fuzzed
@given(st.lists(st.binary(max_size=200) | JSON.map(
    lambda one: len(text := json.dumps(one).encode()).to_bytes(4, "big") + text), max_size=5))
def test_reports(pieces: list[bytes]) -> None:
    decoder = Decoder()
    with contextlib.suppress(SandboxError):
        for piece in pieces:
            for message in decoder.feed(piece):
                assert isinstance(message, list)


@fuzzed
@given(st.binary(min_size=1, max_size=300) | JSON.map(lambda one: json.dumps(one).encode()))
def test_messages_of_init(data: bytes) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(data)
        with contextlib.suppress(protocol.BadMessage):
            got = protocol.receive(ours)
            assert got is not None
            assert isinstance(got[0], dict)


@fuzzed
@given(PROFILE | JSON)
def test_profiles(profile: object) -> None:
    with contextlib.suppress(seccomp._Wrong):
        seccomp._read(profile, "x86_64", frozenset())


FOUND = sorted((Path(parsers.__file__).parent / "found").glob("*/*"))


@pytest.mark.parametrize("path", FOUND, ids=[f"{one.parent.name}-{one.name}" for one in FOUND])
def test_what_fuzzing_has_found(path: Path) -> None:
    parser = parsers.PARSERS[path.parent.name]
    parser.read(parser.mend(path.read_bytes()))


@pytest.mark.parametrize("name", parsers.PARSERS)
def test_what_fuzzing_begins_with(name: str) -> None:
    """The seeds are read: a parser that refused them all at the first byte would be fuzzed in vain."""
    parser = parsers.PARSERS[name]
    for data in parser.seeds():
        parser.read(parser.mend(data))
