"""A sandbox from an image of sixty layers beside one from a single layer with the same files."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from claims import Claim
from measure import Table, in_turns, timed

from pytest_sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import imagemaker

COUNT = 60


def run(folder: Path, rounds: int) -> list[Table]:
    folder.mkdir()
    os.environ["PYTEST_SANDBOX_CACHE"] = str(folder / "cache")
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("busybox is not installed: apt-get install busybox-static")
    first = [imagemaker.directory("bin"), imagemaker.file("bin/busybox", Path(busybox).read_bytes(), mode=0o755),
             imagemaker.symlink("bin/true", "busybox"), imagemaker.directory("data")]
    others = [[imagemaker.file(f"data/{number}", f"{number}")] for number in range(1, COUNT)]
    sixty = imagemaker.image([imagemaker.layer(one) for one in [first, *others]])
    single = imagemaker.image([imagemaker.layer([*first, *(one for more in others for one in more)])])
    references = {}
    for name, image in (("1 layer", single), (f"{COUNT} layers", sixty)):
        place = folder / name.replace(" ", "-")
        imagemaker.write_layout(place, image)
        references[name] = f"oci:{place}"

    def start(image: str) -> None:
        with Sandbox(image=image) as sandbox:
            sandbox.run(["/bin/true"], check=True)

    for image in references.values():
        start(image)
    with Sandbox(image=references[f"{COUNT} layers"]) as sandbox:
        assert sandbox.path(f"/data/{COUNT - 1}").read_text() == str(COUNT - 1)
    table = Table("Start, run true, close, by the image's layers", in_turns(
        {name: lambda image=image: timed(lambda: start(image)) for name, image in references.items()}, rounds),
        "1 layer")
    table.claims.append(Claim(f"Sandbox from a {COUNT}-layer image", "from 1 layer", 1.2,
                              table.of(f"{COUNT} layers").samples, table.of("1 layer").samples))
    return [table]
