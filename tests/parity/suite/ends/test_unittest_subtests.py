"""Subtests of unittest: pytest 9 prints their results into what the test prints."""

import unittest


class Whole(unittest.TestCase):
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
