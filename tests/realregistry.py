"""Debian's ``docker-registry`` on loopback: open, with passwords, or with a token server."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

NEEDED = {"docker-registry": "docker-registry", "skopeo": "skopeo", "umoci": "umoci", "htpasswd": "apache2-utils",
          "openssl": "openssl"}


def missing() -> str:
    """Why these tests cannot run here, with the remedy; empty when they can."""
    absent = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    return f"not installed: apt-get install {' '.join(absent)}" if absent else ""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def registry(scratch: Path, auth: str = "") -> Iterator[str]:
    """A running registry's ``host:port``. The user is ``user``, the password ``secret``."""
    scratch.mkdir(parents=True, exist_ok=True)
    port = free_port()
    config: dict[str, object] = {
        "version": "0.1", "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(scratch / "data")}}, "http": {"addr": f"127.0.0.1:{port}"}}
    server = None
    if auth == "basic":
        subprocess.run(["htpasswd", "-Bbc", "-C", "4", str(scratch / "htpasswd"), "user", "secret"], check=True,
                       capture_output=True)
        config["auth"] = {"htpasswd": {"realm": "here", "path": str(scratch / "htpasswd")}}
    elif auth == "token":
        server = TokenServer(scratch)
        config["auth"] = {"token": {"realm": f"http://127.0.0.1:{server.server_address[1]}/token", "service": "here",
                                    "issuer": "us", "rootcertbundle": str(scratch / "cert.pem")}}
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    (scratch / "config.yml").write_text(json.dumps(config))  # YAML is a superset
    with open(scratch / "log", "wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(scratch / "config.yml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((scratch / "log").read_text()) from None
                time.sleep(0.02)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)
        if server is not None:
            server.shutdown()
            server.server_close()


class TokenServer(ThreadingHTTPServer):
    """Signs tokens as https://distribution.github.io/distribution/spec/auth/jwt/ asks; lets in ``user``, and anonymous
    users to pull from names that begin with ``public/``."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=us",
                        "-keyout", str(scratch / "key.pem"), "-out", str(scratch / "cert.pem")], check=True,
                       capture_output=True)
        body = (scratch / "cert.pem").read_text().split("-----")[2]
        self.certificate = "".join(body.split())
        super().__init__(("127.0.0.1", 0), _TokenHandler)

    def token(self, user: str, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, _, rest = scope.partition(":")
            name, _, actions = rest.rpartition(":")
            allowed = actions.split(",") if user else ["pull"] if name.startswith("public/") else []
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]}
        claims = {"iss": "us", "sub": user, "aud": "here", "exp": now + 60, "nbf": now - 10, "iat": now,
                  "jti": secrets.token_hex(8), "access": access}
        signed = b".".join(_base64(json.dumps(one).encode()) for one in (head, claims))
        signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", str(self.scratch / "key.pem")], input=signed,
                                   check=True, capture_output=True).stdout
        return (signed + b"." + _base64(signature)).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class _TokenHandler(BaseHTTPRequestHandler):
    server: TokenServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Basic ")
        user, _, password = base64.b64decode(given).decode().partition(":")
        status, body = 401, b"{}"
        if not given or (user, password) == ("user", "secret"):
            scopes = parse_qs(urlsplit(self.path).query).get("scope", [])
            status, body = 200, json.dumps({"token": self.server.token(user, scopes)}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
