# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The server's own log, where this host can read it: errors since a moment, counted by SQLSTATE.

Counted are the formats whose fields can be told apart, jsonlog and csvlog. A zero is only believed after a marker that
we let the server log came out of the very file that was read: a log of another server, one that is not written any
more, or one that errors do not reach is "not measured".
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import re
import secrets
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import redact
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError, condition_name
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence

try:
    import zoneinfo
except ImportError:  # Python before 3.9
    zoneinfo = None  # type: ignore[assignment]

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

FORMATS = {"jsonlog": ".json", "csvlog": ".csv"}  # the ending log_filename gets for each
OWN_PREFIX = "surefoot:"
MAX_ENTRIES = 20
_MAX_RECORD = 16 * 2**20
_TAIL = 1024
_MARKER_SECONDS = 5.0
_MARKER_POLL = 0.02

# Columns of csvlog that are read (PostgreSQL manual, "Using CSV-Format Log Output"; 14 to 18 have the same).
_CSV = {
    "timestamp": 0,
    "user": 1,
    "dbname": 2,
    "error_severity": 11,
    "state_code": 12,
    "message": 13,
    "context": 18,
    "application_name": 22,
}
_CSV_COLUMNS = 23
_CSV_FIELD = re.compile(r'(?:"((?:[^"]+|"")*)"|([^,"\n]*))(,|\Z)')
_TIME = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)?) ")
_SEVERITIES = ("ERROR", "FATAL", "PANIC")

# Messages of the server that quote nothing but names of objects and roles. Any other may quote values, so that only
# the name of its condition is kept; and so may one with a context: a RAISE can say anything, under any SQLSTATE.
_NAME = r'"[^"]{1,63}"'
_HARMLESS = [
    re.compile(pattern)
    for pattern in (
        r"permission denied for (?:table|view|materialized view|sequence|schema|function|procedure|database|type"
        r"|language|tablespace|foreign server|large object|column|relation) \S{1,63}",
        r"permission denied to (?:set role|create \w+)(?: " + _NAME + ")?",
        r"must be owner of \w+ \S{1,63}",
        rf"new row violates row-level security policy(?: {_NAME})? for table {_NAME}",
        rf"query would be affected by row-level security policy for table {_NAME}",
        rf"(?:insert or update|update or delete) on table {_NAME} violates foreign key constraint {_NAME}"
        rf"(?: on table {_NAME})?",
        rf"duplicate key value violates unique constraint {_NAME}",
        rf"new row for relation {_NAME} violates check constraint {_NAME}",
        rf"null value in column {_NAME} of relation {_NAME} violates not-null constraint",
        rf"(?:relation|schema|role|database|type) {_NAME} does not exist",
        rf"column {_NAME} of relation {_NAME} does not exist",
        rf"password authentication failed for user {_NAME}",
        r"terminating connection due to (?:administrator command|conflict with recovery|idle-\w+-timeout)",
        r"canceling statement due to (?:user request|statement timeout|lock timeout)",
        r"sorry, too many clients already",
        r"remaining connection slots are reserved for [a-z ,]+",
        r"could not serialize access due to [a-z/ ]+",
        r"deadlock detected",
        r"the database system is (?:starting up|shutting down|in recovery mode)",
    )
]

# Criterion -> key of the counts.
CRITERIA = {
    "serverlog.permission_denied": "permission_denied",
    "serverlog.foreign_key_violation": "foreign_key_violation",
    "serverlog.fatal": "fatal",
    "serverlog.errors": "errors",
}


def parse_moment(text: str) -> datetime.datetime:
    """A moment of ISO 8601 text.

    :raises PlanError: it is none, or has no time zone
    """
    try:
        moment = datetime.datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text.strip()))
    except ValueError:
        moment = datetime.datetime.min
    if moment.tzinfo is None:
        raise PlanError(f"{text!r} is not a time with a time zone", remedy="Write it as 2026-11-22T02:00:00Z.")
    return moment


class NotReadable(Exception):
    """The log cannot be read, or not believed: why, and what to do about it."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


@dataclasses.dataclass(frozen=True)
class Position:
    """A place between two records: a file of the log directory, the bytes before it, and a hash of the last of them, by
    which a file that was begun anew under the same name is noticed."""

    file: str
    offset: int
    tail_sha256: str

    def to_dict(self) -> dict[str, t.Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, given: t.Mapping[str, t.Any]) -> Position:
        """:raises PlanError: not a position that an earlier call returned"""
        try:
            position = cls(str(given["file"]), int(given["offset"]), str(given["tail_sha256"]))
        except (KeyError, TypeError, ValueError):
            position = cls("", -1, "")
        if position.offset < 0 or not position.file or os.path.basename(position.file) != position.file:
            raise PlanError(
                "position is not one of the server log", remedy="Give the position that an earlier call returned."
            )
        return position


@dataclasses.dataclass(frozen=True)
class Entry:
    """One record of the log."""

    time: str
    user: str
    database: str
    application: str
    severity: str
    sqlstate: str
    message: str
    context: str

    @property
    def is_error(self) -> bool:
        return self.severity in _SEVERITIES

    def to_dict(self) -> dict[str, t.Any]:
        """Without statement, detail, and whatever of the message may be a value."""
        harmless = not self.context and any(pattern.fullmatch(self.message) for pattern in _HARMLESS)
        return {
            "time": self.time,
            "severity": self.severity,
            "sqlstate": self.sqlstate,
            "user": self.user,
            "database": self.database,
            "application_name": redact(self.application),
            "message": redact(self.message) if harmless else f"({condition_name(self.sqlstate) or 'message not kept'})",
        }


class Counts:
    """Errors of one database and of the server as a whole; those of our own sessions apart, as our negative tests
    provoke them."""

    def __init__(self, database: str) -> None:
        self._database = database
        self.errors = 0
        self.permission_denied = 0
        self.foreign_key_violation = 0
        self.fatal = 0
        self.panic = 0
        self.own = 0
        self.other_databases = 0
        self.unreadable = 0
        self.by_sqlstate: dict[str, int] = {}
        self.entries: list[dict[str, t.Any]] = []

    def add(self, entry: Entry | None) -> None:
        """Count a record; None is one that could not be taken apart."""
        if entry is None:
            self.unreadable += 1
            return
        if not entry.is_error:
            return
        if entry.application.startswith(OWN_PREFIX):
            self.own += 1
            return
        # A PANIC takes down every database; what belongs to none (the postmaster, a refused login) concerns all.
        if entry.database not in ("", "[unknown]", self._database) and entry.severity != "PANIC":
            self.other_databases += 1
            return
        self.errors += 1
        self.permission_denied += entry.sqlstate == "42501"
        self.foreign_key_violation += entry.sqlstate == "23503"
        self.fatal += entry.severity in ("FATAL", "PANIC")
        self.panic += entry.severity == "PANIC"
        self.by_sqlstate[entry.sqlstate] = self.by_sqlstate.get(entry.sqlstate, 0) + 1
        if len(self.entries) < MAX_ENTRIES:
            self.entries.append(entry.to_dict())

    def to_dict(self) -> dict[str, t.Any]:
        return {name: value for name, value in vars(self).items() if name != "entries" and name[0] != "_"}


# --- records ----------------------------------------------------------------------------------------------------------


def parse_json(text: str) -> Entry | None:
    """A record of jsonlog; None when it is none."""
    try:
        fields = json.loads(text)
    except ValueError:
        return None
    if not isinstance(fields, dict) or "error_severity" not in fields or "timestamp" not in fields:
        return None
    return _entry({name: fields.get(name) for name in _CSV})


def parse_csv(text: str) -> Entry | None:
    """A record of csvlog; None when it is none."""
    fields: list[str] = []
    place = 0
    while True:
        found = _CSV_FIELD.match(text, place)
        if found is None:
            return None
        fields.append(found[1].replace('""', '"') if found[1] is not None else found[2])
        if not found[3]:
            break
        place = found.end()
    if len(fields) < _CSV_COLUMNS or not _TIME.match(fields[0]):
        return None
    return _entry({name: fields[column] for name, column in _CSV.items()})


def _entry(fields: t.Mapping[str, t.Any]) -> Entry:
    text = {name: str(value) if value is not None else "" for name, value in fields.items()}
    return Entry(
        time=text["timestamp"],
        user=text["user"],
        database=text["dbname"],
        application=text["application_name"],
        severity=text["error_severity"],
        sqlstate=text["state_code"],
        message=text["message"],
        context=text["context"],
    )


def _records(stream: t.BinaryIO, *, csv: bool) -> t.Iterator[tuple[bytes, int]]:
    """Complete records with the offset of their ends. A CSV record goes on over line ends inside quotes; what the
    server is still writing is left for later. One that is longer than can be kept comes out empty."""
    end = stream.tell()
    record = b""
    too_long = False
    open_quote = False
    for line in iter(lambda: stream.readline(_MAX_RECORD), b""):
        end += len(line)
        open_quote ^= csv and line.count(b'"') % 2 == 1
        record = b"" if too_long or len(record) + len(line) > _MAX_RECORD else record + line
        too_long = not record
        if line.endswith(b"\n") and not open_quote:
            yield record, end
            record, too_long = b"", False


# --- the files --------------------------------------------------------------------------------------------------------


class ServerLog:
    """The log files of one server in one directory."""

    def __init__(self, directory: str, kind: str, current: str | None, zone: str) -> None:
        self.directory = directory
        self.kind = kind
        self._current = current
        self._zone = zone
        self._parse = parse_csv if kind == "csvlog" else parse_json

    def __repr__(self) -> str:
        return f"{self.kind} in {self.directory}"

    def end(self) -> Position:
        """The present end of what is written; it may lie within a record that is being written.

        :raises NotReadable: no file, or no permission
        """
        files = self._files()
        name = self._current if self._current in files else max(files, key=lambda item: files[item], default=None)
        if name is None:
            raise NotReadable(
                f"there is no {FORMATS[self.kind]} file in {self.directory}",
                "Give the directory into which the server logs, readable on the host that runs the module.",
            )
        with self._open(name) as stream:
            size = stream.seek(0, os.SEEK_END)
            return Position(name, size, _tail_digest(stream, size))

    def position(self, name: str, offset: int) -> Position:
        """The position at an offset of a file."""
        with self._open(name) as stream:
            return Position(name, offset, _tail_digest(stream, offset))

    def read(self, start: Position) -> t.Iterator[tuple[Entry | None, str, int]]:
        """Records from a position on, over rotations, each with its file and the offset of its end; None for one that
        cannot be taken apart.

        :raises NotReadable: what followed the position is gone
        """
        for stream, name in self._pieces(start):
            for entry, end in self._entries(stream):
                yield entry, name, end

    def find(self, word: bytes, start: Position) -> Position | None:
        """The position after the line with this word; None while there is none. The start may lie within a record."""
        for stream, name in self._pieces(start):
            before, text = stream.tell(), stream.read()
            place = text.find(word)
            end = text.find(b"\n", place) + 1 if place >= 0 else 0
            if end:
                return self.position(name, before + end)
        return None

    def _pieces(self, start: Position) -> t.Iterator[tuple[t.BinaryIO, str]]:
        with self._open(start.file) as stream:
            size = stream.seek(0, os.SEEK_END)
            if size < start.offset or _tail_digest(stream, start.offset) != start.tail_sha256:
                raise NotReadable(
                    f"{start.file} was begun anew since the position was taken; what it held is gone",
                    "Set log_truncate_on_rotation = off, or a log_filename with date and time.",
                )
            stream.seek(start.offset)
            yield stream, start.file
            since = os.fstat(stream.fileno()).st_mtime_ns
        # Rotation starts a new file and never touches the old one again.
        files = self._files()
        later = [name for name, changed in files.items() if name != start.file and changed >= since]
        for name in sorted(later, key=lambda item: (files[item], item)):
            with self._open(name) as stream:
                yield stream, name

    def _entries(self, stream: t.BinaryIO) -> t.Iterator[tuple[Entry | None, int]]:
        for record, end in _records(stream, csv=self.kind == "csvlog"):
            yield self._parse(record.decode("utf-8", errors="replace").rstrip("\r\n")), end

    def read_since(self, moment: datetime.datetime) -> t.Iterator[Entry | None]:
        """Records that were logged at or after a moment; None for one that cannot be taken apart.

        :raises NotReadable: the server's time zone is unknown here
        """
        files = self._files()
        limit = moment.timestamp() * 1e9
        for name in sorted((name for name in files if files[name] >= limit), key=lambda item: (files[item], item)):
            with self._open(name) as stream:
                for entry, _end in self._entries(stream):
                    if entry is None or self._moment(entry.time) >= moment:
                        yield entry

    def _moment(self, text: str) -> datetime.datetime:
        """The moment of a log line; of the two that a clock set back can mean, the later one."""
        found = _TIME.match(text)
        if found is None:
            return datetime.datetime.max.replace(tzinfo=datetime.timezone.utc)
        moment = datetime.datetime.fromisoformat(found[1]).replace(fold=1)
        if self._zone in ("UTC", "GMT", "Etc/UTC"):
            return moment.replace(tzinfo=datetime.timezone.utc)
        try:
            return moment.replace(tzinfo=zoneinfo.ZoneInfo(self._zone))
        except (AttributeError, KeyError, ValueError, OSError):
            raise NotReadable(
                f"the time zone of the log, {self._zone}, is unknown on this host",
                "Install tzdata, set log_timezone = 'UTC', or give a position instead of a time.",
            ) from None

    def _files(self) -> dict[str, int]:
        ending = FORMATS[self.kind]
        try:
            with os.scandir(self.directory) as entries:
                return {entry.name: entry.stat().st_mtime_ns for entry in entries if entry.name.endswith(ending)}
        except OSError as exc:
            raise _no_access(self.directory, exc) from None

    def _open(self, name: str) -> t.BinaryIO:
        try:
            return open(os.path.join(self.directory, name), "rb")
        except OSError as exc:
            raise _no_access(os.path.join(self.directory, name), exc) from None


def _no_access(path: str, exc: OSError) -> NotReadable:
    return NotReadable(
        f"the server log {path} cannot be read here: {exc.strerror}",
        "Run the task on the server's host as a user who may read it (log_file_mode = 0640, its group), or give path.",
    )


def _tail_digest(stream: t.BinaryIO, offset: int) -> str:
    start = max(0, offset - _TAIL)
    stream.seek(start)
    return hashlib.sha256(stream.read(offset - start)).hexdigest()


# --- asking the server ------------------------------------------------------------------------------------------------

_SETTINGS = """
SELECT current_setting('log_destination'), current_setting('logging_collector'), current_setting('log_timezone'),
       current_setting('log_min_messages'),
       (SELECT setting FROM pg_catalog.pg_settings WHERE name = 'data_directory'),
       pg_catalog.has_function_privilege('pg_catalog.pg_current_logfile(text)', 'EXECUTE'),
       (SELECT pg_catalog.min(c) FROM pg_catalog.pg_db_role_setting, pg_catalog.unnest(setconfig) AS c
        WHERE c ~ '^log_min_messages=(log|fatal|panic)$'),
       current_setting('server_version_num')::int, pg_catalog.current_database()
"""


def locate(connection: Connection, path: str | None = None) -> ServerLog:
    """Where the server logs, as far as this host can read it.

    :param path: the directory, or a file in it, instead of what the server says
    :raises NotReadable: why not, and what to do
    """
    with connection.cursor() as cursor:
        cursor.execute(_SETTINGS)
        row = t.cast("tuple[t.Any, ...]", cursor.fetchone())
        destinations, collector, zone, level, data_directory, allowed, override, version, _database = row
        if level in ("log", "fatal", "panic") or override:
            raise NotReadable(
                "errors do not all reach the server log: " + (override or f"log_min_messages={level}"),
                "Set log_min_messages = warning for the server and every role and database.",
            )
        if path is not None:
            return _given(path, str(zone))
        kinds = [kind for kind in FORMATS if kind in str(destinations)]
        if not kinds or collector != "on":
            wanted = "jsonlog" if version >= 150000 else "csvlog"
            raise NotReadable(
                f"the server logs in a format whose fields cannot be told apart (log_destination = {destinations},"
                f" logging_collector = {collector})",
                f"Set log_destination = '{wanted}' (takes a reload) and logging_collector = on (takes a restart).",
            )
        if not allowed or data_directory is None:
            raise NotReadable(
                "this role may not see where the server logs",
                "GRANT pg_monitor, and EXECUTE ON FUNCTION pg_current_logfile(text), to the role; or give path.",
            )
        cursor.execute("SELECT pg_catalog.pg_current_logfile(%s)", (kinds[0],))
        name = (cursor.fetchone() or (None,))[0]
    if not name:
        raise NotReadable(f"the server has no current {kinds[0]} file", "Look at log_directory and at the disk's room.")
    full = os.path.join(data_directory, name)
    log = ServerLog(os.path.dirname(full), kinds[0], os.path.basename(full), str(zone))
    log.end()  # whether it can be read
    return log


def _given(path: str, zone: str) -> ServerLog:
    directory, current = (path, None) if os.path.isdir(path) else (os.path.dirname(path), os.path.basename(path))
    for kind, ending in FORMATS.items():
        log = ServerLog(directory or ".", kind, current, zone)
        if current is None and not log._files():
            continue
        if current is None or current.endswith(ending):
            log.end()
            return log
    raise NotReadable(
        f"{path} is neither a .json or .csv log file nor a directory with one",
        "Give the directory into which the server writes jsonlog or csvlog.",
    )


def mark(connection: Connection, log: ServerLog) -> Position:
    """Let the server log a line and wait until it can be read: the position after it. Whatever the server had logged
    before lies before it.

    :raises NotReadable: the line did not come: it is not the log of this server, or it is not written any more
    """
    word = f"surefoot marker {secrets.token_hex(8)}"
    place = log.end()
    with connection.cursor() as cursor:
        cursor.execute(f"DO $surefoot$ BEGIN RAISE LOG '{word}'; END $surefoot$")
    deadline = time.monotonic() + _MARKER_SECONDS
    while True:
        position = log.find(word.encode("ascii"), place)
        if position is not None:
            return position
        if time.monotonic() > deadline:
            raise NotReadable(
                f"a line that the server was made to log did not appear in {log}",
                "Give the path of the log of this very server; look whether its disk is full.",
            )
        time.sleep(_MARKER_POLL)


def collect(
    log: ServerLog, database: str, *, start: Position | None = None, since: datetime.datetime | None = None
) -> Counts:
    """Count what was logged after a position, or since a moment.

    :raises NotReadable: a part of it is gone
    """
    counts = Counts(database)
    if start is not None:
        for entry, _name, _end in log.read(start):
            counts.add(entry)
    elif since is not None:
        for entry in log.read_since(since):
            counts.add(entry)
    return counts


class Follower:
    """Reads a log as it grows: counts from where it began."""

    def __init__(self, log: ServerLog, database: str, start: Position) -> None:
        self._log = log
        self.position = start
        self.counts = Counts(database)

    def update(self) -> Counts:
        """Count what came since the last call.

        :raises NotReadable: a part of it is gone
        """
        last: tuple[str, int] | None = None
        for entry, name, end in self._log.read(self.position):
            self.counts.add(entry)
            last = name, end
        if last is not None:
            self.position = self._log.position(*last)
        return self.counts


def examine(
    connection: Connection,
    *,
    path: str | None = None,
    start: t.Mapping[str, t.Any] | None = None,
    since: datetime.datetime | None = None,
    limits: t.Mapping[str, int | None] | None = None,
) -> dict[str, t.Any]:
    """The present position and, with a start, what was logged after it: keys readable, reason, remedy, log, position,
    counts, entries, evidence (a list of :class:`Evidence`).

    :param limits: most of each of the counts; None records it without a limit, a missing one is 0
    :raises PlanError: ``start`` is not a position
    """
    begin = Position.of(start) if start is not None else None
    results: dict[str, t.Any] = {"position": None, "counts": None, "entries": [], "log": None}
    counts: Counts | None = None
    problem: NotReadable | None = None
    try:
        log = locate(connection, path)
        results["log"] = {"format": log.kind, "directory": log.directory}
        results["position"] = mark(connection, log).to_dict()
        if begin is not None or since is not None:
            counts = collect(log, str(connection.info.dbname), start=begin, since=since)
            results.update(counts=counts.to_dict(), entries=counts.entries)
    except NotReadable as exc:
        problem = exc
    except psycopg2.Error as exc:
        problem = NotReadable(
            f"the server could not be asked about its log: {redact(' '.join(str(exc).split()))}",
            "Look whether the role may run a DO block in plpgsql.",
        )
    wanted = begin is not None or since is not None
    results.update(
        readable=problem is None,
        reason=problem.reason if problem else None,
        remedy=problem.remedy if problem else None,
        evidence=judge_counts(counts, problem, limits or {}) if wanted or problem else [],
    )
    return results


def judge_counts(
    counts: Counts | None, problem: NotReadable | None, limits: t.Mapping[str, int | None], source: str = "server log"
) -> list[Evidence]:
    """A record for each criterion of the server log."""
    records = []
    for criterion, key in CRITERIA.items():
        limit = limits.get(key, 0)
        measured: int | None = None
        details: dict[str, t.Any] = {}
        if counts is None or problem is not None:
            outcome = "not_measured"
            if problem is not None:
                details = {"reason": problem.reason, "remedy": problem.remedy}
        else:
            measured = getattr(counts, key)
            details = {"own_errors": counts.own, "other_databases": counts.other_databases}
            if key == "errors":
                details["by_sqlstate"] = counts.by_sqlstate
            if limit is None:
                outcome, details["reason"] = "not_applicable", "no limit is set"
            elif measured is not None and measured > limit:
                outcome = "fail"
            elif counts.unreadable:
                # What cannot be read may have been one of these.
                outcome = "not_measured"
                details["reason"] = f"{counts.unreadable} records of the log cannot be read"
            else:
                outcome = "pass"
        required = "no limit" if limit is None else f"at most {limit}"
        records.append(Evidence(criterion, "apply", outcome, measured, required, source, details=details))
    return records
