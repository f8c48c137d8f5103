"""A project whose suite is run: its source from PyPI, and an environment with what its tests need."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]


@dataclass(frozen=True)
class Project:
    name: str
    version: str
    groups: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    requires: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    leaves: list[str] = field(default_factory=list)


def projects() -> dict[str, Project]:
    text = (HERE / "projects.toml").read_text(encoding="utf-8")
    return {name: Project(name, **options) for name, options in tomllib.loads(text).items()}


def download(project: Project, folder: Path) -> Path:
    """The project's sdist, unpacked. Returns its top folder."""
    sdists = folder / "sdist"
    # Only this project from source: its build backend may come as a wheel.
    command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", f"--no-binary={project.name}", "--dest",
               str(sdists), f"{project.name}=={project.version}"]
    subprocess.run(command, check=True)
    (archive,) = sdists.iterdir()
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extraction_filter = tarfile.data_filter
        tar.extractall(folder / "source")
    (source,) = (folder / "source").iterdir()
    return source


def make_environment(project: Project, source: Path, folder: Path, interpreter: str, pytest: str) -> Path:
    """A virtual environment with the project, its test requirements and this plugin. Returns its Python."""
    environment = folder / "venv"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", interpreter, str(environment)], check=True)
    extras = f"[{','.join(project.extras)}]" if project.extras else ""
    python = environment / "bin" / "python"
    command = [*uv, "pip", "install", "-q", "--python", str(python), f"{source}{extras}", str(CHECKOUT), pytest]
    command += [word for group in project.groups for word in ("--group", f"{source / 'pyproject.toml'}:{group}")]
    command += [word for file in project.files for word in ("-r", str(source / file))]
    subprocess.run([*command, *project.requires], check=True)
    return python
