"""Root file systems that hold this machine's own Python and nothing else: images for tests, made without a download.

Whoever has another Python, or none, in an image of its own needs no more of it to run a test's body.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

#: What no test needs of the standard library.
_LEFT_OUT = ("test", "tests", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "site-packages",
             "dist-packages", "pydoc_data", "distutils", "turtle.py")


def make_python_root(root: Path, name: str = "first", interpreter: str | None = None) -> Path:
    """Makes ``root``, whose /etc/os-release has the ``name``.

    :param interpreter: another Python of this machine than the one that runs this.
    """
    base, minor = getattr(sys, "_base_executable", sys.executable), sys.version_info[1]
    found, prefix = base, sys.base_prefix
    if interpreter is not None:
        asked = ("import sys; print(sys.version_info[1], sys.base_prefix, "
                 "getattr(sys, '_base_executable', sys.executable))")
        told = subprocess.run([interpreter, "-I", "-c", asked], capture_output=True, text=True, check=True).stdout
        number, prefix, found = told.split()
        minor = int(number)
    program, version = Path(os.path.realpath(found)), f"python3.{minor}"
    library = Path(prefix, sys.platlibdir, version)

    def leave_out(folder: str, names: list[str]) -> list[str]:
        return [one for one in names if one in _LEFT_OUT or one.startswith("config-")]

    for folder in ("etc", "tmp", "proc", "sys", "dev", "run", "usr/bin", "var/tmp"):
        (root / folder).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/os-release").write_text(f"ID={name}\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    shutil.copytree(library, root / str(library)[1:], ignore=leave_out)
    (root / str(program)[1:]).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, root / str(program)[1:])
    if not (root / "usr/bin/python3").exists():
        (root / "usr/bin/python3").symlink_to(program)
    for file in _libraries([program, *library.glob("lib-dynload/*.so")]):
        target = root / file[1:]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(os.path.realpath(file), target)
    return root


def packages_of(root: Path) -> Path:
    """Where the Python of such a root has installed packages; Debian's own has them elsewhere."""
    library = next(root.rglob("json/__init__.py")).parent.parent
    if "dist-packages" in (library / "site.py").read_text():
        return library.parent / "python3" / "dist-packages"
    return library / "site-packages"


def _libraries(files: list[Path]) -> set[str]:
    done = subprocess.run(["ldd", *map(str, files)], capture_output=True, text=True, check=False)
    return set(re.findall(r"(?:=> |^\s+)(/\S+) \(0x", done.stdout, re.MULTILINE))


#: What suites run besides Python.
PACKAGES = ("base-files", "bash", "coreutils", "dash", "grep", "less", "libacl1", "libattr1", "libc6", "libc-bin",
            "libgcc-s1", "libgmp10", "libpcre2-8-0", "libselinux1", "libssl3", "libtinfo6", "sed")


def download_packages(folder: Path) -> Path:
    """Debian's packages for :func:`add_packages`, by apt; once a ``folder``."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        subprocess.run(["apt-get", "download", "-q", *PACKAGES], cwd=folder, check=True)
    return folder


def add_packages(root: Path, packages: Path) -> None:
    """Unpacks Debian's packages into ``root``, below what is there."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        old = root / name
        if old.is_dir():
            shutil.copytree(old, root / "usr" / name, dirs_exist_ok=True, symlinks=True)
            shutil.rmtree(old)
        old.symlink_to(f"usr/{name}")
    for package in sorted(packages.glob("*.deb")):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as unpacked:
            subprocess.run(["tar", "-x", "--keep-directory-symlink", "--skip-old-files", "-C", root],
                           stdin=unpacked.stdout, check=True)


def another(root: Path, target: Path, name: str) -> Path:
    """The same under another name: its files are links to the first one's."""
    shutil.copytree(root, target, copy_function=os.link, symlinks=True)
    (target / "etc/os-release").unlink()
    (target / "etc/os-release").write_text(f"ID={name}\n")
    return target
