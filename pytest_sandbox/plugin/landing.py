# ruff: noqa: UP031, UP036
# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# The first of our lines that an image's Python runs, whatever that is: any Python must be able to read this file.
# Its arguments: the directory of the graft, and a descriptor.
import socket
import sys


def land():
    graft, descriptor = sys.argv[1], int(sys.argv[2])
    sys.argv[:] = ["pytest"]
    problem = None
    if sys.version_info < (3, 10):
        problem = "its Python is %d.%d, and tests need 3.10 or newer" % tuple(sys.version_info[:2])
    else:
        try:
            import ctypes  # noqa: F401
        except ImportError as error:
            problem = ("its Python lacks ctypes (%s), without which no process can enter a sandbox: install the whole "
                       "of its standard library" % error)
    if problem is not None:
        refuse(descriptor, problem)
    sys.path[:] = filter(None, sys.path)
    sys.path.append(graft)  # last: what the image has itself is its own
    if not _is_new_enough("pytest", (8, 4)):
        sys.path.remove(graft)
        sys.path.insert(0, graft)
    try:
        from pytest_sandbox.plugin.visiting import visit
    except ModuleNotFoundError as error:
        refuse(descriptor, "its Python %d.%d cannot import pytest: %s. Install %s in the image" % (
            sys.version_info[0], sys.version_info[1], error, error.name))
    visit(socket.socket(fileno=descriptor))


def refuse(descriptor, problem):
    import json
    sock = socket.fromfd(descriptor, socket.AF_UNIX, 5)
    sock.send(json.dumps({"unfit": problem}).encode())
    sys.exit(0)


def _is_new_enough(name, least):
    import re
    from importlib.metadata import PackageNotFoundError, version
    try:
        found = version(name)
    except PackageNotFoundError:
        return False
    return tuple(int(one) for one in re.findall(r"\d+", found)[:2]) >= least


land()
