"""Makes the images that tests, benchmarks and examples use, from Debian's packages alone: ``python images/build.py``.

Each has a Containerfile in a folder here, which pytest-sandbox itself builds: ``oci-archive:DIR/debian.tar`` and so on.
What ``busybox`` and ``debian`` add (``rootfs.tar``) is made here first. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPOCH = 1_700_000_000
SUITE = "bookworm"


def busybox(target: Path) -> None:
    """A static busybox, and a link for each name that it answers to."""
    program = next((path for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")) if path.exists()), None)
    if program is None:
        sys.exit("no busybox: apt-get install busybox-static")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    with tarfile.open(target, mode="w", format=tarfile.PAX_FORMAT) as tar:
        def add(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime, info.linkname, info.size = kind, mode, EPOCH, link, len(data)
            tar.addfile(info, BytesIO(data))
        for name in (".", "bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            add(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o700 if name == "root" else 0o755)
        add("bin/busybox", tarfile.REGTYPE, 0o755, program.read_bytes())
        for applet in sorted({*applets} - {"busybox"}):
            add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        add("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\n")
        add("etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/root:/bin/sh\n")


def debian(target: Path) -> None:
    """A minimal Debian. mmdebstrap gives the same bytes each time when the time is set."""
    try:
        subprocess.run(["mmdebstrap", "--variant=minbase", "--quiet", "--include=ca-certificates",
                        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                        "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
                        SUITE, str(target)], check=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)})
    except FileNotFoundError:
        sys.exit("no mmdebstrap: apt-get install mmdebstrap")


#: In the order in which they can be made: those that have None are built on ``debian``.
IMAGES: dict[str, Callable[[Path], None] | None] = {
    "busybox": busybox, "debian": debian, "python": None, "postgres": None,
}


def sandbox(*words: str) -> str:
    """Runs the command ``pytest-sandbox`` of this Python, with this checkout's code."""
    path = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    done = subprocess.run([sys.executable, "-m", "pytest_sandbox.cli", *words], stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": path, "SOURCE_DATE_EPOCH": str(EPOCH)}, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout.strip()


def build(name: str, output: Path) -> str:
    """Builds one image and writes it to ``output``; returns its id."""
    with tempfile.TemporaryDirectory() as context:
        make = IMAGES[name]
        if make is not None:
            make(Path(context) / "rootfs.tar")
        tag = f"pytest-sandbox/{name}"
        sandbox("build", "--quiet", "-f", str(HERE / name / "Containerfile"), "-t", tag,
                "--build-arg", f"DEBIAN=oci-archive:{output / 'debian.tar'}", context)
    return sandbox("save", tag, "-o", str(output / f"{name}.tar"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *IMAGES], help="those to make; all by default")
    parser.add_argument("--output", type=Path, default=HERE / "build")
    given = parser.parse_args()
    output = given.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    wanted = set(given.names or IMAGES)
    if wanted & {name for name, make in IMAGES.items() if make is None} and not (output / "debian.tar").exists():
        wanted.add("debian")
    for name in IMAGES:
        if name in wanted:
            print(f"oci-archive:{output / f'{name}.tar'}: {build(name, output)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
