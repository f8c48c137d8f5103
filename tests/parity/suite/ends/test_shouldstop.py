def test_before():
    pass


def test_stops(request):
    request.session.shouldstop = "a test said so"


def test_after():
    raise AssertionError("not reached")
