# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Probes of PostgreSQL, Redis and MongoDB: one login and one ping each, in bounded time, and what came of it as a word.

A driver's message may quote the URL, so none leaves this file: every reason is one of the texts below.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import queue
import re
import socket
import ssl
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    Interrupted,
    PlanError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record
from ansible_collections.surefoot.dbops.plugins.module_utils._registry import (
    Keys,
    Registry,
    Row,
    Session,
    Unreadable,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._stores import (
    MONGODB,
    POSTGRESQL,
    REDIS,
    Store,
    missing_package,
    parse_store_url,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._values import parse_duration

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

OK, AUTH_FAILED, UNREACHABLE, TIMEOUT = "ok", "auth_failed", "unreachable", "timeout"
TLS_ERROR, BAD_URL = "tls_error", "bad_url"
ERROR = "error"  # it answered, and cannot serve
NOT_PROBED = "not_probed"
STATUSES = (OK, AUTH_FAILED, UNREACHABLE, TIMEOUT, TLS_ERROR, BAD_URL, ERROR, NOT_PROBED)
HEALTHY = "databases.healthy"
MAX_TARGETS = 1000
MAX_AT_ONCE = 32
_GRACE = 0.5  # seconds a driver gets beyond its own limit, to say itself what went wrong

_REASONS = {
    "timeout": (TIMEOUT, "no answer in time"),
    "dns": (UNREACHABLE, "the host name cannot be resolved"),
    "refused": (UNREACHABLE, "the connection was refused"),
    "closed": (UNREACHABLE, "the server closed the connection; it may speak TLS, or not this protocol"),
    "network": (UNREACHABLE, "the network does not lead there"),
    "auth": (AUTH_FAILED, "the server is up and refuses the login"),
    "certificate": (TLS_ERROR, "the server's certificate is not trusted"),
    "tls": (TLS_ERROR, "TLS cannot be agreed on; the server may not speak it"),
    "loading": (ERROR, "the server is starting and not ready yet"),
    "full": (ERROR, "the server has no connection left"),
    "primary": (ERROR, "servers answer, and none of them is the primary"),
    "database": (ERROR, "the server has no such database"),
    "refuses": (ERROR, "the server answers with an error"),
    "driver": (BAD_URL, "the driver cannot use this URL"),
    "late": (NOT_PROBED, "the total time was over before its turn"),
}
# The server's words arrive in its own language; what none of these knows is an error of a server that answered.
_POSTGRESQL: tuple[tuple[str, str], ...] = (
    (r"password authentication failed|no password supplied|authentication failed|pg_hba\.conf|SCRAM", "auth"),
    (r"role .* does not exist|not permitted to log in|permission denied for database", "auth"),
    (r"timeout expired|timed out", "timeout"),
    (r"could not translate host name|Name or service not known", "dns"),
    (r"certificate verify failed|root certificate|does not match host name", "certificate"),
    (r"SSL|TLS", "tls"),
    (r"Connection refused", "refused"),
    (r"No route to host|unreachable|could not create socket", "network"),
    (r"starting up|shutting down|in recovery", "loading"),
    (r"too many clients|remaining connection slots|too many connections", "full"),
    (r"database .* does not exist", "database"),
    (r"server closed the connection|Connection reset|received invalid response", "closed"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """What one probe came to."""

    status: str
    reason: str | None = None
    milliseconds: float | None = None


def _as(name: str) -> Result:
    return Result(*_REASONS[name])


def probe(store: Store, timeout: float) -> Result:
    """Log in and ping once. Never raises for what the server or the network does; never takes much longer than that."""
    ask = {POSTGRESQL: _ask_postgresql, REDIS: _ask_redis, MONGODB: _ask_mongodb}[store.kind]
    answers: queue.Queue[Result] = queue.Queue()
    started = time.perf_counter()

    def work() -> None:
        try:
            result = ask(store, timeout)
        except Exception as exc:  # no driver lists all it raises, and its text may hold the URL
            result = _as(_by_cause(exc) or "driver")
        answers.put(dataclasses.replace(result, milliseconds=round((time.perf_counter() - started) * 1000, 1)))

    # Name resolution knows no timeout, and a driver's starts anew with each address, reply or attempt.
    threading.Thread(target=work, name="surefoot-probe", daemon=True).start()
    try:
        result = answers.get(timeout=timeout + _GRACE)
    except queue.Empty:
        result = dataclasses.replace(_as("timeout"), milliseconds=round((time.perf_counter() - started) * 1000, 1))
    if result.status in (UNREACHABLE, TIMEOUT) and store.railway_private:
        reason = f"{result.reason}; *.railway.internal exists inside its own Railway environment only"
        result = dataclasses.replace(result, reason=reason)
    return result


def require_packages(stores: t.Iterable[Store]) -> None:
    """:raises EnvironmentProblem: a driver that one of them needs is missing"""
    for scheme in {store.scheme for store in stores}:
        name = {"redis": "redis", "rediss": "redis", "mongodb": "pymongo", "mongodb+srv": "dnspython"}.get(scheme)
        if name is not None:
            try:
                __import__({"dnspython": "dns.resolver"}.get(name, name))
            except ImportError:
                raise missing_package(name, f"a probe of {scheme}") from None


def _chain(exc: BaseException | None) -> t.Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__


def _by_cause(exc: BaseException | None) -> str | None:
    """A name of ``_REASONS`` by the first exception of the system in the chain."""
    for item in _chain(exc):
        if isinstance(item, ssl.SSLCertVerificationError):
            return "certificate"
        if isinstance(item, ssl.SSLError) and not isinstance(item, ssl.SSLEOFError):
            return "timeout" if "timed out" in str(item) else "tls"
        if isinstance(item, socket.gaierror):
            return "dns"
        if isinstance(item, (socket.timeout, TimeoutError)):
            return "timeout"
        if isinstance(item, ConnectionRefusedError):
            return "refused"
        if isinstance(item, (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)):
            return "closed"
        if isinstance(item, OSError) and item.errno:
            return "network"
    return None


def _ask_postgresql(store: Store, timeout: float) -> Result:
    keywords: dict[str, t.Any] = dict(ConnectionOptions.from_params({"login_url": store.url}).keywords)
    keywords["connect_timeout"] = max(2, int(timeout))  # libpq knows whole seconds, from 2 on
    keywords["application_name"] = "surefoot:health"
    # PGPASSWORD of the environment is for the servers of whoever set it, not for every address in a registry.
    keywords.setdefault("password", "")
    # No startup options: a connection pooler, which a registered address may be, would refuse them.
    try:
        connection = psycopg2.connect(**keywords)
    except psycopg2.Error as exc:
        text = " ".join(str(exc).split())
        return _as(next((name for pattern, name in _POSTGRESQL if re.search(pattern, text)), "refuses"))
    try:
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except psycopg2.Error:
        return _as("closed" if connection.closed else "refuses")
    return Result(OK)


def _ask_redis(store: Store, timeout: float) -> Result:
    import redis
    from redis import exceptions
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    client = redis.Redis.from_url(
        store.url, socket_connect_timeout=timeout, socket_timeout=timeout, retry=Retry(NoBackoff(), 0)
    )
    try:
        client.ping()
    except exceptions.RedisError as exc:
        refused = (
            exceptions.AuthenticationError,
            exceptions.AuthenticationWrongNumberOfArgsError,
            exceptions.AuthorizationError,
            exceptions.NoPermissionError,
        )
        word = str(exc).partition(" ")[0]
        if isinstance(exc, refused) or word in ("WRONGPASS", "NOAUTH", "NOPERM"):
            return _as("auth")
        if isinstance(exc, exceptions.BusyLoadingError):
            return _as("loading")
        if "max number of clients" in str(exc):
            return _as("full")
        if "DB index is out of range" in str(exc):
            return _as("database")
        if isinstance(exc, exceptions.TimeoutError):
            return _as("timeout")
        name = _by_cause(exc)
        if name is not None:
            return _as(name)
        return _as("closed" if isinstance(exc, exceptions.ConnectionError) else "refuses")
    finally:
        client.close()
    return Result(OK)


def _of_monitor(error: Exception) -> str:
    """A name of ``_REASONS``. pymongo's monitor cuts the causes off its errors, so their text must do."""
    text = str(error)
    if "certificate verify failed" in text.lower() or "CERTIFICATE_VERIFY_FAILED" in text:
        return "certificate"
    if type(error).__name__ == "NetworkTimeout":
        return "timeout"
    number = re.search(r"\[Errno (-?\d+)\]", text)
    code = int(number.group(1)) if number else 0
    if code < 0:  # those of getaddrinfo
        return "dns"
    if code == errno.ECONNREFUSED:
        return "refused"
    if code in (errno.ECONNRESET, errno.EPIPE) or "connection closed" in text or "EOF occurred" in text:
        return "closed"
    if "SSL" in text:
        return "tls"
    return "network" if code else "closed"


def _ask_mongodb(store: Store, timeout: float) -> Result:
    import pymongo
    from pymongo import errors

    # It looks for a server all that time, even for one that refuses; what is left is for the login.
    milliseconds = max(1, int(timeout * 700))
    try:
        client: pymongo.MongoClient[t.Any] = pymongo.MongoClient(
            store.url,
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            socketTimeoutMS=milliseconds,
            appname="surefoot",
        )
    except errors.PyMongoError as exc:
        # The hosts of mongodb+srv come from DNS; everything else was parsed before.
        return _as(_by_cause(exc) or ("dns" if store.scheme == "mongodb+srv" else "driver"))
    try:
        client.admin.command("ping")
    except errors.OperationFailure as exc:
        return _as("auth" if exc.code in (13, 18, 8000) else "refuses")
    except errors.ServerSelectionTimeoutError:
        servers = list(client.topology_description.server_descriptions().values())
        if any(server.server_type_name != "Unknown" for server in servers):
            return _as("primary")
        names = [_of_monitor(server.error) for server in servers if server.error is not None]
        return _as(names[0] if names else "timeout")
    except errors.NetworkTimeout:
        return _as("timeout")
    except errors.ConnectionFailure as exc:
        return _as(_by_cause(exc) or "closed")
    finally:
        client.close()
    return Result(OK)


# ---------------------------------------------------------------------------------------------------------------------
# Many targets


@dataclasses.dataclass
class Target:
    """One database to probe, or why it cannot be."""

    name: str
    store: Store | None = None
    kind: str | None = None
    criterion: str | None = None
    optional: bool = False
    row: Row | None = None
    result: Result | None = None

    @property
    def key(self) -> str:
        """Tells it from others of its name."""
        return f"{self.row.project_id} {self.name}" if self.row is not None else self.name

    def to_dict(self) -> dict[str, t.Any]:
        result = self.result or _as("late")
        return {
            "name": self.name,
            "type": self.kind,
            "address": self.store.redacted if self.store is not None else None,
            "project_id": self.row.project_id if self.row is not None else None,
            "status": result.status,
            "reason": result.reason,
            "milliseconds": result.milliseconds,
            "criterion": self.criterion,
            "optional": self.optional,
        }


def parse_targets(given: t.Sequence[t.Mapping[str, t.Any]]) -> list[Target]:
    """Targets from the module's options. A URL that is none is a result, not an error.

    :raises PlanError: a name twice, or a criterion that a probe cannot meet
    """
    targets: list[Target] = []
    for item in given:
        name = str(item["name"])
        if name in {target.name for target in targets}:
            raise PlanError(f"two targets have the name {name}", remedy="Give each a name of its own.")
        target = Target(name, kind=item.get("type"), criterion=check_criterion(item.get("criterion"), name))
        _take_url(target, item.get("url"), f"the URL of {name}")
        targets.append(target)
    return targets


def parse_limit(value: t.Any, option: str) -> float:
    """Seconds of a time limit.

    :raises PlanError: not a duration, or none
    """
    seconds = float(parse_duration(value))
    if not 0 < seconds <= 3600:
        raise PlanError(f"{option} is not between 0 and an hour", remedy="Give a time such as 5s.")
    return seconds


def check_criterion(value: t.Any, name: str) -> str | None:
    """:raises PlanError: something that a probe does not measure"""
    if value in (None, ""):
        return None
    if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*\.healthy", str(value)) or value == HEALTHY:
        raise PlanError(
            f"the criterion {value} of {name} is not one that a probe can meet",
            remedy=f"Give one that ends in .healthy, such as railway.redis.healthy; {HEALTHY} is recorded anyway.",
        )
    return str(value)


def _take_url(target: Target, url: t.Any, where: str) -> None:
    try:
        target.store = parse_store_url(url, where=where, kind=target.kind)
        target.kind = target.store.kind
    except PlanError as exc:
        target.result = Result(BAD_URL, exc.message)


@dataclasses.dataclass
class RegistryRequest:
    """Which rows of a registry to probe."""

    options: ConnectionOptions
    registry: Registry
    key: str = dataclasses.field(repr=False)
    project_ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ("active",)
    write: bool = True


@dataclasses.dataclass
class Health:
    """One task. :meth:`run` does it; :meth:`stop` may be called from another thread."""

    targets: list[Target]
    request: RegistryRequest | None = None
    criteria: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    optional: t.Collection[str] = ()
    timeout: float = 5.0
    total_timeout: float = 60.0
    check_mode: bool = False
    changes: list[tuple[dict[str, t.Any], dict[str, t.Any]]] = dataclasses.field(default_factory=list)
    written: int = 0
    _stopped: threading.Event = dataclasses.field(default_factory=threading.Event)
    _session: Session | None = None

    def stop(self, _reason: str = "") -> None:
        """No further probe begins, and what is not finished does not count."""
        self._stopped.set()
        if self._session is not None:
            self._session.cancel()

    def run(self) -> None:
        """Read the registry, probe everything, write what was found."""
        if self.request is not None:
            self.targets += self._registered(self.request)
        if len(self.targets) > MAX_TARGETS:
            raise PlanError(f"{len(self.targets)} databases are more than {MAX_TARGETS}", remedy="Choose fewer.")
        self._assign()
        require_packages(target.store for target in self.targets if target.store is not None)
        self._probe_all()
        if self._stopped.is_set():
            raise Interrupted("the probes were told to stop")
        if self.request is not None and self.request.write:
            self._write(self.request)

    def _assign(self) -> None:
        names = {target.name for target in self.targets}
        for name in self.optional:
            if name not in names:
                raise PlanError(
                    f"optional names {name}, and no target or row has this name", remedy="Correct it, or take it out."
                )
        for target in self.targets:
            target.criterion = target.criterion or check_criterion(self.criteria.get(target.name), target.name)
            target.optional = target.name in self.optional
        for name, criterion in self.criteria.items():
            if name not in names:
                missing = Target(name, criterion=check_criterion(criterion, name), optional=name in self.optional)
                missing.result = Result(NOT_PROBED, "the registry has no such database")
                self.targets.append(missing)

    def _registered(self, request: RegistryRequest) -> list[Target]:
        """The rows as targets. The session that holds the key is closed before anything else is done."""
        self._session = session = Session(
            request.options,
            request.registry,
            key=request.key,
            purpose="health",
            timeout=self.timeout,
            settings={"statement_timeout": f"{max(1, int(self.total_timeout))}s"},
        )
        targets: list[Target] = []
        try:
            session.check_shape()
            keys = Keys(request.key, request.registry.label)
            conditions = ["true"]
            for role, values in (
                ("project_id", request.project_ids),
                ("name", request.names),
                ("status", request.statuses if "status" in session.types else ()),
            ):
                if values:
                    wanted = ", ".join(session.literal(value, role) for value in values)
                    conditions.append(f"{session.quoted(role)} IN ({wanted})")
            rows = session.rows(" AND ".join(conditions))
            for name in request.names:
                if name not in {row.name for row in rows}:
                    target = Target(name, result=Result(NOT_PROBED, "the registry has no such database"))
                    targets.append(target)
            for row in rows:
                target = Target(row.name, kind=row.type, row=row)
                try:
                    _take_url(target, session.url_of(row, keys, in_transaction=False), f"the URL of {row.name}")
                except Unreadable as exc:
                    target.result = Result(NOT_PROBED, f"its URL cannot be read: {exc}")
                targets.append(target)
        finally:
            session.close()
            self._session = None
        return targets

    def _probe_all(self) -> None:
        waiting: queue.Queue[tuple[int, Store]] = queue.Queue()
        for target in self.targets:
            if target.result is None and target.store is not None:
                waiting.put((id(target), target.store))
        deadline = time.monotonic() + self.total_timeout
        results: dict[int, Result] = {}

        def work() -> None:
            while not self._stopped.is_set():
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                try:
                    number, store = waiting.get_nowait()
                except queue.Empty:
                    return
                results[number] = probe(store, min(self.timeout, left))

        threads = [
            threading.Thread(target=work, name="surefoot-probes", daemon=True)
            for _number in range(min(waiting.qsize(), MAX_AT_ONCE))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()) + 2 * _GRACE)
        for target in self.targets:
            if target.result is None:
                target.result = results.get(id(target), _as("late"))

    def _write(self, request: RegistryRequest) -> None:
        """Note the results in the registry, over a connection that has no key."""
        self._session = session = Session(request.options, request.registry, purpose="health", timeout=self.timeout)
        try:
            session.check_shape(reads_urls=False)
            for target in self.targets:
                if target.row is None or target.result is None:
                    continue
                before = (target.row.health_check_status, target.row.health_check_error)
                after = _health_of(target.result)
                if before != after:
                    self.changes.append((_change(target, *before), _change(target, *after)))
                if not self.check_mode:
                    self._write_one(session, request, target.row, after)
        finally:
            session.close()
            self._session = None

    def _write_one(self, session: Session, request: RegistryRequest, row: Row, after: tuple[str, str | None]) -> None:
        status, error = after
        if request.registry.update_function:
            text = "SELECT {}({}, {}, {})".format(
                session.call(request.registry.update_function),
                session.literal(row.id, "id"),
                session.literal(status),
                session.literal(error),
            )
            ((found,),) = session.query(text)
        else:
            pairs = {"health_check_status": session.literal(status), "health_check_error": session.literal(error)}
            pairs["last_health_check_at"] = "now()"
            missing = [role for role in pairs if role not in session.types]
            if missing:
                raise PlanError(
                    f"{request.registry.label} has no column {', '.join(missing)} to write health to",
                    remedy="Name the columns in the option columns, or set update_registry: false.",
                )
            text = ", ".join(f"{session.quoted(role)} = {value}" for role, value in pairs.items())
            condition = f"{session.quoted('id')} = {session.literal(row.id, 'id')}"
            found = session.query(f"UPDATE {session.table} SET {text} WHERE {condition} RETURNING 1")
        self.written += bool(found)

    # --- results

    @property
    def secrets(self) -> list[str]:
        """What no result may show, those of the registry included."""
        return [secret for target in self.targets if target.store is not None for secret in target.store.secrets]

    @property
    def failed(self) -> list[Target]:
        """Those that are not ok and count."""
        return [
            target for target in self.targets if not target.optional and (target.result or _as("late")).status != OK
        ]

    @property
    def summary(self) -> str:
        """One line."""
        healthy = sum(1 for target in self.targets if target.result is not None and target.result.status == OK)
        text = f"{healthy} of {len(self.targets)} databases are healthy"
        bad = [target.to_dict() for target in self.targets if target.to_dict()["status"] != OK]
        words = [
            f"{item['name']}: {item['status']}, {item['reason']}" + (" (optional)" if item["optional"] else "")
            for item in bad
        ]
        return text + (f"; {'; '.join(words)}" if words else "") + "."

    def results(self, run_dir: str | None, diff: bool) -> dict[str, t.Any]:
        """The module's results; the evidence is also recorded in the run directory."""
        found: dict[str, t.Any] = {
            "changed": bool(self.changes),
            "databases": [target.to_dict() for target in self.targets],
            "healthy": bool(self.targets) and not self.failed,
            "summary": self.summary,
            "written": self.written,
            "evidence": record(run_dir, self._evidence()),
        }
        if diff:
            found["diff"] = [
                {"before_header": before["name"], "after_header": before["name"], "before": before, "after": after}
                for before, after in self.changes
            ]
        return found

    def failure(self) -> VerificationFailed | None:
        """What the task fails with; None when everything that counts is ok."""
        if self.targets and not self.failed:
            return None
        if not self.targets:
            return VerificationFailed(
                "there is no database to probe",
                remedy="Register databases, or correct project_ids, names and statuses.",
            )
        return VerificationFailed(self.summary, remedy="docs/registry.md says what each status means.")

    def _evidence(self) -> list[Evidence]:
        source = f"login and ping, at most {self.timeout:g} s each"
        found = []
        for target in self.targets:
            if target.criterion is None:
                continue
            shown = target.to_dict()
            measured = {key: shown[key] for key in ("name", "status", "reason", "milliseconds")}
            judged = _verdict([shown["status"]])
            details = {"subject": target.key}
            found.append(Evidence(target.criterion, "health", judged, measured, OK, source, details=details))
        counting = [target for target in self.targets if not target.optional]
        measured = {target.key: target.to_dict()["status"] for target in self.targets}
        judged = _verdict([target.to_dict()["status"] for target in counting])
        found.append(Evidence(HEALTHY, "health", judged, measured, "every database that counts is ok", source))
        return found


def _verdict(statuses: t.Sequence[str]) -> str:
    if any(status not in (OK, NOT_PROBED) for status in statuses):
        return "fail"
    return "pass" if statuses and NOT_PROBED not in statuses else "not_measured"


def _health_of(result: Result) -> tuple[str, str | None]:
    """What the registry says of a result."""
    if result.status == OK:
        return "healthy", None
    return "unknown" if result.status == NOT_PROBED else "unhealthy", f"{result.status}: {result.reason}"


def _change(target: Target, status: str | None, error: str | None) -> dict[str, t.Any]:
    return {"name": target.name, "health_check_status": status, "health_check_error": error}
