"""References: what is read as what, and what is refused."""

from __future__ import annotations

import pytest

from pytest_sandbox import ImageError
from pytest_sandbox.image.reference import (
    ArchiveReference,
    RegistryReference,
    RootfsReference,
    StoredReference,
    check_digest,
    parse_reference,
)

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(("text", "expected"), [
    ("debian", ("docker.io", "library/debian", "latest", None)),
    ("debian:12", ("docker.io", "library/debian", "12", None)),
    ("python:3.13-slim", ("docker.io", "library/python", "3.13-slim", None)),
    ("team/app", ("docker.io", "team/app", "latest", None)),
    ("docker.io/debian", ("docker.io", "library/debian", "latest", None)),
    ("index.docker.io/library/debian", ("docker.io", "library/debian", "latest", None)),
    ("registry.example/x/y:tag", ("registry.example", "x/y", "tag", None)),
    ("registry.example:5000/x", ("registry.example:5000", "x", "latest", None)),
    ("localhost/x", ("localhost", "x", "latest", None)),
    ("localhost:5000/x:1", ("localhost:5000", "x", "1", None)),
    ("127.0.0.1:5000/a/b:1", ("127.0.0.1:5000", "a/b", "1", None)),
    ("[::1]:5000/x:1", ("[::1]:5000", "x", "1", None)),
    ("[fd00::1]/x", ("[fd00::1]", "x", "latest", None)),
    ("UPPER/x", ("UPPER", "x", "latest", None)),
    (f"debian@{DIGEST}", ("docker.io", "library/debian", None, DIGEST)),
    (f"debian:12@{DIGEST}", ("docker.io", "library/debian", "12", DIGEST)),
    (f"localhost:5000/x@sha512:{HEX}{HEX}", ("localhost:5000", "x", None, f"sha512:{HEX}{HEX}")),
    ("a/b__c/d-_e".replace("-_", "--"), ("docker.io", "a/b__c/d--e", "latest", None)),
    ("a.b/c_d.e-f:T_1.-", ("a.b", "c_d.e-f", "T_1.-", None)),
    ("oci", ("docker.io", "library/oci", "latest", None)),
    (f"{HEX[:63]}", ("docker.io", f"library/{HEX[:63]}", "latest", None)),
])
def test_registry_references(text: str, expected: tuple[str, str, str | None, str | None]) -> None:
    assert parse_reference(text) == RegistryReference(*expected)


@pytest.mark.parametrize("text", ["debian", "localhost:5000/x:1", f"a.b/c@{DIGEST}", "[::1]:5000/x:1", f"d:1@{DIGEST}"])
def test_a_written_reference_reads_as_itself(text: str) -> None:
    once = parse_reference(text)
    assert parse_reference(str(once)) == once


@pytest.mark.parametrize(("text", "expected"), [
    ("oci:dir", ArchiveReference("oci", "dir")),
    ("oci:/a/b:tag", ArchiveReference("oci", "/a/b", "tag")),
    ("oci:/a:b/c", ArchiveReference("oci", "/a:b/c")),
    ("oci-archive:x.tar", ArchiveReference("oci-archive", "x.tar")),
    ("oci-archive:x.tar:v1", ArchiveReference("oci-archive", "x.tar", "v1")),
    ("oci-archive:x.tar:docker.io/library/a:1", ArchiveReference("oci-archive", "x.tar", "docker.io/library/a:1")),
    ("oci-archive:/d/x.tar:localhost/a:1", ArchiveReference("oci-archive", "/d/x.tar", "localhost/a:1")),
    ("oci:dir:r.example:5000/a", ArchiveReference("oci", "dir", "r.example:5000/a")),
    ("oci:/a:b/c:tag", ArchiveReference("oci", "/a:b/c", "tag")),
    ("docker-archive:x.tar", ArchiveReference("docker-archive", "x.tar")),
    ("docker-archive:x.tar:app:1", ArchiveReference("docker-archive", "x.tar", "app:1")),
    ("docker-archive:/x:r.example:5000/a:1", ArchiveReference("docker-archive", "/x", "r.example:5000/a:1")),
    ("rootfs:/srv/a:b", RootfsReference("/srv/a:b")),
    (f"image:{DIGEST}", StoredReference(DIGEST)),
])
def test_other_references(text: str, expected: object) -> None:
    assert parse_reference(text) == expected
    assert parse_reference(str(expected)) == expected


@pytest.mark.parametrize(("text", "says"), [
    ("", "no name"),
    (":tag", "no name"),
    ("@" + DIGEST, "no name"),
    ("debian:", "''"),
    ("debian:-x", "not a tag"),
    ("debian:" + "x" * 129, "not a tag"),
    ("Debian", "lower case"),
    ("a/B", "lower case"),
    ("a//b", "empty"),
    ("a/", "empty"),
    ("/a", "empty"),
    ("-a/b.c/d", "'-a'"),
    ("a_-b", "'a_-b'"),
    ("a b", "'a b'"),
    ("a/../b", "'..'"),
    ("debian@sha256:123", "not a digest"),
    (f"debian@sha256:{HEX.upper()}", "digest"),
    (f"debian@md5:{HEX[:32]}", "digest that can be checked"),
    (HEX, "image id"),
    ("x" * 300, "255"),
    ("r.example:port/x", "not a host"),
    ("r.example:0/x", "not a port"),
    ("r.example:65536/x", "not a port"),
    ("[::1]:99999999999/x", "not a port"),
    ("[:::]/x", "not a host"),
    ("[::1::2]:5000/x", "not a host"),
    ("[12]/x", "not a host"),
    ("oci:", "no path"),
    ("rootfs:", "no path"),
    ("image:debian", "digest"),
    ("http://r.example/x", "host"),
])
def test_what_cannot_be_read_says_which_part(text: str, says: str) -> None:
    with pytest.raises(ImageError, match=r"cannot be (read|used)") as caught:
        parse_reference(text)
    assert says in str(caught.value)
    assert caught.value.reference == text
    assert caught.value.remedy


@pytest.mark.parametrize("digest", [None, 1, "", "sha256:", f"sha256:../{HEX[:61]}", f"sha256:{HEX}\n", f"SHA256:{HEX}",
                                    f"sha256:{HEX}0", f"sha1:{HEX[:40]}", f"sha256:{HEX[:63]}G"])
def test_only_digests_that_can_be_checked_reach_paths_and_addresses(digest: object) -> None:
    with pytest.raises(ImageError):
        check_digest(digest, reference="x")
