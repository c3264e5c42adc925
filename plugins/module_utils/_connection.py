# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Options to a libpq connection. Secrets stop here: what leaves this file as text is redacted."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import glob
import os
import re
import tempfile
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    EnvironmentProblem,
    Location,
    PlanError,
    SqlError,
)

try:
    import psycopg2
    import psycopg2.extensions

    PSYCOPG2_ERROR: ImportError | None = None
except ImportError as exc:
    PSYCOPG2_ERROR = exc

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

# libpq keyword of each module option that names a part of the connection.
_KEYWORDS = {
    "login_host": "host",
    "login_port": "port",
    "login_user": "user",
    "login_password": "password",
    "login_db": "dbname",
    "ssl_mode": "sslmode",
    "ca_cert": "sslrootcert",
    "ssl_cert": "sslcert",
    "ssl_key": "sslkey",
}
# libpq keyword -> environment variable, for child programs (PostgreSQL manual, "Environment Variables" of libpq).
_ENVIRONMENT = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "dbname": "PGDATABASE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "gssencmode": "PGGSSENCMODE",
    "krbsrvname": "PGKRBSRVNAME",
    "channel_binding": "PGCHANNELBINDING",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "connect_timeout": "PGCONNECT_TIMEOUT",
    "client_encoding": "PGCLIENTENCODING",
    "options": "PGOPTIONS",
}
_SECRET_KEYWORDS = ("password", "sslpassword")

_URL_USERINFO = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*://)([^\s/?#'\"]*)@")
_KEY_VALUE = re.compile(
    r"(?i)\b((?:[a-z_]*password|passwd|pwd|secret|token|api_?key|sslpassword)\s*(?:=|:)\s*)('(?:[^'\\]|\\.|'')*'|\"[^\"]*\"|[^\s&,;)'\"]+)"
)
_PASSWORD_LITERAL = re.compile(
    r"(?is)\b((?:encrypted\s+)?password\s+)(e?'(?:[^'\\]|\\.|'')*(?:'|\Z)|\$([A-Za-z_]*)\$.*?\$\3\$)"
)
# Inside a connection string, which is a literal of SQL such as that of CREATE SUBSCRIPTION.
_CONNINFO = re.compile(r"(?i)\b((?:ssl)?password=)([^\s'\";]+)")
_MASK = "***"

_secrets: set[str] = set()


def register_secret(value: object) -> None:
    """Mask this value wherever :func:`redact` sees it. Values of fewer than 4 characters are not masked: they are no
    secrets
    and would blank out ordinary text."""
    text = str(value) if value is not None else ""
    if len(text) >= 4:
        _secrets.add(text)


def redact_sql(text: str) -> str:
    """The text of a SQL file for the ledger: registered secrets, URL credentials and ``PASSWORD '...'`` literals
    masked."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, _MASK)
    if "password" in text.lower():
        text = _PASSWORD_LITERAL.sub(rf"\g<1>'{_MASK}'", _CONNINFO.sub(rf"\g<1>{_MASK}", text))
    return _URL_USERINFO.sub(rf"\g<1>{_MASK}@", text) if "://" in text else text


def redact(text: str) -> str:
    """The text with every registered secret, URL credentials and ``password`` values masked."""
    return _KEY_VALUE.sub(rf"\g<1>{_MASK}", redact_sql(text))


@dataclasses.dataclass(frozen=True)
class ConnectionOptions:
    """How to reach one database: libpq keywords and values, and the role to take on after login."""

    keywords: t.Mapping[str, str] = dataclasses.field(repr=False)
    session_role: str | None = None

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> ConnectionOptions:
        """From module options: ``login_url``, or the parts. ``PG*`` variables of the environment fill what neither
        names, as
        with every libpq program.

        :raises PlanError: the URL cannot be parsed, or an unknown keyword in ``connect_params``
        """
        require_driver()
        keywords: dict[str, str] = {}
        url = params.get("login_url")
        if url is not None:
            register_secret(url)
            keywords.update(_parse_url(str(url)))
        for option, keyword in _KEYWORDS.items():
            value = params.get(option)
            if value not in (None, ""):
                keywords[keyword] = str(value)
        if params.get("login_unix_socket"):
            keywords["host"] = str(params["login_unix_socket"])
        for keyword, value in (params.get("connect_params") or {}).items():
            keywords[str(keyword)] = str(value)
        for keyword in _SECRET_KEYWORDS:
            register_secret(keywords.get(keyword))
        return cls(keywords=keywords, session_role=params.get("session_role") or None)

    @property
    def secrets(self) -> list[str]:
        """The values a task result must never show."""
        return [self.keywords[keyword] for keyword in _SECRET_KEYWORDS if self.keywords.get(keyword)]

    @property
    def label(self) -> str:
        """``user@host:port/database``, for messages."""
        host = self.keywords.get("host") or os.environ.get("PGHOST") or "local socket"
        port = self.keywords.get("port") or os.environ.get("PGPORT") or "5432"
        user = self.keywords.get("user") or os.environ.get("PGUSER") or "current OS user"
        database = self.keywords.get("dbname") or os.environ.get("PGDATABASE") or user
        return f"{user}@{host}:{port}/{database}"

    def with_database(self, name: str) -> ConnectionOptions:
        """The same server and login, another database."""
        return dataclasses.replace(self, keywords={**self.keywords, "dbname": name})


def require_driver() -> None:
    """:raises EnvironmentProblem: psycopg2 is not installed for the Python that runs the module"""
    if PSYCOPG2_ERROR is not None:
        import sys

        raise EnvironmentProblem(
            f"the Python package psycopg2 is missing for {sys.executable}",
            remedy="Install it there: pip install psycopg2-binary.",
        )


def _parse_url(url: str) -> dict[str, str]:
    # The driver's message quotes the URL, password included: it is replaced, and the exception chain is cut.
    if not url.startswith(("postgresql://", "postgres://")):
        if not url.strip():
            hint = "It is empty."
        elif "=" in url and "://" not in url:
            hint = "It looks like key=value pairs; write it as a URL."
        elif "{{" in url:
            hint = "It still contains an untemplated expression."
        else:
            hint = "It does not start with postgresql:// or postgres://."
        raise PlanError(f"the database URL is not a PostgreSQL URL: {hint}", remedy=_URL_REMEDY)
    try:
        parsed = psycopg2.extensions.parse_dsn(url)
    except psycopg2.ProgrammingError:
        parsed = {"port": "unparsed"}
    # A password with an unescaped @ or : ends up in host or port, and from there in the driver's next message.
    if not _HOSTS.fullmatch(parsed.get("host", "")) or not _PORTS.fullmatch(str(parsed.get("port", ""))):
        raise PlanError(
            "the database URL cannot be parsed",
            remedy=_URL_REMEDY + " Percent-encode special characters of the password (@ is %40, / is %2F, : is %3A).",
        )
    return {str(key): str(value) for key, value in parsed.items()}


_HOSTS = re.compile(r"[A-Za-z0-9_.\-:,/\\]*")
_PORTS = re.compile(r"[0-9,]*")
_URL_REMEDY = "Give postgresql://user:password@host:port/database?sslmode=verify-full in login_url or DATABASE_URL."


def connect(
    options: ConnectionOptions,
    *,
    purpose: str,
    settings: t.Mapping[str, str] | None = None,
    timeout: float = 10.0,
) -> Connection:
    """An autocommit connection named ``surefoot:<purpose>`` in ``pg_stat_activity``.

    ``settings`` travel in the startup packet: they survive ``DISCARD ALL`` and never appear as statement text.

    :param timeout: seconds to wait for the server, per address
    :raises ConnectionFailed: with what to do about it
    """
    require_driver()
    keywords: dict[str, t.Any] = dict(options.keywords)
    startup = {"client_min_messages": "warning", "standard_conforming_strings": "on", **(settings or {})}
    if options.session_role:
        # As a startup option the role is what RESET ROLE and DISCARD ALL come back to.
        startup["role"] = options.session_role
    keywords["options"] = " ".join([keywords.get("options", ""), *startup_options(startup)]).strip()
    keywords.setdefault("connect_timeout", str(max(2, round(timeout))))
    keywords["application_name"] = f"surefoot:{purpose}"[:63]
    keywords.setdefault("keepalives_idle", "30")
    keywords.setdefault("keepalives_interval", "10")
    keywords.setdefault("keepalives_count", "3")
    keywords.setdefault("tcp_user_timeout", "60000")
    # The runner reads and compares UTF-8; a client_encoding from the environment must not change what a file means.
    keywords["client_encoding"] = "UTF8"
    try:
        connection: Connection = psycopg2.connect(**keywords)
        connection.autocommit = True
    except psycopg2.Error as exc:
        raise _connection_failed(options, exc) from None
    return connection


def open_console(options: ConnectionOptions, wait: t.Callable[[Connection], None]) -> Connection:
    """An asynchronous connection to the admin console of a connection pooler, which knows neither startup settings nor
    transactions.

    :param wait: brings the connection from one state to the next, and raises TimeoutError when that takes too long
    :raises ConnectionFailed: with what to do about it
    """
    require_driver()
    keywords: dict[str, t.Any] = {**options.keywords, "application_name": "surefoot:console", "client_encoding": "UTF8"}
    keywords.pop("options", None)
    try:
        connection: Connection = psycopg2.connect(**keywords, async_=1)
        try:
            wait(connection)
        except BaseException:
            connection.close()
            raise
    except TimeoutError:
        raise ConnectionFailed(
            f"cannot connect to {options.label}: no answer in time",
            remedy="Check network, security group and VPN between this machine and the server.",
        ) from None
    except psycopg2.Error as exc:
        raise _connection_failed(options, exc) from None
    return connection


def startup_options(settings: t.Mapping[str, str]) -> list[str]:
    """Settings as ``-c name=value`` words for libpq's ``options``, escaped by its rules (backslash before space and
    backslash)."""
    return ["-c " + re.sub(r"([\\\s])", r"\\\1", f"{name}={value}") for name, value in settings.items()]


def pooler_reason(connection: Connection, settings: t.Mapping[str, str] | None = None) -> str | None:
    """Why this connection does not lead straight to one server process; None when it does.

    A pooler hands out a process id of its own in the startup packet, and drops or shares startup settings.

    :param settings: startup settings the connection was made with, in the spelling ``current_setting`` returns
    """
    with connection.cursor() as cursor:
        names = list(settings or {})
        cursor.execute(
            "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('application_name'),"
            " array(SELECT pg_catalog.current_setting(name, true) FROM pg_catalog.unnest(%s::text[]) AS name)",
            (names,),
        )
        pid, name, values = cursor.fetchone() or (None, None, [])
    if pid != connection.info.backend_pid:
        return f"the address answers as process {connection.info.backend_pid} but statements run in process {pid}"
    if not str(name).startswith("surefoot:"):
        return "the connection's application_name got lost"
    lost = [key for key, value in zip(names, values) if value != (settings or {})[key]]
    return f"startup setting {lost[0]} got lost" if lost else None


def quote_identifier(name: str, connection: Connection) -> str:
    """An identifier quoted by the driver."""
    return str(psycopg2.extensions.quote_ident(name, connection))


def quote_literal(value: t.Any, connection: Connection) -> str:
    """A value as an SQL literal, quoted by the driver with the connection's encoding and string rules."""
    adapted = psycopg2.extensions.adapt(value)
    if hasattr(adapted, "prepare"):
        adapted.prepare(connection)
    return str(adapted.getquoted().decode("utf-8"))


_REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"password authentication failed|no password supplied|SCRAM|SASL authentication failed",
        "Check user and password (login_password, the URL, or a passfile).",
    ),
    (r"no pg_hba\.conf entry", "Let this host and user in by pg_hba.conf, or use the TLS mode it asks for (ssl_mode)."),
    (r"database \".*\" does not exist", "Check the database name (login_db or the URL's path)."),
    (r"role \".*\" does not exist", "Check the user name (login_user or the URL)."),
    (r"FATAL: +not allowed", "Log in as a user that admin_users of pgbouncer.ini names."),
    (
        r"permission denied to set role|permission denied.*role",
        "Grant the role named by session_role to the login user.",
    ),
    (r"could not translate host name|Name or service not known", "Check the host name, and DNS from this machine."),
    (r"Connection refused|No such file or directory", "Check that the server runs and that host and port are right."),
    (
        r"timeout expired|timed out|No route to host|unreachable",
        "Check network, security group and VPN between this machine and the server.",
    ),
    (
        r"too many clients|remaining connection slots|too many connections",
        "Free connections first, or wait: the server has none left.",
    ),
    (r"SSL|certificate", "Check ssl_mode and ca_cert; for verify-full the certificate must carry the host name used."),
    (
        r"unsupported startup parameter|unrecognized configuration parameter",
        "The address is a connection pooler; give the server's direct address.",
    ),
    (r"the database system is (starting up|shutting down|in recovery)", "Wait until the server accepts connections."),
)


def _connection_failed(options: ConnectionOptions, exc: Exception) -> ConnectionFailed:
    text = redact(" ".join(str(exc).split()))
    text = re.sub(r"connection to server (at|on) (socket )?\"[^\"]*\"(?: \([^)]*\))?(?:, port \d+)? failed: ", "", text)
    remedy = next(
        (remedy for pattern, remedy in _REMEDIES if re.search(pattern, text)), "Check the connection options."
    )
    return ConnectionFailed(f"cannot connect to {options.label}: {text.rstrip('.')}", remedy=remedy)


def sql_error(
    exc: t.Any,
    *,
    location: Location | None = None,
    statement: str | None = None,
    remedy: str | None = None,
) -> SqlError:
    """What the server said, redacted. DETAIL is left out: it prints rows, which may hold personal data or secrets.

    :param exc: a ``psycopg2.Error``
    :param statement: the statement's text; its first line is kept
    """
    primary = (
        getattr(getattr(exc, "diag", None), "message_primary", None) or " ".join(str(exc).split()) or type(exc).__name__
    )
    hint = getattr(getattr(exc, "diag", None), "message_hint", None)
    first_line = next((line.strip() for line in (statement or "").splitlines() if line.strip()), None)
    if first_line and len(first_line) > 120:
        first_line = first_line[:117] + "..."
    return SqlError(
        redact(primary),
        sqlstate=getattr(exc, "pgcode", None),
        statement=redact(first_line) if first_line else None,
        location=location,
        remedy=remedy or (redact(hint) if hint else None),
    )


@contextlib.contextmanager
def child_environment(options: ConnectionOptions, directory: str | None = None) -> t.Iterator[dict[str, str]]:
    """Environment for ``pg_dump`` and its kin. The password lies in a 0600 passfile that lives as long as the block, so
    that neither argv nor the environment shows it. What a killed process left there of its kind is removed.

    :param directory: where it lies: one that is removed even when this process is killed; else TMPDIR
    :raises EnvironmentProblem: the passfile cannot be written
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PGPASSWORD", "PGSERVICE")}
    if options.session_role:
        # pg_dump has --role; callers pass it. PGOPTIONS would not survive its own SET statements.
        environment["SUREFOOT_SESSION_ROLE"] = options.session_role
    for keyword, variable in _ENVIRONMENT.items():
        if keyword in options.keywords:
            environment[variable] = options.keywords[keyword]
    environment.setdefault("PGCONNECT_TIMEOUT", "10")
    environment["PGAPPNAME"] = "surefoot:child"
    password = options.keywords.get("password") or os.environ.get("PGPASSWORD")
    if not password:
        yield environment
        return
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    directory = directory or tempfile.gettempdir()
    _sweep_passfiles(directory)
    try:
        descriptor, hidden = tempfile.mkstemp(prefix=".surefoot-pass-", dir=directory)
        # Its lock says that its maker lives, and is there before the name that a sweep looks for.
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        path = os.path.join(directory, os.path.basename(hidden)[1:])
        os.rename(hidden, path)
    except OSError as exc:
        raise EnvironmentProblem(
            f"cannot write a passfile: {exc.strerror}", remedy="Give TMPDIR a writable directory."
        ) from exc
    stream = os.fdopen(descriptor, "w", encoding="utf-8")
    try:
        stream.write(f"*:*:*:*:{escaped}\n")
        stream.flush()
        environment["PGPASSFILE"] = path
        yield environment
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        stream.close()


def _sweep_passfiles(directory: str) -> None:
    """Remove the passfiles of this user whose makers were killed."""
    for path in glob.glob(os.path.join(glob.escape(directory), "surefoot-pass-*")):
        with contextlib.suppress(OSError):  # in use, somebody else's, or gone by now
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
            finally:
                os.close(descriptor)
