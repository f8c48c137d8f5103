"""A package's own fixtures."""

import orderlog
import pytest


@pytest.fixture(scope="package", autouse=True)
def of_package(request):
    yield request.node.name
    orderlog.log("package is over")


@pytest.fixture(scope="package")
def place():
    yield ["outer"]


def pytest_runtest_setup(item):
    if item.name == "test_refused_by_hook":
        pytest.skip("refused by a hook")
    if item.name == "test_broken_by_hook":
        raise OSError("a hook broke")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if item.name == "test_turned_by_hook" and call.when == "call":
        report.outcome = "failed"
        report.longrepr = "turned into a failure by a hook"
    if item.name == "test_section_by_hook" and call.when == "call":
        report.sections.append(("added by a hook", "some text"))
    return report
