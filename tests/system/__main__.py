"""``python tests/system``: tests in a machine with systemd and cgroup v2. See README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from machine import HIERARCHIES, Machine, Missing

TREE = Path(__file__).resolve().parents[2]
CHOSEN = ("tests/kernel/test_spawner.py", "tests/kernel/test_limits_*.py", "tests/kernel/test_timeouts.py",
          "tests/kernel/test_stacks.py",
          "tests/kernel/test_disk_hint.py", "tests/kernel/test_run.py", "tests/plugin/test_limits.py",
          "tests/plugin/test_timeouts.py", "tests/kernel/test_faults.py", "tests/kernel/test_outbound.py")
SPAWNER = Path("pytest_sandbox/native/spawner")
PYTHONS = {"trixie": "3.13", "bookworm": "3.11"}
#: What the tests import, beside what Debian's Python has.
NEEDS = ("pytest>=9", "pluggy", "filelock", "pyroute2", "hypothesis", "jeepney", "pexpect", "pytest-xdist",
         "pytest-rerunfailures", "pytest-timeout", "backports.zstd")


def pack(target: Path, python: str, chosen: list[str], ways: list[str], site: Path) -> None:
    """The payload: the tree as it is, what its tests need for the machine's Python, and what to do."""
    if not site.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-qq", "--target", str(site), "--only-binary=:all:",
                        f"--python-version={python}", "--platform=manylinux2014_x86_64", "--platform=any", *NEEDS],
                       check=True)
    listed = subprocess.run(["git", "-C", str(TREE), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            check=True, capture_output=True, text=True).stdout.split("\0")
    # The machine has no compiler; the program is static, so ours runs there.
    subprocess.run([sys.executable, str(TREE / SPAWNER.parent / "build.py")], check=True, stdout=subprocess.DEVNULL)
    with tarfile.open(target, "w") as tar:
        for name in (*listed, str(SPAWNER)):
            if name and (TREE / name).exists():
                tar.add(TREE / name, f"tree/{name}")
        tar.add(site, "site")
        about = "site/pytest_sandbox-0.dist-info"
        _add(tar, f"{about}/METADATA", "Metadata-Version: 2.1\nName: pytest-sandbox\nVersion: 0\n")
        _add(tar, f"{about}/entry_points.txt", "[pytest11]\nsandbox = pytest_sandbox.plugin\n")
        tar.add(Path(__file__).with_name("inside.sh"), "run", filter=_executable)
        _add(tar, "chosen", " ".join(chosen))
        _add(tar, "ways", " ".join(ways))


def _executable(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mode = 0o755
    return member


def _add(tar: tarfile.TarFile, name: str, text: str) -> None:
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(text)
        file.flush()
        tar.add(file.name, name, filter=_executable)


def main() -> int:
    """Parses the command line, makes the machine if need be, and runs it."""
    parser = argparse.ArgumentParser(prog="python tests/system", description=__doc__)
    parser.add_argument("--suite", choices=tuple(PYTHONS), default="trixie")
    parser.add_argument("--hierarchy", choices=tuple(HIERARCHIES), default="v2")
    parser.add_argument("--as", dest="ways", action="append", choices=("root", "user", "scope"))
    parser.add_argument("--memory", type=int, default=1536)
    parser.add_argument("--seconds", type=float, default=3000)
    parser.add_argument("--kvm", action="store_true")
    parser.add_argument("--rebuild", action="store_true")
    given, chosen = parser.parse_known_args()
    if given.suite == "trixie" and given.hierarchy != "v2":
        parser.error("systemd 257 knows cgroup v2 only: use --suite bookworm")
    cache = Path(os.environ.get("PYTEST_SANDBOX_MACHINES") or Path.home() / ".cache" / "pytest-sandbox-machines")
    machine = Machine(given.suite, cache / given.suite)
    try:
        if given.rebuild or not machine.there():
            print(f"making a machine of Debian {given.suite} in {machine.folder}", flush=True)
            machine.make()
        with tempfile.TemporaryDirectory(prefix="sandbox-system-") as scratch:
            payload = Path(scratch, "payload.tar")
            if not chosen:
                chosen = [str(one.relative_to(TREE)) for pattern in CHOSEN for one in sorted(TREE.glob(pattern))]
            pack(payload, PYTHONS[given.suite], chosen,
                 given.ways or ["root", "user", "scope"], machine.folder / "site")
            return machine.boot(payload, hierarchy=given.hierarchy, memory=given.memory, seconds=given.seconds,
                                kvm=given.kvm)
    except Missing as error:
        print(f"tests/system cannot run here: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
