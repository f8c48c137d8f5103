"""What pyproject.toml promises, compared with what tox.ini tries and what an installer sees."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Any

import pytest_sandbox

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tox_lines(section: str, key: str) -> list[str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    return [line.strip() for line in parser[section][key].splitlines() if line.strip()]


def test_the_lowest_environment_has_exactly_the_lower_bounds() -> None:
    promised = dict(line.partition(";")[0].split(">=") for line in pyproject()["project"]["dependencies"])
    tried = dict(line.split("==") for line in tox_lines("testenv:lowest", "deps"))
    assert tried.keys() == promised.keys()
    for name, version in promised.items():
        assert re.fullmatch(rf"{re.escape(version)}(\.0)*", tried[name]), name


def test_the_oldest_python_that_is_promised_is_tried() -> None:
    floor = pyproject()["project"]["requires-python"].removeprefix(">=")
    assert tox_lines("testenv:lowest", "base_python") == [f"py{floor.replace('.', '')}"]


def test_the_entry_points_are_what_the_documentation_names() -> None:
    found = {(point.group, point.name, point.value)
             for point in importlib.metadata.distribution("pytest-sandbox").entry_points}
    assert found == {
        ("pytest11", "sandbox", "pytest_sandbox.plugin"),
        ("console_scripts", "pytest-sandbox", "pytest_sandbox.cli:main"),
    }


def test_type_checkers_are_told_that_the_package_is_typed() -> None:
    assert pytest_sandbox.__file__ is not None
    assert Path(pytest_sandbox.__file__).with_name("py.typed").exists()


def test_every_public_name_is_there() -> None:
    for name in pytest_sandbox.__all__:
        assert getattr(pytest_sandbox, name) is not None
    assert set(pytest_sandbox.__all__) <= set(dir(pytest_sandbox))
    assert not hasattr(pytest_sandbox, "no_such_name")
