"""Each namespace is new, and what follows from that: processes, signals, the network, the host's name."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from support import IS_ROOT, KINDS, abort_unless_apart, init_pid, namespaces, until

from pytest_sandbox import Sandbox


def test_every_namespace_is_new() -> None:
    ours = namespaces()
    with Sandbox() as sandbox:
        inside = dict(zip(KINDS, sandbox.run(
            ["readlink", *(f"/proc/self/ns/{kind}" for kind in KINDS)]).stdout.split(), strict=True))
        of_a_fork = sandbox.call(namespaces)
        from_outside = namespaces(init_pid(sandbox)) if IS_ROOT else inside
    assert not set(inside.values()) & set(ours.values())
    assert inside == of_a_fork == from_outside
    assert namespaces() == ours


def test_two_sandboxes_share_no_namespace() -> None:
    with Sandbox() as one, Sandbox() as other:
        assert not set(one.call(namespaces).values()) & set(other.call(namespaces).values())


def test_init_is_the_first_process_and_the_command_is_not() -> None:
    with Sandbox() as sandbox, sandbox.popen(["sh", "-c", "echo $$ $PPID; exec cat"], stdin=subprocess.PIPE) as command:
        assert command.stdout is not None
        pid, parent = map(int, command.stdout.readline().split())
        assert pid == command.pid > 1
        assert parent == 1
        assert [one["pid"] for one in sandbox.processes()] == [pid]
        # The same two from the host: the command's parent is init, whose number here is another.
        init = init_pid(sandbox)
        with open(f"/proc/{init}/task/{init}/children") as file:
            children = file.read().split()
        assert len(children) == 1
        with open(f"/proc/{children[0]}/status") as file:
            numbers = next(line.split()[1:] for line in file if line.startswith("NSpid:"))
        assert numbers[-1] == str(pid)
        assert numbers[0] == children[0] != str(pid)


def _make_orphan() -> list[int]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        grandchild = os.fork()
        if grandchild == 0:
            until(lambda: os.getppid() == 1, "init has adopted the orphan")
        else:
            os.write(writing, b"%d" % grandchild)
        os._exit(0)
    os.waitpid(child, 0)
    orphan = int(os.read(reading, 20))
    until(lambda: not os.path.exists(f"/proc/{orphan}"), "init has reaped the orphan")
    return [child, orphan]


def test_orphans_are_adopted_and_reaped() -> None:
    with Sandbox() as sandbox:
        child, orphan = sandbox.call(_make_orphan)
        assert not {child, orphan} & {one["pid"] for one in sandbox.processes()}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1,
                                    signal.SIGUSR2])
def test_a_signal_to_init_reaches_every_command(number: signal.Signals) -> None:
    wait = f"trap 'echo got; exit 7' {int(number)}; echo ready; while :; do read line; done"
    with Sandbox() as sandbox:
        commands = [sandbox.popen(["sh", "-c", wait], stdin=subprocess.PIPE) for _ in range(2)]
        for one in commands:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
        signal.pidfd_send_signal(sandbox._ready().pidfd, number)
        for one in commands:
            with one:
                assert one.communicate(timeout=10) == ("got\n", "", False)
                assert one.returncode == 7
        assert sandbox.run(["true"]).returncode == 0


def test_init_cannot_be_killed_from_inside() -> None:
    with Sandbox() as sandbox:
        abort_unless_apart(sandbox)
        for number in ("KILL", "STOP", "TERM", "SEGV"):
            sandbox.run(["sh", "-c", f"kill -{number} 1"])
        with sandbox.popen(["cat"], stdin=subprocess.PIPE) as victim:
            assert sandbox.run(["sh", "-c", "kill -KILL -1"]).returncode == 0
            assert victim.wait(10) == -signal.SIGKILL
        assert sandbox.run(["echo", "still here"]).stdout == "still here\n"


def _talk(family: int, address: str) -> str:
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.bind((address, 0))
        server.listen()
        with socket.create_connection(server.getsockname()[:2], timeout=5) as client:
            there, _ = server.accept()
            with there:
                there.sendall(b"hello")
                return client.recv(5).decode()


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_the_loopback_is_up(family: int, address: str) -> None:
    if family == socket.AF_INET6 and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this kernel has no IPv6: /proc/net/if_inet6 is missing")
    with Sandbox() as sandbox:
        assert sandbox.call(_talk, int(family), address) == "hello"


def _connect(port: int, abstract: str) -> list[str]:
    found = []
    for family, address in ((socket.AF_INET, ("127.0.0.1", port)), (socket.AF_UNIX, f"\0{abstract}")):
        with socket.socket(family, socket.SOCK_STREAM) as client:
            try:
                client.connect(address)
                found.append("connected")
            except OSError as error:
                found.append(type(error).__name__)
    return found


def test_no_way_to_a_server_of_the_host() -> None:
    name = f"pytest-sandbox-test-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{name}")
        local.listen()
        port = server.getsockname()[1]
        assert _connect(port, name) == ["connected", "connected"]
        with Sandbox() as sandbox:
            assert sandbox.call(_connect, port, name) == ["ConnectionRefusedError", "ConnectionRefusedError"]
            assert sandbox.run(["ls", "/sys/class/net"]).stdout.split() == ["lo"]
        with Sandbox(network="host") as sandbox:
            assert sandbox.call(_connect, port, name) == ["connected", "connected"]
            assert sandbox.call(namespaces)["net"] == namespaces()["net"]


def test_two_sandboxes_bind_the_same_port() -> None:
    program = ("import socket; s = socket.create_server(('127.0.0.1', 8080)); print('bound', flush=True); "
               "import sys; sys.stdin.read()")
    with Sandbox() as one, Sandbox() as other:
        servers = [sandbox.popen([sys.executable, "-c", program], stdin=subprocess.PIPE) for sandbox in (one, other)]
        for server in servers:
            with server:
                assert server.stdout is not None
                assert server.stdout.readline() == "bound\n"


def test_the_host_name_is_the_sandbox_s_own() -> None:
    ours = os.uname().nodename
    with Sandbox() as sandbox:
        assert sandbox.run(["uname", "-n"]).stdout == "sandbox\n"
    with Sandbox(hostname="other.example") as sandbox:
        assert sandbox.run(["uname", "-n"]).stdout == "other.example\n"
        assert sandbox.call(socket.gethostname) == "other.example"
    assert os.uname().nodename == ours


def test_it_works_from_a_thread_that_ends() -> None:
    import threading
    made: list[Sandbox] = []
    thread = threading.Thread(target=lambda: made.append(Sandbox().start()))
    thread.start()
    thread.join()
    with made[0] as sandbox:
        assert sandbox.run(["echo", "alive"]).stdout == "alive\n"
        assert sandbox.call(os.getpid) > 1
