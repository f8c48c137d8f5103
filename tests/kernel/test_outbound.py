"""``network="outbound"``: what it reaches, what it does not, and that nobody reaches it."""

from __future__ import annotations

import hashlib
import pickle
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from echo import hears, serve
from support import prints
from test_network import host_state, the_host_hears

from pytest_sandbox import Network, NetworkError, Outbound, Sandbox, SandboxUsageError
from pytest_sandbox.outbound import OWN, name_server

CLIENT = """
import hashlib, socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) as sock:
    sock.sendall(b"x" * int(sys.argv[3]))
    sock.shutdown(socket.SHUT_WR)
    with sock.makefile("rb") as file:
        print(hashlib.sha256(file.read()).hexdigest())
"""


def own_address() -> str:
    """An address of this host that is not its loopback's; skips where there is none."""
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    found = [lines[number - 1].split()[-1] for number, line in enumerate(lines) if line.endswith("/32 host LOCAL")]
    found = [one for one in found if not one.startswith(("127.", "169.254."))]
    if not found:
        pytest.skip("this host has no address but its loopback's, so that there is no outside to reach")
    return found[0]


class Upper(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1 << 16):
            self.request.sendall(data.upper())


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = False
    allow_reuse_address = True
    request_queue_size = 100


@pytest.fixture
def outside() -> Iterator[tuple[str, int]]:
    """A server on an address of the host's."""
    address = own_address()
    with Server((address, 0), Upper) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield address, server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def the_host_stays_as_it_is(helper: None) -> object:
    before = host_state()
    yield
    assert host_state() == before


def fetch(sandbox: Sandbox, where: tuple[str, int], size: int = 10) -> str:
    """What a client inside gets: "ok", or the last line of its complaint."""
    done = sandbox.run([sys.executable, "-c", CLIENT, where[0], str(where[1]), str(size)], timeout=60)
    if done.stdout.strip() == hashlib.sha256(b"X" * size).hexdigest():
        return "ok"
    return done.stderr.strip().splitlines()[-1]


def test_it_reaches_out(outside: tuple[str, int]) -> None:
    with Sandbox(network="outbound") as sandbox:
        assert fetch(sandbox, outside) == "ok"
        assert fetch(sandbox, outside, 5_000_000) == "ok"
        assert sandbox.refused() == []
    with Sandbox() as sandbox:
        assert "Network is unreachable" in fetch(sandbox, outside)


def test_many_connections_at_once(outside: tuple[str, int]) -> None:
    code = """
import socket, sys
socks = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for _ in range(100)]
for number, sock in enumerate(socks):
    sock.sendall(b"n%d" % number)
print(sum(sock.recv(99) == b"N%d" % number for number, sock in enumerate(socks)))
"""
    with Sandbox(network="outbound") as sandbox:
        assert sandbox.run([sys.executable, "-c", code, *map(str, outside)]).stdout == "100\n"


def test_its_own_loopback_is_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox(network="outbound", user="root") as sandbox:
        assert "Connection refused" in fetch(sandbox, ("127.0.0.1", server.getsockname()[1]))
        serve(sandbox)
        assert hears(sandbox, "127.0.0.1", socket.SOCK_STREAM)
        assert not the_host_hears(OWN)


def test_what_is_refused_is_remembered(outside: tuple[str, int]) -> None:
    address, port = outside
    with Sandbox(network=Outbound(allow=[f"{address}:{port}"])) as sandbox:
        assert fetch(sandbox, outside) == "ok"
        assert sandbox.refused() == []
        assert "Connection refused" in fetch(sandbox, (address, 1))
        assert "Connection refused" in fetch(sandbox, ("198.51.100.7", 443))
        send = "import socket; socket.socket(2, 2).sendto(b'x', ('203.0.113.5', 123))"
        assert "PermissionError" in sandbox.run([sys.executable, "-c", send]).stderr
        for _ in range(2):
            assert sandbox.refused() == sorted([f"tcp {address}:1", "tcp 198.51.100.7:443", "udp 203.0.113.5:123"])
    with Sandbox() as sandbox:
        assert sandbox.refused() == []


def test_a_clouds_credentials_are_out_of_reach() -> None:
    with Sandbox(network="outbound") as sandbox:
        assert "Connection refused" in fetch(sandbox, ("169.254.169.254", 80))
        assert sandbox.refused() == ["tcp 169.254.169.254:80"]


def test_many_refusals_do_not_grow_without_bounds() -> None:
    code = """
import socket
for number in range(2000):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((f"198.51.{number // 250}.{number % 250 + 1}", 80))
    sock.close()
"""
    with Sandbox(network=Outbound(allow=[])) as sandbox:
        sandbox.run([sys.executable, "-c", code], check=True)
        assert 100 < len(sandbox.refused()) <= 512


def test_allowed_names_are_known_and_no_others() -> None:
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, 80, socket.AF_INET)[0][4][0]
    except OSError:
        name, address = "localhost", "127.0.0.1"
    with Sandbox(network=Outbound(allow=[f"{name}:80"])) as sandbox:
        assert sandbox.run(["getent", "ahostsv4", name]).stdout.split()[0] == address
        assert "Name or service not known" in fetch(sandbox, ("nowhere.example", 80))


def test_names_are_asked_of_the_hosts_name_server(monkeypatch: pytest.MonkeyPatch) -> None:
    # A name server of our own: what the real one knows, or whether there is one, is not ours to say.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        monkeypatch.setattr("pytest_sandbox.outbound.name_server", lambda: list(server.getsockname()))

        def answer() -> None:
            question, peer = server.recvfrom(999)
            end = question.index(b"\0", 12) + 5
            record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("198.51.100.99")
            server.sendto(question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:end] + record, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        with Sandbox(network="outbound") as sandbox:
            assert sandbox.path("/etc/resolv.conf").read_text().startswith("nameserver 10.0.2.3\n")
            code = "import socket; print(socket.gethostbyname('somewhere.example'))"
            assert sandbox.run([sys.executable, "-c", code]).stdout == "198.51.100.99\n"
        thread.join()


def test_the_name_server_of_the_host_is_found() -> None:
    words = Path("/etc/resolv.conf").read_text().split() if Path("/etc/resolv.conf").exists() else []
    assert (name_server() is not None) == ("nameserver" in words)


def test_together_with_a_network(outside: tuple[str, int]) -> None:
    with Network() as net, Sandbox(hostname="b", network=net, user="root") as b, Sandbox(
            hostname="a", network=[net, Outbound()]) as a:
        serve(b)
        assert hears(a, "b", socket.SOCK_STREAM)
        assert fetch(a, outside) == "ok"
        assert "unreachable" in fetch(b, outside)
        assert net.members["a"] is a


def test_it_ends_with_the_sandbox(outside: tuple[str, int]) -> None:
    with Sandbox(network="outbound") as sandbox:
        assert fetch(sandbox, outside) == "ok"
        sandbox.reset()
        assert fetch(sandbox, outside) == "ok"
    # That no process is left is the leak check's to say.


def test_pyroute2_is_not_imported() -> None:
    assert prints("""
        import sys
        from pytest_sandbox import Sandbox
        with Sandbox(network="outbound"):
            print("pyroute2" in sys.modules)
    """) == ["False"]


@pytest.mark.parametrize("entry", ["example.org", "example.org:0", "example.org:99999", ":80", "a b:1", 5, "[::1]",
                                   "[192.0.2.1]:80", "[::g]:80", "2001:db8::1:80", "a:1/icmp", "a:1/", "a:1/udp/tcp"])
def test_an_entry_that_is_none(entry: object) -> None:
    with pytest.raises(SandboxUsageError, match="host:port"):
        Outbound(allow=[entry])  # type: ignore[list-item]


def test_a_list_that_is_none() -> None:
    with pytest.raises(SandboxUsageError, match=r"allow=443 cannot be used.*host:port"):
        Outbound(allow=443)  # type: ignore[arg-type]
    with pytest.raises(SandboxUsageError, match="did you mean 'outbound'"):
        Sandbox(network="outbund")


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(NetworkError, match=r"nowhere\.invalid:80 cannot be allowed.*does not know the name"):
        Sandbox(network=Outbound(allow=["nowhere.invalid:80"])).start()


def test_it_is_plain_data() -> None:
    one = Outbound(allow=["192.0.2.1:80"])
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != Outbound()
    assert {one: 1}[Outbound(allow="192.0.2.1:80")] == 1
    assert "192.0.2.1:80" in repr(one)
    with pytest.raises(SandboxUsageError, match="one way out"):
        Sandbox(network=[one, Outbound()])
