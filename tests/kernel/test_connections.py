"""Ways into a sandbox's network: sockets made inside, ports that lead inside, and waiting for servers."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from support import namespaces, prints, until

from pytest_sandbox import (
    Sandbox,
    SandboxClosedError,
    SandboxConnectionError,
    SandboxConnectionRefused,
    SandboxTimeout,
    SandboxUsageError,
)

#: Echoes in capitals what it is sent: on the address, family and kind of its arguments.
SERVER = """
import os, socket, sys, threading
family, kind = (getattr(socket, one) for one in sys.argv[1:3])
where = sys.argv[3:]
server = socket.socket(family, kind)
address = where[0] if family == socket.AF_UNIX else (where[0], int(where[1]))
server.bind(address)
def serve(connection):
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data.upper())
if kind == socket.SOCK_DGRAM:
    while True:
        data, peer = server.recvfrom(1 << 16)
        server.sendto(data.upper(), peer)
server.listen(200)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"""


def background(sandbox: Sandbox, *words: str) -> None:
    """Starts a command that runs for as long as the sandbox."""
    sandbox.run(["sh", "-c", '"$@" > /dev/null 2>&1 &', "sh", *words], check=True)


def serve(sandbox: Sandbox, family: str, kind: str, *where: str) -> None:
    background(sandbox, sys.executable, "-c", SERVER, family, kind, *where)


@pytest.fixture
def started() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


def ask(sock: socket.socket, text: bytes = b"hello") -> bytes:
    with sock:
        sock.settimeout(20)
        sock.sendall(text)
        if sock.type == socket.SOCK_STREAM:
            sock.shutdown(socket.SHUT_WR)
            with sock.makefile("rb") as file:
                return file.read()
        return sock.recv(1 << 16)


def test_a_tcp_server_inside_that_the_host_cannot_see(started: Sandbox) -> None:
    serve(started, "AF_INET", "SOCK_STREAM", "127.0.0.1", "8080")
    started.wait_for_port(8080)
    with started.connect(8080) as sock:
        assert sock.getpeername() == ("127.0.0.1", 8080)
        assert sock.gettimeout() is None
        assert not sock.get_inheritable()
    assert ask(started.connect(8080)) == b"HELLO"
    assert ask(started.connect(8080, "localhost")) == b"HELLO"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 8080))


def test_what_the_host_serves_is_not_reached(started: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(SandboxConnectionRefused):
        started.connect(server.getsockname()[1])


def test_ipv6(started: Sandbox) -> None:
    serve(started, "AF_INET6", "SOCK_STREAM", "::1", "8080")
    started.wait_for_port(8080, host="::1")
    assert ask(started.connect(8080, "::1")) == b"HELLO"
    with pytest.raises(SandboxTimeout, match=r"there is only \[::1\]:8080"):
        started.wait_for_port(8080, 0.05)


def test_udp(started: Sandbox) -> None:
    serve(started, "AF_INET", "SOCK_DGRAM", "0.0.0.0", "5353")
    started.wait_for_port(5353, type=socket.SOCK_DGRAM)
    assert ask(started.connect(5353, type=socket.SOCK_DGRAM)) == b"HELLO"


def test_a_unix_socket_by_its_path(started: Sandbox) -> None:
    serve(started, "AF_UNIX", "SOCK_STREAM", "/tmp/server.sock")
    started.wait_for_file("/tmp/server.sock")
    until(lambda: _listens(started, "/tmp/server.sock"), "it listens")
    assert ask(started.connect("/tmp/server.sock")) == b"HELLO"
    started.path("/tmp/link").symlink_to("/tmp/server.sock")
    assert ask(started.connect(started.path("/tmp/link")._path)) == b"HELLO"


def _listens(sandbox: Sandbox, path: str) -> bool:
    lines = sandbox.path("/proc/1/net/unix").read_text().splitlines()
    return any(line.endswith(path) and line.split()[3] == "00010000" for line in lines)


def test_a_unix_datagram_socket(started: Sandbox) -> None:
    code = ("import socket; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.bind('/tmp/log');"
            "print(s.recv(99).decode())")
    with started.popen([sys.executable, "-c", code]) as process:
        started.wait_for_file("/tmp/log")
        with started.connect("/tmp/log", type=socket.SOCK_DGRAM) as sock:
            sock.send(b"a line")
        assert process.stdout.read() == "a line\n"


def test_a_planted_link_leads_to_no_socket_of_the_host(started: Sandbox, tmp_path: object) -> None:
    place = f"{tmp_path}/host.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(place)
        server.listen()
        started.path("/tmp/planted").symlink_to(f"/proc/1/root{place}")
        for path in (place, "/tmp/planted", f"/../../..{place}"):
            with pytest.raises(SandboxConnectionError):
                started.connect(path)


def test_a_fifo_and_a_file_in_place_of_a_socket(started: Sandbox) -> None:
    started.run(["sh", "-c", "mkfifo /tmp/fifo; echo > /tmp/file"], check=True)
    for name in ("/tmp/fifo", "/tmp/file"):
        with pytest.raises(SandboxConnectionError, match="it is not a socket"):
            started.connect(name)


def test_a_port_that_nobody_listens_on(started: Sandbox) -> None:
    with pytest.raises(SandboxConnectionRefused) as caught:
        started.connect(8080)
    assert isinstance(caught.value, ConnectionRefusedError)
    assert caught.value.address == "127.0.0.1:8080"
    assert str(caught.value) == ("no connection to 127.0.0.1:8080 in the sandbox: nobody listens there. "
                                 "Start the server first; wait_for_port() waits until it listens.")
    serve(started, "AF_INET", "SOCK_STREAM", "127.0.0.1", "9090")
    started.wait_for_port(9090)
    with pytest.raises(SandboxConnectionRefused, match=r"nobody listens there \(127\.0\.0\.1:9090 does\)"):
        started.connect(8080)
    with pytest.raises(SandboxTimeout, match=r"port 8080 .*there is only 127\.0\.0\.1:9090"):
        started.wait_for_port(8080, 0.05)


@pytest.mark.parametrize("port", [0, 65536, -1, True, 80.0, None])
def test_a_port_that_is_none(started: Sandbox, port: object) -> None:
    for call in (started.connect, started.wait_for_port, started.forward):
        with pytest.raises(SandboxUsageError, match="1 to 65535"):
            call(port)  # type: ignore[operator]


def test_names_that_are_not_known(started: Sandbox) -> None:
    with pytest.raises(SandboxConnectionError, match=r"does not know the host 'nowhere\.example'"):
        started.connect(80, "nowhere.example")
    with pytest.raises(SandboxConnectionError, match=r"there: No such file or directory|no connection to /tmp/none"):
        started.connect("/tmp/none")


def test_an_address_without_a_way(started: Sandbox) -> None:
    with pytest.raises(SandboxConnectionError, match=r"198\.51\.100\.7:80 in the sandbox: Network is unreachable"):
        started.connect(80, "198.51.100.7")


def test_waiting_does_not_disturb_a_server_that_accepts_once(started: Sandbox) -> None:
    code = "import socket; s = socket.create_server(('', 7000)); c, _ = s.accept(); print(c.recv(99).decode())"
    with started.popen([sys.executable, "-c", code]) as process:
        started.wait_for_port(7000)
        with started.connect(7000) as sock:
            sock.sendall(b"the first and only")
        assert process.stdout.read() == "the first and only\n"


def test_a_closed_sandbox(started: Sandbox) -> None:
    started.close()
    for call in (started.connect, started.wait_for_port, started.forward):
        with pytest.raises(SandboxClosedError):
            call(80)


def test_asyncio(started: Sandbox) -> None:
    serve(started, "AF_INET", "SOCK_STREAM", "127.0.0.1", "8080")
    serve(started, "AF_UNIX", "SOCK_STREAM", "/tmp/server.sock")
    started.wait_for_port(8080)
    until(lambda: _listens(started, "/tmp/server.sock"), "it listens")

    async def main() -> list[bytes]:
        got = []
        for port in (8080, "/tmp/server.sock"):
            reader, writer = await started.open_connection(port)
            writer.write(b"hello")
            writer.write_eof()
            got.append(await reader.read())
            writer.close()
            await writer.wait_closed()
        with pytest.raises(SandboxConnectionRefused):
            await started.open_connection(81)
        return got

    assert asyncio.run(main()) == [b"HELLO", b"HELLO"]


def test_a_port_that_leads_inside(started: Sandbox) -> None:
    serve(started, "AF_INET", "SOCK_STREAM", "127.0.0.1", "8080")
    started.wait_for_port(8080)
    host, port = started.forward(8080)
    assert host == "127.0.0.1"
    assert ask(socket.create_connection((host, port))) == b"HELLO"
    data = os.urandom(3 << 20).lower()
    got = []
    threads = [threading.Thread(target=lambda: got.append(_exchange((host, port), data))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [data.upper()] * 4


def _exchange(where: tuple[str, int], data: bytes) -> bytes:
    with socket.create_connection(where, timeout=30) as sock:
        sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
        sender.start()
        with sock.makefile("rb") as file:
            got = file.read()
        sender.join()
        return got


def test_a_forwarded_port_ends_with_the_sandbox() -> None:
    with Sandbox() as sandbox:
        serve(sandbox, "AF_INET", "SOCK_STREAM", "127.0.0.1", "8080")
        sandbox.wait_for_port(8080)
        where = sandbox.forward(8080)
        idle = socket.create_connection(where)
        idle.sendall(b"x")
        assert idle.recv(1) == b"X"
        sandbox.reset()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(where)
        with idle:
            assert _ends(idle)
        other = sandbox.forward(8080)
        with socket.create_connection(other) as nobody:
            assert _ends(nobody)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(other)


def _ends(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_many_connections_through_one_forwarded_port(started: Sandbox) -> None:
    serve(started, "AF_INET", "SOCK_STREAM", "127.0.0.1", "8080")
    started.wait_for_port(8080)
    where = started.forward(8080)
    socks = [socket.create_connection(where) for _ in range(150)]
    for number, sock in enumerate(socks):
        sock.sendall(f"n{number}".encode())
    for number, sock in enumerate(socks):
        sock.settimeout(20)
        assert sock.recv(99) == f"N{number}".encode()
        sock.close()
    assert ask(socket.create_connection(where)) == b"HELLO"


def test_with_the_hosts_network_the_port_is_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox(network="host") as sandbox:
        port = server.getsockname()[1]
        sandbox.wait_for_port(port)
        sandbox.connect(port).close()
        assert sandbox.forward(port) == ("127.0.0.1", port)


def test_the_helper_comes_back_to_its_own_network(started: Sandbox) -> None:
    with pytest.raises(SandboxConnectionRefused):
        started.connect(1)
    with Sandbox(network="host") as other:
        assert other.run(["readlink", "/proc/self/ns/net"]).stdout.strip() == namespaces()["net"]


def test_asyncio_is_not_imported_for_a_connection() -> None:
    assert prints("""
        import sys
        from pytest_sandbox import Sandbox, SandboxConnectionRefused
        with Sandbox() as sandbox:
            try:
                sandbox.connect(80)
            except SandboxConnectionRefused:
                print("asyncio" in sys.modules, "pyroute2" in sys.modules)
    """) == ["False False"]


def test_a_server_that_does_not_answer(started: Sandbox) -> None:
    # A queue of nothing that is full: the third connection waits.
    background(started, sys.executable, "-c", "import socket, time; s = socket.create_server(('', 7000), backlog=0);"
               "time.sleep(1000)")
    started.wait_for_port(7000)
    begun = time.monotonic()
    kept = []
    with pytest.raises(SandboxTimeout, match=r"no answer in 0\.2 s"):
        while time.monotonic() < begun + 20:
            kept.append(started.connect(7000, timeout=0.2))
    for sock in kept:
        sock.close()
