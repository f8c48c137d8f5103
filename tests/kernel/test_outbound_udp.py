"""``network="outbound"`` beyond TCP over IPv4: datagrams, and IPv6 where the host has it."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_network import host_state
from test_outbound import own_address

from pytest_sandbox import Network, NetworkError, Outbound, Sandbox
from pytest_sandbox.runtime import uplink
from pytest_sandbox.runtime.datagrams import Datagrams

#: Sends what the arguments say and prints what comes back, or the error's name.
CLIENT = """
import json, socket, sys
said = []
for kind, host, port, size in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as sock:
            sock.settimeout(20)
            sock.connect((host, port))
            sock.send(b"x" * size)
            data = sock.recv(70000)
            said.append(len(data) if data == b"X" * size else "something else")
    except OSError as error:
        said.append(type(error).__name__)
print(json.dumps(said))
"""


def ask(sandbox: Sandbox, *questions: tuple[str, str, int, int]) -> list[Any]:
    """Sizes that came back, or the names of errors."""
    done = sandbox.run([sys.executable, "-c", CLIENT, json.dumps(questions)], check=True, timeout=60)
    return json.loads(done.stdout)


def answer(sock: socket.socket) -> None:
    while True:
        data, peer = sock.recvfrom(70000)
        if data == b"end":
            return
        sock.sendto(data.upper(), peer)


def own_ipv6() -> str:
    """An IPv6 address of this host's that others reach; skips where there is none."""
    for line in Path("/proc/net/if_inet6").read_text().splitlines():
        words = line.split()
        if words[3] == "00" and words[5] != "lo":  # of global scope
            return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[0]))
    pytest.skip("this host has no IPv6 address but its loopback's and links'")


@pytest.fixture
def echo() -> Iterator[Any]:
    """Gives servers that answer datagrams, on an address of the host's."""
    with_ends = []

    def start(address: str) -> int:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, 0))
        thread = threading.Thread(target=answer, args=(sock,))
        thread.start()
        with_ends.append((sock, thread))
        return int(sock.getsockname()[1])

    yield start
    for sock, thread in with_ends:
        with socket.socket(sock.family, socket.SOCK_DGRAM) as end:
            end.sendto(b"end", sock.getsockname())
        thread.join()
        sock.close()


@pytest.fixture(autouse=True)
def the_host_stays_as_it_is(helper: None) -> object:
    before = host_state()
    yield
    assert host_state() == before


def test_datagrams_of_every_size(echo: Any) -> None:
    address = own_address()
    port = echo(address)
    sizes = [1, 1472, 9000, 65000]
    with Sandbox(network="outbound") as sandbox:
        assert ask(sandbox, *(("udp", address, port, size) for size in sizes)) == sizes
        assert sandbox.refused() == []


def test_where_nobody_listens(echo: Any) -> None:
    address = own_address()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind((address, 0))
        port = taken.getsockname()[1]
    with Sandbox(network="outbound") as sandbox:
        assert ask(sandbox, ("udp", address, port, 5)) == ["ConnectionRefusedError"]


def test_only_who_was_asked_can_answer(echo: Any) -> None:
    address = own_address()
    code = """
import socket, sys
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(20)
sock.sendto(b"where are you?", (sys.argv[1], int(sys.argv[2])))
print(sock.recv(99).decode())
"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM) as stranger, Sandbox(network="outbound") as sandbox:
        server.bind((address, 0))
        server.settimeout(20)
        with sandbox.popen([sys.executable, "-c", code, address, str(server.getsockname()[1])]) as process:
            _, peer = server.recvfrom(99)
            stranger.sendto(b"from a stranger", peer)
            server.sendto(b"from the server", peer)
            assert process.stdout is not None
            assert process.stdout.read() == "from the server\n"


def test_many_conversations(echo: Any) -> None:
    """More than are kept at a time: the oldest give way."""
    address = own_address()
    port = echo(address)
    code = """
import socket, sys
heard = 0
socks = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(sys.argv[3]))]
for sock in socks:
    sock.settimeout(20)
    sock.sendto(b"x", (sys.argv[1], int(sys.argv[2])))
    heard += sock.recv(9) == b"X"
socks[0].sendto(b"y", (sys.argv[1], int(sys.argv[2])))
print(heard, socks[0].recv(9).decode())
"""
    with Sandbox(network="outbound") as sandbox:
        many = Datagrams.MOST + 50
        done = sandbox.run([sys.executable, "-c", code, address, str(port), str(many)])
        assert (done.stdout, done.stderr) == (f"{many} Y\n", "")


def test_the_allow_list_tells_protocols_apart(echo: Any) -> None:
    address = own_address()
    port, other = echo(address), echo(address)
    with Sandbox(network=Outbound(allow=[f"{address}:{port}/udp", f"{address}:{other}/tcp"])) as sandbox:
        assert ask(sandbox, ("udp", address, port, 5), ("tcp", address, port, 5), ("udp", address, other, 5)) == [
            5, "ConnectionRefusedError", "PermissionError"]
        assert sandbox.refused() == [f"tcp {address}:{port}", f"udp {address}:{other}"]
    with Sandbox(network=Outbound(allow=[f"{address}:{port}"])) as sandbox:
        assert ask(sandbox, ("udp", address, port, 5)) == [5]


def test_groups_are_not_reached() -> None:
    with Sandbox(network="outbound") as sandbox:
        assert ask(sandbox, ("udp", "239.255.255.250", 1900, 5)) == ["PermissionError"]
        assert sandbox.refused() == ["udp 239.255.255.250:1900"]


def test_ipv6(echo: Any) -> None:
    address = own_ipv6()
    port = echo(address)
    with socket.create_server((address, 0), family=socket.AF_INET6) as server:
        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(connection.recv(99).upper())

        thread = threading.Thread(target=serve)
        thread.start()
        tcp = server.getsockname()[1]
        with Sandbox(network="outbound") as sandbox:
            assert ask(sandbox, ("tcp", address, tcp, 5), ("udp", address, port, 65000)) == [5, 65000]
            everywhere = uplink.host_ipv6() == ["::/0"]  # else there is no route to what follows
            assert ask(sandbox, ("tcp", "fd00:ec2::254", 80, 5), ("udp", "fd00:ec2::254", 53, 5)) == (
                ["ConnectionRefusedError", "PermissionError"] if everywhere else ["OSError", "OSError"])
            assert sandbox.refused() == (["tcp [fd00:ec2::254]:80", "udp [fd00:ec2::254]:53"] if everywhere else [])
        thread.join()
    with Sandbox(network=Outbound(allow=[f"[{address}]:{port}"])) as sandbox:
        assert ask(sandbox, ("udp", address, port, 5), ("tcp", address, tcp, 5)) == [5, "ConnectionRefusedError"]
        assert sandbox.refused() == [f"tcp [{address}]:{tcp}"]


def test_a_host_without_ipv6(monkeypatch: pytest.MonkeyPatch, echo: Any) -> None:
    monkeypatch.setattr(uplink, "host_ipv6", list)
    address = own_address()
    port = echo(address)
    with Sandbox(network="outbound") as sandbox:
        assert ask(sandbox, ("udp", address, port, 5), ("tcp", "2001:db8::1", 80, 5)) == [5, "OSError"]
        assert sandbox.refused() == []
    with pytest.raises(NetworkError, match=r"\[2001:db8::1\]:80 cannot be allowed.*this host no IPv6"):
        Sandbox(network=Outbound(allow=["[2001:db8::1]:80"])).start()


def test_together_with_a_network(echo: Any) -> None:
    address = own_address()
    port = echo(address)
    with Network() as net, Sandbox(hostname="b", network=net) as b, Sandbox(
            hostname="a", network=[net, Outbound()]) as a:
        assert ask(a, ("udp", address, port, 5)) == [5]
        assert a.run(["getent", "hosts", "b"]).returncode == 0
        assert ask(b, ("udp", address, port, 5)) == ["OSError"]


def test_the_routes_of_the_host_are_found(tmp_path: Any) -> None:
    table = tmp_path / "ipv6_route"
    rest = "00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000"
    lines = [f"20010db8{'0' * 24} 40 {{}} 00000001 eth0", f"fe80{'0' * 28} 40 {{}} 00000001 eth0",
             f"20010db8{'0' * 23}2 80 {{}} 80200001 eth0", f"{'0' * 32} 00 {{}} 00200200 lo"]
    table.write_text("".join(f"{line.format(rest)}\n" for line in lines))
    assert uplink.host_ipv6(str(table)) == ["2001:db8::/64"]
    table.write_text("".join(f"{line.format(rest)}\n" for line in [*lines, "0" * 32 + " 00 {} 00000003 eth0"]))
    assert uplink.host_ipv6(str(table)) == ["::/0"]
    assert uplink.host_ipv6("/nowhere") == []
