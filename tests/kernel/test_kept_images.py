"""Kept tests on images: the state and its start in the store, gone from it, and in other tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from imagemaker import directory, file, image, layer, symlink, write_layout

BUSYBOX = shutil.which("busybox")
pytestmark = pytest.mark.skipif(BUSYBOX is None, reason="no static program at hand: apt-get install busybox-static")

SUITE = """
    import pytest

    def prepare(sandbox):
        sandbox.path("/committed").write_text("by a fixture")

    @pytest.fixture
    def prepared(sandbox_factory):
        return sandbox_factory.prepared(prepare, image=IMAGE)

    @pytest.mark.sandbox(image=IMAGE, env={"COLOUR": "blue"})
    def test_it(sandbox):
        sandbox.run(["sh", "-c", "echo changed > /etc/state; rm /etc/gone; mkdir /new; ln /etc/state /new/link"],
                    check=True)
        assert sandbox.run(["sh", "-c", "cat /etc/start; echo $COLOUR"]).stdout == ""

    def test_on_what_was_committed(prepared, sandbox_factory):
        sandbox = sandbox_factory(image=prepared)
        sandbox.path("/more").write_text("more")
        assert False
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    assert BUSYBOX is not None
    items = [directory("bin"), file("bin/busybox", Path(BUSYBOX).read_bytes(), mode=0o755),
             *(symlink(f"bin/{name}", "busybox") for name in ("sh", "cat", "echo", "ls", "rm", "mkdir", "ln")),
             directory("etc"), file("etc/start", "start"), file("etc/gone", "gone")]
    return write_layout(tmp_path / "layout", image([layer(items[:9]), layer(items[9:])],
                                                   config={"Env": ["PATH=/bin"], "Cmd": ["sh"]}))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_SANDBOX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def command(*words: str, given: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pytest_sandbox.cli", *words], input=given, capture_output=True,
                          text=True, check=False, timeout=120, env={**os.environ, **env})


@pytest.fixture
def kept(pytester: pytest.Pytester, cache: Path, base: Path) -> dict[str, str]:
    pytester.makepyfile(test_suite=f"    IMAGE = 'oci:{base}'\n{SUITE}")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox-keep=failed")
    result.assert_outcomes(failed=2)
    return {name: one for one, name in re.findall(r"^pytest-sandbox shell (\w+)    \S*::(\w+)", result.stdout.str(),
                                                  re.M)}


LOOK = "cat /etc/state /new/link /etc/start; ls /etc; echo; echo $COLOUR\n"
SEEN = "changed\nchanged\nstart"


def test_the_state_and_its_start(kept: dict[str, str], cache: Path, base: Path) -> None:
    done = command("shell", kept["test_it"], given=LOOK)
    assert SEEN in done.stdout
    assert "gone" not in done.stdout
    assert "\nblue\n" in done.stdout
    again = command("replay", kept["test_it"], "--", "-p", "no:cacheprovider")
    assert "1 failed" in again.stdout
    assert "startblue" in again.stdout
    committed = command("shell", kept["test_on_what_was_committed"], given="cat /committed /more")
    assert "by a fixturemore" in committed.stdout
    shutil.rmtree(base)  # the image is in the store, and a kept test keeps it there
    assert "a kept test needs it; stays" in command("prune", "--all").stdout
    assert SEEN in command("shell", kept["test_it"], given=LOOK).stdout
    assert "1 failed" in command("replay", kept["test_it"]).stdout


def test_its_image_is_gone(kept: dict[str, str], cache: Path, base: Path) -> None:
    shutil.rmtree(base)
    for one in (cache / "v1/layers").iterdir():
        subprocess.run(["rm", "-rf", str(one)], check=True)
    for words in (("shell", kept["test_it"]), ("replay", kept["test_it"]), ("export", kept["test_it"])):
        done = command(*words)
        assert done.returncode == 2
        assert f"the image that kept test {kept['test_it']} started from is gone: oci:{base}" in done.stderr
        assert "Make it again" in done.stderr


def test_a_bundle_in_another_cache(kept: dict[str, str], cache: Path, base: Path, tmp_path: Path,
                                   pytester: pytest.Pytester) -> None:
    done = command("export", kept["test_it"], "-o", "bundle.tar")
    assert done.returncode == 0, done.stderr
    shutil.rmtree(cache)
    layout = base.rename(tmp_path / "aside")
    there = {"PYTEST_SANDBOX_CACHE": str(tmp_path / "elsewhere")}
    assert SEEN in command("shell", "bundle.tar", given=LOOK, **there).stdout
    again = command("replay", "bundle.tar", **there)  # in a checkout whose image cannot be had: the bundle has it
    assert "startblue" in again.stdout
    assert "1 failed" in again.stdout
    committed = command("load", "bundle.tar", **there)
    assert "test_suite.py::test_it" in committed.stdout
    assert layout.exists()


def test_podman_loads_the_state(kept: dict[str, str], tmp_path: Path, pytester: pytest.Pytester) -> None:
    podman = shutil.which("podman")
    if podman is None or os.getuid() != 0:
        pytest.skip("no podman at hand, or not root: it would leave a process that holds a user namespace")
    short = tempfile.mkdtemp(prefix="kept")  # podman wants a short path
    words = [podman, f"--root={tmp_path}/storage", f"--runroot={short}", "--storage-driver=vfs",
             "--cgroup-manager=cgroupfs", "--events-backend=none"]
    probe = subprocess.run([*words, "images"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"podman does not work here: {probe.stderr}")
    command("export", kept["test_it"], "-o", "bundle.tar")
    try:
        done = subprocess.run([*words, "load", "-i", "bundle.tar"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        name = f"localhost/pytest-sandbox/kept:{kept['test_it']}"
        assert name in done.stdout
        made = subprocess.run([*words, "create", name], capture_output=True, text=True, check=True).stdout.strip()
        tree = subprocess.run(f"{' '.join(words)} export {made} | tar t", shell=True, capture_output=True, text=True,
                              check=True).stdout.splitlines()
        assert {"etc/state", "new/link", "etc/start"} <= set(tree)
        assert "etc/gone" not in tree
        looked = json.loads(subprocess.run([*words, "image", "inspect", name], capture_output=True, text=True,
                                           check=True).stdout)
        assert looked[0]["Config"]["Cmd"] == ["sh"]
    finally:
        subprocess.run([*words, "rm", "--all", "--force"], capture_output=True, check=False)
        subprocess.run([*words, "rmi", "--all", "--force"], capture_output=True, check=False)
        shutil.rmtree(short, ignore_errors=True)


def test_a_state_of_the_host_travels(pytester: pytest.Pytester, cache: Path, tmp_path: Path) -> None:
    pytester.makepyfile(test_suite="""
        import pytest
        from pytest_sandbox import Sandbox

        @pytest.fixture(scope="session", autouse=True)
        def state():
            with Sandbox(user="root") as sandbox:
                sandbox.run(["sh", "-c", "echo one > /var/tmp/one; mkdir -p /etc/state; echo x > /etc/state/x"],
                            check=True)
                sandbox.commit("host:prepared-here")

        @pytest.mark.sandbox(image="host:prepared-here", user="root")
        def test_it():
            open("/var/tmp/two", "w").write(open("/var/tmp/one").read())
            assert False
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "--sandbox-keep=failed")
    result.assert_outcomes(failed=1)
    found = re.search(r"pytest-sandbox shell (\w+)", result.stdout.str())
    assert found is not None
    look = "cat /var/tmp/one /var/tmp/two /etc/state/x; ls -ld /var/tmp /tmp\n"
    here = command("shell", found[1], given=look).stdout
    assert here.startswith("one\none\nx\n")
    assert here.count("drwxrwxrwt") == 2
    assert command("export", found[1], "-o", "bundle.tar").returncode == 0
    there = {"PYTEST_SANDBOX_CACHE": str(tmp_path / "elsewhere")}
    away = command("shell", "bundle.tar", given=look, **there)
    assert away.stdout.startswith("one\none\nx\n"), away.stderr
    assert away.stdout.count("drwxrwxrwt") == 2
    pytester.makepyfile(test_suite="""
        import pytest
        @pytest.mark.sandbox(user="root")
        def test_it():
            import os
            assert (open("/etc/state/x").read(), os.path.exists("/var/tmp/two")) == ("x\\n", False)
    """)
    again = command("replay", "bundle.tar", "--", "-p", "no:cacheprovider", **there)
    assert "1 passed" in again.stdout, again.stdout + again.stderr




STRANGER = 12345


def stranger(home: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs this Python as another user, with our modules. Skips where that cannot be."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    env = {"HOME": str(home), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "TMPDIR": str(home),
           "PYTHONDONTWRITEBYTECODE": "1",
           "PYTHONPATH": ":".join(one for one in [str(Path(__file__).parents[2]), *sys.path] if one)}
    os.chown(home, STRANGER, STRANGER)

    def run(*words: str, python: str, given: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *words], input=given, capture_output=True, text=True, check=False, timeout=120,
                              cwd=home, env=env, user=STRANGER, group=STRANGER, extra_groups=[])

    why = ""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            found = run("-c", "import pytest, pytest_sandbox, sys; print(sys.version_info[:2])", python=python)
        except PermissionError as error:
            why = str(error)
            continue
        if found.stdout == f"{sys.version_info[:2]}\n":
            return partial(run, python=python)
        why = found.stderr
    pytest.skip(f"another user cannot read this Python and our modules: {why}")


def ourselves(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], input=given, capture_output=True, text=True, check=False,
                          timeout=120)


def test_bundles_between_root_and_an_ordinary_user(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Path(tempfile.mkdtemp(prefix="kept", dir="/var/tmp"))
    try:
        where.chmod(0o755)
        home = where / "home"
        home.mkdir()
        theirs = stranger(home)
        probe = theirs("-m", "pytest_sandbox.cli", "run", "--", "true")
        if probe.returncode:
            pytest.skip(f"no sandboxes for ordinary users here: {probe.stderr}")
        suite = where / "test_suite.py"
        suite.write_text("import pytest\nfrom pathlib import Path\n@pytest.mark.sandbox(user='root')\n"
                         "def test_it():\n    Path('/etc/kept').write_text('kept')\n"
                         "    Path('/var/tmp/kept-file').write_text('too')\n    Path('/etc/hosts').unlink()\n"
                         "    assert False\n")
        monkeypatch.setenv("SHELL", "/bin/sh")
        look = "cat /etc/kept /var/tmp/kept-file; ls /etc/hosts; ls -ld /var/tmp\n"
        for maker, opener, folder in ((ourselves, theirs, where), (theirs, ourselves, home)):
            done = maker("-m", "pytest", "-p", "no:cacheprovider", "--sandbox-keep=failed", f"--rootdir={where}",
                         str(suite))
            found = re.search(r"pytest-sandbox shell (\w+)", done.stdout)
            assert found is not None, done.stdout + done.stderr
            bundle = folder / "bundle.tar"
            made = maker("-m", "pytest_sandbox.cli", "export", found[1], "-o", str(bundle))
            assert made.returncode == 0, made.stderr
            bundle.chmod(0o644)
            seen = opener("-m", "pytest_sandbox.cli", "shell", str(bundle), given=look)
            assert seen.stdout.startswith("kepttoo"), seen.stderr
            assert "ls: cannot access '/etc/hosts'" in seen.stderr
            assert "drwxrwxrwt" in seen.stdout
            again = opener("-m", "pytest_sandbox.cli", "replay", "--rootdir", str(where), str(bundle), "--", "-p",
                           "no:cacheprovider")
            assert "1 failed" in again.stdout, again.stdout + again.stderr
    finally:
        shutil.rmtree(where)
