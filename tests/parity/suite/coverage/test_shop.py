import asyncio
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest
from shop import prices, stock


@pytest.fixture(scope="session")
def full():
    return stock.load("full")


@pytest.fixture
def basket():
    return prices.Basket()


def test_empty(basket):
    assert basket.total() == 0


def test_apples(basket):
    assert basket.add("apple", 2).total() == 6


@pytest.mark.parametrize("number", [1, 11])
def test_pears(basket, number):
    assert basket.add("pear", number).total() == number * (4 if number < 11 else 3)


def test_fails(basket):
    assert basket.add("cheese", 1).total() == 0


def test_stock(full):
    assert full == {"apple": 10}


def test_subprocess():
    folder = os.path.dirname(__file__)
    output = subprocess.run([sys.executable, "-m", "shop.stock", "empty"], cwd=folder, capture_output=True, text=True,
                            check=True).stdout
    assert output == "{}\n"


def test_thread():
    results = []
    thread = threading.Thread(target=stock.threaded, args=(results,))
    thread.start()
    thread.join()
    assert results == [0]


def test_coroutine():
    assert asyncio.run(stock.fetch()) == 5


def _child(queue):
    queue.put(stock.load("nothing"))


def test_multiprocessing():
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(queue,))
    process.start()
    assert queue.get(timeout=20) is None
    process.join()


@pytest.fixture
def sold(basket):
    yield basket.add("apple", 20)
    assert basket.total() == 40


def test_teardown_covers(sold):
    pass


@pytest.mark.no_cover
def test_not_covered(basket):
    prices.never_called()
