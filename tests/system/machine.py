"""A Debian in a virtual machine: its disk image, made once, and one boot of it with a payload. Used by ``__main__``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "systemd", "systemd-sysv", "udev", "dbus", "dbus-user-session", "libpam-systemd", "uidmap", "python3", "iproute2",
    "procps", "linux-image-cloud-amd64", "initramfs-tools", "kmod", "passwd", "time", "zstd",
)
#: What would only take time in a machine that lives for minutes.
MASKED = (
    "systemd-timesyncd.service", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "getty@tty1.service", "serial-getty@ttyS0.service",
)
#: The tools that this needs, and the Debian packages that have them.
TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs"}

HIERARCHIES = {
    "v2": "",
    "hybrid": "systemd.unified_cgroup_hierarchy=0",
    "v1": "systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1",
}

UNIT = """\
[Unit]
Description=what the host wants done
After=systemd-user-sessions.service user@1000.service
Wants=user@1000.service

[Service]
ExecStart=/usr/local/sbin/payload
Delegate=yes
TimeoutStartSec=infinity
"""

#: The payload is a tar on the second disk. Its ``run`` talks to the host through a virtual serial port.
RUNNER = """\
#!/bin/sh
exec >/dev/virtio-ports/out 2>&1
mkdir -p /payload
tar -C /payload -xf /dev/vdb
cd /payload
./run
echo "@@status $?"
sleep 0.2
systemctl poweroff --force --force
"""

ENDS = "@@status "


class Missing(Exception):
    """Something that is needed is not on this machine."""


@dataclass(frozen=True)
class Machine:
    """A disk image with its kernel. ``folder`` holds ``root.ext4``, ``vmlinuz`` and ``initrd``."""

    suite: str
    folder: Path

    def there(self) -> bool:
        """Whether it was made."""
        return (self.folder / "root.ext4").exists()

    def make(self) -> None:
        """Makes it, from Debian's packages."""
        missing = [package for tool, package in TOOLS.items() if _tool(tool) is None]
        if missing:
            raise Missing(f"these packages are not installed: {' '.join(missing)}")
        if os.getuid():
            raise Missing("making a disk image needs root")
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            work = Path(scratch)
            unit, runner = work / "payload.service", work / "payload"
            unit.write_text(UNIT)
            runner.write_text(RUNNER)
            runner.chmod(0o755)
            _run([
                "mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}",
                '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
                '--customize-hook=chroot "$1" useradd -m -u 1000 -s /bin/bash tester',
                '--customize-hook=echo machine > "$1/etc/hostname"',
                '--customize-hook=echo "LABEL=root / ext4 defaults 0 1" > "$1/etc/fstab"',
                '--customize-hook=mkdir -p "$1/var/lib/systemd/linger"; touch "$1/var/lib/systemd/linger/tester"',
                *[f'--customize-hook=ln -sf /dev/null "$1/etc/systemd/system/{name}"' for name in MASKED],
                f'--customize-hook=copy-in {unit} /etc/systemd/system',
                f'--customize-hook=copy-in {runner} /usr/local/sbin',
                '--customize-hook=chroot "$1" systemctl enable payload.service || '
                'mkdir -p "$1/etc/systemd/system/multi-user.target.wants"; '
                'ln -sf ../payload.service "$1/etc/systemd/system/multi-user.target.wants/"',
                '--customize-hook=ln -sf /lib/systemd/system/multi-user.target "$1/etc/systemd/system/default.target"',
                self.suite, str(work / "root.tar"),
            ])
            root = work / "root"
            root.mkdir()
            _run(["tar", "-C", str(root), "--numeric-owner", "-xf", str(work / "root.tar")])
            (work / "root.tar").unlink()
            for pattern, name in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd")):
                found, = (root / "boot").glob(pattern)
                shutil.move(found, self.folder / name)
            image = work / "root.ext4"
            with image.open("wb") as file:
                file.truncate(2 << 30)
            _run(["mke2fs", "-q", "-t", "ext4", "-L", "root", "-O", "^has_journal", "-d", str(root), str(image)])
            image.rename(self.folder / "root.ext4")

    def boot(self, payload: Path, *, hierarchy: str = "v2", memory: int = 1536, seconds: float = 3000,
             kvm: bool = False) -> int:
        """Boots it with a tar as payload, prints what that says, and returns its exit status.

        What the machine writes to its disk is forgotten.
        """
        qemu = _tool("qemu-system-x86_64")
        if qemu is None:
            raise Missing(f"this package is not installed: {TOOLS['qemu-system-x86_64']}")
        # Nehalem is emulated faster than newer processors. Mitigations protect nobody in there.
        speed = ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "Nehalem"]
        if kvm:
            speed = ["-enable-kvm", "-cpu", "host"]
        kernel = ("root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=-1 systemd.show_status=0 "
                  f"rd.systemd.show_status=0 mitigations=off audit=0 {HIERARCHIES[hierarchy]}")
        command = [
            qemu, "-M", "q35", *speed, "-smp", "2", "-m", str(memory), "-nodefaults", "-no-user-config", "-display",
            "none", "-no-reboot",
            "-drive", f"if=none,id=root,file={self.folder / 'root.ext4'},format=raw,cache=unsafe,snapshot=on",
            "-device", "virtio-blk-pci,drive=root",
            "-drive", f"if=none,id=payload,file={payload},format=raw,readonly=on",
            "-device", "virtio-blk-pci,drive=payload",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
            "-chardev", "stdio,id=out,signal=off", "-device", "virtserialport,chardev=out,name=out",
            "-serial", f"file:{self.folder / 'console.log'}",
            "-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd"), "-append", kernel,
        ]
        status = 125
        # Its input stays open: at the end of that, the port would close, and the machine wait for ever to write to it.
        with subprocess.Popen(["timeout", "-k", "5", str(seconds), *command], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True, errors="replace") as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(ENDS):
                    status = int(line[len(ENDS):])
                else:
                    print(line.rstrip("\r\n"), flush=True)
        if status == 125:
            print(f"the machine ended without an answer; its console is in {self.folder / 'console.log'}",
                  file=sys.stderr)
        return status


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _run(command: list[str]) -> None:
    subprocess.run([_tool(command[0]) or command[0], *command[1:]], check=True)
