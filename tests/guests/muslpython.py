"""Makes a root file system whose Python is built on musl, Alpine's libc: ``python tests/guests/muslpython.py FOLDER``.

From Debian's sources of Python, libffi and zlib, with Debian's musl: a machine of Debian, root, gcc, a deb-src source
and some ten minutes are all that it takes, and no image of anybody's. ``SANDBOX_TEST_MUSL=FOLDER tox run -e guests``
runs tests in it then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

#: Debian has the kernel's headers for glibc only; musl's own come first.
FLAGS = "-O1 -fPIC -idirafter /usr/include -idirafter /usr/include/x86_64-linux-gnu"
#: gcc's answer to --print-multiarch is Debian's, and Python's configure wants musl's.
COMPILER = """#!/bin/sh
[ "$1" = --print-multiarch ] && { echo x86_64-linux-musl; exit; }
exec musl-gcc "$@"
"""
BUILD = """set -e
./configure --prefix={prefix} {options}
make -j{cores}
make install {target}
"""


def main(folder: Path) -> None:
    work = folder.parent / f"{folder.name}.work"
    work.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "install", "-y", "musl-tools"], check=True)
    subprocess.run(["apt-get", "source", "python3.11", "libffi", "zlib"], cwd=work, check=True)
    compiler = work / "musl-cc"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    prefix = work / "prefix"
    environ = {**os.environ, "CC": str(compiler), "CFLAGS": FLAGS, "CPPFLAGS": f"-I{prefix}/include",
               "LDFLAGS": f"-L{prefix}/lib", "PKG_CONFIG_PATH": f"{prefix}/lib/pkgconfig"}
    for source, where, options, target in (
        ("libffi-*", prefix, "--disable-shared --with-pic --disable-multi-os-directory", ""),
        ("zlib-*", prefix, "--static", ""),
        ("python3.11-*", Path("/usr"), "--without-ensurepip --disable-test-modules --with-system-ffi",
         f"DESTDIR={folder}"),
    ):
        (directory,) = (one for one in work.glob(source) if one.is_dir())
        script = BUILD.format(prefix=where, options=options, cores=os.cpu_count(), target=target)
        subprocess.run(["sh", "-c", script], cwd=directory, env=environ, check=True)
    for name in ("lib", "etc", "tmp", "proc", "sys", "dev", "run", "bin", "var/tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    shutil.copy2(os.path.realpath("/lib/ld-musl-x86_64.so.1"), folder / "lib/ld-musl-x86_64.so.1")
    (folder / "etc/os-release").write_text("ID=musl\n")
    (folder / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]).resolve())
