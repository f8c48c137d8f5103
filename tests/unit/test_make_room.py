"""The helper's own layers when there is no room for more: those that no sandbox stands on go."""

from __future__ import annotations

from pathlib import Path

from pytest_sandbox.runtime.helper import _Helper


def test_only_what_nobody_stands_on_goes(tmp_path: Path) -> None:
    helper = _Helper.__new__(_Helper)
    for name in ("one", "used", "other"):
        (tmp_path / name / "0" / "deep").mkdir(parents=True)
        (tmp_path / name / "0" / "deep" / "file").touch()
        (tmp_path / name / "0" / "link").symlink_to("/")
    helper.ready = {str(tmp_path / name) for name in ("one", "used", "other")}
    helper.users = {7: str(tmp_path / "used")}
    assert helper.make_room()
    assert helper.ready == {str(tmp_path / "used")}
    assert (tmp_path / "used" / "0" / "deep" / "file").exists()
    assert list((tmp_path / "one").iterdir()) == list((tmp_path / "other").iterdir()) == []
    assert not helper.make_room()
