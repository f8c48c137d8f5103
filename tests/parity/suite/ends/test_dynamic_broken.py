"""A fixture of higher scope that fails when a test asks for it by name."""

import pytest


@pytest.fixture(scope="session")
def broken():
    print("about to break")
    raise OSError("broken")


def test_asks(request):
    print("about to ask")
    request.getfixturevalue("broken")
