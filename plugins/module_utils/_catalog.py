# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""What a database's schema is, as text: a fingerprint to compare, and a difference to show.

Every object becomes one entry, identity to canonical definition: ``table app.users``, ``column app.users.email``,
``function app.f(integer)``, and beside them ``owner of ...``, ``grants on ...``, ``comment on ...``. The text comes
from PostgreSQL's own ``pg_get_*def`` functions under a pinned ``search_path`` and pinned output settings. It holds no
OID, no physical column number and no statistics, and lists that PostgreSQL keeps in arrival order (privileges, options)
are sorted, so that a restored copy on the same cluster has the same entries.

An entry's hash is the first 16 hexadecimal digits of the SHA-256 of its definition. The digest is the SHA-256 over the
lines ``identity TAB hash``, sorted by their UTF-8 bytes and joined by a line feed; the server and
:attr:`Catalog.digest` compute the same one.

Not covered: members of extensions (the extension and its version are), system and temporary objects, large objects,
roles. Values that may be secrets do not enter a definition: options of user mappings, options of foreign servers named
like a password, and the values of custom (dotted) settings of the database.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import typing as t
import zlib

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import sql_error
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import LedgerError, SurefootError

try:
    import psycopg2
    import psycopg2.extensions
except ImportError:  # the edge reports the missing package
    psycopg2 = None  # type: ignore[assignment]

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

LEDGER_SCHEMA = "surefoot"

# Entries a dump of one database does not carry (pg_dump without --create): leave them out when a restored copy is
# compared.
DATABASE_LEVEL = ("* this database", "this database", "setting *")

KINDS = (
    "access method",
    "aggregate",
    "cast",
    "collation",
    "column",
    "column order",
    "composite type",
    "constraint",
    "conversion",
    "default privileges",
    "domain",
    "enum",
    "event trigger",
    "extension",
    "foreign data wrapper",
    "foreign table",
    "function",
    "index",
    "language",
    "materialized view",
    "operator",
    "operator class",
    "operator family",
    "policy",
    "procedure",
    "publication",
    "range type",
    "rule",
    "schema",
    "sequence",
    "server",
    "setting",
    "statistics",
    "subscription",
    "table",
    "text search configuration",
    "text search dictionary",
    "text search parser",
    "text search template",
    "this database",
    "transform",
    "trigger",
    "type",
    "user mapping",
    "view",
)
_IDENTITY = re.compile(
    r"(?:(?:owner of|grants on|comment on|security label [^ ]+ on) )?(?:"
    + "|".join(sorted(map(re.escape, KINDS), key=len, reverse=True))
    + r")(?: (.*))?",
    re.DOTALL,
)
# What ends by trying again: an object dropped by somebody else between the scan and its pg_get_*def ("cache lookup
# failed", undefined table or object), and a lock that was not free.
_AGAIN = ("XX000", "42P01", "42704", "42883", "55000", "55P03", "40P01")
_ATTEMPTS = 10


class Catalog(t.Mapping[str, str]):
    """Identity to canonical definition; from :meth:`unpack` and :func:`entry_hashes` only hashes are known, and the
    definition reads as ''."""

    def __init__(self, hashes: t.Mapping[str, str], definitions: t.Mapping[str, str] | None = None) -> None:
        self.hashes: dict[str, str] = dict(hashes)
        self.definitions: dict[str, str] | None = None if definitions is None else dict(definitions)

    @classmethod
    def of(cls, definitions: t.Mapping[str, str]) -> Catalog:
        """A catalog of the given definitions."""
        return cls({identity: entry_hash(text) for identity, text in definitions.items()}, definitions)

    def __getitem__(self, identity: str) -> str:
        if identity not in self.hashes:
            raise KeyError(identity)
        return (self.definitions or {}).get(identity, "")

    def __iter__(self) -> t.Iterator[str]:
        return iter(self.hashes)

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def digest(self) -> str:
        """SHA-256 over all entries, 64 hexadecimal digits; equal to :func:`fingerprint` of the same entries."""
        lines = sorted(f"{identity}\t{value}".encode() for identity, value in self.hashes.items())
        return hashlib.sha256(b"\n".join(lines)).hexdigest()

    def filter(self, patterns: t.Sequence[str]) -> Catalog:
        """The entries that no pattern matches. ``*`` stands for any text, ``?`` for one character; a pattern is held
        against the whole identity and against the object's name without its kind, so that ``app.events_2*`` leaves out
        such partitions with all that hangs on them."""
        if not patterns:
            return self
        expression = re.compile("|".join(f"(?:{_regex(pattern)})" for pattern in patterns), re.DOTALL)
        kept = [identity for identity in self.hashes if not _matches(expression, identity)]
        return Catalog(
            {identity: self.hashes[identity] for identity in kept},
            None if self.definitions is None else {identity: self.definitions[identity] for identity in kept},
        )

    def pack(self) -> bytes:
        """The hashes as compressed JSON, for the ledger (6 to 10 bytes an entry)."""
        return zlib.compress(json.dumps(self.hashes, sort_keys=True, separators=(",", ":")).encode(), 6)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Catalog:
        """The catalog of :meth:`pack`.

        :raises LedgerError: the data is damaged
        """
        try:
            hashes = json.loads(zlib.decompress(bytes(data)).decode())
            if not isinstance(hashes, dict):
                raise ValueError("not an object")
        except (zlib.error, ValueError) as exc:
            raise LedgerError(
                f"the recorded catalog snapshot is damaged: {exc}",
                remedy="Record the present catalog anew with state=baselined.",
            ) from exc
        return cls({str(identity): str(value) for identity, value in hashes.items()})


class CatalogDiff:
    """What one catalog has and the other has not."""

    def __init__(
        self,
        added: t.Mapping[str, str],
        removed: t.Mapping[str, str],
        changed: t.Mapping[str, tuple[str, str]],
    ) -> None:
        self.added = dict(added)
        self.removed = dict(removed)
        self.changed = dict(changed)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __len__(self) -> int:
        return len(self.added) + len(self.removed) + len(self.changed)

    def identities(self) -> list[str]:
        """Every identity that differs, sorted."""
        return sorted({*self.added, *self.removed, *self.changed})

    def summary(self, limit: int = 5) -> str:
        """One line for a message: the first differing entries, each with +, - or ~."""
        marks = [
            *(f"+{identity}" for identity in self.added),
            *(f"-{identity}" for identity in self.removed),
            *(f"~{identity}" for identity in self.changed),
        ]
        rest = len(marks) - limit
        return ", ".join(marks[:limit]) + (f" and {rest} more" if rest > 0 else "")

    def to_dict(self) -> dict[str, t.Any]:
        """JSON object: ``added`` and ``removed`` are lists of identities; ``changed`` has the definitions before and
        after where they are known (a snapshot read back from the ledger knows only hashes)."""
        changed: list[dict[str, t.Any]] = []
        for identity, (before, after) in self.changed.items():
            item: dict[str, t.Any] = {"object": identity}
            if before:
                item["before"] = before
            if after:
                item["after"] = after
            changed.append(item)
        return {"added": list(self.added), "removed": list(self.removed), "changed": changed}


def diff(before: Catalog, after: Catalog) -> CatalogDiff:
    """What must be done to ``before`` to become ``after``, every part sorted by identity."""
    return CatalogDiff(
        added={identity: after[identity] for identity in sorted(after.hashes.keys() - before.hashes.keys())},
        removed={identity: before[identity] for identity in sorted(before.hashes.keys() - after.hashes.keys())},
        changed={
            identity: (before[identity], after[identity])
            for identity in sorted(before.hashes.keys() & after.hashes.keys())
            if before.hashes[identity] != after.hashes[identity]
        },
    )


def entry_hash(definition: str) -> str:
    """The hash of one entry: 16 hexadecimal digits."""
    return hashlib.sha256(definition.encode()).hexdigest()[:16]


def snapshot(
    connection: Connection,
    *,
    ignore: t.Sequence[str] = (),
    exclude_schemas: t.Sequence[str] = (LEDGER_SCHEMA,),
) -> Catalog:
    """Every entry with its definition, in one query.

    Inside a transaction the caller's settings are kept (a savepoint undoes the pinned ones) and its own uncommitted
    changes are seen.

    :param ignore: patterns of :meth:`Catalog.filter`
    :param exclude_schemas: schemas left out with everything in them
    :raises SqlError: the server refused, for instance because a view's table stayed locked for ten times half a second,
        or ten times the session's ``lock_timeout`` when that is shorter
    """
    select = "SELECT identity, definition FROM entries"
    rows = _query(connection, select, ignore=ignore, exclude_schemas=exclude_schemas)
    return Catalog.of(dict(rows))


def entry_hashes(
    connection: Connection,
    *,
    ignore: t.Sequence[str] = (),
    exclude_schemas: t.Sequence[str] = (LEDGER_SCHEMA,),
) -> Catalog:
    """Every entry with its hash, computed by the server: what the ledger keeps. Parameters and errors of
    :func:`snapshot`."""
    select = f"SELECT identity, {_ENTRY_HASH} FROM entries"
    return Catalog(dict(_query(connection, select, ignore=ignore, exclude_schemas=exclude_schemas)))


def fingerprint(
    connection: Connection,
    *,
    ignore: t.Sequence[str] = (),
    exclude_schemas: t.Sequence[str] = (LEDGER_SCHEMA,),
) -> str:
    """The digest alone, computed by the server. Parameters and errors of :func:`snapshot`."""
    # bytea sorts by bytes whatever the database's encoding and collation; Catalog.digest does the same.
    select = (
        "SELECT encode(sha256(coalesce(string_agg(line, '\\x0a'::bytea ORDER BY line), ''::bytea)), 'hex') FROM"
        f" (SELECT convert_to(identity || chr(9) || {_ENTRY_HASH}, 'UTF8') AS line FROM entries) AS lines"
    )
    return str(_query(connection, select, ignore=ignore, exclude_schemas=exclude_schemas)[0][0])


def _regex(pattern: str) -> str:
    # Understood alike by Python and by PostgreSQL: a backslash before anything that is no letter, digit or underscore
    # is literal.
    special = {"*": ".*", "?": "."}
    return "".join(
        special.get(char, char if char.isalnum() or char == "_" or ord(char) > 127 else "\\" + char) for char in pattern
    )


def _matches(expression: re.Pattern[str], identity: str) -> bool:
    if expression.fullmatch(identity):
        return True
    match = _IDENTITY.fullmatch(identity)
    return bool(match and match.group(1) and expression.fullmatch(match.group(1)))


# --- one statement, a pinned session ----------------------------------------------------------------------------------

# Constants inside defaults, checks and partition bounds are printed by the types' output functions, which obey these
# settings.
_PINNED = "; ".join(
    f"SET LOCAL {name} TO {value}"
    for name, value in (
        ("search_path", "''"),
        ("standard_conforming_strings", "on"),
        ("quote_all_identifiers", "off"),
        ("DateStyle", "'ISO, YMD'"),
        ("IntervalStyle", "'postgres'"),
        ("TimeZone", "'UTC'"),
        ("extra_float_digits", "1"),
        ("bytea_output", "'hex'"),
        ("xmlbinary", "'base64'"),
        ("lc_monetary", "'C'"),
        # Compiling this statement would cost more than running it, and its intermediate result must not spill to disk.
        ("jit", "off"),
        ("max_parallel_workers_per_gather", "0"),
        ("work_mem", "'64MB'"),
        # The planner cannot see how many rows the common table expressions hold; hash joins stay linear when it guesses
        # one.
        ("enable_nestloop", "off"),
    )
)
# Some pg_get_*def functions lock what they describe (ACCESS SHARE), one relation after the other, and can so come to a
# deadlock with DDL. Giving way before deadlock_timeout (1 s) keeps the other side from being the victim.
_PINNED += (
    "; SELECT pg_catalog.set_config('lock_timeout',"
    " CASE WHEN wanted > 0 AND wanted < 0.5 THEN current ELSE '500ms' END, true)"
    " FROM (SELECT current, extract(epoch FROM current::interval) AS wanted"
    " FROM pg_catalog.current_setting('lock_timeout') AS current) AS lock_timeout"
)


def _query(
    connection: Connection,
    select: str,
    *,
    ignore: t.Sequence[str],
    exclude_schemas: t.Sequence[str],
) -> list[tuple[t.Any, ...]]:
    statement = _statement(connection.server_version, select, filtered=bool(ignore))
    parameters = {
        "exclude_schemas": list(exclude_schemas),
        "ignore": "^(?:" + "|".join(f"(?:{_regex(pattern)})" for pattern in ignore) + ")$",
    }
    attempt = 1
    while True:
        try:
            with _pinned_session(connection) as cursor:
                cursor.execute(statement, parameters)
                return list(cursor.fetchall())
        except psycopg2.Error as exc:
            if exc.pgcode not in _AGAIN or attempt == _ATTEMPTS or connection.closed:
                error = sql_error(exc)
                error.message = f"cannot read the catalog: {error.message}"
                raise error from None
        attempt += 1


@contextlib.contextmanager
def _pinned_session(connection: Connection) -> t.Iterator[t.Any]:
    status = connection.info.transaction_status
    if status == psycopg2.extensions.TRANSACTION_STATUS_INERROR:
        raise SurefootError("cannot read the catalog in a failed transaction", remedy="Roll it back first.", code="sql")
    with connection.cursor(cursor_factory=psycopg2.extensions.cursor) as cursor:
        if status == psycopg2.extensions.TRANSACTION_STATUS_INTRANS:
            cursor.execute(f"SAVEPOINT surefoot_catalog; {_PINNED}")
            try:
                yield cursor
            finally:
                if not connection.closed:
                    cursor.execute("ROLLBACK TO SAVEPOINT surefoot_catalog; RELEASE SAVEPOINT surefoot_catalog")
        elif connection.autocommit:
            cursor.execute(f"BEGIN TRANSACTION READ ONLY; {_PINNED}")
            try:
                yield cursor
            finally:
                if not connection.closed:
                    cursor.execute("ROLLBACK")
        else:
            cursor.execute(_PINNED)
            try:
                yield cursor
            finally:
                if not connection.closed:
                    connection.rollback()


# --- the statement ----------------------------------------------------------------------------------------------------

_ENTRY_HASH = "substr(encode(sha256(convert_to(definition, 'UTF8')), 'hex'), 1, 16)"


def _sorted(array: str) -> str:
    return f"(SELECT string_agg(o, ', ' ORDER BY o COLLATE \"C\") FROM unnest({array}) AS o)"


def _masked(array: str) -> str:
    """Foreign options, sorted, with the values of those that are named like a secret left out."""
    return (
        "(SELECT string_agg(CASE WHEN split_part(o, '=', 1) ~* 'pass|secret|token|key|credential'"
        f" THEN split_part(o, '=', 1) || '=***' ELSE o END, ', ' ORDER BY o COLLATE \"C\") FROM unnest({array}) AS o)"
    )


def _roles(array: str) -> str:
    return (
        "(SELECT string_agg(r, ', ' ORDER BY r COLLATE \"C\") FROM (SELECT CASE WHEN o = 0 THEN 'PUBLIC' ELSE"
        f" quote_ident(pg_get_userbyid(o)) END AS r FROM unnest({array}) AS o) AS named)"
    )


def _grants(acl: str) -> str:
    """One text for an ACL, whatever the order in which privileges were granted; a grantor is named when it is not the
    owner."""
    return (
        "(SELECT coalesce(string_agg(g, '; ' ORDER BY g COLLATE \"C\"), 'none') FROM (SELECT"
        " CASE WHEN e.grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(e.grantee)) END"
        " || CASE WHEN e.grantor = owner THEN '' ELSE ' by ' || quote_ident(pg_get_userbyid(e.grantor)) END || ': '"
        " || string_agg(e.privilege_type || CASE WHEN e.is_grantable THEN '*' ELSE '' END, ', '"
        f' ORDER BY e.privilege_type COLLATE "C") AS g FROM aclexplode({acl}) AS e GROUP BY e.grantee, e.grantor) AS'
        " grouped)"
    )


def _canonical(definition: str) -> str:
    """``varchar_column IN ('a', 'b')`` is stored, and after a dump and restore stored again, with its casts around the
    array or around the elements.

    Both mean the same; the casts from a varchar literal to text are dropped.
    """
    element = r"''(?:[^'']|'''')*''::character varying"
    return (
        f"CASE WHEN strpos({definition}, '::character varying') > 0 THEN regexp_replace(regexp_replace({definition},"
        f" '\\(({element})\\)::text', '\\1', 'g'),"
        f" '\\((ARRAY\\[{element}(?:, {element})*\\])\\)::text\\[\\]', '\\1', 'g') ELSE {definition} END"
    )


_TRIGGER_STATE = (
    "CASE {0} WHEN 'O' THEN NULL WHEN 'D' THEN 'disabled' WHEN 'R' THEN 'enabled on replica' WHEN 'A'"
    " THEN 'enabled always' END"
)
_STORAGE = "CASE {0} WHEN 'p' THEN 'plain' WHEN 'e' THEN 'external' WHEN 'm' THEN 'main' WHEN 'x' THEN 'extended' END"


def _object(
    source: str,
    *,
    catalog: str,
    objid: str,
    kind: str,
    name: str,
    definition: str,
    objsubid: str = "0",
    owner: str = "NULL::oid",
    acl: str = "NULL::aclitem[]",
    acltype: str = "r",
) -> str:
    kind_sql = kind if kind.startswith("CASE") else f"'{kind}'"
    acltype_sql = acltype if acltype.startswith("CASE") else f"'{acltype}'"
    return (
        f"SELECT 'pg_catalog.{catalog}'::regclass::oid AS classid, {objid} AS objid, {objsubid} AS objsubid,"
        f" {kind_sql} AS kind,"
        f' {name} AS name, {definition} AS definition, {owner} AS owner, {acl} AS acl, {acltype_sql}::"char" AS'
        f" acltype {source}"
    )


def _member(catalog: str, oid: str) -> str:
    """Condition: the object is not made by an extension or by another object."""
    # NOT IN, because the planner hashes it once; as an anti-join it became a nested loop over every extension member.
    return f"{oid} NOT IN (SELECT derived.objid FROM derived WHERE derived.classid = 'pg_catalog.{catalog}'::regclass)"


def _relations(version: int) -> list[str]:
    inherits = (
        "LEFT JOIN (SELECT inhrelid, string_agg(inhparent::regclass::text, ', ' ORDER BY inhseqno) AS parents,"
        " bool_or(inhdetachpending) AS detaching FROM pg_inherits GROUP BY inhrelid) AS inh ON inh.inhrelid = rel.oid"
    )
    table = f"""concat_ws(', ',
        CASE rel.relkind WHEN 'p' THEN 'partitioned by ' || pg_get_partkeydef(rel.oid) WHEN 'f' THEN 'foreign table'
            ELSE 'table' END,
        CASE WHEN rel.relpersistence = 'u' THEN 'unlogged' END,
        CASE WHEN rel.reloftype <> 0 THEN 'of ' || format_type(rel.reloftype, NULL) END,
        CASE WHEN rel.relispartition THEN 'partition of ' || inh.parents || ' ' || pg_get_expr(rel.relpartbound,
            rel.oid)
             ELSE 'inherits ' || inh.parents END,
        CASE WHEN inh.detaching THEN 'detach pending' END,
        CASE WHEN am.amname <> 'heap' THEN 'access method ' || quote_ident(am.amname) END,
        'tablespace ' || quote_ident(ts.spcname),
        CASE WHEN rel.reloptions IS NOT NULL THEN 'with (' || {_sorted("rel.reloptions")} || ')' END,
        CASE WHEN toast.reloptions IS NOT NULL THEN 'toast with (' || {_sorted("toast.reloptions")} || ')' END,
        CASE WHEN rel.relrowsecurity THEN 'row security enabled' END,
        CASE WHEN rel.relforcerowsecurity THEN 'row security forced' END,
        CASE rel.relreplident WHEN 'd' THEN NULL WHEN 'n' THEN 'replica identity nothing' WHEN 'f'
            THEN 'replica identity full'
            WHEN 'i' THEN 'replica identity index '
                || (SELECT x.indexrelid::regclass::text FROM pg_index AS x WHERE x.indrelid = rel.oid
                    AND x.indisreplident) END,
        'server ' || quote_ident(fs.srvname),
        CASE WHEN ft.ftoptions IS NOT NULL THEN 'options (' || {_masked("ft.ftoptions")} || ')' END)"""
    table_source = f"""FROM rel {inherits}
        LEFT JOIN pg_am AS am ON am.oid = rel.relam
        LEFT JOIN pg_tablespace AS ts ON ts.oid = rel.reltablespace
        LEFT JOIN pg_class AS toast ON toast.oid = rel.reltoastrelid
        LEFT JOIN pg_foreign_table AS ft ON ft.ftrelid = rel.oid
        LEFT JOIN pg_foreign_server AS fs ON fs.oid = ft.ftserver
        WHERE rel.relkind IN ('r', 'p', 'f')"""

    not_null = "CASE WHEN a.attnotnull THEN 'not null' END"
    not_null_join = ""
    if version >= 180000:
        # Since 18 a NOT NULL is a constraint with a name; it stays part of its column here, so that it is one entry on
        # every version.
        not_null = """CASE WHEN nn.conname IS NOT NULL THEN 'constraint ' || quote_ident(nn.conname) || ' not null'
            || CASE WHEN nn.connoinherit THEN ' no inherit' ELSE '' END || CASE WHEN nn.convalidated THEN ''
                ELSE ' not valid' END
            || CASE WHEN nn.coninhcount = 0 THEN '' WHEN nn.conislocal THEN ' (inherited and local)'
                ELSE ' (inherited)' END
            WHEN a.attnotnull THEN 'not null' END"""
        not_null_join = (
            "LEFT JOIN pg_constraint AS nn ON nn.contype = 'n' AND nn.conrelid = a.attrelid AND nn.conkey[1] = a.attnum"
        )
    column = f"""CASE WHEN rel.relkind IN ('r', 'p', 'f') THEN concat_ws(' ',
        format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attcollation <> ty.typcollation THEN 'collate ' || a.attcollation::regcollation::text END,
        {not_null},
        CASE WHEN ad.oid IS NULL THEN NULL WHEN a.attgenerated = '' THEN 'default ' || pg_get_expr(ad.adbin, ad.adrelid)
            ELSE 'generated always as (' || pg_get_expr(ad.adbin, ad.adrelid) || ')'
                || CASE a.attgenerated WHEN 's' THEN ' stored' ELSE ' virtual' END END,
        CASE a.attidentity WHEN 'a' THEN 'generated always as identity' WHEN 'd'
            THEN 'generated by default as identity' END,
        CASE WHEN a.attstorage <> ty.typstorage THEN 'storage ' || {_STORAGE.format("a.attstorage")} END,
        CASE a.attcompression WHEN 'p' THEN 'compression pglz' WHEN 'l' THEN 'compression lz4' END,
        CASE WHEN a.attstattarget >= 0 THEN 'statistics ' || a.attstattarget END,
        CASE WHEN a.attoptions IS NOT NULL THEN 'with (' || {_sorted("a.attoptions")} || ')' END,
        CASE WHEN a.attfdwoptions IS NOT NULL THEN 'options (' || {_masked("a.attfdwoptions")} || ')' END,
        CASE WHEN a.attinhcount = 0 THEN NULL WHEN a.attislocal THEN '(inherited and local)'
            ELSE '(inherited)' END) END"""
    column_source = f"""FROM rel JOIN pg_attribute AS a ON a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped
        JOIN pg_type AS ty ON ty.oid = a.atttypid
        LEFT JOIN pg_attrdef AS ad ON ad.adrelid = a.attrelid AND ad.adnum = a.attnum
        {not_null_join} WHERE rel.relkind IN ('r', 'p', 'f', 'v', 'm', 'c')"""
    ordered = (
        "SELECT a.attrelid, string_agg(quote_ident(a.attname){0}, ', ' ORDER BY a.attnum) AS columns FROM pg_attribute"
        " AS a"
        " JOIN rel AS r ON r.oid = a.attrelid AND r.relkind IN ({1})"
        " WHERE a.attnum > 0 AND NOT a.attisdropped GROUP BY a.attrelid"
    )
    typed = (
        " || ' ' || format_type(a.atttypid, a.atttypmod) || CASE WHEN a.attcollation IN (0, 100) THEN '' ELSE"
        " ' collate ' || a.attcollation::regcollation::text END || CASE WHEN a.atthasdef THEN ' default ' ||"
        " (SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef AS d WHERE d.adrelid = a.attrelid AND d.adnum ="
        " a.attnum) ELSE '' END"
    )
    view = f"""'(' || co.columns || ')' || CASE WHEN rel.reloptions IS NULL THEN '' ELSE ' with ('
        || {_sorted("rel.reloptions")} || ')' END
        || coalesce(' tablespace ' || quote_ident(ts.spcname), '') || CASE WHEN am.amname <> 'heap'
            THEN ' access method ' || quote_ident(am.amname)
        ELSE '' END || ' as' || chr(10) || pg_get_viewdef(rel.oid)"""
    return [
        _object(
            table_source,
            catalog="pg_class",
            objid="rel.oid",
            kind="CASE rel.relkind WHEN 'f' THEN 'foreign table' ELSE 'table' END",
            name="rel.name",
            definition=table,
            owner="rel.relowner",
            acl="rel.relacl",
        ),
        _object(
            column_source,
            catalog="pg_class",
            objid="rel.oid",
            objsubid="a.attnum::integer",
            kind="column",
            name="rel.name || '.' || quote_ident(a.attname)",
            definition=column,
            # Grants on a column are compared with the table's owner as the expected grantor; a column has no owner
            # entry.
            owner="rel.relowner",
            acl="a.attacl",
            acltype="c",
        ),
        _object(
            "FROM rel JOIN (" + ordered.format("", "'r', 'p', 'f'") + ") AS co ON co.attrelid = rel.oid",
            catalog="pg_class",
            objid="0::oid",
            kind="column order",
            name="rel.name",
            definition="co.columns",
        ),
        _object(
            "FROM rel JOIN (" + ordered.format(typed, "'v', 'm'") + ") AS co ON co.attrelid = rel.oid"
            " LEFT JOIN pg_tablespace AS ts ON ts.oid = rel.reltablespace LEFT JOIN pg_am AS am ON am.oid = rel.relam",
            catalog="pg_class",
            objid="rel.oid",
            kind="CASE rel.relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END",
            name="rel.name",
            definition=view,
            owner="rel.relowner",
            acl="rel.relacl",
        ),
        _object(
            "FROM rel JOIN pg_type AS ct ON ct.oid = rel.reltype"
            " LEFT JOIN (" + ordered.format(typed, "'c'") + ") AS co ON co.attrelid = rel.oid WHERE rel.relkind = 'c'",
            catalog="pg_type",
            objid="ct.oid",
            kind="composite type",
            name="rel.name",
            definition="'(' || coalesce(co.columns, '') || ')'",
            owner="ct.typowner",
            acl="ct.typacl",
            acltype="T",
        ),
        _object(
            """FROM rel JOIN pg_sequence AS s ON s.seqrelid = rel.oid
            LEFT JOIN pg_depend AS od ON od.classid = 'pg_catalog.pg_class'::regclass AND od.objid = rel.oid
                AND od.objsubid = 0
                AND od.refclassid = 'pg_catalog.pg_class'::regclass AND od.deptype IN ('a', 'i')
            LEFT JOIN pg_attribute AS oa ON oa.attrelid = od.refobjid AND oa.attnum = od.refobjsubid""",
            catalog="pg_class",
            objid="rel.oid",
            kind="sequence",
            name="rel.name",
            definition="""format('as %%s start %%s increment %%s minimum %%s maximum %%s cache %%s',
                format_type(s.seqtypid, NULL), s.seqstart,
            s.seqincrement, s.seqmin, s.seqmax, s.seqcache) || CASE WHEN s.seqcycle THEN ' cycle' ELSE '' END
            || CASE WHEN rel.relpersistence = 'u' THEN ' unlogged' ELSE '' END
            || coalesce(CASE od.deptype WHEN 'i' THEN ' identity of ' ELSE ' owned by ' END
                || od.refobjid::regclass::text || '.'
                || quote_ident(oa.attname), '')""",
            owner="rel.relowner",
            acl="rel.relacl",
            acltype="s",
        ),
        _object(
            """FROM rel JOIN pg_index AS x ON x.indrelid = rel.oid JOIN pg_class AS i ON i.oid = x.indexrelid
            LEFT JOIN pg_tablespace AS ts ON ts.oid = i.reltablespace
            LEFT JOIN pg_inherits AS ih ON ih.inhrelid = i.oid""",
            catalog="pg_class",
            objid="i.oid",
            kind="index",
            name="rel.schema || '.' || quote_ident(i.relname)",
            definition="""concat_ws(', ', pg_get_indexdef(i.oid), 'tablespace ' || quote_ident(ts.spcname),
            CASE WHEN NOT x.indisvalid THEN 'INVALID' END, CASE WHEN NOT x.indisready THEN 'NOT READY' END,
            CASE WHEN NOT x.indislive THEN 'BEING DROPPED' END,
            CASE WHEN x.indisclustered THEN 'clustered on' END, 'attached to ' || ih.inhparent::regclass::text)""",
        ),
        _object(
            # A foreign key that a partitioned table hands down has a generated name; the one it comes from is there.
            "FROM rel JOIN pg_constraint AS con ON con.conrelid = rel.oid AND con.contype IN ('c', 'p', 'u', 'x', 'f')"
            " WHERE NOT (con.contype = 'f' AND con.conparentid <> 0)",
            catalog="pg_constraint",
            objid="con.oid",
            kind="constraint",
            name="rel.name || '.' || quote_ident(con.conname)",
            definition="""pg_get_constraintdef(con.oid) || CASE WHEN con.coninhcount = 0 THEN '' WHEN con.conislocal
                THEN ' (inherited and local)'
            ELSE ' (inherited)' END""",
        ),
        _object(
            # A partition's copy of a trigger is worth an entry only when it was switched on or off by itself.
            "FROM rel JOIN pg_trigger AS tg ON tg.tgrelid = rel.oid AND NOT tg.tgisinternal"
            " LEFT JOIN pg_trigger AS tp ON tp.oid = tg.tgparentid WHERE tp.tgenabled IS DISTINCT FROM tg.tgenabled",
            catalog="pg_trigger",
            objid="tg.oid",
            kind="trigger",
            name="rel.name || '.' || quote_ident(tg.tgname)",
            definition=f"concat_ws(', ', pg_get_triggerdef(tg.oid), {_TRIGGER_STATE.format('tg.tgenabled')})",
        ),
        _object(
            "FROM rel JOIN pg_rewrite AS rw ON rw.ev_class = rel.oid AND rw.rulename <> '_RETURN'",
            catalog="pg_rewrite",
            objid="rw.oid",
            kind="rule",
            name="rel.name || '.' || quote_ident(rw.rulename)",
            definition=f"concat_ws(', ', pg_get_ruledef(rw.oid), {_TRIGGER_STATE.format('rw.ev_enabled')})",
        ),
        _object(
            "FROM rel JOIN pg_policy AS pol ON pol.polrelid = rel.oid",
            catalog="pg_policy",
            objid="pol.oid",
            kind="policy",
            name="rel.name || '.' || quote_ident(pol.polname)",
            definition=f"""CASE WHEN pol.polpermissive THEN 'permissive' ELSE 'restrictive' END || ' for '
            || CASE pol.polcmd WHEN 'r' THEN 'select' WHEN 'a' THEN 'insert' WHEN 'w' THEN 'update' WHEN 'd'
                THEN 'delete' ELSE 'all' END
            || ' to ' || {_roles("pol.polroles")} || coalesce(' using (' || pg_get_expr(pol.polqual, pol.polrelid)
                || ')', '')
            || coalesce(' with check (' || pg_get_expr(pol.polwithcheck, pol.polrelid) || ')', '')""",
        ),
        _object(
            "FROM pg_statistic_ext AS st JOIN ns ON ns.oid = st.stxnamespace WHERE"
            f" {_member('pg_statistic_ext', 'st.oid')}",
            catalog="pg_statistic_ext",
            objid="st.oid",
            kind="statistics",
            name="ns.name || '.' || quote_ident(st.stxname)",
            definition="pg_get_statisticsobjdef(st.oid) || CASE WHEN st.stxstattarget >= 0 THEN ', target ' ||"
            " st.stxstattarget ELSE '' END",
            owner="st.stxowner",
        ),
    ]


def _routines_and_types(version: int) -> list[str]:
    aggregate = """concat_ws(', ', 'returns ' || format_type(p.prorettype, NULL), 'arguments '
        || pg_get_function_arguments(p.oid),
        'sfunc ' || ag.aggtransfn::regprocedure::text, 'stype ' || format_type(ag.aggtranstype, NULL),
        CASE WHEN ag.aggkind <> 'n' THEN 'kind ' || ag.aggkind::text END,
        CASE WHEN ag.aggtransspace <> 0 THEN 'sspace ' || ag.aggtransspace END,
        CASE WHEN ag.aggfinalfn <> 0 THEN 'finalfunc ' || ag.aggfinalfn::regprocedure::text || ' '
            || ag.aggfinalmodify::text END,
        CASE WHEN ag.aggfinalextra THEN 'finalfunc_extra' END,
        CASE WHEN ag.aggcombinefn <> 0 THEN 'combinefunc ' || ag.aggcombinefn::regprocedure::text END,
        CASE WHEN ag.aggserialfn <> 0 THEN 'serialfunc ' || ag.aggserialfn::regprocedure::text END,
        CASE WHEN ag.aggdeserialfn <> 0 THEN 'deserialfunc ' || ag.aggdeserialfn::regprocedure::text END,
        'initcond ' || quote_literal(ag.agginitval),
        CASE WHEN ag.aggmtransfn <> 0 THEN 'msfunc ' || ag.aggmtransfn::regprocedure::text END,
        CASE WHEN ag.aggminvtransfn <> 0 THEN 'minvfunc ' || ag.aggminvtransfn::regprocedure::text END,
        CASE WHEN ag.aggmtranstype <> 0 THEN 'mstype ' || format_type(ag.aggmtranstype, NULL) END,
        CASE WHEN ag.aggmfinalfn <> 0 THEN 'mfinalfunc ' || ag.aggmfinalfn::regprocedure::text || ' '
            || ag.aggmfinalmodify::text END,
        'minitcond ' || quote_literal(ag.aggminitval),
        CASE WHEN ag.aggsortop <> 0 THEN 'sortop ' || ag.aggsortop::regoperator::text END,
        'parallel ' || p.proparallel::text)"""
    subtype_diff = "CASE WHEN r.rngsubdiff <> 0 THEN 'subtype_diff ' || r.rngsubdiff::regprocedure::text END"
    base = """concat_ws(', ', 'input ' || ty.typinput::regprocedure::text, 'output '
        || ty.typoutput::regprocedure::text,
        CASE WHEN ty.typreceive <> 0 THEN 'receive ' || ty.typreceive::regprocedure::text END,
        CASE WHEN ty.typsend <> 0 THEN 'send ' || ty.typsend::regprocedure::text END,
        CASE WHEN ty.typmodin <> 0 THEN 'typmod_in ' || ty.typmodin::regprocedure::text END,
        CASE WHEN ty.typmodout <> 0 THEN 'typmod_out ' || ty.typmodout::regprocedure::text END,
        'internallength ' || ty.typlen, CASE WHEN ty.typbyval THEN 'passedbyvalue' END, 'alignment '
            || ty.typalign::text,
        'storage ' || ty.typstorage::text, 'category ' || ty.typcategory::text, CASE WHEN ty.typispreferred
            THEN 'preferred' END,
        'delimiter ' || ty.typdelim::text, 'default ' || quote_literal(ty.typdefault),
        CASE WHEN ty.typelem <> 0 THEN 'element ' || format_type(ty.typelem, NULL) END,
        CASE WHEN ty.typcollation <> 0 THEN 'collatable' END)"""
    type_source = f"""FROM pg_type AS ty JOIN ns ON ns.oid = ty.typnamespace
        {{join}} WHERE ty.typtype = '{{typtype}}' AND ty.typisdefined AND {_member("pg_type", "ty.oid")}"""
    named = "ns.name || '.' || quote_ident(ty.typname)"
    return [
        _object(
            f"""FROM pg_proc AS p JOIN ns ON ns.oid = p.pronamespace LEFT JOIN pg_aggregate AS ag ON ag.aggfnoid = p.oid
            WHERE {_member("pg_proc", "p.oid")}""",
            catalog="pg_proc",
            objid="p.oid",
            kind="CASE p.prokind WHEN 'p' THEN 'procedure' WHEN 'a' THEN 'aggregate' ELSE 'function' END",
            name="ns.name || '.' || quote_ident(p.proname) || '(' || oidvectortypes(p.proargtypes) || ')'",
            definition=f"CASE WHEN p.prokind = 'a' THEN {aggregate} WHEN p.prosqlbody IS NOT NULL"
            f" THEN {_canonical('pg_get_functiondef(p.oid)')} ELSE pg_get_functiondef(p.oid) END",
            owner="p.proowner",
            acl="p.proacl",
            acltype="f",
        ),
        _object(
            type_source.format(
                join="JOIN (SELECT enumtypid, string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) AS"
                " labels"
                " FROM pg_enum GROUP BY enumtypid) AS en ON en.enumtypid = ty.oid",
                typtype="e",
            ),
            catalog="pg_type",
            objid="ty.oid",
            kind="enum",
            name=named,
            definition="'(' || en.labels || ')'",
            owner="ty.typowner",
            acl="ty.typacl",
            acltype="T",
        ),
        _object(
            type_source.format(join="JOIN pg_type AS bt ON bt.oid = ty.typbasetype", typtype="d"),
            catalog="pg_type",
            objid="ty.oid",
            kind="domain",
            name=named,
            definition="""concat_ws(' ', format_type(ty.typbasetype, ty.typtypmod), CASE
                WHEN ty.typcollation <> bt.typcollation THEN
            'collate ' || ty.typcollation::regcollation::text END, CASE WHEN ty.typnotnull THEN 'not null' END,
            'default ' || coalesce(pg_get_expr(ty.typdefaultbin, 0), quote_literal(ty.typdefault)))""",
            owner="ty.typowner",
            acl="ty.typacl",
            acltype="T",
        ),
        _object(
            "FROM pg_type AS ty JOIN ns ON ns.oid = ty.typnamespace JOIN pg_constraint AS con ON con.contypid = ty.oid"
            " AND con.contype = 'c'"
            f" WHERE {_member('pg_type', 'ty.oid')}",
            catalog="pg_constraint",
            objid="con.oid",
            kind="constraint",
            name=f"{named} || '.' || quote_ident(con.conname)",
            definition="pg_get_constraintdef(con.oid)",
        ),
        _object(
            type_source.format(
                join="JOIN pg_range AS r ON r.rngtypid = ty.oid JOIN pg_opclass AS roc ON roc.oid = r.rngsubopc"
                " JOIN pg_namespace AS rocn ON rocn.oid = roc.opcnamespace",
                typtype="r",
            ),
            catalog="pg_type",
            objid="ty.oid",
            kind="range type",
            name=named,
            definition=f"""concat_ws(', ', 'subtype ' || format_type(r.rngsubtype, NULL),
            'opclass ' || quote_ident(rocn.nspname) || '.' || quote_ident(roc.opcname),
            CASE WHEN r.rngcollation <> 0 THEN 'collation ' || r.rngcollation::regcollation::text END,
            CASE WHEN r.rngcanonical <> 0 THEN 'canonical ' || r.rngcanonical::regprocedure::text END, {subtype_diff},
            'multirange ' || format_type(r.rngmultitypid, NULL))""",
            owner="ty.typowner",
            acl="ty.typacl",
            acltype="T",
        ),
        _object(
            type_source.format(join="", typtype="b")
            + " AND NOT EXISTS (SELECT FROM pg_type AS el WHERE el.typarray = ty.oid)",
            catalog="pg_type",
            objid="ty.oid",
            kind="type",
            name=named,
            definition=base,
            owner="ty.typowner",
            acl="ty.typacl",
            acltype="T",
        ),
    ]


def _operators_and_text_search(version: int) -> list[str]:
    locale = "cl.colllocale" if version >= 170000 else "cl.colliculocale" if version >= 150000 else "NULL::text"
    rules = "cl.collicurules" if version >= 160000 else "NULL::text"

    def function(label: str, column: str) -> str:
        return f"CASE WHEN {column} <> 0 THEN '{label} ' || {column}::regprocedure::text END"

    def schema_object(alias: str, prefix: str) -> str:
        return f"ns.name || '.' || quote_ident({alias}.{prefix}name)"

    return [
        _object(
            "FROM pg_operator AS op JOIN ns ON ns.oid = op.oprnamespace WHERE op.oprcode <> 0 AND"
            f" {_member('pg_operator', 'op.oid')}",
            catalog="pg_operator",
            objid="op.oid",
            kind="operator",
            name="ns.name || '.' || op.oprname || '(' || CASE op.oprleft WHEN 0 THEN 'NONE' ELSE"
            " format_type(op.oprleft, NULL) END"
            " || ', ' || format_type(op.oprright, NULL) || ')'",
            definition=f"""concat_ws(', ', 'returns ' || format_type(op.oprresult, NULL),
                {function("function", "op.oprcode")},
            CASE WHEN op.oprcom <> 0 THEN 'commutator ' || op.oprcom::regoperator::text END,
            CASE WHEN op.oprnegate <> 0 THEN 'negator ' || op.oprnegate::regoperator::text END,
            {function("restrict", "op.oprrest")}, {function("join", "op.oprjoin")},
            CASE WHEN op.oprcanhash THEN 'hashes' END, CASE WHEN op.oprcanmerge THEN 'merges' END)""",
            owner="op.oprowner",
        ),
        _object(
            f"""FROM pg_opclass AS oc JOIN ns ON ns.oid = oc.opcnamespace JOIN pg_am AS am ON am.oid = oc.opcmethod
            JOIN pg_opfamily AS f ON f.oid = oc.opcfamily JOIN pg_namespace AS fn ON fn.oid = f.opfnamespace
            WHERE {_member("pg_opclass", "oc.oid")}""",
            catalog="pg_opclass",
            objid="oc.oid",
            kind="operator class",
            name=schema_object("oc", "opc") + " || ' using ' || quote_ident(am.amname)",
            definition="""concat_ws(', ', 'for type ' || format_type(oc.opcintype, NULL),
            'family ' || quote_ident(fn.nspname) || '.' || quote_ident(f.opfname), CASE WHEN oc.opcdefault
                THEN 'default' END,
            CASE WHEN oc.opckeytype <> 0 THEN 'storage ' || format_type(oc.opckeytype, NULL) END)""",
            owner="oc.opcowner",
        ),
        _object(
            f"""FROM pg_opfamily AS f JOIN ns ON ns.oid = f.opfnamespace JOIN pg_am AS am ON am.oid = f.opfmethod
            WHERE {_member("pg_opfamily", "f.oid")}""",
            catalog="pg_opfamily",
            objid="f.oid",
            kind="operator family",
            name=schema_object("f", "opf") + " || ' using ' || quote_ident(am.amname)",
            definition="""coalesce((SELECT string_agg(m, '; ' ORDER BY m COLLATE "C") FROM (
            SELECT 'operator ' || ao.amopstrategy || ' ' || ao.amopopr::regoperator::text
                || CASE ao.amoppurpose WHEN 'o' THEN ' for order by' ELSE '' END AS m FROM pg_amop AS ao
                    WHERE ao.amopfamily = f.oid
            UNION ALL SELECT 'function ' || ap.amprocnum || ' (' || format_type(ap.amproclefttype, NULL) || ', '
                || format_type(ap.amprocrighttype, NULL) || ') ' || ap.amproc::regprocedure::text
                FROM pg_amproc AS ap WHERE ap.amprocfamily = f.oid) AS members), 'empty')""",
            owner="f.opfowner",
        ),
        _object(
            f"FROM pg_cast AS ca WHERE ca.oid >= 16384 AND {_member('pg_cast', 'ca.oid')}",
            catalog="pg_cast",
            objid="ca.oid",
            kind="cast",
            name="'(' || format_type(ca.castsource, NULL) || ' AS ' || format_type(ca.casttarget, NULL) || ')'",
            definition=f"""concat_ws(', ', {function("function", "ca.castfunc")},
            CASE ca.castmethod WHEN 'b' THEN 'binary coercible' WHEN 'i' THEN 'by input and output' END,
            CASE ca.castcontext WHEN 'i' THEN 'implicit' WHEN 'a' THEN 'assignment' ELSE 'explicit' END)""",
        ),
        _object(
            f"FROM pg_collation AS cl JOIN ns ON ns.oid = cl.collnamespace WHERE {_member('pg_collation', 'cl.oid')}",
            catalog="pg_collation",
            objid="cl.oid",
            kind="collation",
            name=schema_object("cl", "coll"),
            definition=f"""concat_ws(', ', 'provider ' || cl.collprovider::text, 'collate ' || cl.collcollate, 'ctype '
                || cl.collctype,
            'locale ' || {locale}, 'rules ' || {rules}, CASE WHEN NOT cl.collisdeterministic
                THEN 'nondeterministic' END)""",
            owner="cl.collowner",
        ),
        _object(
            f"FROM pg_conversion AS cv JOIN ns ON ns.oid = cv.connamespace WHERE {_member('pg_conversion', 'cv.oid')}",
            catalog="pg_conversion",
            objid="cv.oid",
            kind="conversion",
            name=schema_object("cv", "con"),
            definition="""format('%%s to %%s by %%s%%s', pg_encoding_to_char(cv.conforencoding),
                pg_encoding_to_char(cv.contoencoding),
            cv.conproc::regprocedure::text, CASE WHEN cv.condefault THEN ', default' ELSE '' END)""",
            owner="cv.conowner",
        ),
        _object(
            f"""FROM pg_ts_config AS tc JOIN ns ON ns.oid = tc.cfgnamespace
                JOIN pg_ts_parser AS tp ON tp.oid = tc.cfgparser
            JOIN pg_namespace AS tpn ON tpn.oid = tp.prsnamespace WHERE {_member("pg_ts_config", "tc.oid")}""",
            catalog="pg_ts_config",
            objid="tc.oid",
            kind="text search configuration",
            name=schema_object("tc", "cfg"),
            definition="""'parser ' || quote_ident(tpn.nspname) || '.' || quote_ident(tp.prsname)
                || coalesce((SELECT string_agg(
            '; ' || tt.alias || ': ' || md.dictionaries, '' ORDER BY tt.alias COLLATE "C") FROM (SELECT mp.maptokentype,
            string_agg(mp.mapdict::regdictionary::text, ', ' ORDER BY mp.mapseqno) AS dictionaries
                FROM pg_ts_config_map AS mp
            WHERE mp.mapcfg = tc.oid GROUP BY mp.maptokentype) AS md
            JOIN ts_token_type(tc.cfgparser) AS tt ON tt.tokid = md.maptokentype), '')""",
            owner="tc.cfgowner",
        ),
        _object(
            f"""FROM pg_ts_dict AS td JOIN ns ON ns.oid = td.dictnamespace
                JOIN pg_ts_template AS tl ON tl.oid = td.dicttemplate
            JOIN pg_namespace AS tln ON tln.oid = tl.tmplnamespace WHERE {_member("pg_ts_dict", "td.oid")}""",
            catalog="pg_ts_dict",
            objid="td.oid",
            kind="text search dictionary",
            name=schema_object("td", "dict"),
            definition="'template ' || quote_ident(tln.nspname) || '.' || quote_ident(tl.tmplname) || coalesce(', ' ||"
            " td.dictinitoption, '')",
            owner="td.dictowner",
        ),
        _object(
            f"FROM pg_ts_parser AS tp JOIN ns ON ns.oid = tp.prsnamespace WHERE {_member('pg_ts_parser', 'tp.oid')}",
            catalog="pg_ts_parser",
            objid="tp.oid",
            kind="text search parser",
            name=schema_object("tp", "prs"),
            definition="concat_ws(', ', tp.prsstart::oid::regprocedure, tp.prstoken::oid::regprocedure,"
            " tp.prsend::oid::regprocedure,"
            " tp.prsheadline::oid::regprocedure, tp.prslextype::oid::regprocedure)",
        ),
        _object(
            "FROM pg_ts_template AS tl JOIN ns ON ns.oid = tl.tmplnamespace WHERE"
            f" {_member('pg_ts_template', 'tl.oid')}",
            catalog="pg_ts_template",
            objid="tl.oid",
            kind="text search template",
            name=schema_object("tl", "tmpl"),
            definition="concat_ws(', ', tl.tmplinit::oid::regprocedure, tl.tmpllexize::oid::regprocedure)",
        ),
    ]


def _database_wide(version: int) -> list[str]:
    where = columns = "''"
    schemas = "NULL::text"
    generated = ""
    if version >= 150000:
        columns = """coalesce((SELECT ' (' || string_agg(quote_ident(pa.attname), ', ' ORDER BY pa.attname COLLATE "C")
            || ')'
            FROM pg_attribute AS pa WHERE pa.attrelid = pr.prrelid AND pa.attnum = ANY (pr.prattrs)), '')"""
        where = "coalesce(' where (' || pg_get_expr(pr.prqual, pr.prrelid) || ')', '')"
        schemas = """(SELECT 'tables in ' || string_agg(quote_ident(pns.nspname), ', ' ORDER BY pns.nspname COLLATE "C")
            FROM pg_publication_namespace AS pn JOIN pg_namespace AS pns ON pns.oid = pn.pnnspid
                WHERE pn.pnpubid = pu.oid)"""
    if version >= 180000:
        generated = "CASE pu.pubgencols WHEN 's' THEN 'stored generated columns' END,"
    publication = f"""concat_ws(', ', CASE WHEN pu.puballtables THEN 'all tables' END,
        (SELECT 'tables ' || string_agg(pr.prrelid::regclass::text || {columns} || {where}, ', '
            ORDER BY pr.prrelid::regclass::text COLLATE "C")
            FROM pg_publication_rel AS pr WHERE pr.prpubid = pu.oid), {schemas}, {generated}
        'publishes ' || concat_ws(' ', CASE WHEN pu.pubinsert THEN 'insert' END, CASE WHEN pu.pubupdate
            THEN 'update' END,
            CASE WHEN pu.pubdelete THEN 'delete' END, CASE WHEN pu.pubtruncate THEN 'truncate' END),
        CASE WHEN pu.pubviaroot THEN 'via partition root' END)"""
    privileges_for = """CASE d.defaclobjtype WHEN 'r' THEN 'tables' WHEN 'S' THEN 'sequences' WHEN 'f' THEN 'functions'
        WHEN 'T' THEN 'types'
        WHEN 'n' THEN 'schemas' WHEN 'L' THEN 'large objects' END"""
    return [
        _object(
            f"FROM ns JOIN pg_namespace AS n ON n.oid = ns.oid WHERE {_member('pg_namespace', 'ns.oid')}",
            catalog="pg_namespace",
            objid="n.oid",
            kind="schema",
            name="ns.name",
            definition="'schema'",
            owner="n.nspowner",
            acl="n.nspacl",
            acltype="n",
        ),
        _object(
            # A restored extension belongs to whoever restores it: no owner entry.
            "FROM pg_extension AS e JOIN pg_namespace AS en ON en.oid = e.extnamespace",
            catalog="pg_extension",
            objid="e.oid",
            kind="extension",
            name="quote_ident(e.extname)",
            definition="'version ' || e.extversion || ', schema ' || quote_ident(en.nspname)",
        ),
        _object(
            f"FROM pg_event_trigger AS et WHERE {_member('pg_event_trigger', 'et.oid')}",
            catalog="pg_event_trigger",
            objid="et.oid",
            kind="event trigger",
            name="quote_ident(et.evtname)",
            definition=f"""concat_ws(', ', 'on ' || et.evtevent, CASE WHEN et.evttags IS NOT NULL THEN 'tags '
                || {_sorted("et.evttags")} END,
            'execute ' || et.evtfoid::regprocedure::text, {_TRIGGER_STATE.format("et.evtenabled")})""",
            owner="et.evtowner",
        ),
        _object(
            "FROM pg_publication AS pu",
            catalog="pg_publication",
            objid="pu.oid",
            kind="publication",
            name="quote_ident(pu.pubname)",
            definition=publication,
            owner="pu.pubowner",
        ),
        _object(
            # Not the connection string, which only superusers read, and not "enabled", which a restore turns off.
            "FROM pg_subscription AS su JOIN pg_database AS sd ON sd.oid = su.subdbid AND sd.datname ="
            " current_database()",
            catalog="pg_subscription",
            objid="su.oid",
            kind="subscription",
            name="quote_ident(su.subname)",
            definition=f"'publications ' || {_sorted('su.subpublications')} || coalesce(', slot ' ||"
            " quote_ident(su.subslotname), '')",
            owner="su.subowner",
        ),
        _object(
            f"FROM pg_language AS la WHERE la.oid >= 16384 AND {_member('pg_language', 'la.oid')}",
            catalog="pg_language",
            objid="la.oid",
            kind="language",
            name="quote_ident(la.lanname)",
            definition="""concat_ws(', ', 'handler ' || la.lanplcallfoid::regprocedure::text,
            CASE WHEN la.laninline <> 0 THEN 'inline ' || la.laninline::regprocedure::text END,
            CASE WHEN la.lanvalidator <> 0 THEN 'validator ' || la.lanvalidator::regprocedure::text END,
            CASE WHEN la.lanpltrusted THEN 'trusted' END)""",
            owner="la.lanowner",
            acl="la.lanacl",
            acltype="l",
        ),
        _object(
            f"FROM pg_am AS am WHERE am.oid >= 16384 AND {_member('pg_am', 'am.oid')}",
            catalog="pg_am",
            objid="am.oid",
            kind="access method",
            name="quote_ident(am.amname)",
            definition="CASE am.amtype WHEN 't' THEN 'table ' ELSE 'index ' END ||"
            " am.amhandler::oid::regprocedure::text",
        ),
        _object(
            "FROM pg_transform AS tf JOIN pg_language AS la ON la.oid = tf.trflang WHERE"
            f" {_member('pg_transform', 'tf.oid')}",
            catalog="pg_transform",
            objid="tf.oid",
            kind="transform",
            name="'for ' || format_type(tf.trftype, NULL) || ' language ' || quote_ident(la.lanname)",
            definition="concat_ws(', ', tf.trffromsql::oid::regprocedure, tf.trftosql::oid::regprocedure)",
        ),
        _object(
            f"FROM pg_foreign_data_wrapper AS fw WHERE {_member('pg_foreign_data_wrapper', 'fw.oid')}",
            catalog="pg_foreign_data_wrapper",
            objid="fw.oid",
            kind="foreign data wrapper",
            name="quote_ident(fw.fdwname)",
            definition=f"""concat_ws(', ', CASE WHEN fw.fdwhandler <> 0 THEN 'handler '
                || fw.fdwhandler::regprocedure::text END,
            CASE WHEN fw.fdwvalidator <> 0 THEN 'validator ' || fw.fdwvalidator::regprocedure::text END,
            'options (' || {_masked("fw.fdwoptions")} || ')')""",
            owner="fw.fdwowner",
            acl="fw.fdwacl",
            acltype="F",
        ),
        _object(
            "FROM pg_foreign_server AS fs JOIN pg_foreign_data_wrapper AS fw ON fw.oid = fs.srvfdw"
            f" WHERE {_member('pg_foreign_server', 'fs.oid')}",
            catalog="pg_foreign_server",
            objid="fs.oid",
            kind="server",
            name="quote_ident(fs.srvname)",
            definition=f"""concat_ws(', ', 'wrapper ' || quote_ident(fw.fdwname), 'type ' || fs.srvtype, 'version '
                || fs.srvversion,
            'options (' || {_masked("fs.srvoptions")} || ')')""",
            owner="fs.srvowner",
            acl="fs.srvacl",
            acltype="S",
        ),
        _object(
            "FROM pg_user_mappings AS um",
            catalog="pg_user_mapping",
            objid="um.umid",
            kind="user mapping",
            name="'for ' || CASE WHEN um.umuser = 0 THEN 'PUBLIC' ELSE quote_ident(um.usename) END || ' server ' ||"
            " quote_ident(um.srvname)",
            definition="'user mapping'",
        ),
        _object(
            # Without a schema these are the whole truth; with one they are added to it. An empty ACL cannot be told
            # from a missing one here.
            "FROM pg_default_acl AS d LEFT JOIN ns ON ns.oid = d.defaclnamespace WHERE d.defaclnamespace = 0 OR ns.oid"
            " IS NOT NULL",
            catalog="pg_default_acl",
            objid="d.oid",
            kind="default privileges",
            name="'for ' || quote_ident(pg_get_userbyid(d.defaclrole)) || coalesce(' in ' || ns.name, '') || ' on '"
            f" || {privileges_for}",
            definition=_grants("d.defaclacl").replace("e.grantor = owner", "e.grantor = d.defaclrole"),
        ),
        _object(
            "FROM pg_database AS db WHERE db.datname = current_database()",
            catalog="pg_database",
            objid="db.oid",
            kind="this database",
            name="''",
            definition="NULL::text",
            owner="db.datdba",
            acl="db.datacl",
            acltype="d",
        ),
        _object(
            "FROM pg_db_role_setting AS ds JOIN pg_database AS db ON db.oid = ds.setdatabase AND db.datname ="
            " current_database(),"
            " LATERAL unnest(ds.setconfig) AS sc",
            catalog="pg_db_role_setting",
            objid="0::oid",
            kind="setting",
            name="split_part(sc, '=', 1) || CASE WHEN ds.setrole = 0 THEN '' ELSE ' for ' ||"
            " quote_ident(pg_get_userbyid(ds.setrole)) END",
            # Applications keep keys in settings of their own names.
            definition="CASE WHEN strpos(split_part(sc, '=', 1), '.') > 0 THEN '***' ELSE substr(sc, strpos(sc, '=') +"
            " 1) END",
        ),
    ]


_statements: dict[tuple[int, str, bool], str] = {}


def _statement(version: int, select: str, *, filtered: bool) -> str:
    key = (version // 10000, select, filtered)
    if key not in _statements:
        _statements[key] = _build_statement(version // 10000 * 10000, select, filtered=filtered)
    return _statements[key]


def _build_statement(version: int, select: str, *, filtered: bool) -> str:
    objects = "\nUNION ALL ".join(
        [
            *_relations(version),
            *_routines_and_types(version),
            *_operators_and_text_search(version),
            *_database_wide(version),
        ]
    )
    full = "kind || CASE WHEN name = '' THEN '' ELSE ' ' || name END"
    entries = f"""
        SELECT {full} AS identity, name,
            CASE WHEN kind IN ('function', 'procedure') THEN definition
                ELSE {_canonical("definition")} END AS definition
            FROM objects WHERE definition IS NOT NULL
        UNION ALL SELECT 'owner of ' || {full}, name, quote_ident(pg_get_userbyid(owner)) FROM objects
            WHERE owner IS NOT NULL AND kind <> 'column'
        UNION ALL SELECT 'grants on ' || {full}, name, granted FROM (SELECT kind, name, {_grants("acl")} AS granted,
            CASE WHEN kind = 'column' THEN 'none' ELSE {_grants("acldefault(acltype, owner)")} END AS usual
            FROM objects WHERE acl IS NOT NULL) AS granting WHERE granted <> usual
        UNION ALL SELECT 'comment on ' || {full}, name, description FROM objects
            JOIN pg_description ON pg_description.classoid = classid AND pg_description.objoid = objid
                AND pg_description.objsubid = objects.objsubid
        UNION ALL SELECT 'comment on ' || {full}, name, description FROM objects
            JOIN pg_shdescription ON pg_shdescription.classoid = classid AND pg_shdescription.objoid = objid
                WHERE kind = 'this database'
        UNION ALL SELECT 'security label ' || provider || ' on ' || {full}, name, label FROM objects
            JOIN pg_seclabel ON pg_seclabel.classoid = classid AND pg_seclabel.objoid = objid
                AND pg_seclabel.objsubid = objects.objsubid
    """
    condition = "WHERE NOT (identity ~ %(ignore)s OR (name <> '' AND name ~ %(ignore)s))" if filtered else ""
    return f"""WITH ns AS MATERIALIZED (
        SELECT oid, quote_ident(nspname) AS name FROM pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' AND nspname <> ALL (%(exclude_schemas)s::name[])
    ), derived AS MATERIALIZED (
        SELECT classid, objid FROM pg_depend
        WHERE deptype = 'e' OR (deptype = 'i' AND classid IN ('pg_catalog.pg_proc'::regclass,
            'pg_catalog.pg_type'::regclass,
            'pg_catalog.pg_cast'::regclass))
    ), rel AS MATERIALIZED (
        SELECT c.*, ns.name AS schema, ns.name || '.' || quote_ident(c.relname) AS name FROM pg_class AS c
            JOIN ns ON ns.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'S', 'c') AND c.relpersistence <> 't'
        AND {_member("pg_class", "c.oid")} AND (c.relkind <> 'c' OR {_member("pg_type", "c.reltype")})
    ), objects AS MATERIALIZED (
        {objects}
    ), entries AS (
        SELECT identity, definition FROM ({entries}) AS every_entry {condition}
    ) {select}"""
