"""A suite of many kinds of tests, most of them failing. ``test_parity`` runs it plainly and sandboxed and compares."""

# ruff: noqa: PT009

import logging
import os
import sys
import threading
import unittest
import warnings

import pytest


@pytest.fixture(scope="session", params=["a", "b"])
def parametrised(request):
    print("parametrised", request.param)
    yield request.param
    print("parametrised down")


@pytest.fixture(scope="session")
def session():
    print("session up")
    yield 1
    print("session down")


@pytest.fixture(scope="package")
def package():
    print("package up")
    yield 1
    print("package down")


@pytest.fixture(scope="module", autouse=True)
def module():
    print("module up")
    logging.warning("module log")
    yield
    print("module down")
    logging.warning("module down log")


@pytest.fixture(scope="module")
def failing_module():
    print("trying")
    raise RuntimeError("failing module")


@pytest.fixture(scope="module")
def skipping_module():
    pytest.skip("skipping module")


@pytest.fixture(scope="module")
def failing_teardown():
    yield
    print("in teardown")
    raise ValueError("teardown")


@pytest.fixture
def function(session):
    print("function up")
    yield
    print("function down")


@pytest.fixture
def failing_function(session):
    raise KeyError("x")


@pytest.fixture
def failing_function_teardown():
    yield
    raise IndexError("fn")


@pytest.mark.parametrize("number", [1, 2])
def test_parametrised(parametrised, number, function):
    assert number == 1 or parametrised == "a"


def test_failing_module(failing_module):
    pass


def test_failing_module_again(failing_module):
    pass


def test_skipping_module(skipping_module):
    pass


def test_skipping_module_again(skipping_module):
    pass


def test_failing_function(failing_function):
    pass


def test_fails_twice(failing_function_teardown):
    raise AssertionError


def test_failing_teardown(failing_teardown):
    print("x")


def test_missing_fixture(nosuch):
    pass


class TestClass:
    @classmethod
    def setup_class(cls):
        print("setup_class")
        cls.value = 1

    @classmethod
    def teardown_class(cls):
        print("teardown_class")

    def setup_method(self):
        print("setup_method")

    def teardown_method(self):
        print("teardown_method")

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def of_class(cls):
        cls.other = 5
        yield
        print("of_class down")

    def test_one(self):
        assert (self.value, self.other) == (1, 5)

    def test_two(self):
        pytest.fail("message")


class TestCase(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        print("setUpClass")
        cls.value = 3

    @classmethod
    def tearDownClass(cls):
        print("tearDownClass")

    def setUp(self):
        print("setUp")

    def test_passes(self):
        self.assertEqual(self.value, 3)

    def test_skips(self):
        self.skipTest("nope")

    @unittest.expectedFailure
    def test_expected(self):
        self.fail("f")

    @unittest.expectedFailure
    def test_unexpected(self):
        pass

    @unittest.skip("skipped")
    def test_never(self):
        pass


class TestCaseWithoutClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise RuntimeError("no class")

    def test_one(self):
        pass

    def test_two(self):
        pass


class TestAsyncCase(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        print("asyncSetUp")

    async def test_one(self):
        self.assertEqual(1, 2)


@pytest.mark.skip(reason="mark")
def test_skip_mark(session):
    pass


@pytest.mark.xfail(run=False, reason="norun")
def test_xfail_not_run():
    pass


@pytest.mark.xfail(strict=True, reason="strict")
def test_xpass_strict():
    pass


@pytest.mark.xfail(raises=ValueError)
def test_xfail_raises_another():
    raise KeyError


@pytest.mark.xfail
def test_xpass():
    pass


def test_xfail_called():
    pytest.xfail("called")


def test_importorskip():
    pytest.importorskip("no_such_module_anywhere")


def test_chain():
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError as error:
        raise RuntimeError("second") from error


def test_capsys(capsys):
    print("q")
    sys.stderr.write("e\n")
    assert capsys.readouterr().out == "q\n"
    print("left over")


def test_capfd(capfd):
    os.system("echo from a subprocess")
    print("left over")
    raise AssertionError


def test_caplog(caplog):
    logging.error("boo")
    assert caplog.records == 0


def test_warnings():
    warnings.warn("first", stacklevel=1)
    warnings.warn(DeprecationWarning("deprecated"), stacklevel=1)


def test_recwarn(recwarn):
    warnings.warn("hidden", stacklevel=1)


def test_files(tmp_path, tmp_path_factory):
    (tmp_path / "x").write_text("1")
    tmp_path_factory.mktemp("y")


def test_monkeypatch(monkeypatch):
    monkeypatch.setenv("A", "1")
    monkeypatch.chdir("/")


def test_properties(record_property, record_testsuite_property):
    record_property("a", 1)
    record_testsuite_property("s", "v")


def test_thread():
    def fail():
        raise RuntimeError("in a thread")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()


def test_unraisable():
    class Thing:
        def __del__(self):
            raise RuntimeError("del")

    thing = Thing()
    del thing


def test_locals():
    data = {"k": [1, 2, 3]}
    assert data["k"] == [1, 2, 4]


def test_long():
    assert "a\n" * 20 == "b\n" * 20


def test_group():
    if sys.version_info >= (3, 11):
        raise ExceptionGroup("group", [ValueError(1), KeyError(2)])  # noqa: F821 - Python 3.11 and later
    raise AssertionError


def test_no_traceback():
    pytest.fail("no traceback", pytrace=False)


def test_system_exit():
    sys.exit(4)


def test_text():
    print("\N{GRINNING FACE}")
    assert "é\n" == "e\n"
