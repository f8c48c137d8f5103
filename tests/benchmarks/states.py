"""What states cost: a commit by its size, a sandbox from a committed image, a reset; and a database for every test.

The database is the image that ``images/build.py postgres`` makes, found by SANDBOX_TEST_IMAGES; without it that table
is left out. Beside it: podman's container for every test, where podman can run here, and else what such a container
would do inside, in a sandbox: make the cluster, start, migrate.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import Series, Table, in_turns, timed

from pytest_sandbox import Sandbox

_MIB = 1 << 20
_SCHEMA = "create table users(id serial primary key, name text); create table items(id serial, owner int)"


def run(rounds: int) -> list[Table]:
    few = max(5, rounds // 20)
    return [_commits(few), *_starts(rounds), *_database(few)]


def _filled(size: int) -> Sandbox:
    sandbox = Sandbox(user="root").start()
    sandbox.run(["sh", "-c", f"mkdir -p /srv/d && for n in 1 2 3 4 5 6 7 8 9 10; do head -c {size // 10} /dev/zero "
                             "> /srv/d/$n; done"], check=True)
    return sandbox


def _commits(rounds: int) -> Table:
    def commit(size: int) -> float:
        with _filled(size) as sandbox:
            began = time.perf_counter()
            image = sandbox.commit()
            spent = (time.perf_counter() - began) * 1000
            with Sandbox(image=image, user="root") as other:
                assert other.path("/srv/d/10").stat().st_size == size // 10
            image.close()
            return spent

    table = Table("commit() of a writable layer in memory", in_turns(
        {"10 MiB": lambda: commit(10 * _MIB), "1 GiB": lambda: commit(1024 * _MIB)}, rounds), "10 MiB")
    table.notes.append("Ten files each. The time is that of commit() alone.")
    return table


def _starts(rounds: int) -> list[Table]:
    with Sandbox(user="root") as first:
        first.path("/srv/state").write_text("x")
        committed = first.commit()

    def start(**options: Any) -> None:
        with Sandbox(user="root", **options) as one:
            one.run(["/bin/true"], check=True)

    for options in ({}, {"image": committed}):
        start(**options)
    starts = Table("Start, /bin/true, close", in_turns({
        "from the base": lambda: timed(start),
        "from a committed image": lambda: timed(lambda: start(image=committed)),
    }, rounds), "from the base")
    # After the others: whoever resets has the next sandbox made ahead, which a start would take.
    with Sandbox(user="root", image=committed) as kept:
        def reset() -> float:
            kept.path("/srv/more").write_text("x")
            spent = timed(kept.reset)
            kept.run(["/bin/true"], check=True)
            return spent

        reset()
        resets = Table("reset()", [Series("reset", [reset() for _ in range(rounds)])], "reset")
        resets.notes.append("After a file was written; the sandbox can be used when it returns.")
    return [starts, resets]


# A database for every test.

def _serve(sandbox: Sandbox) -> Any:
    process = sandbox.popen([], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sandbox.run(["sh", "-c", "until pg_isready -q -h 127.0.0.1; do sleep 0.01; done"], timeout=60, check=True)
    return process


def _query(sandbox: Sandbox, text: str) -> str:
    done = sandbox.run(["psql", "-h", "127.0.0.1", "-U", "postgres", "-tAc", text], check=True)
    return str(done.stdout).strip()


def _database(rounds: int) -> list[Table]:
    archive = Path(os.environ.get("SANDBOX_TEST_IMAGES") or "/nonexistent") / "postgres.tar"
    if not archive.exists():
        print(f"no database: there is no {archive}; run images/build.py postgres, and set SANDBOX_TEST_IMAGES",
              file=sys.stderr)
        return []
    image = f"oci-archive:{archive}"
    with Sandbox(image=image) as first:
        server = _serve(first)
        _query(first, _SCHEMA)
        server.terminate()
        server.wait(30)
        migrated = first.commit()

    def ours() -> float:
        began = time.perf_counter()
        with Sandbox(image=migrated) as sandbox:
            _serve(sandbox)
            assert _query(sandbox, "select count(*) from users") == "0"
            spent = (time.perf_counter() - began) * 1000
            _query(sandbox, "drop table users")
        return spent

    def whole(action: Any) -> float:
        return timed(action)

    def anew() -> None:
        """As the entry point of a container of PostgreSQL does, which begins with no data."""
        with Sandbox(image=image) as sandbox:
            sandbox.run(["sh", "-c", "rm -rf $PGDATA && initdb --no-sync --auth=trust --username=postgres"], check=True)
            _serve(sandbox)
            _query(sandbox, _SCHEMA)
            assert _query(sandbox, "select count(*) from users") == "0"

    variants: dict[str, Any] = {
        "a test on the migrated state": lambda: whole(ours),
        "initdb, start and migrate, as a fresh container does": lambda: whole(anew),
    }
    first_query = Series("start to first query", [ours() for _ in range(rounds)])
    with _podman(archive) as (podman, why):
        if podman is not None:
            command = podman

            def container() -> None:
                script = ("rm -rf $PGDATA && initdb --no-sync --auth=trust --username=postgres >/dev/null && "
                          "(postgres -c fsync=off -c unix_socket_directories=/tmp 2>/dev/null &) ; "
                          "until pg_isready -q -h 127.0.0.1; do sleep 0.01; done; "
                          f"psql -h 127.0.0.1 -U postgres -qtAc '{_SCHEMA}' -c 'select count(*) from users'")
                subprocess.run([*command, "sh", "-c", script], check=True, capture_output=True)
            variants["podman run, a container for every test"] = lambda: whole(container)
        table = Table("PostgreSQL, for every test its own", [*in_turns(variants, rounds), first_query],
                      "a test on the migrated state")
    table.notes.append("podman beside it in the same run." if why is None else f"No podman here: {why}")
    return [table]


@contextmanager
def _podman(archive: Path) -> Iterator[tuple[list[str] | None, str | None]]:
    """The start of a command that runs the image by podman; None and why where that does not work."""
    if shutil.which("podman") is None:
        yield None, "it is not installed."
        return
    with tempfile.TemporaryDirectory(prefix="sandbox-bench-podman-") as place:
        podman = ["podman", "--root", f"{place}/s", "--runroot", f"{place}/r", "--storage-driver", "overlay"]
        loaded = subprocess.run([*podman, "load", "-q", "-i", str(archive)], capture_output=True, text=True,
                                check=False)
        name = loaded.stdout.strip().rpartition(" ")[2]
        command = [*podman, "run", "--rm", "--network=none", "--ulimit", "nofile=1024:1024", "--ulimit",
                   "nproc=4096:4096", name]
        tried = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            yield None, f"{(tried.stderr.strip().splitlines() or ['it failed'])[-1]}"
        else:
            yield command, None
        subprocess.run(["umount", "-q", f"{place}/s/overlay"], check=False, capture_output=True)
