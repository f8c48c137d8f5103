"""Files of /proc and /sys that reach the whole machine. They are opened for writing, and nothing is ever written."""

from __future__ import annotations

import os
import stat

from core import Absent, Context, Shut, opened, probe

PROMISE = "kernel files"
SHUT = ("EROFS", "EACCES", "EPERM", "ENOENT")

#: Written to, they change the machine, or run a program as root on it.
WRITTEN = {
    "/proc/sysrq-trigger": "the machine would go down",
    "/proc/sys/kernel/core_pattern": "a program of the attacker's would run as root on the host at the next crash",
    "/proc/sys/kernel/modprobe": "a program of the attacker's would run as root on the host",
    "/proc/sys/kernel/hotplug": "a program of the attacker's would run as root on the host",
    "/proc/sys/kernel/poweroff_cmd": "a program of the attacker's would run as root on the host",
    "/proc/sys/kernel/usermodehelper/bset": "helpers of the kernel would have more capabilities",
    "/proc/sys/kernel/sysrq": "the magic keys would be turned on",
    "/proc/sys/kernel/panic": "the machine would go down",
    "/proc/sys/kernel/randomize_va_space": "every program of the host would lie where the attacker knows",
    "/proc/sys/kernel/kptr_restrict": "addresses of the kernel would be shown",
    "/proc/sys/kernel/dmesg_restrict": "the kernel's log would be shown",
    "/proc/sys/kernel/ngroups_max": "a setting of the whole machine would be changed",
    "/proc/sys/kernel/pid_max": "nobody could start a process",
    "/proc/sys/kernel/threads-max": "nobody could start a thread",
    "/proc/sys/vm/panic_on_oom": "the machine would go down",
    "/proc/sys/vm/overcommit_memory": "the host's memory would run out",
    "/proc/sys/vm/mmap_min_addr": "holes of the kernel would be easier to use",
    "/proc/sys/vm/drop_caches": "the machine would be slowed down",
    "/proc/sys/fs/file-max": "nobody could open a file",
    "/proc/sys/fs/suid_dumpable": "memory of set-user-id programs would be dumped",
    "/proc/sys/fs/protected_symlinks": "symbolic links would be followed in /tmp",
    "/proc/sys/fs/binfmt_misc/register": "a program of the attacker's would run for others' programs",
    "/proc/sys/dev/tty/ldisc_autoload": "a hole of a line discipline would be in reach",
    "/proc/irq/default_smp_affinity": "the machine's interrupts would be moved",
    "/proc/mtrr": "the machine's memory would be slowed down",
    "/proc/scsi/scsi": "disks would be detached",
    "/proc/timer_list": "", "/proc/acpi/wakeup": "the machine's sleep would be changed",
    "/proc/fs/xfs/stat": "", "/proc/bus/input/devices": "",
    "/sys/kernel/uevent_helper": "a program of the attacker's would run as root on the host",
    "/sys/kernel/profiling": "the kernel would be profiled",
    "/sys/kernel/kexec_crash_size": "the crash kernel would lose its memory",
    "/sys/kernel/mm/transparent_hugepage/enabled": "the machine's memory would be managed otherwise",
    "/sys/kernel/mm/ksm/run": "pages would be merged, and told apart by time",
    "/sys/power/state": "the machine would go to sleep",
    "/sys/power/disk": "the machine would go to sleep",
    "/sys/bus/pci/rescan": "devices would be changed",
    "/sys/bus/pci/drivers_probe": "devices would be changed",
    "/sys/devices/system/cpu/cpu1/online": "a processor would be turned off",
    "/sys/devices/system/memory/probe": "memory would be changed",
    "/sys/module/kernel/parameters/panic": "the machine would go down",
    "/sys/module/overlay/parameters/metacopy": "overlays of the host would be changed",
    "/sys/class/rtc/rtc0/wakealarm": "the machine would wake up",
    "/sys/block/loop0/queue/scheduler": "disks would be slowed down",
    "/sys/firmware/acpi/interrupts/sci": "the firmware would be changed",
}

#: Read, they tell of the machine, of its memory, or of other people's processes.
READ = {
    "/proc/kcore": "the machine's memory would be read", "/proc/keys": "others' keys would be listed",
    "/proc/kmsg": "the kernel's log would be read", "/proc/timer_list": "addresses of the kernel would be read",
    "/proc/sched_debug": "others' processes would be listed", "/proc/slabinfo": "heap attacks would be guided",
    "/proc/vmallocinfo": "addresses of the kernel would be read", "/proc/iomem": "the machine's memory map be read",
    "/proc/ioports": "the machine's ports would be read", "/proc/kpageflags": "the machine's pages would be told apart",
    "/proc/kpagecount": "the machine's pages would be counted", "/proc/kpagecgroup": "others' pages would be counted",
    "/proc/pagetypeinfo": "heap attacks would be guided", "/proc/interrupts": "others' keystrokes would be timed",
    "/proc/latency_stats": "others' waiting would be watched", "/proc/asound/cards": "sound devices would be listed",
    "/proc/scsi/scsi": "disks would be listed", "/proc/acpi/wakeup": "the machine's devices would be listed",
    "/sys/firmware/acpi/tables/DSDT": "the firmware would be read",
    "/sys/firmware/dmi/tables/DMI": "serial numbers would be read",
    "/sys/firmware/memmap/0/start": "the machine's memory map would be read",
    "/sys/kernel/debug/sched/debug": "others' processes would be listed",
    "/sys/kernel/tracing/trace": "what others do would be traced",
    "/sys/kernel/debug/tracing/trace": "what others do would be traced",
    "/sys/kernel/security/lsm": "",
}


def _name(kind: str, path: str) -> str:
    return kind + path.replace("/", "_").replace("-", "_").replace(".", "_")


def _written(path: str, weaker: str) -> None:
    @probe(PROMISE, weaker or "a file of the whole machine would be opened for writing", *SHUT, "shut: covered",
           proof="naive", root=True, name=_name("write", path))
    def attack(context: Context) -> object:
        try:
            look = os.stat(path)
            if stat.S_ISCHR(look.st_mode) and look.st_rdev == os.makedev(1, 3):
                raise Shut("covered")
            return opened(path, os.O_WRONLY)
        except OSError as error:
            if context["world"] == "naive":  # root of the machine itself: what it cannot open for writing nobody can
                raise Absent(f"not for writing on this kernel: {error.strerror}") from None
            raise

    attack.__doc__ = f"Opens {path} for writing."


def _read(path: str, weaker: str) -> None:
    @probe(PROMISE, weaker or "a file of the whole machine would be read", *SHUT, "shut: covered", "shut: nothing",
           proof="naive", root=True, name=_name("read", path))
    def attack(context: Context) -> object:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if context["world"] == "naive":
                raise Absent(f"not on this kernel: {error.strerror}") from None
            raise
        look = os.fstat(fd)
        if stat.S_ISCHR(look.st_mode) and look.st_rdev == os.makedev(1, 3):
            raise Shut("covered")
        if path.startswith("/proc/k"):
            return f"opened {path}"  # reading those costs, or waits
        text = os.read(fd, 4096).replace(b"0", b"").strip()
        if not text:
            raise Shut("nothing")
        if context["world"] != "naive" and path in ("/proc/iomem", "/proc/ioports"):
            raise Shut("nothing")
        return f"{len(text)} bytes"

    attack.__doc__ = f"Reads {path}."


for _path, _weaker in WRITTEN.items():
    _written(_path, _weaker)
for _path, _weaker in READ.items():
    _read(_path, _weaker)


@probe(PROMISE, "the kernel's addresses would be known, which holes need", "shut: no addresses", "EPERM", "EACCES",
       proof="naive", root=True)
def kallsyms(context: Context) -> object:
    """Reads the kernel's symbols with their addresses."""
    try:
        file = open("/proc/kallsyms")  # noqa: SIM115
    except FileNotFoundError:
        raise Absent("this kernel shows no symbols") from None
    with file:
        if any(int(file.readline().split()[0], 16) for _ in range(50)):
            return "addresses"
    if context["world"] == "naive":
        raise Absent("kernel.kptr_restrict hides them from root, too")
    raise Shut("no addresses")


@probe(PROMISE, "cgroups of the host would be changed: limits lifted, others' processes frozen", "shut: no file",
       proof="naive", root=True)
def cgroup_files_of_the_host(context: Context) -> object:
    """Looks through /sys/fs/cgroup for a file that can be opened for writing."""
    for folder, _, names in os.walk("/sys/fs/cgroup"):
        for name in names:
            try:
                return opened(f"{folder}/{name}", os.O_WRONLY)
            except OSError:
                continue
    raise Shut("no file")


@probe(PROMISE, "some other switch of the machine would be turned", "shut: no file", proof="naive", root=True)
def any_other_kernel_file(context: Context) -> object:
    """Looks through /proc/sys and /proc beside it for any file that can be opened for writing; its own aside."""
    own = ("/proc/sys/net/", "/proc/sys/user/", "/proc/sys/fs/mqueue/", "/proc/sys/kernel/ns_last_pid")
    ipc = ("shm", "msg", "sem", "auto_msgmni")
    places = ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/driver", "/proc/scsi"]
    for place in places:
        for folder, _, names in os.walk(place):
            for name in names:
                path = f"{folder}/{name}"
                if path.startswith(own) or (folder == "/proc/sys/kernel" and name.startswith(ipc)):
                    continue
                try:
                    if not stat.S_ISREG(os.lstat(path).st_mode):
                        continue
                    return opened(path, os.O_WRONLY)
                except OSError:
                    continue
    raise Shut("no file")
