"""Builds beyond one stage after another: stages side by side, the host as a base, downloads, mounts, and what stops."""

from __future__ import annotations

import functools
import hashlib
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from imagemaker import directory, file, image, layer, symlink, write_layout

from pytest_sandbox import ImageBuildError, Sandbox, planning
from pytest_sandbox.building.builder import Builder, Options
from pytest_sandbox.building.reference import build
from pytest_sandbox.image.store import StoredImage
from pytest_sandbox.runtime.cgroups import host_control

BUSYBOX = shutil.which("busybox")
pytestmark = [
    pytest.mark.usefixtures("build_cache"),
    pytest.mark.skipif(BUSYBOX is None, reason="no static program at hand: apt-get install busybox-static"),
    pytest.mark.skipif(importlib.util.find_spec("dockerfile") is None,
                       reason="the parser is not installed: pip install pytest-sandbox[build]"),
]
APPLETS = ("sh", "cat", "echo", "ls", "rm", "mkdir", "ln", "sleep", "touch", "dd", "id", "stat", "chown", "test",
           "tail")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    assert BUSYBOX is not None
    items = [directory("bin"), file("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755),
             *(symlink(f"bin/{name}", "busybox") for name in APPLETS), directory("tmp", 0o1777)]
    made = image([layer(items)], config={"Env": ["PATH=/bin"]})
    return f"oci:{write_layout(tmp_path_factory.mktemp('b') / 'l', made)}"


def built(text: str, **options: Any) -> tuple[StoredImage, Builder]:
    Path("Containerfile").write_text(text)
    return build(planning.store(), "Containerfile", "context", Options(**options))


def seen(image: StoredImage, *words: str) -> str:
    with Sandbox(image=f"image:{image.image_id}") as sandbox:
        return sandbox.run(words, check=True).stdout


# Stages.

MEET = ("RUN --mount=type=cache,target=/meet touch /meet/{me}; n=0; while test ! -e /meet/{other} && test $n -lt 300; "
        "do sleep 0.1; n=$((n+1)); done; test -e /meet/{other} && echo {me} > /met\n")


def test_stages_that_do_not_depend_on_one_another_run_at_once(base: str) -> None:
    """Each waits for the other: one after the other they would never get there."""
    one = MEET.replace("{me}", "one").replace("{other}", "two")
    two = MEET.replace("{me}", "two").replace("{other}", "one")
    text = (f"FROM {base} AS one\n{one}FROM {base} AS two\n{two}FROM {base} AS unused\nRUN no-such-program\n"
            f"FROM {base}\nCOPY --from=one /met /one\nCOPY --from=two /met /two\n")
    made, builder = built(text)
    assert seen(made, "cat", "/one", "/two") == "one\ntwo\n"
    assert builder.steps == 4
    again, second = built(text)
    assert (again.diff_ids, second.hits) == (made.diff_ids, 4)


def test_a_stage_that_fails_stops_the_others_and_leaves_nothing(base: str, build_cache: Path) -> None:
    text = (f"FROM {base} AS slow\nRUN sleep 1000\nFROM {base} AS bad\nRUN echo because; exit 7\n"
            f"FROM {base}\nCOPY --from=slow /x /x\nCOPY --from=bad /x /y\n")
    with pytest.raises(ImageBuildError, match=r"(?s)line 4.*status 7.*because") as caught:
        built(text)
    assert caught.value.line == 4
    assert os.listdir(build_cache / "staging") == []


def test_a_name_that_only_a_variable_tells(base: str) -> None:
    made, _ = built(f"FROM {base} AS one\nRUN echo 1 > /f\nFROM {base} AS two\nRUN echo 2 > /f\n"
                    f"FROM {base}\nARG WHICH=one\nCOPY --from=$WHICH /f /f\n", arguments={"WHICH": "two"})
    assert seen(made, "cat", "/f") == "2\n"


# The host.

HOST = """FROM host AS made
WORKDIR /opt/place
ENV GREETING=hello
COPY a.txt .
COPY a.txt /etc/from-context
ADD a.txt /var/tmp/added
RUN echo $GREETING > out && id -u > uid && rm /etc/hostname
FROM made AS more
RUN cat /opt/place/out /etc/from-context > /opt/place/both
"""


def test_the_host_as_a_base(base: str, tmp_path: Path) -> None:
    made, builder = built(HOST)
    assert made.host is not None
    assert builder.hits == 0
    with Sandbox(image=f"image:{made.image_id}", user="root") as sandbox:
        assert sandbox.path("/opt/place/both").read_text() == "hello\na"
        assert sandbox.path("/opt/place/uid").read_text() == "0\n"
        assert sandbox.path("/var/tmp/added").read_text() == "a"
        assert not sandbox.path("/etc/hostname").exists()
        assert sandbox.run(["sh", "-c", "ls -ld /var/tmp"]).stdout.startswith("drwxrwxrwt")
        assert sandbox.changes() == []
    assert not Path("/opt/place").exists()
    planning.release_images()
    assert built(HOST)[1].hits == 6
    Path("context/a.txt").write_text("b")
    assert built(HOST)[1].hits == 1


def test_files_of_a_stage_on_the_host_go_into_an_image(base: str) -> None:
    made, _ = built("FROM host AS made\nRUN mkdir -p /opt/o/d && echo 1 > /opt/o/d/f && ln -s d /opt/o/l\n"
                    f"FROM {base}\nCOPY --from=made /opt/o /copied\nCOPY --from=made /opt/o/l/f /file\n"
                    "COPY --from=host /etc/passwd /hosts-passwd\n"
                    "RUN --mount=type=bind,from=made,source=/opt/o,target=/o cat /o/l/f > /seen\n")
    assert made.host is None
    assert seen(made, "cat", "/copied/l/f", "/file", "/seen") == "1\n1\n1\n"
    assert seen(made, "cat", "/hosts-passwd") == Path("/etc/passwd").read_text()


def test_a_state_of_the_host_has_a_name_of_its_own(tmp_path: Path, pytester: pytest.Pytester) -> None:
    (pytester.path / "context").mkdir()
    (pytester.path / "context/Containerfile").write_text("FROM host\nRUN echo built > /opt/built\n")

    def command(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pytest_sandbox.cli", *words], capture_output=True, text=True,
                              check=False, timeout=120)

    wrong = command("build", "context", "-t", "team/app")
    assert wrong.returncode == 2
    assert 'a state of the host is named host:NAME, and nothing else is. Call it "host:team/app"' in wrong.stderr
    assert command("build", "context", "-t", "host:with-built").returncode == 0
    pytester.makepyfile("""
        import pytest
        @pytest.mark.sandbox(image="host:with-built")
        def test_inside(): assert open("/opt/built").read() == "built\\n"
        @pytest.mark.sandbox(image="containerfile:context")
        def test_outside(sandbox): assert sandbox.path("/opt/built").read_text() == "built\\n"
    """)
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=2)


def test_a_reference_whose_file_runs_something_is_built_by_the_sandbox_that_uses_it(base: str) -> None:
    Path("context/Containerfile").write_text(f"FROM {base}\nRUN echo made > /made\n")
    with Sandbox(image="containerfile:context") as sandbox:
        assert sandbox.path("/made").read_text() == "made\n"


# Downloads.

@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "served"
    root.mkdir()
    (root / "tool.tar").write_bytes(b"not really a tar")
    os.utime(root / "tool.tar", (1_500_000_000, 1_500_000_000))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(root))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_add_of_a_url(base: str, server: str, build_cache: Path) -> None:
    digest = hashlib.sha256(b"not really a tar").hexdigest()
    text = (f"FROM {base}\nARG AT={server}\nADD $AT/tool.tar?x=1 /into/\nADD --checksum=sha256:{digest} --chmod=755 "
            "$AT/tool.tar /as-this\n")
    made, _ = built(text)
    assert seen(made, "cat", "/into/tool.tar", "/as-this") == "not really a tar" * 2
    assert seen(made, "stat", "-c", "%a %Y", "/into/tool.tar", "/as-this") == "600 1500000000\n755 1500000000\n"
    assert built(text)[1].hits == 2
    Path("served/tool.tar").write_text("another")
    with pytest.raises(ImageBuildError, match=f"has the checksum sha256:.*, --checksum says sha256:{digest}") as caught:
        built(text)
    assert caught.value.line == 4
    assert built(f"FROM {base}\nADD {server}/tool.tar /into/\n")[1].hits == 0
    for wrong, says in ((f"{server}/none", "answered 404"), (f"{server}/ /d/", "names no file"),
                        ("http://127.0.0.1:1/x", "cannot be fetched")):
        with pytest.raises(ImageBuildError, match=says):
            built(f"FROM {base}\nADD {wrong} /x\n" if " " not in wrong else f"FROM {base}\nADD {wrong}\n")
    assert os.listdir(build_cache / "staging") == []


# Mounts.

def test_a_mount_of_another_stage_or_image(base: str, build_cache: Path) -> None:
    text = (f"FROM {base} AS tools\nRUN mkdir -p /t/bin /t/empty && echo 'echo tool' > /t/bin/tool && "
            "ln -s bin/tool /t/short\n"
            f"FROM {base}\nRUN --mount=type=bind,from=tools,source=/t,target=/t sh /t/short > /said; ls /t >> /said; "
            "touch /t/no || echo read-only >> /said\n"
            f"RUN --mount=from={base},target=/whole ls /whole >> /said\n")
    made, _ = built(text)
    assert seen(made, "cat", "/said") == "tool\nbin\nempty\nshort\nread-only\nbin\ntmp\n"
    assert "t" not in seen(made, "ls", "/").split()
    assert built(text)[1].hits == 3
    assert built(text.replace("echo tool", "echo other"))[1].hits == 0
    assert os.listdir(build_cache / "staging") == []


def test_what_is_written_to_a_tmpfs_is_not_in_the_layer(base: str, build_cache: Path) -> None:
    made, _ = built(f"FROM {base}\nRUN --mount=type=tmpfs,target=/scratch echo x > /scratch/file && "
                    "cat /scratch/file > /said && stat -c %a /scratch >> /said\n")
    assert seen(made, "cat", "/said") == "x\n1777\n"
    assert "scratch" not in seen(made, "ls", "/").split()
    assert os.listdir(build_cache / "staging") == []


def test_a_secret_is_nowhere_afterwards(base: str, build_cache: Path, tmp_path: Path) -> None:
    word = "correct-horse-battery"
    (tmp_path / "token").write_text(word)
    text = (f"FROM {base}\nRUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN "
            "test \"$TOKEN\" = \"$(cat /run/secrets/token)\" && echo ok > /ok; ls -a /run\n")
    made, _ = built(text, secrets={"token": str(tmp_path / "token")})
    assert seen(made, "cat", "/ok") == "ok\n"
    found = [str(path) for path in build_cache.rglob("*") if path.is_file() and not path.is_symlink()
             and word.encode() in path.read_bytes()]
    assert found == []
    assert word.encode() not in made.config
    (tmp_path / "token").write_text("another")  # is no reason to do it again
    assert built(text, secrets={"token": str(tmp_path / "token")})[1].hits == 1


# The command.

@pytest.mark.parametrize(("words", "says"), [
    (["-t", "Bad Name"], "names are in lower case"),
    (["--memory", "lots"], "memory='lots' cannot be used"),
    (["--disk", "0"], "disk='0' cannot be used"),
    (["--timeout", "0"], "give a number of seconds above 0"),
    (["--secret", "token"], "write it like id=token,src=FILE"),
    (["--secret", "id=token,src=none"], "there is no file none"),
    (["-f", "none"], "there is no such file or directory"),
    (["--target", "none"], "there is no stage 'none'. Its stages: 0"),
])
def test_what_the_command_is_given_is_looked_at_before_anything_is_built(words: list[str], says: str) -> None:
    Path("context/Containerfile").write_text("FROM scratch\nCOPY a.txt /\n")
    done = subprocess.run([sys.executable, "-m", "pytest_sandbox.cli", "build", "context", *words], capture_output=True,
                          text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert says in done.stderr
    assert "COPY" not in done.stderr
    assert "Traceback" not in done.stderr


# What does not end well.

def test_a_run_that_never_ends(base: str, build_cache: Path) -> None:
    with pytest.raises(ImageBuildError, match=r"line 2, RUN echo on; sleep 1000: it ran longer than 0\.5 s\non\. "
                                              r"Give it longer \(--timeout\)"):
        built(f"FROM {base}\nRUN echo on; sleep 1000\n", timeout=0.5)
    assert os.listdir(build_cache / "staging") == []


def test_a_run_that_fills_the_disk(base: str, build_cache: Path) -> None:
    with pytest.raises(ImageBuildError, match=r"(?s)line 2.*status 1.*No space left.*--disk SIZE"):
        built(f"FROM {base}\nRUN dd if=/dev/zero of=/big bs=1M count=20\n", disk="4M")
    with pytest.raises(ImageBuildError, match=r"(?s)line 2.*--disk SIZE"):  # whatever the program says about it
        built(f"FROM {base}\nRUN dd if=/dev/zero of=/big bs=1M count=20 2>/dev/null\n", disk="4M")
    assert os.listdir(build_cache / "staging") == []
    assert seen(built(f"FROM {base}\nRUN dd if=/dev/zero of=/big bs=1M count=20\n", disk="64M")[0], "ls", "/big")


def test_a_run_that_runs_out_of_memory(base: str, build_cache: Path) -> None:
    ability = host_control().abilities()["memory"]
    if not ability.ok:
        pytest.skip(f"memory: {ability.how}")
    with pytest.raises(ImageBuildError, match=r"(?s)line 2.*memory limit of 16 MiB.*--memory SIZE"):
        built(f"FROM {base}\nRUN tail /dev/zero\n", memory="16M")
    assert os.listdir(build_cache / "staging") == []
