"""django's connections to SQLite files, in a fork. Used by ``guest``.

A connection that was opened outside writes to the host's file, and SQLite refuses that inside, where there is another
file at its path: the sandbox's copy (``SQLITE_READONLY_DBMOVED``). So the child gives each connection that copy, with
all that the connection sees, uncommitted changes included. The old one stays as it is: to close it would take its
transaction back in the host's file.
"""

from __future__ import annotations

import os
import sys
from typing import Any

#: The old connections, for as long as the process lives.
_kept: list[Any] = []


def files() -> dict[str, tuple[str, tuple[int, int]]]:
    """The files that are open in this process: alias -> (path, what tells it from other files). Before the fork."""
    if "django.db" not in sys.modules or not sys.modules["django.conf"].settings.configured:
        return {}
    found = {}
    for one in sys.modules["django.db"].connections.all(initialized_only=True):
        if one.vendor == "sqlite" and one.connection is not None and not one.is_in_memory_db():
            path = os.path.abspath(one.settings_dict["NAME"])
            if (identity := _identity(path)) is not None:
                found[one.alias] = path, identity
    return found


def move_inside(opened: dict[str, tuple[str, tuple[int, int]]]) -> None:
    """Gives each of those connections the file that is at its path now. In the child."""
    for alias, (path, identity) in opened.items():
        if _identity(path) != identity:  # else it shows through
            try:
                _move(sys.modules["django.db"].connections[alias], path)
            except OSError:
                continue  # a read-only folder: nothing can be written there in any case


def _move(wrapper: Any, path: str) -> None:
    import sqlite3

    old = wrapper.connection
    try:
        _copy(old, f"{path}-sandbox")
    except sqlite3.Error:
        return  # the test will see what is wrong with it
    os.replace(f"{path}-sandbox", path)
    for rest in ("-journal", "-wal", "-shm"):
        if os.path.exists(path + rest):
            os.unlink(path + rest)
    _kept.append(old)
    new = wrapper.connection = wrapper.get_new_connection(wrapper.get_connection_params())
    if wrapper.in_atomic_block:
        new.execute("BEGIN")
        for name in wrapper.savepoint_ids:
            if name is not None:
                new.execute(f'SAVEPOINT "{name}"')


def _copy(connection: Any, path: str) -> None:
    """What ``connection`` sees, as a new file. A backup would wait for the end of its transaction, for ever."""
    import sqlite3

    if hasattr(connection, "serialize"):  # Python 3.11
        with open(path, "wb") as file:
            file.write(connection.serialize())
        return
    copy = sqlite3.connect(path, isolation_level=None)
    try:
        if connection.in_transaction:
            copy.executescript("".join(connection.iterdump()))
        else:
            connection.backup(copy)
    finally:
        copy.close()


def _identity(path: str) -> tuple[int, int] | None:
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
