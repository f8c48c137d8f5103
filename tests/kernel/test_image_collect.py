"""Listing, pruning, verifying, saving, loading, locking; and the same through the command line."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry
from imagemaker import digest, directory, docker_archive, file, image, index, layer, tar_of, write_layout
from treelook import look_at, merge

from pytest_sandbox import ImageError, ImageNotFound
from pytest_sandbox.cli import images as command
from pytest_sandbox.image.collect import list_images, prune, remove, store_size, verify
from pytest_sandbox.image.export import add_member, load_images, save_image
from pytest_sandbox.image.layout import disk_usage
from pytest_sandbox.image.lockfile import Locked, LockFile, look_up, moved
from pytest_sandbox.image.manifest import Platform
from pytest_sandbox.image.reference import parse_registry_reference
from pytest_sandbox.image.store import ImageStore

BASE = layer([directory("d"), file("d/base", os.urandom(50_000))])
ONE = layer([file("one", "1"), file("d/.wh.base")])
TWO = layer([file("two", "2")])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put("app", "one", image([BASE, ONE]))
        registry.put("app", "two", image([BASE, TWO]))
        yield registry


def pull(registry: FakeRegistry, *tags: str) -> None:
    with ImageStore() as store:
        for tag in tags:
            store.resolve(f"{registry.host}/app:{tag}")


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    given = parser.parse_args(arguments)
    status: int = given.run(given)
    return status


def test_listing(registry: FakeRegistry) -> None:
    pull(registry, "one", "two")
    with ImageStore() as store:
        found = {one.names[0]: one for one in list_images(store)}
    assert set(found) == {f"{registry.host}/app:one", f"{registry.host}/app:two"}
    one, two = found.values()
    assert one.complete
    assert one.size > 50_000
    assert set(one.layers) & set(two.layers), "the base is shared"


def test_an_ordinary_prune_takes_only_what_nothing_needs(registry: FakeRegistry) -> None:
    pull(registry, "one")
    with ImageStore() as store:
        os.unlink(store.layout.image(list_images(store)[0].image_id))
    pull(registry, "two")
    with ImageStore() as store:
        planned = prune(store, dry_run=True)
        assert len(store.layout.keys("layers")) == 3
        assert len(planned.layers) == 1
        assert prune(store).layers == planned.layers
        assert len(list_images(store)) == 1
        assert not verify(store)
    pull(registry, "one", "two")


def test_an_ordinary_prune_takes_what_a_moved_tag_has_left(registry: FakeRegistry, tmp_path: Path) -> None:
    reference, layout = f"{registry.host}/app:one", f"oci:{tmp_path / 'layout'}"
    pull(registry, "one", "two")
    with ImageStore() as user, ImageStore() as store:
        write_layout(tmp_path / "layout", image([layer([file("odd")])]))
        old = {user.resolve(one).image_id for one in (reference, layout)}
        registry.put("app", "one", image([BASE, layer([file("new")])]))
        write_layout(tmp_path / "layout", image([TWO]))
        new = {store.resolve(reference, refresh=True).image_id, store.resolve(layout).image_id}
        assert {one.image_id for one in list_images(store) if one.superseded} == old
        assert (one := prune(store)).images == ()
        assert {busy.image_id for busy in one.busy} >= old, "another process uses them still"
        user.close()
        assert {one.image_id for one in prune(store, dry_run=True).images} == old
        assert {one.image_id for one in prune(store).images} == old
        assert {one.image_id for one in list_images(store)} >= new
        assert len(list_images(store)) == 3
        assert verify(store) == []


def test_prune_never_takes_what_is_in_use(registry: FakeRegistry) -> None:
    pull(registry, "two")
    with ImageStore() as user, ImageStore() as store:
        stack = user.resolve(f"{registry.host}/app:one")
        removed = prune(store, everything=True, blobs=True)
        assert [one.names for one in removed.images] == [(f"{registry.host}/app:two",)]
        assert [one.names for one in removed.busy] == [(f"{registry.host}/app:one",)]
        assert set(merge(stack.layers)) == {".", "d", "one"}
        with pytest.raises(ImageError, match="uses it"):
            remove(store, f"{registry.host}/app:one")
        user.close()
        assert prune(store, everything=True).images
        assert store.layout.keys("layers") == store.layout.keys("blobs/sha256") == store.layout.keys("names") == []
        assert store_size(store) == 0


def test_what_is_brought_in_again_is_in_use(registry: FakeRegistry) -> None:
    """One layer was lost, the other was found first, and let go again: it has to be held all the same."""
    pull(registry, "one")
    with ImageStore() as user, ImageStore() as store:
        first, second = list_images(store)[0].layers
        store.layout.discard(store.layout.layer(second))
        stack = user.resolve(f"{registry.host}/app:one")
        assert prune(store, everything=True).busy
        assert sorted(store.layout.keys("layers")) == sorted([first, second])
        assert set(merge(stack.layers)) == {".", "d", "one"}
        user.close()
        assert prune(store, everything=True).images


def test_a_fork_that_lives_on_keeps_its_layers(registry: FakeRegistry) -> None:
    """As a test's process does that was forked from the one that resolved the image."""
    store = ImageStore()
    store.resolve(f"{registry.host}/app:one")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    store.close()
    with ImageStore() as other:
        assert prune(other, everything=True).busy
        os.close(writer)
        os.waitpid(child, 0)
        assert prune(other, everything=True).images
    os.close(reader)


def test_bounds_take_the_least_recently_used(registry: FakeRegistry) -> None:
    pull(registry, "one", "two")
    with ImageStore() as store:
        old = next(one for one in list_images(store) if one.names[0].endswith("one"))
        for key in old.layers:
            os.utime(f"{store.layout.layer(key)}/lock", (1_000_000, 1_000_000))
        assert len(prune(store, unused_for=1e9, dry_run=True).images) == 2, "the shared layer counts for both"
        os.utime(f"{store.layout.layer(old.layers[0])}/lock")
        assert [one.names for one in prune(store, unused_for=1e9).images] == [old.names]
        assert prune(store, most=1).images
        assert not list_images(store)


def test_a_bound_takes_no_more_than_it_has_to(registry: FakeRegistry) -> None:
    """Compressed layers count as what they are: they go with their image, also when they are young."""
    for name in ("three", "four"):
        registry.put("app", name, image([layer([file(name, os.urandom(200_000))])]))
        pull(registry, name)
    with ImageStore() as store:
        new, old = list_images(store)
        for key in old.layers:
            os.utime(f"{store.layout.layer(key)}/lock", (1_000_000, 1_000_000))
        old = list_images(store)[-1]
        # of a pull that is under way, perhaps
        Path(store.layout.blob("sha256:" + "0" * 64)).write_bytes(bytes(300_000))
        whole = sum(disk_usage(store.layout.blob(one.digest)) + 200_000 for kept in (new, old)
                    for one in (store.image(kept.image_id) or pytest.fail("gone")).layers)
        for dry_run in (True, False):
            removed = prune(store, most=whole * 2 // 3, dry_run=dry_run)
            assert [one.names for one in removed.images] == [old.names]
            assert (len(removed.layers), len(removed.blobs)) == (1, 1)
        assert len(list_images(store)) == 1
        assert store_size(store) - 300_000 <= whole * 2 // 3
        assert prune(store, most=whole * 2 // 3).images == ()


def test_removing_names(registry: FakeRegistry) -> None:
    registry.put("app", "alias", image([BASE, ONE]))
    pull(registry, "one", "alias")
    with ImageStore() as store:
        assert remove(store, f"{registry.host}/app:one").images == ()
        assert len(remove(store, f"{registry.host}/app:alias").images) == 1
        assert store.layout.keys("layers") == []
        with pytest.raises(ImageNotFound):
            remove(store, f"{registry.host}/app:one")


@pytest.mark.parametrize(("damage", "path", "kind"), [
    ("content", "./d/base", "changed"), ("missing", "./d/base", "missing"), ("extra", "./d/new", "extra"),
    ("mode", "./d", "changed"), ("time", "./d/base", "changed"), ("attribute", "./d/base", "changed"),
    ("kind", "./d/base", "changed"), ("record", "tree.mtree.gz", "changed")])
def test_verify_names_what_is_not_as_it_was(registry: FakeRegistry, damage: str, path: str, kind: str) -> None:
    pull(registry, "one")
    with ImageStore() as store:
        assert verify(store) == []
        base = store.layout.layer(next(key for key in store.layout.keys("layers")
                                       if os.path.isfile(f"{store.layout.layer(key)}/fs/d/base")))
        target = Path(base, "fs/d/base")
        times = target.stat().st_mtime_ns, target.parent.stat().st_mtime_ns
        if damage == "content":
            target.write_bytes(target.read_bytes()[:-1] + b"?")
        elif damage == "missing":
            target.unlink()
        elif damage == "extra":
            target.with_name("new").touch()
        elif damage == "mode":
            target.parent.chmod(0o711)
        elif damage == "time":
            os.utime(target, (1, 1))
        elif damage == "attribute":
            os.setxattr(target, "user.mine", b"x")
        elif damage == "kind":
            target.unlink()
            target.symlink_to("/etc/passwd")
        else:
            Path(base, "tree.mtree.gz").write_bytes(b"")
        if damage in ("content", "attribute"):
            os.utime(target, ns=(times[0], times[0]))
        os.utime(target.parent, ns=(times[1], times[1]))
        problems = verify(store, discard=True)
        assert [(one.path, one.kind) for one in problems] == [(path, kind)]
    pull(registry, "one")
    with ImageStore() as store:
        assert verify(store) == []


def test_verify_finds_a_changed_blob_and_a_lost_layer(registry: FakeRegistry) -> None:
    pull(registry, "one")
    with ImageStore() as store:
        blob = Path(store.layout.root, "blobs/sha256", store.layout.keys("blobs/sha256")[0])
        blob.chmod(0o600)
        blob.write_bytes(b"x")
        store.layout.discard(store.layout.layer(store.layout.keys("layers")[0]))
        assert {one.kind for one in verify(store, discard=True)} == {"changed", "missing"}
        assert not list_images(store)[0].complete
    pull(registry, "one")
    with ImageStore() as store:
        assert verify(store) == []


def test_saving_and_loading_keeps_the_digests(registry: FakeRegistry, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    with ImageStore() as store:
        before = store.resolve(f"{registry.host}/app:one")
        digest = save_image(store, f"{registry.host}/app:one", tmp_path / "saved.tar")
        looks = merge(before.layers)
    assert digest == before.digest
    with tarfile.open(tmp_path / "saved.tar") as tar:
        assert {"oci-layout", "index.json", "manifest.json"} <= set(tar.getnames())
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "other"))
    with ImageStore(offline=True) as store:
        load_images(store, tmp_path / "saved.tar")
        after = store.resolve(f"{registry.host}/app:one")
        assert (after.digest, after.image_id) == (before.digest, before.image_id)
        assert merge(after.layers) == looks
        save_image(store, f"{registry.host}/app:one", tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "saved.tar").read_bytes()


@pytest.mark.parametrize("kind", ["docker-archive", "rootfs", "oci"])
def test_images_from_files_can_be_saved_while_the_file_is_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "source"
    if kind == "docker-archive":
        docker_archive(path, [BASE, ONE])
    elif kind == "rootfs":
        path.write_bytes(BASE)
    else:
        write_layout(path, image([BASE, ONE]))
    with ImageStore() as store:
        stack = store.resolve(f"{kind}:{path}")
        save_image(store, f"{kind}:{path}", tmp_path / "saved.tar")
        looks = merge(stack.layers)
        prune(store, everything=True)
    with ImageStore() as store:
        [stored] = load_images(store, tmp_path / "saved.tar", "loaded:1")
        assert stored.image_id == stack.image_id
        assert merge(store.resolve("loaded:1").layers) == looks
    (path / "index.json" if kind == "oci" else path).unlink()
    with ImageStore() as store:
        assert merge(store.resolve(f"image:{stack.image_id}").layers) == looks


def test_loading_what_docker_saved(tmp_path: Path) -> None:
    docker_archive(tmp_path / "d.tar", [BASE, ONE], tags=["example/app:1", "app:2"])
    with ImageStore(offline=True) as store:
        load_images(store, tmp_path / "d.tar")
        one, two = store.resolve("example/app:1"), store.resolve("app:2")
        assert one.image_id == two.image_id
        (tmp_path / "d.tar").unlink()
        save_image(store, "app:2", tmp_path / "saved.tar")


def test_loading_an_archive_of_several_images(tmp_path: Path) -> None:
    """By their places: names may be missing, and one image may have two."""
    made = [image([BASE, ONE], how="plain"), image([TWO], how="plain"), image([BASE], how="plain")]
    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        listed = []
        for at, (one, tags) in enumerate(zip(made, (["a:1", "a:2"], None, ["b:1"]), strict=True)):
            add_member(tar, f"{at}.json", one.config)
            for number, data in enumerate(one.layers):
                add_member(tar, f"{at}/{number}.tar", data)
            listed.append({"Config": f"{at}.json", "RepoTags": tags,
                           "Layers": [f"{at}/{number}.tar" for number in range(len(one.layers))]})
        add_member(tar, "manifest.json", json.dumps(listed).encode())
    with ImageStore(offline=True) as store:
        with pytest.raises(ImageError, match="it has 3 images"):
            load_images(store, tmp_path / "d.tar", "x")
        ids = [digest(one.config) for one in made]
        assert [one.image_id for one in load_images(store, tmp_path / "d.tar")] == ids
        assert [store.resolve(name).image_id for name in ("a:1", "a:2", f"image:{ids[1]}", "b:1")] == [
            ids[0], ids[0], ids[1], ids[2]]
    docker_archive(tmp_path / "two-names.tar", [BASE, ONE], tags=["c:1", "c:2"])
    with ImageStore(offline=True) as store:
        assert len(load_images(store, tmp_path / "two-names.tar", "mine:1")) == 1
        assert store.resolve("mine:1")
        assert not store.has("c:1")


def test_loading_several_images_that_name_their_platform(tmp_path: Path) -> None:
    one, two = image([BASE]), image([TWO])
    listing = index([(made, {"platform": {"os": "linux", "architecture": "amd64"},
                             "annotations": {"io.containerd.image.name": f"docker.io/library/{name}:1"}})
                     for made, name in ((one, "first"), (two, "second"))])
    tar_of(write_layout(tmp_path / "l", one, two, index_bytes=listing), tmp_path / "l.tar")
    with ImageStore(offline=True) as store:
        load_images(store, tmp_path / "l.tar")
        assert [store.resolve(name).digest for name in ("first:1", "second:1")] == [one.digest, two.digest]


@pytest.mark.parametrize("damage", ["changed", "cut off", "longer"])
def test_what_is_saved_is_what_was_promised(registry: FakeRegistry, tmp_path: Path, damage: str) -> None:
    """A disk may have lost bits of a compressed layer since it came."""
    pull(registry, "one")
    with ImageStore() as store:
        path = Path(store.layout.blob(json.loads(image([BASE, ONE]).manifest)["layers"][0]["digest"]))
        data = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes({"changed": data[:-9] + b"x" + data[-8:], "cut off": data[:-9], "longer": data + b"x"}[damage])
        with pytest.raises(ImageError, match=r"layer sha256:.*(digest is|bytes)"):
            save_image(store, f"{registry.host}/app:one", tmp_path / "saved.tar")
        assert [one.name for one in tmp_path.iterdir() if "saved" in one.name] == []
        assert verify(store, discard=True)
        save_image(store, f"{registry.host}/app:one", tmp_path / "saved.tar")


@pytest.mark.parametrize("content", [b"", b"nothing", BASE])
def test_loading_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with ImageStore() as store, pytest.raises(ImageError):
        load_images(store, tmp_path / "x")
    with ImageStore() as store, pytest.raises(ImageNotFound):
        load_images(store, tmp_path / "absent")


# The lock file.

def test_a_locked_tag_is_not_followed_and_not_asked_for(registry: FakeRegistry, tmp_path: Path) -> None:
    reference = f"{registry.host}/app:one"
    lock = LockFile(dict([look_up(reference)]))
    lock.write(tmp_path / "sandbox.lock")
    lock = LockFile.read(tmp_path / "sandbox.lock")
    locked = image([BASE, ONE]).digest
    registry.put("app", "one", image([BASE, TWO]))
    assert [(one.locked, one.now) for one in moved(lock)] == [(locked, image([BASE, TWO]).digest)]
    registry.seen.clear()
    with ImageStore(pins=lock.pin) as store:
        assert store.resolve(reference).digest == locked
        assert registry.paths("manifests") == [f"/v2/app/manifests/{locked}"]
    with ImageStore(pins=lock.pin, offline=True) as store:
        assert store.resolve(reference).digest == locked
        with pytest.raises(ImageNotFound, match="offline"):
            store.resolve(f"{registry.host}/app:two")


def test_an_index_is_locked_for_each_platform(registry: FakeRegistry, tmp_path: Path) -> None:
    one, two = image([ONE]), image([TWO], architecture="arm64")
    for each in (one, two):
        registry.put("multi", "x", each)
    registry.put_manifest("multi", "1", index([(one, {"platform": {"os": "linux", "architecture": "amd64"}}), (
        two, {"platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}})]))
    name, locked = look_up(f"{registry.host}/multi:1")
    assert dict(locked.platforms) == {"linux/amd64": one.digest, "linux/arm64/v8": two.digest}
    lock = LockFile({name: locked})
    parsed = parse_registry_reference(name)
    assert lock.pin(parsed, Platform("linux", "arm64", "v8")) == two.digest
    assert lock.pin(parsed, Platform("linux", "riscv64")) == locked.digest
    lock.write(tmp_path / "l")
    again = LockFile.read(tmp_path / "l")
    assert again.images == lock.images
    again.write(tmp_path / "m")
    assert (tmp_path / "m").read_text() == (tmp_path / "l").read_text()


def test_many_lock_at_the_same_time(tmp_path: Path) -> None:
    digest = "sha256:" + "0" * 64
    path = tmp_path / "sandbox.lock"

    def lock_some(worker: int) -> None:
        for number in range(10):
            LockFile.update(path, {f"docker.io/library/app{worker}:{number}": Locked(digest)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lock_some, range(8)))
    assert len(LockFile.read(path).images) == 80
    assert [one.name for one in tmp_path.iterdir() if "sandbox.lock" in one.name] == ["sandbox.lock"]
    assert LockFile.update(path, {}) == LockFile.read(path).images


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 2}', '{"version": 1}',
                                  '{"version": 1, "images": {"a": {"digest": "x"}}}',
                                  '{"version": 1, "images": {"A//": {"digest": "sha256:' + "0" * 64 + '"}}}'])
def test_broken_lock_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "sandbox.lock").write_text(text)
    with pytest.raises(ImageError, match="lock file"):
        LockFile.read(tmp_path / "sandbox.lock")


# The command line.

def test_pull_reports_a_locked_tag_that_moved_and_keeps_to_it(
        registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    reference = f"{registry.host}/app:one"
    assert run("lock", reference) == 0
    registry.put("app", "one", image([BASE, TWO]))
    capsys.readouterr()
    assert run("pull", "--quiet", "--refresh", reference) == 0
    said = capsys.readouterr()
    assert said.out.strip() == image([BASE, ONE]).digest
    assert f"{reference} has moved" in said.err
    assert image([BASE, TWO]).digest in said.err
    registry.seen.clear()
    assert run("pull", "--quiet", "--offline", reference) == 0
    assert registry.seen == []


def test_commands(registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    reference = f"{registry.host}/app:one"
    assert run("lock", reference) == 0
    assert run("pull", reference) == 0
    assert "2 layers" in capsys.readouterr().out
    assert run("pull", "--quiet", reference) == 0
    assert capsys.readouterr().out.strip() == image([BASE, ONE]).digest
    assert run("images") == 0
    assert "1 images" in capsys.readouterr().out
    assert run("images", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["complete"] is True
    assert run("verify") == 0
    assert run("save", reference, "-o", "saved.tar") == 0
    assert run("prune", "--all", "--dry-run") == 0
    assert "would be removed" in capsys.readouterr().out
    assert run("prune", "--all") == 0
    assert run("load", "saved.tar", "--name", "loaded:1") == 0
    assert run("rm", "loaded:1") == 0
    assert run("prune", "--unused-for", "30d", "--max-size", "1.5G", "--blobs") == 0
    assert run("lock", "--check") == 0
    registry.put("app", "one", image([TWO]))
    assert run("lock", "--check") == 1
    assert "has moved" in capsys.readouterr().out
    assert run("pull", reference) == 0, "the lock file decides"
    assert LockFile.read("sandbox.lock").images[str(parse_registry_reference(reference))] == Locked(
        image([BASE, ONE]).digest)


@pytest.mark.parametrize("arguments", [["prune", "--max-size", "much"], ["prune", "--unused-for", "1y"]])
def test_bounds_that_are_none(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(*arguments)
    assert "such as" in capsys.readouterr().err


def test_progress_is_lines_in_a_log(registry: FakeRegistry) -> None:
    script = ("import sys; from pytest_sandbox.image.store import ImageStore\n"
              "from pytest_sandbox.image.progress import progress_for\n"
              "with ImageStore(progress=progress_for(sys.stderr)) as store: store.resolve(sys.argv[1])")
    done = subprocess.run([sys.executable, "-c", script, f"{registry.host}/app:one"], capture_output=True, text=True,
                          check=True)
    assert "\r" not in done.stderr
    assert "\x1b" not in done.stderr
    assert 2 <= len(done.stderr.splitlines()) <= 6
    assert look_at(os.environ["PYTEST_SANDBOX_CACHE"])
