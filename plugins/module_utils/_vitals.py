# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The server's vital signs while a run works: sampled on a connection of their own, and the run is stopped when one of
them stays over its limit.

``_watch.py`` bounds what the run does itself, its locks; this looks at what becomes of everybody else. A sign that
cannot be seen is "not measured" and stops nothing: losing the third connection must not undo good work, and must not
pass for health either.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import re
import struct
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, connect, sql_error
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, SurefootError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, append_lines, record, utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._http import (
    Endpoint,
    Probe,
    parse_endpoint,
    probe,
    tls_context,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._serverlog import Follower, NotReadable, locate, mark
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import Throttle
from ansible_collections.surefoot.dbops.plugins.module_utils._values import (
    human_duration,
    human_size,
    parse_count,
    parse_duration,
    parse_percentage,
    parse_size,
)

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

SAMPLES_FILE = "watch.jsonl"
_WAL_WINDOW = 60.0
_SAMPLE_TIMEOUT = "5s"
_TABLE_LOCK_TIMEOUT = "100ms"
_MOST_WAITERS = 500
# How a server without a free connection refuses the watch's.
_FULL = re.compile(r"too many clients already|remaining connection slots are reserved")
_NEEDS_STATISTICS = "the role sees zeros without pg_read_all_stats: GRANT pg_monitor to it"

Stop = t.Callable[[SurefootError], None]


# --- what is asked for ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is sampled and how much is too much. Durations in seconds, sizes in bytes; None is no limit."""

    interval: float = 1.0
    samples: int = 3
    max_connections_used: float | None = 90.0
    wal_rate_max: int | None = 2**30
    max_waiters: int | None = 10
    max_wait: float | None = 5.0
    replica_lag_max: float | None = 30.0
    temp_max: int | None = None
    quarantine_max: int | None = 2**30
    disk_min_free: int | None = 2**30
    tables: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()

    @classmethod
    def from_options(cls, given: t.Mapping[str, t.Any]) -> Limits:
        """From the suboptions of ``watch``; what is missing or null has the default.

        :raises PlanError: a value that cannot be, or an unknown key
        """
        values: dict[str, t.Any] = {}
        for name, value in given.items():
            if name not in _READ:
                raise PlanError(f"watch has the unknown key {name}", remedy=f"Known: {', '.join(_READ)}.")
            if value is None:
                continue
            try:
                values[name] = _READ[name](value)
            except PlanError as exc:
                raise PlanError(f"watch.{name}: {exc.message}", remedy=exc.remedy) from None
        limits = cls(**values)
        if not 0.05 <= limits.interval <= 60:
            raise PlanError("watch.interval is not between 50ms and 60s", remedy="Give 1s.")
        return limits

    def throttle(self) -> Throttle:
        """What keeps a backfill below the limits that would stop the run: four fifths of each."""
        return Throttle(
            max_lag=_share(self.replica_lag_max),
            max_wal_rate=_share(self.wal_rate_max),
            max_waiters=_share(self.max_waiters),
            max_connections_used=_share(self.max_connections_used),
        )


def _share(limit: float | None) -> float | None:
    return None if limit is None else limit * 0.8


def _no_limit_or(read: t.Callable[[t.Any], t.Any]) -> t.Callable[[t.Any], t.Any]:
    return lambda value: None if str(value).strip().lower() == "none" else read(value)


def _rate(value: t.Any) -> int:
    return parse_size(re.sub(r"\s*/\s*min(ute)?\s*$", "", value) if isinstance(value, str) else value)


def _count(least: int) -> t.Callable[[t.Any], int]:
    return lambda value: parse_count(value, least)


def _tables(value: t.Any) -> tuple[str, ...]:
    return tuple(str(item) for item in value)


def _endpoints(value: t.Any) -> tuple[Endpoint, ...]:
    found = []
    for number, item in enumerate(value, start=1):
        options = {"url": item} if isinstance(item, str) else {k: v for k, v in item.items() if v is not None}
        found.append(parse_endpoint({"timeout": "5s", **options}, f"watch.endpoints, number {number}"))
    return tuple(found)


_READ: dict[str, t.Callable[[t.Any], t.Any]] = {
    "interval": parse_duration,
    "samples": _count(1),
    "max_connections_used": _no_limit_or(parse_percentage),
    "wal_rate_max": _no_limit_or(_rate),
    "max_waiters": _no_limit_or(_count(0)),
    "max_wait": _no_limit_or(parse_duration),
    "replica_lag_max": _no_limit_or(parse_duration),
    "temp_max": _no_limit_or(parse_size),
    "quarantine_max": _no_limit_or(parse_size),
    "disk_min_free": _no_limit_or(parse_size),
    "tables": _tables,
    "endpoints": _endpoints,
}


# --- the signs --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sign:
    """One number that is sampled. ``floor``: the limit is the least, not the most. ``what`` is how a message calls it,
    ``remedy`` what to do before the next attempt."""

    key: str
    criterion: str
    limit: str
    show: t.Callable[[float], str]
    what: str
    source: str
    remedy: str
    floor: bool = False


def _percent(value: float) -> str:
    return f"{value:.0f}%"


def _number(value: float) -> str:
    return f"{value:.0f}"


SIGNS = (
    Sign(
        "connections_percent",
        "watch.connections",
        "max_connections_used",
        _percent,
        "connections used",
        "pg_stat_database.numbackends of max_connections without the reserved ones",
        "Let the applications' pools shrink, or raise max_connections, before the next attempt.",
    ),
    Sign(
        "wal_bytes_per_minute",
        "watch.wal_rate",
        "wal_rate_max",
        human_size,
        "write-ahead log written in 60 s",
        "pg_current_wal_lsn, whole server",
        "Write less at a time (a backfill with a throttle), or wait until others write less.",
    ),
    Sign(
        "waiters",
        "watch.waiters",
        "max_waiters",
        _number,
        "sessions blocked by the migration",
        "pg_blocking_pids, sessions queued behind blocked ones included",
        "Make the change online, lower lock_timeout and lock_budget, or choose a quieter hour.",
    ),
    Sign(
        "longest_wait",
        "watch.waiters",
        "max_wait",
        human_duration,
        "longest wait of a session blocked by the migration",
        "pg_locks.waitstart",
        "Make the change online, lower lock_timeout and lock_budget, or choose a quieter hour.",
    ),
    Sign(
        "replica_lag",
        "watch.replica_lag",
        "replica_lag_max",
        human_duration,
        "lag of the slowest replica",
        "pg_stat_replication: age of what it has not replayed",
        "Wait until the replicas have caught up; write less at a time.",
    ),
    Sign(
        "temp_bytes",
        "watch.temp_tables",
        "temp_max",
        human_size,
        "growth of temporary files, temporary tables and the tables named",
        "pg_ls_tmpdir, pg_relation_size",
        "Work in smaller batches, or raise temp_max if there is room.",
    ),
    Sign(
        "quarantine_bytes",
        "watch.quarantine",
        "quarantine_max",
        human_size,
        "growth of the quarantine",
        "pg_total_relation_size of the ledger's quarantine",
        "Look at the rows in the quarantine by reason: mend what they have in common first, or raise quarantine_max.",
    ),
    Sign(
        "disk_free",
        "watch.disk",
        "disk_min_free",
        human_size,
        "free space of the server's disks",
        "statvfs of the data directory, pg_wal and tablespaces",
        "Make room on the server before the next attempt.",
        floor=True,
    ),
    Sign(
        "endpoint_failures",
        "watch.endpoints",
        "endpoints",
        _number,
        "endpoints not answering as expected",
        "HTTP requests during the run",
        "Look at the application's log: did it meet the schema it expects?",
    ),
)


class _Unseen(Exception):
    """Why a sign cannot be seen. ``nothing`` when there is nothing to see."""

    def __init__(self, reason: str, *, nothing: bool = False) -> None:
        super().__init__(reason)
        self.nothing = nothing


_NOT_YET = _Unseen("an endpoint has not answered yet")  # before the first answer, which is no gap


@dataclasses.dataclass
class Track:
    """What became of one sign; ``over`` and ``missed`` count samples in a row."""

    worst: float | None = None
    last: float | None = None
    taken: int = 0
    over: int = 0
    over_total: int = 0
    missed: int = 0
    longest_gap: int = 0
    tripped: bool = False
    reason: str | None = None
    nothing: bool = False

    def note(self, value: float | _Unseen, limit: float | None, floor: bool) -> None:
        """One sample more."""
        if isinstance(value, _Unseen):
            self.missed += 1
            self.longest_gap = max(self.longest_gap, self.missed)
            self.reason, self.nothing = str(value), value.nothing
            return
        worse = min if floor else max
        self.worst = value if self.worst is None else worse(self.worst, value)
        self.last, self.nothing = value, False
        self.taken += 1
        self.missed = 0
        is_over = limit is not None and (value < limit if floor else value > limit)
        self.over = self.over + 1 if is_over else 0
        self.over_total += is_over

    def verdict(self, limit: float | None, patience: int) -> str:
        """A gap as long as it takes to stop a run may hide what would have stopped it."""
        if self.tripped:
            return "fail"
        if limit is None or (self.nothing and not self.taken):
            return "not_applicable"
        return "pass" if self.taken and self.longest_gap < patience else "not_measured"


def behind(ours: t.Collection[int], blocked: t.Mapping[int, tuple[t.Collection[int], float]]) -> tuple[int, float]:
    """Number of sessions that wait for ours, or for one that does, and the seconds of the longest wait.

    :param blocked: by waiting process: the processes it waits for, and for how long
    """
    reached = set(ours)
    found: dict[int, float] = {}
    while True:
        more = {
            pid: seconds
            for pid, (blockers, seconds) in blocked.items()
            if pid not in reached and not reached.isdisjoint(blockers)
        }
        if not more:
            return len(found), max(found.values(), default=0.0)
        found.update(more)
        reached.update(more)


class Window:
    """Bytes that a growing counter gained within the last seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._points: collections.deque[tuple[float, int]] = collections.deque()

    def gained(self, now: float, value: int) -> int:
        """Note a value of the counter; what it gained since the beginning of the window."""
        self._points.append((now, value))
        # The newest point at least as old as the window stays: what was written since then is all of it, not less.
        while len(self._points) > 1 and self._points[1][0] <= now - self._seconds:
            self._points.popleft()
        return value - self._points[0][1]


class ReplicaAges:
    """How far replicas are behind, in seconds, from the positions that were seen on the primary and when."""

    def __init__(self) -> None:
        self._written: collections.deque[tuple[float, int]] = collections.deque()

    def lag(self, now: float, written: int, replayed: int, reported: float | None) -> float:
        """Lag of the replica that replayed least. The server reports none for a replica that stands still: then the age
        of the oldest position it has not replayed counts.

        :param reported: the longest lag that the server reports, in seconds
        """
        while self._written and self._written[0][1] <= replayed:
            self._written.popleft()
        if replayed >= written:
            return 0.0
        age = now - self._written[0][0] if self._written else 0.0
        if not self._written or self._written[-1][1] < written:
            self._written.append((now, written))
        return max(age, reported or 0.0)


# --- asking the server ------------------------------------------------------------------------------------------------

_FACTS = """
SELECT pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS sees_statistics,
    pg_catalog.has_function_privilege('pg_catalog.pg_ls_tmpdir()', 'EXECUTE') AS sees_files,
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int AS usable_connections,
    (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory') AS data_directory,
    pg_catalog.has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE') AS sees_control
"""
_SAMPLE = """
SELECT (SELECT coalesce(sum(numbackends), 0) FROM pg_catalog.pg_stat_database)::int,
    (pg_catalog.pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint,
    (SELECT count(*) FROM pg_catalog.pg_stat_replication)::int,
    (SELECT pg_catalog.min(replay_lsn - '0/0'::pg_lsn) FROM pg_catalog.pg_stat_replication
     WHERE state <> 'backup')::bigint,
    (SELECT pg_catalog.max(extract(epoch FROM replay_lag)) FROM pg_catalog.pg_stat_replication)::float8,
    (SELECT temp_bytes FROM pg_catalog.pg_stat_database WHERE datname = pg_catalog.current_database())
"""
# waitstart is empty for a moment after a wait has begun (PostgreSQL manual, pg_locks).
_WAITING = f"""
SELECT pid, pg_catalog.pg_blocking_pids(pid),
    coalesce(pg_catalog.max(extract(epoch FROM pg_catalog.clock_timestamp() - waitstart)), 0)::float8
FROM pg_catalog.pg_locks WHERE NOT granted GROUP BY pid LIMIT {_MOST_WAITERS}
"""
# Whoever works for a ledger holds its worker lock, whatever application_name a migration gives itself.
_WORKERS = """
SELECT pid FROM pg_catalog.pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::bigint << 32) | objid::bigint = %s
    AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
"""
_TEMP_FILES = "SELECT coalesce(pg_catalog.sum(size), 0)::bigint FROM pg_catalog.pg_ls_tmpdir()"
# Sizes take a lock that waits for an ACCESS EXCLUSIVE one: hence the short lock_timeout.
_TABLES = """
SELECT (SELECT coalesce(pg_catalog.sum(pg_catalog.pg_relation_size(oid)), 0) FROM pg_catalog.pg_class
        WHERE relpersistence = 't' AND relkind IN ('r', 'i', 't', 'S'))::bigint,
    (SELECT coalesce(pg_catalog.sum(pg_catalog.pg_total_relation_size(pg_catalog.to_regclass(name))), 0)
     FROM pg_catalog.unnest(%s::text[]) AS name)::bigint
"""
# The migration's own role made it, so whoever watches as that role may look.
_QUARANTINE = """
SELECT coalesce(pg_catalog.pg_total_relation_size(
    pg_catalog.to_regclass(pg_catalog.format('%%I.quarantine', %s::text))), 0)::bigint
"""


def disks(data_directory: str, identifier: int) -> list[str]:
    """The directories of a server that runs on this host.

    :param identifier: the server's system identifier; the control file of the directory must have the same
    :raises OSError: it cannot be read here
    :raises _Unseen: it belongs to another server
    """
    with open(os.path.join(data_directory, "global", "pg_control"), "rb") as stream:
        found = struct.unpack("=Q", stream.read(8))[0]
    if found != identifier:
        raise _Unseen(f"{data_directory} on this host belongs to another server")
    spaces = os.path.join(data_directory, "pg_tblspc")
    return [data_directory, os.path.join(data_directory, "pg_wal")] + [
        os.path.join(spaces, name) for name in os.listdir(spaces)
    ]


class _Server:
    """The sampler's own session, made again when it was lost."""

    def __init__(
        self, options: ConnectionOptions, purpose: str, worker_key: int, limits: Limits, ledger_schema: str | None
    ) -> None:
        self._options = options
        self._purpose = purpose
        self._worker_key = worker_key
        self._limits = limits
        self._ledger_schema = ledger_schema
        self._connection: Connection | None = None
        self._facts: dict[str, t.Any] = {}
        self._disks: list[str] | _Unseen = _Unseen("no sample was taken")
        self._wal = Window(_WAL_WINDOW)
        self._ages = ReplicaAges()
        self._first: dict[str, int] = {}
        self._log: Follower | str = "not read yet"

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg2.Error):
                connection.close()

    def sample(self) -> tuple[dict[str, float | _Unseen], dict[str, t.Any]]:
        """Signs by key, and what else goes into the record of the sample.

        :raises SurefootError, psycopg2.Error: the server cannot be asked
        """
        if self._connection is None or self._connection.closed:
            self._open()
        signs: dict[str, float | _Unseen] = {}
        more: dict[str, t.Any] = {}
        now = time.monotonic()
        used, written, replicas, replayed, reported, temp_written = self._row(_SAMPLE)
        usable = self._facts["usable_connections"]
        signs["connections_percent"] = 100.0 * used / usable
        more.update(connections_used=used, connections_usable=usable, wal_position=written, replicas=replicas)
        signs["wal_bytes_per_minute"] = self._wal.gained(now, written)
        signs["replica_lag"] = self._replica_lag(now, written, replicas, replayed, reported)
        signs["waiters"], signs["longest_wait"] = self._waiters()
        more["temp_bytes_written"] = temp_written - self._first.setdefault("temp_written", temp_written)
        signs["temp_bytes"] = self._temp(more)
        signs["quarantine_bytes"] = self._quarantine(more)
        signs["disk_free"] = self._disk()
        more["server_log"] = self._read_log()
        return signs, more

    def _open(self) -> None:
        settings = {"statement_timeout": _SAMPLE_TIMEOUT, "lock_timeout": _TABLE_LOCK_TIMEOUT}
        self._connection = connection = connect(self._options, purpose=self._purpose, settings=settings, timeout=5.0)
        if self._facts:
            return
        with connection.cursor() as cursor:
            cursor.execute(_FACTS)
            names = [column.name for column in cursor.description or ()]
            self._facts = dict(zip(names, cursor.fetchone() or ()))
        self._disks = self._find_disks()
        try:
            log = locate(connection)
            self._log = Follower(log, str(connection.info.dbname), mark(connection, log))
        except NotReadable as exc:
            self._log = exc.reason
        except psycopg2.Error as exc:
            self._log = sql_error(exc).message

    def _row(self, text: str, parameters: t.Any = None) -> tuple[t.Any, ...]:
        with t.cast("Connection", self._connection).cursor() as cursor:
            cursor.execute(text, parameters)
            return cursor.fetchone() or ()

    def _replica_lag(
        self, now: float, written: int, replicas: int, replayed: int | None, reported: float | None
    ) -> float | _Unseen:
        if not replicas:
            return _Unseen("no replica is connected", nothing=True)
        if not self._facts["sees_statistics"]:
            return _Unseen(_NEEDS_STATISTICS)
        if replayed is None:  # pg_basebackup and pg_receivewal take WAL and replay none
            return _Unseen("no replica is connected", nothing=True)
        return self._ages.lag(now, written, replayed, reported)

    def _waiters(self) -> tuple[float, float]:
        with t.cast("Connection", self._connection).cursor() as cursor:
            cursor.execute(_WAITING)
            blocked = {pid: (set(blockers), seconds) for pid, blockers, seconds in cursor.fetchall()}
            if not blocked:
                return 0, 0.0
            cursor.execute(_WORKERS, (self._worker_key,))
            return behind({row[0] for row in cursor.fetchall()}, blocked)

    def _temp(self, more: dict[str, t.Any]) -> float | _Unseen:
        if not self._facts["sees_files"]:
            return _Unseen("the role may not list temporary files: GRANT pg_monitor to it")
        try:
            more["temp_tables"], more["tables"] = self._row(_TABLES, (list(self._limits.tables),))
            more["temp_files"] = int(self._row(_TEMP_FILES)[0])
        except psycopg2.Error as exc:
            if self._connection is None or self._connection.closed:
                raise
            return _Unseen(f"sizes cannot be read: {sql_error(exc).message}")
        grown = [int(more[key]) - self._first.setdefault(key, int(more[key])) for key in _TEMP_PARTS]
        return float(sum(max(0, size) for size in grown))

    def _quarantine(self, more: dict[str, t.Any]) -> float | _Unseen:
        if self._ledger_schema is None:
            return _Unseen("no ledger was named", nothing=True)
        try:
            size = int(self._row(_QUARANTINE, (self._ledger_schema,))[0])
        except psycopg2.Error as exc:
            if self._connection is None or self._connection.closed:
                raise
            return _Unseen(f"its size cannot be read: {sql_error(exc).message}")
        more["quarantine_size"] = size
        return float(max(0, size - self._first.setdefault("quarantine", size)))

    def _find_disks(self) -> list[str] | _Unseen:
        directory = self._facts["data_directory"]
        if directory is None or not self._facts["sees_control"]:
            return _Unseen("the role may not see where the server's data are: GRANT pg_monitor to it")
        try:
            return disks(directory, int(self._row("SELECT system_identifier FROM pg_catalog.pg_control_system()")[0]))
        except _Unseen as exc:
            return exc
        except OSError:
            return _Unseen("the server's data directory cannot be read on this host")

    def _disk(self) -> float | _Unseen:
        if isinstance(self._disks, _Unseen):
            return self._disks
        try:
            free = [os.statvfs(path) for path in self._disks]
        except OSError as exc:
            return _Unseen(f"the server's disks cannot be read on this host: {exc.strerror}")
        return min(item.f_bavail * item.f_frsize for item in free)

    def _read_log(self) -> dict[str, t.Any]:
        if isinstance(self._log, str):
            return {"not_measured": self._log}
        try:
            return self._log.update().to_dict()
        except NotReadable as exc:
            self._log = exc.reason
            return {"not_measured": self._log}


_TEMP_PARTS = ("temp_files", "temp_tables", "tables")


# --- asking the application -------------------------------------------------------------------------------------------


class _Caller:
    """Asks one endpoint at the sampling interval, in a thread of its own: a slow answer delays no sample."""

    def __init__(self, endpoint: Endpoint, interval: float, stopped: threading.Event) -> None:
        self._endpoint = endpoint
        self._context = tls_context(endpoint)
        self._interval = interval
        self._stopped = stopped
        self._thread = threading.Thread(target=self._call, name="surefoot-endpoint", daemon=True)
        self._lock = threading.Lock()
        self.requests = 0
        self.failures = 0
        self.failures_in_a_row = 0
        self.longest_run_of_failures = 0
        self.slowest = 0.0
        self.last: Probe | None = None

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Wait for the first answer; a later one is not waited for."""
        if not self.requests:
            self._thread.join(self._endpoint.timeout + 1)

    def _call(self) -> None:
        while True:
            answer = probe(self._endpoint, context=self._context)
            with self._lock:
                self.requests += 1
                self.last = answer
                self.slowest = max(self.slowest, answer.seconds)
                self.failures += not answer.passed
                self.failures_in_a_row = 0 if answer.passed else self.failures_in_a_row + 1
                self.longest_run_of_failures = max(self.longest_run_of_failures, self.failures_in_a_row)
            if self._stopped.wait(self._interval):
                return

    def to_dict(self) -> dict[str, t.Any]:
        with self._lock:
            last = self.last
            return {
                "endpoint": self._endpoint.label,
                "requests": self.requests,
                "failures": self.failures,
                "failures_in_a_row": self.failures_in_a_row,
                "longest_run_of_failures": self.longest_run_of_failures,
                "slowest_seconds": round(self.slowest, 4),
                "last_status": last.status if last else None,
                "last_seconds": round(last.seconds, 4) if last else None,
                "last_reason": last.reason if last else None,
            }


# --- the watch --------------------------------------------------------------------------------------------------------


class Vitals:
    """Samples while a run works, and stops it. One for each run.

    :raises EnvironmentProblem: a certificate file of an endpoint cannot be read
    """

    def __init__(
        self,
        target: ConnectionOptions,
        limits: Limits,
        *,
        run_id: str,
        worker_key: int,
        run_dir: str | None = None,
        ledger_schema: str | None = None,
    ) -> None:
        self.limits = limits
        self._run_dir = run_dir
        self._server = _Server(target, f"watch {run_id}", worker_key, limits, ledger_schema)
        self._stopped = threading.Event()
        self._callers = [_Caller(endpoint, limits.interval, self._stopped) for endpoint in limits.endpoints]
        self._tracks = {sign.key: Track() for sign in SIGNS}
        self._stop: Stop | None = None
        self._started = 0.0
        self.taken = 0
        self.notes: list[str] = []

    @contextlib.contextmanager
    def guard(self, stop: Stop) -> t.Iterator[None]:
        """Around the work; ``stop`` is called, once, with the limit that was exceeded."""
        self._stop = stop
        self._started = time.monotonic()
        for caller in self._callers:
            caller.start()
        self._sample()  # what the limits on growth count from
        thread = threading.Thread(target=self._watch, name="surefoot-vitals", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for caller in self._callers:
                caller.finish()
            thread.join(timeout=30)
            self._stop = None  # too late to stop anything
            if not thread.is_alive():
                self._sample()
                self._server.close()

    def _watch(self) -> None:
        while not self._stopped.wait(self.limits.interval):
            self._sample()

    def _sample(self) -> None:
        signs: dict[str, float | _Unseen] = {}
        more: dict[str, t.Any] = {}
        problem = ""
        try:
            signs, more = self._server.sample()
        except psycopg2.Error as exc:
            problem = sql_error(exc).message
        except SurefootError as exc:
            problem = exc.message
            if _FULL.search(problem):
                signs["connections_percent"] = 100.0
        except Exception as exc:  # a run must not die of being looked at, and a dead watch must not look healthy
            problem = type(exc).__name__
        signs["endpoint_failures"] = self._endpoint_failures()
        lost = _Unseen(f"the watch's connection failed: {problem}")
        self.taken += 1
        for sign in SIGNS:
            value = signs.get(sign.key, lost)
            track = self._tracks[sign.key]
            if value is not _NOT_YET:
                track.note(value, self._limit(sign), sign.floor)
            # Requests that failed are counted by the caller itself: its pace is the endpoint's.
            patience = 1 if sign.key == "endpoint_failures" else self.limits.samples
            if track.over >= patience and not track.tripped:
                track.tripped = True
                self._trip(sign, t.cast(float, value))
        self._write(signs, more, problem)

    def _endpoint_failures(self) -> float | _Unseen:
        if not self._callers:
            return _Unseen("no endpoint was given", nothing=True)
        if not all(caller.requests for caller in self._callers):
            return _NOT_YET
        return sum(caller.longest_run_of_failures >= self.limits.samples for caller in self._callers)

    def _limit(self, sign: Sign) -> float | None:
        if sign.key == "endpoint_failures":
            return 0
        limit: float | None = getattr(self.limits, sign.limit)
        return limit

    def _required(self, sign: Sign) -> str:
        limit = self._limit(sign)
        if sign.key == "endpoint_failures":
            return f"none failing {self.limits.samples} times in a row"
        if limit is None:
            return "no limit"
        return f"{'at least' if sign.floor else 'at most'} {sign.show(limit)}"

    def _trip(self, sign: Sign, value: float) -> None:
        failing = [caller.to_dict() for caller in self._callers if caller.failures_in_a_row]
        what = f"{sign.what}: {sign.show(value)}, required {self._required(sign)}"
        if sign.key == "endpoint_failures" and failing:
            what = f"{failing[0]['endpoint']}: {failing[0]['last_reason']} ({failing[0]['failures_in_a_row']} times)"
        elif self.limits.samples > 1:
            what += f", {self.limits.samples} samples in a row"
        error = SurefootError(
            f"the watch stopped the run: {what}",
            remedy=sign.remedy,
            code="watch_limit",
            details={
                "criterion": sign.criterion,
                "measured": failing if sign.key == "endpoint_failures" else value,
                "required": self._required(sign),
            },
        )
        if self._stop is not None:
            self._stop(error)

    def _write(self, signs: t.Mapping[str, float | _Unseen], more: t.Mapping[str, t.Any], problem: str) -> None:
        if not self._run_dir or self.notes:
            return
        line: dict[str, t.Any] = {
            "time": utc_now(),
            "seconds": round(time.monotonic() - self._started, 3),
            **more,
            "endpoints": [caller.to_dict() for caller in self._callers],
            "not_measured": {key: str(value) for key, value in signs.items() if isinstance(value, _Unseen)},
        }
        for key, value in signs.items():
            line[key] = None if isinstance(value, _Unseen) else round(value, 4)
        if problem:
            line["not_measured"]["server"] = problem
        try:
            append_lines(os.path.join(self._run_dir, SAMPLES_FILE), [line])
        except SurefootError as exc:
            self.notes.append(str(exc))  # nor does this stop the run

    def evidence(self) -> list[Evidence]:
        """One record for each criterion; none when nothing was watched."""
        if not self.taken:
            return []
        order = ("fail", "not_measured", "pass", "not_applicable")
        records = []
        for criterion in dict.fromkeys(sign.criterion for sign in SIGNS):
            signs = [sign for sign in SIGNS if sign.criterion == criterion]
            verdicts = [self._tracks[sign.key].verdict(self._limit(sign), self.limits.samples) for sign in signs]
            measured = {sign.key: self._measured(sign) for sign in signs}
            details: dict[str, t.Any] = {
                "samples": self.taken,
                "interval_seconds": self.limits.interval,
                "samples_in_a_row_to_stop": self.limits.samples,
                "samples_over": max(self._tracks[sign.key].over_total for sign in signs),
                "samples_missed_in_a_row": max(self._tracks[sign.key].longest_gap for sign in signs),
            }
            reasons = {self._tracks[sign.key].reason: None for sign in signs if self._tracks[sign.key].reason}
            if reasons:
                details["reason"] = "; ".join(map(str, reasons))
            if criterion == "watch.endpoints":
                details["endpoints"] = [caller.to_dict() for caller in self._callers]
            records.append(
                Evidence(
                    criterion,
                    "apply",
                    min(verdicts, key=order.index),
                    measured if len(signs) > 1 else measured[signs[0].key],
                    "; ".join(f"{self._required(sign)} ({sign.what})" for sign in signs),
                    "; ".join(dict.fromkeys(sign.source for sign in signs)),
                    details=details,
                )
            )
        return records

    def _measured(self, sign: Sign) -> dict[str, float | None] | None:
        track = self._tracks[sign.key]
        if not track.taken:
            return None
        return {
            "min" if sign.floor else "max": _round(track.worst),
            "last": _round(track.last),
        }


def _round(value: float | None) -> float | None:
    return round(value, 3) if value is not None else None


def run_watched(vitals: Vitals | None, run: t.Callable[[], dict[str, t.Any]], run_dir: str | None) -> dict[str, t.Any]:
    """The results of a run with the watch's evidence added, whether it comes to its end or not.

    :raises SurefootError: what the run raises, its results completed in the same way
    """
    if vitals is None:
        return run()
    try:
        results = run()
    except SurefootError as exc:
        _complete(exc.results, vitals, run_dir)
        raise
    _complete(results, vitals, run_dir)
    return results


def _complete(results: dict[str, t.Any], vitals: Vitals, run_dir: str | None) -> None:
    evidence = vitals.evidence()
    notes = list(vitals.notes)
    try:
        plain = record(run_dir, evidence)
    except SurefootError as exc:  # it must hide neither what was done nor why the run failed
        plain = record(None, evidence)
        notes.append(str(exc))
    results["evidence"] = [*results.get("evidence", ()), *plain]
    results["notes"] = [*results.get("notes", ()), *dict.fromkeys(notes)]
