# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This file is PRIVATE to the collection. Do not use it from outside.

"""Registered databases: a URL becomes a row, a row goes, a key is exchanged. Each is a transaction that proves itself.

What was written is decrypted and compared before the commit. A URL goes to the server as COPY data only, and a
statement that uses it runs where the server logs no DETAIL of its failure (see ``_secrets.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing as t

from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions, redact
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    OutcomeUnknown,
    PlanError,
    SqlError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._evidence import Evidence, record, verdict
from ansible_collections.surefoot.dbops.plugins.module_utils._registry import (
    CLIENT,
    METADATA_KEY,
    TRIGGER,
    Keys,
    Registry,
    Row,
    Session,
    Unreadable,
    check_key,
    ciphertext_literal,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._secrets import guarded_row, load
from ansible_collections.surefoot.dbops.plugins.module_utils._stores import Store, parse_store_url

with contextlib.suppress(ImportError):  # reported by _connection.require_driver
    import psycopg2

PRESENT, ABSENT, ROTATED = "present", "absent", "rotated"
ENCRYPTED, DECRYPTION = "registration.encrypted", "registration.decryption"
_SHOWN_ROWS = 5
# Columns that an encrypting trigger may take from the URL again when it is written.
_DERIVED = ("host", "port", "database", "username", "ssl_enabled")


@dataclasses.dataclass
class Request:
    """What the task asks for. Keys and URL are secrets."""

    state: str
    project_id: str | None = None
    project_ids: tuple[str, ...] = ()
    name: str | None = None
    kind: str | None = None
    url: str | None = dataclasses.field(default=None, repr=False)
    encryption_key: str | None = dataclasses.field(default=None, repr=False)
    old_encryption_key: str | None = dataclasses.field(default=None, repr=False)
    status: str | None = None
    metadata: t.Mapping[str, t.Any] = dataclasses.field(default_factory=dict)
    replace_unreadable: bool = False
    check_mode: bool = False


@dataclasses.dataclass
class Outcome:
    """What was found, and what was or would be done."""

    action: str
    before: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    after: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    database: dict[str, t.Any] | None = None
    fingerprint: str | None = None
    key_id: str | None = None
    verified: bool | None = None
    rotation: dict[str, t.Any] | None = None
    evidence: list[Evidence] = dataclasses.field(default_factory=list)

    def results(self, run_dir: str | None, diff: bool) -> dict[str, t.Any]:
        """The module's results; the evidence is also recorded in the run directory."""
        found: dict[str, t.Any] = {
            "changed": self.before != self.after,
            "action": self.action,
            "database": self.database,
            "fingerprint": self.fingerprint,
            "key_id": self.key_id,
            "verified": self.verified,
            "rotation": self.rotation,
            "evidence": record(run_dir, self.evidence),
        }
        if diff:
            found["diff"] = {"before": _text(self.before), "after": _text(self.after)}
        return found


def _text(value: dict[str, t.Any]) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n" if value else ""


class Registration:
    """One task. :meth:`run` does it; :meth:`stop` may be called from another thread."""

    def __init__(self, options: ConnectionOptions, registry: Registry, request: Request) -> None:
        self._options = options
        self._registry = registry
        self._request = request
        self._session: Session | None = None
        self._store: Store | None = None
        self._key: str | None = None
        self._old_key: str | None = None
        # Everything that can be refused is refused before anything connects.
        if request.state == PRESENT:
            self._store = parse_store_url(request.url, where="url", kind=request.kind)
        if request.state != ABSENT:
            self._key = check_key(request.encryption_key, "encryption_key")
        if request.state == ROTATED:
            self._old_key = check_key(request.old_encryption_key, "old_encryption_key", short_allowed=True)
            if self._old_key == self._key:
                raise PlanError(
                    "old_encryption_key and encryption_key are the same", remedy="Give the new key in encryption_key."
                )

    def run(self) -> Outcome:
        """Do it, or in check mode find out what would be done."""
        settings = {"row_security": "off"} if self._request.state == ROTATED else {}
        self._session = session = Session(
            self._options,
            self._registry,
            key=self._key,
            previous_key=self._old_key,
            purpose="registration",
            settings=settings,
        )
        try:
            session.check_shape(reads_urls=self._request.state != ABSENT)
            session.query("BEGIN READ ONLY" if self._request.check_mode else "BEGIN")
            if not self._request.check_mode:
                # Two tasks at once would each find no row and insert one.
                session.query(
                    "SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended(%s, 0))",
                    (f"surefoot registration of {self._registry.label}",),
                )
            work = {PRESENT: self._present, ABSENT: self._absent, ROTATED: self._rotated}[self._request.state]
            outcome = work(session)
            self._end(session)
            return outcome
        finally:
            session.close()  # what was not committed is rolled back

    def stop(self, _reason: str = "") -> None:
        """Cancel what runs; the transaction is rolled back."""
        if self._session is not None:
            self._session.cancel()

    def _end(self, session: Session) -> None:
        if self._request.check_mode:
            session.query("ROLLBACK")
            return
        with session.connection.cursor() as cursor:
            try:
                cursor.execute("COMMIT")
            except psycopg2.Error as exc:
                if session.connection.closed:
                    raise OutcomeUnknown(
                        "the connection died at COMMIT", remedy="Run the task again: it finds out what is stored."
                    ) from None
                raise session.error(exc) from None

    # --- present

    def _present(self, session: Session) -> Outcome:
        request = self._request
        store = self._store or parse_store_url(request.url, where="url", kind=request.kind)
        keys = Keys(self._key or "", self._registry.label)
        # As the server writes it: an upper-case UUID is the same project.
        ((project,),) = session.query(f"SELECT ({session.literal(request.project_id, 'project_id')})::pg_catalog.text")
        new = Row(project_id=str(project), name=str(request.name), type=store.kind, status="active")
        row = self._find(session)
        stored: str | None = None
        outcome = Outcome("created", key_id=keys.id)
        if row is None:
            self._check_other_rows(session, keys)
        else:
            stored = self._read_stored(session, row, keys)
            outcome.action = "updated"
            outcome.before = self._shown(row, stored, _fingerprint_of(row))
        identity = row or new
        fingerprint = keys.fingerprint(identity, store.url)
        same_url = row is not None and stored == store.url and row.type == store.kind
        bound = row is not None and row.mark.get("binding") == keys.binding(fingerprint, row.encrypted)
        outcome.fingerprint = fingerprint
        planned = self._planned(identity, store, same_url)
        outcome.after = self._shown(planned, store.url, fingerprint)
        if same_url and bound and row == planned:
            outcome.action, outcome.after = "unchanged", outcome.before
            outcome.verified = True
        elif same_url and not bound:
            # A row somebody else wrote, with this very URL: only the fingerprint is missing.
            outcome.action = "adopted"
        if outcome.before != outcome.after and not request.check_mode:
            written = self._write(session, row, planned, store, same_url, keys, fingerprint)
            outcome.database = {"id": written.id, **outcome.after}
            outcome.verified = True
        elif row is not None:
            outcome.database = {"id": row.id, **(outcome.before if outcome.action == "unchanged" else outcome.after)}
        outcome.evidence = self._proof(outcome, 1, f"{identity.project_id} {identity.name}")
        return outcome

    def _planned(self, base: Row, store: Store, same_url: bool) -> Row:
        """The row as it should be, but for id and ciphertext."""
        request = self._request
        metadata = {**base.metadata, **request.metadata}
        planned = dataclasses.replace(
            base, metadata=metadata, status=request.status if request.status is not None else base.status
        )
        if same_url:
            return planned
        return dataclasses.replace(
            planned,
            type=store.kind,
            host=store.host,
            port=store.port,
            database=store.database,
            # Without a password it may be one.
            username=store.username if store.password else None,
            ssl_enabled=store.tls,
            health_check_status="unknown",
            health_check_error=None,
        )

    def _find(self, session: Session) -> Row | None:
        request = self._request
        condition = (
            f"{session.quoted('project_id')} = {session.literal(request.project_id, 'project_id')}"
            f" AND {session.quoted('name')} = {session.literal(request.name, 'name')}"
        )
        rows = session.rows(condition, locked=not request.check_mode)
        if len(rows) > 1:
            raise PlanError(
                f"{len(rows)} rows of {self._registry.label} have this project and the name {request.name}",
                remedy="Remove or rename all but one.",
            )
        return rows[0] if rows else None

    def _read_stored(self, session: Session, row: Row, keys: Keys) -> str | None:
        try:
            return session.url_of(row, keys, in_transaction=True)
        except Unreadable as exc:
            if self._request.replace_unreadable:
                return None
            raise PlanError(
                f"the stored URL of {row.name} cannot be read: {exc}",
                remedy="Give the key it was stored with, exchange keys with state: rotated, or let it be replaced with"
                " replace_unreadable: true.",
            ) from None

    def _check_other_rows(self, session: Session, keys: Keys) -> None:
        """A mistyped key would make a table whose rows need different keys."""
        if self._request.replace_unreadable:
            return
        project = f"{session.quoted('project_id')} = {session.literal(self._request.project_id, 'project_id')}"
        for row in session.rows(f"{project} AND {session.quoted('connection_string_encrypted')} IS NOT NULL")[:1]:
            try:
                session.url_of(row, keys, in_transaction=True)
            except Unreadable as exc:
                raise PlanError(
                    f"encryption_key does not read {row.name}, another database of the project: {exc}",
                    remedy="Give the key of the project's other rows, or set replace_unreadable: true to go on.",
                ) from None

    def _write(
        self, session: Session, row: Row | None, planned: Row, store: Store, same_url: bool, keys: Keys, mark: str
    ) -> Row:
        values: dict[str, str] = {}
        for role in ("project_id", "name") if row is None else ():
            values[role] = session.literal(getattr(planned, role), role)
        if not same_url:
            values["type"] = session.literal(planned.type, "type")
            for role in (*_DERIVED, "health_check_status", "health_check_error"):
                if role in session.types:
                    values[role] = session.literal(getattr(planned, role), role)
            if "last_health_check_at" in session.types and row is not None:
                values["last_health_check_at"] = "NULL"
        if "status" in session.types and (row is None or planned.status != row.status):
            values["status"] = session.literal(planned.status, "status")
        if row is None or planned.metadata != row.metadata:
            values["metadata"] = session.literal(json.dumps(planned.metadata), "metadata")
        source = ""
        if not same_url and self._registry.encryption == CLIENT:
            values["connection_string"] = session.literal(store.redacted, "connection_string")
            values["connection_string_encrypted"] = ciphertext_literal(keys.seal(planned, store.url))
        elif not same_url:
            self._load(session, {"url": store.url})
            values["connection_string"] = "s.value"
            source = " FROM pg_temp.surefoot_secret AS s"
        written = row.id if row is not None else ""
        if values:
            written = self._store_row(session, row, values, source)
        return self._finish(session, written, store.url, keys, mark)

    def _store_row(self, session: Session, row: Row | None, values: dict[str, str], source: str) -> str:
        if row is None:
            columns = ", ".join(session.quoted(role) for role in values)
            text = f"INSERT INTO {session.table} AS d ({columns}) SELECT {', '.join(values.values())}{source}"
        else:
            pairs = ", ".join(f"{session.quoted(role)} = {value}" for role, value in values.items())
            text = f"UPDATE {session.table} AS d SET {pairs}{source} WHERE d.{session.quoted('id')} = "
            text += session.literal(row.id, "id")
        text += f" RETURNING d.{session.quoted('id')}::pg_catalog.text AS id"
        try:
            if source:
                # Where the server would log a refused row, the exception block keeps it from doing so.
                found = json.loads(str(session.query(guarded_row(text, session.connection))[0][0]))
                return str(found["id"])
            return str(session.query(text)[0][0])
        except SqlError as exc:
            if exc.sqlstate == "23503":
                exc.remedy = "The project must exist before its databases are registered."
            raise

    def _load(self, session: Session, secrets: t.Mapping[str, str]) -> None:
        try:
            load(session.connection, secrets, secrets)
        except psycopg2.Error as exc:
            raise session.error(exc) from None

    def _finish(self, session: Session, written: str, url: str, keys: Keys, fingerprint: str) -> Row:
        """Prove what was written, and note its fingerprint beside it."""
        (row,) = session.rows(f"{session.quoted('id')} = {session.literal(written, 'id')}")
        self._mark(session, row, keys, fingerprint)
        self._verify(session, row, url, keys)
        return row

    def _mark(self, session: Session, row: Row, keys: Keys, fingerprint: str) -> None:
        mark = {"fingerprint": fingerprint, "binding": keys.binding(fingerprint, row.encrypted), "key_id": keys.id}
        column = session.quoted("metadata")
        added = session.literal(json.dumps({METADATA_KEY: mark}), "metadata")
        session.query(
            f"UPDATE {session.table} SET {column} = coalesce({column}, '{{}}'::jsonb) || {added}"
            f" WHERE {session.quoted('id')} = {session.literal(row.id, 'id')}"
        )

    def _verify(self, session: Session, row: Row, url: str, keys: Keys) -> None:
        remedy = "Nothing was changed. Look at the trigger and the decrypting function of the table."
        (found,) = session.query(
            f"SELECT pg_catalog.row_to_json(d)::text FROM {session.table} AS d"
            f" WHERE {session.quoted('id')} = {session.literal(row.id, 'id')}"
        )
        parsed = parse_store_url(url)
        values = {name: str(value) for name, value in json.loads(found[0]).items() if value is not None}
        # A password may happen to be the user's name; in the other columns it has no business.
        spared = {self._registry.column(role) for role in ("project_id", "name", "type", *_DERIVED)}
        plain = [value for name, value in values.items() if name not in spared]
        secrets = [secret for secret in (parsed.password, url) if secret]
        kept = any(value in secrets for value in plain) or any(url in value for value in values.values())
        raw = url.partition("://")[2].rpartition("@")[0]
        kept = kept or (":" in raw and any(f"{raw}@" in value for value in values.values()))
        if kept or url.encode("utf-8") in row.encrypted:
            raise VerificationFailed(f"{self._registry.label} kept the URL of {row.name} in plain text", remedy=remedy)
        try:
            stored = session.url_of(row, keys, in_transaction=True)
        except Unreadable as exc:
            raise VerificationFailed(f"what was written for {row.name} cannot be read: {exc}", remedy=remedy) from None
        if stored != url:
            raise VerificationFailed(f"what was written for {row.name} decrypts to another URL", remedy=remedy)

    def _shown(self, row: Row, url: str | None, fingerprint: str | None) -> dict[str, t.Any]:
        """A row without anything secret."""
        redacted: str | None = redact(row.connection_string or "") or None
        if url is not None:
            try:
                redacted = parse_store_url(url).redacted
            except PlanError:  # stored by somebody who took what we refuse
                redacted = redact(row.connection_string or "") or None
        shown = {
            "project_id": row.project_id,
            "name": row.name,
            "type": row.type,
            "connection_string": redacted,
            "host": row.host,
            "port": row.port,
            "database": row.database,
            "username": row.username,
            "ssl_enabled": row.ssl_enabled,
            "status": row.status,
            "metadata": {key: value for key, value in row.metadata.items() if key != METADATA_KEY},
            "fingerprint": fingerprint,
        }
        return shown

    # --- absent

    def _absent(self, session: Session) -> Outcome:
        row = self._find(session)
        if row is None:
            return Outcome("unchanged")
        outcome = Outcome("removed", before=self._shown(row, None, _fingerprint_of(row)))
        outcome.database = {"id": row.id, **outcome.before}
        if not self._request.check_mode:
            session.query(f"DELETE FROM {session.table} WHERE {session.quoted('id')} = {session.literal(row.id, 'id')}")
        return outcome

    # --- rotated

    def _rotated(self, session: Session) -> Outcome:
        label = self._registry.label
        new, old = Keys(self._key or "", label), Keys(self._old_key or "", label)
        condition = "true"
        if self._request.project_ids:
            wanted = ", ".join(session.literal(item, "project_id") for item in self._request.project_ids)
            condition = f"{session.quoted('project_id')} IN ({wanted})"
        rows = session.rows(condition, locked=not self._request.check_mode)
        urls: dict[str, str] = {}
        waiting: list[Row] = []
        unreadable: list[str] = []
        for row in rows:
            first, second = ("current", "previous") if row.mark.get("key_id") == new.id else ("previous", "current")
            reason = ""
            for which in (first, second):
                session.use_key(which)
                try:
                    urls[row.id] = session.url_of(row, new if which == "current" else old, in_transaction=True)
                except Unreadable as exc:
                    reason = str(exc)
                    continue
                if which == "previous":
                    waiting.append(row)
                break
            else:
                unreadable.append(f"{row.name} ({reason})")
        if unreadable:
            more = f" and {len(unreadable) - _SHOWN_ROWS} more" if len(unreadable) > _SHOWN_ROWS else ""
            raise PlanError(
                f"neither key reads {', '.join(unreadable[:_SHOWN_ROWS])}{more} of {label}; nothing was changed",
                remedy="Register them again with state: present and replace_unreadable: true, then exchange the keys.",
            )
        outcome = Outcome("rotated" if waiting else "unchanged", key_id=new.id)
        outcome.before = {row.id: {"name": row.name, "key_id": old.id} for row in waiting}
        outcome.after = {row.id: {"name": row.name, "key_id": new.id} for row in waiting}
        verified: int | None = None
        if not self._request.check_mode:
            session.use_key("current")
            if waiting:
                self._encrypt_again(session, waiting, urls, new)
            verified = self._verify_all(session, condition, urls, new)
        elif not waiting:
            verified = len(rows)  # each was read with the new key just now
        outcome.verified = verified == len(rows) if verified is not None else None
        outcome.rotation = {
            "rows": len(rows),
            "rotated": len(waiting),
            "already": len(rows) - len(waiting),
            "verified": verified,
        }
        outcome.evidence = self._proof(outcome, len(rows), "rotation")
        return outcome

    def _encrypt_again(self, session: Session, rows: list[Row], urls: t.Mapping[str, str], keys: Keys) -> None:
        if self._registry.encryption == TRIGGER:
            self._load(session, {row.id: urls[row.id] for row in rows})
            text = (
                f"WITH u AS (UPDATE {session.table} AS d SET {session.quoted('connection_string')} = s.value"
                " FROM pg_temp.surefoot_secret AS s"
                f" WHERE s.name = d.{session.quoted('id')}::pg_catalog.text RETURNING 1) SELECT count(*) AS n FROM u"
            )
            count = json.loads(str(session.query(guarded_row(text, session.connection))[0][0]))["n"]
            if count != len(rows):
                raise VerificationFailed(
                    f"{count} of {len(rows)} rows were encrypted anew", remedy="Nothing was changed. Run it again."
                )
        for row in rows:
            pairs = []
            if self._registry.encryption == CLIENT:
                sealed = ciphertext_literal(keys.seal(row, urls[row.id]))
                pairs.append(f"{session.quoted('connection_string_encrypted')} = {sealed}")
            else:
                # A trigger takes them from the URL again; somebody may have set them on purpose.
                pairs += [
                    f"{session.quoted(role)} = {session.literal(getattr(row, role), role)}"
                    for role in _DERIVED
                    if role in session.types
                ]
            if pairs:
                session.query(
                    f"UPDATE {session.table} SET {', '.join(pairs)}"
                    f" WHERE {session.quoted('id')} = {session.literal(row.id, 'id')}"
                )

    def _verify_all(self, session: Session, condition: str, urls: t.Mapping[str, str], keys: Keys) -> int:
        """Decrypt every row with the new key, compare, and note the fingerprints; how many there are."""
        remedy = "Nothing was changed. Look at the trigger and the decrypting function of the table."
        count = 0
        for row in session.rows(condition):
            try:
                url = session.url_of(row, keys, in_transaction=True)
            except Unreadable as exc:
                raise VerificationFailed(f"the new key does not read {row.name}: {exc}", remedy=remedy) from None
            if url != urls.get(row.id):
                raise VerificationFailed(f"{row.name} decrypts to another URL than before", remedy=remedy)
            fingerprint = keys.fingerprint(row, url)
            if row.mark.get("binding") != keys.binding(fingerprint, row.encrypted):
                self._mark(session, row, keys, fingerprint)
            count += 1
        if count != len(urls):
            raise VerificationFailed(
                f"{len(urls)} rows before and {count} afterwards", remedy="Nothing was changed. Run it again."
            )
        return count

    # --- evidence

    def _proof(self, outcome: Outcome, rows: int, subject: str) -> list[Evidence]:
        """What was proven; nothing was, where check mode left it undone."""
        measured = {"rows": rows, "verified": outcome.verified, "action": outcome.action}
        return [
            Evidence(
                criterion,
                "register",
                verdict(outcome.verified),
                measured,
                required,
                f"{self._registry.label}, decrypted in the transaction that wrote it",
                details={"subject": subject},
            )
            for criterion, required in (
                (ENCRYPTED, "no URL and no password in plain text"),
                (DECRYPTION, "every row decrypts to its URL"),
            )
        ]


def _fingerprint_of(row: Row) -> str | None:
    value = row.mark.get("fingerprint")
    return str(value) if value else None
