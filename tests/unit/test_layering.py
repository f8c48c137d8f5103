"""Who may import whom, read from the source.

``plugin, cli -> sandbox, network -> image | runtime -> spec, report -> errors``: an arrow points at what a room may
know. Rooms on one level know nothing of each other. A few outside libraries have one door each.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import pytest_sandbox

PACKAGE = "pytest_sandbox"

#: The rooms and their levels. A room may import from lower levels and from itself.
LEVELS = {
    "errors": 0,
    "spec": 1, "report": 1, "rootfs": 1, "usage": 1,
    "image": 2, "runtime": 2,
    "sandbox": 3, "network": 3,
    "plugin": 4, "cli": 4,
}

#: Modules that are part of another room: a sandbox's host side is one room in several files.
PART_OF = {"building": "sandbox", "bytecode": "sandbox", "calls": "sandbox", "committing": "sandbox",
           "connections": "sandbox", "copying": "sandbox",
           "deadline": "sandbox", "faults": "network", "files": "sandbox", "grafts": "sandbox", "images": "sandbox",
           "keeping": "sandbox",
           "layerdiff": "sandbox", "lifetime": "sandbox", "limits": "sandbox", "outbound": "sandbox",
           "planning": "sandbox",
           "process": "sandbox", "requirements": "sandbox", "sharing": "sandbox", "stacks": "sandbox",
           "verdicts": "sandbox", "wheels": "sandbox"}

#: The modules (with all that lies below them) that may import what is not everybody's.
DOORS = {
    "pytest": ("plugin",),
    # pytest's private names, in the modules that check them
    "_pytest": ("plugin.compat", "plugin.compat_capture", "plugin.compat_output", "plugin.compat_plugins"),
    "pytest_benchmark": ("plugin.compat_plugins",),
    "pluggy": ("plugin",),
    "coverage": ("plugin",),
    "exceptiongroup": ("plugin",),
    "filelock": ("image.lockfile",),
    "hatchling": ("native.build",),
    "isal": ("image.compression",),
    "backports": ("image.compression",),
    "compression": ("image.compression",),
    "tomli": ("image.hosts",),
    "tomllib": ("image.hosts",),  # of the standard library, but not of every Python's that this runs on
    "pyroute2": ("runtime.netdev",),
    "jeepney": ("runtime.delegation",),
    "ctypes": ("runtime.syscalls", "image.resolve", "plugin.landing"),
}

#: Dear to import or not a dependency: only inside a function, by whoever has the door.
LAZY = {"pyroute2", "pytest_benchmark", "jeepney", "coverage", "exceptiongroup", "isal", "backports", "compression",
        "tomli", "tomllib"}


@dataclass(frozen=True)
class Import:
    module: str  # who imports, without the package's name: "runtime.plan"; the package itself is ""
    line: int
    target: str  # what is imported, absolute
    lazy: bool  # inside a function, or only for the type checker


def imports_of(source: str, module: str, is_package: bool) -> Iterator[Import]:
    """Every import statement of a module, relative ones made absolute, and ``import_module("name")`` calls."""
    full = f"{PACKAGE}.{module}".rstrip(".").split(".")

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for one in child.names:
                    yield Import(module, child.lineno, one.name, lazy)
            elif isinstance(child, ast.ImportFrom):
                base = []
                if child.level:
                    base = full[:len(full) - child.level + is_package]
                name = ".".join([*base, *([child.module] if child.module else [])])
                for one in child.names:
                    # "from . import x": x is the module. "from .spec import Y": .spec is, and the suffix does no harm.
                    yield Import(module, child.lineno, f"{name}.{one.name}", lazy)
            elif isinstance(child, ast.Call) and child.args and isinstance(child.args[0], ast.Constant):
                called = ast.unparse(child.func)
                if called.endswith(("import_module", "__import__")):
                    yield Import(module, child.lineno, str(child.args[0].value), lazy)
                yield from walk(child, lazy)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                yield from walk(child, lazy or inside or typing)

    yield from walk(ast.parse(source), False)


def has_door(module: str, doors: tuple[str, ...]) -> bool:
    return any(module == door or module.startswith(f"{door}.") for door in doors)


def objection(one: Import) -> str | None:
    top, _, rest = one.target.partition(".")
    room = one.module.split(".")[0]
    room = PART_OF.get(room, room)
    if top == PACKAGE:
        if not room:
            return None if one.lazy else "the package itself imports nothing of ours up front: its names are lazy"
        target = rest.split(".")[0]
        target = PART_OF.get(target, target)
        if target not in LEVELS or target == room:  # a name of the package itself, such as __version__; or at home
            return None
        if room not in LEVELS:
            return f"the room {room!r} has no level: give it one in LEVELS"
        if LEVELS[target] >= LEVELS[room]:
            return f"{room!r} must not know {target!r}"
        return None
    if top in DOORS:
        if not has_door(one.module, DOORS[top]):
            return f"only {' and '.join(DOORS[top])} may import {top}"
        if top in LAZY and not one.lazy:
            return f"{top} is imported inside the function that needs it"
        return None
    if top not in sys.stdlib_module_names:
        return f"{top} is neither the standard library nor a dependency with a door"
    return None


def violations(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        for one in imports_of(path.read_text(encoding="utf-8"), module, is_package):
            if (why := objection(one)) is not None:
                found.append(f"{path.relative_to(package)}:{one.line}: imports {one.target}: {why}")
    return found


def test_nobody_imports_what_is_not_below_them() -> None:
    assert pytest_sandbox.__file__ is not None
    found = violations(Path(pytest_sandbox.__file__).parent)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("path", "source", "objects"), [
    ("runtime/plan.py", "from ..spec import SandboxSpec", None),
    ("runtime/plan.py", "from . import mounts", None),
    ("runtime/plan.py", "from .. import image", "'runtime' must not know 'image'"),
    ("runtime/plan.py", "from ..image.host import x", "'runtime' must not know 'image'"),
    ("image/host.py", "import pytest_sandbox.runtime.probe", "'image' must not know 'runtime'"),
    ("image/__init__.py", "from ..runtime import probe", "'image' must not know 'runtime'"),
    ("image/__init__.py", "from . import store", None),
    ("image/host.py", "def f():\n    from ..sandbox import Sandbox", "'image' must not know 'sandbox'"),
    ("image/host.py", "from importlib import import_module\nimport_module('pytest_sandbox.runtime')",
     "'image' must not know 'runtime'"),
    ("errors.py", "from .spec import Mount", "'errors' must not know 'spec'"),
    ("sandbox.py", "from .image import host\nfrom .runtime import launch", None),
    ("sandbox.py", "from .plugin import item", "'sandbox' must not know 'plugin'"),
    ("files.py", "from .sandbox import Sandbox\nfrom .runtime import syscalls", None),
    ("files.py", "from .cli import doctor", "'sandbox' must not know 'cli'"),
    ("runtime/init.py", "from ..process import Result", "'runtime' must not know 'sandbox'"),
    ("cli/doctor.py", "from ..plugin import options", "'cli' must not know 'plugin'"),
    ("cli/doctor.py", "from ..runtime import probe\nfrom ..errors import SandboxError", None),
    ("attic.py", "from .spec import Mount", "has no level"),
    ("__init__.py", "from .spec import Mount", "names are lazy"),
    ("__init__.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .spec import Mount", None),
    ("plugin/item.py", "import pytest\nimport pluggy", None),
    ("plugin/item.py", "def f():\n    from _pytest import runner", "plugin.compat_plugins may import _pytest"),
    ("plugin/compat.py", "import _pytest.runner", None),
    ("sandbox.py", "import pytest", "only plugin may import pytest"),
    ("runtime/netdev.py", "def f():\n    from pyroute2 import IPRoute", None),
    ("runtime/netdev.py", "import pyroute2", "inside the function"),
    ("runtime/netdevice.py", "def f():\n    import pyroute2", "only runtime.netdev may"),
    ("runtime/syscalls.py", "import ctypes", None),
    ("image/resolve.py", "import ctypes.util", None),
    ("runtime/mounts.py", "from ctypes import CDLL", "may import ctypes"),
    ("image/compression.py", "def f():\n    from isal import isal_zlib", None),
    ("image/host.py", "import isal", "only image.compression may"),
    ("plugin/options.py", "import requests", "neither the standard library nor"),
])
def test_the_reader_of_imports_sees(tmp_path: Path, path: str, source: str, objects: str | None) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    found = violations(tmp_path)
    if objects is None:
        assert found == []
    else:
        assert len(found) == 1
        assert objects in found[0]
        assert found[0].startswith(f"{path}:{source.count(chr(10)) + 1}:")


def private_names(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """Every private attribute that a module names: line, name, and whether it is of the module's own objects."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            yield node.lineno, node.attr, of_self
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and _is_private(node.name):
            yield node.lineno, node.name, True
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and _is_private(node.id):
            yield node.lineno, node.id, True
        elif (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
                and node.func.id in ("getattr", "hasattr", "setattr", "delattr")
                and isinstance(node.args[1], ast.Constant) and _is_private(str(node.args[1].value))):
            yield node.lineno, str(node.args[1].value), False


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def foreign_private_names(modules: dict[str, ast.Module], others: Iterable[ast.Module] = ()) -> Iterator[
        tuple[str, int, str]]:
    """Private names in ``modules`` that are nobody's in there, or in ``others``: of pytest, or of somebody else."""
    found = [(module, *one) for module, tree in modules.items() for one in private_names(tree)]
    own = {name for tree in (*modules.values(), *others) for _, name, is_own in private_names(tree) if is_own}
    yield from ((module, line, name) for module, line, name, _ in found if name not in own)


#: Of Python itself.
PRIVATE_OF_PYTHON = {"_target", "_exit"}


def test_only_compat_knows_private_names_of_others() -> None:
    folder = Path(pytest_sandbox.__file__).parent
    modules = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("plugin/*.py"))
               if not path.name.startswith("compat")}
    others = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    found = [one for one in foreign_private_names(modules, others) if one[2] not in PRIVATE_OF_PYTHON]
    assert found == []


@pytest.mark.parametrize("line", ["item._request.param", "getattr(item, '_request', None)", "setattr(item, '_x', 1)"])
def test_private_names_are_found(line: str) -> None:
    modules = {"a": ast.parse("class A:\n  def f(self, item):\n    self._own = 1\n    item._own\n    " + line)}
    assert [(module, row) for module, row, _ in foreign_private_names(modules)] == [("a", 5)]
