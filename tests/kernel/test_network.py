"""``Network``: who reaches whom, by which address and name, and what is left of it."""

from __future__ import annotations

import gc
import ipaddress
import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import textwrap
from contextlib import ExitStack
from pathlib import Path

import pytest
from echo import hears, serve, silent
from support import prints, python_path, until

from pytest_sandbox import Network, NetworkError, Outbound, Sandbox, SandboxClosedError, SandboxUsageError

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
#: Ports below 1024 are root's.
ROOT = {"user": "root"}


def host_state() -> dict[str, str]:
    """The host's interfaces, addresses, routes, rules and named namespaces, as bytes that do not count packets."""
    commands = {"link": ["ip", "-o", "link"], "address": ["ip", "-o", "address"], "rule": ["ip", "rule"],
                "route": ["ip", "route", "show", "table", "all"],
                "route6": ["ip", "-6", "route", "show", "table", "all"],
                "qdisc": ["tc", "qdisc"], "netns": ["ls", "-la", "/run/netns"], "nft": ["nft", "list", "ruleset"]}
    found = {name: Path(f"/proc/net/{name}").read_text() for name in ("if_inet6", "fib_trie")}
    found["names"] = " ".join(sorted(os.listdir("/sys/class/net")))
    for name, command in commands.items():
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        found[name] = done.stdout + done.stderr
    return found


@pytest.fixture(autouse=True)
def the_host_stays_as_it_is(helper: None) -> object:
    before = host_state()
    yield
    assert host_state() == before


def test_members_reach_each_other_both_ways_by_name_and_address() -> None:
    with Network() as net, Sandbox(hostname="a", network=net, **ROOT) as a, Sandbox(
            hostname="b", network=net, **ROOT) as b:
        serve(a, b)
        for kind in (TCP, UDP):
            assert hears(a, "b", kind)
            assert hears(b, "a", kind)
            for address in (net.address(b), net.address6("b")):
                assert hears(a, address, kind)
            assert hears(a, "a", kind)
        code = "import socket; print(socket.create_connection(('b', 7)).getpeername()[0] in {!r})"
        assert a.run([sys.executable, "-c", code.format((net.address(b), net.address6(b)))]).stdout == "True\n"
        assert a.run(["getent", "ahostsv4", "b"]).stdout.split()[0] == net.address(b)
        assert a.run(["getent", "ahostsv6", "b"]).stdout.split()[0] == net.address6(b)
        assert net.members == {"a": a, "b": b}


def test_ping() -> None:
    # An echo request by hand: many a machine has no ping.
    code = """
import os, socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.settimeout(10)
head = struct.pack("!BBHHH", 8, 0, 0, 7, 1)
total = sum(struct.unpack("!4H", head)); total = (total >> 16) + (total & 0xFFFF)
s.sendto(struct.pack("!BBHHH", 8, 0, ~total & 0xFFFF, 7, 1), (sys.argv[1], 0))
while True:
    data, peer = s.recvfrom(999)
    if data[20] == 0:
        print(peer[0])
        break
"""
    with Network() as net, Sandbox(hostname="a", network=net, **ROOT) as a, Sandbox(hostname="b", network=net) as b:
        assert a.run([sys.executable, "-c", code, net.address(b)]).stdout.strip() == net.address("b")


def test_multicast() -> None:
    listen = """
import socket, struct, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5000))
s.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP,
             socket.inet_aton("239.1.2.3") + socket.inet_aton(sys.argv[1]))
print("ready", flush=True)
print(s.recv(99).decode())
"""
    send = ("import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            "s.setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton(sys.argv[1]));"
            "s.sendto(b'all of you', ('239.1.2.3', 5000))")
    with Network() as net, ExitStack() as stack:
        boxes = [stack.enter_context(Sandbox(network=net)) for _ in range(3)]
        heard = [stack.enter_context(box.popen([sys.executable, "-c", listen, net.address(box)])) for box in boxes[1:]]
        assert [process.stdout.readline() for process in heard] == ["ready\n"] * 2
        boxes[0].run([sys.executable, "-c", send, net.address(boxes[0])], check=True)
        assert [process.stdout.readline() for process in heard] == ["all of you\n"] * 2


def test_a_large_transfer() -> None:
    receive = ("import hashlib, socket; c, _ = socket.create_server(('', 7000)).accept(); h = hashlib.sha256();"
               "n = 0\nwhile d := c.recv(1 << 20): h.update(d); n += len(d)\nprint(n, h.hexdigest())")
    send = ("import hashlib, os, socket, sys; d = os.urandom(1 << 20) * 64; s = socket.create_connection(('b', 7000));"
            "s.sendall(d); print(len(d), hashlib.sha256(d).hexdigest())")
    with Network() as net, Sandbox(hostname="a", network=net) as a, Sandbox(hostname="b", network=net) as b:
        with b.popen([sys.executable, "-c", receive]) as process:
            b.wait_for_port(7000, host=net.address(b))
            sent = a.run([sys.executable, "-c", send], check=True).stdout
            assert process.stdout.read() == sent
        assert int(sent.split()[0]) == 64 << 20
        assert net.stats()["a"].sent_bytes > 64 << 20
        assert net.stats()["b"].received_bytes > 64 << 20


def test_nobody_else_is_reached() -> None:
    with socket.create_server(("0.0.0.0", 0)) as outside, Network() as net, Network(str(net.subnet)) as other:
        with Sandbox(hostname="a", network=net, **ROOT) as a, Sandbox(
                hostname="b", network=other, **ROOT) as b, Sandbox(**ROOT) as alone:
            serve(a, b, alone)
            assert (net.address(a), net.subnet) == (other.address(b), other.subnet)  # the same, and no clash
            assert hears(a, net.address(a))
            assert silent(alone, net.address(a))
            assert a.run(["getent", "hosts", "b"]).returncode == 2
            port = outside.getsockname()[1]
            for address in _host_addresses():
                code = f"import socket; socket.create_connection(({address!r}, {port}), 0.3)"
                assert a.run([sys.executable, "-c", code]).returncode == 1
            assert not the_host_hears(net.address(a))
        with Sandbox(hostname="c", network=net) as c:
            assert silent(c, str(net.subnet[1]))  # a is gone, and b was never there


def the_host_hears(address: str) -> bool:
    # Somebody may answer: some machines' way out is a proxy that takes every connection. But not in capitals.
    try:
        with socket.create_connection((address, 7), 0.3) as sock:
            sock.sendall(b"anybody?")
            return sock.recv(99) == b"ANYBODY?"
    except OSError:
        return False


def _host_addresses() -> list[str]:
    lines = Path("/proc/net/fib_trie").read_text().splitlines()
    return [lines[number - 1].split()[-1] for number, line in enumerate(lines) if line.endswith("/32 host LOCAL")]


def test_names_come_and_go_with_their_members() -> None:
    with Network() as net, Sandbox(hostname="a", network=net) as a:
        before = a.path("/etc/hosts").read_text()
        a.path("/etc/hosts").write_text(before + "192.0.2.1\tmine\n")
        with Sandbox(hostname="b", network=net.endpoint(aliases=["db", "cache.internal"])) as b:
            for name in ("b", "db", "cache.internal"):
                assert a.run(["getent", "ahostsv4", name]).stdout.split()[0] == net.address(b)
                assert net.member(name).sandbox is b
            assert a.run(["getent", "ahostsv4", "mine"]).stdout.split()[0] == "192.0.2.1"
        assert a.run(["getent", "hosts", "b"]).returncode == 2
        assert a.path("/etc/hosts").read_text() == before + "192.0.2.1\tmine\n"
        assert [change.path for change in a.changes()] == []


def test_a_reset_member_keeps_its_name_and_address() -> None:
    with Network() as net, Sandbox(hostname="a", network=net, **ROOT) as a, Sandbox(
            hostname="b", network=net, **ROOT) as b:
        serve(a, b)
        assert hears(a, "b", TCP)
        address = net.address(b)
        b.reset()
        assert net.address(b) == address
        serve(b)
        assert hears(a, "b", TCP)
        assert hears(b, "a", TCP)


def test_sandboxes_without_a_name_get_one() -> None:
    with Network() as net, Sandbox(network=net) as one, Sandbox(network=net) as two:
        assert net.members == {"sandbox": one, "sandbox-2": two}
        assert one.run(["getent", "ahostsv4", "sandbox-2"]).stdout.split()[0] == net.address(two)


def test_a_router_between_two_networks() -> None:
    with Network() as left, Network() as right, Sandbox(hostname="a", network=left, **ROOT) as a, Sandbox(
            hostname="b", network=right, **ROOT) as b:
        serve(a, b)
        assert silent(a, right.address(b))
        with Sandbox(hostname="r", network=[left.endpoint(router=True), right.endpoint(router=True)]) as router:
            for kind in (TCP, UDP):
                assert hears(a, right.address(b), kind)
                assert hears(a, right.address6(b), kind)
                assert hears(b, left.address(a), kind)
            assert router.run(["getent", "hosts", "a", "b"]).returncode == 0
            with Sandbox(hostname="late", network=left, **ROOT) as late:
                assert hears(late, right.address(b), TCP)
        assert silent(a, right.address(b))


def test_a_member_of_two_networks_that_is_no_router() -> None:
    with Network() as left, Network() as right, Sandbox(hostname="a", network=left, **ROOT) as a, Sandbox(
            hostname="b", network=right, **ROOT) as b, Sandbox(hostname="m", network=[left, right], **ROOT) as m:
        serve(a, b, m)
        assert hears(m, "a")
        assert hears(m, "b")
        assert hears(b, right.address(m))
        assert silent(a, right.address(b))


def test_chosen_ranges_and_addresses() -> None:
    with Network("172.30.5.0/28", "fd12:3456::/64") as net, Sandbox(
            hostname="a", network=net.endpoint(address="172.30.5.9", address6="fd12:3456::beef")) as a:
        assert (net.address(a), net.address6(a)) == ("172.30.5.9", "fd12:3456::beef")
        assert "fd12345600000000000000000000beef 64 40 00 82     eth0" in a.path("/proc/1/net/if_inet6").read_text()
        mask = ipaddress.IPv4Network("172.30.5.0/28").netmask.packed
        assert f"eth0\t00051EAC\t00000000\t0001\t0\t0\t0\t{mask[::-1].hex().upper()}" in a.path(
            "/proc/1/net/route").read_text()


def test_a_network_without_ipv6() -> None:
    with Network(ipv6=False) as net, Sandbox(hostname="a", network=net, **ROOT) as a, Sandbox(
            hostname="b", network=net.endpoint(router=True), **ROOT) as b:
        serve(b)
        assert hears(a, "b", TCP)
        assert net.address6(b) == ""
        assert ":" not in a.run(["getent", "ahosts", "b"]).stdout
        assert "eth0" not in [line.split()[-1] for line in a.path("/proc/1/net/if_inet6").read_text().splitlines()
                              if not line.startswith("fe80")]


def test_members_that_were_made_by_different_helpers() -> None:
    assert prints("""
        from echo import hears, serve
        from pytest_sandbox import Network, Sandbox
        from pytest_sandbox.runtime import launch
        with Network() as net, Sandbox(hostname="a", network=net, user="root") as a:
            launch.renew()  # as when a file system is mounted on the host
            with Sandbox(hostname="b", network=net, user="root") as b:
                serve(a, b)
                print(hears(a, "b"), hears(b, "a"))
    """) == ["True True"]


def test_members_with_other_roots(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with Network() as net, Sandbox(hostname="a", network=net) as a, Sandbox(
            image=f"rootfs:{tmp_path}/root", hostname="b", network=[net, Outbound()]) as b:
        assert a.run(["getent", "ahostsv4", "b"]).stdout.split()[0] == net.address(b)
        assert f"{net.address(a)}\ta\n" in b.path("/etc/hosts").read_text()
        assert b.path("/etc/resolv.conf").read_text().startswith("nameserver 10.0.2.3\n")


def test_addresses_run_out() -> None:
    with Network("10.0.0.0/30") as net, Sandbox(hostname="a", network=net), Sandbox(hostname="b", network=net) as b:
        with pytest.raises(NetworkError, match=r"c cannot join .*all 2 addresses of 10\.0\.0\.0/30 are taken.*larger"):
            Sandbox(hostname="c", network=net).start()
        b.close()
        with Sandbox(hostname="c", network=net) as c:
            assert net.address(c) == "10.0.0.2"


def test_what_cannot_be_joined() -> None:
    net = Network()
    with Sandbox(hostname="a", network=net.endpoint(address=str(net.subnet[9]), aliases=["x"])) as a:
        for options, why in (({"hostname": "a"}, "called 'a'"), ({"hostname": "x"}, "called 'x'")):
            with pytest.raises(NetworkError, match=why) as caught:
                Sandbox(network=net, **options).start()
            assert caught.value.network == str(net.subnet)
        with pytest.raises(NetworkError, match=r"another member has the address"):
            Sandbox(hostname="b", network=net.endpoint(address=net.address(a))).start()
        with pytest.raises(SandboxUsageError, match=r"'b' is not in the network .*Allowed: a"):
            net.address("b")
    net.close()
    with pytest.raises(SandboxClosedError, match=r"is closed.*Make a new Network"):
        Sandbox(network=net).start()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(net)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Network("10.0.0.1/24"), "has host bits set"),
    (lambda: Network("10.0.0.0/31"), "room for nobody"),
    (lambda: Network("fd00::/64"), "a range such as 10"),
    (lambda: Network(subnet6="10.0.0.0/8"), "a range such as fd01"),
    (lambda: Network(mtu=100), "1280"),
    (lambda: Network("10.0.0.0/24").endpoint(address="10.0.1.1"), r"an address of 10\.0\.0\.0/24"),
    (lambda: Network("10.0.0.0/24").endpoint(address="10.0.0.0"), "an address of"),
    (lambda: Network("10.0.0.0/24").endpoint(address="10.0.0.255"), "an address of"),
    (lambda: Network().endpoint(aliases=["a b"]), "host names of letters"),
    (lambda: Sandbox(network=Network), '"none"'),
    (lambda: Sandbox(network=[]), '"none"'),
    (lambda: Sandbox(network=["none"]), '"none"'),
    (lambda: Sandbox(network=[one := Network(), one]), "joins a network once"),
])
def test_bad_input(make: object, words: str) -> None:
    with pytest.raises(SandboxUsageError, match=words):
        make()  # type: ignore[operator]


def test_a_closed_network_leaves_its_members_running() -> None:
    net = Network()
    with Sandbox(hostname="a", network=net, **ROOT) as a, Sandbox(hostname="b", network=net, **ROOT) as b:
        serve(a, b)
        address = net.address(b)
        net.close()
        until(lambda: "eth0" not in a.path("/proc/1/net/dev").read_text(), "its interface is gone")
        assert silent(a, address)
        assert a.run(["getent", "hosts", "b"]).returncode == 2
        assert hears(a, "127.0.0.1")


def test_fifty_members_on_one_segment() -> None:
    with Network() as net, ExitStack() as stack:
        boxes = [stack.enter_context(Sandbox(hostname=f"m{number}", network=net, **ROOT)) for number in range(50)]
        serve(boxes[0], boxes[49])
        assert len({net.address(box) for box in boxes}) == 50
        for box in boxes:
            assert hears(box, "m0", TCP)
            assert hears(box, "m49", UDP)
        assert boxes[7].run(["getent", "ahostsv4", "m31"]).stdout.split()[0] == net.address("m31")


def test_twenty_segments_with_equal_ranges() -> None:
    with ExitStack() as stack:
        nets = [stack.enter_context(Network("10.7.0.0/24", "fd07::/64")) for _ in range(20)]
        pairs = [[stack.enter_context(Sandbox(hostname=name, network=net, **ROOT)) for name in "ab"] for net in nets]
        assert {net.address(one) for net in nets for one in ("a", "b")} == {"10.7.0.1", "10.7.0.2"}
        serve(pairs[3][1], pairs[17][1])
        for number, (a, _) in enumerate(pairs):
            assert hears(a, "b", TCP, 10 if number in (3, 17) else 0.3) == (number in (3, 17))


def test_random_networks_leave_the_host_as_it_was() -> None:
    # The fixture above compares. More of them, and with faults, in tests/soak.
    chance = random.Random(20)
    for _ in range(12):
        with Network() as net, ExitStack() as stack:
            boxes = [stack.enter_context(Sandbox(hostname=f"m{number}", network=net))
                     for number in range(chance.randint(1, 3))]
            chance.choice(boxes).reset()
            if chance.random() < 0.5:
                net.isolate(chance.choice(boxes))


def test_nothing_is_left_after_a_sigkill() -> None:
    code = """
        import sys, time
        from pytest_sandbox import Network, Sandbox
        net = Network()
        boxes = [Sandbox(hostname=f"m{number}", network=net).start() for number in range(3)]
        net.partition(["m0"], ["m1"])
        print("ready", flush=True)
        time.sleep(1000)
    """
    before = host_state()
    process = subprocess.Popen([sys.executable, "-B", "-c", textwrap.dedent(code)], stdout=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": python_path()})
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert host_state() == before


def test_pyroute2_is_for_those_who_ask_for_a_topology() -> None:
    assert prints("""
        import sys
        from pytest_sandbox import Network, Sandbox
        with Sandbox() as sandbox:
            sandbox.run(["true"])
        net = Network()
        print("pyroute2" in sys.modules)
        with Sandbox(network=net):
            print("pyroute2" in sys.modules)
    """) == ["False", "True"]


def test_a_sandbox_inside_holds_nothing_of_the_network_outside() -> None:
    with Sandbox() as plain:
        before = plain.call(_descriptors)
    with Network() as net, Sandbox(hostname="a", network=net) as a:
        links = a.call(_descriptors)
        assert [one for one in links if one.startswith("net:")] == []
        assert [one for one in links if one.startswith("socket:") and one not in before] == []


def _descriptors() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return found


def test_a_network_that_outlives_its_maker_is_closed_with_it() -> None:
    net = Network()
    with Sandbox(network=net):
        descriptors = len(_descriptors())
    del net
    gc.collect()
    assert len(_descriptors()) < descriptors
