"""Guests of other versions of Python than the caller's: ``tox run -e guests``.

The interpreters are this machine's: pyenv's, uv's, or those on PATH. What is not there is left out, and said.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import guestimage
import pytest

from pytest_sandbox import wheels

VERSIONS = ("3.10", "3.11", "3.12", "3.13")


def interpreter(version: str) -> str | None:
    """A whole Python of that version, with ctypes and its shared libraries."""
    places = (os.environ.get("PYENV_ROOT", "~/.pyenv"), "~/.local/share/uv/python")
    found = [path for place in places for path in glob.glob(
        f"{os.path.expanduser(place)}/**/*{version}*/bin/python{version}", recursive=False)]
    found += glob.glob(f"{os.path.expanduser(places[0])}/versions/{version}.*/bin/python{version}")
    for one in [*found, *filter(None, [shutil.which(f"python{version}")])]:
        done = subprocess.run([one, "-I", "-c", "import ctypes, sys; print(sys.version_info[1])"], capture_output=True,
                              text=True, check=False)
        if done.returncode == 0 and done.stdout.strip() == version.partition(".")[2]:
            return one
    return None


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An image of each version that this machine has."""
    folder = tmp_path_factory.mktemp("versions")
    found = {version: path for version in VERSIONS if (path := interpreter(version)) is not None}
    return {version: guestimage.make_python_root(folder / f"py{version}", f"py{version}", path)
            for version, path in found.items()}


def has(version: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(interpreter(version) is None, reason=f"this machine has no Python {version} with ctypes")


def run(pytester: pytest.Pytester, *args: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly", *args)


def files_of(root: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in root.rglob("*")}


def test_one_run_over_all_versions(pytester: pytest.Pytester, images: dict[str, Path], leak_check: None) -> None:
    """Each test sees its own image's system, Python, libc and packages, and nothing of another test."""
    if len(images) < 2:
        pytest.skip(f"this machine has no other whole Python than {sorted(images)}")
    if "3.10" in images and sys.version_info >= (3, 11):
        wheels.obtain((3, 10), False)
    for version, root in images.items():
        own = guestimage.packages_of(root)
        info = own / f"only_{version.replace('.', '_')}-1.{version}.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: only-{version}\nVersion: 1.{version}\n")
        (own / "named.py").write_text(f"IMAGE = 'py{version}'\n")
    before = {version: files_of(root) for version, root in images.items()}
    references = [f"rootfs:{root}" for root in images.values()]
    pytester.makepyfile(test_versions=f"""
        import os, platform, sys
        from importlib.metadata import distributions
        from pathlib import Path
        import pytest
        pytestmark = pytest.mark.sandbox(image={references!r})
        SEEN = []

        @pytest.fixture(scope="session")
        def made():
            SEEN.append(Path("/etc/os-release").read_text())
            return "{{}}.{{}}".format(*sys.version_info[:2])

        @pytest.mark.parametrize("number", [1, 2])
        def test_system(made, number, request):
            name = request.node.name.rstrip("]").rpartition("-")[2]
            assert Path("/etc/os-release").read_text() == f"ID={{name}}\\n"
            assert SEEN == [f"ID={{name}}\\n"] and f"py{{made}}" == name
            assert "py%d.%d" % sys.version_info[:2] == name
            assert platform.libc_ver()[0] == "glibc"
            import named
            assert named.IMAGE == name and not hasattr(named, "touched")
            named.touched = sys.touched = True
            assert {{one.name: one.version for one in distributions() if one.name.startswith("only-")}} == {{
                f"only-{{name[2:]}}": f"1.{{name[2:]}}"}}
            for path in ("/etc/os-release", named.__file__, "/new"):
                assert not os.path.exists("/new") or path != "/new"
                Path(path).write_text("spoilt")
            with pytest.raises(AssertionError) as caught:
                assert {{"a": 1}} == {{"a": 2}}
            assert "Differing items" in str(caught.value)
    """)
    result = run(pytester)
    result.assert_outcomes(passed=2 * len(images))
    assert {version: files_of(root) for version, root in images.items()} == before


@has("3.10")
@pytest.mark.skipif(sys.version_info < (3, 11), reason="on Python 3.10 the caller has what is missing there")
def test_what_an_older_python_lacks(pytester: pytest.Pytester, images: dict[str, Path],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Three wheels are fetched once by the caller's pip, here from a folder, and an error says what to do without."""
    pytester.makepyfile(f"""
        import sys, pytest
        @pytest.mark.sandbox(image="rootfs:{images["3.10"]}")
        def test_it():
            assert sys.version_info[:2] == (3, 10)
            import exceptiongroup, tomli
            assert exceptiongroup.__file__.startswith("/run/.pytest-sandbox/below-3.11/")
    """)
    source = Path(wheels.obtain((3, 10), False))
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(pytester.path / "cache"))
    if any(map(importlib.util.find_spec, ("exceptiongroup", "tomli"))):
        pytest.skip("exceptiongroup and tomli are installed here, so that nothing has to be fetched")
    result = run(pytester, "--sandbox-offline")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*exceptiongroup, tomli, typing-extensions on Python 3.10*--sandbox-offline*Install "
                                 "them in the image*"])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    result = run(pytester)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*pip download failed: *No matching distribution found*Install them in the image*"])
    shutil.copytree(source, wheels.directory((3, 10)))
    run(pytester, "--sandbox-offline").assert_outcomes(passed=1)
    shutil.rmtree(pytester.path / "cache")
