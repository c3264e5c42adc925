# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks against a real server: what is compared, what is refused, and that nothing stays."""

from __future__ import annotations

import contextlib
import json
import pathlib
import textwrap
import threading
import time
import typing as t

import psycopg2
import psycopg2.extensions
import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.surefoot.dbops.plugins.module_utils._checks import CheckResult, expand, parse_check, run_checks
from ansible_collections.surefoot.dbops.plugins.module_utils._checks import check_file as check_of_file
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import (
    ConnectionFailed,
    Interrupted,
    Location,
    SqlTextError,
)
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_verification
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database

pytestmark = pytest.mark.versions

SECRET = "s3cr3t-Value-9f1c"

SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE app.org (id int PRIMARY KEY, name text UNIQUE);
CREATE TABLE app.project (
  id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  org int NOT NULL,
  size numeric(10, 2) CHECK (size > 0),
  CONSTRAINT project_org FOREIGN KEY (org) REFERENCES app.org DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO app.org VALUES (1, 'one'), (2, 'two');
INSERT INTO app.project (org, size) VALUES (1, 1.50), (1, 2.25), (2, 4);
"""


@pytest.fixture
def schema(database: Database) -> Database:
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA)
    return database


@pytest.fixture
def connection(schema: Database) -> t.Iterator[psycopg2.extensions.connection]:
    opened = schema.connect()
    yield opened
    opened.close()


def check(**keys: t.Any) -> t.Any:
    return parse_check({"name": "a check", **keys}, Location("plan.yml", 3, 5))


def verify(connection: t.Any, *checks: t.Any, inside: bool = False, **keys: t.Any) -> list[CheckResult]:
    values: dict[str, t.Any] = {"variables": {}, "secret_variables": {}, "phase": "verify", **keys}
    return run_checks(connection, checks, inside_transaction=inside, **values)


def one(connection: t.Any, inside: bool = False, **keys: t.Any) -> CheckResult:
    return verify(connection, check(**keys), inside=inside)[0]


INSERT = "INSERT INTO app.project (org, size) VALUES (%s, %s)"
FORMS: dict[str, tuple[str, dict[str, t.Any], dict[str, t.Any], t.Any]] = {
    # name: query, passing expectation, failing expectation, what the failing one measures
    "rows": ("SELECT * FROM app.project", {"rows": 3}, {"rows": {"min": 4}}, 3),
    "scalar": ("SELECT count(*) FROM app.project", {"scalar": 3}, {"scalar": 4}, 3),
    "numeric": ("SELECT sum(size) FROM app.project", {"scalar": 7.75}, {"scalar": {"max": 7.5}}, "7.75"),
    "null": ("SELECT NULL", {"scalar": None}, {"scalar": ""}, None),
    "set": (
        "SELECT name FROM app.org", {"set": ["two", "one"]}, {"set": ["one", "three"]},
        {"missing": ["three"], "unexpected": ["two"]},
    ),
    "list": ("SELECT id FROM app.org ORDER BY id DESC", {"list": [2, 1]}, {"list": [1, 2]}, [2, 1]),
    "rows_equal": (
        "SELECT id, name FROM app.org ORDER BY id",
        {"rows_equal": [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]},
        {"rows_equal": [{"id": 1, "name": "one"}]}, [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}],
    ),
    "jmespath": (
        "SELECT id, size FROM app.project", {"jmespath": "max([].size)", "equals": 4},
        {"jmespath": "[?size > `1.5`] | length(@)", "min": 3}, 2,
    ),
    "time": (
        "SELECT timestamptz '2026-03-01 13:00+01'", {"scalar": "2026-03-01T12:00:00+00:00"}, {"scalar": "2026-03-01"},
        "2026-03-01T12:00:00+00:00",
    ),
    "json": (
        "SELECT '{\"a\": [1, true]}'::jsonb",
        {"scalar": {"equals": {"a": [1, True]}}},
        {"scalar": "{}"},
        {"a": [1, True]},
    ),
    "uuid array": (
        "SELECT array['6f2c7f4e-3a52-4f8e-9d5e-0a1b2c3d4e5f'::uuid]::text[]",
        {"scalar": {"in": [["6f2c7f4e-3a52-4f8e-9d5e-0a1b2c3d4e5f"]]}},
        {"scalar": 1},
        ["6f2c7f4e-3a52-4f8e-9d5e-0a1b2c3d4e5f"],
    ),
    "show": ("SHOW transaction_isolation", {"scalar": "read committed"}, {"scalar": "serializable"}, "read committed"),
    "writing": ("DELETE FROM app.project RETURNING id", {"rows": 3}, {"rows": 2}, 3),
    "locking": ("SELECT id FROM app.org ORDER BY id FOR UPDATE", {"list": [1, 2]}, {"list": [1]}, [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("inside", [False, True], ids=["own transaction", "open transaction"])
def test_every_form_of_expectation_passes_and_fails(connection: t.Any, inside: bool) -> None:
    if inside:
        connection.cursor().execute("BEGIN")
    for form, (query, passing, failing, measured) in FORMS.items():
        good = one(connection, inside, query=query, expect=passing)
        bad = one(connection, inside, query=query, expect=failing)

        assert good.passed, (form, good.summary)
        assert (bad.passed, bad.measured) == (False, measured), form
        assert json.dumps(bad.to_dict())


@pytest.mark.parametrize("inside", [False, True], ids=["own transaction", "open transaction"])
def test_a_plan_tells_whether_an_index_can_serve_a_query(schema: Database, connection: t.Any, inside: bool) -> None:
    by_org = {"query": "SELECT id FROM app.project WHERE org = 1", "expect": {"plan": {"no_seq_scan": ["app.project"]}}}
    if inside:
        connection.cursor().execute("BEGIN")
    # The primary key could be read from one end to the other instead of the table.
    without = one(connection, inside, **by_org)
    assert (without.passed, without.measured) == (False, {"indexes": [], "read_whole": ["app.project"]})
    connection.cursor().execute("CREATE INDEX project_by_org ON app.project (org)")
    by_org["expect"]["plan"]["uses_index"] = ["project_by_org"]
    served = one(connection, inside, **by_org)
    # Three rows: left to itself, the planner reads them all.
    assert served.passed, served.summary
    assert served.required == by_org["expect"]["plan"] and served.to_dict()["when"] == "after_commit"
    with connection.cursor() as cursor:
        cursor.execute("SHOW enable_seqscan")
        assert cursor.fetchone() == ("on",)
    writing = one(connection, inside, query="DELETE FROM app.project WHERE org = 1", expect=by_org["expect"])
    assert writing.passed and schema.scalar("SELECT count(*) FROM app.project") == 3


def test_true_needs_every_value_true_and_at_least_one_row(connection: t.Any) -> None:
    query = "SELECT size > %s FROM app.project"

    assert one(connection, query=query % "0", expect={"true": "all"}).passed
    bad = one(connection, query=query % "2", expect={"true": "all"})
    assert (bad.passed, bad.measured, bad.required) == (False, "2 of 3 true", "every value true")
    assert not one(connection, query=query % "0" + " WHERE false", expect={"true": "all"}).passed


def test_a_failing_row_count_shows_the_rows(connection: t.Any) -> None:
    bad = one(connection, query="SELECT id, name FROM app.org ORDER BY id", expect={"rows": 8}, name="eight")

    assert bad.summary == "eight: measured 2 rows, required 8 rows"
    assert bad.rows == ({"id": 1, "name": "one"}, {"id": 2, "name": "two"})


@pytest.mark.parametrize("inside", [False, True], ids=["own transaction", "open transaction"])
def test_a_statement_that_must_be_refused_is_judged_by_its_sqlstate(connection: t.Any, inside: bool) -> None:
    if inside:
        connection.cursor().execute("BEGIN")
    results = verify(
        connection,
        check(statement="INSERT INTO app.org VALUES (1, 'x')", expect_error="unique_violation"),
        check(statement="INSERT INTO app.org VALUES (1, 'x')", expect_error=["foreign_key_violation", "23505"]),
        check(statement="INSERT INTO app.org VALUES (1, 'x')", expect_error="foreign_key_violation"),
        check(statement="INSERT INTO app.org VALUES (3, 'x')", expect_error="unique_violation"),
        check(statement="INSERT INTO app.org VALUES (4, 'y')"),
        check(statement="INSERT INTO app.org VALUES (1, 'y')"),
        inside=inside,
    )

    assert [result.passed for result in results] == [True, True, False, False, True, False]
    assert results[2].measured.startswith("error 23505 unique_violation: ")
    assert results[2].required == "error 23503 foreign_key_violation"
    assert (results[3].measured, results[3].required) == ("success (INSERT 0 1)", "error 23505 unique_violation")
    assert results[4].measured == "success (INSERT 0 1)"
    assert results[5].error is not None and results[5].error["sqlstate"] == "23505"


@pytest.mark.parametrize("inside", [False, True], ids=["own transaction", "open transaction"])
def test_a_deferred_foreign_key_is_tested_although_nothing_is_committed(connection: t.Any, inside: bool) -> None:
    if inside:
        connection.cursor().execute("BEGIN")
    result = one(connection, inside, statement=INSERT % (99, 1), expect_error="foreign_key_violation")

    assert result.passed, result.summary
    if inside:
        # The transaction's own mode is not changed by the check: the same row is accepted until commit.
        connection.cursor().execute(INSERT % (99, 1))


@pytest.mark.parametrize("inside", [False, True], ids=["own transaction", "open transaction"])
def test_nothing_of_a_check_stays(schema: Database, connection: t.Any, inside: bool) -> None:
    cursor = connection.cursor()
    if inside:
        cursor.execute("BEGIN; INSERT INTO app.org VALUES (7, 'of the migration')")
    results = verify(
        connection,
        check(statement="INSERT INTO app.org VALUES (8, 'x')"),
        check(statement="DROP TABLE app.project"),
        check(query="DELETE FROM app.project RETURNING id", expect={"rows": 3}),
        check(query="SELECT set_config('app.x', 'y', false)", expect={"scalar": "y"}),
        check(statement="INSERT INTO app.org VALUES (1, 'x')", expect_error="23505"),
        inside=inside,
    )
    assert all(result.passed for result in results), [result.summary for result in results]
    if inside:
        cursor.execute("COMMIT")

    assert schema.query("SELECT id FROM app.org ORDER BY id") == [(1,), (2,)] + ([(7,)] if inside else [])
    assert schema.query("SELECT count(*) FROM app.project") == [(3,)]
    cursor.execute("SELECT coalesce(current_setting('app.x', true), '')")
    assert cursor.fetchone() == ("",)
    assert connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE


def test_sequences_still_move(schema: Database, connection: t.Any) -> None:
    before = schema.query("SELECT last_value FROM app.project_id_seq")[0][0]

    assert one(connection, statement=INSERT % (1, 1)).passed

    assert schema.query("SELECT last_value FROM app.project_id_seq")[0][0] == before + 1


@pytest.mark.parametrize("inside", [False, True], ids=["own transaction", "open transaction"])
def test_a_failing_check_does_not_poison_the_next(connection: t.Any, inside: bool) -> None:
    if inside:
        connection.cursor().execute("BEGIN")
    good = {"query": "SELECT 1", "expect": {"scalar": 1}}
    bad: list[dict[str, t.Any]] = [
        {"query": "SELECT no_such_column FROM app.org", "expect": {"rows": 1}},
        {"query": "SELECT 1 / 0", "expect": {"scalar": 1}},
        {"query": "SELECT pg_sleep(5)", "expect": {"rows": 1}, "timeout": "100ms"},
        {"query": "SELECT 1", "expect": {"scalar": 1}, "as_role": "nobody_of_this_name"},
        {"query": "SELECT date '0044-03-15 BC'", "expect": {"rows": 1}},
        {"statement": "SELEKT"},
    ]
    results = verify(connection, *(check(**keys) for item in bad for keys in (item, good)), inside=inside)

    assert [result.passed for result in results] == [False, True] * len(bad)
    assert results[0].measured.startswith("error 42703 undefined_column: ")
    assert results[6].measured.startswith("error 22023 invalid_parameter_value: ")
    assert results[8].measured.startswith("a value that cannot be read: ")


def test_a_check_that_takes_too_long_is_a_failed_check(connection: t.Any) -> None:
    result = one(connection, query="SELECT pg_sleep(30)", expect={"rows": 1}, timeout="200ms")

    assert (result.passed, result.measured) == (False, "timed out after 200 ms")
    assert result.error is not None and result.error["sqlstate"] == "57014"


def test_a_check_that_waits_for_a_lock_is_told_from_a_slow_one(schema: Database, connection: t.Any) -> None:
    with contextlib.closing(schema.connect()) as other:
        other.cursor().execute("BEGIN; LOCK TABLE app.org")
        result = one(connection, query="SELECT * FROM app.org", expect={"rows": 2}, timeout="300ms")
        # NOWAIT raises the same SQLSTATE, at once: that is the server's refusal and not our limit.
        refused = one(connection, statement="LOCK TABLE app.org NOWAIT", expect_error="lock_not_available")

    assert (result.passed, result.measured) == (False, "waited 270 ms for a lock")
    assert refused.passed, refused.summary


def test_the_caller_can_leave_a_check_less_time_than_its_own(connection: t.Any) -> None:
    connection.cursor().execute("BEGIN")
    slow = check(query="SELECT pg_sleep(30)", expect={"rows": 1})

    result = verify(connection, slow, inside=True, time_left=lambda: 0.1)[0]

    assert result.measured == "timed out after 100 ms"


def test_a_check_runs_as_a_role_with_settings(schema: Database, connection: t.Any) -> None:
    role = f"reader_{schema.name}"
    cursor = connection.cursor()
    cursor.execute(f'CREATE ROLE "{role}"; GRANT USAGE ON SCHEMA app TO "{role}"; GRANT SELECT ON app.org TO "{role}"')
    cursor.execute("ALTER TABLE app.org ENABLE ROW LEVEL SECURITY")
    # Once a custom setting was set locally, it reads as an empty text for the rest of the session.
    cursor.execute("CREATE POLICY p ON app.org USING (id = nullif(current_setting('app.org_id', true), '')::int)")
    # What a pasted pg_dump preamble leaves behind does not change what a check sees.
    cursor.execute("SET search_path = ''; SET row_security = off; SET TimeZone = 'Asia/Tokyo'")
    try:
        results = verify(
            connection,
            check(query="SELECT id FROM app.org", expect={"set": [2]}, as_role=role, settings={"app.org_id": 2}),
            check(query="SELECT id FROM app.org", expect={"set": [1, 2]}),
            check(query="SELECT current_user", expect={"scalar": role}, as_role=role),
            check(statement="DELETE FROM app.org", expect_error="insufficient_privilege", as_role=role),
            check(query="SELECT current_setting('TimeZone')", expect={"scalar": "UTC"}),
            check(query="SELECT current_setting('search_path')", expect={"scalar": {"not": ""}}),
            check(query="SELECT :'x' = current_user", expect={"true": "all"}, as_role=role),
            variables={},
            secret_variables={"x": role},
        )
        assert all(result.passed for result in results), [result.summary for result in results]
        cursor.execute("SELECT current_user")
        assert cursor.fetchone() == ("postgres",)
    finally:
        cursor.execute(f'DROP OWNED BY "{role}"; DROP ROLE "{role}"')


def test_variables_are_quoted_and_an_undefined_one_is_an_error_with_its_place(connection: t.Any) -> None:
    asked = check(query="SELECT name = :'name' FROM app.:\"table\" WHERE id = :id", expect={"true": "all"})

    assert not verify(connection, asked, variables={"name": "o'ne", "table": "org", "id": 1})[0].passed
    assert verify(connection, asked, variables={"name": "one", "table": "org", "id": 1})[0].passed
    with pytest.raises(SqlTextError, match=r"plan\.yml:3"):
        verify(connection, asked, variables={"name": "one", "table": "org"})
    assert connection.info.transaction_status == psycopg2.extensions.TRANSACTION_STATUS_IDLE


def test_a_large_result_is_not_fetched_whole(connection: t.Any) -> None:
    query = "SELECT generate_series(1, 5000000), repeat('x', 100)"

    result = one(connection, query=query, expect={"rows": 5}, timeout="60s")

    assert (result.passed, result.measured) == (False, "more than 10000")
    assert one(connection, query=query.replace("5000000", "20000"), expect={"rows": 20000}).passed


def test_a_wide_value_is_cut_in_what_is_shown(connection: t.Any) -> None:
    result = one(connection, query="SELECT repeat('x', 100000)", expect={"scalar": "y"})

    assert result.measured == "x" * 500 + "... (100000 characters)"


def test_losing_the_connection_is_not_a_failed_check(schema: Database, connection: t.Any) -> None:
    first = check(query="SELECT 1", expect={"scalar": 1})
    fatal = check(query="SELECT pg_terminate_backend(pg_backend_pid())", expect={"rows": 1})

    with pytest.raises(ConnectionFailed, match=r"the connection was lost during check 'a check'.*plan\.yml:3:5"):
        verify(connection, first, fatal)


def test_a_cancelled_run_is_interrupted_and_leaves_the_transaction_usable(connection: t.Any) -> None:
    cursor = connection.cursor()
    cursor.execute("BEGIN")
    stop = threading.Event()

    def cancel() -> None:
        time.sleep(0.3)
        stop.set()
        connection.cancel()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(Interrupted, match="stopped during check 'a check'"):
        verify(connection, check(query="SELECT pg_sleep(30)", expect={"rows": 1}), inside=True, cancelled=stop.is_set)
    thread.join()

    cursor.execute("SELECT 1")
    with pytest.raises(Interrupted, match="stopped before check 'a check'"):
        verify(connection, check(statement="SELECT 1"), inside=True, cancelled=stop.is_set)


def test_a_verification_file_is_run_statement_by_statement(connection: t.Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "1_a.verify.sql"
    path.write_text(
        "SELECT count(*) = 2 FROM app.org;\nSELECT id > 1 FROM app.org;\nDELETE FROM app.project;\n"
        "SELECT 1 / 0;\nDO $$ BEGIN ASSERT (SELECT count(*) = 3 FROM app.project); END $$;\n",
        encoding="utf-8",
    )
    results = verify(connection, *expand([check_of_file(str(path), path.name, Location("1_a.verify.sql"))]))

    assert [result.passed for result in results] == [True, False, True, False, True]
    assert (results[1].measured, results[1].check.name) == ("1 of 2 true", "1_a.verify.sql line 2")


# --- the module


def run_module(
    arguments: dict[str, t.Any], capsys: pytest.CaptureFixture[str], check_mode: bool = False
) -> dict[str, t.Any]:
    with patch_module_args({**arguments, "_ansible_check_mode": check_mode}), pytest.raises(SystemExit):
        postgresql_verification.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


ONE = {"name": "two organizations", "query": "SELECT name FROM app.org", "expect": {"set": ["one", "two"]}}
WRONG = {"name": "eight projects", "query": "SELECT 1 FROM app.project", "expect": {"rows": 8}}


@pytest.mark.parametrize("check_mode", [False, True], ids=["run", "check mode"])
def test_the_module_returns_measured_and_required(
    schema: Database, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, check_mode: bool
) -> None:
    result = run_module({**schema.params, "checks": [ONE], "run_dir": str(tmp_path / "run")}, capsys, check_mode)

    assert (result["changed"], result["failed_checks"]) == (False, 0)
    assert result["checks"][0]["passed"] is True
    assert result["evidence"][0]["criterion"] == "verify.two_organizations"
    recorded = (tmp_path / "run" / "evidence.jsonl").read_text(encoding="utf-8")
    kept = json.loads(recorded)
    assert kept.pop("previous") == "0" * 64  # the beginning of the chain
    assert kept == result["evidence"][0]


def test_the_module_fails_with_one_line_and_all_results(schema: Database, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {**schema.params, "checks": [WRONG, ONE]}

    failed = run_module(arguments, capsys)
    told = run_module({**arguments, "fail_on_error": False}, capsys)

    assert failed["failed"] is True
    assert failed["msg"] == "1 of 2 checks failed: eight projects: measured 3 rows, required 8 rows."
    assert failed["error"]["code"] == "verification"
    assert [entry["passed"] for entry in failed["checks"]] == [False, True]
    assert [entry["verdict"] for entry in failed["evidence"]] == ["fail", "pass"]
    assert (told.get("failed", False), told["failed_checks"]) == (False, 1)


def write_plan(tmp_path: pathlib.Path) -> str:
    for name in ("a.sql", "b.sql", "c.sql"):
        (tmp_path / name).write_text("SELECT 1;\n", encoding="utf-8")
    (tmp_path / "b.verify.sql").write_text("SELECT count(*) = 3 FROM app.project;\n", encoding="utf-8")
    (tmp_path / "plan.yml").write_text(
        textwrap.dedent(
            """\
            variables: {wanted: one, region: null}
            secret_variables: [key, unused]
            migrations:
              - id: 001_a
                deploy: a.sql
                session_settings: {app.key: key}
                verify:
                  - name: the key is set
                    query: SELECT length(current_setting('app.key'))
                    expect: {scalar: 17}
                  - name: the secret arrives
                    query: SELECT current_setting('app.key') = :'key'
                    expect: {true: all}
                  - name: the wanted one
                    query: |
                      SELECT count(*)
                        FROM app.org WHERE name = :'wanted'
                    expect: {scalar: 1}
              - {id: 002_b, deploy: b.sql, verify: b.verify.sql}
              - id: 003_c
                deploy: c.sql
            """
        ),
        encoding="utf-8",
    )
    return str(tmp_path)


def test_the_module_runs_the_checks_of_a_plan(
    schema: Database, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    arguments = {**schema.params, "path": write_plan(tmp_path), "secret_variables": {"key": SECRET}}

    result = run_module(arguments, capsys)

    assert result["failed_checks"] == 0, result
    assert [(entry["migration"], entry["name"]) for entry in result["checks"]] == [
        ("001_a", "the key is set"),
        ("001_a", "the secret arrives"),
        ("001_a", "the wanted one"),
        ("002_b", "b.verify.sql line 1"),
    ]
    assert any("no checks in the plan for 003_c" in str(warning) for warning in result["warnings"])
    chosen = run_module({**schema.params, "path": str(tmp_path), "migration": ["002_b"]}, capsys)
    assert [entry["migration"] for entry in chosen["checks"]] == ["002_b"]
    unknown = run_module({**schema.params, "path": str(tmp_path), "migration": ["002"]}, capsys)
    assert unknown["msg"].endswith("Did you mean 002_b?")
    missing = run_module({**schema.params, "path": str(tmp_path)}, capsys)
    assert "no value for secret variable key" in missing["msg"]


def test_secrets_are_nowhere_to_be_seen(
    schema: Database, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    # A check that returns the value, one that fails with it in its text, one whose error quotes it.
    leaks = """\
                  - {name: shown, query: "SELECT :'key'", expect: {scalar: 1}}
                  - {name: refused, statement: "INSERT INTO app.org VALUES (1, :'key')"}
                  - {name: missing, statement: "SELECT :'key' FROM app.nothing"}
    """
    cast = """      - {name: cast, statement: "SELECT :'key'::int"}\n"""
    path = write_plan(tmp_path)
    plan = (tmp_path / "plan.yml").read_text(encoding="utf-8")
    start = "      - name: the wanted one\n"
    arguments = {**schema.params, "path": path, "secret_variables": {"key": SECRET}, "run_dir": str(tmp_path / "run")}
    shown = ""
    failed = []
    for added in (textwrap.indent(textwrap.dedent(leaks), "      "), cast):
        (tmp_path / "plan.yml").write_text(plan.replace(start, added + start), encoding="utf-8")
        with patch_module_args(arguments), pytest.raises(SystemExit):
            postgresql_verification.main()
        out, err = capsys.readouterr()
        shown += out + err
        failed += [entry["name"] for entry in json.loads(out)["checks"] if not entry["passed"]]
        assert SECRET not in schema.server.log_text()

    assert failed == ["shown", "refused", "missing", "cast"]
    assert SECRET not in shown
    assert SECRET not in (tmp_path / "run" / "evidence.jsonl").read_text(encoding="utf-8")


BAD_OPTIONS: dict[str, tuple[dict[str, t.Any], str]] = {
    "nothing": ({}, "one of the following is required: checks, path"),
    "both": ({"checks": [ONE], "path": "/x"}, "mutually exclusive"),
    "no checks": ({"checks": []}, "there are no checks"),
    "migration alone": ({"checks": [ONE], "migration": ["a"]}, "missing parameter(s) required by 'migration': path"),
    "unknown key": ({"checks": [{**ONE, "expects": 1}]}, "expects"),
    "bad check": ({"checks": [ONE, {"name": "x", "query": "SELECT 1"}]}, "has a query without expect (checks[1])"),
    "no plan": ({"path": "/nonexistent"}, "/nonexistent does not exist"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_a_wrong_option_is_refused_before_anything_connects(capsys: pytest.CaptureFixture[str], case: str) -> None:
    options, message = BAD_OPTIONS[case]
    nowhere = {"login_unix_socket": "/nonexistent", "login_db": "none"}

    result = run_module({**nowhere, **options}, capsys)

    assert result["failed"] is True
    assert message in result["msg"]
    assert "\n" not in result["msg"]


def test_an_unreachable_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    result = run_module({"login_unix_socket": "/nonexistent", "login_db": "none", "checks": [ONE]}, capsys)

    assert result["error"]["code"] == "connection"
    assert (result["checks"], "\n" in result["msg"]) == ([], False)
