"""A real service under test: three Redis nodes, each in a sandbox of its own, cut apart and joined again.

Written as users write tests. Needs redis-server (``apt-get install redis-server``); without it they are skipped.
"""

import shutil
import time

import pytest

from pytest_sandbox import Network

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")

SETTINGS = ["--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--dir", "/tmp", "--daemonize", "yes",
            "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--repl-timeout", "3",
            "--min-replicas-to-write", "1", "--min-replicas-max-lag", "2"]


class Node:
    """One Redis, spoken to through a socket that is made inside: no port opens on the host."""

    def __init__(self, sandbox, primary=None):
        self.sandbox = sandbox
        replica = ["--replicaof", primary, "6379"] if primary else []
        sandbox.run(["redis-server", *SETTINGS, *replica], check=True)
        sandbox.wait_for_port(6379, 30)

    def ask(self, *words):
        """Sends one command and returns its answer, errors as text."""
        with self.sandbox.connect(6379) as sock, sock.makefile("rwb") as stream:
            stream.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in words))
            stream.flush()
            kind, text = (line := stream.readline().decode().rstrip("\r\n"))[:1], line[1:]
            if kind == "$":
                return None if text == "-1" else stream.read(int(text)).decode()
            return int(text) if kind == ":" else text

    def link(self):
        """Whether a replica hears its primary."""
        return "master_link_status:up" in self.ask("INFO", "replication")


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def net():
    with Network() as net:
        yield net


@pytest.fixture
def nodes(net, sandbox_factory):
    boxes = {name: sandbox_factory(network=net, hostname=name) for name in ("one", "two", "three")}
    nodes = [Node(boxes["one"]), Node(boxes["two"], "one"), Node(boxes["three"], "one")]
    wait_until(lambda: nodes[1].link() and nodes[2].link())
    yield nodes
    for box in boxes.values():
        box.close()


def test_a_primary_that_is_cut_off_stops_taking_writes(net, nodes):
    one, two, three = nodes
    wait_until(lambda: one.ask("SET", "colour", "blue") == "OK")
    wait_until(lambda: two.ask("GET", "colour") == three.ask("GET", "colour") == "blue")
    with net.partition(["one"], ["two", "three"]):
        wait_until(lambda: "NOREPLICAS" in str(one.ask("SET", "colour", "red")))
        wait_until(lambda: not two.link() and not three.link())
        last = one.ask("GET", "colour")  # red, if it was taken before the primary noticed
        assert two.ask("GET", "colour") == "blue"
        assert three.ask("GET", "colour") == "blue"
    wait_until(lambda: two.ask("GET", "colour") == three.ask("GET", "colour") == last)
    wait_until(lambda: one.ask("SET", "colour", "green") == "OK")
    wait_until(lambda: two.ask("GET", "colour") == "green")


def test_a_replica_takes_over_on_its_side(net, nodes):
    one, two, three = nodes
    wait_until(lambda: one.ask("SET", "colour", "blue") == "OK")
    wait_until(lambda: two.ask("GET", "colour") == three.ask("GET", "colour") == "blue")
    net.isolate("one")
    assert two.ask("REPLICAOF", "NO", "ONE") == "OK"
    assert three.ask("REPLICAOF", "two", "6379") == "OK"
    wait_until(three.link)
    wait_until(lambda: two.ask("SET", "colour", "red") == "OK")
    wait_until(lambda: three.ask("GET", "colour") == "red")
    assert one.ask("GET", "colour") == "blue"
    net.heal()
    assert one.ask("REPLICAOF", "two", "6379") == "OK"  # what it took alone, it gives up
    wait_until(lambda: one.ask("GET", "colour") == "red")


def test_a_replica_catches_up_over_a_bad_line(net, nodes):
    one, two, _ = nodes
    wait_until(lambda: one.ask("SET", "n", "0") == "OK")
    with net.drop("one", "two", loss="5%"):
        for _ in range(200):
            one.ask("INCR", "n")
        wait_until(lambda: two.ask("GET", "n") == "200")
