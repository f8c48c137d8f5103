"""Tries to turn a sandbox's networks, its names and the ways into it against the host, or against others."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from pytest_sandbox import Network, Outbound, Sandbox, SandboxConnectionError, SandboxTimeout
from pytest_sandbox.spec import DEFAULT_CAPABILITIES

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))
from echo import hears, serve, silent
from support import PACKAGE
from test_outbound import own_address


def test_what_is_written_to_the_names_stays_inside() -> None:
    before = Path("/etc/hosts").read_bytes()
    with Network() as net, Sandbox(hostname="a", network=net, user="root") as a:
        a.run(["sh", "-c", "rm -f /etc/hosts; mv /etc/hosts /tmp/x; ln -sf /etc/passwd /etc/hosts; "
                           "echo '# network 0 of pytest-sandbox' >> /etc/hosts; printf '\\377\\0' >> /etc/hosts"])
        a.run(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x >> /etc/hosts"])
        with Sandbox(hostname="b", network=net, user="root") as b:
            serve(b)
            assert hears(a, net.address(b))
            assert len(a.path("/etc/hosts").read_bytes()) < 2 << 20
            assert b.run(["getent", "ahostsv4", "a"]).stdout.split()[0] == net.address(a)
    assert Path("/etc/hosts").read_bytes() == before


def test_names_that_lie_lead_no_further_than_the_sandboxs_own_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Network() as net, Sandbox(
            hostname="a", network=net, user="root") as a:
        a.run(["sh", "-c", "echo '127.0.0.1 db' >> /etc/hosts; echo 'not-an-address evil' >> /etc/hosts"], check=True)
        with pytest.raises(SandboxConnectionError):
            a.connect(server.getsockname()[1], "db", timeout=1)
        with pytest.raises(SandboxConnectionError, match="does not know the host 'evil'"):
            a.connect(80, "evil")


def test_tables_of_the_kernel_that_are_covered_are_read_with_suspicion() -> None:
    lines = ["header", "0: zz:zz 0 0A", "0: 0100007F:0050", "", "x" * 100_000, "0: 0100007F:1F90 0:0 0A"]
    with Sandbox(user="root", capabilities=[*DEFAULT_CAPABILITIES, "SYS_ADMIN"]) as sandbox:
        sandbox.run(["sh", "-c", "mount -t tmpfs tmpfs /proc && mkdir -p /proc/1/net"], check=True)
        sandbox.path("/proc/1/net/tcp").write_text("\n".join(lines) + "\n")
        sandbox.wait_for_port(8080, 1)  # it believes what it can read
        with pytest.raises(SandboxTimeout):
            sandbox.wait_for_port(80, 0.05)
        sandbox.run(["sh", "-c", "rm /proc/1/net/tcp && mkfifo /proc/1/net/tcp"], check=True)
        with pytest.raises(SandboxTimeout):  # and does not wait for a writer
            sandbox.wait_for_port(8080, 0.05)
        with pytest.raises(ConnectionRefusedError):
            sandbox.connect(8080)


def test_a_member_cannot_undo_a_fault_nor_change_its_interface() -> None:
    with Network() as net, Sandbox(hostname="a", network=net, user="root") as a, Sandbox(
            hostname="b", network=net, user="root") as b:
        serve(b)
        with net.isolate("a"):
            for words in (["link", "set", "eth0", "down"], ["address", "add", "10.9.9.9/24", "dev", "eth0"],
                          ["link", "add", "x", "type", "bridge"]):
                if Path("/usr/sbin/ip").exists():
                    assert a.run(["/usr/sbin/ip", *words]).returncode != 0
            assert silent(a, net.address(b))


def test_an_outbound_sandbox_cannot_change_its_filter() -> None:
    code = """
import socket
s = socket.socket(16, socket.SOCK_RAW, 12)
# delete the table, in a batch
import struct
def m(kind, flags, seq, body, family=0, resource=0):
    data = struct.pack("=BBH", family, 0, resource) + body
    return struct.pack("=IHHII", len(data) + 16, kind, flags, seq, 0) + data
name = b"pytest-sandbox\\0"
attr = struct.pack("=HH", 4 + len(name), 1) + name + bytes(-len(name) % 4)
s.send(m(16, 1, 0, b"", 0, socket.htons(10)) + m(10 << 8 | 2, 5, 1, attr, 2) + m(17, 1, 2, b"", 0, socket.htons(10)))
print(-struct.unpack_from("=i", s.recv(999), 16)[0])
"""
    with Sandbox(network=Outbound(allow=[]), user="root") as sandbox:
        assert sandbox.run([sys.executable, "-c", code]).stdout == "1\n"  # EPERM
        connect = "import socket; socket.create_connection(('198.51.100.7', 443), 1)"
        assert "refused" in sandbox.run([sys.executable, "-c", connect]).stderr
        assert sandbox.refused() == ["tcp 198.51.100.7:443"]


def test_root_inside_cannot_send_around_the_filter() -> None:
    """A packet socket sends what no filter sees; the relay looks for itself."""
    code = """
import socket, struct, sys
sys.path.insert(0, sys.argv[3])
from pytest_sandbox.runtime import datagrams
there = socket.inet_aton(sys.argv[1])
key = there + socket.inet_aton("10.0.2.100") + struct.pack("!HH", int(sys.argv[2]), 4000)
frame = datagrams._answer(key, b"hello")  # as an answer of ours would be, to there
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
    for name in ("out0", "out0-far"):
        sock.bind((name, 0))
        sock.send(frame)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("", 4000))
    sock.sendto(b"allowed", (sys.argv[1], int(sys.argv[4])))
"""
    address = own_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as secret, socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM) as server:
        for one in (secret, server):
            one.bind((address, 0))
            one.settimeout(20)
        closed, opened = secret.getsockname()[1], server.getsockname()[1]
        with Sandbox(network=Outbound(allow=[f"{address}:{opened}"]), user="root") as sandbox:
            done = sandbox.run([sys.executable, "-c", code, address, str(closed), PACKAGE, str(opened)])
            assert (done.returncode, done.stderr) == (0, "")
            assert server.recv(99) == b"allowed"  # which was sent later, by the same line
            secret.settimeout(0)
            with pytest.raises(BlockingIOError):
                secret.recv(99)


def test_what_is_not_redirected_does_not_lead_to_the_hosts_loopback() -> None:
    """Who connects to the redirection's own port asks for the same port of 127.0.0.1: not for the host's."""
    code = """
import socket, sys
heard = []
for line in open("/proc/net/tcp").readlines()[1:]:
    local, state = line.split()[1], line.split()[3]
    if state == "0A" and local.startswith("0100007F"):
        with socket.create_connection(("127.0.0.1", int(local.partition(":")[2], 16)), 20) as sock:
            try:
                heard.append(sock.recv(99))
            except OSError as error:
                heard.append(type(error).__name__)
print(heard)
"""
    with Sandbox(network="outbound", user="root") as sandbox:
        ports = [int(line.split()[1].partition(":")[2], 16)
                 for line in sandbox.path("/proc/1/net/tcp").read_text().splitlines()[1:]
                 if line.split()[1].startswith("0100007F")]
        assert len(ports) == 1
        try:
            server = socket.create_server(("127.0.0.1", ports[0]))
        except OSError as error:
            pytest.skip(f"somebody has that port: {error}")
        with server:
            server.settimeout(0)
            assert sandbox.run([sys.executable, "-c", code]).stdout in ("[b'']\n", "['ConnectionResetError']\n")
            with pytest.raises(BlockingIOError):
                server.accept()


def test_what_is_made_in_a_sandboxs_network_does_not_reach_its_processes() -> None:
    with Sandbox(network="outbound", user="root") as sandbox, Network() as net, Sandbox(network=net) as other:
        for box in (sandbox, other):
            # The helper's descriptors and processes are none of those inside.
            assert {one["name"] for one in box.processes()} <= {"sh", "ls"}
        with sandbox.popen([sys.executable, "-c", "import socket, time; s = socket.create_server(('', 7000)); "
                                                  "time.sleep(1000)"]) as process:
            sandbox.wait_for_port(7000, 30)
            with sandbox.connect(7000) as sock:
                assert not os.get_inheritable(sock.fileno())
            process.kill()
        with pytest.raises(SandboxTimeout):
            sandbox.wait_for_port(7000, 0.05)
