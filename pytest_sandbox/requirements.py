"""What a project needs in an image whose own Python runs its tests: a layer above the image, made by its own pip.

It is a build of two lines, so it is cached as builds are: by the image and the text, until one of them changes.
"""

from __future__ import annotations

import hashlib
import json
import os

from .errors import ImageError
from .planning import cache_directory, resolve

#: What pip is told by variables, since versions differ in the options that they know.
_INSTALL = ("import os, sys; os.environ.update(PIP_BREAK_SYSTEM_PACKAGES='1', PIP_ROOT_USER_ACTION='ignore', "
            "PIP_DISABLE_PIP_VERSION_CHECK='1', PIP_NO_CACHE_DIR='1'); "
            "os.execv(sys.executable, [sys.executable, '-m', 'pip', 'install', '-r', '/run/requirements.txt'])")


def with_requirements(reference: str, python: str, text: str) -> str:
    """The reference of the image with these requirements installed. Nothing is made yet.

    :param python: the image's interpreter, whose pip installs them.
    :param text: a requirements file.
    :raises ImageError: when the image cannot be had, or nothing be built on it.
    """
    stack = resolve(reference)
    if stack.image_id is None:
        raise ImageError(f"sandbox_requirements cannot be installed in image {reference!r}", reference=reference,
                         why="it is a directory, which may change at any time",
                         remedy="Make a tarball of it: rootfs:FILE; or install them there.")
    command = json.dumps([python, "-c", _INSTALL])  # no shell: an image may have none
    file = (f"FROM image:{stack.image_id}\n"
            "USER 0\n"
            f"RUN --mount=type=bind,source=requirements.txt,target=/run/requirements.txt {command}\n"
            f"USER {stack.config.user or '0'}\n")
    name = hashlib.sha256(f"{file}\0{text}".encode()).hexdigest()[:24]
    folder = os.path.join(cache_directory(), "guests", f"requirements-{name}")
    os.makedirs(folder, exist_ok=True)
    for base, content in (("requirements.txt", text), ("Containerfile", file)):
        path = os.path.join(folder, base)
        if not os.path.exists(path):
            with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as made:
                made.write(content)
            os.replace(f"{path}.{os.getpid()}", path)
    return f"containerfile:{folder}"
