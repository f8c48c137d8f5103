"""The request object and what else a test may ask pytest about."""

import os

import pytest


@pytest.fixture
def owner(request):
    return request.node.get_closest_marker("owner").args[0]


@pytest.mark.owner("ada")
def test_marker_is_read(owner):
    assert owner == "ada"


def test_current_test_is_named():
    assert os.environ["PYTEST_CURRENT_TEST"] == "basics/test_requests.py::test_current_test_is_named (call)"


def test_node(request):
    assert request.node.name == "test_node"
    assert request.config.rootpath == request.session.path


def test_finalizers_run_backwards(request, log):
    request.addfinalizer(lambda: log("first added"))
    request.addfinalizer(lambda: log("second added"))


def test_finalizers_that_fail(request):
    def one():
        raise OSError("one")

    def two():
        raise ValueError("two")

    request.addfinalizer(one)
    request.addfinalizer(two)


def test_cache(request):
    cache = request.config.cache
    if cache is None:
        pytest.skip("no cache")
    assert cache.get("parity/never", "default") == "default"


def test_stash(request):
    key = pytest.StashKey()
    request.node.stash[key] = 1
    assert request.node.stash[key] == 1


def test_other_test_does_not_matter(pytestconfig):
    assert pytestconfig.getoption("collectonly") is False


def test_attribute_for_hooks(request):
    request.node.parity_attribute = "seen by hooks"


@pytest.mark.usefixtures("owner")
@pytest.mark.owner("bob")
def test_used_fixture():
    pass


@pytest.mark.filterwarnings("ignore:hidden")
def test_hidden_warning():
    import warnings

    warnings.warn("hidden", stacklevel=1)
