"""docs/how-to/database.md, as it stands there, on a PostgreSQL that images/build.py made."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/database.md"


@pytest.mark.parametrize("workers", [0, 2])
def test_each_test_has_its_own_database(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch,
                                        tmp_path: Path, workers: int) -> None:
    image = Path(os.environ.get("SANDBOX_TEST_IMAGES") or "/nonexistent") / "postgres.tar"
    if not image.exists():
        pytest.skip("no PostgreSQL: run images/build.py postgres and set SANDBOX_TEST_IMAGES to its output directory")
    if workers:
        pytest.importorskip("xdist")
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)[0]
    code = code.replace('"containerfile:images/postgres"', repr(f"oci-archive:{image}"))
    many = """
        @pytest.mark.parametrize("number", range(NUMBER))
        def test_schema(database, number):
            database(f"alter table users add column c{number} int; insert into users(c{number}) values ({number})")
            assert database("select count(*) from information_schema.columns where table_name = 'users'") == "3"
    """
    count = int(os.environ.get("SANDBOX_DATABASE_TESTS", "20"))  # more for a measurement
    many = many.replace("NUMBER", str(count))
    pytester.makepyfile(code + "\n\n" + "\n".join(line[8:] for line in many.splitlines()))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *(["-n", str(workers)] if workers else []))
    result.assert_outcomes(passed=count + 2)
