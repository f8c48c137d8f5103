"""Coverage of what runs in an image's own Python: ``tox run -e guests``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import guestimage
import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("pytest_cov") is None, reason="pytest-cov is not installed")


def test_lines_and_branches_are_those_of_a_plain_run(suite: pytest.Pytester, first_root: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the project at its own path, and of a package that is elsewhere in the image."""
    root = guestimage.another(first_root, suite.path / "root", "with-package")
    code = "def use(x):\n    if x:\n        return 1\n    return 2\n"
    for place in (guestimage.packages_of(root), suite.path.parent / "elsewhere"):
        (place / "packaged").mkdir(parents=True)
        (place / "packaged/__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{suite.path.parent / 'elsewhere'}:{suite.path}", prepend=":")
    suite.makepyfile(shop="""
        import os
        INSIDE = "ID=with" in open("/etc/os-release").read()
        if INSIDE:
            def only_inside():
                return 1
        def price(count):
            if count > 10:
                return count * 9
            for one in range(count):
                count += one
            return count
        def set_up(): return 1
        def tear_down(): return 2
        def never(): return 3
    """, test_shop="""
        import pytest
        import packaged, shop
        @pytest.fixture(scope="session")
        def session(): yield shop.set_up(); shop.tear_down()
        def test_price(session): assert shop.price(3) == 6
        def test_more(session): assert shop.price(20) == 180 and packaged.use(0) == 2
        def test_inside(): assert not shop.INSIDE or shop.only_inside() == 1
    """)
    seen = {}
    for image in ("host", f"rootfs:{root}"):
        result = suite.runpytest_subprocess(
            "-p", "no:cacheprovider", "-p", "no:randomly", "--sandbox=all", f"--sandbox-image={image}", "--cov=shop",
            "--cov=packaged", "--cov-branch", "--cov-report=json")
        result.assert_outcomes(passed=3)
        files = json.loads((suite.path / "coverage.json").read_text())["files"]
        seen[image] = {Path(name).parent.name + "/" + Path(name).name: (set(one["executed_lines"]), sorted(map(
            tuple, one["executed_branches"]))) for name, one in files.items()}
    plain, inside = seen.values()
    only = {3, 4, 5}
    assert set(plain) == set(inside)
    for name, (lines, branches) in inside.items():
        assert lines - only == plain[name][0] - only
        assert [one for one in branches if one[0] > 5 or "packaged" in name] == [
            one for one in plain[name][1] if one[0] > 5 or "packaged" in name]
    ours = next(lines for name, (lines, _) in inside.items() if name.endswith("shop.py"))
    assert 5 in ours
    assert 5 not in next(lines for name, (lines, _) in plain.items() if name.endswith("shop.py"))
