"""What the demo knows of the host, the check that keeps its tests from ever hurting it, and how they speak."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

FOLDERS = ("/etc", "/usr", "/usr/bin")


@dataclass(frozen=True)
class Host:
    """The host as pytest sees it before the first test. Made outside; sandboxed tests get it as it is."""

    mount_namespace: str
    pid_namespace: str
    devices: dict[str, int]
    names: dict[str, list[str]]
    passwd: str
    bystander: int

    @classmethod
    def seen_from_here(cls, bystander: int) -> Host:
        return cls(
            mount_namespace=os.readlink("/proc/self/ns/mnt"),
            pid_namespace=os.readlink("/proc/self/ns/pid"),
            devices={folder: os.stat(folder).st_dev for folder in FOLDERS},
            names={folder: sorted(os.listdir(folder)) for folder in FOLDERS},
            passwd=hashlib.sha256(Path("/etc/passwd").read_bytes()).hexdigest(),
            bystander=bystander,
        )

    def must_be_out_of_reach(self) -> None:
        """Ends the whole run unless the caller is inside a sandbox. Each dangerous test calls this first.

        It does not ask the plugin, which may be switched off or broken. It asks the kernel: are these other namespaces
        than pytest's, and do /etc and /usr lie on another device than the host's?
        """
        reasons = []
        if os.readlink("/proc/self/ns/mnt") == self.mount_namespace:
            reasons.append("this is the mount namespace that pytest runs in")
        if os.readlink("/proc/self/ns/pid") == self.pid_namespace:
            reasons.append("this is the process namespace that pytest runs in")
        reasons += [f"{folder} is the host's own" for folder in FOLDERS
                    if os.stat(folder).st_dev == self.devices[folder]]
        if reasons:
            pytest.exit(f"NOT in a sandbox, so nothing was done: {'; '.join(reasons)}.", returncode=3)


def say(text: str) -> None:
    print(f"    {text}")
