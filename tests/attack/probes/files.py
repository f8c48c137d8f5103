"""Files of the host: each probe acts on one of its own, and the runner looks afterwards whether that has changed."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

from core import Context, Shut, libc, probe

PROMISE = "files"


def _changed(name: str, weaker: str, act: Callable[[str], object], text: str) -> None:
    # Inside it succeeds, in the sandbox's own copy: the runner, who looks at the file, says "shut: not the host's".
    @probe(PROMISE, weaker, "shut: not the host's", "ENOENT", "EROFS", "EACCES", "EPERM", "EXDEV", proof="outside",
           name=name)
    def attack(context: Context) -> object:
        act(f"{context['folder']}/files/{name}")
        return "done"

    attack.__doc__ = f"{text} a file of the host."


def _write(path: str) -> None:
    with open(path, "r+b") as file:
        file.write(b"changed")


def _append(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")


def _reopen(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    _write(f"/proc/self/fd/{fd}")


def _map(path: str) -> None:
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        memory[0:7] = b"changed"
        memory.flush()


def _link(path: str) -> None:
    os.link(path, path + ".link")
    _write(path + ".link")


def _by_root(path: str) -> None:
    _write(f"/proc/self/root{path}")


def _by_directory(path: str) -> None:
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    inner = os.open(os.path.basename(path), os.O_WRONLY, dir_fd=fd)
    os.write(inner, b"changed")


def _punch(path: str) -> None:
    with open(path, "r+b") as file:
        if libc.fallocate(file.fileno(), 3, 0, 4096):  # FALLOC_FL_PUNCH_HOLE | KEEP_SIZE
            file.write(b"\0\0\0\0")


def _exchange(path: str) -> None:
    with open(path + ".new", "w") as file:
        file.write("changed")
    os.rename(path + ".new", path)


def _sendfile(path: str) -> None:
    with open("/proc/self/exe", "rb") as source, open(path, "r+b") as target:
        os.sendfile(target.fileno(), source.fileno(), 0, 8)


for _name, _weaker, _act, _text in (
    ("write_a_file", "the host's files would be changed", _write, "Writes to"),
    ("append_to_a_file", "the host's files would be changed", _append, "Appends to"),
    ("truncate_a_file", "the host's files would be lost", lambda path: os.truncate(path, 0), "Empties"),
    ("delete_a_file", "the host's files would be lost", os.unlink, "Deletes"),
    ("rename_a_file", "the host's files would be lost", lambda path: os.rename(path, path + ".away"), "Renames"),
    ("replace_a_file", "the host's files would be exchanged", _exchange, "Puts another in the place of"),
    ("mode_of_a_file", "the host's files would be everybody's", lambda path: os.chmod(path, 0o777),
     "Changes the mode of"),
    ("time_of_a_file", "the host's builds would be confused", lambda path: os.utime(path, (1, 1)),
     "Changes the time of"),
    ("attribute_of_a_file", "marks would be set on the host's files",
     lambda path: os.setxattr(path, "user.attack", b"x"), "Sets an attribute of"),
    ("link_to_a_file", "the host's files would be changed by another name", _link, "Writes by a hard link to"),
    ("reopen_a_file", "a file that was open for reading would be written to", _reopen, "Opens again, for writing,"),
    ("map_a_file", "the host's page cache would be changed (CVE-2016-5195)", _map, "Writes by shared memory to"),
    ("root_to_a_file", "the host's files would be changed", _by_root, "Writes by /proc/self/root to"),
    ("directory_to_a_file", "the host's files would be changed", _by_directory, "Writes by an open directory to"),
    ("punch_a_file", "the host's files would be lost", _punch, "Punches a hole into"),
    ("copy_into_a_file", "the host's page cache would be changed (CVE-2022-0847)", _sendfile,
     "Copies in the kernel to"),
):
    _changed(_name, _weaker, _act, _text)


@probe(PROMISE, "files would appear on the host", "shut: not the host's", "ENOENT", "EROFS", "EACCES",
       proof="outside")
def create_a_file(context: Context) -> object:
    """Makes a file beside one of the host's."""
    with open(f"{context['folder']}/files/create_a_file.new", "x"):
        return "done"


@probe(PROMISE, "directories would appear on the host", "shut: not the host's", "ENOENT", "EROFS", "EACCES",
       proof="outside")
def create_a_directory(context: Context) -> object:
    """Makes a directory on the host."""
    os.mkdir(f"{context['folder']}/files/create_a_directory.new")
    return "done"


@probe(PROMISE, "a link would lead the host's programs astray", "shut: not the host's", "ENOENT", "EROFS", "EACCES",
       proof="outside")
def create_a_link(context: Context) -> object:
    """Makes a symbolic link on the host."""
    os.symlink("/etc/passwd", f"{context['folder']}/files/create_a_link.new")
    return "done"


@probe(PROMISE, "the caller's interpreter would be overwritten (CVE-2019-5736)", "shut: not the host's", "EACCES",
       "EPERM", "EROFS", "ETXTBSY", "ENOENT", proof="outside")
def program_that_runs(context: Context) -> object:
    """Opens the program that it was started from for writing; outside a copy that does not run."""
    path = f"{context['folder']}/files/program_that_runs" if context["world"] == "outside" else "/proc/self/exe"
    fd = os.open(path, os.O_RDONLY)
    os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY))
    if context["world"] == "outside":
        _write(path)
        return "done"
    raise Shut("not the host's")  # opened for writing: the copy in the writable layer


@probe("secrets", "a password of the caller's would be read", "ENOENT", "shut: hidden", "EACCES", proof="outside")
def hidden_credentials(context: Context) -> object:
    """Reads the test's stand-ins for credentials below a home directory."""
    read = []
    for path in context["credentials"]:
        try:
            with open(path) as file:
                if context["secret"] in file.read():
                    read.append(path)
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            continue
    if read:
        return read
    raise Shut("hidden")


@probe("secrets", "a variable of the caller's would be read in an image that is not the host's", "shut: nothing",
       proof="outside")
def environment(context: Context) -> object:
    """Looks for the caller's secret in its own environment; the host image has it, by its definition."""
    if context["secret"] in os.environ.values():
        return "the secret"
    raise Shut("nothing")
