"""Sandboxes that the compiled spawner starts, and those that Python starts: the same in all that can be seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import IS_ROOT, init_pid, prints, script, until

from pytest_sandbox import Sandbox, SandboxError, SandboxStartError
from pytest_sandbox.runtime import mounts, spawner
from pytest_sandbox.runtime.actions import ACTIONS, COMPILED
from pytest_sandbox.sandbox import shutdown

compiled = pytest.mark.skipif(
    not spawner.is_there(""), reason=f"{spawner.PROGRAM} was not built, or not since its source changed (build.py)")
WAYS = ["python", pytest.param("compiled", marks=compiled)]


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest, helper: None) -> Iterator[str]:
    """Lets all sandboxes of this process be started in one way, by a helper of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(spawner.VARIABLE, request.param)
        shutdown()
        with Sandbox():
            pass
        yield request.param
    shutdown()
    with Sandbox():
        pass


def both(program: str, *arguments: str) -> tuple[Any, Any]:
    """What a program prints, as JSON, when Python starts its sandboxes, and when the spawner does."""
    python, compiled = (prints(program, *arguments, env={spawner.VARIABLE: way}) for way in ("python", "compiled"))
    return json.loads(python[-1]), json.loads(compiled[-1])


def started_by(sandbox: Sandbox) -> str:
    """Who the sandbox's first process says that it is."""
    return Path(f"/proc/{init_pid(sandbox)}/comm").read_text().strip()


def test_each_way_is_the_one_asked_for(way: str) -> None:
    with Sandbox() as sandbox:
        assert (started_by(sandbox) == "sandbox-init") == (way == "compiled")


@compiled
def test_both_know_the_same_actions() -> None:
    listed = subprocess.run([spawner.PROGRAM, "--actions"], capture_output=True, text=True, check=True)
    assert set(listed.stdout.split()) == COMPILED == ACTIONS.keys() - {"seed"}
    assert subprocess.run([spawner.PROGRAM], capture_output=True, check=False).returncode == 2


LOOK = r"""
import json, os, resource, signal, socket, stat, sys

def walk(top):
    for folder, names, files in os.walk(top):
        for name in sorted([*names, *files]):
            path = os.path.join(folder, name)
            one = os.lstat(path)
            text = os.readlink(path) if stat.S_ISLNK(one.st_mode) else ""
            if stat.S_ISREG(one.st_mode):
                try:
                    text = open(path, errors="replace").read(4096)
                except OSError as error:
                    text = str(error)
            yield path, oct(one.st_mode), one.st_uid, one.st_gid, one.st_rdev, text

def mounts():
    for line in open("/proc/self/mountinfo"):
        left, right = line.rstrip().split(" - ")
        _, _, _, root, point, options, *shared = left.split()
        yield root, point, options, shared, right.split()

status = dict(line.rstrip().split(":", 1) for line in open("/proc/self/status"))
first = dict(line.rstrip().split(":", 1) for line in open("/proc/1/status"))
kept = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
        "Seccomp_filters", "SigBlk", "SigIgn", "SigCgt", "PPid", "NSpid", "NSpgid", "NSsid", "Umask")
def can(function, *arguments):
    try:
        function(*arguments)
        return "can"
    except OSError as error:
        return error.errno
seen = {
    "status": {name: status[name] for name in kept} | {  # glibc's posix_spawn leaves its own two signals ignored
        "SigIgn": int(status["SigIgn"], 16) & 0x7fffffff},
    "first": {name: first[name] for name in kept if name.startswith(("Uid", "Gid", "Cap", "NoNew", "Seccomp", "PPid"))},
    "limits": {number: resource.getrlimit(number) for number in range(16)},
    "maps": [open(f"/proc/self/{name}").read() for name in ("uid_map", "gid_map", "setgroups", "oom_score_adj")],
    "mounts": list(mounts()),
    "trees": [list(walk(top)) for top in ("/dev", "/run")],
    "looks": {path: [oct(os.stat(path).st_mode), os.stat(path).st_uid, os.stat(path).st_gid]
              for path in ("/", "/etc", "/tmp", "/proc", "/sys", "/run", "/dev/shm")},
    "masked": {name: can(lambda: os.listdir(name) or 1 / len(open(name, "rb").read(8)))
               for name in sorted(os.listdir("/proc")) if not name.isdigit() and name not in ("kmsg", "sysrq-trigger")
               and os.path.isdir(f"/proc/{name}")},
    "host": [socket.gethostname(), open("/etc/hosts").read()],
    "interfaces": socket.if_nameindex(),
    "loopback": open("/sys/class/net/lo/flags").read() if os.path.exists("/sys/class/net/lo/flags") else None,
    "descriptors": sorted(os.readlink(f"/proc/self/fd/{one}").split(":")[0] for one in os.listdir("/proc/self/fd")
                          if os.path.lexists(f"/proc/self/fd/{one}")),
    "environment": {name: text for name, text in os.environ.items() if name != "PYTEST_SANDBOX_SPAWNER"},
    "where": os.getcwd(),
    "umask": os.umask(0),
    "policy": [os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)],
    "session": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
    "attempts": [can(os.mkdir, "/sys/x"), can(open, "/proc/sys/kernel/hostname", "w"), can(open, "/proc/kcore", "rb"),
                 can(os.mkdir, "/etc/x"), can(os.mknod, "/tmp/node", stat.S_IFCHR | 0o600, os.makedev(1, 3))],
}
print(json.dumps(seen))
"""


SEE = """
    import json, sys
    from pytest_sandbox import Sandbox
    with Sandbox(**json.loads(sys.argv[1])) as sandbox:
        print(sandbox.run([sys.executable, "-I", "-S", "-c", sys.argv[2]], check=True).stdout.strip())
"""


@compiled
@pytest.mark.parametrize("options", [
    {}, {"user": "root"}, {"user": "root", "network": "host"}, {"disk": "32M", "hostname": "elsewhere"},
    {"network": "outbound"}, {"mounts": ["/usr/share:/made/here:ro", "/etc/hosts:/made/file"]},
    {"capabilities": []}, {"seccomp": "unconfined", "env": {"A": "b"}},
], ids=["default", "root", "host-network", "disk", "outbound", "mounts", "no-capabilities", "unconfined"])
def test_a_sandbox_looks_the_same(options: dict[str, Any]) -> None:
    expected, found = both(SEE, json.dumps(options), LOOK)
    for name in expected:
        assert found[name] == expected[name], name


TRY = r"""
    import json
    from pytest_sandbox import Sandbox, SandboxError

    def attempt(command, **options):
        try:
            done = sandbox.run(command, text=False, **options)
        except (SandboxError, ValueError) as error:
            return type(error).__name__, str(error)
        return done.returncode, done.stdout.decode("latin-1"), done.stderr.decode("latin-1"), done.signal

    with Sandbox(user="root", disk="64M") as sandbox:
        path = sandbox.path("/tmp")
        (path / "script").write_text("echo hello\n")
        (path / "noexec").write_text("#!/bin/sh\n")
        (path / "noexec").chmod(0o644)
        (path / "lost").write_text("#!/no/such/interpreter\n")
        for name in ("script", "lost"):
            (path / name).chmod(0o755)
        show = ["sh", "-c", 'printf "%s|" "$@"; pwd; echo "$ODD"', "x"]
        print(json.dumps([attempt(command, **options) for command, options in (
            (["true"], {}), (["false"], {}), (["/bin/true"], {}), (["no-such-command"], {}), (["/no/such"], {}),
            (["/tmp"], {}), (["/tmp/noexec"], {}), (["/tmp/script"], {}), (["/tmp/lost"], {}),
            (["noexec"], {"env": {"PATH": "/tmp:/nowhere"}}), (["noexec"], {"env": {"PATH": ""}}),
            (["./lost"], {"cwd": "/tmp"}), (["true"], {"cwd": "/no/where"}), (["true"], {"cwd": "/etc/passwd"}),
            ([*show, "a b", "", "\xe4", "\udcff", "\U0001f600", '"\\\n\t\x7f'],
             {"cwd": "/usr", "env": {"ODD": "x\udcfey="}}),
            ([*show, "x" * 100_000], {}), ([*show, *(["y" * 50] * 5_000)], {}),
            (["sh", "-c", "kill -TERM $$"], {}), (["sh", "-c", "kill -KILL $$"], {}), (["sh", "-c", "exit 200"], {}),
            (["true", "a\0b"], {}), (["cat"], {"input": b"fed\xff"}),
            (["sh", "-c", "echo $PATH; which sh"], {"env": {"PATH": "/usr/bin/:/bin/"}}),
            (["/usr/bin/env", "-i", "x" * 140_000], {}),
        )]))
"""


@compiled
def test_commands_end_the_same() -> None:
    expected, found = both(TRY)
    assert found == expected
    assert [one[0] for one in expected[:3]] == [0, 1, 0]
    assert sum(isinstance(one[0], str) for one in expected) >= 10


@pytest.mark.skipif(not IS_ROOT, reason="only root can run a command as an arbitrary user")
def test_another_user(way: str) -> None:
    with Sandbox(user="root") as sandbox:
        assert sandbox.run(["id"], user="1234:567").stdout.split() == ["uid=1234", "gid=567", "groups=567"]
        assert sandbox.run(["cat", "/proc/self/status"], user="1234").stdout.count("1234\t1234\t1234\t1234") == 2
        with pytest.raises(SandboxError, match="no-such"):
            sandbox.run(["no-such"], user="1234")


def test_odd_names_in_the_list_of_processes(way: str) -> None:
    rename = ("import ctypes, sys; ctypes.CDLL(None).prctl(15, b')x \\xff(\\n\"', 0, 0, 0); print(flush=True); "
              "sys.stdin.read()")
    with Sandbox() as sandbox:
        odd = [sys.executable, "-c", rename, "", "a\udcffb", '"\\\t', "ä"]
        with sandbox.popen(odd, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            (found,) = sandbox.processes()
            process.kill()
        assert found["name"] == ")x \ufffd(\n\""
        assert found["args"] == [*odd[:3], "", "a\ufffdb", '"\\\t', "ä"]
        assert (found["pid"], found["ppid"]) == (process.pid, 1)
        assert found["state"] in "RS"


def test_many_processes_in_the_list(way: str) -> None:
    with ExitStack() as all_of_them:
        sandbox = all_of_them.enter_context(Sandbox(user="root"))
        long = "z" * 3000
        command = [sys.executable, "-S", "-c", "import sys; sys.stdin.read()", long]
        started = [all_of_them.enter_context(sandbox.popen(command, stdin=subprocess.PIPE)) for _ in range(40)]
        found = sandbox.processes()  # larger than a packet
        assert len(found) == 40
        assert all(one["args"][-1] == long for one in found)
        sandbox.kill()
        assert sandbox.processes() == []
        assert [one.wait() for one in started] == [-signal.SIGKILL] * 40


def test_signals_reach_commands_and_their_groups(way: str) -> None:
    with Sandbox() as sandbox:
        program = "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
        with sandbox.popen(["sh", "-c", program], stdout=subprocess.PIPE) as one:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"
            os.kill(init_pid(sandbox), signal.SIGTERM)  # to its first process, which passes it on
            assert one.wait(10) == 3
        with sandbox.popen(["sh", "-c", "sleep 100 & echo ready; wait"], stdout=subprocess.PIPE) as two:
            assert two.stdout is not None
            two.stdout.readline()
            two.kill()
            assert two.wait(10) == -signal.SIGKILL
        until(lambda: sandbox.processes() == [], "its whole group is gone")


def test_sandboxes_are_made_behind_what_runs(way: str) -> None:
    with Sandbox(user="root") as sandbox:
        assert os.sched_getscheduler(init_pid(sandbox)) == os.SCHED_BATCH
        policies = [sandbox.run(["sh", "-c", "cut -d' ' -f41 /proc/self/stat"], user=user).stdout
                    for user in ("root", *(["1234"] if IS_ROOT else []))]
        assert set(policies) == {f"{os.SCHED_OTHER}\n"}
        assert sandbox.call(os.sched_getscheduler, 0) == os.SCHED_OTHER


def test_a_policy_of_the_users_own_is_left_alone() -> None:
    for way in ("python", "compiled"):
        assert prints("""
            import os
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
            from pytest_sandbox import Sandbox
            with Sandbox() as sandbox:
                print(sandbox.run(["cut", "-d ", "-f41", "/proc/self/stat"]).stdout.strip())
        """, env={spawner.VARIABLE: way}) == [str(int(os.SCHED_BATCH))]


def test_orphans_are_reaped(way: str) -> None:
    with Sandbox() as sandbox:
        sandbox.run(["sh", "-c", "for i in 1 2 3 4 5; do (sh -c 'sleep 0.01' &) ; done"])
        until(lambda: sandbox.processes() == [], "the orphans have ended and were reaped")


def test_what_fails_is_named(way: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SandboxStartError) as failed:
        Sandbox(mounts=[f"{tmp_path}/file:/usr/bin"]).start()
    assert failed.value.step == "bind"
    assert f"let {tmp_path}/file show through at /usr/bin" in str(failed.value)
    with pytest.raises(SandboxStartError, match="nothing within /proc"):
        Sandbox(mounts=[f"{tmp_path}:/proc/made/here"]).start()


def test_nobody_looks_into_the_first_process(way: str) -> None:
    with Sandbox(user="root", capabilities=["SYS_PTRACE", "DAC_OVERRIDE", "DAC_READ_SEARCH"]) as sandbox:
        for name in ("mem", "environ", "exe", "root/etc/passwd"):
            done = sandbox.run(["sh", "-c", f"cat /proc/1/{name} | head -c 100000"])
            assert not done.stdout or (way == "python" and not IS_ROOT), name
            assert "PATH=" not in done.stdout, "the first process has the caller's environment"
        # The same of a process of its own: it is not that nothing can be read.
        assert sandbox.run(["sh", "-c", "sleep 9 & head -c 1 /proc/$!/environ && kill $!"]).returncode == 0


@compiled
def test_without_the_program_it_is_python(tmp_path: Path) -> None:
    """The helper asks for itself, so it gets a package of its own in which there is none, or one that cannot run."""
    package = Path(spawner.PROGRAM).parents[2]
    told = []
    good = Path(spawner.PROGRAM).read_bytes()
    for content in (None, b"\x7fELF of another machine", b"#!/bin/false\n", good):
        place = tmp_path / f"tree{len(told)}"
        (place / "pytest_sandbox" / "native").mkdir(parents=True)
        for one in (package / "pytest_sandbox").iterdir():
            if one.name != "native":
                (place / "pytest_sandbox" / one.name).symlink_to(one)
        # The module finds its program beside itself, so that must not be a link.
        runtime = place / "pytest_sandbox" / "runtime"
        runtime.unlink()
        runtime.mkdir()
        for one in (package / "pytest_sandbox" / "runtime").glob("*.py"):
            (runtime / one.name).write_bytes(one.read_bytes())
        if content is not None:
            program = place / "pytest_sandbox" / "native" / "spawner"
            program.write_bytes(content)
            program.chmod(0o755)
        if content is good:  # but its source has changed since
            source = program.with_name("init.c")
            source.touch()
            os.utime(program, (0, source.stat().st_mtime - 1))
        done = script("""
            import sys
            sys.path.insert(0, sys.argv[1])
            from pytest_sandbox import Sandbox
            from pytest_sandbox.runtime import spawner
            assert spawner.PROGRAM.startswith(sys.argv[1]), spawner.PROGRAM
            with Sandbox() as sandbox:
                print(sandbox.run(["cat", "/proc/1/comm"]).stdout.strip())
        """, str(place))
        assert done.returncode == 0, done.stderr
        told.append(done.stdout.strip())
    assert all(one.startswith("python") for one in told), told


@compiled
def test_a_lost_spawner_is_done_without() -> None:
    assert prints("""
        import os, signal
        from pathlib import Path
        from pytest_sandbox import Sandbox
        from support import init_pid

        def parent(pid):
            return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

        with Sandbox() as one:
            helper = parent(init_pid(one))
            children = Path(f"/proc/{helper}/task/{helper}/children").read_text().split()
            (spawner,) = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text() != "sandbox-init\\n"]
            os.kill(int(spawner), signal.SIGKILL)
            print(one.run(["cat", "/proc/1/comm"]).stdout.strip())
            with Sandbox() as two:
                print(two.run(["cat", "/proc/1/comm"]).stdout.strip().startswith("python"))
    """) == ["sandbox-init", "True"]


def test_an_action_that_only_python_has() -> None:
    body: dict[str, Any] = {"scratch": [], "inside": [], "group": None, "nproc": None, "namespaces": 0, "uid_map": "",
                            "gid_map": "", "drop": [], "seccomp": "", "counts": [], "oom": "", "base": 0}
    body["mounts"] = [["overlay", 0, "/", ["/a"], None, "/a", 0, "x", True, None]]
    assert spawner.compile_plan(body) is not None
    body["mounts"] = [["overlay", 0, "/", ["/a"], None, "/a", 0, "x", True, "/seed"]]
    assert spawner.compile_plan(body) is None
    assert mounts.actions_of(body["mounts"][0])[3] == ["seed", "/seed", "/scratch/0/upper"]
