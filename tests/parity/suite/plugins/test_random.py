"""Depends on the seed, so that pytest-randomly shows what it does."""

import random

import pytest

pytest.importorskip("pytest_randomly")


@pytest.fixture(scope="module")
def drawn():
    return random.randint(0, 10**9)


@pytest.mark.parametrize("number", range(6))
def test_random(number, drawn):
    pytest.fail(f"{drawn} {random.randint(0, 10**9)}", pytrace=False)


class TestA:
    def test_one(self):
        pass

    def test_two(self):
        pass
