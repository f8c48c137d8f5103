"""What pytest needs on Python 3.10 and has in the standard library since: obtained once, for guests of that version.

The caller's own copies are taken where there are some. Else, when the first guest says that it lacks them, the caller's
pip (or uv) fetches three wheels of pure Python into the cache directory, by the user's own configuration of either.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

from .errors import SandboxGuestError
from .planning import cache_directory

#: The modules, and the distributions that they come in.
MODULES = ("exceptiongroup", "tomli", "typing_extensions")
#: Python versions below this lack them.
BELOW = (3, 11)
_DISTRIBUTIONS = ("exceptiongroup", "tomli", "typing-extensions")
_SECONDS = 120


def directory(version: tuple[int, int]) -> str:
    """Where the wheels for that Python lie, unpacked, once :func:`obtain` has been there."""
    return os.path.join(cache_directory(), "guests", f"wheels-{version[0]}.{version[1]}")


def obtain(version: tuple[int, int], offline: bool) -> str:
    """Fetches the wheels for that Python, unless they are there. Returns their directory.

    :param offline: ask no package index.
    :raises SandboxGuestError: when they cannot be had; says why, and what to do.
    """
    made = directory(version)
    if os.path.isdir(made):
        return made
    name = f"{version[0]}.{version[1]}"
    if offline:
        raise _error(name, "--sandbox-offline: no package index is asked")
    begun = f"{made}.{os.getpid()}"
    shutil.rmtree(begun, ignore_errors=True)
    os.makedirs(f"{begun}/wheels")
    try:
        _fetch(name, f"{begun}/wheels", begun)
        shutil.rmtree(f"{begun}/wheels")
        os.chmod(begun, 0o755)
        try:
            os.rename(begun, made)
        except OSError:  # another process was faster
            if not os.path.isdir(made):
                raise
    finally:
        shutil.rmtree(begun, ignore_errors=True)
    return made


def _fetch(version: str, wheels: str, target: str) -> None:
    only = ("--only-binary=:all:", "--no-deps", f"--python-version={version}")
    if (pip := _pip()) is not None:
        _run(version, "pip download", [
            *pip, "download", "-q", "--disable-pip-version-check", *only, "--implementation=py", "--abi=none",
            "--platform=any", f"--dest={wheels}", *_DISTRIBUTIONS])
        for wheel in glob.glob(f"{glob.escape(wheels)}/*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
    elif (uv := shutil.which("uv")) is not None:
        _run(version, "uv pip install", [uv, "pip", "install", "-q", *only, f"--target={target}", *_DISTRIBUTIONS])
    else:
        raise _error(version, f"there is no pip in {sys.prefix}, and neither pip nor uv on PATH")
    if missing := [one for one in MODULES
                   if not (os.path.exists(f"{target}/{one}.py") or os.path.isdir(f"{target}/{one}"))]:
        raise _error(version, f"{', '.join(missing)} did not come")


def _pip() -> list[str] | None:
    """The command of a pip: ours, the one that venv would install, or another one on PATH."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    found = importlib.util.find_spec("ensurepip")
    bundled = glob.glob(f"{os.path.dirname(found.origin)}/_bundled/pip-*.whl") if found and found.origin else []
    if bundled:
        return [sys.executable, f"{bundled[0]}/pip"]
    pip = shutil.which("pip") or shutil.which("pip3")
    return None if pip is None else [pip]


def _run(version: str, called: str, words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_SECONDS,
                              check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _error(version, str(error)) from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise _error(version, f"{called} failed: {last[0][:500]}")


def _error(version: str, why: str) -> SandboxGuestError:
    return SandboxGuestError(
        f"pytest needs {', '.join(_DISTRIBUTIONS)} on Python {version}, and they cannot be had", image="", why=why,
        remedy="Install them in the image, or beside pytest here (pip install exceptiongroup tomli), or run once where "
               "a package index can be reached: they are kept in the cache directory.")
