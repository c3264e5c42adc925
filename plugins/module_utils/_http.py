# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Probes of HTTP endpoints: one request with its status and seconds, and many of them with percentiles.

A request is a new connection, no proxy, no redirect unless asked for, and a hard limit of time: a server that sends a
byte now and then does not outlive it. What an endpoint answers is judged and thrown away; it is in no result.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import json
import os
import queue
import re
import socket
import ssl
import threading
import time
import typing as t
import urllib.parse

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact, register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    EnvironmentProblem,
    Interrupted,
    PlanError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._noise import percentile, read_results
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration

try:
    import jmespath
    import jmespath.exceptions
except ImportError:
    jmespath = None  # type: ignore[assignment]

FORMAT = 1
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
METHODS = (*SAFE_METHODS, "POST", "PUT", "PATCH", "DELETE")
MAX_BODY = 2**20  # bytes read of an answer; an expression needs no more, and a probe is no download
MAX_REQUESTS = 10_000
MAX_CONCURRENCY = 64
MAX_REDIRECTS = 5
# An endpoint that left this many requests in a row unanswered is not asked again: each would cost a whole timeout.
GIVE_UP_AFTER = 3
_SECRET_NAME = re.compile(
    r"(?i)token|secret|passw|pwd|auth|cookie|session|signature|credential|api.?key|^key$|^sig$|^code$"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_PORTS = {"http": 80, "https": 443}


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """One thing to ask and what it must answer. ``timeout`` is in seconds and limits one request as a whole."""

    name: str
    url: str = dataclasses.field(repr=False)
    method: str = "GET"
    headers: t.Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    body: bytes | None = dataclasses.field(default=None, repr=False)
    expect_status: tuple[int, ...] = (200,)
    expect_body: str | None = None
    timeout: float = 10.0
    verify: bool = True
    ca_path: str | None = None
    follow_redirects: bool = False

    @property
    def label(self) -> str:
        """Method and URL without credentials and secret query values."""
        return f"{self.method} {public_url(self.url)}"


@dataclasses.dataclass(frozen=True)
class Probe:
    """What one request came to. ``status`` is None when there was no answer; ``error`` then is its class: ``refused``,
    ``timeout``, ``dns``, ``tls``, ``network``, ``closed`` (before the answer's end) or ``protocol``. ``reason`` says
    why it is not what was expected; None when it is."""

    status: int | None
    seconds: float
    error: str | None = None
    reason: str | None = None

    @property
    def passed(self) -> bool:
        """It answered as expected."""
        return self.reason is None


def public_url(url: str) -> str:
    """The URL without userinfo and fragment, the values of secret-looking query parameters masked."""
    parts = urllib.parse.urlsplit(url)
    pairs = [
        (name, "***" if _SECRET_NAME.search(name) else value)
        for name, value in urllib.parse.parse_qsl(parts.query, keep_blank_values=True)
    ]
    query = "&".join(
        f"{urllib.parse.quote(name)}={value if value == '***' else urllib.parse.quote(value)}" for name, value in pairs
    )
    return redact(urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, "")))


def parse_endpoint(given: t.Mapping[str, t.Any], where: str = "endpoint") -> Endpoint:
    """An endpoint from module options: name, url, method, headers, secret_headers, token, body, expect_status,
    expect_body, timeout, validate_certs, ca_path, follow_redirects.

    :param where: what the message calls it
    :raises PlanError: something that cannot be sent, or a secret where it would be shown
    :raises EnvironmentProblem: ``expect_body`` without the package jmespath, or no such ``ca_path``
    """
    unknown = sorted(set(given) - set(_OPTIONS))
    if unknown:
        raise PlanError(f"{where} has the unknown key {unknown[0]}", remedy=f"Known: {', '.join(_OPTIONS)}.")
    url, headers = str(given.get("url") or ""), _headers(given, where)
    parts = _split(url, where)
    if parts.username is not None:
        register_secret(parts.password)
        if "authorization" in {name.lower() for name in headers}:
            raise PlanError(f"{where} has credentials in its URL and a token", remedy="Give one of them.")
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode("utf-8")).decode("ascii")
    for name, value in urllib.parse.parse_qsl(parts.query):
        if _SECRET_NAME.search(name):
            register_secret(value)
    method = str(given.get("method") or "GET").upper()
    if method not in METHODS:
        raise PlanError(f"{where} has the method {method}", remedy=f"Use one of {', '.join(METHODS)}.")
    body = _body(given.get("body"), headers)
    timeout = parse_duration(given["timeout"]) if given.get("timeout") is not None else 10.0
    if timeout <= 0:
        raise PlanError(f"{where} has no time to answer", remedy="Give a timeout above 0, such as 10s.")
    ca_path = given.get("ca_path")
    if ca_path and not os.path.exists(ca_path):
        raise EnvironmentProblem(f"{where}: there is no {ca_path}", remedy="Give the CA's certificate in ca_path.")
    endpoint = Endpoint(
        name=str(given.get("name") or f"{method} {public_url(url)}"),
        url=url,
        method=method,
        headers=headers,
        body=body,
        expect_status=_statuses(given.get("expect_status"), where),
        expect_body=given.get("expect_body") or None,
        timeout=timeout,
        verify=given.get("validate_certs", True) is not False,
        ca_path=ca_path,
        follow_redirects=bool(given.get("follow_redirects")),
    )
    _compile(endpoint.expect_body, where)
    return endpoint


def secrets_of(given: t.Mapping[str, t.Any]) -> list[str]:
    """What of an endpoint's options no result may show: the URL as a whole when it carries a secret, and the secret."""
    url = str(given.get("url") or "")
    found: list[str] = []
    with contextlib.suppress(ValueError):
        parts = urllib.parse.urlsplit(url)
        found += [parts.password] if parts.password else []
        found += [value for name, value in urllib.parse.parse_qsl(parts.query) if _SECRET_NAME.search(name)]
        found += [url] if found or parts.username is not None else []
    return found


_OPTIONS = [
    "name",
    "url",
    "method",
    "headers",
    "secret_headers",
    "token",
    "body",
    "expect_status",
    "expect_body",
    "timeout",
    "validate_certs",
    "ca_path",
    "follow_redirects",
]


def _split(url: str, where: str) -> urllib.parse.SplitResult:
    # The value is in no message: it may hold credentials.
    remedy = "Give http:// or https://, a host, and percent-encode other characters than those of a URL."
    if "{{" in url or re.search(r"<[^>]*>", url):
        raise PlanError(f"the URL of {where} still has a placeholder in it", remedy="Fill it in.")
    try:
        parts = urllib.parse.urlsplit(url)
        valid = parts.scheme in _PORTS and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid or not re.fullmatch(r"[!-~]+", url):
        raise PlanError(f"the URL of {where} is not one that can be asked", remedy=remedy)
    return parts


def _headers(given: t.Mapping[str, t.Any], where: str) -> dict[str, str]:
    headers = {str(name): str(value) for name, value in (given.get("headers") or {}).items()}
    shown = [name for name in headers if _SECRET_NAME.search(name)]
    if shown:
        raise PlanError(
            f"{where}: the header {shown[0]} looks like a secret, and the option headers is shown in logs",
            remedy="Give it in secret_headers, or a bearer token in token.",
        )
    for name, value in (given.get("secret_headers") or {}).items():
        register_secret(value)
        headers[str(name)] = str(value)
    token = given.get("token")
    if token is not None:
        token = str(token)
        if not token.strip() or "{{" in token or token.startswith("<"):
            raise PlanError(f"{where}: the token is empty or a placeholder", remedy="Fill it in, or leave it out.")
        register_secret(token)
        headers["Authorization"] = f"Bearer {token}"
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]|[^\x00-\xff]", value):
            raise PlanError(f"{where}: the header {name!r} cannot be sent", remedy="Remove line breaks and controls.")
    headers.setdefault("User-Agent", "surefoot-probe")
    headers.setdefault("Accept", "*/*")
    return headers


def _body(value: t.Any, headers: dict[str, str]) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8")
    if "content-type" not in {name.lower() for name in headers}:
        headers["Content-Type"] = "application/json"
    return json.dumps(value).encode("utf-8")


def _statuses(value: t.Any, where: str) -> tuple[int, ...]:
    if value in (None, []):
        return (200,)
    try:
        statuses = tuple(int(item) for item in (value if isinstance(value, (list, tuple)) else [value]))
    except (TypeError, ValueError):
        statuses = (0,)
    if not all(100 <= status <= 599 for status in statuses):
        raise PlanError(f"{where}: expect_status is {value!r}", remedy="Give a status such as 200, or several.")
    return statuses


def _compile(expression: str | None, where: str) -> t.Any:
    if expression is None:
        return None
    if jmespath is None:
        raise EnvironmentProblem(
            f"{where} uses expect_body, and the Python package jmespath is missing",
            remedy="Install it for the Python that runs the module: pip install jmespath.",
        )
    try:
        return jmespath.compile(expression)
    except jmespath.exceptions.JMESPathError as exc:
        message = " ".join(str(exc).split())[:200]
        raise PlanError(f"{where}: expect_body is no JMESPath expression: {message}") from None


# ---------------------------------------------------------------------------------------------------------------------
# One request


class _Failed(Exception):
    """No answer; the first argument is the class of :attr:`Probe.error`, the second says it in words."""


class _Request:
    """One exchange, cut off when its time is over."""

    def __init__(self, endpoint: Endpoint, deadline: float, context: ssl.SSLContext | None) -> None:
        self._endpoint = endpoint
        self._deadline = deadline
        self._context = context
        self._socket: socket.socket | None = None
        self._expired = False

    def _left(self) -> float:
        left = self._deadline - time.perf_counter()
        if left <= 0:
            raise socket.timeout
        return left

    def _expire(self) -> None:
        self._expired = True
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, url: str, headers: t.Mapping[str, str]) -> tuple[int, str | None, bytes]:
        """Status, Location and body.

        :raises _Failed: no answer
        """
        # A socket's own timeout starts anew with every byte; this one does not.
        timer = threading.Timer(max(0.0, self._deadline - time.perf_counter()), self._expire)
        timer.daemon = True
        timer.start()
        try:
            return self._exchange(urllib.parse.urlsplit(url), headers)
        except _Failed:
            raise
        except Exception as exc:
            kind, words = ("timeout", "no answer in time") if self._expired else _classify(exc)
            raise _Failed(kind, words) from None
        finally:
            timer.cancel()
            if self._socket is not None:
                self._socket.close()

    def _exchange(self, parts: urllib.parse.SplitResult, headers: t.Mapping[str, str]) -> tuple[int, str | None, bytes]:
        host, port = str(parts.hostname), parts.port or _PORTS[parts.scheme]
        self._socket = self._connect(host, port)
        if self._context is not None and parts.scheme == "https":
            self._socket.settimeout(self._left())
            wrapped = self._context.wrap_socket(self._socket, server_hostname=host, do_handshake_on_connect=False)
            self._socket = wrapped
            wrapped.do_handshake()
        connection = http.client.HTTPConnection(host, port, timeout=self._left())
        connection.sock = self._socket
        self._socket.settimeout(self._left())
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.putrequest(self._endpoint.method, target, skip_host=True, skip_accept_encoding=True)
        shown = f"[{host}]" if ":" in host else host
        connection.putheader("Host", shown if port == _PORTS[parts.scheme] else f"{shown}:{port}")
        for name, value in headers.items():
            connection.putheader(name, value.encode("latin-1"))
        body = self._endpoint.body
        if body is not None or self._endpoint.method in ("POST", "PUT", "PATCH"):
            connection.putheader("Content-Length", str(len(body or b"")))
        connection.putheader("Connection", "close")
        connection.endheaders(body)
        response = connection.getresponse()
        pieces, size = [], 0
        while size <= MAX_BODY:
            self._socket.settimeout(self._left())
            piece = response.read1(65536)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        if response.length and size <= MAX_BODY:
            raise http.client.IncompleteRead(b"", response.length)
        if self._expired:
            raise socket.timeout
        return response.status, response.getheader("Location"), b"".join(pieces)

    def _connect(self, host: str, port: int) -> socket.socket:
        failure: Exception = OSError("no address")
        for family, kind, protocol, _name, address in self._addresses(host, port):
            opened = socket.socket(family, kind, protocol)
            self._socket = opened
            try:
                opened.settimeout(self._left())
                opened.connect(address)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return opened
            except OSError as exc:
                opened.close()
                failure = exc
        raise failure

    def _addresses(self, host: str, port: int) -> list[t.Any]:
        # The resolver takes its own time and cannot be interrupted: it is left behind.
        answers: queue.SimpleQueue[t.Any] = queue.SimpleQueue()

        def resolve() -> None:
            try:
                answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as exc:
                answers.put(exc)

        threading.Thread(target=resolve, daemon=True).start()
        try:
            found = answers.get(timeout=self._left())
        except queue.Empty:
            raise _Failed("dns", f"the name {host} was not resolved in time") from None
        if isinstance(found, Exception):
            raise _Failed("dns", f"the name {host} cannot be resolved")
        return t.cast("list[t.Any]", found)


def _classify(exc: Exception) -> tuple[str, str]:
    """Class and words of what went wrong; the words hold nothing of the answer."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "tls", f"the certificate is not trusted: {exc.verify_message}"
    for kinds, kind, words in _CLASSES:
        if isinstance(exc, kinds):
            return kind, words
    if isinstance(exc, ssl.SSLError):
        return "tls", f"TLS failed: {(exc.reason or 'handshake').replace('_', ' ').lower()}"
    if isinstance(exc, OSError):
        return "network", exc.strerror or type(exc).__name__
    return "protocol", "the answer is not HTTP"


# The first that fits. socket.timeout is TimeoutError only from Python 3.10 on; RemoteDisconnected is also a reset.
_CLASSES: tuple[tuple[tuple[type[BaseException], ...], str, str], ...] = (
    ((socket.timeout, TimeoutError), "timeout", "no answer in time"),
    ((ConnectionRefusedError,), "refused", "the connection was refused"),
    (
        (ssl.SSLEOFError, ConnectionResetError, BrokenPipeError, http.client.IncompleteRead),
        "closed",
        "the server closed the connection before the end of its answer",
    ),
)


def tls_context(endpoint: Endpoint) -> ssl.SSLContext | None:
    """The context of an endpoint's TLS; None for plain HTTP that cannot become HTTPS by a redirect.

    :raises EnvironmentProblem: ``ca_path`` is no certificate
    """
    if not endpoint.url.startswith("https:") and not endpoint.follow_redirects:
        return None
    directory = bool(endpoint.ca_path) and os.path.isdir(endpoint.ca_path or "")
    try:
        context = ssl.create_default_context(
            cafile=None if directory else endpoint.ca_path, capath=endpoint.ca_path if directory else None
        )
    except (OSError, ssl.SSLError):
        raise EnvironmentProblem(
            f"{endpoint.ca_path} holds no readable certificate", remedy="Give a PEM file, or a hashed directory."
        ) from None
    if not endpoint.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def probe(
    endpoint: Endpoint | str | t.Mapping[str, t.Any],
    *,
    timeout: float | None = None,
    context: ssl.SSLContext | None = None,
) -> Probe:
    """Ask once. Never raises for what the server or the network does; never takes longer than the timeout.

    :param endpoint: an endpoint, its URL, or its options
    :param timeout: seconds, instead of the endpoint's own
    :param context: of :func:`tls_context`, when it is kept between requests
    :raises PlanError, EnvironmentProblem: see :func:`parse_endpoint` and :func:`tls_context`
    """
    if not isinstance(endpoint, Endpoint):
        endpoint = parse_endpoint({"url": endpoint} if isinstance(endpoint, str) else endpoint)
    context = context or tls_context(endpoint)
    started = time.perf_counter()
    deadline = started + (timeout if timeout is not None else endpoint.timeout)
    try:
        status, location, body = _follow(endpoint, deadline, context)
    except _Failed as exc:
        kind, words = exc.args
        return Probe(None, time.perf_counter() - started, kind, redact(words))
    seconds = time.perf_counter() - started
    return Probe(status, seconds, None, _disagreement(endpoint, status, location, body))


def _follow(endpoint: Endpoint, deadline: float, context: ssl.SSLContext | None) -> tuple[int, str | None, bytes]:
    url, headers = endpoint.url, dict(endpoint.headers)
    for _hop in range(MAX_REDIRECTS + 1):
        status, location, body = _Request(endpoint, deadline, context).send(url, headers)
        follows = endpoint.follow_redirects and endpoint.method in SAFE_METHODS
        if not (follows and location and status in (301, 302, 303, 307, 308)):
            return status, location, body
        try:
            target = _split(urllib.parse.urljoin(url, location), "the redirect")
        except PlanError:
            raise _Failed("protocol", "the server redirects to something that is no URL") from None
        if target[:2] != urllib.parse.urlsplit(url)[:2]:
            # Another server has no business with these.
            headers = {name: value for name, value in headers.items() if name in ("User-Agent", "Accept")}
        url = urllib.parse.urlunsplit(target)
    raise _Failed("protocol", f"more than {MAX_REDIRECTS} redirects")


def _disagreement(endpoint: Endpoint, status: int, location: str | None, body: bytes) -> str | None:
    if status not in endpoint.expect_status:
        wanted = " or ".join(map(str, endpoint.expect_status))
        to = ""
        if location and 300 <= status < 400:
            with contextlib.suppress(ValueError):
                parts = urllib.parse.urlsplit(urllib.parse.urljoin(endpoint.url, location))
                to = f" to {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        return redact(f"status {status}{to}, not {wanted}")
    expression = _compile(endpoint.expect_body, endpoint.name)
    if expression is None:
        return None
    if len(body) > MAX_BODY:
        return f"the answer is larger than {MAX_BODY} bytes, too large for expect_body"
    try:
        value = json.loads(body.decode("utf-8"))
    except ValueError:
        return "the answer is not JSON, which expect_body needs"
    try:
        result = expression.search(value)
    except jmespath.exceptions.JMESPathError:
        return f"expect_body does not fit the answer: {endpoint.expect_body}"
    # JMESPath's own rule: false, null, and empty texts, lists and objects are false; every number is true.
    false = result is None or result is False or (isinstance(result, (str, list, dict)) and not result)
    return f"the answer does not satisfy {endpoint.expect_body}" if false else None


# ---------------------------------------------------------------------------------------------------------------------
# Many requests


@dataclasses.dataclass
class _Tally:
    """The requests of one endpoint."""

    endpoint: Endpoint
    context: ssl.SSLContext | None
    probes: list[Probe] = dataclasses.field(default_factory=list)
    warm: list[float] = dataclasses.field(default_factory=list)
    silent: int = 0
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def add(self, result: Probe, warm: bool) -> None:
        with self.lock:
            self.probes.append(result)
            self.silent = self.silent + 1 if result.status is None else 0
            if warm and result.status is not None:
                self.warm.append(result.seconds)

    @property
    def failed(self) -> int:
        """Requests without an answer, or with a server error nobody expected."""
        return sum(
            1
            for item in self.probes
            if item.status is None or (item.status >= 500 and item.status not in self.endpoint.expect_status)
        )

    def to_dict(self) -> dict[str, t.Any]:
        milliseconds = sorted(seconds * 1000 for seconds in self.warm)
        statuses: dict[str, int] = {}
        errors: dict[str, int] = {}
        for item in self.probes:
            key, counts = (str(item.status), statuses) if item.status is not None else (str(item.error), errors)
            counts[key] = counts.get(key, 0) + 1
        return {
            "name": self.endpoint.name,
            "request": self.endpoint.label,
            "requests": len(self.probes),
            "gave_up": self.silent >= GIVE_UP_AFTER,
            "statuses": statuses,
            "errors": errors,
            "error_rate": round(self.failed / len(self.probes), 6) if self.probes else None,
            "unexpected": sum(1 for item in self.probes if not item.passed),
            "reason": next((item.reason for item in self.probes if item.reason), None),
            "expect_status": list(self.endpoint.expect_status),
            **{
                f"p{share}_ms": round(percentile(milliseconds, share / 100), 3) if milliseconds else None
                for share in (50, 95, 99)
            },
        }


@dataclasses.dataclass(frozen=True)
class ProbeLimits:
    """What the answers must keep to: 95th percentile in seconds, and the share of requests that may fail."""

    p95: float = 0.2
    error_rate: float = 0.0


class Probing:
    """Every endpoint, ``requests`` times each, in turn, by ``concurrency`` workers."""

    def __init__(
        self,
        endpoints: t.Sequence[Endpoint],
        *,
        requests: int = 20,
        warmup: int = 1,
        concurrency: int = 1,
        limits: ProbeLimits | None = None,
        before: t.Mapping[str, t.Any] | None = None,
        label: str = "after",
        safe_only: bool = False,
    ) -> None:
        """
        :param warmup: requests of each endpoint whose time is not counted; their answers are judged like any other
        :param before: content of an earlier result file
        :param safe_only: leave out endpoints whose method may change something
        :raises PlanError: a number out of bounds, or two endpoints of one name
        """
        for name, value, least, most in (
            ("requests", requests, 1, MAX_REQUESTS),
            ("warmup", warmup, 0, MAX_REQUESTS),
            ("concurrency", concurrency, 1, MAX_CONCURRENCY),
        ):
            if not least <= value <= most:
                raise PlanError(f"{name} is {value}", remedy=f"Give {least} to {most}.")
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", label):
            raise PlanError(f"label is {label!r}", remedy="Give before, after, or another such word.")
        names = [endpoint.name for endpoint in endpoints]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or not names:
            problem = f"two endpoints are called {twice}" if twice else "there are no endpoints"
            raise PlanError(problem, remedy="Give each endpoint a name of its own." if twice else "Give one at least.")
        self.skipped = [item.name for item in endpoints if safe_only and item.method not in SAFE_METHODS]
        chosen = [item for item in endpoints if item.name not in self.skipped]
        self._tallies = [_Tally(endpoint, tls_context(endpoint)) for endpoint in chosen]
        self._requests, self._warmup, self._concurrency = requests, warmup, concurrency
        self._limits = limits or ProbeLimits()
        self._before = before
        self._label = label
        self._stop = threading.Event()
        self._started = utc_now()
        self._seconds = 0.0

    def stop(self, _reason: str = "") -> None:
        """Send no further request; may be called from another thread, and more than once."""
        self._stop.set()

    def run(self) -> None:
        """Ask all endpoints.

        :raises Interrupted: after :meth:`stop`
        """
        jobs: queue.SimpleQueue[tuple[_Tally, bool]] = queue.SimpleQueue()
        for number in range(self._warmup + self._requests):
            for tally in self._tallies:
                jobs.put((tally, number >= self._warmup))

        def work() -> None:
            while not self._stop.is_set():
                try:
                    tally, warm = jobs.get_nowait()
                except queue.Empty:
                    return
                if tally.silent < GIVE_UP_AFTER:
                    tally.add(probe(tally.endpoint, context=tally.context), warm)

        started = time.perf_counter()
        workers = [
            threading.Thread(target=work, name="surefoot-probe", daemon=True) for _worker in range(self._concurrency)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        self._seconds = time.perf_counter() - started
        if self._stop.is_set():
            raise Interrupted("the probes were stopped")

    def results(self, run_dir: str | None) -> dict[str, t.Any]:
        """Measurements, comparison and evidence, also written to the run directory when there is one.

        :raises EnvironmentProblem: it cannot be written
        """
        endpoints = [tally.to_dict() for tally in self._tallies]
        comparison = None if self._before is None else compare(self._before, endpoints)
        results: dict[str, t.Any] = {"endpoints": endpoints, "comparison": comparison, "path": None}
        if run_dir:
            content = {
                "format": FORMAT,
                "kind": "probes",
                "label": self._label,
                "time": self._started,
                "seconds": round(self._seconds, 3),
                "requests": self._requests,
                "concurrency": self._concurrency,
                "p95_max_ms": self._limits.p95 * 1000,
                **results,
            }
            content.pop("path")
            results["path"] = write_json(run_dir, f"probes-{self._label}.json", content)
        evidence = record(run_dir, self._evidence(endpoints, comparison))
        failed = [item["criterion"] for item in evidence if item["verdict"] == "fail"]
        return {
            "changed": False,
            **results,
            "skipped_endpoints": self.skipped,
            "failed_criteria": failed,
            "evidence": evidence,
        }

    def _evidence(self, endpoints: t.Sequence[dict[str, t.Any]], comparison: dict[str, t.Any] | None) -> list[Evidence]:
        phase = "probe" if comparison is None else "compare"
        count = sum(item["requests"] for item in endpoints)
        source = f"{count} requests to {len(endpoints)} endpoints, {self._concurrency} at a time, label {self._label}"
        return [
            Evidence(criterion, phase, verdict, measured, required, source)
            for criterion, verdict, measured, required in judge(endpoints, comparison, self._limits)
        ]


def compare(before: t.Mapping[str, t.Any], endpoints: t.Sequence[t.Mapping[str, t.Any]]) -> dict[str, t.Any]:
    """What became different: new 403s, and the percentiles beside the earlier ones.

    A 403 that an endpoint expects is none; a 403 of an endpoint that was not asked before is a new one.
    """
    earlier = {item["name"]: item for item in before.get("endpoints", ())}
    rows = []
    for item in endpoints:
        old = earlier.get(item["name"], {})
        now = 0 if 403 in item["expect_status"] else item["statuses"].get("403", 0)
        rows.append(
            {
                "name": item["name"],
                "new_403": now if not old.get("statuses", {}).get("403") else 0,
                "answered": bool(item["statuses"]),
                "p95_ms_before": old.get("p95_ms"),
                "p95_ms": item["p95_ms"],
                "error_rate_before": old.get("error_rate"),
                "error_rate": item["error_rate"],
            }
        )
    missing = sorted(set(earlier) - {item["name"] for item in endpoints})
    return {"label": before.get("label"), "endpoints": rows, "not_asked_again": missing}


def judge(
    endpoints: t.Sequence[t.Mapping[str, t.Any]], comparison: t.Mapping[str, t.Any] | None, limits: ProbeLimits
) -> t.Iterator[tuple[str, str, t.Any, t.Any]]:
    """Criterion, verdict, measured, required. What was not answered at all was not measured, and never passes."""

    def verdict(bad: t.Any, known: bool) -> str:
        return "fail" if bad else "pass" if known and endpoints else "not_measured"

    wrong = {item["name"]: item["reason"] for item in endpoints if item["unexpected"]}
    yield "http.status", verdict(wrong, True), wrong or "all as expected", "the expected status and body, every time"
    latency = {item["name"]: item["p95_ms"] for item in endpoints}
    slow = [name for name, value in latency.items() if value is not None and value > limits.p95 * 1000]
    yield (
        "http.latency_p95",
        verdict(slow, None not in latency.values()),
        {"slowest_ms": max((value for value in latency.values() if value is not None), default=None), **latency},
        f"at most {limits.p95 * 1000:g} ms",
    )
    rates = {item["name"]: item["error_rate"] for item in endpoints}
    faulty = [name for name, rate in rates.items() if rate is not None and rate > limits.error_rate]
    yield (
        "http.error_rate",
        verdict(faulty, None not in rates.values()),
        rates,
        f"at most {limits.error_rate * 100:g}% without an answer or with a server error",
    )
    if comparison is not None:
        new = {item["name"]: item["new_403"] for item in comparison["endpoints"] if item["new_403"]}
        known = all(item["answered"] for item in comparison["endpoints"]) and not comparison["not_asked_again"]
        yield "http.no_new_403", verdict(new, known), new or "none", "no 403 that was not there before"


def failure(results: t.Mapping[str, t.Any]) -> VerificationFailed | None:
    """The failed criteria in one line; None when none failed."""
    failed = [item for item in results["evidence"] if item["verdict"] == "fail"]
    if not failed:
        return None
    lines = [
        f"{item['name']}: {item['reason']}" for item in results["endpoints"] if item["unexpected"] and item["reason"]
    ]
    text = "; ".join(lines[:3]) or "; ".join(
        f"{item['measured']} (required: {item['required']})" for item in failed[:1]
    )
    return VerificationFailed(
        f"the probes failed {', '.join(item['criterion'] for item in failed)}: {redact(text)}",
        remedy="Look at the endpoints in the result; nothing was changed.",
    )


def load_earlier(path: str | None) -> dict[str, t.Any] | None:
    """An earlier result file.

    :raises PlanError: it is not there, or is no result of probes
    """
    return None if path is None else read_results(path, "probes")
