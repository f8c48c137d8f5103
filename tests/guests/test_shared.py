"""``pytest_sandbox.shared``: what passes from fixtures on the host into images. ``tox run -e guests``."""

from __future__ import annotations

import pytest


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


def test_plain_data_passes(suite: pytest.Pytester) -> None:
    suite.makeconftest("""
        import os, pytest
        from pathlib import Path
        from pytest_sandbox import shared
        MADE = []

        @pytest.fixture(scope="session")
        def server():
            assert not os.path.exists("/etc/os-release") or "ID=first" not in open("/etc/os-release").read()
            MADE.append(1)
            return object()
        @pytest.fixture(scope="session")
        @shared
        def address(server):
            yield {"host": "db.example", "port": 5432, "key": b"k", "where": Path("/x"), "tags": ("a", {1})}
            print("the server ends")
        @pytest.fixture(scope="module", params=["x", "y"])
        @shared
        def chosen(request): return [request.param, os.getpid()]
        @pytest.fixture
        def uses(address): return address["port"]
    """)
    suite.makepyfile(test_shared="""
        import conftest, os, pytest
        from pathlib import Path
        from images import FIRST, SECOND
        HERE = os.getpid()

        @pytest.mark.sandbox(image=[FIRST, SECOND])
        def test_inside(address, uses):
            assert address == {"host": "db.example", "port": 5432, "key": b"k", "where": Path("/x"), "tags": ("a", {1})}
            assert uses == 5432 and conftest.MADE == []
            address.clear()
        @pytest.mark.sandbox(image=FIRST)
        def test_params(chosen, address, request):
            assert chosen[0] == request.node.callspec.params["chosen"] and chosen[1] != HERE and address
        def test_outside(address, server):
            assert conftest.MADE == [1] and address["port"] == 5432
        @pytest.mark.sandbox
        def test_host_image(address, server):
            assert conftest.MADE == [1]
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=6)
    assert result.stdout.str().count("the server ends") == 1


def test_what_cannot_pass_is_named(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest, threading
        from pytest_sandbox import shared
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)

        @pytest.fixture(scope="session")
        @shared
        def connection(): return {"lock": threading.Lock()}
        @pytest.fixture(scope="session")
        @shared
        def broken(): raise LookupError("no such server")
        @pytest.fixture
        @shared
        def short(): return 1
        @pytest.fixture(scope="session")
        def works(sandbox_factory): return sandbox_factory()

        def test_object(connection): pass
        def test_broken(broken): pass
        def test_short(short): pass
        def test_works(works): pass
        def test_fine(): pass
    """)
    result = run(suite)
    result.assert_outcomes(passed=1, errors=4)
    result.stdout.fnmatch_lines_random([
        "*the value of the fixture 'connection' cannot pass to image *first*lock in it*only plain data*fixture.",
        "*LookupError: no such server", "*the value of the fixture 'short' cannot pass*function scope*",
        "*the fixture 'sandbox_factory', which 'works' requests, works sandboxes from the host*"])
    suite.makepyfile("""
        import pytest
        from pytest_sandbox import shared
        @shared
        @pytest.fixture(scope="session")
        def upside_down(): pass
        def test_one(): pass
    """)
    run(suite).stdout.fnmatch_lines(["*TypeError: pytest_sandbox.shared marks the function*below @pytest.fixture*"])
