"""Classes, and set-up functions in the manner of xUnit."""

import orderlog
import pytest


def setup_module(module):
    orderlog.log("setup_module", module.__name__)
    print("module set up")


def teardown_module(module):
    orderlog.log("teardown_module", module.__name__)
    print("module torn down")


def setup_function(function):
    orderlog.log("setup_function", function.__name__)


def teardown_function(function):
    orderlog.log("teardown_function", function.__name__)


def test_function_with_xunit():
    pass


def test_failing_function_with_xunit():
    raise AssertionError("fails")


class TestXunit:
    made = 0

    @classmethod
    def setup_class(cls):
        orderlog.log("setup_class", cls.__name__)
        cls.made += 1

    @classmethod
    def teardown_class(cls):
        orderlog.log("teardown_class", cls.__name__, cls.made)
        print("class torn down")

    def setup_method(self, method):
        orderlog.log("setup_method", method.__name__)
        self.number = 7

    def teardown_method(self, method):
        orderlog.log("teardown_method", method.__name__, self.number)

    def test_first(self):
        assert self.made == 1
        self.number = 8

    def test_second(self):
        assert self.number == 7

    def test_fails(self):
        assert self.made == 2

    class TestNested:
        @classmethod
        def setup_class(cls):
            orderlog.log("setup_class", cls.__qualname__)

        def setup_method(self):
            raise OSError("setup_method is broken")

        def teardown_method(self):
            orderlog.log("not reached")

        def test_nested(self):
            pass

    def test_after_nested(self):
        assert self.number == 7


class TestBrokenSetup:
    @classmethod
    def setup_class(cls):
        raise OSError("setup_class is broken")

    def test_one(self):
        pass

    def test_two(self):
        pass


class TestBrokenTeardown:
    @classmethod
    def teardown_class(cls):
        print("about to break")
        raise OSError("teardown_class is broken")

    def test_one(self):
        pass

    def test_last(self):
        print("the last test of the class")


class TestFixtures:
    @pytest.fixture(autouse=True)
    def prepared(self):
        self.prepared_by = "fixture"
        yield
        orderlog.log("prepared_by", self.prepared_by)

    @pytest.fixture(scope="class")
    def shared(self):
        orderlog.log("shared set up")
        yield []
        orderlog.log("shared torn down")

    def test_one(self, shared):
        assert self.prepared_by == "fixture"

    def test_two(self, shared):
        assert shared == []

    @staticmethod
    def test_static(shared):
        assert shared is not None


@pytest.mark.xfail(reason="the whole class")
class TestAllXfail:
    def test_fails(self):
        raise AssertionError

    def test_passes(self):
        pass


@pytest.mark.skip(reason="the whole class")
class TestAllSkipped:
    def test_skipped(self):
        raise AssertionError
