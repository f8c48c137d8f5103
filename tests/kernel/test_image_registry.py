"""Pulling from a registry that misbehaves in every way we could think of: the right error or the right second try."""

from __future__ import annotations

import base64
import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeregistry import FakeRegistry, RawServer
from imagemaker import directory, file, image, index, layer, member
from treelook import merge

from pytest_sandbox import ImageCorrupt, ImageError, ImageNotFound, RegistryAuthError, RegistryError, StoreError
from pytest_sandbox.image import blobs, transport
from pytest_sandbox.image.manifest import LayerStack, Platform
from pytest_sandbox.image.store import ImageStore

BIG = layer([file("big", os.urandom(300_000)), directory("d"), file("d/f", "x")])
SMALL = layer([file("small", "s"), file("d/.wh.f")])


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of the caller's own configuration, and no long waits."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR",
                 "DOCKER_CONFIG", "CONTAINERS_REGISTRIES_CONF"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    monkeypatch.setattr(transport, "time", Clock())


class Clock:
    """Time for the transport, that does not pass."""

    def sleep(self, seconds: float) -> None:
        assert 0 <= seconds < 60


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def pull(reference: str, cache: Path, **how: object) -> LayerStack:
    with ImageStore(cache, **how) as store:  # type: ignore[arg-type]
        return store.resolve(reference)


def refresh(reference: str, cache: Path) -> LayerStack:
    with ImageStore(cache) as store:
        return store.resolve(reference, refresh=True)


def log_in(tmp_path: Path, host: str, password: str = "secret", **more: object) -> None:
    config = tmp_path / "home/.docker/config.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"user:{password}".encode()).decode()
    config.write_text(json.dumps({"auths": {host: {"auth": auth, **more}}}))


def leftovers(cache: Path) -> list[str]:
    with ImageStore(cache) as store:
        return store.layout.keys("staging") + store.layout.keys("trash")


def test_a_pull(registry: FakeRegistry, cache: Path) -> None:
    made = image([BIG, SMALL], config={"Env": ["A=b"]})
    stack = pull(registry.put("team/app", "1", made), cache)
    assert stack.digest == made.digest
    assert stack.config.env == (("A", "b"),)
    assert set(merge(stack.layers)) == {".", "big", "small", "d"}
    assert leftovers(cache) == []
    asked = len(registry.seen)
    assert pull(f"{registry.host}/team/app:1", cache) == stack
    assert len(registry.seen) == asked, "an image that is there is not asked for again"


def test_docker_media_types(registry: FakeRegistry, cache: Path) -> None:
    assert pull(registry.put("a", "1", image([BIG], docker=True)), cache).digest


def test_a_list_of_dockers(registry: FakeRegistry, cache: Path) -> None:
    """The fourth kind of manifest."""
    made = image([BIG], docker=True)
    registry.put("a", "unnamed", made)
    kinds = {"vnd.oci.image.index.v1": "vnd.docker.distribution.manifest.list.v2",
             "vnd.oci.image.manifest.v1": "vnd.docker.distribution.manifest.v2"}
    listing = index([(made, {"platform": {"os": "linux", "architecture": "amd64"}})]).decode()
    for ours, theirs in kinds.items():
        listing = listing.replace(ours, theirs)
    registry.put_manifest("a", "1", listing.encode())
    assert pull(f"{registry.host}/a:1", cache, platform=Platform.parse("linux/amd64")).digest == made.digest
    asked = next(one for one in registry.seen if "/manifests/1" in one.path)
    for kind in (*kinds, *kinds.values()):
        assert f"application/{kind}+json" in asked.headers["Accept"]


def test_blobs_come_side_by_side(registry: FakeRegistry, cache: Path) -> None:
    """The registry answers none of three before all of them have been asked for."""
    made = image([BIG, SMALL, layer([file("third", "3")])])
    reference = registry.put("a", "1", made)
    together = threading.Barrier(3)
    for one in json.loads(made.manifest)["layers"]:
        registry.fault(one["digest"], together=together)
    assert set(merge(pull(reference, cache).layers)) >= {"big", "small", "third"}
    assert not together.broken


def test_a_digest_is_what_is_asked_for(registry: FakeRegistry, cache: Path) -> None:
    made = image([SMALL])
    registry.put("a", "1", made)
    assert pull(f"{registry.host}/a:other@{made.digest}", cache).digest == made.digest
    assert registry.paths("manifests") == [f"/v2/a/manifests/{made.digest}"]


def test_layers_that_two_images_share_are_fetched_once(registry: FakeRegistry, cache: Path) -> None:
    pull(registry.put("a", "1", image([BIG])), cache)
    before = len(registry.paths("blobs"))
    pull(registry.put("b", "1", image([BIG, SMALL])), cache)
    assert len(registry.paths("blobs")) == before + 2, "the other layer and the configuration"


@pytest.mark.parametrize(("machine", "wanted"), [
    ("linux/amd64", 0), ("linux/arm64", 1), ("linux/arm64/v8", 1), ("linux/arm/v7", 2), ("linux/arm/v6", None),
    ("linux/s390x", None)])
def test_platforms(registry: FakeRegistry, cache: Path, machine: str, wanted: int | None) -> None:
    images = [image([layer([file(str(number), "")])]) for number in range(3)]
    platforms = [{"architecture": "amd64"}, {"architecture": "arm64", "variant": "v8"},
                 {"architecture": "arm", "variant": "v7"}]
    for one in images:
        registry.blobs.update(one.blobs)
        registry.put_manifest("a", "unnamed", one.manifest)
    unknown = {"platform": {"os": "unknown", "architecture": "unknown"}}  # as BuildKit lists attestations
    registry.put_manifest("a", "1", index([(images[0], unknown), *((one, {"platform": {"os": "linux", **platform}})
                                           for one, platform in zip(images, platforms, strict=True))]))
    if wanted is None:
        with pytest.raises(ImageNotFound, match="linux/amd64, linux/arm/v7, linux/arm64/v8"):
            pull(f"{registry.host}/a:1", cache, platform=Platform.parse(machine))
    else:
        stack = pull(f"{registry.host}/a:1", cache, platform=Platform.parse(machine))
        assert stack.digest == images[wanted].digest


# Logging in.

@pytest.mark.parametrize("auth", ["basic", "token"])
def test_logins(cache: Path, tmp_path: Path, auth: str) -> None:
    with FakeRegistry(auth=auth) as registry:
        log_in(tmp_path, registry.host)
        assert pull(registry.put("a", "1", image([BIG, SMALL])), cache)


def test_anonymous_tokens(cache: Path) -> None:
    with FakeRegistry(auth="token") as registry:
        assert pull(registry.put("a", "1", image([BIG])), cache)
        tokens = [one for one in registry.seen if one.path.startswith("/token")]
        assert len(tokens) == 1, "one token serves all requests"
        assert "scope=repository%3Aany%3Apull" in tokens[0].path
        assert "Authorization" not in tokens[0].headers


def test_a_token_that_ran_out_is_renewed(cache: Path) -> None:
    with FakeRegistry(auth="token", token_seconds=60) as registry:
        reference = registry.put("a", "1", image([BIG, SMALL]))
        registry.fault("blobs", times=1, status=401, headers={
            "WWW-Authenticate": f'Bearer realm="http://{registry.host}/token",service="here"'})
        assert pull(reference, cache)
        assert len(registry.paths("/token")) == 2


def test_identity_tokens_go_by_oauth(cache: Path, tmp_path: Path) -> None:
    with FakeRegistry(auth="token", oauth=True) as registry:
        log_in(tmp_path, registry.host, identitytoken="identity")
        assert pull(registry.put("a", "1", image([BIG])), cache)
        post = next(one for one in registry.seen if one.method == "POST")
        assert b"grant_type=refresh_token" in post.body


def test_passwords_go_by_oauth_where_get_is_not_allowed(cache: Path, tmp_path: Path) -> None:
    with FakeRegistry(auth="token", oauth=True) as registry:
        log_in(tmp_path, registry.host)
        assert pull(registry.put("a", "1", image([BIG])), cache)
        assert b"grant_type=password" in next(one for one in registry.seen if one.method == "POST").body


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_wrong_passwords_are_told_and_never_shown(cache: Path, tmp_path: Path, auth: str) -> None:
    with FakeRegistry(auth=auth) as registry:
        log_in(tmp_path, registry.host, password="mistaken")
        with pytest.raises(RegistryAuthError, match="docker login") as caught:
            pull(registry.put("a", "1", image([BIG])), cache)
        assert "mistaken" not in repr(caught.value) + str(caught.value.__dict__)
        assert len(registry.seen) < 8


def test_no_credentials(cache: Path) -> None:
    with FakeRegistry(auth="basic") as registry, pytest.raises(RegistryAuthError, match="podman login"):
        pull(registry.put("a", "1", image([BIG])), cache)


@pytest.mark.parametrize("where", ["credHelpers", "credsStore"])
def test_credential_helpers(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    with FakeRegistry(auth="basic") as registry:
        helper = tmp_path / "bin/docker-credential-ours"
        helper.parent.mkdir()
        helper.write_text("#!/bin/sh\nread host\n[ \"$1\" = get ] && "
                          f"[ \"$host\" = {registry.host} ] && "
                          "echo '{\"Username\":\"user\",\"Secret\":\"secret\"}'\n")
        helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
        config = tmp_path / "home/.docker/config.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({where: {registry.host: "ours"} if where == "credHelpers" else "ours"}))
        assert pull(registry.put("a", "1", image([BIG])), cache)


@pytest.mark.parametrize("name", ["absent", "../../bin/sh", "broken"])
def test_credential_helpers_that_do_not_work(registry: FakeRegistry, cache: Path, tmp_path: Path, name: str,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    registry.auth = "basic"
    helper = tmp_path / "bin/docker-credential-broken"
    helper.parent.mkdir()
    helper.write_text("#!/bin/sh\necho nonsense\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    config = tmp_path / "home/.docker/config.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"credsStore": name}))
    with pytest.raises(RegistryAuthError, match=r"helper|docker-credential"):
        pull(registry.put("a", "1", image([BIG])), cache)


def test_credentials_of_podmans_for_one_repository(cache: Path, tmp_path: Path) -> None:
    with FakeRegistry(auth="basic") as registry:
        config = tmp_path / "home/.config/containers/auth.json"
        config.parent.mkdir(parents=True)
        right, wrong = (base64.b64encode(text).decode() for text in (b"user:secret", b"user:other"))
        config.write_text(json.dumps({"auths": {registry.host: {"auth": wrong},
                                                f"{registry.host}/team": {"auth": right}}}))
        assert pull(registry.put("team/app", "1", image([BIG])), cache)


def test_a_redirect_does_not_carry_credentials_elsewhere(cache: Path, tmp_path: Path) -> None:
    with FakeRegistry(auth="basic") as registry, FakeRegistry() as elsewhere:
        log_in(tmp_path, registry.host)
        made = image([BIG])
        reference = registry.put("a", "1", made)
        elsewhere.blobs.update(made.blobs)
        layer_digest = json.loads(made.manifest)["layers"][0]["digest"]
        registry.fault(layer_digest, redirect=f"http://{elsewhere.host}/v2/a/blobs/{layer_digest}?sig=x")
        assert pull(reference, cache)
        assert elsewhere.seen
        assert all("Authorization" not in one.headers for one in elsewhere.seen)
        assert any("Authorization" in one.headers for one in registry.seen)


@pytest.mark.parametrize("challenge", [
    "Bearer realm=http://HOST/token,service=here", 'bearer Realm="http://HOST/token" , service="here"',
    'Basic realm="here", Bearer realm="http://HOST/token",service="here"',
    'Negotiate, Bearer realm="http://HOST/token",scope="repository:a:pull,push"'])
def test_ways_to_log_in_as_registries_write_them(registry: FakeRegistry, cache: Path, challenge: str) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    registry.fault("manifests", status=401, headers={"WWW-Authenticate": challenge.replace("HOST", registry.host)})
    assert pull(reference, cache)
    assert len(registry.paths("/token")) == 1


@pytest.mark.parametrize("challenge", [
    "", "Negotiate abc", "Basic", 'Bearer realm="ftp://x/y"', 'Bearer realm="http://[::1"', "Bearer", "=,=\"",
    'Bearer realm="http://x:99999/"'])
def test_ways_to_log_in_that_are_none(registry: FakeRegistry, cache: Path, challenge: str) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    registry.fault("manifests", times=9, status=401, headers={"WWW-Authenticate": challenge})
    with pytest.raises(RegistryError):
        pull(reference, cache)
    assert len(registry.paths("manifests")) == 1


@pytest.mark.parametrize("body", [b"[]", b"<html>", b'{"token": 5}', b'{"token": "a\\r\\nX: y"}', b'{"token": ""}'])
def test_tokens_that_are_none(cache: Path, body: bytes) -> None:
    with FakeRegistry(auth="token") as registry:
        registry.fault("/token", times=9, status=200, body=body)
        with pytest.raises(RegistryError, match="gave no token"):
            pull(registry.put("a", "1", image([SMALL])), cache)


def test_a_token_server_that_moved_is_followed_without_credentials_to_another_host(cache: Path,
                                                                                   tmp_path: Path) -> None:
    with FakeRegistry(auth="token") as registry, FakeRegistry() as elsewhere:
        log_in(tmp_path, registry.host)
        reference = registry.put("a", "1", image([SMALL]))
        registry.fault("/token", redirect=f"http://{registry.host}/token/new?x=y")
        assert pull(reference, cache)
        assert [bool(one.headers.get("Authorization")) for one in registry.seen if "/token" in one.path] == [True, True]
        registry.tokens.clear()
        registry.fault("/token", redirect=f"http://{elsewhere.host}/token")
        elsewhere.fault("/token", status=200, body=b'{"token": "theirs"}')
        registry.tokens["theirs"] = float("inf")
        assert refresh(reference, cache)
        (seen,) = elsewhere.seen
        assert "Authorization" not in seen.headers
        registry.tokens.clear()
        registry.fault("/token", times=99, redirect="SELF")
        with pytest.raises(RegistryError, match="redirects without end"):
            refresh(reference, cache)
        assert len(registry.paths("/token")) < 20, "and not tried again"


@pytest.mark.parametrize("said", ["-5", "\xb2", "Wed, 21 Oct 2015 07:28:00 GMT", "1.5", ""])
def test_pauses_that_are_no_number_are_our_own(registry: FakeRegistry, cache: Path, said: str) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    registry.fault("manifests", times=2, status=429, headers={"Retry-After": said})
    assert pull(reference, cache)


def test_what_a_registry_says_cannot_steer_a_terminal(registry: FakeRegistry, cache: Path) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    said = {"errors": [{"code": "\x1b[2J", "message": "a\r\nb"}]}
    registry.fault("manifests", status=400, body=json.dumps(said).encode())
    with pytest.raises(RegistryError, match=r"answered 400:  \[2J a  b") as caught:
        pull(reference, cache)
    assert str(caught.value).isprintable()


def test_platforms_of_an_index_cannot_steer_a_terminal(registry: FakeRegistry, cache: Path) -> None:
    made = image([SMALL])
    many = [(made, {"platform": {"os": "linux", "architecture": f"\x1b[2J{at}"}}) for at in range(500)]
    registry.put("a", "1", made)
    registry.put_manifest("a", "index", index(many))
    with pytest.raises(ImageNotFound) as caught:
        pull(f"{registry.host}/a:index", cache)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("url", ["/secret?sig=SIGNATURE", "//name:PASSWORD@{host}/secret"])
def test_errors_hold_no_secrets_of_signed_addresses(registry: FakeRegistry, cache: Path, url: str) -> None:
    made = image([SMALL])
    reference = registry.put("a", "1", made)
    layer_digest = json.loads(made.manifest)["layers"][0]["digest"]
    registry.fault(layer_digest, times=9, redirect=url.format(host=registry.host))
    registry.fault("/secret", times=99, status=416)
    with pytest.raises(RegistryError) as caught:
        pull(reference, cache)
    assert caught.value.url
    for text in (caught.value.url, str(caught.value)):
        assert "SIGNATURE" not in text
        assert "PASSWORD" not in text


@pytest.mark.parametrize("promise", ["md5:abc", "x", "sha256:" + "0" * 64])
def test_a_digest_that_is_promised_in_a_header_holds(registry: FakeRegistry, cache: Path, promise: str) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    registry.fault("manifests", headers={"Docker-Content-Digest": promise})
    with pytest.raises(ImageCorrupt, match="promised manifest"):
        pull(reference, cache)


# What goes wrong on the way.

@pytest.mark.parametrize("where", ["manifests", "blobs"])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 408])
def test_passing_failures_are_tried_again(registry: FakeRegistry, cache: Path, where: str, status: int) -> None:
    reference = registry.put("a", "1", image([BIG]))
    registry.fault(where, times=2, status=status, headers={"Retry-After": "1"} if status == 429 else {})
    assert pull(reference, cache)
    assert leftovers(cache) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_lasting_failures_are_told(registry: FakeRegistry, cache: Path, status: int) -> None:
    reference = registry.put("a", "1", image([BIG]))
    registry.fault("blobs", times=99, status=status)
    with pytest.raises(RegistryError, match=f"{status}.*told to") as caught:
        pull(reference, cache)
    assert caught.value.status == status
    assert leftovers(cache) == []


def test_a_registry_that_wants_hours_of_patience_is_not_waited_for(registry: FakeRegistry, cache: Path) -> None:
    reference = registry.put("a", "1", image([BIG]))
    registry.fault("manifests", times=99, status=429, headers={"Retry-After": "7200"})
    with pytest.raises(RegistryError, match="7200 seconds"):
        pull(reference, cache)
    assert len(registry.paths("manifests")) == 1


@pytest.mark.parametrize(("status", "error"), [(401, RegistryAuthError), (403, RegistryAuthError), (404, ImageNotFound),
                                               (400, RegistryError), (418, RegistryError), (206, RegistryError)])
def test_refusals_are_told_at_once(registry: FakeRegistry, cache: Path, status: int, error: type[ImageError]) -> None:
    reference = registry.put("a", "1", image([BIG]))
    registry.fault("manifests", times=99, status=status)
    with pytest.raises(error):
        pull(reference, cache)
    assert len(registry.paths("manifests")) == 1


def test_a_broken_body_is_gone_on_with(registry: FakeRegistry, cache: Path) -> None:
    made = image([BIG], how="plain")
    reference = registry.put("a", "1", made)
    digest = json.loads(made.manifest)["layers"][0]["digest"]
    registry.fault(digest, times=3, cut=70_000)
    assert pull(reference, cache)
    ranges = [one.headers.get("Range") for one in registry.seen if digest in one.path]
    assert ranges == [None, "bytes=70000-", "bytes=140000-", "bytes=210000-"]


def test_a_registry_that_knows_no_ranges(registry: FakeRegistry, cache: Path) -> None:
    made = image([BIG], how="plain")
    reference = registry.put("a", "1", made)
    digest = json.loads(made.manifest)["layers"][0]["digest"]
    registry.fault(digest, times=1, cut=70_000)
    registry.fault(digest, times=1, deaf=True)
    assert pull(reference, cache)


def test_a_body_that_never_moves_is_given_up_and_gone_on_with_later(registry: FakeRegistry, cache: Path) -> None:
    made = image([BIG], how="plain")
    reference = registry.put("a", "1", made)
    digest = json.loads(made.manifest)["layers"][0]["digest"]
    registry.fault(digest, times=1, cut=100_000)
    registry.fault(digest, times=5, cut=0)
    with pytest.raises(RegistryError, match="breaks off"):
        pull(reference, cache)
    registry.seen.clear()
    assert pull(reference, cache)
    assert [one.headers.get("Range") for one in registry.seen if digest in one.path] == ["bytes=100000-"]
    assert leftovers(cache) == []


def test_a_whole_download_of_a_killed_run_is_taken_over(registry: FakeRegistry, cache: Path) -> None:
    """One that was killed before the last step, when the file may be read-only already."""
    made = image([BIG, SMALL])
    reference = registry.put("a", "1", made)
    digest = json.loads(made.manifest)["layers"][0]["digest"]
    pull(registry.put("b", "1", image([SMALL])), cache)
    partial = cache / f"v1/staging/blob-{digest[7:]}.partial"
    partial.write_bytes(made.blobs[digest])
    partial.chmod(0o400)
    assert "big" in merge(pull(reference, cache).layers)
    assert not registry.paths(digest), "nothing of it is fetched again"
    assert (cache / f"v1/blobs/sha256/{digest[7:]}").stat().st_mode & 0o777 == 0o400
    assert leftovers(cache) == []


def test_a_bad_beginning_of_an_earlier_run_is_thrown_away(registry: FakeRegistry, cache: Path) -> None:
    made = image([BIG], how="plain")
    reference = registry.put("a", "1", made)
    digest = json.loads(made.manifest)["layers"][0]["digest"]
    with ImageStore(cache) as store:
        Path(store.layout.staging(f"blob-{digest[7:]}.partial")).write_bytes(bytes(1000))
    assert pull(reference, cache)
    assert [one.headers.get("Range") for one in registry.seen if digest in one.path] == ["bytes=1000-", None]


@pytest.mark.parametrize("fault", [
    {"flip": 20}, {"replace": b"short"}, {"replace": bytes(500_000)}, {"endless": True}, {"silent": True, "flip": 5},
    {"wrong_range": True, "cut": 100}])
def test_bytes_that_are_not_the_promised_ones(registry: FakeRegistry, cache: Path, fault: dict[str, object]) -> None:
    made = image([BIG, SMALL], how="plain")
    reference = registry.put("a", "1", made)
    digest = json.loads(made.manifest)["layers"][0]["digest"]
    registry.fault(digest, times=99, **fault)
    with pytest.raises((ImageCorrupt, RegistryError)):
        pull(reference, cache)
    with ImageStore(cache) as store:
        assert not store.layout.keys("images")
        assert digest[7:] not in store.layout.keys("blobs/sha256")
        assert json.loads(made.config)["rootfs"]["diff_ids"][0][7:] not in store.layout.keys("layers")
    registry.faults.clear()
    assert pull(reference, cache)
    assert leftovers(cache) == []


@pytest.mark.parametrize("what", ["config", "manifest"])
def test_documents_that_are_not_the_promised_ones(registry: FakeRegistry, cache: Path, what: str) -> None:
    made = image([SMALL])
    reference = registry.put("a", "1", made)
    config = json.loads(made.manifest)["config"]["digest"]
    registry.fault("manifests" if what == "manifest" else config, times=9, flip=9)
    with pytest.raises(ImageCorrupt):
        pull(reference, cache)


@pytest.mark.parametrize("fault", [{"endless": True}, {"replace": bytes(1 << 20), "silent": True}])
def test_a_configuration_without_end(registry: FakeRegistry, cache: Path, fault: dict[str, object]) -> None:
    """Which states no length: it must not be read to its end to find out."""
    made = image([SMALL])
    reference = registry.put("a", "1", made)
    registry.fault(json.loads(made.manifest)["config"]["digest"], times=9, **fault)
    with pytest.raises(ImageCorrupt, match="has more than the"):
        pull(reference, cache)


def test_a_manifest_without_end(registry: FakeRegistry, cache: Path) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    registry.fault("manifests", times=9, endless=True)
    with pytest.raises(ImageCorrupt, match="larger than"):
        pull(reference, cache)


@pytest.mark.parametrize("target", ["SELF", "ftp://127.0.0.1/x", "", "file:///etc/passwd",
                                    "http://127.0.0.1:99999/", "http://127.0.0.1:abc/", "http://[::1/x"])
def test_redirects_that_lead_nowhere(registry: FakeRegistry, cache: Path, target: str) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    registry.fault("manifests", times=999, redirect=target)
    with pytest.raises(RegistryError, match="redirects"):
        pull(reference, cache)
    assert len(registry.paths("manifests")) < 20


@pytest.mark.parametrize("location", ["http://SELF/v2/a/blobs/DIGEST?sig=a b\u00e9%2F", "/v2/a/blobs/DIGEST?sig=x",
                                      "//SELF/v2/a/blobs/DIGEST"])
def test_redirects_may_be_relative_and_badly_quoted(registry: FakeRegistry, cache: Path, location: str) -> None:
    made = image([SMALL])
    reference = registry.put("a", "1", made)
    digest = json.loads(made.manifest)["layers"][0]["digest"]
    registry.fault(digest, redirect=location.replace("SELF", registry.host).replace("DIGEST", digest))
    assert pull(reference, cache).digest == made.digest
    if "sig=a" in location:
        assert registry.paths("sig=")[0].endswith("?sig=a%20b%E9%2F")


def test_who_does_not_answer_behind_a_redirect_is_named(registry: FakeRegistry, cache: Path) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    registry.fault("manifests", times=9, redirect="http://127.0.0.1:1/x?signature=secret")
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:1: Connection refused") as caught:
        pull(reference, cache)
    assert "secret" not in str(caught.value)


def test_connections_are_kept(registry: FakeRegistry, cache: Path) -> None:
    pull(registry.put("a", "1", image([SMALL])), cache)
    assert len({one.peer for one in registry.seen}) == 1


def test_a_registry_that_hangs_up_between_two_requests(registry: FakeRegistry, cache: Path) -> None:
    """Without an answer that says so: the connection looks alive when the next request is sent, or nearly."""
    reference = registry.put("a", "1", image([BIG, SMALL]))
    registry.hang_up = True
    assert pull(reference, cache)
    assert len({one.peer for one in registry.seen}) == len(registry.seen)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 200 OK\r\n" +
                                    b"X: y\r\n" * 1000 + b"\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
                                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
                                    b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"])
def test_what_is_no_http(cache: Path, answer: bytes) -> None:
    with RawServer(answer) as host, pytest.raises(RegistryError, match=r"(?s)a:1.*127\.0\.0\.1|breaks off"):
        pull(f"{host}/a:1", cache)
    assert leftovers(cache) == []


def test_nobody_there(cache: Path) -> None:
    with FakeRegistry() as registry:
        host = registry.host
    with pytest.raises(RegistryError, match=r"(?s)NO_PROXY"):
        pull(f"{host}/a:1", cache)


def test_a_size_that_is_not_the_one_of_the_blob(registry: FakeRegistry, cache: Path) -> None:
    made = image([BIG])
    document = json.loads(made.manifest)
    document["layers"][0]["size"] -= 1
    registry.blobs.update(made.blobs)
    registry.put_manifest("a", "1", json.dumps(document).encode())
    with pytest.raises(ImageCorrupt, match="should have"):
        pull(f"{registry.host}/a:1", cache)


def test_a_layer_that_is_another_than_the_configuration_says(registry: FakeRegistry, cache: Path) -> None:
    made = image([BIG], diff_ids=["sha256:" + "ab" * 32])
    with pytest.raises(ImageCorrupt, match="diff id"):
        pull(registry.put("a", "1", made), cache)


# Mirrors, and hosts without TLS.

def configure(tmp_path: Path, text: str) -> None:
    path = tmp_path / "home/.config/containers/registries.conf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_mirror_comes_first(registry: FakeRegistry, cache: Path, tmp_path: Path) -> None:
    made = image([BIG])
    registry.put("library/debian", "12", made)
    configure(tmp_path, f'[[registry]]\nprefix = "docker.io"\nlocation = "docker.io"\n'
                        f'[[registry.mirror]]\nlocation = "{registry.host}"\n')
    assert pull("debian:12", cache).digest == made.digest


def test_the_registry_itself_is_asked_when_the_mirror_fails(registry: FakeRegistry, cache: Path,
                                                            tmp_path: Path) -> None:
    with FakeRegistry() as mirror:
        configure(tmp_path, f'[[registry]]\nlocation = "{registry.host}"\n'
                            f'[[registry.mirror]]\nlocation = "{mirror.host}/copies"\n')
        made = image([BIG])
        reference = registry.put("a", "1", made)
        assert pull(reference, cache).digest == made.digest
        assert mirror.paths("/v2/copies/a/manifests/1")
        mirror.put("copies/b", "1", image([SMALL]))
        mirror.fault("blobs", times=99, status=404)
        assert pull(registry.put("b", "1", image([SMALL])), cache)


def test_a_longer_prefix_decides_and_blocked_is_blocked(registry: FakeRegistry, cache: Path, tmp_path: Path) -> None:
    configure(tmp_path, '[[registry]]\nlocation = "r.example"\nblocked = true\n'
                        f'[[registry]]\nprefix = "r.example/ours"\nlocation = "{registry.host}/theirs"\n')
    registry.put("theirs/a", "1", image([SMALL]))
    assert pull("r.example/ours/a:1", cache)
    with pytest.raises(ImageError, match="blocks"):
        pull("r.example/other:1", cache)


@pytest.mark.parametrize("host", ["mirror.example:99999", "mirror.example:0", "[::1", "user@mirror.example", ""])
def test_a_mirror_that_is_no_host_is_named(cache: Path, tmp_path: Path, host: str) -> None:
    configure(tmp_path, f'[[registry]]\nlocation = "docker.io"\n[[registry.mirror]]\nlocation = "{host}/docker"\n')
    with pytest.raises(ImageError, match=r"is not a host name. Correct it in registries\.conf"):
        pull("debian:12", cache)


def test_a_broken_configuration_is_named(cache: Path, tmp_path: Path) -> None:
    configure(tmp_path, "[[registry\n")
    with pytest.raises(ImageError, match=r"registries\.conf"):
        pull("debian:12", cache)


def test_a_proxy_of_the_environment_is_used(registry: FakeRegistry, cache: Path, monkeypatch: pytest.MonkeyPatch,
                                            tmp_path: Path) -> None:
    monkeypatch.setenv("http_proxy", f"http://{registry.host}")
    monkeypatch.setenv("https_proxy", f"http://{registry.host}")
    with pytest.raises(RegistryError):
        pull("registry.invalid/a:1", cache)
    monkeypatch.setenv("no_proxy", "registry.invalid")
    with pytest.raises(RegistryError, match=r"registry\.invalid"):
        pull("registry.invalid/a:1", cache)


def test_refresh_follows_a_moved_tag_and_an_ordinary_run_does_not(registry: FakeRegistry, cache: Path) -> None:
    reference = registry.put("a", "1", image([SMALL]))
    first = pull(reference, cache)
    registry.put("a", "1", image([BIG]))
    assert pull(reference, cache) == first
    with ImageStore(cache) as store:
        assert store.resolve(reference, refresh=True).digest != first.digest


def test_padding_behind_the_archive_is_part_of_the_layer(registry: FakeRegistry, cache: Path) -> None:
    plain = member(file("x", "y")) + bytes(10240)
    assert pull(registry.put("a", "1", image([plain])), cache)


def test_a_full_disk_is_not_taken_for_a_broken_connection(registry: FakeRegistry, cache: Path,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    reference = registry.put("a", "1", image([BIG]))

    def full(fd: int, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="pytest-sandbox prune"):
        patch.setattr(blobs, "write_all", full)
        pull(reference, cache)
    assert len(registry.paths("blobs")) == 2, "the configuration, and the layer once"
    assert pull(reference, cache)
