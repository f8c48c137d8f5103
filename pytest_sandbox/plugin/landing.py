# ruff: noqa: UP031, UP036
# mypy: disable-error-code="no-untyped-def,no-untyped-call"
# The first of our lines that an image's Python runs, whatever that is: any Python must be able to read this file.
# Its arguments: the directory of the graft, one for what is compiled, and a descriptor.
import sys


def land():
    graft, folder, descriptor = sys.argv[1], sys.argv[2], int(sys.argv[3])
    sys.argv[:] = ["pytest"]
    problem = forget = None
    if sys.version_info < (3, 10):
        problem = "its Python is %d.%d, and tests need 3.10 or newer" % tuple(sys.version_info[:2])
    else:
        forget = compile_into(folder)
        try:
            import ctypes  # noqa: F401
        except ImportError as error:
            problem = ("its Python lacks ctypes (%s), without which no process can enter a sandbox: install the whole "
                       "of its standard library" % error)
    if problem is not None:
        refuse(descriptor, problem)
    sys.path[:] = filter(None, sys.path)
    sys.path.insert(0, graft)
    import pytest_sandbox  # noqa: F401 - the caller's, whatever the image has
    if _is_new_enough("pytest", (8, 4), sys.path[1:]):
        sys.path.append(sys.path.pop(0))  # last: what the image has itself is its own
    if sys.version_info < (3, 11):
        sys.path.append(graft + "/below-3.11")
    try:
        from pytest_sandbox.plugin.visiting import visit
    except ModuleNotFoundError as error:
        if error.name in ("exceptiongroup", "tomli", "typing_extensions"):
            refuse(descriptor, list(sys.version_info[:2]), "lacks")
        refuse(descriptor, "its Python %d.%d cannot import pytest: %s. Install %s in the image" % (
            sys.version_info[0], sys.version_info[1], error, error.name))
    import socket
    forget()
    visit(socket.socket(fileno=descriptor))


def refuse(descriptor, problem, kind="unfit"):
    import json
    import socket
    sock = socket.fromfd(descriptor, socket.AF_UNIX, 5)
    sock.send(json.dumps({kind: problem}).encode())
    sys.exit(0)


def compile_into(folder):
    # What lies compiled beside its source is read there as ever, all else in the folder, or written there if it is not
    # there yet. Until the function that is returned is called.
    import _frozen_importlib_external as machinery
    import os
    beside, wrote = machinery.cache_from_source, sys.dont_write_bytecode

    def compiled(*args, **named):
        found = beside(*args, **named)
        return found if os.path.exists(found) else folder + found

    def forget():
        machinery.cache_from_source, sys.dont_write_bytecode = beside, wrote

    there = os.path.exists(folder)
    if not there:
        os.mkdir(folder)  # importlib would take it for relative
    machinery.cache_from_source, sys.dont_write_bytecode = compiled, there
    return forget


def _is_new_enough(name, least, path):
    import re
    from importlib.metadata import distributions
    found = next((one.version for one in distributions(name=name, path=path)), "0")
    return tuple(int(one) for one in re.findall(r"\d+", found)[:2]) >= least


land()
