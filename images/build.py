"""Makes the images that tests, benchmarks and examples use, from Debian's packages alone: ``python images/build.py``.

``postgres`` is built by pytest-sandbox itself from the Containerfile in its folder (``oci-archive:DIR/postgres.tar``).
Each of the others is an OCI layout below ``--output`` (``oci:DIR/busybox``, ``oci:DIR/debian``, ``oci:DIR/python``),
with the same bytes on every run against the same package archive. Needs ``apt-get install mmdebstrap busybox-static``;
Debian images are made as root, or by a user with subordinate ids.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPOCH = 1_700_000_000
SUITE = "bookworm"
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def busybox() -> bytes:
    """A static busybox and the names that it answers to: no libc, no Python, hardly a shell."""
    program = next((path for path in (Path("/bin/busybox"), Path("/usr/bin/busybox")) if path.exists()), None)
    if program is None:
        sys.exit("no busybox: apt-get install busybox-static")
    applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        def add(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime, info.linkname, info.size = kind, mode, EPOCH, link, len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in (".", "bin", "dev", "etc", "proc", "root", "sys", "tmp"):
            add(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o700 if name == "root" else 0o755)
        add("bin/busybox", tarfile.REGTYPE, 0o755, program.read_bytes())
        for applet in sorted({*applets} - {"busybox"}):
            add(f"bin/{applet}", tarfile.SYMTYPE, 0o777, link="busybox")
        add("etc/group", tarfile.REGTYPE, 0o644, b"root:x:0:\n")
        add("etc/passwd", tarfile.REGTYPE, 0o644, b"root:x:0:0:root:/root:/bin/sh\n")
    return out.getvalue()


def debian(*packages: str) -> Callable[[], bytes]:
    """A minimal Debian with some packages. mmdebstrap gives the same bytes each time when the time is set."""
    def make() -> bytes:
        with tempfile.TemporaryDirectory() as scratch:
            target = Path(scratch) / "root.tar"
            include = [f"--include={','.join(packages)}"] if packages else []
            subprocess.run(["mmdebstrap", "--variant=minbase", "--quiet", *include, SUITE, str(target)], check=True,
                           env={**os.environ, "SOURCE_DATE_EPOCH": str(EPOCH)})
            return target.read_bytes()
    return make


IMAGES: dict[str, tuple[Callable[[], bytes], dict[str, Any]]] = {
    "busybox": (busybox, {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}),
    "debian": (debian("ca-certificates"), {"Cmd": ["/bin/bash"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}),
    "python": (debian("ca-certificates", "python3", "python3-venv"),
               {"Cmd": ["/usr/bin/python3"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}),
}


#: Built from the Containerfiles here, on top of ``debian``.
BUILT = ("postgres",)


def write_layout(path: Path, layer: bytes, config: dict[str, Any]) -> str:
    """An OCI layout of one layer; returns the digest of its manifest."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        value = hashlib.sha256(data).hexdigest()
        (blobs / value).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{value}", "size": len(data)}

    document = {"architecture": MACHINES.get(platform.machine(), platform.machine()), "os": "linux", "config": config,
                "created": "2023-11-14T22:13:20Z",
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}}
    manifest = put(json.dumps({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(document, sort_keys=True).encode(), "config.v1+json"),
        "layers": [put(gzip.compress(layer, 6, mtime=0), "layer.v1.tar+gzip")]}, sort_keys=True).encode(),
        "manifest.v1+json")
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}, sort_keys=True))
    return str(manifest["digest"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *IMAGES, *BUILT], help="those to make; all by default")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "build")
    given = parser.parse_args()
    for name in [one for one in given.names or IMAGES if one in IMAGES]:
        make, config = IMAGES[name]
        print(f"oci:{given.output / name}: {write_layout(given.output / name, make(), config)}")
    for name in [one for one in given.names or BUILT if one in BUILT]:
        print(f"oci-archive:{build(name, given.output)}")
    return 0


def build(name: str, output: Path) -> Path:
    """Builds one of the Containerfiles beside this script on the Debian that was made before, by pytest-sandbox."""
    here, target = Path(__file__).parent, output / f"{name}.tar"
    base = os.path.abspath(output / "debian")
    command = [sys.executable, "-m", "pytest_sandbox.cli"]
    subprocess.run([*command, "build", str(here / name), "--build-arg", f"DEBIAN=oci:{base}", "-t",
                    f"pytest-sandbox/{name}"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([*command, "save", f"pytest-sandbox/{name}", "-o", str(target)], check=True,
                   stdout=subprocess.DEVNULL)
    return target


if __name__ == "__main__":
    sys.exit(main())
