# Copyright (c) 2026, Surefoot contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Baselines on a real server: what became slower is found, what did not is left alone, and nothing is written."""

from __future__ import annotations

import contextlib
import json
import pathlib
import stat
import threading
import typing as t

import pytest

from ansible_collections.surefoot.dbops.plugins.module_utils._baseline import (
    BLOCKS,
    Baseline,
    Request,
    load_queries,
    parse_queries,
    plan_changes,
)
from ansible_collections.surefoot.dbops.plugins.module_utils._connection import ConnectionOptions
from ansible_collections.surefoot.dbops.plugins.module_utils._errors import Interrupted, PlanError, SqlTextError
from ansible_collections.surefoot.dbops.plugins.module_utils._module import Invocation
from ansible_collections.surefoot.dbops.plugins.modules import postgresql_baseline
from ansible_collections.surefoot.dbops.tests.support import lancio
from ansible_collections.surefoot.dbops.tests.support.pgserver import Database, PgServer, temporary_database

pytestmark = pytest.mark.versions

SECRET = "s3cr3t-Token-4d2e"

SCHEMA = f"""
CREATE SCHEMA app;
CREATE TABLE app.log (id int PRIMARY KEY, org int NOT NULL, note text);
INSERT INTO app.log SELECT n, n % 500, repeat('x', 60) FROM generate_series(1, 30000) AS n;
CREATE INDEX log_org ON app.log (org);
CREATE TABLE app.session (token text PRIMARY KEY, org int NOT NULL);
INSERT INTO app.session SELECT md5(n::text), n % 500 FROM generate_series(1, 2000) AS n;
INSERT INTO app.session VALUES ('{SECRET}', 7);
ANALYZE app.log, app.session;
"""
PAGE = {"name": "page", "query": "SELECT * FROM app.log WHERE org = :org", "variables": {"org": 7}}
SESSION = {
    "name": "session",
    "query": "SELECT * FROM app.session WHERE token = :'token'",
    "sample": {"token": "SELECT token FROM app.session WHERE token LIKE 's3%' ORDER BY token LIMIT 1"},
}


@pytest.fixture
def schema(database: Database) -> Database:
    with contextlib.closing(database.connect()) as connection, connection.cursor() as cursor:
        cursor.execute(SCHEMA)
    return database


def run(
    database: Database, run_dir: pathlib.Path | None, queries: t.Sequence[dict[str, t.Any]] = (), **options: t.Any
) -> dict[str, t.Any]:
    """The module's run with defaults, with fewer runs."""
    spec = postgresql_baseline.argument_spec().argument_spec
    params = {name: entry.get("default") for name, entry in spec.items()}
    params.update(database.params)
    params.update({"queries": list(queries), "runs": 16, "run_dir": None if run_dir is None else str(run_dir)})
    params.update(options)
    check_mode = params.pop("check_mode", False)
    return Invocation(params, check_mode, False, name="postgresql_baseline").perform(postgresql_baseline.run)


def twice(
    database: Database,
    run_dir: pathlib.Path,
    change: str,
    queries: t.Sequence[dict[str, t.Any]] = (PAGE, SESSION),
    **options: t.Any,
) -> dict[str, t.Any]:
    """Measured, changed, measured and compared."""
    before = run(database, run_dir, queries)
    assert "failed" not in before, before
    if change:
        database.query(change)
    earlier = str(run_dir / "baseline-before.json")
    return run(database, run_dir, queries, label="after", compare_with=earlier, **options)


def verdicts(results: dict[str, t.Any]) -> dict[str, str]:
    return {item["criterion"]: item["verdict"] for item in results["evidence"]}


def judged(results: dict[str, t.Any]) -> dict[str, str]:
    return {item["name"]: item["verdict"] for item in results["comparison"]["queries"]}


# --- measuring


def test_times_plan_cost_buffers_and_rows_are_recorded(schema, tmp_path):
    results = run(schema, tmp_path, [PAGE, SESSION])
    page, session = results["queries"]
    assert (page["problem"], page["rows"], page["runs"]) == (None, 60, 16)
    assert 0 < page["median_ms"] <= page["p95_ms"]
    assert "log_org" in " ".join(page["plan"]) and page["cost"] > 0
    assert page["buffers"]["hit"] + page["buffers"]["read"] > 0
    assert session["plan"] == ["Index Scan using session_pkey on app.session"]
    assert verdicts(results) == {"baseline.recorded": "pass"}
    file = tmp_path / "baseline-before.json"
    assert results["path"] == str(file) and stat.S_IMODE(file.stat().st_mode) == 0o600
    stored = json.loads(file.read_text())
    assert [len(block) for block in stored["queries"][0]["blocks_ms"]] == [2] * BLOCKS
    assert stored["server"]["database"] == schema.name and stored["label"] == "before"


def test_what_is_measured_cannot_write(schema, tmp_path):
    schema.query("CREATE SEQUENCE app.counter")
    schema.query(
        "CREATE FUNCTION app.note() RETURNS int LANGUAGE sql VOLATILE AS"
        " 'INSERT INTO app.log SELECT max(id) + 1, 0, ''x'' FROM app.log RETURNING id'"
    )
    queries = [
        {"name": "function", "query": "SELECT app.note()"},
        {"name": "sequence", "query": "SELECT nextval('app.counter')"},
        {"name": "lock", "query": "SELECT * FROM app.log WHERE id = 1 FOR UPDATE"},
        {"name": "cte", "query": "WITH gone AS (DELETE FROM app.log RETURNING id) SELECT count(*) FROM gone"},
        PAGE,
    ]
    results = run(schema, tmp_path, queries)
    assert [item["problem"] for item in results["queries"]] == ["error"] * 4 + [None]
    assert all("read-only transaction" in item["message"] for item in results["queries"][:4])
    assert verdicts(results) == {"baseline.recorded": "fail"}
    assert schema.scalar("SELECT count(*) FROM app.log") == 30000
    assert schema.scalar("SELECT is_called FROM app.counter") is False


@pytest.mark.parametrize(
    ("query", "match"),
    [
        ("DELETE FROM app.log", "is no query"),
        ("SELECT 1; SELECT 2", "not one statement"),
        ("", "needs name and query"),
        ("SELECT :missing", "variable missing, which has no value"),
        ("\\dt", "not one statement"),
    ],
)
def test_what_is_no_single_query_is_refused_before_connecting(tmp_path, query, match):
    with pytest.raises((PlanError, SqlTextError), match=match):
        Request(parse_queries([{"name": "x", "query": query}], "test")).validate()


def test_a_file_of_queries_is_read_with_its_mistakes_named(tmp_path):
    file = tmp_path / "queries.yml"
    file.write_text("variables: {n: 3}\nqueries:\n  - {name: a, query: 'SELECT :n'}\n")
    queries, variables = load_queries(str(file))
    assert ([query.name for query in queries], variables) == (["a"], {"n": 3})
    for text, match in (
        ("queries: [", r"not valid YAML \(.*queries.yml:"),
        ("queries: []\nmore: 1", "has the keys"),
        ("queries: [{name: a}]", "needs name and query"),
        ("queries: [{name: a, query: SELECT 1, runs: 3}]", "unknown key runs"),
        ("queries: [{name: a, query: SELECT 1}, {name: a, query: SELECT 2}]", "two queries are called a"),
    ):
        file.write_text(text)
        with pytest.raises(PlanError, match=match):
            load_queries(str(file))


def test_a_slow_query_runs_fewer_times_and_one_over_its_timeout_has_failed(schema, tmp_path):
    slow = {"name": "slow", "query": "SELECT pg_sleep(0.02)"}
    endless = {"name": "endless", "query": "SELECT pg_sleep(60)"}
    results = run(schema, None, [slow, endless], budget="100ms", statement_timeout="200ms", warmup=0)
    first, second = results["queries"]
    assert (first["problem"], first["runs"]) == (None, BLOCKS)
    assert second["problem"] == "error" and "statement timeout" in second["message"]


def test_a_result_too_large_to_keep_is_refused_by_its_estimate(schema):
    query = "SELECT a.* FROM app.log AS a CROSS JOIN app.log AS b"
    (only,) = run(schema, None, [{"name": "huge", "query": query}])["queries"]
    assert only["problem"] == "error" and "Add a LIMIT" in only["message"]


def test_secrets_and_samples_are_in_no_statement_result_or_log(pg_server: PgServer, schema, tmp_path):
    schema.query(f"ALTER DATABASE {schema.name} SET log_statement = 'all'")
    given = {"name": "given", "query": "SELECT * FROM app.session WHERE token = :'secret'"}
    wrong = {"name": "wrong", "query": "SELECT * FROM app.log WHERE org = :'secret'::int"}
    results = run(schema, tmp_path, [SESSION, given, wrong], secret_variables={"secret": SECRET})
    # The index is used as with a literal, so the value did arrive.
    assert [item["rows"] for item in results["queries"][:2]] == [1, 1]
    assert all("Index Scan" in item["plan"][0] for item in results["queries"][:2])
    assert results["queries"][2]["problem"] == "error"
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    assert SECRET not in json.dumps(results) + files
    log = pg_server.log_text()
    assert "surefoot_baseline.s0" in log
    # What a cast refuses the server quotes itself; the guide says so.
    shown = [line for line in log.splitlines() if SECRET in line]
    assert [line for line in shown if "invalid input syntax for type integer" not in line] == []


def test_queries_run_as_the_role_the_application_uses(schema, tmp_path):
    schema.query(
        "ALTER TABLE app.log ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY own ON app.log USING (org = current_setting('app.org')::int);"
        "DROP ROLE IF EXISTS baseline_app; CREATE ROLE baseline_app;"
        "GRANT USAGE ON SCHEMA app TO baseline_app; GRANT SELECT ON app.log TO baseline_app"
    )
    try:
        query = [{"name": "all", "query": "SELECT count(*) FROM app.log WHERE note IS NOT NULL HAVING count(*) = 60"}]
        as_app = run(schema, None, query, session_role="baseline_app", settings={"app.org": "3"})
        assert as_app["queries"][0]["rows"] == 1
        assert run(schema, None, query)["queries"][0]["rows"] == 0
    finally:
        schema.query("DROP OWNED BY baseline_app; DROP ROLE baseline_app")


# --- comparing


def test_an_unchanged_database_raises_no_alarm(schema, tmp_path):
    results = twice(schema, tmp_path, "", fail_on_regression=True)
    assert "failed" not in results
    assert results["regressions"] == [] and results["plan_changes"] == []
    assert verdicts(results)["baseline.plan_changes"] == "pass"
    assert verdicts(results)["baseline.regression"] != "fail"


def test_a_dropped_index_is_found_and_the_scan_is_named(schema, tmp_path):
    # Ten rows by their index against ten scans of the whole table: two hundred times the work.
    query = "SELECT (SELECT note FROM app.log WHERE id = n) FROM generate_series(1, 10) AS n"
    by_id = {"name": "by_id", "query": query}
    brief = {"budget": "300ms", "warmup": 1}
    results = twice(schema, tmp_path, "ALTER TABLE app.log DROP CONSTRAINT log_pkey", [by_id, SESSION], **brief)
    assert "failed" not in results  # the policy decides
    (regression,) = results["regressions"]
    assert (regression["name"], regression["kind"]) == ("by_id", "regressed")
    change = "app.log: Seq Scan where Index Scan using log_pkey was"
    assert change in regression["message"]
    assert results["plan_changes"] == [f"by_id: {change}"]
    assert results["comparison"]["measured_again"]
    assert verdicts(results)["baseline.regression"] == "fail"
    again = run(
        schema,
        tmp_path,
        [by_id, SESSION],
        label="shadow",
        compare_with=str(tmp_path / "baseline-before.json"),
        fail_on_regression=True,
        **brief,
    )
    assert again["failed"] and "became worse: by_id" in again["msg"]
    assert verdicts(again)["baseline.shadow_regression"] == "fail"
    assert (tmp_path / "baseline-shadow.json").exists()


def test_a_plan_change_without_a_slow_down_is_named_and_no_failure(schema, tmp_path):
    # Another index of the same kind: the plan is another, the work is not.
    change = "CREATE INDEX log_org_new ON app.log (org); DROP INDEX app.log_org"
    results = twice(schema, tmp_path, change)
    assert [text for text in results["plan_changes"] if "log_org_new" in text and "log_org was" in text]
    assert results["regressions"] == []
    assert verdicts(results)["baseline.plan_changes"] == "pass"


def test_a_query_that_fails_or_finds_nothing_any_more_became_worse(schema, tmp_path):
    gone = {"name": "gone", "query": "SELECT * FROM app.session LIMIT 3"}
    hidden = {"name": "hidden", "query": "SELECT * FROM app.log WHERE org = 5"}
    change = "DELETE FROM app.log; ALTER TABLE app.session RENAME TO session_old"
    results = twice(schema, tmp_path, change, [gone, hidden, SESSION])
    assert {item["name"]: item["kind"] for item in results["regressions"]} == {
        "gone": "failed",
        "hidden": "no_rows",
        "session": "failed",
    }
    assert verdicts(results) == {
        "baseline.recorded": "fail",
        "baseline.regression": "fail",
        "baseline.plan_changes": "pass",
    }


def test_what_cannot_be_compared_is_not_passed(schema, tmp_path):
    run(schema, tmp_path, [PAGE, SESSION])
    other = {**PAGE, "query": PAGE["query"] + " ORDER BY id"}
    results = run(
        schema, None, [other, {"name": "new", "query": "SELECT 1"}], compare_with=str(tmp_path / "baseline-before.json")
    )
    assert judged(results) == {"page": "different", "new": "new", "session": "missing"}
    assert verdicts(results)["baseline.regression"] == "not_measured"


def test_tables_that_are_not_there_yet_are_left_out_before_and_not_after(schema, tmp_path):
    later = {"name": "later", "query": "SELECT * FROM app.later"}
    empty = {"name": "empty", "query": "SELECT :'x'", "sample": {"x": "SELECT token FROM app.session WHERE false"}}
    before = run(schema, tmp_path, [later, empty, PAGE])
    assert [item["problem"] for item in before["queries"]] == ["absent", "no_sample", None]
    assert verdicts(before) == {"baseline.recorded": "pass"}
    earlier = {"compare_with": str(tmp_path / "baseline-before.json"), "label": "after"}
    still = run(schema, None, [later, empty, PAGE], **earlier)
    assert verdicts(still)["baseline.recorded"] == "fail"
    schema.query("CREATE TABLE app.later (id int)")
    after = run(schema, None, [later, empty, PAGE], **earlier)
    assert judged(after)["later"] == "new"
    assert verdicts(after)["baseline.recorded"] == "pass"
    assert verdicts(run(schema, None, [empty])) == {"baseline.recorded": "not_applicable"}


def test_another_server_is_told_from_another_database(pg_server: PgServer, schema, tmp_path):
    run(schema, tmp_path, [PAGE])
    with temporary_database(pg_server) as shadow:
        with contextlib.closing(shadow.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(SCHEMA)
        earlier = tmp_path / "baseline-before.json"
        near = run(shadow, None, [PAGE], label="shadow", compare_with=str(earlier))
        assert near["comparison"]["same_server"] is True
        stored = json.loads(earlier.read_text())
        stored["server"]["system_identifier"] = "1"
        earlier.write_text(json.dumps(stored))
        far = run(shadow, None, [PAGE], label="shadow", compare_with=str(earlier))
        assert far["comparison"]["same_server"] is False


# --- statistics


def test_tables_without_statistics_are_analyzed_once(schema):
    schema.query(
        'CREATE TABLE app."New Table" AS SELECT n FROM generate_series(1, 100) AS n;'
        "CREATE TABLE app.empty (id int);"
        "CREATE TABLE app.parts (id int) PARTITION BY RANGE (id);"
        "CREATE TABLE app.part_1 PARTITION OF app.parts FOR VALUES FROM (0) TO (1000);"
        "INSERT INTO app.parts SELECT generate_series(1, 100);"
        "ALTER TABLE app.session ADD COLUMN kind text DEFAULT 'web';"
        "CREATE INDEX log_length ON app.log (length(note))"
    )
    dry = run(schema, None, analyze=True, check_mode=True)
    expected = ["app.New Table", "app.log", "app.parts", "app.session"]
    assert (dry["changed"], dry["analyzed"]) == (True, expected)
    assert {item["table"]: item["reason"] for item in dry["without_statistics"]} == {
        "app.New Table": "never analyzed",
        "app.log": "an index expression without statistics",
        "app.parts": "never analyzed",
        "app.session": "a column without statistics",
    }
    assert run(schema, None, [PAGE])["changed"] is False  # asked for nothing
    done = run(schema, None, analyze=True)
    assert (done["changed"], done["analyzed"]) == (True, expected)
    assert schema.scalar("SELECT reltuples FROM pg_class WHERE oid = 'app.part_1'::regclass") == 100
    again = run(schema, None, analyze=True)
    assert (again["changed"], again["analyzed"], again["without_statistics"]) == (False, [], [])


def test_a_table_of_another_owner_is_named_and_left_alone(schema):
    schema.query(
        "CREATE TABLE app.mine AS SELECT 1 AS n; DROP ROLE IF EXISTS baseline_other; CREATE ROLE baseline_other"
    )
    try:
        results = run(schema, None, analyze=True, session_role="baseline_other")
        assert (results["changed"], results["analyzed"]) == (False, [])
        assert results["without_statistics"] == [
            {"table": "app.mine", "reason": "never analyzed", "may_analyze": False}
        ]
    finally:
        schema.query("DROP ROLE baseline_other")


# --- the rest


def test_the_queries_of_the_migration_plan_are_measured(database, tmp_path):
    lancio.apply(database, "005_create_audit_logs")
    lancio.load_demo_data(database, audit_rows=500)
    results = run(database, tmp_path, path=str(lancio.DIRECTORY / "queries.yml"), runs=8)
    names = ["session_lookup", "audit_log_page", "organization_members", "role_in_organization", "project_access"]
    assert [item["name"] for item in results["queries"]] == names
    assert [item["problem"] for item in results["queries"]] == [None] * 5
    assert all(item["rows"] for item in results["queries"])
    assert "demo-session" not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_fresh_database_has_nothing_to_measure(database):
    results = run(database, None, path=str(lancio.DIRECTORY / "queries.yml"))
    assert {item["problem"] for item in results["queries"]} == {"absent"}
    assert verdicts(results) == {"baseline.recorded": "not_applicable"}


def test_stopping_cancels_the_query_that_runs(schema):
    queries = parse_queries([{"name": "sleep", "query": "SELECT pg_sleep(5)"}], "test")
    baseline = Baseline(ConnectionOptions.from_params(schema.params), Request(queries))
    threading.Timer(0.3, baseline.stop).start()
    with pytest.raises(Interrupted):
        baseline.run()


def test_check_mode_measures_and_writes_no_file(schema, tmp_path):
    results = run(schema, tmp_path, [PAGE], check_mode=True)
    assert results["queries"][0]["problem"] is None
    assert results["path"] is None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"queries": []}, "no queries"),
        ({"runs": 3}, "runs is not from"),
        ({"label": "After!"}, "label is"),
        ({"threshold": "much"}, "not a percentage"),
        ({"settings": {"work_mem": "1GB"}}, "no custom setting"),
        ({"compare_with": "/nowhere/baseline-before.json"}, "cannot read"),
    ],
)
def test_options_are_checked_before_connecting(options, match):
    params = {"login_host": "surefoot-test.invalid", "login_db": "x"}
    spec = postgresql_baseline.argument_spec().argument_spec
    defaults = {name: entry.get("default") for name, entry in spec.items()}
    invocation = Invocation({**defaults, **params, "queries": [PAGE], **options}, False, False)
    results = invocation.perform(postgresql_baseline.run)
    assert results["failed"] and match in results["msg"]


def test_plan_changes_are_said_in_words():
    def scan(kind: str, table: str, index: str | None = None) -> dict[str, t.Any]:
        shape = {"Node Type": kind, "Schema": "app", "Relation Name": table}
        return {**shape, "Index Name": index} if index else shape

    def join(kind: str, *children: dict[str, t.Any]) -> dict[str, t.Any]:
        return {"Node Type": kind, "Join Type": "Inner", "Plans": list(children)}

    before = join("Nested Loop", scan("Seq Scan", "a"), scan("Index Scan", "b", "b_pkey"))
    after = join("Hash Join", scan("Seq Scan", "a"), scan("Seq Scan", "b"))
    assert plan_changes(before, before) == []
    assert plan_changes(before, after) == [
        "app.b: Seq Scan where Index Scan using b_pkey was",
        "joins: Hash Join (Inner) where Nested Loop (Inner) was",
    ]
    heap = scan("Bitmap Heap Scan", "b")
    bitmap = {**heap, "Plans": [{"Node Type": "Bitmap Index Scan", "Index Name": "b_org"}]}
    assert plan_changes(scan("Seq Scan", "b"), bitmap) == ["app.b: Bitmap Heap Scan using b_org where Seq Scan was"]
    swapped = join("Nested Loop", scan("Index Scan", "b", "b_pkey"), scan("Seq Scan", "a"))
    assert plan_changes(before, swapped) == ["the same nodes in another order"]
    sort = {"Node Type": "Sort", "Plans": [scan("Seq Scan", "b")]}
    assert plan_changes(scan("Seq Scan", "b"), sort) == ["other nodes: Sort where none was"]
    assert plan_changes(sort, scan("Seq Scan", "c")) == [
        "app.b: no longer read, by Seq Scan",
        "app.c: now read, by Seq Scan",
    ]
