# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans: what is read, and what is refused with file, line and column."""

from __future__ import annotations

import math
import os
import pathlib
import re
import textwrap

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils import _plan
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Location, PlanError, SqlTextError
from ansible_collections.surefoot.dbops.plugins.module_utils._plan import BackfillStep, Plan, SqlStep, load_plan
from ansible_collections.surefoot.dbops.plugins.module_utils._steps import Throttle

SQL_FILES = ("a.sql", "b.sql", "c.sql", "a_back.sql", "b_back.sql", "check.sql")


def write_plan(directory: pathlib.Path, text: str, name: str = "plan.yml") -> str:
    for file in SQL_FILES:
        (directory / file).write_text("SELECT 1;\n", encoding="utf-8")
    path = directory / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return str(path)


def touch(directory: pathlib.Path, *names: str, text: str = "SELECT 1;\n") -> str:
    for name in names:
        (directory / name).write_text(text, encoding="utf-8")
    return str(directory)


FULL = """\
name: platform
out_of_order: allow
transaction: per_migration
defaults:
  lock_timeout: 250ms
  retry: {attempts: 3}
variables:
  org: lancio
  limit: 10
  region:
secret_variables: [api_token, key]
drift_ignore: ["platform.metrics_*"]
migrations:
  - id: 001_create
    summary: The first
    risk: {level: low, probability: MEDIUM, impact: high, mitigation: tested on staging, owner: database team}
    expected: 2s
    deploy: a.sql
    rollback: a_back.sql
    rollback_loses: [platform.databases, '"Odd Schema"."Odd.Table"']
    lock_tables: [platform.projects]
    session_settings: {app.encryption_key: key}
    verify:
      - name: eight indexes
        query: SELECT indexname FROM pg_indexes WHERE tablename = 'databases'
        expect: {rows: 8}
      - check.sql
  - id: 002_fill
    risk: critical
    requires: 001_create
    manual: needs a quiet hour
    lock_timeout: 1s
    statement_timeout: 2m
    retry: {deadline: 10m}
    steps:
      - sql: b.sql
      - name: index
        sql: c.sql
        transaction: false
      - name: fill
        backfill:
          table: platform.projects
          key: [id]
          set: {slug: "lower(name)", '"Odd"': "1"}
          where: slug IS NULL
          batch: 500
          pause: 50ms
          max_lag: 5s
          max_wal_rate: 500MB/min
          max_waiters: 3
          max_connections_used: none
"""


def test_every_key_of_a_plan_is_read(tmp_path: pathlib.Path) -> None:
    plan = load_plan(write_plan(tmp_path, FULL))

    assert (plan.name, plan.out_of_order, plan.transaction) == ("platform", "allow", "per_migration")
    assert plan.directory == str(tmp_path)
    assert plan.variables == {"org": "lancio", "limit": 10, "region": None}
    assert plan.secret_variables == ("api_token", "key")
    assert plan.drift_ignore == ("platform.metrics_*",)
    first, second = plan.migrations
    assert (first.id, first.index, first.summary, first.expected) == ("001_create", 0, "The first", 2.0)
    assert first.risk == _plan.Risk("low", "medium", "high", "tested on staging", "database team")
    assert first.limits == _plan.Limits(0.25, 30.0, _plan.RetryPolicy(3, 10.0, 300.0))
    assert first.steps[0].name == "a.sql"
    assert isinstance(first.steps[0], SqlStep) and first.steps[0].path == str(tmp_path / "a.sql")
    assert first.rollback is not None and first.rollback[0].file == "a_back.sql"
    assert first.rollback_loses == ("platform.databases", '"Odd Schema"."Odd.Table"')
    assert _plan.split_qualified(first.rollback_loses[1]) == ("Odd Schema", "Odd.Table")
    assert first.lock_tables == ("platform.projects",)
    assert first.session_settings == {"app.encryption_key": "key"}
    assert [check.kind for check in first.verify] == ["query", "file"]
    assert first.location == Location(str(tmp_path / "plan.yml"), 14, 9)
    assert second.risk is not None and second.risk.level == "critical"
    assert second.requires == ("001_create",)
    assert second.manual == "needs a quiet hour"
    assert second.limits == _plan.Limits(1.0, 120.0, _plan.RetryPolicy(3, 10.0, 600.0))
    assert second.rollback is None
    sql, index, fill = second.steps
    assert (sql.transaction, index.transaction, fill.transaction) == (True, False, False)
    assert isinstance(fill, BackfillStep)
    assert fill.set == {"slug": "lower(name)", "Odd": "1"}
    assert (fill.relation, fill.key, fill.where) == (("platform", "projects"), ("id",), "slug IS NULL")
    assert (fill.batch, fill.throttle) == (500, Throttle(0.05, 5.0, 500 * 2**20, 3, math.inf))


def test_defaults_are_those_of_the_documentation(tmp_path: pathlib.Path) -> None:
    plan = load_plan(write_plan(tmp_path, "migrations:\n  - {id: x, deploy: [a.sql, b.sql]}\n"))

    assert (plan.name, plan.out_of_order, plan.transaction) == (tmp_path.name, "error", "per_migration")
    assert plan.migrations[0].limits == _plan.Limits(0.5, 30.0, _plan.RetryPolicy(30, 10.0, 300.0))
    assert [step.name for step in plan.migrations[0].steps] == ["a.sql", "b.sql"]
    assert plan.migrations[0].manual is None


def test_a_directory_and_the_plan_file_in_it_are_the_same_plan(tmp_path: pathlib.Path) -> None:
    write_plan(tmp_path, FULL)

    assert load_plan(str(tmp_path)).migrations == load_plan(str(tmp_path / "plan.yml")).migrations


def test_the_digest_changes_with_the_text(tmp_path: pathlib.Path) -> None:
    before = load_plan(write_plan(tmp_path, FULL)).digest()
    after = load_plan(write_plan(tmp_path, FULL + "# more\n")).digest()

    assert len(before) == 64
    assert before != after


def test_an_id_that_looks_like_a_number_stays_the_text_that_was_written(tmp_path: pathlib.Path) -> None:
    text = "migrations:\n  - {id: 006, deploy: a.sql}\n  - {id: 007, requires: [006], deploy: b.sql}\n"
    plan = load_plan(write_plan(tmp_path, text))

    assert [migration.id for migration in plan.migrations] == ["006", "007"]
    assert plan.migrations[1].requires == ("006",)


def test_anchors_and_merges_work_and_own_keys_win(tmp_path: pathlib.Path) -> None:
    text = """\
    migrations:
      - &base {id: x, deploy: a.sql, lock_timeout: 1s, expected: 3s}
      - {<<: *base, id: y, deploy: b.sql, lock_timeout: 2s}
    """
    plan = load_plan(write_plan(tmp_path, text))

    assert plan.migrations[1].expected == 3.0
    assert plan.migrations[1].limits.lock_timeout == 2.0


def test_transaction_of_the_migration_holds_for_its_rollback_unless_a_step_says_otherwise(
    tmp_path: pathlib.Path,
) -> None:
    text = """\
    migrations:
      - id: x
        transaction: false
        deploy: a.sql
        rollback: [a_back.sql, {sql: b_back.sql, transaction: true}]
    """
    migration = load_plan(write_plan(tmp_path, text)).migrations[0]

    assert migration.steps[0].transaction is False
    assert migration.rollback is not None
    assert [step.transaction for step in migration.rollback] == [False, True]


def test_a_sql_file_that_the_plan_forgot_is_a_warning(tmp_path: pathlib.Path) -> None:
    plan = load_plan(write_plan(tmp_path, "migrations:\n  - {id: x, deploy: a.sql, rollback: a_back.sql}\n"))

    assert len(plan.warnings) == 1
    assert "b.sql, b_back.sql, c.sql, check.sql" in plan.warnings[0]


def test_files_in_folders_below_the_plan_are_found(tmp_path: pathlib.Path) -> None:
    (tmp_path / "sql").mkdir()
    touch(tmp_path / "sql", "one.sql")
    plan = load_plan(write_plan(tmp_path, "migrations:\n  - {id: x, deploy: sql/one.sql}\n"))

    step = plan.migrations[0].steps[0]
    assert isinstance(step, SqlStep)
    assert step.path == str(tmp_path / "sql" / "one.sql")


def test_a_link_to_a_file_of_the_same_directory_is_a_file(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "real.sql")
    (tmp_path / "link.sql").symlink_to("real.sql")

    assert load_plan(write_plan(tmp_path, "migrations:\n  - {id: x, deploy: link.sql}\n")).migrations[0].id == "x"


def test_an_unknown_migration_is_refused_with_the_nearest_id(tmp_path: pathlib.Path) -> None:
    plan = load_plan(write_plan(tmp_path, FULL))

    assert plan.migration("002_fill").index == 1
    with pytest.raises(PlanError, match=r"has no migration '002_fil' .*Did you mean 002_fill\?"):
        plan.migration("002_fil")
    with pytest.raises(PlanError, match=r"Did you mean 001_create\?"):
        plan.migration("001")


def test_values_are_defaults_overridden_by_what_is_given(tmp_path: pathlib.Path) -> None:
    plan = load_plan(write_plan(tmp_path, FULL))
    secrets = {"api_token": "tttt", "key": "kkkk"}

    values, secret_values = plan.values({"region": "eu", "limit": 5, "extra": 1}, secrets)

    assert values == {"org": "lancio", "limit": 5, "region": "eu", "extra": 1}
    assert secret_values == secrets
    with pytest.raises(PlanError, match="no value for variable region"):
        plan.values({}, secrets)
    with pytest.raises(PlanError, match="no value for secret variable key"):
        plan.values({"region": "eu"}, {"api_token": "tttt"})
    with pytest.raises(PlanError, match="variable key is secret, and given as a plain one"):
        plan.values({"region": "eu", "key": "kkkk"}, {"api_token": "tttt"})
    with pytest.raises(PlanError, match="variable org is given as a secret, and declared as a plain one"):
        plan.values({"region": "eu"}, {**secrets, "org": "oooo"})
    assert plan.values({}, {}, complete=False) == ({"org": "lancio", "limit": 10}, {})


def test_the_example_of_the_documentation_is_a_plan(tmp_path: pathlib.Path) -> None:
    page = (pathlib.Path(_plan.__file__).resolve().parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n", 1)[1].split("```", 1)[0]
    first = "migrations:\n  - {id: 001_create_platform_schema, deploy: a.sql}\n"
    example = example.replace("migrations:\n", first, 1)
    touch(tmp_path, *re.findall(r"[\w-]+\.sql", example))

    plan = load_plan(write_plan(tmp_path, example))

    assert ids(plan)[1:] == ["006_add_platform_databases_table", "008_project_slugs"]
    assert [check.when for check in plan.migrations[1].verify] == ["before_commit", "after_commit"]


MIGRATION = "migrations:\n  - id: x\n    deploy: a.sql\n"

# Each: the plan's text, where the error is (line:column), and what it says.
REFUSED = {
    "empty plan": ("", "1:1", "the plan is empty"),
    "only a comment": ("# nothing\n", "1:1", "the plan is empty"),
    "not a mapping": ("- a\n- b\n", "1:1", "the plan is not a mapping"),
    "no migrations": ("name: x\n", "1:1", "the plan has no migrations"),
    "unknown plan key": (
        "name: x\nmigratons: []\n",
        "2:1",
        "unknown key migratons in the plan.*Did you mean migrations?",
    ),
    "unknown migration key": (MIGRATION + "    rolback: a_back.sql\n", "4:5", "rolback.*Did you mean rollback?"),
    "unknown defaults key": ("defaults: {lock_timout: 1s}\n" + MIGRATION, "1:12", "Did you mean lock_timeout?"),
    "unknown retry key": ("defaults: {retry: {tries: 1}}\n" + MIGRATION, "1:20", "unknown key tries in retry"),
    "unknown risk key": (MIGRATION + "    risk: {lvl: low}\n", "4:12", "unknown key lvl in risk.*Did you mean level?"),
    "duplicate key": ("name: x\nname: y\n" + MIGRATION, "2:1", "the key name twice.*line 1"),
    "duplicate nested key": (MIGRATION + "    deploy: b.sql\n", "4:5", "has the key deploy twice"),
    "two documents": (MIGRATION + "---\nname: y\n", "4:1", "YAML syntax error"),
    "tab indentation": ("migrations:\n\t- id: x\n", "2:1", "YAML syntax error"),
    "open bracket": ("name: [a\n", "2:1", "YAML syntax error"),
    "control character": ("name: x\x07\n", "1:8", "YAML syntax error"),
    "unknown alias": ("name: *nope\n", "1:7", "YAML syntax error: found undefined alias"),
    "out_of_order": ("out_of_order: alow\n" + MIGRATION, "1:15", "out_of_order is alow.*Did you mean allow?"),
    "transaction": ("transaction: together_now\n" + MIGRATION, "1:14", "transaction is together_now"),
    "migrations no list": ("migrations: {id: x}\n", "1:13", "migrations is not a list"),
    "migration no mapping": ("migrations:\n  - a.sql\n", "2:5", "a migration is not a mapping"),
    "id missing": ("migrations:\n  - deploy: a.sql\n", "2:5", "a migration has no id"),
    "id empty": ("migrations:\n  - {id: '', deploy: a.sql}\n", "2:10", "id is empty"),
    "id malformed": ("migrations:\n  - {id: a b, deploy: a.sql}\n", "2:10", "'a b' is not the id of a migration"),
    "id twice": (MIGRATION + "  - {id: x, deploy: b.sql}\n", "4:10", "two migrations have the id x .also on line 2"),
    "no deploy": ("migrations:\n  - id: x\n", "2:9", "x has neither deploy nor steps"),
    "deploy and steps": (MIGRATION + "    steps: [b.sql]\n", "2:9", "x has both deploy and steps"),
    "deploy empty": ("migrations:\n  - {id: x, deploy: []}\n", "2:21", "deploy is empty"),
    "steps empty": ("migrations:\n  - {id: x, steps: []}\n", "2:20", "steps of migration x is empty"),
    "file missing": (
        "migrations:\n  - {id: x, deploy: aa.sql}\n",
        "2:21",
        "aa.sql does not exist.*Did you mean a.sql?",
    ),
    "file in no folder": ("migrations:\n  - {id: x, deploy: no/a.sql}\n", "2:21", "no/a.sql does not exist"),
    "file absolute": ("migrations:\n  - {id: x, deploy: /etc/passwd}\n", "2:21", "outside the plan's directory"),
    "file above": ("migrations:\n  - {id: x, deploy: ../a.sql}\n", "2:21", "outside the plan's directory"),
    "file is a folder": ("migrations:\n  - {id: x, deploy: folder}\n", "2:21", "folder is not a regular file"),
    "link out": ("migrations:\n  - {id: x, deploy: out.sql}\n", "2:21", "leads outside .* by a symbolic link"),
    "folder link out": (
        "migrations:\n  - {id: x, deploy: away/o.sql}\n",
        "2:21",
        "leads outside .* by a symbolic link",
    ),
    "link to nothing": ("migrations:\n  - {id: x, deploy: gone.sql}\n", "2:21", "is a symbolic link to nothing"),
    "a pipe": ("migrations:\n  - {id: x, deploy: pipe.sql}\n", "2:21", "pipe.sql is not a regular file"),
    "file deployed twice": (
        MIGRATION + "  - {id: y, deploy: a.sql}\n",
        "4:21",
        "a.sql is deployed twice .also on line 3",
    ),
    "file twice in one": ("migrations:\n  - {id: x, deploy: [a.sql, a.sql]}\n", "2:29", "a.sql is deployed twice"),
    "rollback is deploy": (MIGRATION + "    rollback: a.sql\n", "4:15", "the same file to deploy and to roll back"),
    "rollback missing": (MIGRATION + "    rollback: nope.sql\n", "4:15", "file nope.sql does not exist"),
    "rollback twice": (MIGRATION + "    rollback: [a_back.sql, a_back.sql]\n", "4:28", "has a_back.sql twice"),
    "rollback unknown key": (MIGRATION + "    rollback: [{file: a_back.sql}]\n", "4:17", "unknown key file"),
    "rollback without sql": (MIGRATION + "    rollback: [{name: a}]\n", "4:16", "a rollback step has no sql"),
    "requires unknown": (MIGRATION + "    requires: [y]\n", "4:16", "requires y, which is not an earlier migration"),
    "requires later": (
        "migrations:\n  - {id: x, requires: [y], deploy: a.sql}\n  - {id: y, deploy: b.sql}\n",
        "2:24",
        "requires y, which is not an earlier migration",
    ),
    "requires itself": (MIGRATION + "    requires: [x]\n", "4:16", "migration x requires itself"),
    "requires twice": (MIGRATION + "  - {id: y, requires: [x, x], deploy: b.sql}\n", "4:27", "requires has x twice"),
    "lock_timeout": (MIGRATION + "    lock_timeout: soon\n", "4:19", "lock_timeout: 'soon' is not a duration"),
    "lock_timeout zero": (MIGRATION + "    lock_timeout: 0\n", "4:19", "lock_timeout is 0"),
    "statement_timeout": (MIGRATION + "    statement_timeout: 3x\n", "4:24", "is not a duration"),
    "attempts": (MIGRATION + "    retry: {attempts: 0}\n", "4:23", "attempts is not a whole number of at least 1"),
    "attempts text": (MIGRATION + "    retry: {attempts: many}\n", "4:23", "attempts is not a whole number"),
    "deadline": ("defaults: {retry: {deadline: 0s}}\n" + MIGRATION, "1:30", "deadline is 0"),
    "expected": (MIGRATION + "    expected: [1s]\n", "4:15", "expected is not a text"),
    "risk level": (MIGRATION + "    risk: tiny\n", "4:11", "risk is tiny.*low, medium, high, critical"),
    "risk impact": (MIGRATION + "    risk: {impact: huge}\n", "4:20", "impact is huge"),
    "migration transaction": (MIGRATION + "    transaction: never\n", "4:18", "transaction is not true or false"),
    "manual": (MIGRATION + "    manual: [a]\n", "4:13", "manual is not a text"),
    "rollback_loses": (
        MIGRATION + "    rollback: a_back.sql\n    rollback_loses: [databases]\n",
        "5:22",
        "'databases' is not a schema-qualified name.*Write schema.table",
    ),
    "rollback_loses alone": (MIGRATION + "    rollback_loses: [a.b]\n", "4:21", "rollback_loses and no rollback"),
    "lock_tables": (MIGRATION + "    lock_tables: ['a.b; DROP TABLE c']\n", "4:19", "is not a schema-qualified name"),
    "lock_tables twice": (MIGRATION + "    lock_tables: [a.b, A.B]\n", "4:24", "lock_tables has A.B twice"),
    "variable name": ("variables: {1st: x}\n" + MIGRATION, "1:13", "'1st' is not the name of a variable"),
    "variable value": ("variables: {a: [1, 2]}\n" + MIGRATION, "1:16", "default of variable a is not a text, number"),
    "variable octal": ("variables: {a: 017}\n" + MIGRATION, "1:16", "017 is not a plain number.*Quote it"),
    "variable sexagesimal": ("variables: {a: 12:30}\n" + MIGRATION, "1:16", "12:30 is not a plain number"),
    "variable tag": ("variables: {a: !vault x}\n" + MIGRATION, "1:16", "the tag !vault is not supported"),
    "secret name": ("secret_variables: [a-b]\n" + MIGRATION, "1:20", "'a-b' is not the name of a variable"),
    "plain and secret": (
        "variables: {a: 1}\nsecret_variables: [b, a]\n" + MIGRATION,
        "2:23",
        "variable a is both plain and secret",
    ),
    "drift_ignore": ("drift_ignore: {a: b}\n" + MIGRATION, "1:15", "drift_ignore is not a text"),
    "setting not custom": (
        "secret_variables: [k]\n" + MIGRATION + "    session_settings: {work_mem: k}\n",
        "5:24",
        "work_mem is not the name",
    ),
    "setting not secret": (
        "secret_variables: [key]\n" + MIGRATION + "    session_settings: {app.k: kay}\n",
        "5:31",
        "from kay, which is not a secret variable of the plan.*Did you mean key?",
    ),
    "step no mapping": ("migrations:\n  - {id: x, steps: [[a.sql]]}\n", "2:21", "a step is not a mapping"),
    "step unknown key": ("migrations:\n  - {id: x, steps: [{file: a.sql}]}\n", "2:22", "unknown key file in a step"),
    "step of both kinds": (
        "migrations:\n  - {id: x, steps: [{sql: a.sql, backfill: {}}]}\n",
        "2:21",
        "both sql and backfill",
    ),
    "step of no kind": ("migrations:\n  - {id: x, steps: [{name: a}]}\n", "2:21", "neither sql nor backfill"),
    "step names": (
        "migrations:\n  - id: x\n    steps:\n      - {name: n, sql: a.sql}\n      - {name: n, sql: b.sql}\n",
        "5:9",
        "two steps named n .also on line 4",
    ),
    "steps no list": ("migrations:\n  - {id: x, steps: a.sql}\n", "2:20", "steps is not a list"),
    "verify file": (MIGRATION + "    verify: nope.sql\n", "4:13", "file nope.sql does not exist"),
    "verify no file": (
        MIGRATION + "    verify: all good\n",
        "4:13",
        "Give a list of checks, or the name of an .sql file",
    ),
    "verify empty": (MIGRATION + "    verify: []\n", "4:13", "verify is empty"),
    "check names": (
        MIGRATION + "    verify:\n      - {name: a b, statement: SELECT 1}\n      - {name: a b, statement: SELECT 2}\n",
        "6:9",
        "two checks of migration x are named a b",
    ),
    "check slugs": (
        MIGRATION + "    verify:\n      - {name: a b, statement: SELECT 1}\n      - {name: a-b, statement: SELECT 2}\n",
        "6:9",
        "differ in punctuation only",
    ),
    "check unknown key": (
        MIGRATION + "    verify:\n      - name: a\n        queri: SELECT 1\n",
        "6:9",
        "queri.*Did you mean query?",
    ),
    "check expect": (
        MIGRATION + "    verify:\n      - name: a\n        query: SELECT 1\n        expect: {row: 1}\n",
        "7:18",
        "unknown key row in expect.*Did you mean rows?",
    ),
    "check error name": (
        MIGRATION + "    verify:\n      - name: a\n        statement: SELECT 1\n        expect_error: fk_violation\n",
        "7:9",
        "unknown error condition 'fk_violation'",
    ),
    "check sql": (
        MIGRATION + "    verify:\n      - name: a\n        statement: SELECT 1; SELECT 2\n",
        "6:30",
        "has 2 statements",
    ),
    "check sql block": (
        MIGRATION + "    verify:\n      - name: a\n        statement: |\n          SELECT 1\n            'open\n",
        "8",
        "quote",
    ),
}


def backfill(body: str) -> str:
    return f"migrations:\n  - id: x\n    steps:\n      - backfill: {body}\n"


BACKFILLS = {
    "empty": ("{}", "4:19", "a backfill has no table"),
    "without key": ("{table: a.b, set: {c: '1'}}", "4:19", "a backfill has no key"),
    "without set": ("{table: a.b, key: id}", "4:19", "a backfill has no set"),
    "empty set": ("{table: a.b, key: id, set: {}}", "4:46", "set of a backfill is empty"),
    "empty expression": ("{table: a.b, key: id, set: {c: ''}}", "4:50", "the expression of c is empty"),
    "unqualified table": ("{table: b, key: id, set: {c: '1'}}", "4:27", "'b' is not a schema-qualified name"),
    "column": ("{table: a.b, key: id, set: {a b: '1'}}", "4:47", "'a b' is not the name of a column"),
    "key column": ("{table: a.b, key: 'i d', set: {c: '1'}}", "4:37", "'i d' is not the name of a column"),
    "key twice": ("{table: a.b, key: [id, ID], set: {c: '1'}}", "4:37", "key of a backfill has a column twice"),
    "batch": ("{table: a.b, key: id, set: {c: '1'}, batch: 0}", "4:63", "batch is not a whole number of at least 1"),
    "pause": ("{table: a.b, key: id, set: {c: '1'}, pause: x}", "4:63", "pause: 'x' is not a duration"),
    "unknown": ("{table: a.b, key: id, set: {c: '1'}, size: 1}", "4:56", "unknown key size in backfill"),
}
REFUSED.update({f"backfill {name}": (backfill(body), *rest) for name, (body, *rest) in BACKFILLS.items()})
REFUSED["backfill transaction"] = (
    "migrations:\n  - id: x\n    steps:\n      - transaction: true\n"
    "        backfill: {table: a.b, key: id, set: {c: '1'}}\n",
    "4:22",
    "a backfill step has the key transaction",
)


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_refused_with_its_place(tmp_path: pathlib.Path, case: str) -> None:
    text, place, message = REFUSED[case]
    outside = tmp_path / "outside"
    outside.mkdir()
    touch(outside, "o.sql")
    directory = tmp_path / "set"
    directory.mkdir()
    path = write_plan(directory, text)
    (directory / "folder").mkdir()
    (directory / "out.sql").symlink_to(outside / "o.sql")
    (directory / "away").symlink_to(outside)
    (directory / "gone.sql").symlink_to("nothing.sql")
    os.mkfifo(directory / "pipe.sql")

    with pytest.raises((PlanError, SqlTextError), match=message.replace("?", r"\?")) as caught:
        load_plan(path)

    assert f"({path}:{place})" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plan_that_is_not_utf8_is_refused_with_its_place(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "plan.yml"
    path.write_bytes("name: x\n# caf\u00e9 ".encode() + b"\xe9\n")

    with pytest.raises(PlanError, match="the plan is not UTF-8") as caught:
        load_plan(str(path))

    assert caught.value.location == Location(str(path), 2, 8)


def test_an_alias_of_its_own_ancestor_is_refused(tmp_path: pathlib.Path) -> None:
    path = write_plan(tmp_path, "variables: &v {a: *v}\n" + MIGRATION)

    with pytest.raises(PlanError):
        load_plan(path)


def test_a_value_nested_in_itself_is_refused(tmp_path: pathlib.Path) -> None:
    text = MIGRATION + "    verify:\n      - {name: a, query: SELECT 1, expect: {list: &l [*l]}}\n"

    with pytest.raises(PlanError, match="nested too deeply"):
        load_plan(write_plan(tmp_path, text))


def test_an_anchor_that_multiplies_itself_is_refused(tmp_path: pathlib.Path) -> None:
    lists = ["&v0 [x, x]", *(f"&v{n} [{', '.join([f'*v{n - 1}'] * 20)}]" for n in range(1, 8))]
    text = MIGRATION + f"    verify:\n      - {{name: a, query: SELECT 1, expect: {{list: [{', '.join(lists)}]}}}}\n"

    with pytest.raises(PlanError, match="the plan is too large.*anchor"):
        load_plan(write_plan(tmp_path, text))


def test_together_excludes_what_cannot_be_in_one_transaction(tmp_path: pathlib.Path) -> None:
    together = "transaction: together\n" + MIGRATION
    assert load_plan(write_plan(tmp_path, together)).transaction == "together"
    fill = "  - {id: y, steps: [{backfill: {table: a.b, key: id, set: {c: '1'}}}]}\n"
    setting = "secret_variables: [k]\n" + together + "  - {id: y, deploy: b.sql, session_settings: {a.k: k}}\n"
    for text, place, message in (
        (together + "    transaction: false\n", "4:13", "a.sql, which runs outside a transaction"),
        (together + fill, "5:21", "excludes the backfill of migration y"),
        (setting, "6:10", "y needs session_settings of its own"),
    ):
        path = write_plan(tmp_path, text)
        with pytest.raises(PlanError, match=message) as caught:
            load_plan(path)
        assert f"({path}:{place})" in str(caught.value)
    path = write_plan(tmp_path, together)
    touch(tmp_path, "a.sql", text="-- surefoot: transaction=false\nVACUUM;\n")
    with pytest.raises(PlanError, match="a.sql, which runs outside a transaction"):
        load_plan(path)


@pytest.mark.parametrize("given", ["missing", "missing/plan.yml"])
def test_a_path_that_does_not_exist_is_refused(tmp_path: pathlib.Path, given: str) -> None:
    with pytest.raises(PlanError, match="does not exist"):
        load_plan(str(tmp_path / given))


def test_a_file_that_is_no_plan_and_a_directory_without_sql_are_refused(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "notes.txt")

    with pytest.raises(PlanError, match=r"notes\.txt is not a plan"):
        load_plan(str(tmp_path / "notes.txt"))
    with pytest.raises(PlanError, match="holds no migration set"):
        load_plan(str(tmp_path))


def test_two_plan_files_in_one_directory_are_refused(tmp_path: pathlib.Path) -> None:
    write_plan(tmp_path, MIGRATION)
    write_plan(tmp_path, MIGRATION, "plan.yaml")

    with pytest.raises(PlanError, match=r"holds both plan\.yml and plan\.yaml"):
        load_plan(str(tmp_path))


# --- NNN_name.sql


def ids(plan: Plan) -> list[str]:
    return [migration.id for migration in plan.migrations]


def test_plain_files_are_ordered_by_number_then_name(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "10_c.sql", "9_b.sql", "002_a.sql", "README.md", ".1_hidden.sql")

    assert ids(load_plan(str(tmp_path))) == ["002_a", "9_b", "10_c"]


def test_plain_rollback_and_verification_files_belong_to_their_migration(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "1_a.sql", "1_a.rollback.sql", "1_a.verify.sql", "2_b.sql", "2_b.down.sql", "3_c.sql")

    plan = load_plan(str(tmp_path))

    first, second, third = plan.migrations
    assert first.rollback is not None and first.rollback[0].file == "1_a.rollback.sql"
    assert [check.path for check in first.verify] == [str(tmp_path / "1_a.verify.sql")]
    assert second.rollback is not None and second.rollback[0].file == "2_b.down.sql"
    assert third.rollback is None and third.verify == ()
    assert (plan.name, plan.file, plan.warnings) == (tmp_path.name, None, ())


def test_two_plain_files_of_one_number_are_ordered_by_name_with_a_warning(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "006_enable.sql", "006_add.sql", "007_x.sql")

    plan = load_plan(str(tmp_path))

    assert ids(plan) == ["006_add", "006_enable", "007_x"]
    assert len(plan.warnings) == 1
    assert "006_add and 006_enable have the same number" in plan.warnings[0]


PLAIN_REFUSED = {
    "both rollbacks": (("1_a.sql", "1_a.rollback.sql", "1_a.down.sql"), "1_a.rollback.sql", "1_a has both"),
    "stray rollback": (("1_a.sql", "2_b.rollback.sql"), "2_b.rollback.sql", r"2_b\.rollback\.sql has no 2_b\.sql"),
    "stray verify": (("1_a.sql", "2_b.verify.sql"), "2_b.verify.sql", r"2_b\.verify\.sql has no 2_b\.sql"),
    "no number": (("1_a.sql", "setup.sql"), "setup.sql", r"setup\.sql is not the name of a migration's file"),
    "no name": (("1_a.sql", "2.sql"), "2.sql", r"2\.sql is not the name"),
    "upper case": (("1_a.sql", "2_b.SQL"), "2_b.SQL", r"2_b\.SQL is not the name"),
    "space": (("1_a b.sql",), "1_a b.sql", "'1_a b' is not the id of a migration"),
    "same number and name": (("1_a.sql", "01_a.sql"), "1_a.sql", "the same number and name"),
}


@pytest.mark.parametrize("case", PLAIN_REFUSED)
def test_a_plain_directory_that_is_ambiguous_is_refused_with_the_file(tmp_path: pathlib.Path, case: str) -> None:
    names, file, message = PLAIN_REFUSED[case]
    touch(tmp_path, *names)

    with pytest.raises(PlanError, match=message) as caught:
        load_plan(str(tmp_path))

    assert f"({tmp_path / file})" in str(caught.value)


def test_a_plain_file_that_is_a_link_out_of_the_directory_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "set").mkdir()
    touch(tmp_path, "o.sql")
    (tmp_path / "set" / "1_a.sql").symlink_to(tmp_path / "o.sql")

    with pytest.raises(PlanError, match="leads outside"):
        load_plan(str(tmp_path / "set"))


def test_a_plain_folder_named_like_a_file_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "1_a.sql").mkdir()

    with pytest.raises(PlanError, match="not a regular file"):
        load_plan(str(tmp_path))


HEADS = {
    "first line": ("-- surefoot: transaction=false\nVACUUM;\n", False),
    "after a licence": ("\ufeff-- Copyright\r\n\r\n--surefoot:transaction = false\r\nVACUUM;\n", False),
    "after a block comment": ("/* a /* b */\n c */\n-- surefoot: transaction=false\n", False),
    "said to be true": ("-- surefoot: transaction=true\n", True),
    "after SQL": ("SELECT 1;\n-- surefoot: transaction=false\n", True),
    "inside a block comment": ("/*\n-- surefoot: transaction=false\n*/\nSELECT 1;\n", True),
    "after SQL behind a block comment": ("/* a */ SELECT 1;\n-- surefoot: transaction=false\n", True),
    "in words": ("-- surefoot needs transaction=false for VACUUM\n", True),
    "nothing": ("", True),
}


@pytest.mark.parametrize("case", HEADS)
def test_the_head_of_a_file_says_whether_it_is_transactional(tmp_path: pathlib.Path, case: str) -> None:
    text, expected = HEADS[case]
    touch(tmp_path, "1_a.sql", text=text)

    assert load_plan(str(tmp_path)).migrations[0].steps[0].transaction is expected


@pytest.mark.parametrize(
    ("directive", "message"),
    [
        ("transactions=false", "unknown directive transactions"),
        ("transaction=no", "not true or false"),
        ("transaction", "not true or false"),
        ("transaction=false\n-- surefoot: transaction=false", "given twice"),
    ],
)
def test_a_directive_that_is_not_understood_is_refused_with_its_place(
    tmp_path: pathlib.Path, directive: str, message: str
) -> None:
    touch(tmp_path, "1_a.sql", text=f"-- one\n  -- surefoot: {directive}\n")
    step = load_plan(str(tmp_path)).migrations[0].steps[0]

    with pytest.raises(PlanError, match=message) as caught:
        assert step.transaction

    assert f"({tmp_path / '1_a.sql'}:{3 if 'twice' in message else 2}:{1 if 'twice' in message else 3})" in str(
        caught.value
    )


def test_the_plan_wins_over_the_head_of_the_file(tmp_path: pathlib.Path) -> None:
    path = write_plan(tmp_path, MIGRATION + "    transaction: true\n  - {id: y, deploy: b.sql}\n")
    touch(tmp_path, "a.sql", "b.sql", text="-- surefoot: transaction=false\n")

    plan = load_plan(path)

    assert [migration.steps[0].transaction for migration in plan.migrations] == [True, False]


def test_a_plain_directory_is_loaded_without_reading_its_files(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "1_a.sql", text="-- surefoot: nonsense=1\n")
    # A file that is neither UTF-8 nor SQL is the business of whoever runs it.
    (tmp_path / "1_a.verify.sql").write_bytes(b"\xff\x00")

    assert ids(load_plan(str(tmp_path))) == ["1_a"]


def test_the_digest_of_a_plain_directory_is_that_of_its_names(tmp_path: pathlib.Path) -> None:
    touch(tmp_path, "1_a.sql")
    before = load_plan(str(tmp_path)).digest()
    touch(tmp_path, "1_a.sql", text="SELECT 2;\n")
    assert load_plan(str(tmp_path)).digest() == before
    touch(tmp_path, "2_b.sql")
    assert load_plan(str(tmp_path)).digest() != before


def test_loading_leaves_the_garbage_collector_as_it_was(tmp_path: pathlib.Path) -> None:
    import gc

    with pytest.raises(PlanError):
        load_plan(str(tmp_path))

    assert gc.isenabled()


@pytest.mark.parametrize("name", ["a.b", '"A b"."c""d"', "Sch_1.t$2", "sch\u00e9ma.t"])
def test_a_qualified_name_is_accepted_as_sql_writes_it(name: str) -> None:
    assert len(_plan.split_qualified(name)) == 2


@pytest.mark.parametrize("name", ["a", "a.b.c", "1a.b", 'a."b', "a.b --", "a .b", ""])
def test_anything_else_than_a_qualified_name_is_refused(name: str) -> None:
    with pytest.raises(PlanError, match="not a schema-qualified name"):
        _plan.split_qualified(name)
