# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A backup into a new database, and the proof that the new database holds what the backup recorded.

Nothing in here knows why it is restored: :mod:`_shadow` makes scratch databases of it, a swap a new production one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import tempfile
import threading
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils import _catalog
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    child_environment,
    connect,
    quote_identifier,
    quote_literal,
    redact,
    sql_error,
    startup_options,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import BackupError, EnvironmentProblem, SqlError
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._pgdump import (
    DUMP_NAME,
    HASH_PROBE,
    SNAPSHOT_SETTINGS,
    Client,
    Manifest,
    Work,
    hash_statement,
    read_archive,
    read_manifest,
    validity,
    verify_files,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._sample import fill_views, load_rows
from ansible_collections.surefoot.dbops.plugins.module_utils._sqltext import Token, statements

with contextlib.suppress(ImportError):  # require_driver() reports it
    import psycopg2
    import psycopg2.extensions

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

PHASE = "restore"
COMPARED = ("row_counts", "content", "sequences", "constraints", "extensions", "privileges", "catalog")

# Extensions that run jobs by themselves, and the schema of their jobs. pg_cron besides exists in one database a server.
_SCHEDULERS = {"pg_cron": "cron"}
# What would act on the outside from a copy: a subscription drains its publisher's slot, a user mapping holds a login.
_ALIVE = r"SUBSCRIPTION|SUBSCRIPTION TABLE|USER MAPPING"
_LIVE_ENTRIES = ("subscription *", "* subscription *", "user mapping *")
# pg_dump does not carry who owns an extension, a foreign data wrapper aside: it is whoever restores.
_NEVER_DUMPED = ("owner of extension *",)
# A restore that is lost with its server is started again: it need not wait for the disk at each commit.
_RESTORE_SETTINGS = {
    "synchronous_commit": "off",
    "maintenance_work_mem": "256MB",
    "default_transaction_read_only": "off",
    "idle_session_timeout": "0",
}
_FILLS_VIEW = re.compile(rb"\d+; \d+ (\d+) MATERIALIZED VIEW DATA ")
_SHOWN = 20
_KEPT = 500
_REMEDIES: tuple[tuple[str, str], ...] = (
    (r"No space left on device|could not extend file", "Give the server's disk room; nothing is left of the restore."),
    (
        r"must be member of role|must be able to SET ROLE|permission denied",
        "Restore as a superuser, or as a member of every role that owns something (see docs/restore.md).",
    ),
    (
        r"extension .* is not available|could not open extension control file",
        "Install the extension's package on the server the backup is restored into.",
    ),
    (r"tablespace .* does not exist", "Create the tablespace there first."),
    (r"out of shared memory|max_locks_per_transaction", "Raise max_locks_per_transaction of that server."),
    (r"could not read from input file|could not uncompress|compressed data", "The backup is damaged: take another."),
)


# --- the backup ------------------------------------------------------------------------------------------------------


def open_backup(path: str, manifest_sha256: str, *, jobs: int) -> Manifest:
    """The manifest of a backup, all of whose files are what was written.

    :param manifest_sha256: the anchor that was kept outside the backup
    :raises BackupError: anything in it was changed, added or removed
    """
    manifest = read_manifest(path, manifest_sha256)
    manifest.require_dump()
    verify_files(manifest.directory, manifest, jobs=jobs)
    return manifest


# --- making the database ---------------------------------------------------------------------------------------------


def rows(connection: Connection, statement: str, parameters: t.Sequence[t.Any] = ()) -> list[dict[str, t.Any]]:
    """What a query returns, a dictionary a row.

    :raises SqlError: the server refused
    """
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, tuple(parameters) or None)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row)) for row in cursor.fetchall()] if names else []
    except psycopg2.Error as exc:
        raise sql_error(exc, statement=statement) from None


def create_database(connection: Connection, name: str, manifest: Manifest, locale: str | None = None) -> None:
    """An empty database of the recorded encoding, locale and, where it exists, tablespace, which nobody but its owner
    may connect to.

    :param locale: libc locale to use instead of the recorded one
    :raises EnvironmentProblem: the server lacks the locale, or the role may not create databases
    """
    recorded = manifest.data["database"]
    collate, ctype = locale or recorded["collate"], locale or recorded["ctype"]
    options = {"TEMPLATE": "template0", "ENCODING": quote_literal(recorded["encoding"], connection)}
    options.update(LC_COLLATE=quote_literal(collate, connection), LC_CTYPE=quote_literal(ctype, connection))
    provider = None if locale else recorded.get("locale_provider")
    if connection.server_version >= 150000:
        word = {"i": "icu", "b": "builtin"}.get(provider or "c", "libc")
        options["LOCALE_PROVIDER"] = word
        if word != "libc":
            options[f"{word.upper()}_LOCALE"] = quote_literal(recorded["locale"], connection)
    space = recorded.get("tablespace")
    may = "SELECT FROM pg_catalog.pg_tablespace WHERE spcname = %s AND has_tablespace_privilege(oid, 'CREATE')"
    if space != "pg_default" and rows(connection, f"SELECT EXISTS ({may}) AS it", (space,))[0]["it"]:
        options["TABLESPACE"] = quote_identifier(space, connection)
    words = " ".join(f"{key} {value}" for key, value in options.items())
    quoted = quote_identifier(name, connection)
    try:
        rows(connection, f"CREATE DATABASE {quoted} {words}")
    except SqlError as exc:
        if exc.sqlstate in ("42501", "42P04"):
            remedy = "GRANT it: ALTER ROLE ... CREATEDB." if exc.sqlstate == "42501" else "Choose another name."
            raise EnvironmentProblem(f"cannot create the database {name}: {exc.message}", remedy=remedy) from None
        if "locale" in exc.message or "encoding" in exc.message:
            raise EnvironmentProblem(
                f"the server cannot make a database with the source's locale {collate}: {exc.message}",
                remedy="Generate that locale on its machine (Debian: locale-gen), or set the option locale.",
            ) from None
        raise
    rows(connection, f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC")


def require_extensions(connection: Connection, manifest: Manifest, *, live: bool) -> None:
    """:raises EnvironmentProblem: the server lacks an extension of the backup"""
    available = {row["name"] for row in rows(connection, "SELECT name::text FROM pg_catalog.pg_available_extensions")}
    wanted = {extension["name"] for extension in manifest.data["extensions"] if live or not _left_out(extension)}
    missing = sorted(wanted - available)
    if missing:
        raise EnvironmentProblem(
            f"the server the backup is restored into lacks the extension {', '.join(missing)}",
            remedy="Install its package there (Debian: postgresql-NN-..., the contrib ones with the server).",
        )


def _left_out(extension: t.Mapping[str, t.Any]) -> bool:
    return extension["name"] in _SCHEDULERS


def create_roles(connection: Connection, manifest: Manifest, comment: str) -> list[str]:
    """The roles of the backup that the server lacks, made NOLOGIN; returns their names.

    :param comment: marks them as ours
    """
    present = {row["rolname"] for row in rows(connection, "SELECT rolname::text FROM pg_catalog.pg_roles")}
    superuser = rows(connection, "SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user")
    made = [role for role in manifest.data["roles"] if role not in present and not role.startswith("pg_")]
    for role in made:
        quoted = quote_identifier(role, connection)
        try:
            rows(connection, f"CREATE ROLE {quoted} NOLOGIN")
        except SqlError as exc:
            if exc.sqlstate != "42710":  # somebody else made it this moment
                exc.remedy = f"Create the role {role} there, or restore as a role with CREATEROLE."
                raise
            continue
        rows(connection, f"COMMENT ON ROLE {quoted} IS {quote_literal(comment, connection)}")
        if not (superuser and superuser[0]["rolsuper"]):
            rows(connection, f"GRANT {quoted} TO CURRENT_USER")
    return made


def create_tablespaces(connection: Connection, manifest: Manifest) -> None:
    """The tablespaces of the backup's tables, in the data directory of a cluster that is ours alone."""
    for name in manifest.data.get("tablespaces", ()):
        rows(connection, "SET allow_in_place_tablespaces = on")
        rows(connection, f"CREATE TABLESPACE {quote_identifier(name, connection)} LOCATION ''")


# --- loading it ------------------------------------------------------------------------------------------------------


def keeps(line: str, *, live: bool) -> bool:
    """Whether an entry of ``pg_restore --list`` is restored.

    :param live: also what acts on the outside: subscriptions, user mappings, scheduled jobs
    """
    if live:
        return True
    schedulers, schemas = "|".join(_SCHEDULERS), "|".join(_SCHEDULERS.values())
    return not re.match(
        rf"\d+; \d+ \d+ (?:(?:{_ALIVE}) |(?:COMMENT|SECURITY LABEL|ACL) - (?:SUBSCRIPTION) "
        rf"|EXTENSION - (?:{schedulers}) |(?:COMMENT|SECURITY LABEL) - EXTENSION (?:{schedulers}) "
        rf"|(?:TABLE DATA|SEQUENCE SET|ACL|DEFAULT ACL|POLICY|ROW SECURITY|COMMENT) (?:{schemas}) "
        rf"|ACL - SCHEMA (?:{schemas}) )",
        line,
    )


def load(
    work: Work,
    options: ConnectionOptions,
    manifest: Manifest,
    client: Client,
    *,
    jobs: int,
    live: bool,
    tablespaces: bool,
) -> list[str]:
    """Run pg_restore into the (empty) database the options name; returns a line about what was left out.

    Unless it shall live, materialized views that read foreign tables stay empty: filling them would ask another server.

    :param live: see :func:`keeps`
    :param tablespaces: put tables where they were; else all go to the default tablespace
    :raises BackupError: pg_restore failed
    """
    dump = os.path.join(manifest.directory, DUMP_NAME)
    with tempfile.TemporaryDirectory(prefix="surefoot-") as scratch, child_environment(options) as environment:
        environment["LC_ALL"] = "C"
        words = [environment.get("PGOPTIONS", ""), *startup_options(_RESTORE_SETTINGS)]
        environment["PGOPTIONS"] = " ".join(words).strip()
        listing = os.path.join(scratch, "list")
        lines: list[bytes] = []
        code, errors = work.run([client.path("pg_restore"), "--list", dump], environment, consume=lines.extend)
        work.check()
        if code != 0:
            raise _failed(code, errors)
        kept = [line for line in lines if keeps(line.decode("utf-8", "surrogateescape"), live=live)]
        foreign = not live and any(table["kind"] == "f" for table in manifest.tables)
        views = {line: found for line in kept if (found := _FILLS_VIEW.match(line))} if foreign else {}
        argv = [
            client.path("pg_restore"),
            f"--dbname={psycopg2.extensions.make_dsn(dbname=options.keywords['dbname'])}",
            f"--jobs={jobs}",
            f"--use-list={listing}",
            "--exit-on-error",
            "--no-password",
        ]
        argv += [] if tablespaces else ["--no-tablespaces"]
        argv += [f"--role={options.session_role}"] if options.session_role else []

        def restore(chosen: t.Sequence[bytes], *more: str) -> None:
            with open(listing, "wb") as stream:
                stream.writelines(chosen)
            code, errors = work.run([*argv, *more, dump], environment)
            work.check()
            if code != 0:
                raise _failed(code, errors)

        if manifest.sampled:
            restore(kept, "--section=pre-data")
            load_rows(work, options, manifest)
            restore(kept, "--section=post-data")
            return fill_views(work, options, manifest, _over_foreign_tables(work, options))
        restore([line for line in kept if line not in views])
        if not views:
            return []
        remote = _over_foreign_tables(work, options)
        empty = {table["oid"]: table for table in manifest.tables if (table["schema"], table["name"]) in remote}
        filled = [line for line, found in views.items() if int(found[1]) not in empty]
        if filled:
            restore(filled)
        names = sorted(_label(e["schema"], e["name"]) for f in views.values() if (e := empty.get(int(f[1]))))
        return [f"not filled, because they read foreign tables: {', '.join(names)}"] if names else []


def _over_foreign_tables(work: Work, options: ConnectionOptions) -> set[tuple[str, str]]:
    with work.connection(connect(options, purpose="restore")) as inside:
        return {(row["schema"], row["name"]) for row in rows(inside, _OVER_FOREIGN_TABLES)}


def _failed(code: int, errors: str) -> BackupError:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"\S+: (?:error|fatal):", line)] or lines[-1:]
    text = re.sub(r"^\S+: (?:error|fatal): (?:could not execute query: )?(?:ERROR: +)?", "", told[0]) if told else ""
    whole = " ".join(lines)
    remedy = next((remedy for pattern, remedy in _REMEDIES if re.search(pattern, whole)), None)
    return BackupError(
        f"the backup cannot be restored: {redact(text) or f'pg_restore ended with {code}'}",
        remedy=remedy or "Nothing is left of the restore; the backup is as it was.",
    )


def restore_beside(
    work: Work,
    server: ConnectionOptions,
    manifest: Manifest,
    client: Client,
    name: str,
    *,
    jobs: int,
    live: bool,
    locale: str | None = None,
    on_created: t.Callable[[Connection], None] | None = None,
) -> Comparison:
    """Restore into a new database ``name``, compare it with what the backup recorded, and ANALYZE it. Whatever fails,
    the new database is gone afterwards; a comparison that fails is returned, and its database stays.

    :param server: any database of the server
    :param live: see :func:`keeps`
    :param on_created: called with a connection to ``server`` once the empty database exists
    :raises SurefootError: it could not be restored
    """
    read_archive(work, client, manifest, manifest.directory, full=False, jobs=jobs)
    settings = {"statement_timeout": "0", "idle_session_timeout": "0", "default_transaction_read_only": "off"}
    with work.connection(connect(server, purpose="restore", settings=settings)) as admin:
        require_extensions(admin, manifest, live=live)
        tablespaces = len(rows(admin, "SELECT 1 FROM pg_catalog.pg_tablespace")) > 2
        create_database(admin, name, manifest, locale)
    options = server.with_database(name)
    try:
        with contextlib.closing(connect(server, purpose="restore", settings=settings)) as admin:
            if on_created is not None:
                on_created(admin)
        with work.connection(connect(options, purpose="restore", settings=settings)) as inside:
            _template_as_recorded(inside, manifest)
            _extensions_as_recorded(inside, manifest, live=live)
        left_out = load(work, options, manifest, client, jobs=jobs, live=live, tablespaces=tablespaces)
        comparison = compare(work, options, manifest, jobs=jobs, live=live)
        comparison.warnings += left_out
        return comparison
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the one to tell
            drop(server, name)
        raise


def carry_settings(
    work: Work, server: ConnectionOptions, manifest: Manifest, client: Client, name: str, *, custom: bool
) -> list[str]:
    """Give a restored database the settings that ALTER DATABASE and ALTER ROLE IN DATABASE gave its source, such as a
    search_path: a plain restore leaves them out. Returns a line about each that the server refused.

    :param custom: also custom (dotted) settings, whose values may be secrets: they become statement text
    :raises BackupError: the archive cannot be read
    """
    dump = os.path.join(manifest.directory, DUMP_NAME)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    with tempfile.TemporaryDirectory(prefix="surefoot-") as scratch:
        listing, program = os.path.join(scratch, "list"), [client.path("pg_restore"), "--create"]
        entries: list[bytes] = []
        code, errors = work.run([*program, "--list", dump], environment, consume=entries.extend)
        chosen = [line for line in entries if b" DATABASE PROPERTIES - " in line]
        if code == 0 and not chosen:
            return []
        with open(listing, "wb") as stream:
            stream.writelines(chosen)
        sql: list[bytes] = []
        if code == 0:
            argv = [*program, f"--use-list={listing}", "--file=-", dump]
            code, errors = work.run(argv, environment, consume=sql.extend)
        work.check()
        if code != 0:
            raise _failed(code, errors)
    problems = []
    with contextlib.closing(connect(server, purpose="restore-settings")) as admin:
        for statement in statements(io.BytesIO(b"".join(sql)), name="settings of the database"):
            found = _setting(statement.head)
            if found is None or ("." in found[1] and not custom):
                continue
            database = found[0]
            end = database.offset + len(database.text)
            text = statement.text[: database.offset] + quote_identifier(name, admin) + statement.text[end:]
            try:
                rows(admin, text)
            except SqlError as exc:
                problems.append(f"the database's setting {found[1]} could not be carried over: {exc.message}")
    return problems


def _setting(head: t.Sequence[Token]) -> tuple[Token, str] | None:
    """The database and the setting's name in ALTER DATABASE d SET s or ALTER ROLE r IN DATABASE d SET s."""
    values = [token.value for token in head]
    for start in (["alter", "database"], ["alter", "role", "", "in", "database"]):
        place = len(start)  # of the database's name; SET and the setting's name follow, and after them TO
        alike = all(word in ("", value) for word, value in zip(start, values))
        if alike and values[place + 1 : place + 2] == ["set"] and "to" in values[place + 3 :]:
            return head[place], "".join(values[place + 2 : values.index("to", place + 3)])
    return None


def drop(server: ConnectionOptions, name: str) -> None:
    """Drop a database with the sessions in it. The caller knows that it is ours."""
    with contextlib.closing(connect(server, purpose="restore-drop", settings={"statement_timeout": "0"})) as admin:
        rows(admin, f"DROP DATABASE IF EXISTS {quote_identifier(name, admin)} WITH (FORCE)")


def _template_as_recorded(connection: Connection, manifest: Manifest) -> None:
    """What every new database brings along and no dump takes away: the schema public and plpgsql, where the source has
    dropped them, and, before version 15, who owns public.

    What the role may not do is left, and found by the comparison."""
    recorded = manifest.catalog.hashes
    owner = None
    if connection.server_version < 150000:
        # Only the hash is recorded, and the owner is one of the backup's roles.
        hashed = recorded.get("owner of schema public")
        names = rows(connection, "SELECT r, quote_ident(r) AS quoted FROM unnest(%s) AS r", (manifest.data["roles"],))
        owner = next((name["r"] for name in names if _catalog.entry_hash(name["quoted"]) == hashed), None)
    for wanted, statement in (
        ("schema public" not in recorded, "DROP SCHEMA IF EXISTS public"),
        ("extension plpgsql" not in recorded, "DROP EXTENSION IF EXISTS plpgsql"),
        (owner is not None, f"ALTER SCHEMA public OWNER TO {quote_identifier(owner or '', connection)}"),
    ):
        if wanted:
            with contextlib.suppress(SqlError):
                rows(connection, statement)


def _extensions_as_recorded(connection: Connection, manifest: Manifest, *, live: bool) -> None:
    """pg_dump writes no version: an extension whose default version is another one is made beforehand, where its
    schema exists already in an empty database."""
    available = {
        (row["name"], row["version"]): row["default_version"]
        for row in rows(
            connection,
            "SELECT v.name::text, v.version, e.default_version FROM pg_catalog.pg_available_extension_versions AS v"
            " JOIN pg_catalog.pg_available_extensions AS e USING (name) WHERE e.installed_version IS NULL",
        )
    }
    for extension in manifest.data["extensions"]:
        name, version = extension["name"], extension["version"]
        other = available.get((name, version), version) != version
        if other and extension["schema"] in ("public", "pg_catalog") and (live or not _left_out(extension)):
            quoted, schema = (quote_identifier(text, connection) for text in (name, extension["schema"]))
            literal = quote_literal(version, connection)
            rows(connection, f"CREATE EXTENSION {quoted} WITH SCHEMA {schema} VERSION {literal} CASCADE")


# --- comparing -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Difference:
    """One object that is not as recorded."""

    criterion: str  # without "restore."
    object: str
    measured: t.Any
    required: t.Any


@dataclasses.dataclass
class Comparison:
    """A restored database against what its backup recorded."""

    tables: list[dict[str, t.Any]] = dataclasses.field(default_factory=list)
    differences: list[Difference] = dataclasses.field(default_factory=list)
    counts: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
    not_measured: dict[str, str] = dataclasses.field(default_factory=dict)  # criterion -> why
    warnings: list[str] = dataclasses.field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing that was compared differs."""
        return not self.differences

    def differ(self, criterion: str, name: str, measured: t.Any, required: t.Any) -> None:
        """Note a difference."""
        self.differences.append(Difference(criterion, re.sub(r"[\x00-\x1f\x7f]", "?", name), measured, required))

    def summary(self) -> str:
        """The first differences in one line."""
        shown = [f"{d.object} is {d.measured}, recorded was {d.required}" for d in self.differences[:3]]
        rest = len(self.differences) - len(shown)
        return "; ".join(shown) + (f"; and {rest} more" if rest > 0 else "")

    def evidence(self) -> list[Evidence]:
        """One record a criterion."""
        return [self._evidence(name) for name in COMPARED]

    def _evidence(self, name: str) -> Evidence:
        different = [item for item in self.differences if item.criterion == name]
        counts = self.counts.get(name, {})
        required, source = _HOW[name]
        if different:
            shown = different[:_SHOWN]
            return Evidence(
                f"restore.{name}", PHASE, "fail",
                {item.object: item.measured for item in shown}, {item.object: item.required for item in shown}, source,
                details={"differences": len(different), "objects": [item.object for item in different[:_KEPT]]},
            )  # fmt: skip
        if name in self.not_measured:
            return Evidence(f"restore.{name}", PHASE, "not_measured", self.not_measured[name], required, source)
        result = verdict(True) if any(counts.values()) else "not_applicable"
        return Evidence(f"restore.{name}", PHASE, result, counts, required, source)

    def to_dict(self) -> dict[str, t.Any]:
        """As results and ``restore.json`` show it."""
        return {
            "passed": self.passed,
            "tables": self.tables,
            "counts": self.counts,
            "not_measured": self.not_measured,
            "differences": [
                {**dataclasses.asdict(item), "criterion": f"restore.{item.criterion}"}
                for item in self.differences[:_KEPT]
            ],
        }


_HOW = {
    "row_counts": ("as many rows in every table as in the backup's snapshot", "count(*) of every table"),
    "content": ("the same rows in every table as in the backup's snapshot", "order-independent hash of every table"),
    "sequences": ("last value between those before and after the dump", "pg_sequence_last_value"),
    "constraints": ("every constraint and index, valid where it was", "pg_constraint, pg_index, pg_get_*def"),
    "extensions": ("every extension in the recorded version", "pg_extension"),
    "privileges": ("the recorded owners, grants and default privileges", "catalog entries of owners and ACLs"),
    "catalog": ("the recorded definition of every other object", "catalog entries, pg_get_*def"),
}


def compare(
    work: Work, options: ConnectionOptions, manifest: Manifest, *, jobs: int, live: bool = False, analyze: bool = True
) -> Comparison:
    """Compare a database with what its backup recorded, and ANALYZE it on the way.

    :param live: whether it was restored with what :func:`keeps` leaves out
    :raises SurefootError: it could not be read
    """
    result = Comparison()
    with work.connection(_reader(options)) as connection:
        work.check()
        present = {(row["schema"], row["name"]): row["kind"] for row in rows(connection, _PRESENT)}
        wanted = [table for table in manifest.tables if live or table["extension"] not in _SCHEDULERS]
        _compare_presence(wanted, present, result)
        _compare_sequences(connection, manifest, result)
        _compare_extensions(connection, manifest, result, live=live)
        _compare_catalog(connection, manifest, result, live=live)
        measure = [
            table
            for table in wanted
            if (table["schema"], table["name"]) in present and table["kind"] in ("r", "p", "m")
        ]
        hashes = rows(connection, HASH_PROBE)[0]["probe"] == manifest.data["hash_probe"]
        if not hashes:
            result.not_measured["content"] = "this server's hash function differs from the source's (byte order)"
        objects = rows(connection, "SELECT count(*) AS count FROM pg_largeobject_metadata")[0]["count"]
        if objects != manifest.data["large_objects"]:
            result.differ("row_counts", "large objects", objects, manifest.data["large_objects"])
        remote = {(row["schema"], row["name"]) for row in rows(connection, _OVER_FOREIGN_TABLES)}
        spread = {(row["schema"], row["name"]): row["top"] for row in rows(connection, _SPREAD_ANEW)}
        _each(work, options, measure, result, jobs=jobs, analyze=analyze, hashes=hashes, not_analyzed=remote)
    result.tables = _added_up(result.tables, {_label(*key): top for key, top in spread.items()})
    _summarize_tables(manifest, result)
    return result


_PRESENT = """
SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind::text AS kind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
"""

# What reads a foreign table: views, materialized views, and the parents of one. A copy leaves the other server alone.
_OVER_FOREIGN_TABLES = """
WITH RECURSIVE edge(below, above) AS (
  SELECT d.refobjid, r.ev_class FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
   WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass
  UNION ALL SELECT inhrelid, inhparent FROM pg_inherits),
over(oid) AS (SELECT oid FROM pg_class WHERE relkind = 'f' UNION SELECT above FROM edge JOIN over ON below = over.oid)
SELECT n.nspname::text AS schema, c.relname::text AS name
FROM over JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
"""

# Hash partitions by an enum: an enum's hash is that of its oid, which is another in the copy, so pg_dump has these rows
# find their partitions anew. Below the topmost such table, only the sum over all partitions is comparable.
_SPREAD_ANEW = """
WITH RECURSIVE below(oid, top) AS (
  SELECT p.partrelid, p.partrelid FROM pg_partitioned_table p
   WHERE p.partstrat = 'h' AND EXISTS (SELECT FROM unnest(p.partclass::oid[]) AS u(oid) JOIN pg_opclass o USING (oid)
     JOIN pg_opfamily f ON f.oid = o.opcfamily WHERE f.opfname = 'enum_ops')
  UNION SELECT i.inhrelid, below.top FROM pg_inherits i JOIN below ON below.oid = i.inhparent)
SELECT n.nspname::text AS schema, c.relname::text AS name,
       (array_agg(tn.nspname || '.' || tc.relname ORDER BY (SELECT count(*) FROM pg_partition_ancestors(tc.oid))))[1]
         AS top
FROM below JOIN pg_class c ON c.oid = below.oid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class tc ON tc.oid = below.top JOIN pg_namespace tn ON tn.oid = tc.relnamespace
WHERE c.relkind = 'r' GROUP BY 1, 2
"""


def _reader(options: ConnectionOptions) -> Connection:
    connection = connect(options, purpose="restore-compare", settings=SNAPSHOT_SETTINGS)
    if connection.server_version >= 170000:
        rows(connection, "SET transaction_timeout = 0")
    return connection


def _label(schema: str, name: str) -> str:
    return f"{schema}.{name}"


def _compare_presence(
    wanted: t.Sequence[t.Mapping[str, t.Any]], present: t.Mapping[tuple[str, str], str], result: Comparison
) -> None:
    recorded = {(table["schema"], table["name"]): table for table in wanted}
    for key, table in recorded.items():
        if key not in present:
            before = table["rows"] if table["data"] == "all" else "there"
            result.differ("row_counts", _label(*key), "missing", before)
    for key in sorted(set(present) - set(recorded)):
        result.differ("row_counts", _label(*key), "there", "not in the backup")


def _compare_sequences(connection: Connection, manifest: Manifest, result: Comparison) -> None:
    found = {
        (row["schema"], row["name"]): row["value"]
        for row in rows(
            connection,
            "SELECT n.nspname::text AS schema, c.relname::text AS name, pg_sequence_last_value(c.oid::regclass) AS"
            " value FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S'"
            " AND c.relpersistence <> 't'",
        )
    }
    for sequence in manifest.data["sequences"]:
        key = (sequence["schema"], sequence["name"])
        bounds = (sequence["before"], sequence["after"])
        required = f"{bounds[0]} to {bounds[1]}" if bounds[0] != bounds[1] else bounds[0]
        if key not in found:
            result.differ("sequences", _label(*key), "missing", required)
        elif not within(found[key], *bounds):
            result.differ("sequences", _label(*key), found[key], required)
    result.counts["sequences"] = {"sequences": len(manifest.data["sequences"])}


def within(value: int | None, before: int | None, after: int | None) -> bool:
    """Whether a sequence's value lies between those read before and after the dump (None: never used). A sequence has
    no snapshot, and may count downwards."""
    if value is None or after is None:
        return value == before
    if before is None:
        return True  # first used during the dump: from its start, which is not recorded, up to the last value
    return min(before, after) <= value <= max(before, after)


def _compare_extensions(connection: Connection, manifest: Manifest, result: Comparison, *, live: bool) -> None:
    found = {
        row["name"]: row["version"]
        for row in rows(connection, "SELECT extname::text AS name, extversion AS version FROM pg_extension")
    }
    recorded = {e["name"]: e["version"] for e in manifest.data["extensions"] if live or not _left_out(e)}
    for name in sorted({*recorded, *found}):
        if found.get(name) != recorded.get(name):
            measured, required = found.get(name, "missing"), recorded.get(name, "not in the backup")
            result.differ("extensions", name, measured, required)
    result.counts["extensions"] = {"extensions": len(recorded)}


def criterion_of(identity: str) -> str:
    """The criterion an entry of the catalog belongs to."""
    if identity.startswith(("owner of ", "grants on ", "default privileges ")):
        return "privileges"
    if identity.startswith(("constraint ", "index ", "comment on constraint ", "comment on index ")):
        return "constraints"
    return "catalog"


def _compare_catalog(connection: Connection, manifest: Manifest, result: Comparison, *, live: bool) -> None:
    dead = [] if live else [f"*extension {name}" for name in _SCHEDULERS] + list(_LIVE_ENTRIES)
    if not live and any(_left_out(extension) for extension in manifest.data["extensions"]):
        dead += [f"* {schema}.*" for schema in _SCHEDULERS.values()]
    patterns = [*_catalog.DATABASE_LEVEL, *_NEVER_DUMPED, *dead]
    if manifest.data["client_version_num"] < 150000:
        patterns.append("comment on schema public")  # an older pg_dump leaves it out
    # A child's columns come back behind its parent's, in whatever order they were added; views name their columns.
    children = [row["name"] for row in rows(connection, _CHILDREN)]
    patterns += [f"column order {name}" for name in children if not re.search(r"[*?]", name)]
    recorded = manifest.catalog.filter(patterns)
    undumped = [item for item in manifest.data["validity"]["invalid_indexes"] if not item["dumped"]]
    for item in undumped:
        name = rows(connection, "SELECT format('%%I.%%I', %s, %s) AS name", (item["schema"], item["name"]))[0]["name"]
        recorded.hashes.pop(f"index {name}", None)
        recorded.hashes.pop(f"comment on index {name}", None)
    found = _catalog.snapshot(connection, exclude_schemas=()).filter(patterns)
    difference = _catalog.diff(recorded, found)
    for identity in difference.identities():
        # What a version of an extension is, is compared by itself.
        if identity.startswith("extension "):
            continue
        missing, extra = identity in difference.removed, identity in difference.added
        measured = "missing" if missing else _short(found[identity])
        required = "not in the backup" if extra else f"definition with hash {recorded.hashes[identity]}"
        result.differ(criterion_of(identity), identity, measured, required)
    now, then = validity(connection), manifest.data["validity"]
    for kind, noun, state in (
        ("not_valid_constraints", "constraint", "NOT VALID"),
        ("invalid_indexes", "index", "INVALID"),
    ):
        before = {_place(item) for item in then[kind] if item.get("dumped", True)}
        for place in sorted({_place(item) for item in now[kind]} ^ before):
            measured, required = ("valid", state) if place in before else (state, "valid")
            result.differ("constraints", f"{noun} {place}", measured, required)
    result.counts["constraints"] = {
        "constraints": now["constraints"],
        "indexes": now["indexes"],
        "not_valid": len(now["not_valid_constraints"]) + len(now["invalid_indexes"]),
        "invalid_in_source": len(undumped),
    }
    kinds = [criterion_of(identity) for identity in found.hashes]
    result.counts["privileges"] = {"entries": kinds.count("privileges"), "roles": len(manifest.data["roles"])}
    result.counts["catalog"] = {"entries": kinds.count("catalog")}


_CHILDREN = """
SELECT DISTINCT format('%I.%I', n.nspname, c.relname) AS name
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid AND NOT c.relispartition AND c.relkind IN ('r', 'f')
JOIN pg_namespace n ON n.oid = c.relnamespace
"""


def _place(item: t.Mapping[str, t.Any]) -> str:
    return f"{item['schema']}.{item['table']}.{item['name']}"


def _short(definition: str) -> str:
    text = redact(" ".join(definition.split()))
    return text if len(text) <= 200 else text[:197] + "..."


def _each(
    work: Work,
    options: ConnectionOptions,
    tables: t.Sequence[t.Mapping[str, t.Any]],
    result: Comparison,
    *,
    jobs: int,
    analyze: bool,
    hashes: bool,
    not_analyzed: t.Collection[tuple[str, str]] = (),
) -> None:
    """Count, hash and ANALYZE every table, the largest first, in ``jobs`` sessions."""
    queue = sorted(tables, key=lambda table: table["bytes"] or 0)
    lock = threading.Lock()

    def worker() -> None:
        try:
            with work.connection(_reader(options)) as connection:
                while True:
                    with lock:
                        if not queue:
                            return
                        table = queue.pop()
                    work.check()
                    record = _measure(connection, table, hashes=hashes)
                    if analyze and (table["schema"], table["name"]) not in not_analyzed:
                        name = f"{quote_identifier(table['schema'], connection)}."
                        rows(connection, f"ANALYZE {name}{quote_identifier(table['name'], connection)}")
                    if record:
                        with lock:
                            result.tables.append(record)
        except SqlError as exc:
            work.fail(exc)
        except Exception as exc:  # a thread's exception would otherwise go unseen
            work.fail(BackupError(f"comparing rows failed: {type(exc).__name__}: {redact(str(exc))}"))

    threads = [threading.Thread(target=worker, daemon=True) for _number in range(min(jobs, max(1, len(queue))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    work.check()
    result.tables.sort(key=lambda record: record["table"])


def _measure(connection: Connection, table: t.Mapping[str, t.Any], *, hashes: bool) -> dict[str, t.Any] | None:
    """Rows of one table, recorded and found. None: its rows are not comparable (a materialized view is made afresh, of
    an extension's table only a part is dumped)."""
    if table["data"] != "all":
        return None
    name = f"{quote_identifier(table['schema'], connection)}.{quote_identifier(table['name'], connection)}"
    record = {"table": _label(table["schema"], table["name"]), "required": table["rows"], "method": "count"}
    recorded = table["hash"]
    if recorded is None or not hashes:
        return {
            **record,
            "rows": rows(connection, f"SELECT count(*) AS rows FROM ONLY {name}")[0]["rows"],
            "same": None,
        }
    try:
        statement = hash_statement(
            name,
            recorded["columns"],
            recorded.get("key", ()),
            modulus=recorded.get("modulus"),
            connection=connection,
        )
        found = rows(connection, statement)[0]
    except SqlError as exc:
        if exc.sqlstate != "42703":  # a column is missing
            raise
        return {**record, "rows": None, "same": False, "method": recorded["method"]}
    off = [int(found[key]) - int(recorded[of]) for key, of in (("hashed", "rows"), ("high", "high"), ("low", "low"))]
    return {**record, "rows": found["rows"], "same": not any(off), "method": recorded["method"], "off": off}


def _added_up(tables: t.Sequence[dict[str, t.Any]], tops: t.Mapping[str, str]) -> list[dict[str, t.Any]]:
    """The tables, with those that :data:`_SPREAD_ANEW` names as one: hashes are sums, so those of partitions add up."""
    groups: dict[str, list[dict[str, t.Any]]] = {}
    for table in tables:
        groups.setdefault(tops.get(table["table"], table["table"]), []).append(table)
    result = []
    for name, parts in groups.items():
        offs = [part.pop("off", None) for part in parts]
        whole = {**parts[0], "table": name}
        if len(parts) > 1 and all(part["rows"] is not None for part in parts):
            alike = None not in offs and len({part["method"] for part in parts}) == 1
            whole.update(
                {key: sum(part[key] for part in parts) for key in ("rows", "required")},
                same=not any(map(sum, zip(*offs))) if alike else None,
            )
        elif len(parts) > 1:  # a column is missing
            whole.update(rows=None, same=False)
        result.append(whole)
    return result


def _summarize_tables(manifest: Manifest, result: Comparison) -> None:
    hashed = 0
    for record in result.tables:
        hashed += record["same"] is not None
        if record["rows"] is None:
            result.differ("content", record["table"], "a column is missing", "the recorded columns")
        elif record["rows"] != record["required"]:
            result.differ("row_counts", record["table"], record["rows"], record["required"])
        elif record["same"] is False:
            result.differ("content", record["table"], "other rows", f"the recorded {record['required']} rows")
    result.counts["row_counts"] = {
        "tables": len(result.tables),
        "rows": sum(record["rows"] or 0 for record in result.tables),
    }
    result.counts["content"] = {
        "tables": hashed,
        "sampled": sum(record["method"] == "sampled" for record in result.tables),
    }
    if hashed < len(result.tables) and "content" not in result.not_measured:
        result.not_measured["content"] = f"the backup recorded no hashes (hashes: {manifest.data['hashes']})"
