"""Fixture mode on images of every shape: many layers, odd trees, no libc, no shell, no Python, other users."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from imagemaker import Item, directory, file, image, layer, symlink, write_layout

from pytest_sandbox import ImageError, Sandbox, planning

BUSYBOX = shutil.which("busybox")
ENV = ["PATH=/bin"]

pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="no static program at hand: apt-get install busybox-static")


def program() -> bytes:
    assert BUSYBOX is not None
    return Path(BUSYBOX).read_bytes()


def busybox(*more: Item, etc: bool = True) -> bytes:
    """A layer with a static busybox, and ``more``."""
    names = ["sh", "cat", "ls", "id", "echo", "env", "pwd", "touch", "rm", "stat", "readlink", "sleep", "mkdir", "mv",
             "chmod", "hostname", "test"]
    base = [directory("bin"), file("bin/busybox", program(), mode=0o755),
            *(symlink(f"bin/{name}", "busybox") for name in names)]
    files = [directory("etc"), file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:2000::/srv/web:/bin/sh\n"),
             file("etc/group", "root:x:0:\nstaff:x:50:\n")] if etc else []
    return layer([*base, *files, *more])


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def nothing_is_held(nothing_is_left_behind: None) -> Iterator[None]:
    """A process holds the layers that it has used; here they are let go, for the look at what is left."""
    yield
    planning.release_images()


def made(path: Path, layers: Sequence[bytes], **config: Any) -> str:
    return f"oci:{write_layout(path / 'layout', image(layers, config={'Env': ENV, **config}))}"


def test_a_static_image_from_both_sides(tmp_path: Path) -> None:
    with Sandbox(image=made(tmp_path, [busybox()])) as sandbox:
        assert sandbox.run(["ls", "/"], check=True).stdout.split() == ["bin", "dev", "etc", "proc", "run", "sys"]
        assert sandbox.run(["id", "-u"]).stdout == "0\n"
        assert sandbox.changes() == []
        sandbox.run(["sh", "-c", "echo 1 >> /etc/group; rm /bin/mv; mkdir /new; touch /new/x"], check=True)
        assert [(one.kind, one.path) for one in sandbox.changes()] == [
            ("deleted", "/bin/mv"), ("modified", "/etc/group"), ("added", "/new"), ("added", "/new/x")]
        assert sandbox.path("/new/x").exists()
        sandbox.reset()
        assert sandbox.changes() == []
        assert sandbox.run(["ls", "/bin/mv"]).returncode == 0


@pytest.mark.parametrize("count", [2, 21, 60, 498, 499])
def test_many_layers(tmp_path: Path, count: int) -> None:
    """Each layer adds a file and takes away the one of the layer below; with the busybox there is one more."""
    layers = [busybox(), *(layer([directory("d"), file(f"d/{at}", str(at)), file(f"d/.wh.{at - 1}"),
                                  file("d/top", str(at))]) for at in range(count))]
    with Sandbox(image=made(tmp_path, layers)) as sandbox:
        assert sandbox.run(["ls", "/d"], check=True).stdout.split() == [str(count - 1), "top"]
        assert sandbox.path("/d/top").read_text() == str(count - 1)
        assert sandbox.run(["hostname"]).stdout == "sandbox\n"
        assert sandbox.path("/etc/hostname").read_text() == "sandbox\n"
        assert "web" in sandbox.path("/etc/passwd").read_text()
        assert sandbox.changes() == []
        sandbox.run(["rm", f"/d/{count - 1}"], check=True)
        assert [(one.kind, one.path) for one in sandbox.changes()] == [("deleted", f"/d/{count - 1}")]


def test_more_layers_than_the_kernel_mounts_are_an_error(tmp_path: Path) -> None:
    reference = made(tmp_path, [layer([file(str(at))]) for at in range(501)])
    with pytest.raises(ImageError, match="501 layers; the kernel mounts 500"):
        Sandbox(image=reference).start()


def test_a_single_static_program_and_nothing_else(tmp_path: Path) -> None:
    only = layer([file("busybox", program(), mode=0o755)])
    with Sandbox(image=made(tmp_path, [only], Entrypoint=["/busybox"], Cmd=["echo", "hello"])) as sandbox:
        assert sandbox.run([]).stdout == "hello\n"
        assert sandbox.run(["/busybox", "id", "-u"]).stdout == "0\n"
        assert sandbox.changes() == []
        assert sandbox.path("/etc/passwd").read_text() == "root:x:0:0::/root:/bin/sh\n"
        with pytest.raises(FileNotFoundError, match="no directory of its PATH inside has it"):
            sandbox.run(["sh"])


def test_an_image_without_anything_starts(tmp_path: Path) -> None:
    with Sandbox(image=made(tmp_path, [])) as sandbox:
        assert sorted(one.name for one in sandbox.path("/").iterdir()) == ["dev", "etc", "proc", "run", "sys"]
        assert sandbox.changes() == []


def test_the_images_config_is_honoured(tmp_path: Path) -> None:
    reference = made(tmp_path, [busybox()], Env=[*ENV, "COLOUR=blue", "EMPTY="], User="web", WorkingDir="/srv/app",
                     Entrypoint=["sh", "-c"], Cmd=["id -u; id -g; pwd; echo $COLOUR $HOME"], StopSignal="SIGUSR1")
    with Sandbox(image=reference) as sandbox:
        assert sandbox.run([]).stdout.split("\n") == ["1000", "2000", "/srv/app", "blue /srv/web", ""]
        assert "EMPTY=\n" in sandbox.run(["env"]).stdout
        assert not any(one.startswith("PYTEST") for one in sandbox.run(["env"]).stdout.splitlines())
        assert sandbox.run(["pwd"], cwd="/etc").stdout == "/etc\n"
        with sandbox.popen(["sh", "-c", "trap 'exit 5' USR1; echo up; while :; do sleep 0.05; done"]) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            process.terminate()
            assert process.wait(10) == 5
        assert sandbox.changes() == []


@pytest.mark.parametrize(("user", "ids"), [("1234", ["1234", "0"]), ("1234:staff", ["1234", "50"]),
                                           ("web:7", ["1000", "7"])])
def test_users_as_images_name_them(tmp_path: Path, user: str, ids: list[str]) -> None:
    with Sandbox(image=made(tmp_path, [busybox()], User=user)) as sandbox:
        assert sandbox.run(["sh", "-c", "id -u; id -g"]).stdout.split() == ids
        names = [line.split(":")[0] for line in sandbox.path("/etc/passwd").read_text().splitlines()
                 if line.split(":")[2] == ids[0]]
        assert len(names) == 1


def test_a_user_that_the_image_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="wants to run as the user 'nobody-here'"):
        Sandbox(image=made(tmp_path, [busybox()], User="nobody-here")).start()


@pytest.mark.parametrize("user", ["4294967295", "0:4294967295", "99999999999", "\xb2", "odd", "huge", "0:odd"])
def test_ids_that_are_none(tmp_path: Path, user: str) -> None:
    """The largest number says "as it is" to the kernel: who asked for it would be root."""
    lines = "odd:x:\xb2:0::/:\nhuge:x:4294967295:0::/:\nroot:x:0:0::/:\n"
    odd = layer([file("etc/passwd", lines), file("etc/group", "odd:x:\xb2:\n")])
    with pytest.raises(ImageError, match="which it does not have"):
        Sandbox(image=made(tmp_path, [busybox(), odd], User=user)).start()


def test_users_are_those_of_the_merged_image(tmp_path: Path) -> None:
    """A link in one layer, its target in another; and a passwd that an upper layer has taken away."""
    moved = [busybox(etc=False), layer([symlink("etc", "/usr/etc")]),
             layer([directory("usr"), directory("usr/etc"), file("usr/etc/passwd", "app:x:77:78::/:/bin/sh\n")])]
    with Sandbox(image=made(tmp_path, moved, User="app")) as sandbox:
        assert sandbox.run(["sh", "-c", "id -u; id -g"]).stdout.split() == ["77", "78"]
        assert sandbox.path("/usr/etc/hostname").read_text() == "sandbox\n"
        assert sandbox.run(["readlink", "/etc"]).stdout == "/usr/etc\n"
        assert sandbox.changes() == []
    gone = [busybox(), layer([file("etc/.wh.passwd")])]
    with pytest.raises(ImageError, match="'web', which it does not have"):
        Sandbox(image=made(tmp_path / "gone", gone, User="web")).start()


def test_an_etc_that_leads_nowhere_or_is_no_directory_is_left_alone(tmp_path: Path) -> None:
    for name, odd in (("link", symlink("etc", "/no/where")), ("file", file("etc", "a file"))):
        with Sandbox(image=made(tmp_path / name, [busybox(odd, etc=False)])) as sandbox:
            assert sandbox.run(["echo", "ok"]).stdout == "ok\n"
            assert sandbox.changes() == []
            assert sandbox.path("/etc").is_symlink() == (name == "link")


def test_files_of_etc_that_are_directories(tmp_path: Path) -> None:
    """They are covered by the sandbox's own files; what is no passwd is left alone."""
    odd = [directory("etc"), *(directory(f"etc/{name}") for name in ("passwd", "group", "hosts", "resolv.conf"))]
    with Sandbox(image=made(tmp_path, [busybox(*odd, etc=False)])) as sandbox:
        assert "sandbox" in sandbox.path("/etc/hosts").read_text()
        assert sandbox.run(["ls", "/etc/passwd"]).returncode == 0
        assert sandbox.changes() == []


def test_a_store_whose_name_is_long_and_odd(tmp_path: Path) -> None:
    """Fewer than twenty layers, and still more than the options of one mount(2) have room for."""
    layers = [busybox(), *(layer([file(f"f{at}", str(at))]) for at in range(12))]
    cache = tmp_path / ("a:b,c\\d e" + "x" * 200) / ("y" * 200)
    layout = write_layout(tmp_path / "layout", image(layers))
    script = ("from pytest_sandbox import Sandbox\n"
              f"with Sandbox(image='oci:{layout}') as sandbox: print(sandbox.run(['ls', '/f0', '/f11']).stdout)")
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTEST_SANDBOX_CACHE": str(cache)},
                          capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["/f0", "/f11"], done.stderr


def test_a_link_in_the_image_does_not_read_or_change_the_host(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "passwd").write_text("host:x:0:0::/:/bin/sh\n")
    (secret / "passwd").chmod(0o644)
    layers = [busybox(symlink("etc", f"/host{secret}"), etc=False), layer([symlink("run", f"/host{secret}")])]
    with Sandbox(image=made(tmp_path, layers)) as sandbox:
        assert sandbox.run(["ls", "-a", "/etc"]).returncode != 0
        assert sandbox.run(["ls", "/run"]).returncode == 0
    assert os.listdir(secret) == ["passwd"]


@pytest.mark.parametrize("odd", [symlink("proc", "/elsewhere"), symlink("proc", "bin"), file("proc", "a file"),
                                 symlink("proc", "proc"), symlink("dev", "../../dev2"), file("sys", ""),
                                 symlink("run", "var/run")])
def test_odd_places_for_mounts(tmp_path: Path, odd: Item) -> None:
    with Sandbox(image=made(tmp_path, [busybox(odd)])) as sandbox:
        assert sandbox.run(["/bin/busybox", "cat", "/proc/1/comm"]).returncode == 0
        assert sandbox.run(["/bin/busybox", "sh", "-c", "echo > /dev/null && ls /sys/kernel"]).returncode == 0
        assert sandbox.run(["/bin/busybox", "touch", "/run/x"]).returncode == 0
        assert [one for one in sandbox.changes() if one.path != "/var"] == []


def test_the_resolver_follows_the_network_also_in_one_process(tmp_path: Path) -> None:
    reference = made(tmp_path, [busybox()])
    with Sandbox(image=reference) as none, Sandbox(image=reference, network="host") as host:
        assert none.path("/etc/resolv.conf").read_text() == ""
        assert host.path("/etc/resolv.conf").read_text() == Path("/etc/resolv.conf").read_text()


def test_a_directory_as_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    assert BUSYBOX is not None
    shutil.copy2(BUSYBOX, root / "bin" / "busybox")
    with Sandbox(image=f"rootfs:{root}") as sandbox:
        assert sandbox.run(["busybox", "touch", "/made"], check=True).returncode == 0
        assert [(one.kind, one.path) for one in sandbox.changes()] == [("added", "/made")]
    assert sorted(os.listdir(root)) == ["bin"]


def test_setid_programs_gain_nothing(tmp_path: Path) -> None:
    layers = [busybox(file("bin/up", program(), mode=0o4755))]
    with Sandbox(image=made(tmp_path, layers, User="web")) as sandbox:
        assert sandbox.run(["/bin/busybox", "stat", "-c", "%a", "/bin/up"]).stdout == "4755\n"
        assert sandbox.run(["/bin/busybox", "id", "-u"]).stdout == "1000\n"


def test_a_signal_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="its stop signal is 'SIGNOPE'"):
        Sandbox(image=made(tmp_path, [busybox()], StopSignal="SIGNOPE")).start()
    with Sandbox(image=made(tmp_path / "by number", [busybox()], StopSignal="10")) as sandbox:
        assert sandbox._ready().plan.root.stop_signal == signal.SIGUSR1


@pytest.fixture
def ready_made() -> Callable[[str], str]:
    """The images that were made beforehand (images/build.py), for that takes minutes and a package archive."""
    def find(name: str) -> str:
        path = Path(os.environ.get("SANDBOX_TEST_IMAGES") or "/nonexistent") / f"{name}.tar"
        if not path.exists():
            pytest.skip(f"no image {name}: run images/build.py and set SANDBOX_TEST_IMAGES to its output directory")
        return f"oci-archive:{path}"
    return find


def test_debian(ready_made: Callable[[str], str]) -> None:
    with Sandbox(image=ready_made("debian")) as sandbox:
        assert "Debian" in sandbox.run(["cat", "/etc/os-release"], check=True).stdout
        assert sandbox.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}", "dpkg"], check=True).stdout == "ii "
        sandbox.run(["rm", "-rf", "/usr/share"], check=True)
        assert ("deleted", "/usr/share") in {(one.kind, one.path) for one in sandbox.changes()}
    assert subprocess.run(["ls", "/usr/share"], capture_output=True, check=False).returncode == 0


def test_python(ready_made: Callable[[str], str]) -> None:
    with Sandbox(image=ready_made("python")) as sandbox:
        sandbox.run(["python", "-m", "venv", "/opt/venv"], check=True)
        assert sandbox.run(["/opt/venv/bin/python", "-c", "import pip; print(__import__('sys').prefix)"],
                           check=True).stdout == "/opt/venv\n"


def test_the_same_image_is_made_every_time(tmp_path: Path) -> None:
    """``images/build.py``, from its own Containerfile, twice, with nothing kept in between."""
    if importlib.util.find_spec("dockerfile") is None:  # not imported here: it brings Go's runtime and its signals
        pytest.skip("not installed: pip install 'pytest-sandbox[build]'")
    script = Path(__file__).parents[2] / "images/build.py"
    for run in ("one", "two"):
        done = subprocess.run([sys.executable, script, "--output", tmp_path / run, "busybox"], check=False, text=True,
                              capture_output=True, env={**os.environ, "PYTEST_SANDBOX_CACHE": f"{tmp_path}/c{run}"})
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / run / "busybox.tar").read_bytes() for run in ("one", "two"))
    assert one == two
    with Sandbox(image=f"oci-archive:{tmp_path / 'one/busybox.tar'}") as sandbox:
        assert sandbox.run(["echo", "hello"], check=True).stdout == "hello\n"
        assert sandbox.run(["ls", "/"], check=True).stdout.split() == sorted(
            ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"])
