"""What tests print, and what they capture themselves."""

import os
import subprocess
import sys

import pytest


def test_prints_and_fails():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    raise AssertionError


def test_prints_and_passes():
    print("seen with -rP and -s only")


def test_writes_to_descriptors():
    os.write(1, b"raw stdout\n")
    os.write(2, b"raw stderr\n")
    raise AssertionError


def test_subprocess_prints():
    subprocess.run([sys.executable, "-c", "print('from a subprocess')"], check=True)
    raise AssertionError


def test_prints_bytes_that_are_not_text():
    os.write(1, b"\xff\xfe\x00 \x1b[31mred\x1b[0m\n")
    raise AssertionError


def test_prints_without_newline():
    sys.stdout.write("no newline")
    raise AssertionError


def test_prints_much():
    for number in range(2000):
        print(f"line {number}")
    raise AssertionError


def test_capsys(capsys):
    print("out")
    print("err", file=sys.stderr)
    assert capsys.readouterr() == ("out\n", "err\n")
    print("left over")
    raise AssertionError


def test_capsys_disabled(capsys):
    print("captured")
    with capsys.disabled():
        print("not captured, in any mode")
    print("captured again")


def test_capfd(capfd):
    os.write(1, b"raw")
    assert capfd.readouterr().out == "raw"


def test_capfd_and_subprocess(capfd):
    subprocess.run(["echo", "from echo"], check=True)
    assert capfd.readouterr().out == "from echo\n"


def test_capfdbinary(capfdbinary):
    os.write(1, b"\x00\xff")
    assert capfdbinary.readouterr().out == b"\x00\xff"


def test_capsysbinary(capsysbinary):
    sys.stdout.buffer.write(b"\x01")
    sys.stdout.flush()
    assert capsysbinary.readouterr().out == b"\x01"


@pytest.mark.skipif(not hasattr(pytest.CaptureFixture, "readouterr"), reason="always there")
def test_capteesys(request):
    request.getfixturevalue("capteesys")
    print("both captured and printed")


def test_two_captures_at_once(capsys, capfd):
    pass


@pytest.fixture
def prints():
    print("in set-up")
    yield
    print("in teardown", file=sys.stderr)


def test_all_phases(prints):
    print("in call")
    raise AssertionError


def test_all_phases_pass(prints):
    print("in call")


def test_reads_stdin():
    input("a question? ")


def test_is_not_a_terminal():
    assert not sys.stdout.isatty()
    assert not sys.stdin.isatty()


def test_encoding():
    assert sys.stdout.encoding.lower() in ("utf-8", "utf8")
    print("grün ✓")
    raise AssertionError
