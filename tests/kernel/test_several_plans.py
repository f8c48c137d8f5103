"""One process makes sandboxes of different specs, one after the other and at once."""

from __future__ import annotations

import pytest

from pytest_sandbox import Sandbox


@pytest.mark.parametrize("options", [{"user": "root"}, {}], ids=["root", "me"])
def test_specs_that_differ_in_anything_but_their_layers_share_them(options: dict[str, str]) -> None:
    with Sandbox(hostname="one", **options) as one, Sandbox(hostname="two", **options) as two:
        assert one.run(["uname", "-n"]).stdout == "one\n"
        assert two.run(["uname", "-n"]).stdout == "two\n"
        with Sandbox(hostname="one", network="host", **options) as three:
            assert three.run(["uname", "-n"]).stdout == "one\n"


def test_specs_with_other_layers() -> None:
    with Sandbox(hide=[]) as one, Sandbox(hide=["/etc/passwd"]) as two:
        assert one.path("/etc/passwd").exists()
        assert not two.path("/etc/passwd").exists()
