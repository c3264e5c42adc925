# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which texts use a column as text, and what becomes of that as evidence."""

from __future__ import annotations

import copy
import dataclasses
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._preflight import Finding, Wanted, judge
from ansible_collections.surefoot.dbops.plugins.module_utils._typed_users import (
    CAST,
    CONCATENATION,
    EVERY_COLUMN,
    FUNCTION,
    LITERAL,
    PATTERN,
    SIGNATURE,
    TEXT_VALUE,
    UNREAD,
    Column,
    function_kinds,
    statement_kinds,
    without_literals,
)

from .test_preflight import FACTS

COLUMN = Column("public", "profiles", "tenant_id", "uuid")
ELSEWHERE = {"tenant": frozenset({"sessions"}), "tenant_id": frozenset({"audit"})}
UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"

USED = [
    ("WHERE tenant_id::text = $1", CAST),
    ("WHERE CAST(p.tenant_id AS varchar) = $1", CAST),
    ("WHERE tenant_id::pg_catalog.text = $1", CAST),
    ("WHERE tenant_id = $1::text", TEXT_VALUE),
    ("WHERE p.tenant_id = $1::varchar", TEXT_VALUE),
    ('WHERE "tenant_id" = $1::text', TEXT_VALUE),
    ("WHERE $1::text = public.profiles.tenant_id", TEXT_VALUE),
    ("WHERE (tenant_id) = ($1::text)", TEXT_VALUE),
    ("WHERE tenant_id <> CAST($1 AS text)", TEXT_VALUE),
    ("WHERE tenant_id = ANY ($1::text[])", TEXT_VALUE),
    ("WHERE tenant_id IN ($1, $2::text)", TEXT_VALUE),
    ("WHERE tenant_id NOT IN ($1::text)", TEXT_VALUE),
    ("WHERE tenant_id BETWEEN $1::text AND $2", TEXT_VALUE),
    ("WHERE tenant_id IS NOT DISTINCT FROM $1::text", TEXT_VALUE),
    ("WHERE $1::text IS DISTINCT FROM tenant_id", TEXT_VALUE),
    ("WHERE tenant_id = current_setting($1)", TEXT_VALUE),
    ("WHERE tenant_id = $1::jsonb ->> $2", TEXT_VALUE),
    ("WHERE tenant_id = ($1::jsonb ->> $2)", TEXT_VALUE),
    ("WHERE tenant_id = text 'x'", TEXT_VALUE),
    ("JOIN sessions s ON s.tenant = p.tenant_id", TEXT_VALUE),
    ("JOIN audit ON audit.tenant_id = p.tenant_id", TEXT_VALUE),
    ("WHERE tenant_id LIKE $1", PATTERN),
    ("WHERE tenant_id NOT LIKE $1", PATTERN),
    ("WHERE tenant_id ILIKE $1", PATTERN),
    ("WHERE $1 LIKE p.tenant_id", PATTERN),
    ("WHERE tenant_id SIMILAR TO $1", PATTERN),
    ("WHERE tenant_id NOT SIMILAR TO $1", PATTERN),
    ("WHERE tenant_id ~ $1", PATTERN),
    ("WHERE tenant_id !~* $1", PATTERN),
    ("WHERE tenant_id ^@ $1", PATTERN),
    ("WHERE tenant_id || $1 = $2", CONCATENATION),
    ("WHERE $1 || p.tenant_id = $2", CONCATENATION),
    ("WHERE lower(tenant_id) = $1", FUNCTION),
    ("WHERE pg_catalog.upper(p.tenant_id) = $1", FUNCTION),
    ("WHERE substring(tenant_id from 1 for 3) = $1", FUNCTION),
    ("WHERE btrim((tenant_id)) = $1", FUNCTION),
    ("WHERE position($1 in tenant_id) > 0", FUNCTION),
    ("WHERE length(tenant_id) = 36", FUNCTION),
    ("WHERE coalesce(tenant_id, $1) = $2", FUNCTION),
    ("WHERE nullif(tenant_id, '') IS NULL", FUNCTION),
    ("WHERE tenant_id = 'acme'", LITERAL),
    ("WHERE tenant_id <> ''", LITERAL),
    (f"WHERE tenant_id IN ('{UUID}', 'acme')", LITERAL),
]
NOT_USED = [
    "WHERE tenant_id = $1",
    "WHERE p.tenant_id = $1 AND email LIKE $2",
    "WHERE email = $1::text OR tenant_id = $2",
    "WHERE tenant_id = $1::uuid",
    "WHERE tenant_id = ANY ($1::uuid[])",
    "WHERE tenant_id::uuid = $1",
    "WHERE tenant_id = ($1::jsonb ->> $2)::uuid",
    "WHERE tenant_id = current_setting($1)::uuid",
    "WHERE tenant_id = CAST($1 AS uuid)",
    "WHERE tenant_id IS NULL AND lower(email) = $1",
    "WHERE tenant_id IS NOT NULL",
    f"WHERE tenant_id = '{UUID}'",
    f"WHERE tenant_id = '{{{UUID.upper()}}}'",
    f"WHERE tenant_id IN ('{UUID}')",
    "JOIN tenants t ON t.id = p.tenant_id WHERE t.name LIKE $1",
    "JOIN user_roles ur ON ur.tenant_id::text LIKE $1",
    "JOIN user_roles AS ur ON ur.user_id = p.id WHERE lower(ur.tenant_id) = $1",
    "WHERE EXISTS (SELECT * FROM user_roles)",
    "WHERE p.id IN (SELECT user_id FROM user_roles ur WHERE ur.tenant_id = $1::text)",
    "/* tenant_id LIKE 'x' */ WHERE tenant_id = $1 -- || tenant_id",
]


@pytest.mark.parametrize(("where", "kind"), USED)
def test_each_use_as_text_is_found_and_named(where: str, kind: str) -> None:
    assert statement_kinds(f"SELECT p.id FROM public.profiles AS p {where}", COLUMN, ELSEWHERE) == (kind,)


@pytest.mark.parametrize("where", NOT_USED)
def test_what_works_with_either_type_is_left_alone(where: str) -> None:
    assert statement_kinds(f"SELECT p.id, count(*) FROM profiles p {where}", COLUMN, ELSEWHERE) == ()


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM profiles",
        "SELECT p.* FROM profiles AS p JOIN user_roles ur ON ur.user_id = p.id",
        "SELECT DISTINCT * FROM public.profiles",
        "SELECT DISTINCT ON (id) * FROM profiles",
        "SELECT 1, * FROM profiles",
        "INSERT INTO profiles (email) VALUES ($1) RETURNING *",
        "TABLE profiles",
    ],
)
def test_every_column_in_a_result_is_found(query: str) -> None:
    assert statement_kinds(query, COLUMN) == (EVERY_COLUMN,)
    # Whatever the column was before.
    assert statement_kinds(query, dataclasses.replace(COLUMN, text=False)) == (EVERY_COLUMN,)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 2 * id FROM profiles",
        "SELECT count(*) FROM profiles",
        "SELECT ur.* FROM profiles p JOIN user_roles ur ON ur.user_id = p.id",
        "SELECT id FROM audit.profiles WHERE tenant_id LIKE $1",
        "SELECT * FROM user_roles WHERE tenant_id = $1::text",
        "CREATE INDEX ON profiles (lower(tenant_id))",
        "COPY public.profiles (id, tenant_id) TO stdout",
        # Ours: a check of the plan, and a part of change_type.
        "SELECT * FROM (SELECT id FROM profiles) AS surefoot_check LIMIT $1",
        "UPDATE profiles SET surefoot_new_tenant_id = lower(tenant_id)",
        "DO $surefoot$ BEGIN PERFORM surefoot_new_x FROM profiles WHERE tenant_id LIKE 'x'; END $surefoot$",
    ],
)
def test_other_tables_other_statements_and_our_own_are_left_alone(query: str) -> None:
    assert statement_kinds(query, COLUMN) == ()


def test_a_name_from_a_common_table_expression_is_still_the_column() -> None:
    query = "WITH x AS (SELECT tenant_id FROM profiles) SELECT x.tenant_id LIKE $1 FROM x"
    assert statement_kinds(query, COLUMN) == (PATTERN,)


def test_the_sql_inside_a_text_is_read() -> None:
    assert statement_kinds("DO $$ BEGIN PERFORM FROM profiles WHERE tenant_id LIKE 'x'; END $$", COLUMN) == (PATTERN,)
    source = "BEGIN EXECUTE format('SELECT id FROM profiles WHERE lower(tenant_id) = %L', x); END"
    assert function_kinds(source, COLUMN) == (FUNCTION,)


def test_a_column_of_another_type_is_no_text_to_begin_with() -> None:
    number = Column("public", "profiles", "tenant_id", "bigint", text=False)
    assert statement_kinds("SELECT id FROM profiles WHERE tenant_id::text LIKE $1", number) == ()


def test_functions_are_judged_by_source_signature_and_what_runs_them() -> None:
    plain = "BEGIN RETURN (SELECT count(*) FROM profiles WHERE tenant_id = $1); END"
    assert function_kinds(plain, COLUMN) == ()
    assert function_kinds(plain, COLUMN, has_text=True) == (SIGNATURE,)
    assert function_kinds(plain.replace("BEGIN", "DECLARE t text; BEGIN"), COLUMN) == (SIGNATURE,)
    assert function_kinds("SELECT * FROM profiles", COLUMN, "sql", has_text=True) == (SIGNATURE,)
    assert function_kinds("SELECT * FROM profiles", COLUMN, "sql") == ()
    assert function_kinds("plpy.execute('select tenant_id from profiles')", COLUMN, "plpython3u") == (UNREAD,)
    # A trigger's function need not name its table.
    trigger = "BEGIN IF NEW.tenant_id LIKE 'x%' THEN RETURN NULL; END IF; RETURN NEW; END"
    assert function_kinds(trigger, COLUMN) == ()
    assert function_kinds(trigger, COLUMN, of_table=True) == (PATTERN,)
    assert function_kinds("BEGIN RETURN NEW; END", COLUMN, of_table=True, has_text=True) == ()


def test_nothing_of_a_literal_is_kept() -> None:
    query = "SELECT E'geheim\\n',  $$secret$$, 4711\n -- private\n FROM t WHERE x.y::text='it''s' AND z=$1"
    assert (
        without_literals("DO $x$BEGIN PERFORM f($$a$$, 'b', 3); END$x$")
        == "DO $$BEGIN PERFORM f('...', '...', ?); END$$"
    )
    assert without_literals(query) == "SELECT '...', '...', ? FROM t WHERE x.y::text='...' AND z=$1"


# --- as evidence


def typed(statements: t.Sequence[t.Any] = (), functions: t.Sequence[t.Any] = (), **changes: t.Any) -> Finding:
    facts = copy.deepcopy(FACTS)
    entry = {"column": COLUMN, "statements": list(statements), "functions": list(functions)}
    facts["typed_users"].update({"columns": [entry], **changes})
    return next(item for item in judge(facts, Wanted()) if item.criterion == "preflight.typed_users")


HARMLESS = ("1", "SELECT id FROM profiles WHERE tenant_id = $1", 7)


def test_without_a_change_of_type_nothing_is_asked() -> None:
    finding = next(item for item in judge(FACTS, Wanted()) if item.criterion == "preflight.typed_users")
    assert finding.verdict == "not_applicable"


def test_a_pass_needs_a_statement_of_the_table_that_was_seen() -> None:
    found = typed([HARMLESS])
    assert (found.verdict, found.measured["statements"]) == ("pass", 1)
    silent = typed([("1", "SELECT 1 FROM user_roles", 7)], since="2026-11-22T00:00:00+00:00")
    assert silent.verdict == "not_measured" and silent.measured.startswith(silent.summary)
    assert "no statement that uses the column of public.profiles since 2026-11-22" in silent.summary
    # What the rehearsal, the dump and the checks of the plan read are no clients.
    for ours in (
        "SELECT * FROM profiles AS surefoot_check",
        "COPY public.profiles (id, tenant_id, email) TO stdout",
        "SELECT count(*) FROM ONLY public.profiles",
    ):
        assert typed([("1", ours, 1)]).verdict == "not_measured", ours
    # One of a client would be.
    assert typed([("1", "COPY (SELECT id FROM profiles WHERE tenant_id LIKE 'x') TO stdout", 1)]).verdict == "fail"


@pytest.mark.parametrize("text", [None, "<insufficient privilege>"])
def test_a_statement_without_a_text_is_not_passed_over(text: str | None) -> None:
    found = typed([HARMLESS, ("2", text, 1)])
    assert found.verdict == "not_measured" and "1 statements without a text" in found.summary


def test_what_cannot_be_read_is_not_measured_and_says_what_to_do() -> None:
    found = typed(reason="extension pg_stat_statements is not installed in this database")
    assert found.verdict == "not_measured"
    assert "CREATE EXTENSION pg_stat_statements" in found.measured and "waive preflight.typed_users" in found.remedy
    # What is seen fails even so.
    function = ("f(text)", "sql", "SELECT id FROM profiles WHERE tenant_id LIKE $1", False, True)
    assert typed(functions=[function], reason="...").verdict == "fail"


def test_a_failure_names_function_and_statement_without_its_literals() -> None:
    function = ("f(text)", "sql", "SELECT id FROM profiles WHERE tenant_id = 'geheim'", False, True)
    statement = ("42", "SELECT id FROM profiles WHERE tenant_id LIKE 'geheim%'", 9)
    found = typed([statement, HARMLESS], [function])
    assert found.verdict == "fail"
    assert [user["name"] for user in found.measured["found"]] == ["f(text)", "42"]
    assert found.measured["found"][1] == {
        "column": "public.profiles.tenant_id",
        "name": "42",
        "kinds": (PATTERN,),
        "statement": "SELECT id FROM profiles WHERE tenant_id LIKE '...'",
        "calls": 9,
    }
    assert set(found.details["kinds"]) == {LITERAL, SIGNATURE, PATTERN}
    assert "geheim" not in repr(found) and "reconnect" in found.remedy
