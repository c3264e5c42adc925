# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the runner selects, in which order, what it records, and what it says when it cannot."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    DriftError,
    LedgerError,
    PlanError,
    SqlError,
    SqlTextError,
    SurefootError,
    VerificationFailed,
)
from ansible_collections.surefoot.dbops.tests.support.migrations import (
    Background,
    MigrationSet,
    applied,
    attempts,
    dump,
    exists,
    fails,
    run,
    run_module,
    wait_until,
    worker_running,
)
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database


@pytest.fixture
def plan(tmp_path: pathlib.Path) -> MigrationSet:
    return MigrationSet(tmp_path / "set")


@pytest.fixture
def role(database: Database) -> t.Iterator[str]:
    name = f"r_{database.name}"
    database.query(f"CREATE ROLE {name} LOGIN")
    yield name
    database.query(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")


def three(plan: MigrationSet) -> MigrationSet:
    for number in (1, 2, 3):
        plan.add(f"00{number}", f"CREATE TABLE t{number}(i int);", rollback=f"DROP TABLE t{number};")
    return plan


# --- order and selection


def test_second_run_changes_nothing(plan: MigrationSet, database: Database) -> None:
    first = run(three(plan), database)
    assert first["changed"] and first["applied"] == ["001", "002", "003"] and first["pending"] == []
    before = dump(database)
    second = run(plan, database)
    assert not second["changed"] and second["applied"] == [] and second["statements"] == []
    assert dump(database) == before


def test_to_is_inclusive_and_only_names_what_runs(plan: MigrationSet, database: Database) -> None:
    three(plan)
    plan.fields["out_of_order"] = "allow"
    plan.write()
    assert run(plan, database, to="002")["applied"] == ["001", "002"]
    plan.add("004", "CREATE TABLE t4(i int);")
    assert run(plan, database, only=("004",))["applied"] == ["004"]
    assert run(plan, database)["applied"] == ["003"]


@pytest.mark.parametrize("options", [{"to": "02"}, {"only": ("nope",)}, {"include_manual": ("0002",)}])
def test_unknown_id_is_an_error_that_helps(plan: MigrationSet, database: Database, options: dict[str, t.Any]) -> None:
    error = fails(PlanError, three(plan), database, **options)
    assert "no migration" in str(error) and error.remedy
    assert not exists(database, "surefoot.applied")


def test_out_of_order_is_an_error_or_allowed(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE t1(i int);").add("003", "CREATE TABLE t3(i int);")
    run(plan, database)
    three(plan)
    plan.migrations.sort(key=lambda migration: str(migration["id"]))
    plan.write()
    plan.file("003.sql", "CREATE TABLE t3(i int);")
    error = fails(LedgerError, plan, database)
    assert "002" in str(error) and "003" in str(error) and "out_of_order: allow" in error.remedy
    plan.fields["out_of_order"] = "allow"
    plan.write()
    assert run(plan, database)["applied"] == ["002"]


def test_requirement_that_is_not_applied_is_an_error(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "SELECT 1;", manual="by hand only").add("002", "SELECT 1;", requires=["001"])
    error = fails(PlanError, plan, database)
    assert "002 requires 001" in str(error) and "plan.yml:" in str(error)
    assert run(plan, database, include_manual=("001",))["applied"] == ["001", "002"]


def test_manual_runs_only_when_named(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);").add("002", "CREATE TABLE b(i int);", manual="needs a quiet hour")
    results = run(plan, database)
    assert results["applied"] == ["001"] and results["manual"] == [{"id": "002", "reason": "needs a quiet hour"}]
    assert run(plan, database)["changed"] is False
    assert run(plan, database, include_manual=("002",))["applied"] == ["002"]


def test_plain_directory_of_numbered_files_works(tmp_path: pathlib.Path, database: Database) -> None:
    (tmp_path / "001_first.sql").write_text("CREATE TABLE a(i int);")
    (tmp_path / "001_first.rollback.sql").write_text("DROP TABLE a;")
    (tmp_path / "001_first.verify.sql").write_text("SELECT count(*) = 0 FROM a;")
    (tmp_path / "002_second.sql").write_text("CREATE TABLE b(i int);")
    (tmp_path / "002_second.down.sql").write_text("DROP TABLE b;")
    (tmp_path / "010_index.sql").write_text("-- surefoot: transaction=false\nCREATE INDEX CONCURRENTLY ix ON b(i);")
    results = run(tmp_path, database)
    assert results["applied"] == ["001_first", "002_second", "010_index"] and results["checks"][0]["passed"]
    fails(PlanError, tmp_path, database, state="rolled_back", to="002_second")  # 010 has no way back
    database.query("DROP INDEX ix")
    (tmp_path / "010_index.rollback.sql").write_text("DROP INDEX IF EXISTS ix;")
    done = run(tmp_path, database, state="rolled_back", to="001_first", on_drift="warn")["rolled_back"]
    assert done == ["010_index", "002_second", "001_first"] and not exists(database, "a")


def test_two_sets_share_a_ledger(tmp_path: pathlib.Path, database: Database) -> None:
    one = MigrationSet(tmp_path / "one", name="one").add("001", "CREATE TABLE a(i int);")
    two = MigrationSet(tmp_path / "two", name="two").add("001", "CREATE TABLE b(i int);")
    assert run(one, database)["applied"] == run(two, database)["applied"] == ["001"]
    assert run(one, database)["changed"] is False
    assert database.query("SELECT set_name, migration_id FROM surefoot.applied ORDER BY 1") == [
        ("one", "001"),
        ("two", "001"),
    ]


# --- baseline


def test_baselined_records_without_running(plan: MigrationSet, database: Database) -> None:
    three(plan)
    results = run(plan, database, state="baselined", to="002")
    assert results["changed"] and results["applied"] == ["001", "002"]
    assert not exists(database, "t1")
    assert attempts(database) == [("001", "baseline", "succeeded"), ("002", "baseline", "succeeded")]
    assert run(plan, database, state="baselined", to="002")["changed"] is False
    assert run(plan, database)["applied"] == ["003"]


def test_object_made_by_hand_points_to_baselining(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE TABLE t1(i int)")
    error = fails(SqlError, three(plan), database)
    assert error.sqlstate == "42P07" and "baselined" in error.remedy


# --- check mode and diff


def test_check_mode_writes_nothing_at_all(plan: MigrationSet, database: Database) -> None:
    plan.fields["secret_variables"] = ["key"]
    three(plan).add("004", "INSERT INTO t1 SELECT length(:'key');").add(
        "005", "CREATE INDEX CONCURRENTLY ix ON t1(i);", transaction=False
    )
    before = dump(database)
    # A server that refuses every write is the proof: a role whose transactions are all read-only.
    params = {**database.params, "connect_params": {"options": "-c default_transaction_read_only=on"}}
    results = run(plan, params, check_mode=True, secrets={"key": "some-secret"})
    assert results["changed"] and results["pending"] == ["001", "002", "003", "004", "005"] and results["applied"] == []
    assert dump(database) == before and not exists(database, "surefoot.applied")
    run(plan, database, secrets={"key": "some-secret"}, to="002")
    before = dump(database)
    assert run(plan, params, check_mode=True, secrets={"key": "some-secret"})["pending"] == ["003", "004", "005"]
    assert run(plan, params, check_mode=True, state="rolled_back", to="001")["pending"] == ["002", "001"]
    assert dump(database) == before
    assert fails(SqlError, plan, params, secrets={"key": "some-secret"}).sqlstate == "25006"  # the proof's proof


def test_check_mode_validates_every_pending_file(plan: MigrationSet, database: Database) -> None:
    three(plan).add("004", "SELECT 'open;")
    error = fails(SqlTextError, plan, database, check_mode=True)
    assert "004.sql:1:8" in str(error)


def test_diff_shows_the_text_before_variables_are_put_in(plan: MigrationSet, database: Database) -> None:
    plan.fields["variables"] = {"who": None}
    plan.add("001", "CREATE TABLE a(t text);\nINSERT INTO a VALUES (:'who');\nCREATE ROLE x PASSWORD 'tops3cret';")
    outcome = run_module(plan, database, check=True, diff=True, variables={"who": "somebody"})
    diff = outcome.result["diff"]
    diff = diff[0] if isinstance(diff, list) else diff
    assert "CREATE TABLE a(t text);" in diff["after"] and ":'who'" in diff["after"] and "001.sql" in diff["after"]
    assert "tops3cret" not in outcome.stdout
    assert outcome.result["changed"] and not exists(database, "a")


# --- what the module returns and the ledger keeps


def test_result_is_json_and_says_what_was_done(plan: MigrationSet, database: Database, tmp_path: pathlib.Path) -> None:
    three(plan)
    plan.migrations[0]["verify"] = [{"name": "empty", "query": "SELECT count(*) FROM t1", "expect": {"scalar": 0}}]
    plan.write()
    run_dir = tmp_path / "run"
    run_dir.mkdir(mode=0o700)
    outcome = run_module(plan, database, run_id="run-1", run_dir=str(run_dir), requested_by="ann", approved_by="bob")
    result = outcome.result
    assert outcome.stderr == "" and result["run_id"] == "run-1"
    assert [item["id"] for item in result["migrations"]] == result["applied"] == ["001", "002", "003"]
    assert [item["tag"] for item in result["statements"]] == ["CREATE TABLE"] * 3
    assert result["statements"][1]["file"] == "002.sql" and result["statements"][1]["line"] == 1
    assert result["checks"][0]["passed"] is True
    criteria = {record["criterion"]: record["verdict"] for record in result["evidence"]}
    assert criteria["migration.applied"] == "pass" and criteria["ledger.no_drift"] == "pass"
    lines = (run_dir / "evidence.jsonl").read_text().splitlines()
    assert [json.loads(line)["criterion"] for line in lines] == [record["criterion"] for record in result["evidence"]]
    assert (run_dir / "evidence.jsonl").stat().st_mode & 0o077 == 0
    assert len((run_dir / "statements.jsonl").read_text().splitlines()) == 3
    row = database.query(
        "SELECT set_name, action, outcome, requested_by, approved_by, os_user <> '' FROM surefoot.runs"
    )
    assert row == [("set", "deploy", "succeeded", "ann", "bob", True)]


def test_ledger_keeps_the_text_before_substitution_with_passwords_masked(
    plan: MigrationSet, database: Database
) -> None:
    plan.fields["variables"] = {"who": "somebody"}
    plan.add(
        "001",
        "CREATE TABLE a(t text); INSERT INTO a VALUES (:'who');\n"
        f"CREATE ROLE x_{database.name} PASSWORD 'tops3cret'; DROP ROLE x_{database.name};",
    )
    run(plan, database)
    text, xid = database.query("SELECT executed_text, xid::text FROM surefoot.attempts")[0]
    assert ":'who'" in text and "somebody" not in text and "tops3cret" not in text and "PASSWORD '***'" in text
    assert database.scalar("SELECT pg_xact_status(%s::xid8)", (xid,)) == "committed"


def test_failure_is_recorded_with_its_reason_and_earlier_migrations_stay(
    plan: MigrationSet, database: Database
) -> None:
    three(plan).add("002", "CREATE TABLE t2(i int);\nINSERT INTO t2 VALUES ('x');")
    plan.migrations.sort(key=lambda migration: str(migration["id"]))
    plan.write()
    error = fails(SqlError, plan, database)
    assert (
        error.results["applied"] == ["001"] and error.results["pending"] == ["002", "003"] and error.results["changed"]
    )
    assert attempts(database) == [("001", "deploy", "succeeded"), ("002", "deploy", "failed")]
    recorded = database.scalar("SELECT error FROM surefoot.attempts WHERE outcome = 'failed'")
    assert recorded["sqlstate"] == "22P02" and recorded["line"] == 2
    assert database.scalar("SELECT outcome FROM surefoot.runs") == "failed"
    plan.file("002.sql", "CREATE TABLE t2(i int);")
    assert run(plan, database)["applied"] == ["002", "003"]


def test_error_names_place_statement_sqlstate_condition_and_remedy(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(i int);\n\n  INSERT INTO a\n    (i, nope)\n  VALUES (1, 2);\n")
    outcome = run_module(plan, database)
    message, error = outcome.result["msg"], outcome.result["error"]
    assert "001.sql:4:9" in message  # where the server points to, not where the statement begins
    assert "[42703 undefined_column]" in message and "INSERT INTO a" in message and "\n" not in message
    assert (
        error["sqlstate"] == "42703"
        and error["condition"] == "undefined_column"
        and error["statement"] == "INSERT INTO a"
    )
    assert (error["line"], error["column"]) == (4, 9) and error["remedy"]
    assert outcome.returncode == 1 and "Traceback" not in outcome.stdout + outcome.stderr


def test_error_detail_with_row_values_is_not_shown(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "CREATE TABLE a(mail text UNIQUE);\nINSERT INTO a VALUES ('ann@example.com'), ('ann@example.com');")
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "23505" and "ann@example.com" not in json.dumps(error.to_dict()["message"])


@pytest.mark.parametrize(
    ("text", "sqlstate", "words"),
    [
        ("SELEC 1;", "42601", "Correct"),
        ("SELECT * FROM nowhere;", "42P01", "search_path"),
        ("CREATE TABLE nowhere.a(i int);", "3F000", "requires"),
        ("SELECT pgp_sym_encrypt('a', 'b');", "42883", "pgcrypto"),
        ("CREATE EXTENSION no_such_extension;", "0A000", "contrib"),
        ("CREATE TABLE p(i int PRIMARY KEY); CREATE TABLE c(i int); INSERT INTO c VALUES (1);"
         " ALTER TABLE c ADD FOREIGN KEY (i) REFERENCES p;", "23503", "orphans"),
        ("CREATE TABLE a(i int); INSERT INTO a VALUES (NULL); ALTER TABLE a ALTER i SET NOT NULL;", "23502", "fill"),
        ("CREATE TABLE a(i int); INSERT INTO a VALUES (1); ALTER TABLE a ADD CHECK (i > 1);", "23514", "NOT VALID"),
    ],
)  # fmt: skip
def test_common_errors_have_remedies(
    plan: MigrationSet, database: Database, text: str, sqlstate: str, words: str
) -> None:
    error = fails(SqlError, plan.add("001", text), database)
    assert error.sqlstate in (sqlstate, "58P01") and re.search(words, error.remedy), (error.sqlstate, error.remedy)


# --- after commit


def test_check_after_commit_that_fails_leaves_the_migration_applied_and_says_so(
    plan: MigrationSet, database: Database
) -> None:
    check = {"name": "rows", "query": "SELECT count(*) FROM t1", "expect": {"scalar": 7}, "when": "after_commit"}
    three(plan)
    plan.migrations[0]["verify"] = [check]
    plan.write()
    error = fails(VerificationFailed, plan, database)
    assert "committed" in str(error) and "7" in str(error) and "0" in str(error)
    assert applied(database) == ["001"] and error.results["applied"] == ["001"]
    assert run(plan, database, verify=False)["applied"] == ["002", "003"]


def test_negative_checks_are_rolled_back_and_match_the_condition(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        "CREATE TABLE p(i int PRIMARY KEY); CREATE TABLE c(i int REFERENCES p DEFERRABLE INITIALLY DEFERRED);",
        verify=[
            {
                "name": "orphan refused",
                "statement": "INSERT INTO c VALUES (1)",
                "expect_error": "foreign_key_violation",
            },
            {
                "name": "early",
                "statement": "INSERT INTO c VALUES (1)",
                "expect_error": "23503",
                "when": "before_commit",
            },
        ],
    )
    results = run(plan, database)
    assert [check["passed"] for check in results["checks"]] == [True, True]
    assert database.scalar("SELECT count(*) FROM c") == 0


# --- rights and the ledger's schema


def test_role_without_create_on_the_database_gets_the_remedy(plan: MigrationSet, database: Database, role: str) -> None:
    database.query(f"GRANT ALL ON SCHEMA public TO {role}")
    error = fails(LedgerError, three(plan), {**database.params, "login_user": role})
    assert "GRANT CREATE ON DATABASE" in error.remedy and "CREATE SCHEMA surefoot" in error.remedy
    assert not exists(database, "t1")


def test_ledger_schema_made_by_an_administrator_is_enough(plan: MigrationSet, database: Database, role: str) -> None:
    database.query(f"GRANT ALL ON SCHEMA public TO {role}; CREATE SCHEMA ops_ledger AUTHORIZATION {role}")
    params = {**database.params, "login_user": role}
    assert run(three(plan), params, ledger_schema="ops_ledger")["applied"] == ["001", "002", "003"]
    assert applied(database, "ops_ledger") == ["001", "002", "003"]
    assert run(plan, params, ledger_schema="ops_ledger")["changed"] is False
    assert not database.scalar("SELECT count(*) FROM pg_namespace WHERE nspname = 'surefoot'")


def test_ledger_schema_with_capitals_works(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database, ledger_schema="OpsLedger")
    assert applied(database, "OpsLedger") == ["001", "002", "003"]


def test_schema_that_is_something_else_is_not_taken_over(plan: MigrationSet, database: Database) -> None:
    database.query("CREATE SCHEMA surefoot; CREATE TABLE surefoot.customers(i int)")
    error = fails(LedgerError, three(plan), database)
    assert "holds no ledger" in str(error) and not exists(database, "t1")


def test_ledger_of_a_newer_version_is_refused(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    database.query("UPDATE surefoot.meta SET value = '999' WHERE key = 'format'")
    error = fails(LedgerError, plan, database)
    assert "999" in str(error) and "Update" in error.remedy


def test_role_without_create_on_the_schema_gets_the_remedy(plan: MigrationSet, database: Database, role: str) -> None:
    database.query(f"CREATE SCHEMA app; GRANT CREATE ON DATABASE {database.name} TO {role}")
    plan.add("001", "CREATE TABLE app.a(i int);")
    error = fails(SqlError, plan, {**database.params, "login_user": role})
    assert error.sqlstate == "42501" and "GRANT USAGE, CREATE ON SCHEMA" in error.remedy and "001.sql:1:" in str(error)


def test_role_that_does_not_own_the_table_gets_the_remedy(plan: MigrationSet, database: Database, role: str) -> None:
    database.query(f"CREATE TABLE t(i int); GRANT CREATE ON DATABASE {database.name} TO {role}")
    plan.add("001", "ALTER TABLE t ADD c int;")
    error = fails(SqlError, plan, {**database.params, "login_user": role})
    assert error.sqlstate == "42501" and "owner" in error.remedy


def test_role_that_may_not_read_the_ledger_gets_the_remedy(plan: MigrationSet, database: Database, role: str) -> None:
    run(three(plan), database)
    error = fails(LedgerError, plan, {**database.params, "login_user": role})
    assert "cannot be read" in str(error) and "GRANT USAGE ON SCHEMA surefoot" in error.remedy


# --- drift


def test_changed_file_is_drift_unless_only_warned_of(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    plan.file("002.sql", "CREATE TABLE t2(i bigint);")
    plan.add("004", "CREATE TABLE t4(i int);")
    error = fails(DriftError, plan, database)
    assert "002 was changed" in str(error) and not exists(database, "t4")
    assert [(item["migration_id"], item["kind"]) for item in error.results["drift"]] == [("002", "changed")]
    results = run(plan, database, on_drift="warn")
    assert results["applied"] == ["004"] and any("002 was changed" in note for note in results["notes"])


def test_applied_migration_that_left_the_plan_is_drift(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    plan.remove("002")
    error = fails(DriftError, plan, database)
    assert "002 is applied but not in the plan" in str(error)


def test_applied_file_that_is_no_sql_any_more_is_an_error_with_its_place(
    plan: MigrationSet, database: Database
) -> None:
    run(three(plan), database)
    plan.file("002.sql", "CREATE TABLE t2(i int);\nSELECT 'open")
    error = fails(SurefootError, plan, database)
    assert "002.sql:2:8" in str(error)


def test_catalog_drift_is_found_described_and_can_be_ignored(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    database.query("ALTER TABLE t1 ADD by_hand int; CREATE SCHEMA jobs; CREATE TABLE jobs.part_1(i int)")
    error = fails(DriftError, plan, database)  # also with nothing pending
    assert "by_hand" in str(error) or "t1" in str(error)
    plan.add("004", "CREATE TABLE t4(i int);")
    fails(DriftError, plan, database)
    assert not exists(database, "t4")
    database.query("ALTER TABLE t1 DROP COLUMN by_hand")
    plan.fields["drift_ignore"] = ["jobs.*", "jobs"]
    plan.write()
    assert run(plan, database)["applied"] == ["004"]


def test_catalog_drift_that_is_accepted_becomes_the_reference(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    database.query("CREATE TABLE by_hand(i int)")
    plan.add("004", "CREATE TABLE t4(i int);")
    assert run(plan, database, on_drift="warn")["applied"] == ["004"]
    plan.add("005", "CREATE TABLE t5(i int);")
    results = run(plan, database)
    assert results["applied"] == ["005"] and results["drift"] == []


def test_what_a_failed_run_left_is_not_drift(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    plan.add("004", steps=["CREATE TABLE t4(i int);", "INSERT INTO t4 VALUES ('x');"])
    fails(SqlError, plan, database)
    plan.file("004.2.sql", "INSERT INTO t4 VALUES (1);")
    results = run(plan, database)
    assert results["applied"] == ["004"] and results["drift"] == []


def test_data_is_not_drift(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    database.query("INSERT INTO t1 VALUES (1)")
    database.query("ANALYZE")
    assert run(plan, database)["drift"] == []


# --- files


def test_small_file_changed_after_validation_runs_as_it_was_validated(plan: MigrationSet, database: Database) -> None:
    plan.add("001", "SELECT pg_sleep(0.7);").add("002", "CREATE TABLE a(i int);")
    job = Background(lambda: run(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps")
    plan.file("002.sql", "CREATE TABLE a(i int); CREATE TABLE b(i int);")
    assert job.result()["applied"] == ["001", "002"]
    assert exists(database, "a") and not exists(database, "b")
    kept = database.query("SELECT executed_text FROM surefoot.attempts WHERE migration_id = '002'")
    assert kept == [("CREATE TABLE a(i int);",)]
    assert "002" in str(fails(DriftError, plan, database))  # the next run sees that the file is another one


def test_large_file_changed_while_it_runs_is_not_committed(plan: MigrationSet, database: Database) -> None:
    filler = "".join(f"INSERT INTO a VALUES ({number}); -- {'x' * 200}\n" for number in range(6000))
    plan.add("001", f"CREATE TABLE a(i int);\nSELECT pg_sleep(0.7);\n{filler}")
    job = Background(lambda: run(plan, database))
    wait_until(lambda: worker_running(database, "pg_sleep"), "it sleeps")
    with open(plan.directory / "001.sql", "a", encoding="utf-8") as stream:
        stream.write("INSERT INTO a VALUES (-1);\n")
    with pytest.raises(SqlTextError, match="changed"):
        job.result()
    assert not exists(database, "a")


def test_missing_file_and_missing_directory_are_plan_errors(plan: MigrationSet, database: Database) -> None:
    three(plan)
    (plan.directory / "002.sql").unlink()
    assert "002.sql does not exist" in str(fails(PlanError, plan, database))
    assert "does not exist" in str(fails(PlanError, plan.directory / "nope", database))
    outcome = run_module(plan, database)
    assert outcome.result["failed"] and outcome.result["error"]["code"] == "plan"


def test_rows_of_copy_are_loaded_and_bad_rows_name_the_statement(plan: MigrationSet, database: Database) -> None:
    plan.add(
        "001",
        "CREATE TABLE a(i int, t text);\nCOPY a (i, t) FROM stdin;\n1\tone; -- two\n2\t\\N\n3\ttab\\there\n\\.\n"
        'COPY a FROM STDIN WITH (FORMAT csv, HEADER);\ni,t\n4,"quoted, ""text"""\n5,x\n\\.\n'
        "INSERT INTO a VALUES (6, 'after');\n",
    )
    run(plan, database)
    assert database.query("SELECT i, t FROM a ORDER BY i") == [
        (1, "one; -- two"), (2, None), (3, "tab\there"), (4, 'quoted, "text"'), (5, "x"), (6, "after"),
    ]  # fmt: skip
    plan.add("002", "CREATE TABLE b(i int);\nCOPY b FROM stdin;\n1\nx\n\\.\n")
    error = fails(SqlError, plan, database)
    assert error.sqlstate == "22P02" and "002.sql:2:1" in str(error) and "COPY b" in str(error)
    assert not exists(database, "b")


def test_plan_without_pending_sql_needs_no_lock(plan: MigrationSet, database: Database) -> None:
    run(three(plan), database)
    with contextlib.closing(database.connect()) as other, other.cursor() as cursor:
        cursor.execute("BEGIN; LOCK TABLE surefoot.attempts IN ACCESS EXCLUSIVE MODE")
        assert run(plan, database)["changed"] is False


def test_connection_options_reach_the_module(plan: MigrationSet, database: Database) -> None:
    server = database.server
    url = f"postgresql://postgres:{server.password}@127.0.0.1:{server.port}/{database.name}?sslmode=disable"
    outcome = run_module(three(plan), {"login_url": url})
    assert outcome.result["applied"] == ["001", "002", "003"]
    assert server.password not in outcome.stdout
