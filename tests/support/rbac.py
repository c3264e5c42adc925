# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Data of the RBAC tables at any scale, with a chosen share of dirt of each kind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
import random
import threading
import time
import typing as t
import uuid

import psycopg2

from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

SET = pathlib.Path(__file__).resolve().parents[2] / "playbooks" / "migrations" / "scrapersky_rbac"

_TENANTS = (
    "INSERT INTO tenants (id, name) SELECT md5('tenant ' || n)::uuid, 't' || n FROM generate_series(1, {tenants}) n"
)
# n % every picks one kind of dirt a residue: 0 no uuid, 1 unknown tenant, 4 no tenant; 2 upper case and 3 braces are no
# dirt.
_PROFILES = """
INSERT INTO profiles (id, tenant_id, email)
SELECT md5('profile ' || n)::uuid,
       CASE n % {every} WHEN 0 THEN 'tenant-' || n WHEN 1 THEN md5('nobody ' || n)::uuid::text
            WHEN 2 THEN upper(own) WHEN 3 THEN '{{' || own || '}}' WHEN 4 THEN NULL ELSE own END,
       n || '@example.com'
FROM generate_series(1, {profiles}) AS n, LATERAL (SELECT md5('tenant ' || 1 + n % {tenants})::uuid::text) AS x(own)
"""
# Of these, residue 5 has no profile; 6 is there twice.
_ROLES = """
INSERT INTO user_roles (user_id, role_id, tenant_id)
SELECT CASE n % {every} WHEN 5 THEN md5('nobody ' || n)::uuid ELSE md5('profile ' || n)::uuid END, 1 + n % 3,
       md5('tenant ' || 1 + n % {tenants})::uuid
FROM generate_series(1, {profiles}) AS n, generate_series(1, 1 + (n % {every} = 6)::integer)
"""
_PERMISSIONS = """
INSERT INTO permissions (tenant_id, name) SELECT id, 'p' || n FROM tenants, generate_series(1, 3) AS n
"""
# Residue 7 requires what only other tenants have, 8 requires nothing.
_FEATURES = """
INSERT INTO sidebar_features (feature_id, tenant_id, name, requires_permission)
SELECT md5('feature ' || n)::uuid, md5('tenant ' || 1 + n % {tenants})::uuid, 'f' || n,
       CASE n % {every} WHEN 7 THEN 'only elsewhere' WHEN 8 THEN NULL ELSE 'p' || 1 + n % 3 END
FROM generate_series(1, {profiles}) AS n
"""
_ELSEWHERE = """
WITH t AS (INSERT INTO tenants (id, name) VALUES (md5('tenant elsewhere')::uuid, 'elsewhere') RETURNING id)
INSERT INTO permissions (tenant_id, name) SELECT id, 'only elsewhere' FROM t
"""


@dataclasses.dataclass(frozen=True)
class Dirt:
    """How many rows cannot stay, by table."""

    profiles: int
    user_roles: int
    features: int


def fill(database: Database, profiles: int = 1000, *, tenants: int = 10, every: int = 100) -> Dirt:
    """Fill the tables of the baseline; one row in ``every`` (10 or more) is dirty, of each kind."""
    numbers = range(1, profiles + 1)
    for text in (
        _TENANTS,
        "INSERT INTO roles VALUES (1, 'reader'), (2, 'writer'), (3, 'owner')",
        _PROFILES,
        _ROLES,
        _PERMISSIONS,
        _FEATURES,
        _ELSEWHERE,
    ):
        database.query(text.format(profiles=profiles, tenants=tenants, every=every))
    return Dirt(
        profiles=sum(1 for number in numbers if number % every in (0, 1, 4)),
        user_roles=sum(1 for number in numbers if number % every == 5),
        features=sum(1 for number in numbers if number % every == 7),
    )


def identifier(text: str) -> str:
    """The id that the generator gives this thing."""
    return str(uuid.UUID(hashlib.md5(text.encode()).hexdigest()))


# What the rows of a table say, by their key.
_TABLES = {
    "profiles": "SELECT id::text, tenant_id::text FROM profiles",
    "user_roles": "SELECT id::text, user_id::text || ' ' || role_id FROM user_roles",
    "sidebar_features": "SELECT feature_id::text, coalesce(requires_permission, '') FROM sidebar_features",
}


def contents(database: Database) -> dict[str, dict[str, str]]:
    """The rows of the tables that are changed."""
    return {name: dict(database.query(sql)) for name, sql in _TABLES.items()}


class _Writer:
    """One session with rows of its own, so that it knows of each what was written last."""

    def __init__(self, database: Database, seed: int, profiles: t.Sequence[int], tenants: int) -> None:
        self.failures: list[str] = []
        self.changes = 0
        self.pause = threading.Lock()
        self.may_be_cut_off = False
        self.written: dict[str, dict[str, str | None]] = {name: {} for name in _TABLES}
        self._database = database
        self._choice = random.Random(seed)
        # The tenant that each profile of the generator is in at the start.
        self._homes = {identifier(f"profile {n}"): identifier(f"tenant {1 + n % tenants}") for n in profiles}
        self._tenants = [identifier(f"tenant {number}") for number in range(1, tenants + 1)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        connection = self._database.connect()
        while not self._stop.is_set():
            with self.pause:
                table, key, value, sql, values = self._next()
                try:
                    with connection.cursor() as cursor:
                        cursor.execute(sql, values)
                        assert cursor.rowcount == 1, (sql, values)
                    self.written[table][key] = value
                    self.changes += 1
                except psycopg2.Error as exc:
                    # The server says crash_shutdown while it falls, or nothing.
                    if self.may_be_cut_off and exc.pgcode in (None, "57P02"):
                        connection = self._again(table, key, value)
                    else:
                        self.failures.append(f"{sql} {values}: {exc}")
                except AssertionError as exc:
                    self.failures.append(str(exc))
            time.sleep(0.004)
        connection.close()

    def _again(self, table: str, key: str, value: str | None) -> t.Any:
        """The server fell and is back: what was under way was done, or not at all."""
        deadline = time.monotonic() + 60
        while True:
            try:
                here = contents(self._database)[table].get(key)
                connection = self._database.connect()
                break
            except psycopg2.Error:
                assert time.monotonic() < deadline, "the server does not come back"
                time.sleep(0.05)
        if here == value:
            self.written[table][key] = value
        return connection

    def _next(self) -> tuple[str, str, str | None, str, tuple[t.Any, ...]]:
        """Table, key, what the row then says (None: it is gone), and the statement."""
        choice = self._choice
        what, tenant = choice.random(), choice.choice(self._tenants)
        spelled = choice.choice([tenant, tenant.upper(), "{" + tenant + "}"])
        key = str(uuid.UUID(int=choice.getrandbits(128)))
        own = [id_ for id_, value in self.written["profiles"].items() if value is not None and id_ not in self._homes]
        if what < 0.35:
            key = choice.choice([*self._homes, *own])
            # A role is in the tenant of its user.
            sql = (
                "WITH r AS (UPDATE user_roles SET tenant_id = %s::uuid WHERE user_id = %s)"
                " UPDATE profiles SET tenant_id = %s WHERE id = %s"
            )
            return "profiles", key, tenant, sql, (tenant, key, spelled, key)
        if what < 0.55:
            sql = "INSERT INTO profiles (id, tenant_id, email) VALUES (%s, %s, 'live')"
            return "profiles", key, tenant, sql, (key, spelled)
        if what < 0.6 and own:
            return "profiles", own[0], None, "DELETE FROM profiles WHERE id = %s", (own[0],)
        if what < 0.8:
            user = choice.choice(list(self._homes))
            home = self.written["profiles"].get(user) or self._homes[user]
            # With a key of its own, so that it is known even if the server falls before it answers.
            number = 10_000_000 + choice.getrandbits(40)
            sql = (
                "INSERT INTO user_roles (id, user_id, role_id, tenant_id) OVERRIDING SYSTEM VALUE"
                " VALUES (%s, %s, 3, %s)"
            )
            return "user_roles", str(number), f"{user} 3", sql, (number, user, home)
        permission = choice.choice(["p1", "p2", "p3"])
        sql = "INSERT INTO sidebar_features (feature_id, tenant_id, requires_permission) VALUES (%s, %s, %s)"
        return "sidebar_features", key, permission, sql, (key, tenant, permission)


class Writers:
    """Clients that write valid rows all the time.

    :param profiles: of how many rows of the generator they may take the clean ones
    """

    def __init__(self, database: Database, profiles: int, *, every: int, tenants: int = 10, number: int = 2) -> None:
        clean = [n for n in range(1, profiles + 1) if n % every not in (0, 1, 4)]
        self._writers = [_Writer(database, seed, clean[seed::number], tenants) for seed in range(number)]

    @property
    def failures(self) -> list[str]:
        return [failure for writer in self._writers for failure in writer.failures]

    @property
    def changes(self) -> int:
        return sum(writer.changes for writer in self._writers)

    def may_be_cut_off(self) -> None:
        """The server is about to fall."""
        for writer in self._writers:
            writer.may_be_cut_off = True

    @contextlib.contextmanager
    def paused(self) -> t.Iterator[dict[str, dict[str, str | None]]]:
        """What they wrote, by table and key, with nothing under way; None is a row that was deleted."""
        with contextlib.ExitStack() as stack:
            for writer in self._writers:
                stack.enter_context(writer.pause)
            written: dict[str, dict[str, str | None]] = {name: {} for name in _TABLES}
            for writer in self._writers:
                for name, rows in writer.written.items():
                    written[name].update(rows)
            yield written

    def stop(self) -> None:
        for writer in self._writers:
            writer.stop()


@contextlib.contextmanager
def writers(database: Database, profiles: int, *, every: int) -> t.Iterator[Writers]:
    """Clients for as long as the block."""
    found = Writers(database, profiles, every=every)
    try:
        yield found
    finally:
        found.stop()


def expected(before: t.Mapping[str, t.Mapping[str, str]], written: t.Mapping[str, t.Mapping[str, str | None]]) -> t.Any:
    """The rows that must be somewhere: those of the start, changed by what was written."""
    found = {}
    for name, rows in before.items():
        deleted = {key for key, value in written[name].items() if value is None}
        found[name] = {key: value for key, value in {**rows, **written[name]}.items() if key not in deleted}
    return found


def account(database: Database, rows: t.Mapping[str, t.Mapping[str, str]]) -> dict[str, int]:
    """Every row is in its table or in the quarantine, once, and says what it must.

    :param rows: what must be somewhere, as ``expected`` returns it
    :returns: how many are in the quarantine, by table
    """
    here = contents(database)
    kept: dict[str, list[tuple[str, str | None]]] = {name: [] for name in rows}
    quarantine: list[tuple[t.Any, ...]] = []
    if database.scalar("SELECT to_regclass('surefoot.quarantine') IS NOT NULL"):
        quarantine = database.query("SELECT table_name, row, dependents FROM surefoot.quarantine")
    for table, row, dependents in quarantine:
        for name, content in [(table, row), *((item["table"], item["row"]) for item in dependents)]:
            short = name.rpartition(".")[2].strip('"')
            kept[short].append(_said(short, content))
    for name, wanted in rows.items():
        found = dict(kept[name])
        assert len(found) == len(kept[name]), f"{name}: twice in the quarantine"
        assert not set(found) & set(here[name]), f"{name}: in two places"
        assert len(here[name]) + len(found) == len(wanted)
        for key, value in wanted.items():
            where = found if key in found else here[name]
            assert key in where, f"{name}: {key} is lost"
            assert _same(where[key], value), (name, key, where[key], value)
    return {name: len(items) for name, items in kept.items()}


def _said(table: str, row: t.Mapping[str, t.Any]) -> tuple[str, str | None]:
    if table == "profiles":
        return row["id"], row["tenant_id"]
    if table == "user_roles":
        return str(row["id"]), f"{row['user_id']} {row['role_id']}"
    return row["feature_id"], row["requires_permission"] or ""


def _same(one: str | None, other: str | None) -> bool:
    """Also when one is converted and the other as it was spelled."""

    def plain(value: str | None) -> str | None:
        return value.strip("{}").lower() if value is not None else None

    return plain(one) == plain(other)
