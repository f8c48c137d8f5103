"""Five tests that would ruin the machine that they run on, and two that look whether it noticed.

Run it with ``tox run -e demo``. It needs no root: inside, ``user="root"`` is root of the sandbox and of nothing else.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from demo import Host, say

if TYPE_CHECKING:
    from pytest_sandbox import Sandbox

as_root = pytest.mark.sandbox(user="root")


@as_root
def test_rewrite_the_password_file(host: Host) -> None:
    host.must_be_out_of_reach()
    passwd = Path("/etc/passwd")
    say(f"I am user {os.getuid()}. /etc/passwd has {len(passwd.read_text().splitlines())} lines.")
    passwd.write_text("mallory:x:0:0::/:/bin/sh\n")
    Path("/etc/written-by-the-demo.conf").write_text("mine = all\n")
    say(f"Now it says: {passwd.read_text().strip()}")


def test_the_host_has_not_noticed(host: Host) -> None:
    """Runs on the host. The demo gets worse from here, so it stops unless the harmless part stayed inside."""
    if Host.seen_from_here(host.bystander) != host:
        pytest.exit("A sandboxed test changed the host's /etc: the demo stops here.", returncode=3)
    say("Back on the host: /etc/passwd is what it was, and there is no new file beside it.")


@as_root
def test_kill_every_process_in_sight(host: Host) -> None:
    host.must_be_out_of_reach()
    victims = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    say(f"Processes that I see: {[int(name) for name in os.listdir('/proc') if name.isdecimal()]}")
    os.kill(-1, signal.SIGKILL)
    assert [one.wait() for one in victims] == [-signal.SIGKILL] * 3
    say(f"After kill -9 -1:     {[int(name) for name in os.listdir('/proc') if name.isdecimal()]}")


@as_root
def test_serve_on_port_80(host: Host) -> None:
    host.must_be_out_of_reach()
    with socket.create_server(("0.0.0.0", 80)) as server, socket.create_connection(("127.0.0.1", 80)) as client:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"hello from port 80")
            say(f"A server and a client, on a network of their own: {client.recv(100).decode()!r}")


@as_root
def test_remove_usr(host: Host) -> None:
    host.must_be_out_of_reach()
    say(f"/usr/bin holds {len(os.listdir('/usr/bin'))} programs.")
    # --one-file-system: what is mounted below /usr is not /usr. The output is not shown: for an unprivileged user /usr
    # is a mount point, which rm empties and complains that it cannot remove.
    subprocess.run(["rm", "-rf", "--one-file-system", "/usr"], capture_output=True)
    left = os.listdir("/usr/bin") if os.path.exists("/usr/bin") else []
    say(f"After rm -rf /usr it holds {len(left)}.")
    assert left == []
    with pytest.raises(FileNotFoundError):
        subprocess.run(["/usr/bin/env", "true"])


@pytest.mark.sandbox(user="root")
def test_ask_a_sandbox_what_changed(sandbox: Sandbox) -> None:
    """This one stays on the host and sends commands into a sandbox."""
    sandbox.run(["sh", "-c", "echo 127.0.0.1 example.com >> /etc/hosts; mkdir /opt/demo"], check=True)
    for change in sandbox.changes():
        say(f"{change.kind:8} {change.path}")
    assert {"/etc/hosts", "/opt/demo"} <= {change.path for change in sandbox.changes()}


def test_the_host_is_as_it_was(host: Host) -> None:
    assert Host.seen_from_here(host.bystander) == host
    os.kill(host.bystander, 0)
    say("On the host, /etc and /usr hold what they held, /etc/passwd is the same,")
    say(f"and process {host.bystander}, which was only standing by, is still there.")
