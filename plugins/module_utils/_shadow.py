# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""The life of a shadow: a scratch database restored from a backup, or of the schema and a sample of the rows of a live
database, on a server or in a private cluster of its own.

A shadow holds production data. It carries a marker (a comment on the database, a file beside the cluster) with its run
and its expiry; only what carries one is ever dropped. On a server it is built under a name of its own and renamed when
it is complete and equal to the backup, so that what a killed run left is told from a shadow by its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import glob
import json
import os
import re
import secrets
import shutil
import time
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    quote_identifier,
    quote_literal,
    redact,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._embedded import EmbeddedServer, default_home
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    BackupError,
    EnvironmentProblem,
    PlanError,
    SqlError,
    SurefootError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, utc_now
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    Client,
    Manifest,
    Work,
    find_client,
    read_manifest,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._process import run_interruptible
from ansible_collections.surefoot.dbops.plugins.module_utils._restore import (
    PHASE,
    Comparison,
    carry_settings,
    compare,
    create_roles,
    create_tablespaces,
    drop,
    open_backup,
    restore_beside,
    rows,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._rundir import write_json
from ansible_collections.surefoot.dbops.plugins.module_utils._sample import SampleRequest, take_sample
from ansible_collections.surefoot.dbops.plugins.module_utils._swap import lost_writes, reopen, swap
from ansible_collections.surefoot.dbops.plugins.module_utils._values import human_size

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

RESULT_FILE = "restore.json"

_MARKER = "surefoot shadow: "
_ROLE_MARKER = "surefoot: made for a shadow database"
_BUILDING = re.compile(r"surefoot_building_[0-9a-f]{16}")
_STATE_FILE = "shadow.json"
_SAMPLING = "sampling"
_LOCK_FILE = "shadow.lock"
_MAX_WAL = 1024**3
# Nothing in a scratch cluster has to survive a crash. With wal_level minimal, pg_restore loads tables without WAL.
_SCRATCH_SETTINGS: dict[str, t.Any] = {
    "archive_mode": False,
    "autovacuum": False,
    "checkpoint_timeout": "1h",
    "cluster_name": "surefoot-shadow",
    "fsync": False,
    "full_page_writes": False,
    "listen_addresses": "",
    "maintenance_work_mem": "256MB",
    "max_locks_per_transaction": 256,
    "max_wal_senders": 0,
    "max_wal_size": "1GB",
    "shared_buffers": "256MB",
    "synchronous_commit": False,
    "wal_level": "minimal",
}
_LOGIN = {
    "host": "login_host",
    "port": "login_port",
    "user": "login_user",
    "sslmode": "ssl_mode",
    "sslrootcert": "ca_cert",
    "sslcert": "ssl_cert",
    "sslkey": "ssl_key",
}
_ADMIN_SETTINGS = {"statement_timeout": "0", "idle_session_timeout": "0", "default_transaction_read_only": "off"}


@dataclasses.dataclass(frozen=True)
class ShadowRequest:
    """Which shadow, and where. Sizes in bytes, durations in seconds."""

    backup: str = ""
    manifest_sha256: str = ""
    content: str = "full"  # full: the backup's | sample: of the live database that the backup is of
    sample: SampleRequest = dataclasses.field(default_factory=SampleRequest)
    where: str = "embedded"  # embedded | server
    same_server: bool = False
    target_db: str | None = None
    jobs: int = 2
    bindir: str | None = None
    locale: str | None = None
    settings: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    data_dir: str | None = None
    database_free_space: int | None = None
    min_free: int = 500 * 1024 * 1024
    expires: float = 86400.0
    run_id: str | None = None
    run_dir: str | None = None

    def validate(self) -> None:
        """:raises PlanError: an option makes no sense"""
        if self.jobs < 1:
            raise PlanError(f"jobs is {self.jobs}", remedy="Use 1 or more.")
        if self.expires <= 0:
            raise PlanError("expires is 0", remedy="Say how long the shadow may live, such as 24h.")
        if self.target_db is not None and not 0 < len(self.target_db.encode()) <= 63:
            raise PlanError(f"target_db is {self.target_db!r}", remedy="A name has 1 to 63 bytes.")


@dataclasses.dataclass
class ShadowOutcome:
    """What was done, as the module returns it."""

    changed: bool = False
    database: str | None = None
    connection: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    facts: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    comparison: Comparison | None = None
    seconds: float = 0.0
    removed: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)
    evidence: list[Evidence] = dataclasses.field(default_factory=list)

    def results(self, run_dir: str | None) -> dict[str, t.Any]:
        """The module's results; evidence and ``restore.json`` go to the run directory too."""
        evidence = record(run_dir, self.evidence)
        comparison = self.comparison.to_dict() if self.comparison else None
        results = {
            "changed": self.changed,
            "database": self.database,
            "connection": self.connection,
            **self.facts,
            "comparison": comparison,
            "seconds": round(self.seconds, 3),
            "removed": self.removed,
            "evidence": evidence,
        }
        if run_dir and (self.comparison or evidence):
            write_json(run_dir, RESULT_FILE, {key: value for key, value in results.items() if key != "evidence"})
        return results


def _size(manifest: Manifest) -> int:
    """Bytes on disk of what is restored."""
    return int(manifest.data["sample"]["bytes"] if manifest.sampled else manifest.data["database"]["bytes"])


# --- a server --------------------------------------------------------------------------------------------------------


class _Server:
    """Shadows as databases of a server that exists."""

    def __init__(self, options: ConnectionOptions, *, same: bool) -> None:
        self.options = options
        self.same = same

    def survey(self, manifest: Manifest, request: ShadowRequest, outcome: ShadowOutcome) -> dict[str, t.Any]:
        """What the restore will cost there.

        :raises EnvironmentProblem: there is not enough of it
        :raises PlanError: it is the source's own server and nobody said that this is meant
        """
        with self._admin() as admin:
            facts = rows(admin, _SURVEY)[0]
            identifier = _system_identifier(admin)
        recorded = manifest.data["database"]
        here, there = facts["version"] // 10000, recorded["server_version_num"] // 10000
        if here != there:
            raise PlanError(
                f"the shadow server is PostgreSQL {here}, the backup is of PostgreSQL {there}",
                remedy="A shadow shows what will happen only on the same major version: name such a server.",
            )
        unknown = identifier is None or recorded["system_identifier"] is None
        if not self.same and (unknown or identifier == recorded["system_identifier"]):
            text = "cannot be told from" if unknown else "is"
            raise PlanError(
                f"{self.options.label} {text} the server the backup was taken from",
                remedy="Name another server, use where: embedded, or set same_server: true.",
            )
        size = _size(manifest)
        needed = {
            "disk_bytes": round(size * 1.1) + min(size, facts["max_wal_size"]),
            "wal_bytes": size,
            "connections": request.jobs + 3,
        }
        cost = {**needed, "free_bytes": request.database_free_space, "free_connections": facts["free_connections"]}
        line = (
            f"the restore into {self.options.label} needs about {human_size(needed['disk_bytes'])} of disk,"
            f" writes about {human_size(needed['wal_bytes'])} of WAL and uses {needed['connections']} connections"
        )
        if facts["archived"] or facts["replicas"]:
            line += f"; the WAL goes to {'the archive and ' if facts['archived'] else ''}{facts['replicas']} replicas"
        if facts["free_connections"] < needed["connections"]:
            raise EnvironmentProblem(
                f"{line}, but {facts['free_connections']} are free", remedy="Free connections, or use fewer jobs."
            )
        if request.database_free_space is None:
            remedy = "Say in database_free_space what its monitoring shows."
            if self.same:
                raise PlanError(f"{line}; its free disk cannot be seen by SQL", remedy=remedy)
            outcome.warnings.append(f"{line}; its free disk was not checked. {remedy}")
        elif request.database_free_space < needed["disk_bytes"] + request.min_free:
            raise EnvironmentProblem(
                f"{line}, but {human_size(request.database_free_space)} are free and"
                f" {human_size(request.min_free)} must stay free",
                remedy="Give it a larger disk, or use another shadow server or where: embedded.",
            )
        return cost

    def refuse_existing(self, name: str) -> None:
        """:raises EnvironmentProblem: a database of that name exists"""
        with self._admin() as admin:
            found = rows(admin, _DATABASES + " WHERE datname = %s", (name,))
        if found:
            whose = "an earlier shadow" if _marker(found[0]) else "not a shadow"
            remedy = "Remove it with state: absent." if _marker(found[0]) else "Choose another target_db."
            raise EnvironmentProblem(f"the database {name} exists already ({whose})", remedy=remedy)

    def build(
        self,
        work: Work,
        manifest: Manifest,
        client: Client,
        name: str,
        request: ShadowRequest,
        marker: dict[str, t.Any] | None,
    ) -> Comparison:
        """Make the shadow. Its maker's connection, by its application name, says that the maker lives.

        :param marker: None makes what shall live and is no shadow: unmarked, with all that acts on the outside
        """
        building = f"surefoot_building_{secrets.token_hex(8)}"
        alive = connect(self.options, purpose=f"building-{building[-16:]}", settings=_ADMIN_SETTINGS)
        with work.connection(alive):
            self.refuse_existing(name)
            create_roles(alive, manifest, _ROLE_MARKER if marker else "surefoot: made for a restored database")
            done = False

            try:
                comparison = restore_beside(
                    work,
                    self.options,
                    manifest,
                    client,
                    building,
                    jobs=request.jobs,
                    live=marker is None,
                    locale=request.locale,
                    on_created=(lambda admin: _mark(admin, building, marker)) if marker else None,
                )
                if comparison.passed:
                    if marker:
                        comparison.warnings += carry_settings(
                            work, self.options, manifest, client, building, custom=False
                        )
                    self._rename(alive, building, name)
                    done = True
            finally:
                if not done:
                    with contextlib.suppress(SurefootError):  # the first error is the one to tell; a sweep comes by
                        drop(self.options, building)
                        self._drop_roles()
        return comparison

    def login(self, database: str) -> dict[str, t.Any]:
        """Module options that reach the shadow, without a secret."""
        login: dict[str, t.Any] = {
            option: self.options.keywords[keyword]
            for keyword, option in _LOGIN.items()
            if self.options.keywords.get(keyword)
        }
        if str(login.get("login_host", "")).startswith("/"):
            login["login_unix_socket"] = login.pop("login_host")
        if "login_port" in login:
            login["login_port"] = int(login["login_port"])
        if self.options.session_role:
            login["session_role"] = self.options.session_role
        return {**login, "login_db": database}

    def remove(self, *, target: str | None, run_id: str | None, check: bool) -> list[str]:
        """Drop one shadow, or those of a run, and in any case those whose time is over and what killed runs left.

        :raises PlanError: the database exists and is not a shadow
        """
        with self._admin() as admin:
            found = rows(admin, _DATABASES)
            named = [row for row in found if target is not None and row["name"] == target]
            if named and not _marker(named[0]):
                raise PlanError(
                    f"{target} is not a shadow made by surefoot.dbops: it is left alone",
                    remedy="Check target_db; a shadow bears a comment that begins with 'surefoot shadow:'.",
                )
            alive = {row["token"] for row in rows(admin, _BUILDERS)}
            doomed, asked_for = [], []
            for row in found:
                marker = _marker(row)
                wanted = marker and (row in named or (run_id is not None and marker.get("run_id") == run_id))
                if _BUILDING.fullmatch(row["name"]):
                    gone = row["name"][-16:] not in alive
                else:
                    gone = bool(marker and (wanted or _expired(marker)))
                if gone:
                    doomed.append(row["name"])
                if wanted:
                    asked_for.append(row["name"])
            for name in [] if check else list(doomed):
                try:
                    rows(admin, f"DROP DATABASE IF EXISTS {quote_identifier(name, admin)} WITH (FORCE)")
                except SqlError:
                    if name in asked_for:
                        raise
                    doomed.remove(name)  # somebody else's, or in use by a prepared transaction: swept another time
        if doomed and not check:
            self._drop_roles()
        return doomed

    def _rename(self, admin: Connection, building: str, name: str) -> None:
        old, new = quote_identifier(building, admin), quote_identifier(name, admin)
        try:
            rows(admin, f"ALTER DATABASE {old} RENAME TO {new}")
        except SqlError as exc:
            if exc.sqlstate == "42P04":
                raise EnvironmentProblem(
                    f"the database {name} exists by now", remedy="Choose another target_db."
                ) from None
            raise

    def _drop_roles(self) -> None:
        """Roles made for shadows go with the last one. One that owns something by now is kept by the server."""
        with self._admin() as admin:
            if any(_marker(row) or _BUILDING.fullmatch(row["name"]) for row in rows(admin, _DATABASES)):
                return
            for row in rows(admin, _MADE_ROLES, (_ROLE_MARKER,)):
                with contextlib.suppress(SqlError):
                    rows(admin, f"DROP ROLE {quote_identifier(row['name'], admin)}")

    @contextlib.contextmanager
    def _admin(self) -> t.Iterator[Connection]:
        with contextlib.closing(connect(self.options, purpose="shadow", settings=_ADMIN_SETTINGS)) as connection:
            yield connection


_DATABASES = (
    "SELECT datname::text AS name, oid::bigint AS oid, pg_catalog.shobj_description(oid, 'pg_database') AS comment"
    " FROM pg_catalog.pg_database"
)
_BUILDERS = (
    "SELECT right(application_name, 16) AS token FROM pg_catalog.pg_stat_activity"
    " WHERE application_name LIKE 'surefoot:building-%'"
)
_MADE_ROLES = (
    "SELECT rolname::text AS name FROM pg_catalog.pg_roles WHERE NOT rolcanlogin"
    " AND pg_catalog.shobj_description(oid, 'pg_authid') = %s ORDER BY 1"
)
_SURVEY = """
SELECT current_setting('server_version_num')::int AS version,
       pg_size_bytes(current_setting('max_wal_size')) AS max_wal_size,
       current_setting('archive_mode') <> 'off' AS archived,
       (SELECT count(*) FROM pg_stat_replication) AS replicas,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
         - (SELECT count(*) FROM pg_stat_activity WHERE datid IS NOT NULL)::int AS free_connections
"""


def _system_identifier(connection: Connection) -> str | None:
    try:
        found = rows(connection, "SELECT system_identifier::text AS id FROM pg_catalog.pg_control_system()")
    except SqlError:  # hidden by the service
        return None
    return str(found[0]["id"])


def _mark(admin: Connection, name: str, marker: t.Mapping[str, t.Any]) -> None:
    found = rows(admin, _DATABASES + " WHERE datname = %s", (name,))
    text = _MARKER + json.dumps({**marker, "oid": found[0]["oid"]}, sort_keys=True)
    rows(admin, f"COMMENT ON DATABASE {quote_identifier(name, admin)} IS {quote_literal(text, admin)}")


def _marker(row: t.Mapping[str, t.Any]) -> dict[str, t.Any] | None:
    """What a database's comment says about a shadow. The oid in it must be its own: dumps copy comments."""
    comment = row["comment"] or ""
    if not comment.startswith(_MARKER):
        return None
    try:
        marker = json.loads(comment[len(_MARKER) :])
    except ValueError:
        return None
    return marker if isinstance(marker, dict) and marker.get("oid") == row["oid"] else None


def _expired(marker: t.Mapping[str, t.Any]) -> bool:
    return str(marker.get("expires") or "9") <= utc_now()


# --- a cluster of its own --------------------------------------------------------------------------------------------


class _Embedded:
    """A shadow as the only database of a fresh private cluster on this machine."""

    def __init__(self, request: ShadowRequest) -> None:
        self.request = request

    def survey(self, manifest: Manifest, request: ShadowRequest, _outcome: ShadowOutcome) -> dict[str, t.Any]:
        """Disk and programs.

        :raises EnvironmentProblem: not enough room, or no server programs of the same major version
        """
        size = _size(manifest)
        place = request.data_dir or os.path.dirname(default_home("/shadow"))
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        room = os.statvfs(place)
        free = room.f_bavail * room.f_frsize
        needed = round(size * 1.1) + min(size, _MAX_WAL)
        if free < needed + request.min_free:
            raise EnvironmentProblem(
                f"not enough room for the shadow in {place}: {human_size(free)} free, about {human_size(needed)} needed"
                f" and {human_size(request.min_free)} must stay free",
                remedy="Free room, name another data_dir, or restore into a server (where: server).",
            )
        self._server("/shadow", manifest).programs()
        return {"disk_bytes": needed, "free_bytes": free, "wal_bytes": 0, "connections": 0, "free_connections": None}

    def refuse_existing(self, name: str) -> None:
        """Nothing exists in a cluster yet to be made, save the two databases every cluster has.

        :raises PlanError: the name of one of them
        """
        if name in ("postgres", "template0", "template1"):
            raise PlanError(f"target_db is {name}, which every cluster has", remedy="Choose another name.")

    def build(
        self,
        work: Work,
        manifest: Manifest,
        client: Client,
        name: str,
        _request: ShadowRequest,
        marker: dict[str, t.Any],
    ) -> Comparison:
        """Make the cluster and restore into it. The lock on a file in its home says that the maker lives."""
        token = secrets.token_hex(8)
        server = self._server(f"/shadow/{token}", manifest)
        os.mkdir(server.home, 0o700)
        with open(os.path.join(server.home, _LOCK_FILE), "w", encoding="ascii") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            state = {**marker, "database": name, "data_dir": server.data_dir, "state": "building"}
            write_json(server.home, _STATE_FILE, state)
            comparison = None
            try:
                server.start()
                work.check()
                options = ConnectionOptions.from_params(server.login())
                inside = _Server(options, same=True)
                with work.connection(connect(options, purpose="shadow", settings=_ADMIN_SETTINGS)) as admin:
                    create_roles(admin, manifest, _ROLE_MARKER)
                    create_tablespaces(admin, manifest)
                comparison = restore_beside(
                    work, options, manifest, client, name,
                    jobs=self.request.jobs, live=False, locale=self.request.locale,
                    on_created=lambda admin: _mark(admin, name, marker),
                )  # fmt: skip
                if comparison.passed:
                    # The cluster and its log go with the shadow: custom settings' values get no further.
                    comparison.warnings += carry_settings(work, options, manifest, client, name, custom=True)
                    write_json(server.home, _STATE_FILE, {**state, "state": "ready"})
                    self._login = inside.login
            finally:
                if comparison is None or not comparison.passed:
                    with contextlib.suppress(SurefootError), _removing():
                        server.remove()
        return comparison

    def login(self, database: str) -> dict[str, t.Any]:
        """Module options that reach the shadow."""
        return self._login(database)

    def remove(self, *, target: str | None, run_id: str | None, check: bool, socket: str | None = None) -> list[str]:
        """Stop and remove one cluster (named by its socket's directory), or a run's, and those whose time is over.

        :raises PlanError: the socket is not of a shadow
        """
        named = os.path.dirname(os.path.abspath(socket)) if socket else None
        with contextlib.nullcontext() if check else _removing():
            return self._remove(named, target=target, run_id=run_id, check=check)

    def _remove(self, named: str | None, *, target: str | None, run_id: str | None, check: bool) -> list[str]:
        removed = []
        homes = dict(_homes())
        if named and os.path.lexists(named) and named not in homes:
            raise PlanError(
                f"{named} is not a shadow made by surefoot.dbops: it is left alone", remedy="Check the socket."
            )
        for home, state in homes.items():
            if _being_built(home):
                continue
            wanted = home == named or (run_id is not None and state.get("run_id") == run_id)
            if target is not None and state.get("database") != target and home == named:
                raise PlanError(
                    f"{home} holds the shadow {state.get('database')}, not {target}", remedy="Check target_db."
                )
            if wanted or _expired(state) or state.get("state") != "ready":
                removed.append(str(state.get("database")))
                if not check:
                    EmbeddedServer(home, data_dir=str(state["data_dir"])).remove()
        return removed

    def _server(self, key: str, manifest: Manifest) -> EmbeddedServer:
        home = default_home(key)
        data = os.path.join(self.request.data_dir, os.path.basename(home)) if self.request.data_dir else None
        bindir = self.request.bindir
        return EmbeddedServer(
            home,
            data_dir=data,
            bindir=bindir if bindir and os.path.exists(os.path.join(bindir, "initdb")) else None,
            version=manifest.data["database"]["server_version_num"] // 10000,
            settings={**_SCRATCH_SETTINGS, **self.request.settings},
            initdb_options=["--no-sync"],
        )


def _homes() -> t.Iterator[tuple[str, dict[str, t.Any]]]:
    """Every private directory of this user that is a shadow's."""
    pattern = os.path.join(os.path.dirname(default_home("/shadow")), f"surefoot-{os.geteuid()}-*", _STATE_FILE)
    for path in sorted(glob.glob(pattern)):
        home = os.path.dirname(path)
        with contextlib.suppress(OSError, ValueError):
            if os.lstat(home).st_uid != os.geteuid() or os.path.islink(home):
                continue
            with open(path, encoding="utf-8") as stream:
                state = json.load(stream)
            if isinstance(state, dict) and "data_dir" in state:
                yield home, state


@contextlib.contextmanager
def _removing() -> t.Iterator[None]:
    """One removal of clusters at a time: two that meet in one directory fail both.

    :raises EnvironmentProblem: the lock cannot be had
    """
    path = os.path.join(os.path.dirname(default_home("/shadow")), f"surefoot-{os.geteuid()}-shadows.lock")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        raise EnvironmentProblem(f"cannot write {path}: {exc.strerror}", remedy="Remove it: it is nobody's.") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _being_built(home: str) -> bool:
    try:
        with open(os.path.join(home, _LOCK_FILE), "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


@contextlib.contextmanager
def _scratch(request: ShadowRequest) -> t.Iterator[tuple[str, int]]:
    """A private directory for a sample on its way, and the descriptor whose lock says that its maker lives. It is
    production data: marked as a shadow's, so that whoever removes those removes it too when its maker is killed."""
    home = default_home(f"/shadow/{secrets.token_hex(8)}")
    directory = os.path.join(home, "sample")
    os.mkdir(home, 0o700)
    with open(os.path.join(home, _LOCK_FILE), "w", encoding="ascii") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        try:
            data_dir = os.path.join(home, "data")
            state = {"run_id": request.run_id, "database": "a sample", "data_dir": data_dir, "state": _SAMPLING}
            write_json(home, _STATE_FILE, state)
            os.mkdir(directory, 0o700)
            yield directory, owner.fileno()
        finally:
            with _removing():
                shutil.rmtree(home, ignore_errors=True)


def _sweep_scratch() -> None:
    """Samples on their way whose makers were killed; wherever the shadow was to be."""
    with contextlib.suppress(SurefootError), _removing():
        for home, state in list(_homes()):
            if state.get("state") == _SAMPLING and not _being_built(home):
                shutil.rmtree(home, ignore_errors=True)


# --- the two states --------------------------------------------------------------------------------------------------


def _place(options: ConnectionOptions | None, request: ShadowRequest) -> _Server | _Embedded:
    if request.where == "embedded":
        return _Embedded(request)
    if options is None:
        raise PlanError("where is server, but no server is named", remedy="Give login_host or login_url.")
    return _Server(options, same=request.same_server)


def _default_name(source: str, request: ShadowRequest, run_id: str) -> str:
    if request.where == "embedded":
        # Its own name, so that a migration which names its database finds it.
        return f"{source}_shadow"[:63] if source in ("postgres", "template0", "template1") else source
    suffix = "_shadow_" + re.sub(r"[^a-z0-9]+", "_", run_id.lower())[-24:]
    return source.encode()[: 63 - len(suffix)].decode("utf-8", "ignore") + suffix


def make_shadow(
    options: ConnectionOptions | None,
    request: ShadowRequest,
    *,
    source: ConnectionOptions | None = None,
    check_mode: bool = False,
) -> ShadowOutcome:
    """Restore a backup into a new scratch database and compare it with what the backup recorded; or the same with the
    schema and a sample of the rows of the live database that the backup is of.

    :param options: the shadow server; not looked at for ``where: embedded``
    :param source: the live database, for a sample
    :raises VerificationFailed: it is not what the backup recorded, and is gone; ``results`` says what differs
    :raises SurefootError: it could not be restored, and nothing is left
    """
    request.validate()
    work = Work()
    outcome = ShadowOutcome()
    started = time.monotonic()
    run_dir = None if check_mode else request.run_dir

    def shadow() -> ShadowOutcome:
        try:
            _make(work, options, source, request, outcome, check_mode)
        except SurefootError as exc:
            cause = _cause(work, exc)
            outcome.seconds = time.monotonic() - started
            outcome.changed = bool(outcome.removed) and not check_mode
            outcome.database, outcome.connection = None, {}
            if not outcome.evidence:
                outcome.evidence.append(_completed(request, "fail", redact(str(cause)), outcome))
            cause.results = {**outcome.results(run_dir), **cause.results}
            raise cause from None
        outcome.seconds = time.monotonic() - started
        return outcome

    return run_interruptible(shadow, work.interrupt)


def _cause(work: Work, exc: SurefootError) -> SurefootError:
    # What stopped first is the cause; what failed because it was stopped is not.
    try:
        work.check()
    except SurefootError as first:
        return first
    return exc


def _make(
    work: Work,
    options: ConnectionOptions | None,
    source: ConnectionOptions | None,
    request: ShadowRequest,
    outcome: ShadowOutcome,
    check_mode: bool,
) -> None:
    place = _place(options, request)
    if request.content == "full":
        manifest = open_backup(request.backup, request.manifest_sha256, jobs=request.jobs)
        work.check()
        _build(work, place, manifest, manifest, request, outcome, check_mode)
        return
    if source is None:
        raise PlanError("content is sample, but no live database is named", remedy="Give source.")
    # The backup restores nothing here; the shadow is bound to it, as a rehearsal on it is.
    bound = read_manifest(request.backup, request.manifest_sha256)
    if check_mode:
        _refuse_other(bound, _identity(source), None)
        outcome.removed = place.remove(target=None, run_id=None, check=True)
        outcome.changed = True
        outcome.database = request.target_db or _default_name(bound.data["database"]["name"], request, "check")
        outcome.facts = {"where": request.where, "backup": _facts(bound)}
        return
    _sweep_scratch()
    with _scratch(request) as (directory, lock):
        manifest = take_sample(
            work, source, request.sample, directory, bindir=request.bindir, jobs=request.jobs, lock=lock
        )
        found = manifest.data["database"]
        _refuse_other(bound, (found["system_identifier"], found["oid"]), manifest)
        _build(work, place, manifest, bound, request, outcome, check_mode)


def _identity(options: ConnectionOptions) -> tuple[str | None, int]:
    with contextlib.closing(connect(options, purpose="shadow-source")) as connection:
        oid = rows(connection, _DATABASES + " WHERE datname = pg_catalog.current_database()")[0]["oid"]
        return _system_identifier(connection), oid


def _refuse_other(bound: Manifest, identity: tuple[str | None, int], sample: Manifest | None) -> None:
    """:raises BackupError: the live database is not the one that the backup is of, or not as it was"""
    recorded = bound.data["database"]
    system, oid = identity
    known = system is not None and recorded["system_identifier"] is not None
    if oid != recorded["oid"] or (known and system != recorded["system_identifier"]):
        raise BackupError(
            f"source is database {oid} of system {system}, the backup is of {recorded['oid']} of system"
            f" {recorded['system_identifier']}",
            remedy="Give the connection of the database that was backed up.",
        )
    catalog = bound.data.get("catalog")
    if sample is not None and catalog and catalog["fingerprint"] != sample.data["catalog"]["fingerprint"]:
        raise BackupError(
            "the schema of the live database changed since the backup",
            remedy="Take a new backup; this one is of another.",
        )


def _facts(manifest: Manifest) -> dict[str, t.Any]:
    data = manifest.data
    return {
        "path": manifest.directory,
        "id": data["backup_id"],
        "manifest_sha256": manifest.sha256,
        "created": data["created"],
        "hashes": data.get("hashes"),
    }


def _build(
    work: Work,
    place: _Server | _Embedded,
    manifest: Manifest,
    bound: Manifest,
    request: ShadowRequest,
    outcome: ShadowOutcome,
    check_mode: bool,
) -> None:
    """Make the shadow of what ``manifest`` describes.

    :param bound: the backup that it is of; the same one, or for a sample that of the same database
    """
    started = time.monotonic()
    data = manifest.data
    major = data["database"]["server_version_num"] // 10000
    needed = max(major, data["client_version_num"] // 10000)
    client = find_client(needed, request.bindir, needed_by="the backup")
    run_id = request.run_id or secrets.token_hex(6)
    name = request.target_db or _default_name(data["database"]["name"], request, run_id)
    outcome.removed = place.remove(target=None, run_id=None, check=check_mode)
    cost = place.survey(manifest, request, outcome)
    place.refuse_existing(name)
    now = datetime.datetime.now(datetime.timezone.utc)
    expires = (now + datetime.timedelta(seconds=request.expires)).isoformat(timespec="milliseconds")
    marker = {
        "run_id": run_id,
        "backup_id": bound.data["backup_id"],
        "source": data["database"]["name"],
        "created": utc_now(),
        "expires": expires.replace("+00:00", "Z"),
    }
    outcome.facts = {"where": request.where, "backup": _facts(bound), "expires": marker["expires"], "cost": cost}
    if manifest.sampled:
        sample = data["sample"]
        marker.update(content="sample", incomplete=sample["incomplete"])
        outcome.facts["sample"] = {
            **{key: sample[key] for key in ("rows", "tables", "methods")},
            "incomplete": {label: {"rows": size[0], "bytes": size[1]} for label, size in sample["incomplete"].items()},
            "created": data["created"],
            "seconds": data["seconds"],
        }
    outcome.changed, outcome.database = True, name
    if check_mode:
        return
    outcome.comparison = place.build(work, manifest, client, name, request, marker)
    outcome.warnings += outcome.comparison.warnings
    seconds = round(time.monotonic() - started, 3)
    compared = [] if manifest.sampled else outcome.comparison.evidence()
    if not outcome.comparison.passed:
        what = "the shadow is not the sample that was read" if manifest.sampled else _NOT_BACKED_UP
        text = f"{what}: {outcome.comparison.summary()}"
        outcome.evidence = [_completed(request, "fail", text, outcome), *compared]
        remedy = "Nothing but the shadow was touched." if manifest.sampled else _ANOTHER_BACKUP
        raise VerificationFailed(text, remedy=remedy)
    outcome.connection = place.login(name)
    measured = {"database": name, "where": request.where, "seconds": seconds, "size": data["database"]["bytes"]}
    if manifest.sampled:
        measured = {
            **{key: data["sample"][key] for key in ("tables", "rows")},
            "tables_with_a_part_of_their_rows": len(data["sample"]["incomplete"]),
        }
    outcome.evidence = [_completed(request, "pass", measured, outcome), *compared]


_NOT_BACKED_UP = "the restored backup is not what was backed up"
_ANOTHER_BACKUP = "Take a new backup; this one must not be relied on."


def _completed(request: ShadowRequest, result: str, measured: t.Any, outcome: ShadowOutcome) -> Evidence:
    details = {"path": request.backup, "manifest_sha256": request.manifest_sha256, **outcome.facts}
    if request.content == "sample":
        # Not restore.completed: no backup was restored, and none of its criteria is measured.
        return Evidence(
            "shadow.sample", PHASE, result, measured, "the schema and the chosen rows of the live database's snapshot",
            "pg_dump --schema-only and COPY in one snapshot; catalog entries, counts and hashes of both",
            details={**details, "counts": outcome.comparison.counts if outcome.comparison else {}},
        )  # fmt: skip
    return Evidence(
        "restore.completed", PHASE, result, measured, "the backup restored whole into a new database",
        "sha256 of the backup's files and manifest, pg_restore --exit-on-error",
        details=details,
    )  # fmt: skip


def remove_shadow(
    options: ConnectionOptions | None, request: ShadowRequest, *, socket: str | None, check_mode: bool = False
) -> ShadowOutcome:
    """Drop a shadow (``target_db``, or for an embedded one the directory of its socket), or all of a run; there may be
    none. Shadows whose time is over, and what killed runs left, go too.

    :raises PlanError: what is named is not a shadow, or nothing is named
    """
    named = socket if request.where == "embedded" else request.target_db
    if not named and not request.run_id:
        option = "login_unix_socket" if request.where == "embedded" else "target_db"
        raise PlanError("nothing says which shadow to remove", remedy=f"Give {option}, or the run_id it was made in.")
    outcome = ShadowOutcome(facts={"where": request.where})
    place = _place(options, request)
    if not check_mode:
        _sweep_scratch()
    target = request.target_db
    # A run's shadows are meant only when no single one is named.
    run_id = None if named else request.run_id
    if isinstance(place, _Embedded):
        outcome.removed = place.remove(target=target, run_id=run_id, check=check_mode, socket=socket)
    else:
        outcome.removed = place.remove(target=target, run_id=run_id, check=check_mode)
    outcome.changed = bool(outcome.removed)
    return outcome


# --- the live database's replacement ---------------------------------------------------------------------------------


def replace_database(
    options: ConnectionOptions,
    request: ShadowRequest,
    *,
    accept_loss: bool,
    replacement: str | None = None,
    max_lost_rows: int | None = None,
    drain_timeout: float = 30.0,
    check_mode: bool = False,
) -> dict[str, t.Any]:
    """Restore a backup beside the live database ``target_db`` on its server, compare, and give it the live one's name.

    :param accept_loss: must be true, since what was written after the backup is given up
    :param replacement: a restored copy that an earlier attempt left, which is compared again instead of restored
    :return: the module's results
    :raises SurefootError: the live database is as it was; see :func:`_swap.swap`
    """
    request.validate()
    database = request.target_db
    if not database:
        raise PlanError("nothing says which database to replace", remedy="Give target_db.")
    work = Work()
    outcome = ShadowOutcome(facts={"where": "server"})
    started = time.monotonic()
    run_dir = None if check_mode else request.run_dir
    server = _Server(options, same=True)

    def prepare() -> tuple[Manifest, str]:
        # A swap that was killed left the database, and the copy it had restored, closed.
        if not check_mode and reopen(options, database):
            outcome.warnings.append(f"an earlier swap had left {database} closed for connections")
        manifest = open_backup(request.backup, request.manifest_sha256, jobs=request.jobs)
        source = manifest.data["database"]["name"]
        if source != database:
            raise PlanError(
                f"the backup is of the database {source}, not of {database}", remedy="Check target_db and backup."
            )
        if not accept_loss and not check_mode:
            raise PlanError(
                f"what was written to {database} since {manifest.data['created']} would be lost",
                remedy="Set accept_loss: true when that is meant; check mode says how many rows.",
            )
        name = replacement or f"{source.encode()[:43].decode('utf-8', 'ignore')}_restored_{secrets.token_hex(4)}"
        if replacement is None:
            outcome.removed = server.remove(target=None, run_id=None, check=check_mode)
            outcome.facts["cost"] = server.survey(manifest, request, outcome)
        if check_mode:
            return manifest, name
        if replacement is None:
            needed = manifest.data["client_version_num"] // 10000
            client = find_client(needed, request.bindir, needed_by="the backup")
            outcome.comparison = server.build(work, manifest, client, name, request, None)
        else:
            copy = options.with_database(replacement)
            outcome.comparison = compare(work, copy, manifest, jobs=request.jobs, live=True)
        if not outcome.comparison.passed:
            text = f"the restored backup is not what was backed up: {outcome.comparison.summary()}"
            outcome.evidence = [_completed(request, "fail", text, outcome), *outcome.comparison.evidence()]
            raise VerificationFailed(text, remedy=f"{database} is as it was. Restore from another backup.")
        measured = {"database": name, "where": "server", "seconds": round(time.monotonic() - started, 3)}
        outcome.evidence = [_completed(request, "pass", measured, outcome), *outcome.comparison.evidence()]
        return manifest, name

    def results(**more: t.Any) -> dict[str, t.Any]:
        outcome.seconds = time.monotonic() - started
        found = outcome.results(run_dir)
        found["evidence"] = found["evidence"] + list(more.pop("evidence", []))
        return {**found, **more}

    try:
        manifest, name = run_interruptible(prepare, work.interrupt)
    except SurefootError as exc:
        cause = _cause(work, exc)
        if not outcome.evidence:
            outcome.evidence.append(_completed(request, "fail", redact(str(cause)), outcome))
        cause.results = {**results(database=database), **cause.results}
        raise cause from None
    if check_mode:
        with contextlib.closing(connect(options.with_database(database), purpose="swap")) as live:
            lost = lost_writes(live, manifest)
        return results(changed=True, database=database, lost=lost.to_dict())
    try:
        swapped = swap(
            options,
            database=database,
            replacement=name,
            accept_loss=accept_loss,
            manifest=manifest,
            max_lost_rows=max_lost_rows,
            drain_timeout=drain_timeout,
        )
    except SurefootError as exc:
        exc.remedy = f"{exc.remedy or ''} The restored copy is kept: run again with replacement: {name}.".strip()
        exc.results = {**results(changed=True, database=database, replacement=name), **exc.results}
        raise
    outcome.warnings += swapped.warnings
    done = swapped.results(run_dir)
    return results(**done, connection=server.login(database), notes=outcome.warnings)
