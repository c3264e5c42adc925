# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""URLs of PostgreSQL, Redis and MongoDB databases: parsed by the drivers' own parsers, inside strict wrappers.

The parsers are not trusted with two things. They are lenient: redis-py takes ``redis://`` for localhost and drops what
it does not understand, and a password with an unescaped ``/`` becomes a path, a port or a host. And they quote what
they refuse. So everything that could be understood in two ways is refused here, and no message holds any part of a URL.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import sys
import typing as t
import urllib.parse

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, register_secret
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import EnvironmentProblem, PlanError

POSTGRESQL, REDIS, MONGODB = "postgresql", "redis", "mongodb"
KINDS = (MONGODB, REDIS, POSTGRESQL)
_KIND_OF = {
    "postgresql": POSTGRESQL,
    "postgres": POSTGRESQL,
    "redis": REDIS,
    "rediss": REDIS,
    "mongodb": MONGODB,
    "mongodb+srv": MONGODB,
}
_PORTS = {POSTGRESQL: 5432, REDIS: 6379, MONGODB: 27017}
# Not spelled out: what hides passwords in messages would hide those of an example, too.
_FORM = "Give scheme, user, password, host, port and database, in the form docs/registry.md shows."
_ESCAPE = "Percent-encode reserved characters of user and password (@ is %40, / is %2F, : is %3A, ? is %3F, # is %23)."
# What redis-py passes to its connection without looking at it; everything else would fail only when it connects.
_REDIS_QUERY = ("db", "protocol", "client_name", "ssl_cert_reqs", "ssl_ca_certs", "ssl_check_hostname")
_SRV_ONLY = ("srvservicename", "srvmaxhosts")
# Keywords that take another secret or another address from somewhere else.
_POSTGRESQL_QUERY_REFUSED = (
    "password",
    "sslpassword",
    "user",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "service",
    "servicefile",
    "passfile",
    "options",
)
_SECRET_OPTIONS = ("authmechanismproperties", "tlscertificatekeyfilepassword")
_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_PLACEHOLDERS = ("${", "{{", "}}", "<", ">", "{%")
_FALSE_SECRETS = ("changeme", "change_me", "change-me", "placeholder", "your_password", "your-password")


@dataclasses.dataclass(frozen=True)
class Store:
    """A database by its URL. ``hosts`` are pairs of host and port; those of ``mongodb+srv`` are not resolved."""

    kind: str
    scheme: str
    hosts: tuple[tuple[str, int], ...]
    url: str = dataclasses.field(repr=False)
    database: str | None = None
    username: str | None = dataclasses.field(default=None, repr=False)
    password: str | None = dataclasses.field(default=None, repr=False)
    tls: bool = False
    secrets: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    @property
    def host(self) -> str:
        """The first host."""
        return self.hosts[0][0]

    @property
    def port(self) -> int:
        """The port of the first host."""
        return self.hosts[0][1]

    @property
    def redacted(self) -> str:
        """``scheme://***@host:port/database``: what may be shown."""
        shown = []
        for host, port in self.hosts:
            name = f"[{host}]" if ":" in host else host
            shown.append(name if self.scheme == "mongodb+srv" else f"{name}:{port}")
        database = urllib.parse.quote(self.database, safe="") if self.database else ""
        return f"{self.scheme}://***@{','.join(shown)}" + (f"/{database}" if database else "")

    @property
    def railway_private(self) -> bool:
        """Its host exists inside one environment of one Railway project only."""
        return self.host.lower().rstrip(".").endswith(".railway.internal")


class _Bad(Exception):
    """Why a URL is refused, in words that hold nothing of it; the second argument is what to do."""


def missing_package(name: str, purpose: str) -> EnvironmentProblem:
    """The one error about an optional package."""
    return EnvironmentProblem(
        f"{purpose} needs the Python package {name}, which is missing for {sys.executable}",
        remedy=f"Install it there: pip install {name}.",
    )


def parse_store_url(url: t.Any, *, where: str = "the URL", kind: str | None = None) -> Store:
    """A database from its URL. It becomes a registered secret, and so do its parts that are.

    :param where: what a message calls it
    :param kind: ``postgresql``, ``redis`` or ``mongodb``, when it must be that
    :raises PlanError: not a URL that means one thing; the message holds no part of it
    :raises EnvironmentProblem: the parser's package is missing
    """
    text = "" if url is None else str(url)
    register_secret(text)
    try:
        return _parse(text, kind)
    except _Bad as exc:
        reason, remedy = exc.args
    name = f"a {kind} URL" if kind else "the URL of a database"
    raise PlanError(f"{where} is not {name}: {reason}", remedy=remedy or _FORM)


def secrets_of_url(url: t.Any) -> list[str]:
    """What of a URL no result may show, whether it can be parsed or not."""
    text = "" if url is None else str(url)
    rest = text.partition("://")[2] or text
    user, _at, _hosts = rest.rpartition("@")
    # Without a colon it is a user's name, but for Redis, where it may be an old-style password.
    named = ":" not in user and text.startswith(("postgres", "mongodb"))
    found = [text, "" if named else user, user.partition(":")[2]]
    found += [urllib.parse.unquote(value) for value in found]
    return [value for value in dict.fromkeys(found) if len(value) >= 4]


def _parse(text: str, kind: str | None) -> Store:
    scheme = _check_text(text)
    actual = _KIND_OF[scheme]
    if kind is not None and kind != actual:
        raise _Bad("its scheme is that of another kind of database", None)
    authority, path, query = _split(text[len(scheme) + 3 :])
    userinfo, _at, hosts = authority.rpartition("@")
    _check_userinfo(userinfo, bool(_at), actual)
    _check_hosts(hosts, scheme)
    options = _options(query)
    parse = {POSTGRESQL: _postgresql, REDIS: _redis, MONGODB: _mongodb}[actual]
    store = parse(text, scheme, path, options)
    for host, port in store.hosts:
        if not host or not 1 <= port <= 65535:
            raise _Bad("its host or port is not one", None)
    secrets = [*secrets_of_url(text), store.password or ""]
    secrets += [value for name, value in options.items() if name.lower() in _SECRET_OPTIONS]
    for secret in secrets:
        register_secret(secret)
    return dataclasses.replace(store, secrets=tuple(value for value in dict.fromkeys(secrets) if len(value) >= 4))


def _check_text(text: str) -> str:
    """The scheme of a text that may be a URL."""
    if not text.strip():
        raise _Bad("it is empty", None)
    if any(mark in text for mark in _PLACEHOLDERS):
        raise _Bad("it holds a reference or placeholder that was not resolved", "Give the resolved value.")
    if not text.isascii() or any(not "!" <= character <= "~" for character in text):
        raise _Bad("it holds white space, control or non-ASCII characters", "Remove or percent-encode them.")
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise _Bad("it has no scheme", None)
    if scheme not in _KIND_OF:
        if scheme.lower() in _KIND_OF:
            raise _Bad("its scheme is not in lower case", "Write the scheme in lower case.")
        raise _Bad(f"its scheme is none of {', '.join(_KIND_OF)}", None)
    if rest.startswith("***@") or ":***@" in rest:
        raise _Bad("it is redacted text", "Give the value itself, not what a log or the registry shows of it.")
    if any(word in rest.lower() for word in _FALSE_SECRETS):
        raise _Bad("it holds a placeholder", "Give the real value.")
    if "#" in rest:
        raise _Bad("it has a fragment, or an unescaped # in its password", _ESCAPE)
    if any(character in rest for character in '"\\^`|'):
        raise _Bad("it holds a character that a URL cannot hold", _ESCAPE)
    pieces = rest.split("%")[1:]
    if any(len(piece) < 2 or not set(piece[:2]) <= set("0123456789abcdefABCDEF") for piece in pieces):
        raise _Bad("it has a percent sign that begins no escape", "Percent-encode it: %25.")
    try:
        decoded = urllib.parse.unquote(rest, errors="strict")
    except UnicodeDecodeError:
        raise _Bad("its percent-encoded characters are not UTF-8", _ESCAPE) from None
    if any(ord(character) < 32 or ord(character) == 127 for character in decoded):
        raise _Bad("it holds a percent-encoded control character", "Remove it.")
    return scheme


def _split(rest: str) -> tuple[str, str, str | None]:
    """Authority, path and query of what follows ``://``."""
    before, mark, query = rest.partition("?")
    authority, _slash, path = before.partition("/")
    if "@" in path or "@" in query or authority.count("@") > 1:
        # The end of the password cannot be told, and the rest of it would pass for a host, a path or a query.
        raise _Bad("it has an @ that is not the end of user and password", _ESCAPE)
    if "/" in path or any(character in path for character in ":[],;="):
        raise _Bad("its path is more than one name", _ESCAPE)
    if mark and not query:
        raise _Bad("it ends with an empty query", "Remove the ? at its end.")
    return authority, path, query if mark else None


def _check_userinfo(userinfo: str, given: bool, kind: str) -> None:
    if not given:
        return
    user, colon, password = userinfo.partition(":")
    if any(character in userinfo for character in "[]"):
        raise _Bad("its user or password holds a reserved character", _ESCAPE)
    if colon and not password:
        raise _Bad("its password is empty", "Give the password, or leave out the colon.")
    if not user and not colon:
        raise _Bad("it has an @ and no user", None)
    if not user and kind != REDIS:
        raise _Bad("it has a password and no user", None)
    if kind == REDIS and not colon:
        raise _Bad(
            "it has a user without a password, which may be a password without its colon",
            "Put a colon before it if it is a password, else give user and password.",
        )


def _check_hosts(hosts: str, scheme: str) -> None:
    names = hosts.split(",")
    if scheme not in ("mongodb", "postgresql", "postgres") and len(names) > 1:
        raise _Bad("it has a list of hosts", "Give one host.")
    for name in names:
        host, port = name, ""
        if name.startswith("["):
            host, closing, port = name[1:].partition("]")
            try:
                ipaddress.IPv6Address(host)
            except ValueError:
                closing = ""
            if not closing or (port and not port.startswith(":")):
                raise _Bad("its IPv6 address is not one", "Write it in brackets, as [::1]:6379.")
        elif ":" in name:
            host, _colon, port = name.partition(":")
            port = ":" + port
        if not host:
            raise _Bad("it has no host", None)
        if not name.startswith("[") and not set(host) <= _HOST_CHARACTERS:
            raise _Bad("its host is not a name or an address", _ESCAPE)
        if port and not (port[1:].isdigit() and len(port) <= 6 and 1 <= int(port[1:]) <= 65535):
            raise _Bad("its port is not a number from 1 to 65535", _ESCAPE)
        if port and scheme == "mongodb+srv":
            raise _Bad("mongodb+srv takes no port", "Leave the port out: DNS has it.")
    if scheme == "mongodb+srv" and len(hosts.strip(".").split(".")) < 3:
        raise _Bad("mongodb+srv needs a host name of at least three parts", None)


def _options(query: str | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in (query or "").split("&") if query is not None else ():
        name, equals, value = pair.partition("=")
        if not name or not equals or not value or "=" in value:
            raise _Bad("its query is not a list of name=value", _ESCAPE)
        if name.lower() in {known.lower() for known in found}:
            raise _Bad("its query gives an option twice", "Give it once.")
        found[name] = urllib.parse.unquote(value)
    return found


def _postgresql(url: str, scheme: str, path: str, options: dict[str, str]) -> Store:
    if any(name.lower() in _POSTGRESQL_QUERY_REFUSED for name in options):
        raise _Bad(
            "its query holds a keyword that belongs elsewhere or hides an address or a secret",
            "Put user, password, host, port and database before the query; leave out service, passfile and options.",
        )
    try:
        keywords = ConnectionOptions.from_params({"login_url": url}).keywords
    except PlanError:
        raise _Bad("libpq does not understand it, or its query has an unknown keyword", None) from None
    names = keywords.get("host", "").split(",")
    ports = keywords.get("port", "").split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise _Bad("its hosts and ports do not fit together", None)
    mode = keywords.get("sslmode")
    if mode is not None and mode not in ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"):
        raise _Bad("its sslmode is none that libpq knows", "Use sslmode=verify-full or another of libpq's modes.")
    return Store(
        kind=POSTGRESQL,
        scheme=scheme,
        hosts=tuple((name, int(port or 5432)) for name, port in zip(names, ports)),
        url=url,
        database=keywords.get("dbname") or None,
        username=keywords.get("user") or None,
        password=keywords.get("password") or None,
        tls=mode in ("require", "verify-ca", "verify-full"),
    )


def _redis(url: str, scheme: str, path: str, options: dict[str, str]) -> Store:
    try:
        from redis.connection import parse_url
    except ImportError:
        raise missing_package("redis", "a redis URL") from None
    for name, value in options.items():
        if name.lower() in ("ssl", "tls"):
            raise _Bad("its query asks for TLS, which redis-py ignores there", "Write rediss:// for TLS.")
        if name not in _REDIS_QUERY:
            raise _Bad(f"its query has another option than {', '.join(_REDIS_QUERY)}", _ESCAPE)
        if name.startswith("ssl_") and scheme != "rediss":
            raise _Bad("its query has an option of TLS, and its scheme is not rediss", "Write rediss:// for TLS.")
        if name == "protocol" and value not in ("2", "3"):
            raise _Bad("its protocol is not 2 or 3", None)
        if name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            raise _Bad("its ssl_cert_reqs is none of none, optional, required", None)
        if name == "ssl_check_hostname" and value.lower() not in ("true", "false"):
            raise _Bad("its ssl_check_hostname is not true or false", None)
    if path and "db" in options:
        raise _Bad("it names a database in its path and in its query", "Name it in one place.")
    number = options.get("db", path)
    if number and not (number.isdigit() and len(number) <= 6):
        raise _Bad("its database is not a number from 0", None)
    try:
        parsed = parse_url(url)
    except Exception:  # whatever it is, its text quotes the URL
        raise _Bad("redis-py does not understand it", _ESCAPE) from None
    return Store(
        kind=REDIS,
        scheme=scheme,
        hosts=((str(parsed.get("host") or ""), int(parsed.get("port") or _PORTS[REDIS])),),
        url=url,
        database=str(parsed["db"]) if "db" in parsed else None,
        username=parsed.get("username") or None,
        password=parsed.get("password") or None,
        tls=scheme == "rediss",
    )


def _mongodb(url: str, scheme: str, path: str, options: dict[str, str]) -> Store:
    try:
        from pymongo.uri_parser import parse_uri
    except ImportError:
        raise missing_package("pymongo", "a mongodb URL") from None
    given = url
    if scheme == "mongodb+srv":
        # The parser would ask DNS; its rules for everything but the hosts are those of mongodb://.
        base, _mark, query = url.partition("?")
        kept = [pair for pair in query.split("&") if pair and pair.partition("=")[0].lower() not in _SRV_ONLY]
        # Without a path there must be a slash before the query.
        base = "mongodb" + base[len(scheme) :]
        given = base + ("/" if kept and "/" not in base[len("mongodb://") :] else "") + ("?" if kept else "")
        given += "&".join(kept)
    elif any(name.lower() in _SRV_ONLY for name in options):
        raise _Bad("its query has an option of mongodb+srv", "Write mongodb+srv://, or leave the option out.")
    if "." in path:
        raise _Bad("its database has a dot in its name", None)
    try:
        parsed = parse_uri(given, validate=True)
    except Exception:  # whatever it is, its text may quote the URL
        raise _Bad("pymongo does not understand it, or its query has an unknown option or value", _ESCAPE) from None
    hosts = tuple((str(host), int(port or 0)) for host, port in parsed["nodelist"])
    tls = parsed["options"].get("tls")
    return Store(
        kind=MONGODB,
        scheme=scheme,
        hosts=hosts,
        url=url,
        database=parsed.get("database") or None,
        username=parsed.get("username") or None,
        password=parsed.get("password") or None,
        tls=bool(tls) if tls is not None else scheme == "mongodb+srv",
    )
