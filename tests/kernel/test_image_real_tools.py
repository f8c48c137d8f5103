"""Beside real tools: images pushed by skopeo to Debian's registry, pulled by us, compared file by file with umoci's
unpacking; and what we save, loaded by skopeo and podman."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import realregistry
from imagemaker import Item, directory, file, hardlink, image, layer, stdlib_layer, symlink, write_layout
from treelook import differences, look_at, merge

from pytest_sandbox import ImageNotFound, RegistryAuthError
from pytest_sandbox.image.export import load_images, save_image
from pytest_sandbox.image.store import ImageStore, StoredImage

pytestmark = pytest.mark.skipif(bool(realregistry.missing()), reason=realregistry.missing())

LONG = "/".join(["long" * 12] * 5)
BASE = [
    directory("./", 0o755), directory("etc"), file("etc/passwd", "root:x:0:0\n", mode=0o640, gid=42),
    directory("usr"), directory("usr/bin"), file("usr/bin/su", os.urandom(40_000), mode=0o4755),
    file("usr/bin/ping", "x", mode=0o755, pax={"SCHILY.xattr.user.note": "caf\xe9"}),
    symlink("bin", "usr/bin", mtime=5), hardlink("usr/bin/su2", "usr/bin/su"), directory("tmp", 0o1777),
    directory("srv", 0o2750, uid=33, gid=33), file("srv/old", "old"), directory("var"), directory("var/lib"),
    file("var/lib/a", "a"), file("var/lib/b", "b"), Item("fifo", "6", mode=0o600),
    *(directory("/".join(["long" * 12] * count)) for count in range(1, 6)), file(f"{LONG}/deep", "deep"),
]
NEXT = layer([directory("etc"), file("etc/.wh.passwd"), file("etc/hosts", "127.0.0.1 localhost\n"),
              directory("srv", 0o711), file("srv/.wh..wh..opq"),
              file("srv/new", "new", mtime=1_600_000_000.25), directory("var"),
              directory("var/lib"), file("var/lib/a", "changed", mode=0o600), symlink("var/lib/b", "a"),
              hardlink("usr/bin/su3", "usr/bin/su"), file("bin/tool", "through a link of the layer below")])


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    base = layer(BASE)
    return write_layout(tmp_path / "layout", image([base, NEXT], config={"Env": ["A=1"], "Cmd": ["/x"]}), names=["t"])


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of our own, and credentials in it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    for name in ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "home"


def skopeo(*arguments: object) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as logins:  # not those in /run, which may be root's alone
        logins.write("{}")
        logins.flush()
        done = subprocess.run(["skopeo", "--insecure-policy", *map(str, arguments)], capture_output=True, text=True,
                              check=False, env={**os.environ, "REGISTRY_AUTH_FILE": logins.name})
    assert done.returncode == 0, done.stderr
    return done


def unpacked(layout: Path, tmp_path: Path) -> str:
    subprocess.run(["umoci", "raw", "unpack", "--image", f"{layout}:t", str(tmp_path / "umoci")], check=True,
                   capture_output=True)
    return str(tmp_path / "umoci")


@pytest.mark.parametrize("auth", ["", "basic", "token"])
@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_pulled_is_what_was_pushed(layout: Path, tmp_path: Path, settings: Path, auth: str, form: str) -> None:
    with realregistry.registry(tmp_path / "registry", auth) as host:
        skopeo("copy", "--dest-tls-verify=false", *(["--dest-creds", "user:secret"] if auth else []), "-f", form,
               f"oci:{layout}:t", f"docker://{host}/team/app:1")
        if auth:
            with ImageStore() as store, pytest.raises(RegistryAuthError):
                store.resolve(f"{host}/team/app:1")
            (settings / ".docker").mkdir(parents=True)
            (settings / ".docker/config.json").write_text(json.dumps({"auths": {
                host: {"auth": base64.b64encode(b"user:secret").decode()}}}))
        with ImageStore() as store:
            stack = store.resolve(f"{host}/team/app:1")
            assert stack.config.env == (("A", "1"),)
            with pytest.raises((ImageNotFound, RegistryAuthError)):
                store.resolve(f"{host}/team/app:2")
            owners = os.geteuid() == 0
            ours = merge(stack.layers, owners=owners)
            assert (stack.root.mode, ours.pop(".").kind) == (0o755, "d")  # a root that only a lower layer describes
            assert "usr/bin/tool" in ours, "a name that leads through a lower layer's link"
            if owners:
                theirs = look_at(unpacked(layout, tmp_path))
                del theirs["."]
                assert [line for line in differences(ours, theirs) if not _is_split_link(line)] == []


def _is_split_link(line: str) -> bool:
    """Names of one inode that lie in different layers: overlayfs splits such a file, whoever made the layers."""
    return line.startswith("usr/bin/su")


def test_anonymous_token_pulls(layout: Path, tmp_path: Path) -> None:
    with realregistry.registry(tmp_path / "registry", "token") as host:
        skopeo("copy", "--dest-tls-verify=false", "--dest-creds", "user:secret", f"oci:{layout}:t",
               f"docker://{host}/public/app:1")
        with ImageStore() as store:
            assert store.resolve(f"{host}/public/app:1")


@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_archives_of_skopeos(layout: Path, tmp_path: Path, kind: str) -> None:
    skopeo("copy", f"oci:{layout}:t", f"{kind}:{tmp_path / 'a.tar'}:team/app:1")
    with ImageStore() as store:
        assert store.resolve(f"{kind}:{tmp_path / 'a.tar'}").layers == store.resolve(f"oci:{layout}:t").layers


def test_zstd_layers_of_skopeos(layout: Path, tmp_path: Path) -> None:
    pytest.importorskip("backports.zstd", reason="no zstd: pip install pytest-sandbox[zstd]")
    skopeo("copy", "--dest-compress-format", "zstd", "--dest-compress", f"oci:{layout}:t", f"dir:{tmp_path / 'd'}")
    skopeo("copy", f"dir:{tmp_path / 'd'}", f"oci:{tmp_path / 'z'}:t")
    with ImageStore() as store:
        assert store.resolve(f"oci:{tmp_path / 'z'}:t").layers == store.resolve(f"oci:{layout}:t").layers


def test_what_we_save_skopeo_reads(layout: Path, tmp_path: Path) -> None:
    with ImageStore() as store:
        [stored] = _loaded(store, layout, tmp_path)
        digest = save_image(store, "team/app:1", tmp_path / "saved.tar")
        layers = store.resolve("team/app:1").layers
        for kind in ("oci-archive", "docker-archive"):  # of the latter skopeo writes the configuration anew
            skopeo("copy", f"{kind}:{tmp_path / 'saved.tar'}", f"oci:{tmp_path / kind}:t")
            assert store.resolve(f"oci:{tmp_path / kind}:t").layers == layers
    assert digest == stored.digest
    assert json.loads(skopeo("inspect", f"oci-archive:{tmp_path / 'saved.tar'}").stdout)["Digest"] == digest


def _loaded(store: ImageStore, layout: Path, tmp_path: Path) -> list[StoredImage]:
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        for one in sorted(layout.rglob("*")):
            tar.add(one, arcname=str(one.relative_to(layout)), recursive=False)
    return load_images(store, tmp_path / "l.tar", "team/app:1")


def test_what_we_save_podman_loads(layout: Path, tmp_path: Path) -> None:
    if shutil.which("podman") is None:
        pytest.skip("not installed: apt-get install podman")
    if os.geteuid() != 0:
        pytest.skip("what podman leaves behind as another user, with subordinate ids, this user could not remove")
    with ImageStore() as store:
        [stored] = _loaded(store, layout, tmp_path)
        save_image(store, "team/app:1", tmp_path / "saved.tar")
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as short:  # podman wants a path of 50 characters at most
        options = ["--root", f"{short}/s", "--runroot", f"{short}/r", "--storage-driver", "vfs"]
        done = subprocess.run(["podman", *options, "load", "-i", str(tmp_path / "saved.tar")], capture_output=True,
                              text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "team/app:1" in done.stdout
        found = json.loads(subprocess.run(["podman", *options, "image", "inspect", "team/app:1"], capture_output=True,
                                          text=True, check=True).stdout)
    assert f"sha256:{found[0]['Id']}" == stored.image_id


def test_podman_unpacks_the_same(layout: Path, tmp_path: Path) -> None:
    """Its vfs driver keeps whole trees as directories, with the times of the last change that it made to them."""
    if shutil.which("podman") is None:
        pytest.skip("not installed: apt-get install podman")
    if os.geteuid() != 0:
        pytest.skip("what podman leaves behind as another user, with subordinate ids, this user could not remove")
    with tempfile.TemporaryDirectory(prefix="p", dir="/tmp") as short:  # podman wants a path of 50 characters at most
        options = ["--root", f"{short}/s", "--runroot", f"{short}/r", "--storage-driver", "vfs"]
        done = subprocess.run(["podman", *options, "pull", "-q", f"oci:{layout}:t"], capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads((Path(short) / "s/vfs-images/images.json").read_text())
        theirs = look_at(f"{short}/s/vfs/dir/{found[0]['layer']}", directory_times=False)
        with ImageStore() as store:
            ours = merge(store.resolve(f"oci:{layout}:t").layers, directory_times=False)
        del ours["."], theirs["."]
        assert [line for line in differences(ours, theirs) if not _is_split_link(line)] == []


def test_formats_of_the_standard_librarys(tmp_path: Path) -> None:
    """umoci and we read GNU, pax and ustar archives alike."""
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        items = [one for one in BASE if not one.pax and (form != tarfile.USTAR_FORMAT or "deep" not in str(one.name))]
        scratch = tmp_path / str(form)
        layout = write_layout(scratch / "l", image([stdlib_layer(items, form)]), names=["t"])
        with ImageStore() as store:
            owners = os.geteuid() == 0
            ours = merge(store.resolve(f"oci:{layout}:t").layers, owners=owners)
        if owners:
            assert differences(ours, look_at(unpacked(layout, scratch))) == []
