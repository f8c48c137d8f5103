"""Runs a project's suite as one user, plainly or sandboxed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compare import Outcome, outcomes
from project import Project


@dataclass(frozen=True)
class User:
    """``kind`` is what the list of explanations calls this user: root or unprivileged."""

    name: str
    uid: int
    gid: int

    @property
    def kind(self) -> str:
        return "unprivileged" if self.uid else "root"

    @classmethod
    def named(cls, name: str) -> User:
        found = pwd.getpwnam(name)
        return cls(name, found.pw_uid, found.pw_gid)

    @classmethod
    def caller(cls) -> User:
        return cls.named(pwd.getpwuid(os.geteuid()).pw_name)

    def start(self, command: Sequence[str], **options: object) -> subprocess.Popen[bytes]:
        if self.uid != os.geteuid():
            options |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(command, **options)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True)
class Run:
    tests: dict[str, Outcome]
    seconds: float


class SuiteBroke(Exception):
    """pytest did not get as far as a report. The text says where its output is and how it ended."""


def run_suite(project: Project, source: Path, python: Path, user: User, folder: Path, options: Sequence[str],
              timeout: float) -> Run:
    """Runs the suite in a fresh copy of the source, always at the same path, so that reports can be compared."""
    tree, home, report, output = (folder / name for name in ("tree", "home", "junit.xml", "output.txt"))
    for old in (tree, home):
        shutil.rmtree(old, ignore_errors=True)
    for file in (report, *map(Path, project.leaves)):
        file.unlink(missing_ok=True)
    shutil.copytree(source, tree, symlinks=True)
    home.mkdir()
    if user.uid != os.geteuid():
        subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", str(folder)], check=True)
    command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}", "-q", *options,
               *project.arguments]
    # Nothing of ours but what a run needs: a suite must not depend on who compares it.
    environment = {
        "PATH": f"{python.parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8",
        "USER": user.name, "LOGNAME": user.name, "PYTHONDONTWRITEBYTECODE": "1", **project.environment,
    }
    begin = time.monotonic()
    with open(output, "wb") as file, user.start(
        command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise SuiteBroke(f"it took longer than {timeout:.0f} s; its output is in {output}") from None
    seconds = time.monotonic() - begin
    if process.returncode not in (0, 1) or not report.exists():
        tail = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
        raise SuiteBroke(f"pytest ended with {process.returncode}; the end of {output}:\n{tail}")
    return Run(outcomes(report), seconds)
