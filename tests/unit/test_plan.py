"""The plan is data: readable, stable, and made without side effects."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_sandbox.errors import SandboxStartError
from pytest_sandbox.rootfs import Entry, Root, Tree
from pytest_sandbox.runtime import mounts, plan, shift
from pytest_sandbox.runtime.plan import Host, Plan, describe, make_plan, user_ids
from pytest_sandbox.spec import CAPABILITIES, DEFAULT_CAPABILITIES, SandboxSpec, make_spec

ROOT = Root((Tree("/", ("/",), ("home/me/.ssh",), files=("etc/hosts",)), Tree("/home", ("/home",), noexec=True)),
            host=True)
SPLIT = Root((Tree("/", ("/",), (), (Entry("usr", "dir"), Entry("bin", "link", "usr/bin"), Entry("motd", "file"))),
              Tree("/usr", ("/usr",))), host=True)
REAL, OTHER = Host(True, 0, 0), Host(False, 1001, 1002)


def _plan(host: Host = REAL, root: Root = ROOT, **options: Any) -> Plan:
    return make_plan(make_spec(options), root, host)


def test_every_step_reads_as_words() -> None:
    for host, root in ((REAL, ROOT), (OTHER, ROOT), (OTHER, SPLIT)):
        for options in ({}, {"user": "root"}, {"network": "host"}):
            made = _plan(host, root, mounts=["/etc:/data:ro"], **options)
            words = list(made.steps())
            steps = [step for part in ("template", "scratch", "mounts", "inside") for step in made.body[part]]
            assert len(words) == len(steps)
            for one, step in zip(words, steps, strict=True):
                assert step[0] in {**mounts.TEMPLATE, **mounts.OPERATIONS}
                assert one != step[0], f"{step[0]} has no words"
                assert "{" not in one.replace("{}", "")
            assert "let /etc show through at /data" in words
            assert words.index("make it the root") == len(made.body["template"]) + len(made.body["scratch"]) + len(
                made.body["mounts"]) - 1


def test_a_plan_with_shifted_ids() -> None:
    frozen = replace(ROOT, trees=(replace(ROOT.trees[0], frozen=("@key/0/upper",)), *ROOT.trees[1:]))
    image = Root((Tree("/", tuple(f"/cache/layers/{one}/files" for one in range(30))),), look=(0o755, 3, 4))
    for root in (ROOT, SPLIT, frozen, image):
        made = make_plan(make_spec({"mounts": ["/etc:/data:ro"], "user": "5:6"}), root, REAL, None, (1 << 31, 1 << 30))
        assert made.base == 1 << 31
        assert json.loads(json.dumps(made.body)) == made.body
        assert made.body["uid_map"] == made.body["gid_map"] == f"0 {1 << 31} {1 << 30}"
        places = [step[1] for step in made.body["mapped"]]
        assert len(places) == len(set(places)) <= 4  # however many layers there are
        for step in made.body["mounts"]:
            if step[0] == "overlay":
                _, _, _, lowers, short, like, *_ = step
                assert all(any(f"{one}/".startswith(f"{place}/") for place in places) for one in lowers)
                assert short is None or short.endswith(".mapped")
                assert like == [0o755, 3 + made.base, 4 + made.base] or str(like).startswith("/mapped/")
        [words] = [one for one in made.body["mounts"] if one[0] == "run"]
        assert words[1][-1] == ["user/5", 0o700, made.base + 5, made.base + 6]
        assert all(describe(step) for part in ("mapped", "mounts", "inside") for step in made.body[part])
        assert shift.asked(made.body)[1] == ["/etc"]
        assert made.key != make_plan(make_spec({}), root, REAL).key
    assert shift.asked(make_plan(make_spec({}), ROOT, REAL, None, (9, 9)).body)[0] == ["/", "/home"]


def test_ids_that_a_range_has_not() -> None:
    with pytest.raises(SandboxStartError, match="sandboxes of root have 268435456 ids") as caught:
        make_plan(make_spec({"user": "999999999"}), ROOT, REAL, None, (8 << 28, 1 << 28))
    assert "PYTEST_SANDBOX_IDS=host" in str(caught.value)


def test_what_is_not_known_is_still_readable() -> None:
    assert describe(["unheard-of", 1]) == "unheard-of"


def test_operations_and_words_name_the_same_things() -> None:
    known = {**mounts.TEMPLATE, **mounts.OPERATIONS}
    assert set(known) <= set(plan._READS)
    assert set(plan._READS) - set(known) == {"helper", "cgroup", "clone3", "init", "guest", "python"}


def test_a_plan_is_json() -> None:
    made = _plan(mounts=["/etc:/data"], env={"A": "b"})
    assert json.loads(json.dumps(made.body)) == made.body


def test_the_key_names_the_content() -> None:
    assert _plan().key == _plan().key
    assert _plan(env={"A": "b"}).key == _plan().key  # the environment is told with each command
    others = [_plan(hostname="x"), _plan(disk="1M"), _plan(network="host"), _plan(capabilities=[]), _plan(user="7:7"),
              _plan(mounts=["/etc:/data"]), _plan(mounts=["/etc:/data:ro"]), _plan(OTHER), _plan(root=SPLIT)]
    keys = {one.key for one in (_plan(), *others)}
    assert len(keys) == len(others) + 1


def test_plans_of_one_root_share_its_layers() -> None:
    assert _plan().body["layers"] == _plan(hostname="x", network="host").body["layers"]
    assert _plan().body["template"] == _plan(hostname="x").body["template"]
    assert _plan(root=SPLIT).body["layers"] != _plan().body["layers"]


def test_it_has_no_side_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    descriptors = os.listdir("/proc/self/fd")
    _plan(mounts=[f"{tmp_path}:/new/place"])
    assert os.listdir(tmp_path) == []
    assert os.listdir("/proc/self/fd") == descriptors
    assert not os.path.exists("/new")


def test_a_source_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SandboxStartError, match="does not exist on this host"):
        _plan(mounts=[f"{tmp_path}/absent:/x"])


@pytest.mark.parametrize(("user", "host", "ids"), [
    (None, REAL, (0, 0)), (None, OTHER, (1001, 1002)), ("me", OTHER, (1001, 1002)), ("root", OTHER, (0, 0)),
    ("5", REAL, (5, 5)), ("5:6", OTHER, (5, 6))])
def test_user_ids(user: str | None, host: Host, ids: tuple[int, int]) -> None:
    assert user_ids(SandboxSpec(user=user), host) == ids


def test_ids_are_mapped_whole_for_root_and_one_for_others() -> None:
    assert _plan().body["uid_map"] == "0 0 4294967295"
    assert (_plan(OTHER).body["uid_map"], _plan(OTHER).body["gid_map"]) == ("1001 0 1", "1002 0 1")
    assert _plan(OTHER, user="root").body["uid_map"] == "0 0 1"


def test_capabilities_as_numbers() -> None:
    made = _plan()
    assert made.kept == sum(1 << CAPABILITIES.index(one) for one in DEFAULT_CAPABILITIES)
    dropped = {CAPABILITIES[number] for number in made.body["drop"]}
    assert not dropped & set(DEFAULT_CAPABILITIES)
    assert {"SYS_ADMIN", "MKNOD", "SYS_MODULE"} <= dropped
    assert _plan(capabilities=list(CAPABILITIES)).body["drop"] == []


def test_what_the_making_itself_leaves_is_known() -> None:
    assert _plan(mounts=["/etc:/a/b/../c", "/etc:/d"]).made == {"/a/c", "/a", "/d"}


def test_layers_of_our_own() -> None:
    template = [step[0] for step in _plan().body["template"]]
    assert template == ["own_layer", "own_hide", "own_parents", "own_file"]
    steps = _plan(OTHER, SPLIT, user="root").body["template"]
    assert [step[0] for step in steps] == ["own_layer", "own_dir", "own_link", "own_file", "own_layer", "own_shadow"]
    overlays = [step for step in _plan().body["mounts"] if step[0] == "overlay"]
    assert [step[2] for step in overlays] == ["/", "/home"]
    assert [len(step[3]) for step in overlays] == [2, 1]
