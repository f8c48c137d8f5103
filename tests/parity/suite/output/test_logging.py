"""Log records: in reports, in caplog, live, in a file."""

import logging

import pytest

logger = logging.getLogger("parity.suite")


def test_logs_and_fails():
    logger.warning("watch %s", "out")
    logger.info("by the way")
    raise AssertionError


def test_logs_and_passes():
    logger.error("seen live only")


def test_caplog(caplog):
    logger.warning("one")
    assert caplog.record_tuples == [("parity.suite", logging.WARNING, "one")]


def test_caplog_level(caplog):
    with caplog.at_level(logging.DEBUG, logger="parity.suite"):
        logger.debug("debugging")
    assert caplog.messages == ["debugging"]


def test_caplog_clear(caplog):
    logger.warning("gone")
    caplog.clear()
    logger.warning("kept")
    assert caplog.text.count("\n") == 2


@pytest.fixture
def logs():
    logger.warning("in set-up")
    yield
    logger.warning("in teardown")


def test_all_phases(logs, caplog):
    logger.warning("in call")
    assert [one.message for one in caplog.get_records("setup")] == ["in set-up"]
    raise AssertionError


@pytest.fixture(scope="module", autouse=True)
def logs_for_module():
    logger.warning("module set up")
    yield
    logger.warning("module torn down")


def test_logs_an_exception():
    try:
        1 / 0  # noqa: B018 - for the exception
    except ZeroDivisionError:
        logger.exception("caught")
    raise AssertionError


def test_disabled(caplog):
    logging.disable(logging.CRITICAL)
    logger.critical("not heard")
    assert not caplog.records


def test_disabled_is_over(caplog):
    logging.disable(logging.NOTSET)
    logger.critical("heard")
    assert caplog.messages == ["heard"]


def test_broken_format():
    logging.getLogger("parity.broken").warning("%d", 3)


def test_last_of_module():
    print("last")
    raise AssertionError
