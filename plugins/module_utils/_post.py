# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""One POST to an outside service: TLS that is verified, the proxy of the environment, a limit of time for the whole,
no redirect, and a bound for what is read.

Apart from what uses it, so that a module that only asks a service is small.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import http.client
import re
import socket
import ssl
import threading
import typing as t
import urllib.parse
import urllib.request

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError

FIRST_DELAY = 0.5
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclasses.dataclass(frozen=True)
class Address:
    """A checked URL. Its repr shows the host only."""

    host: str
    port: int
    secure: bool
    target: str = dataclasses.field(repr=False)  # path and query

    @classmethod
    def parse(cls, url: str, *, what: str, allow_http: bool = False) -> Address:
        """:param what: the option, for messages
        :raises PlanError: empty, untemplated, no http(s) URL, or http to another machine; without the URL in it
        """
        register_secret(url)
        text = str(url or "").strip()
        if not text:
            raise PlanError(f"{what} is empty", remedy="Give the whole URL.")
        if placeholder(text):
            raise PlanError(f"{what} holds {placeholder(text)}", remedy="Give the URL itself.")
        try:
            parts = urllib.parse.urlsplit(text)
            host, port = parts.hostname or "", parts.port
            text.encode("ascii")
        except ValueError:
            host, port, parts = "", None, urllib.parse.urlsplit("")
        if parts.scheme not in ("http", "https") or not host or re.search(r"[\x00-\x20\x7f]", text):
            raise PlanError(f"{what} is not a URL", remedy="Give https://host/path, percent-encoded.")
        if parts.username is not None or parts.password is not None:
            raise PlanError(f"{what} holds a user or password", remedy="Give it in headers instead.")
        secure = parts.scheme == "https"
        if not secure and not allow_http and host not in LOOPBACK:
            raise PlanError(
                f"{what} would send a secret to {host} without TLS", remedy="Use https, or set allow_http: true."
            )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        register_secret(target if len(target) > 8 else None)
        return cls(host, port or (443 if secure else 80), secure, target)

    @property
    def origin(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Delivery:
    """How calls are made. ``timeout`` in seconds, of one attempt from its beginning to its answer."""

    timeout: float = 10.0
    attempts: int = 4
    ca_cert: str | None = None
    retry_lost: bool = True  # whether an attempt that got no answer is repeated, too
    first_delay: float = FIRST_DELAY

    def __post_init__(self) -> None:
        if not self.timeout > 0 or self.attempts < 1:
            raise PlanError("timeout must be above 0 and attempts at least 1", remedy="Leave them out.")


@dataclasses.dataclass(frozen=True)
class Reply:
    """What one attempt came to. ``status`` is None when there was no answer: ``problem`` says why, ``again`` whether
    another attempt may help. The header names are lower-case."""

    status: int | None
    problem: str | None = None
    again: bool = False
    headers: t.Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    body: bytes = dataclasses.field(default=b"", repr=False)


def exchange(
    address: Address, body: bytes, headers: t.Mapping[str, str], delivery: Delivery, *, read: int = 0
) -> Reply:
    """POST once, through the proxy of the environment, without following redirects. Never raises for what the server
    or the network does; takes no longer than the delivery's timeout.

    :param read: bytes of the answer's body that are wanted; a longer one is no answer
    """
    late = threading.Event()
    try:
        connection, target = _connection(address, delivery)
    except (OSError, ValueError):
        return Reply(None, "cannot be called: the proxy of the environment or ca_cert is unusable")

    def stop() -> None:
        # The timeout of a socket begins anew with each byte; this one does not.
        late.set()
        if connection.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    timer = threading.Timer(delivery.timeout, stop)
    timer.daemon = True
    timer.start()
    try:
        connection.request("POST", target, body=body, headers=dict(headers))
        response = connection.getresponse()
        content = response.read(read + 1) if read else b""
        if read and response.length and len(content) <= read:
            raise http.client.IncompleteRead(b"", response.length)
        if late.is_set():  # headers that were cut off look complete
            raise socket.timeout
        if len(content) > read:
            return Reply(None, f"answers with more than {read} bytes")
        return Reply(
            response.status,
            headers={name.lower(): value for name, value in response.getheaders()},
            body=content,
        )
    except ssl.SSLCertVerificationError:
        return Reply(None, "shows a certificate that cannot be verified (see ca_cert)")
    except Exception as exc:  # whatever it says may quote the address
        if late.is_set() or isinstance(exc, socket.timeout):
            problem = f"did not answer within {delivery.timeout:g} s"
        elif isinstance(exc, socket.gaierror):
            problem = "cannot be reached: its name is not known"
        elif isinstance(exc, ConnectionRefusedError):
            problem = "cannot be reached: connection refused"
        else:
            problem = f"closed the connection or does not speak HTTP ({type(exc).__name__})"
        return Reply(None, problem, delivery.retry_lost and isinstance(exc, (OSError, http.client.HTTPException)))
    finally:
        timer.cancel()
        connection.close()


def _connection(address: Address, delivery: Delivery) -> tuple[http.client.HTTPConnection, str]:
    """The connection, through the proxy of the environment when there is one, and the request's target."""
    context = ssl.create_default_context(cafile=delivery.ca_cert) if address.secure else None
    scheme = "https" if address.secure else "http"
    proxy = urllib.request.getproxies().get(scheme)
    if not proxy or urllib.request.proxy_bypass(address.host):
        return _open(address.host, address.port, context, delivery.timeout), address.target
    parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("proxy")
    headers = {}
    if parts.username is not None:
        user = urllib.parse.unquote(f"{parts.username}:{parts.password or ''}").encode("utf-8")
        headers["Proxy-Authorization"] = "Basic " + base64.b64encode(user).decode("ascii")
    connection = _open(parts.hostname, parts.port or 80, context, delivery.timeout)
    if not address.secure:
        if headers:
            raise ValueError("proxy")  # the header would have to travel with every request
        return connection, f"http://{address.origin}{address.target}"
    connection.set_tunnel(address.host, address.port, headers)
    return connection, address.target


def _open(host: str, port: int, context: ssl.SSLContext | None, timeout: float) -> http.client.HTTPConnection:
    if context is None:
        return http.client.HTTPConnection(host, port, timeout=timeout)
    return http.client.HTTPSConnection(host, port, timeout=timeout, context=context)


_PLACEHOLDERS: tuple[tuple[str, str], ...] = (
    (r"\{\{|\}\}|\{%|%\}", "a template that was not filled in"),
    (r"<[^>]*>", "a placeholder in angle brackets"),
    (r"\$\{?[A-Za-z_]", "the name of a shell variable instead of its value"),
    (r"%[A-Za-z_]{2,}%", "the name of an environment variable instead of its value"),
)


def placeholder(text: str) -> str | None:
    """What kind of placeholder the text still holds; None when it holds none."""
    return next((what for pattern, what in _PLACEHOLDERS if re.search(pattern, text)), None)
