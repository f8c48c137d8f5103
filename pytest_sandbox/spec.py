"""What a sandbox is, as frozen data. No I/O, no knowledge of pytest or of the kernel.

``SandboxSpec`` is made from the options that users type (marker, ini, command line, ``Sandbox(...)``) by
:func:`parse_options`, which is also the one place that says what an option may hold.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from os.path import abspath
from posixpath import normpath
from typing import Any

from .errors import SandboxUsageError

#: Credential stores that a sandbox on the host image does not show, relative to each home directory.
HIDDEN_BY_DEFAULT = (
    ".ssh", ".aws", ".azure", ".gnupg", ".netrc", ".git-credentials", ".pgpass", ".my.cnf", ".pypirc", ".npmrc",
    ".yarnrc.yml", ".vault-token", ".boto", ".s3cfg", ".databrickscfg", ".terraformrc", ".terraform.d", ".kube",
    ".docker/config.json", ".config/containers/auth.json", ".config/gcloud", ".config/gh", ".config/hub",
    ".config/glab-cli", ".config/op", ".config/rclone", ".config/pip/pip.conf", ".cargo/credentials",
    ".cargo/credentials.toml", ".gem/credentials", ".m2/settings.xml", ".gradle/gradle.properties",
    ".password-store", ".local/share/keyrings", ".mozilla", ".config/google-chrome", ".config/chromium",
)


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path that shows through in a sandbox. What is written to a mount that is not ``read_only`` persists.

    :param source: an existing file or directory of the host.
    :param target: an absolute path inside; made when absent.
    """

    source: str
    target: str
    read_only: bool = False


class AnyNetwork:
    """What a :class:`~.network.Network` or :class:`~.outbound.Outbound` is to those that only pass it on."""

    outbound = False

    def attach(self, sandbox: Any, running: Any, endpoint: Endpoint, position: int) -> None:
        """Connects a sandbox that has just started, as the ``position``-th of its networks."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How a sandbox joins a network; ``Network.endpoint`` makes it.

    :param address: an IPv4 address of the network's range, ``address6`` an IPv6 one; else the next that is free.
    :param aliases: further names by which the other members find it.
    :param router: whether it passes on what is not for itself, and is the way out for the other members.
    """

    network: AnyNetwork
    address: str | None = None
    address6: str | None = None
    aliases: tuple[str, ...] = ()
    router: bool = False


#: The most tasks that a sandbox has at once unless ``pids`` says otherwise.
DEFAULT_PIDS = 4096

#: The options that limit what a sandbox may use, and that ``Sandbox.update`` changes while it runs.
LIMITS = ("memory", "swap", "cpus", "cpu_weight", "io_weight", "io", "pids", "disk")


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """One sandbox's description. Sizes are bytes, times are seconds; ``None`` means that nothing was asked for.

    ``io`` holds pairs of ``"read"`` or ``"write"`` and bytes a second. ``persist`` and ``owners`` are not options: what
    the plugin lets show through in every test's sandbox; and for a build's step that has subordinate ids, the path of
    the list of what belongs to others ("" if nothing does).
    """

    image: Any = "host"
    network: Any = "none"
    user: str | None = None
    env: tuple[tuple[str, str | None], ...] = ()
    workdir: str | None = None
    mounts: tuple[Mount, ...] = ()
    hostname: str = "sandbox"
    memory: int | None = None
    swap: int | None = None
    cpus: float | None = None
    cpu_weight: int | None = None
    io_weight: int | None = None
    io: tuple[tuple[str, int], ...] | None = None
    pids: int = DEFAULT_PIDS
    disk: int | None = None
    capabilities: tuple[str, ...] | None = None
    seccomp: str = "default"
    scope: str = "function"
    timeout: float | None = None
    python: str | None = None
    hide: tuple[str, ...] = HIDDEN_BY_DEFAULT
    persist: tuple[Mount, ...] = ()
    owners: str | None = None
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def merged(self, options: Mapping[str, Any]) -> SandboxSpec:
        """This spec with already parsed ``options`` laid over it."""
        return replace(self, **options, given=self.given | frozenset(options))

    def with_options(self, **options: Any) -> SandboxSpec:
        """This spec with ``options``, as users type them, laid over it.

        :raises SandboxUsageError: for an option that is unknown or holds an unusable value.
        """
        return self.merged(parse_options(options))


# What every option accepts.

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*")
_USER = re.compile(r"[0-9]{1,9}(:[0-9]{1,9})?")
_MOST = (1 << 63) - 1  # the kernel counts bytes of a file system in a signed 64-bit number

#: The capabilities that Linux knows, by number.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)

#: What root keeps inside unless ``capabilities`` says otherwise: Docker's default set without MKNOD and AUDIT_WRITE.
DEFAULT_CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "NET_RAW",
    "SYS_CHROOT", "SETFCAP",
)


def _refuse(option: str, value: object, allowed: str, why: str | None = None) -> SandboxUsageError:
    return SandboxUsageError(f"sandbox option {option}={value!r} cannot be used", option=option, value=value,
                             allowed=allowed, why=why)


def parse_size(option: str, value: object) -> int:
    """Bytes from an integer or from text such as ``"64M"`` (powers of 1024).

    :raises SandboxUsageError: for anything else, for nothing, and for more than the kernel can count.
    """
    allowed = 'bytes as a number, or text such as "64M" or "1.5G" (powers of 1024)'
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(min(float(match[1]) * _UNITS[match[2].upper()], 1 << 64))  # min: a float may be infinite
    else:
        raise _refuse(option, value, allowed)
    if size <= 0:
        raise _refuse(option, value, allowed, "it must be more than nothing")
    if size > _MOST:
        raise _refuse(option, value, allowed, "that is more than the kernel can count")
    return size


def _swap(option: str, value: object) -> int:
    return 0 if value in (0, "0") and value is not False else parse_size(option, value)


def _cpus(option: str, value: object) -> float:
    return _amount(option, value, "a number of CPUs, 0.01 to 10000; 0.5 is half of one", 0.01, 10_000)


def _whole(lowest: int, highest: int, what: str) -> Callable[[str, object], int]:
    def read(option: str, value: object) -> int:
        if isinstance(value, str) and value.strip().isdecimal():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest:
            return value
        raise _refuse(option, value, f"{what}, {lowest} to {highest}")
    return read


_weight = _whole(1, 10_000, "a weight; 100 is the kernel's default")


def _io(option: str, value: object) -> tuple[tuple[str, int], ...]:
    allowed = ('bytes a second as a number or as text such as "10M", or {"read": "10M", "write": "5M"} with one or '
               'both; in an ini file "read=10M write=5M"')
    if isinstance(value, str) and "=" in value:
        pairs = [word.partition("=")[::2] for word in value.replace(",", " ").split()]
        if len({name for name, _ in pairs}) < len(pairs):
            raise _refuse(option, value, allowed, "it says the same twice")
        value = dict(pairs)
    elif isinstance(value, tuple) and value and all(isinstance(one, tuple) and len(one) == 2 for one in value):
        value = dict(value)  # as the spec holds it
    if not isinstance(value, Mapping):
        value = {"read": value, "write": value}
    elif not value or not all(name in ("read", "write") for name in value):
        odd = next((name for name in value if name not in ("read", "write")), None)
        why = closest(odd, ("read", "write")) if isinstance(odd, str) else None
        raise _refuse(option, dict(value), allowed, why)
    found = []
    for name, text in sorted(value.items()):
        try:
            found.append((name, parse_size(option, text)))
        except SandboxUsageError as error:
            raise _refuse(option, text, allowed, error.why) from None
    return tuple(found)


def _image(option: str, value: object) -> Any:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if getattr(value, "is_sandbox_image", False):
        return value
    several = "a list of them is for the marker of a test function" if isinstance(value, (list, tuple)) else None
    raise _refuse(option, value, 'a reference such as "host", or an Image', several)


def _network(option: str, value: object) -> str | tuple[Endpoint, ...]:
    if isinstance(value, str) and value in ("none", "host", "outbound"):
        return value
    allowed = '"none" (own loopback), "host", "outbound", Outbound(...), a Network, or a list of them'
    several = value if isinstance(value, (list, tuple)) else [value]
    made = [Endpoint(one) if isinstance(one, AnyNetwork) else one for one in several]
    endpoints = tuple(one for one in made if isinstance(one, Endpoint))
    if not endpoints or len(endpoints) < len(made):
        raise _refuse(option, value, allowed,
                      closest(value, ("none", "host", "outbound")) if isinstance(value, str) else None)
    if len({id(one.network) for one in endpoints}) < len(endpoints):
        raise _refuse(option, value, allowed, "a sandbox joins a network once")
    if sum(one.network.outbound for one in endpoints) > 1:
        raise _refuse(option, value, allowed, "one way out is enough")
    return endpoints


def network_kind(network: Any) -> str:
    """What a sandbox needs for its networks: ``"none"``, ``"host"``, ``"networks"``, or ``"outbound"``."""
    if isinstance(network, str):
        return network
    return "outbound" if any(one.network.outbound for one in network) else "networks"


def _user(option: str, value: object) -> str:
    if isinstance(value, str) and (value in ("root", "me") or _USER.fullmatch(value)):
        return value
    raise _refuse(option, value, '"root", "me", or numbers such as "1000:1000"')


def _env(option: str, value: object) -> tuple[tuple[str, str | None], ...]:
    allowed = 'a mapping of names to text, or to None to remove a variable; in an ini file, lines such as "NAME=value"'
    if isinstance(value, str):
        value = [line for line in value.splitlines() if line.strip()]
    if isinstance(value, (list, tuple)):
        if not all(isinstance(line, str) and "=" in line for line in value):
            raise _refuse(option, value, allowed)
        value = dict(line.strip().split("=", 1) for line in value)
    if not isinstance(value, Mapping):
        raise _refuse(option, value, allowed)
    for name, text in value.items():
        if not isinstance(name, str) or not name or "=" in name or "\0" in name:
            raise _refuse(option, value, allowed, f"{name!r} is not a variable's name")
        if text is not None and (not isinstance(text, str) or "\0" in text):
            raise _refuse(option, value, allowed, f"{name} has the value {text!r}")
    return tuple(sorted(value.items()))


def _workdir(option: str, value: object) -> str:
    text = str(value) if hasattr(value, "__fspath__") else value
    if isinstance(text, str) and text.startswith("/") and "\0" not in text:
        return text
    raise _refuse(option, value, "an absolute path")


def _mount(option: str, value: object) -> Mount:
    allowed = '"src:dst", "src:dst:ro", or Mount(source, target, read_only); both paths absolute'
    if isinstance(value, str):
        parts = value.split(":")
        if len(parts) == 3 and parts[2] in ("ro", "rw"):
            value = Mount(parts[0], parts[1], parts[2] == "ro")
        elif len(parts) == 2:
            value = Mount(parts[0], parts[1])
    if not isinstance(value, Mount):
        raise _refuse(option, value, allowed)
    mount = Mount(str(value.source), str(value.target), bool(value.read_only))
    if not mount.source.startswith("/") or not mount.target.startswith("/") or "\0" in mount.source + mount.target:
        raise _refuse(option, value, allowed)
    if normpath(mount.target).strip("/") == "":
        raise _refuse(option, value, allowed, "a mount cannot be the root itself")
    return mount


def _mounts(option: str, value: object) -> tuple[Mount, ...]:
    if isinstance(value, str):
        value = [line.strip() for line in value.splitlines() if line.strip()]
    if isinstance(value, Mount):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise _refuse(option, value, 'a list of "src:dst", "src:dst:ro" or Mount(...)')
    return tuple(_mount(option, one) for one in value)


def _hostname(option: str, value: object) -> str:
    if isinstance(value, str) and len(value) <= 64 and _HOSTNAME.fullmatch(value):
        return value
    raise _refuse(option, value, "a host name of letters, digits, '-' and '.', at most 64 characters")


def _capabilities(option: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise _refuse(option, value, "a list of capability names")
    names = []
    for one in value:
        name = one.upper().removeprefix("CAP_") if isinstance(one, str) else ""
        if name not in CAPABILITIES:
            raise _refuse(option, one, ", ".join(CAPABILITIES), closest(name, CAPABILITIES))
        names.append(name)
    return tuple(sorted(set(names)))


def _seccomp(option: str, value: object) -> str:
    words = ("default", "unconfined")
    text = str(value) if hasattr(value, "__fspath__") else value
    if isinstance(text, str) and text.strip() and "\0" not in text:
        if text in words:
            return text
        if "/" in text or text.endswith(".json"):
            return abspath(text)
    raise _refuse(option, value, '"default", "unconfined", or the path of a profile in Docker\'s JSON format',
                  closest(text, words) if isinstance(text, str) else None)


def _scope(option: str, value: object) -> str:
    if value in ("function", "class", "module"):
        return str(value)
    raise _refuse(option, value, '"function", "class" or "module"',
                  closest(value, ("function", "class", "module")) if isinstance(value, str) else None)


def _timeout(option: str, value: object) -> float:
    return _amount(option, value, "a number of seconds, more than 0", 1e-9, 999_999_999)


def _amount(option: str, value: object, allowed: str, least: float, most: float) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise _refuse(option, value, allowed) from None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most:
        return float(value)
    raise _refuse(option, value, allowed)


def _python(option: str, value: object) -> str:
    text = str(value) if hasattr(value, "__fspath__") else value
    if isinstance(text, str) and text.strip() and "\0" not in text and not text.startswith("-"):
        return text.strip()
    raise _refuse(option, value, 'a program of the image: "python3.13", or an absolute path')


def _hide(option: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) and one for one in value):
        raise _refuse(option, value, "a list of paths, absolute or relative to the home directories")
    if any(".." in one.split("/") for one in value):
        raise _refuse(option, value, "paths without '..'")
    return tuple(value)


#: Every option that is understood, with what reads its value.
OPTIONS: dict[str, Callable[[str, object], Any]] = {
    "image": _image, "network": _network, "user": _user, "env": _env, "workdir": _workdir, "mounts": _mounts,
    "hostname": _hostname, "memory": parse_size, "swap": _swap, "cpus": _cpus, "cpu_weight": _weight,
    "io_weight": _weight, "io": _io, "pids": _whole(1, 4_000_000, "a number of processes and threads"),
    "disk": parse_size, "capabilities": _capabilities, "seccomp": _seccomp, "scope": _scope, "hide": _hide,
    "timeout": _timeout, "python": _python,
}


def closest(name: str, known: Iterable[str]) -> str | None:
    """The question whether a known name was meant; None when none is close."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {found[0]!r}?" if found else None


def parse_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Checks options as users type them and returns them in the form that :class:`SandboxSpec` holds.

    :raises SandboxUsageError: for an unknown name or a value of the wrong kind.
    """
    parsed = {}
    for name, value in options.items():
        read = OPTIONS.get(name)
        if read is None:
            raise SandboxUsageError(f"unknown sandbox option {name!r}", option=name, value=value,
                                    allowed=", ".join(sorted(OPTIONS)), why=closest(name, OPTIONS))
        parsed[name] = read(name, value)
    return parsed


def make_spec(options: Mapping[str, Any], base: SandboxSpec | None = None) -> SandboxSpec:
    """A spec from options as users type them, laid over ``base``."""
    return (base or SandboxSpec()).merged(parse_options(options))


SPEC_FIELDS = tuple(one.name for one in fields(SandboxSpec))
