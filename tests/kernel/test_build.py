"""Containerfiles: every instruction, built by us and by buildah; the cache; and files that cannot be built."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from imagemaker import directory, file, image, layer, symlink, write_layout
from support import IS_ROOT
from treelook import differences, look_at, merge

from pytest_sandbox import ImageBuildError, ImageError, Sandbox, planning
from pytest_sandbox.building import builder
from pytest_sandbox.building.builder import Builder, Options
from pytest_sandbox.building.reference import build
from pytest_sandbox.building.text import expand, parse
from pytest_sandbox.image.store import StoredImage

BUSYBOX = shutil.which("busybox")
pytestmark = [
    pytest.mark.skipif(BUSYBOX is None, reason="no static program at hand: apt-get install busybox-static"),
    pytest.mark.skipif(importlib.util.find_spec("dockerfile") is None,
                       reason="the parser is not installed: pip install pytest-sandbox[build]"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small image that things can be built on."""
    assert BUSYBOX is not None
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    items = [directory("bin"), file("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755),
             *(symlink(f"bin/{name}", "busybox") for name in sorted({*applets} - {"busybox"})), directory("etc"),
             file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n"),
             file("etc/group", "root:x:0:\nweb:x:34:\nstaff:x:50:\n"), directory("root", 0o700),
             directory("tmp", 0o1777), directory("usr"), directory("usr/lib"), symlink("lib", "usr/lib")]
    config = {"Env": ["PATH=/bin", "BASE=yes"], "Cmd": ["/bin/sh"], "Labels": {"from": "base"},
              "OnBuild": []}
    where = write_layout(tmp_path_factory.mktemp("base") / "layout", image([layer(items)], config=config))
    return f"oci:{where}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_is_left_behind: None) -> Iterator[None]:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    planning.release_images()


@pytest.fixture
def context(tmp_path: Path) -> Path:
    root = tmp_path / "context"
    for name, text in {"a.txt": "a", "b.txt": "b", "c.md": "c", "dir/one": "1", "dir/sub/two": "2", "dir/skip.log": "x",
                       "x y": "space", ".dockerignore": "**/*.log\nsecret*\n!secret.ok\n", "secret": "s",
                       "secret.ok": "ok"}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o640 if name == "b.txt" else 0o644)
    for path in (root, root / "dir", root / "dir/sub"):
        path.chmod(0o755)
    (root / "link").symlink_to("a.txt")
    with tarfile.open(root / "things.tar.gz", "w:gz") as tar:
        for name, data in (("in/tar", b"tarred"), ("top", b"top")):
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))
    return root


def built(text: str, context: Path, **options: Any) -> tuple[StoredImage, Builder]:
    path = context.parent / "Containerfile"
    path.write_text(text)
    return build(planning.store(), str(path), str(context), Options(**options))


CASES = {
    "env": "ENV A=1 B=\"two words\" C=a\\ b D='$A'\nENV OLD one two\n"
           "ENV A=${A}2 E=$BASE F=${NONE:-dflt} G=${BASE:+set}",
    "arg": "ARG V=1\nARG NONE\nENV A=$V B=[$NONE]\nARG V=2\nRUN echo $V > /v",
    "label": "LABEL a=1 \"b c\"=\"d e\" from=here\nLABEL old style value",
    "cmd shell": "CMD echo hi",
    "cmd exec": 'CMD ["echo", "hi"]',
    "entrypoint clears the base's command": 'ENTRYPOINT ["/bin/busybox"]',
    "entrypoint and cmd": 'CMD ["a"]\nENTRYPOINT ["/bin/busybox"]\nCMD ["echo", "x"]',
    "shell": 'SHELL ["/bin/sh", "-ec"]\nRUN false || echo x > /x',
    "user and workdir": "USER web\nWORKDIR /srv/app\nWORKDIR sub\nUSER 12:13",
    "workdir that is there": "WORKDIR /usr/lib\nRUN touch made",
    "expose": "EXPOSE 80 53/udp\nEXPOSE 8000/tcp",
    "volume": 'VOLUME /data /more\nVOLUME ["/third"]',
    "stop signal": "ARG S=INT\nSTOPSIGNAL SIG$S",
    "health check": "HEALTHCHECK --interval=5s --timeout=1m30s --retries=2 CMD curl -f x\n",
    "no health check": "HEALTHCHECK NONE",
    "on build": "ONBUILD RUN echo later\nONBUILD COPY . /x",
    "copy files": "COPY a.txt b.txt /into/\nCOPY a.txt /renamed\nCOPY a.txt /etc\nCOPY a.txt /bin/",
    "copy directory": "COPY dir /d\nCOPY dir/ /e/\nCOPY dir/sub /d/deeper/still",
    "copy everything": "COPY . /all/",
    "copy patterns": "COPY *.txt /t/\nCOPY [ab].txt /u/\nCOPY dir/* /v/\nCOPY ?.md /w",
    "copy with spaces": 'COPY ["x y", "/with spaces/"]',
    "copy attributes": "COPY --chown=web:staff a.txt /o1\nCOPY --chown=5:6 dir /o2\nCOPY --chmod=751 b.txt /o3",
    "copy through a link": "COPY a.txt /lib/\nCOPY dir /lib/dir",
    "copy relative": "WORKDIR /w\nCOPY a.txt .\nCOPY a.txt b.txt ./sub/\nCOPY c.md sub2",
    "copy over": "COPY a.txt /x\nCOPY b.txt /x\nCOPY dir /etc",
    "add": "ADD a.txt /a/\nADD things.tar.gz /unpacked/\nADD dir /d",
    "run": "RUN echo one > /one && mkdir /m && touch /m/f\nRUN rm /one && ln -s /m /ml && chmod 700 /m && rm -r /root",
    "run exec form": 'RUN ["/bin/busybox", "touch", "/made $HOME"]',
    "run as a user": "RUN mkdir -m 777 /w\nUSER web\nRUN touch /w/f && id -u > /w/id && echo $HOME > /w/home",
    "run replaces": "RUN rm -r /usr/lib && mkdir /usr/lib && touch /usr/lib/new && mv /tmp /tmp2",
    "continued": "RUN echo a \\\n  # a comment\n  b > /x\nENV A=1 \\\n  B=2",
    "heredocs": "RUN <<EOF\necho 1 > /h1\necho 2 > /h2\nEOF",
    "maintainer": "MAINTAINER somebody",
    "entrypoint shell form": "ENTRYPOINT echo $HOME",
    "run in the working directory": "WORKDIR /w/x\nRUN pwd > here\nWORKDIR ..\nRUN pwd > here",
    "run without a network": "RUN --network=none echo x > /x",
    # At places that are not there: this buildah removes the whole root after a mount on a directory that is.
    "mount the context": "RUN --mount=type=bind,target=/m cat /m/a.txt > /seen && ls /m/dir >> /seen",
    "mount part of the context": "RUN --mount=type=bind,source=dir/sub,target=/m ls /m > /seen",
    "mount a cache": "RUN --mount=type=cache,target=/m echo x > /m/x && ls /m > /seen",
    "mount a tmpfs": "RUN --mount=type=tmpfs,target=/m echo x > /m/x && ls /m > /seen",
    "mount a secret": "RUN --mount=type=secret,id=token cat /run/secrets/token > /seen",
    "from our own reference": "COPY --from={base} /etc/passwd /copied",
}
STAGES = {
    "stages": "FROM {base} AS first\nRUN echo built > /out\nFROM {base}\n"
              "COPY --from=first /out /copied\nCOPY --from=0 /out /c2",
    "stage of a stage": "FROM {base} AS one\nENV A=1\nRUN touch /one\nFROM one AS two\nRUN touch /two\n"
                        "FROM two\nENV B=$A",
    "scratch": "FROM {base} AS b\nFROM scratch\nCOPY --from=b /bin/busybox /bin/\nCOPY a.txt /\nCMD [\"/bin/busybox\"]",
    "mount a stage": "FROM {base} AS one\nRUN mkdir /d && echo 1 > /d/f\nFROM {base}\n"
                     "RUN --mount=type=bind,from=one,source=/d,target=/m cat /m/f > /seen",
    "arguments before and in": "ARG V=1\nFROM {base}\nARG V\nARG W=${V}2\nENV E=$W\nRUN echo $V $W $E > /seen",
    "arguments of from": "ARG WHICH=one\nFROM {base} AS one\nRUN touch /1\nFROM {base} AS two\nRUN touch /2\n"
                         "FROM $WHICH\nARG WHICH\nRUN echo [$WHICH] > /which",
    "directories of a stage": "FROM {base} AS b\nRUN mkdir -p /d/e && echo 1 > /d/e/f && ln -s e /d/l\nFROM {base}\n"
                              "COPY --from=b /d /copied\nCOPY --from=b /d/l/f /file",
}
ALL = {**{name: f"FROM {{base}}\n{text}\n" for name, text in CASES.items()}, **STAGES}


def text_of(name: str, base: str) -> str:
    return ALL[name].replace("{base}", base)


# Beside buildah.

@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    if shutil.which("buildah") is None:
        pytest.skip("not installed: apt-get install buildah")
    if not IS_ROOT:
        pytest.skip("what buildah leaves behind as another user, with subordinate ids, this user could not remove")
    place = f"/tmp/b{os.getpid()}"
    os.mkdir(place)
    yield place
    subprocess.run(["umount", "-q", f"{place}/s/vfs"], check=False, capture_output=True)
    shutil.rmtree(place)


@pytest.mark.parametrize("name", ALL)
def test_buildah_builds_the_same(name: str, base: str, context: Path, storage: str) -> None:
    text = text_of(name, base)
    token = context.parent / "token"
    token.write_text("hidden")
    ours, _ = built(text, context, secrets={"token": str(token)})
    options = ["--root", f"{storage}/s", "--runroot", f"{storage}/r", "--storage-driver", "vfs"]
    done = subprocess.run(["buildah", *options, "bud", "--isolation", "chroot", "--format", "docker", "-q", "-t", "x",
                           "--secret", f"id=token,src={token}", "-f", str(context.parent / "Containerfile"),
                           str(context)], capture_output=True, text=True, check=False)
    if done.returncode and name in ("heredocs", "arguments of from", "run without a network"):
        pytest.skip(f"this buildah cannot build it: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    found = json.loads(subprocess.run(["buildah", *options, "inspect", "--type", "image", "x"], capture_output=True,
                                      text=True, check=True).stdout)
    theirs = found["Docker"]["config"]
    assert config(json.loads(ours.config)["config"]) == config(theirs)
    images = json.loads((Path(storage) / "s/vfs-images/images.json").read_text())
    top = next(one["layer"] for one in images if one["id"] == found["FromImageID"])
    there = look_at(f"{storage}/s/vfs/dir/{top}", times=False)
    here = merge([f"{planning.store().layout.layer(key)}/fs" for key in ours.keys], times=False)
    if name == "volume":
        del there["third"]  # buildah makes the last of them, and says so nowhere
    for tree in (here, there):
        for made in [one for one in tree if one in RUNTIME or one.startswith(("dev/", "proc/", "sys/", "run/"))]:
            del tree[made]
    assert differences(here, there) == []


#: What buildah leaves where it has mounted something for a RUN.
RUNTIME = {".", "dev", "proc", "sys", "run", "etc/hosts", "etc/hostname", "etc/resolv.conf"}


def config(given: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration is to be equal, in one form."""
    labels = {key: value for key, value in (given.get("Labels") or {}).items() if not key.startswith("io.buildah")}
    kept = {key: given.get(key) or None for key in ("Cmd", "Entrypoint", "User", "StopSignal", "Shell", "ExposedPorts",
                                                   "Volumes", "OnBuild", "Healthcheck")}
    return {**kept, "Labels": labels, "Env": sorted(given.get("Env") or []),
            "WorkingDir": given.get("WorkingDir") or "/"}


# Without any other tool.

@pytest.mark.parametrize("name", ["run", "copy everything", "stages", "add", "user and workdir", "heredocs", "arg",
                                  "cmd exec", "workdir that is there", "scratch"])
def test_a_second_build_is_all_from_the_cache_and_the_same(name: str, base: str, context: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    years = iter(range(2001, 2100))  # each look at the clock is another year
    monkeypatch.setattr(builder, "now", lambda: f"{next(years)}-01-01T00:00:00Z")
    first, one = built(text_of(name, base), context)
    planning.release_images()
    again, two = built(text_of(name, base), context)
    assert (again.image_id, again.digest) == (first.image_id, first.digest)
    assert (one.hits, two.hits, two.made) == (0, one.made, 0)


def test_two_builds_with_an_epoch_have_one_digest(base: str, context: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    text = text_of("run", base) + "COPY . /ctx/\nWORKDIR /new/place\nENV A=1\n"
    first, _ = built(text, context, cache=False)
    for path in context.rglob("*"):
        os.utime(path, (1_800_000_000, 1_800_000_000), follow_symlinks=False)
    second, other = built(text, context, cache=False)
    assert other.hits == 0
    assert (first.image_id, first.digest) == (second.image_id, second.digest)


def test_a_build_with_an_epoch_takes_nothing_from_one_without(base: str, context: Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"FROM {base}\nRUN echo 1 > /f\nCOPY a.txt /a\n"
    built(text, context)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    made, again = built(text, context)
    assert again.hits == 0
    with Sandbox(image=f"image:{made.image_id}") as sandbox:
        assert sandbox.path("/f").stat().st_mtime == sandbox.path("/a").stat().st_mtime == 1_000_000_000


def test_an_argument_that_nobody_asks_for_is_told(base: str, context: Path) -> None:
    said: list[str] = []
    built(f"FROM {base}\nARG USED\n", context, arguments={"USED": "1", "UESD": "2", "HTTP_PROXY": ""}, say=said.append)
    assert said[-1] == "note: no ARG of the stages that were built asks for UESD"


def test_a_changed_source_rebuilds_what_depends_on_it_and_nothing_else(base: str, context: Path) -> None:
    text = f"FROM {base}\nRUN date +%N > /before\nCOPY a.txt /a\nRUN cat /a > /after\nCOPY b.txt /b\n"
    first, _ = built(text, context)
    os.utime(context / "a.txt", (1, 1))
    assert built(text, context)[1].hits == 4, "times do not count"
    (context / "b.txt").write_text("other")
    second, again = built(text, context)
    assert again.hits == 3
    assert second.diff_ids[:-1] == first.diff_ids[:-1]
    (context / "a.txt").write_text("other")
    assert built(text, context)[1].hits == 1


def test_arguments_and_flags_are_part_of_the_key(base: str, context: Path) -> None:
    text = f"FROM {base}\nARG V=1\nRUN echo $V > /v\nCOPY --chmod=600 a.txt /a\n"
    built(text, context)
    assert built(text, context, arguments={"V": "2"})[1].hits == 0
    assert built(text.replace("600", "644"), context)[1].hits == 1
    image, again = built(text, context, arguments={"V": "2"})
    assert again.hits == 2
    with Sandbox(image=f"image:{image.image_id}") as sandbox:
        assert sandbox.path("/v").read_text() == "2\n"


def test_a_reference_is_built_when_it_is_used(base: str, context: Path) -> None:
    (context / "Containerfile").write_text(f"FROM {base}\nCOPY a.txt /a\nUSER web\nCMD cat /a; id -u\n")
    with Sandbox(image=f"containerfile:{context}") as sandbox:
        assert sandbox.run([]).stdout == "a33\n"
    with Sandbox(image=f"containerfile:{context / 'Containerfile'}") as sandbox:
        assert sandbox.changes() == []


def test_the_triggers_of_a_base_are_carried_out(base: str, context: Path) -> None:
    from pytest_sandbox.image.export import name_image
    first, _ = built(f"FROM {base}\nONBUILD RUN echo triggered > /t\nONBUILD ENV T=1\n", context)
    stored = planning.store()
    stored.layout.write_record(stored.layout.image(first.image_id), first.as_json())
    name_image(stored, "with-trigger", first)
    second, _ = built("FROM with-trigger\nRUN cat /t > /u\n", context)
    settings = json.loads(second.config)["config"]
    assert "T=1" in settings["Env"]
    assert not settings.get("OnBuild")
    with Sandbox(image=f"image:{second.image_id}") as sandbox:
        assert sandbox.path("/u").read_text() == "triggered\n"


def test_mounts_of_run(base: str, context: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hidden")
    text = (f"FROM {base}\nRUN --mount=type=bind,target=/ctx --mount=type=secret,id=token "
            "--mount=type=cache,target=/kept cat /ctx/a.txt /run/secrets/token > /seen; echo x >> /kept/log; "
            "cat /kept/log > /log; touch /ctx/no || echo read-only > /ro\n")
    image, _ = built(text, context, secrets={"token": str(tmp_path / "token")})
    with Sandbox(image=f"image:{image.image_id}") as sandbox:
        assert sandbox.path("/seen").read_text() == "ahidden"
        assert sandbox.path("/ro").read_text() == "read-only\n"
        assert not sandbox.path("/ctx").exists()
        assert not sandbox.path("/kept").exists()
    again, _ = built(text, context, secrets={"token": str(tmp_path / "token")}, cache=False)
    with Sandbox(image=f"image:{again.image_id}") as sandbox:
        assert sandbox.path("/log").read_text() == "x\nx\n"
    assert not (context / "no").exists()


def test_the_network_of_run(base: str, context: Path) -> None:
    image, _ = built(f"FROM {base}\nRUN --network=none ls /sys/class/net > /none\nRUN ls /sys/class/net > /default\n",
                     context, network="none")
    with Sandbox(image=f"image:{image.image_id}") as sandbox:
        assert sandbox.path("/none").read_text() == sandbox.path("/default").read_text() == "lo\n"


def test_a_step_reaches_what_the_host_reaches_unless_told_otherwise(base: str, context: Path) -> None:
    """A server on the host's own loopback stands for the network."""
    def hang_up() -> None:
        with suppress(OSError):  # that the server is closed
            while True:
                server.accept()[0].close()  # or nc would wait for what it says

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        serving = threading.Thread(target=hang_up)
        serving.start()
        try:
            ask = f"nc -w 2 127.0.0.1 {port} < /dev/null && echo reached > /out || echo not > /out"
            for flag, said in (("", "reached"), ("--network=none ", "not")):
                image, _ = built(f"FROM {base}\nRUN {flag}{ask}\n", context)
                with Sandbox(image=f"image:{image.image_id}") as sandbox:
                    assert sandbox.path("/out").read_text() == f"{said}\n"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            serving.join()


@pytest.mark.parametrize(("text", "line", "says"), [
    ("FROM {base}\nFOO x\n", 2, "there is no instruction 'FOO'"),
    ("FROM {base}\nWORKDRI /x\n", 2, "Did you mean WORKDIR"),
    ("FROM {base}\nRUN kill -9 $$\n", 2, "ended by signal 9|status 137"),
    ("FROM {base}\nCOPY --from={base} /nope /x\n", 2, "there is no '/nope' in it"),
    ("FROM {base}\nSHELL sh\n", 2, "SHELL"),
    ("FROM {base}\nHEALTHCHECK --interval=5 CMD x\n", 2, "is not a time"),
    ("FROM {base}\nHEALTHCHECK x\n", 2, "HEALTHCHECK"),
    ("FROM {base}\nONBUILD FROM x\n", 2, "ONBUILD"),
    ("FROM {base}\nRUN --network=some true\n", 2, "network=some is not available"),
    ("FROM {base}\nRUN --mount=type=secret,id=t,required=true true\n", 2, "there is no secret 't'"),
    ("FROM {base}\nRUN --mount=type=cache,target=/c,from=x true\n", 2, "cache,from"),
    ("FROM {base} AS a b\n", 1, "FROM"),
    ("FROM {base}\nCOPY a.txt\n", 2, "COPY"),
    ("FROM {base}\nRUN echo said; exit 3\n", 2, "(?s)it ended with status 3.*said"),
    ("FROM {base}\n\nCOPY nope /x\n", 3, "the context has no 'nope'"),
    ("FROM {base}\nCOPY ../../../etc/hostname /x\n", 2, "the context has no"),
    ("FROM {base}\nCOPY secret /x\n", 2, "no 'secret'.*but .dockerignore leaves it out"),
    ("FROM {base}\nCOPY a.txt b.txt /x\n", 2, "several sources, and '/x' is no directory"),
    ("FROM {base} AS me\nCOPY --from=me /x /y\n", 2, "comes later, or is this one"),
    ("FROM me AS me\n", 1, "comes later, or is this one"),
    ("FROM {base}\nENV a\n", 2, "ENV must have two arguments"),
    ("FROM {base}\nENV a=\"${b?is needed}\"\n", 2, "is needed"),
    ("FROM {base}\nENV a=\"b\n", 2, "quote"),
    ("RUN x\n", 1, "before the first FROM"),
    ("FROM $NOTHING\n", 1, "names nothing"),
    ("FROM scratch\nRUN x\n", 2, "an image that holds nothing"),
    ("FROM b AS a\nFROM a AS b\n", 1, "comes later, or is this one"),
    ("FROM containerfile:x\nRUN x\n", 1, "cannot be the base"),
    ("FROM {base}\nCOPY --chmod=9 a.txt /x\n", 2, "not an octal mode"),
    ("FROM {base}\nCOPY --chown=nobody-here a.txt /x\n", 2, "nobody-here"),
    ("FROM {base}\nCOPY --parents a.txt /x\n", 2, "does not take --parents"),
    ("FROM {base}\nRUN --mount=type=ssh true\n", 2, "type=ssh is refused. It would hand your agent"),
    ("FROM {base}\nEXPOSE many\n", 2, "is not a port"),
    ("FROM {base}\nADD https://example.com/x.git /x\n", 2, "a Git repository"),
    ("FROM {base}\nADD git@example.com:x /x\n", 2, "a Git repository"),
    ("FROM {base}\nADD --checksum=sha256:0 a.txt /x\n", 2, "goes with one URL"),
    ("FROM {base}\nCOPY https://example.com/x /x\n", 2, "the context has no"),
    ("FROM {base}\nRUN --mount=type=bind,rw,target=/x true\n", 2, "bind,rw is not available"),
    ("FROM {base}\nRUN --mount=type=bind,from=nowhere/at.all:1x/y,target=/x true\n", 2, "cannot be"),
    ("FROM {base} AS me\nRUN --mount=type=bind,from=me,target=/x true\n", 2, "comes later, or is this one"),
    ("FROM {base}\nRUN --mount=type=tmpfs true\n", 2, "has no target"),
    ("FROM {base}\nRUN --mount=type=tmpfs,target=/x,size=1m true\n", 2, "size=... is not available"),
    ("FROM {base}\nRUN no-such-program\n", 2, "status 127"),
])
def test_files_that_cannot_be_built(text: str, line: int, says: str, base: str, context: Path) -> None:
    with pytest.raises(ImageBuildError, match=says) as caught:
        built(text.replace("{base}", base), context)
    assert caught.value.line == line
    assert caught.value.file.endswith("Containerfile")
    below = caught.value.__cause__
    assert caught.value.remedy or getattr(below, "remedy", None), "it says what to do"
    assert os.listdir(planning.store().layout.root + "/staging") == []


def test_an_empty_file_and_a_missing_one(context: Path) -> None:
    with pytest.raises(ImageBuildError, match=r"no FROM|empty"):
        built("# nothing\n", context)
    with pytest.raises(ImageError, match="there is no Containerfile or Dockerfile"):
        Sandbox(image=f"containerfile:{context}").start()
    with pytest.raises(ImageError, match="no such file"):
        Sandbox(image="containerfile:/no/where").start()


def test_a_source_is_not_followed_out_of_the_context(base: str, context: Path) -> None:
    (context / "out").symlink_to("/etc")
    with pytest.raises(ImageBuildError, match="links are not followed"):
        built(f"FROM {base}\nCOPY out/passwd /x\n", context)
    image, _ = built(f"FROM {base}\nCOPY out /x\n", context)
    with Sandbox(image=f"image:{image.image_id}") as sandbox:
        assert os.readlink(f"/proc/self/fd/{sandbox._root_fd}/x") == "/etc"


@pytest.mark.parametrize(("text", "result"), [
    ("$A", "1"), ("${A}b", "1b"), ("\\$A", "$A"), ("'$A'", "$A"), ('"$A x"', "1 x"), ("${B:-x$A}", "x1"),
    ("${B-x}", "x"),
    ("${E:-x}", "x"), ("${E-x}", ""), ("${A:+y}", "y"), ("${E:+y}", ""), ("${E+y}", "y"), ("$", "$"), ("$1", "$1"),
    ('"a\\"b"', 'a"b'), ("a\\ b", "a b"), ('${B:-"q"}', "q"), ("", ""), ("$B", ""),
])
def test_variables(text: str, result: str) -> None:
    assert expand(text, {"A": "1", "E": ""}) == result


HEREDOCS = """FROM {base}
ENV WHO=you
RUN <<EOF
echo 1 > /h1
echo "$WHO" > /h2
EOF
RUN <<EOF
#!/bin/awk -f
BEGIN { print "awk" > "/h3" }
EOF
RUN cat <<A > /h4 && cat <<'B' >> /h4
for $WHO
A
for $WHO
B
COPY <<C /h5
hello $WHO
C
COPY --chmod=600 <<'D' <<E /into/
raw $WHO
D
$WHO again
E
"""


def test_heredocs(base: str, context: Path) -> None:
    """Which the buildah of Debian 12 cannot build."""
    image, _ = built(HEREDOCS.replace("{base}", base), context)
    with Sandbox(image=f"image:{image.image_id}") as sandbox:
        def text(path: str) -> str:
            return str(sandbox.path(path).read_text())
        assert [text(f"/h{number}") for number in range(1, 6)] == ["1\n", "you\n", "awk\n", "for you\nfor $WHO\n",
                                                                  "hello you\n"]
        assert (text("/into/D"), text("/into/E")) == ("raw $WHO\n", "you again\n")
        assert sandbox.path("/into/D").stat().st_mode & 0o777 == 0o600


def test_arguments_of_from(base: str, context: Path) -> None:
    text = text_of("arguments of from", base)
    given: list[dict[str, str]] = [{}, {"WHICH": "two"}]
    for number, arguments in enumerate(given, 1):
        image, _ = built(text, context, arguments=arguments)
        with Sandbox(image=f"image:{image.image_id}") as sandbox:
            assert sandbox.path(f"/{number}").exists()
            assert sandbox.path("/which").read_text() == f"[{arguments.get('WHICH', 'one')}]\n"


def test_what_buildah_does_otherwise_than_docker(base: str, context: Path) -> None:
    """Ranges of ports are written out, and the shell form of CMD takes the stage's shell."""
    image, _ = built(f'FROM {base}\nSHELL ["/bin/sh", "-ec"]\nCMD echo\nEXPOSE 8000-8002/udp', context)
    settings = json.loads(image.config)["config"]
    assert settings["Cmd"] == ["/bin/sh", "-ec", "echo"]
    assert settings["ExposedPorts"] == {"8000/udp": {}, "8001/udp": {}, "8002/udp": {}}


def test_the_escape_directive() -> None:
    file = parse("# escape=`\nFROM x\nENV A=`$B C=D:\\\\\n", "f")
    assert file.escape == "`"
    assert expand(file.stages[0].steps[0].words[1], {"B": "1"}, escape="`") == "$B"
