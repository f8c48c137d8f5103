"""Builds whose steps need other users: as root, as an ordinary user with subordinate ids, and with a single id.

The first tests hold for root and for ordinary users alike: what is built is the same.
"""

from __future__ import annotations

import importlib.util
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from imagemaker import Item, directory, file, hardlink, image, layer, symlink, write_layout
from support import IS_ROOT

from pytest_sandbox import ImageBuildError, Sandbox, SandboxClosedError, planning
from pytest_sandbox.building.builder import Builder, Options
from pytest_sandbox.building.reference import build
from pytest_sandbox.image.owners import owners_of
from pytest_sandbox.image.store import StoredImage
from pytest_sandbox.runtime.subids import NoSubordinateIds, probe
from pytest_sandbox.spec import SandboxSpec

BUSYBOX = shutil.which("busybox")
pytestmark = [
    pytest.mark.usefixtures("build_cache"),
    pytest.mark.skipif(BUSYBOX is None, reason="no static program at hand: apt-get install busybox-static"),
    pytest.mark.skipif(importlib.util.find_spec("dockerfile") is None,
                       reason="the parser is not installed: pip install pytest-sandbox[build]"),
]
APPLETS = ("sh", "cat", "echo", "ls", "rm", "mkdir", "ln", "touch", "id", "stat", "chown", "chmod", "test", "su", "cp",
           "readlink", "mv", "sleep")


@pytest.fixture(scope="module")
def has_ids() -> None:
    if not IS_ROOT:
        try:
            probe()
        except NoSubordinateIds as error:
            pytest.skip(f"no subordinate ids: {error}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image with files of other users: of every kind, with links, modes, and an attribute."""
    assert BUSYBOX is not None
    lower = [directory("bin"), file("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755),
             *(symlink(f"bin/{name}", "busybox") for name in APPLETS), directory("tmp", 0o1777), directory("etc"),
             file("etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"),
             file("etc/group", "root:x:0:\nweb:x:34:\n"), file("etc/shadow", "secret", mode=0o640, gid=42),
             directory("var"), directory("var/data", 0o2750, uid=33, gid=34),
             file("var/data/one", "1", mode=0o600, uid=33, gid=34, pax={"SCHILY.xattr.user.note": "kept"}),
             hardlink("var/data/two", "var/data/one"), symlink("var/data/link", "one", uid=33, gid=34),
             file("var/data/odd\udcff name", "o", uid=33), Item("var/data/pipe", "6", uid=33, mode=0o620),
             file("var/data/tool", "", mode=0o4755, uid=33), file("var/gone", "g", uid=33),
             directory("var/hidden", uid=33), file("var/hidden/x", "x", uid=33)]
    upper = [directory("var"), file("var/.wh.gone", ""), directory("var/hidden"), file("var/hidden/.wh..wh..opq", ""),
             file("var/hidden/x", "roots"), file("var/data/new", "n", uid=1)]
    made = image([layer(lower), layer(upper)], config={"Env": ["PATH=/bin"]})
    return f"oci:{write_layout(tmp_path_factory.mktemp('b') / 'l', made)}"


def built(text: str, **options: Any) -> tuple[StoredImage, Builder, list[str]]:
    said: list[str] = []
    Path("Containerfile").write_text(text)
    made, builder = build(planning.store(), "Containerfile", "context", Options(say=said.append, **options))
    return made, builder, said


def members(build_cache: Path, made: StoredImage, number: int = -1) -> dict[str, tarfile.TarInfo]:
    """What one of the layers' archives says, which is what other tools will see."""
    digest = made.diff_ids[number].partition(":")[2]
    [blob] = build_cache.glob(f"blobs/**/{digest}")
    with tarfile.open(blob) as tar:
        return {one.name: one for one in tar}


def owners(found: dict[str, tarfile.TarInfo]) -> dict[str, tuple[int, int]]:
    return {name: (one.uid, one.gid) for name, one in found.items()}


LOOK = "stat -c '%n %F %a %u:%g' "


def test_a_step_finds_the_owners_that_the_image_names(base: str, has_ids: None) -> None:
    _, _, said = built(f"FROM {base}\nRUN {LOOK} /etc/passwd /etc/shadow /var/data /var/data/* /var/hidden "
                       "/var/hidden/x; cat /var/data/two; readlink /var/data/link; stat -c %h /var/data/one\n")
    lines = [line for one in said for line in one.splitlines() if line.startswith(("/", "1", "one", "2"))]
    assert lines == [
        "/etc/passwd regular file 644 0:0", "/etc/shadow regular file 640 0:42", "/var/data directory 2750 33:34",
        "/var/data/link symbolic link 777 33:34", "/var/data/new regular file 644 1:0",
        "/var/data/odd\ufffd name regular file 644 33:0", "/var/data/one regular file 600 33:34",
        "/var/data/pipe fifo 620 33:0", "/var/data/tool regular empty file 4755 33:0",
        "/var/data/two regular file 600 33:34", "/var/hidden directory 755 0:0", "/var/hidden/x regular file 644 0:0",
        "1one", "2"]


def test_what_a_step_gives_to_others_is_theirs_in_the_image(base: str, build_cache: Path, has_ids: None) -> None:
    text = (f"FROM {base}\nRUN mkdir -m 700 /d && echo s > /d/s && chmod 600 /d/s && chown -R web:web /d && "
            "chmod 4750 /d/s && ln -s s /d/l && chown -h 5:6 /d/l && ln /d/s /d/hard && chown 65000 /tmp\n"
            f"RUN {LOOK} /d /d/* /tmp && cat /d/s && rm /d/l\n")
    made, _, said = built(text)
    assert "/d/s regular file 4750 33:34" in said[-1]
    first = members(build_cache, made, -2)
    assert owners(first) == {"d": (33, 34), "d/hard": (33, 34), "d/l": (5, 6), "d/s": (33, 34), "tmp": (65000, 0)}
    assert {first[name].mode & 0o7777 for name in ("d/s", "d/hard")} == {0o4750}
    assert owners(members(build_cache, made)) == {"d": (33, 34), "d/.wh.l": (0, 0)}
    assert built(text)[1].hits == 2


def test_steps_of_other_users(base: str, build_cache: Path, has_ids: None) -> None:
    made, _, said = built(
        f"FROM {base}\nUSER web\nRUN id; cat /var/data/one; cat /etc/shadow || echo refused; echo x >> /var/data/one; "
        "touch /tmp/f\nUSER root\nRUN su -s /bin/sh web -c 'id; touch /tmp/g'\nUSER 7:8\nRUN id && touch /tmp/h\n")
    text = "\n".join(said)
    assert "uid=33(web) gid=34(web)" in text
    assert "refused" in text
    assert "uid=7(sandbox) gid=8" in text
    made_by = [owners(members(build_cache, made, number))[f"tmp/{name}"]
               for number, name in ((-3, "f"), (-2, "g"), (-1, "h"))]
    assert made_by == [(33, 34), (33, 34), (7, 8)]
    assert owners(members(build_cache, made, -3))["var/data/one"] == (33, 34)
    assert members(build_cache, made, -3)["var/data/one"].pax_headers["SCHILY.xattr.user.note"] == "kept"


def test_copied_files_belong_to_whom_they_are_given(base: str, build_cache: Path, has_ids: None) -> None:
    """Also below a directory of others that the layer itself does not have, which keeps its owner."""
    made, _, said = built(f"FROM {base}\nCOPY --chown=5:6 a.txt /var/data/copied\nCOPY a.txt /var/data/roots\n"
                          f"RUN {LOOK} /var/data /var/data/copied /var/data/roots; rm /var/data/copied; "
                          "echo > /var/data/copied\n"
                          f"RUN touch /var/x; {LOOK} /var/data/copied\n")
    text = "\n".join(said)
    for line in ("/var/data directory 2750 33:34", "/var/data/copied regular file 644 5:6",
                 "/var/data/roots regular file 644 0:0"):
        assert line in text
    copied = owners(members(build_cache, made, -2))["var/data/copied"]
    assert copied == (0, 34), "the set-group-id bit gives the group on"
    assert "/var/data/copied regular file 644 0:34" in said[-1]


def test_a_build_by_root_and_one_by_a_user_are_one(base: str, has_ids: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are held against the digest that root's build had."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    made, _, _ = built(f"FROM {base}\nRUN mkdir -p /srv/app && echo 1 > /srv/app/f "
                       "&& chown -R web /srv/app && rm -r /var/hidden && chmod 700 /var/data\n")
    assert made.diff_ids[-1] == "sha256:6c9312ad93c1ea549126eb87b63788ef3f239be8c87b8ec4a67ed27023ab968a"


# An ordinary user whose system gives no other ids.

@pytest.fixture
def single(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if IS_ROOT:
        pytest.skip("root has every id")
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))  # neither newuidmap nor getsubids


def test_with_a_single_id_it_is_said_what_was_mapped_away(base: str, build_cache: Path, single: None) -> None:
    made, _, said = built(f"FROM {base}\nRUN {LOOK} /etc/shadow /var/data\n"
                          "RUN echo x > /tmp/x; echo >> /var/data/one\n")
    notes = [one for one in said if one.startswith("note: ")]
    assert len(notes) == 2
    assert "a single id inside: newuidmap is not installed" in notes[0]
    assert "apt-get install uidmap" in notes[0]
    assert "mapped away: /etc/shadow (0:42), /var/data (33:34), " in notes[1]
    assert "/etc/shadow regular file 640 0:0\n/var/data directory 2750 0:0" in "\n".join(said)
    found = owners(members(build_cache, made))
    assert found["var/data/one"] == found["var/data"] == (33, 34), "what was there keeps its owner"
    assert (found["var"], found["tmp/x"]) == ((0, 0), (0, 0))


def test_a_commit_keeps_owners(base: str, build_cache: Path) -> None:
    """Of what the image has; what is new belongs to the user that made it."""
    with Sandbox(image=base, user="33:34") as sandbox:
        sandbox.run(["sh", "-c", "echo x >> /var/data/one; echo n > /var/data/mine; chmod 640 /var/data/new || true"],
                    check=True)
        sandbox.commit("team/app:1")
    with Sandbox(image="team/app:1", user="33:34") as sandbox:
        sandbox.run(["sh", "-c", "echo y >> /var/data/one; echo y >> /var/data/mine"], check=True)
        sandbox.commit("team/app:2")
    store = planning.store()
    for name in ("team/app:1", "team/app:2"):
        stored = store.image(store.resolve(name).image_id or "")
        assert stored is not None
        found = owners(members(build_cache, stored))
        assert {key: found[key] for key in ("var", "var/data", "var/data/one", "var/data/mine")} == {
            "var": (0, 0), "var/data": (33, 34), "var/data/one": (33, 34), "var/data/mine": (33, 34)}


def test_with_a_single_id_chown_fails_and_says_why(base: str, single: None) -> None:
    with pytest.raises(ImageBuildError, match=r"(?s)chown.*newuidmap is not installed.*install uidmap") as caught:
        built(f"FROM {base}\nRUN chown web /tmp\n")
    assert caught.value.line == 2


def test_with_a_single_id_a_step_of_another_user_is_that_user(base: str, build_cache: Path, single: None) -> None:
    made, _, said = built(f"FROM {base}\nUSER web\nRUN id -u; touch /tmp/f\n")
    assert said[-1] == "33"
    assert owners(members(build_cache, made))["tmp/f"] == (33, 34)


# What goes wrong.

def test_a_range_that_is_too_small(base: str, has_ids: None) -> None:
    if IS_ROOT:
        pytest.skip("root has every id")
    with pytest.raises(ImageBuildError, match=r"cannot run as 200000:0: this user has \d+ subordinate ids"):
        built(f"FROM {base}\nUSER 200000\nRUN true\n")


def test_no_sandbox_is_a_step_but_in_a_build() -> None:
    if IS_ROOT:
        pytest.skip("root has every id")
    with pytest.raises(SandboxClosedError, match="no build in this process"):
        Sandbox(SandboxSpec(owners="")).start()


def test_a_step_that_never_ends_and_one_that_fails_leave_nothing(base: str, has_ids: None) -> None:
    for text in (f"FROM {base}\nRUN chown web /tmp && sleep 1000\n", f"FROM {base}\nRUN chown web /tmp; exit 3\n"):
        with pytest.raises(ImageBuildError, match=r"longer than|status 3"):
            built(text, timeout=1)


# The lists.

def test_owners_are_those_of_what_shows(base: str) -> None:
    if IS_ROOT:
        pytest.skip("root's layers have their owners themselves")
    store = planning.store()
    store.resolve(base)
    stored = store.image(store.resolve(base).image_id or "")
    assert stored is not None
    found = {name: ids for name, *ids in owners_of(store.layout, stored.keys)}
    assert found == {
        "etc/shadow": [0, 42], "var/data": [33, 34], "var/data/link": [33, 34], "var/data/new": [1, 0],
        "var/data/odd\udcff name": [33, 0], "var/data/one": [33, 34], "var/data/pipe": [33, 0],
        "var/data/tool": [33, 0], "var/data/two": [33, 34]}
