"""Many random networks, and runs of them killed at random moments: the host stays as it was, byte for byte.

Not part of the default suite. ``python -m pytest tests/soak/test_networks.py``; SOAK_NETWORKS and SOAK_KILLS change how
many, SOAK_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import leaks

from pytest_sandbox import Network, Outbound, Sandbox, SandboxUnavailable

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))
from test_network import host_state

NETWORKS = int(os.environ.get("SOAK_NETWORKS", "200"))
KILLS = int(os.environ.get("SOAK_KILLS", "20"))
SEED = int(os.environ.get("SOAK_SEED", "0")) or random.randrange(1 << 30)


def one_round(chance: random.Random) -> None:
    """One to three networks with one to four members each, some of them in several, and a few faults."""
    with ExitStack() as stack:
        nets = [stack.enter_context(Network()) for _ in range(chance.randint(1, 3))]
        boxes = []
        for number in range(chance.randint(1, 4)):
            joined = chance.sample(nets, chance.randint(1, len(nets)))
            endpoints = [net.endpoint(router=chance.random() < 0.2) for net in joined]
            ways_out = [Outbound()] if chance.random() < 0.2 else []
            boxes.append(stack.enter_context(Sandbox(hostname=f"m{number}", network=[*endpoints, *ways_out])))
        for _ in range(chance.randint(0, 4)):
            net = chance.choice([net for net in nets if net.members])
            name = chance.choice(list(net.members))
            with suppress(SandboxUnavailable):
                chance.choice([
                    lambda net=net, name=name: net.isolate(name), lambda net=net, name=name: net.partition([name]),
                    lambda net=net, name=name: net.drop(name, loss=chance.random()), lambda net=net: net.heal(),
                    lambda net=net, name=name: net.down(name),
                    lambda net=net, name=name: net.shape(name, rate="1mbit", loss="1%"),
                    lambda net=net, name=name: net.shape(name, delay="1ms"), lambda net=net: net.stats(),
                ])()
        if chance.random() < 0.3:
            chance.choice(boxes).reset()
        if chance.random() < 0.3:
            nets[0].close()


def test_random_networks() -> None:
    print(f"SOAK_SEED={SEED}")
    chance = random.Random(SEED)
    one_round(chance)  # which starts the helper
    before, descriptors = host_state(), len(os.listdir("/proc/self/fd"))
    for number in range(NETWORKS):
        one_round(chance)
        assert host_state() == before, f"after round {number}"
        # A few may be on their way out.
        assert len(os.listdir("/proc/self/fd")) <= descriptors + 8, f"after round {number}"


def test_killed_in_the_middle() -> None:
    print(f"SOAK_SEED={SEED}")
    chance = random.Random(SEED)
    code = (f"import random, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"sys.path.insert(0, {str(Path(__file__).parent.parent)!r})\n"
            "from test_networks import one_round\nprint('ready', flush=True)\n"
            "chance = random.Random(int(sys.argv[1]))\nwhile True: one_round(chance)")
    before, look = host_state(), leaks.look()
    for number in range(KILLS):
        with subprocess.Popen([sys.executable, "-c", code, str(SEED + number)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.random() * 1.5)
            process.send_signal(signal.SIGKILL)
        assert host_state() == before, f"after kill {number}"
    assert [one for one in leaks.leaks_since(look) if not one.startswith(("cgroups", "files"))] == []
