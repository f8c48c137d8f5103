"""Networks in suites: the fixture, the marker, and many workers at once."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("all_plugins")

SUITE = """
import socket
import sys
import pytest
from pytest_sandbox import Network, inside

net = Network("10.3.0.0/24")
SERVER = '''import socket
server = socket.create_server(("", 7000))
while True:
    connection, _ = server.accept()
    connection.sendall(connection.recv(9).upper())
'''

def serve(sandbox):
    process = sandbox.popen([sys.executable, "-c", SERVER])
    sandbox.wait_for_port(7000)
    return process

@pytest.fixture(scope="module")  # those of function scope run inside
def server(sandbox_factory):
    with sandbox_factory(network=net, hostname="server") as sandbox, serve(sandbox) as process:
        yield sandbox
        process.kill()

@pytest.mark.sandbox(network=net, hostname="client")
@pytest.mark.parametrize("number", range(3))
def test_marked(server, number):
    assert inside()
    with socket.create_connection(("server", 7000), timeout=20) as sock:
        sock.sendall(b"hello")
        assert sock.recv(9) == b"HELLO"
        assert sock.getsockname()[0].startswith(("10.3.0.", "fd00:89:"))

def test_driven(sandbox_factory, sandbox_network):
    with sandbox_factory(network=sandbox_network, hostname="a") as a, \\
            sandbox_factory(network=sandbox_network, hostname="b") as b, serve(b) as process:
        with a.connect(7000, "b") as sock:
            sock.sendall(b"hello")
            assert sock.recv(9) == b"HELLO"
        assert not inside()
        process.kill()

@pytest.mark.sandbox
def test_alone():
    with pytest.raises(OSError):
        socket.create_connection(("10.3.0.1", 7000))
"""


@pytest.mark.parametrize("options", [(), ("--sandbox=all",), ("-n", "2")], ids=" ".join)
def test_a_suite_with_networks(pytester: pytest.Pytester, options: tuple[str, ...]) -> None:
    if "-n" in options:
        pytest.importorskip("xdist")
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)
    result.assert_outcomes(passed=5)


MANY = """
import sys, time
from contextlib import ExitStack
from pathlib import Path

import pytest
from pytest_sandbox import Network, Sandbox

SERVER = '''import socket, sys
sock = socket.create_server(("::", 7000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    sock.accept()[0].sendall(sys.argv[1].encode())
'''


@pytest.fixture(scope="session")
def pairs(worker_id):
    with ExitStack() as stack:
        made = []
        for number in range(10):
            net = stack.enter_context(Network("10.7.0.0/24", "fd07::/64"))
            a, b = (stack.enter_context(Sandbox(hostname=name, network=net)) for name in "ab")
            server = stack.enter_context(b.popen([sys.executable, "-c", SERVER, f"{worker_id} {number}"]))
            stack.callback(server.kill)
            b.wait_for_port(7000, 60)
            made.append((net, a, b))
        Path(__file__).with_name(worker_id).touch()
        deadline = time.monotonic() + 100
        while not all(Path(__file__).with_name(name).exists() for name in ("gw0", "gw1")):
            assert time.monotonic() < deadline, "the other worker has no networks"
            time.sleep(0.01)
        yield made


@pytest.mark.parametrize("number", range(20))
def test_each_reaches_its_own(pairs, worker_id, number):
    net, a, b = pairs[number % 10]
    assert (net.address("a"), net.address("b")) == ("10.7.0.1", "10.7.0.2")
    for host in ("10.7.0.2", "fd07::2"):
        with a.connect(7000, host) as sock:
            assert sock.recv(99).decode() == f"{worker_id} {number % 10}"
"""


def test_twenty_segments_at_once_in_two_workers(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(MANY)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-n", "2")
    result.assert_outcomes(passed=20)


def test_a_network_that_is_closed_fails_its_test_with_the_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest
        from pytest_sandbox import Network
        net = Network()
        net.close()
        @pytest.mark.sandbox(network=net)
        def test_one():
            pass
        @pytest.mark.sandbox(network=3)
        def test_two():
            pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*test_two: sandbox option network=3 cannot be used*a Network, or a list of them*"])
    pytester.makepyfile("""
        import pytest
        from pytest_sandbox import Network
        net = Network()
        net.close()
        @pytest.mark.sandbox(network=net)
        def test_one():
            pass
    """)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the network * is closed*Make a new Network*"])


TRIES = """
    import socket
    import subprocess
    import sys
    import pytest
    from pytest_sandbox import Outbound

    @pytest.mark.sandbox
    def test_none():
        for address in (("198.51.100.7", 443), ("127.0.0.1", 1), ("2001:db8::5", 80), ("somewhere.example", 80)):
            try:
                socket.create_connection(address)
            except OSError:
                pass
        assert False

    @pytest.mark.sandbox
    def test_none_by_a_program():
        subprocess.run([sys.executable, "-c", "import socket; socket.create_connection(('198.51.100.8', 80))"])
        assert False

    @pytest.mark.sandbox
    def test_none_in_setup(broken):
        pass

    @pytest.fixture
    def broken():
        socket.create_connection(("198.51.100.9", 80))

    @pytest.mark.sandbox(network=Outbound(allow=["192.0.2.1:80"]))
    def test_outbound():
        with pytest.raises(PermissionError):
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("198.51.100.12", 123))
        subprocess.run([sys.executable, "-c", "import socket; socket.create_connection(('198.51.100.10', 443))"])
        assert False

    @pytest.mark.sandbox
    def test_that_did_not_try():
        socket.getaddrinfo("localhost", 80)
        assert False

    def test_driven(sandbox):
        sandbox.run([sys.executable, "-c", "import socket; socket.create_connection(('198.51.100.12', 80))"])
        sandbox.run([sys.executable, "-c", "import socket; socket.create_connection(('198.51.100.12', 80))"])
        assert False

    @pytest.mark.sandbox
    def test_that_passes():
        with pytest.raises(OSError):
            socket.create_connection(("198.51.100.11", 443))
"""


def test_the_report_of_a_failure_names_what_it_tried_to_reach(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(TRIES)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:randomly")
    result.assert_outcomes(passed=1, failed=5, errors=1)
    none = '*network="none" has no way there; network="outbound" has.'
    result.stdout.fnmatch_lines_random(["*Sandbox network*"])
    result.stdout.fnmatch_lines(["tried to connect to 198.51.100.7:443", "tried to connect to ?2001:db8::5?:80",
                                 "tried to look up somewhere.example", none])
    result.stdout.fnmatch_lines(["tried to reach addresses outside once", none])
    result.stdout.fnmatch_lines(["tried to reach addresses outside 2 times", none])
    result.stdout.fnmatch_lines(["tried to connect to 198.51.100.9:80", none])
    result.stdout.fnmatch_lines(["tried to connect to 198.51.100.10:443", "tried to send udp to 198.51.100.12:123",
                                 "*the allow list of its Outbound*"])
    result.stdout.no_fnmatch_line("*198.51.100.11*")
    result.stdout.no_fnmatch_line("*localhost*80*tried*")
    assert result.stdout.str().count("Sandbox network") == 5
