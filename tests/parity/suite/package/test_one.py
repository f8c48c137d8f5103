"""Package scope, and hooks of a conftest that takes part in set-up and reports."""


def test_place(place):
    assert place == ["outer"]


def test_refused_by_hook():
    pass


def test_broken_by_hook():
    pass


def test_turned_by_hook():
    pass


def test_section_by_hook():
    raise AssertionError("with a section")
