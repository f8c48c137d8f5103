"""What is decided outside holds in the images: selection, ids, parameters, workers. ``tox run -e guests``."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

LOOKING = Path(__file__).with_name("looking.py").read_text()
CONFTEST = """
    import json
    import pytest

    def pytest_addoption(parser):
        parser.addoption("--turns", type=int, default=1)

    def pytest_generate_tests(metafunc):
        if "turn" in metafunc.fixturenames:
            metafunc.parametrize("turn", range(metafunc.config.getoption("turns")))

    def pytest_collection_modifyitems(items):
        items.reverse()

    @pytest.fixture(scope="session", params=["x", "ü y"], ids=str.upper)
    def both(request):
        return request.param

    @pytest.fixture
    def doubled(request):
        return request.param * 2

    @pytest.fixture(autouse=True)
    def told(request, tmp_path_factory):
        with (tmp_path_factory.getbasetemp() / "log").open("a") as file:  # which persists
            json.dump([open("/etc/os-release").read().strip(), request.node.nodeid,
                       [one.nodeid for one in request.session.items]], file)
            file.write("\\n")
"""
SUITE = """
    import pytest
    from images import FIRST
    pytestmark = pytest.mark.sandbox(image=FIRST)

    @pytest.mark.parametrize(("number", "text"), [
        (1, "a"), pytest.param(2, "b", id="named"), pytest.param(3, "c", marks=pytest.mark.slow)])
    def test_numbers(number, text, request):
        assert request.node.name == {1: "test_numbers[1-a]", 2: "test_numbers[named]", 3: "test_numbers[3-c]"}[number]
        assert number != 2

    @pytest.mark.parametrize("doubled", [1, 2.5], indirect=True)
    @pytest.mark.parametrize("list", [[1], [2]], ids=lambda value: f"list{value[0]}")
    def test_indirect(doubled, list, request):
        assert request.node.name == f"test_indirect[list{list[0]}-{doubled / 2:g}]" and doubled in (2, 5)

    def test_both(both, request):
        assert request.node.callspec.id == ("X" if both == "x" else r"\\xdc Y")

    def test_turns(turn): pass

    @pytest.mark.slow
    class TestSlow:
        @pytest.fixture(params=[b"bytes", None, True])
        def kind(self, request): return request.param
        def test_kind(self, kind): assert kind != True
        def test_fails(self): assert 0
"""


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:randomly", "-v", "--basetemp=temp", *args)


def results(result: pytest.RunResult) -> list[str]:
    return [line.split(" [")[0].rstrip() for line in result.outlines if re.match(r"\S+\.py::.* [A-Z]+ ", line)]


@pytest.fixture
def many(suite: pytest.Pytester) -> pytest.Pytester:
    suite.makeini("[pytest]\nmarkers =\n    slow: is chosen by -m\n")
    suite.makeconftest(CONFTEST)
    suite.makepyfile(test_many=SUITE)
    return suite


def compared(suite: pytest.Pytester, *args: str) -> list[str]:
    """Runs the suite plainly and in the image. The results; looks at what the tests saw in there."""
    plain = run(suite, "--sandbox=off", *args)
    inside = run(suite, *args)
    assert results(inside) == results(plain) != []
    assert inside.ret == plain.ret
    told = [json.loads(line) for line in (suite.path / "temp/log").read_text().splitlines()]
    assert {system for system, _, _ in told} == {"ID=first"}
    ran = [line.rpartition(" ")[0] for line in results(inside)]
    assert [nodeid for _, nodeid, _ in told] == ran
    assert all(items == ran for _, _, items in told), "in there are other tests than those that were chosen"
    return ran


@pytest.mark.parametrize(("args", "count"), [
    (("--turns=3",), 16),
    (("-k", "numbers and not named or list2"), 4),
    (("-m", "slow"), 5),
    (("-m", "not slow", "-k", "not indirect", "--deselect=test_many.py::test_both"), 3),
    (("test_many.py::TestSlow::test_kind", r"test_many.py::test_both[\xdc Y]"), 4),
], ids=["all", "k", "m", "m-and-deselect", "ids"])
def test_the_tests_that_are_chosen_outside_run_inside(many: pytest.Pytester, args: tuple[str, ...],
                                                      count: int) -> None:
    assert len(compared(many, "-p", "no:cacheprovider", *args)) == count


def test_last_failed_is_remembered_outside(many: pytest.Pytester) -> None:
    result = run(many)
    result.assert_outcomes(passed=11, failed=3)
    failed = [line.rpartition(" ")[0] for line in results(result) if line.endswith("FAILED")]
    assert sorted(json.loads((many.path / ".pytest_cache/v/cache/lastfailed").read_text())) == sorted(failed)
    assert compared(many, "--lf") == failed
    assert compared(many, "--ff")[:3] == failed
    assert compared(many, "--lf", "-k", "named") == ["test_many.py::test_numbers[named]"]


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_a_worker_starts_the_guests_that_it_needs(suite: pytest.Pytester) -> None:
    suite.makepyfile(looking=LOOKING, test_a="""
        import pytest
        from looking import guests
        from images import FIRST, SECOND
        def test_before(): assert len(guests()) == 0
        def test_next_to_it(): pass
        @pytest.mark.sandbox(image=FIRST)
        @pytest.mark.parametrize("number", range(3))
        def test_inside(number): assert "ID=first" in open("/etc/os-release").read()
        def test_between(): assert len(guests()) == 0
        def test_after(): assert len(guests()) == 0
    """, test_b="""
        import time
        import pytest
        from looking import guests
        @pytest.mark.parametrize("number", range(5))
        def test_outside(number):
            time.sleep(0.1)  # while the other worker's guest lives
            assert len(guests()) == 0
    """)
    result = suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", "-n", "2", "--dist=loadfile")
    result.assert_outcomes(passed=12)


@pytest.mark.skipif(importlib.util.find_spec("xdist") is None, reason="pytest-xdist is not installed")
def test_each_worker_has_a_guest_of_each_image(suite: pytest.Pytester) -> None:
    suite.makeconftest("""
        import os
        import pytest
        worker_id = os.environ.get("PYTEST_XDIST_WORKER")
        @pytest.fixture(scope="session")
        def log(tmp_path_factory):
            path = tmp_path_factory.getbasetemp() / "log"
            system = open("/etc/os-release").read().strip()
            with path.open("a") as file: file.write(f"{worker_id} {system} begins\\n")
            yield path
            with path.open("a") as file: file.write(f"{worker_id} {system} ends\\n")
    """)
    suite.makepyfile("""
        import time
        import pytest
        from conftest import worker_id
        from images import FIRST, SECOND
        @pytest.mark.sandbox(image=[FIRST, SECOND])
        @pytest.mark.parametrize("number", range(12))
        def test_each(log, number):
            time.sleep(0.05)
            with log.open("a") as file: file.write(f"{worker_id} ran\\n")
    """)
    result = run(suite, "-p", "no:cacheprovider", "-n", "2")
    result.assert_outcomes(passed=24)
    logs = {one: (suite.path / f"temp/popen-{one}/log").read_text() for one in ("gw0", "gw1")}
    assert sum(text.count(" ran\n") for text in logs.values()) == 24
    for worker, text in logs.items():
        assert text.count(f"{worker} ran") == text.count(" ran\n") > 0
        for system in ("ID=first", "ID=second"):
            assert [text.count(f"{worker} {system} {what}\n") for what in ("begins", "ends")] == [1, 1], text
