"""HTTP/1.1 to registries: connections that are kept and shared by threads, TLS, proxies. Used by :mod:`.transport`.

A thin layer over the standard library's ``http.client`` (see docs/design/0010). What that does not do is done here:
keeping connections, telling a body that ends early from one that ends, and HTTPS through an HTTPS proxy.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from http.client import HTTPException
from urllib.parse import SplitResult, unquote, urlsplit

_CONNECT = 15.0  # seconds
_SILENCE = 60.0  # seconds without a byte
_KEPT = 8  # idle connections to one place
_DRAINED = 1 << 16  # bytes of an unwanted body that are cheaper to read than a new connection is to make

_Place = tuple[str, str]


class ProxyRefused(HTTPException):
    """A proxy answered, and does not let us through. ``status`` is its answer's."""

    def __init__(self, proxy: str, said: str) -> None:
        super().__init__(f"the proxy {proxy} refuses: {said}")
        self.status = int(said[:3]) if said[:3].isdigit() else 0


class Response:
    """An answer whose body has not been read. The caller ends it with :meth:`release` or :meth:`close`."""

    def __init__(self, raw: http.client.HTTPResponse, connection: http.client.HTTPConnection, back: Callable[
            [http.client.HTTPConnection], None]) -> None:
        self._raw, self._connection, self._back = raw, connection, back
        self.status = raw.status

    def header(self, name: str) -> str | None:
        return self._raw.headers.get(name)

    def headers(self, name: str) -> list[str]:
        """A header that may be there several times."""
        return list(self._raw.headers.get_all(name) or ())

    def read(self, most: int) -> bytes:
        """What there is of the body, up to ``most`` bytes; none at its end.

        :raises HTTPException: when the connection ends before the body does.
        :raises OSError: when it breaks.
        """
        data = self._raw.read1(most)  # read() would lose what came before a connection broke
        if not data and self._raw.length:  # http.client is silent about this
            raise http.client.IncompleteRead(b"", self._raw.length)
        return data

    def release(self) -> None:
        """Keeps the connection for the next request if the body is read, or nearly."""
        try:
            left = self._raw.length
            if left is not None and left <= _DRAINED and not self._raw.isclosed():
                self._raw.read()
            if self._raw.isclosed() and not self._raw.will_close:
                self._back(self._connection)
                return
        except (HTTPException, OSError):
            pass
        self.close()

    def close(self) -> None:
        """Ends the connection."""
        self._raw.close()
        self._connection.close()


class Connections:
    """Connections to registries and to where they redirect. ``close`` ends all that are idle.

    :param tls: how to verify a host.
    :param proxy: the proxy's address for a scheme and host; None for a direct way.
    """

    def __init__(self, tls: Callable[[str], ssl.SSLContext], proxy: Callable[[str, str], str | None]) -> None:
        self._tls, self._proxy = tls, proxy
        self._idle: dict[_Place, list[http.client.HTTPConnection]] = {}
        self._closed = False
        self._mutex = threading.Lock()

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            idle = [one for kept in self._idle.values() for one in kept]
            self._idle.clear()
        for one in idle:
            one.close()

    def request(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        """Sends a request and reads the answer's head. Redirects are answers.

        :param url: already quoted.
        :raises HTTPException: when what comes back is not HTTP, or a proxy refuses.
        :raises OSError: when there is no connection, or none that can be verified.
        """
        parts = urlsplit(url)
        place = parts.scheme, parts.netloc.rpartition("@")[2]
        target = f"{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
        sent = dict(headers)
        proxy = self._proxy(*place)
        if proxy is not None and parts.scheme == "http":
            target = f"http://{place[1]}{target}"
            sent.update(_proxy_login(_split_proxy(proxy)))
        while True:
            connection = self._take(place)
            fresh = connection is None
            if connection is None:
                connection = self._open(parts, proxy)
            try:
                connection.request(method, target, body, sent)
                raw = connection.getresponse()
            except BaseException as error:
                connection.close()
                if not fresh and isinstance(error, (http.client.RemoteDisconnected, ConnectionError)):
                    continue  # the other side was tired of waiting: that says nothing about the request
                raise
            return Response(raw, connection, lambda one: self._keep(place, one))

    def _take(self, place: _Place) -> http.client.HTTPConnection | None:
        while True:
            with self._mutex:
                kept = self._idle.get(place)
                if not kept:
                    return None
                connection = kept.pop()
            if connection.sock is not None and not _readable(connection.sock):
                return connection
            connection.close()  # an end of file, or an answer that nobody asked for

    def _keep(self, place: _Place, connection: http.client.HTTPConnection) -> None:
        with self._mutex:
            kept = self._idle.setdefault(place, [])
            if not self._closed and len(kept) < _KEPT:
                kept.append(connection)
                return
        connection.close()

    def _open(self, parts: SplitResult, proxy: str | None) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        connection: http.client.HTTPConnection
        if proxy is None:
            connection = (http.client.HTTPConnection(host, port, timeout=_CONNECT) if parts.scheme == "http" else
                          http.client.HTTPSConnection(host, port, timeout=_CONNECT,
                                                      context=self._tls(parts.netloc.rpartition("@")[2])))
        else:
            via = _split_proxy(proxy)
            there = via.hostname or "", via.port or (443 if via.scheme == "https" else 80)
            if parts.scheme == "http":
                connection = http.client.HTTPConnection(*there, timeout=_CONNECT)
            else:
                connection = http.client.HTTPSConnection(*there, timeout=_CONNECT,
                                                         context=self._tls(parts.netloc.rpartition("@")[2]))
                connection.set_tunnel(host, port, _proxy_login(via))
            if via.scheme == "https":
                _speak_tls_to(connection, via, self._tls(via.netloc.rpartition("@")[2]), parts.scheme == "https")
        refused = ""
        try:
            connection.connect()
        except UnicodeError as error:  # a label of more than 63 characters
            raise http.client.InvalidURL(f"{host!r} is not a host name: {error}") from None
        except BaseException as error:
            connection.close()
            if not isinstance(error, OSError) or not str(error).startswith("Tunnel connection failed"):
                raise
            refused = str(error).partition(": ")[2]
        if refused:  # out here, where the other error and what it keeps open are gone
            raise ProxyRefused(via.hostname or "", refused)
        assert connection.sock is not None
        connection.sock.settimeout(_SILENCE)
        return connection


def _split_proxy(proxy: str) -> SplitResult:
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def what_is_wrong_with(proxy: str) -> str | None:
    """Why a proxy's address cannot be used, without its password; None if it can."""
    try:
        parts = _split_proxy(proxy)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port):
            return None
    except ValueError as error:  # a port that is no number
        return f"the proxy's address cannot be read: {error}"
    return f"the proxy {parts.scheme}://{parts.hostname} cannot be used"


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {b64encode(login).decode()}"}


def _readable(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


# TLS to the proxy itself. Inside of it TLS to the registry is wanted, and ssl can wrap nothing but a file descriptor: a
# thread carries the bytes between the proxy's connection and a pair of sockets.

def _speak_tls_to(connection: http.client.HTTPConnection, proxy: SplitResult, context: ssl.SSLContext,
                  tunnel: bool) -> None:
    def create(address: tuple[str, int], timeout: float, source: tuple[str, int] | None) -> socket.socket:
        secure = context.wrap_socket(socket.create_connection(address, timeout, source), server_hostname=proxy.hostname)
        if not tunnel:
            return secure
        ours, theirs = socket.socketpair()
        threading.Thread(target=_carry, args=(secure, theirs), name="sandbox-proxy", daemon=True).start()
        return _End(fileno=ours.detach())

    connection._create_connection = create  # type: ignore[attr-defined]  # "to allow unit tests to replace" it, it says


class _End(socket.socket):
    """One end of a pair, where ``http.client`` has no TCP_NODELAY to set."""

    def setsockopt(self, *_: object) -> None: ...


def _carry(secure: ssl.SSLSocket, plain: socket.socket) -> None:
    """Ends with either side."""
    with secure, plain:
        poll = select.poll()
        poll.register(secure, select.POLLIN)
        poll.register(plain, select.POLLIN)
        try:
            while True:
                ready = [secure.fileno()] if secure.pending() else [fd for fd, _ in poll.poll()]
                if secure.fileno() in ready:
                    secure.settimeout(0)
                    try:
                        data = secure.recv(1 << 16)
                    except ssl.SSLWantReadError:  # TLS's own business
                        continue
                    if not data:
                        return
                    plain.sendall(data)
                else:
                    data = plain.recv(1 << 16)
                    if not data:
                        return
                    secure.settimeout(_SILENCE)
                    secure.sendall(data)
        except OSError:
            return
