# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""A table of registered databases: its shape, its rows, and the two ways in which it keeps URLs.

``trigger``: the table encrypts by itself, with a key that the session brings as a startup setting. ``client``: the URL
is sealed here with AES-256-GCM, and the server never sees the key. No URL and no key is ever part of a statement.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import os
import re
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import (
    ConnectionOptions,
    connect,
    pooler_reason,
    quote_identifier,
    quote_literal,
    register_secret,
    sql_error,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    EnvironmentProblem,
    PlanError,
    SurefootError,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._stores import missing_package

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

if t.TYPE_CHECKING:
    from psycopg2.extensions import connection as Connection

TRIGGER, CLIENT = "trigger", "client"
REQUIRED_COLUMNS = (
    "id",
    "project_id",
    "name",
    "type",
    "host",
    "port",
    "connection_string",
    "connection_string_encrypted",
    "metadata",
)
OPTIONAL_COLUMNS = (
    "database",
    "username",
    "ssl_enabled",
    "status",
    "health_check_status",
    "health_check_error",
    "last_health_check_at",
)
COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
# Where the registration keeps what it must know of a row, inside the column metadata.
METADATA_KEY = "surefoot"
# For the session of a rotation, which needs both.
PREVIOUS_KEY_SETTING = "surefoot.previous_key"
CURRENT_KEY_SETTING = "surefoot.current_key"
MIN_KEY_LENGTH = 16
_ROUNDS = 100_000
_SALT = b"surefoot.dbops registered databases 1"
_MAGIC = b"SFR1"
_NONCE = 12
_KEY_ID = 8


@dataclasses.dataclass(frozen=True)
class Registry:
    """Which table, and how it keeps URLs."""

    schema: str = "platform"
    table: str = "databases"
    columns: t.Mapping[str, str] = dataclasses.field(default_factory=dict)
    encryption: str = TRIGGER
    key_setting: str = "app.database_encryption_key"
    decrypt_function: str = "decrypt_database_connection_string"
    update_function: str = "update_database_health"

    @classmethod
    def from_params(cls, params: t.Mapping[str, t.Any]) -> Registry:
        """From module options.

        :raises PlanError: an unknown column, or a setting that cannot be one
        """
        given = {str(key): str(value) for key, value in (params.get("columns") or {}).items()}
        unknown = sorted(set(given) - set(COLUMNS))
        if unknown:
            raise PlanError(f"columns has the unknown key {unknown[0]}", remedy=f"Known: {', '.join(COLUMNS)}.")
        setting = str(params["key_setting"])
        if not re.fullmatch(r"[a-z_][a-z0-9_]*\.[a-z_][a-z0-9_]*", setting):
            raise PlanError(
                "key_setting is not the name of a custom setting", remedy="Give a name such as app.encryption_key."
            )
        return cls(
            schema=str(params["schema"]),
            table=str(params["table"]),
            columns=given,
            encryption=str(params["encryption"]),
            key_setting=setting,
            decrypt_function=str(params["decrypt_function"]),
            update_function=str(params.get("update_function", "update_database_health")),
        )

    @property
    def label(self) -> str:
        """``schema.table``, for messages."""
        return f"{self.schema}.{self.table}"

    def column(self, role: str) -> str:
        """The name of a column by its role."""
        return self.columns.get(role, role)

    def function(self, name: str) -> tuple[str, str]:
        """Schema and name of a function; without a schema it is the table's."""
        schema, dot, bare = name.partition(".")
        return (schema, bare) if dot else (self.schema, name)


class Keys:
    """What is derived from one encryption key: its id, and the keys of fingerprints and of sealed URLs.

    The derivation is slow on purpose: a fingerprint must not make a weak key easier to guess than the ciphertext does.
    """

    def __init__(self, secret: str, label: str) -> None:
        master = hashlib.pbkdf2_hmac("sha256", secret.encode("utf-8"), _SALT, _ROUNDS)
        self._fingerprint = hmac.new(master, b"fingerprint|" + label.encode("utf-8"), "sha256").digest()
        self._cipher = hmac.new(master, b"cipher|" + label.encode("utf-8"), "sha256").digest()
        self.id = hmac.new(master, b"key id|" + label.encode("utf-8"), "sha256").hexdigest()[: 2 * _KEY_ID]

    def fingerprint(self, row: Row, url: str) -> str:
        """Says whether a URL is the same as before to whoever has the key, and nothing to anybody else."""
        return self._digest("url", row.project_id, row.name, url)

    def binding(self, fingerprint: str, encrypted: bytes) -> str:
        """Ties a fingerprint to the ciphertext beside it: another writer of the column leaves a wrong one."""
        return self._digest("binding", fingerprint, hashlib.sha256(encrypted).hexdigest())

    def _digest(self, *parts: str) -> str:
        text = b"".join(len(part.encode("utf-8")).to_bytes(4, "big") + part.encode("utf-8") for part in parts)
        return hmac.new(self._fingerprint, text, "sha256").hexdigest()

    def seal(self, row: Row, url: str) -> bytes:
        """The URL encrypted with AES-256-GCM, bound to project, name and type of its row.

        :raises EnvironmentProblem: the package cryptography is missing
        """
        nonce = os.urandom(_NONCE)
        head = _MAGIC + bytes.fromhex(self.id)
        sealed: bytes = _aead(self._cipher).encrypt(nonce, url.encode("utf-8"), head + self._identity(row))
        return head + nonce + sealed

    def unseal(self, row: Row) -> str:
        """The URL of a row.

        :raises Unreadable: another key, damaged, or moved here from another row
        """
        head, rest = row.encrypted[: len(_MAGIC) + _KEY_ID], row.encrypted[len(_MAGIC) + _KEY_ID :]
        if head != _MAGIC + bytes.fromhex(self.id):
            raise Unreadable("stored with another key")
        aead = _aead(self._cipher)
        from cryptography.exceptions import InvalidTag

        try:
            plain: bytes = aead.decrypt(rest[:_NONCE], rest[_NONCE:], head + self._identity(row))
        except (InvalidTag, ValueError):
            raise Unreadable("damaged, or the ciphertext of another row") from None
        return plain.decode("utf-8")

    def _identity(self, row: Row) -> bytes:
        return f"\x00{row.project_id}\x00{row.name}\x00{row.type}".encode()


def _aead(key: bytes) -> t.Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise missing_package("cryptography", "encryption: client") from None
    return AESGCM(key)


class Unreadable(Exception):
    """A row whose URL cannot be read with the key at hand; the text holds nothing secret."""


def check_key(value: t.Any, option: str, *, short_allowed: bool = False) -> str:
    """An encryption key that can be one.

    :raises PlanError: empty, a placeholder, too short, or not text that can travel
    """
    text = "" if value is None else str(value)
    register_secret(text)
    if not text.strip() or "{{" in text or "${" in text or text.startswith("<"):
        raise PlanError(f"{option} is empty or a placeholder", remedy="Give the key, from a vault or the environment.")
    if "\x00" in text or (len(text) < MIN_KEY_LENGTH and not short_allowed):
        raise PlanError(
            f"{option} is shorter than {MIN_KEY_LENGTH} characters, or holds a NUL",
            remedy="Make one: openssl rand -base64 32.",
        )
    return text


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table. Columns that it does not have are None."""

    project_id: str
    name: str
    type: str
    id: str = ""
    host: str | None = None
    port: int | None = None
    connection_string: str | None = None
    encrypted: bytes = dataclasses.field(default=b"", repr=False)
    metadata: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    database: str | None = None
    username: str | None = None
    ssl_enabled: bool | None = None
    status: str | None = None
    health_check_status: str | None = None
    health_check_error: str | None = None

    @property
    def mark(self) -> t.Mapping[str, t.Any]:
        """What the registration wrote into the row's metadata."""
        mark = self.metadata.get(METADATA_KEY)
        return mark if isinstance(mark, dict) else {}


class Session:
    """A connection to the database of the registry, for one use: it may hold the key as a setting."""

    def __init__(
        self,
        options: ConnectionOptions,
        registry: Registry,
        *,
        key: str | None = None,
        previous_key: str | None = None,
        purpose: str = "registry",
        timeout: float = 10.0,
        settings: t.Mapping[str, str] | None = None,
    ) -> None:
        self.registry = registry
        startup = {"lock_timeout": "10s", "statement_timeout": "60s", **(settings or {})}
        secret: dict[str, str] = {}
        if registry.encryption == TRIGGER:
            secret.update({registry.key_setting: key} if key else {})
            if key and previous_key:
                secret.update({PREVIOUS_KEY_SETTING: previous_key, CURRENT_KEY_SETTING: key})
        self.connection: Connection = connect(options, purpose=purpose, settings={**startup, **secret}, timeout=timeout)
        reason = pooler_reason(self.connection, secret) if secret else None
        if reason:
            self.close()
            raise EnvironmentProblem(
                f"the key may not travel over this connection: {reason}",
                remedy="Give the server's direct address instead of a connection pooler's.",
            )
        self.types: dict[str, str] = {}

    def close(self) -> None:
        """The key goes with the connection."""
        self.connection.close()

    def cancel(self) -> None:
        """From another thread: stop what runs."""
        if not self.connection.closed:
            self.connection.cancel()

    # --- statements

    def query(self, text: str, values: t.Sequence[t.Any] = ()) -> list[tuple[t.Any, ...]]:
        """Run one statement that holds nothing secret.

        :raises SqlError: what the server said, redacted
        :raises ConnectionFailed: the connection was lost
        """
        with self.connection.cursor() as cursor:
            try:
                cursor.execute(text, tuple(values) or None)
                return list(cursor.fetchall()) if cursor.description else []
            except psycopg2.Error as exc:
                raise self.error(exc) from None

    def error(self, exc: t.Any) -> SurefootError:
        """The library's exception for one of the driver's."""
        if self.connection.closed or getattr(exc, "pgcode", None) is None:
            return ConnectionFailed(
                "the connection to the registry was lost", remedy="Run the task again: it finds out what is stored."
            )
        return sql_error(exc)

    def quoted(self, role: str) -> str:
        """A column as an identifier."""
        return quote_identifier(self.registry.column(role), self.connection)

    def literal(self, value: t.Any, role: str | None = None) -> str:
        """A value as a literal, of the type of a column."""
        text = quote_literal(value, self.connection)
        return f"{text}::{self.types[role]}" if role is not None else text

    @property
    def table(self) -> str:
        """The table as an identifier."""
        names = (self.registry.schema, self.registry.table)
        return ".".join(quote_identifier(name, self.connection) for name in names)

    def call(self, function: str) -> str:
        """A function as an identifier."""
        return ".".join(quote_identifier(name, self.connection) for name in self.registry.function(function))

    # --- shape

    def check_shape(self, *, reads_urls: bool = True) -> None:
        """:raises PlanError: the table, a column, the trigger or the decrypting function is not there"""
        registry = self.registry
        found = self.query(
            "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), c.oid FROM pg_catalog.pg_attribute AS a"
            " JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid"
            " JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
            " WHERE n.nspname = %s AND c.relname = %s AND c.relkind IN ('r', 'p') AND a.attnum > 0"
            " AND NOT a.attisdropped",
            (registry.schema, registry.table),
        )
        if not found:
            raise PlanError(
                f"there is no table {registry.label} in this database",
                remedy="Apply the migration that makes it (006 of lancio_platform), or name it in schema and table.",
            )
        have = {str(name): str(kind) for name, kind, _oid in found}
        missing = [
            registry.column(role)
            for role in COLUMNS
            if registry.column(role) not in have and (role in REQUIRED_COLUMNS or role in registry.columns)
        ]
        if missing:
            raise PlanError(
                f"the table {registry.label} has no column {', '.join(missing)}",
                remedy="Name its columns in the option columns; docs/registry.md says what a table needs.",
            )
        self.types = {role: have[registry.column(role)] for role in COLUMNS if registry.column(role) in have}
        for role, kind in (("connection_string_encrypted", "bytea"), ("metadata", "jsonb")):
            if self.types[role] != kind:
                raise PlanError(
                    f"the column {registry.column(role)} of {registry.label} is {self.types[role]}, not {kind}",
                    remedy="docs/registry.md says what a table needs.",
                )
        self._check_trigger(found[0][2])
        if reads_urls and registry.encryption == TRIGGER:
            self._check_function()

    def _check_trigger(self, table: int) -> None:
        # Bits of tgtype: row, BEFORE, INSERT, UPDATE.
        encrypting = self.query(
            "SELECT t.tgname FROM pg_catalog.pg_trigger AS t JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid"
            " WHERE t.tgrelid = %s AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND t.tgtype & 23 = 23"
            " AND pg_catalog.strpos(p.prosrc, %s) > 0",
            (table, self.registry.key_setting),
        )
        if self.registry.encryption == TRIGGER and not encrypting:
            raise PlanError(
                f"the table {self.registry.label} has no row trigger BEFORE INSERT OR UPDATE that reads"
                f" {self.registry.key_setting}, so a URL would be stored in plain text",
                remedy="Make the trigger, name its setting in key_setting, or use encryption: client.",
            )
        if self.registry.encryption == CLIENT and encrypting:
            raise PlanError(
                f"the table {self.registry.label} encrypts by itself, in the trigger {encrypting[0][0]}",
                remedy="Use encryption: trigger.",
            )

    def _check_function(self) -> None:
        schema, name = self.registry.function(self.registry.decrypt_function)
        found = self.query(
            "SELECT pg_catalog.has_function_privilege(p.oid, 'EXECUTE'),"
            " pg_catalog.has_schema_privilege(n.oid, 'USAGE')"
            " FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace"
            " WHERE n.nspname = %s AND p.proname = %s AND p.pronargs = 1"
            " AND p.prorettype = 'pg_catalog.text'::pg_catalog.regtype",
            (schema, name),
        )
        if not found:
            raise PlanError(
                f"there is no function {schema}.{name} that takes the id of a row and returns text",
                remedy="Name the decrypting function in decrypt_function.",
            )
        if not all(found[0]):
            raise PlanError(
                f"the role may not execute {schema}.{name}",
                remedy="Grant USAGE on the schema and EXECUTE on the function, or log in as another role.",
            )

    # --- rows

    def rows(self, condition: str = "true", *, locked: bool = False) -> list[Row]:
        """Rows in the order of project, name and id. ``condition`` is made with :meth:`literal`."""
        columns = []
        for role in COLUMNS:
            if role == "last_health_check_at":
                continue
            if role not in self.types:
                columns.append("NULL")
            elif role in ("port", "connection_string_encrypted", "metadata", "ssl_enabled"):
                columns.append(self.quoted(role))
            else:
                columns.append(f"{self.quoted(role)}::pg_catalog.text")
        text = (
            f"SELECT {', '.join(columns)} FROM {self.table} WHERE {condition}"
            f" ORDER BY {self.quoted('project_id')}, {self.quoted('name')}, {self.quoted('id')}"
        )
        names = [role for role in COLUMNS if role != "last_health_check_at"]
        found = []
        for values in self.query(text + (" FOR UPDATE" if locked else "")):
            fields = dict(zip(names, values))
            encrypted = fields.pop("connection_string_encrypted")
            metadata = fields.pop("metadata")
            fields.update(
                encrypted=bytes(encrypted) if encrypted is not None else b"",
                metadata=metadata if isinstance(metadata, dict) else {},
                project_id=str(fields["project_id"]),
                port=int(fields["port"]) if fields["port"] is not None else None,
            )
            found.append(Row(**fields))
        return found

    def url_of(self, row: Row, keys: Keys, *, in_transaction: bool) -> str:
        """The URL of a row, read with the session's key. It becomes a registered secret.

        :raises Unreadable: it cannot be read; why is in words that hold nothing secret
        """
        if not row.encrypted:
            raise Unreadable("nothing encrypted is stored")
        client = self.registry.encryption == CLIENT
        url = keys.unseal(row) if client else self._url_by_function(row, in_transaction)
        register_secret(url)
        return url

    def _url_by_function(self, row: Row, in_transaction: bool) -> str:
        # The value comes back as a result, which is in no log. The statement holds the id.
        text = f"SELECT {self.call(self.registry.decrypt_function)}({self.literal(row.id, 'id')})"
        with self.connection.cursor() as cursor:
            try:
                if in_transaction:
                    cursor.execute("SAVEPOINT surefoot_read")
                cursor.execute(text)
                (value,) = cursor.fetchone() or (None,)
                if in_transaction:
                    cursor.execute("RELEASE SAVEPOINT surefoot_read")
            except psycopg2.Error as exc:
                if self.connection.closed or exc.pgcode is None or exc.pgcode.startswith("57"):
                    raise self.error(exc) from None
                if in_transaction:
                    cursor.execute("ROLLBACK TO SAVEPOINT surefoot_read")
                if exc.pgcode == "42501":
                    raise Unreadable("the role may not read it") from None
                raise Unreadable("another key, or damaged data") from None
        if value is None:
            raise Unreadable("the decrypting function returns nothing; it may read for certain users only")
        return str(value)

    def use_key(self, which: str) -> None:
        """Decrypt and encrypt with the ``previous`` or ``current`` key until the transaction ends. Sent is its name."""
        if self.registry.encryption == CLIENT:
            return
        source = PREVIOUS_KEY_SETTING if which == "previous" else CURRENT_KEY_SETTING
        self.query(
            "SELECT pg_catalog.set_config(%s, pg_catalog.current_setting(%s), true) IS NOT NULL",
            (self.registry.key_setting, source),
        )


def ciphertext_literal(data: bytes) -> str:
    """A bytea literal, for what is encrypted already."""
    return "pg_catalog.decode('" + base64.b64encode(data).decode("ascii") + "', 'base64')"
