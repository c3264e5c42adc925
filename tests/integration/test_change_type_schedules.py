# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``change_type`` among clients in every order: what they wrote is there, converted or kept aside, and comes back.

Random schedules let the engine go from one place to the next, stop it, kill it and turn it round, and let sessions with
open transactions write in between. A model in Python says what must be there. ``SUREFOOT_SCHEDULES`` is the number of
schedules (40); they are the same ones every time, unless ``SUREFOOT_SCHEDULES_RANDOM`` is set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import time
import typing as t
import uuid

import hypothesis
import psycopg2
import pytest
from hypothesis import strategies as some

from ansible_collections.surefoot.dbops.plugins.module_utils import _change_type
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import SurefootError, VerificationFailed
from ansible_collections.surefoot.dbops.tests.support.gate import CALL, PART, TRANSACTION, Gate, gated_run
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    applied,
    dump,
    run,
    sessions,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

pytestmark = pytest.mark.slow

RUNS = int(os.environ.get("SUREFOOT_SCHEDULES", "40"))
RANDOM = bool(os.environ.get("SUREFOOT_SCHEDULES_RANDOM"))

PERMANENT = [str(uuid.UUID(int=0xA0000 + number)) for number in range(1, 4)]
PASSING = [str(uuid.UUID(int=0xB0000 + number)) for number in range(1, 3)]  # tenants that come and go
NOBODY = str(uuid.UUID(int=0xC0000))
CLIENTS = 3
IDS = 24

TEXTS: list[str | None] = [
    *PERMANENT, PERMANENT[0].upper(), PERMANENT[1].replace("-", ""), "{" + PERMANENT[2].upper() + "}", *PASSING,
    NOBODY, "no uuid", "", None,
]  # fmt: skip


def normal(text: str | None) -> str | None:
    """The value that a text is converted to; None when it is none."""
    try:
        return str(uuid.UUID(text)) if text is not None else None
    except ValueError:
        return None


@dataclasses.dataclass(frozen=True)
class Shape:
    """What the table is like and what the plan asks for."""

    nullable: bool
    not_null: bool
    key: str | None  # None: no foreign key; else whether it is checked immediately or at COMMIT
    quarantine: bool
    indexed: bool
    batch: int


@dataclasses.dataclass(frozen=True)
class Row:
    """A row as it was written last; ``stamp`` tells it from all others. ``exact``: as text, so the spelling counts."""

    text: str | None
    stamp: int
    child: bool = False
    exact: bool = True


SHAPES = some.builds(
    lambda nulls, **rest: Shape(*nulls, **rest),
    some.sampled_from([(False, True), (True, True), (True, False)]),
    key=some.sampled_from([None, "immediate", "deferred"]),
    quarantine=some.sampled_from([True, True, False]),
    indexed=some.booleans(),
    batch=some.integers(2, 5),
)
_TEXT = some.sampled_from(TEXTS)
_CLIENT = some.integers(0, CLIENTS - 1)
_IDS = some.lists(some.integers(1, IDS), min_size=1, max_size=3, unique=True)
_PLACE = some.tuples(
    some.just("advance"), some.sampled_from([(CALL, 1), (CALL, 2), (CALL, 5), (TRANSACTION, 1), (PART, 1), (PART, 2)])
)
_WRITE = some.one_of(
    some.tuples(some.just("insert"), _CLIENT, _IDS, _TEXT),
    some.tuples(some.just("update"), _CLIENT, _IDS, _TEXT),
    some.tuples(some.just("upsert"), _CLIENT, _IDS, _TEXT),
    some.tuples(some.just("touch"), _CLIENT, _IDS),
    some.tuples(some.just("delete"), _CLIENT, _IDS),
    some.tuples(some.just("rekey"), _CLIENT, some.integers(1, IDS), some.integers(1, IDS)),
    some.tuples(some.just("begin"), _CLIENT),
    some.tuples(some.just("end"), _CLIENT, some.booleans()),
    some.tuples(some.just("tenant"), some.sampled_from(PASSING)),
)
_TURNS = some.sampled_from([("kill",), ("turn",), ("look",)])
# one_of would weigh each kind of write as much as all that the engine does.
_OPS = some.sampled_from([_PLACE] * 8 + [_WRITE] * 9 + [_TURNS]).flatmap(lambda kind: kind)
# Most begin in the middle of the change; the last place is its end.
_BEGINNING = some.sampled_from(range(12)).map(lambda number: [("advance", (PART, number))] if number else [])
SCHEDULES = some.builds(list.__add__, _BEGINNING, some.lists(_OPS, min_size=20, max_size=60))
SEEDS = some.lists(_TEXT, min_size=4, max_size=12)


class Client:
    """One session; ``pending`` is what its open transaction changed: the row, or None for one that it deleted."""

    def __init__(self, database: Database) -> None:
        self.connection = database.connect()
        self.cursor = self.connection.cursor()
        self.cursor.execute("SET lock_timeout = '60ms'")
        self.open = False
        self.pending: dict[int, Row | None] = {}
        self.aside: list[tuple[int, Row]] = []

    def begin(self) -> None:
        self.cursor.execute("BEGIN")
        self.open = True

    def forget(self) -> None:
        """The transaction is gone, and what it changed."""
        if self.open:
            self.cursor.execute("ROLLBACK")
        self.open, self.pending, self.aside = False, {}, []


def _step(shape: Shape) -> dict[str, t.Any]:
    step: dict[str, t.Any] = {
        "table": "public.rows",
        "column": "tenant",
        "to": "uuid",
        "key": "id",
        "not_null": shape.not_null,
        "on_invalid": "quarantine" if shape.quarantine else "abort",
        "batch": shape.batch,
    }
    if shape.indexed:
        step["indexes"] = [{"name": "rows_tenant", "columns": "tenant"}]
    if shape.key is not None:
        deferred = {"deferrable": True, "initially": "deferred"} if shape.key == "deferred" else {}
        step["references"] = {
            "name": "rows_tenant_fk", "table": "public.tenants", "columns": "id", "on_delete": "cascade", **deferred,
        }  # fmt: skip
    return {"change_type": step}


class World:
    """The database, its clients, the engine, and what must be there."""

    def __init__(
        self, shape: Shape, seed: t.Sequence[str | None], database: Database, plan: MigrationSet, gate: Gate
    ) -> None:
        self.shape, self.database, self.plan, self.gate = shape, database, plan, gate
        self.rows: dict[int, Row] = {}
        self.aside: list[tuple[int, Row]] = []  # rows of the quarantine whose place somebody took
        self.tenants = set(PERMANENT)
        self.stamp = 0
        self._make(seed)
        retry = {"attempts": 100000, "max_delay": "20ms", "deadline": "60s"}
        plan.add("001", steps=[_step(shape)], lock_timeout="30ms", retry=retry)
        self.schema = self._dump()
        self.observer = database.connect()
        self.clients = [Client(database) for _number in range(CLIENTS)]
        self.back = False
        self.engine: Background[dict[str, t.Any]] | None = None

    def _make(self, seed: t.Sequence[str | None]) -> None:
        script = [
            "CREATE TABLE tenants (id uuid PRIMARY KEY);"
            f" INSERT INTO tenants SELECT unnest(ARRAY{PERMANENT}::uuid[]);"
            f" CREATE TABLE rows (id integer PRIMARY KEY, tenant text{'' if self.shape.nullable else ' NOT NULL'},"
            " stamp integer NOT NULL);"
            " CREATE TABLE children (parent integer PRIMARY KEY REFERENCES rows ON DELETE CASCADE ON UPDATE CASCADE);"
        ]
        if self.shape.indexed:
            script.append("CREATE INDEX rows_tenant ON rows (tenant);")
        for number, text in enumerate(seed):
            if text is None and not self.shape.nullable:
                continue
            id_ = 2 * number + 1  # every second key is free
            row = self.rows[id_] = Row(text, self._next() + id_, child=number % 2 == 0)
            value = "NULL" if text is None else f"'{text}'"
            script.append(f"INSERT INTO rows VALUES ({id_}, {value}, {row.stamp});")
            if row.child:
                script.append(f"INSERT INTO children VALUES ({id_});")
        self.database.query("".join(script))

    def _ask(self, sql: str, values: t.Any = None) -> list[tuple[t.Any, ...]]:
        with self.observer.cursor() as cursor:
            cursor.execute(sql, values)
            return list(cursor.fetchall())

    def _is(self, condition: str) -> bool:
        return bool(self._ask(f"SELECT {condition}")[0][0])

    def _next(self) -> int:
        self.stamp += 100
        return self.stamp

    def _dump(self) -> str:
        return dump(self.database, "--schema-only", "--exclude-schema=surefoot")

    def close(self) -> None:
        """Leave nobody connected."""
        for connection in (self.observer, *(client.connection for client in self.clients)):
            connection.close()
        self.gate.open()
        if self.engine is not None:
            self._kill()

    # -- what clients may expect

    def converted(self) -> bool:
        """Whether clients meet the new type."""
        return self._is(
            "atttypid = 'uuid'::regtype FROM pg_attribute WHERE attrelid = 'rows'::regclass AND attname = 'tenant'"
        )

    def strict(self) -> bool:
        """Whether the table refuses what the new type does not take."""
        closed = "SELECT FROM pg_proc WHERE proname LIKE 'surefoot_sync_%' AND prosrc NOT LIKE '%EXCEPTION WHEN%'"
        return self.converted() or self._is(f"EXISTS ({closed})")

    def dirty(self, text: str | None) -> bool:
        """Whether the plan does not take it, at least while no passing tenant is there."""
        value = normal(text)
        if value is None:
            return self.shape.not_null or text is not None
        return self.shape.key is not None and value not in PERMANENT

    def view(self, client: Client) -> dict[int, Row]:
        """The rows a client sees, and those in the quarantine."""
        return {id_: row for id_, row in {**self.rows, **client.pending}.items() if row is not None}

    def _refused(self, exc: psycopg2.Error, client: Client, texts: t.Collection[str | None], strict: bool) -> None:
        """A client's statement failed: is there a reason?"""
        reasons = {
            "22P02": any(text is not None and normal(text) is None for text in texts),
            "23502": None in texts,
            "23514": self.shape.not_null and any(normal(text) is None for text in texts),
            "23503": self.shape.key is not None and any(normal(text) not in (None, *PERMANENT) for text in texts),
            "55P03": (self.engine is not None and self.engine.running)
            or any(other.open for other in self.clients if other is not client),
        }
        assert reasons.get(exc.pgcode), (exc.pgcode, str(exc), texts)
        if exc.pgcode != "55P03" and not (exc.pgcode == "23502" and not self.shape.nullable):
            assert strict or self.strict(), f"refused before the table was closed: {exc}"
        client.forget()

    # -- what clients do

    def write(
        self, client: Client, sql: str, values: t.Sequence[t.Any], ids: t.Sequence[int], texts: t.Collection[str | None]
    ) -> tuple[list[t.Any], bool] | None:
        """One statement: what it returned, and whether the column was a text throughout; None if it was refused.

        :param ids: the keys that it puts rows under, or changes rows of
        :param texts: what the rows that it touches have in the column, before or after
        """
        strict, text = self.strict(), not self.converted()
        try:
            client.cursor.execute(sql, values)
            rows = list(client.cursor.fetchall())
        except psycopg2.errors.UniqueViolation:
            # Of those that were set aside, some may have been put back.
            assert {*self.view(client), *(id_ for id_, _row in self.aside)} & set(ids)
            client.forget()
            return None
        except psycopg2.Error as exc:
            self._refused(exc, client, texts, strict)
            return None
        return rows, text and not self.converted()

    def _put(self, client: Client, id_: int, row: Row | None) -> None:
        client.pending[id_] = row
        if not client.open:
            self._settle(client)

    def _place(self, client: Client, id_: int, row: Row) -> None:
        """A new row; the one that had the key must be in the quarantine."""
        earlier = self.view(client).get(id_)
        if earlier is not None:
            client.aside.append((id_, earlier))
        self._put(client, id_, row)

    def _settle(self, client: Client) -> None:
        for id_, row in client.pending.items():
            if row is None:
                self.rows.pop(id_, None)
            else:
                self.rows[id_] = row
        self.aside += client.aside
        client.pending, client.aside = {}, []

    def _found(self, client: Client, done: t.Iterable[tuple[int, int]], ids: t.Iterable[int]) -> dict[int, Row]:
        """The rows a statement worked on, as they were; those it should have, and did not, are in the quarantine.

        :param done: key and former stamp of each
        """
        seen = self.view(client)
        found = {}
        for id_, stamp in done:
            if id_ not in seen or seen[id_].stamp != stamp:
                self._adopt(id_, stamp)
                seen = self.view(client)
            assert seen[id_].stamp == stamp, (id_, stamp, seen[id_])
            found[id_] = seen[id_]
        gone = {row.stamp: id_ for id_, row in seen.items() if id_ in ids and id_ not in found}
        if gone:
            somewhere = self._somewhere()
            assert set(gone) <= somewhere, f"lost: {set(gone) - somewhere} of {gone}"
        return found

    def _adopt(self, id_: int, stamp: int) -> None:
        """A row that was set aside is back in its place, which had become free again."""
        item = next((item for item in self.aside if item[0] == id_ and item[1].stamp == stamp), None)
        assert item is not None, f"row {id_}, {stamp} is in the table, and nobody wrote it"
        assert id_ not in self.rows, f"row {id_}, {stamp} came back over {self.rows[id_]}"
        self.aside.remove(item)
        self.rows[id_] = item[1]

    def _somewhere(self) -> set[int]:
        """Stamps of all rows, in the table or in the quarantine."""
        text = "SELECT stamp FROM rows"
        if self._is("to_regclass('surefoot.quarantine') IS NOT NULL"):
            text += " UNION ALL SELECT (row ->> 'stamp')::integer FROM surefoot.quarantine"
        return {row[0] for row in self._ask(text)}

    def _texts(self, client: Client, ids: t.Iterable[int]) -> list[str | None]:
        seen = self.view(client)
        return [row.text for row in [*(seen[id_] for id_ in ids if id_ in seen), *(row for _id, row in self.aside)]]

    def insert(self, number: int, ids: t.Sequence[int], text: str | None, clause: str = "") -> None:
        """Also with ON CONFLICT."""
        client, stamp = self.clients[number], self._next()
        places = ", ".join(["(%s, %s, %s)"] * len(ids))
        values = [item for id_ in ids for item in (id_, text, stamp + id_)]
        sql = f"INSERT INTO rows (id, tenant, stamp) VALUES {places} {clause} RETURNING id, xmax::text <> '0'"
        result = self.write(client, sql, values, ids, [text])
        if result is None:
            return
        assert {row[0] for row in result[0]} == set(ids)
        for id_, existed in result[0]:
            if existed and id_ not in self.view(client):  # put back, as its place was free
                self._adopt(id_, next(row.stamp for place, row in self.aside if place == id_))
            if existed:
                self._put(
                    client,
                    id_,
                    dataclasses.replace(self.view(client)[id_], text=text, stamp=stamp + id_, exact=result[1]),
                )
            else:
                self._place(client, id_, Row(text, stamp + id_, False, result[1]))

    def upsert(self, number: int, ids: t.Sequence[int], text: str | None) -> None:
        self.insert(
            number, ids, text, "ON CONFLICT (id) DO UPDATE SET tenant = EXCLUDED.tenant, stamp = EXCLUDED.stamp"
        )

    def _change(
        self, number: int, sql: str, values: t.Mapping[str, t.Any], ids: t.Sequence[int], texts: t.Sequence[str | None]
    ) -> tuple[dict[int, Row], bool]:
        """An UPDATE or DELETE of some rows: what they were before."""
        client = self.clients[number]
        # The former stamp is what the statement's snapshot shows; it must not be another row by then.
        sql = f"WITH old AS MATERIALIZED (SELECT id, stamp FROM rows WHERE id = ANY (%(ids)s) FOR UPDATE) {sql}"
        sql += " RETURNING old.id, old.stamp"
        given = {**values, "ids": list(ids)}
        result = self.write(client, sql, t.cast(t.Any, given), ids, [*texts, *self._texts(client, ids)])
        if result is None:
            return {}, False
        return self._found(client, result[0], ids), result[1]

    def update(self, number: int, ids: t.Sequence[int], text: str | None) -> None:
        stamp = self._next()
        sql = "UPDATE rows SET tenant = %(text)s, stamp = %(stamp)s + rows.id FROM old WHERE rows.id = old.id"
        found, exact = self._change(number, sql, {"text": text, "stamp": stamp}, ids, [text])
        for id_, row in found.items():
            self._put(self.clients[number], id_, dataclasses.replace(row, text=text, stamp=stamp + id_, exact=exact))

    def touch(self, number: int, ids: t.Sequence[int]) -> None:
        """Another column."""
        stamp = self._next()
        sql = "UPDATE rows SET stamp = %(stamp)s + rows.id FROM old WHERE rows.id = old.id"
        found, _exact = self._change(number, sql, {"stamp": stamp}, ids, [])
        for id_, row in found.items():
            self._put(self.clients[number], id_, dataclasses.replace(row, stamp=stamp + id_))

    def delete(self, number: int, ids: t.Sequence[int]) -> None:
        found, _exact = self._change(number, "DELETE FROM rows USING old WHERE rows.id = old.id", {}, ids, [])
        for id_ in found:
            self._put(self.clients[number], id_, None)

    def rekey(self, number: int, id_: int, other: int) -> None:
        """Another key, which may be behind or before what the backfill has come to."""
        client, stamp = self.clients[number], self._next()
        sql = "UPDATE rows SET id = %(other)s, stamp = %(stamp)s + rows.id FROM old WHERE rows.id = old.id"
        given = {"other": other, "stamp": stamp}
        if other in self.view(client) or id_ == other or any(place == other for place, _row in self.aside):
            return  # would be refused, and nothing else
        found, _exact = self._change(number, sql, given, [id_], [])
        for row in found.values():
            self._put(client, id_, None)
            self._put(client, other, dataclasses.replace(row, stamp=stamp + id_))

    def begin(self, number: int) -> None:
        if not self.clients[number].open:
            self.clients[number].begin()

    def end(self, number: int, commit: bool) -> None:
        client = self.clients[number]
        if not client.open:
            return
        if not commit:
            client.forget()
            return
        strict = self.strict()
        try:
            client.cursor.execute("COMMIT")
        except psycopg2.Error as exc:
            self._refused(exc, client, [row.text for row in client.pending.values() if row is not None], strict)
            return
        client.open = False
        self._settle(client)

    def tenant(self, tenant: str) -> None:
        """A tenant comes, or goes with all its rows if they are bound to it."""
        if tenant not in self.tenants:
            self.database.query("INSERT INTO tenants VALUES (%s)", (tenant,))
            self.tenants.add(tenant)
            return
        with contextlib.closing(self.database.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '60ms'; BEGIN")
            try:
                cursor.execute("DELETE FROM tenants WHERE id = %s", (tenant,))
            except psycopg2.errors.LockNotAvailable:
                return
            # Its lock keeps the constraint from coming or going until COMMIT.
            cursor.execute("SELECT EXISTS (SELECT FROM pg_constraint WHERE conname = 'rows_tenant_fk')")
            bound = cursor.fetchone()[0]
            cursor.execute("COMMIT")
        self.tenants.discard(tenant)
        if bound:
            somewhere = self._somewhere()
            for id_, row in list(self.rows.items()):
                if normal(row.text) == tenant and row.stamp not in somewhere:
                    del self.rows[id_]

    # -- what the engine does

    def _begun(self) -> bool:
        if not self._is("to_regclass('surefoot.progress') IS NOT NULL"):
            return False
        return self._is("count(*) > 0 FROM surefoot.progress") or bool(applied(self.database))

    def _running(self) -> bool:
        """Whether the engine is there; if it has ended, by what it may end by."""
        if self.engine is None:
            return False
        if self.engine.running:
            return True
        engine, self.engine = self.engine, None
        try:
            engine.result()
        except VerificationFailed as exc:
            assert not self.shape.quarantine, exc
        return False

    def _start(self) -> None:
        if self._begun() if self.back else not applied(self.database):
            options = {"state": "rolled_back", "to": "001"} if self.back else {}
            self.engine = gated_run(self.gate, self.plan, self.database, lock_budget=600.0, **options)

    def advance(self, place: tuple[int, int]) -> None:
        if not self._running():
            self._start()
        if self._running():
            # With nobody in its way it gets there.
            patience = 0.15 if any(client.open for client in self.clients) else 10.0
            self.gate.advance(t.cast(t.Any, self.engine), *place, patience)

    def _kill(self) -> None:
        if self.engine is None:
            return
        # Again, as it may be between two sessions.
        while self.engine.running:
            for pid in sessions(self.database):
                self.database.query("SELECT pg_terminate_backend(%s)", (pid,))
            self.gate.open()
            time.sleep(0.01)
        with contextlib.suppress(SurefootError):
            self.engine.result(90)
        self.engine = None

    def kill(self) -> None:
        if self._running():
            self._kill()

    def turn(self) -> None:
        """The other way; a way back that was begun must be gone to its end."""
        self.kill()
        self.back = not self.back or self._begun()

    # -- what must be true

    def look(self) -> None:
        """Each row is in one place as it was written last, and both columns say the same."""
        text = "SELECT to_jsonb(r), EXISTS (SELECT FROM children WHERE parent = r.id), NULL FROM rows AS r"
        if self._is("to_regclass('surefoot.quarantine') IS NOT NULL"):
            text += " UNION ALL SELECT row, jsonb_array_length(dependents) = 1, reason FROM surefoot.quarantine"
        strict = self.strict()
        places = self._ask(text)
        strict = strict and self.strict()
        table = {row["id"]: (row, child) for row, child, reason in places if reason is None}
        kept = {row["stamp"]: (row, child, reason) for row, child, reason in places if reason is not None}
        assert len(kept) == sum(1 for place in places if place[2] is not None), "twice in the quarantine"
        for id_, (row, _child) in table.items():
            if id_ not in self.rows or self.rows[id_].stamp != row["stamp"]:
                if id_ in self.rows and self.rows[id_].stamp in kept:
                    # It was taken away after somebody else's was put back in its place: both are where they belong.
                    self.aside.append((id_, self.rows.pop(id_)))
                self._adopt(id_, row["stamp"])
        for id_, model in self.rows.items():
            if id_ in table:
                assert model.stamp not in kept, f"{id_} is in the table and in the quarantine"
                self._same(model, *table[id_], strict=strict)
        expected = {row.stamp: row for id_, row in self.rows.items() if id_ not in table}
        expected.update((row.stamp, row) for _id, row in self.aside)
        assert set(expected) == set(kept), (expected, kept)
        for stamp, model in expected.items():
            row, child, reason = kept[stamp]
            assert (row["tenant"], child) == (model.text, model.child) or not model.exact, (row, model)
            assert self.dirty(model.text), f"{row} is in the quarantine: {reason}"
            value = normal(model.text)
            begins = "null" if model.text is None else "invalid value" if value is None else "no parent"
            assert reason.startswith(begins), (model, reason)

    def _same(self, model: Row, row: dict[str, t.Any], child: bool, *, strict: bool) -> None:
        assert (row["stamp"], child) == (model.stamp, model.child), (row, child, model)
        value = normal(model.text)
        if model.exact and "surefoot_old_tenant" not in row:
            assert row["tenant"] == model.text, (row, model)
        elif "surefoot_old_tenant" in row:
            assert row["tenant"] == value and normal(row["surefoot_old_tenant"]) == value, (row, model)
            assert not model.exact or row["surefoot_old_tenant"] == model.text, (row, model)
        else:
            assert normal(row["tenant"]) == value, (row, model)
        if "surefoot_new_tenant" in row:
            beside = row["surefoot_new_tenant"]
            assert beside == value or (beside is None and not strict), (row, model)

    def finish(self) -> None:
        """To the end, and back to the beginning."""
        for client in self.clients:
            self.end(self.clients.index(client), True)
        self.gate.open()
        if self.engine is not None:
            with contextlib.suppress(VerificationFailed):
                self.engine.result(90)
            self.engine = None
        self.look()
        if self.back:
            self._roll_back()
        try:
            run(self.plan, self.database)
        except VerificationFailed as exc:
            assert not self.shape.quarantine, exc
            bad = [id_ for id_, row in self.rows.items() if self.dirty(row.text)]
            assert bad, exc
            self.look()
            self.update(0, bad, PERMANENT[0])
            run(self.plan, self.database)
        self.look()
        here = {row[0] for row in self._ask("SELECT id FROM rows")}
        for id_, row in self.rows.items():
            value = normal(row.text)
            if value is None:
                assert id_ not in here or (row.text is None and not self.shape.not_null), row
            elif self.shape.key is not None:
                assert id_ not in here or value in self.tenants, row
        if not self.shape.quarantine:
            assert here == set(self.rows)
        assert self.converted()
        self._roll_back()

    def _roll_back(self) -> None:
        if self._begun():
            run(self.plan, self.database, state="rolled_back", to="001")
        self.back = False
        self.look()
        assert self._dump() == self.schema
        here = {row[0] for row in self._ask("SELECT id FROM rows")}
        assert here == set(self.rows), "not everything came back"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    # So that a few rows are several batches of a sweep.
    monkeypatch.setattr(_change_type, "SWEEP_BATCH", 2)
    return Gate(monkeypatch)


@hypothesis.settings(
    max_examples=RUNS,
    deadline=None,
    derandomize=not RANDOM,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(shape=SHAPES, seed=SEEDS, schedule=SCHEDULES)
def test_nothing_is_lost_in_any_order(
    shape: Shape,
    seed: list[str | None],
    schedule: list[tuple[t.Any, ...]],
    pg_server: PgServer,
    tmp_path: pathlib.Path,
    gate: Gate,
) -> None:
    with temporary_database(pg_server) as database:
        world = World(shape, seed, database, MigrationSet(tmp_path / "set"), gate)
        try:
            for what, *values in schedule:
                getattr(world, what)(*values)
            world.finish()
        finally:
            world.close()
