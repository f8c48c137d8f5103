"""A test that attacks pytest through the descriptor by which its reports leave: one failure of its own, and no more.

The attacker is a test body in the memory of pytest's fork: it finds the descriptor by the garbage collector, as any
code in there can. Each attack is one test of a suite; the test after it must pass, and the pytest process must stay
small.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

#: What the suites begin with.
ATTACKER = '''
import gc, json, os, signal, struct, sys, time
import pytest

def guest():
    return next(one for one in gc.get_objects() if type(one).__name__ == "Guest")

def write(data, fd=None):
    fd = guest()._descriptor if fd is None else fd
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]

def message(*parts):
    body = json.dumps(parts).encode()
    return len(body).to_bytes(4, "big") + body

def report(when="call", **more):
    nodeid = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    return {"nodeid": nodeid, "location": ["x", 0, "x"], "keywords": {}, "outcome": "passed", "longrepr": None,
            "when": when, "user_properties": {"$tuple": []}, "sections": [], "duration": 0.1, "start": 1.0, "stop": 1.1,
            "$report_type": "TestReport", **more}

def tell(when="call", main=True, changes=None, **more):
    write(message("report", when, report(when, **more), changes or {}, main))
'''

#: What is sent during the call, and what the failure says of it. The process then stays silent for ever.
FORGERIES = {
    "garbage": (r'write(b"\xff\xfe" * 5000)', "not a message"),
    "zeros": (r'write(bytes(4))', "not a message"),
    "text": (r'write(b"\0\0\0\5hello")', "not JSON"),
    "gigabyte": (r'write((1 << 30).to_bytes(4, "big") + b"[" * (1 << 22))', "1,073,741,824 bytes"),
    "sixty megabytes of lists": (
        r'n = 60 << 20; write(n.to_bytes(4, "big") + b"[" + b"[]," * ((n - 3) // 3) + b" " * ((n - 3) % 3) + b"0]")',
        "values"),
    "a million messages": (r'one = message("shown", "call"); [write(one * 10_000) for _ in range(100)]',
                           "100,000 messages"),
    "many reports": (r'one = message("report", "call", report(sections=[["", ""]] * 20000), {}, False); '
                     r'[write(one) for _ in range(100)]', "values"),
    "deep": (r'body = b"[" * 900 + b"]" * 900; write(len(body).to_bytes(4, "big") + body)', "not a message|deep"),
    "very deep": (r'body = b"[" * 9000000; write(len(body).to_bytes(4, "big") + body)', "values|not JSON"),
    "deep attributes": (
        r'deep = []; [deep := [deep] for _ in range(200)]; tell(changes={"attributes": {"mine": deep}})', "deep"),
    "another test": (r'tell(nodeid="test_x.py::test_other")', "about something else"),
    "no test": (r'tell(nodeid=None)', "about something else"),
    "another phase": (r'tell(when="teardown")', "during its call"),
    "a phase that is none": (r'write(message("report", "collect", report("collect"), {}, True))', "of phase"),
    "another phase inside": (r'write(message("report", "call", report("teardown"), {}, True))', "as its call's"),
    "twice": (r'tell(); tell()', "during its teardown"),
    "done": (r'write(message("done"))', "done during its call"),
    "waits": (r'write(message("waits"))', "done during its call"),
    "unknown": (r'write(message("import", "os"))', "unknown message"),
    "no number": (r'tell(duration=float("nan"))', "sensible number"),
    "infinite": (r'tell(start=float("inf"))', "sensible number"),
    "huge": (r'body = b"[\"report\", \"call\", {\"duration\": " + b"9" * 1000000 + b"}, {}, true]"; '
             r'write(len(body).to_bytes(4, "big") + body)', "not a message"),
    "a time that is text": (r'tell(duration="1")', "sensible number"),
    "no outcome": (r'tell(outcome="victory")', "outcome"),
    "a failure of nothing": (r'tell(outcome="failed")', "nothing to show"),
    "a skip of nothing": (r'tell(outcome="skipped")', "skip"),
    "keywords": (r'tell(keywords=3)', "keywords"),
    "no longrepr": (r'one = report(); del one["longrepr"]; write(message("report", "call", one, {}, True))',
                    "cannot be read"),
    "a method": (r'tell(_to_json="x")', "field"),
    "a class": (r'tell(__class__="x")', "field"),
    "another kind": (r'tell(**{"$report_type": "CollectReport"})', "cannot be read|not a test's"),
    "a tag": (r'tell(extra={"$eval": "os"})', "unknown form"),
    "a name that is none": (r'tell(extra={"$name": [1]})', "unknown form|cannot be read"),
    "half a set": (r'tell(extra={"$set": [[]]})', "unknown form"),
    "an item's method": (r'tell(changes={"attributes": {"runtest": 1}})', "tried to change"),
    "an item's path": (r'tell(changes={"attributes": {"nodeid": "x"}})', "tried to change"),
    "an item's class": (r'tell(changes={"attributes": {"__class__": "x"}})', "tried to change"),
    "warnings": (r'tell(changes={"warnings": [3]})', "warning"),
    "an infinite line": (r'tell(changes={"warnings": [{"module": "m", "category": "C", "text": "t", "filename": "f", '
                         r'"lineno": float("inf"), "line": None, "source": None}]})', "cannot be read"),
    "changes": (r'tell(changes=[1])', "changes"),
    "failed subtests": (r'tell(changes={"failed_subtests": float("inf")})', "cannot be read"),
    "a fixture": (r'write(message("fixture", "call", "tmp_path", 0, 10, False))', "fixture that it cannot have"),
    "a fixture out of bounds": (r'write(message("fixture", "call", "tmp_path", 10**30, 10, False))', "fixture"),
    "a debugger": (r'write(message("debugger", "call", True, "x")); tell(nodeid="x")', "about something else"),
    "half a message": (r'write(message("shown", "call")[:9]); os.close(guest()._descriptor); os._exit(0)',
                       "died during its call"),
    "a closed descriptor": (r'os.close(guest()._descriptor); os._exit(3)', "died during its call"),
}


#: One of each kind; all of them run in ``tests/soak/test_reports.py``.
SOME = ["garbage", "gigabyte", "sixty megabytes of lists", "a million messages", "many reports", "deep attributes",
        "another test", "another phase", "twice", "done", "no number", "huge", "a method", "a name that is none",
        "an item's path", "a fixture", "half a message"]


def suite(place: Path, cases: list[str], options: str = "") -> None:
    tests = [f"{ATTACKER}\npytestmark = pytest.mark.sandbox({options})"]
    for number, name in enumerate(cases):
        tests.append(f"def test_attack_{number}():\n    {FORGERIES[name][0]}\n    signal.pause()\n\n"
                     f"def test_after_{number}():\n    assert 1 + 1 == 2\n")
    (place / "test_x.py").write_text("\n".join(tests))


def run(place: Path, *arguments: str, seconds: float = 100) -> tuple[str, int]:
    """What pytest says, and how large it grew, in MiB."""
    (place / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run([sys.executable, "-c", (
        # Not ru_maxrss: that begins with what the process that started this one has been.
        "import pytest, re, sys; code = pytest.main(sys.argv[1:]); status = open('/proc/self/status').read();"
        "print('PEAK', int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024); sys.exit(code)"),
        "-p", "no:cacheprovider", "-p", "no:randomly", "--tb=short", *arguments],
        cwd=place, capture_output=True, text=True, errors="replace", timeout=seconds, check=False,
        start_new_session=True, env={**os.environ, "COLUMNS": "400"})
    found = re.search(r"PEAK (\d+)", done.stdout)
    assert found, done.stdout[-3000:] + done.stderr[-3000:]
    assert "INTERNALERROR" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout, int(found[1])


def check(output: str, cases: list[str]) -> None:
    """Each attack is one failure that says what it was; each test after one passes."""
    for number, name in enumerate(cases):
        told = [line for line in output.splitlines() if re.match(rf"(FAILED|ERROR) .*test_attack_{number}\b", line)]
        assert len(told) == 1, (name, told, output[-4000:])
        assert re.search(f"Sandbox(ProtocolError|Crashed).*({FORGERIES[name][1]})", told[0]), (name, told)
    last = output.splitlines()[-2]
    counted = {word: int(number) for number, word in re.findall(r"(\d+) (failed|passed|error)", last)}
    # One that is found out after its call had passed is an error of its teardown.
    assert counted["failed"] + counted.get("error", 0) == len(cases), output[-6000:]
    assert counted["passed"] == len(cases) + counted.get("error", 0), output[-6000:]


#: What is well-formed and odd: it is shown as far as it can be, and nothing breaks over it.
ODD = [
    'tell(outcome="failed", longrepr="a \\ud800 lone \\udcff surrogate \\x1b[2J", '
    'sections=[["Captured stdout call", "\\udc80"]])',
    'tell(user_properties={"$tuple": [["\\ud800", 10**4000], ["b", {"$bytes": "YQ=="}], ["c", {"$set": [1, 2]}]]})',
    'tell(user_properties={"$tuple": [["a", {"$opaque": ["a", "b", "c"]}], ["b", {"$name": "config"}]]})',
    'tell(extra={"$name": "node:0"}, other={"$path": "/x"}, third={"$frozenset": [1]})',
    'tell(wasxfail="\\ud800", outcome="skipped", longrepr=["\\ud800", 3, "\\udc80"])',
    'tell(outcome="failed", longrepr={"$rendered": ["\\ud800", "\\x1b]0;title\\x07"]})',
    'tell(changes={"warnings": [{"module": "\\ud800", "category": "\\ud800", "text": "t", "filename": "\\ud800", '
    '"lineno": 10**18, "line": "\\ud800", "source": None}], "xml_attributes": {"\\ud800": "\\0"}})',
    'tell(duration=1e11, start=-1e11)',
]


@pytest.mark.parametrize("workers", [[], ["-n1"]], ids=["alone", "in a worker"])
def test_what_is_odd_breaks_nothing(tmp_path: Path, workers: list[str]) -> None:
    tests = [f"{ATTACKER}\npytestmark = pytest.mark.sandbox"]
    for number, code in enumerate(ODD):
        tests.append(f"def test_odd_{number}():\n    {code}\n    tell('teardown')\n    write(message('done'))\n"
                     f"    signal.pause()\n\ndef test_after_{number}():\n    pass\n")
    (tmp_path / "test_x.py").write_text("\n".join(tests))
    output, _ = run(tmp_path, "-rA", "--junitxml=junit.xml", "--durations=3", *workers)
    assert "INTERNALERROR" not in output
    for number in range(len(ODD)):
        assert re.search(rf"^PASSED .*test_after_{number}\b", output, re.MULTILINE), output[-3000:]
        assert len(set(re.findall(rf"^(PASSED|FAILED|XFAIL|ERROR|SKIPPED).*test_odd_{number}\b", output,
                                  re.MULTILINE))) <= 1, output[-3000:]
    assert "worker 'gw0' crashed" not in output


def test_whoever_says_goodbye_goes(tmp_path: Path) -> None:
    """A test may say of itself what it likes, being its own judge anyway; what it says later, nobody hears."""
    (tmp_path / "test_x.py").write_text(f"""{ATTACKER}
@pytest.mark.sandbox
def test_goodbye():
    os.fork()
    tell(), tell("teardown"), write(message("done"))
    while True:
        write(message("broken", "call", "nobody should read this"))

@pytest.mark.sandbox
def test_next():
    assert [one for one in os.listdir("/proc") if one.isdecimal() and one not in ("1", str(os.getpid()))] == []
""")
    output, _ = run(tmp_path)
    assert "2 passed" in output


def test_forgeries(tmp_path: Path) -> None:
    cases = SOME
    suite(tmp_path, cases)
    output, peak = run(tmp_path, "-rfE", "--junitxml=junit.xml")
    check(output, cases)
    assert peak < 700
    assert (tmp_path / "junit.xml").stat().st_size > 1000
