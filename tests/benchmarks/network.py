"""What a network costs: two members up and down beside the same made with ip(8), and what joining adds to a start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

from measure import Table, in_turns, timed

from pytest_sandbox import Network, Sandbox

#: The same by hand: three namespaces, a bridge, two cables, addresses of both kinds. In mount and network namespaces of
#: its own, so that the names that ip(8) gives stay in there. Prints milliseconds, once for each line that it reads.
_BY_HAND = r"""
import subprocess, sys, time
def ip(*words):
    subprocess.run(["ip", *words], check=True, stdin=subprocess.DEVNULL, capture_output=True)
for _ in sys.stdin:
    begun = time.perf_counter()
    for name in "sab":
        ip("netns", "add", name)
    ip("-n", "s", "link", "add", "bridge0", "type", "bridge")
    ip("-n", "s", "link", "set", "bridge0", "up")
    for number, name in enumerate("ab", 1):
        ip("-n", "s", "link", "add", f"p{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("-n", "s", "link", "set", f"p{number}", "master", "bridge0", "up")
        ip("-n", name, "address", "add", f"10.89.0.{number}/24", "dev", "eth0")
        ip("-n", name, "address", "add", f"fd00:89::{number}/64", "dev", "eth0", "nodad")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
    for name in "sab":
        ip("netns", "delete", name)
    print((time.perf_counter() - begun) * 1000, flush=True)
"""
_APART = ["unshare", "--mount", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]),
          "sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh"]


_PINGS = """
import socket, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect((sys.argv[1], int(sys.argv[2])))
begun = time.perf_counter()
for _ in range(1000):
    sock.send(b"x" * 100)
    sock.recv(200)
print((time.perf_counter() - begun) * 1000)
"""


def datagrams() -> str:
    """How long a datagram and its answer take by the relay of an outbound sandbox, and on the host itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, socket.socket(
            socket.AF_INET, socket.SOCK_DGRAM) as server:
        try:
            probe.connect(("198.51.100.7", 9))  # which sends nothing
        except OSError:
            return "Datagrams: this host has no way out."
        address = probe.getsockname()[0]
        server.bind((address, 0))

        def echo() -> None:
            while (got := server.recvfrom(200))[0] != b"end":
                server.sendto(*got)

        thread = threading.Thread(target=echo)
        thread.start()
        args = [sys.executable, "-c", _PINGS, address, str(server.getsockname()[1])]
        with Sandbox(network="outbound") as sandbox:
            inside, outside = (min(float(run().stdout) for _ in range(3)) for run in (
                lambda: sandbox.run(args, check=True),
                lambda: subprocess.run(args, check=True, capture_output=True, text=True)))
        server.sendto(b"end", server.getsockname())
        thread.join()
    return (f"A datagram of 100 bytes and its answer: {inside:.0f} us from an outbound sandbox, {outside:.0f} us on "
            "the host, best of three thousands.")


def run(rounds: int) -> list[Table]:
    os.chdir("/")
    by_hand = subprocess.Popen([*_APART, sys.executable, "-c", _BY_HAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True)
    assert by_hand.stdin is not None
    assert by_hand.stdout is not None

    def ip() -> float:
        assert by_hand.stdin is not None
        assert by_hand.stdout is not None
        print(file=by_hand.stdin, flush=True)
        return float(by_hand.stdout.readline())

    def ours() -> float:
        # The sandboxes themselves are not counted, as the namespaces' processes are not on the other side.
        net = Network()
        with Sandbox(hostname="a", network=other) as a, Sandbox(hostname="b", network=other) as b:
            begun = time.perf_counter()
            for box in (a, b):
                net.attach(box, box._ready(), net.endpoint(), 1)
            net.close()
            return (time.perf_counter() - begun) * 1000

    def start(**options: object) -> float:
        def once() -> None:
            with Sandbox(**options) as one:
                one.run(["/bin/true"], check=True)
        return timed(once)

    with Network() as other, Network() as ready, Sandbox(hostname="there", network=ready):
        for variant in (ip, ours):
            variant()  # the first network imports pyroute2
        up_and_down = Table("A network of two members, up and down",
                            in_turns({"ip": ip, "Network": ours}, rounds), "ip")
        joining = Table("Start, run /bin/true, close: alone, and as a member of a network that is there", in_turns({
            "alone": start, "a member": lambda: start(network=ready), "outbound": lambda: start(network="outbound"),
        }, rounds), "alone")
    joining.notes.append(datagrams())
    by_hand.stdin.close()
    by_hand.wait()
    by_hand.stdout.close()
    return [up_and_down, joining]
