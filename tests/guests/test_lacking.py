"""Plugins that a run has and an image has not: every error that may come of it names them. ``tox run -e guests``."""

from __future__ import annotations

import re
from pathlib import Path

import guestimage
import pytest

PLUGIN = """
import pytest

@pytest.fixture
def fancy():
    return 1

@pytest.fixture(scope="session", name="wide")
def _wide():
    return 2

def pytest_generate_tests(metafunc):
    if "speed" in metafunc.fixturenames:
        metafunc.parametrize("speed", [1, 2])
"""


def install(folder: Path, text: str, version: str) -> None:
    """A plugin fancy.py of the distribution pytest-fancy."""
    info = folder / f"pytest_fancy-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pytest-fancy\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[pytest11]\nfancy = fancy\n")
    (folder / "fancy.py").write_text(text)


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place where modules are installed, on this side only."""
    folder = tmp_path_factory.mktemp("installed")
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=":")
    install(folder, PLUGIN, "2.0")
    return folder


def run(suite: pytest.Pytester, *args: str) -> pytest.RunResult:
    return suite.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


def test_a_fixture_that_is_not_there_names_its_plugin(suite: pytest.Pytester, installed: Path) -> None:
    (installed / "loaded.py").write_text("import pytest\n@pytest.fixture\ndef by_option(): pass\n")
    suite.makepyfile("""
        import pytest
        from images import FIRST
        first = pytest.mark.sandbox(image=FIRST)
        @pytest.fixture
        def of_ours(wide): return wide
        @pytest.fixture(scope="session")
        def of_session(wide): return wide

        @first
        def test_parameter(fancy): pass
        @first
        def test_by_name(request): request.getfixturevalue("fancy")
        @first
        def test_through_another(of_ours): pass
        @first
        def test_through_a_wide_one(of_session): pass
        @first
        @pytest.mark.usefixtures("by_option")
        def test_option(): pass
        @first
        def test_of_nobody(no_such_fixture): pass
        @first
        def test_needs_none(): pass
        def test_outside(fancy, wide, of_session, by_option): pass
    """)
    result = run(suite, "-p", "loaded")
    result.assert_outcomes(passed=2, failed=1, errors=5)
    text = result.stdout.str()
    for name, plugin, count in (("fancy", "pytest-fancy", 2), ("wide", "pytest-fancy", 2), ("by_option", "loaded", 1)):
        assert text.count(f"fixture '{name}' not found: it is a fixture of {plugin}, which image 'rootfs:") == count
    assert text.count("/first' has not\n") == 5
    assert text.count("by the ini option sandbox_requirements") == 5
    result.stdout.fnmatch_lines(["E*fixture 'no_such_fixture' not found"])
    assert len(re.findall("has no (.*, )?loaded, pytest-fancy: its tests run without", text)) == 1  # and not for each


def test_what_is_collected_otherwise_names_it_too(suite: pytest.Pytester, installed: Path) -> None:
    suite.makepyfile(test_a="""
        import pytest
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_speed(speed): pass
    """, test_b="""
        import pytest
        import fancy
        from images import FIRST
        @pytest.mark.sandbox(image=FIRST)
        def test_imports(): pass
    """)
    result = run(suite)
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines_random([
        "*test_a.py::test_speed?1? is not what image *outside there are *::test_speed?1?, *inside there are "
        "test_a.py::test_speed.*The image has no *pytest-fancy: *install it there*",
        "*test_b.py::test_imports cannot be collected in image*", "*No module named 'fancy'*",
        "*The image has no *pytest-fancy: *install it there*"])


def test_another_version_of_the_plugin(suite: pytest.Pytester, installed: Path, first_root: Path) -> None:
    root = guestimage.another(first_root, suite.path / "root", "older")
    install(next(root.rglob("json/__init__.py")).parent.parent, "", "1.0")
    suite.makepyfile(f"""
        import pytest
        @pytest.mark.sandbox(image="rootfs:{root}")
        def test_parameter(fancy): pass
    """)
    result = run(suite)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*it is a fixture of pytest-fancy, which image *root' has in another version"])
    assert "has no pytest-fancy" not in result.stdout.str()
