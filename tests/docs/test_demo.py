"""The demo passes, and its tests cannot hurt a host: without a sandbox they refuse to run."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pages import ROOT

DEMO = ROOT / "docs" / "examples"


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-c", DEMO / "pytest.ini", f"--rootdir={DEMO}", DEMO, *options],
        cwd=DEMO, capture_output=True, text=True)


@pytest.mark.parametrize("test", [
    "test_rewrite_the_password_file", "test_kill_every_process_in_sight", "test_serve_on_port_80", "test_remove_usr",
])
def test_without_a_sandbox_a_dangerous_test_ends_the_run_before_it_does_anything(test: str) -> None:
    done = run_demo("--sandbox=off", "-k", test)
    assert done.returncode == 3
    assert "NOT in a sandbox, so nothing was done" in done.stdout
    assert "PASSED" not in done.stdout


def test_the_demo_passes_and_tells_its_story() -> None:
    done = run_demo()
    assert done.returncode == 0, done.stdout + done.stderr
    for line in ("Now it says: mallory", "'hello from port 80'", "After rm -rf /usr it holds 0.", "is still there."):
        assert line in done.stdout
