"""The host's mounts as a sandbox shows them. They are made in a mount namespace of the test's own, never outside it."""

from __future__ import annotations

import os
from pathlib import Path

from support import IS_ROOT, namespaces, prints, private_mounts

#: Says so, and ends, unless it runs in a mount namespace of its own. ``mount`` is the program's only way to mount.
PREFACE = """
import functools, os, subprocess, sys
from pytest_sandbox import Sandbox
from pytest_sandbox.runtime.supervisor import find_host
outside, folder = sys.argv[1:3]
if os.readlink("/proc/self/ns/mnt") == outside:
    sys.exit("not in a mount namespace of its own")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
def mount(*words):
    subprocess.run(["mount", *words], check=True)
def made(*parts):
    path = os.path.join(folder, *parts)
    os.makedirs(path, exist_ok=True)
    return path
def put(text, *parts):
    with open(os.path.join(folder, *parts), "w") as file:
        file.write(text)
os.umask(0o022)
if not find_host().privileged:
    # Root of a mere user namespace owns nothing: a sandbox for it repeats the host's tree, which takes a second.
    Sandbox = functools.partial(Sandbox, user="1000:1000")
"""


def _in_private(program: str, folder: Path) -> list[str]:
    lines = prints(PREFACE + program, namespaces()["mnt"], str(folder), under=private_mounts())
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    return lines


def test_file_systems_are_overlaid_where_they_are_mounted(tmp_path: Path) -> None:
    assert _in_private("""
mount("-t", "tmpfs", "one", made("mnt"))
mount("-t", "tmpfs", "two", made("mnt/deep/er"))
made("mnt/plain")
put("outer", "mnt/plain/f"); put("inner", "mnt/deep/er/f")
with Sandbox() as sandbox:
    print(sandbox.run(["cat", f"{folder}/mnt/plain/f", f"{folder}/mnt/deep/er/f"]).stdout)
    sandbox.run(["sh", "-euc", "echo x >mnt/plain/g; echo x >mnt/deep/er/g; rm mnt/deep/er/f; echo x >mnt/plain/f"],
                cwd=folder, check=True)
    print(*sorted((one.path.removeprefix(folder), one.kind) for one in sandbox.changes()))
print(os.listdir(f"{folder}/mnt/plain"), os.listdir(f"{folder}/mnt/deep/er"), open(f"{folder}/mnt/plain/f").read())
""", tmp_path) == [
        "outerinner",
        "('/mnt/deep/er/f', 'deleted') ('/mnt/deep/er/g', 'added') ('/mnt/plain/f', 'modified') "
        "('/mnt/plain/g', 'added')",
        "['f'] ['f'] outer"]
    assert os.listdir(tmp_path / "mnt") == []


def test_the_last_mount_on_a_place_counts(tmp_path: Path) -> None:
    assert _in_private("""
mount("-t", "tmpfs", "below", made("mnt"))
put("below", "mnt/f")
mount("-t", "tmpfs", "covered", made("mnt/sub"))
mount("-t", "tmpfs", "above", f"{folder}/mnt")
put("above", "mnt/f")
with Sandbox() as sandbox:
    print(sandbox.run(["cat", f"{folder}/mnt/f"]).stdout, sandbox.call(os.listdir, f"{folder}/mnt"))
""", tmp_path) == ["above ['f']"]


def test_mount_points_with_odd_names(tmp_path: Path) -> None:
    names = sorted(["with blank", "tab\tand\nline", "back\\slash", "com,ma", "co:lon", "hash#", "é à Å", "x" * 200])
    for name in names:
        (tmp_path / name).mkdir()
    assert _in_private("""
names = sorted(os.listdir(folder))
for number, name in enumerate(names):
    mount("-t", "tmpfs", "odd", os.path.join(folder, name))
    put(f"there {number}", name, "f")
with Sandbox() as sandbox:
    for number, name in enumerate(names):
        path = os.path.join(folder, name)
        print(sandbox.path(path + "/f").read_text() == f"there {number}", end=" ")
        sandbox.path(path + "/g").write_text("new")
        print(sandbox.call(lambda: sorted(os.listdir(path))))
    print([one.path for one in sandbox.changes()] == sorted(os.path.join(folder, name, "g") for name in names))
""", tmp_path) == [*["True ['f', 'g']"] * len(names), "True"]


def test_a_bind_mount_of_a_directory(tmp_path: Path) -> None:
    assert _in_private("""
put("bound", made("source") + "/f")
mount("--bind", f"{folder}/source", made("target"))
with Sandbox() as sandbox:
    print(sandbox.path(f"{folder}/target/f").read_text())
    sandbox.path(f"{folder}/target/f").write_text("changed")
    print(sandbox.path(f"{folder}/source/f").read_text(), sandbox.path(f"{folder}/target/f").read_text())
print(open(f"{folder}/source/f").read())
""", tmp_path) == ["bound", "bound changed", "bound"]


def test_noexec_is_kept(tmp_path: Path) -> None:
    assert _in_private("""
mount("-t", "tmpfs", "-o", "noexec", "data", made("mnt"))
put("#!/bin/sh\\necho ran\\n", "mnt/program")
os.chmod(f"{folder}/mnt/program", 0o755)
with Sandbox() as sandbox:
    try:
        print(sandbox.run([f"{folder}/mnt/program"]).stdout)
    except PermissionError as error:
        print(error.strerror)
""", tmp_path) == ["Permission denied"]


def test_a_read_only_file_system_is_writable_inside(tmp_path: Path) -> None:
    assert _in_private("""
mount("-t", "tmpfs", "data", made("mnt"))
put("host's", "mnt/f")
mount("-o", "remount,bind,ro", f"{folder}/mnt")
with Sandbox() as sandbox:
    sandbox.path(f"{folder}/mnt/f").write_text("changed")
    print(sandbox.run(["cat", f"{folder}/mnt/f"]).stdout)
print(open(f"{folder}/mnt/f").read())
""", tmp_path) == ["changed", "host's"]


def test_pseudo_file_systems_are_not_shown(tmp_path: Path) -> None:
    assert _in_private("""
mount("--rbind", "/proc", made("proc-elsewhere"))
mount("--rbind", "/sys", made("sys-elsewhere"))
with Sandbox() as sandbox:
    print(sandbox.call(os.listdir, f"{folder}/proc-elsewhere"), sandbox.call(os.listdir, f"{folder}/sys-elsewhere"))
""", tmp_path) == ["[] []"]


def test_a_hidden_directory_that_is_a_mount_is_hidden(tmp_path: Path) -> None:
    assert _in_private("""
os.environ["HOME"] = folder
mount("-t", "tmpfs", "keys", made(".ssh"))
put("secret", ".ssh/id")
mount("-t", "tmpfs", "conf", made(".config"))
put("secret", made(".config/gh") + "/hosts.yml")
with Sandbox() as sandbox:
    print(sandbox.run(["grep", "-rl", "secret", folder]).stdout == "", sandbox.path(f"{folder}/.ssh").exists(),
          sandbox.path(f"{folder}/.config").exists())
""", tmp_path) == ["True False True"]


def test_what_is_mounted_later_shows_in_later_sandboxes(tmp_path: Path) -> None:
    assert _in_private("""
made("mnt")
with Sandbox() as first:
    print(first.call(os.listdir, f"{folder}/mnt"))
    mount("-t", "tmpfs", "new", f"{folder}/mnt")
    put("mounted", "mnt/f")
    with Sandbox() as second:
        print(second.call(os.listdir, f"{folder}/mnt"), first.run(["echo", "alive"]).stdout.strip())
        print(second.run(["cat", f"{folder}/mnt/f"]).stdout)
    subprocess.run(["umount", f"{folder}/mnt"], check=True)
    mount("-t", "tmpfs", "other", f"{folder}/mnt")
    put("again", "mnt/g")
    with Sandbox() as third:
        print(third.call(os.listdir, f"{folder}/mnt"), first.run(["echo", "alive"]).stdout.strip())
    subprocess.run(["umount", f"{folder}/mnt"], check=True)
    with Sandbox() as last:
        print(last.call(os.listdir, f"{folder}/mnt"))
""", tmp_path) == ["[]", "['f'] alive", "mounted", "['g'] alive", "[]"]


def test_a_file_that_is_a_mount_shows_what_is_mounted(tmp_path: Path) -> None:
    """As /etc/resolv.conf and /etc/hosts are where a container engine has started us."""
    assert _in_private("""
put("below", "target"); put("above", "source")
mount("--bind", f"{folder}/source", f"{folder}/target")
with Sandbox() as sandbox:
    print(sandbox.run(["cat", f"{folder}/target"]).stdout)
    sandbox.path(f"{folder}/target").write_text("changed")
    print(sandbox.run(["cat", f"{folder}/target"]).stdout)
print(open(f"{folder}/source").read())
""", tmp_path) == ["above", "changed", "above"]


def test_the_sandbox_keeps_no_file_system_of_the_host_busy(tmp_path: Path) -> None:
    """After close() the host can unmount what a sandbox has shown."""
    assert _in_private("""
mount("-t", "tmpfs", "disk", made("mnt"))
with Sandbox() as sandbox:
    sandbox.path(f"{folder}/mnt/f").write_text("x")
    sandbox.run(["sh", "-c", "sleep 1000 &"], cwd=f"{folder}/mnt", timeout=0.1)
subprocess.run(["umount", f"{folder}/mnt"], check=True)
print("unmounted", os.listdir(f"{folder}/mnt"))
""", tmp_path) == ["unmounted []"]


def test_this_file_runs_as_both(tmp_path: Path) -> None:
    assert _in_private("""
print(find_host().privileged)
""", tmp_path) == [str(IS_ROOT)]


def test_a_mount_that_goes_while_a_sandbox_is_made(tmp_path: Path) -> None:
    """The plan has seen it, and the helper that carries the plan out has not: another plan is made."""
    assert _in_private("""
from pytest_sandbox.runtime import launch, supervisor
from types import SimpleNamespace
with Sandbox() as sandbox:
    print(sandbox.run(["ls", made("mnt")]).stdout.split())
    mount("-t", "tmpfs", "brief", f"{folder}/mnt")
    # The new helper that this asks for does not begin before the mount is gone.
    def start(arguments, **options):
        wait = f'until [ -e "{folder}/go" ]; do sleep 0.01; done; exec "$@"'
        return subprocess.Popen(["sh", "-c", wait, "sh", *arguments], **options)
    plans = []
    def go():
        if not os.path.exists(f"{folder}/go"):
            subprocess.run(["umount", f"{folder}/mnt"], check=True)
            os.rmdir(f"{folder}/mnt")
            put("", "go")
    def shifts(one, body, shifts=supervisor.Supervisor.shifts):  # the helper's first task, if we are root
        go()
        return shifts(one, body)
    def take(plan, take=launch.take):
        go()
        plans.append(plan.key)
        return take(plan)
    supervisor.subprocess, launch.take = SimpleNamespace(Popen=start, DEVNULL=subprocess.DEVNULL), take
    supervisor.Supervisor.shifts = shifts
    with Sandbox() as other:
        print(other.run(["true"]).returncode, len(plans), len(set(plans)))
""", tmp_path) == ["[]", "0 2 2"]
