"""``pytest-sandbox build``: an image from a Containerfile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_sandbox.image.source import Progress


def register(commands: Any) -> None:
    """Adds the subcommand."""
    build = commands.add_parser("build", help="build an image from a Containerfile",
                                description="Builds an image from a Containerfile, a cached layer a step.")
    build.set_defaults(run=_build)
    build.add_argument("context", nargs="?", type=Path, default=Path(), help="the directory that COPY takes files from")
    build.add_argument("--file", "-f", type=Path, help="default: Containerfile or Dockerfile in the context")
    build.add_argument("--tag", "-t", action="append", default=[], metavar="NAME", help="what to call the image")
    build.add_argument("--target", metavar="STAGE", help="the stage to build; the last one by default")
    build.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="a value for an ARG")
    build.add_argument("--secret", action="append", default=[], metavar="id=NAME,src=FILE",
                       help="a file for RUN --mount=type=secret")
    build.add_argument("--network", choices=("host", "none"), default="host", help="of RUN")
    build.add_argument("--memory", metavar="SIZE", help="the most memory of each RUN, such as 512M")
    build.add_argument("--disk", metavar="SIZE", help="the most that each RUN may write, such as 8G")
    build.add_argument("--timeout", type=float, metavar="SECONDS", help="the longest that each RUN may take")
    build.add_argument("--no-cache", action="store_true", help="carry every step out")
    build.add_argument("--quiet", "-q", action="store_true", help="print nothing but the image's id")


def _build(given: argparse.Namespace) -> int:
    import os

    from pytest_sandbox import planning
    from pytest_sandbox.building.builder import Options
    from pytest_sandbox.building.reference import build, locate
    from pytest_sandbox.committing import check_name
    from pytest_sandbox.image.export import name_image
    from pytest_sandbox.image.reference import parse_registry_reference
    from pytest_sandbox.spec import parse_size

    path = locate(str(given.file if given.file is not None else given.context))[0]
    for name in given.tag:
        parse_registry_reference(name)  # whether it fits the image is known when that is built
    for option in ("memory", "disk"):
        if (size := getattr(given, option)) is not None:
            parse_size(option, size)
    if given.timeout is not None and not given.timeout > 0:
        print(f"pytest-sandbox: --timeout {given.timeout:g}: give a number of seconds above 0", file=sys.stderr)
        return 2
    arguments = {}
    for one in given.build_arg:
        name, equals, value = one.partition("=")
        if equals or name in os.environ:
            arguments[name] = value if equals else os.environ[name]
    secrets = {}
    for one in given.secret:
        fields = dict(part.partition("=")[::2] for part in one.split(","))
        if "id" not in fields or not (fields.get("src") or fields.get("source")):
            print(f"pytest-sandbox: --secret {one}: write it like id=token,src=FILE", file=sys.stderr)
            return 2
        secrets[fields["id"]] = source = fields.get("src") or fields["source"]
        if not os.path.isfile(source):
            print(f"pytest-sandbox: --secret {one}: there is no file {source}", file=sys.stderr)
            return 2
    say = None if given.quiet else _say
    if say is not None:
        planning.settings = planning.ImageSettings(progress=_progress)
    image, builder = build(planning.store(), path, str(given.context), Options(
        arguments=arguments, target=given.target, cache=not given.no_cache, network=given.network, memory=given.memory,
        disk=given.disk, timeout=given.timeout, secrets=secrets, say=say))
    for name in given.tag:
        check_name(name, "host" if image.host is not None else "")
        name_image(planning.store(), name, image)
    if say is not None:
        layers = "1 layer" if builder.hits == 1 else f"{builder.hits} layers"
        say(f"{builder.steps} steps, {layers} from the cache")
    print(image.image_id if given.quiet else f"image:{image.image_id}")
    return 0


def _progress() -> Progress:
    from pytest_sandbox.image.progress import StreamAnnouncer

    return StreamAnnouncer(sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
