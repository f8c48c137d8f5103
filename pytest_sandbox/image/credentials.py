"""Names and passwords for registries, from where ``docker login`` and ``podman login`` put them. Only read here.

Files: containers-auth.json(5) and Docker's ``config.json``; helpers: the ``docker-credential-*`` protocol of
https://github.com/docker/docker-credential-helpers.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RegistryAuthError

_HELPER_SECONDS = 60  # one that asks the user through a window may take a while


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password, or an identity token in place of them. Never printed."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


def find_credentials(host: str, repository: str) -> Credentials | None:
    """Who the user is at ``host``, for ``repository``; None for anonymous use.

    :raises RegistryAuthError: when a helper is configured and fails, since pulling anonymously then would surprise.
    """
    keys = _keys(host, repository)
    for path in _files():
        config = _read(path)
        helpers = config.get("credHelpers")
        helper = next((helpers[key] for key in keys if key in helpers), None) if isinstance(helpers, Mapping) else None
        helper = helper or config.get("credsStore")
        if isinstance(helper, str) and helper:
            found = _ask(helper, _server(host), host)
            if found is not None:
                return found
        auths = config.get("auths")
        if isinstance(auths, Mapping):
            entry = next((auths[key] for key in keys if key in auths), None)
            if isinstance(entry, Mapping) and (found := _entry(entry)) is not None:
                return found
    return None


def _files() -> Iterator[Path]:
    given = os.environ.get("REGISTRY_AUTH_FILE")
    if given:
        yield Path(given)
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime) / "containers/auth.json"
    yield Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")) / "containers/auth.json"
    yield Path(os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")) / "config.json"


def _server(host: str) -> str:
    return "https://index.docker.io/v1/" if host == "registry-1.docker.io" else host


def _keys(host: str, repository: str) -> list[str]:
    """What entries for this repository may be called, the closest first."""
    names = [host, f"https://{host}", f"http://{host}", f"https://{host}/v1/", f"https://{host}/v2/"]
    if host == "registry-1.docker.io":
        names = ["docker.io", "https://index.docker.io/v1/", "index.docker.io", *names]
    parts = repository.split("/")
    return [f"{names[0]}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)] + names


def _read(path: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _entry(entry: Mapping[str, Any]) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials("", "", token)
    packed = entry.get("auth")
    if isinstance(packed, str) and packed:
        try:
            user, colon, secret = base64.b64decode(packed).decode().partition(":")
        except ValueError:
            return None
        return Credentials(user, secret.rstrip("\0")) if colon else None
    name, password = entry.get("username"), entry.get("password")
    return Credentials(name, password) if isinstance(name, str) and isinstance(password, str) and name else None


def _ask(helper: str, server: str, host: str) -> Credentials | None:
    program = f"docker-credential-{helper}"

    def failed(why: str) -> RegistryAuthError:
        return RegistryAuthError(f"no credentials for {host}", reference=host, why=why,
                                 remedy=f"Check that {program} is installed and works, or log in again.")

    if not re.fullmatch(r"[A-Za-z0-9_.-]+", helper):
        raise failed(f"{helper!r} is not a credential helper's name")
    try:
        done = subprocess.run([program, "get"], input=server.encode(), capture_output=True, timeout=_HELPER_SECONDS,
                              check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise failed(str(error)) from None
    if done.returncode != 0:
        said = (done.stdout + done.stderr).decode(errors="replace").strip()
        if "credentials not found" in said:
            return None
        raise failed(f"{program}: {said[:200] or f'exit status {done.returncode}'}")
    try:
        answer = json.loads(done.stdout)
        name, secret = answer["Username"], answer["Secret"]
    except (ValueError, KeyError, TypeError):
        raise failed(f"{program} gave an answer that cannot be read") from None
    if not isinstance(name, str) or not isinstance(secret, str):
        raise failed(f"{program} gave an answer that cannot be read")
    return Credentials("", "", secret) if name == "<token>" else Credentials(name, secret)
