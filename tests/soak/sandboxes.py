"""One worker of the soak: makes random sandboxes one after the other, and says of each what became of it.

``python sandboxes.py SEED COUNT LEVELS``: one in fifty is killed at one of these levels (comma-separated). Each line of
output is one sandbox: its number, ``ok``, ``killed LEVEL`` or ``wrong TEXT``; the last one tells of the process itself.
"""

from __future__ import annotations

import os
import random
import resource
import select
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pytest_sandbox import Network, Sandbox, SandboxError
from pytest_sandbox.runtime import launch
from pytest_sandbox.runtime.cgroups import host_control

IS_ROOT = os.geteuid() == 0
KILLED_OF = 50


def runs(box: Sandbox, chance: random.Random, place: str) -> None:
    done = box.run(["sh", "-c", f"echo out; echo err >&2; exit {(code := chance.randrange(5))}"])
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")


def calls(box: Sandbox, chance: random.Random, place: str) -> None:
    number = chance.random()
    assert box.call(lambda: {"is": number, "pid": os.getpid() > 1}) == {"is": number, "pid": True}


def writes(box: Sandbox, chance: random.Random, place: str) -> None:
    text = f"text {chance.random()}"
    box.path("/tmp/written").write_text(text)
    assert box.run(["cat", "/tmp/written"]).stdout == text
    assert not os.path.exists("/tmp/written")


def copies(box: Sandbox, chance: random.Random, place: str) -> None:
    data = chance.randbytes(chance.choice((0, 10, 300_000)))
    Path(place, "source").write_bytes(data)
    box.copy_in(f"{place}/source", "/tmp/copied")
    box.copy_out("/tmp/copied", f"{place}/back")
    assert Path(place, "back").read_bytes() == data
    os.unlink(f"{place}/back")


def dies(box: Sandbox, chance: random.Random, place: str) -> None:
    process = box.popen(["sleep", "1000"])
    if chance.random() < 0.5:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == -signal.SIGTERM
    else:
        process.kill()
        assert process.wait() == -signal.SIGKILL


def daemon(box: Sandbox, chance: random.Random, place: str) -> None:
    with open(os.devnull) as null:
        code = "setsid sleep 1000 & setsid sh -c 'sleep 1000; true' &"
        box.popen(["sh", "-c", code], stdout=null, stderr=null).wait()


def changes(box: Sandbox, chance: random.Random, place: str) -> None:
    name = f"/var/tmp/changed-{chance.random()}"
    before = {one.path for one in box.changes()}
    box.path(name).write_bytes(b"x" * 1000)
    assert name in {one.path for one in box.changes()} - before


def resets(box: Sandbox, chance: random.Random, place: str) -> None:
    box.path("/var/tmp/gone").write_text("x")
    box.reset()
    assert not box.path("/var/tmp/gone").exists()


def commits(box: Sandbox, chance: random.Random, place: str) -> None:
    box.path("/var/tmp/kept").write_text("kept")
    image = box.commit()
    with Sandbox(image=image) as other:
        assert other.run(["cat", "/var/tmp/kept"]).stdout == "kept"


def forks(box: Sandbox, chance: random.Random, place: str) -> None:
    child = box.fork()
    if child is None:
        os._exit(7)
    assert child.wait() == 7


def freezes(box: Sandbox, chance: random.Random, place: str) -> None:
    if box._ready().group is not None and host_control().abilities()["freeze"].ok:
        box.freeze()
        box.thaw()
    assert box.usage() is not None


def looks(box: Sandbox, chance: random.Random, place: str) -> None:
    box.popen(["sleep", "100"])
    assert any("sleep" in str(one) for one in box.processes())
    box.stacks()
    box.kill()


ACTIONS: tuple[Callable[[Sandbox, random.Random, str], None], ...] = (
    runs, runs, calls, writes, copies, dies, daemon, changes, resets, forks, freezes, looks)


def options(chance: random.Random, nets: list[Network]) -> dict[str, Any]:
    abilities = host_control().abilities()
    found: dict[str, Any] = {}
    if chance.random() < 0.3:
        found["user"] = chance.choice(["root", "me"])
    if chance.random() < 0.2:
        found["hostname"] = f"host{chance.randrange(9)}"
    if chance.random() < 0.2 and abilities["pids"].ok:
        found["pids"] = chance.choice((50, 200))
    if chance.random() < 0.2 and abilities["memory"].ok:
        found["memory"] = "256M"
    if chance.random() < 0.2:
        found["disk"] = "64M"
    if chance.random() < 0.1:
        found["seccomp"] = "unconfined"
    if chance.random() < 0.1:
        found["capabilities"] = ["CHOWN", "KILL"]
    if chance.random() < 0.15:
        found["network"] = chance.choice(["host", "outbound", "net"])
        if found["network"] == "net":
            nets.append(Network())
            found["network"] = nets[-1]
    if chance.random() < 0.1:
        found["env"] = {"SOAK": "1"}
    return found


def fell(box: Sandbox, level: str, seconds: float) -> threading.Thread:
    """Kills something after a while."""
    helper = launch.supervisor().pidfd if level == "helper" else -1

    def kill() -> None:
        time.sleep(seconds)
        with suppress(OSError, SandboxError):
            if level == "worker":
                os.kill(os.getpid(), signal.SIGKILL)
            elif level == "helper":
                signal.pidfd_send_signal(helper, signal.SIGKILL)
                select.select([helper], [], [], 10)  # dead, and not dying while the next sandbox asks it
            else:
                for _ in range(1000):
                    running = box._running
                    if running is not None:
                        signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)
                        return
                    time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def one(chance: random.Random, level: str, place: str) -> str:
    nets: list[Network] = []
    thread = None
    box = Sandbox(**options(chance, nets))
    actions = [chance.choice(ACTIONS) for _ in range(chance.choice((0, 1, 1, 2, 3)))]
    if chance.random() < 0.02:
        actions.append(commits)
    try:
        if level:
            thread = fell(box, level, chance.uniform(0, 0.06))
        with box:
            for act in actions:
                act(box, chance, place)
    except SandboxError as error:
        if not level:
            return f"wrong {[act.__name__ for act in actions]} {type(error).__name__}: {error}"
    except AssertionError as error:
        if not level:
            return f"wrong {[act.__name__ for act in actions]} {error}"
    except Exception as error:  # noqa: BLE001 - the wrong outcome, to be told
        return f"wrong {[act.__name__ for act in actions]} {type(error).__name__}: {error} (killed: {level})"
    finally:
        if thread is not None:
            thread.join()
        for net in nets:
            net.close()
    return f"killed {level}" if level else "ok"


def state() -> tuple[int, int]:
    with open("/proc/self/statm") as file:
        return len(os.listdir("/proc/self/fd")), int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    seed, count, levels = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    chance = random.Random(seed)
    before = None
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        for number in range(count):
            level = chance.choice(levels) if chance.randrange(KILLED_OF) == 0 else ""
            if level == "worker":
                print(number, "killed worker", flush=True)
            print(number, one(chance, level, place).replace("\n", " | "), flush=True)
            if number == min(60, count // 3):
                before = state()
    after = state()
    before = before or after
    print("process", before[0], after[0], before[1], after[1], flush=True)


if __name__ == "__main__":
    main()
