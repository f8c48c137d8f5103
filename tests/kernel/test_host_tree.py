"""The host image: the host's own tree, copy-on-write everywhere, without its credentials."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from support import IS_ROOT, abort_unless_apart, prints

from pytest_sandbox import Sandbox


def test_the_host_s_tree_is_there() -> None:
    with Sandbox() as sandbox:
        for folder in ("/", "/etc", "/usr", "/usr/bin", "/var", "/var/lib", "/opt"):
            assert set(sandbox.call(os.listdir, folder)) == set(os.listdir(folder)), folder
        for file in ("/etc/passwd", "/usr/bin/env"):
            assert sandbox.path(file).read_bytes() == Path(file).read_bytes()
            assert sandbox.run(["cat", file], text=False).stdout == Path(file).read_bytes()
        # For others than root, an overlay's own root directory, /etc say, is the caller's.
        deep, top = ("/usr/bin", "/var/lib", "/usr/bin/env"), ("/", "/etc", "/usr", "/tmp", "/var")
        for path in (*deep, *top) if IS_ROOT else deep:
            theirs, own = sandbox.path(path).stat(), os.stat(path)
            assert (theirs.st_mode, theirs.st_uid, theirs.st_gid) == (own.st_mode, own.st_uid, own.st_gid), path
        assert sandbox.path("/tmp").stat().st_mode == os.stat("/tmp").st_mode


WRITES = {
    "create": "echo new >new && mkdir -p a/b && test -f new",
    "replace": "echo new >n && mv n file && test \"$(cat file)\" = new",
    "edit": "echo more >>file && test \"$(tr '\\n' + <file)\" = hosts+more+",
    "truncate": ": >file && test ! -s file",
    "unlink": "rm file && test ! -e file && test ! -e dir/../file",
    "rmdir and mkdir again": "rm -r dir && mkdir dir && test -z \"$(ls -A dir)\" && echo x >dir/inner && rm -r dir",
    "rename a file": "mv file moved && test ! -e file && test -f moved",
    "rename a directory": "mv dir moved && test -f moved/inner && test ! -e dir",
    "rename over": "mv dir/inner file && test \"$(cat file)\" = inner",
    "link": "ln file hard && ln -s file soft && test \"$(cat soft hard | tr '\\n' +)\" = hosts+hosts+",
    "mode and time": "chmod 400 file && touch -d @1000 file && test \"$(stat -c %a%Y file)\" = 4001000",
    "attributes": "chmod 700 dir && test \"$(stat -c %a dir)\" = 700",
}


@pytest.mark.parametrize("user", ["me", "root"])
@pytest.mark.parametrize("what", WRITES)
def test_nothing_that_is_written_reaches_the_host(what: str, user: str, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "file").write_text("hosts\n")
    (tmp_path / "dir" / "inner").write_text("inner\n")

    def look() -> list[object]:
        return [(str(one), one.lstat().st_mode, one.lstat().st_mtime_ns, one.lstat().st_nlink, one.is_file() and
                 one.read_bytes()) for one in sorted(tmp_path.rglob("*"))]

    before = look()
    with Sandbox(user=user) as sandbox:
        abort_unless_apart(sandbox)
        done = sandbox.run(["sh", "-euc", WRITES[what]], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert look() == before


@pytest.mark.parametrize("folder", ["/etc", "/usr/local", "/opt", "/var", "/etc/default", "/usr/local/bin", "/var/lib"])
def test_root_inside_edits_the_host_s_directories(folder: str) -> None:
    """For whom the host's root is not mapped too."""
    before = {one: os.lstat(f"{folder}/{one}").st_mtime_ns for one in os.listdir(folder)}
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    # No mount point can be removed, inside as outside: a container's /etc/hosts, a container engine's store.
    existing = [one for one in sorted(before) if not os.path.islink(f"{folder}/{one}") and one not in ("tmp", "lib")
                and not any(f"{mount}/".startswith(f"{folder}/{one}/") for mount in mounts)]
    with Sandbox(user="root") as sandbox:
        abort_unless_apart(sandbox)
        program = f"""
            cd {folder}; echo text >sandbox-new; mkdir sandbox-dir; echo x >sandbox-dir/f; mv sandbox-dir/f sandbox-f
            echo more >>sandbox-new; chmod 600 sandbox-new; rm -r sandbox-dir; cat sandbox-new"""
        assert sandbox.run(["sh", "-euc", program], check=True).stdout == "text\nmore\n"
        for one in existing:
            sandbox.run(["rm", "-rf", f"{folder}/{one}"], check=True)
            assert not sandbox.path(f"{folder}/{one}").exists()
        left = set(sandbox.call(os.listdir, folder))
        assert left == {"sandbox-new", "sandbox-f"} | {one for one in before if one not in existing}
    assert {one: os.lstat(f"{folder}/{one}").st_mtime_ns for one in os.listdir(folder)} == before


def test_root_inside_edits_and_replaces_the_host_s_files() -> None:
    passwd = Path("/etc/passwd").read_text()
    with Sandbox(user="root") as sandbox:
        program = "echo 'new:x:4242:4242::/:/bin/sh' >>/etc/passwd; sed -i s/^new:/newer:/ /etc/passwd"
        sandbox.run(["sh", "-euc", program], check=True)
        assert sandbox.run(["id", "-u", "newer"]).stdout == "4242\n"
        assert sandbox.path("/etc/passwd").read_text().startswith(passwd)
        sandbox.path("/etc/hostname").write_text("changed\n")
        assert sandbox.run(["cat", "/etc/hostname"]).stdout == "changed\n"
        program = "rm -rf /etc && mkdir /etc 2>/dev/null || test -z \"$(ls -A /etc)\"; echo >/etc/one"
        sandbox.run(["sh", "-euc", program], check=True)
        assert sandbox.run(["ls", "/etc"]).stdout == "one\n"
    assert Path("/etc/passwd").read_text() == passwd


@pytest.mark.skipif(IS_ROOT, reason="root may write everywhere")
def test_an_ordinary_user_inside_may_no_more_than_outside() -> None:
    with Sandbox(user="me") as sandbox:
        for command in ("echo >/etc/x", "rm /etc/passwd", "mkdir /usr/x", "touch /var/x", "chmod 777 /etc/passwd"):
            assert sandbox.run(["sh", "-c", command]).returncode != 0, command


# Credentials.

@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


STORES = (".ssh/id_ed25519", ".aws/credentials", ".gnupg/private-keys-v1.d/key", ".netrc", ".docker/config.json",
          ".config/gcloud/token", ".config/gh/hosts.yml", ".kube/config", ".pypirc", ".git-credentials")


@pytest.mark.parametrize("user", ["me", "root"])
def test_credentials_are_hidden(home: Path, user: str) -> None:
    for one in STORES:
        (home / one).parent.mkdir(parents=True, exist_ok=True)
        (home / one).write_text("secret")
    (home / ".config" / "app.toml").write_text("shown")
    (home / ".docker" / "daemon.json").write_text("shown")
    with Sandbox(user=user) as sandbox:
        found = sandbox.run(["grep", "-rl", "secret", str(home)])
        assert found.stdout == ""
        for one in STORES:
            assert not sandbox.path(home / one).exists()
        assert sandbox.run(["cat", f"{home}/.config/app.toml", f"{home}/.docker/daemon.json"]).stdout == "shownshown"
        assert sandbox.run(["sh", "-euc", "mkdir .ssh; echo own >.ssh/id; cat .ssh/id"], cwd=home).stdout == "own\n"
    assert (home / ".ssh" / "id_ed25519").read_text() == "secret"
    assert not (home / ".ssh" / "id").exists()


def test_what_a_hidden_link_leads_to_is_hidden_too(home: Path, tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    (vault / "ssh").mkdir(parents=True)
    (vault / "ssh" / "id").write_text("secret")
    (vault / "netrc").write_text("secret")
    (vault / "other").write_text("shown")
    (home / ".ssh").symlink_to(vault / "ssh")
    (home / ".netrc").symlink_to("../vault/netrc")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "gh").mkdir()
    (tmp_path / "config" / "gh" / "hosts.yml").write_text("secret")
    (home / ".config").symlink_to(tmp_path / "config")
    with Sandbox() as sandbox:
        assert sandbox.run(["grep", "-rl", "secret", str(tmp_path)]).stdout == ""
        assert sandbox.call(os.listdir, str(vault)) == ["other"]
        assert not sandbox.path(home / ".ssh").is_symlink()


def test_credentials_that_appear_later_are_hidden_from_then_on(home: Path) -> None:
    with Sandbox() as sandbox:
        assert not sandbox.path(home / ".netrc").exists()
    (home / ".netrc").write_text("secret")
    (home / ".config" / "gh").mkdir(parents=True)
    (home / ".config" / "gh" / "hosts.yml").write_text("secret")
    with Sandbox() as sandbox:
        assert sandbox.run(["grep", "-rl", "secret", str(home)]).stdout == ""
    (home / ".config" / "op").mkdir()
    (home / ".config" / "op" / "session").write_text("secret")
    with Sandbox() as sandbox:
        assert sandbox.run(["grep", "-rl", "secret", str(home)]).stdout == ""


def test_the_list_can_be_replaced(home: Path, tmp_path: Path) -> None:
    (home / ".netrc").write_text("shown")
    (home / "token").write_text("secret")
    (tmp_path / "key").write_text("secret")
    with Sandbox(hide=["token", str(tmp_path / "key")]) as sandbox:
        assert sandbox.path(home / ".netrc").read_text() == "shown"
        assert not sandbox.path(home / "token").exists()
        assert not sandbox.path(tmp_path / "key").exists()
    with Sandbox(hide=[]) as sandbox:
        assert sandbox.path(home / "token").read_text() == "secret"


def test_homes_of_the_password_database_count_too() -> None:
    own = pwd.getpwuid(os.getuid()).pw_dir
    if not os.access(own, os.W_OK):
        pytest.skip(f"{own} is not writable: no credentials can be put there")
    store = Path(own, ".databrickscfg")
    if store.exists():
        pytest.skip(f"{store} is somebody's: it stays untouched")
    store.write_text("secret")
    try:
        with Sandbox(env={"HOME": "/elsewhere"}) as sandbox:
            assert not sandbox.path(store).exists()
    finally:
        store.unlink()


def test_the_layer_cache_is_hidden(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / "layers").mkdir(parents=True)
    assert prints("""
        import os, sys
        from pytest_sandbox import Sandbox
        with Sandbox() as sandbox:
            print(sandbox.path(sys.argv[1]).exists(), sandbox.path(os.path.dirname(sys.argv[1])).exists())
    """, str(cache), env={"PYTEST_SANDBOX_CACHE": str(cache)}) == ["False True"]
    assert (cache / "layers").is_dir()
