def test_place_again(place):
    assert place == ["outer"]


class TestPlace:
    def test_in_class(self, place, of_package):
        assert of_package == "package"
