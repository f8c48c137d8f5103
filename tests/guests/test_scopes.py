"""Lists of images and fixtures of higher scope in guests: ``tox run -e guests``. See ``plugin/test_guests.py``."""

from __future__ import annotations

import re

import pytest


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


def test_a_list_of_images_makes_a_test_of_each(suite: pytest.Pytester) -> None:
    suite.makepyfile(test_lists="""
        import pytest
        from pathlib import Path
        from images import FIRST, SECOND
        pytestmark = pytest.mark.sandbox(image=[FIRST, SECOND, "host"])

        def system():
            return Path("/etc/os-release").read_text().strip()

        @pytest.mark.parametrize("number", [1, 2])
        def test_each(number, request):
            name = request.node.name.rstrip("]").rpartition("-")[2]
            assert name == "host" or system() == f"ID={name}"

        @pytest.mark.sandbox(image=SECOND)
        def test_nearest_wins():
            assert system() == "ID=second"

        class TestDriven:
            def test_fixture(self, sandbox, request):
                name = request.node.name.rstrip("]").rpartition("[")[2]
                assert name == "host" or sandbox.path("/etc/os-release").read_text().strip() == f"ID={name}"
    """)
    result = run(suite, "-v")
    result.assert_outcomes(passed=10)
    result.stdout.fnmatch_lines([
        "*test_lists.py::test_each?1-first? PASSED*", "*::test_each?1-second? PASSED*", "*::test_each?1-host? PASSED*",
        "*::test_nearest_wins PASSED*", "*::test_fixture?second? PASSED*"])
    run(suite, "-k", "first").assert_outcomes(passed=3, deselected=7)


def test_higher_scopes_end_when_the_image_needs_them_no_more(suite: pytest.Pytester) -> None:
    suite.makeconftest("""
        import pytest
        @pytest.fixture(scope="session")
        def session(): yield print("session begins"); print("session ends")
        @pytest.fixture(scope="module")
        def module(session): yield print("module begins"); print("module ends"); raise ValueError("module's end")
        @pytest.fixture(scope="session", params=["x", "y"])
        def both(request): yield print(f"both {request.param} begins"); print(f"both {request.param} ends")
    """)
    for name, image in (("a", "FIRST"), ("b", "SECOND"), ("c", "FIRST")):
        suite.makepyfile(**{f"test_{name}": f"""
            import pytest
            from images import FIRST, SECOND
            pytestmark = pytest.mark.sandbox(image={image})
            def test_one(module): pass
            def test_two(module): pass
        """})
    suite.makepyfile(test_d="""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_params(both): pass
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=8, errors=3)
    text = result.stdout.str()
    for name in "abc":
        section = re.search(rf"_ ERROR at teardown of test_two _.*?test_{name}\.py", text, re.DOTALL)
        assert section is not None
    assert [text.count(f"session {what}") for what in ("begins", "ends")] == [2, 2]
    assert [text.count(f"both {what}") for what in ("x begins", "x ends", "y begins", "y ends")] == [1, 1, 1, 1]


def test_a_fixture_by_name_and_one_that_works_sandboxes(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest
        from images import FIRST
        pytestmark = pytest.mark.sandbox(image=FIRST)
        MADE = []

        @pytest.fixture(scope="session")
        def by_name():
            MADE.append(1)
            print("made now")
            return len(MADE)
        @pytest.fixture(scope="session")
        def outside(sandbox_factory): pass

        def test_first(request): assert request.getfixturevalue("by_name") == 1
        def test_second(request): assert request.getfixturevalue("by_name") == 1 and MADE == [1]
        def test_outside(outside): pass
    """)
    result = run(suite, "-rA")
    result.assert_outcomes(passed=2, errors=1)
    assert result.stdout.str().count("made now") == 1
    result.stdout.fnmatch_lines(["the fixture 'sandbox_factory' works sandboxes from the host, and*"])
