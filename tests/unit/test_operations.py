# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Declared operations: the SQL they stand for, their way back, and mistakes in them.

The texts here are what ledgers hold: another text makes applied migrations look changed. Change one on purpose only.
"""

from __future__ import annotations

import pathlib
import re
import typing as t

import pytest
import yaml

from ansible_collections.surefoot.dbops.plugins.module_utils import _change_type, _operations, _plan
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import PlanError
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import Migration, load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._selection import inspect_step, raw_digest, read_step
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import SqlStep


def migration(directory: pathlib.Path, *steps: t.Any, **fields: t.Any) -> Migration:
    """The one migration of a plan with these steps."""
    plan = {"name": "set", "migrations": [{"id": "001", "steps": list(steps), **fields}]}
    (directory / "plan.yml").write_text(yaml.safe_dump(plan, sort_keys=False), encoding="utf-8")
    return load_plan(str(directory)).migrations[0]


def texts(steps: t.Iterable[t.Any] | None) -> list[tuple[bool, str]]:
    return [(step.transaction, step.text) for step in steps or () if isinstance(step, SqlStep)]


INDEX = {"create_index": {"table": "app.t", "name": "ix", "columns": ["a", "b DESC NULLS LAST"]}}
FOREIGN_KEY = {
    "add_foreign_key": {
        "table": "app.t",
        "name": "fk",
        "columns": "parent_id",
        "references": {"table": "app.parents", "columns": ["id"]},
        "on_delete": "cascade",
        "deferrable": True,
        "initially": "deferred",
    }
}
NOT_NULL = {"set_not_null": {"table": "app.t", "column": "a"}}


def test_create_index(tmp_path: pathlib.Path) -> None:
    found = migration(tmp_path, INDEX)
    assert texts(found.steps) == [
        (False, 'CREATE INDEX CONCURRENTLY "ix" ON "app"."t" USING btree ("a", "b" DESC NULLS LAST);\n')
    ]
    assert texts(found.rollback) == [(False, 'DROP INDEX CONCURRENTLY IF EXISTS "app"."ix";\n')]
    assert [check.name for check in found.verify] == ["index ix is valid and as declared"]
    assert found.verify[0].when == "before_commit"


def test_create_index_with_everything(tmp_path: pathlib.Path) -> None:
    step = {
        "create_index": {
            "table": '"Odd Schema"."Odd""Table"',
            "name": '"Odd Index"',
            "expression": "lower(email)",
            "unique": True,
            "method": "btree",
            "where": "deleted_at IS NULL",
            "include": ["id", '"Order No"'],
        }
    }
    found = migration(tmp_path, step)
    assert texts(found.steps) == [
        (
            False,
            'CREATE UNIQUE INDEX CONCURRENTLY "Odd Index" ON "Odd Schema"."Odd""Table" USING btree ((lower(email)))'
            ' INCLUDE ("id", "Order No") WHERE (deleted_at IS NULL);\n',
        )
    ]
    assert texts(found.rollback) == [(False, 'DROP INDEX CONCURRENTLY IF EXISTS "Odd Schema"."Odd Index";\n')]


def test_add_foreign_key(tmp_path: pathlib.Path) -> None:
    found = migration(tmp_path, FOREIGN_KEY)
    assert texts(found.steps) == [
        (
            True,
            'ALTER TABLE "app"."t" ADD CONSTRAINT "fk" FOREIGN KEY ("parent_id") REFERENCES "app"."parents" ("id")'
            " ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED NOT VALID;\n",
        ),
        (False, 'ALTER TABLE "app"."t" VALIDATE CONSTRAINT "fk";\n'),
    ]
    assert texts(found.rollback) == [(True, 'ALTER TABLE IF EXISTS "app"."t" DROP CONSTRAINT IF EXISTS "fk";\n')]
    assert [step.name for step in found.steps] == ["add_foreign_key app.t.fk", "add_foreign_key app.t.fk: validate"]


def test_set_not_null(tmp_path: pathlib.Path) -> None:
    found = migration(tmp_path, NOT_NULL)
    (first, add), (outside, validate), (last, swap) = texts(found.steps)
    assert (first, outside, last) == (True, False, True)
    assert add.startswith("DO $surefoot$\n") and "app.t.a is NOT NULL already" in add
    assert add.endswith(
        'ALTER TABLE "app"."t" ADD CONSTRAINT "surefoot_not_null_a" CHECK ("a" IS NOT NULL) NOT VALID;\n'
    )
    assert validate == 'ALTER TABLE "app"."t" VALIDATE CONSTRAINT "surefoot_not_null_a";\n'
    assert swap == (
        'ALTER TABLE "app"."t" ALTER COLUMN "a" SET NOT NULL;\n'
        'ALTER TABLE "app"."t" DROP CONSTRAINT "surefoot_not_null_a";\n'
    )
    assert texts(found.rollback) == [
        (
            True,
            'ALTER TABLE IF EXISTS "app"."t" DROP CONSTRAINT IF EXISTS "surefoot_not_null_a",'
            ' ALTER COLUMN "a" DROP NOT NULL;\n',
        )
    ]


CHANGE = {
    "change_type": {
        "table": "app.t",
        "column": "tenant_id",
        "to": "uuid",
        "key": "id",
        "default": "gen_random_uuid()",
        "not_null": True,
        "indexes": [{"name": "t_tenant", "columns": ["tenant_id DESC", "id"]}],
        "references": {"name": "t_tenant_fk", "table": "app.tenants", "columns": "id", "on_delete": "cascade"},
        "on_invalid": "quarantine",
        "dependents": [{"table": "app.u", "columns": "t", "references": "id"}],
    }
}
CONTRACT = {"contract_type": {"table": "app.t", "column": "tenant_id"}}


def test_change_type_in_parts(tmp_path: pathlib.Path) -> None:
    found = migration(tmp_path, CHANGE)
    assert [step.name.removeprefix("change_type app.t.tenant_id: ") for step in found.steps] == [
        "prepare", "backfill", "index t_tenant", "sweep", "close", "sweep again", "validate", "compare", "swap",
    ]  # fmt: skip
    assert [(step.name.rpartition(": ")[2], step.undoes) for step in found.rollback or ()] == [
        ("undo", (0,)),
        ("restore", (3, 5)),
    ]
    built = found.steps[2]
    assert isinstance(built, SqlStep) and built.text == (
        'CREATE INDEX CONCURRENTLY "surefoot_new_t_tenant" ON "app"."t" USING btree'
        ' ("surefoot_new_tenant_id" DESC, "id");\n'
    )
    aborts = {"change_type": {key: value for key, value in CHANGE["change_type"].items() if key != "dependents"}}
    aborts["change_type"]["on_invalid"] = "abort"
    found = migration(tmp_path, aborts)
    assert found.steps[0].name == "change_type app.t.tenant_id: look"
    assert [step.undoes for step in found.rollback or ()] == [(1,)]


def test_contract_type_has_no_way_back(tmp_path: pathlib.Path) -> None:
    assert migration(tmp_path, CONTRACT).rollback is None


def test_texts_of_long_operations_stay_as_they_are(tmp_path: pathlib.Path) -> None:
    """Another digest: every applied migration with this operation will look changed. Say so in the changelog."""
    assert raw_digest(migration(tmp_path, CHANGE).steps)[:16] == "a668b084dca67a36"
    assert raw_digest(migration(tmp_path, CONTRACT).steps)[:16] == "c21ad79944978e66"


def test_every_text_is_sql_the_runner_takes(tmp_path: pathlib.Path) -> None:
    found = migration(tmp_path, INDEX, FOREIGN_KEY, NOT_NULL, CHANGE)
    for step in (*found.steps, *(found.rollback or ())):
        if not isinstance(step, SqlStep):
            continue
        script = inspect_step(step)
        assert script.statement_count >= 1 and not script.variables
        assert read_step(step) == (step.text or "").encode()


def test_way_back_is_the_steps_in_reverse_and_knows_what_it_undoes(tmp_path: pathlib.Path) -> None:
    found = migration(tmp_path, INDEX, FOREIGN_KEY, NOT_NULL)
    assert [step.name for step in found.rollback or ()] == [
        "set_not_null app.t.a: undo",
        "add_foreign_key app.t.fk: undo",
        "create_index app.t.ix: undo",
    ]
    assert [step.undoes for step in found.rollback or ()] == [(3, 4, 5), (1, 2), (0,)]


def test_hash_follows_the_declaration_only(tmp_path: pathlib.Path) -> None:
    one = migration(tmp_path, INDEX)
    again = migration(tmp_path, {"name": "other words", **INDEX}, summary="moved")
    assert raw_digest(one.steps) == raw_digest(again.steps)
    changed = {"create_index": {**INDEX["create_index"], "unique": True}}
    assert raw_digest(migration(tmp_path, changed).steps) != raw_digest(one.steps)


def test_migration_with_an_sql_step_has_no_way_back_by_itself(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.sql").write_text("SELECT 1;")
    assert migration(tmp_path, {"sql": "a.sql"}, INDEX).rollback is None


def test_steps_bring_their_own_rollback(tmp_path: pathlib.Path) -> None:
    for name in ("a.sql", "b.sql", "c.sql"):
        (tmp_path / name).write_text("SELECT 1;")
    fill = {"backfill": {"table": "app.t", "key": "id", "set": {"a": "1"}}, "rollback": []}
    found = migration(tmp_path, {"sql": "a.sql", "rollback": ["b.sql", "c.sql"]}, fill, INDEX)
    assert [(step.name, step.undoes) for step in found.rollback or ()] == [
        ("create_index app.t.ix: undo", (2,)),
        ("b.sql", (0,)),
        ("c.sql", (0,)),
    ]


def test_rollback_of_the_migration_replaces_the_automatic_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "back.sql").write_text("SELECT 1;")
    found = migration(tmp_path, INDEX, rollback="back.sql")
    assert [(step.name, step.undoes) for step in found.rollback or ()] == [("back.sql", None)]


def test_names_are_cut_with_a_digest() -> None:
    assert _operations.short("surefoot_x_", "a") == "surefoot_x_a"
    long = "surefoot_x_", "ä" * 40
    assert len(_operations.short(*long).encode()) <= 63
    assert _operations.short(*long) != _operations.short(long[0], long[1] + "b")


def test_literals_survive_any_text() -> None:
    assert _operations.literal("it's") == "'it''s'"
    assert _operations.literal("a\\b'") == "E'a\\\\b'''"


HEAD = "name: set\nmigrations:\n  - id: x\n    steps:\n"

MISTAKES = {
    "no table": ("      - create_index: {name: ix, columns: a}\n", "5:23", "create_index has no table"),
    "no name": ("      - create_index: {table: a.b, columns: a}\n", "5:23", "an index has no name"),
    "unqualified": ("      - create_index: {table: b, name: ix, columns: a}\n", "5:31", "not a schema-qualified name"),
    "schema in the name": (
        "      - create_index: {table: a.b, name: a.ix, columns: a}\n",
        "5:42",
        "'a.ix' is not the name of an index",
    ),
    "long name": (f"      - create_index: {{table: a.b, name: {'x' * 64}, columns: a}}\n", "5:42", "longer than 63"),
    "both": (
        "      - create_index: {table: a.b, name: ix, columns: a, expression: lower(a)}\n",
        "5:23",
        "both columns and expression",
    ),
    "neither": ("      - create_index: {table: a.b, name: ix}\n", "5:23", "neither columns nor expression"),
    "column twice": ("      - create_index: {table: a.b, name: ix, columns: [a, A desc]}\n", "5:59", "has a twice"),
    "bad column": (
        "      - create_index: {table: a.b, name: ix, columns: [lower(a)]}\n",
        "5:56",
        "'lower(a)' is not the name of a column",
    ),
    "two statements": (
        '      - create_index: {table: a.b, name: ix, expression: "a); DROP TABLE b; --"}\n',
        "5:59",
        "expression is not one expression",
    ),
    "open parenthesis": (
        "      - create_index: {table: a.b, name: ix, columns: a, where: (a}\n",
        "5:65",
        "where: parenthesis is never closed",
    ),
    "closed too early": (
        "      - create_index: {table: a.b, name: ix, columns: a, where: a) or (b}\n",
        "5:65",
        "where is not one expression",
    ),
    "open quote": (
        '      - create_index: {table: a.b, name: ix, columns: a, where: "b = \'x"}\n',
        "5:66",
        "where: ",
    ),
    "variable": (
        "      - create_index: {table: a.b, name: ix, columns: a, where: \"b = :'x'\"}\n",
        "5:66",
        "where uses the variable x",
    ),
    "method": (
        "      - create_index: {table: a.b, name: ix, columns: a, method: B-Tree}\n",
        "5:66",
        "not an index method",
    ),
    "unknown key": ("      - create_index: {table: a.b, name: ix, colums: a}\n", "5:46", "Did you mean columns"),
    "unknown kind": ("      - create_indx: {table: a.b}\n", "5:9", "Did you mean create_index"),
    "two kinds": (
        "      - create_index: {table: a.b, name: ix, columns: a}\n        set_not_null: {table: a.b, column: a}\n",
        "5:9",
        "a step has create_index and set_not_null",
    ),
    "transaction": (
        "      - create_index: {table: a.b, name: ix, columns: a}\n        transaction: false\n",
        "6:22",
        "a create_index step has the key transaction",
    ),
    "rollback": (
        "      - set_not_null: {table: a.b, column: a}\n        rollback: back.sql\n",
        "6:19",
        "a set_not_null step has a rollback",
    ),
    "twice": (
        "      - set_not_null: {table: a.b, column: a}\n      - set_not_null: {table: a.b, column: a}\n",
        "6:9",
        "two steps named set_not_null a.b.a",
    ),
    "key without references": (
        "      - add_foreign_key: {table: a.b, name: fk, columns: a}\n",
        "5:26",
        "add_foreign_key has no references",
    ),
    "different number": (
        "      - add_foreign_key: {table: a.b, name: fk, columns: a, references: {table: a.c, columns: [x, y]}}\n",
        "5:73",
        "fk has 1 columns and refers to 2",
    ),
    "not deferrable": (
        "      - add_foreign_key: {table: a.b, name: fk, columns: a, initially: deferred,"
        " references: {table: a.c, columns: x}}\n",
        "5:72",
        "not deferrable",
    ),
    "action": (
        "      - add_foreign_key: {table: a.b, name: fk, columns: a, on_delete: cascad,"
        " references: {table: a.c, columns: x}}\n",
        "5:72",
        "Did you mean cascade",
    ),
    "no key": ("      - change_type: {table: a.b, column: c, to: uuid}\n", "5:22", "change_type has no key"),
    "own key": ("      - change_type: {table: a.b, column: c, to: uuid, key: [c]}\n", "5:61", "c is its own key"),
    "type": (
        '      - change_type: {table: a.b, column: c, to: "uuid; DROP", key: id}\n',
        "5:51",
        "to is not one expression",
    ),
    "body": (
        '      - change_type: {table: a.b, column: c, to: uuid, key: id, using: "$surefoot_body$ $surefoot_body$"}\n',
        "5:73",
        "using contains $surefoot",
    ),
    "other index": (
        "      - change_type: {table: a.b, column: c, to: uuid, key: id, indexes: [{name: ix, columns: d}]}\n",
        "5:75",
        "index ix is not on c",
    ),
    "dependents without a move": (
        "      - change_type: {table: a.b, column: c, to: uuid, key: id, dependents: []}\n",
        "5:77",
        "dependents, and no row is moved",
    ),
    "policy": (
        "      - change_type: {table: a.b, column: c, to: uuid, key: id, on_invalid: quarantain}\n",
        "5:77",
        "Did you mean quarantine",
    ),
    "two ways back": (
        "      - {sql: a.sql, rollback: back.sql}\n    rollback: back.sql\n",
        "5:32",
        "has a rollback, and so has a step",
    ),
    "half a way back": (
        "      - {sql: a.sql, rollback: back.sql}\n      - b.sql\n",
        "6:9",
        "step b.sql of migration x has no rollback",
    ),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistake_is_one_line_with_its_place(what: str, tmp_path: pathlib.Path) -> None:
    body, place, message = MISTAKES[what]
    for name in ("a.sql", "b.sql", "back.sql"):
        (tmp_path / name).write_text("SELECT 1;")
    path = tmp_path / "plan.yml"
    path.write_text(HEAD + body, encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(str(path))
    text = str(caught.value)
    assert message in text and f"{path}:{place}" in text and "\n" not in text, text


KEYS = {
    "create_index": _operations.INDEX_KEYS,
    "add_foreign_key": _operations.FOREIGN_KEY_KEYS,
    "set_not_null": _operations.NOT_NULL_KEYS,
    "change_type": _change_type.CHANGE_KEYS,
    "contract_type": _change_type.CONTRACT_KEYS,
}


@pytest.mark.parametrize("kind", _plan.OPERATIONS)
def test_the_documentation_has_every_key(kind: str) -> None:
    page = (pathlib.Path(_operations.__file__).resolve().parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    table = page.split(f"| key of `{kind}` |", 1)[1].split("\n\n", 1)[0]
    names = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert names == list(KEYS[kind])


def test_what_is_refused_is_looked_for_before_anything_is_changed(tmp_path: pathlib.Path) -> None:
    """And not before what may change the rows; the way back knows the steps by their new places."""

    def key(name: str) -> dict[str, t.Any]:
        references = {"table": "public.p", "columns": "id"}
        options = {"columns": "p", "references": references, "on_invalid": "abort", "key": "id"}
        return {"add_foreign_key": {"table": "public.t", "name": name, **options}}

    steps = [
        {"sql": "a.sql", "rollback": []},
        {"create_index": {"table": "public.t", "name": "t_p", "columns": "p"}},
        key("one"),
        key("two"),
    ]
    (tmp_path / "a.sql").write_text("SELECT 1;\n", encoding="utf-8")
    found = migration(tmp_path, *steps)
    assert [step.name for step in found.steps] == [
        "a.sql",
        "add_foreign_key public.t.one: look",
        "add_foreign_key public.t.two: look",
        "create_index public.t.t_p",
        "add_foreign_key public.t.one",
        "add_foreign_key public.t.one: validate",
        "add_foreign_key public.t.two",
        "add_foreign_key public.t.two: validate",
    ]
    assert [(step.name, step.undoes) for step in found.rollback or ()] == [
        ("add_foreign_key public.t.two: undo", (6,)),
        ("add_foreign_key public.t.one: undo", (4,)),
        ("create_index public.t.t_p: undo", (3,)),
    ]
