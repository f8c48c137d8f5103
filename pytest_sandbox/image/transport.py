"""Requests to one registry: TLS, proxies, logging in, redirects, and trying again. Used by :mod:`.registry`."""

from __future__ import annotations

import base64
import errno
import json
import random
import re
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, IncompleteRead, InvalidURL, RemoteDisconnected
from ssl import SSLCertVerificationError, SSLEOFError, SSLError
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, quote, urlencode, urljoin, urlsplit

from ..errors import RegistryAuthError, RegistryError
from .hosts import Endpoint, is_loopback, proxy_for, tls_context
from .httpclient import Connections, ProxyRefused, Response, what_is_wrong_with
from .printable import printable

if TYPE_CHECKING:
    from .credentials import Credentials

_TRIES = 5
_LONGEST_PAUSE = 30.0  # seconds; a registry that wants more patience than that gets an error that says so
_REDIRECTS = 8
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_CHALLENGE = re.compile(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))|([A-Za-z][\w-]*)')
_MAX_TOKEN = 1 << 20
_PLACE = "sandbox_place"  # attribute of a connection's error: the host that it was with
_IN_URLS = "!#$%&'()*+,/:;=?@[]~"  # what a redirect's address may hold as it is


@dataclass(frozen=True, slots=True)
class Answer:
    """A response whose body has not been read. The caller reads or closes it. ``url`` is for messages: no secrets."""

    response: Response
    url: str


class Transport:
    """Talks to one endpoint for one repository, from several threads. Lives as long as its source.

    :param reference: what to name in errors.
    """

    def __init__(self, endpoint: Endpoint, reference: str) -> None:
        self.endpoint = endpoint
        self._reference = reference
        self._connections = Connections(tls_context, self._proxy)
        self._scheme: str | None = None
        self._authorization: str | None = None
        self._credentials: Credentials | None = None
        self._looked = False
        self._mutex = threading.RLock()

    def close(self) -> None:
        """Ends all connections."""
        self._connections.close()

    def get(self, path: str, headers: Mapping[str, str]) -> Answer:
        """GET below ``/v2/<repository>/``. Answers 200, 206, 404 and 416 come back, all else is an error.

        :raises RegistryAuthError: when the registry refuses.
        :raises RegistryError: after the tries that make sense.
        """
        tried_token: str | None = None
        for attempt in range(_TRIES + 1):
            last = attempt == _TRIES
            authorization = self._authorization
            try:
                answer = self._follow(f"{self._base()}/v2/{self.endpoint.repository}/{path}", headers, authorization)
            except (HTTPException, OSError) as error:
                if last or isinstance(error, RegistryError) or _is_lasting(error) or (
                        isinstance(error, socket.gaierror) and attempt >= 2):
                    raise self._broken(error) from None
                self.pause(attempt)
                continue
            status = answer.response.status
            if status in (200, 206, 404, 416):
                return answer
            said = self._said(answer)
            if (status == 401 and tried_token is None) or (status == 401 and authorization != self._authorization):
                tried_token = authorization or ""
                self._log_in(answer.response.headers("WWW-Authenticate"), authorization)
                continue
            if status in (401, 403):
                raise self._refused(answer, said)
            if status in _AGAIN and not last:
                self.pause(attempt, answer.response.header("Retry-After"))
                continue
            remedy = "Log in (docker login, podman login) for a higher limit, or wait." if status == 429 else None
            raise self._error(f"{self.endpoint.host} answered {status}{said}", answer.url, status, remedy)
        raise self._error(f"{self.endpoint.host} keeps asking for a login", None, 401)

    def _follow(self, url: str, headers: Mapping[str, str], authorization: str | None) -> Answer:
        origin = _origin(url)
        for _ in range(_REDIRECTS):
            sent = {"User-Agent": _user_agent(), "Accept-Encoding": "identity", **headers}
            if authorization is not None and _origin(url) == origin:
                sent["Authorization"] = authorization  # nobody else gets it, wherever a redirect leads
            response = self._send("GET", url, sent)
            if response.status not in (301, 302, 303, 307, 308):
                return Answer(response, _shown(url))
            location = response.header("Location")
            response.release()
            if not location:
                raise self._error(f"{self.endpoint.host} redirects to nowhere", url, response.status)
            parts = _split(location, url)
            target = parts.geturl()
            if parts.scheme not in ("http", "https") or not parts.hostname:
                shown = _shown(location)
                raise self._error(f"{self.endpoint.host} redirects to {shown!r:.100}", url, response.status)
            if url.startswith("https:") and parts.scheme == "http":
                raise self._error(f"{self.endpoint.host} redirects from HTTPS to plain HTTP", url, response.status)
            url = target
        raise self._error(f"{self.endpoint.host} redirects without end", url, None)

    def _base(self) -> str:
        """The registry's address. TLS, unless it speaks only plain HTTP and is allowed to."""
        with self._mutex:
            if self._scheme is None:
                self._scheme = "https"
                if is_loopback(self.endpoint.host) and self.endpoint.insecure and self._speaks_plainly():
                    self._scheme = "http"  # tried first, without credentials: reading all authorities takes 70 ms
                elif self.endpoint.insecure:
                    try:
                        self._send("GET", f"https://{self.endpoint.host}/v2/", {}).release()
                    except (HTTPException, OSError) as error:
                        if not _is_not_tls(error):
                            self._scheme = None
                            raise
                        self._scheme = "http"
            return f"{self._scheme}://{self.endpoint.host}"

    def _speaks_plainly(self) -> bool:
        try:
            answer = self._send("GET", f"http://{self.endpoint.host}/v2/", {})
        except (HTTPException, OSError):
            return False
        answer.release()
        return answer.status in (200, 401)

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Response:
        try:
            return self._connections.request(method, quote(url, safe=_IN_URLS, encoding="latin-1"), headers, body)
        except (HTTPException, OSError) as error:
            setattr(error, _PLACE, urlsplit(url).netloc.rpartition("@")[2])  # a redirect may have led elsewhere
            raise

    def _proxy(self, scheme: str, host: str) -> str | None:
        proxy = proxy_for(scheme, host)
        if proxy is not None and (wrong := what_is_wrong_with(proxy)) is not None:
            raise self._error(wrong, None, None, "Only HTTP and HTTPS proxies are understood; NO_PROXY excepts hosts.")
        return proxy

    def pause(self, attempt: int, wanted: str | None = None) -> None:
        """Waits before the next try; ``wanted`` is the registry's own wish (Retry-After)."""
        pause = min(0.25 * 2 ** attempt, 8) * (0.5 + random.random() / 2)
        if wanted is not None and re.fullmatch("[0-9]+", wanted):
            if len(wanted) > 9 or int(wanted) > _LONGEST_PAUSE:
                raise self._error(f"{self.endpoint.host} wants no request for {wanted[:12]} seconds", None, 429,
                                  "Log in (docker login, podman login) for a higher limit, or wait.")
            pause = max(pause, float(wanted))
        time.sleep(pause)

    # Logging in.

    def _log_in(self, challenges: list[str], used: str | None) -> None:
        """Gets what the registry asks for: once for all threads that were turned away with the same thing."""
        with self._mutex:
            if self._authorization != used:
                return
            if not self._looked:
                from .credentials import find_credentials

                self._credentials = find_credentials(self.endpoint.host, self.endpoint.repository)
                self._looked = True
            known = self._credentials
            offered = _offered(challenges)
            bearer, basic = offered.get("bearer"), "basic" in offered
            if bearer is not None:
                self._authorization = f"Bearer {self._token(bearer, known)}"
            elif basic and known is not None and known.username:
                self._authorization = _basic(known)
            else:
                self._authorization = None
                raise self._login_needed(f"it wants {'a name and password' if basic else 'a login of an unknown kind'}")

    def _token(self, challenge: Mapping[str, str], known: Credentials | None) -> str:
        """A token by GET (https://distribution.github.io/distribution/spec/auth/token/), or by OAuth2's POST."""
        realm = challenge.get("realm", "")
        parts = _split(realm)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise self._error(f"{self.endpoint.host} names no place to log in", None, 401)
        if parts.scheme == "http" and self._scheme == "https" and not is_loopback(parts.netloc):
            raise self._error(f"{self.endpoint.host} wants us to log in over plain HTTP", realm, 401)
        fields = {"service": challenge.get("service", ""),
                  "scope": challenge.get("scope") or f"repository:{self.endpoint.repository}:pull"}
        fields = {name: value for name, value in fields.items() if value}
        if known is not None and known.identity_token:
            fields.update(grant_type="refresh_token", client_id="pytest-sandbox", refresh_token=known.identity_token)
            return self._ask_token(realm, "POST", fields, None)
        try:
            return self._ask_token(realm, "GET", fields, known)
        except RegistryError as error:
            if error.status not in (404, 405) or known is None:
                raise
        fields.update(grant_type="password", client_id="pytest-sandbox", username=known.username,
                      password=known.password)
        return self._ask_token(realm, "POST", fields, None)

    def _ask_token(self, realm: str, method: str, fields: Mapping[str, str], known: Credentials | None) -> str:
        headers = {"User-Agent": _user_agent(), "Accept": "application/json"}
        url, body = realm, None
        if method == "GET":
            url = f"{realm}{'&' if urlsplit(realm).query else '?'}{urlencode(fields)}"
        else:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode(fields).encode()
        for attempt in range(_TRIES + 1):
            try:
                if method == "GET":
                    response = self._follow(url, headers, _basic(known) if known is not None else None).response
                else:
                    response = self._send(method, url, headers, body)
                data = response.read(_MAX_TOKEN + 1)
                response.release()
            except (HTTPException, OSError) as error:
                if isinstance(error, RegistryError) or _is_lasting(error) or attempt == _TRIES:
                    raise self._broken(error) from None
                self.pause(attempt)
                continue
            if response.status in _AGAIN and attempt < _TRIES:
                self.pause(attempt, response.header("Retry-After"))
                continue
            break
        if response.status in (400, 401, 403):
            raise self._login_needed(f"{urlsplit(realm).hostname} refuses the login ({response.status})")
        if response.status != 200:
            raise self._error(f"{urlsplit(realm).hostname} answered {response.status}", realm, response.status)
        try:
            document = json.loads(data) if len(data) <= _MAX_TOKEN else {}
            token = document.get("token") or document.get("access_token")
        except (ValueError, AttributeError):
            token = None
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise self._error(f"{urlsplit(realm).hostname} gave no token", realm, response.status)
        return token

    # Errors.

    def _said(self, answer: Answer) -> str:
        """The registry's own words, bounded."""
        try:
            data = answer.response.read(4096)
            answer.response.close()
            errors = json.loads(data)["errors"]
            return ": " + printable("; ".join(f"{one.get('code')} {one.get('message') or ''}".strip()
                                               for one in errors)[:300])
        except (HTTPException, OSError, ValueError, KeyError, TypeError, AttributeError):
            return ""

    def _refused(self, answer: Answer, said: str) -> RegistryAuthError:
        who = "these credentials" if self._credentials else "anonymous users"
        return RegistryAuthError(
            f"image {self._reference!r} cannot be pulled", reference=self._reference, url=answer.url,
            status=answer.response.status, why=f"{self.endpoint.host} refuses it to {who}{said}",
            remedy="Check the name (registries answer so for what does not exist, too), "
                   f"or log in: docker login {self.endpoint.host}, or podman login {self.endpoint.host}.")

    def _login_needed(self, why: str) -> RegistryAuthError:
        return RegistryAuthError(
            f"image {self._reference!r} cannot be pulled", reference=self._reference, status=401,
            why=f"{self.endpoint.host}: {why}",
            remedy=f"Log in: docker login {self.endpoint.host}, or podman login {self.endpoint.host}.")

    def _error(self, why: str, url: str | None, status: int | None, remedy: str | None = None) -> RegistryError:
        return RegistryError(f"image {self._reference!r} cannot be pulled", reference=self._reference,
                             url=_shown(url) if url else None, status=status, why=why, remedy=remedy)

    def _broken(self, error: BaseException) -> RegistryError:
        if isinstance(error, RegistryError):
            return error
        place = getattr(error, _PLACE, self.endpoint.host)
        if isinstance(error, ProxyRefused):
            return self._error(printable(f"{place}: {error}"), None, None, "Check HTTPS_PROXY and NO_PROXY.")
        if isinstance(error, SSLError) and _is_lasting(error):
            return self._error(
                f"{place}: {error}", None, None,
                f"Put its authority into certs.d/{place}/ca.crt (containers-certs.d(5)) or SSL_CERT_FILE; "
                "for a registry without TLS, say insecure = true in registries.conf.")
        remedy = "Check the network, the name, and HTTPS_PROXY and NO_PROXY."
        if isinstance(error, TimeoutError):
            return self._error(f"{place} does not answer", None, None, remedy)
        said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        if isinstance(error, HTTPException) and not isinstance(
                error, (RemoteDisconnected, IncompleteRead, InvalidURL)):
            said = f"its answer is not HTTP that can be read: {said}"
        return self._error(f"{place}: {printable(said)[:300]}", None, None, remedy)


def _is_lasting(error: BaseException) -> bool:
    """Whether trying again is in vain: there is no such host, no way to it, or TLS or a proxy refuse."""
    if isinstance(error, socket.gaierror):
        return error.errno != socket.EAI_AGAIN
    if isinstance(error, OSError) and error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return True
    if isinstance(error, ProxyRefused):
        return 400 <= error.status < 500
    return isinstance(error, SSLError) and not isinstance(error, SSLEOFError)


def _is_not_tls(error: BaseException) -> bool:
    """Whether the other side answered, but not with TLS."""
    return isinstance(error, SSLError) and not isinstance(error, SSLCertVerificationError)


def _split(url: str, base: str = "") -> SplitResult:
    """An address that a registry named, perhaps relative to another; an empty one when it is none."""
    try:
        parts = urlsplit(urljoin(base, url))
        return parts if parts.port is None or parts.port else urlsplit("")
    except ValueError:  # a port that is no number, half an IPv6 address
        return urlsplit("")


def _offered(challenges: list[str]) -> dict[str, dict[str, str]]:
    """The ways to log in (RFC 9110, 11.6.1), with what is said about each; there may be several in one header."""
    found: dict[str, dict[str, str]] = {}
    fields: dict[str, str] = {}
    for challenge in challenges:
        for key, quoted, plain, scheme in _CHALLENGE.findall(challenge):
            if scheme:
                fields = found[scheme.lower()] = {}
            else:
                fields[key.lower()] = quoted or plain
    return found


def _origin(url: str) -> tuple[str, str | None, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _shown(url: str) -> str:
    """An address for messages: signed ones carry their secret behind the question mark, others before the host."""
    scheme, colon, rest = printable(url.partition("?")[0]).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{colon}{host.rpartition('@')[2]}{slash}{path}" if colon else scheme


def _basic(known: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{known.username}:{known.password}".encode()).decode()


def _user_agent() -> str:
    return "pytest-sandbox (https://pypi.org/project/pytest-sandbox)"
