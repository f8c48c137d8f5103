"""A registry for tests, on loopback, that does what it is told, also what no real one would do. A thread a request."""

from __future__ import annotations

import base64
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from imagemaker import Image, digest


@dataclass
class Fault:
    """What goes wrong with requests whose path holds ``match``, the first ``times`` times.

    ``status`` answers that. ``cut`` ends the connection after so many bytes. ``flip`` changes the byte at that place.
    ``replace`` sends other bytes. ``endless`` goes on for ever. ``redirect`` sends elsewhere. ``deaf`` ignores Range.
    ``wrong_range`` answers another one. ``silent`` sends no length. ``together`` answers nobody until so many ask.
    """

    match: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"errors": [{"code": "UNKNOWN", "message": "told to"}]}'
    cut: int | None = None
    flip: int | None = None
    replace: bytes | None = None
    endless: bool = False
    redirect: str | None = None
    deaf: bool = False
    wrong_range: bool = False
    silent: bool = False
    together: threading.Barrier | None = None


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""
    peer: tuple[str, int] = ("", 0)


class FakeRegistry:
    """A server from entering to leaving the ``with`` block.

    :param auth: ``""``, ``"basic"`` or ``"token"``; the user is ``user``, the password ``secret``.
    """

    def __init__(self, *, auth: str = "", token_seconds: float = 60, oauth: bool = False) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.faults: list[Fault] = []
        self.seen: list[Seen] = []
        self.auth, self.token_seconds, self.oauth = auth, token_seconds, oauth
        self.tokens: dict[str, float] = {}
        self.hang_up = False  # after every answer, without a word
        self.mutex = threading.Lock()
        registry = self

        class Handler(_Handler):
            owner = registry

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # server_close waits for them: the client has to let go of its connections
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> FakeRegistry:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._server.server_address[1]}"

    def put(self, repository: str, tag: str, image: Image) -> str:
        """Stores an image; gives its reference."""
        self.blobs.update(image.blobs)
        self.put_manifest(repository, tag, image.manifest)
        return f"{self.host}/{repository}:{tag}"

    def put_manifest(self, repository: str, tag: str, body: bytes) -> None:
        media_type = json.loads(body).get("mediaType", "application/vnd.oci.image.manifest.v1+json")
        self.manifests[repository, tag] = self.manifests[repository, digest(body)] = media_type, body

    def fault(self, match: str, **how: object) -> Fault:
        fault = Fault(match, **how)  # type: ignore[arg-type]
        self.faults.append(fault)
        return fault

    def paths(self, part: str = "") -> list[str]:
        return [one.path for one in self.seen if part in one.path]


class _Server(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        pass  # clients may be killed


class _Handler(BaseHTTPRequestHandler):
    owner: FakeRegistry
    protocol_version = "HTTP/1.1"
    timeout = 20
    disable_nagle_algorithm = True  # headers and body are written apart

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._note(body)
        fields = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        right = fields.get("refresh_token") == "identity" or (fields.get("username"), fields.get("password")) == (
            "user", "secret")
        self._token("access_token") if right else self._send(401, b"{}")

    def do_GET(self) -> None:
        self._get()
        self.close_connection = self.close_connection or self.owner.hang_up

    def _get(self) -> None:
        self._note(b"")
        fault = self._fault()
        if fault is not None and fault.redirect is not None:
            self._send(307, b"", {"Location": fault.redirect.replace("SELF", f"http://{self.owner.host}{self.path}")})
        elif fault is not None and fault.status is not None:
            self._send(fault.status, fault.body, fault.headers)
        elif self.path.startswith("/token"):
            self._token_get()
        elif self._let_in():
            self._answer(fault)

    def _note(self, body: bytes) -> None:
        with self.owner.mutex:
            self.owner.seen.append(Seen(self.command, self.path, dict(self.headers), body, self.client_address))

    def _fault(self) -> Fault | None:
        with self.owner.mutex:
            for fault in self.owner.faults:
                if fault.times > 0 and fault.match in self.path:
                    fault.times -= 1
                    return fault
        return None

    def _let_in(self) -> bool:
        given = self.headers.get("Authorization", "")
        if self.owner.auth == "basic" and given != "Basic " + base64.b64encode(b"user:secret").decode():
            self._send(401, b"{}", {"WWW-Authenticate": 'Basic realm="here"'})
            return False
        alive = self.owner.tokens.get(given.removeprefix("Bearer "), 0) >= time.monotonic()
        if self.owner.auth == "token" and not alive:
            self._send(401, b"{}", {"WWW-Authenticate": f'Bearer realm="http://{self.owner.host}/token",'
                                                        f'service="here",scope="repository:any:pull"'})
            return False
        return True

    def _token_get(self) -> None:
        if self.owner.oauth:
            self._send(405, b"{}")
        elif self.headers.get("Authorization", "") in ("", "Basic " + base64.b64encode(b"user:secret").decode()):
            self._token("token")
        else:
            self._send(401, b"{}")

    def _token(self, name: str) -> None:
        with self.owner.mutex:
            token = f"t{len(self.owner.tokens)}"
            self.owner.tokens[token] = time.monotonic() + self.owner.token_seconds
        self._send(200, json.dumps({name: token}).encode())

    def _answer(self, fault: Fault | None) -> None:
        found = re.fullmatch(r"/v2/(?:(.+)/(manifests|blobs)/([^/]+))?", urlsplit(self.path).path)
        if found is None:
            self._send(404, b"{}")
        elif found[2] == "manifests":
            media_type, body = self.owner.manifests.get((found[1], found[3]), ("", b""))
            if not body:
                self._send(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
            else:
                self._content(body, fault, {"Content-Type": media_type, "Docker-Content-Digest": digest(body)})
        elif found[2] == "blobs":
            body = self.owner.blobs.get(found[3], b"")
            self._content(body, fault, {}) if found[3] in self.owner.blobs else self._send(404, b"{}")
        else:
            self._send(200, b"{}")

    def _content(self, body: bytes, fault: Fault | None, headers: dict[str, str]) -> None:
        fault = fault or Fault("")
        if fault.together is not None:
            fault.together.wait(20)
        if fault.replace is not None:
            body = fault.replace
            headers.pop("Docker-Content-Digest", None)
        if fault.flip is not None:
            body = body[:fault.flip] + bytes([body[fault.flip] ^ 1]) + body[fault.flip + 1:]
        status, start = 200, 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and not fault.deaf:
            status, start = 206, int(wanted[1])
            shown = start + (7 if fault.wrong_range else 0)
            headers["Content-Range"] = f"bytes {shown}-{len(body) - 1}/{len(body)}"
        body = body[start:]
        headers.update(fault.headers)
        if fault.endless or fault.silent:
            self._send(status, None, {**headers, "Connection": "close"})
            try:
                self.wfile.write(body)
                while fault.endless:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
            self.close_connection = True
        elif fault.cut is not None:
            self._send(status, None, {**headers, "Content-Length": str(len(body))})
            self.wfile.write(body[:fault.cut])
            self.close_connection = True
        else:
            self._send(status, body, headers)

    def _send(self, status: int, body: bytes | None, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True




class RawServer:
    """Sends the same bytes to whoever connects, and hangs up."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                one, _ = self._socket.accept()
            except OSError:
                return
            with one:
                try:
                    one.recv(1 << 16)
                    one.sendall(self._answer)
                    one.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
