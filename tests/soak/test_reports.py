"""More of ``tests/attack/test_reports_hostile.py``: with time limits, in workers, and where reports are shown at once.

Not part of the default suite: ``tox -e soak``, or ``python -m pytest tests/soak/test_reports.py``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "attack"))
from test_reports_hostile import ATTACKER, FORGERIES, check, run, suite

#: What is sent in a test with a time limit, whose process then goes on for ever: the time is up when it is up.
ENDLESS = {
    "silence in half a message": 'write(message("shown", "call")[:9]); signal.pause()',
    "one byte at a time": 'write((60 << 20).to_bytes(4, "big"))\n    while True: write(b" "); time.sleep(0.01)',
    "a debugger that nobody sits at": 'write(message("debugger", "call", True, "")); signal.pause()',
    "a closed descriptor": 'os.close(guest()._descriptor); signal.pause()',
    "a flood": 'one = message("shown", "call")\n    while True: write(one); time.sleep(0.001)',
}


def test_nobody_talks_his_way_around_a_timeout(tmp_path: Path) -> None:
    tests = [f"{ATTACKER}\npytestmark = pytest.mark.sandbox(timeout=1)"]
    for number, code in enumerate(ENDLESS.values()):
        tests.append(f"def test_endless_{number}():\n    {code}\n\ndef test_after_{number}():\n    pass\n")
    (tmp_path / "test_x.py").write_text("\n".join(tests))
    output, _ = run(tmp_path, "-rf")
    for number in range(len(ENDLESS)):
        assert re.search(rf"^FAILED .*test_endless_{number} - TimeLimitExceeded", output, re.MULTILINE), output[-3000:]
    assert f"{len(ENDLESS)} failed, {len(ENDLESS)} passed" in output


@pytest.mark.parametrize("arguments", [["-s"], ["-n1"]], ids=["shown as it happens", "in a worker"])
def test_forgeries_elsewhere(tmp_path: Path, arguments: list[str]) -> None:
    cases = ["garbage", "a million messages", "deep attributes", "another test", "done", "a fixture", "an item's path",
             "half a message"]
    suite(tmp_path, cases)
    output, _ = run(tmp_path, "-rfE", *arguments)
    check(output, cases)


def test_orders_that_nobody_reads(tmp_path: Path) -> None:
    """Where reports are shown at once each one is answered: to whoever does not read that, not for ever."""
    (tmp_path / "test_x.py").write_text(f"""{ATTACKER}
@pytest.mark.sandbox
def test_deaf():
    one = message("report", "call", report(), {{}}, False)
    for _ in range(20000):
        write(one)
    signal.pause()

@pytest.mark.sandbox
def test_next():
    pass
""")
    output, _ = run(tmp_path, "-s", "-rf", "--no-header", "-q")
    assert re.search("FAILED .*test_deaf - SandboxProtocolError: .* does not read what it is answered", output)
    assert re.search("1 failed, .*passed", output)


def test_a_process_that_tests_share(tmp_path: Path) -> None:
    """What one of them forges costs the process; the next starts with a new one."""
    cases = ["garbage", "another test", "done"]
    suite(tmp_path, cases, 'scope="module"')
    output, _ = run(tmp_path, "-rfE")
    check(output, cases)


def test_all_forgeries(tmp_path: Path) -> None:
    cases = list(FORGERIES)
    suite(tmp_path, cases)
    output, peak = run(tmp_path, "-rfE")
    check(output, cases)
    assert peak < 700
