"""``commit``: what was written becomes an image, at once and for later; what runs inside and what lies below stay."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from imagemaker import directory, file, image, layer, symlink, write_layout
from support import IS_ROOT, prints

from pytest_sandbox import Image, ImageError, Sandbox, SandboxClosedError, SandboxUsageError, planning
from pytest_sandbox.runtime import frozen

BUSYBOX = shutil.which("busybox")
Maker = Callable[..., Sandbox]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_left_behind: None) -> Iterator[None]:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    before = dict(frozen._held)
    yield
    planning.release_images()
    gc.collect()
    assert frozen._held == before


def busybox(path: Path, *more: Any) -> str:
    if BUSYBOX is None:
        pytest.skip("no static program at hand: apt-get install busybox-static")
    names = ["sh", "cat", "ls", "id", "echo", "touch", "rm", "rmdir", "mkdir", "mv", "ln", "chmod", "sleep", "mkfifo",
             "stat", "env"]
    base = layer([directory("bin"), file("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755),
                  *(symlink(f"bin/{name}", "busybox") for name in names), directory("etc"),
                  file("etc/passwd", "root:x:0:0::/:/bin/sh\n"), directory("data"), file("data/a", "a"),
                  file("data/b", "b"), directory("data/deep"), file("data/deep/c", "c"), *more])
    return f"oci:{write_layout(path / 'layout', image([base], config={'Env': ['PATH=/bin', 'A=1'], 'Cmd': ['env']}))}"


@pytest.fixture(params=["host", "image"])
def maker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Maker]:
    """Makes sandboxes, on both kinds of roots, with a directory /data in them."""
    made = []
    if request.param == "image":
        base: Any = busybox(tmp_path)
    else:
        with Sandbox(user="root") as first:
            first.path("/data/deep").mkdir(parents=True)
            for name in ("a", "b", "deep/c"):
                first.path(f"/data/{name}").write_text(name[-1])
            base = first.commit()

    def make(image: Any = None, **options: Any) -> Sandbox:
        sandbox = Sandbox(image=image or base, user="root", **options).start()
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        sandbox.close()
    made.clear()
    base = None  # which the function that we gave away would keep


def sh(sandbox: Sandbox, text: str) -> str:
    return str(sandbox.run(["sh", "-c", text], check=True).stdout)


EVERYTHING = """
cd /data
echo new > added; mkdir made; echo in > made/in; rm b; echo more >> a; rm -r deep; mkdir deep; echo d > deep/d
ln added linked; ln -s added soft; mkfifo pipe; chmod 4711 added
chmod 0 made; mkdir secret; echo s > secret/s; chmod 0 secret/s
"""
LOOK = """
cd /data; ls -AR; stat -c '%a %F %u:%g %Y %n' a added linked soft pipe made secret deep/d
cat a added soft deep/d; chmod 700 made; cat made/in secret/s 2>/dev/null
"""


def test_a_commit_is_what_the_sandbox_was(maker: Maker) -> None:
    one = maker()
    sh(one, EVERYTHING)
    changes = one.changes()
    committed = one.commit()
    two = maker(committed)
    assert two.changes() == []
    assert sh(two, LOOK) == sh(one, LOOK)
    assert "d\n" in sh(two, LOOK)
    names = {change.path for change in changes}
    assert {"/data/added", "/data/b", "/data/deep/c", "/data/deep/d"} <= names


def test_the_sandbox_goes_on_above_its_commit(maker: Maker) -> None:
    one = maker()
    one.path("/data/one").write_text("1")
    first = one.commit()
    assert one.changes() == []
    one.path("/data/two").write_text("2")
    assert [change.path for change in one.changes()] == ["/data/two"]
    assert sh(one, "cat /data/one /data/two") == "12"
    second = one.commit()
    assert not maker(first).path("/data/two").exists()
    assert sh(maker(second), "cat /data/one /data/two") == "12"
    one.reset()
    assert not one.path("/data/one").exists()


def test_what_is_changed_above_a_commit_stays_out_of_it(maker: Maker) -> None:
    one = maker()
    sh(one, "echo 1 > /data/x")
    committed = one.commit()
    two, three = maker(committed), maker(committed)
    sh(two, "echo 2 >> /data/x; rm -r /data/deep")
    assert [(change.kind, change.path) for change in two.changes()] == [("deleted", "/data/deep"),
                                                                       ("modified", "/data/x")]
    assert sh(three, "cat /data/x /data/deep/c") == "1\nc"
    assert sh(one, "cat /data/x") == "1\n"
    two.reset()
    assert sh(two, "cat /data/x /data/deep/c") == "1\nc"


def test_deletions_and_renames_through_several_commits(maker: Maker) -> None:
    sandbox = maker()
    sh(sandbox, "mv /data/deep /data/moved; echo e > /data/moved/e")
    sandbox = maker(sandbox.commit())
    assert sh(sandbox, "cat /data/moved/c /data/moved/e; ls /data") == "ce\na\nb\nmoved\n"
    sh(sandbox, "mv /data/moved /data/again; rm /data/again/c")
    assert ("deleted", "/data/moved") in {(one.kind, one.path) for one in sandbox.changes()}
    sandbox = maker(sandbox.commit())
    sh(sandbox, "mkdir /data/deep; echo x > /data/deep/x; rm -r /data/again")
    assert {(one.kind, one.path) for one in sandbox.changes()} == {
        ("added", "/data/deep"), ("added", "/data/deep/x"), ("deleted", "/data/again")}
    sandbox = maker(sandbox.commit())
    assert sh(sandbox, "ls /data /data/deep") == "/data:\na\nb\ndeep\n\n/data/deep:\nx\n"


def test_a_named_commit_is_there_in_later_runs(maker: Maker) -> None:
    one = maker()
    sh(one, EVERYTHING)
    if IS_ROOT:
        sh(one, "mv /data/secret /data/renamed; mv /data/renamed /data/secret")
    on_host = planning.is_host(one.spec.image)
    name = "host:prepared" if on_host else "team/app:1"
    committed = one.commit(name)
    assert committed.base == name
    assert not committed.in_memory
    planning.release_images()  # as a later run
    two = maker(name)
    assert two.changes() == []
    assert sh(two, LOOK) == sh(one, LOOK)
    three = maker(pickle.loads(pickle.dumps(committed)))
    sh(three, "echo 3 > /data/three; rm /data/a")
    three.commit(name)
    four = maker(name)
    assert sh(four, "cat /data/three; ls /data/a || echo gone") == "3\ngone\n"


def test_the_same_change_twice_is_one_layer(maker: Maker) -> None:
    names = ["host:one", "host:two"] if planning.is_host(maker().spec.image) else ["one", "two"]
    for name in names:
        sandbox = maker()
        sh(sandbox, "echo x > /data/x; rm /data/b")
        sandbox.run(["touch", "-d", "@1000000000", "/data/x", "/data"])
        sandbox.commit(name)
    assert sh(maker(names[1]), "cat /data/x; ls /data/b || echo gone") == "x\ngone\n"


def test_what_runs_inside_goes_on(maker: Maker) -> None:
    one = maker()
    with one.popen(["sh", "-c", "echo up; read line; echo $line"], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        one.path("/data/live").write_text("live")
        committed = one.commit()
        assert process.poll() is None
        process.stdin.write("still here\n")
        process.stdin.close()
        assert process.stdout.readline() == "still here\n"
    assert "/data/live" in {change.path for change in one.changes()}
    assert sh(maker(committed), "cat /data/live /data/a") == "livea"


def test_configuration_can_be_changed_along(tmp_path: Path) -> None:
    with Sandbox(image=busybox(tmp_path)) as one:
        one.path("/etc/passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:50:60::/srv:/bin/sh\n")
        committed = one.commit(user="app", env={"B": "2", "A": None}, workdir="/srv", cmd=["sh", "-c", "id -u; env"])
        assert one.run(["id", "-u"]).stdout == "0\n"
        assert "A=1" in one.run(["env"]).stdout
    with Sandbox(image=committed) as two:
        said = two.run([]).stdout.splitlines()
        assert said[0] == "50"
        assert {"B=2", "HOME=/srv", "PWD=/srv"} <= set(said)
        assert "A=1" not in said
    with Sandbox(image=Image(committed, cmd=["id", "-g"], user="7:8")) as three:
        assert three.run([]).stdout == "8\n"
    with Sandbox(image=committed) as four:
        named = four.commit("team/app", user="root")
    with Sandbox(image="team/app:latest") as five:
        assert five.run([]).stdout.splitlines()[0] == "0"
        assert named.base == "team/app"


@pytest.mark.parametrize(("name", "says"), [("app", "Call it \"host:app\""), ("host:A B", "is not a tag"),
                                            ("docker.io/x:y", "Call it \"host:y\""), (3, "Allowed: text, or None")])
def test_names_for_states_of_the_host(name: Any, says: str) -> None:
    with Sandbox() as sandbox, pytest.raises((SandboxUsageError, ImageError), match=says):
        sandbox.commit(name)


def test_what_cannot_be_committed_says_why(tmp_path: Path) -> None:
    with Sandbox() as sandbox:
        with pytest.raises(SandboxUsageError, match="a state of the host has no configuration"):
            sandbox.commit(user="x")
        with pytest.raises(SandboxUsageError, match="unknown image option 'usr'"):
            sandbox.commit(usr="x")
    with Sandbox(image=busybox(tmp_path)) as sandbox:
        with pytest.raises(SandboxUsageError, match="Call it"):
            sandbox.commit("host:x")
        with pytest.raises(SandboxUsageError, match="cmd='ls' cannot be used"):
            sandbox.commit(cmd="ls")
    (tmp_path / "root").mkdir()
    with Sandbox(image=f"rootfs:{tmp_path / 'root'}") as sandbox:
        sandbox.path("/x").write_text("x")
        with Sandbox(image=sandbox.commit()) as other:
            assert other.path("/x").read_text() == "x"
        with pytest.raises(ImageError, match="is a plain directory"):
            sandbox.commit("team/root")
    with pytest.raises(ImageError, match="no state of this host was committed under that name"):
        Sandbox(image="host:never").start()


def test_an_image_in_memory_ends_when_nobody_has_it(maker: Maker) -> None:
    one = maker()
    held = set(frozen._held)
    one.path("/data/x").write_text("x")
    committed = one.commit()
    one.close()
    two = maker(committed)
    committed.close()
    committed.close()
    assert two.path("/data/x").read_text() == "x"
    with pytest.raises(SandboxClosedError, match="a committed image is closed"):
        maker(committed)
    assert set(frozen._held) == held


def test_an_image_in_memory_outlives_the_helper_that_it_came_from(tmp_path: Path) -> None:
    """A helper is renewed when the machine's mounts change."""
    assert prints("""
        import sys
        from pytest_sandbox import Sandbox
        from pytest_sandbox.runtime import launch
        for image in ("host", sys.argv[1]):
            with Sandbox(image=image, user="root") as one:
                one.path("/etc/x").write_text("x")
                committed = one.commit()
                launch.renew()
                launch.renew()
                with Sandbox(image=committed, user="root") as two:
                    two.path("/etc/y").write_text("y")
                    print(two.path("/etc/x").read_text(), one.path("/etc/y").exists())
                    again = two.commit()
            launch.renew()
            with Sandbox(image=again, user="root") as three:
                print(three.path("/etc/x").read_text(), three.path("/etc/y").read_text())
    """, busybox(tmp_path)) == ["x False", "x y"] * 2


def test_an_image_in_memory_stays_in_its_process(maker: Maker) -> None:
    committed = maker().commit()
    with pytest.raises(TypeError, match="are in the memory of the process"):
        pickle.dumps(committed)


def test_several_threads_use_one_commit(maker: Maker) -> None:
    one = maker()
    one.path("/data/x").write_text("x")
    committed, seen = one.commit(), []

    def use() -> None:
        with Sandbox(image=committed, user="root") as sandbox:
            sh(sandbox, "echo more >> /data/x")
            seen.append(sandbox.path("/data/x").read_text())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["xmore\n"] * 4


def test_sandboxes_on_a_state_of_the_host_run_forks_of_this_process() -> None:
    with Sandbox(user="root") as one:
        one.path("/etc/prepared").write_text("yes")
        committed = one.commit()
    with Sandbox(image=committed, user="root") as two:
        assert two.call(os.path.exists, "/etc/prepared") is True
    assert not Path("/etc/prepared").exists()


def test_the_memory_goes_with_the_process(tmp_path: Path) -> None:
    """A process that ends, in whatever way, takes its frozen layers along: nothing on the host holds them."""
    lines = prints("""
        import os, signal
        from pytest_sandbox import Sandbox
        with Sandbox(user="root") as one:
            one.path("/opt/x").write_bytes(bytes(1 << 20))
            committed = one.commit()
            print(len(committed.layers), flush=True)
            os.kill(os.getpid(), signal.SIGKILL) if os.fork() == 0 else os.wait()
    """)
    assert int(lines[0]) >= 1


@pytest.mark.skipif(shutil.which("umoci") is None or shutil.which("skopeo") is None,
                    reason="not installed: apt-get install umoci skopeo")
def test_other_tools_see_the_same(tmp_path: Path) -> None:
    """A committed image, saved, read by skopeo and unpacked by umoci, has the tree that the sandbox had."""
    from treelook import differences, look_at, merge

    from pytest_sandbox.image.export import save_image
    with Sandbox(image=busybox(tmp_path)) as one:
        sh(one, EVERYTHING)
        sh(one, "mkdir -p /data/old/er; echo y > /data/old/er/y")
        one.commit("team/app:1")
    with Sandbox(image="team/app:1") as two:
        sh(two, "mv /data/old /data/new; rm /data/new/er/y; echo z > /data/new/z")
        two.commit("team/app:1")
    save_image(planning.store(), "team/app:1", tmp_path / "saved.tar")
    subprocess.run(["skopeo", "--insecure-policy", "copy", "-q", f"oci-archive:{tmp_path / 'saved.tar'}",
                    f"oci:{tmp_path / 'there'}:t"], check=True, capture_output=True)
    rootless = [] if IS_ROOT else ["--rootless"]
    subprocess.run(["umoci", "raw", "unpack", *rootless, "--image", f"{tmp_path / 'there'}:t", str(tmp_path / "tree")],
                   check=True, capture_output=True)
    stack = planning.resolve("team/app:1")
    how = {"owners": IS_ROOT, "directory_times": False}
    if IS_ROOT:  # files that their owner may not read cannot be compared otherwise
        ours, theirs = merge(stack.layers, **how), look_at(tmp_path / "tree", **how)
        ours.pop("."), theirs.pop(".")
        split = {"data/added", "data/linked"}
        assert [line for line in differences(ours, theirs) if line.split(":")[0] not in split] == []
    assert sorted(os.listdir(tmp_path / "tree/data/new")) == ["er", "z"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_sandbox import StoreError
    from pytest_sandbox.image import commit

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with Sandbox(image=busybox(tmp_path)) as one:
        one.path("/data/x").write_text("x")
        with monkeypatch.context() as patch:
            patch.setattr(commit.DiffWriter, "write", full)
            with pytest.raises(StoreError, match="No space"):
                one.commit("team/app")
        assert one.path("/data/x").read_text() == "x"
        assert os.listdir(tmp_path / "cache/v1/staging") == []


def test_sandboxes_wait_for_nothing_of_a_commit() -> None:
    """The reference of an image in memory is an object: a later one is never taken for an earlier one."""
    with Sandbox(user="root") as one:
        one.path("/opt/n").write_text("1")
        first = one.commit()
        one.path("/opt/n").write_text("2")
        second = one.commit()
    seen = []
    for committed in (first, second, first):
        with Sandbox(image=committed, user="root") as two:
            seen.append(two.path("/opt/n").read_text())
    assert seen == ["1", "2", "1"]


