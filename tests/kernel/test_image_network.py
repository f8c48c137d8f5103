"""Certificates and proxies on the way to a registry: authorities of one's own, and what a proxy gets to see."""

from __future__ import annotations

import base64
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fakeregistry import FakeRegistry
from imagemaker import file, image, layer

from pytest_sandbox import RegistryError
from pytest_sandbox.image.manifest import LayerStack
from pytest_sandbox.image.store import ImageStore

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="not installed: apt-get install openssl")

APP = image([layer([file("big", b"x" * 300_000)])])
HOST = "registry.test"  # never resolved here (RFC 6761): only a proxy can lead there


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR",
                 "DOCKER_CONFIG", "CONTAINERS_REGISTRIES_CONF", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
                 "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server's certificate that it signed for the registry and for loopback."""
    here = tmp_path_factory.mktemp("tls")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=here, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=our authority", "-keyout",
            "ca.key", "-out", "ca.crt")
    (here / "names").write_text(f"subjectAltName=DNS:{HOST},IP:127.0.0.1")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={HOST}", "-keyout", "server.key", "-out", "csr")
    openssl("x509", "-req", "-in", "csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
            "-extfile", "names", "-out", "server.crt")
    return here


@pytest.fixture
def plain() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        registry.put("app", "1", APP)
        yield registry


@pytest.fixture
def secure(certificates: Path) -> Iterator[FakeRegistry]:
    registry = FakeRegistry()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    registry._server.socket = context.wrap_socket(registry._server.socket, server_side=True)
    with registry:
        registry.put("app", "1", APP)
        yield registry


class Proxy(ThreadingHTTPServer):
    """Leads every request to ``target``, whatever host it names, and notes what it was asked for."""

    def __init__(self, target: str, password: str = "") -> None:
        self.target, self.password = target.rsplit(":", 1), password
        self.asked: list[tuple[str, str]] = []
        super().__init__(("127.0.0.1", 0), _ProxyHandler)

    def handle_error(self, *args: object) -> None:
        pass


class _ProxyHandler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _may(self) -> bool:
        given = self.headers.get("Proxy-Authorization", "")
        if self.server.password and given != "Basic " + base64.b64encode(self.server.password.encode()).decode():
            self.send_response(407)
            self.send_header("Proxy-Authenticate", "Basic")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return False
        return True

    def do_CONNECT(self) -> None:
        self.server.asked.append(("CONNECT", self.path))
        if not self._may():
            return
        with socket.create_connection((self.server.target[0], int(self.server.target[1]))) as there:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=self._pump, args=(there, self.connection))
            back.start()
            self._pump(self.connection, there)
            back.join()
        self.close_connection = True

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path))
        if not self._may():
            return
        parts = urlsplit(self.path)
        with socket.create_connection((self.server.target[0], int(self.server.target[1]))) as there:
            lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close",
                     *(f"{name}: {value}" for name, value in self.headers.items()
                       if name.lower() not in ("host", "connection", "proxy-authorization"))]
            there.sendall("\r\n".join([*lines, "", ""]).encode())
            self._pump(there, self.connection)
        self.close_connection = True


@pytest.fixture
def through() -> Iterator[Callable[..., Proxy]]:
    """Starts proxies."""
    running = []

    def start(registry: FakeRegistry, password: str = "", tls: Path | None = None) -> Proxy:
        proxy = Proxy(registry.host, password)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls / "server.crt", tls / "server.key")
            proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        running.append((proxy, thread))
        return proxy

    yield start
    for proxy, thread in running:
        proxy.shutdown()
        proxy.server_close()
        thread.join()


def pull(reference: str, tmp_path: Path) -> LayerStack:
    with ImageStore(tmp_path / "cache") as store:
        return store.resolve(reference)


def test_an_authority_that_nobody_knows_is_refused(secure: FakeRegistry, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"(?i)certificate"):
        pull(f"{secure.host}/app:1", tmp_path)
    assert secure.paths("manifests") == []


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_from_the_environment(secure: FakeRegistry, certificates: Path, tmp_path: Path, name: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(certificates / "ca.crt"))
    assert pull(f"{secure.host}/app:1", tmp_path).digest == APP.digest


def test_an_authority_for_one_host(secure: FakeRegistry, certificates: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home/.config/containers/certs.d" / secure.host
    folder.mkdir(parents=True)
    shutil.copy(certificates / "ca.crt", folder / "ca.crt")
    assert pull(f"{secure.host}/app:1", tmp_path).digest == APP.digest


def test_tls_through_a_proxy_which_sees_only_the_host(
        secure: FakeRegistry, certificates: Path, tmp_path: Path, through: Callable[..., Proxy],
        monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = through(secure, "me:pass")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:pass@127.0.0.1:{proxy.server_address[1]}")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))
    assert pull(f"{HOST}/app:1", tmp_path).digest == APP.digest
    assert {*proxy.asked} == {("CONNECT", f"{HOST}:443")}
    assert not any("Proxy-Authorization" in one.headers for one in secure.seen)


def test_a_proxy_that_wants_a_password(secure: FakeRegistry, certificates: Path, tmp_path: Path,
                                       through: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = through(secure, "me:pass")
    monkeypatch.setenv("HTTPS_PROXY", f"http://me:wrong@127.0.0.1:{proxy.server_address[1]}")
    with pytest.raises(RegistryError, match=r"proxy 127\.0\.0\.1 refuses: 407") as caught:
        pull(f"{HOST}/app:1", tmp_path)
    assert "wrong" not in str(caught.value)
    assert secure.seen == []
    assert len(proxy.asked) == 1, "a refusal lasts: it is not asked again"


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_proxy_that_speaks_tls_itself(
        secure: FakeRegistry, plain: FakeRegistry, certificates: Path, tmp_path: Path, scheme: str,
        through: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = through(secure if scheme == "https" else plain, "me:pass", tls=certificates)
    settings = tmp_path / "registries.conf"
    settings.write_text(f'[[registry]]\nlocation = "{HOST}"\ninsecure = {"true" if scheme == "http" else "false"}\n')
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(settings))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.crt"))
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"https://me:pass@127.0.0.1:{proxy.server_address[1]}")
    if scheme == "http":  # TLS is tried first, and has to fail as it does where nobody speaks it
        monkeypatch.setenv("HTTPS_PROXY", f"https://me:pass@127.0.0.1:{proxy.server_address[1]}")
    assert pull(f"{HOST}/app:1", tmp_path).digest == APP.digest
    assert {one for one, _ in proxy.asked} == ({"CONNECT"} if scheme == "https" else {"CONNECT", "GET"})


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:1", "http://:80", "http://me:secret@host:port"])
def test_a_proxy_that_cannot_be_used(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(RegistryError, match=r"proxy.*\n?.*NO_PROXY") as caught:
        pull(f"{HOST}/app:1", tmp_path)
    assert "secret" not in str(caught.value)


def test_plain_http_through_a_proxy(plain: FakeRegistry, tmp_path: Path, through: Callable[..., Proxy],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "registries.conf"
    settings.write_text(f'[[registry]]\nlocation = "{HOST}"\ninsecure = true\n')
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(settings))
    proxy = through(plain)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_address[1]}")
    assert pull(f"{HOST}/app:1", tmp_path).digest == APP.digest
    assert ("GET", f"http://{HOST}/v2/app/manifests/1") in proxy.asked


def test_no_proxy_and_loopback_go_straight(plain: FakeRegistry, tmp_path: Path, through: Callable[..., Proxy],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_sandbox.image.hosts import proxy_for

    proxy = through(plain)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_address[1]}")
    assert pull(f"{plain.host}/app:1", tmp_path).digest == APP.digest
    assert proxy.asked == []
    assert proxy_for("https", HOST) is not None
    monkeypatch.setenv("NO_PROXY", ".test")
    assert proxy_for("https", HOST) is None
