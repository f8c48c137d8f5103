"""Do pytest-forked's own tests pass with a sandbox for a fork? Run by ``tox run -e pytest-forked-tests``.

Downloads its source from PyPI, replaces its names by ours in a copy of the tests, and runs them.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REQUIREMENT = "pytest-forked==1.7.5"

#: file -> what is replaced, by what. All of it has to be found: else pytest-forked's tests are not the ones we adapted.
REPLACEMENTS = {
    "test_boxed.py": (
        ('"--forked"', '"--sandbox=all"'),
        ("@pytest.mark.forked", "@pytest.mark.sandbox"),
        ("CRASHED with signal 15 (SIGTERM)", "it was killed by SIGTERM"),
        ("EXITED with status 42", "it exited with status 42"),
        ("CRASHED", "SandboxCrashed"),
        ("not config.option.forked", 'config.getoption("--sandbox") != "all"'),
        # Its captured output was lost. With ``-s`` it is on the terminal, as for a plain test, and in no section.
        ('        "no",\n', ""),
        # With fd capture it is there. sys capture keeps it in the memory of the process that died.
        ('pytest.param("fd", marks=pytest.mark.xfail(reason="capture cleanup needed"))', '"fd"'),
    ),
    "test_xfail_behavior.py": (
        ("@pytest.mark.forked", "@pytest.mark.sandbox"),
        ("plugins:* forked*", "plugins:* sandbox*"),
        # The reason of an expected failure is the reason that the mark gives, however the test failed.
        ('''        f"reason: The process gets terminated; "
        f"pytest-forked reason: "
        f"*:*: running the test CRASHED with signal {sig_num:d}*"
''', '''        "The process gets terminated"
'''),
    ),
    "conftest.py": (),
}


def adapt(source: Path, target: Path) -> None:
    for name, replacements in REPLACEMENTS.items():
        text = source.joinpath(name).read_text(encoding="utf-8")
        for old, new in replacements:
            if old not in text:
                raise SystemExit(f"{name} of {REQUIREMENT} does not contain {old!r}")
            text = text.replace(old, new)
        target.joinpath(name).write_text(text, encoding="utf-8")


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="sandbox-forked-", dir="/var/tmp") as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--no-binary=pytest-forked",
                        "--dest", name, REQUIREMENT], check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extraction_filter = tarfile.data_filter
            tar.extractall(folder / "source")
        (testing,) = folder.glob("source/*/testing")
        tests = folder / "tests"
        tests.mkdir()
        adapt(testing, tests)
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", str(tests), *sys.argv[1:]]
        return subprocess.run(command, cwd=tests).returncode


if __name__ == "__main__":
    sys.exit(main())
