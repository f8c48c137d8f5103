"""What tests and fixtures add to reports."""

import time

import pytest


def test_property(record_property):
    record_property("key", "value")
    record_property("number", 3)
    record_property("list", [1, 2])


def test_property_and_failure(record_property):
    record_property("before", "the failure")
    raise AssertionError


@pytest.fixture
def records(record_property):
    record_property("in", "set-up")
    yield
    record_property("in", "teardown")


def test_property_in_all_phases(records, record_property):
    record_property("in", "call")


@pytest.mark.filterwarnings("ignore::pytest.PytestExperimentalApiWarning")
def test_xml_attribute(record_xml_attribute):
    record_xml_attribute("assertions", "3")
    record_xml_attribute("classname", "another.name")


def test_xml_attribute_warns(record_xml_attribute):
    record_xml_attribute("status", "experimental")


def test_suite_property(record_testsuite_property):
    record_testsuite_property("version", "1.2")
    record_testsuite_property("answer", 42)


def test_suite_property_again(record_testsuite_property):
    record_testsuite_property("again", "yes")
    raise AssertionError


@pytest.fixture(scope="session")
def of_suite(record_testsuite_property):
    record_testsuite_property("by", "a session's fixture")


def test_suite_property_by_fixture(of_suite):
    pass


def test_user_properties(request):
    request.node.user_properties.append(("own", {"nested": (1, None)}))


def test_section(request):
    request.node.add_report_section("call", "notes", "a note\nof two lines")
    raise AssertionError


def test_control_characters():
    pytest.fail("bell \x07, escape \x1b[1m, nul \x00, emoji \U0001f40d")


def test_takes_its_time():
    time.sleep(0.3)


@pytest.fixture
def slow_fixture():
    time.sleep(0.2)
    yield
    time.sleep(0.1)


def test_fixture_takes_its_time(slow_fixture):
    pass


@pytest.fixture
def extra(request):
    extras = pytest.importorskip("pytest_html").extras
    request.node.stash  # noqa: B018 - there is one
    return request.getfixturevalue("extras"), extras


def test_html_extras(extra):
    collected, extras = extra
    collected.append(extras.text("some text", name="notes"))
    collected.append(extras.url("https://example.invalid/"))
