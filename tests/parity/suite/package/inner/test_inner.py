def test_place_inside(place):
    assert place == ["outer", "inner"]


def test_place_fails(place):
    assert place == ["outer"]
