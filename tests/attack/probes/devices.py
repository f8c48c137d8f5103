"""Nodes of the machine's devices: none is there, and none can be made."""

from __future__ import annotations

import os
import stat

from core import Absent, Context, Shut, probe

PROMISE = "devices"
NODES = {
    "mem": "the machine's memory would be read and written", "kmem": "the kernel's memory would be written",
    "port": "the machine's devices would be driven", "kmsg": "the kernel's log would be read and written",
    "kvm": "a hole of the hypervisor would be in reach", "fuse": "a file system of the attacker's (CVE-2023-0386)",
    "net/tun": "packets would be injected", "loop-control": "images would be mounted", "loop0": "images be mounted",
    "mapper/control": "disks would be mapped", "console": "the machine's console would be written to",
    "tty0": "the machine's console would be written to", "vhost-net": "a hole of vhost would be in reach",
    "vhost-vsock": "the machine around would be reached", "uinput": "keys would be pressed",
    "input/event0": "keys would be read", "rtc0": "the machine's clock would be set",
    "watchdog": "the machine would be reset", "hwrng": "the hardware's random numbers would be used up",
    "cpu/0/msr": "the processor's registers would be written", "nvram": "the firmware's settings would be changed",
    "dri/card0": "a hole of the graphics driver would be in reach", "snd/timer": "a hole of the sound driver",
    "ptp0": "the host's clock would be set", "vfio/vfio": "devices would be driven", "snapshot": "memory be frozen",
    "userfaultfd": "page faults would be held up", "ppp": "packets would be injected",
    "autofs": "a hole of autofs would be in reach", "btrfs-control": "disks would be scanned",
    "cuse": "devices would be made", "hpet": "the machine's timer would be mapped", "vcs": "the console would be read",
    "sda": "the disk would be read", "vda": "the disk would be read", "nvme0n1": "the disk would be read",
    "pmem0": "the disk would be read", "dm-0": "the disk would be read", "sg0": "the disk would be erased",
}


def _node(path: str, weaker: str) -> None:
    name = "dev_" + path.replace("/", "_").replace("-", "_")

    @probe(PROMISE, weaker, "ENOENT", "ENOTDIR", proof="outside", name=name)
    def attack(context: Context) -> object:
        try:
            look = os.stat(f"/dev/{path}")  # never opened: some act on that
        except FileNotFoundError:
            if context["world"] == "outside":
                raise Absent("this machine has none") from None
            raise
        if not (stat.S_ISCHR(look.st_mode) or stat.S_ISBLK(look.st_mode)):
            raise Shut("not a device")
        return f"device {os.major(look.st_rdev)}:{os.minor(look.st_rdev)}"

    attack.__doc__ = f"Looks for the device node /dev/{path}."


for _path, _weaker in NODES.items():
    _node(_path, _weaker)


@probe(PROMISE, "a device that nobody thought of would be there", "shut: none", proof="outside")
def any_other_device(context: Context) -> object:
    """Looks through all of /dev for a device beyond the harmless ones and terminals."""
    for folder, _, names in os.walk("/dev"):
        for name in names:
            look = os.lstat(f"{folder}/{name}")
            number = os.major(look.st_rdev), os.minor(look.st_rdev)
            if stat.S_ISBLK(look.st_mode):
                return f"{folder}/{name}"
            if stat.S_ISCHR(look.st_mode) and number[0] not in (136, 5) and number not in (
                    (1, 3), (1, 5), (1, 7), (1, 8), (1, 9)):
                return f"{folder}/{name}"
    raise Shut("none")


def _made(kind: int, number: tuple[int, int]) -> object:
    path = f"/tmp/attack-node-{os.getpid()}"
    os.mknod(path, kind | 0o600, os.makedev(*number))
    os.unlink(path)
    return "a node"


@probe(PROMISE, "any device would be made", "EPERM", proof="naive", root=True)
def mknod_character(context: Context) -> object:
    """Makes another /dev/null."""
    return _made(stat.S_IFCHR, (1, 3))


@probe(PROMISE, "the disk would be made and read", "EPERM", proof="naive", root=True)
def mknod_block(context: Context) -> object:
    """Makes the node of a disk that no machine has."""
    return _made(stat.S_IFBLK, (240, 99))


@probe(PROMISE, "any device would be made", "EPERM", proof="naive", root=True)
def mknod_in_namespace(context: Context) -> object:
    """Makes a node on a tmpfs of its own in a user namespace of its own."""
    from core import NEWNS, mount, nested
    nested(context, NEWNS)
    mount("x", "/tmp", "tmpfs", 0)
    return _made(stat.S_IFCHR, (1, 3))


def _changed(name: str, change: str) -> object:
    look = os.stat(f"/dev/{name}")
    if change == "mode":
        os.chmod(f"/dev/{name}", stat.S_IMODE(look.st_mode))
    elif change == "owner":
        os.chown(f"/dev/{name}", look.st_uid, look.st_gid)
    else:
        os.utime(f"/dev/{name}", ns=(look.st_atime_ns, look.st_mtime_ns))
    return f"the {change} of the host's /dev/{name}"


@probe(PROMISE, "/dev/null of the host would be closed to everybody", "EROFS", "EPERM", proof="naive", root=True)
def mode_of_a_device(context: Context) -> object:
    """Gives /dev/null the mode that it has."""
    return _changed("null", "mode")


@probe(PROMISE, "/dev/urandom of the host would be somebody's", "EROFS", "EPERM", proof="naive", root=True)
def owner_of_a_device(context: Context) -> object:
    """Gives /dev/urandom the owner that it has."""
    return _changed("urandom", "owner")


@probe(PROMISE, "the host's nodes would be changed", "EROFS", "EPERM", proof="naive", root=True)
def time_of_a_device(context: Context) -> object:
    """Gives /dev/zero the time that it has."""
    return _changed("zero", "time")


@probe(PROMISE, "/dev/null of the host would be closed to everybody, by a descriptor that pytest had open",
       "shut: none", "EROFS", "EPERM", proof="outside", root=True)
def mode_of_an_inherited_device(context: Context) -> object:
    """Gives every device that it has open the mode that it has."""
    changed = []
    for number in range(256):
        try:
            look = os.fstat(number)
        except OSError:
            continue
        if stat.S_ISCHR(look.st_mode) and os.major(look.st_rdev) != 136:
            try:
                os.fchmod(number, stat.S_IMODE(look.st_mode))
                changed.append(number)
            except OSError:
                continue
    if changed:
        return changed
    raise Shut("none")
