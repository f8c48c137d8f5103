"""A test's process that dies, floods or talks nonsense is one failure of that test, and the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pytest_sandbox.plugin import wire

Run = Callable[..., pytest.RunResult]

DEATHS = {
    "segv": ("os.kill(os.getpid(), signal.SIGSEGV)", "it was killed by SIGSEGV"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "it was killed by SIGKILL"),
    "abort": ("os.abort()", "it was killed by SIGABRT"),
    "exit": ("os._exit(7)", "it exited with status 7 before the test had ended"),
    "exit0": ("os._exit(0)", "it exited with status 0 before the test had ended"),
}


@pytest.mark.parametrize("death", DEATHS)
@pytest.mark.parametrize("phase", ["setup", "call", "teardown"])
def test_a_death_is_one_report_of_its_phase(pytester: pytest.Pytester, boxed: Run, death: str, phase: str) -> None:
    code, why = DEATHS[death]
    pytester.makepyfile(f"""
        import os, signal, pytest

        def die(when):
            if when == {phase!r}:
                print("python", when)
                os.write(1, b"raw " + when.encode() + b"\\n")
                {code}

        @pytest.fixture(scope="module")
        def module():
            yield
            print("module down")

        @pytest.fixture
        def function():
            print("before setup")
            die("setup")
            yield
            die("teardown")

        def test_dies(module, function):
            print("before call")
            die("call")

        def test_after(module):
            pass
    """)
    result = boxed("-rA")
    if phase == "call":
        result.assert_outcomes(failed=1, passed=1)
    elif phase == "setup":
        result.assert_outcomes(errors=1, passed=1)
    else:
        result.assert_outcomes(errors=1, passed=2)
    text = result.stdout.str()
    assert f"::test_dies died during its {phase}: {why}" in text
    assert f"python {phase}\nraw {phase}\n" in text
    assert "before setup" in text
    assert ("before call" in text) == (phase != "setup")
    assert text.count("module down") == 1
    assert ("Fatal Python error" in text) == (death in ("segv", "abort"))
    assert "pytest_sandbox/plugin/item.py:" not in text


def test_a_crash_can_be_expected(pytester: pytest.Pytester, boxed: Run) -> None:
    pytester.makepyfile("""
        import os, pytest
        @pytest.mark.xfail(reason="it crashes")
        def test_one(): os._exit(1)
        @pytest.mark.xfail(raises=ValueError)
        def test_two(): os._exit(1)
    """)
    result = boxed("-rA")
    result.assert_outcomes(xfailed=1, failed=1)
    result.stdout.fnmatch_lines(["XFAIL *::test_one - it crashes"])


@pytest.mark.parametrize(("fixture", "args"), [
    ("capsys", ()), ("capfd", ()), ("capsysbinary", ()), ("tmp_path", ("--capture=sys",)), ("tmp_path", ())])
def test_what_it_had_printed_is_in_the_report(pytester: pytest.Pytester, boxed: Run, fixture: str,
                                              args: tuple[str, ...]) -> None:
    pytester.makepyfile(f"""
        import os, sys, pytest
        @pytest.fixture
        def before():
            print("in the set-up")
        @pytest.mark.parametrize("number", range(5))
        def test_one(before, {fixture}, number):
            if hasattr({fixture}, "readouterr"):
                print("not", "wanted")
                {fixture}.readouterr()
            print("to stdout", number)
            print("to stderr", number, file=sys.stderr)
            os._exit(1)
    """)
    result = boxed(*args)
    result.assert_outcomes(failed=5)
    lines = [line for line in result.outlines if "Captured" in line or line.startswith(("in the", "not w", "to "))]
    for number in range(5):
        assert [line.strip("- ") for line in lines[6 * number:6 * number + 6]] == [
            "Captured stdout setup", "in the set-up", "Captured stdout call", f"to stdout {number}",
            "Captured stderr call", f"to stderr {number}"]


def test_a_daemon_that_holds_every_descriptor_does_not_hold_the_run(pytester: pytest.Pytester, boxed: Run,
                                                                    leak_check: None) -> None:
    pytester.makepyfile("""
        import os, signal
        def daemon():
            if os.fork() == 0:
                os.setsid()
                signal.pause()
        def test_one():
            daemon()
        def test_two():
            daemon()
            os._exit(3)
    """)
    result = boxed()
    result.assert_outcomes(passed=1, failed=1)


def test_a_fork_that_comes_back_into_pytest_reports_nothing(pytester: pytest.Pytester, boxed: Run) -> None:
    pytester.makepyfile("""
        import os
        def test_one():
            pid = os.fork()
            if pid:
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        def test_two():
            if os.fork() == 0:
                raise RuntimeError("in the child")
            os.wait()
    """)
    boxed().assert_outcomes(passed=2)


# What the process may say. The suite writes to the pipe of its own report channel, found by its type.

CHANNEL = """
    import gc, os, pytest

    def channel():
        from pytest_sandbox.plugin.guest import Guest
        return next(one for one in gc.get_objects() if isinstance(one, Guest))._descriptor
"""



def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


NONSENSE = {
    "length": (b"\xff\xff\xff\xff", "bytes that are not a message: a length of 4,294,967,295 bytes"),
    "not-json": (b"\0\0\0\x03{{{", "bytes that are not a message: not JSON"),
    "deep": ((200_000).to_bytes(4, "big") + b"[" * 200_000, "bytes that are not a message: not JSON (RecursionError)"),
    "not-an-array": (b"\0\0\0\x02{}", "bytes that are not a message: not an array"),
    "unknown": (b"\0\0\0\x09[\"hello\"]", "unknown message 'hello'"),
    "done-early": (b"\0\0\0\x08[\"done\"]", "said that it was done during its call"),
    "other-test": (framed(b'["report","call",{"nodeid":"test_x.py::other"},{},true]'),
                   "a report about something else: 'test_x.py::other'"),
    "other-phase": (framed(b'["report","teardown",{},{},true]'), "reported its teardown during its call"),
    "no-phase": (framed(b'["report","never",{},{},true]'), "a message of phase 'never'"),
    "wrong-change": (framed(b'["report","call",NODEID,{"attributes":{"runtest":1}},true]'),
                     "tried to change 'runtest' of its item"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_one_clear_failure(pytester: pytest.Pytester, boxed: Run, name: str) -> None:
    data, says = NONSENSE[name]
    if name == "wrong-change":
        report = {"nodeid": "test_nonsense_is_one_clear_failure.py::test_one", "when": "call", "outcome": "passed",
                  "keywords": {}, "longrepr": None, "sections": [], "duration": 0, "start": 0, "stop": 0,
                  "location": ["x", 1, "y"], "user_properties": [], "$report_type": "TestReport"}
        data = framed(data[4:].replace(b"NODEID", json.dumps(report).encode()))
    pytester.makepyfile(CHANNEL + f"""
    def test_one():
        print("was here")
        os.write(channel(), {data!r}) if {len(data)} < 4096 else os.writev(channel(), [{data[:4]!r}, b"[" * 200_000])
        os.close(channel())
        import signal
        signal.pause()

    def test_two():
        pass
    """)
    result = boxed("-rA")
    result.assert_outcomes(failed=1, passed=1)
    text = " ".join(result.stdout.str().split())
    assert says in text
    assert "SandboxProtocolError: " in text
    assert "was here" in text


def test_a_flood_ends(pytester: pytest.Pytester, boxed: Run) -> None:
    pytester.makepyfile(CHANNEL + """
    def test_one():
        body = b'["report","call",{},{},false' + b" " * 60_000_000 + b"]"
        while True:
            os.write(channel(), len(body).to_bytes(4, "big"))
            view = memoryview(body)
            while view:
                view = view[os.write(channel(), view):]

    def test_two():
        pass
    """)
    result = boxed()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(["E*SandboxProtocolError: *"])


def test_data_that_is_put_on_the_item_comes_back(pytester: pytest.Pytester, boxed: Run) -> None:
    pytester.makepyfile("""
        def test_one(request):
            request.node.runtest = None
            request.node.harmless = {"a": (1, b"2")}
        def test_two():
            pass
    """)
    pytester.makeconftest("""
        def pytest_runtest_logfinish(nodeid):
            print("HARMLESS", getattr(ITEMS.get(nodeid), "harmless", None), callable(ITEMS[nodeid].runtest))
        ITEMS = {}
        def pytest_collection_finish(session):
            ITEMS.update((item.nodeid, item) for item in session.items)
    """)
    result = boxed("-s", "-k", "test_two or test_one")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*HARMLESS {'a': (1, b'2')} True"])


# The encoding itself.


class Thing:
    def __repr__(self) -> str:
        return "<a thing>"


@pytest.mark.parametrize("value", [
    None, True, 1, 1.5, "text", "\udc80 lone", [1, [2]], (1, (2,)), {1, 2}, frozenset({3}), b"\0\xff",
    {"a": 1}, {1: "a", (2, 3): [4]}, {"$tuple": 1}, {"a": {"$bytes": "x"}},
])
def test_data_travels_unchanged(value: object) -> None:
    packed = wire.pack(value, lambda one: None)
    message, = wire.Decoder().feed(wire.encode(["report", "call", packed, {}, True]))
    unpacked = wire.unpack(message[2], lambda name: None)
    assert unpacked == value
    assert type(unpacked) is type(value)


def test_what_is_not_data_travels_as_what_it_prints() -> None:
    unpacked = wire.unpack(wire.pack([Thing()], lambda one: None), lambda name: None)[0]
    assert (str(unpacked), repr(unpacked)) == ("<a thing>", "<a thing>")
    with pytest.raises(wire.NotData):
        wire.pack(Thing(), lambda one: None, opaque=False)


def test_shared_objects_travel_by_name() -> None:
    thing = Thing()
    packed = wire.pack({"it": thing}, lambda one: "thing" if one is thing else None)
    assert wire.unpack(packed, {"thing": thing}.get) == {"it": thing}


def test_messages_may_arrive_in_pieces() -> None:
    data = wire.encode(["done"]) * 3
    decoder = wire.Decoder()
    assert [message for byte in data for message in decoder.feed(bytes([byte]))] == [["done"]] * 3


@pytest.mark.parametrize("ends", ["normally", "by a signal"])
def test_a_gigabyte_of_output_is_bounded(pytester: pytest.Pytester, boxed: Run, ends: str) -> None:
    """No process of the run has the memory that pytest would need to hold it."""
    pytester.makeconftest("""
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    """)
    pytester.makepyfile(f"""
        import os
        def test_one():
            os.write(1, b"the beginning\\n")
            block = b"x" * 1023 + b"\\n"
            for number in range(1 << 10):
                os.write(1, block * 1024)
            os.write(1, b"the end\\n")
            if {ends!r} == "by a signal":
                os.abort()
        def test_two():
            print("little")
    """)
    result = boxed("-rA")
    result.assert_outcomes(**{"failed" if ends == "by a signal" else "passed": 1 + (ends == "normally")},
                           **({"passed": 1} if ends == "by a signal" else {}))
    result.stdout.fnmatch_lines(["the beginning", "[[]... 1,06*bytes of output left out ...[]]", "the end", "little"],
                                consecutive=False)
    assert len(result.outlines) < 20_000


@pytest.mark.parametrize("args", [(), ("--capture=sys",), ("--capture=tee-sys",)], ids=" ".join)
def test_output_goes_on_after_much_of_it(pytester: pytest.Pytester, boxed: Run, args: tuple[str, ...]) -> None:
    pytester.makepyfile("""
        import pytest
        class TestShared:
            pytestmark = pytest.mark.sandbox(scope="class")
            def test_one(self):
                print("x" * 20_000_000)
            def test_two(self):
                print("little")
                assert 0
    """)
    result = boxed("--show-capture=all", *args)
    result.assert_outcomes(passed=1, failed=1)
    failure = result.outlines[result.outlines.index(next(line for line in result.outlines if "FAILURES" in line)):]
    assert "little" in failure
    assert sum(map(len, failure)) < 10_000
