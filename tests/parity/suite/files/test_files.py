"""Temporary folders, the working directory, and files that tests share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_tmp_path(tmp_path):
    tmp_path.joinpath("file").write_text("text")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_tmp_path_is_empty(tmp_path):
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "b/c", "ä"])
def test_tmp_path_of_parameters(tmp_path, name):
    assert tmp_path.name.startswith("test_tmp_path_of_parameters")


def test_tmp_path_is_shown(tmp_path):
    raise AssertionError(f"in {tmp_path}")


def test_factory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    assert folder.name == "made0"


def test_factory_again(tmp_path_factory):
    folder = tmp_path_factory.mktemp("another")
    assert folder.name == "another0"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    folder.joinpath("file").write_text("from set-up")
    yield folder
    assert folder.joinpath("file").read_text() == "from set-up"


def test_shared_is_there(shared):
    assert shared.joinpath("file").read_text() == "from set-up"


def test_shared_is_still_there(shared):
    assert sorted(one.name for one in shared.iterdir()) == ["file"]


def test_tmpdir(tmpdir):
    tmpdir.join("file").write("text")
    assert tmpdir.listdir()


def test_chdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("relative").write_text("text")
    assert tmp_path.joinpath("relative").exists()


def test_chdir_is_undone(request):
    assert Path.cwd() == request.config.invocation_params.dir


def test_chdir_and_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raise AssertionError("in another directory")


def test_environment(monkeypatch):
    monkeypatch.setenv("PARITY_VARIABLE", "set")
    output = subprocess.run([sys.executable, "-c", "import os; print(os.environ['PARITY_VARIABLE'])"],
                            capture_output=True, text=True, check=True).stdout
    assert output == "set\n"


def test_environment_is_undone():
    assert "PARITY_VARIABLE" not in os.environ


def test_monkeypatch(monkeypatch):
    monkeypatch.setattr(os, "sep", "|")
    monkeypatch.syspath_prepend("/no/such/place")
    assert os.sep == "|"


def test_monkeypatch_is_undone():
    assert os.sep == "/"
    assert "/no/such/place" not in sys.path


def test_reads_the_suite(request):
    assert request.path.read_text().startswith('"""Temporary folders')


def test_user():
    assert Path.home() == Path(os.environ["HOME"])
