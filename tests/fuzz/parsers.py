"""The parsers that read bytes which nobody vouches for, what they may answer, and inputs to begin with.

``read`` returns or raises: what it raises is a failure. Used by ``engine`` and, with the inputs that were found, by
``tests/unit/test_fuzz.py``.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import imagemaker as made  # noqa: E402

from pytest_sandbox.errors import SandboxError  # noqa: E402

DIGEST = "sha256:" + "ab" * 32


class Parser:
    """One parser. ``words`` are pieces that inputs are made of; ``json`` says that inputs are JSON."""

    name = ""
    words: tuple[bytes, ...] = ()
    json = False

    def seeds(self) -> list[bytes]:
        """Inputs that are right, or nearly."""
        raise NotImplementedError

    def mend(self, data: bytes) -> bytes:
        """The input with what would be refused at the first look (checksums) put right."""
        return data

    def drive(self, loop: Callable[[], None]) -> None:
        """Calls ``loop``, which reads inputs, with whatever they need around it."""
        loop()

    def read(self, data: bytes) -> None:
        """Raises for what nobody's input may bring about."""
        raise NotImplementedError


def _layers() -> list[bytes]:
    big = "n" * 200
    return [
        made.layer([made.directory("etc"), made.file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), made.symlink("l", "etc"),
                    made.hardlink("h", "etc/passwd"), made.file("etc/.wh.gone"), made.file("etc/.wh..wh..opq")]),
        made.layer([made.file(big, b"x" * 600, mtime=1.5, pax={"SCHILY.xattr.user.a": "b", "comment": "c"}),
                    made.file("s", b"ab", pax={"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
                                               "GNU.sparse.name": "real", "GNU.sparse.realsize": "10"})]),
        made.layer([made.file("s", b"", pax={"GNU.sparse.size": "10", "GNU.sparse.numblocks": "1",
                                             "GNU.sparse.map": "0,0"}),
                    made.Item("p", "6"), made.Item("c", "3", device=(1, 3)), made.Item("w", "3"),
                    made.Item("S", "S", b"x" * 512, raw={386: b"00000000000\x0000000001000\0", 483: b"00000001000\0"})]),
        made.layer([made.header(made.Item("L", "L", b"long/name\0"), b"L", b"") + made.padded(b"long/name\0"),
                    made.file("short", "x"), made.file("n", raw={124: b"\x80" + bytes(10) + b"\1"})]),
    ]


class Tar(Parser):
    """Layer headers and their extensions, laid down below a directory beside which a canary lies."""

    name = "layers"
    words = (b"ustar\x0000", b"ustar  \0", b".wh.", b".wh..wh..opq", b"../", b"GNU.sparse.map=", b"GNU.sparse.major=1",
             b"path=", b"linkpath=", b"size=", b"SCHILY.xattr.", b"20 path=../../../x\n", b"x", b"L", b"K", b"g", b"S",
             b"\x80\0\0\0\0\0\0\0\0\0\0\1", b"\xff" * 12, b"0000644\0", b"00000000777\0", b"77777777777\0")

    def seeds(self) -> list[bytes]:
        return _layers()

    def mend(self, data: bytes) -> bytes:
        out = bytearray(data)
        for at in range(0, len(out) - 511, 512):
            block = out[at:at + 512]
            if block[257:262] == b"ustar" or block[148:156].strip(b"01234567\0 ") == b"":
                block[148:156] = b" " * 8
                out[at + 148:at + 156] = b"%06o\0 " % sum(block)
        return bytes(out)

    def read(self, data: bytes) -> None:
        from pytest_sandbox.image.abilities import Abilities
        from pytest_sandbox.image.compression import LayerStream, Limits
        from pytest_sandbox.image.unpack import NeedsLower, apply_layer

        place = tempfile.mkdtemp(prefix="fuzz-layer-", dir="/dev/shm")
        try:
            os.mkdir(f"{place}/root")
            with open(f"{place}/canary", "w") as file:
                file.write("untouched")
            before = os.stat(place), os.stat(f"{place}/canary")
            limits = Limits(bytes=1 << 22, entries=500, file=1 << 24, name=4096, header=1 << 16)
            with contextlib.suppress(SandboxError, NeedsLower), LayerStream(
                    io.BytesIO(data), limits=limits, reference="x") as stream:
                apply_layer(stream, f"{place}/root", limits=limits, reference="x", lower=None, abilities=Abilities(
                    owners=False, devices=False, whiteouts="xattr", overlay_xattrs=("user.overlay.",)))
            assert sorted(os.listdir(place)) == ["canary", "root"]
            after = os.stat(place), os.stat(f"{place}/canary")
            assert [(one.st_mode, one.st_mtime_ns, one.st_nlink) for one in before] == [
                (one.st_mode, one.st_mtime_ns, one.st_nlink) for one in after], "the canary has changed"
        finally:
            for folder, names, _ in os.walk(place):
                os.chmod(folder, 0o700)
                for name in names:
                    if not os.path.islink(f"{folder}/{name}"):
                        os.chmod(f"{folder}/{name}", 0o700)
            shutil.rmtree(place)


class Streams(Parser):
    """Compressed streams: gzip, zstd, xz, bzip2, and what follows them."""

    name = "streams"
    words = (b"\x1f\x8b\x08\x00", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00", b"BZh9", b"\x50\x2a\x4d\x18", bytes(8))

    def seeds(self) -> list[bytes]:
        import bz2
        import lzma

        plain = b"a layer " * 300
        found = [gzip.compress(plain), bz2.compress(plain), lzma.compress(plain), plain,
                 gzip.compress(plain) + gzip.compress(b"x") + bytes(9)]
        with contextlib.suppress(ImportError):
            from backports import zstd

            found += [zstd.compress(plain), b"\x50\x2a\x4d\x18\4\0\0\0abcd" + zstd.compress(plain)]
        return found

    def read(self, data: bytes) -> None:
        from pytest_sandbox.image.compression import LayerStream, Limits

        with contextlib.suppress(SandboxError), LayerStream(
                io.BytesIO(data), limits=Limits(bytes=1 << 24), reference="x") as stream:
            stream.read(100)
            stream.skip(1)
            stream.digest()


class Manifests(Parser):
    """Manifests, indexes, and what of them is chosen."""

    name = "manifests"
    json = True
    words = (b"manifests", b"layers", b"config", b"mediaType", b"platform", b"urls", b"data", b"annotations", b"size")

    def seeds(self) -> list[bytes]:
        one = made.image([_layers()[0]])
        return [one.manifest, made.image([_layers()[0]], docker=True).manifest,
                made.index([(one, {"platform": {"architecture": "amd64", "os": "linux", "variant": "v8"}})])]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.image.manifest import Index, Platform, choose_platform, parse_manifest

        with contextlib.suppress(SandboxError):
            found = parse_manifest(data, reference="x")
            hash(found)
            if isinstance(found, Index):
                choose_platform(found, Platform("linux", "amd64"), reference="x")


class Configurations(Parser):
    """An image's configuration."""

    name = "configurations"
    json = True
    words = (b"rootfs", b"diff_ids", b"history", b"config", b"Env", b"Cmd", b"Entrypoint", b"User", b"WorkingDir",
             b"Healthcheck", b"ExposedPorts", b"Volumes", b"StopSignal", b"Labels", b"created", b"empty_layer")

    def seeds(self) -> list[bytes]:
        config = {"architecture": "amd64", "os": "linux", "config": {
            "Env": ["A=b"], "Cmd": ["x"], "Entrypoint": ["y"], "User": "1:2", "WorkingDir": "/w", "StopSignal": "SIGINT",
            "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/v": {}}, "Healthcheck": {"Test": ["NONE"]},
        }, "rootfs": {"type": "layers", "diff_ids": [DIGEST]}, "history": [{"created_by": "x", "empty_layer": True}]}
        return [json.dumps(config).encode(), made.image([_layers()[0]]).config]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.image.manifest import parse_config

        with contextlib.suppress(SandboxError):
            parse_config(data, reference="x")


class References(Parser):
    """What users, Containerfiles and lock files name an image by; lock files; a registry's challenges and addresses."""

    name = "references"
    words = (b"sha256:", b"@", b":", b"/", b"oci:", b"oci-archive:", b"rootfs:", b"image:", b"[::1]", b"localhost:5000",
             b"Bearer realm=", b'"', b"\\", b",", b"https://", b"%00", b"versions", b"images", b"platforms")

    def seeds(self) -> list[bytes]:
        return [b"python:3.13-slim", b"localhost:5000/a/b:c@" + DIGEST.encode(), b"oci:/a/b:c", b"oci-archive:x.tar:t",
                b"docker-archive:x", b"rootfs:/r", b"image:" + DIGEST.encode(), b"[::1]:80/a",
                b'Bearer realm="https://auth.example/token",service="registry",scope="a:b:pull", Basic realm="x"',
                b"//host:99/path?x=y", json.dumps({"version": 1, "images": {"python:3": {
                    "digest": DIGEST, "platforms": {"linux/amd64": DIGEST}}}}).encode(), b"linux/arm64/v8"]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.image import transport
        from pytest_sandbox.image.lockfile import LockFile
        from pytest_sandbox.image.manifest import Platform
        from pytest_sandbox.image.printable import printable
        from pytest_sandbox.image.reference import RegistryReference, parse_reference

        text = data.decode("utf-8", "surrogateescape")
        with contextlib.suppress(SandboxError):
            found = parse_reference(text)
            assert not isinstance(found, RegistryReference) or parse_reference(str(found)) == found
        with contextlib.suppress(SandboxError):
            Platform.parse(text)
        for offered in transport._offered([text, text]).values():
            printable(str(offered))
        parts = transport._split(text, "https://registry.example/v2/")
        parts.hostname  # noqa: B018 - must not raise
        parts.port  # noqa: B018
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file, contextlib.suppress(SandboxError):
            file.write(data)
            file.flush()
            LockFile.read(file.name)


class Containerfiles(Parser):
    """Containerfiles and ``.dockerignore``, as far as reading them goes."""

    name = "containerfiles"
    words = (b"FROM ", b"RUN ", b"COPY --from=", b" AS ", b"ARG ", b"ENV ", b"<<EOF\n", b"EOF\n", b"--mount=type=cache,",
             b"# syntax=", b"# escape=`\n", b"ONBUILD ", b"HEALTHCHECK --interval=", b"${a:-", b"${a%%", b"}", b"\\\n",
             b"SHELL [", b"EXPOSE ", b"STOPSIGNAL ", b"LABEL ", b"**/", b"!", b"[a-", b"]", b"---\n")

    def seeds(self) -> list[bytes]:
        return [b"""# escape=\\
ARG V=3.13
FROM python:${V}-slim AS base
ENV A=b C="d e" F=${A:+x}
WORKDIR /w
RUN --mount=type=cache,target=/c,id=x --network=none echo "$A" && \\
  true
COPY --chown=1:2 --from=base /a /b c/
RUN <<EOF
echo hi
EOF
FROM base
ADD x y
USER 1:2
EXPOSE 80/tcp 90-95
HEALTHCHECK --interval=1m30s CMD ["x"]
VOLUME ["/v"]
STOPSIGNAL SIGINT
ONBUILD RUN x
SHELL ["/bin/sh", "-c"]
LABEL a=b "c d"='e f'
ENTRYPOINT ["x"]
CMD y
""", b"FROM scratch\nCOPY . /\n---\n**/a*\n!b/**/c\n[a-z]?\\*\n", b"FROM a\nRUN --mount=type=bind,from=b,source=/x,rw x\n"]

    def drive(self, loop: Callable[[], None]) -> None:
        self._shortcut()
        loop()

    def _shortcut(self) -> None:
        """The parser of a process of its own, in this one: as it is there, but for the process."""
        from pytest_sandbox.building import text as reading

        place: dict[str, Any] = {}
        compiled = compile(reading._PARSER, "<parser>", "exec")

        def ask(text: str, path: str) -> dict[str, Any]:
            out = io.StringIO()
            keep, sys.stdin = sys.stdin, io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape")))
            try:
                with contextlib.redirect_stdout(out):
                    exec(compiled, dict(place))
            finally:
                sys.stdin = keep
            answer: dict[str, Any] = json.loads(out.getvalue())
            return answer

        reading._ask = ask

    def read(self, data: bytes) -> None:
        from pytest_sandbox.building import text
        from pytest_sandbox.building.context import Context, _rules
        from pytest_sandbox.building.stages import needs

        body, _, ignored = data.decode("utf-8", "surrogateescape").partition("---\n")
        with contextlib.suppress(SandboxError):
            context = Context.__new__(Context)
            context.root, context._rules = "/nowhere", list(_rules(ignored))
            context.ignored("a/b/c/d/" + "e" * 60)
        with contextlib.suppress(SandboxError):
            file = text.parse(body, "x")
            for stage in file.stages:
                needs(file, stage)
                for step in stage.steps:
                    for word in step.words:
                        with contextlib.suppress(ValueError):
                            text.expand(word, {"a": "b", "A": "c" * 50}, escape=file.escape)


class Reports(Parser):
    """What a sandboxed test's process says: read, and shown by pytest's terminal and JUnit reporters."""

    name = "reports"
    json = True
    words = (b"report", b"setup", b"call", b"teardown", b"done", b"waits", b"exit", b"broken", b"fixture", b"shown",
             b"debugger", b"coverage", b"$tuple", b"$set", b"$items", b"$name", b"$bytes", b"$path", b"$opaque",
             b"$frozenset", b"longrepr", b"sections", b"user_properties", b"wasxfail", b"_subtest.context", b"warnings",
             b"attributes", b"benchmarks", b"failed", b"skipped", b"passed", b"reprcrash", b"chain", b"node:0", b"over",
             b"report:setup", b"xml_attributes", b"suite_properties", b"should_stop", b"$rendered", b"ReprEntry",
             b"reprfileloc", b"reprlocals", b"lines", b"reprtraceback", b"duration", b"start", b"nodeid", b"keywords")
    session: Any = None
    _attributes: frozenset[str] = frozenset()

    def seeds(self) -> list[bytes]:
        node = "test_x.py::test_x"

        def report(when: str, **more: Any) -> dict[str, Any]:
            return {"nodeid": node, "location": ["test_x.py", 0, "test_x"], "keywords": {"test_x": 1}, "outcome":
                    "passed", "longrepr": None, "when": when, "user_properties": {"$tuple": []}, "sections": [],
                    "duration": 0.1, "start": 1.0, "stop": 1.1, "$report_type": "TestReport", **more}

        place = {"path": "test_x.py", "lineno": 3, "message": "E"}
        entry = {"type": "ReprEntry", "data": {
            "lines": ["    def f():", "E   x"], "reprfuncargs": {"args": [["a", "1"]]}, "reprlocals": {"lines": ["a = 1"]},
            "reprfileloc": place, "style": "long"}}
        trace = {"reprentries": [entry, {"type": "ReprEntryNative", "data": {"lines": ["x"]}}], "extraline": None,
                 "style": "long"}
        failure = {"reprcrash": place, "reprtraceback": trace, "sections": [["a", "b", "-"]],
                   "chain": [[trace, place, "because"], [trace, None, None]]}
        warning = {"text": "w", "category": "UserWarning", "module": "builtins", "filename": "f", "lineno": 1,
                   "line": "x", "source": False}
        changes = {"attributes": {"mine": {"$set": [1]}}, "warnings": [warning], "failed_subtests": 1,
                   "suite_properties": [["a", "b"]], "xml_attributes": {"a": "b"}, "suspended": True, "line": "x"}
        plain = [["report", "setup", report("setup"), {}, True], ["report", "call", report("call"), {}, True],
                 ["report", "teardown", report("teardown"), {}, True], ["done"]]
        failed = [plain[0], ["report", "call", report("call", outcome="failed", longrepr=failure, sections=[
            ["Captured stdout call", "hi"]]), changes, True], plain[2], ["coverage", "teardown", {
                "seen": {"": {"f.py": [1, 2]}}, "tracers": {}, "context": None}], ["done"]]
        skipped = [["report", "setup", report("setup", outcome="skipped", longrepr=["f", 1, "why"]), {}, True],
                   plain[2], ["done"]]
        odd = [plain[0], ["report", "call", report("call", wasxfail="y", outcome="skipped", extra={"$opaque": [
            "a", "b", "c"]}, user_properties={"$tuple": [["a", {"$path": "/x"}], ["b", {"$bytes": "YQ=="}]]}), {}, True],
            ["report", "teardown", report("teardown", outcome="failed", longrepr={"$rendered": ["a", "b"]}), {}, False],
            plain[2], ["done"]]
        subtest = [plain[0], ["report", "call", {**report("call"), "$report_type": "SubtestReport", "_report_type":
                   "SubTestReport", "_subtest.context": {"msg": "m", "kwargs": {"i": 1}}}, {}, False], *plain[1:]]
        others = [["exit", "setup", "Exit", "bye", 3, ["f.py", 3]], ["broken", "setup", "text"],
                  ["fixture", "setup", "name", 0, 10, False], ["debugger", "setup", True, "x"], ["shown", "setup"]]
        return [json.dumps(one).encode() for one in (plain, failed, skipped, odd, subtest, *[[one] for one in others])]

    def drive(self, loop: Callable[[], None]) -> None:
        import pytest

        class Plugin:
            @staticmethod
            def pytest_runtestloop(session: pytest.Session) -> bool:
                self.session = session
                loop()
                return True

        with tempfile.TemporaryDirectory(prefix="fuzz-") as place:
            Path(place, "test_x.py").write_text("def test_x(): pass\n")
            Path(place, "pytest.ini").write_text("[pytest]\n")
            try:
                pytest.main(["-c", f"{place}/pytest.ini", f"--rootdir={place}", "-p", "no:cacheprovider", "--import-mode=importlib", "-rA",
                             "--durations=3", f"--junitxml={place}/junit.xml", f"{place}/test_x.py"],
                            plugins=[Plugin()])
            finally:
                self.session = None

    def read(self, data: bytes) -> None:
        if self.session is not None:
            self._read(data)
            return
        raised: list[BaseException] = []

        def once() -> None:
            try:
                self._read(data)
            except BaseException as error:  # noqa: BLE001 - brought out of the run
                raised.append(error)

        self.drive(once)
        if raised:
            raise raised[0]

    def _read(self, data: bytes) -> None:
        from pytest_sandbox.plugin import aftermath, compat, wire
        from pytest_sandbox.plugin.inbox import Inbox

        try:
            messages = json.loads(data)
        except (ValueError, RecursionError):
            messages = None
        if isinstance(messages, list):
            try:
                data = b"".join(len(body := json.dumps(one).encode()).to_bytes(4, "big") + body for one in messages)
            except RecursionError:
                return
        item = self.session.items[0]
        own = set(vars(item))
        item.user_properties[:] = []
        item._report_sections[:] = []
        inbox = Inbox(item, lambda item: {"config": item.config, "node:0": item.session})
        run: Any = type("Run", (), {"item": item, "warnings": []})()
        with contextlib.suppress(SandboxError):
            for message in wire.Decoder().feed(data):
                inbox.receive(message)
        if inbox.ending is not None:
            str(inbox.ending)
        aftermath.add_coverage(inbox)
        shown = False
        for phase in inbox.phases.values():
            for change in phase.changes:
                aftermath.apply(change, run)
            for report in (*phase.extras, phase.report):
                if report is not None:
                    compat.attach_sections(item, report.sections)
                    item.user_properties[:] = report.user_properties
                    item.ihook.pytest_runtest_logreport(report=report)
                    shown = True
        for message in run.warnings:
            item.ihook.pytest_warning_recorded.call_historic(kwargs={
                "warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None})
        self.session.shouldstop = self.session.shouldfail = False
        if shown or run.warnings:
            self._summary(item)
        for name in set(vars(item)) - own:
            delattr(item, name)

    @staticmethod
    def _summary(item: Any) -> None:
        """What the end of the run makes of it; then all is forgotten."""
        from _pytest.junitxml import xml_key

        terminal = item.config.pluginmanager.getplugin("terminalreporter")
        terminal._tw._file = io.TextIOWrapper(io.BytesIO(), "utf-8")
        xml = item.config.stash[xml_key]
        try:
            item.config.hook.pytest_terminal_summary(terminalreporter=terminal, exitstatus=1, config=item.config)
            xml.pytest_sessionfinish()
        finally:
            for forgotten in (xml.node_reporters, xml.node_reporters_ordered, xml.global_properties, xml.open_reports,
                              terminal.stats, terminal._progress_nodeids_reported):
                forgotten.clear()


class Values(Parser):
    """The values of reports' own fields, packed and unpacked; frames of a bare decoder, in pieces."""

    name = "wire"
    json = True
    words = Reports.words

    def seeds(self) -> list[bytes]:
        return [json.dumps(one).encode() for one in (
            {"$tuple": [1, {"$set": ["a"]}]}, {"$items": [[{"$tuple": []}, 1]]}, {"$bytes": base64.b64encode(b"x").decode()},
            {"$path": "/x"}, {"$opaque": ["a", "b", "c"]}, {"$name": "item"}, ["shown", "call"], ["done"])]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.plugin import wire

        with contextlib.suppress(SandboxError):
            decoder = wire.Decoder()
            framed = len(data).to_bytes(4, "big") + data
            for at in range(0, len(framed), 7):
                for message in decoder.feed(framed[at:at + 7]):
                    assert isinstance(message, list)
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return
        if wire._is_deep([value]):
            return
        with contextlib.suppress(SandboxError):
            repr(wire.unpack(value, lambda name: None))


class Messages(Parser):
    """What a sandbox's first process answers."""

    name = "messages"
    json = True
    words = (b"ready", b"failed", b"step", b"errno", b"path", b"pid", b"status", b"used", b"memfd", b"processes", b"pids")

    def seeds(self) -> list[bytes]:
        return [json.dumps(one).encode() for one in (
            {"ready": True}, {"failed": {"step": "mount", "errno": 1, "path": "/"}}, {"pid": 3}, {"memfd": 9},
            {"status": 0, "used": [0.1, 0.2, 3, 4]}, {"processes": [1, 2]}, {"used": [1, 2, 3, 4], "pids": 3})]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.runtime import protocol

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            theirs.setblocking(False)
            try:
                theirs.send(data or b" ")
            except OSError:
                return
            with contextlib.suppress(protocol.BadMessage):
                got = protocol.receive(ours)
                assert got is None or isinstance(got[0], dict)


class Profiles(Parser):
    """Filters of system calls in Docker's format, compiled."""

    name = "profiles"
    json = True
    words = (b"SCMP_ACT_ALLOW", b"SCMP_ACT_ERRNO", b"SCMP_CMP_MASKED_EQ", b"names", b"args", b"includes", b"excludes",
             b"caps", b"arches", b"minKernel", b"CAP_SYS_ADMIN", b"amd64", b"read", b"clone", b"index", b"value",
             b"valueTwo", b"op", b"4.8", b"errnoRet", b"SCMP_ACT_NOTIFY", b"SCMP_ACT_TRACE", b"SCMP_ACT_LOG")

    def seeds(self) -> list[bytes]:
        return [json.dumps({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "archMap": [{
            "architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}], "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "args": [{
                "index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
             "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390"]}, "includes": {"minKernel": "4.8"}},
            {"name": "mount", "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}).encode()]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.runtime import seccomp

        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file, contextlib.suppress(SandboxError):
            file.write(data)
            file.flush()
            seccomp._from_file.cache_clear()
            program = seccomp._from_file("x86_64", file.name, (), frozenset({"CHOWN"}))
            assert len(program) % 8 == 0


class Archives(Parser):
    """Archives of images, and bundles of kept tests: a tar of documents, with digests and sizes that fit."""

    name = "bundles"
    json = True
    words = Manifests.words + Configurations.words + (
        b"kept.json", b"nodeid", b"options", b"start", b"layers", b"mounts", b"memory", b"base", b"\0", b"index.json")

    def __init__(self) -> None:
        self._place = ""

    def seeds(self) -> list[bytes]:
        packed, plain = gzip.compress(_layers()[0], mtime=0), _layers()[0]
        return [json.dumps({
            "kept": _record(packed, plain), "config": json.loads(made.image([plain]).config),
            "manifest": json.loads(made.image([plain]).manifest),
            "docker": [{"Config": "config.json", "RepoTags": ["a:b"], "Layers": ["layer.tar"]}]}).encode()]

    def read(self, data: bytes) -> None:
        """Builds an archive out of documents, as its maker's program would, and loads it each way."""
        from pytest_sandbox.image.archive import open_archive
        from pytest_sandbox.image.compression import Limits
        from pytest_sandbox.image.manifest import Platform
        from pytest_sandbox.image.reference import ArchiveReference
        from pytest_sandbox.keeping import bundle

        try:
            documents = json.loads(data)
            parts = {name: json.dumps(documents[name]).encode() for name in ("kept", "config", "manifest", "docker")}
        except (ValueError, RecursionError, KeyError, TypeError):
            parts = dict.fromkeys(("kept", "config", "manifest", "docker"), data)
        packed = gzip.compress(_layers()[0], mtime=0)
        manifest = parts["manifest"]
        with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError, AttributeError):
            told = json.loads(manifest)
            told["config"].update(digest=made.digest(parts["config"]), size=len(parts["config"]))
            told["layers"][0].update(digest=made.digest(packed), size=len(packed))
            manifest = json.dumps(told).encode()
        index = {"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": made.digest(manifest),
            "size": len(manifest)}]}
        members = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode(),
                   "config.json": parts["config"], "manifest.json": parts["docker"], "layer.tar": _layers()[0],
                   bundle._RECORD: parts["kept"]}
        for one in (manifest, parts["config"], packed):
            members[f"blobs/sha256/{made.digest(one)[7:]}"] = one
        if not self._place:
            self._place = tempfile.mkdtemp(prefix="fuzz-bundles-", dir="/dev/shm")
            os.environ["PYTEST_SANDBOX_CACHE"] = f"{self._place}/cache"
        path = Path(self._place, "archive.tar")
        path.write_bytes(made.layer([made.file(name, one) for name, one in members.items()]))
        for kind in ("oci-archive", "docker-archive"):
            reference = ArchiveReference(kind, str(path), None)
            with contextlib.suppress(SandboxError), contextlib.closing(
                    open_archive(reference, Platform("linux", "amd64"), Limits())) as source:
                for layer in source.image().layers:
                    with source.open_layer(layer) as file:
                        file.read(10)
        with contextlib.suppress(SandboxError):
            kept = bundle.load_bundle(path)
            assert kept.record is not None
            kept.record.withheld  # noqa: B018 - must not raise
            kept.record.spec()
        shutil.rmtree(f"{self._place}/cache/kept", ignore_errors=True)


def _record(packed: bytes, plain: bytes) -> dict[str, Any]:
    return {"version": 1, "id": "0a1b2c3d", "nodeid": "test_x.py::test_x", "phase": "call", "outcome": "failed",
            "verdict": "", "created": 1_700_000_000, "run": "", "mode": "marked", "rootdir": "/r", "directory": "/r",
            "config_file": "", "python": "/usr/bin/python3", "host": "h", "source": "test_x.py", "source_sum": "",
            "start": {"kind": "host", "reference": "host", "image_id": None, "digest": None, "config": {}, "exact": True},
            "options": {"memory": "64M", "mounts": [["/a", "/b", True]], "env": {"A": "b"}}, "layers": [{
                "digest": made.digest(packed), "size": len(packed), "diff_id": made.digest(plain), "bytes": len(plain)}],
            "left_out": "", "networks": "", "imported": False, "below": 0, "base": None}


class Packets(Parser):
    """Frames that a sandbox's root sends towards the network."""

    name = "packets"
    words = (b"\x08\x00", b"\x86\xdd", b"\x45", b"\x60", b"\x11", bytes(8))

    def seeds(self) -> list[bytes]:
        import struct

        udp = struct.pack("!HHHH", 1000, 53, 12, 0) + b"data"
        return [bytes(12) + b"\x08\x00" + struct.pack("!BBHHHBBH", 0x45, 0, 32, 0, 0, 64, 17, 0) + bytes(8) + udp,
                bytes(12) + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, 12, 17, 64) + bytes(32) + udp]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.runtime import datagrams

        found = datagrams._parse(data)
        if found is not None:
            key, payload, quoted = found
            datagrams._destination(key)
            datagrams._parse(datagrams._answer(key, payload))
            datagrams._unreachable(key, quoted)


class Stacks(Parser):
    """The memory of a Python process that has made it up: what is read of it for the stacks of a timeout."""

    name = "stacks"
    words = (b"xdebugpy", b"\x7fELF\x02\x01", b"_PyRuntime\0", b"\x60")

    def seeds(self) -> list[bytes]:
        from random import Random

        return [Random(number).randbytes(4096) for number in range(3)] + [bytes(4096), b"\xff" * 4096]

    def read(self, data: bytes) -> None:
        from pytest_sandbox.runtime import pystack

        data = data or b"\0"
        pystack._MOST_READS = 20_000  # a tracer makes each dear

        class Memory(pystack._Memory):
            """Endless: whatever address is asked for is somewhere in the input."""

            def read(self, address: int, size: int) -> bytes:
                self.count(size)
                at = address % len(data)
                piece = data[at:at + size]
                return piece + (data * (size // len(data) + 1))[:size - len(piece)]

        memory = Memory(-1)
        with contextlib.suppress(pystack.Unreadable, pystack.NotPython):
            library = pystack._Library.__new__(pystack._Library)
            library.memory, library.bias = memory, 0
            library.tables = {6: 8, 5: 80, 0x6FFFFEF5: 160}
            library.address(b"_PyRuntime")
        for layout in pystack._LAYOUTS.values():
            one = pystack._Interpreter.__new__(pystack._Interpreter)
            one.memory, one.runtime, one.layout = Memory(-1), 0, layout
            one.code_type = one.memory.word(int.from_bytes(data[:4], "little") + 8)
            with contextlib.suppress(pystack.Unreadable, pystack.NotPython):
                for thread in one.threads():
                    for frame in thread.frames:
                        repr(frame)
        with contextlib.suppress(pystack.Unreadable):
            pystack._described((data * (1600 // len(data) + 1))[:1600], 13 + data[0] % 2)
        pystack._line_of_locations(data, 1, 10_000)
        pystack._line_of_pairs(data, 1, 10_000)


PARSERS: dict[str, Parser] = {one.name: one for one in (
    Tar(), Streams(), Manifests(), Configurations(), References(), Containerfiles(), Reports(), Values(), Messages(),
    Profiles(), Archives(), Packets(), Stacks())}
