"""The helper's own layers, while others work on the same machine."""

from __future__ import annotations

from pathlib import Path

from pytest_sandbox.runtime.own import own_dir, own_file


def test_what_has_gone_since_the_plan_is_left_out(tmp_path: Path) -> None:
    layer, host = tmp_path / "layer", tmp_path / "host"
    layer.mkdir()
    host.mkdir()
    (host / "file").write_text("text")
    (host / "directory").mkdir(0o750)
    for name in ("file", "gone"):
        own_file(str(layer), name, f"{host}/{name}")
    for name in ("directory", "away"):
        own_dir(str(layer), name, f"{host}/{name}", True)
    assert sorted(one.name for one in layer.iterdir()) == ["directory", "file"]
    assert (layer / "file").read_text() == "text"
    assert (layer / "directory").stat().st_mode & 0o777 == 0o750
