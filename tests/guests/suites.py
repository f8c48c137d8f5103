"""Suites of well-known projects over images of several Pythons: each outcome is that of a native run in that Python.

``tox run -e guest-suites -- click attrs jinja2 --python 3.11 --python 3.13``, on Debian. For each Python an environment
with the project is made by uv, and an image: Debian's packages, that Python, and what the environment has. The suite
runs natively in each environment; and in the first of them over each image.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "compat")]

import guestimage  # noqa: E402
from compare import outcomes  # noqa: E402
from project import download, make_environment, projects  # noqa: E402


def make_image(root: Path, packages: Path, python: Path) -> None:
    """A root of Debian's packages with the interpreter of an environment, and what that has installed."""
    guestimage.make_python_root(root, root.name, str(python))
    guestimage.add_packages(root, packages)
    own = guestimage.packages_of(root)
    theirs = next((python.parent.parent / "lib").glob("python3.*/site-packages"))
    shutil.copytree(theirs, own, dirs_exist_ok=True, symlinks=True)


def run(python: Path, tree: Path, report: Path, *options: str, arguments: list[str]) -> dict[str, str]:
    environment = {"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(tree.parent), "LANG": "C.UTF-8",
                   "PYTHONDONTWRITEBYTECODE": "1"}
    with open(report.with_suffix(".txt"), "wb") as output:
        subprocess.run([str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *options,
                        *arguments], cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    return {name: one.kind for name, one in outcomes(report).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", nargs="*", default=["click", "attrs", "jinja2"])
    parser.add_argument("--python", action="append", help="the versions, the caller's first (3.11, 3.13)")
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/guest-suites"))
    options = parser.parse_args()
    versions = options.python or ["3.11", "3.13"]
    packages = guestimage.download_packages(options.folder / "packages")
    known, differs = projects(), 0
    for name in options.project:
        project, folder = known[name], options.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        tree = download(project, folder)
        pythons = {}
        for version in versions:
            (folder / version).mkdir()
            pythons[version] = make_environment(project, tree, folder / version, version, "pytest>=9")
            make_image(folder / version / "image", packages, pythons[version])
        for version in versions:
            native = run(pythons[version], tree, folder / version / "native.xml", "-p", "no:sandbox",
                         arguments=project.arguments)
            inside = run(pythons[versions[0]], tree, folder / version / "inside.xml", "--sandbox=all",
                         f"--sandbox-image=rootfs:{folder / version / 'image'}", arguments=project.arguments)
            found = {test: (native.get(test), inside.get(test)) for test in {*native, *inside}
                     if native.get(test) != inside.get(test)}
            differs += len(found)
            print(f"{name} on Python {version}: {len(native)} tests natively, {len(inside)} in the image, "
                  f"{len(found)} differences", flush=True)
            for test, (outside, there) in sorted(found.items())[:40]:
                print(f"    {test}: {outside} natively, {there} in the image")
        if "KEEP" not in os.environ:
            shutil.rmtree(folder)
    return 1 if differs else 0


if __name__ == "__main__":
    sys.exit(main())
