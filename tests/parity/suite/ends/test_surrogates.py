"""Text that is not text. pytest-xdist ends with an internal error when it meets some."""


def test_surrogates():
    assert "\udcff" == "x"
