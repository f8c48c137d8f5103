"""unittest.TestCase, with all that it has of its own."""

import asyncio
import unittest

import orderlog
import pytest


def setUpModule():
    orderlog.log("setUpModule")


def tearDownModule():
    orderlog.log("tearDownModule")


class Whole(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        orderlog.log("setUpClass")
        cls.shared = "shared"
        cls.addClassCleanup(orderlog.log, "class cleanup")

    @classmethod
    def tearDownClass(cls):
        orderlog.log("tearDownClass")

    def setUp(self):
        orderlog.log("setUp", self.id())
        self.addCleanup(orderlog.log, "cleanup", self.id())

    def tearDown(self):
        orderlog.log("tearDown", self.id())

    def test_passes(self):
        assert self.shared == "shared"

    def test_fails(self):
        self.assertEqual([1, 2], [1, 3])

    def test_raises(self):
        raise OSError("broken")

    def test_skips(self):
        self.skipTest("from within")

    @unittest.skip("by decorator")
    def test_skipped(self):
        raise AssertionError

    @unittest.skipIf(True, "by condition")
    def test_skipped_if(self):
        raise AssertionError

    @unittest.expectedFailure
    def test_expected_failure(self):
        raise AssertionError

    @unittest.expectedFailure
    def test_unexpected_success(self):
        pass

    def test_subtests(self):
        for number in range(4):
            with self.subTest("numbers", number=number):
                assert number % 2 == 0

    def test_subtest_skips(self):
        for number in range(2):
            with self.subTest(number=number):
                self.skipTest(f"number {number}")

    def test_subtests_pass(self):
        for number in range(3):
            with self.subTest(number=number):
                pass

    def test_logs(self):
        with self.assertLogs("parity", level="INFO"):
            pass


class BrokenClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise OSError("setUpClass is broken")

    def test_one(self):
        pass

    def test_two(self):
        pass


class SkippedClass(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        raise unittest.SkipTest("the whole class")

    def test_one(self):
        pass


@unittest.skip("decorated")
class DecoratedClass(unittest.TestCase):
    def test_one(self):
        pass


class BrokenSetUp(unittest.TestCase):
    def setUp(self):
        raise OSError("setUp is broken")

    def test_one(self):
        pass


class BrokenTearDown(unittest.TestCase):
    def tearDown(self):
        raise OSError("tearDown is broken")

    def test_one(self):
        pass

    def test_fails_too(self):
        raise AssertionError("first")


class BrokenTearDownClass(unittest.TestCase):
    @classmethod
    def tearDownClass(cls):
        raise OSError("tearDownClass is broken")

    def test_one(self):
        pass


class Asynchronous(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.queue = asyncio.Queue()
        await self.queue.put("item")

    async def asyncTearDown(self):
        orderlog.log("asyncTearDown")

    async def test_awaits(self):
        assert await self.queue.get() == "item"

    async def test_fails(self):
        assert await self.queue.get() == "another"

    def test_is_synchronous(self):
        pass


class WithFixtures(unittest.TestCase):
    @pytest.fixture(autouse=True)
    def prepared(self, tmp_path):
        self.folder = tmp_path

    def test_folder(self):
        self.folder.joinpath("file").write_text("text")

    @pytest.mark.xfail(reason="by pytest's mark")
    def test_xfail(self):
        raise AssertionError
